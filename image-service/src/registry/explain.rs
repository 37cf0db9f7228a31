//! What went wrong on the way to a host, in one line: where, why, and what can be done about it.
//!
//! Decided by the types of errors, never by their text.

use std::error::Error as StdError;
use std::io;
use std::time::Duration;

use rustls::{AlertDescription, CertificateError};

use super::proxy::Proxy;
use super::transport::{causes, shown_error, tls_error};

/// The line for an error of a request, which went by way of `proxy`.
pub(crate) fn explain(error: &reqwest::Error, proxy: Option<&Proxy>, dial_timeout: Duration) -> String {
    let cause = shown_error(error);
    if let Some(tls) = causes(error).find_map(tls_error) {
        return match advice(tls) {
            Some(advice) => format!("TLS failed: {cause}; {advice}"),
            None => format!("TLS failed: {cause}"),
        };
    }
    if let Some(proxy) = proxy.filter(|_| error.is_connect() || error.is_timeout()) {
        let variable = proxy.variable;
        return format!(
            "no connection by way of the proxy {proxy}: {cause}; check {variable} and NO_PROXY in the daemon's environment"
        );
    }
    if error.is_dns() {
        return format!("its name cannot be resolved: {cause}; check the name and this node's DNS");
    }
    match (error.is_connect(), error.is_timeout()) {
        (true, true) => format!(
            "no connection within {}; check the address and the firewalls, or set dial_timeout in hosts.toml",
            shown_duration(dial_timeout)
        ),
        (true, false) if is_refused(error) => format!("{cause}; check the address and that the registry runs"),
        (_, _) => cause,
    }
}

/// The way out of a failed handshake.
fn advice(error: &rustls::Error) -> Option<&'static str> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            Some("name the authority of its certificate as ca in hosts.toml, or add it to this node's")
        }
        rustls::Error::InvalidCertificate(
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. },
        ) => Some("renew the registry's certificate, or set this node's clock"),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => Some("use a name that is in the certificate, or have one made for this name"),
        rustls::Error::InvalidMessage(_) => {
            Some("if it serves plain HTTP, write its address with http:// in hosts.toml")
        }
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::AccessDenied
            | AlertDescription::HandshakeFailure,
        ) => Some("it may want a client certificate, which client in hosts.toml names"),
        _ => None,
    }
}

fn is_refused(error: &reqwest::Error) -> bool {
    causes(error).any(|cause: &(dyn StdError + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::ConnectionRefused)
    })
}

fn shown_duration(duration: Duration) -> String {
    if duration.subsec_millis() == 0 {
        format!("{} s", duration.as_secs())
    } else {
        format!("{} ms", duration.as_millis())
    }
}
