//! Runtime handlers: each with its own network, snapshotter, runtime, base spec, annotations and devices, in one
//! configuration. `RUNC` names a further OCI runtime; Debian's crun is used where it is installed.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output},
};

use api::cri;
use serde_json::{Value, json};
use tonic::Code;
use windlass_e2e::{
    client::{Client, container, image_spec},
    node::{BUSYBOX, TestNode, binary, by_systemd},
};

/// The table of a runtime of runc's type.
fn handler(node: &TestNode, name: &str, keys: &str, options: &str) -> String {
    let table = format!("plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.{name}");
    let root = node.path("runc").display().to_string();
    format!(
        "\n[{table}]\nruntime_type = \"io.containerd.runc.v2\"\n{keys}\n[{table}.options]\nRoot = \"{root}\"\n{options}\n"
    )
}

/// A pod of the handler with one container that runs.
async fn start(node: &TestNode, handler: &str, privileged: bool, config: &cri::ContainerConfig) -> (String, String) {
    Box::pin(run(node, handler, privileged, config)).await
}

async fn run(node: &TestNode, handler: &str, privileged: bool, config: &cri::ContainerConfig) -> (String, String) {
    let client = node.client();
    let mut pod_config = node.pod(if handler.is_empty() { "plain" } else { handler });
    let linux = pod_config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = privileged;
    let pod = client.run_pod_on(handler, &pod_config).await.unwrap_or_else(|status| panic!("{handler}: {status}"));
    let mut config = config.clone();
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().privileged = privileged;
    let app = client.create(&pod, &config, &pod_config).await.unwrap_or_else(|status| panic!("{handler}: {status}"));
    client.start(&app).await.unwrap_or_else(|status| panic!("{handler}: {status}"));
    assert_eq!(client.pod_status(&pod).await.unwrap().runtime_handler, handler);
    (pod, app)
}

fn sleeper() -> cri::ContainerConfig {
    container("app", BUSYBOX, &["sleep", "1000"])
}

async fn status(client: &Client, verbose: bool) -> cri::StatusResponse {
    client.runtime.clone().status(cri::StatusRequest { verbose }).await.unwrap().into_inner()
}

/// `windlass config check` of a file.
fn check(file: &Path) -> Output {
    Command::new(binary("windlass")).args(["config", "check", "--config"]).arg(file).output().unwrap()
}

