//! The images of this node: what they are called, what they are made of, and how they come and go.
//!
//! Readers look at a published view and wait for nothing. A change is committed to the store first and published before
//! its caller has an answer, so a List after a pull shows what was pulled.

use std::{
    collections::{BTreeMap, BTreeSet},
    error::Error as StdError,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use oci_spec::image::ImageConfiguration;
use snapshotter::{
    Snapshotter,
    apply::{Budget, Limits},
};
use store::{Namespace, Store};
use tokio_util::task::TaskTracker;

pub use crate::pull::{PullError, PullRequest};
use crate::{
    claims::Claims,
    clock::Clock,
    collect::Unused,
    collector::Collector,
    content::Content,
    digest::Digest,
    flight::{self, Flights},
    policy::PolicyConfig,
    reference::Reference,
    registry::{Clients, RegistryConfig},
    store::{self as rows, Contents},
    unpack,
};

/// What can go wrong with the images on this node.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Content that is not what it is said to be. It was not taken in.
    #[error("{0}")]
    Corrupt(String),
    #[error("{what}")]
    Failed { what: String, source: Box<dyn StdError + Send + Sync> },
}

impl Error {
    pub(crate) fn failed(what: impl Into<String>, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::Failed { what: what.into(), source: source.into() }
    }
}

impl From<store::Error> for Error {
    fn from(source: store::Error) -> Error {
        Error::failed("use the store of images", source)
    }
}

impl From<store::rusqlite::Error> for Error {
    fn from(source: store::rusqlite::Error) -> Error {
        Error::failed("use the rows of images", source)
    }
}

/// Where images are kept and how they are fetched.
#[derive(Clone, Debug)]
pub struct Config {
    /// The daemon's root; blobs are below it.
    pub root: PathBuf,
    /// The file systems that ImageFsInfo names: the roots of the snapshotters, by name.
    pub filesystems: BTreeMap<String, PathBuf>,
    pub registry: RegistryConfig,
    /// Who is asked whether an image may be pulled.
    pub policy: PolicyConfig,
    pub default_snapshotter: String,
    /// Layers of one image fetched side by side; 0 is all.
    pub max_concurrent_downloads: usize,
    /// With at least 512, a larger layer is fetched over several connections, in parts of this many bytes.
    pub layer_fetch_buffer: u64,
    /// Whether a layer's blob goes once it is unpacked. Such an image cannot be exported.
    pub discard_unpacked_layers: bool,
    /// Whether a pull answers only when what it brought is on disk.
    pub waits_for_disk: bool,
    /// A request that moves no byte for this long fails the pull; zero never does.
    pub progress_timeout: Duration,
    /// References that are never offered for garbage collection.
    pub pinned: Vec<String>,
    /// What one layer may hold, unpacked.
    pub limits: Limits,
    /// What the layers of one image may hold together, unpacked: bytes of files.
    pub max_image_bytes: u64,
    /// And files of any kind.
    pub max_image_files: u64,
    /// What tells when leases are over.
    pub clock: Arc<dyn Clock>,
}

impl Config {
    /// For the layers of one image.
    pub(crate) fn budget(&self) -> Budget {
        Budget::new(self.max_image_bytes, self.max_image_files)
    }
}

/// One image, as everyone but this crate sees it.
#[derive(Debug)]
pub struct Image {
    /// Digest of the configuration.
    pub id: Digest,
    /// `repo:tag`, sorted.
    pub tags: Vec<String>,
    /// `repo@digest`, sorted.
    pub digests: Vec<String>,
    /// Bytes of manifest, configuration and compressed layers.
    pub size: u64,
    /// What the image was pulled as: a manifest or an index.
    pub target: Digest,
    /// The committed snapshot with all layers; empty for an image without layers.
    pub chain_id: String,
    pub config: ImageConfiguration,
    pub pinned: bool,
}

/// Numbers for ImageFsInfo, kept and not walked: what the layers in one snapshotter hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FsUsage {
    pub mountpoint: PathBuf,
    pub used_bytes: u64,
    pub inodes_used: u64,
}

