//! Running the OCI runtime's command line (runc, crun, youki).
//!
//! Owns argument lists, deadlines and the runtime's error text. Never waits for a container, never holds a lock.
//! Each call is its own process group and writes its log to a memory file that only this call reads, so errors of
//! two calls in one bundle cannot mix.

mod criu;
mod log;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use rustix::fs::MemfdFlags;

use crate::server::reaper::Reaper;

pub(crate) use criu::{CheckpointCall, CriuError, RestoreCall};

/// Creating runs the bundle's hooks, and on a busy node cgroup setup alone takes seconds.
const CREATE_DEADLINE: Duration = Duration::from_secs(180);
const CALL_DEADLINE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub(crate) enum RuncError {
    #[error("cannot run {}: {source}; install it or set BinaryName in the runtime's options", binary.display())]
    NotRunnable { binary: PathBuf, source: io::Error },
    #[error("{what} took longer than {} s and was killed", deadline.as_secs())]
    TooSlow { what: String, deadline: Duration },
    #[error("{what}: {message}")]
    Refused { what: String, message: String },
    #[error("{what}: {source}")]
    Failed { what: String, source: io::Error },
}

/// One runtime with its state directory.
#[derive(Clone, Debug)]
pub(crate) struct Runc {
    pub(crate) binary: PathBuf,
    pub(crate) root: PathBuf,
    pub(crate) systemd_cgroup: bool,
    pub(crate) reaper: Reaper,
}

/// The child's ends of the container's stdio; `None` is /dev/null.
#[derive(Default)]
pub(crate) struct ChildStdio {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

pub(crate) struct Create<'a> {
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Path,
    pub(crate) pid_file: &'a Path,
    pub(crate) console_socket: Option<&'a Path>,
    pub(crate) no_pivot_root: bool,
    pub(crate) no_new_keyring: bool,
}

pub(crate) struct Exec<'a> {
    pub(crate) id: &'a str,
    pub(crate) process_file: &'a Path,
    pub(crate) pid_file: &'a Path,
    pub(crate) console_socket: Option<&'a Path>,
}

impl Runc {
    pub(crate) async fn create(&self, create: Create<'_>, stdio: ChildStdio) -> Result<(), RuncError> {
        let mut command = Command::new(&self.binary);
        self.global(&mut command);
        command.arg("create").arg("--bundle").arg(create.bundle).arg("--pid-file").arg(create.pid_file);
        if let Some(socket) = create.console_socket {
            command.arg("--console-socket").arg(socket);
        }
        if create.no_pivot_root {
            command.arg("--no-pivot");
        }
        if create.no_new_keyring {
            command.arg("--no-new-keyring");
        }
        command.arg(create.id);
        self.run("create", create.id, command, Output::Container(stdio), CREATE_DEADLINE).await
    }

    pub(crate) async fn exec(&self, exec: Exec<'_>, stdio: ChildStdio) -> Result<(), RuncError> {
        let mut command = Command::new(&self.binary);
        self.global(&mut command);
        command.args(["exec", "--detach", "--process"]).arg(exec.process_file).arg("--pid-file").arg(exec.pid_file);
        if let Some(socket) = exec.console_socket {
            command.arg("--console-socket").arg(socket);
        }
        command.arg(exec.id);
        self.run("exec in", exec.id, command, Output::Container(stdio), CREATE_DEADLINE).await
    }

    pub(crate) async fn start(&self, id: &str) -> Result<(), RuncError> {
        self.call("start", id, &["start", id], CREATE_DEADLINE).await
    }

    /// Succeeds for a container that does not exist, so it may be repeated.
    ///
    /// `--force` kills what is left and waits for it, in runc 1.4 a tenth of a second even for a container that has
    /// ended. So it is the second try: for one that still runs, has processes in its cgroup, or does not exist.
    pub(crate) async fn delete(&self, id: &str) -> Result<(), RuncError> {
        match self.call("delete", id, &["delete", id], CALL_DEADLINE).await {
            Ok(()) => Ok(()),
            Err(_) => self.call("delete", id, &["delete", "--force", id], CALL_DEADLINE).await,
        }
    }

    pub(crate) async fn pause(&self, id: &str) -> Result<(), RuncError> {
        self.call("pause", id, &["pause", id], CALL_DEADLINE).await
    }

