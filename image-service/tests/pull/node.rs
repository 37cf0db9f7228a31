//! A node with its own directories, and images made on the spot.

use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use snapshotter::{Kind, Labels, Native, Overlayfs, OverlayfsOptions, Snapshotter};
use store::{Namespace, Store};
use windlass_image_service::clock::SystemClock;
use windlass_image_service::digest::Digest;
use windlass_image_service::images::{Config, Image, Images, PullError, PullRequest};
use windlass_image_service::policy::PolicyConfig;
use windlass_image_service::registry::{Descriptor, RegistryConfig, media_type};

use crate::support::{TestHosts, TestRegistry, install_crypto};

pub(crate) struct Node {
    pub(crate) images: Images,
    pub(crate) ns: Namespace,
    directory: tempfile::TempDir,
    hosts: TestHosts,
    store: Store,
    snapshotter: Arc<dyn Snapshotter>,
    other: Option<Arc<dyn Snapshotter>>,
    config: Config,
    setup: Setup,
}

/// What a node has beside its configuration.
#[derive(Clone, Default)]
pub(crate) struct Setup {
    /// A snapshotter beside the default one.
    pub(crate) other: Option<&'static str>,
    /// Puts something between the images and their default snapshotter.
    pub(crate) wrap: Option<Wrap>,
}

pub(crate) type Wrap = Arc<dyn Fn(Arc<dyn Snapshotter>) -> Arc<dyn Snapshotter> + Send + Sync>;

impl Node {
    pub(crate) async fn new(registry: &TestRegistry) -> Node {
        Node::with(registry, |_| {}).await
    }

    /// `registry.test` is the given registry.
    pub(crate) async fn with(registry: &TestRegistry, change: impl FnOnce(&mut Config)) -> Node {
        Node::set_up(registry, change, Setup::default()).await
    }

    pub(crate) async fn set_up(registry: &TestRegistry, change: impl FnOnce(&mut Config), setup: Setup) -> Node {
        install_crypto();
        let hosts = TestHosts::new();
        hosts.write("registry.test", &format!("server = \"{}\"", registry.url()));
        let directory = tempfile::tempdir().unwrap();
        let mut config = Config {
            root: directory.path().to_owned(),
            filesystems: BTreeMap::new(),
            registry: RegistryConfig { config_path: vec![hosts.root()], ..RegistryConfig::default() },
            policy: PolicyConfig { bin_dir: directory.path().join("verifiers"), ..PolicyConfig::default() },
            default_snapshotter: "overlayfs".into(),
            max_concurrent_downloads: 3,
            layer_fetch_buffer: 0,
            discard_unpacked_layers: false,
            waits_for_disk: false,
            progress_timeout: Duration::from_secs(60),
            pinned: Vec::new(),
            limits: snapshotter::apply::Limits::default(),
            max_image_bytes: u64::MAX,
            max_image_files: u64::MAX,
            clock: Arc::new(SystemClock),
        };
        change(&mut config);
        Node::open(directory, hosts, config, setup).await
    }

    async fn open(directory: tempfile::TempDir, hosts: TestHosts, config: Config, setup: Setup) -> Node {
        let schemas = [snapshotter::SCHEMA, windlass_image_service::SCHEMA];
        let store = Store::open(&directory.path().join("windlass.db"), &schemas).unwrap();
        let (root, rows, name) =
            (directory.path().join("snapshots"), store.clone(), config.default_snapshotter.clone());
        let snapshotter = tokio::task::spawn_blocking(move || open_snapshotter(&name, &root, rows)).await.unwrap();
        let wrapped =
            setup.wrap.as_ref().map_or_else(|| Arc::clone(&snapshotter), |wrap| wrap(Arc::clone(&snapshotter)));
        let mut snapshotters = BTreeMap::from([(config.default_snapshotter.clone(), wrapped)]);
        let mut other = None;
        if let Some(name) = setup.other {
            let (root, rows) = (directory.path().join("other"), store.clone());
            let opened = tokio::task::spawn_blocking(move || open_snapshotter(name, &root, rows)).await.unwrap();
            snapshotters.insert(name.to_owned(), Arc::clone(&opened));
            other = Some(opened);
        }
        let images = Images::open(config.clone(), store.clone(), snapshotters).await.unwrap();
        Node { images, ns: Namespace::k8s(), directory, hosts, store, snapshotter, other, config, setup }
    }

