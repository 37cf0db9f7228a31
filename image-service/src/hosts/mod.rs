//! Which hosts serve a registry, in which order, and how each is spoken to.
//!
//! ```text
//! registry name ──► directory.rs: the certs.d directory ──► file.rs: hosts.toml ──► [mirror, mirror, …, upstream]
//!                                                     └──► *.crt, *.cert, *.key ──► [upstream]
//!           or, where the daemon's own file says so, mirrors.rs ──► [endpoint, …, upstream]
//! ```
//!
//! The list is never empty: the upstream is always last. Nothing here opens a connection or reads a certificate.

mod directory;
mod duration;
mod file;
mod mirrors;

use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use http::HeaderMap;

pub use directory::{LookupError, lookup};
pub use file::{FileError, parse_hosts_file};
pub use mirrors::Mirrors;

/// One place that may serve a registry's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Host {
    pub scheme: Scheme,
    /// Host name or address, with the port if one is written.
    pub authority: String,
    /// What stands before `/<repository>/…`, without a slash at the end; usually `/v2`.
    pub path: String,
    pub capabilities: Capabilities,
    pub tls: Tls,
    pub headers: HeaderMap,
    pub dial_timeout: Option<Duration>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    Http,
    Https,
}

/// What a host may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    pub pull: bool,
    pub resolve: bool,
    pub push: bool,
    pub referrers: bool,
}

/// TLS settings as written; the files are read when a connection is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tls {
    /// PEM files with certificate authorities, in addition to the system's.
    pub ca: Vec<PathBuf>,
    pub client: Vec<ClientCertificate>,
    pub skip_verify: Option<bool>,
}

/// A client certificate; without a key file the key is in the certificate's file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    pub certificate: PathBuf,
    pub key: Option<PathBuf>,
}

impl Capabilities {
    pub const ALL: Capabilities = Capabilities { pull: true, resolve: true, push: true, referrers: true };
}

impl Tls {
    pub fn is_configured(&self) -> bool {
        !self.ca.is_empty() || !self.client.is_empty() || self.skip_verify.is_some()
    }
}

impl Scheme {
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

impl Host {
    /// The host that a registry's name itself stands for.
    pub fn upstream(registry: &str) -> Host {
        let mut host = Host {
            scheme: Scheme::Https,
            authority: registry.to_owned(),
            path: "/v2".to_owned(),
            capabilities: Capabilities::ALL,
            tls: Tls::default(),
            headers: HeaderMap::new(),
            dial_timeout: None,
        };
        if registry == "docker.io" {
            host.authority = "registry-1.docker.io".to_owned();
        } else if is_loopback(registry) {
            match split_port(registry).1 {
                None | Some("443") => {}
                Some(_) => host.scheme = Scheme::Http,
            }
            if host.port() != 80 {
                host.tls.skip_verify = Some(true);
            }
        }
        host
    }

    /// The port as written, or the scheme's own.
    pub fn port(&self) -> u16 {
        let default = match self.scheme {
            Scheme::Http => 80,
            Scheme::Https => 443,
        };
        split_port(&self.authority).1.and_then(|port| port.parse().ok()).unwrap_or(default)
    }

    /// A plain-HTTP host with TLS settings may be a TLS host whose address was written carelessly: try TLS first.
    pub fn tries_tls_first(&self) -> bool {
        self.scheme == Scheme::Http && self.tls.is_configured() && self.port() != 80
    }

    /// Whether requests must say which registry they mean, because the host is not that registry.
    pub fn needs_namespace(&self, registry: &str) -> bool {
        self.authority != registry && !(registry == "docker.io" && self.authority == "registry-1.docker.io")
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = if self.path == "/v2" { "" } else { &self.path };
        write!(f, "{}://{}{path}", self.scheme.as_str(), self.authority)
    }
}

/// Splits `host:port`, `[v6]:port`, `host` and `[v6]`.
pub(crate) fn split_port(authority: &str) -> (&str, Option<&str>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()) => (host, Some(port)),
        _ => (authority, None),
    }
}

/// `localhost`, 127.0.0.0/8 and `::1`, with or without a port.
pub(crate) fn is_loopback(authority: &str) -> bool {
    let host = split_port(authority).0;
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Whether a host may send us to another one: never to a link-local address, where clouds answer with their own secrets,
/// and to this machine only if the host is on it too.
pub(crate) fn may_lead_to(from: &str, to: &str) -> bool {
    let address =
        to.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>().map(|address| address.to_canonical());
    match address {
        Ok(IpAddr::V4(address)) if address.is_link_local() => false,
        Ok(IpAddr::V6(address)) if address.is_unicast_link_local() => false,
        Ok(address) if address.is_loopback() || address.is_unspecified() => is_loopback(from),
        _ => !is_loopback(to) || is_loopback(from),
    }
}

#[cfg(test)]
mod tests;
