//! RemoveContainer: killed if it runs, then all that belongs to it. Its log is the kubelet's.

use std::sync::Arc;

use crate::{
    launcher::Shim,
    machine::PodPhase,
    model::Id,
    record::PodRecord,
    teardown::{self, Task, Torn},
    world::World,
};

/// Tears the container down.
pub(crate) async fn run(world: Arc<World>, pod: PodRecord, id: Id, shim: Option<Arc<dyn Shim>>) -> Torn {
    let task = match pod.phase {
        // Its teardown has ended every task.
        PodPhase::Stopped => Task::None,
        PodPhase::New | PodPhase::Ready | PodPhase::NotReady => Task::Some(shim.as_deref()),
    };
    teardown::container(&world, &pod, &id, task).await
}
