//! What can go wrong around the daemon: each failure is one clear error, leaves nothing, and the next try works.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener},
    thread,
    time::Duration,
};

use tonic::{Code, Status};
use windlass_e2e::{
    client::{container, program},
    fixture,
    image::Image,
    layer::LayerBuilder,
    node::{BUSYBOX, PROBE, TestNode},
};

/// Longer than the deadline of a CNI call.
const PATIENCE: Duration = Duration::from_secs(200);

#[track_caller]
fn assert_error(answer: Result<String, Status>, code: Code, parts: &[&str]) {
    let status = answer.expect_err("it has to fail");
    assert_eq!(status.code(), code, "{status}");
    for part in parts {
        assert!(status.message().contains(part), "{part:?} is not in {:?}", status.message());
    }
    assert!(!status.message().contains('\n'), "an error is one line: {:?}", status.message());
}

/// The pod can be run, and goes.
async fn assert_works(node: &TestNode, name: &str) {
    let client = node.client();
    let id = client.run_pod(&node.pod(name)).await.unwrap_or_else(|status| panic!("the next try fails: {status}"));
    client.stop_pod(&id).await.unwrap();
    client.remove_pod(&id).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_cni_plugin_that_fails_is_told_with_its_own_words() {
    let node = TestNode::start().await;
    node.install_plugin(
        "failing",
        r#"[ "$CNI_COMMAND" = ADD ] || delegate
echo '{"cniVersion":"1.0.0","code":11,"msg":"no carrier today","details":"try tomorrow"}'
exit 1"#,
    );
    node.set_network("failing");
    let answer = node.client().run_pod(&node.pod("app")).await;
    assert_error(answer, Code::Unknown, &["failing", "no carrier today"]);
    assert_eq!(node.client().pods().await.unwrap(), []);
    node.assert_clean().await;
    node.set_network("bridge");
    assert_works(&node, "app").await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_cni_plugin_that_hangs_is_killed_at_its_deadline() {
    let node = TestNode::start().await;
    node.install_plugin(
        "hanging",
        "trap '' TERM\n[ \"$CNI_COMMAND\" = ADD ] || delegate\nsleep 100000 & wait; wait; sleep 100000",
    );
    node.set_network("hanging");
    let answer = tokio::time::timeout(PATIENCE, node.client().run_pod(&node.pod("app"))).await;
    let status = answer.expect("the call ends").expect_err("it has to fail");
    assert!(status.message().contains("hanging"), "{status}");
    assert_eq!(node.client().pods().await.unwrap(), []);
    node.assert_clean().await;
    node.set_network("bridge");
    assert_works(&node, "app").await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_cni_del_that_fails_is_owed_and_paid_by_the_next_stop() {
    let node = TestNode::start().await;
    node.install_plugin(
        "sticky",
        r#"if [ "$CNI_COMMAND" = DEL ] && [ ! -e "$DIR/go" ]; then echo '{"code":11,"msg":"still in use"}'; exit 1; fi
delegate"#,
    );
    node.set_network("sticky");
    let client = node.client();
    let id = client.run_pod(&node.pod("app")).await.unwrap();
    assert_error(client.stop_pod(&id).await.map(|()| id.clone()), Code::Unknown, &["still in use"]);
    assert_error(client.remove_pod(&id).await.map(|()| id.clone()), Code::Unknown, &["still in use"]);
    std::fs::write(node.path("go"), "").unwrap();
    client.stop_pod(&id).await.unwrap();
    client.remove_pod(&id).await.unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_plugin_that_can_neither_add_nor_delete_does_not_keep_a_pod_that_never_had_a_network() {
    let node = TestNode::start().await;
    node.install_plugin("broken", r#"echo '{"code":11,"msg":"no '"$CNI_COMMAND"' today"}'; exit 1"#);
    node.set_network("broken");
    let client = node.client();
    assert_error(client.run_pod(&node.pod("app")).await, Code::Unknown, &["no ADD today"]);
    let left = client.pods().await.unwrap();
    let states: Vec<_> = left.iter().map(|pod| pod.state()).collect();
    assert_eq!(states, [api::cri::PodSandboxState::SandboxNotready], "what is owed is shown");
    client.stop_pod(&left[0].id).await.unwrap();
    client.remove_pod(&left[0].id).await.unwrap();
    assert_eq!(client.pods().await.unwrap(), []);
    node.set_network("bridge");
    assert_works(&node, "app").await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pod_whose_network_namespace_was_taken_away_has_no_address_and_goes_without_a_rest() {
    let node = TestNode::start().await;
    let client = node.client();
    let id = client.run_pod(&node.pod("app")).await.unwrap();
    let before = client.pod_status(&id).await.unwrap();
    assert_ne!(before.network.unwrap().ip, "");
    let info = client.pod_info(&id).await.unwrap();
    assert_eq!(info["netNamespaceClosed"], false);
    let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().unwrap();
    let network = namespaces.iter().find(|namespace| namespace["type"] == "network").unwrap();
    rustix::mount::unmount(network["path"].as_str().unwrap(), rustix::mount::UnmountFlags::DETACH).unwrap();

    let after = client.pod_status(&id).await.unwrap();
    assert_eq!(after.state(), api::cri::PodSandboxState::SandboxReady);
    assert_eq!(after.network.unwrap().ip, "", "the kubelet makes a ready pod without an address anew");
    assert_eq!(client.pod_info(&id).await.unwrap()["netNamespaceClosed"], true);
    client.stop_pod(&id).await.unwrap();
    client.remove_pod(&id).await.unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_without_a_network_configuration_pods_fail_and_status_says_so() {
    let node = TestNode::start().await;
    node.remove_network();
    let answer = node.client().run_pod(&node.pod("app")).await;
    assert_error(answer, Code::Unavailable, &["no network config"]);
    let status = node.client().runtime.status(api::cri::StatusRequest { verbose: false }).await.unwrap().into_inner();
    let conditions: Vec<_> =
        status.status.unwrap().conditions.into_iter().map(|condition| (condition.r#type, condition.status)).collect();
    let expected = [("RuntimeReady".to_owned(), true), ("NetworkReady".to_owned(), false)];
    assert_eq!(conditions[..2], expected);
    node.assert_clean().await;
    node.set_network("bridge");
    assert_works(&node, "app").await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_missing_cni_plugin_is_named() {
    let node = TestNode::start().await;
    node.set_network("nosuchplugin");
    let answer = node.client().run_pod(&node.pod("app")).await;
    let status = answer.expect_err("it has to fail");
    assert!(status.message().contains("nosuchplugin"), "{status}");
    node.assert_clean().await;
    node.set_network("bridge");
    assert_works(&node, "app").await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_missing_pause_image_is_named_and_found_by_the_next_try() {
    let mut node = TestNode::prepare().await;
    node.settings.pause_image = "registry.k8s.io/pause:missing".into();
    node.boot().await;
    let answer = node.client().run_pod(&node.pod("app")).await;
    let status = answer.expect_err("it has to fail");
    assert!(status.message().contains("registry.k8s.io/pause:missing"), "{status}");
    assert_eq!(node.client().pods().await.unwrap(), []);
    node.assert_clean().await;
    fixture::pause().push(&node.registry.pusher(), "pause", "missing");
    assert_works(&node, "app").await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_missing_runc_is_named_and_found_after_the_next_start() {
    let mut node = TestNode::prepare().await;
    node.settings.runc = "/no/such/runc".into();
    node.boot().await;
    let answer = node.client().run_pod(&node.pod("app")).await;
    let status = answer.expect_err("it has to fail");
    assert!(status.message().contains("/no/such/runc"), "{status}");
    assert_eq!(node.client().pods().await.unwrap(), []);
    node.assert_clean().await;
    node.settings.runc = String::new();
    node.restart().await;
    assert_works(&node, "app").await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_bad_image_reference_is_an_invalid_argument() {
    let node = TestNode::start().await;
    for bad in ["", "docker.io/UPPER/case:1", "docker.io/library/busybox:", "a b", "busybox@sha256:short"] {
        let answer = node.client().pull(bad).await;
        assert_error(answer, Code::InvalidArgument, &[]);
    }
    assert_eq!(node.client().pull(BUSYBOX).await.unwrap(), node.registry.busybox.id);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_image_that_the_registry_does_not_have_is_not_found() {
    let node = TestNode::start().await;
    let answer = node.client().pull("docker.io/library/nosuch:1").await;
    assert_error(answer, Code::NotFound, &["docker.io/library/nosuch:1"]);
    assert_eq!(node.client().image_list().await.unwrap(), []);
    node.finish().await;
}

/// A server that answers every request with one status line, for as long as the test runs.
fn refusing_registry(status: &'static str) -> SocketAddr {
    let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = listener.local_addr().unwrap();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut request = [0; 4096];
            // What is asked does not matter, and neither does a client that went away.
            let _ = stream.read(&mut request);
            let _ = write!(stream, "HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_registry_that_refuses_is_told_with_its_answer_and_the_next_try_works() {
    let node = TestNode::start().await;
    let (code, reference) = (Code::Unknown, "refusing.test/library/busybox:1");
    for (status, part) in [("403 Forbidden", "403"), ("401 Unauthorized", "401"), ("500 Internal Server Error", "500")]
    {
        node.add_mirror("refusing.test", &format!("http://{}", refusing_registry(status)));
        let answer = node.client().pull(reference).await;
        assert_error(answer, code, &[part, "refusing.test"]);
    }
    // Nobody listens: the port was free a moment ago.
    let closed = TcpListener::bind(("127.0.0.1", 0)).unwrap().local_addr().unwrap();
    node.add_mirror("refusing.test", &format!("http://{closed}"));
    let status = node.client().pull(reference).await.expect_err("nobody listens");
    assert!(status.message().starts_with("RegistryUnavailable: "), "{status}");
    assert_eq!(node.client().image_list().await.unwrap(), []);
    node.assert_clean().await;
    node.add_mirror("refusing.test", &format!("http://{}", node.registry.address));
    assert_eq!(node.client().pull(reference).await.unwrap(), node.registry.busybox.id);
    node.finish().await;
}

/// An image that no other test has, of one small layer.
fn small(content: &str) -> Image {
    let layer = LayerBuilder::new().file("content", 0o644, content.as_bytes()).build();
    Image::new(vec![layer], serde_json::json!({"Cmd": ["/content"]}))
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_layer_with_other_bytes_than_its_digest_says_is_refused() {
    let node = TestNode::start().await;
    let pushed = small("to be corrupted").push(&node.registry.pusher(), "library/corrupt", "1");
    node.registry.corrupt(&pushed.layers[0]);
    let answer = node.client().pull("docker.io/library/corrupt:1").await;
    assert_error(answer, Code::Unknown, &["docker.io/library/corrupt:1", &pushed.layers[0]]);
    assert_eq!(node.client().image_list().await.unwrap(), []);
    node.assert_clean().await;
    // A second change of the same byte is the way back.
    node.registry.corrupt(&pushed.layers[0]);
    assert_eq!(node.client().pull("docker.io/library/corrupt:1").await.unwrap(), pushed.id);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_layer_that_unpacks_to_another_diff_id_is_refused() {
    let node = TestNode::start().await;
    let mut image = small("one thing");
    let right = std::mem::replace(&mut image.layers[0].diff_id, windlass_e2e::layer::sha256(b"another"));
    image.push(&node.registry.pusher(), "library/liar", "1");
    let answer = node.client().pull("docker.io/library/liar:1").await;
    assert_error(answer, Code::Unknown, &["docker.io/library/liar:1", &right]);
    assert_eq!(node.client().image_list().await.unwrap(), []);
    node.assert_clean().await;
    image.layers[0].diff_id = right;
    let pushed = image.push(&node.registry.pusher(), "library/liar", "1");
    assert_eq!(node.client().pull("docker.io/library/liar:1").await.unwrap(), pushed.id);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_container_of_an_image_that_is_not_here_fails_and_the_pod_goes_on() {
    let node = TestNode::start().await;
    let client = node.client();
    let pod_config = node.pod("app");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let answer = client.create(&pod, &program("app", PROBE, &["count"]), &pod_config).await;
    assert_error(answer, Code::NotFound, &["probe"]);
    client.pull(PROBE).await.unwrap();
    let id = client.create(&pod, &program("app", PROBE, &["count"]), &pod_config).await.unwrap();
    client.start(&id).await.unwrap();
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_program_that_is_not_in_the_image_fails_the_start_and_is_named() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("app");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let id = client.create(&pod, &container("app", BUSYBOX, &["/no/such/program"]), &pod_config).await.unwrap();
    let status = client.start(&id).await.expect_err("there is nothing to start");
    assert!(status.message().contains("/no/such/program"), "{status}");
    let ended = client.status(&id).await.unwrap();
    assert_eq!(
        (ended.state(), ended.exit_code, ended.reason.as_str()),
        (api::cri::ContainerState::ContainerExited, 128, "StartError")
    );
    client.remove(&id).await.unwrap();
    node.remove_all_pods().await;
    node.finish().await;
}
