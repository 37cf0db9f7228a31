//! The check that a test left nothing is only worth something if it sees what is there.

use std::collections::BTreeSet;

use windlass_e2e::{
    client::container,
    node::{BUSYBOX, TestNode},
};

#[tokio::test(flavor = "multi_thread")]
async fn privileged_leakcheck_sees_every_kind_of_thing_that_a_running_pod_has() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("seen");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &container("app", BUSYBOX, &["sleep", "1000"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    let found = node.leakcheck.find(None);
    let kinds: BTreeSet<&str> = found.iter().map(|line| line.split(':').next().unwrap()).collect();
    let expected = ["address", "cgroup", "cni cache", "file", "link", "mount", "process", "shared", "snapshot"];
    assert_eq!(kinds, BTreeSet::from(expected), "{found:#?}");
    for part in [
        "containerd-shim-runc-v2",
        "/pause",
        "sleep 1000",
        "/netns/",
        "io.containerd.runtime.v2.task",
        "/runc/k8s.io/",
        "/run/containerd/s/",
    ] {
        assert!(found.iter().any(|line| line.contains(part)), "nothing tells of {part}: {found:#?}");
    }
    node.remove_all_pods().await;
    node.finish().await;
}
