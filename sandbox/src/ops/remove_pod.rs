//! RemovePodSandbox: a stop, whatever state the pod is in, then its containers, then its own directory.

use std::sync::Arc;

use super::stop_pod::{Living, quiesce};
use crate::{
    Error,
    launcher::Shim,
    machine::PodPhase,
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
    containers: Vec<Living>,
    shim: Option<Arc<dyn Shim>>,
) -> Removed {
    Box::pin(quiesce(&world, &pod, &containers, shim.as_deref())).await;
    let mut containers: Vec<ContainerRecord> = containers.into_iter().map(|(container, _)| container).collect();
    let stopped = teardown::pod(&world, &pod, &containers, shim).await;
    let mut result = stopped.complete(&format!("pod sandbox {}", pod.id));
    let mut gone = Vec::new();
    for container in &mut containers {
        if let Some((_, exit)) = stopped.exits.iter().find(|(id, _)| *id == container.id) {
            container.take_exit(exit);
        }
        // A stop that is complete has ended every task.
        let task = if result.is_ok() { Task::None } else { Task::Some(None) };
        let torn = teardown::container(&world, &pod, container, task).await;
        match torn.complete(&format!("container {}", container.id)) {
            Ok(()) => {
                Box::pin(world.nri.remove_container(&pod, container)).await;
                gone.push(container.id.clone());
            }
            Err(error) => result = result.and(Err(error)),
        }
    }
    let root = teardown::pod_root(&world, &pod.id).await;
    if result.is_ok() && root.is_ok() && pod.phase != PodPhase::New {
        Box::pin(world.nri.remove_pod(&pod)).await;
    }
    Removed { stopped, containers: gone, result: result.and(root) }
}