/// The images of this node. Clones are handles of the same.
#[derive(Clone)]
pub struct Images {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) store: Store,
    pub(crate) content: Content,
    pub(crate) snapshotters: BTreeMap<String, Arc<dyn Snapshotter>>,
    pub(crate) clients: Arc<Clients>,
    pub(crate) claims: Claims,
    pub(crate) flights: Flights,
    /// Pulls, imports and syncs that run.
    pub(crate) tasks: TaskTracker,
    /// Set when the daemon shuts down.
    pub(crate) closing: AtomicBool,
    pub(crate) boot: String,
    /// Held while the file system is synced, so that those who come meanwhile are served by one more sync together.
    pub(crate) settling: Mutex<()>,
    pub(crate) collector: Arc<Collector>,
    /// Held while a new view is built, so that the last to publish has read last.
    publishing: Mutex<()>,
    /// Guards the pointer only: readers never wait for a view that is being built.
    view: RwLock<Arc<View>>,
    pub(crate) usage: RwLock<Usages>,
}

/// What was measured last.
#[derive(Default)]
pub(crate) struct Usages {
    /// The default snapshotter first.
    pub(crate) filesystems: Vec<FsUsage>,
    /// Bytes of the blobs that images were pulled as, which are beside the above.
    pub(crate) content_bytes: u64,
}

/// What List, Status and CreateContainer read.
#[derive(Default)]
struct View {
    /// By namespace, then id.
    images: BTreeMap<Namespace, BTreeMap<Digest, Arc<Image>>>,
    /// By namespace, then name: tags, digest references and ids.
    names: BTreeMap<Namespace, BTreeMap<String, Named>>,
}

/// What a name stands for.
struct Named {
    id: Digest,
    /// Whether the name keeps the image from being offered for garbage collection.
    pinned: bool,
}

impl Images {
    /// Opens the images below `config.root`: drops what a crash or a power failure left half done, then publishes.
    pub async fn open(
        config: Config,
        store: Store,
        snapshotters: BTreeMap<String, Arc<dyn Snapshotter>>,
    ) -> Result<Images, Error> {
        let images = tokio::task::spawn_blocking(move || {
            let boot = ::store::boot_id()?;
            let content = Content::open(&config.root, &boot)?;
            content.sweep_spool()?;
            let torn = boot.clone();
            let dropped = store.write_blocking(move |conn| rows::drop_torn_blobs(conn, &torn))?;
            if dropped > 0 {
                tracing::warn!(
                    dropped,
                    "blobs that may not have reached the disk before the last shutdown were dropped"
                );
            }
            let shared = Shared {
                config,
                store,
                content,
                snapshotters,
                clients: Arc::new(Clients::default()),
                claims: Claims::default(),
                flights: Flights::default(),
                tasks: TaskTracker::new(),
                closing: AtomicBool::new(false),
                boot,
                settling: Mutex::default(),
                collector: Arc::default(),
                publishing: Mutex::default(),
                view: RwLock::default(),
                usage: RwLock::default(),
            };
            shared.drop_half_unpacked()?;
            shared.publish()?;
            shared.measure()?;
            Ok::<_, Error>(Images { shared: Arc::new(shared) })
        })
        .await
        .map_err(|source| Error::failed("open the images", source))??;
        // Whatever was removed was deleted at once, so the rest is of pulls that the end of the daemon cut off.
        images.collect_and(Unused::Keep).await?;
        images.collect_by_itself();
        Ok(images)
    }

    /// Fetches and unpacks an image. The same pull by many is done once; it ends when the last of them gives up.
    pub async fn pull(&self, request: PullRequest) -> Result<Arc<Image>, PullError> {
        flight::pull(&self.shared, request).await
    }

