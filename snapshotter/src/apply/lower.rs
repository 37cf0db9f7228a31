//! The layers below, as overlayfs would show them at one path. Only read, and no link in them is followed.

use std::cell::{Cell, OnceCell};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{FileType, Stat};
use rustix::io::Errno;

use super::root::{Root, components};
use super::{Below, Error, attributes};

pub(super) struct Lower<'a> {
    /// Set once they are known.
    layers: OnceCell<Vec<Root>>,
    later: Cell<Option<Below<'a>>>,
}

/// What the layers below hold at a path: an `O_PATH` descriptor, and what stat says of it.
pub(super) struct Found {
    pub(super) fd: OwnedFd,
    pub(super) stat: Stat,
}

/// What one layer says of a path.
enum Says {
    Holds(Found),
    Hidden,
    Nothing,
}

impl<'a> Lower<'a> {
    pub(super) fn open(parents: &[PathBuf]) -> Result<Lower<'a>, Error> {
        Ok(Lower { layers: OnceCell::from(open_all(parents)?), later: Cell::default() })
    }

    pub(super) fn later(below: Below<'a>) -> Lower<'a> {
        Lower { layers: OnceCell::new(), later: Cell::new(Some(below)) }
    }

    /// Whether it is known that there are none.
    pub(super) fn is_empty(&self) -> bool {
        self.layers.get().is_some_and(Vec::is_empty)
    }

    pub(super) fn find(&self, path: &[u8]) -> Result<Option<Found>, Error> {
        for layer in self.layers()? {
            match ask(layer, path).map_err(|errno| Error::failed("look below for", path, errno))? {
                Says::Holds(found) => return Ok(Some(found)),
                Says::Hidden => return Ok(None),
                Says::Nothing => {}
            }
        }
        Ok(None)
    }

    fn layers(&self) -> Result<&[Root], Error> {
        if let Some(below) = self.later.take() {
            let layers = open_all(&below()?)?;
            return Ok(self.layers.get_or_init(|| layers));
        }
        Ok(self.layers.get().map_or(&[], Vec::as_slice))
    }
}

fn open_all(parents: &[PathBuf]) -> Result<Vec<Root>, Error> {
    parents.iter().map(|path| Root::open(path)).collect()
}

fn ask(layer: &Root, path: &[u8]) -> Result<Says, Errno> {
    let mut walked = Vec::new();
    let mut opaque = false;
    let mut last = None;
    for component in components(path) {
        if !walked.is_empty() {
            walked.push(b'/');
        }
        walked.extend_from_slice(component);
        let fd = match layer.peek(&walked) {
            // In an opaque directory, what is not there is not taken from further below.
            Err(Errno::NOENT) if opaque => return Ok(Says::Hidden),
            Err(Errno::NOENT) => return Ok(Says::Nothing),
            // Something else than a directory is in the way, and hides what is below.
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(Says::Hidden),
            other => other?,
        };
        let stat = rustix::fs::fstat(&fd)?;
        if is_whiteout(&stat) {
            return Ok(Says::Hidden);
        }
        opaque |= is_directory(&stat) && attributes::is_opaque(fd.as_fd());
        last = Some(Found { fd, stat });
    }
    Ok(last.map_or(Says::Nothing, Says::Holds))
}

pub(super) fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// How overlayfs writes that a name is deleted.
pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}
