//! Pods on containerd's own shim: everything that ours does by itself, the daemon does through FIFOs.
//!
//! `WINDLASS_STOCK_SHIM` names another one than that of Debian's containerd package.

use std::{fs, path::Path};

use api::cri::{self, ContainerState, PodSandboxState};
use windlass_e2e::{
    client::{container, program},
    crilog::LogLine,
    node::{BUSYBOX, PROBE, TestNode},
    wait::{self, SOON},
};

/// A node whose default handler has the stock shim; `None` where there is none.
async fn node() -> Option<TestNode> {
    let shim = std::env::var("WINDLASS_STOCK_SHIM").unwrap_or_else(|_| "/usr/bin/containerd-shim-runc-v2".into());
    if !Path::new(&shim).exists() {
        println!("skipped: {shim} is not installed (it is in Debian's containerd package)");
        return None;
    }
    let mut node = TestNode::prepare().await;
    node.settings.shim = shim;
    node.boot().await;
    Some(node)
}

/// The node's processes whose command line has `text`.
fn processes(node: &TestNode, text: &str) -> Vec<String> {
    node.leakcheck.processes().into_iter().map(|(_, what)| what).filter(|what| what.contains(text)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pod_lives_its_life_on_a_stock_shim() {
    let Some(node) = node().await else { return };
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("stock");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let ours = processes(&node, &node.settings.shim);
    assert_eq!(ours.len(), 1, "{ours:?}");
    let script = "echo out; echo err >&2; printf 'no newline'; exec sleep 1000";
    let app = client.create(&pod, &container("app", BUSYBOX, &["sh", "-c", script]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    assert_eq!(processes(&node, &node.settings.shim).len(), 1, "a pod has one shim");

    let answer = client.exec(&app, &["sh", "-c", "echo a; echo b >&2; exit 5"], 0).await.unwrap();
    assert_eq!((answer.stdout, answer.stderr, answer.exit_code), (b"a\n".to_vec(), b"b\n".to_vec(), 5));
    let slow = client.exec(&app, &["sh", "-c", "sleep 4242 & sleep 4242"], 1).await.unwrap_err();
    assert_eq!(slow.code(), tonic::Code::DeadlineExceeded, "{slow}");
    assert_eq!(processes(&node, "sleep 4242"), Vec::<String>::new());
    let missing = client.exec(&app, &["/no/such/program"], 0).await.unwrap_err();
    assert!(missing.message().contains("/no/such/program"), "{missing}");

    client.stop(&app, 0).await.unwrap();
    let ended = client.status(&app).await.unwrap();
    assert_eq!((ended.state(), ended.exit_code), (ContainerState::ContainerExited, 137));
    let mut logged = node.log_of("stock", "app");
    logged.sort_by(|one, other| one.text.cmp(&other.text));
    let texts: Vec<(&str, &str)> = logged.iter().map(|line| (line.stream.as_str(), line.text.as_str())).collect();
    assert_eq!(texts, [("stderr", "err"), ("stdout", "no newline"), ("stdout", "out")]);
    // The shim never hears of a container that is not started, and cannot clean up after it.
    client.create(&pod, &container("idle", BUSYBOX, &["true"]), &pod_config).await.unwrap();
    client.stop_pod(&pod).await.unwrap();
    client.remove_pod(&pod).await.unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_a_container_writes_without_a_daemon_is_logged_by_the_next_one() {
    let Some(mut node) = node().await else { return };
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    client.pull(PROBE).await.unwrap();
    let pod_config = node.pod("stock");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let signals = node.path("signals");
    fs::create_dir(&signals).unwrap();
    let script = "i=0; while true; do \
                  if [ -e /signals/$i ]; then echo line $i; touch /signals/done-$i; i=$((i+1)); fi; sleep 0.02; done";
    let mut config = container("app", BUSYBOX, &["sh", "-c", script]);
    let mount = cri::Mount {
        container_path: "/signals".into(),
        host_path: signals.to_str().unwrap().into(),
        ..cri::Mount::default()
    };
    config.mounts.push(mount.clone());
    let app = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    let mut config = program("ends", PROBE, &["wait", "/signals/end", "42"]);
    config.mounts.push(mount);
    let ends = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&ends).await.unwrap();
    let before = client.status(&app).await.unwrap();
    let told = async |n: usize| {
        fs::write(signals.join(n.to_string()), "").unwrap();
        wait::until_ok("the container writes", SOON, || {
            if signals.join(format!("done-{n}")).exists() { Ok(()) } else { Err(format!("line {n} is not written")) }
        })
        .await;
    };
    let expect = async |node: &TestNode, count: usize| {
        let expected: Vec<LogLine> = (0..count).map(|n| LogLine::new("stdout", &format!("line {n}"))).collect();
        wait::until_ok("the lines are logged", SOON, || match node.log_of("stock", "app") {
            lines if lines == expected => Ok(()),
            lines => Err(format!("{lines:?}")),
        })
        .await;
    };
    told(0).await;
    expect(&node, 1).await;
    let process = node.first_process(&ends);

    node.kill9();
    told(1).await;
    told(2).await;
    fs::write(signals.join("end"), "").unwrap();
    wait::until_ok("the other container ends", SOON, || {
        if fs::exists(format!("/proc/{process}")).unwrap() { Err("it runs".to_owned()) } else { Ok(()) }
    })
    .await;
    node.boot().await;
    let client = node.client();
    assert_eq!(client.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxReady);
    assert_eq!(client.status(&app).await.unwrap(), before);
    let ended = client.status(&ends).await.unwrap();
    assert_eq!((ended.state(), ended.exit_code), (ContainerState::ContainerExited, 42));
    expect(&node, 3).await;

    // An orderly end of the daemon, and a log that is rotated after it.
    node.terminate().await;
    told(3).await;
    node.boot().await;
    let client = node.client();
    expect(&node, 4).await;
    let log = node.path("logs").join("stock/app.log");
    fs::rename(&log, log.with_extension("1")).unwrap();
    client.reopen_log(&app).await.unwrap();
    told(4).await;
    wait::until_ok("the new file has the line", SOON, || match node.log_of("stock", "app") {
        lines if lines == [LogLine::new("stdout", "line 4")] => Ok(()),
        lines => Err(format!("{lines:?}")),
    })
    .await;
    assert_eq!(client.output(&app, &["echo", "still here"]).await, "still here\n");
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_container_that_runs_out_of_memory_says_so_on_a_stock_shim() {
    let Some(node) = node().await else { return };
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("stock");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let mut config = container("greedy", BUSYBOX, &["tail", "/dev/zero"]);
    let resources = cri::LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..Default::default() };
    config.linux.get_or_insert_default().resources = Some(resources);
    let greedy = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&greedy).await.unwrap();
    let ended = client.exited(&greedy).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (137, "OOMKilled"));
    node.remove_all_pods().await;
    node.finish().await;
}
