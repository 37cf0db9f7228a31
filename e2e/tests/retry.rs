//! A client that gave up asks again: it joins what runs, and never meets a name that is taken by its own first try.

use std::{fs, time::Duration};

use tonic::Code;
use windlass_e2e::{
    client::container,
    node::{BUSYBOX, TestNode},
    wait::{self, SOON},
};

/// ADD waits until the file `go` exists; every call is noted in `calls`.
const SLOW: &str = r#"echo "$CNI_COMMAND" >> "$DIR/calls"
while [ "$CNI_COMMAND" = ADD ] && [ ! -e "$DIR/go" ]; do sleep 0.05; done
delegate"#;

async fn node_with_a_slow_network() -> TestNode {
    let node = TestNode::start().await;
    node.install_plugin("slow", SLOW);
    node.set_network("slow");
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_retry_of_run_pod_sandbox_after_the_clients_deadline_gets_the_running_operations_answer() {
    let node = node_with_a_slow_network().await;
    let client = node.client();
    let config = node.pod("retried");
    for _ in 0..3 {
        let late = client.run_pod_within(&config, Duration::from_millis(500)).await.unwrap_err();
        // Whose clock is first, the client's or the server's, decides between the two codes.
        assert!(matches!(late.code(), Code::DeadlineExceeded | Code::Cancelled), "{late}");
    }
    let (again, asked) = (client.clone(), config.clone());
    let waiting = tokio::spawn(async move { again.run_pod(&asked).await });
    wait::until_ok("the plugin runs", SOON, || fs::metadata(node.path("calls")).map_err(|error| error.to_string()))
        .await;
    fs::write(node.path("go"), "").unwrap();
    let id = waiting.await.unwrap().unwrap();
    assert_eq!(client.run_pod(&config).await.unwrap(), id);
    let pods: Vec<String> = client.pods().await.unwrap().into_iter().map(|pod| pod.id).collect();
    assert_eq!(pods, [id]);
    assert_eq!(fs::read_to_string(node.path("calls")).unwrap(), "ADD\n");
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_another_spec_under_the_name_of_a_pod_already_exists() {
    let node = TestNode::start().await;
    let client = node.client();
    let config = node.pod("named");
    let id = client.run_pod(&config).await.unwrap();
    let mut other = config.clone();
    other.hostname = "other".into();
    let refused = client.run_pod(&other).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    assert!(refused.message().contains("named"), "{refused}");
    assert_eq!(client.run_pod(&config).await.unwrap(), id);
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_other_pods_start_while_one_waits_for_its_network() {
    let node = node_with_a_slow_network().await;
    let client = node.client();
    let (slow_client, slow_config) = (client.clone(), node.pod("slow"));
    let slow = tokio::spawn(async move { slow_client.run_pod(&slow_config).await });
    wait::until_ok("the plugin runs", SOON, || fs::metadata(node.path("calls")).map_err(|error| error.to_string()))
        .await;
    node.set_network("bridge");
    let quick = client.run_pod_within(&node.pod("quick"), SOON).await.unwrap();
    assert!(!slow.is_finished());
    assert_eq!(client.pod_status(&quick).await.unwrap().id, quick);
    fs::write(node.path("go"), "").unwrap();
    slow.await.unwrap().unwrap();
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_many_calls_at_once_for_one_pod_get_one_pod() {
    let node = TestNode::start().await;
    let client = node.client();
    let config = node.pod("crowd");
    let calls: Vec<_> = (0..16)
        .map(|_| {
            let (client, config) = (client.clone(), config.clone());
            tokio::spawn(async move { client.run_pod(&config).await })
        })
        .collect();
    let mut ids = Vec::new();
    for call in calls {
        ids.push(call.await.unwrap().unwrap());
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "{ids:?}");
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_retry_of_create_container_gives_the_same_container() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("twice");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let config = container("app", BUSYBOX, &["sleep", "1000"]);
    let id = client.create(&pod, &config, &pod_config).await.unwrap();
    assert_eq!(client.create(&pod, &config, &pod_config).await.unwrap(), id);
    let other = container("app", BUSYBOX, &["sleep", "2000"]);
    let refused = client.create(&pod, &other, &pod_config).await.unwrap_err();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    assert_eq!(client.containers().await.unwrap().len(), 1);
    node.remove_all_pods().await;
    node.finish().await;
}
