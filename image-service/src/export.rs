//! Images into an archive that every tool reads: an OCI image layout with Docker's `manifest.json` beside the index.
//!
//! ```text
//! oci-layout  index.json  manifest.json  blobs/<algorithm>/<hex>…
//! ```
//!
//! Of an index, what this node pulled is written: the index as it is, so that its digest goes on being the image's, and
//! below it the image for this node's platform.

use std::{
    collections::BTreeSet,
    io::{self, Read, Write},
};

use serde_json::json;
use store::Namespace;
use tar_core::{EntryType, builder::EntryBuilder};

use crate::{
    claims::Claim,
    digest::Digest,
    images::{Error, Images, Shared},
    local::{Local, LocalError},
    manifest::ManifestError,
    reference::Reference,
    registry::{Descriptor, media_type},
    store as rows,
};

/// A tar archive consists of these.
const BLOCK: usize = 512;

/// Why images were not exported. What was written until then is of no use.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    #[error("image {0:?} is not on this node")]
    NotFound(String),
    /// `discard_unpacked_layers` drops blobs when they are unpacked.
    #[error(
        "image {name} cannot be exported, its blob {digest} was discarded when it was unpacked; pull it again without discard_unpacked_layers"
    )]
    Discarded { name: String, digest: Digest },
    #[error("export image {name}")]
    Manifest { name: String, source: ManifestError },
    #[error("write the image archive")]
    Write(#[source] io::Error),
    #[error("export images")]
    Failed(#[from] Error),
}

/// One image to write, under one name.
struct Item {
    /// None if it was asked for by its id.
    name: Option<Reference>,
    target: Descriptor,
    local: Local,
}

impl Images {
    /// Writes the images of these names (tags, `repo@digest` or ids) to `archive`, and gives it back.
    pub async fn export<W: Write + Send + 'static>(
        &self,
        namespace: Namespace,
        names: Vec<String>,
        mut archive: W,
    ) -> Result<W, ExportError> {
        let images = self.clone();
        let exporting = self.shared.tasks.spawn_blocking(move || {
            let shared = &images.shared;
            // Held until all is written.
            let mut claims: Vec<Claim> = Vec::new();
            let mut items = Vec::new();
            for name in &names {
                items.push(images.find(&namespace, name, &mut claims)?);
            }
            write(shared, &items, &mut archive)?;
            archive.flush().map_err(ExportError::Write)?;
            Ok(archive)
        });
        exporting.await.map_err(|source| Error::failed("export images", source))?
    }

    fn find(&self, ns: &Namespace, name: &str, claims: &mut Vec<Claim>) -> Result<Item, ExportError> {
        let shared = &self.shared;
        let image = self.resolve(ns, name).ok_or_else(|| ExportError::NotFound(name.to_owned()))?;
        let own = Reference::parse(name).ok().map(|reference| reference.to_string());
        let own = own.filter(|own| image.tags.contains(own) || image.digests.contains(own));
        let row = own.clone().unwrap_or_else(|| image.id.to_string());
        let target = shared.store.read_blocking(|conn| rows::target(conn, ns, &row))?;
        let target = target.ok_or_else(|| ExportError::NotFound(name.to_owned()))?;
        let found = Local::find(shared, ns, &target, &mut |digest| {
            claims.push(shared.claims.claim_blocking(&digest.to_string()));
        });
        let local = found.map_err(|error| match error {
            LocalError::Missing(digest) => ExportError::Discarded { name: name.to_owned(), digest },
            LocalError::Manifest(source) => ExportError::Manifest { name: name.to_owned(), source },
            LocalError::Failed(error) => ExportError::Failed(error),
        })?;
        Ok(Item { name: own.and_then(|own| Reference::parse(&own).ok()), target, local })
    }
}

