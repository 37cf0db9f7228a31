//! stdio through FIFOs, for shims that are not ours: the daemon makes them in the bundle, and is their reader.
//!
//! ```text
//! container ─► shim ─► <bundle>/stdout ─► copy.rs ─► CRI log, and Hub ─► Attach streams
//! exec      ─► shim ─► <bundle>/.exec-<id>-stdout ─► the exec's one Attach stream (back-pressure)
//! process   ◄─ shim ◄─ <bundle>/stdin ◄─ Attach streams
//! ```
//!
//! Invariants: while the daemon lives, a container's output is read whatever becomes of its log and of who is attached.
//! While none lives, the FIFO fills and then the container waits: a stock shim holds both of its ends, so nobody gets
//! SIGPIPE and the next daemon reads on. What such a shim has not yet handed over when it closes the FIFO, because the
//! container ended without a daemon, is lost with the FIFO; that is at most what a pipe holds, 64 KiB.

mod copy;
mod exec;
mod files;

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use jiff::tz::TimeZone;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

pub(super) use copy::Copies;
pub(super) use exec::ExecOutput;
pub(super) use files::FifoInput;

use super::{
    AttachInput, AttachOutput, AttachStream, AttachTo, ExecStdio, StdioUrls, TaskClient, TaskStdio,
    attach::{InputWay, OutputWay},
};
use crate::{
    cgroup::Cgroup,
    proto::extension as wire,
    stdio::{
        Stream,
        cri_log::CriLog,
        hub::{Chunk, Hub},
        sink::CriSink,
    },
    ttrpc::Status,
};

/// How long output may still come once its container has ended: only somebody outside of it can hold the pipe then.
const DRAIN: Duration = Duration::from_secs(2);

/// The FIFOs of all processes of one shim. Clones share them; copies end with the last one.
#[derive(Clone)]
pub struct Fifos(Arc<Inner>);

struct Inner {
    tasks: TaskClient,
    zone: TimeZone,
    /// Where a log that cannot be written is told.
    say: fn(&str),
    stop: CancellationToken,
    work: TaskTracker,
    /// Both locked for single look-ups and changes.
    containers: Mutex<HashMap<String, Arc<Container>>>,
    execs: Mutex<HashMap<(String, String), Exec>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

struct Container {
    stdio: TaskStdio,
    hub: Arc<Hub>,
    log: Option<Arc<CriLog>>,
    cgroup: Cgroup,
    drained: watch::Receiver<bool>,
    ended: watch::Sender<bool>,
    stop: CancellationToken,
}

/// An exec's FIFOs; the streams are taken by its attach.
struct Exec {
    paths: Vec<PathBuf>,
    streams: Option<(Option<FifoInput>, ExecOutput)>,
}

impl Fifos {
    pub(super) fn new(tasks: TaskClient, say: fn(&str)) -> Self {
        Self(Arc::new(Inner {
            tasks,
            say,
            zone: TimeZone::system(),
            stop: CancellationToken::new(),
            work: TaskTracker::new(),
            containers: Mutex::default(),
            execs: Mutex::default(),
        }))
    }

    /// Makes the FIFOs of a task, opens its log, and reads from now on.
    pub(super) async fn prepare(&self, stdio: TaskStdio) -> Result<StdioUrls, Status> {
        let urls = urls(&stdio);
        self.open(stdio, false).await?;
        Ok(urls)
    }

    pub(super) async fn resume(&self, stdio: TaskStdio, started: bool) -> Result<(), Status> {
        if self.containers().contains_key(&stdio.id) {
            return Ok(());
        }
        self.open(stdio, started).await
    }

    async fn open(&self, stdio: TaskStdio, written: bool) -> Result<(), Status> {
        let (id, say, runtime) = (stdio.id.clone(), self.0.say, tokio::runtime::Handle::current());
        let opened = tokio::task::spawn_blocking(move || {
            let _context = runtime.enter();
            Opened::new(stdio, say)
        });
        let opened = opened.await.map_err(Status::internal)?;
        let Opened { stdio, log, outputs } = opened.map_err(|error| failed("open the stdio of", &id, error))?;
        let hub = Arc::new(Hub::default());
        let stop = self.0.stop.child_token();
        let (drained, drained_seen) = watch::channel(false);
        let ended = watch::Sender::new(false);
        let sink = |stream| {
            let max_line = if stdio.max_line == 0 { usize::MAX } else { stdio.max_line };
            CriSink::new(stream, log.clone(), hub.clone(), max_line, self.0.zone.clone())
        };
        let copies = outputs.into_iter().map(|(stream, fifo)| {
            let source = copy::Source { fifo, written };
            copy::copy(source, sink(stream), stop.clone())
        });
        self.0.work.spawn(copy::run_all(copies.collect(), hub.clone(), drained, ended.subscribe(), stop.clone()));
        let cgroup = Cgroup::at(&stdio.cgroup);
        let container = Container { stdio, hub, log, cgroup, drained: drained_seen, ended, stop };
        self.containers().insert(id, Arc::new(container));
        Ok(())
    }

