//! Port forwarding over SPDY, `portforward.k8s.io`: many TCP connections into one pod through one HTTP connection. Over
//! WebSocket it is `websocket/ports.rs`, which connects and copies by what is here.
//!
//! ```text
//! client opens, for each TCP connection and in any order:   error  data      headers streamtype, port, requestid
//! pair complete ──► connect to localhost:port in the pod's network namespace ──► copy both ways
//! failure       ──► text on the error stream; the other connections go on
//! ```
//!
//! Half close goes both ways: the client's FIN becomes a shutdown of the socket's writing side, and the target may still
//! answer for as long as it likes. When the target has closed, the client has [`LAST_WORDS`].

use std::{
    collections::HashMap,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    pin::pin,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use sandbox::{Error, netns};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::spdy::{Connection, Stream, StreamReader, StreamWriter};

/// The only protocol there is.
pub(super) const PROTOCOL: &str = "portforward.k8s.io";

/// Streams that one session may open: two for each of its TCP connections.
pub(super) const STREAMS: usize = 1024;

/// Where the connections go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Target {
    /// The pod, for messages.
    pub(crate) pod: String,
    /// `None` is the host's network.
    pub(crate) netns: Option<PathBuf>,
    /// The ports of the CRI request. Streams of SPDY name theirs themselves; channels of WebSocket cannot.
    pub(crate) ports: Vec<u16>,
}

/// How long the second stream of a pair may be in coming.
const PAIRING: Duration = Duration::from_secs(30);

/// How long connecting may take. To localhost it takes longer only when the target's backlog is full.
const CONNECTING: Duration = Duration::from_secs(10);

/// How long the client may go on after the target has closed.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Serves one session to its end, which is the client's.
pub(super) async fn serve(mut connection: Connection, target: &Target) {
    let mut pairs = Pairs::default();
    let mut running = JoinSet::new();
    loop {
        let next_deadline = pairs.next_deadline();
        tokio::select! {
            stream = connection.accept() => {
                let Some(stream) = stream else { return };
                if let Some(pair) = pairs.add(stream).await {
                    running.spawn(forward(pair, target.clone()));
                }
            }
            Some(ended) = running.join_next(), if !running.is_empty() => {
                if let Err(error) = ended {
                    tracing::error!(%error, pod = target.pod, "a forwarded connection ended badly");
                }
            }
            () = sleep_until(next_deadline.unwrap_or_else(Instant::now)), if next_deadline.is_some() => {
                pairs.cancel_late().await;
            }
        }
    }
}

/// Streams whose other half has not come yet, by request id.
#[derive(Default)]
struct Pairs {
    waiting: HashMap<String, Half>,
}

struct Half {
    port: u16,
    kind: Kind,
    stream: (StreamReader, StreamWriter),
    until: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Error,
    Data,
}

struct Pair {
    port: u16,
    error: (StreamReader, StreamWriter),
    data: (StreamReader, StreamWriter),
}

impl Pairs {
    /// Takes in a stream, and answers the pair that it completes. What makes no sense is refused.
    async fn add(&mut self, stream: Stream) -> Option<Pair> {
        let Some((kind, port, id)) = parse(&stream) else {
            stream.refuse().await;
            return None;
        };
        let fits = self.waiting.get(&id).is_none_or(|half| half.kind != kind && half.port == port);
        if !fits {
            stream.refuse().await;
            return None;
        }
        // A stream that closed before its reply belongs to a connection that has ended.
        let halves = stream.accept().await.ok()?;
        let Some(other) = self.waiting.remove(&id) else {
            self.waiting.insert(id, Half { port, kind, stream: halves, until: Instant::now() + PAIRING });
            return None;
        };
        Some(match kind {
            Kind::Error => Pair { port, error: halves, data: other.stream },
            Kind::Data => Pair { port, error: other.stream, data: halves },
        })
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.waiting.values().map(|half| half.until).min()
    }

    async fn cancel_late(&mut self) {
        let now = Instant::now();
        let late: Vec<Half> = self.waiting.extract_if(|_, half| half.until <= now).map(|(_, half)| half).collect();
        for Half { stream: (_reader, writer), .. } in late {
            writer.cancel().await;
        }
    }
}

