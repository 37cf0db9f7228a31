//! Pods on containerd's own shim: everything that ours does by itself, the daemon does through FIFOs.
//!
//! `WINDLASS_STOCK_SHIM` names another one than that of Debian's containerd package.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::{fs, path::Path};

use api::cri::{self, ContainerState, PodSandboxState};
use windlass_e2e::{
    client::{Client, container, program},
    crilog::LogLine,
    node::{BUSYBOX, PROBE, TestNode, by_systemd},
    streams::{Channels, SUCCESS, Spdy},
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
    // It reads the counter of the container's own cgroup, which systemd removes with the last process. Ours asks the pod's too.
    if by_systemd() {
        eprintln!("left out: a stock shim does not always see the kill in a scope of systemd's");
        return;
    }
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

/// The URL for an attach with stdin and stdout.
async fn attach(client: &Client, id: &str, tty: bool) -> String {
    let request = cri::AttachRequest { container_id: id.into(), stdin: true, stdout: true, tty, stderr: false };
    client.runtime.clone().attach(request).await.unwrap().into_inner().url
}

/// The same for an exec, which has a stderr as well if it has no terminal.
async fn exec(client: &Client, id: &str, command: &[&str], tty: bool) -> String {
    let cmd = command.iter().map(|&word| word.to_owned()).collect();
    let request = cri::ExecRequest { container_id: id.into(), cmd, tty, stdin: true, stdout: true, stderr: !tty };
    client.runtime.clone().exec(request).await.unwrap().into_inner().url
}

/// Opens the streams in this order and gives their ids.
async fn open<const N: usize>(spdy: &mut Spdy, kinds: [&str; N]) -> [u32; N] {
    let mut ids = [0; N];
    for (id, kind) in ids.iter_mut().zip(kinds) {
        *id = spdy.open(kind).await;
    }
    ids
}

/// Reads on until a stream has said this much.
async fn hear(spdy: &mut Spdy, id: u32, text: &str) {
    let mut heard = String::new();
    while !heard.contains(text) {
        let (stream, data) = spdy.next().await.unwrap_or_else(|| panic!("the end came after {heard:?}"));
        if stream == id {
            heard.push_str(&String::from_utf8_lossy(&data));
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_who_attaches_to_a_stock_shim_is_heard_and_may_end_its_input() {
    let Some(node) = node().await else { return };
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("stock");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let mut config = container("once", BUSYBOX, &["sh", "-c", "cat; echo the end; exit 4"]);
    (config.stdin, config.stdin_once) = (true, true);
    let once = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&once).await.unwrap();
    let mut spdy = Spdy::connect(&attach(&client, &once, false).await).await;
    let [error, stdin, stdout] = open(&mut spdy, ["error", "stdin", "stdout"]).await;
    spdy.data(stdin, b"hello\n", false).await;
    hear(&mut spdy, stdout, "hello\n").await;
    // The log is another file after a rotation, and who is attached notices nothing.
    let log = node.path("logs").join("stock/once.log");
    wait::until_ok("the line is logged", SOON, || match node.log_of("stock", "once") {
        lines if lines == [LogLine::new("stdout", "hello")] => Ok(()),
        lines => Err(format!("{lines:?}")),
    })
    .await;
    fs::rename(&log, log.with_extension("1")).unwrap();
    client.reopen_log(&once).await.unwrap();
    spdy.data(stdin, b"again\n", false).await;
    hear(&mut spdy, stdout, "again\n").await;
    spdy.data(stdin, b"", true).await;
    let heard = spdy.rest().await;
    assert_eq!((heard[&stdout].as_slice(), heard[&error].as_slice()), (&b"the end\n"[..], SUCCESS));
    assert_eq!(client.exited(&once).await.exit_code, 4);
    let logged = ["again", "the end"].map(|text| LogLine::new("stdout", text));
    assert_eq!(node.log_of("stock", "once"), logged);

    // Without stdin_once the input goes on for whoever comes next.
    let mut config = container("lasting", BUSYBOX, &["cat"]);
    config.stdin = true;
    let lasting = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&lasting).await.unwrap();
    for word in ["first\n", "second\n"] {
        let mut channels = Channels::connect(&attach(&client, &lasting, false).await, "v5.channel.k8s.io").await;
        channels.send(0, word.as_bytes()).await;
        let mut heard = Vec::new();
        while !heard.ends_with(word.as_bytes()) {
            heard.extend(channels.next().await.expect("the container runs").1);
        }
        // Closed by a message, and then by its leaving.
        channels.send(255, &[0]).await;
    }
    // The log is written beside what is attached, not before it.
    let both = ["first", "second"].map(|text| LogLine::new("stdout", text));
    wait::until_ok("both lines are logged", SOON, || match node.log_of("stock", "lasting") {
        lines if lines == both => Ok(()),
        lines => Err(format!("{lines:?}")),
    })
    .await;
    assert_eq!(client.status(&lasting).await.unwrap().state(), ContainerState::ContainerRunning);
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_execs_on_a_stock_shim_take_input_to_its_end_and_tell_their_exit() {
    let Some(node) = node().await else { return };
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("stock");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &container("app", BUSYBOX, &["sleep", "1000"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    // More than the FIFO holds, both ways.
    let input: Vec<u8> = (0..300_000u32).map(|n| b'a' + (n % 26) as u8).collect();
    let command = ["sh", "-c", "cat; echo done >&2; exit 3"];

    let mut spdy = Spdy::connect(&exec(&client, &app, &command, false).await).await;
    let [error, stdin, stdout, stderr] = open(&mut spdy, ["error", "stdin", "stdout", "stderr"]).await;
    let mut back = Vec::new();
    for part in input.chunks(30_000) {
        spdy.data(stdin, part, false).await;
        // What comes back is read between: a client that only writes waits for itself.
        while back.len() + 10_000 < part.len() {
            let (stream, data) = spdy.next().await.expect("it has not ended");
            assert_eq!(stream, stdout);
            back.extend(data);
        }
    }
    spdy.data(stdin, b"", true).await;
    let heard = spdy.rest().await;
    back.extend(&heard[&stdout]);
    assert!(back == input, "{} bytes came back of {}", back.len(), input.len());
    assert_eq!(heard[&stderr], b"done\n");
    let told: serde_json::Value = serde_json::from_slice(&heard[&error]).unwrap();
    assert_eq!((&told["reason"], &told["details"]["causes"][0]["message"]), (&"NonZeroExitCode".into(), &"3".into()));

    let mut channels = Channels::connect(&exec(&client, &app, &command, false).await, "v5.channel.k8s.io").await;
    channels.send(0, b"by WebSocket").await;
    channels.send(255, &[0]).await;
    let heard = channels.rest().await;
    assert_eq!((heard[&1].as_slice(), heard[&2].as_slice()), (&b"by WebSocket"[..], &b"done\n"[..]));
    let told: serde_json::Value = serde_json::from_slice(&heard[&3]).unwrap();
    assert_eq!(told["details"]["causes"][0]["message"], "3");

    let bundle = node.path("state/io.containerd.runtime.v2.task/k8s.io").join(&app);
    wait::until_ok("the execs' files are gone", SOON, || {
        let names = fs::read_dir(&bundle).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let left: Vec<String> = names.filter(|name| name.starts_with(".exec")).collect();
        if left.is_empty() { Ok(()) } else { Err(format!("{left:?}")) }
    })
    .await;
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_terminals_on_a_stock_shim_have_the_size_of_their_client() {
    let Some(node) = node().await else { return };
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("stock");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let mut config = container("shell", BUSYBOX, &["sh"]);
    (config.stdin, config.tty) = (true, true);
    let shell = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&shell).await.unwrap();

    let mut spdy = Spdy::connect(&attach(&client, &shell, true).await).await;
    let [_, stdin, stdout, resize] = open(&mut spdy, ["error", "stdin", "stdout", "resize"]).await;
    for (width, height) in [(101, 41), (102, 42)] {
        let size = format!("{{\"Width\":{width},\"Height\":{height}}}");
        spdy.data(resize, size.as_bytes(), false).await;
        // The streams are independent, so the size may come after what asks for it.
        let ask =
            format!("until stty size 2>/dev/null | grep -x '{height} {width}'; do sleep 0.05; done; echo it''is\n");
        spdy.data(stdin, ask.as_bytes(), false).await;
        hear(&mut spdy, stdout, "itis").await;
    }
    drop(spdy);

    let command = ["sh", "-c", "until stty size 2>/dev/null | grep -x '43 103'; do sleep 0.05; done; exit 5"];
    let mut channels = Channels::connect(&exec(&client, &shell, &command, true).await, "v5.channel.k8s.io").await;
    channels.send(4, br#"{"Width":103,"Height":43}"#).await;
    let heard = channels.rest().await;
    assert_eq!(String::from_utf8_lossy(&heard[&1]), "43 103\r\n");
    let told: serde_json::Value = serde_json::from_slice(&heard[&3]).unwrap();
    assert_eq!(told["details"]["causes"][0]["message"], "5");
    let answer = client.exec(&shell, &["echo", "beside it"], 0).await.unwrap();
    assert_eq!((answer.stdout.as_slice(), answer.exit_code), (&b"beside it\n"[..], 0));
    // A terminal has one output, and all of it is in the log.
    let logged = node.log_of("stock", "shell");
    assert!(logged.iter().all(|line| line.stream == "stdout"), "{logged:?}");
    assert!(logged.iter().any(|line| line.text.trim_end() == "42 102"), "{logged:?}");
    node.remove_all_pods().await;
    node.finish().await;
}