    /// The image of this name: an id, a unique prefix of one, `repo`, `repo:tag` or `repo@digest`.
    pub fn resolve(&self, ns: &Namespace, name: &str) -> Option<Arc<Image>> {
        let view = self.shared.view();
        let images = view.images.get(ns)?;
        let named = |name: &str| view.names.get(ns)?.get(name).and_then(|named| images.get(&named.id)).cloned();
        if let Some(image) = named(name) {
            return Some(image);
        }
        if let Ok(reference) = Reference::parse(name)
            && let Some(image) = named(&reference.to_string())
        {
            return Some(image);
        }
        let prefix = name.strip_prefix("sha256:").unwrap_or(name);
        if prefix.is_empty() || !prefix.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return None;
        }
        let mut matching = images.iter().filter(|(id, _)| id.hex().starts_with(prefix));
        match (matching.next(), matching.next()) {
            (Some((_, image)), None) => Some(image.clone()),
            (_, _) => None,
        }
    }

    /// Every image of the namespace, by id.
    pub fn list(&self, ns: &Namespace) -> Vec<Arc<Image>> {
        self.shared.view().images.get(ns).map(|images| images.values().cloned().collect()).unwrap_or_default()
    }

    /// Removes the image of this name with all its names. An unknown one is removed. The disk is free when this returns,
    /// but for layers that containers still use.
    pub async fn remove(&self, ns: &Namespace, name: &str) -> Result<(), Error> {
        let Some(image) = self.resolve(ns, name) else { return Ok(()) };
        // On a task of its own: a caller that gives up in the middle must not leave a view that shows what is gone.
        let removing = self.shared.tasks.spawn(self.clone().forget(ns.clone(), image.id.clone()));
        removing.await.map_err(|source| Error::failed(format!("remove image {name}"), source))?
    }

    async fn forget(self, ns: Namespace, id: Digest) -> Result<(), Error> {
        self.shared.store.write(move |conn| rows::delete_image(conn, &ns, &id)).await?;
        self.refresh().await?;
        self.collect().await
    }

    /// What layers take up on disk: in the default snapshotter, and in each other one that has some.
    pub fn filesystems(&self) -> Vec<FsUsage> {
        self.shared.usage.read().unwrap_or_else(PoisonError::into_inner).filesystems.clone()
    }

    /// What the blobs that images were pulled as take up beside that.
    pub fn content_bytes(&self) -> u64 {
        self.shared.usage.read().unwrap_or_else(PoisonError::into_inner).content_bytes
    }

    /// Lets pulls and imports that run end as if their callers had given up, and waits for them.
    pub async fn shutdown(&self) {
        self.shared.closing.store(true, Ordering::Relaxed);
        self.shared.flights.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
    }

    pub(crate) async fn refresh(&self) -> Result<(), Error> {
        let shared = Arc::clone(&self.shared);
        let publishing = tokio::task::spawn_blocking(move || {
            shared.publish()?;
            if let Err(error) = shared.measure() {
                let error = &error as &dyn StdError;
                tracing::warn!(error, "what images take up on disk is not known; the old number stays");
            }
            Ok(())
        });
        publishing.await.map_err(|source| Error::failed("publish the images", source))?
    }
}

impl Shared {
    fn view(&self) -> Arc<View> {
        Arc::clone(&self.view.read().unwrap_or_else(PoisonError::into_inner))
    }

    pub(crate) fn snapshotter(&self, name: Option<&str>) -> Result<&Arc<dyn Snapshotter>, Error> {
        let name = name.unwrap_or(&self.config.default_snapshotter);
        self.snapshotters.get(name).ok_or_else(|| {
            let known = self.snapshotters.keys().cloned().collect::<Vec<_>>().join(", ");
            Error::Corrupt(format!("snapshotter {name:?} is not one of: {known}"))
        })
    }

    /// Layers whose unpacking a crash cut off.
    fn drop_half_unpacked(&self) -> Result<(), Error> {
        for snapshotter in self.snapshotters.values() {
            let ns = Namespace::k8s();
            let snapshots = snapshotter.list(&ns).map_err(|source| Error::failed("list snapshots", source))?;
            for info in snapshots.iter().filter(|info| info.key.starts_with(unpack::EXTRACT_PREFIX)) {
                unpack::discard(snapshotter.as_ref(), &ns, &info.key)?;
            }
        }
        Ok(())
    }

