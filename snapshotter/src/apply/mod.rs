//! Applies a layer, a tar stream, to the directory of a snapshot.
//!
//! A layer is hostile input. What it says is resolved inside the directory only, never by the host's own path lookup:
//!
//! ```text
//! archive.rs    bytes ──► entries, checked        lower.rs      what the layers below hold at a path
//! layer.rs      one entry ──► one change          whiteout.rs   what the layer deletes
//! root.rs       the only way from a name to a descriptor: openat2 beneath the root, no magic links, no other mounts
//! diff.rs       the way back: a directory ──► entries
//! meter.rs      what one layer may use up
//! budget.rs     what several layers may hold together
//! attributes.rs owner, then mode, then attributes, then times        remove.rs   removal that follows nothing
//! ```
//!
//! Invariants: no path outside [`Target::root`] is written, whatever the archive holds; the last component of an entry's
//! name is never followed; a limit that is reached ends the work with an error and leaves the rest to the caller, who
//! throws the snapshot away. Everything here blocks.

pub mod archive;
mod attributes;
mod budget;
mod diff;
mod layer;
mod lower;
mod meter;
pub(crate) mod remove;
mod root;
mod whiteout;

use std::io::{self, Read};
use std::path::PathBuf;

pub use budget::Budget;
pub use diff::diff;
pub use remove::remove_tree;

use crate::LayerDirs;

/// Where a layer goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    pub root: PathBuf,
    /// The layers below, top first. They are read, to copy what they hold, and never written.
    pub parents: Vec<PathBuf>,
    pub whiteouts: Whiteouts,
}

/// What becomes of files that the layer deletes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whiteouts {
    /// They are hidden, by what overlayfs reads as a deletion.
    Overlay,
    /// They are in the root itself, and go.
    Remove,
}

/// How much a layer may hold. A stream that inflates to more ends there, whatever it is compressed with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Content of files with their attributes and the targets of links, and likewise all that the stream holds beyond it.
    pub bytes: u64,
    /// Files made, and likewise entries of the archive, whatever they are.
    pub inodes: u64,
    /// The headers of one entry, extended attributes included.
    pub header_bytes: u32,
    /// One path or link target.
    pub path_bytes: u32,
}

/// What was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Applied {
    pub bytes: u64,
    pub inodes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The stream ended badly; what it carries is not to blame.
    #[error("read the layer")]
    Read { source: io::Error },

    /// The stream is not a whole archive.
    #[error("the layer is not a valid tar archive: {reason}")]
    Malformed { reason: String },

    /// An entry asks for what is not done. The name is the archive's, with what is not printable escaped.
    #[error("entry {name:?} of the layer is refused: {reason}")]
    Refused { name: String, reason: String },

    #[error("the layer holds more than {limit} {what}")]
    TooMuch { what: &'static str, limit: u64 },

    #[error("the layers of the image together hold more than {limit} {what}")]
    TooMuchTogether { what: &'static str, limit: u64 },

    /// The host could not do what an entry asks for.
    #[error("{what}")]
    Failed { what: String, source: io::Error },
}

/// Asked for the layers below, top first, when something depends on what they hold. May block until they are there.
pub type Below<'a> = Box<dyn FnOnce() -> Result<Vec<PathBuf>, Error> + 'a>;

/// Applies the archive and reads the stream to its end, so that a digest over the stream covers all of it.
pub fn apply(tar: &mut dyn Read, target: &Target, limits: &Limits) -> Result<Applied, Error> {
    run(tar, target, lower::Lower::open(&target.parents)?, limits, None)
}

/// As [`apply`], for a layer whose parents may still be on their way: in place of the target's, those that `below` tells
/// are read. Few layers need any: for a directory that they leave out, or a hard link to what they do not hold themselves.
pub fn apply_ahead(tar: &mut dyn Read, target: &Target, below: Below<'_>, limits: &Limits) -> Result<Applied, Error> {
    run(tar, target, lower::Lower::later(below), limits, None)
}

/// As [`apply`], or as [`apply_ahead`] if there is `below`, for one of the layers that share `budget`.
pub fn apply_within<'a>(
    tar: &mut dyn Read,
    target: &Target,
    below: Option<Below<'a>>,
    limits: &Limits,
    budget: &'a Budget,
) -> Result<Applied, Error> {
    let lower = match below {
        Some(below) => lower::Lower::later(below),
        None => lower::Lower::open(&target.parents)?,
    };
    run(tar, target, lower, limits, Some(budget))
}

fn run<'a>(
    tar: &mut dyn Read,
    target: &Target,
    lower: lower::Lower<'a>,
    limits: &Limits,
    budget: Option<&'a Budget>,
) -> Result<Applied, Error> {
    let mut archive = archive::Archive::new(tar, limits);
    let mut layer = layer::Layer::open(target, lower, limits, budget)?;
    while let Some(entry) = archive.next_entry()? {
        layer.add(&entry, &mut archive)?;
    }
    archive.drain()?;
    layer.finish()
}

impl Default for Limits {
    /// More than the images of today hold, and less than fills a node's disk with inodes.
    fn default() -> Limits {
        Limits { bytes: 128 << 30, inodes: 4_000_000, header_bytes: 1 << 20, path_bytes: 4095 }
    }
}

impl From<LayerDirs> for Target {
    fn from(dirs: LayerDirs) -> Target {
        let whiteouts = if dirs.parents.is_empty() { Whiteouts::Remove } else { Whiteouts::Overlay };
        Target { root: dirs.upper, parents: dirs.parents, whiteouts }
    }
}

impl Error {
    fn refused(name: &[u8], reason: impl Into<String>) -> Error {
        Error::Refused { name: String::from_utf8_lossy(name).into_owned(), reason: reason.into() }
    }

    /// An effect on the host failed for the entry at `path`.
    fn failed(what: &str, path: &[u8], source: impl Into<io::Error>) -> Error {
        Error::Failed { what: format!("{what} {:?}", String::from_utf8_lossy(path)), source: source.into() }
    }
}

#[cfg(test)]
mod tests;