    /// Ends the daemon and starts it again.
    pub(crate) async fn reopen(self) -> Node {
        self.images.shutdown().await;
        self.store.close().await.unwrap();
        Node::open(self.directory, self.hosts, self.config, self.setup).await
    }

    /// Starts the daemon again after one that did not end in order: nothing was waited for, and nothing closed.
    pub(crate) async fn killed(self) -> Node {
        self.killed_while(|| {}).await
    }

    /// As [`Node::killed`]; meanwhile, this happens.
    pub(crate) async fn killed_while(self, meanwhile: impl FnOnce()) -> Node {
        std::mem::forget(self.store);
        drop(self.images);
        meanwhile();
        Node::open(self.directory, self.hosts, self.config, self.setup).await
    }

    /// Where `registry.test` is from now on: a registry, and mirrors that are asked before it.
    pub(crate) fn set_hosts(&self, server: &TestRegistry, mirrors: &[&TestRegistry]) {
        let mirrors = mirrors.iter().map(|mirror| format!("[host.\"{}\"]\n", mirror.url())).collect::<String>();
        self.hosts.write("registry.test", &format!("server = \"{}\"\n{mirrors}", server.url()));
    }

    /// Starts of blobs that are kept: name and size.
    pub(crate) fn ingests(&self) -> Vec<(PathBuf, u64)> {
        let ingest = self.content().join("ingest");
        let paths = files_below(&ingest).into_iter().map(|name| ingest.join(name));
        paths.map(|path| (path.clone(), fs::metadata(path).unwrap().len())).collect()
    }

    pub(crate) fn request(&self, reference: &str) -> PullRequest {
        PullRequest {
            namespace: self.ns.clone(),
            reference: reference.to_owned(),
            credentials: None,
            snapshotter: None,
        }
    }

    pub(crate) async fn pull(&self, reference: &str) -> Result<Arc<Image>, PullError> {
        self.images.pull(self.request(reference)).await
    }

    /// Keys of committed snapshots, in the order they were made.
    pub(crate) fn snapshots(&self) -> Vec<String> {
        let mut infos = off_the_runtime(|| self.snapshotter.list(&self.ns)).unwrap();
        infos.sort_by_key(|info| info.created);
        assert!(infos.iter().all(|info| info.kind == Kind::Committed), "{infos:?}");
        infos.into_iter().map(|info| info.key).collect()
    }

    /// Keys of all snapshots.
    pub(crate) fn snapshots_sorted(&self) -> Vec<String> {
        let infos = off_the_runtime(|| self.snapshotter.list(&self.ns)).unwrap();
        let mut keys: Vec<String> = infos.into_iter().map(|info| info.key).collect();
        keys.sort();
        keys
    }

    /// Keys of all snapshots of the other snapshotter.
    pub(crate) fn others(&self) -> Vec<String> {
        let other = self.other.as_ref().unwrap();
        let infos = off_the_runtime(|| other.list(&self.ns)).unwrap();
        let mut keys: Vec<String> = infos.into_iter().map(|info| info.key).collect();
        keys.sort();
        keys
    }

    /// Directories of the snapshots of both snapshotters, by the names of the roots.
    pub(crate) fn snapshot_directories(&self) -> [PathBuf; 2] {
        ["snapshots", "other"].map(|root| self.directory.path().join(root).join("snapshots"))
    }

    /// Digests of all blobs on disk, sorted.
    pub(crate) fn blobs(&self) -> Vec<String> {
        let names = files_below(&self.content().join("blobs"));
        let mut digests: Vec<String> = names.iter().map(|name| name.replace('/', ":")).collect();
        digests.sort();
        digests
    }

    /// Everything that pulls put on disk, in whatever state.
    pub(crate) fn leftovers(&self) -> Vec<String> {
        let mut found = files_below(&self.content());
        found.extend(files_below(&self.directory.path().join("snapshots")));
        found.extend(self.snapshots_sorted());
        if self.other.is_some() {
            found.extend(files_below(&self.directory.path().join("other")));
            found.extend(self.others());
        }
        found
    }

    pub(crate) fn is_empty(&self) {
        assert_eq!(self.leftovers(), [""; 0]);
    }

