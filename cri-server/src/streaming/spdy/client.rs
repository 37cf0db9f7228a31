//! The client's half of SPDY for tests: frames out, frames in, nothing automatic. It shares only the codec with the server.

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{
    frame::{Decoder, Encoder, Frame},
    headers::Headers,
};

/// A client on any byte stream.
pub(in crate::streaming) struct Client<I> {
    io: I,
    encoder: Encoder,
    decoder: Decoder,
    input: BytesMut,
    /// Read while something else was waited for.
    aside: VecDeque<Frame>,
    next: u32,
}

/// What the server said until it closed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::streaming) struct Heard {
    /// By stream: all bytes, and whether FIN came after them.
    pub(in crate::streaming) data: BTreeMap<u32, (Vec<u8>, bool)>,
    /// Stream and status.
    pub(in crate::streaming) resets: Vec<(u32, u32)>,
    /// The status of GOAWAY.
    pub(in crate::streaming) goodbye: Option<u32>,
}

/// Far beyond what anything here takes; only a hang reaches it.
const HANG: Duration = Duration::from_secs(60);

impl<I: AsyncRead + AsyncWrite + Unpin> Client<I> {
    pub(in crate::streaming) fn new(io: I) -> Client<I> {
        Client {
            io,
            encoder: Encoder::new(),
            decoder: Decoder::new(),
            input: BytesMut::new(),
            aside: VecDeque::new(),
            next: 1,
        }
    }

    pub(in crate::streaming) async fn send(&mut self, frame: Frame) {
        let mut wire = BytesMut::new();
        self.encoder.encode(&frame, &mut wire);
        self.raw(&wire).await;
    }

    pub(in crate::streaming) async fn raw(&mut self, bytes: &[u8]) {
        timeout(HANG, self.io.write_all(bytes)).await.unwrap().unwrap();
    }

    pub(in crate::streaming) async fn data(&mut self, id: u32, data: impl Into<Bytes>, fin: bool) {
        self.send(Frame::Data { id, fin, data: data.into() }).await;
    }

    /// Opens a stream without waiting for the reply.
    pub(in crate::streaming) async fn syn(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        let headers: Headers = headers.iter().copied().collect();
        let (associated, priority, fin, unidirectional) = (0, 0, false, false);
        self.send(Frame::SynStream { id, associated, priority, fin, unidirectional, headers }).await;
        id
    }

    /// Opens a stream and waits for the reply; the error is the reset's status.
    pub(in crate::streaming) async fn open(&mut self, headers: &[(&str, &str)]) -> Result<u32, u32> {
        let id = self.syn(headers).await;
        loop {
            match self.read().await.expect("the connection ended before the reply") {
                Frame::SynReply { id: replied, .. } if replied == id => return Ok(id),
                Frame::Reset { id: reset, status } if reset == id => return Err(status),
                other => self.aside.push_back(other),
            }
        }
    }

    /// The next frame; `None` when the server has closed.
    pub(in crate::streaming) async fn frame(&mut self) -> Option<Frame> {
        match self.aside.pop_front() {
            Some(frame) => Some(frame),
            None => self.read().await,
        }
    }

    /// Reads until the server has closed. Window updates are the server's manners and no part of what it says.
    pub(in crate::streaming) async fn hear(mut self) -> Heard {
        let mut heard = Heard::default();
        while let Some(frame) = self.frame().await {
            match frame {
                Frame::Data { id, fin, data } => {
                    let (all, ended) = heard.data.entry(id).or_default();
                    assert!(!*ended, "data after FIN on stream {id}");
                    all.extend(data);
                    *ended = fin;
                }
                Frame::Reset { id, status } => heard.resets.push((id, status)),
                Frame::GoAway { status, .. } => heard.goodbye = Some(status),
                Frame::WindowUpdate { .. } => {}
                other => panic!("unexpected {other:?}"),
            }
        }
        heard
    }

    /// The bytes of the streams until all of them have had FIN; other frames are dropped.
    pub(in crate::streaming) async fn until_fin(&mut self, ids: &[u32]) -> BTreeMap<u32, Vec<u8>> {
        let mut all: BTreeMap<u32, Vec<u8>> = ids.iter().map(|id| (*id, Vec::new())).collect();
        let mut open = ids.to_vec();
        while !open.is_empty() {
            match self.frame().await.expect("the connection ended before the streams") {
                Frame::Data { id, fin, data } => {
                    all.entry(id).or_default().extend(data);
                    if fin {
                        open.retain(|other| *other != id);
                    }
                }
                Frame::Reset { id, .. } => open.retain(|other| *other != id),
                _ => {}
            }
        }
        all
    }

    async fn read(&mut self) -> Option<Frame> {
        loop {
            if let Some(frame) = self.decoder.decode(&mut self.input).unwrap() {
                return Some(frame);
            }
            if timeout(HANG, self.io.read_buf(&mut self.input)).await.expect("the server hangs").ok()? == 0 {
                return None;
            }
        }
    }
}
