//! An in-process registry for tests: HTTP or HTTPS on loopback, with content, authentication and a fault script.
//!
//! It serves `<prefix>/<repository>/{manifests,blobs}/<reference>` and `/token`, and remembers every request.
#![expect(dead_code, unreachable_pub, reason = "each test binary includes the module and uses a part of it")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use windlass_image_service::digest::Digest;
use windlass_image_service::registry::Descriptor;

type Body = BoxBody<Bytes, std::io::Error>;

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
    Redirect(String),
    /// The normal answer without `Docker-Content-Digest`.
    OmitDigest,
    /// The connection ends after this many bytes of the body.
    CutBody(usize),
    /// Nothing follows these bytes of the body, and the connection stays open.
    HoldBody(usize),
    /// Other content, with the normal headers that do not depend on it.
    Body(Bytes),
    /// The normal answer, but `Range` is not understood.
    IgnoreRange,
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

struct State {
    prefix: String,
    auth: Auth,
    url: String,
    manifests: HashMap<(String, String), (String, Bytes)>,
    blobs: HashMap<(String, String), Bytes>,
    faults: Vec<Fault>,
    seen: Vec<Seen>,
    tokens: usize,
}

impl TestRegistry {
    pub async fn http() -> TestRegistry {
        TestRegistry::start(None).await
    }

    /// With a certificate for 127.0.0.1 of `authority`; `client_certificates` makes one of the same authority a must.
    pub async fn https(authority: &TestAuthority, client_certificates: bool) -> TestRegistry {
        TestRegistry::start(Some(authority.acceptor(client_certificates))).await
    }

