//! One stream: a buffer that the connection fills and the session empties, and frames that go the other way.
//!
//! ```text
//! connection ──deliver──► buffer (≤ WINDOW + one piece) ──► StreamReader      StreamWriter ──► connection's queue
//! ```
//!
//! The two halves end apart (half close): FIN from the peer ends the reader once the buffer is empty, `finish` ends the
//! writer. A reset, or the end of the connection, ends both at once, but bytes that came before can still be read.

use std::{
    cmp::min,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::sync::Notify;

use super::{
    frame::{Frame, PIECE, reset},
    headers::Headers,
    session::{Out, Shared},
};

/// A stream that the peer has opened and that nobody has replied to yet.
pub(crate) struct Stream {
    pub(crate) id: u32,
    pub(crate) headers: Headers,
    pub(super) reader: StreamReader,
    pub(super) writer: StreamWriter,
}

impl Stream {
    /// Replies, and hands out both halves.
    pub(crate) async fn accept(self) -> Result<(StreamReader, StreamWriter), Closed> {
        let reply = Frame::SynReply { id: self.id, fin: false, headers: Headers::default() };
        self.writer.end.shared.send(Out::Frame(reply)).await?;
        Ok((self.reader, self.writer))
    }

    /// Turns the stream down.
    pub(crate) async fn refuse(self) {
        self.writer.end.reset(reset::REFUSED).await;
    }
}

/// The stream or the whole connection has ended: what is written is of no use to anyone.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("the stream is closed")]
pub(crate) struct Closed;

/// What the peer sends on a stream. Dropping it discards the rest.
pub(crate) struct StreamReader {
    pub(super) end: End,
}

impl StreamReader {
    /// The next bytes; `None` at the end. Nothing is lost when this future is dropped.
    pub(crate) async fn read(&mut self) -> Option<Bytes> {
        self.give_window().await;
        loop {
            match self.end.state.take() {
                Taken::Bytes(bytes) => return Some(bytes),
                Taken::End => return None,
                Taken::Nothing => self.end.state.readable.notified().await,
            }
        }
    }

    /// Ends both directions at once, unless both have ended.
    pub(crate) async fn cancel(self) {
        self.end.reset(reset::CANCEL).await;
    }

    /// Lets a peer that keeps windows send as much again as was read, in halves of the window to keep updates few.
    async fn give_window(&self) {
        if !self.end.state.owes_window() {
            return;
        }
        // Room in the queue first: a dropped future must not lose the count.
        let Ok(room) = self.end.shared.reserve().await else { return };
        let delta = self.end.state.take_owed();
        room.send(Out::Frame(Frame::WindowUpdate { id: self.end.state.id, delta }));
    }
}

impl Drop for StreamReader {
    fn drop(&mut self) {
        self.end.state.discard();
    }
}

/// What goes to the peer on a stream.
pub(crate) struct StreamWriter {
    pub(super) end: End,
}

impl StreamWriter {
    /// Queues all bytes, waiting for the peer's window if it keeps one.
    pub(crate) async fn write(&self, mut data: Bytes) -> Result<(), Closed> {
        while !data.is_empty() {
            let room = self.room(data.len()).await?;
            let piece = Frame::Data { id: self.end.state.id, fin: false, data: data.split_to(room) };
            self.end.shared.send(Out::Frame(piece)).await?;
        }
        Ok(())
    }

    /// Ends this direction, after everything written before.
    pub(crate) async fn finish(self) {
        let last = Frame::Data { id: self.end.state.id, fin: true, data: Bytes::new() };
        if self.end.state.finish_sending() && self.end.shared.send(Out::Frame(last)).await.is_ok() {
            self.end.shared.forget_if_over(&self.end.state);
        }
    }

    /// Ends both directions at once.
    pub(crate) async fn cancel(self) {
        self.end.reset(reset::CANCEL).await;
    }

    /// Waits until nothing can be written any more. Not to be waited for beside a write.
    pub(crate) async fn closed(&self) {
        while self.end.state.is_sending() {
            self.end.state.writable.notified().await;
        }
    }

    async fn room(&self, wanted: usize) -> Result<usize, Closed> {
        loop {
            if let Some(room) = self.end.state.take_window(min(wanted, PIECE), self.end.shared.keeps_windows())? {
                return Ok(room);
            }
            self.end.state.writable.notified().await;
        }
    }
}

/// What both halves hold.
#[derive(Clone)]
pub(super) struct End {
    pub(super) state: Arc<StreamState>,
    pub(super) shared: Arc<Shared>,
}

impl End {
    async fn reset(&self, status: u32) {
        if self.state.kill() {
            self.shared.forget_if_over(&self.state);
            // A closed connection has reset all its streams already.
            let _ = self.shared.send(Out::Frame(Frame::Reset { id: self.state.id, status })).await;
        }
    }
}

/// A stream's first window in both directions, and what its buffer holds.
pub(super) const WINDOW: u32 = 64 * 1024;

/// The state that the connection and both halves share.
pub(super) struct StreamState {
    pub(super) id: u32,
    inner: Mutex<Inner>,
    readable: Notify,
    writable: Notify,
    room: Notify,
}

struct Inner {
    buffer: BytesMut,
    receiving: bool,
    sending: bool,
    /// Nobody reads any more.
    discarding: bool,
    send_window: i64,
    receive_window: i64,
    /// Read since the last WINDOW_UPDATE.
    owed: u32,
}

enum Taken {
    Bytes(Bytes),
    Nothing,
    End,
}

/// What became of bytes that the connection has read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Delivered {
    Taken,
    /// The peer went on after FIN.
    AfterEnd,
    /// The peer keeps windows and overran ours.
    Overrun,
}

