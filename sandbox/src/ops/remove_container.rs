//! RemoveContainer: killed if it runs, then all that belongs to it. Its log is the kubelet's.

use std::sync::Arc;

use tokio::sync::Mutex;

use crate::{
    launcher::Shim,
    machine::PodPhase,
    ops::stop_container::REAPED,
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
    reaped: Arc<Mutex<bool>>,
) -> Torn {
    // One that is being deleted just now is waited for, rather than deleted a second time.
    let reaped = tokio::time::timeout(REAPED, reaped.lock()).await.is_ok_and(|reaped| *reaped);
    let task = match pod.phase {
        // The owner had it deleted when it ended.
        _ if reaped => Task::None,
        // Its teardown has ended every task.
        PodPhase::Stopped => Task::None,
        PodPhase::New | PodPhase::Ready | PodPhase::NotReady => Task::Some(shim.as_deref()),
    };
    let torn = teardown::container(&world, &pod, &container, task).await;
    if torn.complete("").is_ok() {
        torn.exits.iter().for_each(|(_, exit)| container.take_exit(exit));
        world.nri.remove_container(&pod, &container).await;
    }
    torn
}
