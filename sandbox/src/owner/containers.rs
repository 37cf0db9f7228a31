//! What an owner does with requests about containers: admit, commit the intent, start the operation.

use std::{sync::Arc, time::Duration};

use tokio::time::Instant;

use super::{Container, Ended, Owner, Running, Waiter, answer};
use crate::{
    Error,
    launcher::Clients,
    machine::{ContainerPhase, ContainerVerb, Gate, Refusal, Verdict, admit_container},
    model::{ContainerSpec, ContainerState, Id, NamespaceMode},
    nri::LimitChange,
    ops,
    ops::{
        stop_container::{Stop, kill_at},
        update_container::Updated,
    },
    record::ContainerRecord,
    request::{ContainerRequest, Create, Reply, Request},
    signal,
    world::Operation,
};

impl Owner {
    pub(super) async fn create(&mut self, create: Box<Create>, reply: Reply<Id>) {
        let name = &create.spec.name;
        let known = self.containers.values().find(|container| container.record.spec.name == *name);
        let (id, phase, in_flight, retry) = match known {
            Some(container) => (
                container.record.id.clone(),
                container.record.phase(),
                container.in_flight(),
                container.record.spec == create.spec
                    && container.record.image.is_same(&create.image)
                    && container.record.restore == create.restore,
            ),
            None => match Id::random() {
                Ok(id) => (id, ContainerPhase::New, None, true),
                Err(error) => return answer(reply, Err(Error::failed("make an id for the container", error))),
            },
        };
        let taken = || {
            Error::AlreadyExists(format!(
                "container name \"{}_{}\" of pod sandbox {} is reserved for {id:?}; check if another CreateContainer request is in progress",
                create.spec.name.name,
                create.spec.name.attempt,
                self.pod.id,
                id = id.as_str()
            ))
        };
        let settled = phase == ContainerPhase::New && in_flight.is_none();
        if !retry && !settled && in_flight != Some(ContainerVerb::Remove) {
            return answer(reply, Err(taken()));
        }
        match admit_container(self.gate(), phase, in_flight, ContainerVerb::Create) {
            Verdict::Run => self.begin_create(id, *create, reply).await,
            Verdict::Join => self.join_container(&id, Waiter::Id(reply)),
            Verdict::Done => answer(reply, Ok(id)),
            Verdict::Defer | Verdict::Interrupt => self.deferred.push(Request::Create(create, reply)),
            Verdict::Deny(Refusal::PodNotReady) => answer(reply, Err(self.not_ready())),
            Verdict::Deny(_) => answer(reply, Err(taken())),
        }
    }

    async fn begin_create(&mut self, id: Id, create: Create, reply: Reply<Id>) {
        let target_pid = match self.target_pid(&create.spec) {
            Ok(target_pid) => target_pid,
            Err(error) => return answer(reply, Err(error)),
        };
        let again = self.containers.get(&id).is_some_and(|container| container.stored);
        let record = ContainerRecord::new(&self.pod, id.clone(), create);
        if let Err(error) = self.world.rows.put(None, &[&record]).await {
            return answer(reply, Err(error));
        }
        let mut container = Container::new(record.clone(), true);
        let operation = Operation::default();
        container.running = Some(Running {
            verb: ContainerVerb::Create,
            operation: operation.clone(),
            waiters: vec![Waiter::Id(reply)],
        });
        self.containers.insert(id.clone(), container);
        let (world, pod) = (Arc::clone(&self.world), self.pod.clone());
        self.spawn(Some(id.clone()), async move {
            let create = ops::create_container::run(world, pod, record, target_pid, again, operation);
            Ended::Created(id, Box::pin(create).await)
        });
    }

    /// The process whose PID namespace the container joins, if it asks for one.
    fn target_pid(&self, spec: &ContainerSpec) -> Result<Option<i32>, Error> {
        let namespaces = &spec.namespaces;
        if namespaces.pid != NamespaceMode::Target {
            return Ok(None);
        }
        let target = namespaces.target.as_deref().unwrap_or_default();
        let found = self.containers.iter().find(|(id, _)| id.as_str() == target).map(|(_, found)| &found.record.state);
        match found {
            Some(Some(ContainerState::Running { pid, .. })) => Ok(Some(*pid)),
            Some(_) => Err(Error::Precondition(format!("target container {target:?} is not running"))),
            None => Err(Error::Invalid(format!("target container {target:?} is not in pod sandbox {}", self.pod.id))),
        }
    }

