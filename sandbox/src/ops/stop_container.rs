//! StopContainer: the stop signal once, the grace, then SIGKILL.

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{Mutex, watch},
    time::{Instant, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    Error,
    launcher::Shim,
    model::Id,
    record::{ContainerRecord, PodRecord},
    teardown,
    world::{World, within},
};

const SIGKILL: i32 = 9;

/// How a container is to be stopped.
pub(crate) struct Stop {
    /// `None` if the signal was sent by an earlier stop, or is not wanted.
    pub(crate) signal: Option<i32>,
    /// When to kill. A later stop with less grace moves it forward.
    pub(crate) kill_at: watch::Receiver<Instant>,
    /// Becomes true when the owner has committed the container's exit.
    pub(crate) ended: watch::Receiver<bool>,
    /// Held from the end on while the shim frees what the task had.
    pub(crate) reaped: Arc<Mutex<bool>>,
    /// Cancelled when the connection to the shim is lost: nobody would tell the container's end.
    pub(crate) lost: CancellationToken,
}

/// How long a stop waits for that: its cgroup is then gone when the kubelet removes the pod's. The end itself is certain.
pub(crate) const REAPED: Duration = Duration::from_secs(1);

/// How long after a call that failed the owner may take to notice that the connection is lost.
const NOTICED: Duration = Duration::from_secs(1);

/// Stops a container that runs. Returns when its exit is committed and, mostly, its task is gone. Fails when the shim is lost;
/// what has become of the container the owner then finds out.
pub(crate) async fn run(
    world: Arc<World>,
    pod: PodRecord,
    container: ContainerRecord,
    shim: Option<Arc<dyn Shim>>,
    stop: Stop,
) -> Result<(), Error> {
    let reaped = Arc::clone(&stop.reaped);
    end(world, pod, container, shim, stop).await?;
    // Past the time, the remove waits for it.
    drop(timeout(REAPED, reaped.lock()).await);
    Ok(())
}

async fn end(
    world: Arc<World>,
    pod: PodRecord,
    container: ContainerRecord,
    shim: Option<Arc<dyn Shim>>,
    mut stop: Stop,
) -> Result<(), Error> {
    let id = &container.id;
    let Some(shim) = shim else {
        return teardown::end_task(&world, &pod, id, None).await.map(drop);
    };
    let lost = stop.lost.clone();
    let ended = tokio::select! {
        biased;
        ended = signal_until_it_ends(&world, id, shim.as_ref(), &mut stop) => ended,
        () = lost.cancelled() => Err(Error::Unavailable(format!("the shim of container {id} was lost"))),
    };
    if let Err(Error::Unavailable(_)) = &ended {
        drop(timeout(NOTICED, lost.cancelled()).await);
    }
    ended?;
    // The owner tells it when the container ends; this waits for it, so that no later event overtakes it.
    world.nri.stop_container(&pod, &container).await;
    Ok(())
}

async fn signal_until_it_ends(world: &World, id: &Id, shim: &dyn Shim, stop: &mut Stop) -> Result<(), Error> {
    if let Some(signal) = stop.signal
        && *stop.kill_at.borrow() > Instant::now()
    {
        shim.kill(id, signal).await?;
        if wait(stop).await {
            return Ok(());
        }
    }
    shim.kill(id, SIGKILL).await?;
    let ended = async {
        // The sender is the owner, which waits for this operation.
        drop(stop.ended.wait_for(|ended| *ended).await);
        Ok(())
    };
    within(world.config.timeouts.kill, || format!("kill container {id}"), ended).await
}

/// Waits for the end or for the time to kill; true if the container ended.
async fn wait(stop: &mut Stop) -> bool {
    loop {
        let kill_at = *stop.kill_at.borrow_and_update();
        tokio::select! {
            biased;
            ended = stop.ended.wait_for(|ended| *ended) => return ended.is_ok(),
            () = tokio::time::sleep_until(kill_at) => return false,
            changed = stop.kill_at.changed() => if changed.is_err() { return false },
        }
    }
}

/// When a stop with this grace kills. A grace beyond what a clock can hold is a year.
pub(crate) fn kill_at(grace: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(grace).unwrap_or(now + Duration::from_secs(365 * 24 * 3600))
}
