//! The Go shim of containerd and our own, driven by the same launcher and client, and sending their events to our server.
//!
//! Each is the measure of the other: both have to give the same answers and events.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use prost_types::Any;
use serde_json::json;
use tokio::{
    io::AsyncReadExt,
    net::{UnixListener, unix::pipe},
};
use tokio_util::sync::CancellationToken;
use windlass_shim::{
    bootstrap::Bootstrap,
    client::{AttachTo, Extension, Output, TaskClient},
    launch::{Launch, open_log},
    proto::{forward, process::Status as State, service, task},
    ttrpc::{BoxFuture, Call, Code, Handler, Status, Stream, serve},
};

const GO_SHIM: &str = "/usr/bin/containerd-shim-runc-v2";
const OUR_SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-runc-v2");

/// The daemon's end of the events service: keeps the topics in the order of their arrival.
#[derive(Default)]
struct Events(Mutex<Vec<String>>);

impl Events {
    fn topics(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }
}

impl Handler for Events {
    fn unary(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Vec<u8>, Status>> {
        Box::pin(async move {
            if (call.service.as_str(), call.method.as_str()) != (service::EVENTS, "Forward") {
                return Err(call.unimplemented());
            }
            let request: forward::ForwardRequest = call.decode()?;
            self.0.lock().unwrap().push(request.envelope.unwrap().topic);
            Ok(Vec::new())
        })
    }

    fn stream(self: Arc<Self>, call: Call, _stream: Stream) -> BoxFuture<'static, Result<(), Status>> {
        Box::pin(async move { Err(call.unimplemented()) })
    }

    fn is_stream(&self, _service: &str, _method: &str) -> bool {
        false
    }
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < end, "{what} within 30 s");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A container whose programs are the host's, read-only.
fn write_bundle(bundle: &Path, cgroup: &str, script: &str) {
    let rootfs = bundle.join("rootfs");
    for directory in ["usr", "proc", "dev"] {
        fs::create_dir_all(rootfs.join(directory)).unwrap();
    }
    for directory in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{directory}"), rootfs.join(directory)).unwrap();
    }
    let config = json!({
        "ociVersion": "1.0.2",
        "process": process(script),
        "root": {"path": "rootfs", "readonly": true},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            {"destination": "/usr", "type": "bind", "source": "/usr", "options": ["rbind", "ro"]}
        ],
        "linux": {
            "cgroupsPath": cgroup,
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"}]
        }
    });
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
}

fn process(script: &str) -> serde_json::Value {
    json!({"args": ["/bin/sh", "-c", script], "cwd": "/", "env": ["PATH=/usr/bin"], "user": {"uid": 0, "gid": 0}})
}

fn kill(id: &str, signal: u32) -> task::KillRequest {
    task::KillRequest { id: id.into(), signal, ..Default::default() }
}

#[tokio::test]
async fn privileged_the_go_shim_runs_a_container_for_our_client() {
    if !Path::new(GO_SHIM).exists() {
        println!("skipped: {GO_SHIM} is not installed (it is in Debian's containerd package)");
        return;
    }
    assert_eq!(with_shim(GO_SHIM, "go", SLEEPER, &SLEEPER_TOPICS, drive).await, 137);
}

#[tokio::test]
async fn privileged_our_shim_runs_a_container_for_our_client() {
    assert_eq!(with_shim(OUR_SHIM, "ours", SLEEPER, &SLEEPER_TOPICS, drive).await, 137);
}

#[tokio::test]
async fn privileged_our_shim_writes_the_log_and_serves_attach() {
    let echo = "while read line; do echo \"got $line\"; done; exit 4";
    let topics = ["/tasks/create", "/tasks/start", "/tasks/exit", "/tasks/delete"];
    assert_eq!(with_shim(OUR_SHIM, "attach", echo, &topics, attach).await, 4);
}

const SLEEPER: &str = "echo hello; exec sleep 1000";

const SLEEPER_TOPICS: [&str; 7] = [
    "/tasks/create",
    "/tasks/start",
    "/tasks/exec-added",
    "/tasks/exec-started",
    "/tasks/exit",
    "/tasks/exit",
    "/tasks/delete",
];

/// Starts a shim for a bundle, lets `drive` make, use and delete the container, and checks which events came of it.
/// Gives the exit status that the binary's delete tells: the Go shim's is 137 whatever happened.
async fn with_shim<Driving: Future<Output = ()> + Send + 'static>(
    shim: &str,
    name: &str,
    script: &str,
    topics: &[&str],
    drive: impl FnOnce(Bootstrap, String, PathBuf) -> Driving,
) -> u32 {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| -> PathBuf { directory.path().join(name) };
    let unique = format!("windlass-test-{name}-{}", std::process::id());
    // The Go shim's delete looks for the bundle beside its own directory, under the id.
    let bundle = path("c1");
    fs::create_dir(&bundle).unwrap();
    write_bundle(&bundle, &format!("/{unique}"), script);

    let (events, shutdown) = (Arc::new(Events::default()), CancellationToken::new());
    let listener = UnixListener::bind(path("c.sock.ttrpc")).unwrap();
    let serving = tokio::spawn(serve(listener, events.clone(), shutdown.clone()));

    let launch = Launch {
        binary: shim.into(),
        namespace: unique.clone(),
        id: "c1".into(),
        bundle: bundle.clone(),
        grpc_address: path("c.sock").display().to_string(),
        ttrpc_address: path("c.sock.ttrpc").display().to_string(),
        debug: false,
        options: None,
        deadline: Duration::from_secs(30),
    };
    let log = tokio::spawn(print_log(open_log(&bundle).unwrap()));
    let bootstrap = launch.start().await.unwrap();
    let driving = tokio::spawn(drive(bootstrap, unique.clone(), directory.path().to_owned()));
    let result = tokio::time::timeout(Duration::from_secs(60), driving).await;
    // Also when something failed: nothing may stay behind.
    let deleted = launch.delete().await;
    fs::remove_dir(format!("/run/containerd/runc/{unique}")).unwrap();
    log.abort();
    result.expect("the shim answers within a minute").unwrap();

    until("all events arrive", || events.topics().len() >= topics.len()).await;
    assert_eq!(events.topics(), topics);
    shutdown.cancel();
    serving.await.unwrap().unwrap();
    deleted.unwrap().exit_status
}

