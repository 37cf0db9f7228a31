//! One layer being written: each entry becomes one change beneath the root.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, Timestamps};
use rustix::io::Errno;

use super::archive::{Archive, Entry, Kind, Looks, Region};
use super::lower::{Found, Lower, is_directory, is_whiteout};
use super::meter::Meter;
use super::root::{Root, child, clean, split};
use super::whiteout::{Meaning, Own};
use super::{Applied, Budget, Error, Limits, Target, Whiteouts, attributes, remove, whiteout};

pub(super) struct Layer<'a> {
    root: Root,
    lower: Lower<'a>,
    whiteouts: Whiteouts,
    meter: Meter<'a>,
    own: Own,
    /// Times of directories, by path; set last, for every entry changes those of its directory.
    directories: Vec<(Vec<u8>, Timestamps)>,
    /// Times of directories of the layers below that an entry of theirs changes, by a path that may lead through links.
    changed: Vec<(Vec<u8>, Timestamps)>,
    /// Whose times were looked at last.
    looked_at: Option<Rc<OwnedFd>>,
    /// What is here only because a hard link leads to it: not of this layer, so this layer may delete it.
    borrowed: BTreeSet<Vec<u8>>,
}

/// Why a directory is made that has no entry.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Why {
    Entry,
    Borrowed,
}

/// Where an entry goes.
struct Place<'a> {
    dir: Rc<OwnedFd>,
    /// The last component of `path`, a cleaned name.
    name: &'a [u8],
    path: &'a [u8],
}

impl Place<'_> {
    fn failed(&self, what: &'static str) -> impl Fn(Errno) -> Error + '_ {
        move |errno| Error::failed(what, self.path, errno)
    }
}

