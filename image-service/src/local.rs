//! An image whose blobs are on this node: what it is made of, from what its name stands for.
//!
//! Blocks. Only [`Local::unpack`] changes something.

use std::{collections::BTreeMap, sync::atomic::AtomicBool};

use snapshotter::Snapshotter;
use store::Namespace;

use crate::{
    arrival::Follower,
    digest::Digest,
    images::{Error, Shared},
    manifest::{
        Document, MAX_DOCUMENT, MAX_NESTING, Manifest, ManifestError, chain_ids, choose, parse_config, parse_document,
    },
    mark::labels_of,
    platform::Node,
    registry::Descriptor,
    store::{self as rows, Contents},
    unpack::{self, Layer},
};

/// An image, all of whose blobs are here.
pub(crate) struct Local {
    /// Indexes and the manifest, from the target on.
    pub(crate) documents: Vec<Descriptor>,
    pub(crate) manifest: Manifest,
    pub(crate) diff_ids: Vec<Digest>,
    /// The chain id of each layer, bottom first.
    pub(crate) chain: Vec<String>,
}

#[derive(Debug)]
pub(crate) enum LocalError {
    Missing(Digest),
    Manifest(ManifestError),
    Failed(Error),
}

impl From<Error> for LocalError {
    fn from(error: Error) -> LocalError {
        LocalError::Failed(error)
    }
}

impl From<ManifestError> for LocalError {
    fn from(error: ManifestError) -> LocalError {
        LocalError::Manifest(error)
    }
}

impl Local {
    /// Follows the target to its manifest for this node. `claim` is called for each blob before it is looked for.
    pub(crate) fn find(
        shared: &Shared,
        ns: &Namespace,
        target: &Descriptor,
        claim: &mut dyn FnMut(&Digest),
    ) -> Result<Local, LocalError> {
        let mut look = |descriptor: &Descriptor| {
            claim(&descriptor.digest);
            check(shared, ns, descriptor)
        };
        let mut documents = Vec::new();
        let mut descriptor = target.clone();
        let manifest = loop {
            if documents.len() == MAX_NESTING {
                let problem = format!("is nested more than {MAX_NESTING} indexes deep");
                return Err(ManifestError::Invalid { digest: target.digest.clone(), problem }.into());
            }
            look(&descriptor)?;
            let bytes = document(shared, &descriptor)?;
            let parsed = parse_document(&descriptor, &bytes)?;
            documents.push(descriptor.clone());
            match parsed {
                Document::Manifest(manifest) => break *manifest,
                Document::Index(entries) => {
                    descriptor = choose(&descriptor.digest, &entries, &Node::host())?.clone();
                }
            }
        };
        look(&manifest.config)?;
        manifest.layers.iter().try_for_each(&mut look)?;
        // Whoever chose by the platform of an index is sure of it already.
        let node = (documents.len() > 1 && descriptor.platform.is_none()).then(Node::host);
        let diff_ids = parse_config(&manifest, &document(shared, &manifest.config)?, node.as_ref())?;
        let chain = chain_ids(&diff_ids);
        Ok(Local { documents, manifest, diff_ids, chain })
    }

    /// Every blob, documents first.
    pub(crate) fn blobs(&self) -> impl Iterator<Item = &Descriptor> {
        self.documents.iter().chain([&self.manifest.config]).chain(&self.manifest.layers)
    }

    /// How the blobs refer to each other.
    pub(crate) fn labels(&self, snapshotter: &str) -> Vec<(Digest, BTreeMap<String, String>)> {
        let digests = |blobs: &[Descriptor]| blobs.iter().map(|blob| blob.digest.clone()).collect::<Vec<_>>();
        let (documents, layers) = (digests(&self.documents), digests(&self.manifest.layers));
        labels_of(&documents, &self.manifest.config.digest, &layers, snapshotter, self.chain.last())
    }

    /// Makes the layers that are not there, bottom first, and says how many; what fails stays made up to there. All blobs and
    /// chain ids are claimed.
    pub(crate) fn unpack(
        &self,
        shared: &Shared,
        ns: &Namespace,
        snapshotter: &dyn Snapshotter,
        cancelled: &AtomicBool,
    ) -> Result<usize, Error> {
        let (budget, mut made) = (shared.config.budget(), 0);
        for (position, layer) in self.manifest.layers.iter().enumerate() {
            let chain_id = &self.chain[position];
            let _turn = shared.claims.turn_blocking(chain_id);
            let parent = position.checked_sub(1).map(|below| self.chain[below].as_str());
            if unpack::is_unpacked(snapshotter, ns, chain_id)? {
                unpack::count(snapshotter, ns, chain_id, parent, &budget)?;
                continue;
            }
            let layer = Layer {
                namespace: ns,
                blob: Follower::of(shared.content.open_blob(&layer.digest)?, layer.size),
                digest: &layer.digest,
                diff_id: &self.diff_ids[position],
                chain_id,
                parent,
                cancelled,
                limits: &shared.config.limits,
                budget: &budget,
            };
            unpack::unpack(snapshotter, layer)?;
            made += 1;
        }
        Ok(made)
    }

    pub(crate) fn contents(&self, target: &Descriptor) -> Contents {
        let manifest = self.documents.last().unwrap_or(target);
        Contents {
            id: self.manifest.config.digest.clone(),
            target: target.digest.clone(),
            manifest: manifest.digest.clone(),
            blobs: self.blobs().map(|blob| blob.digest.clone()).collect(),
            chain: self.chain.clone(),
            size: manifest.size.saturating_add(self.manifest.size()),
        }
    }
}

fn document(shared: &Shared, descriptor: &Descriptor) -> Result<Vec<u8>, LocalError> {
    if descriptor.size > MAX_DOCUMENT {
        let problem = format!("has {} bytes, at most {MAX_DOCUMENT} are read", descriptor.size);
        return Err(ManifestError::Invalid { digest: descriptor.digest.clone(), problem }.into());
    }
    Ok(shared.content.read(&descriptor.digest)?)
}

/// The blob is this namespace's, and as large as is said of it.
fn check(shared: &Shared, ns: &Namespace, descriptor: &Descriptor) -> Result<(), LocalError> {
    let digest = &descriptor.digest;
    let known = shared.store.read_blocking(|conn| rows::has_blob(conn, ns, digest))?;
    if !known || !shared.content.has(digest) {
        return Err(LocalError::Missing(digest.clone()));
    }
    let failed = |source| Error::failed(format!("look at blob {digest}"), source);
    let size = shared.content.open_blob(digest)?.metadata().map_err(failed)?.len();
    if size != descriptor.size {
        let problem = format!("has {size} bytes, its descriptor says {}", descriptor.size);
        return Err(ManifestError::Invalid { digest: digest.clone(), problem }.into());
    }
    Ok(())
}
