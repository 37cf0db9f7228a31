//! What statuses, lists and verbose information say of pods and containers: every field as it was asked for, or as it is.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::collections::HashMap;

use api::cri::{self, ContainerState, PodSandboxState};
use serde_json::{Value, json};
use tonic::Code;
use windlass_e2e::{
    client::{Answer, Client, container},
    node::{BUSYBOX, TestNode},
};

fn strings(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

async fn pod_info(client: &Client, pod: &str) -> Value {
    let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.into(), verbose: true };
    let answer = client.runtime.clone().pod_sandbox_status(request).await.unwrap().into_inner();
    serde_json::from_str(&answer.info["info"]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_container_is_shown_as_it_was_asked_for_and_its_image_by_the_name_that_any_node_can_pull() {
    let node = TestNode::start().await;
    let client = node.client();
    // A second name, which comes first in order.
    let id = client.pull(BUSYBOX).await.unwrap();
    let pushed = &node.registry.busybox;
    windlass_e2e::fixture::busybox().push(&node.registry.pusher(), "library/abusybox", "1");
    assert_eq!(client.pull("docker.io/library/abusybox:1").await.unwrap(), id);

    let pod_config = node.pod("shown");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let mut config = container("app", BUSYBOX, &["sleep", "1000"]);
    // As the kubelet asks: by id, with what the pod's author wrote beside it.
    config.image = Some(cri::ImageSpec {
        image: id.clone(),
        user_specified_image: "busybox:1".into(),
        annotations: strings(&[("of", "image")]),
        ..Default::default()
    });
    config.metadata.as_mut().unwrap().attempt = 3;
    config.labels = strings(&[("app", "web"), ("empty", "")]);
    config.annotations = strings(&[("note", "one\ntwo")]);
    let app = client.create(&pod, &config, &pod_config).await.unwrap();

    let listed = client.containers().await.unwrap().remove(0);
    assert_eq!((listed.image.as_ref(), &listed.image_id, &listed.image_ref), (config.image.as_ref(), &id, &id));
    let status = client.status(&app).await.unwrap();
    let shown = cri::ImageSpec { image: BUSYBOX.into(), ..config.image.clone().unwrap() };
    assert_eq!(status.image, Some(shown));
    assert_eq!(status.image_id, id);
    assert_eq!(status.image_ref, format!("docker.io/library/busybox@{}", pushed.digest));
    assert_eq!((&status.metadata, &status.labels), (&config.metadata, &config.labels));
    assert_eq!(status.annotations, config.annotations);
    assert_eq!(status.stop_signal(), cri::Signal::Sigterm);
    assert_eq!((status.started_at, status.finished_at, status.exit_code), (0, 0, 0));
    assert_eq!(
        (&listed.metadata, &listed.labels, &listed.annotations),
        (&config.metadata, &config.labels, &config.annotations)
    );

    // The image goes; what the container was made from is still told.
    client.start(&app).await.unwrap();
    client.remove_image(&id).await.unwrap();
    let running = client.status(&app).await.unwrap();
    assert_eq!((running.image, running.image_ref, running.image_id), (status.image, status.image_ref, status.image_id));
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_verbose_information_has_containerds_names_and_what_the_client_asked_for() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let mut pod_config = node.pod("verbose");
    pod_config.labels = strings(&[("app", "web")]);
    let pod = client.run_pod(&pod_config).await.unwrap();
    let mut config = container("app", BUSYBOX, &["sleep", "1000"]);
    config.envs = vec![cri::KeyValue { key: "MODE".into(), value: b"test".into() }];
    let context = cri::LinuxContainerSecurityContext {
        run_as_user: Some(cri::Int64Value { value: 65534 }),
        ..Default::default()
    };
    config.linux = Some(cri::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
    let app = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&app).await.unwrap();

    let info = client.container_info(&app).await.unwrap();
    assert_eq!(info["sandboxID"], json!(pod));
    assert_eq!(info["pid"], json!(node.first_process(&app)));
    assert_eq!((&info["removing"], &info["snapshotKey"]), (&json!(false), &json!(app)));
    assert_eq!((&info["snapshotter"], &info["runtimeType"]), (&json!("overlayfs"), &json!("io.containerd.runc.v2")));
    assert!(info["runtimeOptions"].is_object(), "{}", info["runtimeOptions"]);
    assert_eq!(info["runtimeSpec"]["process"]["args"], json!(["sleep", "1000"]));
    assert_eq!(
        info["config"],
        json!({
            "metadata": {"name": "app"},
            "image": {"image": BUSYBOX},
            "command": ["sleep", "1000"],
            "envs": [{"key": "MODE", "value": "test"}],
            "log_path": "app.log",
            "linux": {"security_context": {"run_as_user": {"value": 65534}}},
        })
    );

    let info = pod_info(&client, &pod).await;
    let status = client.pod_status(&pod).await.unwrap();
    let ip = status.network.unwrap().ip;
    assert_eq!(info["pid"], json!(node.first_process(&pod)));
    assert_eq!((&info["processStatus"], &info["netNamespaceClosed"]), (&json!("running"), &json!(false)));
    assert_eq!(info["config"]["metadata"], json!({"name": "verbose", "namespace": "default", "uid": "uid-verbose"}));
    assert_eq!(info["config"]["labels"], json!({"app": "web"}));
    assert_eq!(info["config"]["linux"]["cgroup_parent"], json!(pod_config.linux.unwrap().cgroup_parent));
    assert_eq!(info["cniResult"]["Interfaces"]["eth0"]["IPConfigs"][0]["IP"], json!(ip));
    let metadata = &info["sandboxMetadata"]["Metadata"];
    assert_eq!((&metadata["ID"], &metadata["IP"], &metadata["Config"]), (&json!(pod), &json!(ip), &info["config"]));
    let netns = metadata["NetNSPath"].as_str().unwrap().to_owned();
    let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().unwrap();
    assert!(namespaces.contains(&json!({"type": "network", "path": netns})), "{namespaces:?}");

    client.stop_pod(&pod).await.unwrap();
    let info = pod_info(&client, &pod).await;
    assert_eq!((&info["processStatus"], &info["netNamespaceClosed"]), (&json!("deleted"), &json!(true)));
    assert_eq!(info["pid"], json!(0));
    let mut host = node.pod("host");
    let options = cri::NamespaceOption { network: cri::NamespaceMode::Node as i32, ..Default::default() };
    host.linux.as_mut().unwrap().security_context =
        Some(cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() });
    let host = client.run_pod(&host).await.unwrap();
    let info = pod_info(&client, &host).await;
    assert_eq!(
        (&info["netNamespaceClosed"], &info["sandboxMetadata"]["Metadata"]["NetNSPath"]),
        (&json!(false), &json!(""))
    );
    assert_eq!(info["config"]["linux"]["security_context"]["namespace_options"], json!({"network": 2}));
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_lists_are_filtered_by_the_start_of_an_id_by_state_by_pod_and_by_every_label() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let mut pods = Vec::new();
    let mut apps = Vec::new();
    for (name, tier) in [("one", "front"), ("two", "back")] {
        let mut pod_config = node.pod(name);
        pod_config.labels = strings(&[("app", "web"), ("tier", tier)]);
        let pod = client.run_pod(&pod_config).await.unwrap();
        let mut config = container("app", BUSYBOX, &["sleep", "1000"]);
        config.labels = pod_config.labels.clone();
        apps.push(client.create(&pod, &config, &pod_config).await.unwrap());
        pods.push(pod);
    }
    client.start(&apps[0]).await.unwrap();
    client.stop_pod(&pods[1]).await.unwrap();

    let list_pods = |filter: cri::PodSandboxFilter| {
        let request = cri::ListPodSandboxRequest { filter: Some(filter) };
        let mut runtime = client.runtime.clone();
        async move {
            let items = runtime.list_pod_sandbox(request).await.unwrap().into_inner().items;
            items.into_iter().map(|pod| pod.id).collect::<Vec<_>>()
        }
    };
    let state = |state: PodSandboxState| Some(cri::PodSandboxStateValue { state: state as i32 });
    let ready = PodSandboxState::SandboxReady;
    let first = &pods[..1];
    let any = cri::PodSandboxFilter::default;
    assert_eq!(list_pods(cri::PodSandboxFilter { id: pods[0][..13].into(), ..any() }).await, first);
    assert_eq!(list_pods(cri::PodSandboxFilter { state: state(ready), ..any() }).await, first);
    let labels = strings(&[("app", "web"), ("tier", "front")]);
    assert_eq!(list_pods(cri::PodSandboxFilter { label_selector: labels.clone(), ..any() }).await, first);
    assert_eq!(list_pods(cri::PodSandboxFilter { label_selector: strings(&[("app", "web")]), ..any() }).await.len(), 2);
    assert_eq!(list_pods(cri::PodSandboxFilter { label_selector: strings(&[("app", "")]), ..any() }).await.len(), 0);
    let and = cri::PodSandboxFilter { id: pods[1].clone(), state: state(ready), ..any() };
    assert_eq!(list_pods(and).await.len(), 0);
    assert_eq!(list_pods(cri::PodSandboxFilter { id: "nobody".into(), ..any() }).await.len(), 0);

    let list = |filter: cri::ContainerFilter| {
        let request = cri::ListContainersRequest { filter: Some(filter) };
        let mut runtime = client.runtime.clone();
        async move {
            let items = runtime.list_containers(request).await.unwrap().into_inner().containers;
            items.into_iter().map(|container| container.id).collect::<Vec<_>>()
        }
    };
    let state = |state: ContainerState| Some(cri::ContainerStateValue { state: state as i32 });
    let any = cri::ContainerFilter::default;
    let first = &apps[..1];
    assert_eq!(list(cri::ContainerFilter { id: apps[0][..13].into(), ..any() }).await, first);
    assert_eq!(list(cri::ContainerFilter { state: state(ContainerState::ContainerRunning), ..any() }).await, first);
    assert_eq!(list(cri::ContainerFilter { pod_sandbox_id: pods[0][..13].into(), ..any() }).await, first);
    assert_eq!(list(cri::ContainerFilter { label_selector: labels, ..any() }).await, first);
    assert_eq!(list(cri::ContainerFilter { id: "nobody".into(), ..any() }).await.len(), 0);
    assert_eq!(list(any()).await.len(), 2);
    node.remove_all_pods().await;
    node.finish().await;
}

/// The code and the start of the message of a call that must fail.
fn refused<T: std::fmt::Debug>(answer: Answer<T>, code: Code, message: &str) {
    let status = answer.unwrap_err();
    assert_eq!(status.code(), code, "{status}");
    assert_eq!(status.message(), message);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_needs_a_running_container_or_a_ready_pod_says_which_state_it_is_in() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("states");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &container("app", BUSYBOX, &["true"]), &pod_config).await.unwrap();
    let exec_url = || {
        let (container_id, cmd) = (app.clone(), vec!["true".to_owned()]);
        let request = cri::ExecRequest { container_id, cmd, stdout: true, ..Default::default() };
        let mut runtime = client.runtime.clone();
        async move { runtime.exec(request).await.map(drop) }
    };
    let attach_url = || {
        let request = cri::AttachRequest { container_id: app.clone(), stdout: true, ..Default::default() };
        let mut runtime = client.runtime.clone();
        async move { runtime.attach(request).await.map(drop) }
    };
    for state in ["CONTAINER_CREATED", "CONTAINER_EXITED"] {
        let message = format!("container {app} is in {state} state");
        refused(client.exec(&app, &["true"], 1).await, Code::FailedPrecondition, &message);
        refused(exec_url().await, Code::FailedPrecondition, &message);
        refused(attach_url().await, Code::FailedPrecondition, &message);
        refused(client.reopen_log(&app).await, Code::FailedPrecondition, &message);
        if state == "CONTAINER_CREATED" {
            client.start(&app).await.unwrap();
            client.exited(&app).await;
        }
    }
    refused(
        client.start(&app).await,
        Code::FailedPrecondition,
        &format!("container {app} is in CONTAINER_EXITED state"),
    );
    client.stop(&app, 10).await.unwrap();

    // Stats: of a container without processes its layer, of a pod that is not ready nothing.
    let request = cri::ContainerStatsRequest { container_id: app[..13].into() };
    let stats = client.runtime.clone().container_stats(request).await.unwrap().into_inner().stats.unwrap();
    assert_eq!((stats.attributes.unwrap().id, stats.cpu), (app.clone(), None));
    assert!(stats.writable_layer.unwrap().fs_id.is_some());
    let pod_stats = || {
        let request = cri::PodSandboxStatsRequest { pod_sandbox_id: pod.clone() };
        let mut runtime = client.runtime.clone();
        async move { runtime.pod_sandbox_stats(request).await }
    };
    assert_eq!(pod_stats().await.unwrap().into_inner().stats.unwrap().attributes.unwrap().id, pod);
    client.stop_pod(&pod).await.unwrap();
    refused(pod_stats().await, Code::Unavailable, &format!("pod sandbox {pod:?} is not ready"));
    let list = cri::ListPodSandboxStatsRequest { filter: None };
    assert_eq!(client.runtime.clone().list_pod_sandbox_stats(list).await.unwrap().into_inner().stats.len(), 0);
    let forward = cri::PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![80] };
    let forward = client.runtime.clone().port_forward(forward).await;
    refused(forward, Code::FailedPrecondition, &format!("pod sandbox {pod} is not ready"));
    let late = client.create(&pod, &container("late", BUSYBOX, &["true"]), &pod_config).await;
    refused(late, Code::FailedPrecondition, &format!("sandbox container {pod:?} is not running"));
    node.remove_all_pods().await;
    node.finish().await;
}
