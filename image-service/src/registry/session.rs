//! One pull's way to a repository's content: its hosts in order, with what was learnt of each.
//!
//! Everything is fetched by digest. Hosts that could not be reached are asked last from then on.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderValue, Method};
use reqwest::{Response, Url};

use super::blob::{self, BlobStream, Parts, Source, Watch};
use super::clients::Clients;
use super::descriptor::Descriptor;
use super::endpoint::{Endpoint, Request};
use super::error::{Attempt, Error, Outcome, Tried};
use super::resolve::{ACCEPT_MANIFESTS, read_manifest};
use super::transport::{Transport, shown_error, shown_url};
use crate::digest::Digest;
use crate::hosts::{Host, may_lead_to};
use crate::reference::Reference;

/// Fetches content of the repository that was resolved. Cheap to clone.
#[derive(Clone)]
pub struct Session {
    inner: Arc<Inner>,
}

struct Inner {
    reference: Reference,
    endpoints: Vec<Endpoint>,
    clients: Arc<Clients>,
    /// The manifest that resolving had to fetch.
    known: Option<(Digest, Bytes)>,
    /// Whether foreign layers may be fetched from where they say.
    foreign: bool,
    /// Set once what a foreign layer's address sent was not the layer.
    distrusts_foreign: AtomicBool,
    /// Who is not trusted though others may be to blame. Guards a list that is only pushed to and emptied.
    suspects: Mutex<Vec<Source>>,
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hosts: Vec<String> = self.inner.endpoints.iter().map(|endpoint| endpoint.host().to_string()).collect();
        f.debug_struct("Session").field("reference", &self.inner.reference.to_string()).field("hosts", &hosts).finish()
    }
}

impl Session {
    pub(crate) fn new(
        reference: Reference,
        endpoints: Vec<Endpoint>,
        clients: Arc<Clients>,
        known: Option<(Digest, Bytes)>,
        foreign: bool,
    ) -> Session {
        let distrusts_foreign = AtomicBool::new(false);
        Session {
            inner: Arc::new(Inner {
                reference,
                endpoints,
                clients,
                known,
                foreign,
                distrusts_foreign,
                suspects: Mutex::default(),
            }),
        }
    }

    /// A manifest or an index: at most 4 MiB, with the descriptor's size and digest.
    pub async fn manifest(&self, descriptor: &Descriptor) -> Result<Bytes, Error> {
        if let Some((digest, body)) = &self.inner.known
            && *digest == descriptor.digest
        {
            return Ok(body.clone());
        }
        let tried = match self.small(descriptor, "manifests").await {
            Ok(body) => return Ok(body),
            Err(tried) => tried,
        };
        // What resolved as a blob is fetched as one.
        if tried.0.iter().any(|attempt| attempt.outcome == Outcome::NotFound)
            && let Ok(body) = self.small(descriptor, "blobs").await
        {
            return Ok(body);
        }
        Err(self.error(descriptor, tried))
    }

    /// A blob from `offset` on. The caller verifies the digest.
    pub async fn blob(&self, descriptor: &Descriptor, offset: u64) -> Result<BlobStream, Error> {
        self.fetch(descriptor, offset, None, &Watch::default()).await
    }

    /// As [`Session::blob`], over several connections if `parts` says so, and watched meanwhile.
    pub async fn fetch(
        &self,
        descriptor: &Descriptor,
        offset: u64,
        parts: Option<Parts>,
        watch: &Watch,
    ) -> Result<BlobStream, Error> {
        let mut descriptor = descriptor.clone();
        if !descriptor.is_foreign() {
            // Any image can name addresses; only of layers that are nowhere else are they to be believed.
            descriptor.urls.clear();
        }
        blob::open(self.clone(), descriptor, offset, parts, watch.clone()).await
    }

    /// Takes somebody else for the rest of the pull, now that what was watched turned out to be wrong: whoever sent all of it.
    /// Of several the first is only suspected, and cleared when another one is found out. False if nobody is left.
    pub fn distrust(&self, watch: &Watch) -> bool {
        let served = watch.served();
        let Some(first) = served.first().copied() else { return false };
        let mut suspects = self.inner.suspects.lock().unwrap_or_else(PoisonError::into_inner);
        if served.len() > 1 {
            suspects.push(first);
        } else {
            suspects.drain(..).for_each(|suspect| self.set_trust(suspect, true));
        }
        self.set_trust(first, false);
        !self.in_order().is_empty()
    }

    fn set_trust(&self, source: Source, is_trusted: bool) {
        match source {
            Source::Foreign => self.inner.distrusts_foreign.store(!is_trusted, Ordering::Relaxed),
            Source::Host(position) => self.inner.endpoints[position].set_trust(is_trusted),
        }
    }

