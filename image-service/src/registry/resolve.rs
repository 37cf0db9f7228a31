//! Finds out what a reference stands for: a descriptor, from the first host that knows.
//!
//! A HEAD is enough for most registries. Where it is refused, or leaves out digest, size or media type, the manifest
//! itself is fetched, hashed and kept for the session, so that it is not fetched twice.

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderMap, HeaderValue, Method};
use reqwest::Response;
use serde::Deserialize;

use super::descriptor::{Descriptor, media_type};
use super::endpoint::{Endpoint, Request};
use super::error::{Attempt, Error, Outcome, Tried};
use super::transport::{Unread, read_limited};
use crate::digest::{Algorithm, Digest};
use crate::reference::Reference;

/// Manifests and indexes are small; what is larger is not read into memory.
pub(crate) const MAX_MANIFEST: usize = 4 * 1024 * 1024;

pub(crate) const ACCEPT_MANIFESTS: &str = "application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.oci.image.index.v1+json, */*";

/// A descriptor, with the manifest if it had to be fetched to make it.
pub(crate) struct Found {
    pub(crate) descriptor: Descriptor,
    pub(crate) manifest: Option<Bytes>,
}

/// Asks the endpoints in order.
pub(crate) async fn resolve(reference: &Reference, endpoints: &[Endpoint]) -> Result<Found, Error> {
    let by_tag = reference.digest().is_none();
    let able = |endpoint: &&Endpoint| {
        let capabilities = endpoint.host().capabilities;
        capabilities.pull && (capabilities.resolve || !by_tag)
    };
    let candidates: Vec<&Endpoint> = endpoints.iter().filter(able).collect();
    let path = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => format!("manifests/{digest}"),
        (None, tag) => format!("manifests/{}", tag.unwrap_or_default()),
    };
    let tried = match ask_all(reference, &candidates, &path).await {
        Ok(found) => return Ok(found),
        Err(tried) => tried,
    };
    // Some content is named by digest but is no manifest, and some registries hand such out as a blob only.
    let may_be_a_blob =
        tried.0.iter().all(|attempt| matches!(attempt.outcome, Outcome::NotFound | Outcome::Transport(_)));
    if let (Some(digest), true) = (reference.digest(), may_be_a_blob)
        && let Ok(found) = ask_all(reference, &candidates, &format!("blobs/{digest}")).await
    {
        return Ok(found);
    }
    let error = Error::from_tried(reference, tried);
    match error {
        // Mirrors that do not have it say nothing about the registry itself, which is last and could not be asked.
        Error::NotFound { reference, tried } if tried.ends_in_loss() => Err(Error::Unavailable { reference, tried }),
        other => Err(other),
    }
}

async fn ask_all(reference: &Reference, candidates: &[&Endpoint], path: &str) -> Result<Found, Tried> {
    let mut tried = Tried::default();
    for (position, endpoint) in candidates.iter().enumerate() {
        let is_last = position + 1 == candidates.len();
        match ask(reference, endpoint, path, is_last).await {
            Ok(found) => return Ok(found),
            Err(outcome) => {
                tracing::debug!(host = %endpoint.host(), %reference, %outcome, "host did not resolve a reference");
                tried.0.push(Attempt { host: endpoint.host().to_string(), outcome });
            }
        }
    }
    Err(tried)
}

async fn ask(reference: &Reference, endpoint: &Endpoint, path: &str, is_last: bool) -> Result<Found, Outcome> {
    let accept = HeaderValue::from_static(ACCEPT_MANIFESTS);
    let request = Request { method: Method::HEAD, path: path.to_owned(), accept, range: None };
    match endpoint.send(&request, is_last).await {
        Ok(response) => {
            if let Some(descriptor) = from_headers(reference, response.headers())? {
                return Ok(Found { descriptor, manifest: None });
            }
        }
        // Some registries do not know HEAD here; and a refusal tells its reason only in the answer to a GET.
        Err(Outcome::Status { status: 405, .. } | Outcome::Denied { status: 403, .. }) => {}
        Err(outcome) => return Err(outcome),
    }
    let response = endpoint.send(&Request { method: Method::GET, ..request }, is_last).await?;
    from_body(reference, response).await
}