    pub(crate) async fn resume(&self, id: &str) -> Result<(), RuncError> {
        self.call("resume", id, &["resume", id], CALL_DEADLINE).await
    }

    /// `resources` is the JSON of the runtime spec's LinuxResources, passed on as it came.
    pub(crate) async fn update(&self, id: &str, resources: &[u8]) -> Result<(), RuncError> {
        let mut command = Command::new(&self.binary);
        self.global(&mut command);
        command.args(["update", "--resources", "-", id]);
        let input =
            self.input(resources).map_err(|source| RuncError::Failed { what: "prepare an update".into(), source })?;
        self.run("update", id, command, Output::Own(Some(input)), CALL_DEADLINE).await
    }

    fn input(&self, bytes: &[u8]) -> io::Result<File> {
        let mut file = memory_file("windlass-resources")?;
        file.write_all(bytes)?;
        io::Seek::rewind(&mut file)?;
        Ok(file)
    }

    async fn call(&self, verb: &str, id: &str, args: &[&str], deadline: Duration) -> Result<(), RuncError> {
        let mut command = Command::new(&self.binary);
        self.global(&mut command);
        command.args(args);
        self.run(verb, id, command, Output::Own(None), deadline).await
    }

    fn global(&self, command: &mut Command) {
        command.arg("--root").arg(&self.root).args(["--log-format", "json"]);
        if self.systemd_cgroup {
            command.arg("--systemd-cgroup");
        }
    }

    async fn run(
        &self,
        verb: &str,
        id: &str,
        command: Command,
        output: Output,
        deadline: Duration,
    ) -> Result<(), RuncError> {
        let name = self.binary.file_name().unwrap_or(self.binary.as_os_str()).to_string_lossy();
        let what = format!("{name} {verb} {id}");
        let failed = |source| RuncError::Failed { what: what.clone(), source };
        let log = memory_file("windlass-runc-log").map_err(failed)?;
        let errors = memory_file("windlass-runc-stderr").map_err(failed)?;
        let mut command = with_log(command, &log);
        match output {
            Output::Container(stdio) => stdio.apply(&mut command),
            Output::Own(input) => {
                let stderr = errors.try_clone().map_err(failed)?;
                command.stdin(input.map_or_else(Stdio::null, Stdio::from)).stdout(Stdio::null()).stderr(stderr);
            }
        }
        command.process_group(0);
        let child = self
            .reaper
            .spawn(&mut command)
            .map_err(|source| RuncError::NotRunnable { binary: self.binary.clone(), source })?;
        // The command holds our copies of the container's pipe ends; they must be closed for readers to see the end.
        drop(command);
        let Ok(code) = tokio::time::timeout(deadline, child.wait()).await else {
            kill_group(child.pid);
            child.wait().await;
            return Err(RuncError::TooSlow { what, deadline });
        };
        if code == 0 {
            return Ok(());
        }
        let message = log::last_error(&log::read(log)).or_else(|| log::last_line(&log::read(errors)));
        Err(RuncError::Refused { what, message: message.unwrap_or_else(|| format!("it exited with {code}")) })
    }
}

/// Where the runtime's own descriptors go.
enum Output {
    /// The container inherits them, so the runtime can only report through its log.
    Container(ChildStdio),
    /// Ours: an optional input, and stderr as a second source of the error text.
    Own(Option<File>),
}

impl ChildStdio {
    fn apply(self, command: &mut Command) {
        let stdio = |fd: Option<OwnedFd>| fd.map_or_else(Stdio::null, Stdio::from);
        command.stdin(stdio(self.stdin)).stdout(stdio(self.stdout)).stderr(stdio(self.stderr));
    }
}

/// `--log` must come before the verb, so the arguments are rebuilt behind it.
fn with_log(command: Command, log: &File) -> Command {
    let mut logged = Command::new(command.get_program());
    // The runtime opens the file through our descriptor table: nothing to name, nothing to clean up.
    logged.arg("--log").arg(format!("/proc/{}/fd/{}", std::process::id(), log.as_raw_fd()));
    logged.args(command.get_args());
    logged
}

fn memory_file(name: &str) -> io::Result<File> {
    Ok(File::from(rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC)?))
}

fn kill_group(pid: i32) {
    if let Some(pid) = rustix::process::Pid::from_raw(pid) {
        // ESRCH only says that the group has just ended by itself.
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
}