    /// What is in all layers together: `name=content`, and whiteouts by their name.
    pub(crate) fn files(&self) -> Vec<String> {
        let root = self.directory.path().join("snapshots/snapshots");
        let mut found: Vec<String> = files_below(&root)
            .into_iter()
            .map(|name| {
                // `<id>/fs/<name>`, or `<id>/<name>` where layers are whole copies.
                let (_, shown) = name.split_once('/').unwrap();
                let shown = shown.strip_prefix("fs/").unwrap_or(shown).to_owned();
                match fs::symlink_metadata(root.join(&name)).unwrap().is_file() {
                    true => format!("{shown}={}", fs::read_to_string(root.join(&name)).unwrap()),
                    false => shown,
                }
            })
            .collect();
        found.sort();
        found
    }

    /// Makes all rows those of another boot that had not reached the disk.
    pub(crate) async fn pretend_power_failure(&self) {
        // What settles behind the pull must not undo it.
        self.images.shutdown().await;
        let changed = self.store.write(|conn| {
            conn.execute_batch("UPDATE blobs SET boot = 'another'; UPDATE snapshot SET boot = 'another'")?;
            Ok::<_, store::Error>(())
        });
        changed.await.unwrap();
    }

    /// Rows that would go with a power failure.
    pub(crate) async fn not_durable(&self) -> i64 {
        let count = self.store.read(|conn| {
            let sql = "SELECT (SELECT count(*) FROM blobs WHERE boot IS NOT NULL)
                            + (SELECT count(*) FROM snapshot WHERE boot IS NOT NULL)";
            Ok::<_, store::Error>(conn.query_row(sql, [], |row| row.get(0))?)
        });
        count.await.unwrap()
    }

    /// The directories of committed snapshots, each with what it holds itself.
    pub(crate) async fn layer_directories(&self) -> Vec<PathBuf> {
        let ids = self.store.read(|conn| {
            let mut statement = conn.prepare("SELECT id FROM snapshot WHERE kind = 'committed'")?;
            let ids = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<i64>, _>>()?;
            Ok::<_, snapshotter::Error>(ids)
        });
        let root = self.directory.path().join("snapshots/snapshots");
        ids.await.unwrap().into_iter().map(|id| root.join(id.to_string()).join("fs")).collect()
    }

    /// Paths of all blobs.
    pub(crate) fn blob_files(&self) -> Vec<PathBuf> {
        let root = self.content().join("blobs");
        files_below(&root).iter().map(|name| root.join(name)).collect()
    }

    pub(crate) fn remove_container(&self) {
        tokio::task::block_in_place(|| self.snapshotter.remove(&self.ns, "container")).unwrap();
    }

    pub(crate) fn drop_top_layer(&self) {
        let top = self.snapshots().pop().unwrap();
        off_the_runtime(|| self.snapshotter.remove(&self.ns, &top)).unwrap();
    }

    pub(crate) fn start_container(&self, chain_id: &str) {
        let labels = Labels::new();
        off_the_runtime(|| self.snapshotter.prepare(&self.ns, "container", Some(chain_id), &labels)).unwrap();
    }

    fn content(&self) -> PathBuf {
        self.directory.path().join("io.containerd.content.v1.content")
    }
}

/// The store blocks, which no thread of the runtime may do, and a runtime may have one only.
fn off_the_runtime<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| scope.spawn(work).join().unwrap())
}

fn open_snapshotter(name: &str, root: &Path, rows: Store) -> Arc<dyn Snapshotter> {
    if name == "native" {
        let native = Native::open(root, rows).unwrap();
        native.sweep().unwrap();
        return Arc::new(native);
    }
    let overlayfs = Overlayfs::open(root, rows, OverlayfsOptions::default()).unwrap();
    overlayfs.sweep().unwrap();
    Arc::new(overlayfs)
}

pub(crate) struct Recipe {
    layers: Vec<Layer>,
    /// Instead of the right ones.
    pub(crate) diff_ids: Option<Vec<Digest>>,
}

pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

pub(crate) struct Layer {
    files: Vec<(String, String)>,
    compression: Compression,
    raw: Option<Vec<u8>>,
    packed: Option<Vec<u8>>,
}

pub(crate) struct Pushed {
    pub(crate) manifest: Descriptor,
    pub(crate) config: Descriptor,
    pub(crate) layers: Vec<Descriptor>,
    diff_ids: Vec<Digest>,
}

impl Layer {
    pub(crate) fn new(compression: Compression) -> Layer {
        Layer { files: Vec::new(), compression, raw: None, packed: None }
    }

