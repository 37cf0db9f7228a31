//! How much a directory tree takes up on disk.
//!
//! A container may change the tree meanwhile, even swap a directory for a link to a place on the host, so every
//! directory is opened beneath the top and no link is followed.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use crate::{Error, Usage};

/// The blocks and inodes of everything below `top`, and of `top`.
pub(crate) fn measure(top: &Path) -> Result<Usage, Error> {
    let failed = |source: io::Error| Error::failed(format!("measure {}", top.display()), source);
    let top = File::open(top).map_err(failed)?;
    let mut count = Count::default();
    count.add(&rustix::fs::fstat(&top).map_err(|e| failed(e.into()))?);
    let mut waiting = vec![CString::from(c".")];
    while let Some(dir) = waiting.pop() {
        match read_dir(top.as_fd(), &dir, &mut count, &mut waiting) {
            // It went away or was swapped since it was seen, or lies deeper than a path can name.
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::NAMETOOLONG) => {}
            Err(error) => return Err(failed(error.into())),
        }
    }
    Ok(count.usage)
}

#[derive(Default)]
struct Count {
    usage: Usage,
    /// Inodes with more than one name that were counted.
    linked: HashSet<(u64, u64)>,
}

impl Count {
    fn add(&mut self, stat: &Stat) {
        let is_dir = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if is_dir || stat.st_nlink <= 1 || self.linked.insert((stat.st_dev, stat.st_ino)) {
            self.usage.inodes += 1;
            // The kernel counts blocks of 512 bytes, whatever the file system's are. They are never negative.
            self.usage.bytes += stat.st_blocks.unsigned_abs() * 512;
        }
    }
}

fn read_dir(top: BorrowedFd<'_>, path: &CStr, count: &mut Count, waiting: &mut Vec<CString>) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    let dir = match rustix::fs::openat2(top, path, flags, Mode::empty(), resolve) {
        // Something is mounted there; it is not part of the snapshot.
        Err(Errno::XDEV) => return Ok(()),
        other => other?,
    };
    for entry in Dir::read_from(&dir)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let stat = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => continue,
            other => other?,
        };
        count.add(&stat);
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            let below = [path.to_bytes(), name.to_bytes()].join(&b'/');
            waiting.push(CString::new(below).map_err(|_| Errno::INVAL)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn hard_links_count_once_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path();
        fs::write(top.join("file"), vec![1; 100_000]).unwrap();
        fs::hard_link(top.join("file"), top.join("again")).unwrap();
        fs::create_dir(top.join("sub")).unwrap();
        fs::hard_link(top.join("file"), top.join("sub/third")).unwrap();
        std::os::unix::fs::symlink("/proc", top.join("sub/link")).unwrap();

        let blocks: u64 = [".", "file", "sub", "sub/link"]
            .iter()
            .map(|name| fs::symlink_metadata(top.join(name)).unwrap().blocks() * 512)
            .sum();
        assert_eq!(measure(top).unwrap(), Usage { bytes: blocks, inodes: 4 });
    }

    #[test]
    fn a_tree_deeper_than_a_path_can_name_is_measured_as_far_as_it_goes() {
        let dir = tempfile::tempdir().unwrap();
        let name = "d".repeat(250);
        let mut at = rustix::fs::openat(
            rustix::fs::CWD,
            dir.path(),
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
        .unwrap();
        for _ in 0..20 {
            rustix::fs::mkdirat(&at, name.as_str(), Mode::RWXU).unwrap();
            at = rustix::fs::openat(&at, name.as_str(), OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).unwrap();
        }
        let usage = measure(dir.path()).unwrap();
        assert!((17..=21).contains(&usage.inodes), "{usage:?}");
    }
}