    pub(super) async fn prepare_exec(&self, stdio: ExecStdio) -> Result<StdioUrls, Status> {
        let container = self.container(&stdio.id)?;
        let path = |wanted: bool, name: &str| {
            wanted.then(|| container.stdio.bundle.join(format!(".exec-{}-{name}", stdio.exec_id)))
        };
        let (stdin, stdout) = (path(stdio.stdin, "stdin"), path(stdio.stdout, "stdout"));
        let stderr = path(stdio.stderr && !stdio.terminal, "stderr");
        let url = |path: &Option<PathBuf>| path.as_deref().map(text).unwrap_or_default();
        let urls = StdioUrls { stdin: url(&stdin), stdout: url(&stdout), stderr: url(&stderr) };
        let paths: Vec<PathBuf> = [&stdin, &stdout, &stderr].into_iter().flatten().cloned().collect();
        let key = (stdio.id.clone(), stdio.exec_id.clone());
        let streams = files::make_all(&paths).and_then(|()| {
            let input = stdin.as_deref().map(|path| self.input(path, &stdio.id, &stdio.exec_id, true)).transpose()?;
            Ok((input, ExecOutput::open(stdout.as_deref(), stderr.as_deref())?))
        });
        match streams {
            Ok(streams) => {
                self.execs().insert(key, Exec { paths, streams: Some(streams) });
                Ok(urls)
            }
            Err(error) => {
                files::remove_all(&paths);
                Err(failed("make the stdio of an exec in", &stdio.id, error))
            }
        }
    }

    pub(super) async fn attach(&self, to: &AttachTo) -> Result<AttachStream, Status> {
        let container = self.container(&to.id)?;
        if !to.exec_id.is_empty() {
            let key = (to.id.clone(), to.exec_id.clone());
            let streams = self.execs().get_mut(&key).and_then(|exec| exec.streams.take());
            let (input, output) = streams
                .ok_or_else(|| Status::failed_precondition(format!("exec {} is attached already", to.exec_id)))?;
            let stdin = AttachInput(input.map_or(InputWay::None, InputWay::Fifo));
            return Ok(AttachStream { stdin, output: AttachOutput(OutputWay::Exec(output)) });
        }
        let stdio = &container.stdio;
        let input = if to.stdin && stdio.stdin {
            let input = self.input(&stdio.bundle.join(STDIN), &to.id, "", stdio.stdin_once);
            InputWay::Fifo(input.map_err(|error| failed("open the stdin of", &to.id, error))?)
        } else {
            InputWay::None
        };
        let copies = Copies::new(container.hub.clone(), to.stdout, to.stderr);
        Ok(AttachStream { stdin: AttachInput(input), output: AttachOutput(OutputWay::Copies(copies)) })
    }

    /// Answers when the process has ended and, of a container, its output is in the log.
    pub(super) async fn wait(&self, id: &str, exec_id: &str) -> Result<wire::WaitResponse, Status> {
        let exit = self.0.tasks.wait(id, exec_id).await?;
        let container = if exec_id.is_empty() { self.containers().get(id).cloned() } else { None };
        let mut oom_killed = false;
        if let Some(container) = container {
            drained(&container).await;
            container.ended.send_replace(true);
            // Asked before the task is deleted, and its cgroup with it. Nested cgroups make it more than one file.
            let counted = tokio::task::spawn_blocking(move || container.cgroup.oom_kills().unwrap_or(0)).await;
            oom_killed = counted.is_ok_and(|kills| kills > 0);
        }
        Ok(wire::WaitResponse { exit_status: exit.exit_status, exited_at: exit.exited_at, oom_killed })
    }

    pub(super) async fn reopen_log(&self, id: &str) -> Result<(), Status> {
        // A container whose log is discarded has nothing to reopen.
        let Some(log) = self.container(id)?.log.clone() else { return Ok(()) };
        let path = log.path().display().to_string();
        let reopened = tokio::task::spawn_blocking(move || log.reopen()).await.map_err(Status::internal)?;
        reopened.map_err(|error| Status::internal(format!("reopen {path}: {error}")))
    }

