//! What one host knows of us during one pull: nothing, a basic header or a token.
//!
//! ```text
//! Nothing ── 401 Basic ──► Basic
//!    └────── 401 Bearer ─► Bearer ── expired, or 401 with another scope ──► Bearer
//! ```
//!
//! The lock is held while a token is fetched, so that requests of one pull that are refused together share one token.

use http::header::WWW_AUTHENTICATE;
use http::{HeaderMap, HeaderValue};
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::credentials::{Secret, basic_header};
use super::token::{TokenError, TokenRequest, check_realm, denial, fetch_token};
use super::{Challenge, parse_challenges};
use crate::registry::transport::Transport;

const NO_CREDENTIALS: &str = "no basic auth credentials: it wants a user name and a password, which imagePullSecrets or \
     registry.configs can give";

/// The authorization of one host for one repository.
pub(crate) struct Authenticator {
    secret: Option<Secret>,
    scope: String,
    state: Mutex<State>,
}

enum State {
    Nothing,
    Basic(HeaderValue),
    Bearer {
        request: TokenRequest,
        header: HeaderValue,
        expires: Option<Instant>,
        /// Whether the registry has taken it.
        proven: bool,
    },
}

impl Authenticator {
    pub(crate) fn new(secret: Option<Secret>, repository: &str) -> Authenticator {
        Authenticator { secret, scope: format!("repository:{repository}:pull"), state: Mutex::new(State::Nothing) }
    }

    /// The header to send now, fetching another token if the last one is over.
    pub(crate) async fn header(&self, transport: &Transport) -> Result<Option<HeaderValue>, TokenError> {
        let mut state = self.state.lock().await;
        match &*state {
            State::Nothing => Ok(None),
            State::Basic(header) => Ok(Some(header.clone())),
            State::Bearer { header, expires, .. } if expires.is_none_or(|end| Instant::now() < end) => {
                Ok(Some(header.clone()))
            }
            State::Bearer { request, .. } => {
                let request = request.clone();
                self.take_token(&mut state, transport, request).await.map(Some)
            }
        }
    }

    /// Answers a 401 that came for a request with the header `sent`. `Ok` means that it is worth trying again.
    pub(crate) async fn challenged(
        &self,
        transport: &Transport,
        plain: bool,
        headers: &HeaderMap,
        sent: Option<&HeaderValue>,
    ) -> Result<(), TokenError> {
        let mut state = self.state.lock().await;
        let current = match &*state {
            State::Nothing => None,
            State::Basic(header) | State::Bearer { header, .. } => Some(header),
        };
        if current != sent {
            // Another request of this pull was challenged first and has the answer.
            return Ok(());
        }
        let challenges = challenges(headers);
        if let Some(challenge) = challenges.iter().find(|challenge| challenge.scheme == "bearer") {
            let request = self.token_request(challenge, &transport.host.authority, plain)?;
            if let State::Bearer { request: last, proven, .. } = &*state {
                // Not every registry says that a token is over; one that it has taken before must be.
                let expired = *proven || challenge.parameter("error") == Some("invalid_token");
                if *last == request && !expired {
                    return Err(TokenError::Denied(denial(challenge)));
                }
            }
            return self.take_token(&mut state, transport, request).await.map(drop);
        }
        if challenges.iter().any(|challenge| challenge.scheme == "basic") {
            let Some(secret @ Secret::Password { .. }) = &self.secret else {
                return Err(TokenError::Denied(NO_CREDENTIALS.to_owned()));
            };
            if matches!(&*state, State::Basic(_)) {
                return Err(TokenError::Denied("the user name or password is wrong".to_owned()));
            }
            *state = State::Basic(basic_header(secret));
            return Ok(());
        }
        Err(TokenError::Denied("401 unauthorized, without a challenge that this client knows".to_owned()))
    }

    /// Notes that the registry took what was `sent`.
    pub(crate) async fn accepted(&self, sent: Option<&HeaderValue>) {
        if let State::Bearer { header, proven, .. } = &mut *self.state.lock().await
            && Some(&*header) == sent
        {
            *proven = true;
        }
    }

    /// A server's message with our secrets taken out, should it echo them.
    pub(crate) fn redact(&self, message: &str, sent: Option<&HeaderValue>) -> String {
        let header = sent.and_then(|header| header.to_str().ok()).and_then(|header| header.split_once(' '));
        let secret = match &self.secret {
            Some(Secret::Password { password, .. }) => Some(password.as_str()),
            Some(Secret::RefreshToken(token)) => Some(token.as_str()),
            None => None,
        };
        let secrets = header.map(|(_, value)| value).into_iter().chain(secret);
        secrets
            .filter(|secret| !secret.is_empty())
            .fold(message.to_owned(), |message, secret| message.replace(secret, "[redacted]"))
    }

    fn token_request(&self, challenge: &Challenge, registry: &str, plain: bool) -> Result<TokenRequest, TokenError> {
        let realm = challenge.parameter("realm").unwrap_or_default();
        let mut scopes: Vec<String> =
            challenge.parameter("scope").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
        scopes.push(self.scope.clone());
        scopes.sort();
        scopes.dedup();
        let service = challenge.parameter("service").map(str::to_owned);
        Ok(TokenRequest { realm: check_realm(realm, registry, plain)?, service, scopes })
    }

    async fn take_token(
        &self,
        state: &mut State,
        transport: &Transport,
        request: TokenRequest,
    ) -> Result<HeaderValue, TokenError> {
        let token = fetch_token(transport, &request, self.secret.as_ref()).await?;
        let header = token.header.clone();
        *state = State::Bearer { request, header: token.header, expires: token.expires, proven: false };
        Ok(header)
    }
}

fn challenges(headers: &HeaderMap) -> Vec<Challenge> {
    let lines = headers.get_all(WWW_AUTHENTICATE).iter().filter_map(|line| line.to_str().ok());
    lines.flat_map(parse_challenges).collect()
}
