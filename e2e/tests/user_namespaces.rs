//! Pods with a user namespace of their own. They need an OCI runtime with mapped mounts: `RUNC` names one where the first in
//! PATH has none, and without one the tests only look at how such pods are refused.

use api::cri;
use tonic::Code;
use windlass_e2e::{
    client::container,
    node::{BUSYBOX, TestNode},
};

const IDS: cri::IdMapping = cri::IdMapping { host_id: 200_000, container_id: 0, length: 65_536 };

fn namespaces(network: cri::NamespaceMode) -> cri::NamespaceOption {
    cri::NamespaceOption {
        network: network as i32,
        userns_options: Some(cri::UserNamespace { mode: 0, uids: vec![IDS], gids: vec![IDS] }),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pod_with_a_user_namespace_can_be_in_the_hosts_network() {
    let mut node = TestNode::prepare_on_given_runc().await;
    node.boot().await;
    let client = node.client();
    let status = client.runtime.clone().status(cri::StatusRequest { verbose: false }).await.unwrap().into_inner();
    assert!(status.features.unwrap().user_namespaces_host_network);
    let handler = status.runtime_handlers.iter().find(|handler| handler.name.is_empty()).unwrap();
    let options = namespaces(cri::NamespaceMode::Node);
    let mut pod_config = node.pod("mapped");
    let linux = pod_config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(options.clone());
    if !handler.features.as_ref().unwrap().user_namespaces {
        let refused = client.run_pod(&pod_config).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{refused}");
        return node.finish().await;
    }
    client.pull(BUSYBOX).await.unwrap();
    let pod = client.run_pod(&pod_config).await.unwrap();
    assert_eq!(client.pod_status(&pod).await.unwrap().network.unwrap().ip, "");
    let mut config = container("app", BUSYBOX, &["sleep", "1000"]);
    config.linux = Some(cri::LinuxContainerConfig {
        security_context: Some(cri::LinuxContainerSecurityContext {
            namespace_options: Some(options),
            ..Default::default()
        }),
        ..Default::default()
    });
    let app = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    let map = client.output(&app, &["cat", "/proc/self/uid_map"]).await;
    assert_eq!(map.split_whitespace().collect::<Vec<_>>(), ["0", "200000", "65536"]);
    let own = std::fs::read_link("/proc/self/ns/net").unwrap();
    let theirs = client.output(&app, &["readlink", "/proc/self/ns/net"]).await;
    assert_eq!(theirs.trim(), own.to_str().unwrap());
    // The host's /sys, with all that is mounted in it, and none of it writable.
    assert!(client.output(&app, &["ls", "/sys/class/net"]).await.contains("lo\n"));
    let written = client.exec(&app, &["sh", "-c", "echo 1 >/sys/kernel/mm/ksm/run"], 60).await.unwrap();
    assert_ne!(written.exit_code, 0);
    let mounts = client.output(&app, &["cat", "/proc/self/mountinfo"]).await;
    let sys: Vec<&str> = mounts.lines().filter(|line| line.split(' ').nth(4) == Some("/sys")).collect();
    assert!(matches!(&sys[..], [one] if one.split(' ').nth(5).unwrap().starts_with("ro,")), "{sys:?}");
    node.remove_all_pods().await;
    node.finish().await;
}
