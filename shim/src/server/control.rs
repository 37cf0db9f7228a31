//! Pause, Resume, Update: what the runtime does to a running container.

use std::sync::atomic::Ordering;

use crate::proto::{events, task};

use super::container::Container;
use super::error::TaskError;
use super::process::Phase;
use super::tasks::Tasks;

pub(crate) async fn pause(tasks: &Tasks, id: &str) -> Result<(), TaskError> {
    let container = tasks.container(id)?;
    check_running(&container, "pause")?;
    container.runc.pause(id).await?;
    container.paused.store(true, Ordering::Relaxed);
    tasks.events.publish("/tasks/paused", &events::TaskPaused { container_id: id.to_owned() });
    Ok(())
}

pub(crate) async fn resume(tasks: &Tasks, id: &str) -> Result<(), TaskError> {
    let container = tasks.container(id)?;
    check_running(&container, "resume")?;
    container.runc.resume(id).await?;
    container.paused.store(false, Ordering::Relaxed);
    tasks.events.publish("/tasks/resumed", &events::TaskResumed { container_id: id.to_owned() });
    Ok(())
}

pub(crate) async fn update(tasks: &Tasks, request: &task::UpdateTaskRequest) -> Result<(), TaskError> {
    let container = tasks.container(&request.id)?;
    let resources =
        request.resources.as_ref().ok_or_else(|| TaskError::Invalid("update has no resources".to_owned()))?;
    Ok(container.runc.update(&request.id, &resources.value).await?)
}

fn check_running(container: &Container, verb: &str) -> Result<(), TaskError> {
    match container.init.phase() {
        Phase::Running { .. } => Ok(()),
        Phase::Added | Phase::Created { .. } | Phase::Starting { .. } | Phase::Exited(_) => {
            Err(TaskError::WrongState(format!("cannot {verb} container {}: it is not running", container.id)))
        }
    }
}
