//! Removal of whole trees that follows nothing and needs neither stack nor descriptors in proportion to their depth.

use std::ffi::CString;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

/// Removes `name` from `dir`, with all that is in it. That it is not there is success.
pub(super) fn tree(dir: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
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
    let mut current = open(dir, &name)?;
    // The directories between `dir` and `current`; `..` leads back up, for nobody else moves anything in here.
    let mut above = vec![name];
    while let Some(own) = above.last() {
        match first_full_directory(&current)? {
            Some(below) => {
                current = open(&current, &below)?;
                above.push(below);
            }
            None => {
                let parent = open(&current, c"..")?;
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

fn open(dir: impl std::os::fd::AsFd, name: &std::ffi::CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::empty())
}
