//! Removal of whole trees that follows nothing and needs neither stack nor descriptors in proportion to their depth.
//!
//! What is mounted in a tree is not of the tree: removal stops there with an error.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::root::child;

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY);

/// Removes a directory and all that is in it, or whatever else has this name. That it is not there is success.
///
/// What is mounted in it stops the removal: with [`CrossesDevices`](io::ErrorKind::CrossesDevices) or
/// [`ResourceBusy`](io::ErrorKind::ResourceBusy), and a part of the rest is then removed. Blocks.
pub fn remove_tree(path: &Path) -> io::Result<()> {
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    match File::open(parent) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        opened => Ok(tree(opened?.as_fd(), name.as_bytes())?),
    }
}

/// Removes `name` from `dir`, with all that is in it. That it is not there is success.
pub(crate) fn tree(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(Errno::NOENT) => return Ok(()),
        other => return other,
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        other => return other,
    }
    let name = CString::new(name).map_err(|_| Errno::INVAL)?;
    let mut current = child(dir, &name, DIRECTORY)?;
    // The directories between `dir` and `current`, each with the one that it was found in.
    let mut above = vec![(identity(dir)?, name)];
    while let Some((found_in, own)) = above.last() {
        match first_full_directory(&current)? {
            Some(below) => {
                let next = child(&current, &below, DIRECTORY)?;
                above.push((identity(&current)?, below));
                current = next;
            }
            None => {
                let flags = DIRECTORY | OFlags::CLOEXEC;
                let parent = rustix::fs::openat(&current, c"..", flags, Mode::empty())?;
                // Somebody may have moved `current` meanwhile; where it is now, nothing is ours to remove.
                if identity(&parent)? != *found_in {
                    return Err(Errno::STALE);
                }
                rustix::fs::unlinkat(&parent, own, AtFlags::REMOVEDIR)?;
                above.pop();
                current = parent;
            }
        }
    }
    Ok(())
}

/// Removes what can be removed at once, and names the first directory that is not empty.
fn first_full_directory(dir: &OwnedFd) -> Result<Option<CString>, Errno> {
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let is_dir = match entry.file_type() {
            FileType::Unknown => {
                let stat = rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
                FileType::from_raw_mode(stat.st_mode) == FileType::Directory
            }
            known => known == FileType::Directory,
        };
        let flags = if is_dir { AtFlags::REMOVEDIR } else { AtFlags::empty() };
        match rustix::fs::unlinkat(dir, name, flags) {
            Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(Some(name.to_owned())),
            other => other?,
        }
    }
    Ok(None)
}

/// Tells one directory from all others that exist.
fn identity(dir: impl AsFd) -> Result<(u64, u64), Errno> {
    rustix::fs::fstat(dir).map(|stat| (stat.st_dev, stat.st_ino))
}
