//! WebSocket (RFC 6455), the server's half: the handshake's answer, and messages both ways on an upgraded connection.
//!
//! ```text
//! frame.rs     bytes ⇄ messages        command.rs   exec and attach by channels
//! channel.rs   channels ⇄ messages     ports.rs     port-forward by channels
//! mod.rs       reading, writing        tunnel.rs    SPDY in binary messages, for port-forward
//! ```

mod channel;
pub(super) mod command;
mod frame;
pub(super) mod ports;
pub(super) mod tunnel;

use std::{io, pin::pin, time::Duration};

use aws_lc_rs::digest::{SHA1_FOR_LEGACY_USE_ONLY, digest};
use base64::{Engine, engine::general_purpose::STANDARD};
use bytes::{Bytes, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadHalf, WriteHalf},
    sync::{mpsc, watch},
    time::{Instant, sleep_until, timeout},
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
/// ends: after a close, with the connection, when every [`Outgoing`] is gone, or when nothing went either way for as long
/// as `idle`, of which zero is for ever.
fn open<IO: AsyncRead + AsyncWrite>(
    io: IO,
    idle: Duration,
) -> (Incoming<IO>, Outgoing, impl Future<Output = ()> + use<IO>) {
    let (read, write) = tokio::io::split(io);
    let (sender, queue) = mpsc::channel(QUEUE);
    let outgoing = Outgoing(sender);
    let (active, activity) = watch::channel(Instant::now());
    let incoming = Incoming { read, decoder: Decoder::default(), answers: outgoing.clone(), active: active.clone() };
    (incoming, outgoing, async move {
        tokio::select! {
            written = write_all(write, queue, &active) => {
                if let Err(error) = written {
                    tracing::debug!(%error, "a WebSocket client left");
                }
            }
            () = idle_for(activity, idle) => tracing::info!("an idle WebSocket connection is closed"),
        }
    })
}

async fn write_all<IO: AsyncWrite>(
    mut write: WriteHalf<IO>,
    mut queue: mpsc::Receiver<Message>,
    active: &watch::Sender<Instant>,
) -> io::Result<()> {
    while let Some(message) = queue.recv().await {
        write.write_all(&message.encode()).await?;
        write.flush().await?;
        active.send_replace(Instant::now());
        if matches!(message, Message::Close(_)) {
            break;
        }
    }
    write.shutdown().await
}

async fn idle_for(activity: watch::Receiver<Instant>, idle: Duration) {
    if idle.is_zero() {
        return std::future::pending().await;
    }
    loop {
        let end = *activity.borrow() + idle;
        if end <= Instant::now() {
            return;
        }
        sleep_until(end).await;
    }
}

/// How long the client may take to close after the goodbye. Closing first with bytes unread would make TCP reset the
/// connection, and the client could lose what was sent last.
const LINGER: Duration = Duration::from_secs(2);

/// Runs a session beside the future of its [`open`]. A session that is over gives back what it read from, and what is
/// queued is still written, for as long as the client reads; one whose client has left gives nothing, and no more is
/// written than what such a client takes at once.
async fn run_to_the_end<IO: AsyncRead>(
    session: impl Future<Output = Option<Incoming<IO>>>,
    running: impl Future<Output = ()>,
) {
    let mut running = pin!(running);
    let over = tokio::select! {
        over = session => over,
        () = &mut running => return,
    };
    let lingered = match over {
        Some(mut incoming) => {
            running.await;
            timeout(LINGER, async { while incoming.next().await.is_some() {} }).await
        }
        None => timeout(LINGER, running).await,
    };
    if lingered.is_err() {
        tracing::debug!("a WebSocket client did not close its connection in time");
    }
}

/// What the client sends.
struct Incoming<IO> {
    read: ReadHalf<IO>,
    decoder: Decoder,
    answers: Outgoing,
    active: watch::Sender<Instant>,
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
                Ok(Some(Message::Close(why))) => {
                    // Answered by the same (§5.5.1), by the rule of pings.
                    drop(self.answers.0.try_send(Message::Close(why)));
                    return None;
                }
                Ok(None) => match self.read.read_buf(&mut self.decoder.input).await {
                    Ok(read) if read > 0 => drop(self.active.send_replace(Instant::now())),
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
    use tokio::io::duplex;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_connection_ends_when_nothing_went_either_way_for_the_idle_time() {
        let idle = Duration::from_secs(60);
        let (server, mut client) = duplex(1024);
        let (mut incoming, outgoing, running) = open(server, idle);
        let start = Instant::now();
        let talk = async {
            tokio::time::sleep(idle / 2).await;
            client.write_all(&[0x82, 0x80, 0, 0, 0, 0]).await.unwrap();
            incoming.next().await.unwrap();
            tokio::time::sleep(idle / 2).await;
            outgoing.binary(BytesMut::new()).await.ok().unwrap();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = running => {}
            () = talk => {}
        }
        assert_eq!(start.elapsed(), idle * 2);
    }

    #[test]
    fn the_key_is_answered_as_in_the_rfc() {
        assert_eq!(accept("dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }
}
