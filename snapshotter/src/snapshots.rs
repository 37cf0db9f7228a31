//! What local snapshotters do alike: rows and numbered directories, changed in an order that survives a crash at any point.
//!
//! ```text
//! <root>/snapshots/<id>/   a snapshot, or what is left of one whose row is gone or never became ready
//! <root>/trash/<id>/       a snapshot on its way out
//!
//! make:    row (making) ─► directory ─► row (ready)          crash: sweep drops the row and the directory
//! commit:  measure ─► row                                    crash: still active, or committed
//! remove:  row gone ─► rename to trash ─► delete             crash: sweep deletes the directory
//! ```

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use store::{Namespace, Store};

use crate::apply::remove_tree;
use crate::rows::{self, Key, Remains, Row};
use crate::{Error, Kind, Labels, Usage, usage};

/// What a sweep dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    pub rows: usize,
    pub directories: usize,
}

pub struct Snapshots {
    name: &'static str,
    root: PathBuf,
    store: Store,
    /// Snapshots made now are recorded with this boot until they are known to be on disk.
    boot: String,
    /// Which directory below `<id>/` holds what the snapshot itself adds.
    content: &'static str,
    /// Directories in the trash that are being deleted.
    deleting: Mutex<HashSet<PathBuf>>,
}

impl Snapshots {
    pub(crate) fn open(
        name: &'static str,
        root: &Path,
        store: Store,
        content: &'static str,
    ) -> Result<Snapshots, Error> {
        let root = std::path::absolute(root)
            .map_err(|source| Error::failed(format!("resolve the snapshotter's root {}", root.display()), source))?;
        for dir in [root.join("snapshots"), root.join("trash")] {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&dir)
                .map_err(|source| Error::failed(format!("make {}", dir.display()), source))?;
        }
        Ok(Snapshots { name, root, store, boot: store::boot_id()?, content, deleting: Mutex::default() })
    }

    /// The directory of a snapshot.
    pub(crate) fn dir(&self, id: i64) -> PathBuf {
        self.root.join("snapshots").join(id.to_string())
    }

    /// The directory with what a snapshot itself adds.
    pub(crate) fn content(&self, id: i64) -> PathBuf {
        match self.content {
            "" => self.dir(id),
            below => self.dir(id).join(below),
        }
    }

    pub(crate) fn find(&self, ns: &Namespace, key: &str) -> Result<Row, Error> {
        let key = self.key(ns, key);
        self.store.read_blocking(|conn| rows::find(conn, &key))
    }

    pub(crate) fn list(&self, ns: &Namespace) -> Result<Vec<Row>, Error> {
        self.store.read_blocking(|conn| rows::list(conn, self.name, ns))
    }

    /// Makes a snapshot; `fill` is given its empty directory.
    pub(crate) fn create(
        &self,
        key: (&Namespace, &str),
        parent: Option<&str>,
        kind: Kind,
        labels: &Labels,
        fill: impl FnOnce(&Row, &Path) -> Result<(), Error>,
    ) -> Result<Row, Error> {
        let key = self.key(key.0, key.1);
        let (parent, labels, boot) = (parent.map(str::to_owned), labels.clone(), self.boot.clone());
        let wanted = key.clone();
        let row = self
            .store
            .write_blocking(move |conn| rows::insert(conn, &wanted, parent.as_deref(), kind, &labels, &boot))?;
        let id = row.id;
        let made = self.make_dir(id).and_then(|dir| fill(&row, &dir)).and_then(|()| {
            let still_wanted = self.store.write_blocking(move |conn| rows::ready(conn, id))?;
            if still_wanted { Ok(()) } else { Err(Error::NotFound { key: key.key }) }
        });
        match made {
            Ok(()) => Ok(row),
            Err(error) => {
                self.undo(id);
                Err(error)
            }
        }
    }

    pub(crate) fn commit(&self, ns: &Namespace, name: &str, key: &str, labels: &Labels) -> Result<(), Error> {
        let row = self.find(ns, key)?;
        if row.info.kind != Kind::Active {
            return Err(Error::WrongKind { key: key.to_owned(), kind: row.info.kind, wanted: "committed" });
        }
        let usage = usage::measure(&self.content(row.id))?;
        let (name, labels) = (self.key(ns, name), labels.clone());
        self.store.write_blocking(move |conn| rows::commit(conn, &row, &name, &labels, usage))
    }

    pub(crate) fn rebase(&self, ns: &Namespace, key: &str, parent: &str) -> Result<Row, Error> {
        let (key, parent) = (self.key(ns, key), parent.to_owned());
        self.store.write_blocking(move |conn| rows::rebase(conn, &key, &parent))
    }

    pub(crate) fn remove(&self, ns: &Namespace, key: &str) -> Result<(), Error> {
        let key = self.key(ns, key);
        let id = self.store.write_blocking(move |conn| rows::delete(conn, &key))?;
        self.throw_away(id);
        Ok(())
    }

    /// As `remove`, but leaves the directory in the trash.
    pub(crate) fn discard(&self, ns: &Namespace, key: &str) -> Result<(), Error> {
        let key = self.key(ns, key);
        let id = self.store.write_blocking(move |conn| rows::delete(conn, &key))?;
        self.trash(id);
        Ok(())
    }

    /// Deletes what is in the trash, but for what somebody else is deleting.
    pub(crate) fn empty_trash(&self) -> Result<(), Error> {
        let folder = self.root.join("trash");
        let failed = |source| Error::failed(format!("list {}", folder.display()), source);
        for entry in fs::read_dir(&folder).map_err(failed)? {
            self.delete_alone(&entry.map_err(failed)?.path());
        }
        Ok(())
    }

    pub(crate) fn total(&self, ns: &Namespace) -> Result<Usage, Error> {
        self.store.read_blocking(|conn| rows::total(conn, self.name, ns))
    }

    pub(crate) fn usage(&self, ns: &Namespace, key: &str) -> Result<Usage, Error> {
        let row = self.find(ns, key)?;
        match row.usage {
            Some(usage) => Ok(usage),
            None => usage::measure(&self.content(row.id)),
        }
    }

    /// Waits until all layers are on disk and records it, so that they are kept over a boot.
    pub(crate) fn mark_durable(&self) -> Result<usize, Error> {
        // Listed before the sync: a layer that is committed while it runs is not covered by it.
        let ids = self.store.read_blocking(|conn| rows::not_durable(conn, self.name))?;
        if ids.is_empty() {
            return Ok(0);
        }
        fs::File::open(&self.root)
            .and_then(|root| Ok(rustix::fs::syncfs(root)?))
            .map_err(|source| Error::failed(format!("sync the file system of {}", self.root.display()), source))?;
        let count = ids.len();
        self.store.write_blocking(move |conn| rows::set_durable(conn, &ids))?;
        Ok(count)
    }

    /// At boot, before anything else uses the snapshotter: makes rows and directories agree again.
    pub(crate) fn sweep(&self) -> Result<Swept, Error> {
        let remains = self.store.read_blocking(|conn| rows::remains(conn, self.name))?;
        let doomed = self.doomed(&remains);
        let rows = doomed.len();
        let gone: HashSet<i64> = doomed.iter().copied().collect();
        let kept = remains.iter().map(|row| row.id).filter(|id| !gone.contains(id)).collect();
        self.store.write_blocking(move |conn| rows::delete_all(conn, &doomed))?;
        Ok(Swept { rows, directories: self.sweep_dirs(&kept)? })
    }

    /// The rows that cannot stay: unfinished, perhaps torn, without a directory, or on top of such.
    fn doomed(&self, remains: &[Remains]) -> Vec<i64> {
        let is_bad = |row: &Remains| {
            let torn = row.kind == Kind::Committed && row.boot.as_ref().is_some_and(|boot| *boot != self.boot);
            !row.ready || torn || !self.content(row.id).is_dir()
        };
        let mut children: HashMap<i64, Vec<i64>> = HashMap::new();
        for row in remains {
            if let Some(parent) = row.parent {
                children.entry(parent).or_default().push(row.id);
            }
        }
        let mut order: Vec<i64> = remains.iter().filter(|row| is_bad(row)).map(|row| row.id).collect();
        let mut doomed: HashSet<i64> = order.iter().copied().collect();
        let mut next = 0;
        while let Some(id) = order.get(next) {
            let above = children.get(id).into_iter().flatten().copied();
            order.extend(above.filter(|child| doomed.insert(*child)).collect::<Vec<_>>());
            next += 1;
        }
        order
    }

    fn sweep_dirs(&self, kept: &HashSet<i64>) -> Result<usize, Error> {
        let mut dropped = 0;
        for folder in ["trash", "snapshots"].map(|name| self.root.join(name)) {
            let failed = |source| Error::failed(format!("list {}", folder.display()), source);
            for entry in fs::read_dir(&folder).map_err(failed)? {
                let path = entry.map_err(failed)?.path();
                let id = path.file_name().and_then(|name| name.to_str()?.parse::<i64>().ok());
                let keep = folder.ends_with("snapshots") && id.is_some_and(|id| kept.contains(&id));
                if !keep {
                    delete(&path);
                    dropped += 1;
                }
            }
        }
        Ok(dropped)
    }

    fn make_dir(&self, id: i64) -> Result<PathBuf, Error> {
        let dir = self.dir(id);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&dir)
            .map_err(|source| Error::failed(format!("make the snapshot's directory {}", dir.display()), source))?;
        Ok(dir)
    }

    /// Takes back a snapshot that could not be made. What cannot be taken back now is left to the next sweep.
    fn undo(&self, id: i64) {
        if let Err(error) = self.store.write_blocking(move |conn| rows::delete_id(conn, id)) {
            tracing::warn!(snapshotter = self.name, id, error = &error as &dyn std::error::Error, "row not taken back");
            return;
        }
        self.throw_away(id);
    }

    /// Removes the directory of a snapshot whose row is gone. The rename is quick and final; the deletion may take long,
    /// and what it leaves is found in the trash by the next sweep.
    fn throw_away(&self, id: i64) {
        if let Some(trash) = self.trash(id) {
            self.delete_alone(&trash);
        }
    }

    fn delete_alone(&self, trash: &Path) {
        // Guards the set only, for an insert and a remove.
        let deleting = || self.deleting.lock().unwrap_or_else(PoisonError::into_inner);
        if deleting().insert(trash.to_owned()) {
            delete(trash);
            deleting().remove(trash);
        }
    }

    /// Where the directory is now.
    fn trash(&self, id: i64) -> Option<PathBuf> {
        let (dir, trash) = (self.dir(id), self.root.join("trash").join(id.to_string()));
        match fs::rename(&dir, &trash) {
            Ok(()) => Some(trash),
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) => {
                tracing::warn!(dir = %dir.display(), error = &error as &dyn std::error::Error, "snapshot not trashed");
                None
            }
        }
    }

    fn key(&self, ns: &Namespace, key: &str) -> Key {
        Key { snapshotter: self.name, namespace: ns.clone(), key: key.to_owned() }
    }
}

