//! The registry of owners: which pod has which id and name, and whose inbox a request goes to.
//!
//! The index's lock is held for a look-up, never across an await.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::mpsc;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Error,
    model::Id,
    nri::LimitChange,
    owner::Owner,
    record::PodRecord,
    recover::Recovered,
    request::{ContainerRequest, Gone, INBOX, Inbox, Reply, Request, Run, ask},
    selinux,
    view::{Views, by_prefix},
    world::World,
};

/// What the handles and the owners have in common.
pub(crate) struct Shared {
    pub(crate) world: Arc<World>,
    pub(crate) views: Views,
    /// Cancelled when the daemon shuts down: owners finish what runs and take nothing new.
    pub(crate) closing: CancellationToken,
    index: Mutex<Index>,
    pub(crate) owners: TaskTracker,
}

#[derive(Default)]
struct Index {
    pods: BTreeMap<Id, Inbox>,
    names: HashMap<String, Id>,
    /// Which pod a container belongs to.
    containers: BTreeMap<Id, Id>,
    /// The SELinux levels that are taken.
    levels: BTreeMap<Id, String>,
}

impl Shared {
    pub(crate) fn new(world: World) -> Arc<Shared> {
        Arc::new(Shared {
            world: Arc::new(world),
            views: Views::default(),
            closing: CancellationToken::new(),
            index: Mutex::default(),
            owners: TaskTracker::new(),
        })
    }

    /// The owner of the pod of this name, started now if there is none.
    pub(crate) fn inbox_for(self: &Arc<Shared>, run: &Run) -> Result<Inbox, Error> {
        self.check_open()?;
        let name = run.spec.name.key();
        let mut index = self.index();
        if let Some(inbox) = index.names.get(&name).and_then(|id| index.pods.get(id)) {
            return Ok(inbox.clone());
        }
        let id = Id::random().map_err(|source| Error::failed("make an id for the pod", source))?;
        let mut pod = PodRecord::new(&self.world.config, &self.world.boot, id, run.clone())?;
        let asked = run.spec.selinux.as_ref();
        if let Some(asked) = asked {
            selinux::check(asked, "selinux_options")?;
        }
        if let Some(policy) = &self.world.selinux {
            pod.selinux_level = policy.level(asked, &index.levels.values().map(String::as_str).collect())?;
        }
        Ok(self.start_owner(&mut index, Owner::new(Arc::clone(&self.world), Arc::clone(self), pod.clone()), &pod))
    }

    /// Starts the owner of a pod that was recovered.
    pub(crate) fn adopt(self: &Arc<Shared>, recovered: Recovered) {
        let Recovered { pod, containers, shim } = recovered;
        let created = containers.iter().filter(|container| container.state.is_some());
        let created: Vec<Id> = created.map(|container| container.id.clone()).collect();
        let owner = Owner::recovered(Arc::clone(&self.world), Arc::clone(self), pod.clone(), containers, shim);
        let mut index = self.index();
        for id in created {
            index.containers.insert(id, pod.id.clone());
        }
        self.start_owner(&mut index, owner, &pod);
    }

    fn start_owner(&self, index: &mut Index, owner: Owner, pod: &PodRecord) -> Inbox {
        let (inbox, requests) = mpsc::channel(INBOX);
        index.names.insert(pod.spec.name.key(), pod.id.clone());
        index.pods.insert(pod.id.clone(), inbox.clone());
        index.levels.insert(pod.id.clone(), pod.selinux_level.clone());
        self.owners.spawn(owner.run(requests));
        inbox
    }

    pub(crate) fn add_container(&self, id: &Id, pod: &Id) {
        self.index().containers.insert(id.clone(), pod.clone());
    }

    pub(crate) fn forget_container(&self, id: &Id) {
        self.index().containers.remove(id);
    }

    /// Frees a removed pod's name and id. Nobody finds its owner after this.
    pub(crate) fn forget_pod(&self, pod: &PodRecord) {
        let mut index = self.index();
        index.pods.remove(&pod.id);
        index.levels.remove(&pod.id);
        index.containers.retain(|_, of| *of != pod.id);
        let name = pod.spec.name.key();
        // Called again when the owner ends: by then the name may be another pod's.
        if index.names.get(&name) == Some(&pod.id) {
            index.names.remove(&name);
        }
    }

    pub(crate) fn pod(&self, prefix: &str) -> Result<(Id, Inbox), Error> {
        self.check_open()?;
        let index = self.index();
        by_prefix(&index.pods, "pod sandbox", prefix).map(|(id, inbox)| (id.clone(), inbox.clone()))
    }

    pub(crate) fn container(&self, prefix: &str) -> Result<(Id, Inbox), Error> {
        self.check_open()?;
        let index = self.index();
        let (id, pod) = by_prefix(&index.containers, "container", prefix)?;
        let inbox = index.pods.get(pod).ok_or_else(|| Error::NotFound { kind: "container", id: prefix.to_owned() })?;
        Ok((id.clone(), inbox.clone()))
    }

    pub(crate) async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Error> {
        let Some((id, inbox)) = found(self.container(id))? else { return Ok(()) };
        let stop = |reply| Request::Container(id, ContainerRequest::Stop(grace, reply));
        self.gone_is_ok(ask(&inbox, stop).await)
    }

    pub(crate) async fn update_container(&self, id: &str, change: LimitChange) -> Result<(), Error> {
        self.of_container(id, |reply| ContainerRequest::Update(Box::new(change), reply)).await
    }

    pub(crate) async fn of_container<T>(
        &self,
        id: &str,
        request: impl FnOnce(Reply<T>) -> ContainerRequest,
    ) -> Result<T, Error> {
        let (id, inbox) = self.container(id)?;
        let asked = ask(&inbox, |reply| Request::Container(id.clone(), request(reply))).await;
        self.gone_is_missing("container", &id, asked)
    }

    fn check_open(&self) -> Result<(), Error> {
        match self.closing.is_cancelled() {
            true => Err(Error::Unavailable("the daemon is shutting down".into())),
            false => Ok(()),
        }
    }

    /// An owner that ended while it was asked has removed its pod, unless the daemon is shutting down.
    pub(crate) fn gone_is_ok(&self, asked: Result<Result<(), Error>, Gone>) -> Result<(), Error> {
        asked.unwrap_or_else(|Gone| self.check_open())
    }

    pub(crate) fn gone_is_missing<T>(
        &self,
        kind: &'static str,
        id: &Id,
        asked: Result<Result<T, Error>, Gone>,
    ) -> Result<T, Error> {
        asked.unwrap_or_else(|Gone| {
            self.check_open()?;
            Err(Error::NotFound { kind, id: id.to_string() })
        })
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // Each change of the index is one insert or remove after all that can fail, so a panic leaves it whole.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An unknown id, as the idempotent verbs see it: nothing to do. An ambiguous one stays an error.
pub(crate) fn found<T>(looked_up: Result<T, Error>) -> Result<Option<T>, Error> {
    match looked_up {
        Ok(found) => Ok(Some(found)),
        Err(Error::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}
