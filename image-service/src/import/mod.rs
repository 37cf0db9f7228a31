//! Images from an archive: a tar of an OCI image layout, or what `docker save` writes, compressed or not.
//!
//! ```text
//! read.rs   one pass over the stream ─► every file a verified blob, documents in memory
//! oci.rs    index.json     ─► names and what they stand for ┐
//! docker.rs manifest.json  ─► the same, manifests made      ┘─► found.rs walk ─► unpack ─► one commit of all
//! ```
//!
//! The archive is hostile input. Names in it are keys of a map and never paths. Nothing of an archive is shown before all
//! of its images are unpacked, and what a failed import brought is gone before its caller hears of it.

mod docker;
mod oci;
mod read;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Read,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use snapshotter::apply;
use store::Namespace;

use crate::{
    claims::Claim,
    digest::Digest,
    images::{Error, Image, Images, Shared},
    local::{Local, LocalError},
    manifest::ManifestError,
    reference::Reference,
    registry::Descriptor,
    store::{self as rows, Named},
};

/// What to do with an archive's images.
#[derive(Clone, Debug)]
pub struct ImportRequest {
    pub namespace: Namespace,
    /// Where to unpack, if not into the default snapshotter.
    pub snapshotter: Option<String>,
    /// The repository of images that the archive gives only a tag.
    pub repository: Option<String>,
    /// Marks the images as never to be offered for garbage collection.
    pub pinned: bool,
}

