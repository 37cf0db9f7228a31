//! What the cases stand on: a root of their own, both snapshotters behind one trait, and a private mount namespace.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, unshare};
use rustix::mount::{MountFlags, MountPropagationFlags, mount, mount_change};
use store::{Namespace, Store};
use tempfile::TempDir;
use windlass_snapshotter::{
    Error, Labels, Mount, Native, Overlayfs, OverlayfsOptions, SCHEMA, Snapshotter, Swept, layer_dirs,
};

/// What the composition root calls besides the trait.
pub(crate) trait Boot: Snapshotter {
    fn sweep(&self) -> Result<Swept, Error>;
    fn sync(&self) -> Result<usize, Error>;
}

pub(crate) type Open = fn(&Path, Store) -> Box<dyn Boot>;

pub(crate) fn overlayfs(root: &Path, store: Store) -> Box<dyn Boot> {
    Box::new(Overlayfs::open(root, store, OverlayfsOptions::default()).unwrap())
}

pub(crate) fn native(root: &Path, store: Store) -> Box<dyn Boot> {
    Box::new(Native::open(root, store).unwrap())
}

impl Boot for Overlayfs {
    fn sweep(&self) -> Result<Swept, Error> {
        Overlayfs::sweep(self)
    }
    fn sync(&self) -> Result<usize, Error> {
        Overlayfs::mark_durable(self)
    }
}

impl Boot for Native {
    fn sweep(&self) -> Result<Swept, Error> {
        Native::sweep(self)
    }
    fn sync(&self) -> Result<usize, Error> {
        Native::mark_durable(self)
    }
}

/// A snapshotter on a new root.
pub(crate) struct World {
    pub(crate) dir: PathBuf,
    pub(crate) store: Store,
    pub(crate) snapshots: Box<dyn Boot>,
    pub(crate) ns: Namespace,
    open: Open,
    _temp: Option<TempDir>,
}

impl World {
    pub(crate) fn new(open: Open) -> World {
        let temp = tempfile::tempdir().unwrap();
        let world = World::at(open, temp.path().to_owned());
        World { _temp: Some(temp), ..world }
    }

    pub(crate) fn at(open: Open, dir: PathBuf) -> World {
        let store = Store::open(&dir.join("store.db"), &[SCHEMA]).unwrap();
        let snapshots = open(&dir.join("root"), store.clone());
        World { dir, store, snapshots, ns: Namespace::k8s(), open, _temp: None }
    }

    /// The daemon starts again on the same root.
    pub(crate) fn restart(&mut self) -> Swept {
        self.snapshots = (self.open)(&self.dir.join("root"), self.store.clone());
        self.snapshots.sweep().unwrap()
    }

    pub(crate) fn prepare(&self, key: &str, parent: Option<&str>) -> Result<Vec<Mount>, Error> {
        self.snapshots.prepare(&self.ns, key, parent, &Labels::new())
    }

    /// A committed layer with these files, and what more `fill` puts into it.
    pub(crate) fn layer(&self, name: &str, parent: Option<&str>, fill: impl FnOnce(&Path)) {
        let mounts = self.prepare("unpack", parent).unwrap();
        fill(&layer_dirs(&mounts).unwrap().upper);
        self.snapshots.commit(&self.ns, name, "unpack", &Labels::new()).unwrap();
    }

    /// Keys, as list tells them.
    pub(crate) fn keys(&self) -> Vec<String> {
        self.snapshots.list(&self.ns).unwrap().into_iter().map(|info| info.key).collect()
    }

    /// Names below `<root>/snapshots` and `<root>/trash`.
    pub(crate) fn directories(&self) -> Vec<String> {
        let mut names = Vec::new();
        for folder in ["snapshots", "trash"] {
            for entry in fs::read_dir(self.dir.join("root").join(folder)).unwrap() {
                names.push(format!("{folder}/{}", entry.unwrap().file_name().to_str().unwrap()));
            }
        }
        names.sort();
        names
    }

    pub(crate) fn sql(&self, sql: &'static str) {
        self.store.write_blocking(move |conn| Ok::<_, store::Error>(conn.execute_batch(sql)?)).unwrap();
    }

    /// Mounts what the snapshotter said on a new directory.
    pub(crate) fn mount(&self, name: &str, mounts: &[Mount]) -> PathBuf {
        let target = self.dir.join(name);
        fs::create_dir(&target).unwrap();
        let to_shim = |m: &Mount| shim::mount::Mount {
            fstype: m.fstype.clone(),
            source: m.source.clone(),
            options: m.options.clone(),
        };
        shim::mount::mount_all(&mounts.iter().map(to_shim).collect::<Vec<_>>(), &target).unwrap();
        target
    }
}

/// Runs the case on a thread with its own mount namespace, on a tmpfs: the machine's own root may be an overlay, which
/// cannot carry another one's upper layer.
pub(crate) fn privately(open: Open, case: impl FnOnce(World) + Send) {
    let temp = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS).unwrap();
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).unwrap();
            mount("tmpfs", temp.path(), "tmpfs", MountFlags::empty(), c"mode=0755").unwrap();
            case(World::at(open, temp.path().to_owned()));
        });
        if let Err(panic) = thread.join() {
            std::panic::resume_unwind(panic);
        }
    });
}
