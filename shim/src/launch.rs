//! Running a shim's binary: `start`, which leaves a shim process behind, and `delete`, which cleans up without one.
//!
//! The binary runs in the bundle, in a process group of its own, with a deadline; past it the whole group is killed.
//! The shim it leaves behind has moved to another group by then, and is nobody's child but pid 1's.

use std::{
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use prost::Message;
use prost_types::Any;
use rustix::{
    fs::{FileType, Mode},
    process::{Pid, Signal},
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::unix::pipe,
    process::{Child, Command},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    bootstrap::{Bootstrap, BootstrapError},
    proto::{bootstrap as wire, task},
};

/// Output of the binary beyond this is read and forgotten.
const KEPT_OUTPUT: usize = 16 << 10;

/// How long output may still come once the binary has exited. Whoever still holds the pipe then is not waited for.
const DRAIN: Duration = Duration::from_millis(200);

/// The FIFO in the bundle to which a shim writes its own log.
const LOG: &str = "log";

/// A run of a shim's binary for one task.
#[derive(Debug, Clone)]
pub struct Launch {
    /// Absolute.
    pub binary: PathBuf,
    pub namespace: String,
    pub id: String,
    pub bundle: PathBuf,
    /// The daemon's sockets.
    pub grpc_address: String,
    pub ttrpc_address: String,
    pub debug: bool,
    /// The runtime's options, such as `containerd.runc.v1.Options`.
    pub options: Option<Any>,
    /// For the whole run.
    pub deadline: Duration,
}

#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error(
        "shim {binary} is not installed: install it, or name another one as the runtime's type or path in the configuration"
    )]
    Missing { binary: PathBuf },
    #[error("shim {binary} {verb} did not end within {deadline:?} and was killed{}", said(.stderr))]
    TimedOut { binary: PathBuf, verb: &'static str, deadline: Duration, stderr: String },
    #[error("shim {binary} {verb} failed with {status}{}", said(.stderr))]
    Exited { binary: PathBuf, verb: &'static str, status: ExitStatus, stderr: String },
    #[error("shim {binary} started, but cannot be used{}", said(.stderr))]
    Bootstrap {
        binary: PathBuf,
        stderr: String,
        #[source]
        source: BootstrapError,
    },
    #[error("{what}")]
    Failed {
        what: String,
        #[source]
        source: io::Error,
    },
}

impl Launch {
    /// Starts the task's shim, or finds the one of its group, and records in the bundle how to reach it.
    pub async fn start(&self) -> Result<Bootstrap, LaunchError> {
        make_log(&self.bundle)?;
        let output = self.run_start().await?;
        let unusable =
            |source| LaunchError::Bootstrap { binary: self.binary.clone(), stderr: output.stderr.clone(), source };
        let bootstrap = Bootstrap::parse_reply(&output.stdout).map_err(unusable)?;
        let (record, bundle) = (bootstrap.clone(), self.bundle.clone());
        tokio::task::spawn_blocking(move || record.write(&bundle))
            .await
            .map_err(|error| failed("write bootstrap.json", io::Error::other(error)))?
            .map_err(unusable)?;
        Ok(bootstrap)
    }

    /// Cleans up what a task left on the host, whether or not its shim lives, and tells how its init ended.
    pub async fn delete(&self) -> Result<task::DeleteResponse, LaunchError> {
        let output = self.run("delete", self.delete_command(), &self.legacy_input(), self.end()).await?;
        task::DeleteResponse::decode(output.stdout.as_slice())
            .map_err(|error| failed("parse what the shim's delete printed", io::Error::other(error)))
    }

    /// Runs `start` with today's input, and if the shim fails, with the older form.
    ///
    /// Shims built from containerd 1.6 take the parameters for options of a type they do not know and exit, and those
    /// from 2.4 on refuse the older form, so neither form suits all. Both fail before they start anything.
    async fn run_start(&self) -> Result<Output, LaunchError> {
        let end = self.end();
        let Some(params) = self.params() else {
            return self.run("start", self.start_command(), &self.legacy_input(), end).await;
        };
        match self.run("start", self.start_command(), &params.encode_to_vec(), end).await {
            Err(LaunchError::Exited { stderr: first, .. }) => {
                let second = self.run("start", self.start_command(), &self.legacy_input(), end).await;
                second.map_err(|error| error.after(&first))
            }
            ended => ended,
        }
    }

    fn end(&self) -> Instant {
        Instant::now() + self.deadline
    }

    fn start_command(&self) -> Command {
        let mut command = self.command();
        command.arg("start");
        command
    }

    fn delete_command(&self) -> Command {
        let mut command = self.command();
        command.arg("-bundle").arg(&self.bundle).arg("delete");
        command
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .current_dir(&self.bundle)
            .args(["-namespace", &self.namespace, "-address", &self.grpc_address, "-publish-binary"])
            .arg(publish_binary())
            .args(["-id", &self.id])
            .args(self.debug.then_some("-debug"))
            .env("NAMESPACE", &self.namespace)
            .env("TTRPC_ADDRESS", &self.ttrpc_address)
            .env("GRPC_ADDRESS", &self.grpc_address)
            // What every containerd since 1.7 says, whatever it really knows; shims refuse to start on another number.
            .env("MAX_SHIM_VERSION", "2")
            // A Go shim has little to do; more threads only cost memory.
            .env("GOMAXPROCS", "2")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true);
        command
    }

    fn legacy_input(&self) -> Vec<u8> {
        self.options.as_ref().map(Any::encode_to_vec).unwrap_or_default()
    }

    /// What `start` reads, except in the two shims that are older than it and known by their names.
    fn params(&self) -> Option<wire::BootstrapParams> {
        let name = self.binary.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if name == "containerd-shim-runc-v1" || name.starts_with("containerd-shim-runhcs-v1") {
            return None;
        }
        let level = if self.debug { wire::LogLevel::Debug } else { wire::LogLevel::Info };
        Some(wire::BootstrapParams {
            instance_id: self.id.clone(),
            namespace: self.namespace.clone(),
            log_level: level.into(),
            containerd_version: env!("CARGO_PKG_VERSION").to_owned(),
            containerd_ttrpc_address: self.ttrpc_address.clone(),
            containerd_grpc_address: self.grpc_address.clone(),
            containerd_binary: publish_binary().to_string_lossy().into_owned(),
            extensions: self.options.iter().map(|value| wire::Extension { value: Some(value.clone()) }).collect(),
            socket_dir: None,
        })
    }

    async fn run(
        &self,
        verb: &'static str,
        mut command: Command,
        input: &[u8],
        end: Instant,
    ) -> Result<Output, LaunchError> {
        let mut child = command.spawn().map_err(|error| self.not_spawned(error))?;
        let group = Group::of(&child);
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let ended = tokio::time::timeout_at(end, finish(&mut child, input, &mut stdout, &mut stderr)).await;
        let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
        let binary = self.binary.clone();
        match ended {
            // Dropping the group kills it.
            Err(_) => Err(LaunchError::TimedOut { binary, verb, deadline: self.deadline, stderr }),
            Ok(Err(source)) => Err(failed(&format!("wait for shim {} {verb}", binary.display()), source)),
            Ok(Ok(status)) => {
                group.leave();
                if !status.success() {
                    return Err(LaunchError::Exited { binary, verb, status, stderr });
                }
                Ok(Output { stdout, stderr })
            }
        }
    }

    /// `NotFound` is also what a missing bundle or a missing interpreter of a script gives.
    fn not_spawned(&self, source: io::Error) -> LaunchError {
        if source.kind() == io::ErrorKind::NotFound && !self.binary.exists() {
            return LaunchError::Missing { binary: self.binary.clone() };
        }
        failed(&format!("run shim {} in {}", self.binary.display(), self.bundle.display()), source)
    }
}

