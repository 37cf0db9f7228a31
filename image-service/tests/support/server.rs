//! The registry's connections. It can die for a while: then nothing listens, and every connection is gone.

use std::convert::Infallible;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustix::net::sockopt::set_socket_linger;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::answer::{self, State};

/// What an answer can do to more than itself.
#[derive(Clone)]
pub(super) struct Handle {
    /// The connection once more; what is set on it counts for the one that is served.
    socket: Arc<OwnedFd>,
    dying: mpsc::Sender<Duration>,
}

impl Handle {
    /// Makes the connection end with a reset, whenever it ends.
    pub(super) fn reset_at_end(&self) {
        set_socket_linger(&self.socket, Some(Duration::ZERO)).expect("a socket can be told to reset");
    }

    pub(super) fn die(&self, duration: Duration) {
        // A registry that is about to die already is told once.
        let _ = self.dying.try_send(duration);
    }
}

pub(super) async fn serve(mut listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<Mutex<State>>) {
    let address = listener.local_addr().expect("a bound socket has an address");
    loop {
        let (dying, mut died) = mpsc::channel(1);
        let mut connections = JoinSet::new();
        let duration = loop {
            tokio::select! {
                accepted = listener.accept() => match accepted {
                    Ok((stream, _)) => {
                        connections.spawn(connection(stream, tls.clone(), Arc::clone(&state), dying.clone()));
                    }
                    Err(_) => return,
                },
                Some(duration) = died.recv() => break duration,
            }
        };
        drop(listener);
        connections.shutdown().await;
        tokio::time::sleep(duration).await;
        listener = TcpListener::bind(address).await.expect("nobody else takes the port of a dead registry");
    }
}

async fn connection(
    stream: TcpStream,
    tls: Option<TlsAcceptor>,
    state: Arc<Mutex<State>>,
    dying: mpsc::Sender<Duration>,
) {
    let socket = rustix::io::fcntl_dupfd_cloexec(&stream, 0).expect("a descriptor can be copied");
    let handle = Handle { socket: Arc::new(socket), dying };
    match tls {
        None => requests(stream, state, handle).await,
        Some(acceptor) => {
            // A client that does not trust us ends the handshake; the test looks at its side.
            if let Ok(stream) = acceptor.accept(stream).await {
                requests(stream, state, handle).await;
            }
        }
    }
}

async fn requests(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    state: Arc<Mutex<State>>,
    handle: Handle,
) {
    let service = service_fn(move |request| {
        let (state, handle) = (Arc::clone(&state), handle.clone());
        async move { Ok::<_, Infallible>(answer::answer(request, &state, handle).await) }
    });
    // Cut bodies end a connection with an error, which is what the test asked for.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}
