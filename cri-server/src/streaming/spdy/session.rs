//! A connection: one future that reads, writes and times out, and the handle through which a session uses it.
//!
//! ```text
//! peer ──► read_loop ──► stream buffers, Connection::accept          writers, replies ──► queue (bounded) ──► write_loop ──► peer
//! ```
//!
//! `open` spawns nothing: the caller runs the future beside its own work. It returns when the connection has ended, for
//! whichever reason, and by then every stream has been ended too, so nobody waits for a peer that is gone.
//! What a hostile peer can hold: [`StreamState`]'s buffer times the streams allowed, a control frame, and the queue.

use std::{
    collections::HashMap,
    io,
    pin::pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::BytesMut;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    time::{Instant, sleep_until, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    frame::{Decoder, Encoder, Frame, FrameError, INITIAL_WINDOW_SIZE, PIECE, go_away, reset},
    stream::{Closed, Delivered, End, Stream, StreamReader, StreamState, StreamWriter, WINDOW},
};

/// How a connection behaves.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Without a frame in either direction for this long, the connection ends. Zero is for ever.
    pub(crate) idle: Duration,
    /// Streams open at one time. More are refused.
    pub(crate) streams: usize,
}

/// The handle of a connection.
pub(crate) struct Connection {
    shared: Arc<Shared>,
    streams: mpsc::Receiver<Stream>,
}

impl Connection {
    /// A connection on `io` and the future that runs it.
    pub(crate) fn open<I>(io: I, limits: Limits) -> (Connection, impl Future<Output = ()>)
    where
        I: AsyncRead + AsyncWrite,
    {
        let (out, queue) = mpsc::channel(QUEUE);
        let (accepted, streams) = mpsc::channel(limits.streams.max(1));
        let shared = Arc::new(Shared {
            out,
            table: Mutex::new(Table {
                streams: HashMap::new(),
                most: limits.streams,
                last: 0,
                going_away: false,
                initial_window: i64::from(WINDOW),
            }),
            keeps_windows: AtomicBool::new(false),
            ended: CancellationToken::new(),
            active: Mutex::new(Instant::now()),
        });
        let connection = Connection { shared: shared.clone(), streams };
        (connection, drive(shared, io, limits.idle, accepted, queue))
    }

    /// The next stream that the peer opens; `None` when the connection has ended.
    pub(crate) async fn accept(&mut self) -> Option<Stream> {
        tokio::select! {
            stream = self.streams.recv() => stream,
            () = self.shared.ended.cancelled() => None,
        }
    }

    /// Waits until the connection has ended: the peer left, broke the protocol, or was idle.
    pub(crate) async fn ended(&self) {
        self.shared.ended.cancelled().await;
    }

    /// Says goodbye after everything written before, and ends.
    pub(crate) async fn close(self) {
        // An ended connection needs no goodbye.
        let _ = self.shared.send(Out::Close(go_away::OK)).await;
        self.shared.ended.cancelled().await;
    }
}

/// Frames that wait to be written; a data frame is at most one piece.
const QUEUE: usize = 16;

/// What one write takes along.
const BATCH: usize = 64 * 1024;

/// How long the peer may take to read the goodbye and close. Closing first with bytes unread would make TCP reset the
/// connection, and the peer could lose the exit status.
const LINGER: Duration = Duration::from_secs(2);

/// What the writing side is asked for.
pub(super) enum Out {
    Frame(Frame),
    /// GOAWAY with this status, then the end.
    Close(u32),
}

/// What all parts of a connection share.
pub(super) struct Shared {
    out: mpsc::Sender<Out>,
    /// Guards the table for a few lines, never across an await.
    table: Mutex<Table>,
    /// Whether the peer has shown that it counts windows.
    keeps_windows: AtomicBool,
    ended: CancellationToken,
    active: Mutex<Instant>,
}

struct Table {
    streams: HashMap<u32, Arc<StreamState>>,
    most: usize,
    /// The highest stream id seen.
    last: u32,
    /// The peer said GOAWAY: it opens no more streams.
    going_away: bool,
    initial_window: i64,
}

impl Shared {
    pub(super) async fn send(&self, out: Out) -> Result<(), Closed> {
        self.reserve().await?.send(out);
        Ok(())
    }

