//! An in-process registry for tests: HTTP or HTTPS on loopback, with content, authentication and a fault script.
//!
//! It serves `<prefix>/<repository>/{manifests,blobs}/<reference>` and `/token`, and remembers every request.
//!
//! ```text
//! server.rs: connections, and how a registry dies ──► answer.rs: what a request gets ──► body.rs: how it is sent
//! raw.rs: a server that does not speak HTTP as it should
//! authority.rs: certificates     hosts.rs: hosts.toml     proxy.rs, socks.rs: proxies in front     clock.rs: time
//! ```
#![expect(dead_code, unreachable_pub, reason = "each test binary includes the module and uses a part of it")]

mod answer;
mod authority;
mod body;
pub mod clock;
mod hosts;
pub mod proxy;
pub mod raw;
mod server;
pub mod socks;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderMap, Method};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use windlass_image_service::digest::Digest;
use windlass_image_service::registry::Descriptor;

pub use authority::{TestAuthority, install_crypto};
pub use hosts::TestHosts;

use answer::State;

/// A registry that ends when it is dropped.
pub struct TestRegistry {
    pub address: SocketAddr,
    scheme: &'static str,
    state: Arc<Mutex<State>>,
    task: JoinHandle<()>,
}

/// How clients have to say who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Auth {
    Anonymous,
    Basic {
        username: String,
        password: String,
    },
    /// The token server is this registry's `/token`; without a user it gives tokens to everybody.
    Bearer {
        user: Option<(String, String)>,
        /// Whether `/token` answers POST.
        post: bool,
    },
}

/// What happens instead of the normal answer to the next `times` requests that match.
#[derive(Clone, Debug)]
pub struct Fault {
    pub method: Option<Method>,
    /// Part of the path.
    pub path: String,
    pub times: usize,
    pub action: Action,
}

#[derive(Clone, Debug)]
pub enum Action {
    Status(u16, String),
    /// A status with one header, for example `Retry-After`.
    StatusWith(u16, &'static str, String),
    Redirect(String),
    /// The normal answer without `Docker-Content-Digest`.
    OmitDigest,
    /// The connection ends after this many bytes of the body.
    CutBody(usize),
    /// The connection is reset (RST) after this many bytes of the body.
    Reset(usize),
    /// Nothing follows these bytes of the body, and the connection stays open.
    HoldBody(usize),
    /// The body comes in pieces of this size with a pause before each.
    Drip(usize, Duration),
    /// After this many bytes of the body nothing of the registry answers for so long, and then all does again.
    Die(usize, Duration),
    /// Other content, with the normal headers that do not depend on it.
    Body(Bytes),
    /// Other content whose length is not told before.
    Unsized(Bytes),
    /// The normal answer, but `Range` is not understood.
    IgnoreRange,
    /// The normal answer with this header in place of its own.
    Header(&'static str, String),
    /// These bytes of the content as a part whose length is not told, with this `Content-Range`, if it is not empty.
    Part(String, std::ops::Range<usize>),
}

/// One request as it came in.
#[derive(Clone, Debug)]
pub struct Seen {
    pub method: Method,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Seen {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl TestRegistry {
    pub async fn http() -> TestRegistry {
        TestRegistry::start(None).await
    }

    /// With a certificate for 127.0.0.1 of `authority`; `client_certificates` makes one of the same authority a must.
    pub async fn https(authority: &TestAuthority, client_certificates: bool) -> TestRegistry {
        TestRegistry::https_named(authority, "127.0.0.1", client_certificates).await
    }

    /// With a certificate for another name.
    pub async fn https_named(authority: &TestAuthority, name: &str, client_certificates: bool) -> TestRegistry {
        TestRegistry::start(Some(authority.acceptor(name, client_certificates))).await
    }

    /// With a certificate for 127.0.0.1 that is over.
    pub async fn https_expired(authority: &TestAuthority) -> TestRegistry {
        TestRegistry::start(Some(authority.expired_acceptor())).await
    }

    /// On one self-signed certificate that says it is an authority, as `openssl req -x509` makes it. Its PEM is returned.
    pub async fn https_self_signed(name: &str) -> (TestRegistry, String) {
        let (acceptor, pem) = authority::self_signed(name);
        (TestRegistry::start(Some(acceptor)).await, pem)
    }

    async fn start(tls: Option<TlsAcceptor>) -> TestRegistry {
        install_crypto();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let state = Arc::new(Mutex::new(State::new(format!("{scheme}://{address}"))));
        let task = tokio::spawn(server::serve(listener, tls, Arc::clone(&state)));
        TestRegistry { address, scheme, state, task }
    }

    /// `127.0.0.1:<port>`.
    pub fn authority(&self) -> String {
        self.address.to_string()
    }

    pub fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    pub fn set_prefix(&self, prefix: &str) {
        self.lock().prefix = prefix.to_owned();
    }

    pub fn set_auth(&self, auth: Auth) {
        self.lock().auth = auth;
    }

    /// How long tokens say that they are good for.
    pub fn set_expiry(&self, seconds: u64) {
        self.lock().expires_in = seconds;
    }

    /// Where the challenge sends clients for a token, instead of this registry's own `/token`.
    pub fn set_realm(&self, realm: &str) {
        self.lock().realm = Some(realm.to_owned());
    }

    /// No token given out so far is good any more.
    pub fn revoke_tokens(&self) {
        self.lock().tokens += 1;
    }

    pub fn fault(&self, method: Option<Method>, path: &str, times: usize, action: Action) {
        self.lock().faults.push(Fault { method, path: path.to_owned(), times, action });
    }

    /// All is well again.
    pub fn clear_faults(&self) {
        self.lock().faults.clear();
    }

    pub fn put_blob(&self, repository: &str, bytes: impl Into<Bytes>) -> Descriptor {
        let bytes = bytes.into();
        let digest = Digest::sha256_of(&bytes);
        let size = bytes.len() as u64;
        self.lock().blobs.insert((repository.to_owned(), digest.to_string()), bytes);
        Descriptor::new("application/octet-stream", digest, size)
    }

    /// Stores a manifest under its digest and, if there is one, a tag.
    pub fn put_manifest(
        &self,
        repository: &str,
        tag: Option<&str>,
        media_type: &str,
        bytes: impl Into<Bytes>,
    ) -> Descriptor {
        let bytes = bytes.into();
        let digest = Digest::sha256_of(&bytes);
        let mut state = self.lock();
        let names = [Some(digest.to_string()), tag.map(str::to_owned)];
        for name in names.into_iter().flatten() {
            state.manifests.insert((repository.to_owned(), name), (media_type.to_owned(), bytes.clone()));
        }
        Descriptor::new(media_type, digest, bytes.len() as u64)
    }

    pub fn seen(&self) -> Vec<Seen> {
        self.lock().seen.clone()
    }

    /// `METHOD path` of every request.
    pub fn lines(&self) -> Vec<String> {
        self.seen().iter().map(|seen| format!("{} {}", seen.method, seen.path)).collect()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        self.task.abort();
    }
}

pub fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}
