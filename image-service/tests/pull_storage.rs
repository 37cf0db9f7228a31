//! Disks that are full, out of inodes, or read-only while an image is pulled: one error that says so, nothing half done, what is
//! there stays usable and can be removed, and with room the pull goes through.
//!
//! Each disk is a tmpfs in a mount namespace of the test's own thread, which all threads of its runtime share.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "pull/node.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod node;
mod support;

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use node::{Compression, Layer, Node, Recipe};
use rustix::mount::{MountFlags, MountPropagationFlags};
use support::TestRegistry;

const MIB: usize = 1 << 20;
const IMAGE: &str = "registry.test/team/app:v1";
const SMALL: &str = "registry.test/team/small:v1";
const CONTENT: &str = "io.containerd.content.v1.content";
const SNAPSHOTS: &str = "snapshots";

/// Runs a test where what it mounts is seen by nobody else.
fn apart<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send) {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
            let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
            rustix::mount::mount_change("/", private).unwrap();
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(test());
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// A tmpfs on a directory of the node, which its own files are then in.
struct Disk {
    path: PathBuf,
}

impl Disk {
    fn mount(path: &Path, options: &str) -> Disk {
        fs::create_dir_all(path).unwrap();
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount("tmpfs", path, "tmpfs", MountFlags::empty(), options.as_c_str()).unwrap();
        Disk { path: path.to_owned() }
    }

    fn change(&self, flags: MountFlags, options: &str) {
        let options = std::ffi::CString::new(options).unwrap();
        rustix::mount::mount_remount(&self.path, flags, options.as_c_str()).unwrap();
    }

    fn free(&self) -> u64 {
        let stat = rustix::fs::statvfs(&self.path).unwrap();
        stat.f_bfree * stat.f_frsize
    }

    /// Fills it to the last byte.
    fn fill(&self) -> PathBuf {
        let path = self.path.join("ballast");
        let mut ballast = fs::File::create(&path).unwrap();
        while ballast.write_all(&[7; 4096]).is_ok() {}
        assert_eq!(self.free(), 0);
        path
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // The store may be on it still; the mount goes with the namespace at the latest.
        let _ = rustix::mount::unmount(&self.path, rustix::mount::UnmountFlags::DETACH);
    }
}

/// Text that does not compress to nothing.
fn text(size: usize) -> String {
    (0u64..).map(|n| format!("{:015x} ", n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 4)).take(size / 16).collect()
}

async fn registry() -> TestRegistry {
    let registry = TestRegistry::http().await;
    let large = |name: &str| Layer::new(Compression::Gzip).file(name, &text(8 * MIB));
    Recipe::new(vec![large("a"), large("b")]).push(&registry, "team/app", &["v1"]);
    Recipe::new(vec![Layer::new(Compression::Gzip).file("small", "small")]).push(&registry, "team/small", &["v1"]);
    registry
}

/// A node with a disk of its own below its directory, and the small image.
async fn node_on(registry: &TestRegistry, part: &str, options: &str) -> (Node, Disk) {
    let mut disk = None;
    let node = Node::with(registry, |config| disk = Some(Disk::mount(&config.root.join(part), options))).await;
    node.pull(SMALL).await.unwrap();
    (node, disk.unwrap())
}

/// The pull fails so; the small image, and it alone, is there before and after.
async fn fails(node: &Node, expected: &str) {
    let before = (node.blobs(), node.snapshots_sorted(), node.files());
    let error = node.pull(IMAGE).await.unwrap_err();
    let text = node::chain(&error);
    assert_eq!(error.is_disk_full(), expected == FULL, "{text}");
    assert!(text.contains(IMAGE) && text.contains(expected), "{text}");
    assert!(!text.contains('\n'), "{text}");
    assert_eq!((node.blobs(), node.snapshots_sorted(), node.files()), before);
    // What came could be gone on with, but on a full disk it would keep it full.
    assert!(expected != FULL || node.ingests().is_empty(), "{:?}", node.ingests());
    assert_eq!(node.images.list(&node.ns).len(), 1);
    assert!(node.images.resolve(&node.ns, SMALL).is_some());
}

/// With room again the pull goes through, and all that was pulled can be removed.
async fn goes_on(node: &Node) {
    node.pull(IMAGE).await.unwrap();
    assert_eq!(node.images.list(&node.ns).len(), 2);
    for image in [IMAGE, SMALL] {
        node.images.remove(&node.ns, image).await.unwrap();
    }
    node.is_empty();
}

const FULL: &str = "No space left on device";

#[test]
fn privileged_a_disk_that_is_full_ends_a_pull_and_keeps_what_is_there() {
    apart(|| async {
        let registry = registry().await;
        // Room for the small image; for a blob; for all blobs and one layer.
        for (part, sizes) in [(CONTENT, ["256k", "5m"]), (SNAPSHOTS, ["256k", "12m"])] {
            for size in sizes {
                let (node, disk) = node_on(&registry, part, &format!("size={size}")).await;
                let free = disk.free();
                fails(&node, FULL).await;
                assert_eq!(disk.free(), free, "{part} of {size}");
                disk.change(MountFlags::empty(), "size=64m");
                goes_on(&node).await;
            }
        }
    });
}

#[test]
fn privileged_a_disk_without_inodes_ends_a_pull_as_well() {
    apart(|| async {
        let registry = TestRegistry::http().await;
        let many = (0..500).fold(Layer::new(Compression::Gzip), |layer, n| layer.file(&format!("f{n}"), "x"));
        Recipe::new(vec![many]).push(&registry, "team/app", &["v1"]);
        Recipe::new(vec![Layer::new(Compression::Gzip).file("small", "small")]).push(&registry, "team/small", &["v1"]);
        let (node, disk) = node_on(&registry, SNAPSHOTS, "size=64m,nr_inodes=200").await;
        fails(&node, FULL).await;
        disk.change(MountFlags::empty(), "nr_inodes=2000");
        goes_on(&node).await;
    });
}

#[test]
fn privileged_a_disk_that_is_read_only_ends_a_pull_by_that_name() {
    apart(|| async {
        let registry = registry().await;
        for part in [CONTENT, SNAPSHOTS] {
            let (node, disk) = node_on(&registry, part, "size=64m").await;
            disk.change(MountFlags::RDONLY, "");
            fails(&node, "Read-only file system").await;
            disk.change(MountFlags::empty(), "");
            goes_on(&node).await;
        }
    });
}

#[test]
fn privileged_an_image_is_removed_from_a_disk_without_a_free_byte() {
    apart(|| async {
        let registry = registry().await;
        // The store, content and snapshots, as on most nodes.
        let (node, disk) = node_on(&registry, "", "size=96m").await;
        node.pull(IMAGE).await.unwrap();
        let ballast = disk.fill();
        let text = node::chain(&node.pull("registry.test/team/absent:v1").await.unwrap_err());
        assert!(text.contains("not found"), "{text}");
        assert_eq!(node.images.list(&node.ns).len(), 2);
        disk.fill();
        node.images.remove(&node.ns, IMAGE).await.unwrap();
        assert!(disk.free() > 16 * MIB as u64, "{}", disk.free());
        assert_eq!(node.images.list(&node.ns).len(), 1);
        // Once more from nothing, by a daemon that starts on a full disk.
        disk.fill();
        let node = node.reopen().await;
        disk.fill();
        node.images.remove(&node.ns, SMALL).await.unwrap();
        node.is_empty();
        fs::remove_file(ballast).unwrap();
        node.pull(IMAGE).await.unwrap();
    });
}