    pub(super) async fn container(&mut self, id: Id, request: ContainerRequest) {
        match request {
            ContainerRequest::Start(reply) => self.start(id, reply).await,
            ContainerRequest::Stop(grace, reply) => self.stop(id, grace, reply),
            ContainerRequest::Remove(reply) => self.remove(id, reply).await,
            ContainerRequest::Update(update, reply) => self.update(id, update, reply).await,
            ContainerRequest::Checkpoint(checkpoint, reply) => match self.running_container(&id) {
                Ok((record, clients)) => {
                    let Some(container) = self.containers.get(&id) else { return };
                    let only = Arc::clone(&container.checkpointing);
                    let (world, pod) = (Arc::clone(&self.world), self.pod.clone());
                    self.streams.spawn(async move {
                        let made = ops::checkpoint_container::run(world, clients, pod, record, checkpoint, only);
                        answer(reply, Box::pin(made).await);
                    });
                }
                Err(error) => answer(reply, Err(error)),
            },
            ContainerRequest::ReopenLog(reply) => match self.running_container(&id) {
                Ok((_, clients)) => drop(self.streams.spawn(async move {
                    answer(reply, ops::reopen_log::run(clients, id).await);
                })),
                Err(error) => answer(reply, Err(error)),
            },
            ContainerRequest::ExecSync(command, timeout, reply) => match self.running_container(&id) {
                Ok((record, clients)) => {
                    let world = Arc::clone(&self.world);
                    self.streams.spawn(async move {
                        ops::exec_sync::run(&world, clients, &record, command, timeout, reply).await;
                    });
                }
                Err(error) => answer(reply, Err(error)),
            },
            ContainerRequest::Exec(request, reply) => match self.running_container(&id) {
                Ok((record, clients)) => {
                    let drain = self.world.config.timeouts.drain;
                    self.streams.spawn(ops::exec::run(clients, record, request, drain, reply));
                }
                Err(error) => answer(reply, Err(error)),
            },
            ContainerRequest::Attach(request, reply) => match self.running_container(&id) {
                Ok((_, clients)) => {
                    let drain = self.world.config.timeouts.drain.limit;
                    self.streams.spawn(ops::attach::run(clients, id, request, drain, reply));
                }
                Err(error) => answer(reply, Err(error)),
            },
        }
    }

    async fn start(&mut self, id: Id, reply: Reply<()>) {
        let gate = self.gate();
        let Some(container) = self.containers.get_mut(&id) else { return answer(reply, Err(missing(&id))) };
        match admit_container(gate, container.record.phase(), container.in_flight(), ContainerVerb::Start) {
            Verdict::Run => {
                let Some(shim) = self.shim.clone() else { return answer(reply, Err(self.not_ready())) };
                let Some(operation) = self.begin_container(&id, ContainerVerb::Start, reply).await else { return };
                let (world, pod) = (Arc::clone(&self.world), self.pod.clone());
                let Some(record) = self.containers.get(&id).map(|container| container.record.clone()) else { return };
                // The spec names a process of the target by its id, which may be another process's by now.
                let target = self.target_pid(&record.spec).map(drop);
                self.spawn(Some(id.clone()), async move {
                    let start = ops::start_container::run(world, pod, record, target, shim, operation);
                    Ended::Started(id, start.await)
                });
            }
            Verdict::Join => self.join_container(&id, Waiter::Done(reply)),
            Verdict::Done => answer(reply, Ok(())),
            Verdict::Defer | Verdict::Interrupt => {
                self.deferred.push(Request::Container(id, ContainerRequest::Start(reply)));
            }
            Verdict::Deny(Refusal::PodNotReady) => answer(reply, Err(self.not_ready())),
            Verdict::Deny(Refusal::Removing) => {
                answer(
                    reply,
                    Err(Error::Precondition(format!("container {id} is in removing state, can't be started"))),
                );
            }
            Verdict::Deny(Refusal::WrongState | Refusal::Taken) => {
                let state = state_name(container.record.phase());
                answer(reply, Err(Error::Precondition(format!("container {id} is in {state} state"))));
            }
        }
    }