impl StreamState {
    pub(super) fn new(id: u32, send_window: i64, receiving: bool) -> StreamState {
        StreamState {
            id,
            inner: Mutex::new(Inner {
                buffer: BytesMut::new(),
                receiving,
                sending: true,
                discarding: false,
                send_window,
                receive_window: i64::from(WINDOW),
                owed: 0,
            }),
            readable: Notify::new(),
            writable: Notify::new(),
            room: Notify::new(),
        }
    }

    /// Guards a few fields; never held across an await. A panic under it leaves no half-made state, so poison is ignored.
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes in what the peer sent, waiting while the buffer is full.
    pub(super) async fn deliver(&self, data: &[u8], fin: bool, keeps_windows: bool) -> Delivered {
        {
            let mut inner = self.inner();
            if !inner.receiving {
                return Delivered::AfterEnd;
            }
            inner.receive_window -= i64::try_from(data.len()).unwrap_or(i64::MAX);
            if keeps_windows && inner.receive_window < 0 {
                return Delivered::Overrun;
            }
        }
        loop {
            {
                let mut inner = self.inner();
                let gone = inner.discarding || !inner.receiving;
                if gone || data.is_empty() || inner.buffer.len() < WINDOW as usize {
                    if !gone {
                        inner.buffer.extend_from_slice(data);
                    }
                    inner.receiving &= !fin;
                    break;
                }
            }
            self.room.notified().await;
        }
        self.readable.notify_one();
        Delivered::Taken
    }

    fn take(&self) -> Taken {
        let mut inner = self.inner();
        if inner.buffer.is_empty() {
            return if inner.receiving { Taken::Nothing } else { Taken::End };
        }
        let length = min(inner.buffer.len(), PIECE);
        inner.owed += u32::try_from(length).unwrap_or(u32::MAX);
        let bytes = inner.buffer.split_to(length).freeze();
        self.room.notify_one();
        Taken::Bytes(bytes)
    }

    fn owes_window(&self) -> bool {
        let inner = self.inner();
        inner.receiving && inner.owed >= WINDOW / 2
    }

    fn take_owed(&self) -> u32 {
        let mut inner = self.inner();
        inner.receive_window += i64::from(inner.owed);
        std::mem::take(&mut inner.owed)
    }

    fn discard(&self) {
        let mut inner = self.inner();
        inner.discarding = true;
        inner.buffer = BytesMut::new();
        self.room.notify_one();
    }

    /// How much of `wanted` may be sent now; `None` is to wait. What is sent is counted even for a peer without windows,
    /// so that the count is right if it turns out to keep them.
    fn take_window(&self, wanted: usize, keeps_windows: bool) -> Result<Option<usize>, Closed> {
        let mut inner = self.inner();
        if !inner.sending {
            return Err(Closed);
        }
        let open = usize::try_from(inner.send_window).unwrap_or(0);
        let room = if keeps_windows { min(wanted, open) } else { wanted };
        inner.send_window = inner.send_window.saturating_sub(i64::try_from(room).unwrap_or(i64::MAX));
        Ok((room > 0).then_some(room))
    }

    /// Widens (or, by SETTINGS, narrows) what may be sent. False when the peer counts beyond 31 bits.
    pub(super) fn widen(&self, delta: i64) -> bool {
        let mut inner = self.inner();
        inner.send_window = inner.send_window.saturating_add(delta);
        self.writable.notify_one();
        inner.send_window <= i64::from(i32::MAX)
    }

    /// False if it had ended before.
    fn finish_sending(&self) -> bool {
        std::mem::replace(&mut self.inner().sending, false)
    }

    /// Ends both directions. False if both had ended before.
    pub(super) fn kill(&self) -> bool {
        let mut inner = self.inner();
        let lived = inner.receiving || inner.sending;
        inner.receiving = false;
        inner.sending = false;
        self.readable.notify_one();
        self.writable.notify_one();
        self.room.notify_one();
        lived
    }

    fn is_sending(&self) -> bool {
        self.inner().sending
    }

    pub(super) fn is_over(&self) -> bool {
        let inner = self.inner();
        !inner.receiving && !inner.sending
    }
}
