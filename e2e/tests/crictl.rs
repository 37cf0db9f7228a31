//! The real crictl drives the daemon with no flag but the endpoint. `CRICTL` names the binary; else it is on `PATH`.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::{
    ffi::CStr,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use serde_json::{Value, json};
use windlass_e2e::{
    command::{self, Answer},
    node::{BUSYBOX, PROBE, TestNode},
    wait::{self, SOON},
};

fn binary() -> String {
    std::env::var("CRICTL").unwrap_or_else(|_| "crictl".into())
}

/// crictl of one node.
struct Crictl {
    endpoint: String,
}

impl Crictl {
    fn of(node: &TestNode) -> Crictl {
        Crictl { endpoint: node.endpoint() }
    }

    fn answer(&self, arguments: &[&str]) -> Answer {
        command::answer(&binary(), &[&["--runtime-endpoint", self.endpoint.as_str()][..], arguments].concat())
    }

    /// The output of a command that has to succeed.
    fn run(&self, arguments: &[&str]) -> String {
        command::run(&binary(), &[&["--runtime-endpoint", self.endpoint.as_str()][..], arguments].concat())
    }

    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(arguments)).unwrap()
    }

    /// Runs a command on a terminal, types `input` there once `prompt` was printed, and gives what was printed and the exit code.
    fn on_a_terminal(&self, arguments: &[&str], prompt: &str, input: &str) -> (String, Option<i32>) {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let side = open_side(&name);
        let mut child = Command::new(binary())
            .args(["--runtime-endpoint", &self.endpoint])
            .args(arguments)
            .stdin(Stdio::from(side.try_clone().unwrap()))
            .stdout(Stdio::from(side.try_clone().unwrap()))
            .stderr(Stdio::from(side))
            .spawn()
            .unwrap();
        let mut terminal = File::from(terminal);
        let (mut printed, mut typed) = (String::new(), false);
        let end = Instant::now() + Duration::from_secs(60);
        loop {
            if !typed && printed.contains(prompt) {
                terminal.write_all(input.as_bytes()).unwrap();
                typed = true;
            }
            if !readable(&terminal) {
                if child.try_wait().unwrap().is_some() {
                    break;
                }
                if Instant::now() > end {
                    child.kill().unwrap();
                    printed.push_str("\n(did not end, and was killed)");
                    break;
                }
                continue;
            }
            let mut buffer = [0; 4096];
            // EIO: the last process has closed its side.
            let length = terminal.read(&mut buffer).unwrap_or(0);
            if length == 0 {
                break;
            }
            printed.push_str(&String::from_utf8_lossy(&buffer[..length]));
        }
        // A killed one has no exit code, which no caller expects.
        (printed, child.wait().unwrap().code())
    }
}

fn open_side(name: &CStr) -> File {
    use std::os::unix::fs::OpenOptionsExt;
    let flags = i32::try_from(OFlags::NOCTTY.bits()).unwrap();
    OpenOptions::new().read(true).write(true).custom_flags(flags).open(name.to_str().unwrap()).unwrap()
}

/// Whether there is output within a tenth of a second.
fn readable(terminal: &File) -> bool {
    let mut fds = [PollFd::new(terminal, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: 0, tv_nsec: 100_000_000 })).unwrap() > 0
}

fn write(path: &Path, value: &Value) -> String {
    fs::write(path, serde_json::to_vec_pretty(value).unwrap()).unwrap();
    path.to_str().unwrap().to_owned()
}

fn pod_file(node: &TestNode, name: &str) -> String {
    let config = json!({
        "metadata": {"name": name, "uid": format!("uid-{name}"), "namespace": "default", "attempt": 0},
        "log_directory": node.path("logs"),
        "linux": {"cgroup_parent": format!("/{}", node.leakcheck.cgroup_parent)},
    });
    write(&node.path("pod.json"), &config)
}

