//! What an owner does when an operation or a task has ended: commit, publish, answer, ask the deferred again.

use std::{sync::Arc, time::SystemTime};

use super::{Owner, Running, answer};
use crate::{
    Error,
    launcher::{TaskExit, TaskState},
    machine::{ContainerPhase, PodPhase, PodVerb},
    model::{ContainerState, Exit, Id, PodResources},
    ops::{
        Undone, create_container::Created, remove_pod::Removed, rescue_pod::Rescued, start_pod::Started,
        update_container::Updated,
    },
    record::{ContainerRecord, start_error, unknown_exit},
    request::{Reply, Request},
    teardown::Torn,
};

/// The result of an operation, on the pod or on the container named.
pub(super) enum Ended {
    PodStarted(Result<Started, Undone>),
    PodStopped(Torn),
    PodRemoved(Removed),
    PodRescued(Rescued),
    Created(Id, Result<Created, Undone>),
    Started(Id, Result<i32, Error>),
    Stopped(Id, Result<(), Error>),
    Removed(Id, Torn),
    Updated(Id, Result<Updated, Error>),
    /// Plugins agree to what the pod is to have.
    ResourcesAgreed(Box<PodResources>, Reply<()>),
    ResourcesRefused(Error, Reply<()>),
    Panicked(Option<Id>),
}

impl Owner {
    pub(super) async fn end(&mut self, ended: Ended) {
        match ended {
            Ended::PodStarted(Ok(started)) => self.pod_started(started).await,
            Ended::PodStarted(Err(undone)) => self.pod_not_started(undone).await,
            Ended::PodStopped(torn) => self.pod_stopped(torn).await,
            Ended::PodRemoved(removed) => self.pod_removed(removed).await,
            Ended::PodRescued(rescued) => self.pod_rescued(rescued).await,
            Ended::Created(id, Ok(created)) => self.created(id, created).await,
            Ended::Created(id, Err(undone)) => self.not_created(id, undone).await,
            Ended::Started(id, started) => self.started(id, started).await,
            Ended::Stopped(id, stopped) => self.stopped(id, stopped).await,
            Ended::Removed(id, torn) => self.removed(id, torn).await,
            Ended::Updated(id, updated) => self.updated(id, updated).await,
            Ended::ResourcesAgreed(update, reply) => self.store_resources(*update, reply).await,
            Ended::ResourcesRefused(error, reply) => answer(reply, Err(error)),
            Ended::Panicked(None) => {
                self.pod.phase = PodPhase::NotReady;
                self.answer_pod(Err(Error::plain("the operation panicked; see the daemon's log"))).await;
            }
            Ended::Panicked(Some(id)) => {
                let error = Error::plain("the operation panicked; see the daemon's log");
                self.answer_container(&id, Err(error)).await;
            }
        }
        if self.over {
            return;
        }
        // First, because what was deferred may be about a container of which nobody knows what it does.
        self.rescue().await;
        for request in std::mem::take(&mut self.deferred) {
            self.dispatch(request).await;
        }
    }

    async fn pod_started(&mut self, started: Started) {
        let Started { network, pid, oci_spec, shim } = started;
        self.pod.phase = PodPhase::Ready;
        self.pod.network = network;
        self.pod.pid = Some(pid);
        self.pod.oci_spec = oci_spec;
        self.shim = Some(shim);
        self.watch_all();
        self.answer_pod(Ok(self.pod.id.clone())).await;
    }

    async fn pod_not_started(&mut self, undone: Undone) {
        let Undone { error, left, network_returned } = undone;
        self.pod.network_owed &= !network_returned;
        match left {
            None => self.forget(Err(error)).await,
            Some(left) => {
                tracing::warn!(pod = %self.pod.id, error = left.chain(), "a failed start is not torn down; stop or remove it");
                self.answer_pod(Err(error)).await;
            }
        }
    }

    async fn pod_stopped(&mut self, torn: Torn) {
        let result = torn.complete(&format!("pod sandbox {}", self.pod.id));
        self.take_stopped(&torn, result.is_ok());
        self.answer_pod(result.map(|()| self.pod.id.clone())).await;
    }

    async fn pod_removed(&mut self, removed: Removed) {
        let Removed { stopped, containers, result } = removed;
        if result.is_ok() {
            return self.forget(Ok(self.pod.id.clone())).await;
        }
        let complete = stopped.complete("").is_ok();
        self.take_stopped(&stopped, complete);
        for id in containers {
            // A row that could not be deleted is reported there, and the next remove tries again.
            drop(self.forget_container(&id).await);
        }
        self.answer_pod(result.map(|()| self.pod.id.clone())).await;
    }

