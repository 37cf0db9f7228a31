//! Fetches bearer tokens: OAuth2 by POST where there is a secret, else or as a fallback by GET.
//!
//! A realm is only used if it is https, or the registry itself is spoken to in plain HTTP. It is never a link-local
//! address, where clouds answer with their own secrets, and this machine only if the registry is on it too.

use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE};
use http::{HeaderValue, Method, StatusCode};
use reqwest::Url;
use serde::Deserialize;
use tokio::time::Instant;

use super::credentials::{Secret, basic_header};
use crate::hosts::may_lead_to;
use crate::registry::transport::{Transport, printable, read_limited, shown_error, shown_url};

const CLIENT_ID: &str = "containerd-client";
const MAX_ANSWER: usize = 1024 * 1024;

/// What a token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TokenRequest {
    pub(crate) realm: Url,
    pub(crate) service: Option<String>,
    /// Sorted, without doubles.
    pub(crate) scopes: Vec<String>,
}

pub(crate) struct Token {
    pub(crate) header: HeaderValue,
    pub(crate) expires: Option<Instant>,
}

/// Why there is no token. The text never holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokenError {
    #[error("{0}")]
    Denied(String),
    #[error("{0}")]
    Transport(String),
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
    #[serde(default)]
    expires_in: Option<i64>,
}

/// Whether a token server may be asked at all by order of the registry host `registry`, `plain` telling that the
/// registry is spoken to without TLS.
pub(crate) fn check_realm(realm: &str, registry: &str, plain: bool) -> Result<Url, TokenError> {
    let refused = |problem: &str| TokenError::Denied(format!("the registry's token server is refused: {problem}"));
    let url = Url::parse(realm).map_err(|_| refused("its realm is not a URL"))?;
    match url.scheme() {
        "https" => {}
        "http" if plain => {}
        _ => return Err(refused("its realm is not https")),
    }
    if url.host_str().is_none_or(str::is_empty) || !url.username().is_empty() || url.password().is_some() {
        return Err(refused("its realm must have a host and no user"));
    }
    if !may_lead_to(registry, url.host_str().unwrap_or_default()) {
        return Err(refused("its realm is an address that only this machine can reach"));
    }
    Ok(url)
}

/// Asks the token server named in `request`.
pub(crate) async fn fetch_token(
    transport: &Transport,
    request: &TokenRequest,
    secret: Option<&Secret>,
) -> Result<Token, TokenError> {
    let Some(secret) = secret else {
        return ask(transport, request, None, Method::GET).await?.map_err(|refusal| refusal.denied(request));
    };
    match ask(transport, request, Some(secret), Method::POST).await? {
        Ok(token) => Ok(token),
        Err(refusal) if refusal.may_want_get(secret) => {
            ask(transport, request, Some(secret), Method::GET).await?.map_err(|refusal| refusal.denied(request))
        }
        Err(refusal) => Err(refusal.denied(request)),
    }
}

struct Refusal {
    status: StatusCode,
    /// Whether it was told who we are.
    knew_us: bool,
}

impl Refusal {
    /// Servers that know only the older protocol answer a POST in one of these ways.
    fn may_want_get(&self, secret: &Secret) -> bool {
        match self.status {
            StatusCode::METHOD_NOT_ALLOWED => matches!(secret, Secret::Password { .. }),
            StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED | StatusCode::BAD_REQUEST => true,
            _ => false,
        }
    }

    fn denied(&self, request: &TokenRequest) -> TokenError {
        let text = format!("the token server {} answered {}", shown_url(&request.realm), self.status);
        if self.status.is_server_error() || self.status == StatusCode::TOO_MANY_REQUESTS {
            TokenError::Transport(text)
        } else if self.knew_us {
            TokenError::Denied(format!("{text}: the credentials are wrong, or not good for this repository"))
        } else {
            TokenError::Denied(format!("{text}: it wants credentials, and there are none for this registry"))
        }
    }
}

/// One request. The outer error is a failure of transport, the inner one a refusal by the server.
async fn ask(
    transport: &Transport,
    request: &TokenRequest,
    secret: Option<&Secret>,
    method: Method,
) -> Result<Result<Token, Refusal>, TokenError> {
    let failed = |text: String| TokenError::Transport(format!("token server {}: {text}", shown_url(&request.realm)));
    let client = transport.client(&request.realm).await.map_err(|error| failed(shown_error(&error)))?;
    let mut headers = transport.host.headers.clone();
    if !transport.is_own(&request.realm) {
        // What lets us into the registry is not for others.
        headers.remove(AUTHORIZATION);
        headers.remove(COOKIE);
    }
    let built = if method == Method::POST {
        let body = form(request, secret);
        client
            .post(request.realm.clone())
            .headers(headers)
            .header(CONTENT_TYPE, "application/x-www-form-urlencoded; charset=utf-8")
            .body(body)
    } else {
        let built = client.get(query(request)).headers(headers);
        match secret.map(basic_header) {
            Some(header) => built.header(AUTHORIZATION, header),
            None => built,
        }
    };
    let response = built.send().await.map_err(|error| failed(transport.explain(&request.realm, &error)))?;
    let status = response.status();
    if !status.is_success() {
        return Ok(Err(Refusal { status, knew_us: secret.is_some() }));
    }
    let body = read_limited(response, MAX_ANSWER).await;
    let body = body.map_err(|unread| failed(unread.shown("its answer is too long")))?;
    // The parser's message could quote the token, so it is not shown.
    let answer: Answer = serde_json::from_slice(&body).map_err(|_| failed("its answer is not JSON".to_owned()))?;
    token_of(answer).map(Ok).map_err(|text| failed(text.to_owned()))
}

