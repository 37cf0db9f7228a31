//! A proxy that knows one registry: whatever it is asked for, it connects there.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// A proxy that ends when it is dropped.
pub struct TestProxy {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

impl TestProxy {
    /// Every request must bring this `Proxy-Authorization`, if there is one.
    pub async fn to(registry: SocketAddr, authorization: Option<String>) -> TestProxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let task = tokio::spawn(accept(listener, registry, authorization, Arc::clone(&seen)));
        TestProxy { address, seen, task }
    }

    /// The heads of all requests, as they came.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The first line of every request.
    pub fn lines(&self) -> Vec<String> {
        self.seen().iter().map(|head| head.lines().next().unwrap_or_default().to_owned()).collect()
    }
}

impl Drop for TestProxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn accept(
    listener: TcpListener,
    registry: SocketAddr,
    authorization: Option<String>,
    seen: Arc<Mutex<Vec<String>>>,
) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        let (authorization, seen) = (authorization.clone(), Arc::clone(&seen));
        connections.spawn(async move {
            // Whatever breaks here shows on the client's side, where the test looks.
            let _ = forward(client, registry, authorization, &seen).await;
        });
    }
}

/// One request a connection, which is all that a test of few requests needs: the answer says that the connection closes.
async fn forward(
    mut client: TcpStream,
    registry: SocketAddr,
    authorization: Option<String>,
    seen: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(client.read_u8().await?);
    }
    let text = String::from_utf8_lossy(&head).into_owned();
    let is_known = authorization.is_none_or(|wanted| {
        text.lines().any(|line| {
            line.split_once(": ")
                .is_some_and(|(name, value)| name.eq_ignore_ascii_case("proxy-authorization") && value == wanted)
        })
    });
    let is_tunnel = text.starts_with("CONNECT ");
    seen.lock().unwrap_or_else(PoisonError::into_inner).push(text.clone());
    if !is_known {
        let refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
        return client.write_all(refusal).await;
    }
    let mut server = TcpStream::connect(registry).await?;
    if is_tunnel {
        client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?;
    } else {
        // What is for the proxy stays here.
        let kept = text.trim_end().split("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with("proxy-"));
        let head = kept.chain(["Connection: close"]).collect::<Vec<_>>().join("\r\n");
        server.write_all(format!("{head}\r\n\r\n").as_bytes()).await?;
    }
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}
