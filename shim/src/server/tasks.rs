//! Everything the shim holds, and the questions that change nothing.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::proto::{self, process::Status, runc, task};

use super::container::Container;
use super::error::TaskError;
use super::events::Publisher;
use super::io::{IoContext, Outlet};
use super::oom::Kills;
use super::process::{Phase, Process};
use super::reaper::Reaper;
use super::record::Exit;

pub(crate) struct Tasks {
    pub(crate) namespace: String,
    pub(crate) reaper: Reaper,
    pub(crate) events: Publisher,
    pub(crate) io: IoContext,
    pub(crate) shutdown: CancellationToken,
    pub(crate) kills: Kills,
    /// Told whenever a creation has ended.
    settled: Notify,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    containers: HashMap<String, Arc<Container>>,
    creating: HashSet<String>,
}

/// A process found by its ids; keeps its container.
pub(crate) enum Found {
    Init(Arc<Container>),
    Exec(Arc<Process>),
}

impl Deref for Found {
    type Target = Process;

    fn deref(&self) -> &Process {
        match self {
            Self::Init(container) => &container.init,
            Self::Exec(process) => process,
        }
    }
}

impl Tasks {
    pub(crate) fn new(
        namespace: &str,
        reaper: Reaper,
        events: Publisher,
        io: IoContext,
        shutdown: CancellationToken,
    ) -> Self {
        let (kills, settled, state) = (Kills::default(), Notify::new(), Mutex::default());
        Self { namespace: namespace.to_owned(), reaper, events, io, shutdown, kills, settled, state }
    }

