//! A SOCKS 5 server (RFC 1928, RFC 1929) that knows one registry: whatever it is asked for, it connects there.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

const VERSION: u8 = 5;
const NO_AUTHENTICATION: u8 = 0;
const USERNAME_PASSWORD: u8 = 2;
const NO_ACCEPTABLE_METHOD: u8 = 0xff;

/// A proxy that ends when it is dropped.
pub struct TestSocks {
    pub address: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    task: JoinHandle<()>,
}

#[derive(Clone)]
struct Rules {
    user: Option<(String, String)>,
    /// Where connections go, or the reply that refuses them (RFC 1928 §6).
    target: Result<SocketAddr, u8>,
    seen: Arc<Mutex<Vec<String>>>,
}

impl TestSocks {
    /// With a user, nobody else is served.
    pub async fn to(registry: SocketAddr, user: Option<(&str, &str)>) -> TestSocks {
        TestSocks::start(user.map(|(name, password)| (name.to_owned(), password.to_owned())), Ok(registry)).await
    }

    /// Answers every request with this reply.
    pub async fn refusing(reply: u8) -> TestSocks {
        TestSocks::start(None, Err(reply)).await
    }

    async fn start(user: Option<(String, String)>, target: Result<SocketAddr, u8>) -> TestSocks {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        let seen: Arc<Mutex<Vec<String>>> = Arc::default();
        let rules = Rules { user, target, seen: Arc::clone(&seen) };
        let task = tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                // Whatever breaks here shows on the client's side, where the test looks.
                connections.spawn(serve(client, rules.clone()));
            }
        });
        TestSocks { address, seen, task }
    }

    /// `host:port` of every connection that was asked for, the host as it was written.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for TestSocks {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(mut client: TcpStream, rules: Rules) -> io::Result<()> {
    expect(&mut client, VERSION).await?;
    let methods = counted(&mut client).await?;
    let wanted = if rules.user.is_some() { USERNAME_PASSWORD } else { NO_AUTHENTICATION };
    if !methods.contains(&wanted) {
        return client.write_all(&[VERSION, NO_ACCEPTABLE_METHOD]).await;
    }
    client.write_all(&[VERSION, wanted]).await?;
    if let Some((name, password)) = &rules.user {
        expect(&mut client, 1).await?;
        let (given_name, given_password) = (counted(&mut client).await?, counted(&mut client).await?);
        let is_right = given_name == name.as_bytes() && given_password == password.as_bytes();
        client.write_all(&[1, u8::from(!is_right)]).await?;
        if !is_right {
            return Ok(());
        }
    }
    // Version, CONNECT, reserved.
    for byte in [VERSION, 1, 0] {
        expect(&mut client, byte).await?;
    }
    let host = match client.read_u8().await? {
        1 => Ipv4Addr::from(client.read_u32().await?).to_string(),
        3 => String::from_utf8_lossy(&counted(&mut client).await?).into_owned(),
        other => return Err(io::Error::other(format!("address type {other}"))),
    };
    let port = client.read_u16().await?;
    rules.seen.lock().unwrap_or_else(PoisonError::into_inner).push(format!("{host}:{port}"));
    let (code, server) = match rules.target {
        Ok(registry) => (0, Some(TcpStream::connect(registry).await?)),
        Err(code) => (code, None),
    };
    // The address that it is bound to is 0.0.0.0:0, which nobody uses.
    client.write_all(&[VERSION, code, 0, 1, 0, 0, 0, 0, 0, 0]).await?;
    match server {
        Some(mut server) => copy_bidirectional(&mut client, &mut server).await.map(drop),
        None => Ok(()),
    }
}

async fn expect(client: &mut TcpStream, byte: u8) -> io::Result<()> {
    match client.read_u8().await? {
        found if found == byte => Ok(()),
        found => Err(io::Error::other(format!("{found} in place of {byte}"))),
    }
}

/// As many bytes as the first one says.
async fn counted(client: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::from(client.read_u8().await?)];
    client.read_exact(&mut bytes).await?;
    Ok(bytes)
}
