//! What a layer deletes: entries named `.wh.<name>`, and `.wh..wh..opq` for all that a directory held before.
//!
//! They concern the layers below only. What this layer brings itself stays, in whichever order the entries stand.

use std::collections::HashSet;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, XattrFlags};
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

/// Removes `name` from `dir`, but for what this layer brought, whose inodes are `own`.
pub(super) fn delete(dir: BorrowedFd<'_>, name: &[u8], own: &HashSet<u64>) -> Result<(), Errno> {
    let stat = match rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    match (own.contains(&stat.st_ino), is_directory(&stat)) {
        (true, false) => Ok(()),
        (false, false) => rustix::fs::unlinkat(dir, name, AtFlags::empty()),
        (is_own, true) => {
            delete_in(child(dir, name, OFlags::RDONLY | OFlags::DIRECTORY)?, own)?;
            if is_own { Ok(()) } else { drop_empty(dir, name) }
        }
    }
}

/// Removes what is in the directory, but for what this layer brought and the directories that lead there.
pub(super) fn delete_in(top: OwnedFd, own: &HashSet<u64>) -> Result<(), Errno> {
    let top = Root::at(top);
    let mut foreign = Vec::new();
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let dir = top.plain_directory(&path)?;
        for entry in Dir::read_from(&dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let is_own = own.contains(&stat.st_ino);
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
    })
}

/// Removes a directory of the layers below, unless something of this layer is in it.
fn drop_empty(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(()),
        other => other,
    }
}
