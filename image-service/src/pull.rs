//! PullImage: resolve → manifest → configuration and layers → one commit.
//!
//! ```text
//! pull() ─ joins or starts a flight (namespace, reference, snapshotter, credentials)
//!   flight: resolve ─ choose the platform ─ configuration
//!           fetch layers, some side by side ──► unpack them in order ──► names and contents in one transaction
//! ```
//!
//! A flight runs on its own task. Callers wait for it; when the last of them is gone it is cancelled. What a failed or
//! cancelled flight brought is collected before its callers hear of it.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream::FuturesUnordered};
use store::Namespace;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    auth::Credentials,
    claims::Claim,
    digest::Digest,
    images::{Error, Image, Images, Shared},
    manifest::{Document, Manifest, ManifestError, chain_ids, choose, host_platform, parse_config, parse_document},
    reference::{Reference, ReferenceError},
    registry::{self, Descriptor, Registry, Session},
    store::{self as rows, Contents},
    unpack::{self, Layer},
};

/// Indexes may point to indexes; nobody nests them deeper.
const MAX_NESTING: usize = 4;
/// Manifests and configurations are read into memory.
const MAX_DOCUMENT: u64 = 8 << 20;
/// Pieces of a blob between the network and the disk.
const PIECES: usize = 16;

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
    #[error("image reference {input:?} is not valid: {source}")]
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
    #[error("pull {reference}: {source}")]
    Manifest { reference: String, source: Arc<ManifestError> },
    /// A registry stopped in the middle.
    #[error("pull {reference}: no data for {} seconds, {at} of {size} bytes of {digest} had come", after.as_secs())]
    Stalled { reference: String, digest: Digest, at: u64, size: u64, after: Duration },
    #[error("pull {reference}: {source}")]
    Failed { reference: String, source: Arc<Error> },
    #[error("the pull of {0} was cancelled")]
    Cancelled(String),
}

/// One pull that all who ask for the same share. Credentials are part of it: an image is not given to one caller because
/// another was allowed to have it.
#[derive(Clone, PartialEq, Eq)]
struct Key {
    namespace: Namespace,
    reference: String,
    snapshotter: Option<String>,
    credentials: Option<Credentials>,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Equal keys have equal references; the rest only tells apart what is rarely asked for at the same time.
        self.reference.hash(state);
    }
}

type Answer = Option<Result<Arc<Image>, PullError>>;

struct Flight {
    answer: watch::Receiver<Answer>,
    /// Cancels the flight when the last caller's clone is dropped.
    wanted: std::sync::Weak<DropGuard>,
}

/// A caller's place on a flight.
struct Boarding {
    answer: watch::Receiver<Answer>,
    /// The flight goes on as long as one of these lives.
    _wanted: Arc<DropGuard>,
    /// Set for the first caller: where to answer, and what cancels the flight.
    start: Option<(watch::Sender<Answer>, CancellationToken)>,
}

/// The pulls that run.
#[derive(Default)]
pub(crate) struct Flights {
    running: Mutex<HashMap<Key, Flight>>,
    all: CancellationToken,
}

impl Flights {
    pub(crate) fn cancel(&self) {
        self.all.cancel();
    }

    /// Joins the flight of this key, or makes a new one that the caller must start.
    fn board(&self, key: &Key) -> Boarding {
        // Guards the map only, for a look and an insert.
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = running.get(key)
            && let Some(wanted) = flight.wanted.upgrade()
        {
            return Boarding { answer: flight.answer.clone(), _wanted: wanted, start: None };
        }
        let token = self.all.child_token();
        let wanted = Arc::new(token.clone().drop_guard());
        let (sender, answer) = watch::channel(None);
        running.insert(key.clone(), Flight { answer: answer.clone(), wanted: Arc::downgrade(&wanted) });
        Boarding { answer, _wanted: wanted, start: Some((sender, token)) }
    }

    fn landed(&self, key: &Key, sender: &watch::Sender<Answer>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // A cancelled flight may already have been replaced by a new one of the same key.
        if running.get(key).is_some_and(|flight| flight.answer.same_channel(&sender.subscribe())) {
            running.remove(key);
        }
    }
}

