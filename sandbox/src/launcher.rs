//! The seam to shims: starting one, finding it again, and the life of its tasks.
//!
//! Operations see only these two traits. The real ones are in `launcher/process.rs`; `tests/crash.rs` has fakes. What a
//! shim knows as "not found" is success or `None` here, because every caller of these has the same use for it.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use futures_util::future::BoxFuture;
use oci_spec::runtime::LinuxResources;
use shim::client::{Streams, TaskClient, TaskStdio};

use crate::{Error, Handler, model::Id};

mod clean_up;
mod installed;
mod options;
mod process;

pub use process::ShimLauncher;

/// Starts shims. A shim outlives this process.
pub trait Launcher: Send + Sync {
    /// Whether what a handler needs is on this host. Looks anew each time, and blocks.
    fn check(&self, name: &str, handler: &Handler) -> Result<(), Error> {
        let _ = (name, handler);
        Ok(())
    }

    /// Starts the shim for a bundle that is complete, and connects to it. On failure no process is left.
    fn launch(&self, bundle: Bundle) -> BoxFuture<'_, Result<Arc<dyn Shim>, Error>>;

    /// Connects to the shim that was started for this bundle; `None` if nobody answers there any more.
    fn reconnect(&self, bundle: Bundle) -> BoxFuture<'_, Result<Option<Arc<dyn Shim>>, Error>>;

    /// Cleans up after a shim that is gone, by its own `delete` command: the OCI runtime's state, cgroup, processes.
    /// A bundle whose task no shim was ever asked for, or that is gone, is clean.
    fn clean_up(&self, bundle: Bundle) -> BoxFuture<'_, Result<(), Error>>;

    /// Takes away the socket of the shim that a pod had, if it was killed: one that ends by itself does so. Blocks.
    fn remove_socket(&self, pod: &Id) -> Result<(), Error>;
}

/// One running shim. Every call has a deadline, except `wait`. Dropping all handles only disconnects.
pub trait Shim: Send + Sync {
    /// Makes the task of a container; answers its pid.
    fn create(&self, task: NewTask) -> BoxFuture<'_, Result<i32, Error>>;

    /// Starts the task; answers its pid.
    fn start<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<i32, Error>>;

    /// What the task does; `None` if the shim has no such task.
    fn state<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<Option<TaskState>, Error>>;

    /// Waits until the task ended. Fails when the shim is lost or the task is deleted meanwhile.
    fn wait<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<TaskExit, Error>>;

    /// Signals the task's first process. A task that has ended or is gone needs no signal.
    fn kill<'a>(&'a self, id: &'a Id, signal: i32) -> BoxFuture<'a, Result<(), Error>>;

    /// Holds a running task to other limits. One that has ended or is gone needs none.
    fn update<'a>(&'a self, id: &'a Id, limits: LinuxResources) -> BoxFuture<'a, Result<(), Error>>;

    /// Forgets an ended task and frees what it had. One that is gone is deleted.
    fn delete<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<(), Error>>;

    /// Goes on with the stdio of a task that runs, or has ended while no daemon was there. `started` says that its creation
    /// had come to its end. Nothing to do for shims that keep it by themselves.
    fn resume(&self, task: NewTask, started: bool) -> BoxFuture<'_, Result<(), Error>> {
        drop((task, started));
        Box::pin(std::future::ready(Ok(())))
    }

    /// Ends the shim, once it has no tasks. One that is gone has ended.
    fn shutdown<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<(), Error>>;

    /// The clients for what changes no durable state: exec, attach, logs. `None` in tests of the life cycle.
    fn clients(&self) -> Option<Clients>;
}

/// Where a container's files for its shim are, and with what it runs.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub id: Id,
    pub path: PathBuf,
    pub handler: Handler,
}

/// What a task is made from. Its root file system is mounted already.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewTask {
    pub id: String,
    pub bundle: PathBuf,
    pub handler: Handler,
    /// `None` for a pause container, which has none.
    pub stdio: Option<TaskStdio>,
    /// The user and group that pipes and terminals are given to, so that a mapped root can open its own.
    pub io_owner: (u32, u32),
    /// The images of CRIU that its processes are restored from when it is started.
    pub checkpoint: Option<PathBuf>,
}

/// The state of a task as its shim tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// Made, not started.
    Created,
    Running {
        pid: i32,
    },
    Stopped(TaskExit),
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskExit {
    pub code: i32,
    pub at: SystemTime,
    /// The kernel killed a process of it for memory.
    pub oom_killed: bool,
}

/// The two clients of one shim.
#[derive(Clone)]
pub struct Clients {
    pub tasks: TaskClient,
    pub streams: Streams,
}
