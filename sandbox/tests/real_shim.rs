//! A pod on this machine: the real shim, the real runc, a root file system of busybox, the host's network.
//!
//! The shim's binary is the one beside this test's own: `cargo build -p windlass-shim` makes it.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use futures_util::{FutureExt, future::BoxFuture};
use snapshotter::{Info, Labels, Mount, Snapshotter, Usage};
use store::{Namespace, Store};
use wait::until;
use windlass_sandbox::{
    Config, Error, Handler, Output, Pods, RuncOptions, RuntimeOptions, SCHEMA, Timeouts,
    events::Ooms,
    launcher::ShimLauncher,
    model::{
        ContainerSpec, ContainerState, Id, Image, NamespaceMode, Namespaces, PodNetwork, PodSpec, PodState,
        StreamRequest,
    },
    network::{Attachment, Network},
};

#[expect(dead_code, reason = "the fake machine is another test's; this one takes its specs")]
mod fake;
mod wait;

/// A snapshot is a directory with busybox in it, bound where it is wanted.
struct Directories(PathBuf);

impl Directories {
    fn at(&self, key: &str) -> PathBuf {
        self.0.join(key)
    }
}

fn missing(key: &str) -> snapshotter::Error {
    snapshotter::Error::NotFound { key: key.into() }
}

impl Snapshotter for Directories {
    fn stat(&self, _: &Namespace, key: &str) -> Result<Info, snapshotter::Error> {
        Err(missing(key))
    }

    fn list(&self, _: &Namespace) -> Result<Vec<Info>, snapshotter::Error> {
        Ok(Vec::new())
    }

    fn prepare(&self, _: &Namespace, key: &str, _: Option<&str>, _: &Labels) -> Result<Vec<Mount>, snapshotter::Error> {
        let root = self.at(key);
        for dir in ["bin", "etc", "proc", "sys", "dev", "tmp", "data"] {
            fs::create_dir_all(root.join(dir)).unwrap();
        }
        fs::copy("/usr/bin/busybox", root.join("bin/busybox")).unwrap();
        for name in ["sh", "sleep", "cat", "echo", "id", "true"] {
            symlink("busybox", root.join("bin").join(name)).unwrap();
        }
        fs::write(root.join("etc/passwd"), "root:x:0:0::/:/bin/sh\napp:x:1234:1235::/:/bin/sh\n").unwrap();
        fs::write(root.join("data/from-image"), "hello\n").unwrap();
        let options = vec!["rbind".into(), "rw".into()];
        Ok(vec![Mount { fstype: "bind".into(), source: root.to_str().unwrap().into(), options }])
    }

    fn view(&self, _: &Namespace, key: &str, _: Option<&str>, _: &Labels) -> Result<Vec<Mount>, snapshotter::Error> {
        Err(missing(key))
    }

    fn mounts(&self, _: &Namespace, key: &str) -> Result<Vec<Mount>, snapshotter::Error> {
        Err(missing(key))
    }

    fn commit(&self, _: &Namespace, name: &str, _: &str, _: &Labels) -> Result<(), snapshotter::Error> {
        Err(missing(name))
    }

    fn remove(&self, _: &Namespace, key: &str) -> Result<(), snapshotter::Error> {
        fs::remove_dir_all(self.at(key)).map_err(|_| missing(key))
    }

    fn usage(&self, _: &Namespace, key: &str) -> Result<Usage, snapshotter::Error> {
        Err(missing(key))
    }
}

/// The host's network needs nothing.
struct HostNetwork;

impl Network for HostNetwork {
    fn ready(&self) -> BoxFuture<'_, Result<(), Error>> {
        async { Ok(()) }.boxed()
    }

    fn attach(&self, _: Attachment) -> BoxFuture<'_, Result<PodNetwork, Error>> {
        async { Err(Error::plain("no pod here has a network of its own")) }.boxed()
    }

    fn detach(&self, _: Attachment) -> BoxFuture<'_, Result<(), Error>> {
        async { Ok(()) }.boxed()
    }

    fn cached(&self) -> BoxFuture<'_, Result<Vec<Id>, Error>> {
        async { Ok(Vec::new()) }.boxed()
    }
}

/// A node in a directory of its own, with a cgroup parent of its own.
struct TestNode {
    dir: tempfile::TempDir,
    cgroup: String,
    /// `None` is ours.
    shim: Option<PathBuf>,
}