    /// What a stop found, into the records.
    fn take_stopped(&mut self, torn: &Torn, complete: bool) {
        self.pod.phase = if complete { PodPhase::Stopped } else { PodPhase::NotReady };
        self.pod.network_owed &= !torn.network_returned;
        self.pod.pid = None;
        // A shim that could not be ended is found again by its bundle.
        self.shim = None;
        for (id, exit) in &torn.exits {
            self.take_exit(id, exit);
        }
        for container in self.containers.values_mut().filter(|_| complete) {
            container.lose();
        }
    }

    async fn pod_rescued(&mut self, rescued: Rescued) {
        let lived = |container: &&super::Container| !container.record.has_exited();
        let lived: Vec<Id> =
            self.containers.values().filter(lived).map(|container| container.record.id.clone()).collect();
        match rescued {
            Rescued::Found { shim, states } => {
                self.shim = Some(shim);
                for (id, state) in states {
                    match state {
                        Some(TaskState::Stopped(exit)) => self.take_exit(&id, &exit),
                        Some(TaskState::Created | TaskState::Running { .. }) => {}
                        None => drop(self.containers.get_mut(&id).map(super::Container::lose)),
                    }
                }
                self.watch_all();
            }
            Rescued::Lost(ended) => {
                self.shim = None;
                self.pod.phase = PodPhase::NotReady;
                self.pod.pid = None;
                for container in self.containers.values_mut() {
                    match &ended {
                        Ok(()) => container.lose(),
                        Err(_) if container.record.phase() == ContainerPhase::Running => {
                            container.record.lose_sight();
                        }
                        Err(_) => {}
                    }
                }
                if let Err(error) = ended {
                    tracing::error!(pod = %self.pod.id, error = error.chain(), "processes of a lost shim may be left");
                }
            }
        }
        self.answer_pod(Ok(self.pod.id.clone())).await;
        for id in lived {
            if self.containers.get(&id).is_some_and(|container| container.record.has_exited()) {
                self.tell_stopped(&id);
            }
        }
    }

    async fn created(&mut self, id: Id, created: Created) {
        if let Some(container) = self.containers.get_mut(&id) {
            container.record.state = Some(ContainerState::Created);
            container.record.user = created.user;
            container.record.oci_spec = created.oci_spec;
            container.record.limits = created.limits;
            self.shared.add_container(&id, &self.pod.id);
        }
        self.answer_container(&id, Ok(())).await;
    }

    async fn not_created(&mut self, id: Id, undone: Undone) {
        match undone.left {
            None => {
                let running = self.containers.get_mut(&id).and_then(|container| container.running.take());
                // A row that could not be deleted is reported there; the caller gets the reason of the creation.
                drop(self.forget_container(&id).await);
                answer_all(running, Err(undone.error));
            }
            Some(left) => {
                tracing::warn!(container = %id, error = left.chain(), "a failed creation is not torn down yet");
                self.answer_container(&id, Err(undone.error)).await;
            }
        }
    }

    async fn started(&mut self, id: Id, started: Result<i32, Error>) {
        if let Some(container) = self.containers.get_mut(&id) {
            match &started {
                Ok(pid) => {
                    let started_at = SystemTime::now();
                    container.record.state = Some(ContainerState::Running { pid: *pid, started_at });
                    self.watch(id.clone());
                }
                Err(error) => {
                    container.record.end(start_error(error.chain()));
                    container.ended.send_replace(true);
                }
            }
        }
        self.answer_container(&id, started.map(drop)).await;
    }

    /// The record changes only now, so a failed update leaves what it has always said.
    async fn updated(&mut self, id: Id, updated: Result<Updated, Error>) {
        let result = updated.map(|updated| {
            if let Some(container) = self.containers.get_mut(&id) {
                updated.store(&mut container.record);
            }
        });
        self.answer_container(&id, result).await;
    }

    async fn stopped(&mut self, id: Id, stopped: Result<(), Error>) {
        if stopped.is_err()
            && let Some(container) = self.containers.get_mut(&id)
        {
            // The signal may not have arrived, and the next stop's grace is for who was told.
            container.signalled = false;
            if self.rescue {
                let again = container.stops_again().into_iter();
                return self.deferred.extend(again.map(|stop| Request::Container(id.clone(), stop)));
            }
        }
        if stopped.is_ok()
            && let Some(container) = self.containers.get_mut(&id)
        {
            // Without a shim nobody has told how it ended. With one, its exit is committed already.
            container.lose();
        }
        self.answer_container(&id, stopped).await;
    }

