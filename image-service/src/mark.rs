//! What collection keeps: what images are made of, what leases hold, and what that refers to.
//!
//! Images say themselves what they are made of (`Contents`). What a lease holds says it by labels, as containerd's clients
//! and our own pulls write them: `containerd.io/gc.ref.content…` names a blob, `containerd.io/gc.ref.snapshot.<snapshotter>`
//! a snapshot. Of a flat lease they are not followed. Parents of snapshots are kept in any case.

use std::collections::{BTreeMap, BTreeSet};

use store::Namespace;

use crate::{
    digest::Digest,
    images::{Error, Shared},
    leases::{self, Resource, rows::Held},
    store::{self as rows, Contents},
};

const CONTENT_REF: &str = "containerd.io/gc.ref.content";
const SNAPSHOT_REF: &str = "containerd.io/gc.ref.snapshot.";

/// What is kept of one namespace.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Marks {
    pub(crate) blobs: BTreeSet<Digest>,
    /// Kept in every snapshotter: chain ids of images.
    pub(crate) chains: BTreeSet<String>,
    /// Kept in one, by its name.
    pub(crate) snapshots: BTreeMap<String, BTreeSet<String>>,
}

/// What all namespaces keep.
#[derive(Debug, Default)]
pub(crate) struct Marked {
    pub(crate) namespaces: BTreeMap<Namespace, Marks>,
    /// Digests of blobs whose starts are kept.
    pub(crate) ingests: BTreeSet<String>,
}

impl Marks {
    pub(crate) fn in_snapshotter(&self, name: &str) -> BTreeSet<String> {
        self.chains.iter().chain(self.snapshots.get(name).into_iter().flatten()).cloned().collect()
    }
}

impl Shared {
    /// Every namespace that has blobs is in the answer. To be called behind the gate.
    pub(crate) fn mark(&self) -> Result<Marked, Error> {
        let (contents, with_blobs, leases) = self.store.read_blocking(|conn| {
            Ok::<_, Error>((rows::contents(conn)?, rows::namespaces(conn)?, leases::rows::held(conn)?))
        })?;
        let mut marked = Marked::default();
        for ns in with_blobs.into_iter().chain([Namespace::k8s()]) {
            marked.namespaces.entry(ns).or_default();
        }
        for (ns, Contents { blobs, chain, .. }) in contents {
            let marks = marked.namespaces.entry(ns).or_default();
            marks.blobs.extend(blobs);
            marks.chains.extend(chain);
        }
        for lease in leases {
            for resource in &lease.resources {
                if let Resource::Ingest(reference) = resource {
                    marked.ingests.extend(digest_of(reference));
                }
            }
            let marks = marked.namespaces.entry(lease.namespace.clone()).or_default();
            self.mark_lease(lease, marks)?;
        }
        Ok(marked)
    }

    fn mark_lease(&self, lease: Held, marks: &mut Marks) -> Result<(), Error> {
        let ns = &lease.namespace;
        // What was marked for an image or a flat lease may refer to more, so that each lease goes its own way.
        let mut seen = BTreeSet::new();
        let mut waiting = lease.resources;
        while let Some(resource) = waiting.pop() {
            if !seen.insert(resource.clone()) {
                continue;
            }
            let labels = match &resource {
                Resource::Content(digest) => {
                    marks.blobs.insert(digest.clone());
                    self.store.read_blocking(|conn| rows::blob_labels(conn, ns, digest))?
                }
                Resource::Snapshot { snapshotter, key } => {
                    marks.snapshots.entry(snapshotter.clone()).or_default().insert(key.clone());
                    match self.snapshotters.get(snapshotter).map(|snapshotter| snapshotter.stat(ns, key)) {
                        Some(Ok(info)) => info.labels,
                        None | Some(Err(snapshotter::Error::NotFound { .. })) => continue,
                        Some(Err(source)) => {
                            return Err(Error::failed(format!("look at leased snapshot {key}"), source));
                        }
                    }
                }
                Resource::Ingest(_) | Resource::Image(_) => continue,
            };
            if !lease.is_flat {
                waiting.extend(references(&labels));
            }
        }
        Ok(())
    }
}

/// What labels refer to. What cannot be read refers to nothing.
fn references(labels: &BTreeMap<String, String>) -> impl Iterator<Item = Resource> {
    let is_end = |rest: &str| rest.is_empty() || rest.starts_with(['.', '/']);
    labels.iter().filter_map(move |(label, value)| {
        if label.strip_prefix(CONTENT_REF).is_some_and(is_end) {
            return Digest::parse(value).ok().map(Resource::Content);
        }
        let snapshotter = label.strip_prefix(SNAPSHOT_REF)?.split('/').next()?.to_owned();
        Some(Resource::Snapshot { snapshotter, key: value.clone() })
    })
}

