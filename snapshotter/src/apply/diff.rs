//! The way back: what one layer's directory holds, as an archive that [`super::apply`] reads.
//!
//! What overlayfs keeps as its own notes becomes the names of the image specification: a device 0:0 is a whiteout, an
//! opaque directory has an entry `.wh..wh..opq`. A container may have written what is read here, so nothing is followed.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, OFlags, Stat};
use rustix::io::Errno;
use tar::{Builder, EntryType, Header};

use super::Error;
use super::archive::Looks;
use super::attributes::{is_opaque, looks_of};
use super::lower::is_directory;
use super::root::{Root, child};

/// How overlayfs says where a renamed directory or file was: that cannot be told in an archive of one layer alone.
const REDIRECTS: [&[u8]; 2] = [b"trusted.overlay.redirect", b"trusted.overlay.metacopy"];
const NOTES: &[u8] = b"trusted.overlay.";

/// Writes the layer in `upper`, a directory of an overlay or one without layers below, as an archive.
pub fn diff(upper: &Path, out: impl Write) -> Result<(), Error> {
    let mut archive = Writer { tar: Builder::new(out), links: HashMap::new() };
    let root = Root::open(upper)?;
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let dir = root.plain_directory(&path).map_err(|errno| Error::failed("open the directory", &path, errno))?;
        let failed = |errno: Errno| Error::failed("read the directory", &path, errno);
        let mut names = Vec::new();
        for entry in Dir::read_from(&dir).map_err(failed)? {
            let name = entry.map_err(failed)?.file_name().to_bytes().to_vec();
            if name != b"." && name != b".." {
                names.push(name);
            }
        }
        // The same layer gives the same archive.
        names.sort();
        for name in names {
            let below = if path.is_empty() { name.clone() } else { [path.as_slice(), &name].join(&b'/') };
            if archive.add(dir.as_fd(), &name, &below)? {
                waiting.push(below);
            }
        }
    }
    archive.tar.finish().map_err(|source| Error::Failed { what: "write the archive".to_owned(), source })
}

struct Writer<W: Write> {
    tar: Builder<W>,
    /// The first name of every file that has more than one.
    links: HashMap<u64, Vec<u8>>,
}

