//! A SPDY connection inside a WebSocket: every binary message is the next piece of the byte stream. This is how kubectl
//! and client-go forward ports through proxies that pass no other upgrade.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream, duplex, split};

use super::open;

/// Bytes that wait between the two protocols.
const BUFFER: usize = 64 << 10;

/// The tunnel's inner end, and the future that copies until one of the two sides has left.
pub(in crate::streaming) fn tunnel<IO: AsyncRead + AsyncWrite>(io: IO) -> (DuplexStream, impl Future<Output = ()>) {
    let (inner, near) = duplex(BUFFER);
    // The SPDY connection inside has a clock of its own.
    let (mut incoming, outgoing, writing) = open(io, Duration::ZERO);
    let (mut from_spdy, mut to_spdy) = split(near);
    let copying = async move {
        let down = async move {
            let mut buffer = BytesMut::new();
            // A read of the buffer in memory fails only by ending.
            while from_spdy.read_buf(&mut buffer).await.is_ok_and(|read| read > 0) {
                if outgoing.binary(buffer.split()).await.is_err() {
                    break;
                }
            }
            outgoing.close().await;
        };
        let up = async move {
            while let Some(bytes) = incoming.next().await {
                if to_spdy.write_all(&bytes).await.is_err() {
                    break;
                }
            }
            // The SPDY session ends with its input, and with it the other direction.
            let _ = to_spdy.shutdown().await;
        };
        let up = async {
            up.await;
            std::future::pending::<()>().await;
        };
        let down = async { tokio::join!(down, writing) };
        tokio::select! {
            _ = down => {}
            () = up => {}
        }
    };
    (inner, copying)
}
