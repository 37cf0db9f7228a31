//! `manifest.json` of `docker save`: configurations and layers by the names of their files.
//!
//! Such an archive has no manifests of its own, so one is made for each image. Its digest means nothing elsewhere, and the
//! image gets no name by it.

use serde::Deserialize;
use serde_json::json;

use super::{
    Found, Import, ImportError, parse_name,
    read::{Packed, parse},
};
use crate::{
    digest::Digest,
    images::Error,
    registry::{Descriptor, media_type},
    unpack::{Compression, compression_of},
};

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

pub(super) fn images(import: &mut Import<'_>, packed: &Packed, bytes: &[u8]) -> Result<Vec<Found>, ImportError> {
    let entries: Vec<Entry> = parse("manifest.json", bytes)?;
    if entries.is_empty() {
        return Err(ImportError::Invalid("its manifest.json names no image".into()));
    }
    let mut found = Vec::new();
    for entry in entries {
        let target = make_manifest(import, packed, &entry)?;
        let names = entry.repo_tags.unwrap_or_default();
        if names.is_empty() {
            found.push(Found { name: None, target: target.clone(), has_digest: false });
        }
        for name in names {
            found.push(Found { name: Some(parse_name(&name)?), target: target.clone(), has_digest: false });
        }
    }
    Ok(found)
}

fn make_manifest(import: &mut Import<'_>, packed: &Packed, entry: &Entry) -> Result<Descriptor, ImportError> {
    let config = packed.file(&entry.config)?;
    check_config_name(&entry.config, config)?;
    let config = describe(import, config, CONFIG.to_owned())?;
    let mut layers = Vec::new();
    for name in entry.layers.iter().flatten() {
        let digest = packed.file(name)?;
        let suffix = match compression_at(import, digest)? {
            Compression::None => "",
            Compression::Gzip => "+gzip",
            Compression::Zstd => "+zstd",
        };
        layers.push(describe(import, digest, format!("{LAYER}{suffix}"))?);
    }
    let manifest =
        json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers});
    let manifest = manifest.to_string();
    let digest = import.keep(manifest.as_bytes())?;
    Ok(Descriptor::new(media_type::OCI_MANIFEST, digest, manifest.len() as u64))
}

/// Docker calls the configuration `<image id>.json`, and others `sha256:<image id>`: then it has to be that image.
fn check_config_name(name: &str, found: &Digest) -> Result<(), ImportError> {
    let stem = name.rsplit('/').next().unwrap_or_default();
    let stem = stem.strip_suffix(".json").unwrap_or(stem);
    let stem = stem.strip_prefix("sha256:").unwrap_or(stem);
    match Digest::parse(&format!("sha256:{stem}")) {
        Ok(wanted) if wanted != *found => {
            Err(ImportError::Invalid(format!("its configuration {name:?} has other content: its digest is {found}")))
        }
        _ => Ok(()),
    }
}

fn compression_at(import: &Import<'_>, digest: &Digest) -> Result<Compression, ImportError> {
    use std::io::Read;
    let mut start = Vec::new();
    let read = import.shared.content.open_blob(digest)?.take(8).read_to_end(&mut start);
    read.map_err(|source| Error::failed(format!("read blob {digest}"), source))?;
    Ok(compression_of(&start))
}

fn describe(import: &Import<'_>, digest: &Digest, media_type: String) -> Result<Descriptor, ImportError> {
    let file = import.shared.content.open_blob(digest)?;
    let meta = file.metadata().map_err(|source| Error::failed(format!("look at blob {digest}"), source))?;
    Ok(Descriptor::new(media_type, digest.clone(), meta.len()))
}
