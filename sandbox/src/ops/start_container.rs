//! StartContainer: the task made in the pod's shim, then started.

use std::{sync::Arc, time::SystemTime};

use shim::client::TaskStdio;

use crate::{
    Error,
    checkpoint::{
        archive::{IMAGE, LOG},
        log,
    },
    launcher::{NewTask, Shim},
    model::ContainerState,
    record::{ContainerRecord, PodRecord, start_error},
    stats::cgroup,
    teardown,
    world::{Operation, World},
};

/// Starts the container and answers its pid, or ends what there is of it. Its file system stays for the remove.
///
/// `target`: whether the container lives whose PID namespace this one joins.
pub(crate) async fn run(
    world: Arc<World>,
    pod: PodRecord,
    mut container: ContainerRecord,
    target: Result<(), Error>,
    shim: Arc<dyn Shim>,
    operation: Operation,
) -> Result<i32, Error> {
    let task = new_task(&world, &pod, &container);
    take_over_log(&world, &container).await;
    let starting = async {
        target?;
        let (creating, starting, id) = (Arc::clone(&shim), Arc::clone(&shim), container.id.clone());
        operation.step(async move { creating.create(task).await }).await?;
        world.nri.start_container(&operation, &pod, &container).await?;
        operation.step(async move { starting.start(&id).await }).await
    };
    let started = operation.until_interrupted(starting).await;
    if started.is_err() {
        // The start's own error is the one that counts; what is left of the task goes with the container.
        if let Err(error) = teardown::end_task(&world, &pod, &container.id, Some(shim.as_ref())).await {
            tracing::warn!(container = %container.id, error = error.chain(), "a task that did not start is left");
        }
    }
    match &started {
        Ok(pid) => {
            container.state = Some(ContainerState::Running { pid: *pid, started_at: SystemTime::now() });
            world.nri.post_start(&operation, &pod, &container).await;
        }
        Err(error) => {
            container.end(start_error(error.chain()));
            world.nri.stop_container(&pod, &container).await;
        }
    }
    drop_images(&world, &container).await;
    started
}

/// Begins the log of a restored container with what it had logged. Without that it is restored all the same.
async fn take_over_log(world: &Arc<World>, container: &ContainerRecord) {
    let (Some(_), Some(to)) = (&container.restore, container.log_path.clone()) else { return };
    let from = world.paths.restore(&container.id).join(LOG);
    let operation = Operation::default();
    let taken = operation.blocking(move || {
        log::take_over(&from, &to).map_err(|error| Error::failed(format!("write {}", to.display()), error))
    });
    if let Err(error) = taken.await {
        tracing::warn!(container = %container.id, error = error.chain(), "the log of a checkpoint is not taken over");
    }
}

/// Removes what the container was restored from: it cannot be started again, and memory of processes is in it.
async fn drop_images(world: &Arc<World>, container: &ContainerRecord) {
    if container.restore.is_none() {
        return;
    }
    let (on, directory) = (Arc::clone(world), world.paths.restore(&container.id));
    if let Err(error) = Operation::default().blocking(move || on.node.remove_dir(&directory)).await {
        tracing::warn!(container = %container.id, error = error.chain(), "what a container was restored from is left until it is removed");
    }
}

/// Goes on with a task's output, after another daemon or another connection. The task is none the worse if that fails.
pub(crate) async fn resume(
    world: &World,
    pod: &PodRecord,
    container: &ContainerRecord,
    shim: &dyn Shim,
    started: bool,
) {
    if let Err(error) = shim.resume(new_task(world, pod, container), started).await {
        tracing::warn!(container = %container.id, error = error.chain(), "the output of a container is not read any more");
    }
}

/// The task of a container, as its record says. A function of the record, so that another daemon finds the same.
fn new_task(world: &World, pod: &PodRecord, container: &ContainerRecord) -> NewTask {
    let bundle = world.bundle(pod, &container.id);
    let stdio = TaskStdio {
        id: container.id.to_string(),
        bundle: bundle.path.clone(),
        terminal: container.spec.tty,
        stdin: container.spec.stdin,
        stdin_once: container.spec.stdin_once,
        log: container.log_path.clone(),
        max_line: world.config.max_log_line,
        cgroup: cgroup::directory(&container.oci_spec).unwrap_or_default(),
    };
    NewTask {
        id: container.id.to_string(),
        bundle: bundle.path,
        handler: bundle.handler,
        stdio: Some(stdio),
        io_owner: pod.root_on_host(),
        checkpoint: container.restore.as_ref().map(|_| world.paths.restore(&container.id).join(IMAGE)),
    }
}
