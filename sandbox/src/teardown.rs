//! Giving back all that may exist for a pod or a container: one function each, for rollback, stop, remove and boot.
//!
//! Idempotent. Tries everything, takes what is missing for success, collects errors and goes on; whoever called keeps the
//! record until a later call has no error. Names come from the id alone, so it needs no memory of what was made.

use std::sync::Arc;

use futures_util::future::join_all;

use crate::{
    Error, image_volumes,
    launcher::{Shim, TaskExit, TaskState},
    machine::PodVerb,
    model::Id,
    oci::cgroup,
    record::{ContainerRecord, PodRecord},
    world::{Operation, World, within},
};

/// What a teardown found and left.
#[derive(Debug, Default)]
pub(crate) struct Torn {
    /// How the containers that still lived have ended.
    pub(crate) exits: Vec<(Id, TaskExit)>,
    /// The network has been given back, or none was owed.
    pub(crate) network_returned: bool,
    errors: Vec<Error>,
}

impl Torn {
    /// Everything is gone, or the one error that tells what is not.
    pub(crate) fn complete(&self, what: &str) -> Result<(), Error> {
        match &self.errors[..] {
            [] => Ok(()),
            [only] => Err(only.clone()),
            many => {
                let all: Vec<String> = many.iter().map(Error::chain).collect();
                Err(Error::plain(format!("{what} is not torn down completely: {}", all.join("; "))))
            }
        }
    }

    fn note<T>(&mut self, result: Result<T, Error>) -> Option<T> {
        result.map_err(|error| self.errors.push(error)).ok()
    }
}

/// All of a pod, except its containers' file systems and the directory of its own that outlives a stop.
pub(crate) async fn pod(
    world: &Arc<World>,
    pod: &PodRecord,
    containers: &[ContainerRecord],
    shim: Option<Arc<dyn Shim>>,
) -> Torn {
    let mut torn = Torn::default();
    let shim = match shim {
        Some(shim) => Some(shim),
        None => torn.note(world.launcher.reconnect(world.bundle(pod, &pod.id)).await).flatten(),
    };
    let ends = containers.iter().map(|container| end_container(world, pod, container, shim.as_deref()));
    for (container, end) in containers.iter().zip(join_all(ends).await) {
        let exit = torn.note(end).flatten();
        torn.exits.extend(exit.map(|exit| (container.id.clone(), exit)));
    }
    let pause = end_task(world, pod, &pod.id, shim.as_deref()).await;
    torn.note(pause);
    if let Some(shim) = &shim {
        torn.note(shim.shutdown(&pod.id).await);
    }
    let (at, snapshotter) = (pod.id.clone(), pod.snapshotter.clone());
    torn.note(blocking(world, move |world| drop_bundle(world, &at, &snapshotter)).await);
    torn.network_returned = !pod.network_owed || torn.note(give_back_network(world, pod).await).is_some();
    if let Some(netns) = world.netns(pod) {
        torn.note(blocking(world, move |world| world.node.unpin_netns(&netns)).await);
    }
    let id = pod.id.clone();
    let removed = blocking(world, move |world| {
        world.node.unmount(&world.paths.shm(&id))?;
        world.node.remove_dir(&world.paths.pod_state(&id))
    });
    torn.note(removed.await);
    torn
}

/// What of a pod outlives a stop: its directory. And what does not, unless its shim was killed as the last task had ended.
pub(crate) async fn pod_root(world: &Arc<World>, id: &Id) -> Result<(), Error> {
    let id = id.clone();
    let remove = move |world: &World| {
        world.launcher.remove_socket(&id)?;
        world.node.remove_dir(&world.paths.pod_root(&id))
    };
    blocking(world, remove).await
}

/// What is known of a container's task.
pub(crate) enum Task<'a> {
    /// It was never made, or has been ended and deleted.
    None,
    /// It may live in this shim, or in one that was lost.
    Some(Option<&'a dyn Shim>),
}

/// All of a container. It is killed if it lives.
pub(crate) async fn container(
    world: &Arc<World>,
    pod: &PodRecord,
    container: &ContainerRecord,
    task: Task<'_>,
) -> Torn {
    let (mut torn, id) = (Torn::default(), &container.id);
    if let Task::Some(shim) = task
        && !container.never_started()
    {
        let exit = end_task(world, pod, id, shim).await;
        let exit = torn.note(exit).flatten();
        torn.exits.extend(exit.map(|exit| (id.clone(), exit)));
    }
    let (id, snapshotter) = (id.clone(), pod.snapshotter.clone());
    let removed = blocking(world, move |world| {
        let bundle = drop_bundle(world, &id, &snapshotter);
        // The directory says which image volumes there are, so it goes last.
        let root = image_volumes::remove(world, &id, &snapshotter)
            .and_then(|()| world.node.remove_dir(&world.paths.container_root(&id)));
        Ok([bundle, root])
    });
    if let Some(each) = torn.note(removed.await) {
        torn.errors.extend(each.into_iter().filter_map(Result::err));
    }
    torn
}

