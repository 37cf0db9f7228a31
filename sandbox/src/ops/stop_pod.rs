//! StopPodSandbox: every container killed, the pause container ended, the network given back.

use std::sync::Arc;

use crate::{
    launcher::Shim,
    record::{ContainerRecord, PodRecord},
    teardown::{self, Torn},
    world::World,
};

/// Tears the pod down. Its containers' file systems and its own directory stay until they are removed.
pub(crate) async fn run(
    world: Arc<World>,
    pod: PodRecord,
    containers: Vec<ContainerRecord>,
    shim: Option<Arc<dyn Shim>>,
) -> Torn {
    teardown::pod(&world, &pod, &containers, shim).await
}
