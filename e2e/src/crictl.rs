//! The real crictl as the tests run it, with no flag but the endpoint. `CRICTL` names the binary; else it is on `PATH`.

use std::{
    ffi::CStr,
    fs::{self, File, OpenOptions},
    io::{Read, Write},
    path::Path,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::OFlags,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use serde_json::{Value, json};

use crate::{
    command::{self, Answer},
    node::TestNode,
};

fn binary() -> String {
    std::env::var("CRICTL").unwrap_or_else(|_| "crictl".into())
}

/// crictl of one node.
pub struct Crictl {
    endpoint: String,
}

impl Crictl {
    pub fn of(node: &TestNode) -> Crictl {
        Crictl { endpoint: node.endpoint() }
    }

    pub fn answer(&self, arguments: &[&str]) -> Answer {
        command::answer(&binary(), &[&["--runtime-endpoint", self.endpoint.as_str()][..], arguments].concat())
    }

    /// The output of a command that has to succeed.
    pub fn run(&self, arguments: &[&str]) -> String {
        command::run(&binary(), &[&["--runtime-endpoint", self.endpoint.as_str()][..], arguments].concat())
    }

    pub fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.run(arguments)).unwrap()
    }

    /// A command to be started in another way.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(["--runtime-endpoint", &self.endpoint]).args(arguments);
        command
    }

    /// A command with this input.
    pub fn fed(&self, arguments: &[&str], input: &[u8]) -> Output {
        let piped = || Stdio::piped();
        let mut child = self.command(arguments).stdin(piped()).stdout(piped()).stderr(piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        thread::scope(|scope| {
            // Beside it: the command may write before it has read everything.
            scope.spawn(move || stdin.write_all(input).unwrap());
            child.wait_with_output().unwrap()
        })
    }

    /// Runs a command on a terminal, types `input` there once `prompt` was printed, and gives what was printed and the exit code.
    pub fn on_a_terminal(&self, arguments: &[&str], prompt: &str, input: &str) -> (String, Option<i32>) {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let name = ptsname(&terminal, Vec::new()).unwrap();
        let side = open_side(&name);
        let mut child = self
            .command(arguments)
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

pub fn write(path: &Path, value: &Value) -> String {
    fs::write(path, serde_json::to_vec_pretty(value).unwrap()).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The configuration of a pod of this name, in a file.
pub fn pod_file(node: &TestNode, name: &str) -> String {
    let config = json!({
        "metadata": {"name": name, "uid": format!("uid-{name}"), "namespace": "default", "attempt": 0},
        "log_directory": node.path("logs"),
        "linux": {"cgroup_parent": format!("/{}", node.leakcheck.cgroup_parent)},
    });
    write(&node.path("pod.json"), &config)
}

/// The configuration of a container of this name, in a file.
pub fn container_file(node: &TestNode, name: &str, image: &str, command: &[&str]) -> String {
    let config = json!({
        "metadata": {"name": name, "attempt": 0},
        "image": {"image": image},
        "command": command,
        "log_path": format!("{name}.log"),
    });
    write(&node.path(&format!("{name}.json")), &config)
}
