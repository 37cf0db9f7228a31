//! The serving side: accepts connections and runs one task per call.
//!
//! A call's future is dropped when its connection is lost or its caller's deadline has passed, so what must not be left
//! half done belongs on a task that the handler owns; the future only waits for it.

use std::{
    collections::HashMap,
    io,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use prost::Message as _;
use tokio::{
    io::BufReader,
    net::{UnixListener, UnixStream, unix::OwnedReadHalf},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    BoxFuture, Call,
    frame::{self, Frame, Incoming, Kind, MAX_PAYLOAD, NO_DATA, REMOTE_CLOSED, REMOTE_OPEN, WRITE_QUEUE},
    status::{Code, Status},
    stream::{Guard, Inbound, READ_QUEUE, Stream, too_large},
};
use crate::proto::ttrpc as wire;

/// Calls that may run at once on one connection. Waits are calls too, so this is far above what a pod needs.
const MAX_CALLS: usize = 4096;

/// How long calls may still finish once the server shuts down: the Shutdown call itself wants its answer.
const GRACE: Duration = Duration::from_secs(1);

/// How long accepting pauses when the process has no descriptors left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Answers calls. The futures may be dropped at any await: see the file's head.
pub trait Handler: Send + Sync + 'static {
    /// Answers a unary call; `Unimplemented` for a service or method that is not served.
    fn unary(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Vec<u8>, Status>>;

    /// Serves a stream until it returns, which ends the stream.
    fn stream(self: Arc<Self>, call: Call, stream: Stream) -> BoxFuture<'static, Result<(), Status>>;

    /// Whether the method is a stream.
    fn is_stream(&self, service: &str, method: &str) -> bool;
}

/// Serves every connection that the listener gets, until `shutdown`. Calls in flight then have a second to end.
pub async fn serve(listener: UnixListener, handler: Arc<dyn Handler>, shutdown: CancellationToken) -> io::Result<()> {
    let connections = TaskTracker::new();
    let accepting = async {
        loop {
            match listener.accept().await {
                Ok((socket, _)) => {
                    connections.spawn(serve_connection(socket, handler.clone(), shutdown.clone()));
                }
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) if is_exhausted(&error) => tokio::time::sleep(ACCEPT_PAUSE).await,
                Err(error) => return error,
            }
        }
    };
    let ended = shutdown.run_until_cancelled(accepting).await;
    // Connections of a listener that failed end as well: their peers reconnect to whatever replaces this server.
    shutdown.cancel();
    connections.close();
    connections.wait().await;
    ended.map_or(Ok(()), Err)
}

fn is_exhausted(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Serves one connection until the peer closes it or `shutdown`.
pub async fn serve_connection(socket: UnixStream, handler: Arc<dyn Handler>, shutdown: CancellationToken) {
    let (source, sink) = socket.into_split();
    let (outbound, queue) = mpsc::channel(WRITE_QUEUE);
    let gone = CancellationToken::new();
    let connection = Connection {
        handler,
        outbound,
        streams: Arc::default(),
        calls: TaskTracker::new(),
        gone: gone.clone(),
        last_id: 0,
    };
    let calls = connection.calls.clone();
    let closing = CancellationToken::new();
    let writing = frame::write_all(queue, sink, closing.clone());
    let reading = async {
        let read = gone.run_until_cancelled(shutdown.run_until_cancelled(connection.read(source))).await;
        calls.close();
        if matches!(read, Some(None)) {
            // The deadline is the point: calls that do not end by it are dropped below.
            let _ = tokio::time::timeout(GRACE, calls.wait()).await;
        }
        gone.cancel();
        calls.wait().await;
        closing.cancel();
    };
    let (mut reading, mut writing) = (pin!(reading), pin!(writing));
    // A failed write or read is the peer's leaving. There is nobody to tell, and its calls are dropped.
    tokio::select! {
        _ = &mut writing => {
            gone.cancel();
            reading.await;
        }
        () = &mut reading => {
            // Answers that the peer does not read in time are lost with the connection.
            let _ = tokio::time::timeout(GRACE, writing).await;
        }
    }
}

struct Connection {
    handler: Arc<dyn Handler>,
    outbound: mpsc::Sender<Frame>,
    streams: Arc<Streams>,
    calls: TaskTracker,
    gone: CancellationToken,
    last_id: u32,
}

/// The open streams of a connection. The lock guards the map for single insertions, look-ups and removals.
#[derive(Default)]
struct Streams(Mutex<HashMap<u32, mpsc::Sender<Inbound>>>);

struct Forget {
    id: u32,
    streams: Arc<Streams>,
}

impl Guard for Forget {}

impl Drop for Forget {
    fn drop(&mut self) {
        self.streams.remove(self.id);
    }
}

impl Streams {
    fn insert(&self, id: u32, queue: mpsc::Sender<Inbound>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(id, queue);
    }

    fn get(&self, id: u32) -> Option<mpsc::Sender<Inbound>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned()
    }

    fn remove(&self, id: u32) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
    }
}

impl Connection {
    async fn read(mut self, source: OwnedReadHalf) -> io::Result<()> {
        let mut source = BufReader::with_capacity(4096, source);
        while let Some(incoming) = frame::read(&mut source).await? {
            match incoming {
                Incoming::Frame(frame) => self.take(frame).await,
                Incoming::TooLarge { stream, kind: Kind::Request, length } => {
                    self.reject(stream, too_large(length)).await;
                }
                Incoming::TooLarge { stream, length, .. } => {
                    self.pass(stream, Inbound::Closed(Err(too_large(length)))).await;
                }
            }
        }
        // Streams that wait for input learn that none will come.
        Ok(())
    }

