//! `index.json` of an OCI image layout: which images there are, and their names.
//!
//! The specification leaves names to annotations: containerd and Docker write the whole reference as
//! `io.containerd.image.name`; skopeo and umoci write `org.opencontainers.image.ref.name`, which may be a reference or just
//! a tag.

use std::collections::BTreeMap;

use super::{Found, ImportError, parse_name, read::Packed};
use crate::{
    digest::Digest,
    manifest::{Document, choose, is_attestation, parse_document},
    platform::Node,
    reference::Reference,
    registry::Descriptor,
};

const FULL_NAME: &str = "io.containerd.image.name";
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// Every image of the index. Entries of one name are the same image for several platforms; the one for this node is taken.
pub(super) fn images(packed: &Packed, repository: Option<&str>) -> Result<Vec<Found>, ImportError> {
    let Some(bytes) = packed.document("index.json") else {
        return Err(ImportError::Invalid("it is an OCI image layout without an index.json".into()));
    };
    // The index itself is no blob; only its form is looked at.
    let own = Descriptor::new("", Digest::sha256_of(bytes), bytes.len() as u64);
    let entries = match parse_document(&own, bytes)? {
        Document::Index(entries) => entries,
        Document::Manifest(_) => return Err(ImportError::Invalid("its index.json is not an index".into())),
    };
    let mut named: BTreeMap<Option<String>, Vec<Descriptor>> = BTreeMap::new();
    let mut order = Vec::new();
    for entry in entries.into_iter().filter(|entry| !is_attestation(entry)) {
        let name = name_of(&entry, repository)?.map(|name| name.to_string());
        if !named.contains_key(&name) {
            order.push(name.clone());
        }
        named.entry(name).or_default().push(entry);
    }
    let mut found = Vec::new();
    for name in order {
        let entries = named.remove(&name).unwrap_or_default();
        let reference = name.as_deref().map(parse_name).transpose()?;
        let chosen = match (entries.as_slice(), &reference) {
            ([only], _) => vec![only.clone()],
            (several, Some(_)) => vec![choose(&own.digest, several, &Node::host())?.clone()],
            // Without a name, each is an image of its own.
            (_, None) => entries,
        };
        for target in chosen {
            check_digest(reference.as_ref(), &target)?;
            found.push(Found { name: reference.clone(), target, has_digest: true });
        }
    }
    match found.is_empty() {
        true => Err(ImportError::Invalid("its index.json names no image".into())),
        false => Ok(found),
    }
}

fn name_of(entry: &Descriptor, repository: Option<&str>) -> Result<Option<Reference>, ImportError> {
    if let Some(name) = entry.annotations.get(FULL_NAME).filter(|name| !name.is_empty()) {
        return parse_name(name).map(Some);
    }
    let Some(name) = entry.annotations.get(REF_NAME).filter(|name| !name.is_empty()) else { return Ok(None) };
    let is_reference = name.contains(['/', ':', '@']);
    match (is_reference, repository) {
        (true, _) => parse_name(name).map(Some),
        (false, Some(repository)) => parse_name(&format!("{repository}:{name}")).map(Some),
        (false, None) => Ok(None),
    }
}

/// A name with a digest is a promise about the content.
fn check_digest(name: Option<&Reference>, target: &Descriptor) -> Result<(), ImportError> {
    match name.and_then(|name| Some((name, name.digest()?))) {
        Some((name, digest)) if *digest != target.digest => {
            Err(ImportError::Invalid(format!("it gives the name {name} to {}", target.digest)))
        }
        _ => Ok(()),
    }
}