fn write(shared: &Shared, items: &[Item], archive: &mut dyn Write) -> Result<(), ExportError> {
    // Small documents first, so that a reader of the stream knows what comes.
    file(archive, "oci-layout", json!({"imageLayoutVersion": "1.0.0"}).to_string().as_bytes())?;
    let entries: Vec<Descriptor> = items.iter().map(entry).collect();
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": entries});
    file(archive, "index.json", index.to_string().as_bytes())?;
    file(archive, "manifest.json", docker_manifest(items).to_string().as_bytes())?;
    let mut written: BTreeSet<&Digest> = BTreeSet::new();
    for blob in items.iter().flat_map(|item| item.local.blobs()) {
        if written.insert(&blob.digest) {
            let source = shared.content.open_blob(&blob.digest)?;
            header(archive, &blob_name(&blob.digest), blob.size)?;
            copy(&mut source.take(blob.size), blob, archive)?;
        }
    }
    archive.write_all(&[0; 2 * BLOCK]).map_err(ExportError::Write)
}

/// The entry of the index, with the names that containerd and others look for.
fn entry(item: &Item) -> Descriptor {
    let mut entry = item.target.clone();
    if let Some(name) = &item.name {
        entry.annotations.insert("io.containerd.image.name".into(), name.to_string());
        if let Some(tag) = name.tag() {
            entry.annotations.insert("org.opencontainers.image.ref.name".into(), tag.to_owned());
        }
    }
    entry
}

/// For `docker load`: an entry for each image, with all of its tags.
fn docker_manifest(items: &[Item]) -> serde_json::Value {
    let mut seen: BTreeSet<&Digest> = BTreeSet::new();
    let images = items.iter().filter(|item| seen.insert(&item.local.manifest.config.digest));
    let entries = images.map(|item| {
        let config = &item.local.manifest.config.digest;
        let same = items.iter().filter(|other| other.local.manifest.config.digest == *config);
        let tags: BTreeSet<String> =
            same.filter_map(|other| other.name.as_ref()?.tag().and(other.name.as_ref())).map(familiar).collect();
        let layers: Vec<String> = item.local.manifest.layers.iter().map(|layer| blob_name(&layer.digest)).collect();
        json!({"Config": blob_name(config), "RepoTags": tags, "Layers": layers})
    });
    entries.collect()
}

/// As Docker shows it: its own registry and `library/` are left out.
fn familiar(name: &Reference) -> String {
    let text = name.to_string();
    let short = text.strip_prefix("docker.io/").unwrap_or(&text);
    short.strip_prefix("library/").unwrap_or(short).to_owned()
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm().as_str(), digest.hex())
}

fn file(archive: &mut dyn Write, name: &str, content: &[u8]) -> Result<(), ExportError> {
    header(archive, name, content.len() as u64)?;
    archive.write_all(content).and_then(|()| pad(archive, content.len() as u64)).map_err(ExportError::Write)
}

fn copy(source: &mut dyn Read, blob: &Descriptor, archive: &mut dyn Write) -> Result<(), ExportError> {
    let mut buffer = vec![0; 256 << 10];
    let mut rest = blob.size;
    while rest > 0 {
        let count =
            source.read(&mut buffer).map_err(|source| Error::failed(format!("read blob {}", blob.digest), source))?;
        if count == 0 {
            return Err(Error::Corrupt(format!("blob {} is shorter than it was", blob.digest)).into());
        }
        archive.write_all(&buffer[..count]).map_err(ExportError::Write)?;
        rest -= count as u64;
    }
    pad(archive, blob.size).map_err(ExportError::Write)
}

fn header(archive: &mut dyn Write, name: &str, size: u64) -> Result<(), ExportError> {
    let mut entry = EntryBuilder::new_ustar();
    let blocks = entry.path(name).entry_type(EntryType::Regular).mode(0o644).and_then(|entry| {
        // The same images give the same archive.
        Ok(entry.size(size)?.uid(0)?.gid(0)?.mtime(0)?.finish_bytes())
    });
    let blocks = blocks.map_err(|error| Error::failed(format!("describe {name}"), error.to_string()))?;
    archive.write_all(&blocks).map_err(ExportError::Write)
}

fn pad(archive: &mut dyn Write, size: u64) -> io::Result<()> {
    let used = (size % BLOCK as u64) as usize;
    if used == 0 { Ok(()) } else { archive.write_all(&[0; BLOCK][used..]) }
}