    /// On one self-signed certificate that says it is an authority, as `openssl req -x509` makes it. Its PEM is returned.
    pub async fn https_self_signed(name: &str) -> (TestRegistry, String) {
        install_crypto();
        let key = rcgen::KeyPair::generate().expect("keys can be made");
        let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a test uses valid names");
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let certificate = parameters.self_signed(&key).expect("a certificate signs itself");
        let der = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a fresh key is valid");
        let config = rustls::ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![certificate.der().clone()], der).expect("the key fits");
        (TestRegistry::start(Some(TlsAcceptor::from(Arc::new(config)))).await, certificate.pem())
    }

    async fn start(tls: Option<TlsAcceptor>) -> TestRegistry {
        install_crypto();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback has free ports");
        let address = listener.local_addr().expect("a bound socket has an address");
        let scheme = if tls.is_some() { "https" } else { "http" };
        let state = Arc::new(Mutex::new(State {
            prefix: "/v2".to_owned(),
            auth: Auth::Anonymous,
            url: format!("{scheme}://{address}"),
            manifests: HashMap::new(),
            blobs: HashMap::new(),
            faults: Vec::new(),
            seen: Vec::new(),
            tokens: 0,
        }));
        let task = tokio::spawn(accept(listener, tls, Arc::clone(&state)));
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

    pub fn fault(&self, method: Option<Method>, path: &str, times: usize, action: Action) {
        self.lock().faults.push(Fault { method, path: path.to_owned(), times, action });
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

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, state: Arc<Mutex<State>>) {
    let mut connections = tokio::task::JoinSet::new();
    while let Ok((stream, _)) = listener.accept().await {
        let state = Arc::clone(&state);
        let tls = tls.clone();
        connections.spawn(async move {
            match tls {
                None => serve(stream, state).await,
                Some(acceptor) => {
                    // A client that does not trust us ends the handshake; the test looks at its side.
                    if let Ok(stream) = acceptor.accept(stream).await {
                        serve(stream, state).await;
                    }
                }
            }
        });
    }
}

async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, state: Arc<Mutex<State>>) {
    let service = service_fn(move |request| {
        let state = Arc::clone(&state);
        async move { Ok::<_, Infallible>(answer(request, &state).await) }
    });
    // Cut bodies end a connection with an error, which is what the test asked for.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

async fn answer(request: Request<Incoming>, state: &Mutex<State>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
    let seen = Seen {
        method: head.method,
        path: head.uri.path().to_owned(),
        query: head.uri.query().unwrap_or_default().to_owned(),
        headers: head.headers,
        body,
    };
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    state.seen.push(seen.clone());
    let action = state.take_fault(&seen);
    match &action {
        Some(Action::Status(status, text)) => return text_answer(*status, text),
        Some(Action::Redirect(target)) => {
            let mut response = text_answer(307, "");
            response.headers_mut().insert("location", target.parse().expect("a test's target is a header value"));
            return response;
        }
        _ => {}
    }
    if seen.path == "/token" {
        return state.token(&seen);
    }
    if let Some(refusal) = state.refuse(&seen) {
        return refusal;
    }
    state.content(&seen, action)
}

impl State {
    fn take_fault(&mut self, seen: &Seen) -> Option<Action> {
        let fault = self.faults.iter_mut().find(|fault| {
            fault.times > 0
                && fault.method.as_ref().is_none_or(|method| *method == seen.method)
                && seen.path.contains(&fault.path)
        })?;
        fault.times -= 1;
        Some(fault.action.clone())
    }

    fn refuse(&self, seen: &Seen) -> Option<Response<Body>> {
        let sent = seen.header("authorization");
        let (wanted, challenge) = match &self.auth {
            Auth::Anonymous => return None,
            Auth::Basic { username, password } => (basic(username, password), "Basic realm=\"test\"".to_owned()),
            Auth::Bearer { .. } => {
                let (repository, ..) = self.split(&seen.path)?;
                let challenge = format!(
                    "Bearer realm=\"{}/token\",service=\"test, registry\",scope=\"repository:{repository}:pull\"",
                    self.url
                );
                (format!("Bearer token-{}", self.tokens), challenge)
            }
        };
        if sent == Some(wanted.as_str()) && (self.tokens > 0 || matches!(self.auth, Auth::Basic { .. })) {
            return None;
        }
        let text = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        let mut response = text_answer(401, text);
        let challenge = challenge.parse().expect("a challenge is a header value");
        response.headers_mut().insert("www-authenticate", challenge);
        Some(response)
    }

    fn token(&mut self, seen: &Seen) -> Response<Body> {
        let Auth::Bearer { user, post } = &self.auth else {
            return text_answer(404, "");
        };
        if seen.method == Method::POST && !post {
            return text_answer(404, "");
        }
        let form = String::from_utf8_lossy(&seen.body).into_owned();
        let known = match user {
            None => true,
            Some((name, password)) if seen.method == Method::POST => {
                form.contains(&format!("username={name}&password={password}"))
            }
            Some((name, password)) => seen.header("authorization") == Some(basic(name, password).as_str()),
        };
        if !known {
            return text_answer(401, "");
        }
        self.tokens += 1;
        text_answer(200, &format!(r#"{{"token":"token-{}","expires_in":300}}"#, self.tokens))
    }

    /// Repository, kind and name of a path.
    fn split(&self, path: &str) -> Option<(String, &'static str, String)> {
        let rest = path.strip_prefix(&self.prefix)?.strip_prefix('/')?;
        for kind in ["manifests", "blobs"] {
            if let Some((repository, name)) = rest.split_once(&format!("/{kind}/")) {
                return Some((repository.to_owned(), kind, name.to_owned()));
            }
        }
        None
    }

    fn content(&self, seen: &Seen, action: Option<Action>) -> Response<Body> {
        let missing = || text_answer(404, r#"{"errors":[{"code":"NAME_UNKNOWN","message":"unknown"}]}"#);
        let Some((repository, kind, name)) = self.split(&seen.path) else {
            return missing();
        };
        let found = match kind {
            "manifests" => self.manifests.get(&(repository, name)).cloned(),
            _ => {
                let bytes = self.blobs.get(&(repository, name)).cloned();
                bytes.map(|bytes| ("application/octet-stream".to_owned(), bytes))
            }
        };
        let Some((media_type, bytes)) = found else {
            return missing();
        };
        let digest = Digest::sha256_of(&bytes);
        let total = bytes.len();
        let ignores_range = matches!(action, Some(Action::IgnoreRange));
        let start =
            seen.header("range").and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
        let start: usize = start.filter(|_| !ignores_range).unwrap_or(0);
        let bytes = if let Some(Action::Body(other)) = &action { other.clone() } else { bytes.slice(start..) };
        let mut builder = Response::builder().header("content-type", media_type).header("content-length", bytes.len());
        if start > 0 {
            builder = builder.status(206).header("content-range", format!("bytes {start}-{}/{total}", total - 1));
        }
        if kind == "manifests" && !matches!(action, Some(Action::OmitDigest)) {
            builder = builder.header("docker-content-digest", digest.to_string());
        }
        let body = match action {
            _ if seen.method == Method::HEAD => full(Bytes::new()),
            Some(Action::HoldBody(length)) => hold(bytes.slice(..length.min(bytes.len()))),
            Some(Action::CutBody(length)) => cut(bytes.slice(..length.min(bytes.len()))),
            _ => full(bytes),
        };
        builder.body(body).expect("headers of a test are valid")
    }
}

fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed()
}

/// A body that never goes on after its bytes.
fn hold(bytes: Bytes) -> Body {
    let frames = stream::unfold(Some(bytes), |rest| async move {
        match rest {
            Some(bytes) => Some((Ok(Frame::data(bytes)), None)),
            None => std::future::pending().await,
        }
    });
    BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(Box::pin(frames)))))
}

