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

use std::{collections::BTreeMap, panic::AssertUnwindSafe, sync::Arc};

use futures_util::FutureExt;
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use crate::{
    Error,
    launcher::{Shim, TaskExit},
    machine::{ContainerPhase, ContainerVerb, Gate, PodPhase, PodVerb, Verdict, admit_pod},
    model::{Id, PodResources},
    ops,
    record::{self, ContainerRecord, PodRecord},
    request::{Reply, Request, Run},
    shared::Shared,
    world::{Operation, World},
};

mod containers;
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
    /// Held while the shim frees what the ended task had; true when it has.
    reaped: Arc<tokio::sync::Mutex<bool>>,
    /// Of the running stop.
    kill_at: watch::Sender<Instant>,
    /// The stop signal is sent once in a container's life.
    signalled: bool,
    /// Held while a checkpoint of it is made.
    checkpointing: Arc<tokio::sync::Mutex<()>>,
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
            reaped: Arc::default(),
            kill_at: watch::Sender::new(Instant::now()),
            signalled: false,
            checkpointing: Arc::default(),
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
        while !(self.over || closing.is_cancelled() && self.may_close()) {
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

    /// Nothing runs that the next life of the daemon would have to undo. A stop only waits, maybe for hours.
    fn may_close(&self) -> bool {
        let stays = |container: &Container| !matches!(container.in_flight(), None | Some(ContainerVerb::Stop));
        self.running.is_none() && !self.containers.values().any(stays)
    }

    async fn dispatch(&mut self, request: Request) {
        match request {
            Request::Run(run, reply) => self.run_pod(run, reply).await,
            Request::Stop(reply) => self.end_pod(PodVerb::Stop, reply).await,
            Request::Remove(reply) => self.end_pod(PodVerb::Remove, reply).await,
            Request::UpdateResources(update, reply) => self.update_resources(update, reply).await,
            Request::Create(create, reply) => self.create(create, reply).await,
            Request::Container(id, request) => self.container(id, request).await,
        }
    }

    async fn run_pod(&mut self, run: Box<Run>, reply: Reply<Id>) {
        let retry = self.pod.spec == run.spec && self.pod.image.is_same(&run.image);
        let in_flight = self.running.as_ref().map(|running| running.verb);
        let settled = self.pod.phase == PodPhase::New && in_flight.is_none();
        let removing = in_flight == Some(PodVerb::Remove);
        if !retry && !settled && !removing {
            return answer(reply, Err(self.taken()));
        }
        match admit_pod(self.pod.phase, in_flight, PodVerb::Run) {
            Verdict::Run => {
                let settings = self.world.handler(&self.pod.handler);
                // A start that failed may have been of another spec.
                let checked = settings.and_then(|settings| record::check(&run.spec, &self.pod.handler, settings));
                if let Err(error) = checked {
                    self.over = !self.stored;
                    return answer(reply, Err(error));
                }
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

    /// One commit without an effect; plugins are asked before it. A running operation has a copy of the record, but its end
    /// writes this one.
    async fn update_resources(&mut self, update: Box<PodResources>, reply: Reply<()>) {
        if self.running.as_ref().is_some_and(|running| running.verb == PodVerb::Run) {
            // Nobody knows the id yet but from a list, and a start that fails forgets the pod.
            return self.deferred.push(Request::UpdateResources(update, reply));
        }
        if !self.world.nri.has_plugins() {
            return self.store_resources(*update, reply).await;
        }
        let (world, pod) = (Arc::clone(&self.world), self.pod.clone());
        self.spawn(None, async move {
            match world.nri.update_pod(&pod, &update).await {
                Ok(()) => Ended::ResourcesAgreed(update, reply),
                Err(error) => Ended::ResourcesRefused(error, reply),
            }
        });
    }

    async fn store_resources(&mut self, update: PodResources, reply: Reply<()>) {
        let before = self.pod.updated.replace(update);
        let written = self.world.rows.put(Some(&self.pod), &[]).await;
        if written.is_err() {
            self.pod.updated = before;
        } else if self.world.nri.has_plugins() {
            let (world, pod) = (Arc::clone(&self.world), self.pod.clone());
            self.streams.spawn(async move { world.nri.post_update_pod(&pod).await });
        }
        self.publish_pod();
        answer(reply, written);
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
        let living =
            || self.containers.values().map(|container| (container.record.clone(), container.ended.subscribe()));
        match verb {
            PodVerb::Run => self
                .spawn(None, async move { Ended::PodStarted(ops::start_pod::run(world, pod, again, operation).await) }),
            PodVerb::Stop => {
                let containers = living().collect();
                self.spawn(
                    None,
                    async move { Ended::PodStopped(ops::stop_pod::run(world, pod, containers, shim).await) },
                );
            }
            PodVerb::Remove => {
                let containers = living().collect();
                self.spawn(
                    None,
                    async move { Ended::PodRemoved(ops::remove_pod::run(world, pod, containers, shim).await) },
                )
            }
            PodVerb::Rescue => {
                let containers = living().map(|(record, _)| record).collect();
                self.spawn(None, async move { Ended::PodRescued(ops::rescue_pod::run(world, pod, containers).await) })
            }
        }
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

    /// Runs an operation. A panic in it ends it as a failure does, so that its slot does not stay taken for ever.
    fn spawn(&mut self, container: Option<Id>, operation: impl Future<Output = Ended> + Send + 'static) {
        self.operations.spawn(async move {
            let ended = AssertUnwindSafe(operation).catch_unwind().await;
            ended.unwrap_or(Ended::Panicked(container))
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
