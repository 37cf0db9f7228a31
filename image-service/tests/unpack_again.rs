//! An image that was pulled for one snapshotter, and is unpacked for another from the blobs that are kept.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "pull/hooked.rs"]
mod hooked;
#[path = "pull/node.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod node;
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use hooked::{Door, hooked};
use node::{Compression, Layer, Node, Pushed, Recipe, Setup, chain};
use support::TestRegistry;
use windlass_image_service::UnpackAgainError;
use windlass_image_service::images::{Config, Image, PullRequest};

const IMAGE: &str = "registry.test/team/app:v1";
const LAYERS: usize = 3;

fn push(registry: &TestRegistry) -> Pushed {
    let layers = vec![
        Layer::new(Compression::Gzip).file("etc/name", "below").file("gone", "x"),
        Layer::new(Compression::Zstd).file("etc/name", "above").file(".wh.gone", ""),
        Layer::new(Compression::None).file("top", &"x".repeat(100_000)),
    ];
    assert_eq!(layers.len(), LAYERS);
    Recipe::new(layers).push(registry, "team/app", &["v1"])
}

async fn node(registry: &TestRegistry, default: &str, other: &'static str, setup: Setup) -> Node {
    let set = |config: &mut Config| {
        config.default_snapshotter = default.to_owned();
        config.filesystems = BTreeMap::from([default, other].map(|name| (name.to_owned(), Path::new("/").join(name))));
    };
    Node::set_up(registry, set, Setup { other: Some(other), ..setup }).await
}

impl Node {
    async fn pull_for(&self, snapshotter: Option<&str>) -> Arc<Image> {
        let request = PullRequest { snapshotter: snapshotter.map(str::to_owned), ..self.request(IMAGE) };
        self.images.pull(request).await.unwrap_or_else(|error| panic!("{}", chain(&error)))
    }

    async fn unpack_into(&self, image: &Image, snapshotter: Option<&str>) -> Result<(), UnpackAgainError> {
        self.images.unpack_into(&self.ns, image, snapshotter).await
    }
}

fn sorted(mut keys: Vec<String>) -> Vec<String> {
    keys.sort();
    keys
}

