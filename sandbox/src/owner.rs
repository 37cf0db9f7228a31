//! The owner of one pod and its containers: the only task that changes their state.
//!
//! ```text
//!              ┌─► operation ended ─► commit ─► publish ─► answer ─► ask the deferred again   (owner/ended.rs)
//! select! ─────┼─► request ─► admit ─► commit the intent ─► start the operation               (here)
//!              └─► exit of a task ─► commit ─► publish
//! ```
//!
//! Invariants: an operation is never awaited here, only writes of the store are; at most one operation runs for the pod
//! and one for each container; while one runs for the pod, none runs for a container, and the other way round; who gave
//! up waiting for an answer changes nothing.

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use futures_util::FutureExt;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use crate::{
    Error,
    launcher::{Clients, Shim, TaskExit},
    machine::{ContainerPhase, ContainerVerb, Gate, PodPhase, PodVerb, Refusal, Verdict, admit_container, admit_pod},
    model::{ContainerState, Id, NamespaceMode},
    ops,
    ops::stop_container::{Stop, kill_at},
    pods::Shared,
    record::{ContainerRecord, PodRecord},
    request::{ContainerRequest, Create, Reply, Request, Run},
    signal,
    world::{Operation, World},
};

mod ended;

use ended::Ended;

pub(crate) struct Owner {
    world: Arc<World>,
    shared: Arc<Shared>,
    pod: PodRecord,
    /// The pod's row exists: an earlier start may have left something.
    stored: bool,
    running: Option<Running<PodVerb>>,
    containers: BTreeMap<Id, Container>,
    shim: Option<Arc<dyn Shim>>,
    /// The connection to the shim was lost, and the rescue waits for running operations.
    rescue: bool,
    /// Requests that are asked again when an operation has ended.
    deferred: Vec<Request>,
    operations: JoinSet<Ended>,
    exits: JoinSet<(Id, Result<TaskExit, Error>)>,
    /// Sessions, log rotations and the deletion of ended tasks: nothing of the state depends on them.
    streams: JoinSet<()>,
    /// The pod is gone, and its owner goes too.
    over: bool,
}

struct Container {
    record: ContainerRecord,
    /// See [`Owner::stored`].
    stored: bool,
    running: Option<Running<ContainerVerb>>,
    ended: watch::Sender<bool>,
    /// Of the running stop.
    kill_at: watch::Sender<Instant>,
    /// The stop signal is sent once in a container's life.
    signalled: bool,
}

/// An operation under way and who waits for it.
struct Running<V> {
    verb: V,
    operation: Operation,
    waiters: Vec<Waiter>,
}

enum Waiter {
    Id(Reply<Id>),
    Done(Reply<()>),
}

impl Container {
    fn new(record: ContainerRecord, stored: bool) -> Container {
        let ended = record.phase() == ContainerPhase::Exited;
        Container {
            record,
            stored,
            running: None,
            ended: watch::Sender::new(ended),
            kill_at: watch::Sender::new(Instant::now()),
            signalled: false,
        }
    }
}

impl Owner {
    /// A new pod's, of which nothing is stored yet.
    pub(crate) fn new(world: Arc<World>, shared: Arc<Shared>, pod: PodRecord) -> Owner {
        Owner {
            world,
            shared,
            pod,
            stored: false,
            running: None,
            containers: BTreeMap::new(),
            shim: None,
            rescue: false,
            deferred: Vec::new(),
            operations: JoinSet::new(),
            exits: JoinSet::new(),
            streams: JoinSet::new(),
            over: false,
        }
    }

    /// That of a pod which was recovered; watches what lives and publishes all.
    pub(crate) fn recovered(
        world: Arc<World>,
        shared: Arc<Shared>,
        pod: PodRecord,
        containers: Vec<ContainerRecord>,
        shim: Option<Arc<dyn Shim>>,
    ) -> Owner {
        let mut owner = Owner::new(world, shared, pod);
        owner.stored = true;
        owner.shim = shim;
        owner.containers =
            containers.into_iter().map(|record| (record.id.clone(), Container::new(record, true))).collect();
        owner.watch_all();
        owner.publish_all();
        owner
    }

    pub(crate) async fn run(mut self, mut inbox: mpsc::Receiver<Request>) {
        let closing = self.shared.closing.clone();
        while !(self.over || closing.is_cancelled() && self.idle()) {
            tokio::select! {
                biased;
                Some(ended) = self.operations.join_next() => match ended {
                    Ok(ended) => self.end(ended).await,
                    // Panics are caught inside; an operation is aborted only with its owner.
                    Err(error) => tracing::error!(pod = %self.pod.id, error = %error, "an operation was lost"),
                },
                Some(exited) = self.exits.join_next() => match exited {
                    Ok((id, exit)) => self.exited(id, exit).await,
                    Err(error) => tracing::error!(pod = %self.pod.id, error = %error, "a watch for an exit was lost"),
                },
                Some(stream) = self.streams.join_next() => if let Err(error) = stream {
                    tracing::error!(pod = %self.pod.id, error = %error, "a stream was lost");
                },
                () = closing.cancelled(), if !closing.is_cancelled() => {}
                Some(request) = inbox.recv(), if !closing.is_cancelled() => self.dispatch(request).await,
            }
        }
        if self.over {
            self.shared.forget_pod(&self.pod);
        }
    }