/// containerd's shim: of Debian's package, or another one.
fn stock_shim() -> PathBuf {
    std::env::var_os("WINDLASS_STOCK_SHIM").map_or_else(|| "/usr/bin/containerd-shim-runc-v2".into(), PathBuf::from)
}

impl TestNode {
    /// One with our shim, and one with a stock shim if there is one.
    fn each() -> Vec<TestNode> {
        let stock = stock_shim();
        if !stock.exists() {
            println!("{} is not installed (it is in Debian's containerd package): our shim alone", stock.display());
        }
        let stock = stock.exists().then_some(stock);
        std::iter::once(None).chain(stock.map(Some)).map(TestNode::new).collect()
    }

    fn new(shim: Option<PathBuf>) -> TestNode {
        let dir = tempfile::tempdir().unwrap();
        let name = dir.path().file_name().unwrap().to_str().unwrap().replace('.', "");
        TestNode { dir, cgroup: format!("/windlass-{name}"), shim }
    }

    async fn open(&self) -> Pods {
        let dir = self.dir.path();
        let beside = std::env::current_exe().unwrap().parent().unwrap().parent().unwrap().to_owned();
        assert!(beside.join("containerd-shim-runc-v2").exists(), "cargo build -p windlass-shim first");
        let handler = Handler {
            runtime_type: "io.containerd.runc.v2".into(),
            options: RuntimeOptions::Runc(RuncOptions {
                root: dir.join("runc").to_str().unwrap().into(),
                ..RuncOptions::default()
            }),
            runtime_path: self.shim.clone(),
            ..Handler::default()
        };
        let config = Config {
            shim_search: vec![beside],
            handlers: BTreeMap::from([("runc".to_owned(), handler)]),
            timeouts: Timeouts::default(),
            ..fake::config(dir)
        };
        let store = Store::open(&dir.join("meta.db"), &[SCHEMA]).unwrap();
        let snapshots: Arc<dyn Snapshotter> = Arc::new(Directories(dir.join("snapshots")));
        let launcher = Arc::new(ShimLauncher::new(config.clone(), Ooms::default()));
        let snapshotters = BTreeMap::from([("fake".to_owned(), snapshots)]);
        Pods::open(config, store, snapshotters, Arc::new(HostNetwork), launcher).await.unwrap()
    }

    fn pod(&self) -> PodSpec {
        PodSpec {
            namespaces: Namespaces { network: NamespaceMode::Node, ..Namespaces::default() },
            log_directory: self.dir.path().join("logs").to_str().unwrap().into(),
            cgroup_parent: self.cgroup.clone(),
            ..fake::pod_spec("web")
        }
    }

    fn container(&self, name: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            log_path: format!("{name}.log"),
            namespaces: Namespaces {
                network: NamespaceMode::Node,
                pid: NamespaceMode::Container,
                ..Namespaces::default()
            },
            ..fake::container_spec(name)
        }
    }

    fn log(&self, name: &str) -> String {
        fs::read_to_string(self.dir.path().join("logs").join(format!("{name}.log"))).unwrap_or_default()
    }

    /// Asserts that nothing of this node is left, and removes its cgroup parents.
    fn assert_clean(&self) {
        let dir = self.dir.path().to_str().unwrap();
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert_eq!(mounts.lines().filter(|line| line.contains(dir)).collect::<Vec<_>>(), Vec::<&str>::new());
        let mut left = Vec::new();
        for place in ["state/io.containerd.runtime.v2.task/k8s.io", "snapshots", "runc/k8s.io"] {
            let entries = fs::read_dir(self.dir.path().join(place)).into_iter().flatten();
            left.extend(entries.map(|entry| entry.unwrap().path()));
        }
        assert_eq!(left, Vec::<PathBuf>::new());
        for hierarchy in fs::read_dir("/sys/fs/cgroup").unwrap() {
            let parent = hierarchy.unwrap().path().join(self.cgroup.trim_start_matches('/'));
            if parent.is_dir() {
                // Empty, or this fails: a leaf that is left is a leak.
                fs::remove_dir(&parent).unwrap_or_else(|error| panic!("{}: {error}", parent.display()));
            }
        }
    }
}

