//! The registry client: resolves references through the configured hosts and streams content from them.
//!
//! ```text
//! Registry::resolve ── hosts.toml read afresh ──► Session { endpoints in order } ──► manifest, blob
//!                                                   endpoint.rs: namespace, auth, redirects, retries
//!                                                   clients.rs: connections, shared by all pulls
//! ```
//!
//! A [`Session`] belongs to one pull: its tokens and its knowledge of dead hosts end with it.
//! The process must have installed a rustls crypto provider before the first request.

mod blob;
mod clients;
mod descriptor;
mod endpoint;
mod error;
mod explain;
mod patience;
mod proxy;
mod resolve;
mod session;
mod tls;
pub(crate) mod transport;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use http::{HeaderMap, HeaderName, HeaderValue};

pub use crate::auth::Credentials;
pub use blob::{BlobStream, Parts, Watch};
pub use clients::Clients;
pub use descriptor::{Descriptor, Platform, media_type};
pub use error::{Attempt, Error, Outcome, Tried};
pub use proxy::{Environment, Proxies, ProxyError};
pub use session::Session;

use crate::auth::{Secret, canonical_host};
use crate::hosts::{self, Host, Mirrors};
use crate::reference::Reference;
use endpoint::Endpoint;

/// Where registries are configured and what is sent to them.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// Directories with one directory a registry, in order.
    pub config_path: Vec<PathBuf>,
    /// The older configuration. If there is any, it is used in place of the directories.
    pub mirrors: Mirrors,
    /// Credentials by registry host, used where a pull brings none.
    pub auths: BTreeMap<String, Credentials>,
    /// Headers sent with every request to every registry host.
    pub headers: HeaderMap,
    /// Whether layers that a registry may not hand out are fetched from the addresses that their image names.
    pub foreign_layers: bool,
}

impl Default for RegistryConfig {
    fn default() -> RegistryConfig {
        RegistryConfig {
            config_path: RegistryConfig::split_path("/etc/containerd/certs.d:/etc/docker/certs.d"),
            mirrors: Mirrors::default(),
            auths: BTreeMap::new(),
            headers: HeaderMap::new(),
            foreign_layers: false,
        }
    }
}

impl RegistryConfig {
    /// Splits the colon-separated text of the configuration file.
    pub fn split_path(text: &str) -> Vec<PathBuf> {
        text.split(':').filter(|root| !root.is_empty()).map(PathBuf::from).collect()
    }
}

/// The registries of this node. Cheap to build; holds no connection and no token.
#[derive(Clone)]
pub struct Registry {
    config: Arc<RegistryConfig>,
    clients: Arc<Clients>,
}

/// What a reference stands for, and the way to its content.
#[derive(Debug, Clone)]
pub struct Resolved {
    pub descriptor: Descriptor,
    pub session: Session,
}

impl Registry {
    pub fn new(config: RegistryConfig, clients: Arc<Clients>) -> Registry {
        Registry { config: Arc::new(config), clients }
    }

    /// Finds the content of `reference`. `credentials` are those of the request; without them the configuration's
    /// are used. Only what is in `hosts.toml` at this moment counts.
    pub async fn resolve(&self, reference: &Reference, credentials: Option<&Credentials>) -> Result<Resolved, Error> {
        let hosts = self.hosts(reference).await?;
        let mut endpoints = Vec::with_capacity(hosts.len());
        for host in hosts {
            let secret = self.secret(reference, &host.authority, credentials)?;
            let clients = Arc::clone(&self.clients);
            endpoints.push(Endpoint::new(
                host,
                clients,
                reference.domain(),
                reference.path(),
                &self.config.headers,
                secret,
            ));
        }
        let found = resolve::resolve(reference, &endpoints).await?;
        let known = found.manifest.map(|body| (found.descriptor.digest.clone(), body));
        let foreign = self.config.foreign_layers;
        let session = Session::new(reference.clone(), endpoints, Arc::clone(&self.clients), known, foreign);
        Ok(Resolved { descriptor: found.descriptor, session })
    }

    async fn hosts(&self, reference: &Reference) -> Result<Vec<Host>, Error> {
        if !self.config.mirrors.is_empty() {
            return Ok(self.config.mirrors.hosts(reference.domain()));
        }
        let config = Arc::clone(&self.config);
        let domain = reference.domain().to_owned();
        let looked_up = tokio::task::spawn_blocking(move || hosts::lookup(&config.config_path, &domain)).await;
        let what = || format!("{reference}: cannot tell which hosts serve {}", reference.domain());
        match looked_up {
            Ok(Ok(hosts)) => Ok(hosts),
            Ok(Err(error)) => Err(Error::Failed { what: what(), source: error.into() }),
            Err(error) => Err(Error::Failed { what: what(), source: error.into() }),
        }
    }

    /// The credentials for one host: the request's if they are for it, else the configuration's.
    fn secret(
        &self,
        reference: &Reference,
        host: &str,
        credentials: Option<&Credentials>,
    ) -> Result<Option<Secret>, Error> {
        let failed = |error: crate::auth::CredentialsError| Error::Failed {
            what: format!("{reference}: cannot use the credentials"),
            source: error.into(),
        };
        let given = credentials.filter(|credentials| credentials.are_for(host));
        if let Some(secret) = given.map(|given| given.secret(host)).transpose().map_err(failed)?.flatten() {
            return Ok(Some(secret));
        }
        let named = |(name, _): &(&String, &Credentials)| canonical_host(name) == canonical_host(host);
        match self.config.auths.iter().find(named) {
            Some((_, configured)) => configured.secret(host).map_err(failed),
            None => Ok(None),
        }
    }
}

/// One header as the configuration writes it. The problem does not quote the value, which may be a secret.
pub fn parse_header(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), &'static str> {
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| "is not the name of a header")?;
    let mut value = HeaderValue::from_str(value).map_err(|_| "its value cannot be sent in a header")?;
    value.set_sensitive(true);
    Ok((name, value))
}
