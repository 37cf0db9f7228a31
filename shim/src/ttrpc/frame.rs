//! Frames: the 10-byte header, reading one from a socket, and the task that writes them.
//!
//! ```text
//! u32 payload length (≤ 4 MiB) │ u32 stream id │ u8 kind │ u8 flags │ payload
//! ```

use std::io;

use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
};
use tokio_util::sync::CancellationToken;

/// The largest payload that either side may send.
pub const MAX_PAYLOAD: usize = 4 << 20;

/// Frames that wait for one connection's writer. More make their senders wait.
pub(super) const WRITE_QUEUE: usize = 32;

const HEADER: usize = 10;

/// A write buffer that grew beyond this is given back after its frame was written.
const KEPT_BUFFER: usize = 64 << 10;

/// One frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    pub(super) stream: u32,
    pub(super) kind: Kind,
    pub(super) flags: u8,
    pub(super) payload: Bytes,
}

/// What a frame is. Kinds that this version does not know are skipped by the reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Request,
    Response,
    Data,
    Other(u8),
}

/// On a request of a stream: its sender sends nothing more. On data: the last of its sender.
pub(super) const REMOTE_CLOSED: u8 = 1;
/// On a request of a stream: data follows.
pub(super) const REMOTE_OPEN: u8 = 2;
/// On data: there is none, not even an empty message.
pub(super) const NO_DATA: u8 = 4;

/// What the reader found.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Incoming {
    Frame(Frame),
    /// A payload beyond the limit. It was skipped, so the connection goes on.
    TooLarge {
        stream: u32,
        kind: Kind,
        length: usize,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Header {
    length: u32,
    stream: u32,
    kind: Kind,
    flags: u8,
}

impl Kind {
    fn parse(byte: u8) -> Self {
        match byte {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Data,
            other => Self::Other(other),
        }
    }

    fn byte(self) -> u8 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Data => 3,
            Self::Other(byte) => byte,
        }
    }
}

impl Header {
    fn parse([l0, l1, l2, l3, s0, s1, s2, s3, kind, flags]: [u8; HEADER]) -> Self {
        Self {
            length: u32::from_be_bytes([l0, l1, l2, l3]),
            stream: u32::from_be_bytes([s0, s1, s2, s3]),
            kind: Kind::parse(kind),
            flags,
        }
    }

    fn bytes(self) -> [u8; HEADER] {
        let [l0, l1, l2, l3] = self.length.to_be_bytes();
        let [s0, s1, s2, s3] = self.stream.to_be_bytes();
        [l0, l1, l2, l3, s0, s1, s2, s3, self.kind.byte(), self.flags]
    }
}

impl Frame {
    /// Appends the frame's bytes. The payload is within the limit: senders check before they queue a frame.
    fn encode(&self, out: &mut Vec<u8>) {
        let length = u32::try_from(self.payload.len()).expect("senders refuse payloads beyond 4 MiB");
        out.extend_from_slice(&Header { length, stream: self.stream, kind: self.kind, flags: self.flags }.bytes());
        out.extend_from_slice(&self.payload);
    }
}

