//! The long-lived server: one thread that serves the task service until it holds nothing and is told to go.
//!
//! It outlives the daemon. Only Shutdown ends it; SIGTERM and SIGINT, which a service manager or a terminal sends to
//! whole groups, do not.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::tz::TimeZone;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::ttrpc;

use super::Failure;
use super::arguments::Arguments;
use super::events::Publisher;
use super::io::IoContext;
use super::reaper::Reaper;
use super::service::Service;
use super::tasks::Tasks;

/// Mounts and reopened logs are rare; their threads need not wait for the next one.
const BLOCKING_THREADS: usize = 4;
const IDLE_THREAD: Duration = Duration::from_secs(1);

/// How long the last events may take to reach the daemon after Shutdown.
const LAST_EVENTS: Duration = Duration::from_secs(2);

pub(crate) fn serve(arguments: &Arguments) -> Result<(), Failure> {
    let listener = take_listener()?;
    // A session of our own: the daemon's terminal and process group are none of ours.
    rustix::process::setsid().map_err(std::io::Error::from)?;
    let own = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(own)).map_err(std::io::Error::from)?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_keep_alive(IDLE_THREAD)
        .build()?;
    runtime.block_on(run(arguments, listener))
}

/// `start` hands the socket over as stdin, which then becomes /dev/null.
fn take_listener() -> Result<UnixListener, Failure> {
    let listener: OwnedFd = std::io::stdin().as_fd().try_clone_to_owned()?;
    let null = File::open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null).map_err(std::io::Error::from)?;
    let listener = UnixListener::from(listener);
    listener.local_addr().map_err(|_| "stdin is no socket; this process is started by the action start")?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

async fn run(arguments: &Arguments, listener: UnixListener) -> Result<(), Failure> {
    let socket = listener.local_addr()?.as_pathname().map(PathBuf::from);
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let shutdown = CancellationToken::new();
    let reaper = Reaper::default();
    let mut children = signal(SignalKind::child())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let daemon = std::env::var_os("TTRPC_ADDRESS").filter(|address| !address.is_empty()).map(PathBuf::from);
    let (events, publishing) = Publisher::new(&arguments.namespace, daemon);
    let publishing = tokio::spawn(publishing);
    let io = IoContext { zone: TimeZone::system(), tasks: TaskTracker::new() };
    let tasks = Arc::new(Tasks::new(&arguments.namespace, reaper.clone(), events, io, shutdown.clone()));
    let serving = ttrpc::serve(listener, Arc::new(Service { tasks: tasks.clone() }), shutdown.clone());
    tokio::pin!(serving);
    let served = loop {
        tokio::select! {
            served = &mut serving => break served,
            _ = children.recv() => reaper.sweep(),
            // Caught and not ignored: an ignored signal would be ignored by every container as well.
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    };
    if let Some(socket) = socket {
        // A successor may have replaced it; then there is nothing of ours to remove.
        let _ = std::fs::remove_file(socket);
    }
    tasks.io.tasks.close();
    // The publisher ends when the last of its senders does, which the tasks hold.
    drop(tasks);
    if tokio::time::timeout(LAST_EVENTS, publishing).await.is_err() {
        super::say("the last events did not reach the daemon");
    }
    Ok(served?)
}
