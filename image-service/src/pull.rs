//! What one pull does: resolve → manifest → configuration and layers → one commit.
//!
//! ```text
//! resolve ─ choose the platform ─┬ configuration
//!                                └ layers.rs: fetch them side by side (fetch.rs), unpack each while it arrives (unpack.rs)
//! commit: names and contents in one transaction, then the published view
//! ```
//!
//! Everything fetched is claimed before it is looked for. Blobs and layers exist only when their digests are verified.

use std::{
    collections::BTreeMap,
    error::Error as _,
    io,
    sync::{Arc, Mutex, PoisonError, atomic::AtomicBool},
    time::Duration,
};

use bytes::Bytes;
use store::{
    Namespace,
    rusqlite::{self, ErrorCode},
};
use tokio_util::task::TaskTracker;

use crate::{
    arrival::arrivals,
    auth::Credentials,
    claims::Claim,
    digest::Digest,
    flight::Key,
    images::{Error, Image, Images},
    manifest::{Document, MAX_NESTING, Manifest, ManifestError, choose, parse_config, parse_document},
    mark::labels_of,
    platform::Node,
    policy::{self, PolicyError},
    reference::{Reference, ReferenceError},
    registry::{self, Descriptor, Registry, Session},
    store::{self as rows, Contents, Named},
};

/// What to fetch, for whom.
#[derive(Clone, Debug)]
pub struct PullRequest {
    pub namespace: Namespace,
    /// As the client wrote it.
    pub reference: String,
    /// For this pull only.
    pub credentials: Option<Credentials>,
    /// Where to unpack, if not into the default snapshotter.
    pub snapshotter: Option<String>,
}

/// Why a pull failed. Every caller of the same pull gets the same.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PullError {
    #[error("pull {input:?}")]
    Reference { input: String, source: Arc<ReferenceError> },
    /// No registry has it.
    #[error(transparent)]
    NotFound(Arc<registry::Error>),
    /// No registry could be asked.
    #[error(transparent)]
    Unavailable(Arc<registry::Error>),
    /// A registry refused, or answered what cannot be used.
    #[error(transparent)]
    Registry(Arc<registry::Error>),
    /// The node's owner does not want it here.
    #[error("pull {reference}")]
    Policy { reference: String, source: Arc<PolicyError> },
    #[error("pull {reference}")]
    Manifest { reference: String, source: Arc<ManifestError> },
    /// A registry stopped in the middle.
    #[error("pull {reference}: no data for {} seconds, {at} of {size} bytes of {digest} had come", after.as_secs())]
    Stalled { reference: String, digest: Digest, at: u64, size: u64, after: Duration },
    #[error("pull {reference}")]
    Failed { reference: String, source: Arc<Error> },
    #[error("the pull of {0} was cancelled")]
    Cancelled(String),
}

impl PullError {
    /// Whether there was no room for what was pulled.
    pub fn is_disk_full(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        let by_system = |error: &io::Error| full.contains(&error.kind());
        let by_store = |error: &rusqlite::Error| error.sqlite_error_code() == Some(ErrorCode::DiskFull);
        // Writes that were committed together share theirs.
        let by_shared = |error: &Arc<rusqlite::Error>| by_store(error);
        let mut cause = self.source();
        while let Some(error) = cause {
            if error.downcast_ref().is_some_and(by_system)
                || error.downcast_ref().is_some_and(by_store)
                || error.downcast_ref().is_some_and(by_shared)
            {
                return true;
            }
            cause = error.source();
        }
        false
    }
}

/// One flight's work and what it relies on.
pub(crate) struct Pull<'a> {
    pub(crate) images: &'a Images,
    pub(crate) key: &'a Key,
    pub(crate) reference: &'a Reference,
    pub(crate) cancelled: Arc<AtomicBool>,
    /// What runs on blocking threads, which nothing but the end of the work ends.
    pub(crate) work: TaskTracker,
    /// Held until the image's rows refer to the same.
    pub(crate) claims: Mutex<Vec<Claim>>,
}

