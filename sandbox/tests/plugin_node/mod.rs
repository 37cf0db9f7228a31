//! A node with plugins, on the machine in memory, and what several files of tests say about it.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use shim::ttrpc::Status;
use tokio::{net::UnixListener, sync::watch};
use windlass_sandbox::{
    Error, Pods,
    model::Id,
    nri::{
        self,
        proto::{
            ContainerAdjustment, ContainerEvent, ContainerUpdate, CreateContainerResponse, KeyValue,
            LinuxContainerUpdate, LinuxMemory, LinuxResources, OptionalInt,
        },
    },
};

use crate::{
    fake::{self, Fault, Machine, Process, container_spec, image, pod_spec},
    plugin::{Plugin, Script, Seen},
};

pub(crate) struct Node {
    pub(crate) machine: Arc<Machine>,
    pub(crate) pods: Pods,
    pub(crate) socket: PathBuf,
}

pub(crate) async fn node() -> Node {
    node_with(nri::Config { request_timeout: Duration::from_secs(10), ..nri::Config::default() }, |_| {}).await
}

/// `prepare` gets the directory of installed plugins.
pub(crate) async fn node_with(config: nri::Config, prepare: impl FnOnce(&PathBuf)) -> Node {
    let machine = Machine::new();
    let dir = machine.dir.path().to_owned();
    let (socket, plugins) = (dir.join("nri.sock"), dir.join("plugins"));
    fs::create_dir(&plugins).unwrap();
    prepare(&plugins);
    let process = Process::new(&machine, Fault::default());
    let nri = nri::Config { plugin_path: plugins, plugin_config_path: dir.join("conf.d"), ..config };
    let pods = process
        .open_with(windlass_sandbox::Config {
            nri: Some(nri),
            cdi_spec_dirs: Some(vec![dir.join("cdi")]),
            ..fake::config(&dir)
        })
        .await;
    pods.start_plugins(Some(UnixListener::bind(&socket).unwrap())).await;
    Node { machine, pods, socket }
}

impl Node {
    pub(crate) async fn plugin(&self, index: &str, name: &str, script: Script) -> Plugin {
        Plugin::connect(&self.socket, index, name, script).await
    }

    pub(crate) async fn run(&self, name: &str) -> Id {
        self.pods.run(pod_spec(name), image()).await.unwrap()
    }

    pub(crate) async fn create(&self, pod: &Id, name: &str) -> Result<Id, Error> {
        self.pods.create_container(pod.as_str(), container_spec(name), image()).await
    }
}

pub(crate) fn seen(method: &str, pod: &Id, container: Option<&Id>) -> Seen {
    let container = container.map(Id::to_string).unwrap_or_default();
    Seen { method: method.into(), pod: pod.to_string(), container }
}

pub(crate) fn set_env(key: &str, value: &str) -> CreateContainerResponse {
    let env = vec![KeyValue { key: key.into(), value: value.into() }];
    CreateContainerResponse { adjust: Some(ContainerAdjustment { env, ..Default::default() }), ..Default::default() }
}

pub(crate) fn memory(limit: i64) -> LinuxResources {
    let limit = Some(OptionalInt { value: limit });
    LinuxResources { memory: Some(LinuxMemory { limit, ..LinuxMemory::default() }), ..LinuxResources::default() }
}

pub(crate) fn update(container: &Id, limits: LinuxResources) -> ContainerUpdate {
    let linux = Some(LinuxContainerUpdate { resources: Some(limits) });
    ContainerUpdate { container_id: container.to_string(), linux, ignore_failure: false }
}

/// Fails every call of `method` while `failing`.
pub(crate) fn failing(method: &'static str, failing: &watch::Sender<bool>) -> Script {
    let failing = failing.subscribe();
    Script::answering(move |call| {
        (call.method == method && *failing.borrow()).then(|| Err(Status::unknown("not today")))
    })
}

/// Holds every call of `method` whose pod has this name until it is let go.
pub(crate) fn holding(method: &'static str, pod: &'static str, held: &watch::Sender<bool>) -> Script {
    let held = held.subscribe();
    Script::waiting(move |call| {
        let mut held = held.clone();
        Box::pin(async move {
            let name = match call.method.as_str() {
                "Synchronize" => pod.to_owned(),
                _ => call.decode::<ContainerEvent>().unwrap().pod.unwrap_or_default().name,
            };
            if call.method == method && name == pod {
                held.wait_for(|held| !held).await.unwrap();
            }
            None
        })
    })
}