/// Ends a task and all its processes, through its shim or, when that is lost, by its cgroup. Answers how the task ended
/// if anybody knows.
pub(crate) async fn end_task(
    world: &Arc<World>,
    pod: &PodRecord,
    id: &Id,
    shim: Option<&dyn Shim>,
) -> Result<Option<TaskExit>, Error> {
    if let Some(shim) = shim {
        match end_by_shim(world, id, shim).await {
            Err(error) => tracing::warn!(task = %id, error = error.chain(), "the shim cannot end the task"),
            ended => return ended,
        }
    }
    end_without_shim(world, pod, id).await.map(|()| None)
}

/// [`end_task`] of a container that is kept. The shim forgets with the task how it ended, so that is recorded in between:
/// whoever goes on after a crash would find neither.
async fn end_container(
    world: &Arc<World>,
    pod: &PodRecord,
    container: &ContainerRecord,
    shim: Option<&dyn Shim>,
) -> Result<Option<TaskExit>, Error> {
    if container.never_started() {
        return Ok(None);
    }
    if let Some(shim) = shim {
        match kill_by_shim(world, &container.id, shim).await {
            Err(error) => {
                tracing::warn!(task = %container.id, error = error.chain(), "the shim cannot end the task");
            }
            Ok(None) => return Ok(None),
            Ok(Some(exit)) => {
                let mut ended = container.clone();
                ended.take_exit(&exit);
                if ended != *container {
                    world.rows.put(None, &[&ended]).await?;
                }
                return shim.delete(&container.id).await.map(|()| Some(exit));
            }
        }
    }
    end_without_shim(world, pod, &container.id).await.map(|()| None)
}

/// Ends a task through its shim. One that the shim does not know has ended.
pub(crate) async fn end_by_shim(world: &World, id: &Id, shim: &dyn Shim) -> Result<Option<TaskExit>, Error> {
    let exit = kill_by_shim(world, id, shim).await?;
    if exit.is_some() {
        shim.delete(id).await?;
    }
    Ok(exit)
}

async fn kill_by_shim(world: &World, id: &Id, shim: &dyn Shim) -> Result<Option<TaskExit>, Error> {
    const SIGKILL: i32 = 9;
    match shim.state(id).await? {
        None => Ok(None),
        Some(TaskState::Stopped(exit)) => Ok(Some(exit)),
        Some(TaskState::Created | TaskState::Running { .. }) => {
            shim.kill(id, SIGKILL).await?;
            match within(world.config.timeouts.kill, || format!("kill task {id}"), shim.wait(id)).await {
                // Its owner saw the end first, recorded it and had the task deleted.
                Err(Error::NotFound { .. }) => Ok(None),
                ended => ended.map(Some),
            }
        }
    }
}

async fn end_without_shim(world: &Arc<World>, pod: &PodRecord, id: &Id) -> Result<(), Error> {
    let bundle = world.bundle(pod, id);
    // Without a bundle nothing was ever run, and nothing can be asked.
    if !bundle.path.exists() {
        return Ok(());
    }
    let parent = world.cgroup_parent(pod);
    let cgroup = cgroup::path(parent, id, bundle.handler.systemd_cgroup(parent));
    if let Ok(cgroup) = cgroup {
        // A parent that is refused was refused at the start as well, so there is nothing in it.
        blocking(world, move |world| world.node.kill_cgroup(&cgroup)).await?;
    }
    world.launcher.clean_up(bundle).await
}

/// Blocks.
fn drop_bundle(world: &World, id: &Id, snapshotter: &str) -> Result<(), Error> {
    world.node.unmount(&world.paths.rootfs(id))?;
    world.node.remove_dir(&world.paths.bundle(id))?;
    // A snapshot that is still mounted must not be removed from under its mount, so it goes last.
    world.discard(snapshotter, id.as_str())
}

/// A stop or removal that a client asks for gives up on a network of which no part was ever made: a plugin that can neither
/// add nor delete would keep the pod from ever going. As containerd does; until then every attempt is made.
async fn give_back_network(world: &Arc<World>, pod: &PodRecord) -> Result<(), Error> {
    let detached = detach(world, pod).await;
    let asked = matches!(pod.intent, Some(PodVerb::Stop | PodVerb::Remove));
    match detached {
        Err(error) if asked && never_attached(world, &pod.id).await => {
            let error = error.chain();
            tracing::warn!(pod = %pod.id, error, "giving up on the network of a pod that never had one");
            Ok(())
        }
        detached => detached,
    }
}

async fn never_attached(world: &World, id: &Id) -> bool {
    // One that cannot be looked up may have been.
    world.network.cached().await.is_ok_and(|attached| !attached.contains(id))
}

async fn detach(world: &Arc<World>, pod: &PodRecord) -> Result<(), Error> {
    let detached = world.network.detach(world.attachment(pod));
    within(world.config.timeouts.network, || format!("give back the network of pod sandbox {}", pod.id), detached).await
}

async fn blocking<T: Send + 'static>(
    world: &Arc<World>,
    step: impl FnOnce(&World) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let world = Arc::clone(world);
    Operation::default().blocking(move || step(&world)).await
}
