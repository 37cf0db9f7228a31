//! The calling side: one connection that many tasks call on at once.
//!
//! Two tasks belong to a connection, one that reads and one that writes; both end with the last `Client` and `Stream` on it.

use std::{
    collections::HashMap,
    io,
    path::Path,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use prost::Message;
use tokio::{
    io::BufReader,
    net::{UnixStream, unix::OwnedReadHalf},
    sync::{mpsc, oneshot},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use super::{
    frame::{self, Frame, Incoming, Kind, MAX_PAYLOAD, NO_DATA, REMOTE_CLOSED, REMOTE_OPEN, WRITE_QUEUE},
    status::{Code, Status},
    stream::{Guard, Inbound, READ_QUEUE, Stream, lost, too_large},
};
use crate::proto::ttrpc as wire;

/// A connection to a ttrpc server. Clones share it.
#[derive(Clone)]
pub struct Client(Arc<Connection>);

/// What goes with a call besides its message.
#[derive(Debug, Clone, Default)]
pub struct CallOptions {
    /// After this the call fails with `DeadlineExceeded` here, and the server is told to give up as well.
    pub timeout: Option<Duration>,
    pub metadata: Vec<(String, String)>,
}

struct Connection {
    outbound: mpsc::Sender<Frame>,
    shared: Arc<Shared>,
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

struct Shared {
    /// Guards single look-ups and changes, and that ids are taken in the order in which requests are queued.
    slots: Mutex<Slots>,
    closed: CancellationToken,
}

struct Slots {
    next_id: u32,
    open: HashMap<u32, Slot>,
    /// Set once, when the connection is lost: nothing is inserted after that.
    lost: bool,
}

enum Slot {
    Unary(oneshot::Sender<Result<Bytes, Status>>),
    Stream(mpsc::Sender<Inbound>),
}

impl Client {
    /// Connects to a socket. A path that begins with a NUL byte names an abstract socket.
    pub async fn connect(path: impl AsRef<Path>) -> io::Result<Self> {
        Ok(Self::from_socket(UnixStream::connect(path).await?))
    }

    /// Calls over a socket that is already connected. Must be called within a runtime.
    pub fn from_socket(socket: UnixStream) -> Self {
        let (source, sink) = socket.into_split();
        let (outbound, queue) = mpsc::channel(WRITE_QUEUE);
        let slots = Mutex::new(Slots { next_id: 1, open: HashMap::new(), lost: false });
        let shared = Arc::new(Shared { slots, closed: CancellationToken::new() });
        let reader = tokio::spawn(read(source, shared.clone()));
        let writer = tokio::spawn({
            let shared = shared.clone();
            async move {
                // Why it cannot be written to does not matter to callers: the connection is lost.
                let _ = frame::write_all(queue, sink, shared.closed.clone()).await;
                shared.lose();
            }
        });
        Self(Arc::new(Connection { outbound, shared, reader, writer }))
    }

    /// Calls a unary method.
    pub async fn call<Response: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &impl Message,
    ) -> Result<Response, Status> {
        self.call_with(service, method, request, CallOptions::default()).await
    }

    /// Calls a unary method with a deadline or metadata. Dropping the future forgets the call; the server may still run it.
    pub async fn call_with<Response: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &impl Message,
        options: CallOptions,
    ) -> Result<Response, Status> {
        let timeout = options.timeout;
        let calling = self.unary(service, method, request.encode_to_vec(), options);
        let payload = match timeout {
            None => calling.await?,
            Some(timeout) => tokio::time::timeout(timeout, calling).await.map_err(|_| {
                Status::deadline_exceeded(format!("{service}/{method} did not answer within {timeout:?}"))
            })??,
        };
        Response::decode(payload).map_err(|error| Status::internal(format!("response of {service}/{method}: {error}")))
    }

    /// Opens a stream on which both sides send.
    pub async fn open_stream(&self, service: &str, method: &str, options: CallOptions) -> Result<Stream, Status> {
        self.stream(service, method, Vec::new(), options, REMOTE_OPEN).await
    }

    /// Opens a stream on which only the server sends, in answer to one request.
    pub async fn open_server_stream(
        &self,
        service: &str,
        method: &str,
        request: &impl Message,
        options: CallOptions,
    ) -> Result<Stream, Status> {
        self.stream(service, method, request.encode_to_vec(), options, REMOTE_CLOSED).await
    }

    /// Resolves when the connection is lost.
    pub async fn closed(&self) {
        self.0.shared.closed.cancelled().await;
    }

    pub fn is_closed(&self) -> bool {
        self.0.shared.closed.is_cancelled()
    }

    async fn unary(
        &self,
        service: &str,
        method: &str,
        request: Vec<u8>,
        options: CallOptions,
    ) -> Result<Bytes, Status> {
        let (sender, answer) = oneshot::channel();
        let payload = request_payload(service, method, request, options)?;
        let _forget = self.send_request(Slot::Unary(sender), payload, 0).await?;
        answer.await.unwrap_or_else(|_| Err(lost()))
    }

    async fn stream(
        &self,
        service: &str,
        method: &str,
        request: Vec<u8>,
        options: CallOptions,
        flags: u8,
    ) -> Result<Stream, Status> {
        let (queue, inbound) = mpsc::channel(READ_QUEUE);
        let payload = request_payload(service, method, request, options)?;
        let forget = self.send_request(Slot::Stream(queue), payload, flags).await?;
        Ok(Stream::new(forget.id, self.0.outbound.clone(), inbound, Arc::new(forget)))
    }

    /// Takes the next id and queues the request in one step, so that ids increase on the wire.
    async fn send_request(&self, slot: Slot, payload: Bytes, flags: u8) -> Result<Forget, Status> {
        let room = self.0.outbound.reserve().await.map_err(|_| lost())?;
        let mut slots = self.0.shared.lock();
        if slots.lost {
            return Err(lost());
        }
        let id = slots.next_id;
        slots.next_id =
            id.checked_add(2).ok_or_else(|| Status::unavailable("the connection has used up its stream ids"))?;
        slots.open.insert(id, slot);
        room.send(Frame { stream: id, kind: Kind::Request, flags, payload });
        Ok(Forget { id, client: self.clone() })
    }
}

/// Forgets a call when its caller is done with it or gone, and holds the connection open until then.
struct Forget {
    id: u32,
    client: Client,
}

impl Guard for Forget {}

impl Drop for Forget {
    fn drop(&mut self) {
        self.client.0.shared.lock().open.remove(&self.id);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.reader.abort();
        self.writer.abort();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails every call: dropping a slot's sender is what its caller sees as a lost connection.
    fn lose(&self) {
        let mut slots = self.lock();
        slots.lost = true;
        slots.open.clear();
        drop(slots);
        self.closed.cancel();
    }

    /// Ends a call or stream.
    async fn finish(&self, id: u32, result: Result<Bytes, Status>) {
        let slot = self.lock().open.remove(&id);
        match slot {
            // Its caller gave up, here and below.
            None => {}
            Some(Slot::Unary(answer)) => {
                let _ = answer.send(result);
            }
            Some(Slot::Stream(queue)) => {
                let end = match result {
                    Ok(last) => {
                        if !last.is_empty() {
                            let _ = queue.send(Inbound::Message(last)).await;
                        }
                        Ok(())
                    }
                    Err(status) => Err(status),
                };
                let _ = queue.send(Inbound::Closed(end)).await;
            }
        }
    }

    async fn take(&self, incoming: Incoming) {
        match incoming {
            Incoming::Frame(Frame { stream, kind: Kind::Response, payload, .. }) => {
                self.finish(stream, parse_response(payload)).await;
            }
            Incoming::Frame(Frame { stream, kind: Kind::Data, flags, payload }) => {
                if flags & NO_DATA == 0 {
                    self.pass(stream, payload).await;
                }
                if flags & REMOTE_CLOSED != 0 {
                    self.finish(stream, Ok(Bytes::new())).await;
                }
            }
            // A server starts no calls, and kinds of later versions mean nothing here.
            Incoming::Frame(Frame { kind: Kind::Request | Kind::Other(_), .. }) => {}
            Incoming::TooLarge { stream, length, .. } => self.finish(stream, Err(too_large(length))).await,
        }
    }

    async fn pass(&self, id: u32, message: Bytes) {
        let queue = match self.lock().open.get(&id) {
            Some(Slot::Stream(queue)) => queue.clone(),
            // Data for a stream that was dropped is late; for a unary call it means nothing.
            Some(Slot::Unary(_)) | None => return,
        };
        // The stream was dropped meanwhile.
        let _ = queue.send(Inbound::Message(message)).await;
    }
}

async fn read(source: OwnedReadHalf, shared: Arc<Shared>) {
    let mut source = BufReader::with_capacity(4096, source);
    // An error and an orderly close mean the same to callers.
    while let Ok(Some(incoming)) = frame::read(&mut source).await {
        shared.take(incoming).await;
    }
    shared.lose();
}

fn request_payload(service: &str, method: &str, payload: Vec<u8>, options: CallOptions) -> Result<Bytes, Status> {
    let timeout_nano = options.timeout.map_or(0, |timeout| i64::try_from(timeout.as_nanos()).unwrap_or(i64::MAX));
    let metadata = options.metadata.into_iter().map(|(key, value)| wire::KeyValue { key, value }).collect();
    let (service, method) = (service.to_owned(), method.to_owned());
    let encoded = wire::Request { service, method, payload: payload.into(), timeout_nano, metadata }.encode_to_vec();
    if encoded.len() > MAX_PAYLOAD {
        return Err(too_large(encoded.len()));
    }
    Ok(encoded.into())
}

fn parse_response(payload: Bytes) -> Result<Bytes, Status> {
    let response = wire::Response::decode(payload)
        .map_err(|error| Status::new(Code::Internal, format!("response frame: {error}")))?;
    match response.status.and_then(Status::parse_wire) {
        Some(status) => Err(status),
        None => Ok(response.payload),
    }
}