/// A body that breaks off after its bytes, which are sent first.
fn cut(bytes: Bytes) -> Body {
    let frames = stream::unfold(Some(bytes), |rest| async move {
        match rest {
            Some(bytes) if !bytes.is_empty() => Some((Ok(Frame::data(bytes)), Some(Bytes::new()))),
            Some(_) => {
                // The server writes what it has when a body has nothing more for the moment.
                tokio::task::yield_now().await;
                Some((Err(std::io::Error::other("cut by the test")), None))
            }
            None => None,
        }
    });
    BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(Box::pin(frames)))))
}

/// A boxed body has to be `Sync`, and a stream made of a future is not.
struct SyncStream(Mutex<stream::BoxStream<'static, Result<Frame<Bytes>, std::io::Error>>>);

impl stream::Stream for SyncStream {
    type Item = Result<Frame<Bytes>, std::io::Error>;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Self::Item>> {
        self.get_mut().0.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut().poll_next(context)
    }
}

fn text_answer(status: u16, text: &str) -> Response<Body> {
    let status = StatusCode::from_u16(status).expect("a test uses valid statuses");
    let builder = Response::builder().status(status).header("content-type", "application/json");
    builder.body(full(Bytes::from(text.to_owned()))).expect("headers of a test are valid")
}

pub fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

/// Installs the crypto provider, as main does in the daemon.
pub fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        rustls::crypto::aws_lc_rs::default_provider().install_default().expect("nothing else installs a provider");
    });
}

/// A certificate authority, and certificates for 127.0.0.1 and for clients.
pub struct TestAuthority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub pem: String,
    der: rustls::pki_types::CertificateDer<'static>,
}

impl TestAuthority {
    pub fn new() -> TestAuthority {
        install_crypto();
        let key = rcgen::KeyPair::generate().expect("keys can be made");
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("no names are valid names");
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        let certificate = parameters.self_signed(&key).expect("an authority signs itself");
        TestAuthority {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: rcgen::Issuer::new(parameters, key),
        }
    }

    /// A certificate and its key for a name, both PEM.
    pub fn issue(&self, name: &str) -> (String, String) {
        let (certificate, key) = self.sign(name);
        (certificate.pem(), key.serialize_pem())
    }

    /// Writes `ca.pem`, `client.pem` and `client.key` into a directory.
    pub fn write_to(&self, directory: &Path) {
        let (certificate, key) = self.issue("client");
        for (name, text) in [("ca.pem", &self.pem), ("client.pem", &certificate), ("client.key", &key)] {
            std::fs::write(directory.join(name), text).expect("a test's directory is writable");
        }
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().expect("keys can be made");
        let parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a test uses valid names");
        (parameters.signed_by(&key, &self.issuer).expect("an authority signs"), key)
    }

    fn acceptor(&self, client_certificates: bool) -> TlsAcceptor {
        let (certificate, key) = self.sign("127.0.0.1");
        let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a fresh key is valid");
        let builder = rustls::ServerConfig::builder();
        let builder = if client_certificates {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(self.der.clone()).expect("an authority is a root");
            let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).build();
            builder.with_client_cert_verifier(verifier.expect("one root is enough"))
        } else {
            builder.with_no_client_auth()
        };
        let chain = vec![certificate.der().clone()];
        TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).expect("the key fits the certificate")))
    }
}

/// A root of registry configurations that is removed in the end.
pub struct TestHosts {
    directory: tempfile::TempDir,
}

impl TestHosts {
    pub fn new() -> TestHosts {
        TestHosts { directory: tempfile::tempdir().expect("temporary directories can be made") }
    }

    pub fn root(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// Makes the directory of a registry.
    pub fn directory(&self, registry: &str) -> PathBuf {
        let path = self.directory.path().join(registry);
        std::fs::create_dir_all(&path).expect("a test's directory is writable");
        path
    }

    /// Writes the `hosts.toml` of a registry.
    pub fn write(&self, registry: &str, text: &str) {
        let path = self.directory(registry).join("hosts.toml");
        std::fs::write(path, text).expect("a test's directory is writable");
    }
}