/// The descriptor, if the headers say all of it.
fn from_headers(reference: &Reference, headers: &HeaderMap) -> Result<Option<Descriptor>, Outcome> {
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let digest = match text("docker-content-digest").map(Digest::parse) {
        Some(Ok(digest)) => Some(digest),
        Some(Err(_)) | None => None,
    };
    if let (Some(wanted), Some(found)) = (reference.digest(), &digest) {
        check_digest(wanted, found)?;
    }
    let size = text(CONTENT_LENGTH.as_str()).and_then(|size| size.parse().ok());
    let media_type = text(CONTENT_TYPE.as_str()).map(without_parameters).filter(|text| is_telling(text));
    if let Some(media_type) = media_type {
        check_media_type(media_type)?;
    }
    let (Some(digest), Some(size), Some(media_type)) = (digest, size, media_type) else {
        return Ok(None);
    };
    if size > MAX_MANIFEST as u64 {
        return Err(too_large());
    }
    Ok(Some(Descriptor::new(media_type, digest, size)))
}

async fn from_body(reference: &Reference, response: Response) -> Result<Found, Outcome> {
    let headers = response.headers().clone();
    let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    let body = read_manifest(response).await?;
    let named = text("docker-content-digest").and_then(|digest| Digest::parse(digest).ok());
    let wanted = reference.digest().or(named.as_ref());
    let digest = Digest::of(wanted.map_or(Algorithm::Sha256, Digest::algorithm), &body);
    if let Some(wanted) = wanted {
        check_digest(wanted, &digest)?;
    }
    let named = text(CONTENT_TYPE.as_str()).map(without_parameters).filter(|text| is_telling(text));
    let media_type = named.map_or_else(|| media_type_of(&body), str::to_owned);
    check_media_type(&media_type)?;
    let descriptor = Descriptor::new(media_type, digest, body.len() as u64);
    Ok(Found { descriptor, manifest: Some(body) })
}

/// Reads a whole manifest, unless it is too large to be one.
pub(crate) async fn read_manifest(response: Response) -> Result<Bytes, Outcome> {
    match read_limited(response, MAX_MANIFEST).await {
        Ok(body) => Ok(Bytes::from(body)),
        Err(Unread::TooLong) => Err(too_large()),
        Err(unread) => Err(Outcome::Transport(unread.shown(""))),
    }
}

fn too_large() -> Outcome {
    Outcome::Unacceptable(format!("manifest is larger than {} MiB", MAX_MANIFEST / (1024 * 1024)))
}

fn check_digest(expected: &Digest, found: &Digest) -> Result<(), Outcome> {
    if expected == found {
        return Ok(());
    }
    Err(Outcome::WrongContent { expected: expected.clone(), found: found.to_string() })
}

fn check_media_type(media_type: &str) -> Result<(), Outcome> {
    if media_type.starts_with("application/vnd.docker.distribution.manifest.v1+") {
        let text = "offers only a Docker schema 1 manifest, which is not supported: push the image again";
        return Err(Outcome::Unacceptable(text.to_owned()));
    }
    if matches!(media_type, "text/html" | "application/xhtml+xml") {
        let text = "answers with a web page and not as a registry: check its address, and whether a proxy or a login page stands before it";
        return Err(Outcome::Unacceptable(text.to_owned()));
    }
    Ok(())
}

/// File servers that play a registry send types that say nothing.
fn is_telling(media_type: &str) -> bool {
    !matches!(media_type, "" | "application/octet-stream" | "application/json" | "text/plain")
}

fn without_parameters(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// The type that a manifest itself names, or that its shape tells.
fn media_type_of(body: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Shape {
        #[serde(default)]
        media_type: String,
        manifests: Option<serde::de::IgnoredAny>,
        config: Option<serde::de::IgnoredAny>,
        fs_layers: Option<serde::de::IgnoredAny>,
    }
    let shape = serde_json::from_slice::<Shape>(body);
    let text = match &shape {
        Ok(shape) if !shape.media_type.is_empty() => &shape.media_type,
        Ok(Shape { fs_layers: Some(_), .. }) => "application/vnd.docker.distribution.manifest.v1+json",
        Ok(Shape { manifests: Some(_), .. }) => media_type::OCI_INDEX,
        Ok(Shape { config: Some(_), .. }) => media_type::OCI_MANIFEST,
        _ => "application/octet-stream",
    };
    text.to_owned()
}
