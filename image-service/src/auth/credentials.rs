//! Credentials as the kubelet or the configuration gives them, and the one secret that is made of them.
//!
//! Order within one set: user name and password, then identity token, then `auth`.
//! A `registry_token` is accepted and not used, as CRI runtimes do.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use http::HeaderValue;

/// One set of credentials. `Debug` tells which fields are set and no more.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Credentials {
    pub username: String,
    pub password: String,
    /// An OAuth2 refresh token.
    pub identity_token: String,
    /// A bearer token; not used.
    pub registry_token: String,
    /// base64 of `user:password`.
    pub auth: String,
    /// The host these are for; empty means every host that is configured for the registry of the image.
    pub server_address: String,
}

/// A set of credentials that cannot be read. Never quotes the value.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the credentials for {host} have an invalid auth field: it must be base64 of user:password")]
pub struct CredentialsError {
    pub host: String,
}

/// The secret in the form a registry wants it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    Password { username: String, password: String },
    RefreshToken(String),
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = |value: &str| if value.is_empty() { "unset" } else { "set" };
        f.debug_struct("Credentials")
            .field("username", &set(&self.username))
            .field("password", &set(&self.password))
            .field("identity_token", &set(&self.identity_token))
            .field("registry_token", &set(&self.registry_token))
            .field("auth", &set(&self.auth))
            .field("server_address", &self.host())
            .finish()
    }
}

impl Credentials {
    /// The host of `server_address`, with Docker Hub's several names made one; empty if there is none.
    pub fn host(&self) -> String {
        let address = self.server_address.trim();
        let address = address.split_once("://").map_or(address, |(_, rest)| rest);
        let host = address.split(['/', '?', '#']).next().unwrap_or_default();
        let host = host.rsplit_once('@').map_or(host, |(_, host)| host);
        canonical_host(host)
    }

    /// Whether they may be given to `host`.
    pub(crate) fn are_for(&self, host: &str) -> bool {
        self.server_address.is_empty() || self.host() == canonical_host(host)
    }

    /// The one secret to use with `host`, or none if all fields are empty.
    pub(crate) fn secret(&self, host: &str) -> Result<Option<Secret>, CredentialsError> {
        if !self.username.is_empty() {
            return Ok(Some(Secret::Password { username: self.username.clone(), password: self.password.clone() }));
        }
        if !self.identity_token.is_empty() {
            return Ok(Some(Secret::RefreshToken(self.identity_token.clone())));
        }
        if self.auth.is_empty() {
            return Ok(None);
        }
        let invalid = || CredentialsError { host: host.to_owned() };
        let decoded = STANDARD.decode(self.auth.trim()).map_err(|_| invalid())?;
        let decoded = String::from_utf8(decoded).map_err(|_| invalid())?;
        let (username, password) = decoded.split_once(':').ok_or_else(invalid)?;
        // Some tools pad the decoded text with NUL bytes.
        let password = password.trim_end_matches('\0');
        Ok(Some(Secret::Password { username: username.to_owned(), password: password.to_owned() }))
    }
}

/// The `Authorization` value of the basic scheme. A refresh token goes without a user name.
pub(crate) fn basic_header(secret: &Secret) -> HeaderValue {
    let text = match secret {
        Secret::Password { username, password } => format!("{username}:{password}"),
        Secret::RefreshToken(token) => format!(":{token}"),
    };
    let mut header =
        HeaderValue::from_str(&format!("Basic {}", STANDARD.encode(text))).expect("base64 is visible ASCII");
    header.set_sensitive(true);
    header
}

/// Docker Hub is `docker.io` in image names, `registry-1.docker.io` on the wire and `index.docker.io` in old logins.
/// Names of hosts are the same in any case.
pub(crate) fn canonical_host(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    match host.as_str() {
        "registry-1.docker.io" | "index.docker.io" => "docker.io".to_owned(),
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn password(username: &str, password: &str) -> Option<Secret> {
        Some(Secret::Password { username: username.into(), password: password.into() })
    }

    #[test]
    fn a_password_goes_before_an_identity_token_and_that_before_auth() {
        let mut credentials = Credentials {
            username: "u".into(),
            password: "p".into(),
            identity_token: "t".into(),
            auth: STANDARD.encode("a:b"),
            ..Credentials::default()
        };
        assert_eq!(credentials.secret("h"), Ok(password("u", "p")));
        credentials.username.clear();
        assert_eq!(credentials.secret("h"), Ok(Some(Secret::RefreshToken("t".into()))));
        credentials.identity_token.clear();
        assert_eq!(credentials.secret("h"), Ok(password("a", "b")));
        credentials.auth.clear();
        assert_eq!(credentials.secret("h"), Ok(None));
    }

    #[test]
    fn auth_may_be_padded_with_nuls_and_its_password_may_hold_colons() {
        let auth = |text: &str| Credentials { auth: STANDARD.encode(text), ..Credentials::default() };
        assert_eq!(auth("a:b:c\0\0").secret("h"), Ok(password("a", "b:c")));
        assert_eq!(auth("no-colon").secret("h"), Err(CredentialsError { host: "h".into() }));
    }

    #[test]
    fn credentials_with_an_address_are_for_that_host_only() {
        let at = |address: &str| Credentials { server_address: address.into(), ..Credentials::default() };
        assert!(at("").are_for("any.example"));
        assert!(at("https://index.docker.io/v1/").are_for("registry-1.docker.io"));
        assert!(at("docker.io").are_for("registry-1.docker.io"));
        assert!(at("https://quay.io").are_for("quay.io"));
        assert!(at("https://user:x@Quay.IO/v2/?y#z").are_for("quay.io"));
        assert!(at("Registry.Example:5000/team").are_for("registry.example:5000"));
        assert!(at("index.docker.io").are_for("docker.io"));
        for other in ["docker.io.evil.example", "evildocker.io", "docker.io@evil.example", "docker.io:443", "[::1]"] {
            assert!(!at("docker.io").are_for(other), "{other}");
        }
        assert!(!at("quay.io").are_for("mirror.example:5000"));
        assert!(!at("quay.io:5000").are_for("quay.io"));
    }

    #[test]
    fn debug_shows_no_secret() {
        let credentials = Credentials {
            username: "canary-u".into(),
            password: "canary-p".into(),
            identity_token: "canary-i".into(),
            registry_token: "canary-r".into(),
            auth: "canary-a".into(),
            server_address: "https://canary-user:canary-x@quay.io/?canary".into(),
        };
        assert!(!format!("{credentials:?}").contains("canary"), "{credentials:?}");
    }
}
