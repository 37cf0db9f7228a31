//! Requests to one host for one repository: namespace, headers, authorization, redirects and retries.
//!
//! ```text
//! send ── once ──► 2xx: the answer
//!   ▲        ├──► 401: answer the challenge, try again
//!   └────────┼──► overloaded, restarting, lost: wait as patience.rs says, try again
//!            └──► else: an Outcome, and the caller goes to the next host
//! ```
//!
//! Authorization and the configured headers go to the origin of the host and nowhere else.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::SystemTime;

use http::header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, LOCATION, RANGE};
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use reqwest::{Response, Url};

use super::clients::Clients;
use super::error::Outcome;
use super::patience::{Patience, retry_after};
use super::transport::{Transport, is_not_tls, is_passing, printable, read_limited, shown_error, shown_url};
use crate::auth::{Authenticator, Secret, TokenError};
use crate::hosts::{Host, Scheme, may_lead_to};

/// How often one request may be challenged.
const MAX_CHALLENGES: usize = 4;
const MAX_REDIRECTS: usize = 10;
const MAX_MESSAGE: usize = 8 * 1024;

/// One host as it serves one repository during one pull.
pub(crate) struct Endpoint {
    transport: Transport,
    authenticator: Authenticator,
    /// Path behind the host's own, for example `library/busybox`.
    repository: String,
    /// The `ns` parameter, for hosts that are not the registry itself.
    namespace: Option<String>,
    /// The scheme that worked, where two are possible.
    scheme: AtomicU8,
    down: AtomicBool,
    /// Whether it has served this pull.
    known: AtomicBool,
    /// Set once it sent content that is not what was asked for.
    distrusted: AtomicBool,
}

/// What to ask a host for.
#[derive(Clone)]
pub(crate) struct Request {
    pub(crate) method: Method,
    /// Path below the repository, for example `manifests/latest`.
    pub(crate) path: String,
    pub(crate) accept: HeaderValue,
    /// The bytes wanted, if not all.
    pub(crate) range: Option<Range>,
}

/// A part of a blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Range {
    pub(crate) first: u64,
    /// None is the end.
    pub(crate) last: Option<u64>,
}

/// A response, and whether it came from the host's own origin.
struct Answer {
    response: Response,
    same_origin: bool,
}

enum Failure {
    /// The connection could not be made, or broke. The flag tells that a second try may mend it at once.
    Lost(String, bool),
    Final(Outcome),
}

const UNDECIDED: u8 = 0;
const TLS: u8 = 1;
const PLAIN: u8 = 2;

impl Endpoint {
    pub(crate) fn new(
        mut host: Host,
        clients: Arc<Clients>,
        registry: &str,
        repository: &str,
        headers: &HeaderMap,
        secret: Option<Secret>,
    ) -> Endpoint {
        let mut headers = headers.clone();
        for name in host.headers.keys() {
            headers.remove(name);
        }
        headers.extend(std::mem::take(&mut host.headers));
        host.headers = headers;
        let scheme = match host.scheme {
            Scheme::Https => TLS,
            Scheme::Http if host.tries_tls_first() => UNDECIDED,
            Scheme::Http => PLAIN,
        };
        Endpoint {
            namespace: host.needs_namespace(registry).then(|| registry.to_owned()),
            transport: Transport::new(host, clients),
            authenticator: Authenticator::new(secret, repository),
            repository: repository.to_owned(),
            scheme: AtomicU8::new(scheme),
            down: AtomicBool::new(false),
            known: AtomicBool::new(false),
            distrusted: AtomicBool::new(false),
        }
    }

    pub(crate) fn host(&self) -> &Host {
        &self.transport.host
    }

    /// Whether the host could not be reached earlier in this pull.
    pub(crate) fn is_down(&self) -> bool {
        self.down.load(Ordering::Relaxed)
    }

    /// Whether the host may be asked for content: it sent no wrong content earlier in this pull.
    pub(crate) fn is_trusted(&self) -> bool {
        !self.distrusted.load(Ordering::Relaxed)
    }

    pub(crate) fn set_trust(&self, is_trusted: bool) {
        self.distrusted.store(!is_trusted, Ordering::Relaxed);
    }

