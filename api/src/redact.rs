//! `Debug` of the messages that carry credentials, which `build.rs` keeps prost from deriving.
//!
//! Invariant: of a secret, only its presence shows. Whoever is named and where stays readable, for logs.

use std::fmt;

use crate::cri::AuthConfig;

impl fmt::Debug for AuthConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Every field is named here, so that a new one does not compile until someone decides whether it may show.
        let Self { username, password, auth, server_address, identity_token, registry_token } = self;
        f.debug_struct("AuthConfig")
            .field("username", username)
            .field("password", &Secret(password))
            .field("auth", &Secret(auth))
            .field("server_address", server_address)
            .field("identity_token", &Secret(identity_token))
            .field("registry_token", &Secret(registry_token))
            .finish()
    }
}

struct Secret<'a>(&'a str);

impl fmt::Debug for Secret<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "none" } else { "redacted" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::PullImageRequest;

    fn full() -> AuthConfig {
        AuthConfig {
            username: "ada".into(),
            password: "s1-password".into(),
            auth: "s2-auth".into(),
            server_address: "registry.test".into(),
            identity_token: "s3-identity".into(),
            registry_token: "s4-registry".into(),
        }
    }

    #[test]
    fn debug_shows_who_and_where_but_no_secret() {
        assert_eq!(
            format!("{:?}", full()),
            "AuthConfig { username: \"ada\", password: redacted, auth: redacted, server_address: \"registry.test\", \
             identity_token: redacted, registry_token: redacted }"
        );
    }

    #[test]
    fn debug_tells_an_absent_secret_from_a_hidden_one() {
        assert_eq!(
            format!("{:?}", AuthConfig { password: "x".into(), ..AuthConfig::default() }),
            "AuthConfig { username: \"\", password: redacted, auth: none, server_address: \"\", identity_token: none, \
             registry_token: none }"
        );
    }

    #[test]
    fn debug_of_a_pull_request_hides_the_secrets_inside_it() {
        let request = PullImageRequest { image: None, auth: Some(full()), sandbox_config: None };
        assert_eq!(
            format!("{request:?}"),
            format!("PullImageRequest {{ image: None, auth: Some({:?}), sandbox_config: None }}", full())
        );
    }
}
