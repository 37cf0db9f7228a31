//! One process of a container: its init, or an exec.
//!
//! ```text
//! init  Added ─create─► Created ─start─► Starting ─► Running ─► Exited
//! init of a checkpoint  Added ──start──► Starting ─► Running ─► Exited
//! exec  Added ──────────────────start──► Starting ─► Running ─► Exited
//! ```
//!
//! Invariants: phases only move right (a failed start of an init returns it to Created); an exit that comes while
//! Starting is published after the start; `Exited` stays until the process is deleted.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::watch;

use super::error::TaskError;
use super::io::request::StdioRequest;
use super::io::{ChildSide, IoContext, PipeOwner, ProcessIo};
use super::reaper::Child;
use super::record::Exit;

pub(crate) struct Process {
    /// The container's id for init, else the exec id: what events call the process.
    pub(crate) id: String,
    pub(crate) request: StdioRequest,
    pub(crate) io: ProcessIo,
    child_side: Mutex<Option<ChildSide>>,
    phase: watch::Sender<Phase>,
    ended: watch::Sender<bool>,
    child: OnceLock<Arc<Child>>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    Added,
    Created { pid: i32 },
    Starting { pid: i32 },
    Running { pid: i32 },
    Exited(Exit),
}

impl Process {
    pub(crate) fn new(
        id: &str,
        request: StdioRequest,
        owner: PipeOwner,
        context: &IoContext,
    ) -> Result<Self, TaskError> {
        let (ended, ended_seen) = watch::channel(false);
        let (io, child_side) = ProcessIo::open(&request, owner, context, &ended_seen)?;
        Ok(Self {
            id: id.to_owned(),
            request,
            io,
            child_side: Mutex::new(Some(child_side)),
            phase: watch::Sender::new(Phase::Added),
            ended,
            child: OnceLock::new(),
        })
    }

    pub(crate) fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// What the runtime gives to the process; taken once.
    pub(crate) fn take_child_side(&self) -> Option<ChildSide> {
        self.child_side.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    pub(crate) fn child(&self) -> Option<&Arc<Child>> {
        self.child.get()
    }

    pub(crate) fn created(&self, child: Arc<Child>) {
        let pid = child.pid;
        self.set_child(child);
        self.phase.send_replace(Phase::Created { pid });
    }

    /// Claims the start; only one caller gets it.
    pub(crate) fn begin_start(&self) -> Result<(), TaskError> {
        let claimed = self.phase.send_if_modified(|phase| {
            let pid = match phase {
                Phase::Added => 0,
                Phase::Created { pid } => *pid,
                Phase::Starting { .. } | Phase::Running { .. } | Phase::Exited(_) => return false,
            };
            *phase = Phase::Starting { pid };
            true
        });
        if claimed {
            return Ok(());
        }
        Err(TaskError::WrongState(format!("process {} has been started before", self.id)))
    }

    pub(crate) fn started(&self, pid: i32) {
        self.phase.send_replace(Phase::Running { pid });
    }

    /// An exec's process is known only once it runs.
    pub(crate) fn set_child(&self, child: Arc<Child>) {
        // A process has one child in its life; a second call would be the same one.
        let _ = self.child.set(child);
    }

    /// An init that could not be started is still there, waiting.
    pub(crate) fn start_failed(&self, pid: i32) {
        self.phase.send_replace(Phase::Created { pid });
    }

    pub(crate) fn exited(&self, exit: Exit) {
        self.phase.send_replace(Phase::Exited(exit));
        self.ended.send_replace(true);
    }

    /// Resolves once no start is under way, so that an exit can follow it.
    pub(crate) async fn settled(&self) {
        let mut phase = self.phase.subscribe();
        // An error cannot come: this process holds the sender.
        let _ = phase.wait_for(|phase| !matches!(phase, Phase::Starting { .. })).await;
    }

    pub(crate) async fn wait(&self) -> Exit {
        let mut phase = self.phase.subscribe();
        loop {
            if let Phase::Exited(exit) = &*phase.borrow_and_update() {
                return exit.clone();
            }
            if phase.changed().await.is_err() {
                return Exit::now(0, super::reaper::UNKNOWN_EXIT, false);
            }
        }
    }
}
