//! SPDY/3.1 as Kubernetes clients speak it after `Upgrade: SPDY/3.1`: the server's half, on any byte stream.
//!
//! ```text
//! headers.rs   header blocks (zlib)      frame.rs    bytes ⇄ frames
//! stream.rs    one stream's two halves   session.rs  reading, writing, the streams of a connection
//! ```
//!
//! The peer is nearly always Go's spdystream (kubectl, crictl, the kubelet and the API server). What it does differs from
//! the protocol's text, and shapes this module:
//!
//! - It keeps no windows: it never sends WINDOW_UPDATE or SETTINGS, ignores both, and sends as much as TCP takes. So a
//!   peer's window is enforced, in both directions, only from the moment the peer has sent either. Until then memory is
//!   bounded by not reading the connection while a stream's buffer is full, and nothing ever waits for a WINDOW_UPDATE.
//!   There is no window for the whole connection, which is SPDY/3.1's only change to SPDY/3: frames carry version 3.
//! - It drops data on a stream that has not been replied to, and waits for the reply to each stream before the next.
//! - Its close is RST_STREAM for streams that it has not finished, GOAWAY, and the end of TCP.
//! - It handles frames of different streams out of order, those of one stream in order. So what must be read before the
//!   end is followed by FIN on its own stream, never only by GOAWAY.

pub(super) mod frame;
pub(super) mod headers;
mod session;
mod stream;

#[cfg(test)]
pub(super) mod client;
#[cfg(test)]
mod tests;

pub(super) use session::{Connection, Limits};
pub(super) use stream::{Stream, StreamReader, StreamWriter};