/// Reads one frame; `None` when the peer closed between two frames. Not cancel-safe: a dropped call loses its place in the stream.
pub(super) async fn read(source: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Incoming>> {
    let mut bytes = [0; HEADER];
    let got = source.read(&mut bytes).await?;
    if got == 0 {
        return Ok(None);
    }
    source.read_exact(&mut bytes[got..]).await?;
    let header = Header::parse(bytes);
    let length = header.length as usize;
    if length > MAX_PAYLOAD {
        skip(source, length).await?;
        return Ok(Some(Incoming::TooLarge { stream: header.stream, kind: header.kind, length }));
    }
    // Grows with what arrives rather than with what the header promises.
    let mut payload = Vec::with_capacity(length.min(KEPT_BUFFER));
    source.take(u64::from(header.length)).read_to_end(&mut payload).await?;
    if payload.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    let (stream, kind, flags) = (header.stream, header.kind, header.flags);
    Ok(Some(Incoming::Frame(Frame { stream, kind, flags, payload: payload.into() })))
}

async fn skip(source: &mut (impl AsyncRead + Unpin), length: usize) -> io::Result<()> {
    let skipped = tokio::io::copy(&mut source.take(length as u64), &mut tokio::io::sink()).await?;
    if skipped < length as u64 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// Writes queued frames until every sender is gone, the peer is, or `closing`; what is queued by then is still written.
/// One write a frame, header included.
pub(super) async fn write_all(
    mut queue: mpsc::Receiver<Frame>,
    mut sink: impl AsyncWrite + Unpin,
    closing: CancellationToken,
) -> io::Result<()> {
    let mut buffer = Vec::new();
    loop {
        let next = tokio::select! {
            biased;
            // Once the queue is closed this arm is disabled, and `recv` gives the rest and then `None`.
            () = closing.cancelled(), if !queue.is_closed() => {
                queue.close();
                continue;
            }
            next = queue.recv() => next,
        };
        let Some(frame) = next else { return sink.shutdown().await };
        buffer.clear();
        frame.encode(&mut buffer);
        sink.write_all(&buffer).await?;
        if buffer.capacity() > KEPT_BUFFER {
            buffer = Vec::new();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read_bytes(bytes: &[u8]) -> io::Result<Vec<Incoming>> {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(async {
            let mut source = bytes;
            let mut found = Vec::new();
            while let Some(incoming) = read(&mut source).await? {
                found.push(incoming);
            }
            Ok(found)
        })
    }

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let frame = (any::<u32>(), any::<u8>(), any::<u8>(), prop::collection::vec(any::<u8>(), 0..300)).prop_map(
            |(stream, kind, flags, payload)| Frame { stream, kind: Kind::parse(kind), flags, payload: payload.into() },
        );
        prop::collection::vec(frame, 0..6)
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(frames in frames()) {
            let mut bytes = Vec::new();
            for frame in &frames {
                frame.encode(&mut bytes);
            }
            let expected: Vec<_> = frames.into_iter().map(Incoming::Frame).collect();
            prop_assert_eq!(read_bytes(&bytes).unwrap(), expected);
        }

        #[test]
        fn a_torn_frame_is_an_error(frames in frames(), cut in 1_usize..10) {
            let mut bytes = Vec::new();
            for frame in &frames {
                frame.encode(&mut bytes);
            }
            Frame { stream: 1, kind: Kind::Data, flags: 0, payload: Bytes::new() }.encode(&mut bytes);
            bytes.truncate(bytes.len() - cut);
            let error = read_bytes(&bytes).unwrap_err();
            prop_assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        }

        #[test]
        fn any_bytes_are_read_without_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            // Only that it returns counts here: the bytes mean nothing.
            let _ = read_bytes(&bytes);
        }
    }

    #[test]
    fn the_header_is_big_endian() {
        let mut bytes = Vec::new();
        Frame { stream: 0x0102_0305, kind: Kind::Data, flags: 5, payload: Bytes::from_static(b"ab") }
            .encode(&mut bytes);
        assert_eq!(bytes, [0, 0, 0, 2, 1, 2, 3, 5, 3, 5, b'a', b'b']);
    }

    #[test]
    fn a_payload_beyond_the_limit_is_skipped_and_reported() {
        let length = MAX_PAYLOAD + 1;
        let header =
            Header { length: u32::try_from(length).unwrap(), stream: 3, kind: Kind::Request, flags: 0 }.bytes();
        let mut bytes = header.to_vec();
        bytes.resize(HEADER + length, 0);
        let next = Frame { stream: 5, kind: Kind::Request, flags: 0, payload: Bytes::from_static(b"x") };
        next.encode(&mut bytes);
        assert_eq!(
            read_bytes(&bytes).unwrap(),
            [Incoming::TooLarge { stream: 3, kind: Kind::Request, length }, Incoming::Frame(next)]
        );
    }
}
