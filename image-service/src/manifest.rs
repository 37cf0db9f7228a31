//! Indexes, manifests and configurations: read, and checked for what this node can run.
//!
//! Pure: bytes in, facts out. Both the OCI and the Docker schema 2 forms are read; they differ only in media types.

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, de::DeserializeOwned};
use thiserror::Error;

use crate::{
    digest::{Algorithm, Digest, Digester},
    platform::Node,
    registry::{
        Descriptor, Platform, media_type,
        transport::{printable, printable_up_to},
    },
};

/// Layers beyond this are refused: overlayfs itself stops at 500 lower directories.
const MAX_LAYERS: usize = 500;
/// Indexes may point to indexes; nobody nests them deeper.
pub(crate) const MAX_NESTING: usize = 4;
/// Manifests and configurations are read into memory; at most this many bytes of each.
pub(crate) const MAX_DOCUMENT: u64 = 8 << 20;
/// Values in one document. An empty one takes two bytes there and a hundred in memory; images have some hundreds.
const MAX_VALUES: usize = 100_000;
/// Of a foreign text in an error.
const MAX_SHOWN: usize = 100;
/// Platforms that an error names.
const MAX_PLATFORMS: usize = 20;

/// Why a manifest cannot be used.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum ManifestError {
    #[error("{what} {digest} is not valid JSON: {problem}")]
    Syntax { what: &'static str, digest: Digest, problem: String },
    #[error(
        "{0} is a Docker schema 1 manifest, which is no longer supported; push the image again with a current tool"
    )]
    Schema1(Digest),
    #[error("{digest} has media type {media_type:?}, which is neither a manifest nor an index of images")]
    NotAnImage { digest: Digest, media_type: String },
    #[error("no image for {wanted} in {digest}; it has: {available}")]
    NoPlatform { digest: Digest, wanted: String, available: String },
    #[error("{digest} {problem}")]
    Invalid { digest: Digest, problem: String },
}

/// What a reference's target turned out to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Document {
    Index(Vec<Descriptor>),
    Manifest(Box<Manifest>),
}

/// One image for one platform.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub(crate) struct Manifest {
    pub(crate) config: Descriptor,
    #[serde(default)]
    pub(crate) layers: Vec<Descriptor>,
}

impl Manifest {
    /// Bytes of the configuration and the layers.
    pub(crate) fn size(&self) -> u64 {
        self.layers.iter().fold(self.config.size, |sum, layer| sum.saturating_add(layer.size))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    schema_version: Option<i64>,
    media_type: Option<String>,
    manifests: Option<Vec<Descriptor>>,
    config: Option<Descriptor>,
    layers: Option<Vec<Descriptor>>,
}

/// Reads a manifest or an index. Its own fields decide what it is; a media type that contradicts them is refused, since the
/// same bytes must not mean two things (CVE-2021-41190).
pub(crate) fn parse_document(descriptor: &Descriptor, bytes: &[u8]) -> Result<Document, ManifestError> {
    let digest = descriptor.digest.clone();
    let shape: Shape = parse("manifest", &digest, bytes)?;
    if shape.schema_version == Some(1) {
        return Err(ManifestError::Schema1(digest));
    }
    let invalid = |problem: String| ManifestError::Invalid { digest: digest.clone(), problem };
    let own = shape.media_type.unwrap_or_default();
    let announced = descriptor.media_type.as_str();
    if !own.is_empty() && !announced.is_empty() && own != announced && known(announced) {
        let own = printable_up_to(&own, MAX_SHOWN);
        return Err(invalid(format!("says that it is {own:?}, but was announced as {announced:?}")));
    }
    let is_one_of = |types: [&str; 2]| types.contains(&own.as_str()) || types.contains(&announced);
    let contradicted = |what: &str| {
        let said = printable_up_to(if own.is_empty() { announced } else { &own }, MAX_SHOWN);
        Err(invalid(format!("is called {said:?}, and has the fields of {what}")))
    };
    match (shape.manifests, shape.config, shape.layers) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => Err(invalid("is both an index and a manifest".to_owned())),
        (Some(_), None, None) if is_one_of(MANIFESTS) => contradicted("an index"),
        (Some(manifests), None, None) => Ok(Document::Index(manifests)),
        (None, Some(_), _) if is_one_of(INDEXES) => contradicted("a manifest"),
        (None, Some(config), layers) => {
            let manifest = Manifest { config, layers: layers.unwrap_or_default() };
            check_sizes(&digest, &manifest)?;
            check_types(&digest, &manifest.config, &manifest.layers)?;
            Ok(Document::Manifest(Box::new(manifest)))
        }
        (None, None, _) => {
            let media_type = printable_up_to(if own.is_empty() { announced } else { &own }, MAX_SHOWN);
            Err(ManifestError::NotAnImage { digest, media_type })
        }
    }
}

