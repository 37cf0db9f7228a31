//! Indexes, manifests and configurations: read, and checked for what this node can run.
//!
//! Pure: bytes in, facts out. Both the OCI and the Docker schema 2 forms are read; they differ only in media types.

use oci_spec::image::ImageConfiguration;
use serde::Deserialize;
use thiserror::Error;

use crate::{
    digest::{Algorithm, Digest, Digester},
    platform::Node,
    registry::{Descriptor, Platform, media_type},
};

/// Layers beyond this are refused: overlayfs itself stops at 500 lower directories.
const MAX_LAYERS: usize = 500;
/// Indexes may point to indexes; nobody nests them deeper.
pub(crate) const MAX_NESTING: usize = 4;
/// Manifests and configurations are read into memory; at most this many bytes of each.
pub(crate) const MAX_DOCUMENT: u64 = 8 << 20;

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
    let shape: Shape = serde_json::from_slice(bytes).map_err(|error| ManifestError::Syntax {
        what: "manifest",
        digest: digest.clone(),
        problem: error.to_string(),
    })?;
    if shape.schema_version == Some(1) {
        return Err(ManifestError::Schema1(digest));
    }
    let own = shape.media_type.unwrap_or_default();
    if !own.is_empty()
        && !descriptor.media_type.is_empty()
        && own != descriptor.media_type
        && known(&descriptor.media_type)
    {
        let problem = format!("says that it is {own:?}, but was announced as {:?}", descriptor.media_type);
        return Err(ManifestError::Invalid { digest, problem });
    }
    match (shape.manifests, shape.config) {
        (Some(_), Some(_)) => {
            Err(ManifestError::Invalid { digest, problem: "is both an index and a manifest".to_owned() })
        }
        (Some(manifests), None) => Ok(Document::Index(manifests)),
        (None, Some(config)) => {
            let layers = shape.layers.unwrap_or_default();
            if layers.len() > MAX_LAYERS {
                let problem = format!("has {} layers, at most {MAX_LAYERS} can be mounted", layers.len());
                return Err(ManifestError::Invalid { digest, problem });
            }
            check_types(&digest, &config, &layers)?;
            Ok(Document::Manifest(Box::new(Manifest { config, layers })))
        }
        (None, None) => {
            let media_type = if own.is_empty() { descriptor.media_type.clone() } else { own };
            Err(ManifestError::NotAnImage { digest, media_type })
        }
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
        return Err(ManifestError::NotAnImage { digest: digest.clone(), media_type: config.media_type.clone() });
    }
    match layers.iter().find(|layer| layer.media_type.contains("+encrypted")) {
        None => Ok(()),
        Some(layer) => {
            let problem = format!("has an encrypted layer, {}, which this node cannot open", layer.digest);
            Err(ManifestError::Invalid { digest: digest.clone(), problem })
        }
    }
}

fn known(name: &str) -> bool {
    use media_type::{DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST};
    [DOCKER_INDEX, DOCKER_MANIFEST, OCI_INDEX, OCI_MANIFEST].contains(&name)
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
        available: entries
            .iter()
            .filter(|entry| !is_attestation(entry))
            .filter_map(|entry| entry.platform.as_ref().map(shown))
            .collect::<Vec<_>>()
            .join(", "),
    })
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
    text
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
    let config: ImageConfiguration = serde_json::from_slice(bytes).map_err(|error| ManifestError::Syntax {
        what: "image configuration",
        digest: digest.clone(),
        problem: error.to_string(),
    })?;
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
mod tests {
    use super::*;
    use serde_json::json;

    fn descriptor(media_type: &str) -> Descriptor {
        Descriptor::new(media_type, Digest::sha256_of(b"d"), 1)
    }

    fn entry(name: &str, platform: serde_json::Value) -> Descriptor {
        let mut descriptor = Descriptor::new(media_type::OCI_MANIFEST, Digest::sha256_of(name.as_bytes()), 1);
        descriptor.platform = serde_json::from_value(platform).unwrap();
        descriptor
    }

