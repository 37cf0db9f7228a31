//! The HTTP side: which request a token belongs to, which protocol it is upgraded to, and the task that serves it.
//!
//! ```text
//! GET|POST /{exec,attach,portforward}/<token>
//!   404 no such token    400 no known Upgrade    403 no common protocol
//!   101 SPDY/3.1  ──► spdy ──► remote_command | port_forward
//!   101 websocket ──► websocket: command, ports, or a tunnel ──► spdy ──► port_forward
//! ```
//!
//! A token is spent by the first request that names it, whatever comes of it. Every task is tracked: connections until
//! their last request, upgraded ones until their session's end, all of them at most until the daemon stops.

use std::{convert::Infallible, io, sync::Arc, time::Duration};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{
    body::Incoming,
    server::conn::http1,
    service::service_fn,
    upgrade::{OnUpgrade, Upgraded},
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::net::sockopt;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Action, Shared,
    hang_up::HangUp,
    port_forward,
    remote_command::{self, Version},
    spdy::{Connection, Limits},
    websocket::{self, command::Protocol, ports, tunnel},
};

/// Accepts until `stop`, then ends what runs and waits for it.
pub(super) async fn serve(shared: Arc<Shared>, listener: &TcpListener, stop: CancellationToken) {
    let tasks = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((socket, _)) => {
                let (shared, tasks_of_it, stop) = (shared.clone(), tasks.clone(), stop.clone());
                let server = Server { shared, tasks: tasks_of_it, stop, client: None };
                tasks.spawn(server.connection(socket));
            }
            Err(error) => {
                // Out of files, most likely: others have to end first, and trying at once only burns a core.
                tracing::warn!(%error, "cannot accept a streaming connection");
                stop.run_until_cancelled(tokio::time::sleep(PAUSE)).await;
            }
        }
    }
    tasks.close();
    tasks.wait().await;
}

/// Between two attempts to accept when the first failed.
const PAUSE: Duration = Duration::from_millis(200);

/// How long a client may take to send a request's head, and for TLS before it.
const HEAD: Duration = Duration::from_secs(30);

/// A peer whose machine died is noticed after about [`HEAD`] without the application saying anything.
fn keep_alive(socket: &TcpStream) -> io::Result<()> {
    socket.set_nodelay(true)?;
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, HEAD)?;
    Ok(sockopt::set_tcp_keepintvl(socket, HEAD / 3)?)
}

const PROTOCOL_VERSION: &str = "x-stream-protocol-version";
const ACCEPTED_VERSIONS: &str = "x-accepted-stream-protocol-versions";
const SPDY: &str = "SPDY/3.1";
const WEBSOCKET: &str = "websocket";
const TUNNEL: &str = "SPDY/3.1+portforward.k8s.io";

#[derive(Clone)]
struct Server {
    shared: Arc<Shared>,
    tasks: TaskTracker,
    stop: CancellationToken,
    /// Of this connection.
    client: Option<Arc<HangUp>>,
}

/// What the upgraded connection is for.
enum Session {
    Command {
        container: sandbox::model::Id,
        command: remote_command::Command,
        version: Version,
    },
    PortForward(port_forward::Target),
    /// The first, over WebSocket.
    Channels {
        container: sandbox::model::Id,
        command: remote_command::Command,
        protocol: Protocol,
    },
    /// The second, over SPDY over WebSocket.
    Tunnel(port_forward::Target),
    /// The second, over WebSocket.
    Ports {
        target: port_forward::Target,
        ports: Vec<u16>,
        protocol: ports::Protocol,
    },
}

impl Server {
    async fn connection(mut self, socket: TcpStream) {
        if let Err(error) = keep_alive(&socket) {
            tracing::debug!(%error, "cannot set up a streaming connection; the client has probably left");
        }
        match HangUp::of(&socket) {
            Ok(client) => self.client = Some(Arc::new(client)),
            Err(error) => tracing::warn!(%error, "cannot watch a streaming connection"),
        }
        let Some(acceptor) = self.shared.tls.clone() else { return self.http(socket).await };
        let shaking = timeout(HEAD, acceptor.accept(socket));
        match self.stop.run_until_cancelled(shaking).await {
            Some(Ok(Ok(stream))) => self.http(stream).await,
            Some(Ok(Err(error))) => tracing::debug!(%error, "a streaming client failed at TLS"),
            Some(Err(_)) => tracing::debug!("a streaming client was too slow at TLS"),
            None => {}
        }
    }