    /// Room for one frame in the queue.
    pub(super) async fn reserve(&self) -> Result<mpsc::Permit<'_, Out>, Closed> {
        tokio::select! {
            room = self.out.reserve() => room.map_err(|_| Closed),
            () = self.ended.cancelled() => Err(Closed),
        }
    }

    pub(super) fn keeps_windows(&self) -> bool {
        self.keeps_windows.load(Ordering::Relaxed)
    }

    pub(super) fn forget_if_over(&self, stream: &StreamState) {
        if stream.is_over() {
            self.table().streams.remove(&stream.id);
        }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        *self.active.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
    }

    fn last_active(&self) -> Instant {
        *self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends every stream and wakes everyone who waits.
    fn end(&self) {
        self.ended.cancel();
        let streams = std::mem::take(&mut self.table().streams);
        for stream in streams.into_values() {
            stream.kill();
        }
    }

    async fn reset(&self, stream: &StreamState, status: u32) {
        stream.kill();
        self.forget_if_over(stream);
        self.reset_id(stream.id, status).await;
    }

    async fn reset_id(&self, id: u32, status: u32) {
        // A connection that has ended has reset all its streams.
        let _ = self.send(Out::Frame(Frame::Reset { id, status })).await;
    }
}

/// Runs a connection to its end.
async fn drive<I>(
    shared: Arc<Shared>,
    io: I,
    idle: Duration,
    accepted: mpsc::Sender<Stream>,
    queue: mpsc::Receiver<Out>,
) where
    I: AsyncRead + AsyncWrite,
{
    let (read, write) = tokio::io::split(io);
    let mut reading = pin!(read_loop(&shared, read, &accepted));
    let mut writing = pin!(write_loop(&shared, write, queue));
    tokio::select! {
        // What was sent last and the end can be ready together: both have to be seen in the order they came in.
        biased;
        written = &mut writing => {
            shared.end();
            // Nothing is left to be told to the peer, so what it still sends is read and dropped until it closes too.
            if written.is_ok() && timeout(LINGER, reading).await.is_err() {
                tracing::debug!("the peer did not close its streaming connection in time");
            }
        }
        read = &mut reading => {
            shared.end();
            if let Err(error) = read {
                tracing::debug!(%error, "a streaming peer broke the protocol");
                say_goodbye(&shared, writing, go_away::PROTOCOL_ERROR).await;
            }
        }
        () = idle_for(&shared, idle) => {
            shared.end();
            tracing::info!("an idle streaming connection is closed");
            say_goodbye(&shared, writing, go_away::OK).await;
        }
    }
}

/// Tries to get GOAWAY to the peer. A peer that does not read never hears it.
async fn say_goodbye(shared: &Shared, writing: impl Future<Output = io::Result<()>>, status: u32) {
    let goodbye = async { tokio::join!(shared.out.send(Out::Close(status)), writing) };
    if timeout(LINGER, goodbye).await.is_err() {
        tracing::debug!("the peer does not read its streaming connection");
    }
}

async fn idle_for(shared: &Shared, idle: Duration) {
    if idle.is_zero() {
        return std::future::pending().await;
    }
    loop {
        let end = shared.last_active() + idle;
        if end <= Instant::now() {
            return;
        }
        sleep_until(end).await;
    }
}

/// Reads until the peer's end (which a broken connection is as well) or its first mistake.
async fn read_loop(
    shared: &Arc<Shared>,
    mut read: impl AsyncRead + Unpin,
    accepted: &mpsc::Sender<Stream>,
) -> Result<(), Broken> {
    let mut decoder = Decoder::new();
    let mut input = BytesMut::new();
    loop {
        while let Some(frame) = decoder.decode(&mut input)? {
            handle(shared, frame, accepted).await?;
        }
        input.reserve(PIECE);
        match read.read_buf(&mut input).await {
            Ok(0) => return Ok(()),
            Ok(_) => shared.touch(),
            Err(error) => {
                tracing::debug!(%error, "a streaming connection broke");
                return Ok(());
            }
        }
    }
}

/// Writes what is queued, as much at once as there is, until a goodbye.
async fn write_loop(
    shared: &Shared,
    mut write: impl AsyncWrite + Unpin,
    mut queue: mpsc::Receiver<Out>,
) -> io::Result<()> {
    let mut encoder = Encoder::new();
    let mut wire = BytesMut::new();
    while let Some(first) = queue.recv().await {
        let mut next = Some(first);
        let mut closing = false;
        while let Some(out) = next {
            match out {
                Out::Frame(frame) => encoder.encode(&frame, &mut wire),
                Out::Close(status) => {
                    let last = shared.table().last;
                    encoder.encode(&Frame::GoAway { last, status }, &mut wire);
                    closing = true;
                }
            }
            next = if closing || wire.len() >= BATCH { None } else { queue.try_recv().ok() };
        }
        write.write_all(&wire).await?;
        write.flush().await?;
        wire.clear();
        shared.touch();
        if closing {
            return write.shutdown().await;
        }
    }
    Ok(())
}