/// Reads JSON that somebody else wrote into memory that is in proportion to it.
fn parse<T: DeserializeOwned>(what: &'static str, digest: &Digest, bytes: &[u8]) -> Result<T, ManifestError> {
    let values = values(bytes);
    if values > MAX_VALUES {
        let problem = format!("has {values} values, at most {MAX_VALUES} are read");
        return Err(ManifestError::Invalid { digest: digest.clone(), problem });
    }
    serde_json::from_slice(bytes).map_err(|error| {
        // It may quote what it did not expect, whatever its length.
        ManifestError::Syntax { what, digest: digest.clone(), problem: printable(&error.to_string()) }
    })
}

/// Commas outside of strings, which are one less than the values of each array and object.
fn values(json: &[u8]) -> usize {
    let (mut count, mut in_string, mut is_escaped) = (1, false, false);
    for byte in json {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = in_string,
            b'"' => in_string = !in_string,
            b',' if !in_string => count += 1,
            _ => {}
        }
    }
    count
}

/// What could not be held is refused before anything of it is fetched.
fn check_sizes(digest: &Digest, manifest: &Manifest) -> Result<(), ManifestError> {
    let invalid = |problem: String| Err(ManifestError::Invalid { digest: digest.clone(), problem });
    if manifest.layers.len() > MAX_LAYERS {
        return invalid(format!("has {} layers, at most {MAX_LAYERS} can be mounted", manifest.layers.len()));
    }
    if manifest.config.size > MAX_DOCUMENT {
        let (config, size) = (&manifest.config.digest, manifest.config.size);
        return invalid(format!("has a configuration, {config}, of {size} bytes, at most {MAX_DOCUMENT} are read"));
    }
    match manifest.layers.iter().find(|layer| i64::try_from(layer.size).is_err()) {
        Some(layer) => invalid(format!("has a layer, {}, of {} bytes, more than any file", layer.digest, layer.size)),
        None => Ok(()),
    }
}

/// Manifests carry other things than images too, and layers that only a key opens.
fn check_types(digest: &Digest, config: &Descriptor, layers: &[Descriptor]) -> Result<(), ManifestError> {
    const CONFIGS: [&str; 4] = [
        "application/vnd.oci.image.config.v1+json",
        "application/vnd.docker.container.image.v1+json",
        // What builders of the past wrote.
        "application/octet-stream",
        "",
    ];
    if !CONFIGS.contains(&config.media_type.as_str()) {
        let media_type = printable_up_to(&config.media_type, MAX_SHOWN);
        return Err(ManifestError::NotAnImage { digest: digest.clone(), media_type });
    }
    match layers.iter().find(|layer| layer.media_type.contains("+encrypted")) {
        None => Ok(()),
        Some(layer) => {
            let problem = format!("has an encrypted layer, {}, which this node cannot open", layer.digest);
            Err(ManifestError::Invalid { digest: digest.clone(), problem })
        }
    }
}

const MANIFESTS: [&str; 2] = [media_type::DOCKER_MANIFEST, media_type::OCI_MANIFEST];
const INDEXES: [&str; 2] = [media_type::DOCKER_INDEX, media_type::OCI_INDEX];