    fn idle(&self) -> bool {
        self.running.is_none() && self.containers.values().all(|container| container.running.is_none())
    }

    async fn dispatch(&mut self, request: Request) {
        match request {
            Request::Run(run, reply) => self.run_pod(run, reply).await,
            Request::Stop(reply) => self.end_pod(PodVerb::Stop, reply).await,
            Request::Remove(reply) => self.end_pod(PodVerb::Remove, reply).await,
            Request::Create(create, reply) => self.create(create, reply).await,
            Request::Container(id, request) => self.container(id, request).await,
        }
    }

    async fn run_pod(&mut self, run: Box<Run>, reply: Reply<Id>) {
        let retry = self.pod.spec == run.spec && self.pod.image == run.image;
        let in_flight = self.running.as_ref().map(|running| running.verb);
        let settled = self.pod.phase == PodPhase::New && in_flight.is_none();
        let removing = in_flight == Some(PodVerb::Remove);
        if !retry && !settled && !removing {
            return answer(reply, Err(self.taken()));
        }
        match admit_pod(self.pod.phase, in_flight, PodVerb::Run) {
            Verdict::Run => {
                self.pod.spec = run.spec;
                self.pod.image = run.image;
                self.begin_pod(PodVerb::Run, Waiter::Id(reply)).await;
            }
            Verdict::Join => self.join_pod(Waiter::Id(reply)),
            Verdict::Done => answer(reply, Ok(self.pod.id.clone())),
            Verdict::Defer | Verdict::Interrupt => self.deferred.push(Request::Run(run, reply)),
            Verdict::Deny(_) => answer(reply, Err(self.taken())),
        }
    }

    fn taken(&self) -> Error {
        let name = self.pod.spec.name.key();
        Error::AlreadyExists(format!("pod sandbox name {name:?} is reserved for {:?}", self.pod.id.as_str()))
    }

    async fn end_pod(&mut self, verb: PodVerb, reply: Reply<()>) {
        let in_flight = self.running.as_ref().map(|running| running.verb);
        match admit_pod(self.pod.phase, in_flight, verb) {
            Verdict::Run if self.idle() => self.begin_pod(verb, Waiter::Done(reply)).await,
            // Containers first give up what they do. Until they have, the gate is closed by the deferred request.
            Verdict::Run => {
                self.interrupt_containers();
                self.defer_pod(verb, reply);
            }
            Verdict::Join => self.join_pod(Waiter::Done(reply)),
            Verdict::Interrupt => {
                if let Some(running) = &self.running {
                    running.operation.token.cancel();
                }
                self.defer_pod(verb, reply);
            }
            Verdict::Defer => self.defer_pod(verb, reply),
            Verdict::Done => answer(reply, Ok(())),
            Verdict::Deny(_) => answer(reply, Err(self.not_ready())),
        }
    }

    fn defer_pod(&mut self, verb: PodVerb, reply: Reply<()>) {
        self.deferred.push(match verb {
            PodVerb::Remove => Request::Remove(reply),
            PodVerb::Stop | PodVerb::Run | PodVerb::Rescue => Request::Stop(reply),
        });
    }

    fn join_pod(&mut self, waiter: Waiter) {
        if let Some(running) = &mut self.running {
            running.waiters.push(waiter);
        }
    }

    fn interrupt_containers(&self) {
        for container in self.containers.values() {
            container.interrupt();
        }
    }

    /// Starts a rescue if one is wanted and nothing runs.
    async fn rescue(&mut self) {
        if !self.rescue || !self.idle() {
            return;
        }
        self.rescue = false;
        let verdict = admit_pod(self.pod.phase, None, PodVerb::Rescue);
        if verdict == Verdict::Run {
            self.begin_pod(PodVerb::Rescue, Waiter::Done(tokio::sync::oneshot::channel().0)).await;
        }
    }

    /// Commits the intent and starts the operation.
    async fn begin_pod(&mut self, verb: PodVerb, waiter: Waiter) {
        self.pod.intent = Some(verb);
        let again = self.stored;
        if verb == PodVerb::Run {
            self.pod.boot = self.world.boot.clone();
            self.pod.network_owed = !self.pod.host_network();
        }
        if let Err(error) = self.world.rows.put(Some(&self.pod), &[]).await {
            self.pod.intent = None;
            self.over = !self.stored;
            return waiter.answer(Err(error));
        }
        self.stored = true;
        self.publish_pod();
        let operation = Operation::default();
        self.running = Some(Running { verb, operation: operation.clone(), waiters: vec![waiter] });
        let (world, pod, shim) = (Arc::clone(&self.world), self.pod.clone(), self.shim.clone());
        let containers: Vec<ContainerRecord> =
            self.containers.values().map(|container| container.record.clone()).collect();
        match verb {
            PodVerb::Run => self
                .spawn(None, async move { Ended::PodStarted(ops::start_pod::run(world, pod, again, operation).await) }),
            PodVerb::Stop => self
                .spawn(None, async move { Ended::PodStopped(ops::stop_pod::run(world, pod, containers, shim).await) }),
            PodVerb::Remove => {
                self.spawn(
                    None,
                    async move { Ended::PodRemoved(ops::remove_pod::run(world, pod, containers, shim).await) },
                )
            }
            PodVerb::Rescue => {
                self.spawn(None, async move { Ended::PodRescued(ops::rescue_pod::run(world, pod, containers).await) })
            }
        }
    }

