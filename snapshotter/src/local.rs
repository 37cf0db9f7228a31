//! A snapshotter that keeps its trees below a directory of this host: rows and directories as [`Snapshots`] has them, and a
//! [`Layout`] for what stands in them and how it is mounted.

use std::path::Path;

use store::Namespace;

use crate::rows::Row;
use crate::snapshots::{Snapshots, Swept};
use crate::{Error, Info, Kind, Labels, Mount, Snapshotter, Usage};

/// In what one local snapshotter differs from another.
pub trait Layout: Send + Sync {
    /// Whether a snapshot's own files do not depend on its parent's: see [`Snapshotter::can_rebase`].
    const REBASES: bool = false;

    /// Fills the empty directory of a new snapshot.
    fn fill(&self, snapshots: &Snapshots, row: &Row, dir: &Path) -> Result<(), Error>;

    /// How to mount a snapshot that is not committed.
    fn mounts(&self, snapshots: &Snapshots, row: &Row) -> Vec<Mount>;

    /// Makes the top of a tree that was put onto its parent look as if it had been made on it.
    fn rebased(&self, _snapshots: &Snapshots, _row: &Row) -> Result<(), Error> {
        Ok(())
    }

    /// What stat and list say of a snapshot.
    fn info(&self, _snapshots: &Snapshots, row: Row) -> Info {
        row.info
    }
}

/// A snapshotter with this layout.
pub struct Local<L> {
    snapshots: Snapshots,
    layout: L,
}

impl<L: Layout> Local<L> {
    pub(crate) fn new(snapshots: Snapshots, layout: L) -> Local<L> {
        Local { snapshots, layout }
    }

    /// At boot, before anything else uses the snapshotter: makes rows and directories agree again.
    pub fn sweep(&self) -> Result<Swept, Error> {
        self.snapshots.sweep()
    }

    fn create(&self, key: (&Namespace, &str), parent: Option<&str>, kind: Kind, labels: &Labels) -> Made {
        let fill = |row: &Row, dir: &Path| self.layout.fill(&self.snapshots, row, dir);
        let row = self.snapshots.create(key, parent, kind, labels, fill)?;
        Ok(self.layout.mounts(&self.snapshots, &row))
    }
}

type Made = Result<Vec<Mount>, Error>;

impl<L: Layout> Snapshotter for Local<L> {
    fn stat(&self, ns: &Namespace, key: &str) -> Result<Info, Error> {
        Ok(self.layout.info(&self.snapshots, self.snapshots.find(ns, key)?))
    }

    fn list(&self, ns: &Namespace) -> Result<Vec<Info>, Error> {
        let rows = self.snapshots.list(ns)?;
        Ok(rows.into_iter().map(|row| self.layout.info(&self.snapshots, row)).collect())
    }

    fn prepare(&self, ns: &Namespace, key: &str, parent: Option<&str>, labels: &Labels) -> Made {
        self.create((ns, key), parent, Kind::Active, labels)
    }

    fn can_rebase(&self) -> bool {
        L::REBASES
    }

    fn rebase(&self, ns: &Namespace, key: &str, parent: &str) -> Made {
        if !L::REBASES {
            let what = format!("put snapshot {key:?} onto {parent}");
            return Err(Error::failed(what, "this snapshotter copies the parent when it makes a snapshot"));
        }
        let row = self.snapshots.rebase(ns, key, parent)?;
        self.layout.rebased(&self.snapshots, &row)?;
        Ok(self.layout.mounts(&self.snapshots, &row))
    }

    fn view(&self, ns: &Namespace, key: &str, parent: Option<&str>, labels: &Labels) -> Made {
        self.create((ns, key), parent, Kind::View, labels)
    }

    fn mounts(&self, ns: &Namespace, key: &str) -> Made {
        let row = self.snapshots.find(ns, key)?;
        match row.info.kind {
            Kind::Active | Kind::View => Ok(self.layout.mounts(&self.snapshots, &row)),
            Kind::Committed => Err(Error::WrongKind { key: key.to_owned(), kind: Kind::Committed, wanted: "mounted" }),
        }
    }

    fn commit(&self, ns: &Namespace, name: &str, key: &str, labels: &Labels) -> Result<(), Error> {
        self.snapshots.commit(ns, name, key, labels)
    }

    fn remove(&self, ns: &Namespace, key: &str) -> Result<(), Error> {
        self.snapshots.remove(ns, key)
    }

    fn discard(&self, ns: &Namespace, key: &str) -> Result<(), Error> {
        self.snapshots.discard(ns, key)
    }

    fn empty_trash(&self) -> Result<(), Error> {
        self.snapshots.empty_trash()
    }

    fn usage(&self, ns: &Namespace, key: &str) -> Result<Usage, Error> {
        self.snapshots.usage(ns, key)
    }

    fn total(&self, ns: &Namespace) -> Result<Usage, Error> {
        self.snapshots.total(ns)
    }

    fn mark_durable(&self) -> Result<usize, Error> {
        self.snapshots.mark_durable()
    }
}