/// Bytes and inodes of the trees below this directory; of overlayfs, without the kernel's scratch space.
fn walk(directory: &Path) -> (u64, u64) {
    let mut sum = (0, 0);
    let mut waiting: Vec<_> = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    waiting.iter_mut().filter(|path| path.join("fs").is_dir()).for_each(|path| *path = path.join("fs"));
    while let Some(path) = waiting.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        sum = (sum.0 + meta.blocks() * 512, sum.1 + 1);
        if meta.is_dir() {
            waiting.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    sum
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_image_is_unpacked_for_a_second_snapshotter_and_both_know_it() {
    let registry = TestRegistry::http().await;
    let pushed = push(&registry);
    for (default, other) in [("overlayfs", "native"), ("native", "overlayfs")] {
        let node = node(&registry, default, other, Setup::default()).await;
        let image = node.pull_for(None).await;
        assert_eq!((node.others(), node.images.filesystems().len()), (vec![], 1), "{default}");
        let asked = registry.seen().len();
        for snapshotter in [None, Some(default), Some(other), Some(other)] {
            node.unpack_into(&image, snapshotter).await.unwrap();
        }
        assert_eq!(registry.seen().len(), asked, "nothing is fetched");
        let check = |node: &Node, what: &str| {
            let expected = sorted(pushed.chain());
            assert_eq!((node.snapshots_sorted(), node.others()), (expected.clone(), expected), "{default} {what}");
            let found = node
                .images
                .filesystems()
                .into_iter()
                .map(|usage| (usage.mountpoint.display().to_string(), (usage.used_bytes, usage.inodes_used)));
            let [first, second] = node.snapshot_directories().map(|directory| walk(&directory));
            let expected = [(format!("/{default}"), first), (format!("/{other}"), second)];
            assert_eq!(found.collect::<Vec<_>>(), expected, "{default} {what}");
        };
        check(&node, "at first");
        node.images.collect().await.unwrap();
        let node = node.killed().await;
        check(&node, "after a restart");
        // What the copying one has of the whole image is all of it, with what is deleted gone.
        let copies = &node.snapshot_directories()[usize::from(default == "overlayfs")];
        let whole =
            fs::read_dir(copies).unwrap().map(|entry| entry.unwrap().path()).find(|path| path.join("top").exists());
        let whole = whole.unwrap();
        assert_eq!(fs::read_to_string(whole.join("etc/name")).unwrap(), "above");
        assert!(!whole.join("gone").exists());

        node.images.remove(&node.ns, IMAGE).await.unwrap();
        node.is_empty();
        assert_eq!(node.images.filesystems().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_all_who_ask_wait_for_one_unpacking_which_goes_on_without_them() {
    static PREPARED: AtomicUsize = AtomicUsize::new(0);
    let registry = TestRegistry::http().await;
    let pushed = push(&registry);
    let door = Door::default();
    let held = door.clone();
    let setup = hooked(move |call| {
        if call == "prepare" {
            PREPARED.fetch_add(1, Ordering::Relaxed);
            held.pass();
        }
    });
    let node = node(&registry, "overlayfs", "native", setup).await;
    let image = node.pull_for(Some("native")).await;
    assert_eq!(node.snapshots_sorted(), [""; 0]);
    door.shut();
    let asks: Vec<_> = (0..8)
        .map(|_| {
            let (images, ns, image) = (node.images.clone(), node.ns.clone(), Arc::clone(&image));
            tokio::spawn(async move { images.unpack_into(&ns, &image, None).await })
        })
        .collect();
    door.somebody_waits().await;
    for ask in asks.iter().take(4) {
        ask.abort();
    }
    door.open();
    for (number, ask) in asks.into_iter().enumerate() {
        match ask.await {
            Ok(answer) => answer.unwrap(),
            Err(gone) => assert!(number < 4 && gone.is_cancelled()),
        }
    }
    assert_eq!(node.snapshots(), pushed.chain());
    assert_eq!(PREPARED.load(Ordering::Relaxed), LAYERS);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_without_the_blobs_the_error_says_what_is_missing_and_a_pull_brings_it() {
    let registry = TestRegistry::http().await;
    let pushed = push(&registry);
    let set = |config: &mut Config| config.discard_unpacked_layers = true;
    let node = Node::set_up(&registry, set, Setup { other: Some("native"), ..Setup::default() }).await;
    let image = node.pull_for(None).await;
    let error = node.unpack_into(&image, Some("native")).await.unwrap_err();
    let blob = &pushed.layers[0].digest;
    assert!(matches!(&error, UnpackAgainError::NotKept { blob: missing, .. } if missing == blob), "{error:?}");
    let expected = format!("image {IMAGE} is not unpacked for snapshotter native, and its blob {blob} is not kept");
    assert!(error.to_string().starts_with(&expected), "{error}");
    assert_eq!(node.others(), [""; 0]);
    let image = node.pull_for(Some("native")).await;
    node.unpack_into(&image, Some("native")).await.unwrap();
    assert_eq!(node.others(), sorted(pushed.chain()));
    let error = node.unpack_into(&image, Some("zfs")).await.unwrap_err();
    assert!(chain(&error).contains("snapshotter \"zfs\" is not one of: native, overlayfs"), "{}", chain(&error));
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_unpacking_that_fails_leaves_whole_layers_only_and_can_be_gone_on_with() {
    let registry = TestRegistry::http().await;
    let pushed = push(&registry);
    let node = node(&registry, "overlayfs", "native", Setup::default()).await;
    let image = node.pull_for(None).await;
    let last =
        node.blob_files().into_iter().find(|path| path.ends_with(pushed.layers[LAYERS - 1].digest.hex())).unwrap();
    let right = fs::read(&last).unwrap();
    let mut wrong = right.clone();
    wrong[1000] ^= 1;
    fs::write(&last, wrong).unwrap();
    let error = chain(&node.unpack_into(&image, Some("native")).await.unwrap_err());
    assert!(error.starts_with(&format!("unpack image {IMAGE} for snapshotter native: ")), "{error}");
    assert!(error.contains("unpacks to"), "{error}");
    assert_eq!((node.others(), node.snapshots()), (sorted(pushed.chain()[..LAYERS - 1].to_vec()), pushed.chain()));
    fs::write(&last, right).unwrap();
    node.unpack_into(&image, Some("native")).await.unwrap();
    assert_eq!(node.others(), sorted(pushed.chain()));
    node.images.remove(&node.ns, IMAGE).await.unwrap();
    node.is_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_image_that_is_removed_while_it_is_unpacked_leaves_nothing() {
    let registry = TestRegistry::http().await;
    push(&registry);
    let door = Door::default();
    let held = door.clone();
    let setup = hooked(move |call| {
        if call == "prepare" {
            held.pass();
        }
    });
    let node = node(&registry, "overlayfs", "native", setup).await;
    let image = node.pull_for(Some("native")).await;
    door.shut();
    let (images, ns) = (node.images.clone(), node.ns.clone());
    let unpacking = tokio::spawn(async move { images.unpack_into(&ns, &image, None).await });
    door.somebody_waits().await;
    node.images.remove(&node.ns, IMAGE).await.unwrap();
    door.open();
    let error = chain(&unpacking.await.unwrap().unwrap_err());
    assert!(error.contains("it was removed meanwhile"), "{error}");
    node.is_empty();
}