/// What the shim logs belongs to the test's output.
async fn print_log(mut log: pipe::Receiver) {
    let mut chunk = [0; 4096];
    while let Ok(got) = log.read(&mut chunk).await {
        print!("{}", String::from_utf8_lossy(&chunk[..got]));
    }
}

async fn drive(bootstrap: Bootstrap, namespace: String, directory: PathBuf) {
    // The shim of 1.6 says nothing of versions; the client asks for 3 first and must find 2.
    let client = TaskClient::connect_to(&Bootstrap { version: 3, ..bootstrap }, namespace).await.unwrap();
    let out = directory.join("out");
    let created = client
        .create(&task::CreateTaskRequest {
            id: "c1".into(),
            bundle: directory.join("c1").display().to_string(),
            // With one of the two alone the Go shim of 1.6 crashes.
            stdout: format!("file://{}", out.display()),
            stderr: format!("file://{}", out.display()),
            ..Default::default()
        })
        .await
        .unwrap();
    assert_eq!(client.state("c1", "").await.unwrap().status(), State::Created);
    assert_eq!(client.connect("c1").await.unwrap().task_pid, created.pid);

    let waiting = tokio::spawn({
        let client = client.clone();
        async move { client.wait("c1", "").await }
    });
    assert_eq!(client.start("c1", "").await.unwrap().pid, created.pid);
    until("the container says hello", || fs::read_to_string(&out).is_ok_and(|text| text == "hello\n")).await;
    assert!(client.pids("c1").await.unwrap().processes.iter().any(|process| process.pid == created.pid));

    let spec = Any {
        type_url: "types.containerd.io/opencontainers/runtime-spec/1/Process".into(),
        value: process("exit 3").to_string().into_bytes(),
    };
    let exec =
        task::ExecProcessRequest { id: "c1".into(), exec_id: "e1".into(), spec: Some(spec), ..Default::default() };
    client.exec(&exec).await.unwrap();
    client.start("c1", "e1").await.unwrap();
    assert_eq!(client.wait("c1", "e1").await.unwrap().exit_status, 3);
    assert_eq!(client.delete("c1", "e1").await.unwrap().exit_status, 3);
    assert!(!waiting.is_finished());

    client.kill(&kill("c1", 9)).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().exit_status, 137);
    assert_eq!(client.state("c1", "").await.unwrap().status(), State::Stopped);
    assert_eq!(client.kill(&kill("c1", 9)).await.unwrap_err().code, Code::NotFound);
    assert_eq!(client.delete("c1", "").await.unwrap().exit_status, 137);
    assert_eq!(client.state("c1", "").await.unwrap_err().code, Code::NotFound);
    client.shutdown("c1").await.unwrap();
    client.closed().await;
}

async fn attach(bootstrap: Bootstrap, namespace: String, directory: PathBuf) {
    let client = TaskClient::connect_to(&bootstrap, namespace).await.unwrap();
    let extension = Extension::of_shim(client.connection().clone(), &bootstrap).unwrap();
    let (log, rotated) = (directory.join("0.log"), directory.join("1.log"));
    client
        .create(&task::CreateTaskRequest {
            id: "c1".into(),
            bundle: directory.join("c1").display().to_string(),
            // The input of the container ends with that of the first client.
            stdin: "attach://?once=1".into(),
            stdout: format!("cri://{}", log.display()),
            stderr: format!("cri://{}", log.display()),
            ..Default::default()
        })
        .await
        .unwrap();
    let to = AttachTo { id: "c1".into(), stdin: true, stdout: true, stderr: true, ..Default::default() };
    let mut attached = extension.attach(to).await.unwrap();
    client.start("c1", "").await.unwrap();

    attached.stdin.write("one\n".into()).await.unwrap();
    assert_eq!(attached.output.next().await, Ok(Some(Output::Stdout("got one\n".into()))));
    until("the line is logged", || logged(&log) == ["stdout F got one"]).await;
    fs::rename(&log, &rotated).unwrap();
    extension.reopen_log("c1").await.unwrap();
    attached.stdin.write("two\n".into()).await.unwrap();
    assert_eq!(attached.output.next().await, Ok(Some(Output::Stdout("got two\n".into()))));

    attached.stdin.close().await.unwrap();
    assert_eq!(attached.output.next().await, Ok(None));
    let ended = extension.wait("c1", "").await.unwrap();
    assert_eq!((ended.exit_status, ended.oom_killed), (4, false));
    assert_eq!(client.delete("c1", "").await.unwrap().exit_status, 4);
    assert_eq!((logged(&rotated), logged(&log)), (vec!["stdout F got one".into()], vec!["stdout F got two".into()]));
    client.shutdown("c1").await.unwrap();
    client.closed().await;
}

/// The log's lines without their times.
fn logged(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().filter_map(|line| line.split_once(' ')).map(|(_, rest)| rest.to_owned()).collect()
}
