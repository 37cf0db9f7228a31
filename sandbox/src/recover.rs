//! What an earlier process left, brought into a state that operations start from. Runs once, before any client is heard.
//!
//! Per pod, at most 32 at once, each with its own deadline; a pod that cannot be recovered is not ready, can be stopped
//! and removed, and never keeps the others from being recovered. Then whatever no record knows is removed.

use std::{collections::BTreeSet, fs, io, path::Path, sync::Arc, time::SystemTime};

use tokio::{
    sync::{Semaphore, watch},
    task::JoinSet,
};

use crate::{
    Error, checkpoint, image_volumes,
    launcher::{Bundle, Shim, TaskState},
    machine::{ContainerPhase, ContainerVerb, PodPhase, PodVerb},
    model::{ContainerState, Id, PodName},
    network::Attachment,
    ops::{self, rescue_pod::Rescued, stop_pod::Living},
    record::{ContainerRecord, PodRecord, start_error, unknown_exit},
    teardown::{self, Task, Torn},
    world::{Operation, World, within},
};

/// Pods that are recovered at the same time.
const AT_ONCE: usize = 32;

/// A pod in its place, its rows committed.
pub(crate) struct Recovered {
    pub(crate) pod: PodRecord,
    pub(crate) containers: Vec<ContainerRecord>,
    pub(crate) shim: Option<Arc<dyn Shim>>,
}

/// Recovers every pod and removes orphans.
pub(crate) async fn all(world: &Arc<World>) -> Result<Vec<Recovered>, Error> {
    let loaded = world.rows.load().await?;
    let mut known: BTreeSet<Id> = BTreeSet::new();
    for (id, error) in &loaded.unreadable {
        tracing::error!(id, error = error.chain(), "a record cannot be read; what belongs to it is left alone");
        known.extend(Id::parse(id));
    }
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let mut pods = JoinSet::new();
    for (pod, containers) in loaded.pods.into_values() {
        known.insert(pod.id.clone());
        known.extend(containers.iter().map(|container| container.id.clone()));
        let (world, slots) = (Arc::clone(world), Arc::clone(&slots));
        pods.spawn(async move {
            // The semaphore is never closed; without a permit the pod is recovered all the same.
            let _slot = slots.acquire().await;
            Box::pin(one(&world, pod, containers)).await
        });
    }
    let mut recovered = Vec::new();
    while let Some(pod) = pods.join_next().await {
        match pod {
            Ok(pod) => recovered.extend(pod),
            // Its rows are untouched: the next start tries again, and nothing of it is taken for an orphan.
            Err(error) => tracing::error!(error = %error, "the recovery of a pod panicked"),
        }
    }
    sweep(world, &known).await;
    Ok(recovered)
}

/// One pod; `None` if nothing of it is left.
async fn one(world: &Arc<World>, pod: PodRecord, containers: Vec<ContainerRecord>) -> Option<Recovered> {
    let id = pod.id.clone();
    let spare = (pod.clone(), containers.clone());
    let timeouts = &world.config.timeouts;
    let limit = if pod.intent.is_some_and(cut_off) { timeouts.finish } else { timeouts.recover };
    let work = async { Ok(Box::pin(settle(world, pod, containers)).await) };
    let settled = within(limit, || format!("recover pod sandbox {id}"), work).await;
    let recovered = settled.unwrap_or_else(|error| {
        tracing::error!(pod = %id, error = error.chain(), "a pod could not be recovered; it is not ready");
        let (pod, containers) = spare;
        Some(unknown(pod, containers))
    });
    let Some(recovered) = recovered else {
        if let Err(error) = world.rows.delete_pod(&id).await {
            tracing::error!(pod = %id, error = error.chain(), "the rows of a removed pod could not be deleted");
        }
        return None;
    };
    let records: Vec<&ContainerRecord> = recovered.containers.iter().collect();
    if let Err(error) = world.rows.put(Some(&recovered.pod), &records).await {
        tracing::error!(pod = %id, error = error.chain(), "a recovered pod could not be recorded");
    }
    Some(recovered)
}

/// Whether an operation was in the middle of making or taking back what a pod is.
fn cut_off(intent: PodVerb) -> bool {
    match intent {
        PodVerb::Run | PodVerb::Stop | PodVerb::Remove => true,
        PodVerb::Rescue => false,
    }
}