/// Deletes what no row speaks of any more. A failure is logged and not returned: nothing refers to it, and the next sweep
/// tries again.
fn delete(path: &Path) {
    // By descriptors: a container may have made a tree deeper than a path can say, or than the stack.
    if let Err(error) = remove_tree(path) {
        tracing::warn!(path = %path.display(), error = &error as &dyn std::error::Error, "snapshot data not deleted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_removed_while_it_is_made_is_gone_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store.db"), &[rows::SCHEMA]).unwrap();
        let snapshots = Snapshots::open("test", dir.path(), store, "").unwrap();
        let ns = Namespace::k8s();
        let made = snapshots.create((&ns, "key"), None, Kind::Active, &Labels::new(), |row, _| {
            snapshots.remove(&ns, "key")?;
            // The maker does not know yet, and goes on writing.
            fs::create_dir_all(snapshots.dir(row.id).join("late")).unwrap();
            Ok(())
        });
        assert!(matches!(made, Err(Error::NotFound { ref key }) if key == "key"), "{made:?}");
        assert_eq!(fs::read_dir(dir.path().join("snapshots")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(dir.path().join("trash")).unwrap().count(), 0);
        snapshots.create((&ns, "key"), None, Kind::Active, &Labels::new(), |_, _| Ok(())).unwrap();
    }

    #[test]
    fn what_is_discarded_is_gone_at_once_and_its_space_when_the_trash_is_emptied() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store.db"), &[rows::SCHEMA]).unwrap();
        let snapshots = Snapshots::open("test", dir.path(), store, "").unwrap();
        let ns = Namespace::k8s();
        let make = || snapshots.create((&ns, "key"), None, Kind::Active, &Labels::new(), |_, _| Ok(())).unwrap();
        let count = |folder: &str| fs::read_dir(dir.path().join(folder)).unwrap().count();
        fs::write(snapshots.dir(make().id).join("file"), "x").unwrap();
        snapshots.discard(&ns, "key").unwrap();
        assert!(matches!(snapshots.find(&ns, "key"), Err(Error::NotFound { .. })));
        assert_eq!((count("snapshots"), count("trash")), (0, 1));
        make();
        snapshots.empty_trash().unwrap();
        assert_eq!((count("snapshots"), count("trash")), (1, 0));
    }

    #[test]
    fn a_tree_deeper_than_a_path_can_say_is_removed() {
        use rustix::fs::{CWD, Mode, OFlags};
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(&dir.path().join("store.db"), &[rows::SCHEMA]).unwrap();
        let snapshots = Snapshots::open("test", dir.path(), store, "").unwrap();
        let ns = Namespace::k8s();
        let row = snapshots.create((&ns, "key"), None, Kind::Active, &Labels::new(), |_, _| Ok(())).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = rustix::fs::openat(CWD, snapshots.dir(row.id), flags, Mode::empty()).unwrap();
        let name = "d".repeat(200);
        for _ in 0..2_000 {
            rustix::fs::mkdirat(&at, name.as_str(), Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, name.as_str(), flags, Mode::empty()).unwrap();
        }
        drop(at);
        snapshots.remove(&ns, "key").unwrap();
        assert_eq!(fs::read_dir(dir.path().join("snapshots")).unwrap().count(), 0);
        assert_eq!(fs::read_dir(dir.path().join("trash")).unwrap().count(), 0);
    }
}
