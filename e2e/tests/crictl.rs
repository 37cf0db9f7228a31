//! The real crictl drives the daemon through a pod's life, and follows what goes on in it.

use std::{
    fs::{self, File},
    process::Stdio,
};

use serde_json::json;
use windlass_e2e::{
    crictl::{Crictl, container_file, pod_file},
    locked::{LockedRegistry, PASSWORD, USER},
    node::{BUSYBOX, PROBE, TestNode},
    wait::{self, SOON},
};

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
    // More than any buffer on the way holds.
    let output = crictl.fed(&["exec", "-i", &app, "wc", "-c"], &vec![b'x'; 1 << 20]);
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
    let follow = crictl.command(&["logs", "-f", &app]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
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
    let attached = crictl.command(&["attach", &app]).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
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
    let mut events =
        crictl.command(&["events"]).stdout(File::create(&shown).unwrap()).stderr(Stdio::null()).spawn().unwrap();
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

#[tokio::test(flavor = "multi_thread")]
async fn privileged_crictl_pulls_from_a_locked_registry_with_credentials_only() {
    let node = TestNode::start().await;
    let locked = LockedRegistry::beside(node.registry);
    locked.configure(&node, "private.example", "ca = \"authority.pem\"\n");
    let (crictl, image) = (Crictl::of(&node), "private.example/library/busybox:1");
    let refused = crictl.answer(&["pull", image]);
    assert_ne!(refused.code, Some(0));
    assert!(refused.stderr.contains("pull access denied"), "{}", refused.stderr);
    crictl.run(&["pull", "--creds", &format!("{USER}:{PASSWORD}"), image]);
    assert_eq!(crictl.json(&["inspecti", "-o", "json", image])["status"]["repoTags"], json!([image]));
    node.finish().await;
}
