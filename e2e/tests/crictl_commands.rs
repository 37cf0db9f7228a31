//! Every other command of the real crictl, in its forms: what it shows is what there is.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    process::{Child, Stdio},
    thread,
};

use serde_json::{Value, json};
use windlass_e2e::{
    crictl::{Crictl, container_file, pod_file, write},
    crilog,
    node::{BUSYBOX, PAUSE, TestNode},
    wait::{self, SOON},
};

/// A pod and a container in it that runs this.
fn running(node: &TestNode, crictl: &Crictl, command: &[&str]) -> (String, String) {
    crictl.run(&["pull", BUSYBOX]);
    let pod_config = pod_file(node, "commanded");
    let pod = crictl.run(&["runp", &pod_config]).trim().to_owned();
    let app_config = container_file(node, "app", BUSYBOX, command);
    let app = crictl.run(&["create", &pod, &app_config, &pod_config]).trim().to_owned();
    crictl.run(&["start", &app]);
    (pod, app)
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_the_node_and_its_images_are_shown() {
    let node = TestNode::start().await;
    let crictl = Crictl::of(&node);
    let version = crictl.run(&["version"]);
    assert!(version.contains("RuntimeName:  containerd") && version.contains("RuntimeApiVersion:  v1"), "{version}");
    let info = crictl.json(&["info"]);
    assert_eq!(info["status"]["conditions"][0]["type"], "RuntimeReady");
    // Under containerd 1's name, and under containerd 2's.
    let line = |name: &str| info["config"][name].as_u64().unwrap();
    assert_eq!((line("maxContainerLogSize"), line("maxContainerLogLineSize")), (16384, 16384));
    assert_eq!(info["config"]["enableSelinux"], false);
    assert_eq!(crictl.json(&["info", "-q"])["config"], Value::Null);
    let driver = crictl.run(&["runtime-config"]);
    assert!(driver.contains("CGROUPFS"), "{driver}");
    crictl.run(&["update-runtime-config", "--pod-cidr", "10.1.0.0/16"]);

    // Its own configuration, which no daemon sees.
    let own = node.path("crictl.yaml").display().to_string();
    fs::write(&own, "").unwrap();
    crictl.run(&["--config", &own, "config", "--set", "debug=true"]);
    assert_eq!(crictl.run(&["--config", &own, "config", "--get", "debug"]).trim(), "true");

    crictl.run(&["pull", BUSYBOX]);
    crictl.run(&["pull", PAUSE]);
    let id = &node.registry.busybox.id;
    let inspected = crictl.json(&["inspecti", BUSYBOX]);
    assert_eq!((&inspected["status"]["id"], &inspected["status"]["repoTags"]), (&json!(id), &json!([BUSYBOX])));
    assert!(inspected["info"]["imageSpec"]["config"].is_object(), "{inspected}");
    assert_eq!(crictl.run(&["images", "-q", BUSYBOX]).trim(), id);
    let pinned = crictl.json(&["images", "-o", "json", PAUSE]);
    assert_eq!(pinned["images"][0]["pinned"], true, "the sandbox image is not collected: {pinned}");
    let digests = crictl.run(&["images", "--digests", "--no-trunc"]);
    assert!(digests.contains(id.as_str()), "{digests}");
    let filesystem = crictl.json(&["imagefsinfo"]);
    let mountpoint = node.path("root/io.containerd.snapshotter.v1.overlayfs").display().to_string();
    assert_eq!(filesystem["status"]["imageFilesystems"][0]["fsId"]["mountpoint"], mountpoint, "{filesystem}");

    crictl.run(&["rmi", "--prune"]);
    let left = crictl.json(&["images", "-o", "json"]);
    assert_eq!(left["images"].as_array().unwrap().len(), 1, "only the pinned one is left: {left}");
    crictl.run(&["rmi", "--all"]);
    assert_ne!(crictl.answer(&["inspecti", BUSYBOX]).code, Some(0));
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_pods_and_containers_are_shown_measured_and_taken_down() {
    let node = TestNode::start().await;
    let crictl = Crictl::of(&node);
    let script = "echo one; echo two >&2; echo three; while true; do sleep 1; done";
    let (pod, app) = running(&node, &crictl, &["sh", "-c", script]);

    assert_eq!(crictl.run(&["pods", "-q", "--name", "commanded", "--state", "ready"]).trim(), pod);
    assert_eq!(crictl.run(&["pods", "-q", "--state", "notready"]), "");
    assert_eq!(crictl.run(&["ps", "-q", "--pod", &pod[..13], "--state", "running"]).trim(), app);
    assert_eq!(crictl.run(&["ps", "-q", "--id", &app[..13]]).trim(), app);
    assert_eq!(crictl.run(&["ps", "-q", "--label", "no=such"]), "");
    assert_eq!(crictl.json(&["inspectp", "-q", &pod[..13]])["status"]["id"], json!(pod));
    assert_eq!(crictl.json(&["inspect", "-q", &app[..13]])["status"]["id"], json!(app));
    assert!(crictl.run(&["inspect", "-o", "yaml", &app]).contains("CONTAINER_RUNNING"));

    // Where the second line is among the others is the pipes' business; crictl repeats it on its own stderr.
    wait::until_ok("all three lines are logged", SOON, || match crilog::read(&node.path("logs/app.log")).len() {
        3 => Ok(()),
        lines => Err(format!("{lines}")),
    })
    .await;
    assert_eq!(crictl.run(&["logs", "--tail", "3", &app]), "one\nthree\n");
    assert_eq!(crictl.run(&["logs", "--tail", "0", &app]), "");
    assert_eq!(crictl.answer(&["logs", "--stream", "stderr", &app]).stderr.lines().last(), Some("two"));
    let stamped = crictl.run(&["logs", "--timestamps", "--stream", "stdout", &app]);
    assert!(stamped.starts_with("20") && stamped.ends_with(" three\n"), "{stamped}");
    fs::rename(node.path("logs/app.log"), node.path("logs/app.log.1")).unwrap();
    crictl.run(&["logs", "--reopen", "--tail", "0", &app]);
    assert!(node.path("logs/app.log").exists());

    let stats = crictl.json(&["stats", "-o", "json", "--id", &app]);
    let stats = &stats["stats"][0];
    assert_eq!(stats["attributes"]["id"], json!(app));
    assert!(number(&stats["memory"]["workingSetBytes"]["value"]) > 0, "{stats}");
    assert!(number(&stats["cpu"]["usageCoreNanoSeconds"]["value"]) > 0, "{stats}");
    let table = crictl.run(&["stats", "-a"]);
    assert!(table.contains(&app[..13]) && table.contains("app"), "{table}");
    let stats = crictl.json(&["statsp", "-o", "json", "--id", &pod]);
    let stats = &stats["stats"][0];
    assert_eq!(stats["attributes"]["id"], json!(pod));
    assert!(number(&stats["linux"]["process"]["processCount"]["value"]) >= 2, "{stats}");
    assert_eq!(stats["linux"]["network"]["defaultInterface"]["name"], "eth0", "{stats}");
    assert!(crictl.run(&["statsp"]).contains(&pod[..13]));

    let names = |metrics: &Value| -> Vec<String> {
        metrics.as_array().unwrap().iter().map(|metric| metric["name"].as_str().unwrap().to_owned()).collect()
    };
    let described = names(&crictl.json(&["metricdescs"])["descriptors"]);
    let metrics = crictl.json(&["metricsp"]);
    let of_pod = &metrics["podMetrics"][0];
    assert_eq!(of_pod["podSandboxId"], json!(pod), "{metrics}");
    let measured = names(&of_pod["containerMetrics"][0]["metrics"]);
    assert!(measured.contains(&"container_memory_working_set_bytes".to_owned()), "{measured:?}");
    assert!(measured.iter().all(|name| described.contains(name)), "{measured:?} of {described:?}");

    let archive = node.path("checkpoint.tar");
    let answer = crictl.answer(&["checkpoint", &format!("--export={}", archive.display()), &app]);
    if answer.code == Some(0) {
        assert!(fs::metadata(&archive).unwrap().len() > 0);
    } else {
        // It is off by default.
        assert!(answer.stderr.contains("enable_criu = true") && !archive.exists(), "{answer:?}");
    }

    assert_ne!(crictl.answer(&["rm", &app]).code, Some(0), "it runs");
    assert_ne!(crictl.answer(&["rmp", &pod]).code, Some(0), "it runs");
    // A container that is gone, and one that never was.
    assert_ne!(crictl.answer(&["inspect", "0123456789"]).code, Some(0));
    crictl.run(&["stop", "--timeout", "0", "--all"]);
    crictl.run(&["rm", "--all"]);
    let image = BUSYBOX;
    let app_config = container_file(&node, "second", image, &["sleep", "1000"]);
    let mut pod_config: Value = serde_json::from_slice(&fs::read(node.path("pod.json")).unwrap()).unwrap();
    pod_config["metadata"]["name"] = json!("second");
    let pod_config = write(&node.path("second-pod.json"), &pod_config);
    let second = crictl.run(&["run", "--with-pull", &app_config, &pod_config]).trim().to_owned();
    assert_eq!(crictl.run(&["ps", "-q"]).trim(), second);
    crictl.run(&["rm", "--force", &second]);
    crictl.run(&["rmp", "--all", "--force"]);
    assert_eq!(crictl.run(&["pods", "-q"]), "");
    node.finish().await;
}

/// A number that JSON carries as text.
fn number(value: &Value) -> u64 {
    value.as_str().unwrap_or_else(|| panic!("no number: {value}")).parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_exec_attach_and_port_forward_work_over_both_transports() {
    let node = TestNode::start().await;
    let crictl = Crictl::of(&node);
    let script = "httpd -p 8080 -h /etc; while read line; do echo \"heard $line\"; done; sleep 1000";
    let pod_config = pod_file(&node, "streamed");
    crictl.run(&["pull", BUSYBOX]);
    let pod = crictl.run(&["runp", &pod_config]).trim().to_owned();
    let app_config = container_file(&node, "app", BUSYBOX, &["sh", "-c", script]);
    let mut config: Value = serde_json::from_slice(&fs::read(&app_config).unwrap()).unwrap();
    config["stdin"] = json!(true);
    write(&node.path("app.json"), &config);
    let app = crictl.run(&["create", &pod, &app_config, &pod_config]).trim().to_owned();
    crictl.run(&["start", &app]);
    for transport in ["spdy", "websocket"] {
        streams(&crictl, &pod, &app, &["--transport", transport]).await;
    }
    node.remove_all_pods().await;
    node.finish().await;
}

/// Exec, attach and port-forward with these options.
async fn streams(crictl: &Crictl, pod: &str, app: &str, options: &[&str]) {
    let with = |verb: &'static str, rest: &[&'static str]| -> Vec<&str> { [&[verb][..], options, rest].concat() };
    let counted = crictl.fed(&[&with("exec", &["-i"])[..], &[app, "wc", "-c"]].concat(), &vec![b'x'; 1 << 20]);
    assert_eq!(String::from_utf8_lossy(&counted.stdout).trim(), (1 << 20).to_string(), "{options:?}: {counted:?}");
    let failed =
        crictl.answer(&[&with("exec", &[])[..], &[app, "sh", "-c", "echo out; echo err >&2; exit 3"]].concat());
    assert_eq!(failed.stdout, "out\n", "{options:?}");
    assert!(failed.stderr.contains("err\n") && failed.stderr.contains("exit code 3"), "{options:?}: {failed:?}");
    assert_ne!(failed.code, Some(0));
    let (printed, code) =
        crictl.on_a_terminal(&[&with("exec", &["-it"])[..], &[app, "sh"]].concat(), "/ #", "tty; exit 0\r");
    assert!(printed.contains("/dev/pts/") && code == Some(0), "{options:?}: {printed:?}");

    let piped = || Stdio::piped();
    let mut attached = crictl
        .command(&[&with("attach", &["-i"])[..], &[app]].concat())
        .stdin(piped())
        .stdout(piped())
        .spawn()
        .unwrap();
    let mut heard = BufReader::new(attached.stdout.take().unwrap());
    attached.stdin.as_mut().unwrap().write_all(b"the client\n").unwrap();
    let mut line = String::new();
    heard.read_line(&mut line).unwrap();
    assert_eq!(line, "heard the client\n", "{options:?}");
    end(attached);

    let (forwarding, port) = forwarded(crictl, pod, 8080, options).await;
    for _ in 0..3 {
        let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        socket.write_all(b"GET /group HTTP/1.0\r\n\r\n").unwrap();
        let mut answer = String::new();
        socket.read_to_string(&mut answer).unwrap();
        assert!(answer.ends_with("root:x:0:\nnogroup:x:65534:\n"), "{options:?}: {answer}");
    }
    end(forwarding);
}

/// Forwards some port of this machine to one of the pod's, and says which.
async fn forwarded(crictl: &Crictl, pod: &str, port: u16, options: &[&str]) -> (Child, u16) {
    let ports = format!("0:{port}");
    let arguments = [&["port-forward"][..], options, &[pod, &ports]].concat();
    let mut child = crictl.command(&arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut said = BufReader::new(child.stdout.take().unwrap());
    let local = tokio::task::spawn_blocking(move || {
        let mut line = String::new();
        // "Forwarding from 127.0.0.1:40123 -> 8080"
        said.read_line(&mut line).unwrap();
        let local = line.split([':', ' ']).find_map(|word| word.parse::<u16>().ok().filter(|number| *number > 255));
        let local = local.unwrap_or_else(|| panic!("no port in {line:?}"));
        // What it says later has to go somewhere.
        thread::spawn(move || drop(std::io::copy(&mut said, &mut std::io::sink())));
        local
    });
    (child, local.await.unwrap())
}

/// Ends a command that would go on.
fn end(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_ports_of_a_pod_on_the_hosts_network_are_the_hosts() {
    let node = TestNode::start().await;
    let crictl = Crictl::of(&node);
    let mut config: Value = serde_json::from_slice(&fs::read(pod_file(&node, "host")).unwrap()).unwrap();
    config["linux"]["security_context"] = json!({"namespace_options": {"network": 2}});
    let pod = crictl.run(&["runp", &write(&node.path("pod.json"), &config)]).trim().to_owned();
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let answering = thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        socket.write_all(b"from the host").unwrap();
    });
    let (forwarding, local) = forwarded(&crictl, &pod, port, &[]).await;
    let mut answer = String::new();
    TcpStream::connect((Ipv4Addr::LOCALHOST, local)).unwrap().read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "from the host");
    answering.join().unwrap();
    end(forwarding);
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_streams_go_through_tls_with_the_configured_certificate() {
    let mut node = TestNode::prepare().await;
    let pair = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let (certificate, key) = (node.path("streams.crt"), node.path("streams.key"));
    let stranger = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap().cert.pem();
    fs::write(node.path("stranger.crt"), stranger).unwrap();
    let stranger = node.path("stranger.crt").display().to_string();
    fs::write(&certificate, pair.cert.pem()).unwrap();
    fs::write(&key, pair.signing_key.serialize_pem()).unwrap();
    node.settings.cri = format!(
        "enable_tls_streaming = true\nx509_key_pair_streaming.tls_cert_file = {certificate:?}\n\
         x509_key_pair_streaming.tls_key_file = {key:?}\n"
    );
    node.boot().await;
    let crictl = Crictl::of(&node);
    let (_, app) = running(&node, &crictl, &["sleep", "1000"]);
    let (certificate, key) = (certificate.display().to_string(), key.display().to_string());
    // crictl wants a pair of its own as soon as it is told whom to trust; nobody asks for it.
    let tls = ["--tls-ca", &certificate, "--tls-cert", &certificate, "--tls-key", &key];
    for transport in ["spdy", "websocket"] {
        let trusting = [&["exec", "--transport", transport][..], &tls, &[&app, "cat", "/etc/group"]].concat();
        assert_eq!(crictl.run(&trusting), "root:x:0:\nnogroup:x:65534:\n", "{transport}");
        let other = ["--tls-ca", &stranger, "--tls-cert", &certificate, "--tls-key", &key];
        let distrusting = crictl.answer(&[&["exec", "--transport", transport][..], &other, &[&app, "true"]].concat());
        assert_ne!(distrusting.code, Some(0), "another authority does not vouch for it: {distrusting:?}");
    }
    node.remove_all_pods().await;
    node.finish().await;
}