    /// Guards two collections for single look-ups and changes; never held across an await or a runtime call.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn reserve(self: &Arc<Self>, id: &str) -> Result<Reservation, TaskError> {
        let mut state = self.state();
        if state.containers.contains_key(id) || !state.creating.insert(id.to_owned()) {
            return Err(TaskError::AlreadyExists(format!("container {id} exists in this shim")));
        }
        Ok(Reservation { tasks: self.clone(), id: id.to_owned() })
    }

    /// Waits for a creation that is under way. A daemon that was killed meanwhile asks what there is before it takes all
    /// down; "nothing" would leave it a container, and a shim that then has one refuses to end.
    pub(crate) async fn settled(&self, id: &str) {
        loop {
            let settled = self.settled.notified();
            let mut settled = std::pin::pin!(settled);
            // Registered before the look, so that an end between the two is not missed.
            settled.as_mut().enable();
            if !self.state().creating.contains(id) {
                return;
            }
            settled.await;
        }
    }

    pub(crate) fn insert(&self, container: Arc<Container>) {
        self.state().containers.insert(container.id.clone(), container);
    }

    pub(crate) fn remove(&self, id: &str) {
        self.state().containers.remove(id);
        self.kills.leave(id);
    }

    pub(crate) fn container(&self, id: &str) -> Result<Arc<Container>, TaskError> {
        self.state().containers.get(id).cloned().ok_or_else(|| TaskError::NotFound("container not created".to_owned()))
    }

    pub(crate) fn process(&self, id: &str, exec_id: &str) -> Result<Found, TaskError> {
        let container = self.container(id)?;
        if exec_id.is_empty() { Ok(Found::Init(container)) } else { container.exec(exec_id).map(Found::Exec) }
    }

    pub(crate) fn query(&self, request: &task::StateRequest) -> Result<task::StateResponse, TaskError> {
        let container = self.container(&request.id)?;
        let process = self.process(&request.id, &request.exec_id)?;
        let (pid, status, exit) = match process.phase() {
            Phase::Added => (0, Status::Created, None),
            Phase::Created { pid } | Phase::Starting { pid } => (pid, Status::Created, None),
            Phase::Running { pid } => (pid, Status::Running, None),
            Phase::Exited(exit) => (exit.pid, Status::Stopped, Some(exit)),
        };
        let paused = status == Status::Running && container.paused.load(Ordering::Relaxed);
        Ok(task::StateResponse {
            id: process.id.clone(),
            bundle: container.bundle.to_string_lossy().into_owned(),
            pid: pid as u32,
            status: if paused { Status::Paused } else { status } as i32,
            stdin: process.request.stdin.clone(),
            stdout: process.request.stdout.clone(),
            stderr: process.request.stderr.clone(),
            terminal: process.request.terminal,
            exit_status: exit.as_ref().map_or(0, |exit| exit.status),
            exited_at: exit.as_ref().map(Exit::at),
            exec_id: request.exec_id.clone(),
        })
    }

    pub(crate) fn pids(&self, request: &task::PidsRequest) -> Result<task::PidsResponse, TaskError> {
        let container = self.container(&request.id)?;
        let execs: HashMap<i32, String> = container
            .execs()
            .iter()
            .filter_map(|exec| match exec.phase() {
                Phase::Running { pid } => Some((pid, exec.id.clone())),
                Phase::Added | Phase::Created { .. } | Phase::Starting { .. } | Phase::Exited(_) => None,
            })
            .collect();
        let pids = container.cgroup.get().map(crate::cgroup::Cgroup::pids).unwrap_or_default();
        let processes = pids.into_iter().map(|pid| proto::process::ProcessInfo {
            pid: pid as u32,
            info: execs.get(&pid).map(|id| proto::to_any(&runc::ProcessDetails { exec_id: id.clone() })),
        });
        Ok(task::PidsResponse { processes: processes.collect() })
    }

    /// An unknown container has no pid, but the shim still says who it is: the daemon reconnects with this.
    pub(crate) fn connect(&self, request: &task::ConnectRequest) -> task::ConnectResponse {
        let phase = self.container(&request.id).map(|container| container.init.phase());
        let task_pid = match phase {
            Ok(Phase::Created { pid } | Phase::Starting { pid } | Phase::Running { pid }) => pid,
            Ok(Phase::Exited(exit)) => exit.pid,
            Ok(Phase::Added) | Err(_) => 0,
        };
        task::ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: task_pid as u32,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Ends the shim, unless it still holds something.
    pub(crate) fn shut_down(&self) {
        let state = self.state();
        if state.containers.is_empty() && state.creating.is_empty() {
            self.shutdown.cancel();
        }
    }

    pub(crate) fn resize(&self, request: &task::ResizePtyRequest) -> Result<(), TaskError> {
        let process = self.process(&request.id, &request.exec_id)?;
        // A process without a terminal, or not yet with one, has no size; containerd's shims say nothing either.
        let Some(console) = process.io.console() else { return Ok(()) };
        let size = rustix::termios::Winsize {
            ws_row: u16::try_from(request.height).unwrap_or(u16::MAX),
            ws_col: u16::try_from(request.width).unwrap_or(u16::MAX),
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(&console, size)
            .map_err(|errno| TaskError::failed(format!("resize the terminal of {}", process.id))(errno.into()))
    }

    pub(crate) fn close_io(&self, request: &task::CloseIoRequest) -> Result<(), TaskError> {
        let process = self.process(&request.id, &request.exec_id)?;
        if request.stdin {
            process.io.stdin.close();
        }
        Ok(())
    }

    pub(crate) async fn reopen_log(&self, id: &str) -> Result<(), TaskError> {
        let container = self.container(id)?;
        let Some(log) = container.init.io.log().cloned() else {
            return match container.init.io.outlet {
                // A container whose log is discarded has nothing to reopen.
                Outlet::Hub(_) => Ok(()),
                Outlet::None | Outlet::Single(_) => {
                    Err(TaskError::WrongState(format!("the log of container {id} is not written by this shim")))
                }
            };
        };
        let what = format!("reopen {}", log.path().display());
        super::blocking(move || log.reopen()).await.map_err(TaskError::failed(what))
    }
}

/// Keeps an id from being created twice at once.
pub(crate) struct Reservation {
    tasks: Arc<Tasks>,
    id: String,
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.tasks.state().creating.remove(&self.id);
        self.tasks.settled.notify_waiters();
    }
}
