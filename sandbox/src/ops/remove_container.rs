//! RemoveContainer: killed if it runs, then all that belongs to it. Its log is the kubelet's.

use std::sync::Arc;

use crate::{
    launcher::Shim,
    machine::PodPhase,
    record::{ContainerRecord, PodRecord},
    teardown::{self, Task, Torn},
    world::World,
};

/// Tears the container down.
pub(crate) async fn run(
    world: Arc<World>,
    pod: PodRecord,
    mut container: ContainerRecord,
    shim: Option<Arc<dyn Shim>>,
) -> Torn {
    let task = match pod.phase {
        // Its teardown has ended every task.
        PodPhase::Stopped => Task::None,
        PodPhase::New | PodPhase::Ready | PodPhase::NotReady => Task::Some(shim.as_deref()),
    };
    let torn = teardown::container(&world, &pod, &container.id, task).await;
    if torn.complete("").is_ok() {
        torn.exits.iter().for_each(|(_, exit)| container.take_exit(exit));
        world.nri.remove_container(&pod, &container).await;
    }
    torn
}
