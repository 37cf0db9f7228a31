//! One run of a CNI plugin: environment and standard input in, JSON out, a deadline, and a process group of its own.
//!
//! Dropping the future kills the plugin and its children, as the deadline does; see `runs.rs` for who may.

use std::{
    io,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};

/// What a plugin may answer at most.
const MAX_STDOUT: u64 = 16 << 20;
/// How much of its complaints is kept.
const MAX_STDERR: u64 = 64 << 10;
/// A plugin that is being replaced is busy for as long as the copy takes.
const BUSY_RETRY: Duration = Duration::from_millis(100);
const BUSY_GIVE_UP: Duration = Duration::from_secs(5);

/// A verb of the CNI specification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Gc => "GC",
            Verb::Status => "STATUS",
            Verb::Version => "VERSION",
        }
    }
}

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Run<'a> {
    pub(super) verb: Verb,
    pub(super) executable: &'a Path,
    /// `CNI_PATH`: where plugins find those that they call.
    pub(super) bin_dirs: &'a [PathBuf],
    /// What the run is about; `None` for GC, STATUS and VERSION.
    pub(super) target: Option<Target<'a>>,
    pub(super) stdin: Vec<u8>,
    pub(super) deadline: Duration,
}

/// The attachment a run is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) container: &'a str,
    /// Empty when it is gone.
    pub(super) netns: &'a str,
    pub(super) interface: &'a str,
    pub(super) args: &'a str,
}

/// How a run failed.
#[derive(Debug)]
pub(super) enum Failure {
    /// The plugin said so itself.
    Reported {
        code: u64,
        text: String,
    },
    /// It ended without saying why.
    Died(String),
    Deadline(Duration),
    /// It could not be run, or answered too much.
    Io(io::Error),
}

#[derive(Deserialize)]
struct Reported {
    code: u64,
    #[serde(default)]
    msg: String,
    #[serde(default)]
    details: String,
}

/// Runs a plugin; gives what it wrote.
pub(super) async fn run(run: &Run<'_>) -> Result<Vec<u8>, Failure> {
    let mut group = Group::start(run).await.map_err(Failure::Io)?;
    // Dropped with the error, the group is killed.
    let ended = timeout(run.deadline, group.talk(&run.stdin)).await;
    let (status, stdout, stderr) = ended.map_err(|_| Failure::Deadline(run.deadline))?.map_err(Failure::Io)?;
    if status.success() {
        return Ok(stdout);
    }
    match serde_json::from_slice::<Reported>(&stdout) {
        Ok(Reported { code, msg, details }) => {
            let text = if details.is_empty() { msg } else { format!("{msg}; {details}") };
            Err(Failure::Reported { code, text })
        }
        Err(_) => {
            let said = String::from_utf8_lossy(if stderr.is_empty() { &stdout } else { &stderr }).trim().to_owned();
            let said = if said.is_empty() { "no output".to_owned() } else { said.chars().take(1024).collect() };
            Err(Failure::Died(format!("{status}: {said}")))
        }
    }
}

/// A running plugin, leader of its process group, which is killed unless the leader was waited for.
struct Group {
    child: Child,
    leader: Option<Pid>,
}

impl Group {
    async fn start(run: &Run<'_>) -> io::Result<Group> {
        let mut command = command(run)?;
        let give_up = Instant::now() + BUSY_GIVE_UP;
        loop {
            match command.spawn() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < give_up => {
                    sleep(BUSY_RETRY).await;
                }
                Err(error) => return Err(error),
                Ok(child) => {
                    let leader = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
                    return Ok(Group { child, leader });
                }
            }
        }
    }

    /// Writes the input while reading both outputs, so that neither side can wait for the other.
    async fn talk(&mut self, stdin: &[u8]) -> io::Result<(std::process::ExitStatus, Vec<u8>, Vec<u8>)> {
        let input = self.child.stdin.take();
        let (stdout, stderr) = (self.child.stdout.take(), self.child.stderr.take());
        let write = async {
            let Some(mut input) = input else { return Ok(()) };
            match input.write_all(stdin).await {
                // A plugin need not read what it does not use.
                Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error),
                _ => Ok(()),
            }
        };
        let (_, stdout, stderr) =
            tokio::try_join!(write, read_capped(stdout, MAX_STDOUT), read_tail_dropped(stderr, MAX_STDERR))?;
        let status = self.child.wait().await?;
        // From here on the number may be another process's.
        self.leader = None;
        Ok((status, stdout, stderr))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.leader
            && let Err(error) = kill_process_group(leader, Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(pid = leader.as_raw_nonzero().get(), %error, "cannot kill a cni plugin");
        }
    }
}

fn command(run: &Run<'_>) -> io::Result<Command> {
    let path = std::env::join_paths(run.bin_dirs).map_err(io::Error::other)?;
    let mut command = Command::new(run.executable);
    command
        .env("CNI_COMMAND", run.verb.as_str())
        .env("CNI_PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        // Reaps the leader when the future is dropped; its group is killed by ours.
        .kill_on_drop(true);
    if let Some(target) = run.target {
        command
            .env("CNI_CONTAINERID", target.container)
            .env("CNI_NETNS", target.netns)
            .env("CNI_IFNAME", target.interface)
            .env("CNI_ARGS", target.args);
    }
    Ok(command)
}

async fn read_capped(from: Option<impl AsyncRead + Unpin>, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let Some(from) = from else { return Ok(bytes) };
    from.take(max + 1).read_to_end(&mut bytes).await?;
    if bytes.len() as u64 > max {
        return Err(io::Error::other(format!("wrote more than {} MiB to its standard output", max >> 20)));
    }
    Ok(bytes)
}

/// Keeps the beginning and reads on, so that the writer does not stop.
async fn read_tail_dropped(from: Option<impl AsyncRead + Unpin>, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let Some(mut from) = from else { return Ok(bytes) };
    (&mut from).take(max).read_to_end(&mut bytes).await?;
    tokio::io::copy(&mut from, &mut tokio::io::sink()).await?;
    Ok(bytes)
}