/// The condition that says which handlers cannot start pods.
async fn handlers_ready(client: &Client) -> (bool, String) {
    let conditions = status(client, false).await.status.unwrap().conditions;
    let found = conditions.into_iter().find(|condition| condition.r#type == "RuntimeHandlersReady").unwrap();
    (found.status, found.message)
}

/// A network configuration of its own kind, so that no other test's network is meant.
fn write_network(node: &TestNode, file: &str, name: &str, subnet: &str) {
    let dir = node.path("net-other");
    fs::create_dir_all(&dir).unwrap();
    let ipam = json!({"type": "host-local", "dataDir": node.path("ipam"), "ranges": [[{"subnet": subnet}]]});
    let plugins = [json!({"type": "ptp", "ipam": ipam})];
    let list = json!({"cniVersion": "1.0.0", "name": format!("{}-{name}", node.leakcheck.network), "plugins": plugins});
    fs::write(dir.join(file), list.to_string()).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_handlers_pods_get_the_networks_of_its_own_directory() {
    let mut node = TestNode::prepare().await;
    // Addresses for benchmarks (RFC 2544): no network of this machine has them.
    write_network(&node, "10-first.conflist", "first", "198.18.7.0/24");
    write_network(&node, "20-second.conflist", "second", "198.19.7.0/24");
    let empty = node.path("net-empty");
    fs::create_dir(&empty).unwrap();
    let keys = |dir: &Path, max: u32| format!("cni_conf_dir = {dir:?}\ncni_max_conf_num = {max}");
    let other = node.path("net-other");
    node.settings.cri = handler(&node, "one", &keys(&other, 1), "")
        + &handler(&node, "all", &keys(&other, 0), "")
        + &handler(&node, "none", &keys(&empty, 1), "");
    node.boot().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();

    let addresses = ["sh", "-c", "ip -o -4 address | awk '$2 != \"lo\" {print $2, substr($4, 1, 9)}' | sort"];
    let (pod, app) = start(&node, "one", false, &sleeper()).await;
    assert_eq!(client.output(&app, &addresses).await, "eth0 198.18.7.\n");
    assert!(client.pod_status(&pod).await.unwrap().network.unwrap().ip.starts_with("198.18.7."));
    let (_, app) = start(&node, "all", false, &sleeper()).await;
    assert_eq!(client.output(&app, &addresses).await, "eth0 198.18.7.\neth1 198.19.7.\n");
    let (pod, _) = start(&node, "", false, &sleeper()).await;
    let ip = client.pod_status(&pod).await.unwrap().network.unwrap().ip;
    assert!(!ip.is_empty() && !ip.starts_with("198."), "the default network's address is {ip}");

    let refused = client.run_pod_on("none", &node.pod("none")).await.unwrap_err();
    assert!(refused.message().contains(empty.to_str().unwrap()), "{refused}");
    let info = status(&client, true).await.info;
    assert_eq!((info["lastCNILoadStatus"].as_str(), info["lastCNILoadStatus.one"].as_str()), ("OK", "OK"));
    assert!(info["lastCNILoadStatus.none"].contains(empty.to_str().unwrap()), "{info:?}");

    // Also when the handler has left the configuration meanwhile, both networks are given back.
    node.terminate().await;
    node.settings.cri.clear();
    node.boot().await;
    node.remove_all_pods().await;
    for name in ["first", "second"] {
        let dir = node.path("ipam").join(format!("{}-{name}", node.leakcheck.network));
        let names = fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let taken: Vec<String> = names.filter(|name| name.parse::<std::net::IpAddr>().is_ok()).collect();
        assert_eq!(taken, Vec::<String>::new(), "addresses of network {name} are not given back");
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_handler_has_its_own_snapshotter() {
    let mut node = TestNode::prepare().await;
    node.settings.cri = handler(&node, "copied", "snapshotter = \"native\"", "");
    node.boot().await;
    let client = node.client();
    let image = cri::ImageSpec { runtime_handler: "copied".into(), ..image_spec(BUSYBOX) };
    let request = cri::PullImageRequest { image: Some(image), auth: None, sandbox_config: Some(node.pod("copied")) };
    client.images.clone().pull_image(request).await.unwrap();
    let (_, app) = start(&node, "copied", false, &sleeper()).await;
    client.output(&app, &["sh", "-c", "echo mine >/written"]).await;
    let mounts = client.output(&app, &["cat", "/proc/self/mounts"]).await;
    let root = mounts.lines().find(|line| line.split(' ').nth(1) == Some("/")).unwrap();
    assert!(!root.contains("overlay"), "{root}");
    let snapshots = node.path("root/io.containerd.snapshotter.v1.native/snapshots");
    let written = fs::read_dir(&snapshots).unwrap().filter(|entry| {
        let path = entry.as_ref().unwrap().path();
        fs::read_to_string(path.join("written")).is_ok_and(|text| text == "mine\n")
    });
    assert_eq!(written.count(), 1, "no snapshot of {} has what the container wrote", snapshots.display());
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_base_spec_gives_what_the_request_does_not_say() {
    let mut node = TestNode::prepare().await;
    let file = node.path("base.json");
    let mount = |at: &str, kind: &str, options: &[&str]| json!({"destination": at, "type": kind, "source": kind, "options": options});
    let base = json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": ["/never"],
            "cwd": "/",
            "user": {"uid": 0, "gid": 0},
            "env": ["FROM_BASE=base", "SHARED=base"],
            // Not of open files: before runc 1.2 the Go runtime may raise the soft one, by a race. Told in blocks of 512 bytes.
            "rlimits": [{"type": "RLIMIT_FSIZE", "soft": 2048 * 512, "hard": 4096 * 512}],
            "capabilities": {"bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_CHOWN"], "permitted": ["CAP_CHOWN"]},
        },
        "root": {"path": "/never"},
        "mounts": [
            mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
            mount("/dev", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("/from-base", "tmpfs", &["size=4096k"]),
        ],
        "linux": {"resources": {"pids": {"limit": 77}}, "namespaces": [{"type": "mount"}]},
        "annotations": {"from": "base"},
    });
    fs::write(&file, base.to_string()).unwrap();
    node.settings.cri = handler(&node, "based", &format!("base_runtime_spec = {file:?}"), "");
    node.boot().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();

    let mut config = sleeper();
    config.envs = vec![cri::KeyValue { key: "SHARED".into(), value: "request".into() }];
    let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    context.capabilities =
        Some(cri::Capability { add_capabilities: vec!["NET_RAW".into()], ..cri::Capability::default() });
    let told = ["sh", "-c", "echo $FROM_BASE $SHARED; ulimit -Sf; ulimit -Hf; grep CapBnd /proc/self/status"];
    let (_, app) = start(&node, "based", false, &config).await;
    // CHOWN is bit 0, KILL bit 5, NET_RAW bit 13.
    assert_eq!(client.output(&app, &told).await, "base request\n2048\n4096\nCapBnd:\t0000000000002021\n");
    let mounts = client.output(&app, &["cat", "/proc/self/mounts"]).await;
    let at = |place: &str| mounts.lines().any(|line| line.split(' ').nth(1) == Some(place));
    assert!(at("/from-base") && !at("/sys") && !at("/dev/mqueue"), "{mounts}");
    let limits = node.leakcheck.cgroups().into_iter().filter(|path| path.ends_with(&app));
    let limits: Vec<String> = limits.filter_map(|path| fs::read_to_string(path.join("pids.max")).ok()).collect();
    assert_eq!(limits, ["77\n"]);
    let spec = fs::read(node.path("state/io.containerd.runtime.v2.task/k8s.io").join(&app).join("config.json"));
    let spec: Value = serde_json::from_slice(&spec.unwrap()).unwrap();
    assert_eq!((&spec["annotations"]["from"], &spec["process"]["args"]), (&json!("base"), &json!(["sleep", "1000"])));

    let (_, app) = start(&node, "", false, &config).await;
    let plain = client.output(&app, &told).await;
    assert!(plain.starts_with("request\n") && !plain.contains("2048\n4096"), "{plain}");
    node.remove_all_pods().await;

    // What the file says is checked at the start, and the daemon does not come up with half a handler.
    node.terminate().await;
    fs::write(&file, r#"{"ociVersion": "1.0.2"}"#).unwrap();
    let said = String::from_utf8(check(&node.path("config.toml")).stderr).unwrap();
    assert!(said.contains("runtimes.based.base_runtime_spec") && said.contains("has process and linux"), "{said}");
    node.settings.cri.clear();
    node.boot().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_annotations_reach_the_runtime_by_the_handlers_patterns() {
    let mut node = TestNode::prepare().await;
    let keys = "pod_annotations = [\"example.com.*\", \"exact\"]\ncontainer_annotations = [\"app.?\"]";
    node.settings.cri = handler(&node, "annotated", keys, "");
    node.boot().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let annotations = |keys: &[&str]| keys.iter().map(|&key| (key.to_owned(), "value".to_owned())).collect();
    let spec = |id: &str| -> Value {
        let path = node.path("state/io.containerd.runtime.v2.task/k8s.io").join(id).join("config.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    };
    let passed = |id: &str| -> Vec<String> {
        let all = spec(id)["annotations"].as_object().unwrap().clone();
        all.into_iter().filter(|(_, value)| value == "value").map(|(key, _)| key).collect()
    };
    let mut pod_config = node.pod("annotated");
    // A star matches no slash, as in Go's path.Match.
    pod_config.annotations = annotations(&["example.com.a", "example.com.a/b", "exact", "exactly", "app.2"]);
    let mut config = sleeper();
    config.annotations = annotations(&["app.1", "app.12", "exact"]);
    for (name, of_pod, of_container) in
        [("annotated", &["exact", "example.com.a"][..], &["app.1", "exact", "example.com.a"][..]), ("", &[], &[])]
    {
        let mut pod_config = pod_config.clone();
        pod_config.metadata.as_mut().unwrap().name = format!("annotated-{name}");
        let pod = client.run_pod_on(name, &pod_config).await.unwrap();
        let app = client.create(&pod, &config, &pod_config).await.unwrap();
        assert_eq!(passed(&pod), of_pod, "the pod of handler {name:?}");
        assert_eq!(passed(&app), of_container, "the container of handler {name:?}");
    }
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_devices_a_privileged_container_has_is_the_handlers_to_say() {
    let mut node = TestNode::prepare().await;
    let without = "privileged_without_host_devices = true";
    node.settings.cri = "device_ownership_from_security_context = true".to_owned()
        + &handler(&node, "without", without, "")
        + &handler(
            &node,
            "allowed",
            &format!("{without}\nprivileged_without_host_devices_all_devices_allowed = true"),
            "",
        );
    node.boot().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    // The kernel's log, which is no device that every container has.
    assert!(Path::new("/dev/kmsg").exists());
    let opens =
        "mknod /tmp/log c 1 11 && dd if=/tmp/log of=/dev/null count=0 2>/dev/null && echo opened || echo refused";
    let script = format!("test -e /dev/kmsg && echo there || echo missing; mkdir -p /tmp; {opens}");
    for (name, expected) in
        [("", "there\nopened\n"), ("without", "missing\nrefused\n"), ("allowed", "missing\nopened\n")]
    {
        let (_, app) = start(&node, name, true, &sleeper()).await;
        assert_eq!(client.output(&app, &["sh", "-c", &script]).await, expected, "handler {name:?}");
    }
    node.remove_all_pods().await;

    let mut config = sleeper();
    let device =
        |at: &str| cri::Device { container_path: at.into(), host_path: "/dev/full".into(), permissions: "rw".into() };
    config.devices = vec![device("/dev/mine")];
    let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
    context.run_as_user = Some(cri::Int64Value { value: 1000 });
    context.run_as_group = Some(cri::Int64Value { value: 2000 });
    let (_, app) = start(&node, "", false, &config).await;
    assert_eq!(client.output(&app, &["stat", "-c", "%u:%g", "/dev/mine"]).await, "1000:2000\n");
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_handler_that_this_host_cannot_run_is_told_and_harms_no_other() {
    let mut node = TestNode::prepare().await;
    let (runtime, shim, data) = (node.path("late-runtime"), node.path("late-shim"), node.path("data"));
    fs::write(&data, "no program").unwrap();
    let named = |path: &Path| format!("BinaryName = {path:?}");
    node.settings.cri = handler(&node, "late", "", &named(&runtime))
        + &handler(&node, "data", "", &named(&data))
        + &handler(&node, "shimless", &format!("runtime_path = {shim:?}"), "")
        + &handler(&node, "systemd", "", "SystemdCgroup = true");
    node.boot().await;
    let client = node.client();
    let systemd = Path::new("/run/systemd/system").is_dir();
    let mut expected = vec![
        ("data", format!("options.BinaryName: OCI runtime {data:?} is not executable")),
        ("late", format!("options.BinaryName: OCI runtime {runtime:?} does not exist")),
        ("shimless", format!("runtime_path: shim {} does not exist", shim.display())),
    ];
    if !systemd {
        let why = "options.SystemdCgroup: systemd does not run on this host; set SystemdCgroup = false";
        expected.push(("systemd", why.to_owned()));
    }
    let (ready, message) = handlers_ready(&client).await;
    assert!(!ready);
    let checked = check(&node.path("config.toml"));
    let checked = String::from_utf8(checked.stdout).unwrap();
    for (name, why) in &expected {
        let whole = format!("runtime handler {name:?} cannot start pods: {why}");
        let refused = client.run_pod_on(name, &node.pod(name)).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        for said in [refused.message(), &message, &checked] {
            assert!(said.contains(&whole), "{whole:?} is not in {said:?}");
        }
    }
    let unknown = client.run_pod_on("nobody", &node.pod("nobody")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::InvalidArgument);
    let text = "no runtime for \"nobody\" is configured; add \
                [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.nobody] to the configuration";
    assert!(unknown.message().contains(text), "{unknown}");
    assert!(unknown.message().ends_with("data, late, runc, shimless, systemd"), "{unknown}");
    assert_eq!(client.pods().await.unwrap(), []);
    node.assert_clean().await;

    // The kubelet's driver is the default handler's.
    let driver = client.runtime.clone().runtime_config(cri::RuntimeConfigRequest {}).await.unwrap().into_inner();
    let expected = if by_systemd() { cri::CgroupDriver::Systemd } else { cri::CgroupDriver::Cgroupfs };
    assert_eq!(driver.linux.unwrap().cgroup_driver(), expected);

    // Installed while the daemon runs.
    client.pull(BUSYBOX).await.unwrap();
    let runc = Command::new("sh").args(["-c", "command -v runc"]).output().unwrap().stdout;
    symlink(String::from_utf8(runc).unwrap().trim(), &runtime).unwrap();
    symlink(binary("containerd-shim-runc-v2"), &shim).unwrap();
    for name in ["late", "shimless", ""] {
        let (_, app) = start(&node, name, false, &sleeper()).await;
        assert_eq!(client.output(&app, &["echo", "works"]).await, "works\n", "{name}");
    }
    let (_, message) = handlers_ready(&client).await;
    assert!(!message.contains("\"late\"") && !message.contains("\"shimless\""), "{message}");
    // A pod outlives its runtime's package, and its removal needs nothing of it while its shim lives.
    node.remove_all_pods().await;
    node.finish().await;
}

/// What a runtime's own `features` says, as far as it counts here.
fn features(runtime: &str) -> cri::RuntimeHandlerFeatures {
    let output = Command::new(runtime).arg("features").output().unwrap();
    let told: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let has = |list: &Value, item: &str| list.as_array().is_some_and(|list| list.iter().any(|one| one == item));
    cri::RuntimeHandlerFeatures {
        recursive_read_only_mounts: has(&told["mountOptions"], "rro"),
        user_namespaces: has(&told["linux"]["namespaces"], "user")
            && told["linux"]["mountExtensions"]["idmap"]["enabled"] == true,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_each_handler_runs_its_own_oci_runtime_and_says_what_that_can_do() {
    let mut node = TestNode::prepare().await;
    let mut runtimes = vec![(String::new(), "runc".to_owned())];
    if Command::new("crun").arg("--version").output().is_ok() {
        runtimes.push(("crun".to_owned(), "crun".to_owned()));
        // Older versions of crun refuse to work where both versions of cgroups are mounted. It is the daemon's view alone
        // that changes.
        if Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists() {
            node.settings.mounts = "umount /sys/fs/cgroup/unified".into();
        }
    } else {
        println!("crun is not installed (it is Debian's package crun)");
    }
    if let Ok(other) = std::env::var("RUNC") {
        runtimes.push(("other".to_owned(), other));
    }
    for (name, runtime) in runtimes.iter().filter(|(name, _)| !name.is_empty()) {
        node.settings.cri += &handler(&node, name, "", &format!("BinaryName = {runtime:?}"));
    }
    node.boot().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let listed = status(&client, false).await.runtime_handlers;
    let names: Vec<&str> = listed.iter().map(|handler| handler.name.as_str()).collect();
    let mut expected: Vec<&str> = runtimes.iter().map(|(name, _)| name.as_str()).chain(["runc"]).collect();
    expected.sort();
    assert_eq!(names, expected);
    for (name, runtime) in &runtimes {
        let told = listed.iter().find(|handler| handler.name == *name).unwrap();
        assert_eq!(told.features, Some(features(runtime)), "handler {name:?} with {runtime}");
        let mut config = sleeper();
        config.linux.get_or_insert_default().resources =
            Some(cri::LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() });
        let (pod, app) = start(&node, name, false, &config).await;
        assert_eq!(
            client.output(&app, &["sh", "-c", "echo $HOSTNAME"]).await.trim(),
            if name.is_empty() { "plain" } else { name }
        );
        // Only the runtime that made the container has its state, each in its own form.
        let state = node.path("runc/k8s.io").join(&app);
        let by_crun = state.join("config.json").exists() || state.join("status").exists();
        assert_eq!((state.is_dir(), by_crun), (true, runtime == "crun"), "{}", state.display());
        let slow = client.exec(&app, &["sleep", "4242"], 1).await.unwrap_err();
        assert_eq!(slow.code(), Code::DeadlineExceeded, "{name}: {slow}");
        client.stop(&app, 0).await.unwrap();
        assert_eq!(client.status(&app).await.unwrap().exit_code, 137, "{name}");
        client.remove(&app).await.unwrap();
        client.stop_pod(&pod).await.unwrap();
        client.remove_pod(&pod).await.unwrap();
    }
    node.finish().await;
}
