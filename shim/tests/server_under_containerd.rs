//! Debian's containerd and ctr drive the built shim: what stock clients rely on.
#![expect(clippy::unwrap_used, reason = "a test ends where its world is not as it must be")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use serde_json::json;

const IMAGE: &str = "example.test/busybox:latest";

/// A containerd of its own, whose only shim is ours.
struct Containerd {
    dir: tempfile::TempDir,
    daemon: Child,
    /// Of the container; containerd names the cgroup by it, so tests that run side by side must not share it.
    id: String,
}

fn spawn(dir: &Path) -> Child {
    let path = format!("{}:{}", dir.join("bin").display(), std::env::var("PATH").unwrap());
    Command::new("containerd")
        .arg("--config")
        .arg(dir.join("config.toml"))
        .env("PATH", path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(dir.join("log")).unwrap())
        .spawn()
        .unwrap()
}

impl Containerd {
    /// Nothing if this machine has no containerd to compare with.
    fn start() -> Option<Self> {
        if !["containerd", "ctr", "runc"].iter().all(|name| is_installed(name)) {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let bin = dir.path().join("bin");
        fs::create_dir(&bin).unwrap();
        symlink(env!("CARGO_BIN_EXE_containerd-shim-runc-v2"), bin.join("containerd-shim-runc-v2")).unwrap();
        let base = dir.path().display();
        let config = format!(
            "version = 2\nroot = '{base}/root'\nstate = '{base}/state'\n\
             disabled_plugins = ['io.containerd.grpc.v1.cri']\n\
             [grpc]\naddress = '{base}/c.sock'\n[ttrpc]\naddress = '{base}/c.sock.ttrpc'\n"
        );
        fs::write(dir.path().join("config.toml"), config).unwrap();
        let id = format!("w{}", dir.path().file_name().unwrap().to_str().unwrap().trim_start_matches('.'));
        let containerd = Self { daemon: spawn(dir.path()), dir, id };
        containerd.answers();
        let archive = make_image(containerd.dir.path());
        let imported = containerd.ctr(&["images", "import", archive.to_str().unwrap()]);
        assert!(imported.status.success(), "{imported:?}");
        Some(containerd)
    }

    fn answers(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        while !self.ctr(&["version"]).status.success() {
            assert!(Instant::now() < deadline, "containerd does not answer");
        }
    }

    fn kill_and_restart(&mut self) {
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
        self.daemon = spawn(self.dir.path());
        self.answers();
    }

    fn ctr(&self, args: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.args(["--kill-after=1", "30", "ctr", "--address"]).arg(self.dir.path().join("c.sock")).args(args);
        command.stdin(Stdio::null()).output().unwrap()
    }

    fn run(&self, flags: &[&str], script: &str) -> Output {
        let root = self.dir.path().join("runc");
        let fixed = ["run", "--snapshotter", "native", "--runc-root", root.to_str().unwrap()];
        self.ctr(&[&fixed, flags, &[IMAGE, &self.id, "/bin/sh", "-c", script]].concat())
    }

    fn exec(&self, exec: &str, script: &str) -> (String, String, Option<i32>) {
        said(&self.ctr(&["task", "exec", "--exec-id", exec, &self.id, "/bin/sh", "-c", script]))
    }

    fn status(&self) -> String {
        let listed = said(&self.ctr(&["task", "list"])).0;
        listed.lines().nth(1).and_then(|line| line.split_ascii_whitespace().nth(2)).unwrap_or("NONE").to_owned()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        self.ctr(&["task", "delete", "--force", &self.id]);
        self.daemon.kill().unwrap();
        self.daemon.wait().unwrap();
    }
}

fn is_installed(name: &str) -> bool {
    let path = std::env::var("PATH").unwrap();
    path.split(':').any(|dir| Path::new(dir).join(name).exists())
}

fn said(output: &Output) -> (String, String, Option<i32>) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

fn tar(archive: &Path, dir: &Path) {
    let made = Command::new("tar").arg("-C").arg(dir).arg("-cf").arg(archive).arg(".").status().unwrap();
    assert!(made.success());
}

/// Stores a blob under its digest and describes it.
fn blob(layout: &Path, media_type: &str, bytes: &[u8]) -> serde_json::Value {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    fs::write(layout.join("blobs/sha256").join(&hex), bytes).unwrap();
    json!({"mediaType": media_type, "digest": format!("sha256:{hex}"), "size": bytes.len()})
}

/// An OCI image of busybox alone, as an archive.
fn make_image(dir: &Path) -> PathBuf {
    let bin = dir.join("rootfs/bin");
    fs::create_dir_all(&bin).unwrap();
    fs::copy("/bin/busybox", bin.join("busybox")).unwrap();
    for applet in ["sh", "sleep", "cat", "seq", "true"] {
        symlink("busybox", bin.join(applet)).unwrap();
    }
    let layer = dir.join("layer.tar");
    tar(&layer, &dir.join("rootfs"));
    let layout = dir.join("image");
    fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
    let layer = blob(&layout, "application/vnd.oci.image.layer.v1.tar", &fs::read(layer).unwrap());
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["/bin/sh"]},
        "rootfs": {"type": "layers", "diff_ids": [layer["digest"]]},
    });
    let config = blob(&layout, "application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer]});
    let mut manifest = blob(&layout, media_type, manifest.to_string().as_bytes());
    manifest["annotations"] = json!({"io.containerd.image.name": IMAGE});
    fs::write(layout.join("index.json"), json!({"schemaVersion": 2, "manifests": [manifest]}).to_string()).unwrap();
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let archive = dir.join("image.tar");
    tar(&archive, &layout);
    archive
}