    pub(crate) fn raw(bytes: Vec<u8>) -> Layer {
        Layer { files: Vec::new(), compression: Compression::None, raw: Some(bytes), packed: None }
    }

    /// A blob that somebody else made of the archive.
    pub(crate) fn packed(plain: Vec<u8>, blob: Vec<u8>) -> Layer {
        Layer { packed: Some(blob), ..Layer::raw(plain) }
    }

    pub(crate) fn file(mut self, name: &str, content: &str) -> Layer {
        self.files.push((name.to_owned(), content.to_owned()));
        self
    }

    fn plain(&self) -> Vec<u8> {
        if let Some(raw) = &self.raw {
            return raw.clone();
        }
        let mut tar = tar::Builder::new(Vec::new());
        for (name, content) in &self.files {
            let mut header = tar::Header::new_ustar();
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, content.as_bytes()).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn compressed(&self) -> Vec<u8> {
        let plain = self.plain();
        if let Some(packed) = &self.packed {
            return packed.clone();
        }
        match self.compression {
            Compression::None => plain,
            Compression::Gzip => {
                let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
                encoder.write_all(&plain).unwrap();
                encoder.finish().unwrap()
            }
            Compression::Zstd => zstd::encode_all(plain.as_slice(), 1).unwrap(),
        }
    }
}

impl Recipe {
    pub(crate) fn new(layers: Vec<Layer>) -> Recipe {
        Recipe { layers, diff_ids: None }
    }

    pub(crate) fn push(self, registry: &TestRegistry, repository: &str, tags: &[&str]) -> Pushed {
        let diff_ids: Vec<Digest> = self.layers.iter().map(|layer| Digest::sha256_of(&layer.plain())).collect();
        let diff_ids = self.diff_ids.unwrap_or(diff_ids);
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Cmd": ["/bin/app"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let mut config = registry.put_blob(repository, config.to_string());
        config.media_type = "application/vnd.oci.image.config.v1+json".into();
        let layers = self.layers.iter().map(|layer| registry.put_blob(repository, layer.compressed()));
        let layers: Vec<Descriptor> = layers
            // The media type may lie about the compression: the bytes count.
            .map(|layer| Descriptor { media_type: "application/vnd.oci.image.layer.v1.tar+gzip".into(), ..layer })
            .collect();
        let manifest =
            json!({"schemaVersion": 2, "mediaType": media_type::OCI_MANIFEST, "config": config, "layers": layers});
        let manifest = manifest.to_string();
        let mut pushed = registry.put_manifest(repository, None, media_type::OCI_MANIFEST, manifest.clone());
        for tag in tags {
            pushed = registry.put_manifest(repository, Some(tag), media_type::OCI_MANIFEST, manifest.clone());
        }
        Pushed { manifest: pushed, config, layers, diff_ids }
    }
}

impl Pushed {
    /// The chain ids, bottom first.
    pub(crate) fn chain(&self) -> Vec<String> {
        let mut chain: Vec<String> = Vec::new();
        for diff_id in &self.diff_ids {
            chain.push(match chain.last() {
                None => diff_id.to_string(),
                Some(below) => Digest::sha256_of(format!("{below} {diff_id}").as_bytes()).to_string(),
            });
        }
        chain
    }

    pub(crate) fn blobs(&self) -> Vec<String> {
        let all = [&self.manifest, &self.config].into_iter().chain(&self.layers);
        let mut digests: Vec<String> = all.map(|blob| blob.digest.to_string()).collect();
        digests.sort();
        digests
    }
}

pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// The error and its causes on one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    match error.source() {
        None => error.to_string(),
        Some(source) => format!("{error}: {}", chain(source)),
    }
}

pub(crate) async fn eventually(what: &str, mut is_true: impl FnMut() -> bool) {
    let met = async {
        while !is_true() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), met).await.unwrap_or_else(|_| panic!("never: {what}"));
}

/// Paths of all that is not a directory.
fn files_below(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(directory) = waiting.pop() {
        // It may be deleted while it is looked at.
        for entry in fs::read_dir(&directory).into_iter().flatten().flatten() {
            match entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                true => waiting.push(entry.path()),
                false => found.push(entry.path().strip_prefix(root).unwrap().to_string_lossy().into_owned()),
            }
        }
    }
    found.sort();
    found
}
