//! A shim of the built binary with a hand-made bundle around busybox, and its end.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use prost_types::Any;
use serde_json::json;
use windlass_shim::bootstrap::Bootstrap;
use windlass_shim::client::{Extension, TaskClient};
use windlass_shim::launch::Launch;
use windlass_shim::proto::{runc, task, to_any};

pub(crate) const NAMESPACE: &str = "windlass-test";

/// One container and its shim. Dropping it leaves nothing behind, whatever the test did.
pub(crate) struct World {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) id: String,
    pub(crate) launch: Launch,
    pub(crate) bootstrap: Bootstrap,
    pub(crate) task: TaskClient,
    pub(crate) extension: Extension,
    pub(crate) shim_pid: u32,
}

impl World {
    /// Starts a shim for a container that will run `script`; nothing is created yet.
    pub(crate) async fn new(script: &str) -> Self {
        Self::edited(script, |_| {}).await
    }

    /// The same with changes to the bundle's `config.json`.
    pub(crate) async fn edited(script: &str, edit: impl FnOnce(&mut serde_json::Value)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let id = format!("w{}", dir.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.'));
        let bundle = dir.path().join("bundle");
        make_bundle(&bundle, &id, script, edit);
        let launch = Launch {
            binary: PathBuf::from(env!("CARGO_BIN_EXE_containerd-shim-runc-v2")),
            namespace: NAMESPACE.to_owned(),
            id: id.clone(),
            bundle,
            grpc_address: dir.path().join("c.sock").to_str().unwrap().to_owned(),
            ttrpc_address: dir.path().join("c.sock.ttrpc").to_str().unwrap().to_owned(),
            debug: false,
            options: None,
            deadline: Duration::from_secs(20),
        };
        let bootstrap = launch.start().await.unwrap();
        let task = TaskClient::connect_to(&bootstrap, NAMESPACE).await.unwrap().with_timeout(Duration::from_secs(30));
        let extension = Extension::of_shim(task.connection().clone(), &bootstrap).unwrap();
        let shim_pid = task.connect(&id).await.unwrap().shim_pid;
        Self { dir, id, launch, bootstrap, task, extension, shim_pid }
    }

    pub(crate) fn log(&self) -> PathBuf {
        self.dir.path().join("logs/0.log")
    }

    pub(crate) fn options(&self) -> Any {
        let root = self.dir.path().join("runc").to_str().unwrap().to_owned();
        to_any(&runc::Options { root, ..Default::default() })
    }

    /// Creates the container with its log written by the shim.
    pub(crate) async fn create(&self, stdin: &str) {
        let output = format!("cri://{}?max_line=16384", self.log().display());
        let request = task::CreateTaskRequest {
            id: self.id.clone(),
            bundle: self.launch.bundle.to_str().unwrap().to_owned(),
            stdin: stdin.to_owned(),
            stdout: output.clone(),
            stderr: output,
            options: Some(self.options()),
            ..Default::default()
        };
        self.task.create(&request).await.unwrap();
    }

    /// A container that does nothing, for execs.
    pub(crate) async fn idle() -> Self {
        let world = Self::new("exec sleep 1000").await;
        world.create("").await;
        world.task.start(&world.id, "").await.unwrap();
        world
    }

    pub(crate) async fn add_exec(&self, exec_id: &str, script: &str, terminal: bool) {
        self.add_exec_to("attach://", exec_id, script, terminal).await;
    }

    pub(crate) async fn add_exec_to(&self, output: &str, exec_id: &str, script: &str, terminal: bool) {
        let process =
            json!({"cwd": "/", "args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}});
        let request = task::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: exec_id.to_owned(),
            terminal,
            stdin: "attach://".to_owned(),
            stdout: output.to_owned(),
            stderr: if terminal { String::new() } else { output.to_owned() },
            spec: Some(Any { type_url: "process".to_owned(), value: process.to_string().into_bytes() }),
        };
        self.task.exec(&request).await.unwrap();
    }

    pub(crate) async fn kill(&self, exec_id: &str, signal: u32, all: bool) {
        let request = task::KillRequest { id: self.id.clone(), exec_id: exec_id.to_owned(), signal, all };
        self.task.kill(&request).await.unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        Command::new("kill").args(["-9", &self.shim_pid.to_string()]).status().unwrap();
        let root = self.dir.path().join("runc").join(NAMESPACE);
        Command::new("runc").arg("--root").arg(root).args(["delete", "--force", &self.id]).status().unwrap();
        if let Some(socket) = self.bootstrap.address.strip_prefix("unix://") {
            // A shim that ended in order has removed it itself.
            let _ = fs::remove_file(socket);
        }
    }
}

/// Waits until `done` says so; a test that waits longer has failed.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap_or_else(|_| panic!("never came: {what}"));
}

fn make_bundle(bundle: &Path, id: &str, script: &str, edit: impl FnOnce(&mut serde_json::Value)) {
    let bin = bundle.join("rootfs/bin");
    fs::create_dir_all(&bin).unwrap();
    for dir in ["proc", "dev", "sys", "tmp"] {
        fs::create_dir(bundle.join("rootfs").join(dir)).unwrap();
    }
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for applet in ["sh", "sleep", "cat", "dd", "seq", "stty", "setsid", "true", "head", "yes", "test"] {
        symlink("busybox", bin.join(applet)).unwrap();
    }
    let mut config = json!({
        "ociVersion": "1.0.2",
        "process": {"cwd": "/", "args": ["/bin/sh", "-c", script], "env": ["PATH=/bin"], "user": {"uid": 0, "gid": 0}},
        "root": {"path": "rootfs"},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs"},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
        ],
        "linux": {
            "cgroupsPath": format!("/windlass-{id}"),
            "namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}],
        },
    });
    edit(&mut config);
    fs::write(bundle.join("config.json"), config.to_string()).unwrap();
}
