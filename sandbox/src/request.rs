//! What an owner is asked, and how it answers. Dropping the waiting side changes nothing for the owner.

use std::time::Duration;

use tokio::sync::{mpsc, oneshot};

use crate::{
    Error, Session,
    checkpoint::{Checkpoint, Restore},
    model::{ContainerSpec, ExecOutput, Id, Image, PodResources, PodSpec, StreamRequest},
    nri::LimitChange,
};

/// Where an answer goes. A closed one means that the caller gave up, which is no concern of an operation that changes the
/// pod; a command that only the caller wanted ends with it.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, Error>>;

/// Requests that wait in one owner's inbox. A pod has few clients, each with few calls under way.
pub(crate) const INBOX: usize = 64;

/// The sending half of an owner's inbox.
pub(crate) type Inbox = mpsc::Sender<Request>;

#[derive(Debug)]
pub(crate) enum Request {
    Run(Box<Run>, Reply<Id>),
    Stop(Reply<()>),
    Remove(Reply<()>),
    UpdateResources(Box<PodResources>, Reply<()>),
    Create(Box<Create>, Reply<Id>),
    Container(Id, ContainerRequest),
}

/// What RunPodSandbox asks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Run {
    pub(crate) spec: PodSpec,
    pub(crate) image: Image,
}

/// What CreateContainer asks.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Create {
    pub(crate) spec: ContainerSpec,
    pub(crate) image: Image,
    pub(crate) restore: Option<Restore>,
}

#[derive(Debug)]
pub(crate) enum ContainerRequest {
    Start(Reply<()>),
    Stop(Duration, Reply<()>),
    Remove(Reply<()>),
    Update(Box<LimitChange>, Reply<()>),
    Checkpoint(Checkpoint, Reply<()>),
    ReopenLog(Reply<()>),
    ExecSync(Vec<String>, Option<Duration>, Reply<ExecOutput>),
    Exec(StreamRequest, Reply<Session>),
    Attach(StreamRequest, Reply<Session>),
}

/// The owner ended before it answered: the pod was removed, or the daemon shuts down.
pub(crate) struct Gone;

/// Asks and waits.
pub(crate) async fn ask<T>(inbox: &Inbox, request: impl FnOnce(Reply<T>) -> Request) -> Result<Result<T, Error>, Gone> {
    let (reply, answer) = oneshot::channel();
    inbox.send(request(reply)).await.map_err(|_| Gone)?;
    answer.await.map_err(|_| Gone)
}