    /// Sends a request until it is answered with a success or there is no point in trying again.
    /// On the last host there is more patience, because nobody else can be asked.
    pub(crate) async fn send(&self, request: &Request, is_last: bool) -> Result<Response, Outcome> {
        let mut patience = Patience::new(is_last, self.known.load(Ordering::Relaxed));
        let mut challenges = 0;
        loop {
            let header = self.authenticator.header(&self.transport).await.map_err(denied)?;
            let answer = match self.once(request, header.as_ref()).await {
                Ok(answer) => answer,
                Err(Failure::Final(outcome)) => return Err(self.lost(outcome)),
                Err(Failure::Lost(text, is_passing)) => match patience.after_loss(is_passing) {
                    Some(wait) => {
                        tracing::debug!(host = %self.host(), error = text, ?wait, "host is lost, trying again");
                        tokio::time::sleep(wait).await;
                        continue;
                    }
                    None => return Err(self.lost(Outcome::Transport(text))),
                },
            };
            let status = answer.response.status();
            if status.is_success() {
                self.known.store(true, Ordering::Relaxed);
                self.authenticator.accepted(header.as_ref()).await;
                return Ok(answer.response);
            }
            let headers = answer.response.headers().clone();
            let outcome = self.refusal(answer.response, header.as_ref()).await;
            if status == StatusCode::UNAUTHORIZED && answer.same_origin && challenges < MAX_CHALLENGES {
                challenges += 1;
                let plain = self.scheme.load(Ordering::Relaxed) == PLAIN;
                let challenged = self.authenticator.challenged(&self.transport, plain, &headers, header.as_ref());
                challenged.await.map_err(|error| more_telling(outcome, error))?;
                continue;
            }
            match patience.after_status(status, &headers) {
                Some(wait) => {
                    tracing::debug!(host = %self.host(), %outcome, ?wait, "host is not ready, trying again");
                    tokio::time::sleep(wait).await;
                }
                None => return Err(outcome),
            }
        }
    }

    /// Remembers a host that cannot be reached, so that the rest of the pull asks the others first.
    fn lost(&self, outcome: Outcome) -> Outcome {
        if matches!(outcome, Outcome::Transport(_)) {
            self.down.store(true, Ordering::Relaxed);
        }
        outcome
    }

    /// One request in the scheme that works, found out with the first.
    async fn once(&self, request: &Request, header: Option<&HeaderValue>) -> Result<Answer, Failure> {
        match self.scheme.load(Ordering::Relaxed) {
            TLS => return self.follow(request, header, Scheme::Https).await.map_err(|(failure, _)| failure),
            PLAIN => return self.follow(request, header, Scheme::Http).await.map_err(|(failure, _)| failure),
            _ => {}
        }
        match self.follow(request, header, Scheme::Https).await {
            Ok(answer) => {
                self.scheme.store(TLS, Ordering::Relaxed);
                Ok(answer)
            }
            Err((_, true)) => {
                tracing::debug!(host = %self.transport.host, "host does not speak TLS, going on in plain HTTP");
                self.scheme.store(PLAIN, Ordering::Relaxed);
                self.follow(request, header, Scheme::Http).await.map_err(|(failure, _)| failure)
            }
            Err((failure, false)) => Err(failure),
        }
    }

    /// Sends a request and follows redirects. The flag of an error tells that the host does not speak TLS.
    async fn follow(
        &self,
        request: &Request,
        header: Option<&HeaderValue>,
        scheme: Scheme,
    ) -> Result<Answer, (Failure, bool)> {
        let start = self.url(&request.path, scheme).map_err(|failure| (failure, false))?;
        let mut url = start.clone();
        let mut same_origin = true;
        for _ in 0..=MAX_REDIRECTS {
            // Who was sent away and comes back was sent by somebody else.
            same_origin &= url.origin() == start.origin();
            let client = self
                .transport
                .client(&url)
                .await
                .map_err(|error| (Failure::Final(Outcome::Transport(shown_error(&error))), false))?;
            let mut headers = if same_origin { self.host().headers.clone() } else { HeaderMap::new() };
            headers.insert(ACCEPT, request.accept.clone());
            // Digests are of the content as stored, so nothing on the way may be packed once more.
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
            if let Some(range) = request.range {
                headers.insert(RANGE, range.to_header());
            }
            if let (true, Some(header)) = (same_origin, header) {
                headers.insert(AUTHORIZATION, header.clone());
            }
            let sent = client.request(request.method.clone(), url.clone()).headers(headers).send().await;
            let lost = |error| {
                let text = self.transport.explain(&url, &error);
                // Told with the host that was asked: where a redirect has led to is another one.
                let text = if same_origin { text } else { format!("redirected to {}: {text}", shown_url(&url)) };
                (Failure::Lost(text, is_passing(&error)), same_origin && is_not_tls(&error))
            };
            let response = sent.map_err(lost)?;
            if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED
                && let Some(proxy) = self.transport.proxy_for(&url)
            {
                let text = format!(
                    "the proxy {proxy} wants credentials; write them into {} as http://user:password@host:port",
                    proxy.variable
                );
                return Err((Failure::Final(Outcome::Transport(text)), false));
            }
            match redirect(&url, &response) {
                None => return Ok(Answer { response, same_origin }),
                Some(Ok(next)) => url = next,
                Some(Err(outcome)) => return Err((Failure::Final(outcome), false)),
            }
        }
        let text = format!("more than {MAX_REDIRECTS} redirects");
        Err((Failure::Final(Outcome::Unacceptable(text)), false))
    }