pub(crate) async fn pull(shared: &Arc<Shared>, request: PullRequest) -> Result<Arc<Image>, PullError> {
    let reference = Reference::parse(&request.reference)
        .map_err(|source| PullError::Reference { input: request.reference.clone(), source: Arc::new(source) })?;
    let key = Key {
        namespace: request.namespace,
        reference: reference.to_string(),
        snapshotter: request.snapshotter,
        credentials: request.credentials,
    };
    let mut boarding = shared.flights.board(&key);
    if let Some((sender, token)) = boarding.start.take() {
        let images = Images { shared: Arc::clone(shared) };
        shared.tasks.spawn(fly(images, key, reference.clone(), sender, token));
    }
    match boarding.answer.wait_for(Option::is_some).await {
        Ok(answer) => answer.clone().unwrap_or_else(|| Err(PullError::Cancelled(reference.to_string()))),
        // The task ended without an answer: the daemon shuts down.
        Err(_) => Err(PullError::Cancelled(reference.to_string())),
    }
}

async fn fly(images: Images, key: Key, reference: Reference, sender: watch::Sender<Answer>, token: CancellationToken) {
    let shared = &images.shared;
    let name = reference.to_string();
    let cancelled = Arc::new(AtomicBool::new(false));
    let result = {
        let pull = Pull {
            images: &images,
            key: &key,
            reference: &reference,
            cancelled: Arc::clone(&cancelled),
            claims: Mutex::default(),
        };
        let result = tokio::select! {
            result = Box::pin(pull.run()) => result,
            () = token.cancelled() => Err(PullError::Cancelled(name.clone())),
        };
        // Extraction that still runs on a blocking thread sees this at its next read.
        cancelled.store(true, Ordering::Relaxed);
        result
    };
    match &result {
        Ok(image) => tracing::info!(image = %name, id = %image.id, "pulled"),
        Err(error) => {
            tracing::info!(image = %name, %error, "pull failed");
            if let Err(error) = images.collect().await {
                tracing::warn!(%error, "what a failed pull left is collected later");
            }
        }
    }
    shared.flights.landed(&key, &sender);
    // Nobody may be waiting any more.
    sender.send_replace(Some(result));
}

/// One flight's work and what it relies on.
struct Pull<'a> {
    images: &'a Images,
    key: &'a Key,
    reference: &'a Reference,
    cancelled: Arc<AtomicBool>,
    /// Held until the image's rows refer to the same.
    claims: Mutex<Vec<Claim>>,
}

