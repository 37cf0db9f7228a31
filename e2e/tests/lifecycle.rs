//! How containers end: by which signal, after which grace, and for which reason, whoever was there to see it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{fs, time::Instant};

use api::cri::{self, ContainerState};
use serde_json::json;
use tonic::Code;
use windlass_e2e::{
    client::{Client, container},
    fixture,
    image::Image,
    node::{BUSYBOX, TestNode},
    wait::{self, SOON},
};

/// A shell that ends with the number of the signal that it is sent, of those it may get here, once it has said that it is
/// ready: before, an init process ignores them.
const TRAPS: &str =
    "for signal in 1 3 15 37 63; do trap \"exit $signal\" $signal; done; echo ready; while :; do sleep 0.05; done";

async fn running(
    client: &Client,
    pod: &str,
    pod_config: &cri::PodSandboxConfig,
    config: &cri::ContainerConfig,
) -> String {
    let id = client.create(pod, config, pod_config).await.unwrap();
    client.start(&id).await.unwrap();
    id
}

/// Waits until the container has logged so many lines.
async fn logged(node: &TestNode, pod: &str, name: &str, lines: usize) {
    wait::until_ok("lines are logged", SOON, || match node.log_of(pod, name) {
        found if found.len() < lines => Err(format!("{found:?}")),
        _ => Ok(()),
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_stop_sends_the_signal_of_the_container_or_else_of_the_image() {
    let node = TestNode::start().await;
    let client = node.client();
    let image = |name: &str, signal: &str| {
        let mut image: Image = fixture::busybox();
        image.config["StopSignal"] = json!(signal);
        image.push(&node.registry.pusher(), &format!("library/{name}"), "1");
        format!("docker.io/library/{name}:1")
    };
    let default = cri::Signal::RuntimeDefault;
    // What was asked of the container, what the image says, the signal that is told, and its number.
    let table = [
        ("term", default, BUSYBOX.to_owned(), cri::Signal::Sigterm, 15),
        ("quit", default, image("stop-quit", "SIGQUIT"), cri::Signal::Sigquit, 3),
        ("rtmin", default, image("stop-rtmin", "SIGRTMIN+3"), cri::Signal::Sigrtminplus3, 37),
        ("number", default, image("stop-number", "1"), cri::Signal::Sighup, 1),
        ("unknown", default, image("stop-unknown", "SIGNOTHING"), cri::Signal::Sigterm, 15),
        ("asked", cri::Signal::Sighup, image("stop-quit", "SIGQUIT"), cri::Signal::Sighup, 1),
        ("asked-rt", cri::Signal::Sigrtmaxminus1, BUSYBOX.to_owned(), cri::Signal::Sigrtmaxminus1, 63),
    ];
    let pod_config = node.pod("signals");
    let pod = client.run_pod(&pod_config).await.unwrap();
    for (name, asked, image, told, number) in table {
        client.pull(&image).await.unwrap();
        let mut config = container(name, &image, &["sh", "-c", TRAPS]);
        config.stop_signal = asked as i32;
        let id = running(&client, &pod, &pod_config, &config).await;
        logged(&node, "signals", name, 1).await;
        client.stop(&id, 60).await.unwrap();
        let ended = client.status(&id).await.unwrap();
        assert_eq!((ended.exit_code, ended.stop_signal()), (number, told), "{name}");
        client.remove(&id).await.unwrap();
    }
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_later_stop_with_less_grace_ends_the_wait_of_both() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("grace");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let deaf = "trap 'echo told' TERM; echo ready; while :; do sleep 0.05; done";
    let id = running(&client, &pod, &pod_config, &container("deaf", BUSYBOX, &["sh", "-c", deaf])).await;
    logged(&node, "grace", "deaf", 1).await;
    let begin = Instant::now();
    let long = tokio::spawn({
        let (client, id) = (client.clone(), id.clone());
        async move { client.stop(&id, 600).await }
    });
    logged(&node, "grace", "deaf", 2).await;
    client.stop(&id, 1).await.unwrap();
    long.await.unwrap().unwrap();
    assert!(begin.elapsed() < SOON, "{:?}", begin.elapsed());
    let ended = client.status(&id).await.unwrap();
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "Error"));
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_container_that_ran_out_of_memory_says_so_also_when_a_child_did_or_nobody_looked() {
    let mut node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let gate = node.path("gate");
    fs::create_dir(&gate).unwrap();
    let pod_config = node.pod("memory");
    let pod = client.run_pod(&pod_config).await.unwrap();
    // tail keeps what it reads of an endless file without a line's end.
    let table = [
        ("init", "exec tail /dev/zero"),
        ("child", "tail /dev/zero; exit $?"),
        ("unseen", "while [ ! -e /gate/open ]; do sleep 0.05; done; exec tail /dev/zero"),
    ];
    let mut ids = Vec::new();
    for (name, script) in table {
        let mut config = container(name, BUSYBOX, &["sh", "-c", script]);
        let host_path = gate.to_str().unwrap().to_owned();
        config.mounts = vec![cri::Mount { container_path: "/gate".into(), host_path, ..cri::Mount::default() }];
        let resources = cri::LinuxContainerResources {
            memory_limit_in_bytes: 16 << 20,
            memory_swap_limit_in_bytes: 16 << 20,
            ..cri::LinuxContainerResources::default()
        };
        config.linux = Some(cri::LinuxContainerConfig { resources: Some(resources), ..Default::default() });
        ids.push(running(&client, &pod, &pod_config, &config).await);
    }
    for id in &ids[..2] {
        let ended = client.exited(id).await;
        assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
    }
    let process = node.first_process(&ids[2]);
    node.kill9();
    fs::write(gate.join("open"), "").unwrap();
    wait::until_ok("the container ends", SOON, || match fs::exists(format!("/proc/{process}")).unwrap() {
        true => Err("it runs".to_owned()),
        false => Ok(()),
    })
    .await;
    node.boot().await;
    let ended = node.client().status(&ids[2]).await.unwrap();
    assert_eq!(ended.state(), ContainerState::ContainerExited);
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_stopped_pod_takes_no_containers_and_starts_none() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("stopped");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let config = container("made", BUSYBOX, &["sleep", "1000"]);
    let made = client.create(&pod, &config, &pod_config).await.unwrap();
    client.stop_pod(&pod).await.unwrap();
    let late = client.create(&pod, &container("late", BUSYBOX, &["sleep", "1000"]), &pod_config).await.unwrap_err();
    for refused in [late, client.start(&made).await.unwrap_err()] {
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert_eq!(refused.message(), format!("sandbox container {pod:?} is not running"));
    }
    assert_eq!(client.containers().await.unwrap().len(), 1);
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_the_resources_of_a_pod_are_shown_as_updated_after_a_restart_too() {
    let mut node = TestNode::start().await;
    let pod = node.client().run_pod(&node.pod("resized")).await.unwrap();
    let limits = |memory_limit_in_bytes| {
        Some(cri::LinuxContainerResources { memory_limit_in_bytes, ..cri::LinuxContainerResources::default() })
    };
    // The kubelet's word for no limit is -1.
    for resources in [-1, 64 << 20] {
        let request = cri::UpdatePodSandboxResourcesRequest {
            pod_sandbox_id: pod.clone(),
            overhead: limits(1 << 20),
            resources: limits(resources),
        };
        node.client().runtime.clone().update_pod_sandbox_resources(request).await.unwrap();
        for _ in 0..2 {
            let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.clone(), verbose: true };
            let answer = node.client().runtime.clone().pod_sandbox_status(request).await.unwrap().into_inner();
            let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).unwrap();
            assert_eq!(info["overhead"], json!({"linux": {"memory_limit_in_bytes": 1 << 20}}));
            assert_eq!(info["resources"], json!({"linux": {"memory_limit_in_bytes": resources}}));
            node.restart().await;
        }
    }
    let unknown =
        cri::UpdatePodSandboxResourcesRequest { pod_sandbox_id: "0".repeat(64), overhead: None, resources: None };
    let refused = node.client().runtime.clone().update_pod_sandbox_resources(unknown).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    node.remove_all_pods().await;
    node.finish().await;
}
