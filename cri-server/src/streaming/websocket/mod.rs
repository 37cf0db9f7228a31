//! WebSocket (RFC 6455), the server's half: the handshake's answer, and messages both ways on an upgraded connection.
//!
//! ```text
//! frame.rs   bytes ⇄ messages       command.rs   exec and attach by channels
//! mod.rs     reading, writing       tunnel.rs    SPDY in binary messages, for port-forward
//! ```

pub(super) mod command;
mod frame;
pub(super) mod tunnel;

use std::io;

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::mpsc,
};

use frame::{Decoder, Message};

/// `Sec-WebSocket-Accept` for a client's key (§4.2.2): proof that this server speaks the protocol, and no more than that.
pub(super) fn accept(key: &str) -> String {
    const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    STANDARD.encode(digest(&SHA1_FOR_LEGACY_USE_ONLY, format!("{key}{GUID}").as_bytes()))
}

/// Messages that wait to be written. Beyond it whoever writes waits.
const QUEUE: usize = 16;

/// Splits an upgraded connection: what comes, where to write, and the future that writes, which the caller runs until it
/// ends: after a close, with the connection, or when every [`Outgoing`] is gone.
fn open<IO: AsyncRead + AsyncWrite>(io: IO) -> (Incoming<IO>, Outgoing, impl Future<Output = ()>) {
    let (read, write) = tokio::io::split(io);
    let (sender, queue) = mpsc::channel(QUEUE);
    let outgoing = Outgoing(sender);
    let incoming = Incoming { read, decoder: Decoder::default(), answers: outgoing.clone() };
    (incoming, outgoing, async {
        if let Err(error) = write_all(write, queue).await {
            tracing::debug!(%error, "a WebSocket client left");
        }
    })
}

async fn write_all<IO: AsyncWrite>(mut write: WriteHalf<IO>, mut queue: mpsc::Receiver<Message>) -> io::Result<()> {
    while let Some(message) = queue.recv().await {
        write.write_all(&message.encode()).await?;
        write.flush().await?;
        if matches!(message, Message::Close(_)) {
            break;
        }
    }
    write.shutdown().await
}

/// What the client sends.
struct Incoming<IO> {
    read: ReadHalf<IO>,
    decoder: Decoder,
    answers: Outgoing,
}

impl<IO: AsyncRead> Incoming<IO> {
    /// The payload of the next data message; `None` once the client has left, closed, or broken the protocol.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            match self.decoder.next() {
                Ok(Some(Message::Text(payload) | Message::Binary(payload))) => return Some(payload),
                // Answering a ping is worth no wait: a client whose answers pile up does not read them.
                Ok(Some(Message::Ping(payload))) => drop(self.answers.0.try_send(Message::Pong(payload))),
                Ok(Some(Message::Pong(_))) => {}
                Ok(Some(Message::Close(_))) => return None,
                Ok(None) => match self.read.read_buf(&mut self.decoder.input).await {
                    Ok(read) if read > 0 => {}
                    // The end, or an error, which is the same for a client that has left.
                    Ok(_) | Err(_) => return None,
                },
                Err(error) => {
                    tracing::debug!(%error, "a WebSocket client broke the protocol");
                    return None;
                }
            }
        }
    }
}

/// Where messages to the client are written.
#[derive(Clone)]
struct Outgoing(mpsc::Sender<Message>);

/// The client has left.
struct Gone;

impl Outgoing {
    async fn send(&self, message: Message) -> Result<(), Gone> {
        self.0.send(message).await.map_err(|_| Gone)
    }

    async fn binary(&self, payload: BytesMut) -> Result<(), Gone> {
        self.send(Message::Binary(payload.freeze())).await
    }

    async fn close(&self) {
        // A client that has left needs no goodbye.
        let _ = self.send(Message::done()).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_key_is_answered_as_in_the_rfc() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