/// The digest of a download's reference, such as `layer-sha256:…`.
fn digest_of(reference: &str) -> Option<String> {
    let (_, digest) = reference.rsplit_once('-')?;
    Digest::parse(digest).ok().map(|digest| digest.to_string())
}

/// The labels by which the documents of a pulled image refer to each other, as containerd writes them: index to manifest,
/// manifest to configuration and layers, configuration to what the layers were unpacked to.
pub(crate) fn labels_of(
    documents: &[Digest],
    config: &Digest,
    layers: &[Digest],
    snapshotter: &str,
    top: Option<&String>,
) -> Vec<(Digest, BTreeMap<String, String>)> {
    let mut labels: Vec<(Digest, BTreeMap<String, String>)> = Vec::new();
    for pair in documents.windows(2) {
        labels.push((pair[0].clone(), BTreeMap::from([(format!("{CONTENT_REF}.m.0"), pair[1].to_string())])));
    }
    if let Some(manifest) = documents.last() {
        let layers = layers.iter().enumerate().map(|(at, layer)| (format!("{CONTENT_REF}.l.{at}"), layer.to_string()));
        let config = (format!("{CONTENT_REF}.config"), config.to_string());
        labels.push((manifest.clone(), layers.chain([config]).collect()));
    }
    if let Some(top) = top {
        labels.push((config.clone(), BTreeMap::from([(format!("{SNAPSHOT_REF}{snapshotter}"), top.clone())])));
    }
    labels
}

/// Adds the snapshots that these stand on.
pub(crate) fn with_parents(snapshots: &[snapshotter::Info], mut keys: BTreeSet<String>) -> BTreeSet<String> {
    let parents: BTreeMap<&str, &str> =
        snapshots.iter().filter_map(|info| Some((info.key.as_str(), info.parent.as_deref()?))).collect();
    for key in keys.clone() {
        let mut at = key.as_str();
        while let Some(parent) = parents.get(at)
            && keys.insert((*parent).to_owned())
        {
            at = parent;
        }
    }
    keys
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_refer_as_containerds_do() {
        let digest = Digest::sha256_of(b"x");
        let text = digest.to_string();
        let check = |label: &str, value: &str, expected: Option<Resource>| {
            let labels = BTreeMap::from([(label.to_owned(), value.to_owned())]);
            assert_eq!(references(&labels).next(), expected, "{label}={value}");
        };
        let content = || Some(Resource::Content(digest.clone()));
        for label in ["gc.ref.content", "gc.ref.content.0", "gc.ref.content.l.7", "gc.ref.content/any"] {
            check(&format!("containerd.io/{label}"), &text, content());
        }
        check("containerd.io/gc.ref.contents", &text, None);
        check("containerd.io/gc.ref.content", "no digest", None);
        check("containerd.io/uncompressed", &text, None);
        let snapshot = |name: &str| Some(Resource::Snapshot { snapshotter: name.into(), key: "key".into() });
        check("containerd.io/gc.ref.snapshot.overlayfs", "key", snapshot("overlayfs"));
        check("containerd.io/gc.ref.snapshot.native/second", "key", snapshot("native"));
    }

    #[test]
    fn references_of_downloads_end_in_their_digest() {
        let digest = Digest::sha256_of(b"x").to_string();
        assert_eq!(digest_of(&format!("layer-{digest}")), Some(digest));
        for other in ["layer-x", "layer", "", "layer-sha256:"] {
            assert_eq!(digest_of(other), None, "{other}");
        }
    }

    #[test]
    fn an_image_refers_to_all_of_itself() {
        let [index, manifest, config, layer] = [b"i", b"m", b"c", b"l"].map(|name| Digest::sha256_of(name));
        let top = "sha256:top".to_owned();
        let labels =
            labels_of(&[index.clone(), manifest.clone()], &config, std::slice::from_ref(&layer), "native", Some(&top));
        let found: Vec<(Digest, Vec<Resource>)> =
            labels.into_iter().map(|(from, labels)| (from, references(&labels).collect())).collect();
        let content = |digest: &Digest| Resource::Content(digest.clone());
        let snapshot = Resource::Snapshot { snapshotter: "native".into(), key: top };
        assert_eq!(
            found,
            [
                (index, vec![content(&manifest)]),
                (manifest, vec![content(&config), content(&layer)]),
                (config, vec![snapshot])
            ]
        );
    }
}