    #[test]
    fn a_document_is_what_its_fields_say() {
        let check = |media_type: &str, json: serde_json::Value| {
            parse_document(&descriptor(media_type), json.to_string().as_bytes())
        };
        let config = json!({"mediaType": "application/vnd.oci.image.config.v1+json", "digest": Digest::sha256_of(b"c"), "size": 2});
        let manifest = json!({"schemaVersion": 2, "config": config, "layers": []});
        assert!(matches!(check(media_type::OCI_MANIFEST, manifest.clone()), Ok(Document::Manifest(_))));
        assert!(matches!(check("", manifest.clone()), Ok(Document::Manifest(_))));
        assert!(matches!(check(media_type::OCI_INDEX, json!({"manifests": []})), Ok(Document::Index(_))));
        assert!(matches!(check("", json!({"schemaVersion": 1})), Err(ManifestError::Schema1(_))));
        assert!(matches!(check("", json!({"manifests": [], "config": config})), Err(ManifestError::Invalid { .. })));
        assert!(matches!(check("text/x", json!({})), Err(ManifestError::NotAnImage { .. })));
        let chart = json!({"config": {"mediaType": "application/vnd.cncf.helm.config.v1+json", "digest": Digest::sha256_of(b"c"), "size": 2}});
        assert!(matches!(check("", chart), Err(ManifestError::NotAnImage { .. })));
        let sealed = json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip+encrypted", "digest": Digest::sha256_of(b"l"), "size": 2});
        assert!(matches!(check("", json!({"config": config, "layers": [sealed]})), Err(ManifestError::Invalid { .. })));
        let lies = json!({"mediaType": media_type::OCI_INDEX, "config": config});
        assert!(matches!(check(media_type::OCI_MANIFEST, lies), Err(ManifestError::Invalid { .. })));
        let many: Vec<_> = (0..501).map(|_| config.clone()).collect();
        assert!(matches!(check("", json!({"config": config, "layers": many})), Err(ManifestError::Invalid { .. })));
    }

    #[test]
    fn the_best_platform_is_chosen_and_attestations_never() {
        let wanted = Node { os: "linux", architecture: "arm64", variants: &["v8", ""] };
        let digest = Digest::sha256_of(b"index");
        let entries = [
            entry("attestation", json!({"os": "unknown", "architecture": "unknown"})),
            entry("amd64", json!({"os": "linux", "architecture": "amd64"})),
            entry("plain", json!({"os": "linux", "architecture": "arm64"})),
            entry("v8", json!({"os": "linux", "architecture": "arm64", "variant": "v8"})),
        ];
        assert_eq!(choose(&digest, &entries, &wanted).unwrap().digest, Digest::sha256_of(b"v8"));
        assert_eq!(choose(&digest, &entries[..3], &wanted).unwrap().digest, Digest::sha256_of(b"plain"));
        assert_eq!(
            choose(&digest, &entries[..2], &wanted).unwrap_err().to_string(),
            format!("no image for linux/arm64 in {digest}; it has: linux/amd64")
        );
    }

    #[test]
    fn chain_ids_are_the_specifications() {
        let (a, b) = (Digest::sha256_of(b"a"), Digest::sha256_of(b"b"));
        let expected = Digest::sha256_of(format!("{a} {b}").as_bytes()).to_string();
        assert_eq!(chain_ids(&[a.clone(), b]), [a.to_string(), expected]);
        assert_eq!(chain_ids(&[]), Vec::<String>::new());
    }

    #[test]
    fn a_configuration_must_fit_the_manifest_and_the_node() {
        let node = Node { os: "linux", architecture: "amd64", variants: &[""] };
        let manifest = Manifest { config: descriptor("c"), layers: vec![descriptor("l")] };
        let config = |arch: &str, ids: Vec<String>| {
            let json = json!({"architecture": arch, "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}});
            parse_config(&manifest, json.to_string().as_bytes(), Some(&node))
        };
        let id = Digest::sha256_of(b"layer");
        assert_eq!(config("amd64", vec![id.to_string()]).unwrap(), std::slice::from_ref(&id));
        assert!(matches!(config("arm64", vec![id.to_string()]), Err(ManifestError::NoPlatform { .. })));
        assert!(matches!(config("amd64", vec![]), Err(ManifestError::Invalid { .. })));
        assert!(matches!(config("amd64", vec!["sha256:zz".into()]), Err(ManifestError::Invalid { .. })));
    }
}
