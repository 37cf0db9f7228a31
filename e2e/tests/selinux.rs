//! SELinux: labels of processes and files, and what they forbid. Tests say that they are left out where the host has no
//! SELinux, or does not enforce it: `hack/vm -k 'security=selinux enforcing=1' -e selinux` has a policy and does.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::HashSet,
    fs,
    io::{Read, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use api::cri;
use serde_json::json;
use tonic::Code;
use windlass_e2e::{
    client::{Client, container, image_spec},
    image::Image,
    layer::LayerBuilder,
    node::{BUSYBOX, TestNode},
};

fn asking(name: &str) -> cri::ContainerConfig {
    let linux = cri::LinuxContainerConfig { security_context: Some(Default::default()), ..Default::default() };
    cri::ContainerConfig { linux: Some(linux), ..container(name, BUSYBOX, &["sleep", "600"]) }
}

fn security(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
    config.linux.as_mut().unwrap().security_context.as_mut().unwrap()
}

fn mount(from: &Path, to: &str, selinux_relabel: bool) -> cri::Mount {
    let host_path = from.to_str().unwrap().into();
    cri::Mount { host_path, container_path: to.into(), selinux_relabel, ..Default::default() }
}

/// A node that labels; `None`, and it is said, if this host has no SELinux.
async fn node(more: &str) -> Option<TestNode> {
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        eprintln!("left out: this host has no SELinux");
        return None;
    }
    let mut node = TestNode::prepare().await;
    node.settings.cri = format!("enable_selinux = true\n{more}");
    node.boot().await;
    Some(node)
}