impl<W: Write> Writer<W> {
    /// Adds `name` of `dir`, whose whole path is `path`; says whether it is a directory, whose content is to follow.
    fn add(&mut self, dir: impl AsFd, name: &[u8], path: &[u8]) -> Result<bool, Error> {
        let failed = |errno: Errno| Error::failed("read", path, errno);
        let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW).map_err(failed)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
            self.empty(&whiteout(path), &header(&stat, EntryType::Regular), path)?;
            return Ok(false);
        }
        // Nobody listens on a socket that is in an archive.
        if kind == FileType::Socket {
            return Ok(false);
        }
        if !is_directory(&stat) && stat.st_nlink > 1 {
            if let Some(first) = self.links.get(&stat.st_ino) {
                let mut header = header(&stat, EntryType::Link);
                let (to, from) = (as_path(first), as_path(path));
                return self.tar.append_link(&mut header, from, to).map(|()| false).map_err(written(path));
            }
            self.links.insert(stat.st_ino, path.to_vec());
        }
        match kind {
            FileType::Directory => {
                let opened = child(&dir, name, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
                self.attributes(&looks_of(opened.as_fd(), &stat, path)?, path)?;
                self.empty(path, &header(&stat, EntryType::Directory), path)?;
                if is_opaque(opened.as_fd()) {
                    let marker = [path, b"/.wh..wh..opq"].concat();
                    self.empty(&marker, &header(&stat, EntryType::Regular), path)?;
                }
                Ok(true)
            }
            FileType::RegularFile => {
                let opened = child(&dir, name, OFlags::RDONLY | OFlags::NONBLOCK).map_err(failed)?;
                self.attributes(&looks_of(opened.as_fd(), &stat, path)?, path)?;
                let mut header = header(&stat, EntryType::Regular);
                header.set_size(stat.st_size as u64);
                // A file that grows or shrinks meanwhile must not break what comes after it.
                let content = Exactly { file: File::from(opened), left: stat.st_size as u64 };
                self.tar.append_data(&mut header, as_path(path), content).map_err(written(path))?;
                Ok(false)
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&dir, name, Vec::new()).map_err(failed)?;
                self.time(&stat, path)?;
                let mut header = header(&stat, EntryType::Symlink);
                let target = PathBuf::from(OsString::from_vec(target.into_bytes()));
                self.tar.append_link(&mut header, as_path(path), target).map_err(written(path))?;
                Ok(false)
            }
            FileType::Fifo => self.node(&stat, EntryType::Fifo, path),
            FileType::CharacterDevice => self.node(&stat, EntryType::Char, path),
            FileType::BlockDevice => self.node(&stat, EntryType::Block, path),
            _ => Err(Error::refused(path, "it is of no type that an archive can hold")),
        }
    }

    fn node(&mut self, stat: &Stat, kind: EntryType, path: &[u8]) -> Result<bool, Error> {
        self.time(stat, path)?;
        let mut header = header(stat, kind);
        let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
        header.set_device_major(device.0).and_then(|()| header.set_device_minor(device.1)).map_err(written(path))?;
        self.empty(path, &header, path).map(|()| false)
    }

    fn empty(&mut self, name: &[u8], header: &Header, path: &[u8]) -> Result<(), Error> {
        self.tar.append_data(&mut header.clone(), as_path(name), std::io::empty()).map_err(written(path))
    }

    fn time(&mut self, stat: &Stat, path: &[u8]) -> Result<(), Error> {
        let mtime = format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec);
        self.tar.append_pax_extensions([("mtime", mtime.as_bytes())]).map_err(written(path))
    }

    /// What does not fit into a header: the fraction of the time, and the extended attributes.
    fn attributes(&mut self, looks: &Looks, path: &[u8]) -> Result<(), Error> {
        let modified = looks.modified;
        let mut records =
            vec![("mtime".to_owned(), format!("{}.{:09}", modified.tv_sec, modified.tv_nsec).into_bytes())];
        for (name, value) in &looks.xattrs {
            if REDIRECTS.contains(&name.as_slice()) {
                return Err(Error::refused(
                    path,
                    "overlayfs keeps a part of it in another layer (redirect_dir, metacopy)",
                ));
            }
            if name.starts_with(NOTES) {
                continue;
            }
            let name =
                std::str::from_utf8(name).map_err(|_| Error::refused(path, "the name of an attribute is not UTF-8"))?;
            records.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
        self.tar.append_pax_extensions(records).map_err(written(path))
    }
}

fn header(stat: &Stat, kind: EntryType) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(stat.st_mode & 0o7777);
    header.set_uid(stat.st_uid.into());
    header.set_gid(stat.st_gid.into());
    // Before 1970 is told by the extended header alone.
    header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
    header.set_size(0);
    header
}

fn whiteout(path: &[u8]) -> Vec<u8> {
    let (dir, name) = super::root::split(path);
    if dir.is_empty() { [b".wh.", name].concat() } else { [dir, b"/.wh.", name].concat() }
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

fn written(path: &[u8]) -> impl FnOnce(std::io::Error) -> Error {
    let what = format!("write {:?} to the archive", String::from_utf8_lossy(path));
    move |source| Error::Failed { what, source }
}

/// As many bytes as the header says: what is missing is zeros, what is more is left out.
struct Exactly {
    file: File,
    left: u64,
}

impl std::io::Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let read = match self.file.read(&mut buffer[..want])? {
            0 => {
                buffer[..want].fill(0);
                want
            }
            read => read,
        };
        self.left -= read as u64;
        Ok(read)
    }
}