/// What one flight brought.
pub(crate) struct Pulled {
    /// What the reference resolved to.
    target: Descriptor,
    contents: Contents,
    /// How the blobs refer to each other.
    labels: Vec<(Digest, BTreeMap<String, String>)>,
}

impl Pull<'_> {
    /// Brings everything that the image needs, and answers with what it is made of.
    pub(crate) async fn run(&self) -> Result<Pulled, PullError> {
        let shared = &self.images.shared;
        // Told before anything is fetched for nothing.
        shared.snapshotter(self.key.snapshotter.as_deref()).map_err(|error| self.failed(error))?;
        let registry = Registry::new(shared.config.registry.clone(), Arc::clone(&shared.clients));
        let resolved =
            registry.resolve(self.reference, self.key.credentials.as_ref()).await.map_err(|e| self.registry(e))?;
        let name = self.reference.to_string();
        let allowed = policy::verify(&shared.config.policy, &name, &resolved.descriptor).await;
        allowed.map_err(|source| PullError::Policy { reference: name, source: Arc::new(source) })?;
        let session = &resolved.session;
        let mut blobs = vec![resolved.descriptor.digest.clone()];
        let (descriptor, manifest, manifest_size) = self.manifest(session, &resolved.descriptor, &mut blobs).await?;
        let (is_chosen, node) = (descriptor.digest != resolved.descriptor.digest, Node::host());
        let node = (is_chosen && descriptor.platform.is_none()).then_some(&node);
        // The configuration says what the layers unpack to, and is fetched beside them.
        let diff_ids = async {
            self.fetch(session, &manifest.config, arrivals().0).await?;
            let bytes = self.document(&manifest.config).await?;
            parse_config(&manifest, &bytes, node).map_err(|error| self.invalid(error))
        };
        let chain = self.layers(session, &manifest.layers, diff_ids).await?;
        let layers: Vec<Digest> = match shared.config.discard_unpacked_layers {
            true => Vec::new(),
            false => manifest.layers.iter().map(|layer| layer.digest.clone()).collect(),
        };
        let snapshotter = self.key.snapshotter.as_ref().unwrap_or(&shared.config.default_snapshotter);
        let labels = labels_of(&blobs, &manifest.config.digest, &layers, snapshotter, chain.last());
        blobs.push(manifest.config.digest.clone());
        blobs.extend(layers);
        let contents = Contents {
            id: manifest.config.digest.clone(),
            target: resolved.descriptor.digest.clone(),
            manifest: descriptor.digest,
            blobs,
            chain,
            size: manifest_size.saturating_add(manifest.size()),
        };
        Ok(Pulled { target: resolved.descriptor, contents, labels })
    }

    /// Follows indexes to the manifest for this node.
    async fn manifest(
        &self,
        session: &Session,
        target: &Descriptor,
        blobs: &mut Vec<Digest>,
    ) -> Result<(Descriptor, Manifest, u64), PullError> {
        let mut descriptor = target.clone();
        for _ in 0..MAX_NESTING {
            let bytes = session.manifest(&descriptor).await.map_err(|error| self.registry(error))?;
            self.keep(&descriptor.digest, bytes.clone()).await?;
            match parse_document(&descriptor, &bytes).map_err(|error| self.invalid(error))? {
                Document::Manifest(manifest) => return Ok((descriptor, *manifest, bytes.len() as u64)),
                Document::Index(entries) => {
                    descriptor = choose(&descriptor.digest, &entries, &Node::host())
                        .map_err(|error| self.invalid(error))?
                        .clone();
                    blobs.push(descriptor.digest.clone());
                }
            }
        }
        let problem = format!("is nested more than {MAX_NESTING} indexes deep");
        Err(self.invalid(ManifestError::Invalid { digest: target.digest.clone(), problem }))
    }

    /// Puts a document that is in memory into the content store.
    async fn keep(&self, digest: &Digest, bytes: Bytes) -> Result<(), PullError> {
        let shared = Arc::clone(&self.images.shared);
        self.claim(&digest.to_string()).await;
        let _turn = shared.claims.turn(&digest.to_string()).await;
        if self.has(digest, bytes.len() as u64).await? {
            return Ok(());
        }
        let (digest, namespace) = (digest.clone(), self.key.namespace.clone());
        let stored = self.work.spawn_blocking(move || {
            let mut writer = shared.content.writer(&digest, bytes.len() as u64)?;
            writer.write(&bytes)?;
            writer.commit()?;
            let (boot, size) = (shared.boot.clone(), bytes.len() as u64);
            shared.store.write_blocking(move |conn| rows::put_blob(conn, &namespace, &digest, size, &boot))
        });
        self.joined(stored.await)
    }

    async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, PullError> {
        let (shared, digest) = (Arc::clone(&self.images.shared), descriptor.digest.clone());
        self.joined(self.work.spawn_blocking(move || shared.content.read(&digest)).await)
    }

    /// Names the image, in one transaction, and publishes it.
    pub(crate) async fn commit(&self, pulled: Pulled) -> Result<Arc<Image>, PullError> {
        let Pulled { target, contents, labels: blob_labels } = pulled;
        let shared = &self.images.shared;
        let (namespace, id) = (self.key.namespace.clone(), contents.id.clone());
        let digest_name = format!("{}@{}", self.reference.repo(), contents.target);
        let mut names = vec![id.to_string(), digest_name];
        if self.reference.digest().is_none() {
            names.push(self.reference.to_string());
        }
        let mut labels = BTreeMap::from([(rows::IMAGE_LABEL.to_owned(), rows::IMAGE_MANAGED.to_owned())]);
        if names.iter().any(|name| shared.is_pinned(name)) {
            labels.insert(rows::PINNED_LABEL.to_owned(), rows::PINNED.to_owned());
        }
        let named = Named { id: contents.id.clone(), target, labels };
        let written = shared.store.write(move |conn| {
            rows::put_contents(conn, &namespace, &contents)?;
            blob_labels.iter().try_for_each(|(blob, labels)| rows::label_blob(conn, &namespace, blob, labels))?;
            names.iter().try_for_each(|name| rows::put_name(conn, &namespace, name, &named))
        });
        written.await.map_err(|error| self.failed(error))?;
        self.images.refresh().await.map_err(|error| self.failed(error))?;
        let settling = self.images.settle();
        if shared.config.waits_for_disk {
            // Its own end is told in the log; a pull that cannot wait is as good as one that does not.
            let _ = settling.await;
        }
        self.images
            .resolve(&self.key.namespace, &id.to_string())
            .ok_or_else(|| self.failed(Error::Corrupt(format!("image {id} was removed while it was pulled"))))
    }

    pub(crate) async fn claim(&self, name: &str) {
        let claim = self.images.shared.claims.claim(name).await;
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).push(claim);
    }

    /// Whether this namespace has the blob. A file without a row is another namespace's, or torn: it is fetched again. So is
    /// one of another size: it is torn, or the manifest lies, which the registry will not confirm.
    pub(crate) async fn has(&self, digest: &Digest, size: u64) -> Result<bool, PullError> {
        let (namespace, wanted) = (self.key.namespace.clone(), digest.clone());
        let row = self.images.shared.store.read(move |conn| rows::has_blob(conn, &namespace, &wanted));
        Ok(row.await.map_err(|error| self.failed(error))? && self.images.shared.content.has_whole(digest, size))
    }

    pub(crate) fn joined<T>(&self, joined: Result<Result<T, Error>, tokio::task::JoinError>) -> Result<T, PullError> {
        joined
            .unwrap_or_else(|source| Err(Error::failed("work on an image", source)))
            .map_err(|error| self.failed(error))
    }

    pub(crate) fn failed(&self, source: Error) -> PullError {
        PullError::Failed { reference: self.reference.to_string(), source: Arc::new(source) }
    }

    fn invalid(&self, source: ManifestError) -> PullError {
        PullError::Manifest { reference: self.reference.to_string(), source: Arc::new(source) }
    }

    pub(crate) fn registry(&self, error: registry::Error) -> PullError {
        match error {
            registry::Error::NotFound { .. } => PullError::NotFound(Arc::new(error)),
            registry::Error::Unavailable { .. } => PullError::Unavailable(Arc::new(error)),
            other => PullError::Registry(Arc::new(other)),
        }
    }
}