/// A pod of which nothing could be found out in time.
fn unknown(mut pod: PodRecord, mut containers: Vec<ContainerRecord>) -> Recovered {
    pod.phase = if pod.phase == PodPhase::New { PodPhase::New } else { PodPhase::NotReady };
    pod.intent = None;
    for container in &mut containers {
        container.intent = None;
        if container.phase() == ContainerPhase::Running {
            container.lose_sight();
        }
    }
    Recovered { pod, containers, shim: None }
}

/// Finishes what was cut short, and finds out what lives.
async fn settle(world: &Arc<World>, mut pod: PodRecord, containers: Vec<ContainerRecord>) -> Option<Recovered> {
    match pod.intent.take() {
        Some(PodVerb::Run) => return undo_start(world, pod, containers).await,
        Some(PodVerb::Remove) => return finish_remove(world, pod, containers).await,
        Some(PodVerb::Stop) => return Some(finish_stop(world, pod, containers).await),
        Some(PodVerb::Rescue) | None => {}
    }
    let shim = match pod.phase {
        PodPhase::Ready | PodPhase::NotReady if pod.boot == world.boot => reconnect(world, &pod).await,
        PodPhase::New | PodPhase::Ready | PodPhase::NotReady | PodPhase::Stopped => None,
    };
    let mut kept = Vec::new();
    for container in containers {
        kept.extend(settle_container(world, &pod, container, shim.as_deref()).await);
    }
    let Some(shim) = shim else { return Some(without_shim(world, pod, kept).await) };
    if pod.phase == PodPhase::Ready && !matches!(shim.state(&pod.id).await, Ok(Some(TaskState::Running { .. }))) {
        tracing::warn!(pod = %pod.id, "the pause process has ended while the daemon was down");
        pod.phase = PodPhase::NotReady;
        pod.pid = None;
    }
    Some(Recovered { pod, containers: kept, shim: Some(shim) })
}

async fn reconnect(world: &Arc<World>, pod: &PodRecord) -> Option<Arc<dyn Shim>> {
    match world.launcher.reconnect(world.bundle(pod, &pod.id)).await {
        Ok(found) => found,
        Err(error) => {
            tracing::warn!(pod = %pod.id, error = error.chain(), "a pod's shim cannot be connected to");
            None
        }
    }
}

/// Everything that ran is over: its machine was started anew, or its shim is gone.
async fn without_shim(world: &Arc<World>, mut pod: PodRecord, mut containers: Vec<ContainerRecord>) -> Recovered {
    let mut ended = Ok(());
    if pod.boot == world.boot
        && matches!(pod.phase, PodPhase::Ready | PodPhase::NotReady)
        && let Rescued::Lost(result) = ops::rescue_pod::run(Arc::clone(world), pod.clone(), containers.clone()).await
    {
        ended = result;
    }
    if let Err(error) = &ended {
        tracing::error!(pod = %pod.id, error = error.chain(), "processes of a lost shim may be left");
    }
    if pod.phase == PodPhase::Ready {
        pod.phase = PodPhase::NotReady;
    }
    pod.pid = None;
    for container in containers.iter_mut().filter(|container| container.phase() == ContainerPhase::Running) {
        match ended {
            Ok(()) => container.end(unknown_exit()),
            Err(_) => container.lose_sight(),
        }
    }
    Recovered { pod, containers, shim: None }
}

async fn undo_start(world: &Arc<World>, mut pod: PodRecord, containers: Vec<ContainerRecord>) -> Option<Recovered> {
    let removed = ops::remove_pod::run(Arc::clone(world), pod.clone(), unwatched(&containers), None).await;
    if let Err(error) = &removed.result {
        tracing::warn!(pod = %pod.id, error = error.chain(), "a start that was cut short is not torn down yet");
        pod.phase = PodPhase::New;
        pod.network_owed &= !removed.stopped.network_returned;
        return Some(Recovered { pod, containers, shim: None });
    }
    None
}

/// For operations that an owner watches otherwise. There are no plugins yet that could be told of an end.
fn unwatched(containers: &[ContainerRecord]) -> Vec<Living> {
    containers.iter().map(|container| (container.clone(), watch::channel(true).1)).collect()
}

async fn finish_remove(world: &Arc<World>, pod: PodRecord, containers: Vec<ContainerRecord>) -> Option<Recovered> {
    let removed = ops::remove_pod::run(Arc::clone(world), pod.clone(), unwatched(&containers), None).await;
    match removed.result {
        Ok(()) => None,
        Err(error) => {
            tracing::warn!(pod = %pod.id, error = error.chain(), "a removal that was cut short cannot be finished yet");
            Some(stopped(pod, containers, &removed.stopped))
        }
    }
}

