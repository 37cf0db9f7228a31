//! HTTP connections to registries, shared by all pulls: one client for each host and set of TLS files.
//!
//! Certificates are read when a pull first needs a host; if their content changed, the client is replaced.
//! Redirects are never followed here, as whoever follows them must decide what goes along. Proxies are those of the
//! environment when the process started.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::Url;
use reqwest::redirect::Policy;

use super::proxy::{Proxies, Proxy};
use super::tls::{Material, TlsError};
use crate::digest::{Algorithm, Digest, Digester};
use crate::hosts::{ClientCertificate, Host, Scheme, Tls};

pub(crate) const DIAL_TIMEOUT: Duration = Duration::from_secs(30);
/// Covers the time to the response's first byte and each pause inside a body.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Image names are chosen by users, so the number of hosts has no bound of its own.
const MAX_CLIENTS: usize = 64;
const USER_AGENT: &str = concat!("containerd/2.2 windlass/", env!("CARGO_PKG_VERSION"));

/// The connections of this process to registries.
pub struct Clients {
    proxies: Arc<Proxies>,
    /// Guards a map that is only read and replaced; clients are built outside the lock.
    kept: Mutex<HashMap<Key, Kept>>,
}

impl Default for Clients {
    fn default() -> Clients {
        Clients::new()
    }
}

/// Why no client can be made for a host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    #[error("cannot read {}", path.display())]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("cannot set up connections")]
    Build(#[from] reqwest::Error),
    #[error("the task that sets up connections ended early")]
    Task(#[from] tokio::task::JoinError),
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    authority: String,
    scheme: Scheme,
    dial_timeout: Duration,
    skip_verify: bool,
}

struct Kept {
    material: Digest,
    client: reqwest::Client,
}

impl Clients {
    /// With the proxies of the environment.
    pub fn new() -> Clients {
        Clients::with_proxies(Proxies::from_environment())
    }

    pub fn with_proxies(proxies: Proxies) -> Clients {
        Clients { proxies: Arc::new(proxies), kept: Mutex::default() }
    }

    /// The proxy that requests to this address go through.
    pub(crate) fn proxy_for(&self, url: &Url) -> Option<&Proxy> {
        self.proxies.for_url(url)
    }

    /// The client for URLs of `scheme` that are reached by way of `host`, with these TLS settings.
    pub(crate) async fn get(
        self: &Arc<Self>,
        host: &Host,
        scheme: Scheme,
        tls: Tls,
    ) -> Result<reqwest::Client, ClientError> {
        let clients = Arc::clone(self);
        let key = Key {
            authority: host.authority.clone(),
            scheme,
            dial_timeout: host.dial_timeout.unwrap_or(DIAL_TIMEOUT),
            skip_verify: tls.skip_verify.unwrap_or(false),
        };
        // Plain connections need no certificates, so a host without any, not even the system's, can still be a mirror.
        let tls = match scheme {
            Scheme::Http => Tls::default(),
            Scheme::Https => tls,
        };
        // Reads certificates, the system's included, which is many files on some distributions.
        tokio::task::spawn_blocking(move || clients.get_blocking(key, &tls)).await?
    }

    fn get_blocking(&self, key: Key, tls: &Tls) -> Result<reqwest::Client, ClientError> {
        let material = Material::read_files(tls)?;
        let digest = material.digest();
        if let Some(kept) = self.kept.lock().unwrap_or_else(PoisonError::into_inner).get(&key)
            && kept.material == digest
        {
            return Ok(kept.client.clone());
        }
        let client = build(&key, &material, Arc::clone(&self.proxies))?;
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() >= MAX_CLIENTS {
            kept.clear();
        }
        kept.insert(key, Kept { material: digest, client: client.clone() });
        Ok(client)
    }
}

fn build(key: &Key, material: &Material, proxies: Arc<Proxies>) -> Result<reqwest::Client, ClientError> {
    let builder = reqwest::Client::builder()
        .user_agent(USER_AGENT)
        .redirect(Policy::none())
        .referer(false)
        .connect_timeout(key.dial_timeout)
        .read_timeout(READ_TIMEOUT)
        .tcp_keepalive(Duration::from_secs(30))
        .http2_adaptive_window(true)
        // The library's own reading of the environment differs from Go's.
        .no_proxy()
        .proxy(reqwest::Proxy::custom(move |url| proxies.for_url(url).map(Proxy::for_client)));
    if key.scheme == Scheme::Http {
        return Ok(builder.tls_certs_only([]).build()?);
    }
    if key.skip_verify {
        tracing::warn!(host = key.authority, "certificates of this registry host are not verified");
    }
    let config = super::tls::client_config(material, key.skip_verify)?;
    Ok(builder.tls_backend_preconfigured(config).build()?)
}

impl Material {
    fn read_files(tls: &Tls) -> Result<Material, ClientError> {
        let mut material = Material::default();
        for path in &tls.ca {
            material.ca.push((path.clone(), read(path)?));
        }
        // A connection can offer one certificate; the first is the one that Docker's and our own files put first.
        if let Some(ClientCertificate { certificate, key }) = tls.client.first() {
            let mut pem = read(certificate)?;
            if let Some(key) = key {
                pem.push(b'\n');
                pem.extend(read(key)?);
            }
            material.identity = Some((certificate.clone(), pem));
        }
        Ok(material)
    }

    fn digest(&self) -> Digest {
        let mut digester = Digester::new(Algorithm::Sha256);
        for (path, pem) in self.ca.iter().chain(&self.identity) {
            digester.update(path.as_os_str().as_encoded_bytes());
            digester.update(&[0]);
            digester.update(Digest::sha256_of(pem).hex().as_bytes());
        }
        digester.finish()
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ClientError> {
    std::fs::read(path).map_err(|source| ClientError::File { path: path.to_owned(), source })
}
