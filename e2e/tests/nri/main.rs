//! NRI plugins beside the daemon and a real runtime: what they hear, what of theirs is seen inside containers, and what is
//! left when one of them dies.
//!
//! The plugins are of this process, or programs that the daemon starts, which are this process's program again.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

// The plugins' file is shared with the tests of the crate of this name.
extern crate sandbox as windlass_sandbox;

mod adjustments;
mod deaths;
mod events;
mod installed;
#[expect(dead_code, reason = "a part of it is for the tests of its own crate")]
#[path = "../../../sandbox/tests/plugin/mod.rs"]
mod plugin;

use plugin::{Plugin, Script, Seen};
use prost::Message;
use windlass_e2e::node::{BUSYBOX, TestNode};
use windlass_sandbox::nri::proto::{
    ContainerAdjustment, ContainerEvent, ContainerUpdate, CreateContainerResponse, KeyValue, LinuxContainerUpdate,
    LinuxCpu, LinuxMemory, LinuxResources, OptionalInt, OptionalUInt64,
};

/// A node that serves and has the image of the tests.
async fn start(nri: &str) -> TestNode {
    let mut node = TestNode::prepare_on_given_runc().await;
    nri.clone_into(&mut node.settings.nri);
    node.boot().await;
    node.client().pull(BUSYBOX).await.unwrap();
    node
}

async fn connect(node: &TestNode, index: &str, name: &str, script: Script) -> Plugin {
    Plugin::connect(&node.path("nri.sock"), index, name, script).await
}

fn seen(method: &str, pod: &str, container: Option<&str>) -> Seen {
    Seen { method: method.into(), pod: pod.into(), container: container.unwrap_or_default().into() }
}

/// What a plugin was told, without the validations, which it is asked for if it has subscribed to everything.
fn told(plugin: &Plugin) -> Vec<Seen> {
    plugin.seen().into_iter().filter(|seen| seen.method != "ValidateContainerAdjustment").collect()
}

/// Whether a call is about the container of this name.
fn is_about(call: &shim::ttrpc::Call, method: &str, container: &str) -> bool {
    call.method == method
        && call.decode::<ContainerEvent>().unwrap().container.is_some_and(|shown| shown.name == container)
}

/// Answers CreateContainer of this container, and agrees to everything else.
fn adjusting(container: &'static str, answer: CreateContainerResponse) -> Script {
    Script::answering(move |call| is_about(call, "CreateContainer", container).then(|| Ok(answer.encode_to_vec())))
}

/// Never answers CreateContainer of this container.
fn hanging(container: &'static str) -> Script {
    Script::waiting(move |call| {
        Box::pin(async move {
            if is_about(&call, "CreateContainer", container) {
                std::future::pending::<()>().await;
            }
            None
        })
    })
}

fn adjust(adjust: ContainerAdjustment) -> CreateContainerResponse {
    CreateContainerResponse { adjust: Some(adjust), ..CreateContainerResponse::default() }
}

fn set_env(key: &str, value: &str) -> CreateContainerResponse {
    adjust(ContainerAdjustment { env: vec![entry(key, value)], ..ContainerAdjustment::default() })
}

fn entry(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.into(), value: value.into() }
}

fn memory(limit: i64) -> LinuxResources {
    let limit = Some(OptionalInt { value: limit });
    LinuxResources { memory: Some(LinuxMemory { limit, ..LinuxMemory::default() }), ..LinuxResources::default() }
}

fn shares(value: u64) -> LinuxResources {
    let shares = Some(OptionalUInt64 { value });
    LinuxResources { cpu: Some(LinuxCpu { shares, ..LinuxCpu::default() }), ..LinuxResources::default() }
}

fn update(container: &str, limits: LinuxResources) -> ContainerUpdate {
    let linux = Some(LinuxContainerUpdate { resources: Some(limits) });
    ContainerUpdate { container_id: container.into(), linux, ignore_failure: false }
}

/// The memory limit of the container's cgroup, as it sees it itself.
async fn memory_limit(node: &TestNode, container: &str) -> String {
    let read = "cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max";
    node.client().output(container, &["sh", "-c", read]).await.trim().to_owned()
}