    async fn removed(&mut self, id: Id, torn: Torn) {
        let result = torn.complete(&format!("container {id}"));
        if result.is_err() {
            for (id, exit) in &torn.exits {
                self.take_exit(id, exit);
            }
            return self.answer_container(&id, result).await;
        }
        let running = self.containers.get_mut(&id).and_then(|container| container.running.take());
        let forgotten = self.forget_container(&id).await;
        answer_all(running, forgotten.map(|()| id));
    }

    /// A task has ended, or nobody can wait for it any more.
    pub(super) async fn exited(&mut self, id: Id, exit: Result<TaskExit, Error>) {
        match exit {
            Ok(_) if id == self.pod.id => {
                if self.pod.phase == PodPhase::Ready && self.running.is_none() {
                    tracing::warn!(pod = %id, "the pause process ended by itself");
                    self.pod.phase = PodPhase::NotReady;
                    self.pod.pid = None;
                    self.commit(None).await;
                    self.publish_pod();
                }
            }
            Ok(exit) => {
                if let Some(container) = self.containers.get_mut(&id) {
                    container.record.take_exit(&exit);
                }
                let committed = self.commit(Some(&id)).await;
                self.publish_container(&id);
                // Before anybody else who waits for the exit can tell it.
                self.tell_stopped(&id);
                // An exit that is not recorded is known to the shim only.
                if committed {
                    self.reap(&id);
                }
                if let Some(container) = self.containers.get(&id) {
                    container.ended.send_replace(true);
                }
            }
            Err(error) => {
                let lives = match self.containers.get(&id) {
                    Some(container) => container.record.phase() == ContainerPhase::Running,
                    None => id == self.pod.id && self.pod.phase == PodPhase::Ready,
                };
                if lives && self.running.is_none() {
                    tracing::warn!(task = %id, error = error.chain(), "the connection to a task's shim was lost");
                    self.rescue = true;
                    self.containers.values().for_each(super::Container::give_up);
                    self.rescue().await;
                }
            }
        }
    }

    /// Lets plugins know of a container's end; nobody waits for them.
    fn tell_stopped(&mut self, id: &Id) {
        if self.world.nri.is_on()
            && let Some(container) = self.containers.get(id)
        {
            self.streams.spawn(self.world.nri.stop_container(&self.pod, &container.record));
        }
    }

    /// Deletes an ended task in the shim, which frees its cgroup. What fails here, the remove does.
    fn reap(&mut self, id: &Id) {
        let (Some(shim), Some(container)) = (self.shim.clone(), self.containers.get(id)) else { return };
        // Taken before anybody is told of the end. Whoever waits for a stop waits for this as well.
        let reaped = Arc::clone(&container.reaped).try_lock_owned();
        let id = id.clone();
        self.streams.spawn(async move {
            match (shim.delete(&id).await, reaped) {
                (Ok(()), Ok(mut reaped)) => *reaped = true,
                (Ok(()), Err(_)) => {}
                (Err(error), _reaped) => {
                    tracing::debug!(task = %id, error = error.chain(), "an ended task is left until its container is removed");
                }
            }
        });
    }

    fn take_exit(&mut self, id: &Id, exit: &TaskExit) {
        if let Some(container) = self.containers.get_mut(id) {
            container.record.take_exit(exit);
            container.ended.send_replace(container.record.phase() == ContainerPhase::Exited);
        }
    }

    /// Watches for the end of every task that lives.
    pub(super) fn watch_all(&mut self) {
        // Dropping the old set ends its watches, which wait on a connection that may be lost.
        self.exits = tokio::task::JoinSet::new();
        if self.pod.pid.is_some() {
            self.watch(self.pod.id.clone());
        }
        let running: Vec<Id> = self
            .containers
            .values()
            .filter(|container| container.record.phase() == ContainerPhase::Running)
            .map(|container| container.record.id.clone())
            .collect();
        for id in running {
            self.watch(id);
        }
    }

    fn watch(&mut self, id: Id) {
        let Some(shim) = self.shim.clone() else { return };
        self.exits.spawn(async move {
            let exit = shim.wait(&id).await;
            (id, exit)
        });
    }