    /// A stop commits no intent: what it changes is the exit, which is committed when it happens. The daemon's end in
    /// the middle leaves a container that runs, or has ended, as after any signal.
    fn stop(&mut self, id: Id, grace: Duration, reply: Reply<()>) {
        if self.pod_busy() {
            return self.deferred.push(Request::Container(id, ContainerRequest::Stop(grace, reply)));
        }
        let Some(container) = self.containers.get_mut(&id) else { return answer(reply, Ok(())) };
        match admit_container(Gate::Open, container.record.phase(), container.in_flight(), ContainerVerb::Stop) {
            Verdict::Run => {
                let operation = Operation::default();
                let lost = operation.token.clone();
                let waiters = vec![Waiter::Done(reply)];
                container.running = Some(Running { verb: ContainerVerb::Stop, operation, waiters });
                container.kill_at.send_replace(kill_at(grace));
                let stop = Stop {
                    signal: (!container.signalled).then(|| {
                        let ContainerRecord { spec, image, .. } = &container.record;
                        signal::of_container(spec, image)
                    }),
                    kill_at: container.kill_at.subscribe(),
                    ended: container.ended.subscribe(),
                    reaped: Arc::clone(&container.reaped),
                    lost,
                };
                container.signalled |= !grace.is_zero();
                let record = container.record.clone();
                let (world, pod, shim) = (Arc::clone(&self.world), self.pod.clone(), self.shim.clone());
                self.spawn(Some(id.clone()), async move {
                    Ended::Stopped(id, ops::stop_container::run(world, pod, record, shim, stop).await)
                });
            }
            Verdict::Join => {
                container.hasten(kill_at(grace));
                self.join_container(&id, Waiter::Done(reply));
            }
            Verdict::Interrupt | Verdict::Defer => {
                container.interrupt();
                self.deferred.push(Request::Container(id, ContainerRequest::Stop(grace, reply)));
            }
            Verdict::Done => answer(reply, Ok(())),
            Verdict::Deny(_) => {
                answer(reply, Err(Error::Precondition(format!("container {id} cannot be stopped now"))));
            }
        }
    }

    async fn remove(&mut self, id: Id, reply: Reply<()>) {
        if self.pod_busy() {
            return self.deferred.push(Request::Container(id, ContainerRequest::Remove(reply)));
        }
        let Some(container) = self.containers.get_mut(&id) else { return answer(reply, Ok(())) };
        match admit_container(Gate::Open, container.record.phase(), container.in_flight(), ContainerVerb::Remove) {
            Verdict::Run => {
                if self.begin_container(&id, ContainerVerb::Remove, reply).await.is_none() {
                    return;
                }
                self.publish_container(&id);
                let (world, pod, shim) = (Arc::clone(&self.world), self.pod.clone(), self.shim.clone());
                let Some(container) = self.containers.get(&id) else { return };
                let (record, reaped) = (container.record.clone(), Arc::clone(&container.reaped));
                self.spawn(Some(id.clone()), async move {
                    let torn = Box::pin(ops::remove_container::run(world, pod, record, shim, reaped)).await;
                    Ended::Removed(id, torn)
                });
            }
            Verdict::Join => self.join_container(&id, Waiter::Done(reply)),
            Verdict::Interrupt | Verdict::Defer => {
                container.interrupt();
                self.deferred.push(Request::Container(id, ContainerRequest::Remove(reply)));
            }
            Verdict::Done => answer(reply, Ok(())),
            Verdict::Deny(_) => {
                answer(reply, Err(Error::Precondition(format!("container {id} cannot be removed now"))));
            }
        }
    }

    async fn update(&mut self, id: Id, update: Box<LimitChange>, reply: Reply<()>) {
        let gate = self.gate();
        let Some(container) = self.containers.get(&id) else { return answer(reply, Err(missing(&id))) };
        match admit_container(gate, container.record.phase(), container.in_flight(), ContainerVerb::Update) {
            Verdict::Run => {
                let record = container.record.clone();
                let updated = match Updated::new(&record, &update, &self.world.host) {
                    Ok(updated) => updated,
                    Err(error) => return answer(reply, Err(error)),
                };
                let Some(operation) = self.begin_container(&id, ContainerVerb::Update, reply).await else { return };
                let (world, pod, shim) = (Arc::clone(&self.world), self.pod.clone(), self.shim.clone());
                self.spawn(Some(id.clone()), async move {
                    let run = ops::update_container::run(world, pod, record, *update, updated, shim, operation);
                    Ended::Updated(id, run.await)
                });
            }
            Verdict::Join | Verdict::Defer | Verdict::Interrupt => {
                self.deferred.push(Request::Container(id, ContainerRequest::Update(update, reply)));
            }
            Verdict::Done => answer(reply, Ok(())),
            Verdict::Deny(Refusal::PodNotReady) => answer(reply, Err(self.not_ready())),
            Verdict::Deny(Refusal::Removing) => {
                answer(
                    reply,
                    Err(Error::Precondition(format!("container {id} is in removing state, can't be updated"))),
                );
            }
            Verdict::Deny(Refusal::WrongState | Refusal::Taken) => {
                answer(reply, Err(Error::Precondition(format!("container {id} has ended or is being stopped"))));
            }
        }
    }

