//! stdio of one process, between the container's descriptors and what the client asked for.
//!
//! ```text
//! container ─pipe─► copy ─► FIFO | file | CRI log ─► Hub ─► Attach streams (copies, never waited for)
//!                       └─► the one Attach stream of an exec (back-pressure)
//! container ◄─pipe── FIFO copy | Attach streams          with a terminal: the pty master instead of the pipes
//! ```
//!
//! Invariants: a copy ends with its source, or when [`ProcessIo::stop`] is called; after it nothing of the process is
//! written anywhere. A client that went away leaves its output drained, so the process never blocks on it; a FIFO is
//! the exception, where waiting for a reader is what its clients expect.

pub(crate) mod console;
mod copy;
pub(crate) mod request;
mod stdin;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use jiff::tz::TimeZone;
use rustix::fs::{Gid, Uid};
use rustix::pipe::PipeFlags;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::runc::ChildStdio;
use crate::stdio::{
    Stream,
    cri_log::CriLog,
    hub::{Chunk, Hub},
    sink::CriSink,
};
use crate::sys::WatchedFd;
use copy::{Sink, copy};
use request::{Input, Output, StdioRequest, UnknownStdio, parse_input, parse_output};
pub(crate) use stdin::Stdin;

/// Chunks on the way to an exec's Attach stream, at most 16 KiB each, before the process has to wait.
const EXEC_CHUNKS: usize = 8;

#[derive(Debug, thiserror::Error)]
pub(crate) enum IoError {
    #[error(transparent)]
    Unknown(#[from] UnknownStdio),
    #[error("cannot open {url:?}: {source}")]
    Failed { url: String, source: io::Error },
}

/// What all processes of a shim share for their stdio.
#[derive(Clone)]
pub(crate) struct IoContext {
    pub(crate) zone: TimeZone,
    pub(crate) tasks: TaskTracker,
}

/// Who owns the container's pipes, for containers with a user namespace.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct PipeOwner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

/// The running stdio of a process.
pub(crate) struct ProcessIo {
    pub(crate) stdin: Stdin,
    pub(crate) outlet: Outlet,
    log: Option<Arc<CriLog>>,
    console: watch::Sender<Option<Arc<WatchedFd>>>,
    drained: watch::Receiver<bool>,
    stop: CancellationToken,
}

/// Where Attach streams get a process's output from.
pub(crate) enum Outlet {
    /// Nothing to attach to: the client has the output itself.
    None,
    /// Any number of live copies.
    Hub(Arc<Hub>),
    /// Everything, to one stream; taken by the first.
    Single(Mutex<Option<mpsc::Receiver<Chunk>>>),
}

/// The child's side, until the runtime is run.
pub(crate) enum ChildSide {
    Pipes(ChildStdio),
    Terminal,
}

impl ProcessIo {
    /// Opens everything that the request names and starts copying. `ended` becomes true when the process ends.
    pub(crate) fn open(
        request: &StdioRequest,
        owner: PipeOwner,
        context: &IoContext,
        ended: &watch::Receiver<bool>,
    ) -> Result<(Self, ChildSide), IoError> {
        let input = parse_input(&request.stdin)?;
        let mut outputs = [parse_output(&request.stdout)?, parse_output(&request.stderr)?];
        if let Output::File(path) = &outputs[0] {
            // What containerd's shims do: one file takes both streams.
            outputs[1] = Output::File(path.clone());
        }
        let mut plan = Plan::new(&input, &outputs, context);
        let [stdout, stderr] = [
            plan.sink(&outputs[0], Stream::Stdout).map_err(failed(&request.stdout))?,
            plan.sink(&outputs[1], Stream::Stderr).map_err(failed(&request.stderr))?,
        ];
        let (console, console_seen) = watch::channel(None);
        let (drained, drained_seen) = watch::channel(false);
        let stop = CancellationToken::new();
        let (child, stdin, sources) = if request.terminal {
            let stdin = Stdin::terminal(&input, console_seen.clone()).map_err(failed(&request.stdin))?;
            let sources = vec![(Source::Console(console_seen), stdout.unwrap_or(Sink::Discard))];
            (ChildSide::Terminal, stdin, sources)
        } else {
            let mut child = ChildStdio::default();
            let (stdin, child_end) = Stdin::pipe(&input, owner).map_err(failed(&request.stdin))?;
            child.stdin = child_end;
            let mut sources = Vec::new();
            for (sink, end) in [(stdout, &mut child.stdout), (stderr, &mut child.stderr)] {
                let Some(sink) = sink else { continue };
                let (read, write) = pipe(owner).map_err(failed("a pipe"))?;
                *end = Some(write);
                sources.push((Source::Pipe(WatchedFd::new(read).map_err(failed("a pipe"))?), sink));
            }
            (ChildSide::Pipes(child), stdin, sources)
        };
        let Plan { log, hub, single, .. } = plan;
        let outlet = match (&hub, single) {
            (Some(hub), _) => Outlet::Hub(hub.clone()),
            (None, Some((sender, receiver))) => {
                // Keeps the channel open until the process has ended, even if only its stdin is attached.
                let mut ended = ended.clone();
                context.tasks.spawn(async move {
                    ended_or_gone(&mut ended).await;
                    drop(sender);
                });
                Outlet::Single(Mutex::new(Some(receiver)))
            }
            (None, None) => Outlet::None,
        };
        if let Some(feeder) = stdin.feeder() {
            context.tasks.spawn(feeder.run(ended.clone()));
        }
        context.tasks.spawn(pump(sources, hub, drained, ended.clone(), stop.clone()));
        Ok((Self { stdin, outlet, log, console, drained: drained_seen, stop }, child))
    }