    /// Builds the view from the store. An image whose blobs are not all there is dropped: it must be pulled again.
    pub(crate) fn publish(&self) -> Result<(), Error> {
        let _publishing = self.publishing.lock().unwrap_or_else(PoisonError::into_inner);
        let current = self.view();
        let (names, contents) =
            self.store.read_blocking(|conn| Ok::<_, Error>((rows::names(conn)?, rows::contents(conn)?)))?;
        let mut view = View::default();
        for name in names {
            let named = Named { id: name.id, pinned: name.pinned };
            view.names.entry(name.namespace).or_default().insert(name.name, named);
        }
        for (ns, contents) in contents {
            let known = current.images.get(&ns).and_then(|images| images.get(&contents.id));
            match self.build(&ns, &contents, known, view.names.get(&ns)) {
                Ok(image) => {
                    view.images.entry(ns).or_default().insert(contents.id, Arc::new(image));
                }
                Err(error @ Error::Failed { .. }) => {
                    tracing::warn!(
                        image = %contents.id,
                        error = &error as &dyn StdError,
                        "an image cannot be read and is not shown"
                    );
                }
                Err(error @ Error::Corrupt(_)) => {
                    tracing::warn!(image = %contents.id, %error, "an image is not complete any more and was dropped");
                    let (ns, id) = (ns.clone(), contents.id.clone());
                    self.store.write_blocking(move |conn| rows::delete_image(conn, &ns, &id))?;
                }
            }
        }
        *self.view.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(view);
        Ok(())
    }

    fn build(
        &self,
        ns: &Namespace,
        contents: &Contents,
        known: Option<&Arc<Image>>,
        names: Option<&BTreeMap<String, Named>>,
    ) -> Result<Image, Error> {
        let config = match known {
            Some(image) => image.config.clone(),
            None => {
                self.check_blobs(ns, contents)?;
                self.check_layers(ns, contents)?;
                let bytes = self.content.read(&contents.id)?;
                serde_json::from_slice(&bytes)
                    .map_err(|source| Error::failed(format!("read image configuration {}", contents.id), source))?
            }
        };
        let (mut tags, mut digests) = (Vec::new(), Vec::new());
        let mut pinned = false;
        for (name, named) in names.into_iter().flatten().filter(|(_, named)| named.id == contents.id) {
            pinned |= named.pinned || self.is_pinned(name);
            match Reference::parse(name) {
                Ok(reference) if reference.digest().is_some() => digests.push(name.clone()),
                // The bare id is a name too, which CRI shows as neither.
                Ok(_) if *name != contents.id.to_string() => tags.push(name.clone()),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(Image {
            id: contents.id.clone(),
            tags,
            digests,
            size: contents.size,
            target: contents.target.clone(),
            chain_id: contents.chain.last().cloned().unwrap_or_default(),
            config,
            pinned,
        })
    }

    fn check_blobs(&self, ns: &Namespace, contents: &Contents) -> Result<(), Error> {
        let present: BTreeSet<Digest> =
            self.store.read_blocking(|conn| rows::blobs_of(conn, ns))?.into_iter().collect();
        match contents.blobs.iter().find(|digest| !present.contains(digest) || !self.content.has(digest)) {
            None => Ok(()),
            Some(missing) => Err(Error::Corrupt(format!("blob {missing} is missing"))),
        }
    }

    /// Layers that were not on disk when the power failed are gone, and with them every image that stands on them.
    fn check_layers(&self, ns: &Namespace, contents: &Contents) -> Result<(), Error> {
        let Some(top) = contents.chain.last() else { return Ok(()) };
        for snapshotter in self.snapshotters.values() {
            if unpack::is_unpacked(snapshotter.as_ref(), ns, top)? {
                return Ok(());
            }
        }
        Err(Error::Corrupt(format!("layer {top} is missing")))
    }

    pub(crate) fn is_pinned(&self, name: &str) -> bool {
        self.config.pinned.iter().any(|pinned| Reference::parse(pinned).is_ok_and(|pinned| pinned.to_string() == name))
    }
}
