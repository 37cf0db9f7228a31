//! Snapshots: the stacked file trees that containers run on.
//!
//! This crate owns the trait [`Snapshotter`], its two implementations, their rows in the store, and applying a layer to a
//! directory. It never mounts: it says which mounts make a snapshot visible, and the shim, or a client, makes them.
//! Everything here blocks and is called on blocking threads.
//!
//! ```text
//! Snapshotter ─► local.rs ─┬─► snapshots.rs ───────┬► rows.rs     what exists, by namespace and key
//!                          │                       └► <root>/snapshots/<id>/   what it holds
//!                          └─► overlayfs.rs, native.rs: what stands in there, and how it is mounted
//! ```
//!
//! A snapshot is *active* (written to), a *view* (read only) or *committed* (a layer: never changes, has children).
//! Invariants: a row says what is there before its directory is made and is gone before its directory goes; a committed
//! snapshot not known to be on disk does not outlive the boot it was written in.

pub mod apply;
mod copy;
mod error;
mod info;
mod local;
mod mount;
mod native;
mod overlayfs;
mod rows;
mod snapshots;
mod usage;

pub use apply::remove_tree;
pub use error::Error;
pub use info::{Info, Kind, Labels, Usage};
pub use mount::{LayerDirs, Mount, layer_dirs};
pub use native::Native;
pub use overlayfs::{Overlayfs, OverlayfsOptions};
pub use rows::SCHEMA;
pub use snapshots::Swept;
use store::Namespace;

/// One way to keep stacked file trees.
pub trait Snapshotter: Send + Sync {
    fn stat(&self, ns: &Namespace, key: &str) -> Result<Info, Error>;

    /// All snapshots of the namespace, by key.
    fn list(&self, ns: &Namespace) -> Result<Vec<Info>, Error>;

    /// Makes an active snapshot, a writable layer on top of `parent`, and says how to mount it.
    fn prepare(&self, ns: &Namespace, key: &str, parent: Option<&str>, labels: &Labels) -> Result<Vec<Mount>, Error>;

    /// Whether a layer can be written before the layer below is there, and be put onto it later by [`Snapshotter::rebase`]:
    /// where a snapshot's own files do not depend on its parent's.
    fn can_rebase(&self) -> bool {
        false
    }

    /// Puts an active snapshot that was made without a parent onto `parent`, and says how to mount it from now on. One that
    /// stands on it already stays as it is.
    fn rebase(&self, _ns: &Namespace, key: &str, parent: &str) -> Result<Vec<Mount>, Error> {
        let what = format!("put snapshot {key:?} onto {parent}");
        Err(Error::failed(what, "this snapshotter copies the parent when it makes a snapshot"))
    }

    /// Makes a read-only look at `parent`.
    fn view(&self, ns: &Namespace, key: &str, parent: Option<&str>, labels: &Labels) -> Result<Vec<Mount>, Error>;

    /// How to mount an active snapshot or a view.
    fn mounts(&self, ns: &Namespace, key: &str) -> Result<Vec<Mount>, Error>;

    /// Turns the active snapshot `key` into the committed snapshot `name`, which gets `labels` and no others.
    fn commit(&self, ns: &Namespace, name: &str, key: &str, labels: &Labels) -> Result<(), Error>;

    fn remove(&self, ns: &Namespace, key: &str) -> Result<(), Error>;

    /// As `remove`, but quick: what the snapshot held goes with the next [`Snapshotter::empty_trash`].
    fn discard(&self, ns: &Namespace, key: &str) -> Result<(), Error> {
        self.remove(ns, key)
    }

    /// Frees the space of what was discarded, which may take long.
    fn empty_trash(&self) -> Result<(), Error> {
        Ok(())
    }

    /// What the snapshot holds itself, without its parents where it shares them.
    fn usage(&self, ns: &Namespace, key: &str) -> Result<Usage, Error>;

    /// What all committed snapshots of the namespace hold.
    fn total(&self, ns: &Namespace) -> Result<Usage, Error> {
        let mut total = Usage::default();
        for info in self.list(ns)?.iter().filter(|info| info.kind == Kind::Committed) {
            let usage = self.usage(ns, &info.key)?;
            total = Usage { bytes: total.bytes + usage.bytes, inodes: total.inodes + usage.inodes };
        }
        Ok(total)
    }

    /// Waits until committed snapshots have reached the disk and marks them so; they then outlive a power failure.
    /// Answers how many were marked. A snapshotter that keeps no files here has none.
    fn mark_durable(&self) -> Result<usize, Error> {
        Ok(0)
    }
}