fn image(entrypoint: &[&str]) -> Image {
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": {"Entrypoint": entrypoint, "Env": ["PATH=/bin"], "Volumes": {"/data": {}}, "StopSignal": "SIGINT"},
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    Image { config: serde_json::from_value(config).unwrap(), ..fake::image() }
}

fn pause() -> Image {
    image(&["/bin/sleep", "1000000"])
}

fn exit_of(pods: &Pods, id: &Id) -> Option<(i32, String)> {
    match &pods.container(id.as_str()).unwrap().state {
        ContainerState::Exited { exit, .. } => Some((exit.code, exit.reason.clone())),
        _ => None,
    }
}

fn words(command: &[&str]) -> Vec<String> {
    command.iter().map(|word| (*word).to_owned()).collect()
}

/// Whether a process of this machine has this command line.
fn runs(command: &str) -> bool {
    let processes = fs::read_dir("/proc").unwrap().map(|entry| entry.unwrap().path());
    processes.filter_map(|path| fs::read(path.join("cmdline")).ok()).any(|line| line == command.as_bytes())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_pod_lives_its_life_on_runc() {
    for node in TestNode::each() {
        let pods = node.open().await;
        let pod = pods.run(node.pod(), pause()).await.unwrap();
        assert_eq!(pods.pod(pod.as_str()).unwrap().state, PodState::Ready);
        assert!(Path::new("/proc").join(pods.pod(pod.as_str()).unwrap().pid.unwrap().to_string()).exists());

        let script = "trap 'echo bye; exit 3' INT; cat /data/from-image; while true; do sleep 0.05; done";
        let app = pods.create_container(pod.as_str(), node.container("app", script), image(&[])).await.unwrap();
        pods.start_container(app.as_str()).await.unwrap();
        until("the container writes", || node.log("app").contains("stdout F hello")).await;

        let output = pods
            .exec_sync(app.as_str(), words(&["/bin/sh", "-c", "echo out; echo err >&2; exit 5"]), None)
            .await
            .unwrap();
        assert_eq!((output.stdout, output.stderr, output.exit_code), (b"out\n".to_vec(), b"err\n".to_vec(), 5));
        let slow = pods.exec_sync(app.as_str(), words(&["/bin/sleep", "1000"]), Some(Duration::from_millis(300))).await;
        assert!(matches!(slow, Err(Error::Deadline(_))), "{slow:?}");
        let none = pods.exec_sync(app.as_str(), words(&["/no/such/file"]), None).await;
        assert!(none.unwrap_err().chain().contains("failed to start exec process"));
        let abandoned = tokio::spawn({
            let (pods, app) = (pods.clone(), app.clone());
            async move { pods.exec_sync(app.as_str(), words(&["/bin/sleep", "7654321"]), None).await }
        });
        until("the command runs", || runs("/bin/sleep\x007654321\0")).await;
        abandoned.abort();
        until("a command that nobody waits for is gone", || !runs("/bin/sleep\x007654321\0")).await;

        let request =
            StreamRequest { command: words(&["/bin/cat"]), stdin: true, stdout: true, stderr: true, tty: false };
        let mut session = pods.exec(app.as_str(), request).await.unwrap();
        session.stdin.take().unwrap().send(Bytes::from_static(b"echoed")).await.unwrap();
        assert_eq!(session.output.recv().await, Some(Output::Stdout(Bytes::from_static(b"echoed"))));
        assert_eq!(session.output.recv().await, None);
        assert_eq!(session.exit.wait().await.unwrap(), 0);

        fs::rename(node.dir.path().join("logs/app.log"), node.dir.path().join("logs/app.log.1")).unwrap();
        pods.reopen_log(app.as_str()).await.unwrap();
        pods.stop_container(app.as_str(), Duration::from_secs(20)).await.unwrap();
        assert_eq!(exit_of(&pods, &app), Some((3, "Error".into())), "the image's stop signal was trapped");
        assert!(node.log("app").contains("stdout F bye"), "{}", node.log("app"));
        pods.remove_container(app.as_str()).await.unwrap();
        pods.stop(pod.as_str()).await.unwrap();
        assert_eq!(pods.pod(pod.as_str()).unwrap().state, PodState::NotReady);
        pods.remove(pod.as_str()).await.unwrap();
        assert_eq!(pods.pods().len() + pods.containers().len(), 0);
        pods.shutdown().await;
        node.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_missing_command_fails_the_start_and_leaves_a_container_that_says_so() {
    for node in TestNode::each() {
        let pods = node.open().await;
        let pod = pods.run(node.pod(), pause()).await.unwrap();
        let spec = ContainerSpec { command: words(&["/no/such/program"]), ..node.container("bad", "") };
        let bad = pods.create_container(pod.as_str(), spec, image(&[])).await.unwrap();
        let error = pods.start_container(bad.as_str()).await.unwrap_err().chain();
        assert!(error.contains("/no/such/program"), "{error}");
        assert_eq!(exit_of(&pods, &bad), Some((128, "StartError".into())));
        pods.remove(pod.as_str()).await.unwrap();
        pods.shutdown().await;
        node.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_containers_go_on_without_the_daemon_and_are_found_again() {
    for node in TestNode::each() {
        let pods = node.open().await;
        let pod = pods.run(node.pod(), pause()).await.unwrap();
        let start = async |name: &str, script: &str| {
            let id = pods.create_container(pod.as_str(), node.container(name, script), image(&[])).await.unwrap();
            pods.start_container(id.as_str()).await.unwrap();
            id
        };
        let ends = start("ends", "while [ ! -e /data/end ]; do sleep 0.02; done; exit 9").await;
        let stays = start("stays", "while true; do sleep 1; done").await;
        pods.shutdown().await;

        let volume = format!("root/io.containerd.grpc.v1.cri/containers/{ends}/volumes/0/end");
        fs::write(node.dir.path().join(volume), "").unwrap();
        let pods = node.open().await;
        until("the exit is known", || exit_of(&pods, &ends).is_some()).await;
        assert_eq!(exit_of(&pods, &ends), Some((9, "Error".into())));
        let output = pods.exec_sync(stays.as_str(), words(&["/bin/echo", "alive"]), None).await.unwrap();
        assert_eq!(output.stdout, b"alive\n");
        pods.remove(pod.as_str()).await.unwrap();
        pods.shutdown().await;
        node.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_a_shim_that_is_killed_leaves_no_process_and_a_pod_that_can_be_removed() {
    for node in TestNode::each() {
        let pods = node.open().await;
        let pod = pods.run(node.pod(), pause()).await.unwrap();
        let app = pods.create_container(pod.as_str(), node.container("app", "sleep 1000"), image(&[])).await.unwrap();
        pods.start_container(app.as_str()).await.unwrap();
        let ContainerState::Running { pid, .. } = pods.container(app.as_str()).unwrap().state else {
            panic!("it runs")
        };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        let parent = stat.rsplit(')').next().unwrap().split_whitespace().nth(1).unwrap().parse().unwrap();
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(parent), nix::sys::signal::Signal::SIGKILL).unwrap();
        until("the container has ended", || exit_of(&pods, &app).is_some()).await;
        assert_eq!(exit_of(&pods, &app), Some((255, "Unknown".into())));
        assert_eq!(pods.pod(pod.as_str()).unwrap().state, PodState::NotReady);
        until("its process is gone", || !Path::new(&format!("/proc/{pid}/root/bin")).exists()).await;
        pods.remove(pod.as_str()).await.unwrap();
        pods.shutdown().await;
        node.assert_clean();
    }
}

/// Of which more than a shim has room for at one time (`MAX_CALLS` of a connection) come as far as to be served.
const ATTACHES: u32 = 12_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn privileged_clients_that_attach_and_leave_leave_nothing_in_the_shim() {
    let node = TestNode::new(None);
    let pods = node.open().await;
    let pod = pods.run(node.pod(), pause()).await.unwrap();
    let app = pods.create_container(pod.as_str(), node.container("app", "sleep 1000"), image(&[])).await.unwrap();
    pods.start_container(app.as_str()).await.unwrap();
    for number in 0..ATTACHES {
        let request = StreamRequest { command: Vec::new(), stdin: false, stdout: true, stderr: true, tty: false };
        let session = pods.attach(app.as_str(), request).await;
        drop(session.unwrap_or_else(|error| panic!("attach {number}: {}", error.chain())));
    }
    let output = pods.exec_sync(app.as_str(), words(&["/bin/echo", "alive"]), None).await.unwrap();
    assert_eq!(output.stdout, b"alive\n");
    pods.stop(pod.as_str()).await.unwrap();
    pods.remove(pod.as_str()).await.unwrap();
}
