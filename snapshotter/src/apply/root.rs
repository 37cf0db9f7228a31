//! The root of a layer: the only place where a name becomes a descriptor.
//!
//! Every lookup is one `openat2` beneath the root: links are followed as a process inside the root would follow them, and
//! neither magic links of procfs nor other mounts are entered. Names here are cleaned: relative, without `.` and `..`.
//! What is in a directory that is open already is opened by [`child`], which follows nothing at all.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::Error;

/// What a process may follow on one path before the kernel gives up; ours when missing directories are made.
const MAX_LINKS: usize = 40;
/// A rename elsewhere in the system can make a lookup with `..` uncertain; the kernel then asks to try again.
const MAX_RETRIES: usize = 128;

pub(super) struct Root {
    fd: OwnedFd,
    /// The directory that was used last, since entries of one directory mostly stand together.
    cached: Option<(Vec<u8>, Rc<OwnedFd>)>,
}

impl Root {
    pub(super) fn open(path: &Path) -> Result<Root, Error> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|source| Error::Failed {
            what: format!("open the layer's directory {}", path.display()),
            source: source.into(),
        })?;
        Ok(Root::at(fd))
    }

    /// A directory that is open already as a root of its own.
    pub(super) fn at(fd: OwnedFd) -> Root {
        Root { fd, cached: None }
    }

    /// A directory, with links on the way, and at the end, followed inside the root.
    pub(super) fn directory(&mut self, path: &[u8]) -> Result<Rc<OwnedFd>, Errno> {
        if let Some((cached, fd)) = &self.cached
            && cached == path
        {
            return Ok(Rc::clone(fd));
        }
        let fd = Rc::new(self.lookup(path, OFlags::RDONLY | OFlags::DIRECTORY, ResolveFlags::empty())?);
        self.cached = Some((path.to_vec(), Rc::clone(&fd)));
        Ok(fd)
    }

    /// To be called when something was removed or replaced, for what is cached may have been it or a link to it.
    pub(super) fn forget(&mut self) {
        self.cached = None;
    }

    /// A directory that is not a link, and has no links on the way.
    pub(super) fn plain_directory(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.lookup(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, ResolveFlags::NO_SYMLINKS)
    }

    /// A directory by a path that may lead through links, but is not one.
    pub(super) fn directory_nofollow(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.lookup(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW, ResolveFlags::empty())
    }

    /// Whatever is there, for looking at it; no links anywhere.
    pub(super) fn peek(&self, path: &[u8]) -> Result<OwnedFd, Errno> {
        self.lookup(path, OFlags::PATH | OFlags::NOFOLLOW, ResolveFlags::NO_SYMLINKS)
    }

    /// Where `path` leads when links are followed and what is missing counts as a directory yet to be made. `missing` is
    /// called for each directory that is not there, with its parent and its own path, and has to make it.
    pub(super) fn directory_or_make(
        &self,
        path: &[u8],
        mut missing: impl FnMut(BorrowedFd<'_>, &[u8], Option<Stat>) -> Result<(), Error>,
    ) -> Result<OwnedFd, Error> {
        let failed = |errno: Errno| Error::failed("open the directory", path, errno);
        let mut todo: VecDeque<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        let mut done: Vec<Vec<u8>> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop_front() {
            if name == b".." {
                done.pop();
                continue;
            }
            let parent = self.plain_directory(&done.join(&b'/')).map_err(failed)?;
            done.push(name.clone());
            let found = match rustix::fs::statat(&parent, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Some(stat),
                Err(Errno::NOENT) => None,
                Err(errno) => return Err(failed(errno)),
            };
            match found.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
                Some(FileType::Directory) => {}
                Some(FileType::Symlink) => {
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(failed(Errno::LOOP));
                    }
                    let target = rustix::fs::readlinkat(&parent, name.as_slice(), Vec::new()).map_err(failed)?;
                    done.pop();
                    if target.as_bytes().starts_with(b"/") {
                        done.clear();
                    }
                    for component in components(target.as_bytes()).collect::<Vec<_>>().into_iter().rev() {
                        todo.push_front(component.to_vec());
                    }
                }
                _ => missing(parent.as_fd(), &done.join(&b'/'), found)?,
            }
        }
        self.plain_directory(&done.join(&b'/')).map_err(failed)
    }

    fn lookup(&self, path: &[u8], flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        let path = match path.first() {
            None => b".",
            // Nothing but the flags below would keep it from being one of the host's.
            Some(b'/') => return Err(Errno::INVAL),
            Some(_) => path,
        };
        let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        for _ in 0..MAX_RETRIES {
            match rustix::fs::openat2(&self.fd, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve) {
                Err(Errno::AGAIN) => {}
                other => return other,
            }
        }
        Err(Errno::AGAIN)
    }
}

/// Opens what is called `name` in `dir`. A link is not followed, and a mount, which is not of the layer, is not entered.
pub(super) fn child(dir: impl AsFd, name: impl rustix::path::Arg, flags: OFlags) -> Result<OwnedFd, Errno> {
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(dir, name, flags, Mode::empty(), resolve)
}

/// An entry's name as a path beneath the root: `..` takes back what is before it, and stops at the root.
pub(super) fn clean(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in components(name) {
        match part {
            b".." => {
                parts.pop();
            }
            part => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// Splits a cleaned path, which is not empty, into the directory and the last component.
pub(super) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

/// The components of a path, without empty ones and `.`.
pub(super) fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".")
}
