//! Snapshots as full copies: works on every file system, and costs time and space for it.
//!
//! ```text
//! <root>/snapshots/<id>/   the whole tree; an empty directory for a view, which shows its parent's
//! ```

use std::path::Path;

use store::Store;

use crate::local::{Layout, Local};
use crate::rows::Row;
use crate::snapshots::Snapshots;
use crate::{Error, Kind, Mount, copy};

pub type Native = Local<Copies>;

/// A whole tree a snapshot.
pub struct Copies;

impl Native {
    pub fn open(root: &Path, store: Store) -> Result<Native, Error> {
        Ok(Local::new(Snapshots::open("native", root, store, "")?, Copies))
    }
}

impl Layout for Copies {
    fn fill(&self, snapshots: &Snapshots, row: &Row, dir: &Path) -> Result<(), Error> {
        match (row.info.kind, row.parents.first()) {
            (Kind::Active, Some(parent)) => copy::tree(&snapshots.dir(*parent), dir),
            _ => copy::open_to_all(dir),
        }
    }

    fn mounts(&self, snapshots: &Snapshots, row: &Row) -> Vec<Mount> {
        let (shown, access) = match (row.info.kind, row.parents.first()) {
            (Kind::Active, _) => (row.id, "rw"),
            (_, Some(parent)) => (*parent, "ro"),
            (_, None) => (row.id, "ro"),
        };
        vec![Mount::bind(&snapshots.dir(shown), access)]
    }
}