    /// Commits a container's intent; `None` if that failed and the caller has its answer.
    async fn begin_container(&mut self, id: &Id, verb: ContainerVerb, reply: Reply<()>) -> Option<Operation> {
        let container = self.containers.get_mut(id)?;
        container.record.intent = Some(verb);
        if let Err(error) = self.world.rows.put(None, &[&container.record]).await {
            container.record.intent = None;
            answer(reply, Err(error));
            return None;
        }
        let operation = Operation::default();
        let waiters = vec![Waiter::Done(reply)];
        container.running = Some(Running { verb, operation: operation.clone(), waiters });
        Some(operation)
    }

    fn join_container(&mut self, id: &Id, waiter: Waiter) {
        if let Some(running) = self.containers.get_mut(id).and_then(|container| container.running.as_mut()) {
            running.waiters.push(waiter);
        }
    }

    /// Whether an operation on the whole pod runs, or is about to: it does what is to be done to the containers.
    fn pod_busy(&self) -> bool {
        self.running.is_some() || self.rescue
    }

    /// A container that runs, and the clients of its shim.
    fn running_container(&self, id: &Id) -> Result<(ContainerRecord, Clients), Error> {
        let container = self.containers.get(id).ok_or_else(|| missing(id))?;
        let phase = container.record.phase();
        if phase != ContainerPhase::Running {
            return Err(Error::Precondition(format!("container {id} is in {} state", state_name(phase))));
        }
        let clients = self.shim.as_ref().and_then(|shim| shim.clients());
        let clients =
            clients.ok_or_else(|| Error::Unavailable(format!("the shim of container {id} is not connected")))?;
        Ok((container.record.clone(), clients))
    }
}

impl Container {
    pub(super) fn in_flight(&self) -> Option<ContainerVerb> {
        self.running.as_ref().map(|running| running.verb)
    }

    /// Makes what runs give up or come to its end at once.
    pub(super) fn interrupt(&self) {
        match &self.running {
            Some(Running { verb: ContainerVerb::Create | ContainerVerb::Start, operation, .. }) => {
                operation.token.cancel()
            }
            Some(Running { verb: ContainerVerb::Stop, .. }) => self.hasten(Instant::now()),
            Some(Running { verb: ContainerVerb::Remove | ContainerVerb::Update, .. }) | None => {}
        }
    }

    /// Ends what waits for the shim, which is lost.
    pub(super) fn give_up(&self) {
        match &self.running {
            Some(Running {
                verb: ContainerVerb::Create | ContainerVerb::Start | ContainerVerb::Stop,
                operation,
                ..
            }) => {
                operation.token.cancel();
            }
            Some(Running { verb: ContainerVerb::Remove | ContainerVerb::Update, .. }) | None => {}
        }
    }

    /// Takes the stop that was given up, as requests to be asked again with the grace that is left.
    pub(super) fn stops_again(&mut self) -> Vec<ContainerRequest> {
        let grace = self.kill_at.borrow().saturating_duration_since(Instant::now());
        let waiters = self.running.take().map(|running| running.waiters).unwrap_or_default();
        let again = waiters.into_iter().filter_map(|waiter| match waiter {
            Waiter::Done(reply) => Some(ContainerRequest::Stop(grace, reply)),
            Waiter::Id(_) => None,
        });
        again.collect()
    }

    fn hasten(&self, kill_at: Instant) {
        self.kill_at.send_if_modified(|current| {
            let sooner = kill_at < *current;
            if sooner {
                *current = kill_at;
            }
            sooner
        });
    }
}

fn missing(id: &Id) -> Error {
    Error::NotFound { kind: "container", id: id.to_string() }
}

/// CRI's word for it.
fn state_name(phase: ContainerPhase) -> &'static str {
    match phase {
        ContainerPhase::New | ContainerPhase::Created => "CONTAINER_CREATED",
        ContainerPhase::Running => "CONTAINER_RUNNING",
        ContainerPhase::Exited => "CONTAINER_EXITED",
        ContainerPhase::Unknown => "CONTAINER_UNKNOWN",
    }
}
