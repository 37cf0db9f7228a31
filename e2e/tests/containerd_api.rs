//! What those who look at a node through containerd's own API find: the kubelet's cAdvisor, above all.

use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

use api::{
    containerd::{
        services::{
            containers::v1::{
                Container, DeleteContainerRequest, GetContainerRequest, ListContainersRequest,
                containers_client::ContainersClient,
            },
            tasks::v1::{GetRequest, KillRequest, ListTasksRequest, tasks_client::TasksClient},
            version::v1::version_client::VersionClient,
        },
        v1::types,
    },
    cri,
};
use tonic::{Code, Request, Status, transport::Channel};
use windlass_e2e::{
    client::{channel, container},
    node::{BUSYBOX, PAUSE, TestNode},
    wait::{self, SOON},
};

fn within<T>(namespace: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("containerd-namespace", namespace.parse().expect("a name is a header's value"));
    request
}

async fn find(channel: &Channel, namespace: &str, id: &str) -> Result<Container, Status> {
    let request = within(namespace, GetContainerRequest { id: id.into() });
    let answer = ContainersClient::new(channel.clone()).get(request).await?;
    Ok(answer.into_inner().container.expect("an answer has a container"))
}

async fn pid_of(channel: &Channel, id: &str) -> Result<u32, Status> {
    let request = within("k8s.io", GetRequest { container_id: id.into(), exec_id: String::new() });
    let process = TasksClient::new(channel.clone()).get(request).await?.into_inner().process;
    let process = process.expect("an answer has a process");
    assert_eq!((process.id.as_str(), process.status()), (id, types::Status::Running));
    Ok(process.pid)
}

fn labelled(labels: &[(&str, &str)]) -> HashMap<String, String> {
    labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_pods_and_containers_are_found_with_labels_and_processes() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let channel = channel(&node.socket()).await.unwrap();
    let version = VersionClient::new(channel.clone()).version(()).await.unwrap().into_inner();
    assert_eq!(version.version, "0.1.0");

    let mut pod_config = node.pod("seen");
    pod_config.labels = labelled(&[("io.kubernetes.pod.name", "seen")]);
    let pod = client.run_pod(&pod_config).await.unwrap();
    let config = cri::ContainerConfig {
        labels: labelled(&[("io.kubernetes.container.name", "app")]),
        ..container("app", BUSYBOX, &["sleep", "600"])
    };
    let app = client.create(&pod, &config, &pod_config).await.unwrap();

    let found = find(&channel, "k8s.io", &pod).await.unwrap();
    assert_eq!((found.image.as_str(), found.sandbox.as_str(), found.snapshot_key.as_str()), (PAUSE, "", pod.as_str()));
    assert_eq!(found.labels, labelled(&[("io.kubernetes.pod.name", "seen"), ("io.cri-containerd.kind", "sandbox")]));
    let found = find(&channel, "k8s.io", &app).await.unwrap();
    assert_eq!((found.image.as_str(), found.sandbox.as_str()), (BUSYBOX, pod.as_str()));
    assert_eq!(found.runtime.unwrap().name, "io.containerd.runc.v2");
    assert_eq!(found.snapshotter, "overlayfs");
    let expected = [("io.kubernetes.container.name", "app"), ("io.cri-containerd.kind", "container")];
    assert_eq!(found.labels, labelled(&expected));
    let spec: serde_json::Value = serde_json::from_slice(&found.spec.unwrap().value).unwrap();
    assert_eq!(spec["process"]["args"], serde_json::json!(["sleep", "600"]));

    // A container has no task before its start and after its end.
    assert_eq!(pid_of(&channel, &app).await.unwrap_err().code(), Code::NotFound);
    client.start(&app).await.unwrap();
    assert_eq!(pid_of(&channel, &app).await.unwrap(), node.first_process(&app));
    let pause = pid_of(&channel, &pod).await.unwrap();
    assert_eq!(fs::read_to_string(format!("/proc/{pause}/comm")).unwrap(), "pause\n");

    let all = within("k8s.io", ListContainersRequest::default());
    let all = ContainersClient::new(channel.clone()).list(all).await.unwrap().into_inner().containers;
    let mut ids: Vec<&str> = all.iter().map(|container| container.id.as_str()).collect();
    let mut expected = [pod.as_str(), app.as_str()];
    ids.sort_unstable();
    expected.sort_unstable();
    assert_eq!(ids, expected);
    let tasks = within("k8s.io", ListTasksRequest::default());
    let tasks = TasksClient::new(channel.clone()).list(tasks).await.unwrap().into_inner().tasks;
    assert_eq!(tasks.len(), 2);

    // Other namespaces are empty, and no namespace is a mistake, as with containerd.
    let elsewhere = find(&channel, "moby", &app).await.unwrap_err();
    assert_eq!(elsewhere.code(), Code::NotFound);
    assert_eq!(elsewhere.message(), format!("container {app:?} in namespace \"moby\": not found"));
    assert_eq!(find(&channel, "k8s.io", &app[..12]).await.unwrap_err().code(), Code::NotFound);
    let nowhere = Request::new(GetContainerRequest { id: app.clone() });
    let refused = ContainersClient::new(channel.clone()).get(nowhere).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::FailedPrecondition, "namespace is required: failed precondition")
    );
    // Nothing is changed this way.
    let kill = within("k8s.io", KillRequest { container_id: app.clone(), signal: 9, ..KillRequest::default() });
    assert_eq!(TasksClient::new(channel.clone()).kill(kill).await.unwrap_err().code(), Code::Unimplemented);
    let delete = within("k8s.io", DeleteContainerRequest { id: app.clone() });
    assert_eq!(ContainersClient::new(channel.clone()).delete(delete).await.unwrap_err().code(), Code::Unimplemented);

    client.stop(&app, 0).await.unwrap();
    assert_eq!(pid_of(&channel, &app).await.unwrap_err().code(), Code::NotFound);
    node.remove_all_pods().await;
    assert_eq!(find(&channel, "k8s.io", &pod).await.unwrap_err().code(), Code::NotFound);
    node.finish().await;
}

