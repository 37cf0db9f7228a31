//! Delete: forgets a process that has ended; for init, takes the container down.

use std::sync::Arc;
use std::time::Duration;

use crate::mount::unmount_all;
use crate::proto::{events, task};

use super::container::Container;
use super::error::TaskError;
use super::process::{Phase, Process};
use super::reaper::UNKNOWN_EXIT;
use super::record::Exit;
use super::tasks::{Found, Tasks};

/// How long output may still be on its way when its process is deleted.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) async fn delete(tasks: &Tasks, request: &task::DeleteRequest) -> Result<task::DeleteResponse, TaskError> {
    match tasks.process(&request.id, &request.exec_id)? {
        Found::Init(container) => delete_init(tasks, container).await,
        Found::Exec(exec) => delete_exec(&*tasks.container(&request.id)?, &exec).await,
    }
}

async fn delete_exec(container: &Container, exec: &Process) -> Result<task::DeleteResponse, TaskError> {
    let exit = match exec.phase() {
        Phase::Exited(exit) => Some(exit),
        Phase::Added => None,
        Phase::Created { .. } | Phase::Starting { .. } | Phase::Running { .. } => return Err(still_running(exec)),
    };
    match exit {
        Some(_) => drain(exec).await,
        // It never ran; whoever waits for it or is attached to it must not wait for ever.
        None => exec.exited(Exit::now(0, UNKNOWN_EXIT, false)),
    }
    exec.io.stop();
    container.remove_exec(&exec.id);
    super::launch::remove_files(&container.bundle, &exec.id);
    Ok(response(exit.as_ref()))
}

/// Two deletes at once would be two of the OCI runtime, each of which runs the container's hooks.
async fn delete_init(tasks: &Tasks, container: Arc<Container>) -> Result<task::DeleteResponse, TaskError> {
    let exit = container.deleted.get_or_try_init(|| take_down(tasks, &container)).await?;
    Ok(response(Some(exit)))
}

async fn take_down(tasks: &Tasks, container: &Container) -> Result<Exit, TaskError> {
    let init = &container.init;
    match (init.phase(), init.child()) {
        (Phase::Exited(_), _) => {}
        (Phase::Created { .. }, Some(child)) => {
            // ESRCH says that it is gone already, which is what is wanted.
            let _ = child.signal(libc::SIGKILL);
        }
        // From a checkpoint, and never started.
        (Phase::Added, None) => init.exited(Exit::now(0, UNKNOWN_EXIT, false)),
        _ => return Err(still_running(init)),
    }
    let exit = init.wait().await;
    drain(init).await;
    init.io.stop();
    for exec in container.execs() {
        if exec.phase() == Phase::Added {
            exec.exited(Exit::now(0, UNKNOWN_EXIT, false));
        }
        exec.io.stop();
    }
    container.runc.delete(&container.id).await?;
    let rootfs = container.bundle.join("rootfs");
    super::blocking(move || unmount_all(&rootfs)).await?;
    let event = events::TaskDelete {
        container_id: container.id.clone(),
        pid: exit.pid as u32,
        exit_status: exit.status,
        exited_at: Some(exit.at()),
        id: container.id.clone(),
    };
    tasks.events.publish("/tasks/delete", &event);
    tasks.remove(&container.id);
    Ok(exit)
}

async fn drain(process: &Process) {
    // Whoever still holds the pipes has had its time.
    let _ = tokio::time::timeout(DRAIN_DEADLINE, process.io.drained()).await;
}

fn still_running(process: &Process) -> TaskError {
    TaskError::WrongState(format!("cannot delete a running process {}; kill it first", process.id))
}

fn response(exit: Option<&Exit>) -> task::DeleteResponse {
    task::DeleteResponse {
        pid: exit.map_or(0, |exit| exit.pid as u32),
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map(Exit::at),
    }
}
