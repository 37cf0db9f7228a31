//! One open stream, the same for both sides: messages out, messages in.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    frame::{Frame, Kind, MAX_PAYLOAD, NO_DATA, REMOTE_CLOSED},
    status::{Code, Status},
};

/// Messages that wait for a stream's reader. When it is full the connection's reader waits, and with it the peer.
pub(super) const READ_QUEUE: usize = 32;

/// What the connection's reader passes to a stream. The end is `Closed`; a queue that just ends means the connection is lost.
#[derive(Debug)]
pub(super) enum Inbound {
    Message(Bytes),
    Closed(Result<(), Status>),
}

/// Keeps what a stream needs alive and forgets the stream when it is dropped.
pub(super) trait Guard: Send + Sync + 'static {}

/// A stream of messages in both directions.
pub struct Stream {
    sender: Sender,
    receiver: Receiver,
}

/// The outgoing half. Waits when the peer does not read.
#[derive(Clone)]
pub struct Sender {
    id: u32,
    queue: mpsc::Sender<Frame>,
    _guard: Arc<dyn Guard>,
}

/// The incoming half.
pub struct Receiver {
    queue: mpsc::Receiver<Inbound>,
    end: Option<Result<(), Status>>,
    _guard: Arc<dyn Guard>,
}

impl Stream {
    pub(super) fn new(
        id: u32,
        outbound: mpsc::Sender<Frame>,
        inbound: mpsc::Receiver<Inbound>,
        guard: Arc<dyn Guard>,
    ) -> Self {
        Self {
            sender: Sender { id, queue: outbound, _guard: guard.clone() },
            receiver: Receiver { queue: inbound, end: None, _guard: guard },
        }
    }

    /// The next message; `None` once the peer has sent its last.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, Status> {
        self.receiver.recv().await
    }

    /// Sends one message.
    pub async fn send(&self, message: Vec<u8>) -> Result<(), Status> {
        self.sender.send(message).await
    }

    /// A client's last word: no more messages from this side. A server ends a stream by returning from its handler.
    pub async fn close_send(&self) -> Result<(), Status> {
        self.sender.close().await
    }

    /// The two halves, for use from two tasks.
    pub fn split(self) -> (Sender, Receiver) {
        (self.sender, self.receiver)
    }
}

impl Sender {
    pub async fn send(&self, message: Vec<u8>) -> Result<(), Status> {
        if message.len() > MAX_PAYLOAD {
            return Err(too_large(message.len()));
        }
        self.queue_frame(0, message.into()).await
    }

    /// See [`Stream::close_send`].
    pub async fn close(&self) -> Result<(), Status> {
        self.queue_frame(REMOTE_CLOSED | NO_DATA, Bytes::new()).await
    }

    async fn queue_frame(&self, flags: u8, payload: Bytes) -> Result<(), Status> {
        let frame = Frame { stream: self.id, kind: Kind::Data, flags, payload };
        self.queue.send(frame).await.map_err(|_| lost())
    }
}

impl Receiver {
    /// See [`Stream::recv`]. Cancel-safe. After the end it gives the end again.
    pub async fn recv(&mut self) -> Result<Option<Bytes>, Status> {
        if self.end.is_none() {
            match self.queue.recv().await {
                Some(Inbound::Message(message)) => return Ok(Some(message)),
                Some(Inbound::Closed(end)) => self.end = Some(end),
                None => self.end = Some(Err(lost())),
            }
        }
        match &self.end {
            Some(Err(status)) => Err(status.clone()),
            Some(Ok(())) | None => Ok(None),
        }
    }
}

/// The failure of everything on a connection that is gone.
pub(super) fn lost() -> Status {
    Status::unavailable("the ttrpc connection was closed")
}

pub(super) fn too_large(length: usize) -> Status {
    Status::new(
        Code::ResourceExhausted,
        format!("a message of {length} bytes is beyond ttrpc's limit of {MAX_PAYLOAD}"),
    )
}