fn container_file(node: &TestNode, name: &str, image: &str, command: &[&str]) -> String {
    let config = json!({
        "metadata": {"name": name, "attempt": 0},
        "image": {"image": image},
        "command": command,
        "log_path": format!("{name}.log"),
    });
    write(&node.path(&format!("{name}.json")), &config)
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_crictl_drives_a_pod_through_its_whole_life() {
    let node = TestNode::start().await;
    let crictl = Crictl::of(&node);
    assert!(crictl.run(&["version"]).contains("RuntimeApiVersion:  v1"));
    assert_eq!(crictl.json(&["info"])["status"]["conditions"][1]["status"], true);

    assert!(crictl.run(&["pull", BUSYBOX]).contains(&node.registry.busybox.id));
    let images = crictl.json(&["images", "-o", "json"]);
    assert_eq!(images["images"][0]["repoTags"], json!([BUSYBOX]));
    assert!(crictl.run(&["images"]).contains("docker.io/library/busybox"));

    let pod_config = pod_file(&node, "driven");
    let pod = crictl.run(&["runp", &pod_config]).trim().to_owned();
    assert_eq!(crictl.run(&["pods", "-q"]).trim(), pod);
    let inspected = crictl.json(&["inspectp", &pod]);
    assert_eq!(inspected["status"]["state"], "SANDBOX_READY");
    assert_eq!(inspected["status"]["metadata"]["name"], "driven");
    assert!(inspected["info"]["pid"].as_i64().unwrap() > 1, "{}", inspected["info"]);

    let app_config = container_file(&node, "app", BUSYBOX, &["sh", "-c", "echo from the start; exec sleep 1000"]);
    let app = crictl.run(&["create", &pod, &app_config, &pod_config]).trim().to_owned();
    assert_eq!(crictl.run(&["start", &app]).trim(), app);
    assert_eq!(crictl.run(&["ps", "-q"]).trim(), app);
    let table = crictl.run(&["ps"]);
    assert!(table.contains("Running") && table.contains("app") && table.contains(&pod[..13]), "{table}");
    let inspected = crictl.json(&["inspect", &app]);
    assert_eq!(inspected["status"]["state"], "CONTAINER_RUNNING");
    assert_eq!(inspected["status"]["metadata"]["name"], "app");
    assert!(inspected["info"]["pid"].as_i64().unwrap() > 1, "{}", inspected["info"]);
    assert!(inspected["info"]["runtimeSpec"]["process"].is_object(), "{}", inspected["info"]);

    crictl.run(&["update", "--memory", &(64 << 20).to_string(), "--cpu-share", "512", &app]);
    let inspected = crictl.json(&["inspect", &app]);
    assert_eq!(inspected["status"]["resources"]["linux"]["memoryLimitInBytes"], (64 << 20).to_string());
    assert_eq!(inspected["status"]["resources"]["linux"]["cpuShares"], "512");
    // The one of cgroup v2, else that of v1.
    let limit = "cd /sys/fs/cgroup; cat memory.max 2>/dev/null || cat memory/memory.limit_in_bytes";
    assert_eq!(crictl.run(&["exec", "-s", &app, "sh", "-c", limit]).trim(), (64 << 20).to_string());
    let refused = crictl.answer(&["update", "--memory", &(32 << 20).to_string(), "--cpuset-cpus", "99999", &app]);
    assert_ne!(refused.code, Some(0), "no kernel knows so many processors: {refused:?}");
    assert_eq!(crictl.run(&["exec", "-s", &app, "sh", "-c", limit]).trim(), (64 << 20).to_string());
    let inspected = crictl.json(&["inspect", &app]);
    assert_eq!(inspected["status"]["resources"]["linux"]["memoryLimitInBytes"], (64 << 20).to_string());
    assert_eq!(inspected["status"]["resources"]["linux"]["cpusetCpus"], "");

    wait::until_ok("crictl logs shows the first line", SOON, || match crictl.run(&["logs", &app]) {
        text if text == "from the start\n" => Ok(()),
        text => Err(text),
    })
    .await;
    assert_eq!(crictl.run(&["exec", &app, "cat", "/etc/group"]), "root:x:0:\nnogroup:x:65534:\n");
    assert_eq!(crictl.run(&["exec", "-s", &app, "echo", "sync"]).trim(), "sync");
    let failed = crictl.answer(&["exec", &app, "sh", "-c", "echo out; echo err >&2; exit 3"]);
    assert_ne!(failed.code, Some(0));
    assert!(failed.stdout.contains("out") && failed.stderr.contains("err"), "{failed:?}");
    assert!(failed.stderr.contains("exit code 3") || failed.stderr.contains("exit status 3"), "{failed:?}");

    assert_eq!(crictl.run(&["stop", "-t", "0", &app]).trim(), app);
    assert_eq!(crictl.json(&["inspect", &app])["status"]["state"], "CONTAINER_EXITED");
    crictl.run(&["rm", &app]);
    assert_eq!(crictl.run(&["ps", "-a", "-q"]), "");
    crictl.run(&["stopp", &pod]);
    assert_eq!(crictl.json(&["inspectp", &pod])["status"]["state"], "SANDBOX_NOTREADY");
    crictl.run(&["rmp", &pod]);
    assert_eq!(crictl.run(&["pods", "-q"]), "");
    crictl.run(&["rmi", BUSYBOX]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_exec_on_a_terminal_takes_input_and_is_a_terminal_inside() {
    let node = TestNode::start().await;
    let crictl = Crictl::of(&node);
    crictl.run(&["pull", BUSYBOX]);
    let pod_config = pod_file(&node, "terminal");
    let pod = crictl.run(&["runp", &pod_config]).trim().to_owned();
    let app_config = container_file(&node, "app", BUSYBOX, &["sleep", "1000"]);
    let app = crictl.run(&["create", &pod, &app_config, &pod_config]).trim().to_owned();
    crictl.run(&["start", &app]);
    let (printed, code) =
        crictl.on_a_terminal(&["exec", "-it", &app, "sh"], "/ #", "tty && echo $((40 + 2)); exit 0\r");
    assert!(printed.contains("/dev/pts/0"), "{printed:?}");
    assert!(printed.contains("\r\n42\r\n"), "{printed:?}");
    assert_eq!(code, Some(0), "{printed:?}");
    let (printed, code) = crictl.on_a_terminal(&["exec", "-it", &app, "sh"], "/ #", "exit 5\r");
    assert_ne!(code, Some(0), "{printed:?}");
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_exec_with_input_from_a_pipe_gets_all_of_it_and_its_end() {
    let node = TestNode::start().await;
    let crictl = Crictl::of(&node);
    crictl.run(&["pull", BUSYBOX]);
    let pod_config = pod_file(&node, "piped");
    let pod = crictl.run(&["runp", &pod_config]).trim().to_owned();
    let app_config = container_file(&node, "app", BUSYBOX, &["sleep", "1000"]);
    let app = crictl.run(&["create", &pod, &app_config, &pod_config]).trim().to_owned();
    crictl.run(&["start", &app]);
    let mut child = Command::new(binary())
        .args(["--runtime-endpoint", &node.endpoint(), "exec", "-i", &app, "wc", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    // More than any buffer on the way holds.
    child.stdin.take().unwrap().write_all(&vec![b'x'; 1 << 20]).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap().trim(), (1 << 20).to_string());
    assert!(output.status.success());
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_logs_can_be_followed_to_the_end_of_the_container() {
    let node = TestNode::start().await;
    let crictl = Crictl::of(&node);
    crictl.run(&["pull", PROBE]);
    let pod_config = pod_file(&node, "followed");
    let pod = crictl.run(&["runp", &pod_config]).trim().to_owned();
    let app_config = container_file(&node, "app", PROBE, &["/probe", "count"]);
    let app = crictl.run(&["create", &pod, &app_config, &pod_config]).trim().to_owned();
    crictl.run(&["start", &app]);
    let follow = Command::new(binary())
        .args(["--runtime-endpoint", &node.endpoint(), "logs", "-f", &app])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait::until_ok("five lines are logged", SOON, || {
        let lines = windlass_e2e::crilog::read(&node.path("logs/app.log")).len();
        if lines >= 5 { Ok(()) } else { Err(format!("{lines}")) }
    })
    .await;
    crictl.run(&["stop", &app]);
    let text = String::from_utf8(follow.wait_with_output().unwrap().stdout).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    let expected: Vec<String> = (1..=lines.len()).map(|number| number.to_string()).collect();
    assert_eq!(lines, expected);
    assert!(lines.len() >= 5, "{text}");
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_attach_shows_what_the_container_prints_from_then_on() {
    let node = TestNode::start().await;
    let crictl = Crictl::of(&node);
    crictl.run(&["pull", PROBE]);
    let pod_config = pod_file(&node, "attached");
    let pod = crictl.run(&["runp", &pod_config]).trim().to_owned();
    let app_config = container_file(&node, "app", PROBE, &["/probe", "count"]);
    let app = crictl.run(&["create", &pod, &app_config, &pod_config]).trim().to_owned();
    crictl.run(&["start", &app]);
    let attached = Command::new(binary())
        .args(["--runtime-endpoint", &node.endpoint(), "attach", &app])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    wait::until_ok("ten lines are logged", SOON, || {
        let lines = windlass_e2e::crilog::read(&node.path("logs/app.log")).len();
        if lines >= 10 { Ok(()) } else { Err(format!("{lines}")) }
    })
    .await;
    crictl.run(&["stop", &app]);
    let text = String::from_utf8(attached.wait_with_output().unwrap().stdout).unwrap();
    let numbers: Vec<u32> = text.lines().map(|line| line.parse().unwrap()).collect();
    assert!(!numbers.is_empty());
    assert!(numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_events_show_containers_come_and_go() {
    let node = TestNode::start().await;
    let crictl = Crictl::of(&node);
    crictl.run(&["pull", BUSYBOX]);
    let pod_config = pod_file(&node, "heard");
    let pod = crictl.run(&["runp", &pod_config]).trim().to_owned();
    let app_config = container_file(&node, "app", BUSYBOX, &["sleep", "1000"]);
    let shown = node.path("events");
    let mut events = Command::new(binary())
        .args(["--runtime-endpoint", &crictl.endpoint, "events"])
        .stdout(File::create(&shown).unwrap())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // crictl does not say when it listens, so one container comes and goes until one has been seen.
    let seen = wait::until_ok("crictl shows a container that comes and goes", SOON, || {
        let app = crictl.run(&["create", &pod, &app_config, &pod_config]).trim().to_owned();
        crictl.run(&["rm", &app]);
        let text = fs::read_to_string(&shown).unwrap();
        let whole = text.contains("CONTAINER_CREATED_EVENT") && text.contains("CONTAINER_DELETED_EVENT");
        if whole { Ok(text) } else { Err(text) }
    })
    .await;
    events.kill().unwrap();
    events.wait().unwrap();
    assert!(seen.contains(&pod), "the pod's status is in its containers' events: {seen}");
    crictl.run(&["rmp", "-f", &pod]);
    node.finish().await;
}