impl LaunchError {
    /// Adds what the run before this one said: either may be the one that tells what is wrong.
    fn after(mut self, first: &str) -> Self {
        if let Self::TimedOut { stderr, .. } | Self::Exited { stderr, .. } = &mut self
            && stderr != first
        {
            *stderr = format!("{first}; then, with the options alone as its input: {stderr}");
        }
        self
    }
}

/// Opens the bundle's log FIFO for reading, both ways, so that it never ends and a shim can open it at any time.
///
/// A shim blocks when nobody reads its log and the pipe is full, so the daemon reads it as long as the shim lives.
pub fn open_log(bundle: &Path) -> Result<pipe::Receiver, LaunchError> {
    make_log(bundle)?;
    let path = bundle.join(LOG);
    pipe::OpenOptions::new()
        .read_write(true)
        .open_receiver(&path)
        .map_err(|source| failed(&format!("open {}", path.display()), source))
}

fn make_log(bundle: &Path) -> Result<(), LaunchError> {
    let path = bundle.join(LOG);
    match rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, Mode::RWXU, 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(failed(&format!("make FIFO {}", path.display()), error.into())),
    }
}

struct Output {
    stdout: Vec<u8>,
    stderr: String,
}

/// The process group of a running binary. Killed when dropped before `leave`, with the error, and when the caller gives up.
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|pid| Pid::from_raw(pid.cast_signed())))
    }

    /// The binary was reaped: its number may be someone else's from now on.
    fn leave(mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // It is gone already, which is what is wanted.
            let _ = rustix::process::kill_process_group(group, Signal::KILL);
        }
    }
}

/// Feeds the binary, collects what it prints, and waits for its exit.
async fn finish(child: &mut Child, input: &[u8], stdout: &mut Vec<u8>, stderr: &mut Vec<u8>) -> io::Result<ExitStatus> {
    let exited = CancellationToken::new();
    let mut stdin = child.stdin.take().expect("stdin is piped");
    let (out, err) = (child.stdout.take().expect("stdout is piped"), child.stderr.take().expect("stderr is piped"));
    let feed = async move {
        // A shim that does not read its input closes it or exits. Its status says how that went.
        let _ = stdin.write_all(input).await;
    };
    let wait = async {
        let status = child.wait().await;
        exited.cancel();
        status
    };
    let (status, (), out, err) = tokio::join!(wait, feed, collect(out, stdout, &exited), collect(err, stderr, &exited));
    out?;
    err?;
    status
}

/// Reads to the end, or until a while after the binary exited: a shim that kept the pipe must not hold up its start.
async fn collect(mut source: impl AsyncRead + Unpin, kept: &mut Vec<u8>, exited: &CancellationToken) -> io::Result<()> {
    let mut chunk = vec![0; 4096];
    let late = async {
        exited.cancelled().await;
        tokio::time::sleep(DRAIN).await;
    };
    let reading = async {
        loop {
            let got = source.read(&mut chunk).await?;
            if got == 0 {
                return Ok(());
            }
            let room = KEPT_OUTPUT.saturating_sub(kept.len());
            kept.extend_from_slice(&chunk[..got.min(room)]);
        }
    };
    tokio::select! {
        biased;
        ended = reading => ended,
        () = late => Ok(()),
    }
}

/// The daemon itself: shims of containerd 1.x run it as `publish` when they cannot reach its socket.
fn publish_binary() -> OsString {
    std::env::current_exe().unwrap_or_default().into()
}

fn failed(what: &str, source: io::Error) -> LaunchError {
    LaunchError::Failed { what: format!("cannot {what}"), source }
}

fn said(stderr: &str) -> String {
    if stderr.is_empty() { String::new() } else { format!(": {stderr}") }
}
