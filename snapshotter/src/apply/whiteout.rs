//! What a layer deletes: entries named `.wh.<name>`, and `.wh..wh..opq` for all that a directory held before.
//!
//! They concern the layers below only. What this layer brings itself stays, in whichever order the entries stand.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, XattrFlags};
use rustix::io::Errno;

use super::lower::is_directory;
use super::root::{Root, child, split};
use super::{Error, attributes};

/// What an entry's last component says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    File,
    /// `name` is deleted.
    Deletes(&'a [u8]),
    /// All that was in the directory is deleted.
    Opaque,
    /// Notes of storage drivers of the past.
    Notes,
}

/// What this layer brought, where the root holds what is of the layers below as well.
#[derive(Debug, Default)]
pub(super) struct Own {
    inodes: HashSet<u64>,
    /// New names of files that are of the layers below, each with the inode of its directory.
    names: HashSet<(u64, Vec<u8>)>,
    /// Directories of the layers below that were looked at.
    seen: HashSet<u64>,
}

impl Own {
    pub(super) fn insert(&mut self, inode: u64) {
        self.inodes.insert(inode);
    }

    /// A hard link to `inode`, which may be of the layers below and then goes on being so.
    pub(super) fn insert_name(&mut self, dir: u64, name: &[u8], inode: u64) {
        if !self.inodes.contains(&inode) {
            self.names.insert((dir, name.to_vec()));
        }
    }

    /// Whether a directory is of the layers below, and seen for the first time.
    pub(super) fn is_first_look(&mut self, inode: u64) -> bool {
        !self.inodes.contains(&inode) && self.seen.insert(inode)
    }

    fn holds(&self, dir: &Stat, name: &[u8], found: &Stat) -> bool {
        self.inodes.contains(&found.st_ino)
            || (!self.names.is_empty() && self.names.contains(&(dir.st_ino, name.to_vec())))
    }
}

pub(super) fn meaning(name: &[u8]) -> Result<Meaning<'_>, Error> {
    Ok(match name.strip_prefix(b".wh.") {
        None => Meaning::File,
        Some(b".wh..opq") => Meaning::Opaque,
        Some(notes) if notes.starts_with(b".wh.") => Meaning::Notes,
        Some(b"" | b"." | b"..") => return Err(Error::refused(name, "it deletes nothing that has a name")),
        Some(deleted) => Meaning::Deletes(deleted),
    })
}

/// Hides `name` of the layers below `dir`, unless this layer has something of that name, which hides it already; a
/// directory does so only if it is opaque.
pub(super) fn hide(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), 0) {
        Err(Errno::EXIST) => {}
        other => return other,
    }
    let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
    if is_directory(&stat) {
        hide_all(child(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)?.as_fd())?;
    }
    Ok(())
}

/// Hides all that the layers below hold in the directory.
pub(super) fn hide_all(dir: BorrowedFd<'_>) -> Result<(), Errno> {
    rustix::fs::fsetxattr(dir, attributes::OPAQUE, b"y", XattrFlags::empty())
}

/// Removes `name` from `dir`, but for what this layer brought. Tells how many files were looked at.
pub(super) fn delete(dir: BorrowedFd<'_>, name: &[u8], own: &Own) -> Result<u64, Errno> {
    let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(1),
        other => other?,
    };
    match (own.holds(&rustix::fs::fstat(dir)?, name, &stat), is_directory(&stat)) {
        (true, false) => Ok(1),
        (false, false) => rustix::fs::unlinkat(dir, name, AtFlags::empty()).map(|()| 1),
        (is_own, true) => {
            let walked = delete_in(child(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)?, own)?;
            if !is_own {
                drop_empty(dir, name)?;
            }
            Ok(walked + 1)
        }
    }
}

/// Removes what is in the directory, but for what this layer brought and the directories that lead there. Tells how many
/// files were looked at.
pub(super) fn delete_in(top: OwnedFd, own: &Own) -> Result<u64, Errno> {
    let top = Root::at(top);
    let mut walked = 0;
    let mut foreign = Vec::new();
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let dir = top.plain_directory(&path)?;
        let dir_stat = rustix::fs::fstat(&dir)?;
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            walked += 1;
            let is_own = own.holds(&dir_stat, name.to_bytes(), &stat);
            if is_directory(&stat) {
                let below = match path.is_empty() {
                    true => name.to_bytes().to_vec(),
                    false => [path.as_slice(), name.to_bytes()].join(&b'/'),
                };
                if !is_own {
                    foreign.push(below.clone());
                }
                waiting.push(below);
            } else if !is_own {
                rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
            }
        }
    }
    // Children were seen after their parents.
    foreign.iter().rev().try_for_each(|path| {
        let (parent, name) = split(path);
        drop_empty(top.plain_directory(parent)?.as_fd(), name)
    })?;
    Ok(walked)
}

/// Removes a directory of the layers below, unless something of this layer is in it.
fn drop_empty(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        other => other,
    }
}
