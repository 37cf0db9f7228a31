//! StopPodSandbox: every container killed, the pause container ended, the network given back.

use std::sync::Arc;

use futures_util::future::join_all;
use tokio::sync::watch;

use crate::{
    Error,
    launcher::Shim,
    machine::{ContainerPhase, PodPhase},
    record::{ContainerRecord, PodRecord},
    teardown::{self, Torn},
    world::{World, within},
};

/// A pod's container, and what becomes true when its exit is committed.
pub(crate) type Living = (ContainerRecord, watch::Receiver<bool>);

const SIGKILL: i32 = 9;

/// Tears the pod down. Its containers' file systems and its own directory stay until they are removed.
pub(crate) async fn run(
    world: Arc<World>,
    pod: PodRecord,
    containers: Vec<Living>,
    shim: Option<Arc<dyn Shim>>,
) -> Torn {
    Box::pin(quiesce(&world, &pod, &containers, shim.as_deref())).await;
    let containers: Vec<ContainerRecord> = containers.into_iter().map(|(container, _)| container).collect();
    teardown::pod(&world, &pod, &containers, shim).await
}

/// Ends the pod's containers and tells plugins, while the pod itself is still there: that is what they are promised.
/// Without plugins nothing is done; what fails here, the teardown does.
pub(super) async fn quiesce(world: &World, pod: &PodRecord, containers: &[Living], shim: Option<&dyn Shim>) {
    // What plugins were to hear of a stopped pod they have heard.
    if pod.phase == PodPhase::Stopped || !world.nri.has_plugins() {
        return;
    }
    let ends = containers.iter().filter(|(container, _)| container.state.is_some()).map(async |(container, ended)| {
        if container.phase() == ContainerPhase::Running
            && let Some(shim) = shim
            && let Err(error) = end(world, container, ended.clone(), shim).await
        {
            tracing::warn!(container = %container.id, error = error.chain(), "a container of a pod that stops goes on");
        }
        world.nri.settle_container(pod, container).await;
    });
    join_all(ends).await;
    world.nri.stop_pod(pod).await;
}

/// Kills a container, and waits until its owner has committed the exit.
async fn end(
    world: &World,
    container: &ContainerRecord,
    mut ended: watch::Receiver<bool>,
    shim: &dyn Shim,
) -> Result<(), Error> {
    let id = &container.id;
    shim.kill(id, SIGKILL).await?;
    let ended = async {
        // The sender is the owner, which waits for this operation.
        drop(ended.wait_for(|ended| *ended).await);
        Ok(())
    };
    within(world.config.timeouts.kill, || format!("kill container {id}"), ended).await
}
