//! What the daemon refuses to start on, by name and without touching it.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    process::Command,
};

use windlass_e2e::{
    client::container,
    node::{BUSYBOX, TestNode, binary},
};

/// Starts the daemon with this file; it has to end by itself, and what it said on stderr is the answer.
fn refused(config: &Path) -> String {
    let output =
        Command::new("timeout").arg("20").arg(binary("windlass")).arg("--config").arg(config).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stderr).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_second_daemon_on_the_same_directories_is_refused_and_the_first_goes_on() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let config = node.pod("first");
    let pod = client.run_pod(&config).await.unwrap();
    let id = client.create(&pod, &container("app", BUSYBOX, &["sleep", "1000"]), &config).await.unwrap();
    client.start(&id).await.unwrap();

    // Another socket does not help: recovery would take the first one's pods for those of a daemon that died.
    let text = fs::read_to_string(node.path("config.toml")).unwrap().replace("cri.sock", "other.sock");
    fs::write(node.path("second.toml"), text).unwrap();
    for file in ["config.toml", "second.toml"] {
        let said = refused(&node.path(file));
        assert!(said.contains("another daemon works in"), "{said}");
    }

    assert_eq!(client.output(&id, &["echo", "still here"]).await, "still here\n");
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_root_that_containerd_wrote_is_refused_and_left_as_it_was() {
    let node = TestNode::start().await;
    let theirs = node.path("theirs");
    let database = theirs.join("io.containerd.metadata.v1.bolt/meta.db");
    fs::create_dir_all(database.parent().expect("it has one")).unwrap();
    fs::write(&database, "precious").unwrap();
    let own = node.path("root").display().to_string();
    let text = fs::read_to_string(node.path("config.toml")).unwrap().replace(&own, &theirs.display().to_string());
    fs::write(node.path("theirs.toml"), text.replace("state\"", "state2\"")).unwrap();
    let said = refused(&node.path("theirs.toml"));
    assert!(said.contains(&database.display().to_string()) && said.contains("set another root"), "{said}");
    assert_eq!(fs::read_to_string(&database).unwrap(), "precious");
    assert_eq!(fs::read_dir(&theirs).unwrap().count(), 1, "nothing was added");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_bad_certificate_for_streams_is_told_by_check_and_refused_at_start() {
    let mut node = TestNode::start().await;
    let missing = node.path("missing.crt");
    let text = fs::read_to_string(node.path("config.toml")).unwrap();
    let pair = format!(
        "enable_tls_streaming = true\nx509_key_pair_streaming.tls_cert_file = {missing:?}\n\
         x509_key_pair_streaming.tls_key_file = {missing:?}\nnetns_mounts"
    );
    node.terminate().await;
    let file = node.path("tls.toml");
    fs::write(&file, text.replacen("netns_mounts", &pair, 1)).unwrap();
    let expected = format!("x509_key_pair_streaming.tls_cert_file: read {}: No such file", missing.display());
    let checked = Command::new(binary("windlass")).args(["config", "check", "--config"]).arg(&file).output().unwrap();
    let said = String::from_utf8(checked.stderr).unwrap();
    assert_eq!(checked.status.code(), Some(1));
    assert!(said.contains(&expected), "{said}");
    let said = refused(&file);
    assert!(said.contains(&expected), "{said}");
    node.boot().await;
    node.finish().await;
}

/// Whoever else is on the node reaches nothing of a pod by the paths that a process list shows: CVE-2021-41103 and 2024-25621.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_v_c20_nothing_of_a_pod_can_be_reached_by_others_whatever_the_modes_were_before() {
    let mut node = TestNode::prepare().await;
    let (root, state) = (node.path("root"), node.path("state"));
    let of_pods = state.join("io.containerd.grpc.v1.cri");
    fs::create_dir(&of_pods).unwrap();
    for path in [&root, &state, &of_pods] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
    }
    node.boot().await;
    let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o7777;
    assert_eq!([&root, &state, &of_pods].map(|path| mode(path)), [0o700, 0o711, 0o700]);
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let config = node.pod("closed");
    let pod = client.run_pod(&config).await.unwrap();
    let app = client.create(&pod, &container("app", BUSYBOX, &["sleep", "1000"]), &config).await.unwrap();
    client.start(&app).await.unwrap();
    let mounts = node.leakcheck.mount_points();
    let mut seen = 0;
    for mount in mounts.iter().filter(|mount| !mount.starts_with(state.join("netns"))) {
        let above = mount.ancestors().skip(1).take_while(|path| path.starts_with(&root) || path.starts_with(&state));
        let closed = { above }.any(|path| mode(path) & 0o007 == 0);
        assert!(closed, "{} can be reached by everybody", mount.display());
        seen += 1;
    }
    assert!(seen >= 3, "two root file systems and the shared memory: {mounts:?}");
    node.remove_all_pods().await;
    node.finish().await;
}

/// A shim lives longer than the daemon, and a lock or a pipe that it held would not be let go.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_shims_get_nothing_of_what_the_daemon_was_started_with() {
    let mut node = TestNode::prepare().await;
    let path = node.path("lock");
    let held = fs::File::create(&path).unwrap();
    rustix::io::fcntl_setfd(&held, rustix::io::FdFlags::empty()).unwrap();
    node.boot().await;
    drop(held);
    let client = node.client();
    let pod = client.run_pod(&node.pod("heir")).await.unwrap();
    let (mut daemons, mut others) = (0, 0);
    for (pid, command) in node.leakcheck.processes() {
        let Ok(descriptors) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        let holds = descriptors.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok()).any(|target| target == path);
        if command.contains("--config") {
            daemons += usize::from(holds);
        } else {
            assert!(!holds, "{command} holds what the daemon was started with");
            others += 1;
        }
    }
    assert_eq!(daemons, 1, "the daemon was started with nothing");
    assert!(others > 0, "the pod has no shim");
    client.stop_pod(&pod).await.unwrap();
    client.remove_pod(&pod).await.unwrap();
    node.finish().await;
}