fn enforcing() -> bool {
    let enforcing = fs::read_to_string("/sys/fs/selinux/enforce").is_ok_and(|text| text.starts_with('1'));
    if !enforcing {
        eprintln!("left out: this host does not enforce SELinux");
    }
    enforcing
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

/// The label that the policy gives to a process which this one starts from a file with that label.
fn by_policy(file: &str) -> String {
    let own = fs::read_to_string("/proc/self/attr/current").unwrap();
    let class = fs::read_to_string("/sys/fs/selinux/class/process/index").unwrap();
    let mut create = fs::File::options().read(true).write(true).open("/sys/fs/selinux/create").unwrap();
    let question = format!("{} {file} {}", own.trim_end_matches(['\0', '\n']), class.trim());
    create.write_all(question.as_bytes()).unwrap();
    let mut answer = String::new();
    create.read_to_string(&mut answer).unwrap();
    answer
}

/// Fails unless the command fails, and says so.
async fn refused(client: &Client, id: &str, command: &[&str], said: &str) {
    let answer = client.exec(id, command, 60).await.unwrap();
    let text = String::from_utf8_lossy(&answer.stderr).into_owned();
    assert!(answer.exit_code != 0 && text.contains(said), "{command:?} ended with {}: {text}", answer.exit_code);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_selinux_keeps_pods_apart_by_levels() {
    let Some(mut node) = node("selinux_category_range = 3").await else { return };
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let (shared, own) = (node.path("relabelled"), node.path("left-as-it-is"));
    for volume in [&shared, &own] {
        fs::create_dir(volume).unwrap();
        fs::write(volume.join("file"), "").unwrap();
    }
    let before = labelled(own.to_str().unwrap());

    // Three categories make three pairs, so the fourth pod has none left.
    let mut levels = HashSet::new();
    let mut pods = Vec::new();
    for name in ["one", "two", "three"] {
        let pod_config = node.pod(name);
        let pod = client.run_pod(&pod_config).await.unwrap();
        let mut with_volumes = asking("with-volumes");
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
    let id = client.create(&pod, &asking("later"), &pod_config).await.unwrap();
    client.start(&id).await.unwrap();
    assert_eq!(level_of(&label_of(&node, &id), "container_t"), freed);
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_selinux_labels_are_what_was_asked_for_and_privileged_containers_have_none() {
    let Some(node) = node("").await else { return };
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
        let mut config = asking(name);
        security(&mut config).selinux_options = asked;
        let id = client.create(&pod, &config, &pod_config).await.unwrap();
        client.start(&id).await.unwrap();
        assert_eq!(level_of(&label_of(&node, &id), kind), level, "{name}");
    }
    let mut config = asking("privileged");
    security(&mut config).privileged = true;
    let id = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&id).await.unwrap();
    let program = format!("/proc/{}/root/bin/busybox", node.first_process(&id));
    assert_eq!(label_of(&node, &id), by_policy(&labelled(&program)), "as the policy has it for who starts such a file");

    for (asked, code, message) in [
        (options("no_such_type_t", ""), Code::FailedPrecondition, "is not valid in this host's policy"),
        (options("", "c1"), Code::InvalidArgument, "the format of 'level'"),
    ] {
        let mut config = asking("refused");
        security(&mut config).selinux_options = asked;
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
    let mut config = asking("of-the-host");
    security(&mut config).namespace_options = Some(namespaces);
    let id = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&id).await.unwrap();
    level_of(&label_of(&node, &id), "container_t");
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_selinux_enforced_keeps_a_container_from_files_and_processes_that_are_not_its_pods() {
    if !enforcing() {
        return;
    }
    let Some(node) = node("").await else { return };
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let (shared, own) = (node.path("relabelled"), node.path("left-as-it-is"));
    for volume in [&shared, &own] {
        fs::create_dir(volume).unwrap();
        fs::write(volume.join("file"), "of the host\n").unwrap();
        // So that nothing but a label can forbid it.
        fs::set_permissions(volume, fs::Permissions::from_mode(0o777)).unwrap();
        fs::set_permissions(volume.join("file"), fs::Permissions::from_mode(0o666)).unwrap();
    }
    let start = async |pod: &str, pod_config: &cri::PodSandboxConfig, config: cri::ContainerConfig| {
        let id = Box::pin(client.create(pod, &config, pod_config)).await.unwrap();
        Box::pin(client.start(&id)).await.unwrap();
        id
    };
    let of = |name: &str, relabel| {
        let mounts = vec![mount(&shared, "/shared", relabel), mount(&own, "/own", false)];
        cri::ContainerConfig { mounts, ..asking(name) }
    };
    let one_config = node.pod("one");
    let one = client.run_pod(&one_config).await.unwrap();
    let owner = start(&one, &one_config, of("owner", true)).await;
    let sibling = start(&one, &one_config, of("sibling", false)).await;
    let mut two_config = node.pod("two");
    let namespaces = cri::NamespaceOption { pid: cri::NamespaceMode::Node as i32, ..Default::default() };
    let of_pod = two_config.linux.as_mut().unwrap().security_context.get_or_insert_default();
    (of_pod.privileged, of_pod.namespace_options) = (true, Some(namespaces.clone()));
    let two = client.run_pod(&two_config).await.unwrap();
    let mut stranger = of("stranger", false);
    security(&mut stranger).namespace_options = Some(namespaces.clone());
    let stranger = start(&two, &two_config, stranger).await;
    let mut privileged = of("privileged", false);
    security(&mut privileged).namespace_options = Some(namespaces);
    security(&mut privileged).privileged = true;
    let privileged = start(&two, &two_config, privileged).await;

    // The volume is the pod's it was relabelled for, all of whose containers have its level.
    for id in [&owner, &sibling, &privileged] {
        assert_eq!(client.output(id, &["cat", "/shared/file"]).await, "of the host\n");
    }
    client.output(&owner, &["sh", "-c", "echo x >/shared/made"]).await;
    assert_eq!(client.output(&sibling, &["cat", "/shared/made"]).await, "x\n");
    for path in ["/shared/file", "/shared/made"] {
        refused(&client, &stranger, &["cat", path], "Permission denied").await;
    }
    refused(&client, &stranger, &["sh", "-c", "echo x >/shared/new"], "Permission denied").await;
    // What is the host's is nobody's but the privileged container's.
    for id in [&owner, &sibling, &stranger] {
        refused(&client, id, &["cat", "/own/file"], "Permission denied").await;
        refused(&client, id, &["ls", "/own"], "Permission denied").await;
    }
    assert_eq!(client.output(&privileged, &["cat", "/own/file"]).await, "of the host\n");
    // In the host's process ids, with root's capabilities: levels keep processes apart too.
    let process = node.first_process(&owner).to_string();
    let status = format!("/proc/{process}/status");
    for command in [["kill", "-CONT", &process].as_slice(), &["cat", &status]] {
        refused(&client, &stranger, command, "Permission denied").await;
        client.output(&privileged, command).await;
    }

    // A relabelling takes the volume from one pod and gives it to the other.
    let later = start(&two, &two_config, of("later", true)).await;
    for id in [&later, &stranger] {
        assert_eq!(client.output(id, &["cat", "/shared/made"]).await, "x\n");
    }
    refused(&client, &owner, &["cat", "/shared/file"], "Permission denied").await;
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_selinux_labels_everything_that_a_container_needs() {
    let Some(node) = node("").await else { return };
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let layer = |text: &str| LayerBuilder::new().file(text, 0o644, format!("{text}\n").as_bytes()).build();
    let pusher = node.registry.pusher();
    // A view of one layer is a bind mount elsewhere, which has no label of its own, and the layer is that of all.
    let (flat, high) = ("docker.io/library/labelled-flat:1", "docker.io/library/labelled-high:1");
    Image::new(vec![layer("flat")], json!({})).push(&pusher, "library/labelled-flat", "1");
    Image::new(vec![layer("low"), layer("high")], json!({})).push(&pusher, "library/labelled-high", "1");
    let volume = "docker.io/library/labelled-volume:1";
    let with_volume = json!({"Cmd": ["sh"], "Env": ["PATH=/bin"], "Volumes": {"/volume": {}}});
    let busybox = windlass_e2e::fixture::busybox();
    Image::new(busybox.layers, with_volume).push(&pusher, "library/labelled-volume", "1");
    for image in [flat, high, volume] {
        client.pull(image).await.unwrap();
    }
    let of_image = |image: &str, path: &str| cri::Mount {
        container_path: path.into(),
        readonly: true,
        image: Some(image_spec(image)),
        ..Default::default()
    };
    let mut levels = Vec::new();
    for name in ["one", "two"] {
        let pod_config = node.pod(name);
        let pod = client.run_pod(&pod_config).await.unwrap();
        let mounts = vec![of_image(flat, "/flat"), of_image(high, "/high")];
        let config = cri::ContainerConfig { mounts, image: Some(image_spec(volume)), ..asking("app") };
        let id = client.create(&pod, &config, &pod_config).await.unwrap();
        client.start(&id).await.unwrap();
        let level = level_of(&label_of(&node, &id), "container_t").to_owned();
        let root = format!("/proc/{}/root", node.first_process(&id));
        for path in ["/flat/flat", "/high/low", "/high/high", "/volume", "/dev", "/dev/null", "/dev/pts"] {
            assert_eq!(level_of(&labelled(&format!("{root}{path}")), "container_file_t"), level, "{path}");
        }
        levels.push((id, level));
    }
    // Both at once, so neither has the other's.
    assert_ne!(levels[0].1, levels[1].1);
    for (id, _) in &levels {
        assert_eq!(client.output(id, &["cat", "/flat/flat", "/high/low", "/high/high"]).await, "flat\nlow\nhigh\n");
        refused(&client, id, &["sh", "-c", "echo x >/flat/new"], "Read-only file system").await;
        let used = "echo x >/volume/made && cat /volume/made >/dev/null && cat /etc/hosts /etc/resolv.conf \
                    /proc/self/status /proc/sys/kernel/pid_max /sys/kernel/mm/transparent_hugepage/enabled >/dev/null && \
                    head -c 1 /dev/urandom >/dev/null && echo x >/dev/shm/made && mkfifo /tmp/fifo && echo used";
        assert_eq!(client.output(id, &["sh", "-c", used]).await, "used\n");
    }
    node.remove_all_pods().await;
    node.finish().await;
}