    /// Kills a process of the container and all that it has started. A pid that is not in the container's cgroup is that
    /// of something else, such as a virtual machine's monitor: it is left to the shim.
    pub(super) async fn kill_tree(&self, id: &str, pid: u32) {
        let (Ok(container), Ok(pid)) = (self.container(id), i32::try_from(pid)) else { return };
        if container.cgroup.pids().contains(&pid) {
            crate::signals::signal_tree(&container.cgroup, pid, libc::SIGKILL).await;
        }
    }

    /// Waits until the output is in the log, but not for long, and lets go of everything.
    pub(super) async fn forget(&self, id: &str) {
        let container = self.containers().remove(id);
        if let Some(container) = container {
            drained(&container).await;
            container.stop.cancel();
        }
    }

    pub(super) fn forget_exec(&self, id: &str, exec_id: &str) {
        let exec = self.execs().remove(&(id.to_owned(), exec_id.to_owned()));
        files::remove_all(&exec.map(|exec| exec.paths).unwrap_or_default());
    }

    fn input(&self, path: &Path, id: &str, exec_id: &str, once: bool) -> std::io::Result<FifoInput> {
        let inner = Arc::downgrade(&self.0);
        let (id, exec_id) = (id.to_owned(), exec_id.to_owned());
        // The shim holds the FIFO open for writing as well, until it is told.
        let end = move || {
            let Some(inner) = inner.upgrade() else { return };
            let tasks = inner.tasks.clone();
            inner.work.spawn(async move {
                // A process that has ended needs no end of its input.
                let _ = tasks.close_stdin(&id, &exec_id).await;
            });
        };
        FifoInput::open(path, once.then(|| Box::new(end) as Box<dyn FnOnce() + Send>))
    }

    fn container(&self, id: &str) -> Result<Arc<Container>, Status> {
        let found = self.containers().get(id).cloned();
        found.ok_or_else(|| Status::unavailable(format!("the stdio of container {id} is not open")))
    }

    fn containers(&self) -> MutexGuard<'_, HashMap<String, Arc<Container>>> {
        self.0.containers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<(String, String), Exec>> {
        self.0.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const STDIN: &str = "stdin";
const STDOUT: &str = "stdout";
const STDERR: &str = "stderr";

fn urls(stdio: &TaskStdio) -> StdioUrls {
    let url = |wanted: bool, name: &str| if wanted { text(&stdio.bundle.join(name)) } else { String::new() };
    StdioUrls { stdin: url(stdio.stdin, STDIN), stdout: url(true, STDOUT), stderr: url(!stdio.terminal, STDERR) }
}

/// Bundles lie below the daemon's state directory, whose name is text of the configuration.
fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A task's files, opened. Blocks.
struct Opened {
    stdio: TaskStdio,
    log: Option<Arc<CriLog>>,
    outputs: Vec<(Stream, crate::sys::WatchedFd)>,
}

impl Opened {
    fn new(stdio: TaskStdio, say: fn(&str)) -> std::io::Result<Self> {
        let log = stdio.log.as_deref().map(|path| CriLog::open(path, say)).transpose()?.map(Arc::new);
        let bundle = &stdio.bundle;
        let mut outputs = vec![(Stream::Stdout, bundle.join(STDOUT))];
        if !stdio.terminal {
            outputs.push((Stream::Stderr, bundle.join(STDERR)));
        }
        if stdio.stdin {
            files::make_all(&[bundle.join(STDIN)])?;
        }
        let open = |(stream, path): (Stream, PathBuf)| {
            files::make_all(std::slice::from_ref(&path))?;
            Ok((stream, files::open_reader(&path)?))
        };
        let outputs = outputs.into_iter().map(open).collect::<std::io::Result<_>>()?;
        Ok(Self { stdio, log, outputs })
    }
}

async fn drained(container: &Container) {
    let mut seen = container.drained.clone();
    // Neither a late writer nor a copy that is gone is waited for.
    let _ = tokio::time::timeout(DRAIN, seen.wait_for(|drained| *drained)).await;
}

fn failed(what: &str, id: &str, error: std::io::Error) -> Status {
    Status::internal(format!("{what} container {id}: {error}"))
}

fn to_output(chunk: Chunk) -> super::Output {
    match chunk.stream {
        Stream::Stdout => super::Output::Stdout(chunk.bytes),
        Stream::Stderr => super::Output::Stderr(chunk.bytes),
    }
}

#[cfg(test)]
mod tests;
