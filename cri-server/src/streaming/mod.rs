//! Exec, attach and port-forward as bytes: the HTTP server whose URLs the CRI answers name.
//!
//! ```text
//! CRI Exec ──► Streaming::exec ──► token ──► URL ──► kubelet, crictl ──► server.rs ──► spdy/ ──► remote_command.rs ──► Pods::exec
//! ```
//!
//! It knows no CRI message and keeps no state but tokens that wait. Nothing runs before the client has come with its token
//! and opened its streams; then the process belongs to the session's task. Served without TLS on the loopback address
//! unless configured otherwise, because whoever has a token needs no other right.

mod hang_up;
mod port_forward;
mod remote_command;
mod server;
mod spdy;
pub(crate) mod tls;
mod tokens;
mod websocket;

#[cfg(test)]
mod tests;

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    path::PathBuf,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use sandbox::{
    Error, Output, Pods, Session,
    model::{Id, StreamRequest},
};
use tokio::{net::TcpListener, sync::mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub(crate) use tokens::TokenError;

use crate::config;
use {port_forward::Target, remote_command::Command, tokens::Tokens};

/// The streaming server. Clones are handles of the same.
#[derive(Clone)]
pub(crate) struct Streaming {
    shared: Arc<Shared>,
    listener: Arc<TcpListener>,
}

impl Streaming {
    /// Listens; nobody is answered before [`Streaming::serve`] runs.
    pub(crate) async fn bind(config: &config::Streaming, pods: Pods) -> io::Result<Streaming> {
        let backend: Backend = Arc::new(move |container: Id, command: Command| {
            let pods = pods.clone();
            Box::pin(async move {
                let session = match command {
                    Command::Exec(request) => pods.exec(container.as_str(), request).await?,
                    Command::Attach(request) => pods.attach(container.as_str(), request).await?,
                };
                Ok(Process::of(session))
            })
        });
        Streaming::with_backend(config, backend).await
    }

    async fn with_backend(config: &config::Streaming, backend: Backend) -> io::Result<Streaming> {
        let address = match config.address.as_str() {
            "" => host_address()?,
            text => text.parse().map_err(|_| {
                let text = format!("stream_server_address {text:?} is not an IP address");
                io::Error::new(io::ErrorKind::InvalidInput, text)
            })?,
        };
        let listener = TcpListener::bind(SocketAddr::new(address, config.port)).await?;
        let mut reachable = listener.local_addr()?;
        if reachable.ip().is_unspecified() {
            reachable.set_ip(host_address()?);
        }
        let tls = tls::acceptor(&config.tls, reachable.ip())
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let scheme = if tls.is_some() { "https" } else { "http" };
        let base = format!("{scheme}://{reachable}");
        let shared = Shared { base, tls, tokens: Tokens::new(), backend, idle: config.idle_timeout };
        Ok(Streaming { shared: Arc::new(shared), listener: Arc::new(listener) })
    }

    /// The URL at which the command runs, once, within a minute.
    pub(crate) fn exec(&self, container: Id, request: StreamRequest) -> Result<String, TokenError> {
        self.url(Action::Command { container, command: Command::Exec(request) })
    }

    /// The URL at which the container's own streams are, once, within a minute.
    pub(crate) fn attach(&self, container: Id, request: StreamRequest) -> Result<String, TokenError> {
        self.url(Action::Command { container, command: Command::Attach(request) })
    }

    /// The URL at which the pod's ports are, once, within a minute. Without `netns` they are the host's. A client that
    /// cannot name ports with its streams gets `ports`.
    pub(crate) fn port_forward(&self, pod: &Id, netns: Option<PathBuf>, ports: Vec<u16>) -> Result<String, TokenError> {
        self.url(Action::PortForward(Target { pod: pod.to_string(), netns, ports }))
    }

    /// Serves until `shutdown`, then cuts the sessions that run and returns when they have ended.
    pub(crate) async fn serve(self, shutdown: CancellationToken) {
        server::serve(self.shared, &self.listener, shutdown).await;
    }

    fn url(&self, action: Action) -> Result<String, TokenError> {
        let kind = action.kind();
        let token = self.shared.tokens.give(action)?;
        Ok(format!("{}/{kind}/{token}", self.shared.base))
    }
}

struct Shared {
    /// `http://host:port`, or with `https`, as clients reach it.
    base: String,
    tls: Option<TlsAcceptor>,
    tokens: Tokens<Action>,
    backend: Backend,
    idle: Duration,
}

/// What a token stands for.
#[derive(Debug, PartialEq, Eq)]
enum Action {
    Command { container: Id, command: Command },
    PortForward(Target),
}

impl Action {
    /// The first part of the URL's path.
    fn kind(&self) -> &'static str {
        match self {
            Action::Command { command: Command::Exec(_), .. } => "exec",
            Action::Command { command: Command::Attach(_), .. } => "attach",
            Action::PortForward(_) => "portforward",
        }
    }
}

/// Starts a process. The seam to `sandbox`: a session of a real pod can only come from a real shim, and the protocol has
/// to be tested against processes that misbehave on purpose.
type Backend = Arc<dyn Fn(Id, Command) -> Later<Result<Process, Error>> + Send + Sync>;

type Later<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A running exec or attach: [`Session`], with an exit that tests can make too.
struct Process {
    stdin: Option<mpsc::Sender<Bytes>>,
    output: mpsc::Receiver<Output>,
    resize: mpsc::Sender<(u16, u16)>,
    exit: Later<Result<i32, Error>>,
}

impl Process {
    fn of(session: Session) -> Process {
        let Session { stdin, output, resize, exit } = session;
        Process { stdin, output, resize, exit: Box::pin(exit.wait()) }
    }
}

/// The address from which this host speaks to others: the source of its default route. Connecting a datagram socket sends
/// nothing; the addresses are reserved for documentation, so no route is special to them.
fn host_address() -> io::Result<IpAddr> {
    const ELSEWHERE: [(IpAddr, IpAddr); 2] = [
        (IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1))),
        (IpAddr::V6(Ipv6Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))),
    ];
    for (local, remote) in ELSEWHERE {
        let socket = match UdpSocket::bind((local, 0)) {
            Ok(socket) => socket,
            // A host without this family.
            Err(_) => continue,
        };
        if socket.connect((remote, 9)).is_ok() {
            return Ok(socket.local_addr()?.ip());
        }
    }
    let text = "this host has no default route to take its address from; set stream_server_address";
    Err(io::Error::new(io::ErrorKind::AddrNotAvailable, text))
}