    async fn create(&mut self, create: Box<Create>, reply: Reply<Id>) {
        let name = &create.spec.name;
        let known = self.containers.values().find(|container| container.record.spec.name == *name);
        let (id, phase, in_flight, retry) = match known {
            Some(container) => (
                container.record.id.clone(),
                container.record.phase(),
                container.in_flight(),
                container.record.spec == create.spec && container.record.image == create.image,
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
        let target_pid = match self.target_pid(&create) {
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
            let created = ops::create_container::run(world, pod, record, target_pid, again, operation).await;
            Ended::Created(id, created)
        });
    }

    /// The process whose PID namespace the container joins, if it asks for one.
    fn target_pid(&self, create: &Create) -> Result<Option<i32>, Error> {
        let namespaces = &create.spec.namespaces;
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

    async fn container(&mut self, id: Id, request: ContainerRequest) {
        match request {
            ContainerRequest::Start(reply) => self.start(id, reply).await,
            ContainerRequest::Stop(grace, reply) => self.stop(id, grace, reply),
            ContainerRequest::Remove(reply) => self.remove(id, reply).await,
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
                        answer(reply, ops::exec_sync::run(&world, clients, &record, command, timeout).await);
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
                    let drain = self.world.config.timeouts.drain;
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
                self.spawn(Some(id.clone()), async move {
                    Ended::Started(id, ops::start_container::run(world, pod, record, shim, operation).await)
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
                let waiters = vec![Waiter::Done(reply)];
                container.running = Some(Running { verb: ContainerVerb::Stop, operation, waiters });
                container.kill_at.send_replace(kill_at(grace));
                let stop = Stop {
                    signal: (!container.signalled).then(|| stop_signal(&container.record)),
                    kill_at: container.kill_at.subscribe(),
                    ended: container.ended.subscribe(),
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
                let (world, pod, shim) = (Arc::clone(&self.world), self.pod.clone(), self.shim.clone());
                self.spawn(Some(id.clone()), async move {
                    let torn = ops::remove_container::run(world, pod, id.clone(), shim).await;
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

    /// Whether an operation on the whole pod runs: it does what is to be done to the containers.
    fn pod_busy(&self) -> bool {
        self.running.is_some()
    }

    fn gate(&self) -> Gate {
        let ending = self.deferred.iter().any(|request| matches!(request, Request::Stop(_) | Request::Remove(_)));
        match self.pod.phase == PodPhase::Ready && self.running.is_none() && !ending && !self.rescue {
            true => Gate::Open,
            false => Gate::Closed,
        }
    }

    fn not_ready(&self) -> Error {
        Error::Precondition(format!("sandbox container {:?} is not running", self.pod.id.as_str()))
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

    /// Runs an operation. A panic in it ends it as a failure does, so that its slot does not stay taken for ever.
    fn spawn(&mut self, container: Option<Id>, operation: impl Future<Output = Ended> + Send + 'static) {
        self.operations.spawn(async move {
            let ended = AssertUnwindSafe(operation).catch_unwind().await;
            ended.unwrap_or(Ended::Panicked(container))
        });
    }
}

impl Container {
    fn in_flight(&self) -> Option<ContainerVerb> {
        self.running.as_ref().map(|running| running.verb)
    }

    /// Makes what runs give up or come to its end at once.
    fn interrupt(&self) {
        match &self.running {
            Some(Running { verb: ContainerVerb::Create | ContainerVerb::Start, operation, .. }) => {
                operation.token.cancel()
            }
            Some(Running { verb: ContainerVerb::Stop, .. }) => self.hasten(Instant::now()),
            Some(Running { verb: ContainerVerb::Remove, .. }) | None => {}
        }
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

impl Waiter {
    fn answer(self, result: Result<Id, Error>) {
        match self {
            Waiter::Id(reply) => answer(reply, result),
            Waiter::Done(reply) => answer(reply, result.map(drop)),
        }
    }
}

fn answer<T>(reply: Reply<T>, result: Result<T, Error>) {
    // A caller that gave up does not want the answer; the state has changed all the same.
    drop(reply.send(result));
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

/// CRI's over the image's over SIGTERM. An image with a signal that does not exist gets SIGTERM too.
fn stop_signal(container: &ContainerRecord) -> i32 {
    let image = container.image.config.config().as_ref().and_then(|config| config.stop_signal().as_deref());
    let named = container.spec.stop_signal.as_deref().filter(|name| !name.is_empty()).or(image);
    named.and_then(|name| signal::parse(name).ok()).unwrap_or(signal::SIGTERM)
}