fn parse(stream: &Stream) -> Option<(Kind, u16, String)> {
    let kind = match stream.headers.get("streamtype")? {
        "error" => Kind::Error,
        "data" => Kind::Data,
        _ => return None,
    };
    let port = stream.headers.get("port")?.parse().ok().filter(|port| *port > 0)?;
    let id = match stream.headers.get("requestid") {
        Some(id) => id.to_owned(),
        // Kubernetes 1.0 clients name no request: they open the error stream and then, with the next id, the data stream.
        None if kind == Kind::Error => stream.id.to_string(),
        None => stream.id.checked_sub(2)?.to_string(),
    };
    Some((kind, port, id))
}

/// One TCP connection to its end.
async fn forward(pair: Pair, target: Target) {
    let Pair { port, error: (error_reader, error_writer), data: (mut reader, writer) } = pair;
    // Clients never write to the error stream.
    drop(error_reader);
    let copied = match connect(&target, port).await {
        Ok(socket) => {
            let (from_target, to_target) = socket.into_split();
            copy(copy_up(&mut reader, to_target), copy_down(from_target, &writer)).await
        }
        Err(error) => Err(error),
    };
    if let Err(error) = copied {
        // A client that has closed its error stream does not want to know.
        let _ = error_writer.write(Bytes::from(refusal(&target, port, &error))).await;
    }
    error_writer.finish().await;
    writer.finish().await;
    reader.cancel().await;
}

/// What the client is told of a connection that failed.
pub(super) fn refusal(target: &Target, port: u16, error: &Error) -> String {
    format!("error forwarding port {port} to pod {}: {}", target.pod, error.chain())
}

/// Copies both ways: `up` from the client, `down` to it. The end of `up` is half a close, that of `down` is the end.
pub(super) async fn copy(
    up: impl Future<Output = io::Result<()>>,
    down: impl Future<Output = io::Result<()>>,
) -> Result<(), Error> {
    let (mut up, mut down) = (pin!(up), pin!(down));
    tokio::select! {
        ended = &mut down => {
            if let Ok(Err(error)) = timeout(LAST_WORDS, up).await {
                tracing::debug!(%error, "a client wrote to a forwarded connection that was closed");
            }
            ended
        }
        ended = &mut up => {
            if let Err(error) = ended {
                tracing::debug!(%error, "the target of a forwarded connection reads no more");
            }
            down.await
        }
    }
    .map_err(|error| Error::failed("copy from the target", error))
}

async fn copy_up(reader: &mut StreamReader, mut socket: OwnedWriteHalf) -> io::Result<()> {
    while let Some(bytes) = reader.read().await {
        socket.write_all(&bytes).await?;
    }
    socket.shutdown().await
}

async fn copy_down(mut socket: OwnedReadHalf, writer: &StreamWriter) -> io::Result<()> {
    let mut buffer = BytesMut::new();
    loop {
        buffer.reserve(16 * 1024);
        let read = tokio::select! {
            read = socket.read_buf(&mut buffer) => read?,
            () = writer.closed() => return Ok(()),
        };
        if read == 0 || writer.write(buffer.split().freeze()).await.is_err() {
            return Ok(());
        }
    }
}

/// Connects to the port on the target's loopback, over IPv4 and then IPv6 as `localhost` means.
pub(super) async fn connect(target: &Target, port: u16) -> Result<TcpStream, Error> {
    let netns = target.netns.clone();
    let connected = tokio::task::spawn_blocking(move || connect_from(netns.as_deref(), port));
    let socket = connected.await.map_err(|error| Error::failed("connect", error))??;
    let failed = |error| Error::failed(format!("connect to localhost:{port}"), error);
    socket.set_nonblocking(true).map_err(failed)?;
    TcpStream::from_std(socket).map_err(failed)
}

/// A socket stays in the namespace it was made in, so only its making has to happen there.
fn connect_from(netns: Option<&Path>, port: u16) -> Result<std::net::TcpStream, Error> {
    let connected = match netns {
        None => connect_here(port),
        Some(path) => netns::with_netns(path, || connect_here(port))?,
    };
    connected.map_err(|error| Error::failed(format!("connect to localhost:{port}"), error))
}

fn connect_here(port: u16) -> io::Result<std::net::TcpStream> {
    let first = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let second = SocketAddr::from((Ipv6Addr::LOCALHOST, port));
    std::net::TcpStream::connect_timeout(&first, CONNECTING).or_else(|over_v4| {
        // The first answer is the one to report: without IPv6 the second only says so.
        std::net::TcpStream::connect_timeout(&second, CONNECTING).map_err(|_| over_v4)
    })
}