/// A mistake of the peer that ends the connection.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("stream id {0} is not the client's next")]
    StreamId(u32),
    #[error("data on stream {0}, which was never opened")]
    NeverOpened(u32),
}

async fn handle(shared: &Arc<Shared>, frame: Frame, accepted: &mpsc::Sender<Stream>) -> Result<(), Broken> {
    match frame {
        Frame::SynStream { .. } => return open_stream(shared, frame, accepted).await,
        Frame::Data { id, fin, data } => return data_frame(shared, id, &data, fin).await,
        Frame::Headers { id, fin: true, .. } => return data_frame(shared, id, &[], true).await,
        Frame::Reset { id, .. } => {
            let stream = shared.table().streams.remove(&id);
            if let Some(stream) = stream {
                stream.kill();
            }
        }
        // Even ids would answer pings of ours, and there are none.
        Frame::Ping(id) if id % 2 == 1 => {
            // Nobody waits for the answer once the connection has ended.
            let _ = shared.send(Out::Frame(Frame::Ping(id))).await;
        }
        Frame::GoAway { .. } => shared.table().going_away = true,
        Frame::WindowUpdate { id, delta } => {
            shared.keeps_windows.store(true, Ordering::Relaxed);
            let stream = shared.table().streams.get(&id).cloned();
            if let Some(stream) = stream
                && !stream.widen(i64::from(delta))
            {
                shared.reset(&stream, reset::FLOW_CONTROL).await;
            }
        }
        Frame::Settings(settings) => {
            for setting in settings.iter().filter(|setting| setting.id == INITIAL_WINDOW_SIZE) {
                shared.keeps_windows.store(true, Ordering::Relaxed);
                let mut table = shared.table();
                let window = i64::from(setting.value & 0x7fff_ffff);
                let delta = window - std::mem::replace(&mut table.initial_window, window);
                for stream in table.streams.values() {
                    // Beyond 31 bits only by WINDOW_UPDATEs before; the next of them resets the stream.
                    stream.widen(delta);
                }
            }
        }
        // We open no stream, so nothing is replied to; and headers after the first say nothing in these protocols.
        Frame::Ping(_) | Frame::SynReply { .. } | Frame::Headers { .. } => {}
    }
    Ok(())
}

async fn open_stream(shared: &Arc<Shared>, frame: Frame, accepted: &mpsc::Sender<Stream>) -> Result<(), Broken> {
    let Frame::SynStream { id, fin, unidirectional, headers, .. } = frame else { return Ok(()) };
    let opened = {
        let mut table = shared.table();
        if id % 2 == 0 || id <= table.last {
            return Err(Broken::StreamId(id));
        }
        table.last = id;
        // A unidirectional stream could not be replied to.
        if shared.ended.is_cancelled() || table.going_away || unidirectional || table.streams.len() >= table.most {
            None
        } else {
            let state = Arc::new(StreamState::new(id, table.initial_window, !fin));
            table.streams.insert(id, state.clone());
            Some(state)
        }
    };
    let Some(state) = opened else {
        shared.reset_id(id, reset::REFUSED).await;
        return Ok(());
    };
    let end = End { state: state.clone(), shared: shared.clone() };
    let stream = Stream { id, headers, reader: StreamReader { end: end.clone() }, writer: StreamWriter { end } };
    if accepted.try_send(stream).is_err() {
        // The session takes no more streams, or not so many at once.
        shared.reset(&state, reset::REFUSED).await;
    }
    Ok(())
}

async fn data_frame(shared: &Shared, id: u32, data: &[u8], fin: bool) -> Result<(), Broken> {
    let stream = {
        let table = shared.table();
        if id == 0 || id.is_multiple_of(2) || id > table.last {
            return Err(Broken::NeverOpened(id));
        }
        // A stream that has ended here may still be written to by a peer that does not know yet.
        table.streams.get(&id).cloned()
    };
    let Some(stream) = stream else { return Ok(()) };
    match stream.deliver(data, fin, shared.keeps_windows()).await {
        Delivered::Taken => shared.forget_if_over(&stream),
        Delivered::AfterEnd => shared.reset(&stream, reset::PROTOCOL_ERROR).await,
        Delivered::Overrun => shared.reset(&stream, reset::FLOW_CONTROL).await,
    }
    Ok(())
}