/// cAdvisor asks once, when it sees the cgroup; a pod that it is not told of then has no network for it, ever.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pod_is_found_while_it_is_being_made() {
    let node = TestNode::start().await;
    let client = node.client();
    node.install_plugin(
        "waiting",
        r#"if [ "$CNI_COMMAND" = ADD ]; then
             echo "$CNI_CONTAINERID" >"$DIR/asked.new" && mv "$DIR/asked.new" "$DIR/asked"
             until [ -e "$DIR/go" ]; do sleep 0.05; done
           fi
           delegate"#,
    );
    node.set_network("waiting");
    let pod_config = node.pod("made");
    let starting = tokio::spawn({
        let (client, pod_config) = (client.clone(), pod_config.clone());
        async move { client.run_pod(&pod_config).await }
    });
    let asked: PathBuf = node.path("asked");
    let id = wait::until_ok("the plugin is asked", SOON, || read(&asked)).await;
    let channel = channel(&node.socket()).await.unwrap();
    let found = find(&channel, "k8s.io", &id).await.unwrap();
    assert_eq!(found.labels["io.cri-containerd.kind"], "sandbox");
    assert!(serde_json::from_slice::<serde_json::Value>(&found.spec.unwrap().value).unwrap().is_object());
    assert_eq!(pid_of(&channel, &id).await.unwrap_err().code(), Code::NotFound);
    fs::write(node.path("go"), "").unwrap();
    assert_eq!(starting.await.unwrap().unwrap(), id);
    pid_of(&channel, &id).await.unwrap();
    node.remove_all_pods().await;
    node.finish().await;
}

fn read(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map(|text| text.trim().to_owned()).map_err(|error| error.to_string())
}
