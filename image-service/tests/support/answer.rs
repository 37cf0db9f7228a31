//! What a request to the registry gets: a fault of the script, a refusal, a token, or content.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use windlass_image_service::digest::Digest;

use super::body::{Body, cut, drip, full, hold, unsized_body};
use super::server::Handle;
use super::{Action, Auth, Fault, Seen, basic};

pub(super) struct State {
    pub(super) prefix: String,
    pub(super) auth: Auth,
    url: String,
    pub(super) realm: Option<String>,
    pub(super) manifests: HashMap<(String, String), (String, Bytes)>,
    pub(super) blobs: HashMap<(String, String), Bytes>,
    pub(super) faults: Vec<Fault>,
    pub(super) seen: Vec<Seen>,
    /// The number of the token that is good now.
    pub(super) tokens: usize,
    pub(super) expires_in: u64,
}

pub(super) async fn answer(request: Request<Incoming>, state: &Mutex<State>, handle: Handle) -> Response<Body> {
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
        Some(Action::StatusWith(status, name, value)) => return with_header(text_answer(*status, ""), name, value),
        Some(Action::Redirect(target)) => return with_header(text_answer(307, ""), "location", target),
        _ => {}
    }
    if seen.path == "/token" {
        return state.token(&seen);
    }
    if let Some(refusal) = state.refuse(&seen) {
        return refusal;
    }
    state.content(&seen, action, handle)
}

impl State {
    pub(super) fn new(url: String) -> State {
        State {
            prefix: "/v2".to_owned(),
            auth: Auth::Anonymous,
            url,
            realm: None,
            manifests: HashMap::new(),
            blobs: HashMap::new(),
            faults: Vec::new(),
            seen: Vec::new(),
            tokens: 0,
            expires_in: 300,
        }
    }

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
                let realm = self.realm.clone().unwrap_or_else(|| format!("{}/token", self.url));
                let challenge = format!(
                    "Bearer realm=\"{realm}\",service=\"test, registry\",scope=\"repository:{repository}:pull\""
                );
                (format!("Bearer token-{}", self.tokens), challenge)
            }
        };
        if sent == Some(wanted.as_str()) && (self.tokens > 0 || matches!(self.auth, Auth::Basic { .. })) {
            return None;
        }
        let text = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
        Some(with_header(text_answer(401, text), "www-authenticate", &challenge))
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
        text_answer(200, &format!(r#"{{"token":"token-{}","expires_in":{}}}"#, self.tokens, self.expires_in))
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

    fn content(&self, seen: &Seen, action: Option<Action>, handle: Handle) -> Response<Body> {
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
        let (digest, total) = (Digest::sha256_of(&bytes), bytes.len());
        if let Some(Action::Part(range, part)) = &action {
            let builder = Response::builder().status(206);
            let builder = if range.is_empty() { builder } else { builder.header("content-range", range) };
            return builder.body(unsized_body(bytes.slice(part.clone()))).expect("headers of a test are valid");
        }
        let part = seen.header("range").filter(|_| !matches!(action, Some(Action::IgnoreRange)));
        let part = part.and_then(|range| range_of(range, total));
        let bytes = match (&action, &part) {
            (Some(Action::Body(other) | Action::Unsized(other)), _) => other.clone(),
            (_, Some((start, end))) => bytes.slice(*start..*end),
            (_, None) => bytes,
        };
        let mut builder = Response::builder().header("content-type", media_type);
        if !matches!(action, Some(Action::Unsized(_))) {
            builder = builder.header("content-length", bytes.len());
        }
        if let Some((start, end)) = part {
            builder = builder.status(206).header("content-range", format!("bytes {start}-{}/{total}", end - 1));
        }
        if kind == "manifests" && !matches!(action, Some(Action::OmitDigest)) {
            builder = builder.header("docker-content-digest", digest.to_string());
        }
        let first = |length: usize| bytes.slice(..length.min(bytes.len()));
        let replaced = match &action {
            Some(Action::Header(name, value)) => Some((*name, value.clone())),
            _ => None,
        };
        let body = match action {
            _ if seen.method == Method::HEAD => full(Bytes::new()),
            Some(Action::HoldBody(length)) => hold(first(length), || {}),
            Some(Action::CutBody(length)) => cut(first(length)),
            Some(Action::Reset(length)) => {
                handle.reset_at_end();
                cut(first(length))
            }
            Some(Action::Die(length, duration)) => hold(first(length), move || handle.die(duration)),
            Some(Action::Drip(piece, pause)) => drip(bytes, piece, pause),
            Some(Action::Unsized(other)) => unsized_body(other),
            _ => full(bytes),
        };
        let mut response = builder.body(body).expect("headers of a test are valid");
        if let Some((name, value)) = replaced {
            response = with_header(response, name, &value);
        }
        response
    }
}

/// Start and end of `bytes=<start>-[<last>]`, within the content; a range that starts behind it is not understood.
fn range_of(header: &str, total: usize) -> Option<(usize, usize)> {
    let (start, last) = header.strip_prefix("bytes=")?.split_once('-')?;
    let start: usize = start.parse().ok()?;
    let end = if last.is_empty() { total } else { last.parse::<usize>().ok()?.saturating_add(1).min(total) };
    (start < end).then_some((start, end))
}

fn with_header(mut response: Response<Body>, name: &'static str, value: &str) -> Response<Body> {
    response.headers_mut().insert(name, value.parse().expect("a test's value is a header value"));
    response
}

fn text_answer(status: u16, text: &str) -> Response<Body> {
    let status = StatusCode::from_u16(status).expect("a test uses valid statuses");
    let builder = Response::builder().status(status).header("content-type", "application/json");
    builder.body(full(Bytes::from(text.to_owned()))).expect("headers of a test are valid")
}
