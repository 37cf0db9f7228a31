//! Snapshots as full copies: works on every file system, and costs time and space for it.
//!
//! ```text
//! <root>/snapshots/<id>/   the whole tree; an empty directory for a view, which shows its parent's
//! ```

use std::path::Path;

use store::{Namespace, Store};

use crate::rows::Row;
use crate::snapshots::{Snapshots, Swept, to_infos};
use crate::{Error, Info, Kind, Labels, Mount, Snapshotter, Usage, copy};

pub struct Native {
    snapshots: Snapshots,
}

impl Native {
    pub fn open(root: &Path, store: Store) -> Result<Native, Error> {
        Ok(Native { snapshots: Snapshots::open("native", root, store, "")? })
    }

    /// At boot, before anything else uses the snapshotter: makes rows and directories agree again.
    pub fn sweep(&self) -> Result<Swept, Error> {
        self.snapshots.sweep()
    }

    fn create(&self, key: (&Namespace, &str), parent: Option<&str>, kind: Kind, labels: &Labels) -> Made {
        let row = self.snapshots.create(key, parent, kind, labels, |row, dir| match (kind, row.parents.first()) {
            (Kind::Active, Some(parent)) => copy::tree(&self.snapshots.dir(*parent), dir),
            _ => copy::open_to_all(dir),
        })?;
        Ok(self.to_mounts(&row))
    }

    fn to_mounts(&self, row: &Row) -> Vec<Mount> {
        let (shown, access) = match (row.info.kind, row.parents.first()) {
            (Kind::Active, _) => (row.id, "rw"),
            (_, Some(parent)) => (*parent, "ro"),
            (_, None) => (row.id, "ro"),
        };
        let source = self.snapshots.dir(shown).to_string_lossy().into_owned();
        vec![Mount { fstype: "bind".into(), source, options: vec![access.into(), "rbind".into()] }]
    }
}

type Made = Result<Vec<Mount>, Error>;

impl Snapshotter for Native {
    fn stat(&self, ns: &Namespace, key: &str) -> Result<Info, Error> {
        Ok(self.snapshots.find(ns, key)?.info)
    }

    fn list(&self, ns: &Namespace) -> Result<Vec<Info>, Error> {
        Ok(to_infos(self.snapshots.list(ns)?))
    }

    fn prepare(&self, ns: &Namespace, key: &str, parent: Option<&str>, labels: &Labels) -> Made {
        self.create((ns, key), parent, Kind::Active, labels)
    }

    fn view(&self, ns: &Namespace, key: &str, parent: Option<&str>, labels: &Labels) -> Made {
        self.create((ns, key), parent, Kind::View, labels)
    }

    fn mounts(&self, ns: &Namespace, key: &str) -> Made {
        let row = self.snapshots.find(ns, key)?;
        match row.info.kind {
            Kind::Active | Kind::View => Ok(self.to_mounts(&row)),
            Kind::Committed => Err(Error::WrongKind { key: key.to_owned(), kind: Kind::Committed, wanted: "mounted" }),
        }
    }

    fn commit(&self, ns: &Namespace, name: &str, key: &str, labels: &Labels) -> Result<(), Error> {
        self.snapshots.commit(ns, name, key, labels)
    }

    fn remove(&self, ns: &Namespace, key: &str) -> Result<(), Error> {
        self.snapshots.remove(ns, key)
    }

    fn usage(&self, ns: &Namespace, key: &str) -> Result<Usage, Error> {
        self.snapshots.usage(ns, key)
    }

    fn discard(&self, ns: &Namespace, key: &str) -> Result<(), Error> {
        self.snapshots.discard(ns, key)
    }

    fn empty_trash(&self) -> Result<(), Error> {
        self.snapshots.empty_trash()
    }

    fn total(&self, ns: &Namespace) -> Result<Usage, Error> {
        self.snapshots.total(ns)
    }

    fn mark_durable(&self) -> Result<usize, Error> {
        self.snapshots.mark_durable()
    }
}
