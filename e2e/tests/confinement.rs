//! Security modules of the kernel. Each test says that it is left out where the host has no such module; hack/vm has.

use std::{collections::HashSet, fs, path::Path};

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

fn labelled(path: &str) -> String {
    windlass_e2e::command::run("stat", &["--format=%C", path]).trim().to_owned()
}

/// The label of a container's first process.
fn label_of(node: &TestNode, container: &str) -> String {
    fs::read_to_string(format!("/proc/{}/attr/current", node.first_process(container))).expect("a process has a label")
}

/// The level of a label whose type must be this.
fn level_of<'a>(label: &'a str, kind: &str) -> &'a str {
    let parts: Vec<&str> = label.trim_end_matches(['\0', '\n']).splitn(4, ':').collect();
    assert!(parts.len() == 4 && parts[2] == kind, "{label:?} is not of type {kind}");
    parts[3]
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_selinux_keeps_pods_apart_by_levels() {
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        eprintln!("left out: this host has no SELinux");
        return;
    }
    let mut node = TestNode::prepare().await;
    node.settings.cri = "enable_selinux = true\nselinux_category_range = 3".into();
    node.boot().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let (shared, own) = (node.path("relabelled"), node.path("left-as-it-is"));
    for volume in [&shared, &own] {
        fs::create_dir(volume).unwrap();
        fs::write(volume.join("file"), "").unwrap();
    }
    let before = labelled(own.to_str().unwrap());
    let mount = |from: &Path, to: &str, selinux_relabel| cri::Mount {
        host_path: from.to_str().unwrap().into(),
        container_path: to.into(),
        selinux_relabel,
        ..Default::default()
    };

    // Three categories make three pairs, so the fourth pod has none left.
    let mut levels = HashSet::new();
    let mut pods = Vec::new();
    for name in ["one", "two", "three"] {
        let pod_config = node.pod(name);
        let pod = client.run_pod(&pod_config).await.unwrap();
        let mut with_volumes = asking("with-volumes", None);
        with_volumes.mounts = vec![mount(&shared, "/shared", true), mount(&own, "/own", false)];
        let id = client.create(&pod, &with_volumes, &pod_config).await.unwrap();
        client.start(&id).await.unwrap();
        let process = label_of(&node, &id);
        let level = level_of(&process, "container_t").to_owned();
        assert_eq!(client.output(&id, &["cat", "/proc/self/attr/current"]).await, process, "an exec is labelled too");
        // From the host's side: busybox in the container knows no labels.
        let root = format!("/proc/{}/root", node.first_process(&id));
        for path in [
            "/",
            "/bin/busybox",
            "/dev/shm",
            "/etc/hosts",
            "/etc/resolv.conf",
            "/etc/hostname",
            "/shared",
            "/shared/file",
        ] {
            assert_eq!(level_of(&labelled(&format!("{root}{path}")), "container_file_t"), level, "{path}");
        }
        assert_eq!(labelled(&format!("{root}/own")), before);
        client.output(&id, &["sh", "-c", "echo x >/made && echo x >/dev/shm/made"]).await;
        for path in ["/made", "/dev/shm/made"] {
            assert_eq!(level_of(&labelled(&format!("{root}{path}")), "container_file_t"), level, "{path}");
        }
        let pause = fs::read_dir("/proc").unwrap().filter_map(|entry| {
            let path = entry.unwrap().path();
            let cgroup = fs::read_to_string(path.join("cgroup")).ok()?;
            cgroup.contains(&pod).then(|| fs::read_to_string(path.join("attr/current")).unwrap())
        });
        let pause: Vec<String> = pause.collect();
        assert!(!pause.is_empty() && pause.iter().all(|label| level_of(label, "container_t") == level), "{pause:?}");
        assert!(levels.insert(level.clone()), "{level} is given twice");
        pods.push((pod, level));
    }
    let refused = client.run_pod(&node.pod("four")).await.unwrap_err();
    assert!(refused.message().contains("every pair of SELinux categories is in use"), "{refused}");

    // What is taken is known after a crash as well, and free when its pod is gone.
    node.kill9();
    node.boot().await;
    let client = node.client();
    client.run_pod(&node.pod("four")).await.unwrap_err();
    let (gone, freed) = pods.remove(1);
    client.stop_pod(&gone).await.unwrap();
    client.remove_pod(&gone).await.unwrap();
    let pod_config = node.pod("four");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let id = client.create(&pod, &asking("later", None), &pod_config).await.unwrap();
    client.start(&id).await.unwrap();
    assert_eq!(level_of(&label_of(&node, &id), "container_t"), freed);
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_selinux_labels_are_what_was_asked_for_and_privileged_containers_have_none() {
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        eprintln!("left out: this host has no SELinux");
        return;
    }
    let mut node = TestNode::prepare().await;
    node.settings.cri = "enable_selinux = true".into();
    node.boot().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let options = |kind: &str, level: &str| {
        Some(cri::SeLinuxOption { r#type: kind.into(), level: level.into(), ..Default::default() })
    };
    let mut pod_config = node.pod("asks");
    let context = pod_config.linux.as_mut().unwrap().security_context.get_or_insert_default();
    context.privileged = true;
    context.selinux_options = options("", "s0:c4,c5");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let mut expected = vec![("pod's", None, "container_t", "s0:c4,c5")];
    expected.push(("own", options("", "s0:c6,c7"), "container_t", "s0:c6,c7"));
    expected.push(("type", options("spc_t", ""), "spc_t", "s0:c4,c5"));
    for (name, asked, kind, level) in expected {
        let mut config = asking(name, None);
        config.linux.as_mut().unwrap().security_context.as_mut().unwrap().selinux_options = asked;
        let id = client.create(&pod, &config, &pod_config).await.unwrap();
        client.start(&id).await.unwrap();
        assert_eq!(level_of(&label_of(&node, &id), kind), level, "{name}");
    }
    let mut config = asking("privileged", None);
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().privileged = true;
    let id = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&id).await.unwrap();
    let own = fs::read_to_string("/proc/self/attr/current").unwrap();
    assert_eq!(label_of(&node, &id), own, "as who started the daemon");

    for (asked, code, message) in [
        (options("no_such_type_t", ""), Code::FailedPrecondition, "is not valid in this host's policy"),
        (options("", "c1"), Code::InvalidArgument, "the format of 'level'"),
    ] {
        let mut config = asking("refused", None);
        config.linux.as_mut().unwrap().security_context.as_mut().unwrap().selinux_options = asked;
        let refused = client.create(&pod, &config, &pod_config).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(message), "{refused}");
    }

    // In the host's namespaces a level says nothing, but the label holds.
    let mut pod_config = node.pod("of-the-host");
    let namespaces = cri::NamespaceOption {
        network: cri::NamespaceMode::Node as i32,
        pid: cri::NamespaceMode::Node as i32,
        ipc: cri::NamespaceMode::Node as i32,
        ..Default::default()
    };
    let context = pod_config.linux.as_mut().unwrap().security_context.get_or_insert_default();
    context.namespace_options = Some(namespaces.clone());
    let pod = client.run_pod(&pod_config).await.unwrap();
    let mut config = asking("of-the-host", None);
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap().namespace_options = Some(namespaces);
    let id = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&id).await.unwrap();
    level_of(&label_of(&node, &id), "container_t");
    node.remove_all_pods().await;
    node.finish().await;
}