    fn url(&self, path: &str, scheme: Scheme) -> Result<Url, Failure> {
        let Host { authority, path: prefix, .. } = &self.transport.host;
        let text = format!("{}://{authority}{prefix}/{}/{path}", scheme.as_str(), self.repository);
        let mut url = Url::parse(&text)
            .map_err(|error| Failure::Final(Outcome::Unacceptable(format!("its address is invalid: {error}"))))?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// A message without what must stay secret: our credentials, and configured headers, which may hold keys.
    fn redact(&self, message: &str, header: Option<&HeaderValue>) -> String {
        let values =
            self.host().headers.values().filter_map(|value| value.to_str().ok()).filter(|value| value.len() > 3);
        let message = self.authenticator.redact(message, header);
        values.fold(message, |message, value| message.replace(value, "[redacted]"))
    }

    /// What a response that is no success means, with the message that came with it.
    async fn refusal(&self, response: Response, header: Option<&HeaderValue>) -> Outcome {
        let status = response.status();
        let wait = retry_after(response.headers(), SystemTime::now());
        // The message is an extra: a body that is too long or breaks off only leaves it out.
        let body = read_limited(response, MAX_MESSAGE).await.unwrap_or_default();
        let message = printable(&self.redact(&server_message(&body), header));
        match status {
            StatusCode::NOT_FOUND => Outcome::NotFound,
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let message = if message.is_empty() { status.to_string().to_lowercase() } else { message };
                Outcome::Denied { status: status.as_u16(), message }
            }
            _ => {
                let again = wait.map(|wait| format!("it asks to try again in {} s", wait.as_secs()));
                let told: Vec<String> = [message].into_iter().filter(|text| !text.is_empty()).chain(again).collect();
                Outcome::Status { status: status.as_u16(), message: told.join(", ") }
            }
        }
    }
}

impl Range {
    fn to_header(self) -> HeaderValue {
        let last = self.last.map(|last| last.to_string()).unwrap_or_default();
        HeaderValue::from_str(&format!("bytes={}-{last}", self.first)).expect("digits are valid in a header")
    }
}

/// Where a response sends us, if it is a redirect.
fn redirect(url: &Url, response: &Response) -> Option<Result<Url, Outcome>> {
    match response.status() {
        StatusCode::MOVED_PERMANENTLY
        | StatusCode::FOUND
        | StatusCode::SEE_OTHER
        | StatusCode::TEMPORARY_REDIRECT
        | StatusCode::PERMANENT_REDIRECT => {}
        _ => return None,
    }
    let refused = |text: &str| Some(Err(Outcome::Unacceptable(text.to_owned())));
    let target = response.headers().get(LOCATION).and_then(|target| target.to_str().ok());
    let Some(Ok(next)) = target.map(|target| url.join(target)) else {
        return refused("redirect without a usable location");
    };
    match (url.scheme(), next.scheme()) {
        _ if !may_lead_to(url.host_str().unwrap_or_default(), next.host_str().unwrap_or_default()) => {
            refused("redirect to an address that only this machine can reach is refused")
        }
        (_, "https") | ("http", "http") => Some(Ok(next)),
        ("https", "http") => refused("redirect from https to plain http is refused"),
        _ => refused("redirect to something that is not http"),
    }
}

/// The text of a registry's error answer, or of whatever else it sent.
fn server_message(body: &[u8]) -> String {
    #[derive(serde::Deserialize)]
    struct Errors {
        errors: Vec<Entry>,
    }
    #[derive(serde::Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    match serde_json::from_slice::<Errors>(body) {
        Ok(answer) => {
            let lines = answer.errors.iter().map(|entry| match (entry.code.as_str(), entry.message.as_str()) {
                ("", text) | (text, "") => text.to_owned(),
                (code, message) => format!("{}: {message}", code.to_lowercase()),
            });
            lines.collect::<Vec<_>>().join(", ")
        }
        // A page for people says nothing in one line.
        Err(_) if body.trim_ascii_start().starts_with(b"<") => String::new(),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    }
}

fn denied(error: TokenError) -> Outcome {
    match error {
        TokenError::Denied(message) => Outcome::Denied { status: 401, message },
        TokenError::Transport(message) => Outcome::Transport(message),
    }
}

/// A challenge that cannot be answered usually tells more than the body of the response.
fn more_telling(outcome: Outcome, error: TokenError) -> Outcome {
    match (outcome, denied(error)) {
        (_, other @ Outcome::Transport(_)) => other,
        (Outcome::Denied { status, message: body }, Outcome::Denied { message, .. })
            if !body.is_empty() && !body.starts_with("401") && !message.contains(&body) =>
        {
            Outcome::Denied { status, message: format!("{message} ({body})") }
        }
        (_, other) => other,
    }
}
