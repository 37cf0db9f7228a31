//! RemovePodSandbox: a stop, whatever state the pod is in, then its containers, then its own directory.

use std::sync::Arc;

use crate::{
    Error,
    launcher::Shim,
    model::Id,
    record::{ContainerRecord, PodRecord},
    teardown::{self, Task, Torn},
    world::World,
};

/// What a removal did, also where it failed.
pub(crate) struct Removed {
    pub(crate) stopped: Torn,
    /// Containers of which nothing is left.
    pub(crate) containers: Vec<Id>,
    pub(crate) result: Result<(), Error>,
}

/// Removes all of the pod.
pub(crate) async fn run(
    world: Arc<World>,
    pod: PodRecord,
    containers: Vec<ContainerRecord>,
    shim: Option<Arc<dyn Shim>>,
) -> Removed {
    let stopped = teardown::pod(&world, &pod, &containers, shim).await;
    let mut result = stopped.complete(&format!("pod sandbox {}", pod.id));
    let mut gone = Vec::new();
    for container in &containers {
        // A stop that is complete has ended every task.
        let task = if result.is_ok() { Task::None } else { Task::Some(None) };
        let torn = teardown::container(&world, &pod, &container.id, task).await;
        match torn.complete(&format!("container {}", container.id)) {
            Ok(()) => gone.push(container.id.clone()),
            Err(error) => result = result.and(Err(error)),
        }
    }
    let root = teardown::pod_root(&world, &pod.id).await;
    Removed { stopped, containers: gone, result: result.and(root) }
}