async fn finish_stop(world: &Arc<World>, pod: PodRecord, containers: Vec<ContainerRecord>) -> Recovered {
    let torn = teardown::pod(world, &pod, &containers, None).await;
    let mut recovered = stopped(pod, containers, &torn);
    let mut kept = Vec::new();
    for container in std::mem::take(&mut recovered.containers) {
        kept.extend(settle_container(world, &recovered.pod, container, None).await);
    }
    recovered.containers = kept;
    recovered
}

fn stopped(mut pod: PodRecord, mut containers: Vec<ContainerRecord>, torn: &Torn) -> Recovered {
    let complete = torn.complete("").is_ok();
    pod.phase = if complete { PodPhase::Stopped } else { PodPhase::NotReady };
    pod.network_owed &= !torn.network_returned;
    pod.pid = None;
    for container in &mut containers {
        if let Some((_, exit)) = torn.exits.iter().find(|(id, _)| *id == container.id) {
            container.take_exit(exit);
        } else if complete && container.phase() == ContainerPhase::Running {
            container.end(unknown_exit());
        }
    }
    Recovered { pod, containers, shim: None }
}

/// One container; `None` if nothing of it is left.
async fn settle_container(
    world: &Arc<World>,
    pod: &PodRecord,
    mut container: ContainerRecord,
    shim: Option<&dyn Shim>,
) -> Option<ContainerRecord> {
    let task = match container.intent.take() {
        Some(ContainerVerb::Create) => Task::None,
        Some(ContainerVerb::Remove) => Task::Some(shim),
        None if container.state.is_none() => Task::None,
        intent @ (Some(ContainerVerb::Start | ContainerVerb::Stop | ContainerVerb::Update) | None) => {
            let starting = intent == Some(ContainerVerb::Start);
            ask(world, pod, &mut container, shim, starting).await;
            let clients = shim.and_then(Shim::clients);
            if let Err(error) = Box::pin(checkpoint::resume_after_crash(world, &container.id, clients)).await {
                tracing::warn!(container = %container.id, error = error.chain(), "a checkpoint that was cut short may have left the container paused");
            }
            if intent == Some(ContainerVerb::Update)
                && let Err(error) = ops::update_container::apply(world, &container, shim).await
            {
                tracing::warn!(container = %container.id, error = error.chain(), "limits of an update that was cut short may be left");
            }
            return Some(container);
        }
    };
    let torn = teardown::container(world, pod, &container, task).await;
    let complete = torn.complete(&format!("container {}", container.id));
    if let Err(error) = complete {
        tracing::warn!(container = %container.id, error = error.chain(), "a container is not torn down yet");
        return Some(container);
    }
    if let Err(error) = world.rows.delete_container(&container.id).await {
        tracing::error!(container = %container.id, error = error.chain(), "a container's row could not be deleted");
        return Some(container);
    }
    None
}

/// Asks the shim what became of the container meanwhile.
async fn ask(
    world: &Arc<World>,
    pod: &PodRecord,
    container: &mut ContainerRecord,
    shim: Option<&dyn Shim>,
    starting: bool,
) {
    let id = container.id.clone();
    let runs = container.phase() == ContainerPhase::Running;
    let Some(shim) = shim else {
        if starting {
            container.end(start_error(CUT_SHORT.into()));
        }
        return;
    };
    if runs || starting {
        // Before anything is asked: a shim may be waiting for a reader of its FIFOs.
        ops::start_container::resume(world, pod, container, shim, runs).await;
    }
    match (shim.state(&id).await, runs || starting) {
        (Ok(Some(TaskState::Running { pid })), true) => {
            if !runs {
                container.state = Some(ContainerState::Running { pid, started_at: SystemTime::now() });
            }
            return;
        }
        (Ok(Some(TaskState::Stopped(exit))), true) => {
            if !runs {
                container.state = Some(ContainerState::Running { pid: 0, started_at: exit.at });
            }
            container.take_exit(&exit);
        }
        // Made, but not started: it must not run later, when nobody expects it any more.
        (Ok(Some(TaskState::Created) | None), true) if starting => container.end(start_error(CUT_SHORT.into())),
        (Ok(Some(TaskState::Created) | None), true) => container.end(unknown_exit()),
        (Ok(_), false) => {}
        (Err(error), _) => {
            tracing::warn!(container = %id, error = error.chain(), "a container's state cannot be asked");
            if runs || starting {
                container.lose_sight();
            }
            return;
        }
    }
    // The shim forgets with the task how it ended.
    if let Err(error) = world.rows.put(None, &[container]).await {
        tracing::error!(container = %id, error = error.chain(), "an exit could not be recorded");
    } else if let Err(error) = teardown::end_task(world, pod, &id, Some(shim)).await {
        tracing::warn!(container = %id, error = error.chain(), "a task is left until its container is removed");
    }
}

