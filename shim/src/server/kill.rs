//! Kill: one process through its pidfd, a whole container through its cgroup, or an exec with all it has started.

use std::sync::atomic::Ordering;

use crate::proto::task;
use crate::signals::{kill_until_none, signal_all, signal_tree};

use super::container::Container;
use super::error::TaskError;
use super::process::{Phase, Process};
use super::tasks::{Found, Tasks};

pub(crate) async fn kill(tasks: &Tasks, request: &task::KillRequest) -> Result<(), TaskError> {
    let signal =
        i32::try_from(request.signal).map_err(|_| TaskError::Invalid(format!("{} is no signal", request.signal)))?;
    let container = tasks.container(&request.id)?;
    match tasks.process(&request.id, &request.exec_id)? {
        Found::Init(_) if request.all => kill_container(&container, signal).await,
        Found::Init(_) => kill_one(&container.init, signal)?,
        Found::Exec(exec) if request.all => kill_tree(&container, &exec, signal).await,
        Found::Exec(exec) => kill_one(&exec, signal)?,
    }
    thaw_for(&container, signal).await
}

/// A frozen process of cgroup v1 dies only after it is thawed.
async fn thaw_for(container: &Container, signal: i32) -> Result<(), TaskError> {
    if signal == libc::SIGKILL && container.paused.load(Ordering::Relaxed) {
        container.runc.resume(&container.id).await?;
        container.paused.store(false, Ordering::Relaxed);
    }
    Ok(())
}

fn kill_one(process: &Process, signal: i32) -> Result<(), TaskError> {
    let child = match (process.phase(), process.child()) {
        (Phase::Exited(_), _) => return Err(TaskError::NotFound("process already finished".to_owned())),
        (_, Some(child)) => child,
        (_, None) => return Err(TaskError::WrongState("process not created".to_owned())),
    };
    child.signal(signal).map_err(|error| match error.raw_os_error() {
        Some(libc::ESRCH) => TaskError::NotFound("process already finished".to_owned()),
        Some(libc::EINVAL) => TaskError::Invalid(format!("{signal} is no signal")),
        _ => TaskError::failed(format!("send signal {signal} to {}", process.id))(error),
    })
}

async fn kill_container(container: &Container, signal: i32) {
    if signal == libc::SIGKILL && !container.paused.load(Ordering::Relaxed) {
        kill_rest(container).await;
    } else if let Some(cgroup) = container.cgroup.get() {
        signal_all(cgroup, signal, |pids| pids.clone());
    }
}

/// Ends every process that is left in the container.
pub(crate) async fn kill_rest(container: &Container) {
    let Some(cgroup) = container.cgroup.get() else { return };
    kill_until_none(cgroup, libc::SIGKILL, |pids| pids.clone()).await;
}

async fn kill_tree(container: &Container, exec: &Process, signal: i32) {
    let (Some(cgroup), Some(child)) = (container.cgroup.get(), exec.child()) else { return };
    signal_tree(cgroup, child.pid, signal).await;
}