impl<'a> Layer<'a> {
    pub(super) fn open(
        target: &Target,
        lower: Lower<'a>,
        limits: &Limits,
        budget: Option<&'a Budget>,
    ) -> Result<Layer<'a>, Error> {
        Ok(Layer {
            root: Root::open(&target.root)?,
            lower,
            whiteouts: target.whiteouts,
            meter: Meter::new(limits, budget),
            own: Own::default(),
            directories: Vec::new(),
            changed: Vec::new(),
            looked_at: None,
            borrowed: BTreeSet::new(),
        })
    }

    pub(super) fn add(&mut self, entry: &Entry, archive: &mut Archive<'_>) -> Result<(), Error> {
        let path = clean(&entry.name);
        if path.is_empty() {
            // The root looks as the snapshotter made it look.
            return Ok(());
        }
        let (parent, name) = split(&path);
        let meaning = whiteout::meaning(name)?;
        if meaning == Meaning::Notes {
            return Ok(());
        }
        let place = Place { dir: self.parent(parent, Why::Entry)?, name, path: &path };
        self.keep_times(&place.dir, parent)?;
        match meaning {
            Meaning::File => self.put(entry, &place, archive),
            Meaning::Deletes(deleted) => self.delete(&place, deleted),
            Meaning::Opaque => self.delete_all(&place),
            Meaning::Notes => Ok(()),
        }
    }

    pub(super) fn finish(self) -> Result<Applied, Error> {
        let Layer { mut root, directories, changed, meter, .. } = self;
        for (path, times) in &changed {
            match root.directory(path) {
                Ok(dir) => {
                    rustix::fs::futimens(&dir, times).map_err(|errno| Error::failed("set the times of", path, errno))?
                }
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(Error::failed("open the directory", path, errno)),
            }
        }
        for (path, times) in &directories {
            match root.directory_nofollow(path) {
                Ok(dir) => {
                    rustix::fs::futimens(&dir, times).map_err(|errno| Error::failed("set the times of", path, errno))?
                }
                // A later entry replaced it.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
                Err(errno) => return Err(Error::failed("open the directory", path, errno)),
            }
        }
        Ok(meter.applied())
    }

    /// In one directory with the layers below, what they say of a directory's times goes on holding, as it does where a
    /// layer is a directory of its own.
    fn keep_times(&mut self, dir: &Rc<OwnedFd>, path: &[u8]) -> Result<(), Error> {
        let is_known = self.looked_at.as_ref().is_some_and(|last| Rc::ptr_eq(last, dir));
        if self.whiteouts == Whiteouts::Overlay || path.is_empty() || is_known {
            return Ok(());
        }
        let stat = rustix::fs::fstat(dir).map_err(|errno| Error::failed("look at", path, errno))?;
        if self.own.is_first_look(stat.st_ino) {
            self.meter.name(path)?;
            self.changed.push((path.to_vec(), attributes::times_of(&stat)));
        }
        self.looked_at = Some(Rc::clone(dir));
        Ok(())
    }

    fn put(&mut self, entry: &Entry, place: &Place<'_>, archive: &mut Archive<'_>) -> Result<(), Error> {
        self.meter.bytes(entry.looks.xattrs.iter().map(|(name, value)| (name.len() + value.len()) as u64).sum())?;
        match &entry.kind {
            Kind::Directory => self.put_directory(place, &entry.looks),
            Kind::File { size } => {
                self.meter.bytes(*size)?;
                let whole = [Region { offset: 0, length: *size }];
                self.put_file(place, &entry.looks, &whole, None, archive)
            }
            Kind::Sparse { regions, size } => {
                self.meter.bytes(regions.iter().map(|region| region.length).sum())?;
                self.put_file(place, &entry.looks, regions, Some(*size), archive)
            }
            Kind::Hardlink { target } => self.put_hardlink(place, target),
            Kind::Symlink { target } => {
                self.meter.bytes(target.len() as u64)?;
                let make = |dir: BorrowedFd<'_>, name: &[u8]| rustix::fs::symlinkat(target.as_slice(), dir, name);
                self.put_unopened(place, &entry.looks, true, make)
            }
            Kind::Fifo => self.put_unopened(place, &entry.looks, false, |dir, name| {
                rustix::fs::mknodat(dir, name, FileType::Fifo, Mode::empty(), 0)
            }),
            Kind::Char { major, minor } => self.put_unopened(place, &entry.looks, false, |dir, name| {
                let device = rustix::fs::makedev(*major, *minor);
                rustix::fs::mknodat(dir, name, FileType::CharacterDevice, Mode::empty(), device)
            }),
            Kind::Block { major, minor } => self.put_unopened(place, &entry.looks, false, |dir, name| {
                let device = rustix::fs::makedev(*major, *minor);
                rustix::fs::mknodat(dir, name, FileType::BlockDevice, Mode::empty(), device)
            }),
        }
    }

    fn put_directory(&mut self, place: &Place<'_>, looks: &Looks) -> Result<(), Error> {
        let failed = place.failed("make the directory");
        let make = |dir: BorrowedFd<'_>| rustix::fs::mkdirat(dir, place.name, Mode::from_raw_mode(looks.mode & 0o777));
        let (mut replaced, mut is_known) = (false, false);
        match make(place.dir.as_fd()) {
            Ok(()) => self.meter.inode()?,
            Err(Errno::EXIST) if self.is_directory(place)? => is_known = true,
            Err(Errno::EXIST) => {
                self.clear(place)?;
                self.meter.inode()?;
                make(place.dir.as_fd()).map_err(&failed)?;
                replaced = true;
            }
            Err(errno) => return Err(failed(errno)),
        }
        let fd = child(&place.dir, place.name, OFlags::RDONLY | OFlags::DIRECTORY).map_err(&failed)?;
        if replaced {
            // What it took the place of hid a directory of that name below, if there is one.
            self.hide_below(fd.as_fd()).map_err(&failed)?;
        }
        if is_known {
            attributes::clear(fd.as_fd(), place.path)?;
        }
        self.borrowed.remove(place.path);
        attributes::set(fd.as_fd(), place.path, looks)?;
        self.remember(place, &fd)?;
        self.meter.name(place.path)?;
        self.directories.push((place.path.to_vec(), attributes::times(looks)));
        Ok(())
    }

    fn put_file(
        &mut self,
        place: &Place<'_>,
        looks: &Looks,
        regions: &[Region],
        sparse_size: Option<u64>,
        archive: &mut Archive<'_>,
    ) -> Result<(), Error> {
        let fd = self.create(place, create_file(looks.mode))?;
        let mut file = File::from(fd);
        let failed = |source| Error::failed("write the file", place.path, source);
        for region in regions {
            let (mut at, end) = (region.offset, region.offset + region.length);
            while let Some(data) = archive.data(end - at)? {
                match sparse_size {
                    None => file.write_all(data).map_err(failed)?,
                    Some(_) => file.write_all_at(data, at).map_err(failed)?,
                }
                at += data.len() as u64;
            }
        }
        if let Some(size) = sparse_size {
            file.set_len(size).map_err(failed)?;
        }
        attributes::set(file.as_fd(), place.path, looks)?;
        rustix::fs::futimens(&file, &attributes::times(looks)).map_err(place.failed("set the times of"))
    }

    /// Makes what cannot be opened without side effects: links, pipes and devices.
    fn put_unopened(
        &mut self,
        place: &Place<'_>,
        looks: &Looks,
        is_link: bool,
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<(), Errno>,
    ) -> Result<(), Error> {
        let fd = self.create(place, |dir, name| {
            make(dir, name)?;
            child(dir, name, OFlags::PATH)
        })?;
        attributes::set_unopened(fd.as_fd(), place.path, looks, is_link)?;
        attributes::set_times(place.dir.as_fd(), place.name, place.path, &attributes::times(looks))
    }

    /// A second name of a file. What the link's own entry says of owner, mode and times is the file's business.
    fn put_hardlink(&mut self, place: &Place<'_>, target: &[u8]) -> Result<(), Error> {
        let target = clean(target);
        if target.is_empty() {
            return Err(Error::refused(place.path, "a hard link to the root"));
        }
        if target == place.path {
            return Ok(());
        }
        let failed =
            |errno| Error::failed(&format!("link {:?} as", target.escape_ascii().to_string()), place.path, errno);
        let (parent, name) = split(&target);
        let here = self.root.directory(parent).and_then(|dir| {
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            if is_whiteout(&stat) && !self.lower.is_empty() { Err(Errno::NOENT) } else { Ok((dir, stat)) }
        });
        let (dir, stat) = match here {
            Err(Errno::NOENT) => self.copy_up(&target)?,
            other => other.map_err(failed)?,
        };
        if is_directory(&stat) {
            return Err(Error::refused(place.path, "a hard link to a directory"));
        }
        let link = || rustix::fs::linkat(&dir, name, &place.dir, place.name, AtFlags::empty());
        match link() {
            Err(Errno::EXIST) => {
                self.clear(place)?;
                link().map_err(failed)?;
            }
            other => other.map_err(failed)?,
        }
        if self.whiteouts == Whiteouts::Remove {
            let dir = rustix::fs::fstat(&place.dir).map_err(failed)?;
            self.meter.name(place.name)?;
            self.own.insert_name(dir.st_ino, place.name, stat.st_ino);
        }
        Ok(())
    }

    /// Copies a file of the layers below to this one, where it gets another name.
    fn copy_up(&mut self, path: &[u8]) -> Result<(Rc<OwnedFd>, Stat), Error> {
        let missing = || Error::refused(path, "a hard link leads to it, and it does not exist");
        let Found { fd, stat } = self.lower.find(path)?.ok_or_else(missing)?;
        let (parent, name) = split(path);
        let place = Place { dir: self.parent(parent, Why::Borrowed)?, name, path };
        let looks = attributes::looks_of(fd.as_fd(), &stat, path)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::RegularFile => {
                // Blocks of 512 bytes, whatever the file system's own (stat(2)). Holes take up none, and are copied as holes.
                let size = stat.st_size.unsigned_abs();
                self.meter.bytes(size.min(stat.st_blocks.unsigned_abs().saturating_mul(512)))?;
                let failed = |source| Error::failed("copy the file", path, source);
                let from = File::open(attributes::procfs_name(&fd)).map_err(failed)?;
                let to = File::from(self.create(&place, create_file(looks.mode))?);
                crate::copy::content(&from, &to, size).map_err(failed)?;
                attributes::set(to.as_fd(), path, &looks)?;
                rustix::fs::futimens(&to, &attributes::times(&looks)).map_err(place.failed("set the times of"))?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&fd, "", Vec::new()).map_err(place.failed("read the link"))?;
                self.put_unopened(&place, &looks, true, |dir, name| rustix::fs::symlinkat(&target, dir, name))?;
            }
            FileType::Directory => return Err(Error::refused(path, "a hard link to a directory")),
            special => self.put_unopened(&place, &looks, false, |dir, name| {
                rustix::fs::mknodat(dir, name, special, Mode::empty(), stat.st_rdev)
            })?,
        }
        self.meter.name(path)?;
        self.borrowed.insert(path.to_vec());
        let stat = rustix::fs::statat(&place.dir, name, AtFlags::SYMLINK_NOFOLLOW);
        Ok((Rc::clone(&place.dir), stat.map_err(place.failed("look at"))?))
    }

    fn delete(&mut self, place: &Place<'_>, name: &[u8]) -> Result<(), Error> {
        let failed = place.failed("apply");
        self.root.forget();
        match self.whiteouts {
            Whiteouts::Overlay => {
                self.meter.inode()?;
                let deleted = match split(place.path).0 {
                    b"" => name.to_vec(),
                    parent => [parent, name].join(&b'/'),
                };
                self.give_back(&deleted, true)?;
                whiteout::hide(place.dir.as_fd(), name).map_err(failed)
            }
            Whiteouts::Remove => {
                let walked = whiteout::delete(place.dir.as_fd(), name, &self.own).map_err(failed)?;
                self.meter.walked(walked)
            }
        }
    }

    fn delete_all(&mut self, place: &Place<'_>) -> Result<(), Error> {
        let failed = place.failed("apply");
        self.root.forget();
        match self.whiteouts {
            Whiteouts::Overlay => {
                self.give_back(split(place.path).0, false)?;
                whiteout::hide_all(place.dir.as_fd()).map_err(failed)
            }
            Whiteouts::Remove => {
                let dir = place.dir.try_clone().map_err(|error| Error::failed("apply", place.path, error))?;
                let walked = whiteout::delete_in(dir, &self.own).map_err(failed)?;
                self.meter.walked(walked)
            }
        }
    }

    /// The directory of an entry, made with its own parents if the archive left them out.
    fn parent(&mut self, path: &[u8], why: Why) -> Result<Rc<OwnedFd>, Error> {
        match self.root.directory(path) {
            // A whiteout may be in the way as well as nothing.
            Err(Errno::NOENT | Errno::NOTDIR) => {}
            other => return other.map_err(|errno| Error::failed("open the directory", path, errno)),
        }
        let mut made = Vec::new();
        let (lower, directories, own) = (&self.lower, &mut self.directories, &mut self.own);
        let overlay = self.whiteouts == Whiteouts::Overlay;
        let fd = self.root.directory_or_make(path, |parent, path, found| {
            made.push(path.to_vec());
            let failed = |errno: Errno| Error::failed("make the directory", path, errno);
            let name = split(path).1;
            match found {
                None => {}
                Some(stat) if overlay && is_whiteout(&stat) => {
                    rustix::fs::unlinkat(parent, name, AtFlags::empty()).map_err(failed)?;
                }
                Some(_) => return Err(failed(Errno::NOTDIR)),
            }
            rustix::fs::mkdirat(parent, name, Mode::RWXU).map_err(failed)?;
            let fd = child(parent, name, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
            own.insert(rustix::fs::fstat(&fd).map_err(failed)?.st_ino);
            let below = if found.is_some() { None } else { lower.find(path)? };
            match below {
                Some(Found { fd: like, stat }) if is_directory(&stat) => {
                    directories.push((path.to_vec(), attributes::times_of(&stat)));
                    attributes::copy(like.as_fd(), &stat, fd.as_fd(), path)
                }
                _ => {
                    if found.is_some() {
                        whiteout::hide_all(fd.as_fd()).map_err(failed)?;
                    }
                    rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755)).map_err(failed)
                }
            }
        })?;
        for made in made {
            self.meter.inode()?;
            self.meter.name(&made)?;
            if why == Why::Borrowed {
                self.borrowed.insert(made);
            }
        }
        Ok(Rc::new(fd))
    }

    /// Makes something new at the place, where `make` must fail if there is something; what is there goes.
    fn create(
        &mut self,
        place: &Place<'_>,
        make: impl Fn(BorrowedFd<'_>, &[u8]) -> Result<OwnedFd, Errno>,
    ) -> Result<OwnedFd, Error> {
        self.meter.inode()?;
        let made = match make(place.dir.as_fd(), place.name) {
            Err(Errno::EXIST) => {
                self.clear(place)?;
                make(place.dir.as_fd(), place.name)
            }
            other => other,
        };
        let fd = made.map_err(place.failed("make"))?;
        self.remember(place, &fd)?;
        Ok(fd)
    }

    /// Takes away what is only borrowed below `path`, and at it if `whole`. A directory that holds more by now stays.
    fn give_back(&mut self, path: &[u8], whole: bool) -> Result<(), Error> {
        // What is below `a` starts with `a/`, and `0` is the character behind the slash.
        let (first, last) = ([path, b"/"].concat(), [path, b"0"].concat());
        let mut given: Vec<Vec<u8>> = match path {
            b"" => self.borrowed.iter().cloned().collect(),
            _ => self.borrowed.range(first..last).cloned().collect(),
        };
        if whole && self.borrowed.contains(path) {
            given.insert(0, path.to_vec());
        }
        // Children stand behind their parents.
        for path in given.into_iter().rev() {
            let failed = |errno| Error::failed("give back", &path, errno);
            let (parent, name) = split(&path);
            let dir = self.root.directory(parent).map_err(failed)?;
            let removed = match rustix::fs::unlinkat(&dir, name, AtFlags::empty()) {
                Err(Errno::ISDIR | Errno::PERM) => rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR),
                other => other,
            };
            match removed {
                Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(errno) => return Err(failed(errno)),
            }
            self.root.forget();
            self.borrowed.remove(&path);
        }
        Ok(())
    }

    fn clear(&mut self, place: &Place<'_>) -> Result<(), Error> {
        self.root.forget();
        self.borrowed.remove(place.path);
        remove::tree(place.dir.as_fd(), place.name).map_err(place.failed("replace"))
    }

    fn is_directory(&self, place: &Place<'_>) -> Result<bool, Error> {
        let stat = rustix::fs::statat(&place.dir, place.name, AtFlags::SYMLINK_NOFOLLOW);
        Ok(is_directory(&stat.map_err(place.failed("look at"))?))
    }

    fn hide_below(&self, dir: BorrowedFd<'_>) -> Result<(), Errno> {
        match self.whiteouts {
            Whiteouts::Overlay => whiteout::hide_all(dir),
            Whiteouts::Remove => Ok(()),
        }
    }

    fn remember(&mut self, place: &Place<'_>, fd: &OwnedFd) -> Result<(), Error> {
        if self.whiteouts == Whiteouts::Remove {
            self.own.insert(rustix::fs::fstat(fd).map_err(place.failed("look at"))?.st_ino);
        }
        Ok(())
    }
}

/// Makes files with as much of the mode as making one can give: the umask and the directory may take from it, and set-id
/// bits go when the owner is changed.
fn create_file(mode: u32) -> impl Fn(BorrowedFd<'_>, &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    move |dir, name| rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(mode & 0o777))
}