const CUT_SHORT: &str = "the daemon was stopped while it started the container";

/// Removes what no record knows. Only ids of our own form are looked at, and what their names lead to.
async fn sweep(world: &Arc<World>, known: &BTreeSet<Id>) {
    let on = Arc::clone(world);
    let found = Operation::default().blocking(move || Ok(found(&on))).await.unwrap_or_default();
    let orphans: Vec<&Id> = found.difference(known).collect();
    for id in &orphans {
        end_orphans(world, id, &orphans).await;
    }
    for id in orphans {
        tracing::warn!(id = %id, "removing what a pod or container without a record has left");
        if let Err(error) = sweep_one(world, id).await {
            tracing::error!(id = %id, error = error.chain(), "an orphan could not be removed; the next start tries again");
        }
    }
}

/// Ends the shim of an orphaned pod, if one answers, and the orphans that run in it.
async fn end_orphans(world: &Arc<World>, id: &Id, orphans: &[&Id]) {
    let Ok(Some(shim)) = world.launcher.reconnect(orphan_bundle(world, id)).await else { return };
    for task in orphans {
        if let Err(error) = teardown::end_by_shim(world, task, shim.as_ref()).await {
            tracing::warn!(task = %task, error = error.chain(), "an orphan cannot be ended by its shim");
        }
    }
    if let Err(error) = shim.shutdown(id).await {
        tracing::warn!(id = %id, error = error.chain(), "the shim of an orphan cannot be ended");
    }
}

fn orphan_bundle(world: &World, id: &Id) -> Bundle {
    let handler = world.handler(&world.config.default_handler).cloned().unwrap_or_default();
    Bundle { id: id.clone(), path: world.paths.bundle(id), handler }
}

/// The ids that have a directory anywhere. Blocks.
fn found(world: &World) -> BTreeSet<Id> {
    let paths = &world.paths;
    let places = [paths.bundles(), paths.pod_roots(), paths.pod_states(), paths.container_roots()];
    let mut ids = BTreeSet::new();
    for place in places {
        match names(&place) {
            Ok(names) => ids.extend(names),
            Err(error) => tracing::warn!(place = %place.display(), error = %error, "cannot look for orphans"),
        }
    }
    ids
}

fn names(place: &Path) -> io::Result<Vec<Id>> {
    let entries = match fs::read_dir(place) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut ids = Vec::new();
    for entry in entries {
        ids.extend(entry?.file_name().to_str().and_then(Id::parse));
    }
    Ok(ids)
}

async fn sweep_one(world: &Arc<World>, id: &Id) -> Result<(), Error> {
    let bundle = orphan_bundle(world, id);
    if bundle.path.exists() {
        world.launcher.clean_up(bundle).await?;
    }
    let netns = world.paths.netns(id);
    if world.network.cached().await?.contains(id) {
        let attachment = Attachment {
            id: id.clone(),
            // What its networks were is in the cache; the handler is not known any more.
            handler: String::new(),
            netns: Some(netns.clone()),
            name: PodName::default(),
            port_mappings: Vec::new(),
            dns: None,
            annotations: Default::default(),
            cgroup_parent: String::new(),
        };
        let detached = world.network.detach(attachment);
        within(world.config.timeouts.network, || format!("give back the network of {id}"), detached).await?;
    }
    let (world, id) = (Arc::clone(world), id.clone());
    let remove = move || {
        let (node, paths) = (&world.node, &world.paths);
        node.unpin_netns(&netns)?;
        node.unmount(&paths.rootfs(&id))?;
        node.unmount(&paths.shm(&id))?;
        for (name, snapshotter) in &world.snapshotters {
            image_volumes::remove(&world, &id, name)?;
            match snapshotter.remove(&world.config.namespace, id.as_str()) {
                Ok(()) | Err(snapshotter::Error::NotFound { .. }) => {}
                Err(error) => return Err(Error::failed(format!("remove snapshot {id}"), error)),
            }
        }
        for dir in [paths.bundle(&id), paths.pod_state(&id), paths.pod_root(&id), paths.container_root(&id)] {
            node.remove_dir(&dir)?;
        }
        Ok(())
    };
    Operation::default().blocking(remove).await
}