    async fn http(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(|request| {
            let answer = self.answer(request);
            async { Ok::<_, Infallible>(answer) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD)
            .serve_connection(TokioIo::new(stream), service)
            .with_upgrades();
        if let Some(Err(error)) = self.stop.run_until_cancelled(connection).await {
            tracing::debug!(%error, "a streaming connection ended before its upgrade");
        }
    }

    fn answer(&self, mut request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::POST {
            return refusal(StatusCode::METHOD_NOT_ALLOWED, "only GET and POST are served here");
        }
        let Some(action) = self.action(request.uri().path()) else {
            return refusal(
                StatusCode::NOT_FOUND,
                "no such request: it was never made, was used, or is over a minute old",
            );
        };
        if asks_for(request.headers(), WEBSOCKET) {
            return self.websocket(request, action);
        }
        if !asks_for(request.headers(), SPDY) {
            return refusal(StatusCode::BAD_REQUEST, "unable to upgrade: only SPDY/3.1 and websocket are served");
        }
        let offered = offered_protocols(request.headers());
        let (agreed, session) = match action {
            Action::Command { container, command } => {
                let Some(version) =
                    agree(&offered, &Version::ALL.map(|version| (version.name(), version)), Version::V1)
                else {
                    return no_common_protocol(&offered, &Version::ALL.map(Version::name));
                };
                (version.name(), Session::Command { container, command, version })
            }
            Action::PortForward(target) => {
                if agree(&offered, &[(port_forward::PROTOCOL, ())], ()).is_none() {
                    return no_common_protocol(&offered, &[port_forward::PROTOCOL]);
                }
                (port_forward::PROTOCOL, Session::PortForward(target))
            }
        };
        let upgrade = hyper::upgrade::on(&mut request);
        // Boxed: the session's future is large, and the tracker would move it about.
        self.tasks.spawn(Box::pin(self.clone().session(upgrade, session)));
        let mut response = switching(SPDY);
        if !offered.is_empty() {
            response.headers_mut().insert(PROTOCOL_VERSION, HeaderValue::from_static(agreed));
        }
        response
    }

    /// The same over WebSocket. Its handshake has headers of its own.
    fn websocket(&self, mut request: Request<Incoming>, action: Action) -> Response<Full<Bytes>> {
        let headers = request.headers();
        let key = headers.get(header::SEC_WEBSOCKET_KEY).and_then(|key| key.to_str().ok());
        let version = headers.get(header::SEC_WEBSOCKET_VERSION).is_some_and(|version| version == "13");
        let (Some(key), true) = (key, version) else {
            return refusal(StatusCode::BAD_REQUEST, "unable to upgrade: not a handshake of WebSocket version 13");
        };
        let accept = websocket::accept(key);
        let offered: Vec<String> = words(headers, header::SEC_WEBSOCKET_PROTOCOL.as_str()).map(str::to_owned).collect();
        let (agreed, session) = match action {
            Action::Command { container, command } => {
                let known = Protocol::ALL.map(|protocol| (protocol.name, protocol));
                let Some(protocol) = agree(&offered, &known, Protocol::ALL[Protocol::ALL.len() - 1]) else {
                    return no_common_protocol(&offered, &Protocol::ALL.map(|protocol| protocol.name));
                };
                (protocol.name, Session::Channels { container, command, protocol })
            }
            Action::PortForward(target) => {
                match forwarding(&offered, target, request.uri().query().unwrap_or_default()) {
                    Ok(agreed) => agreed,
                    Err(refused) => return *refused,
                }
            }
        };
        let upgrade = hyper::upgrade::on(&mut request);
        self.tasks.spawn(Box::pin(self.clone().session(upgrade, session)));
        let mut response = switching(WEBSOCKET);
        let headers = response.headers_mut();
        match HeaderValue::try_from(accept) {
            Ok(accept) => headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept),
            // Base64 is always a header's value.
            Err(_) => return refusal(StatusCode::BAD_REQUEST, "unable to upgrade"),
        };
        if !offered.is_empty() {
            headers.insert(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(agreed));
        }
        response
    }

    /// What the path's token stands for, if it was given for this kind of path.
    fn action(&self, path: &str) -> Option<Action> {
        let (kind, token) = path.strip_prefix('/')?.split_once('/')?;
        self.shared.tokens.take(token).filter(|action| action.kind() == kind)
    }

    async fn session(self, upgrade: OnUpgrade, session: Session) {
        let served = async {
            match upgrade.await {
                Ok(upgraded) => self.upgraded(upgraded, session).await,
                Err(error) => tracing::debug!(%error, "a streaming client left before its upgrade"),
            }
        };
        let left = async {
            match &self.client {
                Some(client) => client.noticed().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = served => {}
            () = left => tracing::debug!("a streaming client left with input that nothing reads"),
            // When the daemon stops, sessions are cut: what they run is ended by the pods' owners.
            () = self.stop.cancelled() => {}
        }
    }

    async fn upgraded(&self, upgraded: Upgraded, session: Session) {
        let io = TokioIo::new(upgraded);
        let idle = self.shared.idle;
        match session {
            Session::Command { container, command, version } => {
                let (connection, running) = Connection::open(io, Limits { idle, streams: remote_command::STREAMS });
                let start = (self.shared.backend)(container, command.clone());
                let serving = remote_command::serve(connection, version, &command, start);
                tokio::join!(running, serving);
            }
            Session::PortForward(target) => {
                let (connection, running) = Connection::open(io, Limits { idle, streams: port_forward::STREAMS });
                tokio::join!(running, port_forward::serve(connection, &target));
            }
            Session::Channels { container, command, protocol } => {
                let start = (self.shared.backend)(container, command.clone());
                websocket::command::serve(io, protocol, &command, idle, start).await;
            }
            Session::Ports { target, ports, protocol } => {
                ports::serve(io, protocol, &target, &ports, idle).await;
            }
            Session::Tunnel(target) => {
                let (io, copying) = tunnel::tunnel(io);
                let (connection, running) = Connection::open(io, Limits { idle, streams: port_forward::STREAMS });
                tokio::join!(copying, running, port_forward::serve(connection, &target));
            }
        }
    }
}

/// Which form of port-forward a WebSocket client gets: by channels, for ports that it or the CRI request has named, or by
/// SPDY inside.
fn forwarding(
    offered: &[String],
    target: port_forward::Target,
    query: &str,
) -> Result<(&'static str, Session), Box<Response<Full<Bytes>>>> {
    let mut known = vec![(TUNNEL, None)];
    known.extend(ports::Protocol::ALL.map(|protocol| (protocol.name, Some(protocol))));
    let Some(protocol) = agree(offered, &known, Some(ports::Protocol::UNNAMED)) else {
        let names: Vec<_> = known.iter().map(|(name, _)| *name).collect();
        return Err(Box::new(no_common_protocol(offered, &names)));
    };
    let Some(protocol) = protocol else { return Ok((TUNNEL, Session::Tunnel(target))) };
    let bad = |text: String| Box::new(refusal(StatusCode::BAD_REQUEST, format!("unable to upgrade: {text}")));
    let mut ports = named_ports(query).map_err(bad)?;
    if ports.is_empty() {
        ports.clone_from(&target.ports);
    }
    if ports.is_empty() || ports.len() > ports::MOST_PORTS {
        let most = ports::MOST_PORTS;
        return Err(bad(format!("{} ports are named, and channels are for 1 to {most}: add ?port=", ports.len())));
    }
    Ok((protocol.name, Session::Ports { target, ports, protocol }))
}

/// The ports of `?port=80&port=443,8443`. Other parameters are no business of ours.
fn named_ports(query: &str) -> Result<Vec<u16>, String> {
    let lists = query.split('&').filter_map(|pair| pair.strip_prefix("port="));
    let ports = lists.flat_map(|list| list.split(',').flat_map(|port| port.split("%2C")));
    ports
        .map(|port| match port.parse() {
            Ok(0) | Err(_) => Err(format!("port={port:?} is not a port")),
            Ok(port) => Ok(port),
        })
        .collect()
}

/// `Connection: Upgrade` and `Upgrade: <protocol>`, in any case and among others, as Go's side checks it.
fn asks_for(headers: &HeaderMap, protocol: &str) -> bool {
    let has = |name, word: &str| words(headers, name).any(|found| found.eq_ignore_ascii_case(word));
    has(header::CONNECTION.as_str(), "upgrade") && has(header::UPGRADE.as_str(), protocol)
}

/// What the client speaks, from the one it likes best; one header each or one for all.
fn offered_protocols(headers: &HeaderMap) -> Vec<String> {
    words(headers, PROTOCOL_VERSION).map(str::to_owned).collect()
}

fn words<'a>(headers: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a str> {
    let lines = headers.get_all(name).into_iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|word| !word.is_empty())
}

/// The client's first choice that is known. One that offers nothing is older than the negotiation: it gets `oldest`.
fn agree<T: Copy>(offered: &[String], known: &[(&str, T)], oldest: T) -> Option<T> {
    if offered.is_empty() {
        return Some(oldest);
    }
    offered.iter().find_map(|name| known.iter().find(|(known, _)| known == name)).map(|(_, protocol)| *protocol)
}

fn switching(protocol: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
    response
}

fn no_common_protocol(offered: &[String], known: &[&'static str]) -> Response<Full<Bytes>> {
    let text = format!("unable to upgrade: the client speaks {}; served are {}", offered.join(", "), known.join(", "));
    let mut response = refusal(StatusCode::FORBIDDEN, text);
    for name in known {
        response.headers_mut().append(ACCEPTED_VERSIONS, HeaderValue::from_static(name));
    }
    response
}

fn refusal(status: StatusCode, text: impl Into<String>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(Bytes::from(text.into() + "\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}
