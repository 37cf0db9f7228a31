//! AppArmor. A test says that it is left out where the host has none; hack/vm has.

use std::{fs, path::Path};

use api::cri::{self, security_profile::ProfileType};
use tonic::Code;
use windlass_e2e::{
    client::container,
    node::{BUSYBOX, TestNode},
};

fn profile(kind: ProfileType, name: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile { profile_type: kind as i32, localhost_ref: name.into() })
}

fn asking(name: &str, apparmor: Option<cri::SecurityProfile>) -> cri::ContainerConfig {
    let context = cri::LinuxContainerSecurityContext { apparmor, ..Default::default() };
    let linux = cri::LinuxContainerConfig { security_context: Some(context), ..Default::default() };
    cri::ContainerConfig { linux: Some(linux), ..container(name, BUSYBOX, &["sleep", "600"]) }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_apparmor_confines_what_asks_for_it_or_for_nothing() {
    let has = fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'));
    if !has || !Path::new("/sbin/apparmor_parser").exists() {
        eprintln!("left out: this host has no AppArmor");
        return;
    }
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let mut pod_config = node.pod("confined");
    let context = cri::LinuxSandboxSecurityContext { privileged: true, ..Default::default() };
    pod_config.linux.as_mut().unwrap().security_context = Some(context);
    let pod = client.run_pod(&pod_config).await.unwrap();
    let current = ["cat", "/proc/self/attr/apparmor/current"];
    let ours = "cri-containerd.apparmor.d (enforce)\n";
    for (name, asked, found) in [
        ("unset", None, ours),
        ("default", profile(ProfileType::RuntimeDefault, ""), ours),
        ("unconfined", profile(ProfileType::Unconfined, ""), "unconfined\n"),
        ("local", profile(ProfileType::Localhost, "cri-containerd.apparmor.d"), ours),
    ] {
        let id = client.create(&pod, &asking(name, asked), &pod_config).await.unwrap();
        client.start(&id).await.unwrap();
        assert_eq!(client.output(&id, &current).await, found, "{name}");
        if name == "unset" {
            // Unmasked and writable by the file system, and a capable user: only the profile forbids these.
            let refused = |path: &str| format!("! echo 0 >{path}");
            client.output(&id, &["sh", "-c", &refused("/proc/sys/kernel/domainname")]).await;
            client.output(&id, &["sh", "-c", &refused("/proc/sysrq-trigger")]).await;
            client
                .output(&id, &["sh", "-c", "echo 0 >/proc/self/oom_score_adj || echo 1000 >/proc/self/oom_score_adj"])
                .await;
            client.output(&id, &["sh", "-c", "sleep 600 & kill $!"]).await;
        }
        client.stop(&id, 0).await.unwrap();
    }
    let mut privileged = asking("privileged", None);
    let linux = privileged.linux.as_mut().unwrap();
    linux.security_context.as_mut().unwrap().privileged = true;
    let id = client.create(&pod, &privileged, &pod_config).await.unwrap();
    client.start(&id).await.unwrap();
    assert_eq!(client.output(&id, &current).await, "unconfined\n");

    let unloaded = asking("unloaded", profile(ProfileType::Localhost, "there-is-none"));
    let refused = client.create(&pod, &unloaded, &pod_config).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().starts_with("apparmor profile not found \"there-is-none\""), "{refused}");
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_node_without_apparmor_refuses_profiles_and_nothing_else() {
    let mut node = TestNode::prepare().await;
    node.settings.cri = "disable_apparmor = true".into();
    node.boot().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("open");
    let pod = client.run_pod(&pod_config).await.unwrap();
    for asked in [profile(ProfileType::RuntimeDefault, ""), profile(ProfileType::Localhost, "mine")] {
        let refused = client.create(&pod, &asking("refused", asked), &pod_config).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().starts_with("apparmor is not supported"), "{refused}");
    }
    for (name, asked) in [("unset", None), ("unconfined", profile(ProfileType::Unconfined, ""))] {
        let id = client.create(&pod, &asking(name, asked), &pod_config).await.unwrap();
        client.start(&id).await.unwrap();
    }
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_ambient_capabilities_are_those_of_a_process_that_is_not_root() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("ambient");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let mut sets = Vec::new();
    for (name, ambient) in [("with", vec!["NET_BIND_SERVICE".to_owned()]), ("without", Vec::new())] {
        let capabilities = cri::Capability {
            add_capabilities: vec!["NET_BIND_SERVICE".into()],
            drop_capabilities: vec!["ALL".into()],
            add_ambient_capabilities: ambient,
        };
        let context = cri::LinuxContainerSecurityContext {
            capabilities: Some(capabilities),
            run_as_user: Some(cri::Int64Value { value: 65534 }),
            namespace_options: Some(cri::NamespaceOption {
                pid: cri::NamespaceMode::Container as i32,
                ..Default::default()
            }),
            ..Default::default()
        };
        let linux = cri::LinuxContainerConfig { security_context: Some(context), ..Default::default() };
        let app = cri::ContainerConfig { linux: Some(linux), ..container(name, BUSYBOX, &["sleep", "600"]) };
        let app = client.create(&pod, &app, &pod_config).await.unwrap();
        client.start(&app).await.unwrap();
        // Of the container's own process and of one beside it.
        let show = "for pid in 1 self; do grep -E 'Cap(Eff|Bnd|Amb)' /proc/$pid/status; done";
        let shown = client.output(&app, &["sh", "-c", show]).await;
        sets.push(shown.split_whitespace().filter_map(|word| u64::from_str_radix(word, 16).ok()).collect::<Vec<_>>());
        client.stop(&app, 0).await.unwrap();
    }
    let bind = 1 << 10;
    assert_eq!(sets, [vec![bind; 6], vec![0, bind, 0, 0, bind, 0]]);
    node.remove_all_pods().await;
    node.finish().await;
}