#[test]
fn privileged_a_stock_client_gets_output_exit_code_and_the_runtimes_error() {
    let Some(containerd) = Containerd::start() else { return };
    let ran = said(&containerd.run(&["--rm"], "echo out; echo err >&2; exit 7"));
    assert_eq!((ran.0.as_str(), ran.1.contains("err\n"), ran.2), ("out\n", true, Some(7)));
    let root = containerd.dir.path().join("runc");
    let fixed = ["run", "--snapshotter", "native", "--runc-root", root.to_str().unwrap()];
    let refused = said(&containerd.ctr(&[&fixed[..], &[IMAGE, &containerd.id, "/bin/nope"]].concat()));
    assert!(refused.1.contains(r#"exec: "/bin/nope": stat /bin/nope: no such file or directory"#), "{refused:?}");
}

#[test]
fn privileged_a_stock_client_execs_pauses_resumes_kills_and_deletes() {
    let Some(containerd) = Containerd::start() else { return };
    let ran = containerd.run(&["--detach"], "exec sleep 1000");
    assert!(ran.status.success(), "{ran:?}");
    assert_eq!(containerd.exec("a", "echo inside; exit 3"), ("inside\n".to_owned(), String::new(), Some(3)));
    let expected: String = (1..=50_000).map(|number| format!("{number}\n")).collect();
    assert!(containerd.exec("b", "seq 1 50000").0 == expected);
    assert!(containerd.ctr(&["task", "pause", &containerd.id]).status.success());
    let paused = (containerd.status(), containerd.exec("d", "true").1.contains("cannot exec in a paused state"));
    assert_eq!(paused, ("PAUSED".to_owned(), true));
    assert!(containerd.ctr(&["task", "resume", &containerd.id]).status.success());
    assert_eq!(containerd.status(), "RUNNING");
    let killed = said(&containerd.ctr(&["task", "kill", "--signal", "SIGKILL", &containerd.id]));
    assert_eq!(killed, (String::new(), String::new(), Some(0)));
    let deadline = Instant::now() + Duration::from_secs(20);
    while containerd.status() != "STOPPED" {
        assert!(Instant::now() < deadline, "the killed task is {}", containerd.status());
    }
    let deleted = said(&containerd.ctr(&["task", "delete", &containerd.id]));
    assert!(deleted.1.contains("exit code 137"), "{deleted:?}");
    assert_eq!(containerd.status(), "NONE");
}

#[test]
fn privileged_a_container_survives_the_death_of_a_stock_daemon() {
    let Some(mut containerd) = Containerd::start() else { return };
    let ran = containerd.run(&["--detach"], "exec sleep 1000");
    assert!(ran.status.success(), "{ran:?}");
    containerd.kill_and_restart();
    assert_eq!(containerd.status(), "RUNNING");
    assert_eq!(containerd.exec("a", "echo again"), ("again\n".to_owned(), String::new(), Some(0)));
}