    /// Who sent what was watched, as errors show it.
    pub fn shown_sources(&self, watch: &Watch) -> String {
        let shown = |source: Source| match source {
            Source::Foreign => "the foreign layer's own address".to_owned(),
            Source::Host(position) => self.inner.endpoints[position].host().to_string(),
        };
        watch.served().into_iter().map(shown).collect::<Vec<_>>().join(" and ")
    }

    pub(crate) fn trusts_foreign(&self) -> bool {
        !self.inner.distrusts_foreign.load(Ordering::Relaxed)
    }

    /// Which of the session's hosts this is.
    pub(crate) fn position(&self, endpoint: &Endpoint) -> usize {
        let is_it = |other: &Endpoint| std::ptr::eq(other, endpoint);
        self.inner.endpoints.iter().position(is_it).expect("endpoints come from this session")
    }

    /// The hosts that may be asked for content, those that could not be reached last.
    pub(crate) fn in_order(&self) -> Vec<&Endpoint> {
        let may_serve = |endpoint: &&Endpoint| endpoint.host().capabilities.pull && endpoint.is_trusted();
        let mut endpoints: Vec<&Endpoint> = self.inner.endpoints.iter().filter(may_serve).collect();
        endpoints.sort_by_key(|endpoint| endpoint.is_down());
        endpoints
    }

    /// The repository at a digest, as errors show it.
    pub(crate) fn shown(&self, descriptor: &Descriptor) -> String {
        self.inner.reference.at(descriptor.digest.clone()).to_string()
    }

    pub(crate) fn error(&self, descriptor: &Descriptor, tried: Tried) -> Error {
        Error::from_tried(&self.inner.reference.at(descriptor.digest.clone()), tried)
    }

    /// Fetches a foreign layer's own address, if that is allowed: https only, without credentials, without redirects.
    pub(crate) async fn foreign(&self, url: &str) -> Result<Response, Outcome> {
        let url = Url::parse(url).map_err(|_| Outcome::Unacceptable("is not a URL".to_owned()))?;
        let (true, Some(name)) = (url.scheme() == "https", url.host_str()) else {
            return Err(Outcome::Unacceptable("is not https".to_owned()));
        };
        let shown = shown_url(&url);
        if !self.inner.foreign {
            return Err(Outcome::Unacceptable(format!(
                "this is a foreign layer, kept at {shown}; allow it by registry.allow_foreign_layers = true, or push the image with it"
            )));
        }
        if !may_lead_to(self.inner.reference.domain(), name) {
            return Err(Outcome::Unacceptable(format!("{shown} is an address that only this machine can reach")));
        }
        let transport = Transport::new(Host::upstream(name), Arc::clone(&self.inner.clients));
        let client = transport.client(&url).await.map_err(|error| Outcome::Transport(shown_error(&error)))?;
        let sent = client.get(url.clone()).send().await;
        let response =
            sent.map_err(|error| Outcome::Transport(format!("{shown}: {}", transport.explain(&url, &error))))?;
        match response.status() {
            status if status.is_success() => Ok(response),
            http::StatusCode::NOT_FOUND => Err(Outcome::NotFound),
            status => Err(Outcome::Status { status: status.as_u16(), message: shown }),
        }
    }

    /// Fetches small content by digest below `kind` from the first host that has it.
    async fn small(&self, descriptor: &Descriptor, kind: &str) -> Result<Bytes, Tried> {
        let endpoints = self.in_order();
        let mut tried = Tried::default();
        let named = HeaderValue::from_str(&format!("{}, */*", descriptor.media_type));
        let request = Request {
            method: Method::GET,
            path: format!("{kind}/{}", descriptor.digest),
            // The media type comes from an index, so it may not fit into a header.
            accept: named.unwrap_or(HeaderValue::from_static(ACCEPT_MANIFESTS)),
            range: None,
        };
        for (position, endpoint) in endpoints.iter().enumerate() {
            let fetched = match endpoint.send(&request, position + 1 == endpoints.len()).await {
                Ok(response) => read_manifest(response).await.and_then(|body| verified(descriptor, body)),
                Err(outcome) => Err(outcome),
            };
            match fetched {
                Ok(body) => return Ok(body),
                Err(outcome) => tried.0.push(Attempt { host: endpoint.host().to_string(), outcome }),
            }
        }
        Err(tried)
    }
}

fn verified(descriptor: &Descriptor, body: Bytes) -> Result<Bytes, Outcome> {
    let found = Digest::of(descriptor.digest.algorithm(), &body);
    if found != descriptor.digest {
        return Err(Outcome::WrongContent { expected: descriptor.digest.clone(), found: found.to_string() });
    }
    if body.len() as u64 != descriptor.size {
        let text = format!("content has {} bytes where the descriptor says {}", body.len(), descriptor.size);
        return Err(Outcome::Unacceptable(text));
    }
    Ok(body)
}