fn known(name: &str) -> bool {
    MANIFESTS.contains(&name) || INDEXES.contains(&name)
}

/// The entry of an index that this node runs best.
pub(crate) fn choose<'a>(
    digest: &Digest,
    entries: &'a [Descriptor],
    node: &Node,
) -> Result<&'a Descriptor, ManifestError> {
    let fits = |entry: &&Descriptor| entry.platform.as_ref().is_none_or(|platform| node.rank(platform).is_some());
    let best = entries.iter().filter(fits).filter(|entry| !is_attestation(entry)).min_by_key(|entry| {
        // An entry that names no platform may be anything: last choice.
        entry.platform.as_ref().map_or(usize::MAX, |platform| node.rank(platform).unwrap_or(usize::MAX))
    });
    best.ok_or_else(|| ManifestError::NoPlatform {
        digest: digest.clone(),
        wanted: node.to_string(),
        available: available(entries),
    })
}

/// The platforms of an index, as an error tells them.
fn available(entries: &[Descriptor]) -> String {
    let platforms = entries.iter().filter(|entry| !is_attestation(entry)).filter_map(|entry| entry.platform.as_ref());
    let count = platforms.clone().count();
    let mut shown = platforms.take(MAX_PLATFORMS).map(shown).collect::<Vec<_>>();
    if count > MAX_PLATFORMS {
        shown.push(format!("and {} more", count - MAX_PLATFORMS));
    }
    shown.join(", ")
}

/// BuildKit puts provenance beside images, as entries for the platform unknown/unknown.
pub(crate) fn is_attestation(entry: &Descriptor) -> bool {
    entry.annotations.contains_key("vnd.docker.reference.digest")
        || entry.platform.as_ref().is_some_and(|platform| platform.os == "unknown")
}

fn shown(platform: &Platform) -> String {
    let mut text = format!("{}/{}", platform.os, platform.architecture);
    if let Some(variant) = &platform.variant {
        text.push('/');
        text.push_str(variant);
    }
    printable_up_to(&text, MAX_SHOWN)
}

/// The diff ids of an image's configuration: as many as the manifest has layers. `node` is given where nothing else has said
/// that the image runs there: an image that somebody named directly is taken at its word, as containerd does.
pub(crate) fn parse_config(
    manifest: &Manifest,
    bytes: &[u8],
    node: Option<&Node>,
) -> Result<Vec<Digest>, ManifestError> {
    let digest = manifest.config.digest.clone();
    let invalid = |problem: String| ManifestError::Invalid { digest: digest.clone(), problem };
    let config: ImageConfiguration = parse("image configuration", &digest, bytes)?;
    let own = Platform {
        architecture: config.architecture().to_string(),
        os: config.os().to_string(),
        ..Platform::default()
    };
    if let Some(node) = node
        && (own.architecture != node.architecture || own.os != node.os)
    {
        return Err(ManifestError::NoPlatform { digest, wanted: node.to_string(), available: shown(&own) });
    }
    let diff_ids: Vec<Digest> = config
        .rootfs()
        .diff_ids()
        .iter()
        .map(|text| Digest::parse(text).map_err(|error| invalid(format!("has a bad diff id: {error}"))))
        .collect::<Result<_, _>>()?;
    if diff_ids.len() != manifest.layers.len() {
        return Err(invalid(format!("names {} layers, the manifest has {}", diff_ids.len(), manifest.layers.len())));
    }
    Ok(diff_ids)
}

/// The chain id of each layer (OCI image spec, "Layer ChainID"): the name of a stack of layers by its content.
pub(crate) fn chain_ids(diff_ids: &[Digest]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for diff_id in diff_ids {
        chain.push(match chain.last() {
            None => diff_id.to_string(),
            Some(parent) => {
                let mut digester = Digester::new(Algorithm::Sha256);
                digester.update(format!("{parent} {diff_id}").as_bytes());
                digester.finish().to_string()
            }
        });
    }
    chain
}

#[cfg(test)]
mod tests;