    /// The pty master has arrived from the runtime.
    pub(crate) fn set_console(&self, master: OwnedFd) -> io::Result<()> {
        let master = Arc::new(WatchedFd::new(master)?);
        self.console.send_replace(Some(master));
        Ok(())
    }

    pub(crate) fn console(&self) -> Option<Arc<WatchedFd>> {
        self.console.borrow().clone()
    }

    pub(crate) fn log(&self) -> Option<&Arc<CriLog>> {
        self.log.as_ref()
    }

    /// Resolves when all output has been delivered.
    pub(crate) async fn drained(&self) {
        // An error means that the pump is gone, and with it every copy.
        let _ = self.drained.clone().wait_for(|drained| *drained).await;
    }

    /// Ends copies whose source stays open, held by a descendant that lives on.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
        self.stdin.close();
        if let Outlet::Single(receiver) = &self.outlet {
            *receiver.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
    }
}

/// What the outputs of one process share.
struct Plan<'a> {
    log: Option<Arc<CriLog>>,
    hub: Option<Arc<Hub>>,
    single: Option<(mpsc::Sender<Chunk>, mpsc::Receiver<Chunk>)>,
    context: &'a IoContext,
}

impl<'a> Plan<'a> {
    fn new(input: &Input, outputs: &[Output], context: &'a IoContext) -> Self {
        let hub = outputs.iter().any(|output| matches!(output, Output::CriLog { .. })).then(Arc::default);
        let attaches = |output: &Output| matches!(output, Output::Attach { .. });
        let attached = outputs.iter().any(attaches) || matches!(input, Input::Attach { .. });
        let single = (hub.is_none() && attached).then(|| mpsc::channel(EXEC_CHUNKS));
        Self { log: None, hub, single, context }
    }

    fn sink(&mut self, output: &Output, stream: Stream) -> io::Result<Option<Sink>> {
        Ok(Some(match output {
            Output::Null => return Ok(None),
            Output::Fifo(path) => return Sink::open_existing(path),
            Output::File(path) => Sink::create(path)?,
            Output::Attach { hold } => match &self.single {
                Some((sender, _)) => Sink::Single { stream, sender: sender.clone(), hold: *hold },
                None => Sink::Discard,
            },
            Output::CriLog { path, max_line } => {
                if let (Some(path), None) = (path, &self.log) {
                    self.log = Some(Arc::new(CriLog::open(path, crate::server::say)?));
                }
                let log = self.log.clone().filter(|_| path.is_some());
                let hub = self.hub.clone().unwrap_or_default();
                Sink::Cri(Box::new(CriSink::new(stream, log, hub, *max_line, self.context.zone.clone())))
            }
        }))
    }
}

enum Source {
    Pipe(WatchedFd),
    Console(watch::Receiver<Option<Arc<WatchedFd>>>),
}

/// Owns the copies of one process; the last word to Attach streams comes after all of them have ended.
async fn pump(
    sources: Vec<(Source, Sink)>,
    hub: Option<Arc<Hub>>,
    drained: watch::Sender<bool>,
    ended: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    let mut copies = tokio::task::JoinSet::new();
    for (source, sink) in sources {
        let (ended, stop) = (ended.clone(), stop.clone());
        copies.spawn(async move {
            match source {
                Source::Pipe(pipe) => copy(&pipe, sink, ended, &stop).await,
                Source::Console(console) => {
                    if let Some(master) = console_or_end(console, ended.clone()).await {
                        copy(&master, sink, ended, &stop).await;
                    }
                }
            }
        });
    }
    copies.join_all().await;
    if let Some(hub) = hub {
        let mut ended = ended;
        // A process may close its output and live on; its Attach streams still feed its stdin.
        ended_or_gone(&mut ended).await;
        hub.close();
    }
    drained.send_replace(true);
}

/// The pty master once there is one; nothing if the process never started.
pub(crate) async fn console_or_end(
    mut console: watch::Receiver<Option<Arc<WatchedFd>>>,
    mut ended: watch::Receiver<bool>,
) -> Option<Arc<WatchedFd>> {
    tokio::select! {
        biased;
        seen = console.wait_for(Option::is_some) => seen.ok().and_then(|master| master.clone()),
        () = ended_or_gone(&mut ended) => None,
    }
}

/// Resolves when the process has ended, or was forgotten before it ever ran.
pub(crate) async fn ended_or_gone(ended: &mut watch::Receiver<bool>) {
    // An error means that the sender, the process, is gone.
    let _ = ended.wait_for(|ended| *ended).await;
}

fn pipe(owner: PipeOwner) -> io::Result<(OwnedFd, OwnedFd)> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    if owner != PipeOwner::default() {
        // /dev/stdout is reopened by path, so an unprivileged container user must own the pipe.
        rustix::fs::fchown(&write, Some(Uid::from_raw(owner.uid)), Some(Gid::from_raw(owner.gid)))?;
    }
    Ok((read, write))
}

fn failed(url: &str) -> impl Fn(io::Error) -> IoError + use<> {
    let url = url.to_owned();
    move |source| IoError::Failed { url: url.clone(), source }
}
