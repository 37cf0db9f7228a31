//! Not a request: the connection to a pod's shim was lost. Either it is found again, or what it held is ended.

use std::{sync::Arc, time::Duration};

use crate::{
    Error,
    launcher::{Shim, TaskState},
    machine::ContainerPhase,
    model::Id,
    ops::start_container,
    record::{ContainerRecord, PodRecord},
    teardown,
    world::World,
};

/// What became of the pod.
pub(crate) enum Rescued {
    /// The shim answers again, and this is what it knows of the containers. Exits are watched for anew.
    Found { shim: Arc<dyn Shim>, states: Vec<(Id, Option<TaskState>)> },
    /// The shim is gone, and with it every process of the pod. The error tells which one may be left.
    Lost(Result<(), Error>),
}

const PAUSE: Duration = Duration::from_millis(100);

/// Looks for the shim once, and else ends the tasks without it.
pub(crate) async fn run(world: Arc<World>, pod: PodRecord, containers: Vec<ContainerRecord>) -> Rescued {
    // A shim that takes connections and drops them must not make this a busy loop.
    tokio::time::sleep(PAUSE).await;
    let found = world.launcher.reconnect(world.bundle(&pod, &pod.id)).await;
    if let Ok(Some(shim)) = found
        // A shim that is ending may still take a connection.
        && let Ok(Some(_)) = shim.state(&pod.id).await
        && let Ok(states) = states(&world, &pod, shim.as_ref(), &containers).await
    {
        return Rescued::Found { shim, states };
    }
    let mut ended = Ok(());
    let started = containers.iter().filter(|container| !container.never_started());
    for id in started.map(|container| &container.id).chain([&pod.id]) {
        let end = teardown::end_task(&world, &pod, id, None).await;
        ended = ended.and(end.map(drop));
    }
    Rescued::Lost(ended)
}

async fn states(
    world: &World,
    pod: &PodRecord,
    shim: &dyn Shim,
    containers: &[ContainerRecord],
) -> Result<Vec<(Id, Option<TaskState>)>, Error> {
    let mut states = Vec::new();
    for container in containers.iter().filter(|container| container.phase() == ContainerPhase::Running) {
        start_container::resume(world, pod, container, shim, true).await;
        states.push((container.id.clone(), shim.state(&container.id).await?));
    }
    Ok(states)
}