impl Pull<'_> {
    async fn run(&self) -> Result<Arc<Image>, PullError> {
        let shared = &self.images.shared;
        let registry = Registry::new(shared.config.registry.clone(), Arc::clone(&shared.clients));
        let resolved =
            registry.resolve(self.reference, self.key.credentials.as_ref()).await.map_err(|e| self.registry(e))?;
        let session = &resolved.session;
        let mut blobs = vec![resolved.descriptor.digest.clone()];
        let (descriptor, manifest, manifest_size) = self.manifest(session, &resolved.descriptor, &mut blobs).await?;
        self.fetch(session, &manifest.config).await?;
        let bytes = self.document(&manifest.config).await?;
        let diff_ids = parse_config(&manifest, &bytes, &host_platform()).map_err(|error| self.invalid(error))?;
        let chain = chain_ids(&diff_ids);
        self.layers(session, &manifest, &diff_ids, &chain).await?;
        blobs.push(manifest.config.digest.clone());
        blobs.extend(manifest.layers.iter().map(|layer| layer.digest.clone()));
        let layer_bytes: u64 = manifest.layers.iter().map(|layer| layer.size).sum();
        let contents = Contents {
            id: manifest.config.digest.clone(),
            target: resolved.descriptor.digest.clone(),
            manifest: descriptor.digest,
            blobs,
            chain,
            size: manifest_size + manifest.config.size + layer_bytes,
        };
        self.commit(contents).await
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
                    descriptor = choose(&descriptor.digest, &entries, &host_platform())
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
        if self.has(digest).await? {
            return Ok(());
        }
        let (digest, namespace) = (digest.clone(), self.key.namespace.clone());
        let stored = tokio::task::spawn_blocking(move || {
            let mut writer = shared.content.writer(&digest, bytes.len() as u64)?;
            writer.write(&bytes)?;
            writer.commit()?;
            let (boot, size) = (shared.boot.clone(), bytes.len() as u64);
            shared.store.write_blocking(move |conn| rows::put_blob(conn, &namespace, &digest, size, &boot))
        });
        self.joined(stored.await)
    }

    async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, PullError> {
        if descriptor.size > MAX_DOCUMENT {
            let problem = format!("has {} bytes, at most {MAX_DOCUMENT} are read", descriptor.size);
            return Err(self.invalid(ManifestError::Invalid { digest: descriptor.digest.clone(), problem }));
        }
        let (shared, digest) = (Arc::clone(&self.images.shared), descriptor.digest.clone());
        self.joined(tokio::task::spawn_blocking(move || shared.content.read(&digest)).await)
    }

    /// Fetches and unpacks all layers. They are fetched side by side, and unpacked bottom first as each is there.
    async fn layers(
        &self,
        session: &Session,
        manifest: &Manifest,
        diff_ids: &[Digest],
        chain: &[String],
    ) -> Result<(), PullError> {
        for chain_id in chain {
            self.claim(chain_id).await;
        }
        let permits = match self.images.shared.config.max_concurrent_downloads {
            0 => manifest.layers.len().max(1),
            count => count,
        };
        let permits = Semaphore::new(permits);
        let (permits, arrived) = (&permits, watch::channel(vec![false; manifest.layers.len()]));
        let mut fetches = FuturesUnordered::new();
        for (position, layer) in manifest.layers.iter().enumerate() {
            let sender = &arrived.0;
            fetches.push(async move {
                // Never closed, so a permit is always to be had.
                let _permit = permits.acquire().await;
                self.fetch(session, layer).await?;
                sender.send_modify(|arrived| arrived[position] = true);
                Ok::<_, PullError>(())
            });
        }
        let fetch_all = async {
            while let Some(fetched) = fetches.next().await {
                fetched?;
            }
            Ok::<_, PullError>(())
        };
        let mut there = arrived.1.clone();
        let unpack_all = async {
            for (position, layer) in manifest.layers.iter().enumerate() {
                // The sender lives as long as this function.
                if there.wait_for(|arrived| arrived[position]).await.is_err() {
                    return Err(PullError::Cancelled(self.reference.to_string()));
                }
                let parent = position.checked_sub(1).map(|below| chain[below].clone());
                self.unpack(&layer.digest, &diff_ids[position], &chain[position], parent).await?;
            }
            Ok(())
        };
        tokio::try_join!(fetch_all, unpack_all)?;
        Ok(())
    }

    /// Gets a blob into the content store, unless it is there.
    async fn fetch(&self, session: &Session, descriptor: &Descriptor) -> Result<(), PullError> {
        let shared = &self.images.shared;
        let digest = &descriptor.digest;
        self.claim(&digest.to_string()).await;
        let _turn = shared.claims.turn(&digest.to_string()).await;
        if self.has(digest).await? {
            return Ok(());
        }
        let (pieces, mut incoming) = mpsc::channel::<Bytes>(PIECES);
        let writing = {
            let (shared, descriptor, namespace) = (Arc::clone(shared), descriptor.clone(), self.key.namespace.clone());
            tokio::task::spawn_blocking(move || {
                let mut writer = shared.content.writer(&descriptor.digest, descriptor.size)?;
                while let Some(piece) = incoming.blocking_recv() {
                    writer.write(&piece)?;
                }
                writer.commit()?;
                let boot = shared.boot.clone();
                shared.store.write_blocking(move |conn| {
                    rows::put_blob(conn, &namespace, &descriptor.digest, descriptor.size, &boot)
                })
            })
        };
        let copied = self.copy(session, descriptor, &pieces).await;
        drop(pieces);
        // A network error says more than the short blob that it leaves behind.
        let written = self.joined(writing.await);
        copied.and(written)
    }

    async fn copy(
        &self,
        session: &Session,
        descriptor: &Descriptor,
        pieces: &mpsc::Sender<Bytes>,
    ) -> Result<(), PullError> {
        let after = self.images.shared.config.progress_timeout;
        let mut at = 0;
        let stalled = |at| PullError::Stalled {
            reference: self.reference.to_string(),
            digest: descriptor.digest.clone(),
            at,
            size: descriptor.size,
            after,
        };
        let mut body = within(after, session.blob(descriptor, 0))
            .await
            .ok_or_else(|| stalled(0))?
            .map_err(|error| self.registry(error))?;
        while let Some(piece) = within(after, body.next()).await.ok_or_else(|| stalled(at))? {
            let piece = piece.map_err(|error| self.registry(error))?;
            at += piece.len() as u64;
            if pieces.send(piece).await.is_err() {
                // The writer has failed, and says why.
                return Ok(());
            }
        }
        Ok(())
    }

    async fn unpack(
        &self,
        digest: &Digest,
        diff_id: &Digest,
        chain_id: &str,
        parent: Option<String>,
    ) -> Result<(), PullError> {
        let shared = Arc::clone(&self.images.shared);
        let turn = shared.claims.turn(chain_id).await;
        let snapshotter =
            Arc::clone(shared.snapshotter(self.key.snapshotter.as_deref()).map_err(|error| self.failed(error))?);
        let (digest, diff_id, chain_id) = (digest.clone(), diff_id.clone(), chain_id.to_owned());
        let (namespace, cancelled) = (self.key.namespace.clone(), Arc::clone(&self.cancelled));
        let unpacked = tokio::task::spawn_blocking(move || {
            // The turn ends with the work, also when the flight is cancelled before.
            let _turn = turn;
            if unpack::is_unpacked(snapshotter.as_ref(), &namespace, &chain_id)? {
                return Ok(());
            }
            let layer = Layer {
                namespace: &namespace,
                blob: shared.content.open_blob(&digest)?,
                digest: &digest,
                diff_id: &diff_id,
                chain_id: &chain_id,
                parent: parent.as_deref(),
                cancelled: &cancelled,
            };
            unpack::unpack(snapshotter.as_ref(), layer)
        });
        self.joined(unpacked.await)
    }

    /// Names the image, in one transaction, and publishes it.
    async fn commit(&self, contents: Contents) -> Result<Arc<Image>, PullError> {
        let shared = &self.images.shared;
        let (namespace, id) = (self.key.namespace.clone(), contents.id.clone());
        let digest_name = format!("{}@{}", self.reference.repo(), contents.target);
        let mut names = vec![id.to_string(), digest_name];
        if self.reference.digest().is_none() {
            names.push(self.reference.to_string());
        }
        let written = shared.store.write(move |conn| {
            rows::put_contents(conn, &namespace, &contents)?;
            names.iter().try_for_each(|name| rows::put_name(conn, &namespace, name, &contents.id))
        });
        written.await.map_err(|error| self.failed(error))?;
        self.images.refresh().await.map_err(|error| self.failed(error))?;
        self.images.settle();
        self.images
            .resolve(&self.key.namespace, &id.to_string())
            .ok_or_else(|| self.failed(Error::Corrupt(format!("image {id} was removed while it was pulled"))))
    }

    async fn claim(&self, name: &str) {
        let claim = self.images.shared.claims.claim(name).await;
        self.claims.lock().unwrap_or_else(PoisonError::into_inner).push(claim);
    }

    /// Whether this namespace has the blob. A file without a row is another namespace's, or torn: it is fetched again.
    async fn has(&self, digest: &Digest) -> Result<bool, PullError> {
        let (namespace, wanted) = (self.key.namespace.clone(), digest.clone());
        let row = self.images.shared.store.read(move |conn| rows::has_blob(conn, &namespace, &wanted));
        Ok(row.await.map_err(|error| self.failed(error))? && self.images.shared.content.has(digest))
    }

    fn joined<T>(&self, joined: Result<Result<T, Error>, tokio::task::JoinError>) -> Result<T, PullError> {
        joined
            .unwrap_or_else(|source| Err(Error::failed("work on an image", source)))
            .map_err(|error| self.failed(error))
    }

    fn failed(&self, source: Error) -> PullError {
        PullError::Failed { reference: self.reference.to_string(), source: Arc::new(source) }
    }

    fn invalid(&self, source: ManifestError) -> PullError {
        PullError::Manifest { reference: self.reference.to_string(), source: Arc::new(source) }
    }

    fn registry(&self, error: registry::Error) -> PullError {
        match error {
            registry::Error::NotFound { .. } => PullError::NotFound(Arc::new(error)),
            registry::Error::Unavailable { .. } => PullError::Unavailable(Arc::new(error)),
            other => PullError::Registry(Arc::new(other)),
        }
    }
}

/// The future's output, or `None` when it took longer than `limit`; zero is no limit.
async fn within<T>(limit: Duration, future: impl Future<Output = T>) -> Option<T> {
    if limit.is_zero() { Some(future.await) } else { tokio::time::timeout(limit, future).await.ok() }
}
