//! Notices that a client has closed its connection although nobody reads from it.
//!
//! A session reads no further while a process leaves its input standing, and would learn only behind all of that input that
//! the client is gone: the process, its session and the connection would stay for as long as the process likes.

use std::{io, os::fd::AsFd, time::Duration};

use tokio::{io::Interest, net::TcpStream};

/// What the client had sent before it left is worth this much time: reading to its end, the session ends by itself.
const UNREAD: Duration = Duration::from_secs(5);

/// A second descriptor of a connection's socket, by which nothing is read.
pub(super) struct HangUp(TcpStream);

impl HangUp {
    pub(super) fn of(socket: &TcpStream) -> io::Result<HangUp> {
        let second = std::net::TcpStream::from(socket.as_fd().try_clone_to_owned()?);
        Ok(HangUp(TcpStream::from_std(second)?))
    }

    /// Waits until the client has closed, and a little longer.
    pub(super) async fn noticed(&self) {
        loop {
            match self.0.ready(Interest::READABLE).await {
                Ok(ready) if ready.is_read_closed() => break,
                // More to read, which is others' business: the next change is waited for.
                Ok(_) => drop(self.0.try_io(Interest::READABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()))),
                // The runtime ends, and with it every session.
                Err(_) => return std::future::pending().await,
            }
        }
        tokio::time::sleep(UNREAD).await;
    }
}