    /// Clears the intent, commits and publishes everything, answers who waits.
    async fn answer_pod(&mut self, result: Result<Id, Error>) {
        self.pod.intent = None;
        let running = self.running.take();
        let records: Vec<&ContainerRecord> = self.containers.values().map(|container| &container.record).collect();
        let committed = self.world.rows.put(Some(&self.pod), &records).await;
        if committed.is_err() && running.as_ref().is_some_and(|running| running.verb == PodVerb::Run) {
            // A pod whose start is not recorded would be torn down by the next boot: it is not given out.
            self.pod.phase = PodPhase::NotReady;
        }
        self.publish_all();
        answer_all(running, result.and_then(|id| committed.map(|()| id)));
    }

    async fn answer_container(&mut self, id: &Id, result: Result<(), Error>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.record.intent = None;
        let running = container.running.take();
        let committed = self.world.rows.put(None, &[&container.record]).await;
        self.publish_container(id);
        answer_all(running, result.and(committed).map(|()| id.clone()));
    }

    /// Whether what changed is recorded.
    async fn commit(&self, container: Option<&Id>) -> bool {
        let container = container.and_then(|id| self.containers.get(id)).map(|container| &container.record);
        let written = match container {
            Some(record) => self.world.rows.put(None, &[record]).await,
            None => self.world.rows.put(Some(&self.pod), &[]).await,
        };
        if let Err(error) = &written {
            // Recovery asks the shim again, which still has the exit.
            tracing::error!(pod = %self.pod.id, error = error.chain(), "an exit could not be recorded");
        }
        written.is_ok()
    }

    /// The pod is gone: its rows, its views, its owner.
    async fn forget(&mut self, result: Result<Id, Error>) {
        let deleted = self.world.rows.delete_pod(&self.pod.id).await;
        if let Err(error) = deleted {
            return self.answer_pod(Err(error)).await;
        }
        for id in self.containers.keys() {
            self.shared.views.withdraw_container(id);
            self.world.nri.forget(id);
        }
        self.shared.views.withdraw_pod(&self.pod.id);
        self.world.nri.forget(&self.pod.id);
        self.shared.forget_pod(&self.pod);
        self.over = true;
        answer_all(self.running.take(), result);
    }

    async fn forget_container(&mut self, id: &Id) -> Result<(), Error> {
        let deleted = self.world.rows.delete_container(id).await;
        if let Err(error) = deleted {
            // The row stays, with its intent: the next try or the next boot removes it.
            tracing::error!(container = %id, error = error.chain(), "a container's row could not be deleted");
            return Err(error);
        }
        self.containers.remove(id);
        self.shared.forget_container(id);
        self.shared.views.withdraw_container(id);
        self.world.nri.forget(id);
        Ok(())
    }

    pub(super) fn publish_pod(&self) {
        if let Some(view) = self.pod.view(self.world.paths.netns(&self.pod.id)) {
            self.shared.views.publish_pod(view);
        }
    }

    pub(super) fn publish_container(&self, id: &Id) {
        if let Some(view) = self.containers.get(id).and_then(|container| container.record.view()) {
            self.shared.views.publish_container(view);
        }
    }

    pub(super) fn publish_all(&self) {
        self.publish_pod();
        for id in self.containers.keys() {
            self.publish_container(id);
        }
    }
}

impl super::Container {
    /// It does not live any more, and nobody knows how it ended.
    fn lose(&mut self) {
        if matches!(self.record.phase(), ContainerPhase::Running | ContainerPhase::Unknown) {
            self.record.end(unknown_exit());
            self.ended.send_replace(true);
        }
    }
}

impl ContainerRecord {
    /// The end that the shim reports.
    pub(crate) fn take_exit(&mut self, exit: &TaskExit) {
        if matches!(self.phase(), ContainerPhase::Running | ContainerPhase::Unknown) {
            let reason = match (exit.oom_killed, exit.code) {
                (true, _) => "OOMKilled",
                (false, 0) => "Completed",
                (false, _) => "Error",
            };
            // The start is known when the shim has answered, which a short-lived process does not wait for.
            let at = match self.state {
                Some(ContainerState::Running { started_at, .. }) => exit.at.max(started_at),
                _ => exit.at,
            };
            self.end(Exit { code: exit.code, at, reason: reason.into(), message: String::new() });
        }
    }
}

fn answer_all<V>(running: Option<Running<V>>, result: Result<Id, Error>) {
    for waiter in running.into_iter().flat_map(|running| running.waiters) {
        waiter.answer(result.clone());
    }
}