    async fn take(&mut self, frame: Frame) {
        match frame.kind {
            Kind::Request => {
                if let Err(status) = self.start(&frame) {
                    self.reject(frame.stream, status).await;
                }
            }
            Kind::Data => {
                if frame.flags & NO_DATA == 0 {
                    self.pass(frame.stream, Inbound::Message(frame.payload)).await;
                }
                if frame.flags & REMOTE_CLOSED != 0 {
                    self.pass(frame.stream, Inbound::Closed(Ok(()))).await;
                }
            }
            // A client sends no responses, and kinds of later versions mean nothing here.
            Kind::Response | Kind::Other(_) => {}
        }
    }

    /// Gives input to its stream. Input for a stream that ended is late, not wrong.
    async fn pass(&self, id: u32, inbound: Inbound) {
        if let Some(queue) = self.streams.get(id) {
            // It ended between the look-up and now.
            let _ = queue.send(inbound).await;
        }
    }

    async fn reject(&self, id: u32, status: Status) {
        // The peer left meanwhile; the reader sees that next.
        let _ = self.outbound.send(response(id, Err(status))).await;
    }

    fn start(&mut self, frame: &Frame) -> Result<(), Status> {
        let id = frame.stream;
        if id.is_multiple_of(2) {
            return Err(Status::invalid(format!("stream id {id} of a client is not odd")));
        }
        if id <= self.last_id {
            return Err(Status::invalid(format!("stream id {id} is not above {}", self.last_id)));
        }
        self.last_id = id;
        if self.calls.len() >= MAX_CALLS {
            return Err(Status::new(Code::ResourceExhausted, format!("{MAX_CALLS} calls are in flight")));
        }
        let call = parse_call(frame.payload.clone())?;
        if !self.handler.is_stream(&call.service, &call.method) {
            self.spawn(id, run_unary(self.handler.clone(), call, id));
            return Ok(());
        }
        if frame.flags & (REMOTE_OPEN | REMOTE_CLOSED) == 0 {
            return Err(Status::invalid(format!("{}/{} is a stream", call.service, call.method)));
        }
        let stream = self.open(id, frame.flags & REMOTE_CLOSED != 0);
        self.spawn(id, run_stream(self.handler.clone(), call, stream, id));
        Ok(())
    }

    fn open(&self, id: u32, closed: bool) -> Stream {
        let (queue, inbound) = mpsc::channel(READ_QUEUE);
        if closed {
            queue.try_send(Inbound::Closed(Ok(()))).expect("a new queue has room");
        }
        self.streams.insert(id, queue);
        let guard = Arc::new(Forget { id, streams: self.streams.clone() });
        Stream::new(id, self.outbound.clone(), inbound, guard)
    }

    fn spawn(&self, id: u32, answer: impl Future<Output = Frame> + Send + 'static) {
        let reply = Reply { id, outbound: self.outbound.clone() };
        self.calls.spawn(self.gone.clone().run_until_cancelled_owned(async move {
            let frame = answer.await;
            debug_assert_eq!(frame.stream, reply.id, "an answer belongs to its call");
            // The peer left before its answer.
            let _ = reply.outbound.send(frame).await;
        }));
    }
}

/// Where a call's answer goes. A handler that panics still answers, or its caller would wait for ever.
struct Reply {
    id: u32,
    outbound: mpsc::Sender<Frame>,
}

impl Drop for Reply {
    fn drop(&mut self) {
        if std::thread::panicking() {
            // A destructor cannot wait: with a full queue this answer is lost.
            let _ =
                self.outbound.try_send(response(self.id, Err(Status::internal("the handler of this call panicked"))));
        }
    }
}

async fn run_unary(handler: Arc<dyn Handler>, call: Call, id: u32) -> Frame {
    response(id, within(call.timeout, handler.unary(call)).await)
}

async fn run_stream(handler: Arc<dyn Handler>, call: Call, stream: Stream, id: u32) -> Frame {
    match within(call.timeout, handler.stream(call, stream)).await {
        Ok(()) => Frame { stream: id, kind: Kind::Data, flags: REMOTE_CLOSED | NO_DATA, payload: Bytes::new() },
        Err(status) => response(id, Err(status)),
    }
}

async fn within<T>(timeout: Option<Duration>, running: impl Future<Output = Result<T, Status>>) -> Result<T, Status> {
    let Some(timeout) = timeout else { return running.await };
    tokio::time::timeout(timeout, running)
        .await
        .unwrap_or_else(|_| Err(Status::deadline_exceeded(format!("not done within the caller's {timeout:?}"))))
}

fn parse_call(payload: Bytes) -> Result<Call, Status> {
    let request = wire::Request::decode(payload).map_err(|error| Status::invalid(format!("request frame: {error}")))?;
    Ok(Call {
        service: request.service,
        method: request.method,
        payload: request.payload,
        timeout: u64::try_from(request.timeout_nano).ok().filter(|nanos| *nanos > 0).map(Duration::from_nanos),
        metadata: request.metadata.into_iter().map(|entry| (entry.key, entry.value)).collect(),
    })
}

fn response(id: u32, result: Result<Vec<u8>, Status>) -> Frame {
    let payload = match result {
        Ok(payload) => wire::Response { status: None, payload: payload.into() }.encode_to_vec(),
        Err(status) => wire::Response { status: Some(status.to_wire()), payload: Bytes::new() }.encode_to_vec(),
    };
    if payload.len() > MAX_PAYLOAD {
        return response(id, Err(too_large(payload.len())));
    }
    Frame { stream: id, kind: Kind::Response, flags: 0, payload: payload.into() }
}
