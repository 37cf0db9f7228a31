//! Owner, mode, extended attributes and times of what was just made, all by descriptor.
//!
//! The order matters: a change of owner drops set-id bits and capabilities, a write drops capabilities, and everything
//! changes the times.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{AtFlags, Gid, Mode, Stat, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use super::Error;
use super::archive::{Looks, Xattrs};

/// Marks a directory that hides the one below it.
pub(super) const OPAQUE: &str = "trusted.overlay.opaque";
/// How overlayfs keeps its own notes. From an archive, they would redirect lookups to places of its choice.
const OVERLAY_NOTES: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
/// No attribute is larger, and no list of them.
const MAX_XATTR: usize = 64 << 10;

/// Sets everything but the times on a file or directory that is open for reading or writing. What is so already, as it
/// mostly is of what was just made with the right mode, is left alone: each change is a transaction of the file system.
pub(super) fn set(fd: BorrowedFd<'_>, path: &[u8], looks: &Looks) -> Result<(), Error> {
    let failed = |what: &str, errno: Errno| Error::failed(what, path, errno);
    let now = rustix::fs::fstat(fd).map_err(|errno| failed("look at", errno))?;
    let is_owned = (now.st_uid, now.st_gid) == (looks.uid, looks.gid);
    if !is_owned {
        rustix::fs::fchown(fd, Some(Uid::from_raw(looks.uid)), Some(Gid::from_raw(looks.gid)))
            .map_err(|errno| failed("change the owner of", errno))?;
    }
    if !is_owned || now.st_mode & 0o7777 != looks.mode {
        rustix::fs::fchmod(fd, Mode::from_raw_mode(looks.mode)).map_err(|errno| failed("change the mode of", errno))?;
    }
    set_xattrs(path, looks, |name, value| rustix::fs::fsetxattr(fd, name, value, XattrFlags::empty()))
}

/// Sets everything but the times on a link, pipe or device, which cannot be opened without side effects and so is held by
/// an `O_PATH` descriptor. Its name in procfs leads to the inode itself, even if that is a link.
pub(super) fn set_unopened(fd: BorrowedFd<'_>, path: &[u8], looks: &Looks, is_link: bool) -> Result<(), Error> {
    let failed = |what: &str, errno: Errno| Error::failed(what, path, errno);
    let (uid, gid) = (Uid::from_raw(looks.uid), Gid::from_raw(looks.gid));
    rustix::fs::chownat(fd, "", Some(uid), Some(gid), AtFlags::EMPTY_PATH)
        .map_err(|errno| failed("change the owner of", errno))?;
    let name = procfs_name(fd);
    if !is_link {
        rustix::fs::chmod(&name, Mode::from_raw_mode(looks.mode))
            .map_err(|errno| failed("change the mode of", errno))?;
    }
    set_xattrs(path, looks, |key, value| rustix::fs::setxattr(&name, key, value, XattrFlags::empty()))
}

/// Sets the times of `name` in `dir`, which is not followed.
pub(super) fn set_times(dir: BorrowedFd<'_>, name: &[u8], path: &[u8], times: &Timestamps) -> Result<(), Error> {
    rustix::fs::utimensat(dir, name, times, AtFlags::SYMLINK_NOFOLLOW)
        .map_err(|errno| Error::failed("set the times of", path, errno))
}

pub(super) fn times(looks: &Looks) -> Timestamps {
    Timestamps { last_access: looks.accessed, last_modification: looks.modified }
}

/// Makes `to` look like `from`, a file or directory of a layer below, whose `stat` is given. Times are the caller's.
pub(super) fn copy(from: BorrowedFd<'_>, stat: &Stat, to: BorrowedFd<'_>, path: &[u8]) -> Result<(), Error> {
    set(to, path, &looks_of(from, stat, path)?)
}

pub(super) fn looks_of(from: BorrowedFd<'_>, stat: &Stat, path: &[u8]) -> Result<Looks, Error> {
    let times = times_of(stat);
    Ok(Looks {
        mode: stat.st_mode & 0o7777,
        uid: stat.st_uid,
        gid: stat.st_gid,
        accessed: times.last_access,
        modified: times.last_modification,
        xattrs: xattrs(from).map_err(|errno| Error::failed("read the attributes of", path, errno))?,
    })
}

pub(super) fn times_of(stat: &Stat) -> Timestamps {
    // Nanoseconds are less than a billion, whatever the type they come in.
    let time = |seconds, nanos: u64| Timespec { tv_sec: seconds, tv_nsec: nanos as i64 };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}

/// Whether overlayfs takes the directory for one that hides what is below it.
pub(super) fn is_opaque(fd: BorrowedFd<'_>) -> bool {
    let mut value = [0; 2];
    matches!(rustix::fs::getxattr(procfs_name(fd), OPAQUE, &mut value[..]), Ok(1)) && value[0] == b'y'
}

/// Takes off the attributes that a directory has from an earlier entry, but for those that the node gives by itself.
pub(super) fn clear(fd: BorrowedFd<'_>, path: &[u8]) -> Result<(), Error> {
    let failed = |errno: Errno| Error::failed("take the attributes off", path, errno);
    for (name, _) in xattrs(fd).map_err(failed)? {
        if name == b"security.selinux" || OVERLAY_NOTES.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        match rustix::fs::removexattr(procfs_name(fd), OsStr::from_bytes(&name)) {
            Ok(()) | Err(Errno::NODATA | Errno::OPNOTSUPP) => {}
            Err(errno) => return Err(failed(errno)),
        }
    }
    Ok(())
}

fn set_xattrs(path: &[u8], looks: &Looks, set: impl Fn(&OsStr, &[u8]) -> Result<(), Errno>) -> Result<(), Error> {
    for (name, value) in &looks.xattrs {
        if OVERLAY_NOTES.iter().any(|prefix| name.starts_with(prefix)) {
            continue;
        }
        match set(OsStr::from_bytes(name), value) {
            Ok(()) => {}
            // Not every file system has every attribute, and none can have those of a security module that is not there.
            Err(Errno::OPNOTSUPP) => {
                tracing::debug!(path = %path.escape_ascii(), name = %name.escape_ascii(), "attribute not supported");
            }
            Err(errno) => {
                let what = format!("set the attribute {:?} of", String::from_utf8_lossy(name));
                return Err(Error::failed(&what, path, errno));
            }
        }
    }
    Ok(())
}

fn xattrs(fd: BorrowedFd<'_>) -> Result<Xattrs, Errno> {
    let file = procfs_name(fd);
    let mut names = vec![0; MAX_XATTR];
    match rustix::fs::listxattr(&file, names.as_mut_slice()) {
        Ok(len) => names.truncate(len),
        Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(errno) => return Err(errno),
    }
    let mut found = Vec::new();
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; MAX_XATTR];
        let len = rustix::fs::getxattr(&file, OsStr::from_bytes(name), value.as_mut_slice())?;
        value.truncate(len);
        found.push((name.to_vec(), value));
    }
    Ok(found)
}

/// A path that leads to what the descriptor holds, whatever it is.
pub(super) fn procfs_name(fd: impl AsFd) -> String {
    format!("/proc/thread-self/fd/{}", fd.as_fd().as_raw_fd())
}