fn token_of(answer: Answer) -> Result<Token, &'static str> {
    let is_set = |token: &String| !token.is_empty();
    let token = answer.access_token.filter(is_set).or(answer.token.filter(is_set)).ok_or("its answer has no token")?;
    let mut header =
        HeaderValue::from_str(&format!("Bearer {token}")).map_err(|_| "its token has invalid characters")?;
    header.set_sensitive(true);
    let seconds = answer.expires_in.and_then(|seconds| u64::try_from(seconds).ok()).filter(|seconds| *seconds > 0);
    let expires = seconds.and_then(|seconds| Instant::now().checked_add(Duration::from_secs(seconds)));
    Ok(Token { header, expires })
}

/// The URL of a GET: the realm's own query stays.
fn query(request: &TokenRequest) -> Url {
    let mut url = request.realm.clone();
    {
        let mut pairs = url.query_pairs_mut();
        if let Some(service) = &request.service {
            pairs.append_pair("service", service);
        }
        for scope in &request.scopes {
            pairs.append_pair("scope", scope);
        }
    }
    url
}

/// The body of a POST.
fn form(request: &TokenRequest, secret: Option<&Secret>) -> String {
    let mut url = request.realm.clone();
    url.set_query(None);
    {
        let mut pairs = url.query_pairs_mut();
        pairs.append_pair("scope", &request.scopes.join(" "));
        pairs.append_pair("service", request.service.as_deref().unwrap_or_default());
        pairs.append_pair("client_id", CLIENT_ID);
        match secret {
            Some(Secret::Password { username, password }) => {
                pairs.append_pair("grant_type", "password");
                pairs.append_pair("username", username);
                pairs.append_pair("password", password);
            }
            Some(Secret::RefreshToken(token)) => {
                pairs.append_pair("grant_type", "refresh_token");
                pairs.append_pair("refresh_token", token);
            }
            None => {}
        }
    }
    url.query().unwrap_or_default().to_owned()
}

/// The reason in a challenge, for the message of a denial.
pub(crate) fn denial(challenge: &super::Challenge) -> String {
    let error = challenge.parameter("error").unwrap_or("unauthorized");
    match challenge.parameter("error_description") {
        Some(description) => printable(&format!("{error}: {description}")),
        None => printable(&format!("{error}: authorization failed")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> TokenRequest {
        TokenRequest {
            realm: Url::parse("https://auth.example/token?account=x").unwrap(),
            service: Some("a b".into()),
            scopes: vec!["repository:a:pull".into(), "repository:b:pull".into()],
        }
    }

    #[test]
    fn a_get_keeps_the_query_of_the_realm() {
        assert_eq!(
            query(&request()).as_str(),
            "https://auth.example/token?account=x&service=a+b&scope=repository%3Aa%3Apull&scope=repository%3Ab%3Apull"
        );
    }

    #[test]
    fn a_post_carries_the_secret_in_its_body() {
        let secret = Secret::Password { username: "u&".into(), password: "p=".into() };
        assert_eq!(
            form(&request(), Some(&secret)),
            "scope=repository%3Aa%3Apull+repository%3Ab%3Apull&service=a+b&client_id=containerd-client\
             &grant_type=password&username=u%26&password=p%3D"
        );
        let form = form(&request(), Some(&Secret::RefreshToken("t".into())));
        assert!(form.ends_with("&grant_type=refresh_token&refresh_token=t"), "{form}");
    }

    #[test]
    fn a_realm_must_be_https_unless_the_registry_is_plain() {
        let check = |realm: &str, plain: bool| check_realm(realm, "registry.example", plain).is_ok();
        assert!(check("https://auth.example/token", false));
        assert!(check("http://auth.example/token", true));
        assert!(check("https://10.0.0.1/token", false));
        assert!(!check("http://auth.example/token", false));
        assert!(!check("https://u:p@auth.example/token", false));
        assert!(!check("file:///etc/passwd", true));
        assert!(!check("token", true));
    }

    #[test]
    fn a_realm_is_not_an_address_that_only_this_machine_can_reach() {
        let check = |realm: &str, registry: &str| check_realm(realm, registry, true).is_ok();
        assert!(!check("http://169.254.169.254/latest/meta-data", "localhost:5000"));
        assert!(!check("http://[fe80::1]/token", "registry.example"));
        assert!(!check("http://[::ffff:169.254.169.254]/token", "registry.example"));
        assert!(!check("http://127.0.0.1:10250/token", "registry.example"));
        assert!(check("http://127.0.0.1:5001/token", "localhost:5000"));
    }

    #[test]
    fn an_access_token_goes_before_a_token_and_no_expiry_means_never() {
        let answer = |json: &str| token_of(serde_json::from_str(json).unwrap());
        let token = answer(r#"{"token":"a","access_token":"b","expires_in":0}"#).unwrap();
        assert_eq!((token.header.to_str().unwrap(), token.expires), ("Bearer b", None));
        let token = answer(r#"{"token":"a","access_token":"","expires_in":60}"#).unwrap();
        assert_eq!(token.header.to_str().unwrap(), "Bearer a");
        assert!(token.expires.is_some());
        assert!(answer("{}").is_err());
    }
}
