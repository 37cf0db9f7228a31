//! Image references: the grammar of the distribution project and Docker's way of completing short names.
//!
//! ```text
//! busybox                      -> docker.io/library/busybox:latest
//! quay.io/a/b:v1               -> quay.io/a/b:v1
//! host:5000/a@sha256:…         -> host:5000/a@sha256:…
//! host:5000/a:v1@sha256:…      -> host:5000/a@sha256:…        the digest wins, the tag is dropped
//! ```
//!
//! A [`Reference`] has exactly one of tag and digest. Printing it and parsing the text gives an equal reference.
//! Nothing here touches the network or the store.

use std::fmt;
use std::str::FromStr;

use crate::digest::{Digest, DigestError};

const DEFAULT_DOMAIN: &str = "docker.io";
const LEGACY_DOMAIN: &str = "index.docker.io";
const DEFAULT_TAG: &str = "latest";
const MAX_PATH: usize = 255;
const MAX_TAG: usize = 128;

/// A complete image reference.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    version: Version,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Version {
    Tag(String),
    Digest(Digest),
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid image reference {input:?}: {reason}")]
pub struct ReferenceError {
    pub input: String,
    pub reason: ReferenceProblem,
}

/// The part that broke the grammar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceProblem {
    #[error("it is empty")]
    Empty,
    #[error("it is 64 hexadecimal characters, which is an image id; give a repository name")]
    ImageId,
    #[error("the registry host {0:?} is not a host name, an IP address or [IPv6], with an optional :port")]
    Domain(String),
    #[error("the repository name is empty")]
    EmptyPath,
    #[error("the repository name {0:?} must be lowercase")]
    Uppercase(String),
    #[error(
        "the repository name component {0:?} must be letters and digits, joined by one dot, one or two underscores or any dashes"
    )]
    PathComponent(String),
    #[error("the repository name is longer than {MAX_PATH} characters")]
    PathTooLong,
    #[error(
        "the tag {0:?} must be 1 to {MAX_TAG} of letters, digits, underscores, dots and dashes, and not begin with a dot or dash"
    )]
    Tag(String),
    #[error(transparent)]
    Digest(#[from] DigestError),
}

impl Reference {
    /// Parses and completes a reference as a user or a pod writes it.
    pub fn parse(input: &str) -> Result<Reference, ReferenceError> {
        parse(input).map_err(|reason| ReferenceError { input: input.to_owned(), reason })
    }

    /// The registry as it was named, for example `docker.io` or `host:5000`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository in that registry, for example `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn tag(&self) -> Option<&str> {
        match &self.version {
            Version::Tag(tag) => Some(tag),
            Version::Digest(_) => None,
        }
    }

    pub fn digest(&self) -> Option<&Digest> {
        match &self.version {
            Version::Tag(_) => None,
            Version::Digest(digest) => Some(digest),
        }
    }

    /// Domain and path, for example `docker.io/library/busybox`.
    pub fn repo(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// The same repository at a digest: what `repoDigests` lists.
    pub fn at(&self, digest: Digest) -> Reference {
        Reference { domain: self.domain.clone(), path: self.path.clone(), version: Version::Digest(digest) }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.domain, self.path),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.domain, self.path),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(input: &str) -> Result<Reference, ReferenceError> {
        Reference::parse(input)
    }
}

fn parse(input: &str) -> Result<Reference, ReferenceProblem> {
    if input.is_empty() {
        return Err(ReferenceProblem::Empty);
    }
    if is_image_id(input) {
        return Err(ReferenceProblem::ImageId);
    }
    let (rest, digest) = match input.split_once('@') {
        Some((rest, digest)) => (rest, Some(Digest::parse(digest)?)),
        None => (input, None),
    };
    let (name, tag) = split_tag(rest);
    if let Some(tag) = tag
        && !is_tag(tag)
    {
        return Err(ReferenceProblem::Tag(tag.to_owned()));
    }
    let (domain, path) = split_domain(name);
    check_domain(domain)?;
    let path = if domain == DEFAULT_DOMAIN && !path.is_empty() && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    check_path(&path)?;
    let version = match (digest, tag) {
        (Some(digest), _) => Version::Digest(digest),
        (None, Some(tag)) => Version::Tag(tag.to_owned()),
        (None, None) => Version::Tag(DEFAULT_TAG.to_owned()),
    };
    Ok(Reference { domain: domain.to_owned(), path, version })
}

/// A colon before the last slash belongs to a port, one after it begins the tag.
fn split_tag(rest: &str) -> (&str, Option<&str>) {
    let name_start = rest.rfind('/').map_or(0, |slash| slash + 1);
    match rest[name_start..].find(':') {
        Some(colon) => (&rest[..name_start + colon], Some(&rest[name_start + colon + 1..])),
        None => (rest, None),
    }
}

/// The first component is a registry only if it cannot be part of a Docker Hub name.
fn split_domain(name: &str) -> (&str, &str) {
    let Some((first, rest)) = name.split_once('/') else {
        return (DEFAULT_DOMAIN, name);
    };
    let is_domain = first.contains(['.', ':']) || first == "localhost" || first.chars().any(char::is_uppercase);
    match (is_domain, first) {
        (true, LEGACY_DOMAIN) => (DEFAULT_DOMAIN, rest),
        (true, _) => (first, rest),
        (false, _) => (DEFAULT_DOMAIN, name),
    }
}

fn check_domain(domain: &str) -> Result<(), ReferenceProblem> {
    let bad = || ReferenceProblem::Domain(domain.to_owned());
    let (host_is_valid, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let (address, after) = rest.split_once(']').ok_or_else(bad)?;
            let valid = !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
            match after.strip_prefix(':') {
                Some(port) => (valid, Some(port)),
                None => (valid && after.is_empty(), None),
            }
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (host.split('.').all(is_domain_component), Some(port)),
            None => (domain.split('.').all(is_domain_component), None),
        },
    };
    let port_is_valid = port.is_none_or(|port| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit()));
    if host_is_valid && port_is_valid { Ok(()) } else { Err(bad()) }
}

fn is_domain_component(component: &str) -> bool {
    !component.is_empty()
        && !component.starts_with('-')
        && !component.ends_with('-')
        && component.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
}

fn check_path(path: &str) -> Result<(), ReferenceProblem> {
    if path.is_empty() {
        return Err(ReferenceProblem::EmptyPath);
    }
    if path.bytes().any(|b| b.is_ascii_uppercase()) {
        return Err(ReferenceProblem::Uppercase(path.to_owned()));
    }
    if let Some(bad) = path.split('/').find(|component| !is_path_component(component)) {
        return Err(ReferenceProblem::PathComponent(bad.to_owned()));
    }
    if path.len() > MAX_PATH {
        return Err(ReferenceProblem::PathTooLong);
    }
    Ok(())
}

/// Runs of `[a-z0-9]`, joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    is_word(first)
        && is_word(last)
        && bytes
            .chunk_by(|a, b| is_word(*a) == is_word(*b))
            .all(|run| is_word(run[0]) || matches!(run, b"." | b"_" | b"__") || run.iter().all(|b| *b == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let is_word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG
        && tag.bytes().next().is_some_and(is_word)
        && tag.bytes().all(|b| is_word(b) || b == b'.' || b == b'-')
}

/// Docker refuses such names because they cannot be told from an image id.
fn is_image_id(input: &str) -> bool {
    input.len() == 64 && input.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

#[cfg(test)]
mod tests;
