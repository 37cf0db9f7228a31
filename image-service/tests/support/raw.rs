//! A server that sends what a test gives it, at the pace of the test, whatever it is asked.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Ends when it is dropped.
pub struct RawServer {
    pub url: String,
    task: JoinHandle<()>,
}

impl RawServer {
    /// To each request it sends the start, and then the piece again and again, with a pause before each.
    pub async fn new(start: impl Into<String>, piece: impl Into<String>, pause: Duration) -> RawServer {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let url = format!("http://{}", listener.local_addr().expect("a bound socket has an address"));
        let (start, piece) = (start.into(), piece.into());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(send(stream, start.clone(), piece.clone(), pause));
            }
        });
        RawServer { url, task }
    }
}

impl Drop for RawServer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Until the other side has had enough.
async fn send(mut stream: TcpStream, start: String, piece: String, pause: Duration) {
    let mut request = Vec::new();
    while !request.ends_with(b"\r\n\r\n") {
        match stream.read_buf(&mut request).await {
            Ok(1..) => {}
            _ => return,
        }
    }
    if stream.write_all(start.as_bytes()).await.is_err() || piece.is_empty() {
        return std::future::pending().await;
    }
    loop {
        tokio::time::sleep(pause).await;
        if stream.write_all(piece.as_bytes()).await.is_err() {
            return;
        }
    }
}
