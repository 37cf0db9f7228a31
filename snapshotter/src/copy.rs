//! Copies a file tree with all that can be seen of it: owners, modes, times, attributes, hard links, devices and holes.
//!
//! The source is a committed snapshot, which nothing changes; no link in it is followed.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, File, Metadata, OpenOptions, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, lchown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, SeekFrom, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;

use crate::Error;

/// Copies what is in `from`, and the looks of `from` itself, to the directory `to`, which is there and empty.
pub(crate) fn tree(from: &Path, to: &Path) -> Result<(), Error> {
    let mut links = HashMap::new();
    let mut dirs = Vec::new();
    let mut waiting = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = waiting.pop() {
        let failed = |source: io::Error| Error::failed(format!("copy {}", from.display()), source);
        for entry in fs::read_dir(&from).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name();
            let (source, target) = (from.join(&name), to.join(&name));
            let failed = |error: io::Error| Error::failed(format!("copy {}", source.display()), error);
            let meta = fs::symlink_metadata(&source).map_err(failed)?;
            if meta.is_dir() {
                fs::create_dir(&target).map_err(failed)?;
                waiting.push((source, target));
            } else {
                entry_of(&source, &target, &meta, &mut links).map_err(failed)?;
            }
        }
        dirs.push((from, to));
    }
    // Writing into a directory changes its times, so directories get theirs when all is in place.
    for (from, to) in dirs {
        fs::symlink_metadata(&from)
            .and_then(|meta| looks(&from, &to, &meta))
            .map_err(|source| Error::failed(format!("copy the attributes of {}", from.display()), source))?;
    }
    Ok(())
}

/// The mode of a root directory that has no parent to take it from.
pub(crate) fn open_to_all(dir: &Path) -> Result<(), Error> {
    fs::set_permissions(dir, Permissions::from_mode(0o755))
        .map_err(|source| Error::failed(format!("set the mode of {}", dir.display()), source))
}

/// Names that were copied, by the inode they had, for those with more than one.
type Links = HashMap<(u64, u64), PathBuf>;

fn entry_of(from: &Path, to: &Path, meta: &Metadata, links: &mut Links) -> io::Result<()> {
    if meta.nlink() > 1 {
        if let Some(first) = links.get(&(meta.dev(), meta.ino())) {
            return fs::hard_link(first, to);
        }
        links.insert((meta.dev(), meta.ino()), to.to_owned());
    }
    match FileType::from_raw_mode(meta.mode()) {
        FileType::RegularFile => file(from, to, meta.len())?,
        FileType::Symlink => symlink(fs::read_link(from)?, to)?,
        special => rustix::fs::mknodat(CWD, to, special, Mode::RUSR, meta.rdev())?,
    }
    looks(from, to, meta)
}

/// Owner first, since changing it drops set-id bits and capabilities; times last, since all else changes them.
fn looks(from: &Path, to: &Path, meta: &Metadata) -> io::Result<()> {
    lchown(to, Some(meta.uid()), Some(meta.gid()))?;
    attributes(from, to)?;
    if !meta.is_symlink() {
        fs::set_permissions(to, Permissions::from_mode(meta.mode() & 0o7777))?;
    }
    let times = Timestamps {
        last_access: Timespec { tv_sec: meta.atime(), tv_nsec: meta.atime_nsec() },
        last_modification: Timespec { tv_sec: meta.mtime(), tv_nsec: meta.mtime_nsec() },
    };
    Ok(rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

fn attributes(from: &Path, to: &Path) -> io::Result<()> {
    let names = match sized(|buffer| rustix::fs::llistxattr(from, buffer)) {
        // The file system, or this type of file, has none.
        Err(Errno::OPNOTSUPP) => return Ok(()),
        other => other?,
    };
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = CString::new(name)?;
        let value = sized(|buffer| rustix::fs::lgetxattr(from, &name, buffer))?;
        rustix::fs::lsetxattr(to, &name, &value, XattrFlags::empty())?;
    }
    Ok(())
}

/// Attributes, and lists of them, are at most 64 KiB.
fn sized(get: impl FnOnce(&mut [u8]) -> rustix::io::Result<usize>) -> rustix::io::Result<Vec<u8>> {
    let mut buffer = vec![0; 64 << 10];
    let len = get(&mut buffer)?;
    buffer.truncate(len);
    Ok(buffer)
}

fn file(from: &Path, to: &Path, len: u64) -> io::Result<()> {
    let source = File::open(from)?;
    let target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to)?;
    content(&source, &target, len)
}

/// Copies the content of a file to one that is empty, the holes as holes.
pub(crate) fn content(source: &File, target: &File, len: u64) -> io::Result<()> {
    if rustix::fs::ioctl_ficlone(target, source).is_ok() {
        return Ok(());
    }
    target.set_len(len)?;
    let mut at = 0;
    while at < len {
        let start = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            // Only a hole is left.
            Err(Errno::NXIO) => break,
            other => other?,
        };
        let end = rustix::fs::seek(source, SeekFrom::Hole(start))?;
        range(source, target, start, end)?;
        at = end;
    }
    Ok(())
}

fn range(source: &File, target: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut from, mut to) = (start, start);
    while from < end {
        let want = usize::try_from(end - from).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(source, Some(&mut from), target, Some(&mut to), want) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(Errno::INTR) => {}
            // Not between these file systems, or not on this one.
            Err(Errno::XDEV | Errno::OPNOTSUPP | Errno::INVAL | Errno::NOSYS) => {
                return by_hand(source, target, from, end);
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn by_hand(source: &File, target: &File, mut at: u64, end: u64) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let mut buffer = vec![0; 128 << 10];
    while at < end {
        let want = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
        source.read_exact_at(&mut buffer[..want], at)?;
        target.write_all_at(&buffer[..want], at)?;
        at += want as u64;
    }
    Ok(())
}
