//! Stop and Remove succeed when there is nothing left to do, in any state and as often as they are asked.

use api::cri::{ContainerState, PodSandboxState};
use tonic::Code;
use windlass_e2e::{
    client::container,
    node::{BUSYBOX, TestNode},
};

const NOBODY: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

#[tokio::test(flavor = "multi_thread")]
async fn privileged_stop_and_remove_of_what_is_not_there_succeed_and_status_says_not_found() {
    let node = TestNode::start().await;
    let client = node.client();
    client.stop_pod(NOBODY).await.unwrap();
    client.remove_pod(NOBODY).await.unwrap();
    client.stop(NOBODY, 0).await.unwrap();
    client.remove(NOBODY).await.unwrap();
    client.remove_image(BUSYBOX).await.unwrap();
    assert_eq!(client.image(BUSYBOX).await.unwrap(), None);
    assert_eq!(client.pod_status(NOBODY).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.status(NOBODY).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.start(NOBODY).await.unwrap_err().code(), Code::NotFound);
    assert_eq!(client.exec(NOBODY, &["true"], 1).await.unwrap_err().code(), Code::NotFound);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_each_verb_can_be_repeated() {
    let node = TestNode::start().await;
    let client = node.client();
    let first = client.pull(BUSYBOX).await.unwrap();
    assert_eq!(client.pull(BUSYBOX).await.unwrap(), first);
    let pod_config = node.pod("again");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &container("app", BUSYBOX, &["sleep", "1000"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    for _ in 0..2 {
        client.stop(&app, 0).await.unwrap();
        assert_eq!(client.status(&app).await.unwrap().state(), ContainerState::ContainerExited);
    }
    for _ in 0..2 {
        client.stop_pod(&pod).await.unwrap();
        assert_eq!(client.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxNotready);
    }
    for _ in 0..2 {
        client.remove(&app).await.unwrap();
    }
    for _ in 0..2 {
        client.remove_pod(&pod).await.unwrap();
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_removing_a_pod_takes_its_running_containers_with_it() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("whole");
    let pod = client.run_pod(&pod_config).await.unwrap();
    for name in ["running", "created"] {
        let id = client.create(&pod, &container(name, BUSYBOX, &["sleep", "1000"]), &pod_config).await.unwrap();
        if name == "running" {
            client.start(&id).await.unwrap();
        }
    }
    client.remove_pod(&pod).await.unwrap();
    assert_eq!(client.pods().await.unwrap(), []);
    assert_eq!(client.containers().await.unwrap(), []);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pod_of_the_same_name_and_next_attempt_can_follow_a_stopped_one() {
    let node = TestNode::start().await;
    let client = node.client();
    let mut config = node.pod("next");
    let first = client.run_pod(&config).await.unwrap();
    client.stop_pod(&first).await.unwrap();
    config.metadata.as_mut().unwrap().attempt = 1;
    let second = client.run_pod(&config).await.unwrap();
    assert_ne!(first, second);
    assert_eq!(client.pods().await.unwrap().len(), 2);
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_id_may_be_shortened_as_long_as_it_is_unique() {
    let node = TestNode::start().await;
    let client = node.client();
    let pod = client.run_pod(&node.pod("short")).await.unwrap();
    assert_eq!(client.pod_status(&pod[..13]).await.unwrap().id, pod);
    client.stop_pod(&pod[..13]).await.unwrap();
    client.remove_pod(&pod[..13]).await.unwrap();
    assert_eq!(client.pods().await.unwrap(), []);
    node.finish().await;
}