/// Why an archive was not imported. Nothing of it was.
#[derive(Debug, thiserror::Error)]
pub enum ImportError {
    #[error("the image archive is not valid: {0}")]
    Invalid(String),
    #[error("the image archive is not valid")]
    Manifest(#[from] ManifestError),
    #[error("the image archive holds more than {limit} {what}")]
    TooMuch { what: &'static str, limit: u64 },
    #[error("read the image archive")]
    Read(#[source] std::io::Error),
    #[error("import an image archive")]
    Failed(#[from] Error),
    #[error("the import was cancelled")]
    Cancelled,
}

/// A name that the archive gives to an image.
pub(crate) struct Found {
    /// None: the image is known by its id only.
    pub(crate) name: Option<Reference>,
    pub(crate) target: Descriptor,
    /// Whether the target is a document of the archive's, whose digest means something elsewhere.
    pub(crate) has_digest: bool,
}

/// One import on its blocking thread.
pub(crate) struct Import<'a> {
    pub(crate) shared: &'a Shared,
    pub(crate) request: &'a ImportRequest,
    pub(crate) cancelled: &'a AtomicBool,
    /// Held until the images' rows refer to the same.
    pub(crate) claims: Vec<Claim>,
}

impl Images {
    /// Takes in all images of the archive, or none. Dropping the future cancels it.
    pub async fn import(
        &self,
        request: ImportRequest,
        archive: impl Read + Send + 'static,
    ) -> Result<Vec<Arc<Image>>, ImportError> {
        let cancelled = Arc::new(AtomicBool::new(false));
        let _cancel = CancelOnDrop(Arc::clone(&cancelled));
        // On a task of its own, so that what a cancelled import brought is collected nevertheless.
        let importing = self.shared.tasks.spawn(self.clone().take_in(request, Box::new(archive), cancelled));
        importing.await.map_err(|source| Error::failed("import an image archive", source))?
    }

    async fn take_in(
        self,
        request: ImportRequest,
        archive: Box<dyn Read + Send>,
        cancelled: Arc<AtomicBool>,
    ) -> Result<Vec<Arc<Image>>, ImportError> {
        let (shared, namespace) = (Arc::clone(&self.shared), request.namespace.clone());
        let importing = self.shared.tasks.spawn_blocking(move || {
            let mut import = Import { shared: &shared, request: &request, cancelled: &cancelled, claims: Vec::new() };
            import.run(archive)
        });
        let imported = importing.await.map_err(|source| Error::failed("import an image archive", source))?;
        match imported {
            Ok(ids) => {
                self.settle();
                // Files of the archive that no image of this node needs.
                self.collect().await?;
                let found = |id: &Digest| self.resolve(&namespace, &id.to_string());
                Ok(ids.iter().filter_map(found).collect())
            }
            Err(error) => {
                if let Err(error) = self.collect().await {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(error, "what a failed import left is collected later");
                }
                Err(error)
            }
        }
    }
}

struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

impl Import<'_> {
    /// The ids of the images, each once, in the archive's order.
    fn run(&mut self, mut archive: Box<dyn Read + Send>) -> Result<Vec<Digest>, ImportError> {
        // Told before anything is read for nothing.
        self.shared.snapshotter(self.request.snapshotter.as_deref())?;
        let packed = self.read(&mut archive)?;
        drop(archive);
        let found = match (packed.layout()?, packed.document("manifest.json")) {
            (true, _) => oci::images(&packed, self.request.repository.as_deref())?,
            (false, Some(manifest)) => docker::images(self, &packed, manifest)?,
            (false, None) => {
                let what = "it holds neither oci-layout (an OCI image layout) nor manifest.json (docker save)";
                return Err(ImportError::Invalid(what.into()));
            }
        };
        let mut images: Vec<(Found, Local)> = Vec::with_capacity(found.len());
        for found in found {
            let local = self.walk(&found)?;
            self.unpack(&local)?;
            images.push((found, local));
        }
        self.commit(images)
    }

    /// What the target is made of; all of it has to be here.
    fn walk(&mut self, found: &Found) -> Result<Local, ImportError> {
        let (shared, ns) = (self.shared, &self.request.namespace);
        let local = Local::find(shared, ns, &found.target, &mut |digest| {
            let claim = shared.claims.claim_blocking(&digest.to_string());
            self.claims.push(claim);
        });
        local.map_err(|error| match error {
            LocalError::Missing(digest) => {
                let name = found.name.as_ref().map_or_else(|| found.target.digest.to_string(), Reference::to_string);
                ImportError::Invalid(format!("image {name} needs blob {digest}, which the archive does not hold"))
            }
            LocalError::Manifest(error) => ImportError::Manifest(error),
            LocalError::Failed(error) => ImportError::Failed(error),
        })
    }

    fn unpack(&mut self, local: &Local) -> Result<(), ImportError> {
        let snapshotter = self.shared.snapshotter(self.request.snapshotter.as_deref())?;
        for chain_id in &local.chain {
            self.claims.push(self.shared.claims.claim_blocking(chain_id));
        }
        let ns = &self.request.namespace;
        let unpacked = local.unpack(self.shared, ns, snapshotter.as_ref(), self.cancelled);
        unpacked.map(drop).map_err(|error| self.ended(error))
    }

    /// Names all images, in one transaction, and publishes them.
    fn commit(&self, images: Vec<(Found, Local)>) -> Result<Vec<Digest>, ImportError> {
        let mut ids: Vec<Digest> = Vec::new();
        let (mut contents, mut blobs, mut names) = (Vec::new(), Vec::new(), BTreeMap::new());
        let snapshotter = self.request.snapshotter.as_ref().unwrap_or(&self.shared.config.default_snapshotter);
        for (found, local) in images {
            let id = local.manifest.config.digest.clone();
            let mut labels = BTreeMap::from([(rows::IMAGE_LABEL.to_owned(), rows::IMAGE_MANAGED.to_owned())]);
            let own = names_of(&found, &id);
            if self.request.pinned || own.iter().any(|name| self.shared.is_pinned(name)) {
                labels.insert(rows::PINNED_LABEL.to_owned(), rows::PINNED.to_owned());
            }
            let named = Named { id: id.clone(), target: found.target.clone(), labels };
            for name in own {
                let taken = names.insert(name.clone(), named.clone());
                if let Some(other) = taken.filter(|other| other.id != id) {
                    let what = format!("it gives the name {name} to two images, {} and {id}", other.id);
                    return Err(ImportError::Invalid(what));
                }
            }
            contents.push(local.contents(&found.target));
            blobs.extend(local.labels(snapshotter));
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(ImportError::Cancelled);
        }
        let ns = self.request.namespace.clone();
        self.shared.store.write_blocking(move |conn| {
            contents.iter().try_for_each(|contents| rows::put_contents(conn, &ns, contents))?;
            blobs.iter().try_for_each(|(blob, labels)| rows::label_blob(conn, &ns, blob, labels))?;
            names.iter().try_for_each(|(name, named)| rows::put_name(conn, &ns, name, named))
        })?;
        self.shared.publish()?;
        Ok(ids)
    }

    /// Reading stops when the import is cancelled, which then looks like a bad stream.
    fn ended(&self, error: Error) -> ImportError {
        if self.cancelled.load(Ordering::Relaxed) { ImportError::Cancelled } else { ImportError::Failed(error) }
    }

    /// Puts a document that is in memory among the blobs.
    fn keep(&mut self, bytes: &[u8]) -> Result<Digest, ImportError> {
        let mut spool = self.shared.content.spool(crate::digest::Algorithm::Sha256)?;
        spool.write(bytes)?;
        self.commit_blob(spool.finish())
    }

    fn commit_blob(&mut self, spooled: crate::content::Spooled) -> Result<Digest, ImportError> {
        let (shared, digest, size) = (self.shared, spooled.digest.clone(), spooled.size);
        let name = digest.to_string();
        self.claims.push(shared.claims.claim_blocking(&name));
        let _turn = shared.claims.turn_blocking(&name);
        let (ns, row) = (&self.request.namespace, digest.clone());
        if shared.store.read_blocking(|conn| rows::has_blob(conn, ns, &row))? && shared.content.has(&digest) {
            return Ok(digest);
        }
        spooled.commit(&shared.content)?;
        let (ns, boot) = (ns.clone(), shared.boot.clone());
        shared.store.write_blocking(move |conn| rows::put_blob(conn, &ns, &row, size, &boot))?;
        Ok(digest)
    }
}

/// All names of an image: its id, what the archive calls it, and that repository at its digest.
fn names_of(found: &Found, id: &Digest) -> BTreeSet<String> {
    let mut names = BTreeSet::from([id.to_string()]);
    if let Some(name) = &found.name {
        names.insert(name.to_string());
        if found.has_digest {
            names.insert(name.at(found.target.digest.clone()).to_string());
        }
    }
    names
}

/// The reference that an archive names an image by.
fn parse_name(text: &str) -> Result<Reference, ImportError> {
    Reference::parse(text).map_err(|error| ImportError::Invalid(format!("it names an image badly: {error}")))
}

/// Reading an archive of images fails as reading a layer does, but is not about a layer.
fn archive_error(error: apply::Error) -> ImportError {
    match error {
        apply::Error::Read { source } => ImportError::Read(source),
        apply::Error::Malformed { reason } => ImportError::Invalid(format!("it is not a tar archive: {reason}")),
        apply::Error::Refused { name, reason } => ImportError::Invalid(format!("entry {name:?}: {reason}")),
        apply::Error::TooMuch { what, limit } | apply::Error::TooMuchTogether { what, limit } => {
            ImportError::TooMuch { what, limit }
        }
        apply::Error::Failed { what, source } => ImportError::Failed(Error::failed(what, source)),
    }
}
