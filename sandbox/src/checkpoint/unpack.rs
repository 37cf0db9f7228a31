//! An archive of a checkpoint as it is read: a tar, maybe compressed, from whoever made it.
//!
//! Members are known by their names, each by one name and once, and only as regular files. Nothing of a name is used as a
//! path: what is kept is written under a name of the list here, into a directory that is the daemon's own.
//!
//! ```text
//! config.dump      which image it ran on; nothing else of it is read
//! checkpoint/*     CRIU's images, of the kinds in images.rs
//! rootfs-diff.tar  its writable layer; its entries are the concern of `snapshotter::apply`
//! deleted.files    what it had removed, of runtimes whose layer does not tell; see deleted.rs
//! spec.dump        its OCI spec, for one question: whether it had a seccomp profile
//! container.log    what it had logged, of which records are taken over; see log.rs
//! ```
//!
//! The CRI status of the archive is not read at all, and nothing is made from its spec.

use std::{
    collections::BTreeSet,
    fs::File,
    io::{self, BufRead, BufReader, BufWriter, Read, Write},
    os::fd::{AsFd, BorrowedFd},
    path::Path,
};

use rustix::fs::{CWD, FileType, Mode, OFlags};
use serde::Deserialize;
use snapshotter::apply::{
    Limits,
    archive::{Archive, Kind},
};

use super::{
    archive::{DELETED, IMAGE, LAYER, LOG, SPEC},
    images::{self, Use},
    room::Bounded,
};
use crate::{Error, error::chain};

/// A description of a container is small.
const MAX_CONFIG: u64 = 1 << 20;
/// A larger one is not looked into.
const MAX_SPEC: u64 = 16 << 20;
/// What an archive has beside what is kept: files that are never written. More are not looked through.
const MAX_MEMBERS: u64 = 100_000;

const CONFIG: &str = "config.dump";
/// Members that are passed over, if they are the files that they should be.
const IGNORED: [&str; 4] = ["status.dump", "dump.log", "stats-dump", "ctr.log"];

/// The image that a checkpoint's container ran on, as the archive names it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Base {
    /// Its id or digest; empty if the archive tells none.
    #[serde(rename = "rootfsImageRef")]
    pub reference: String,
    /// The name that it was run by.
    #[serde(rename = "rootfsImageName")]
    pub name: String,
}

/// A member that something is done with.
enum Member<'a> {
    Config,
    Layer,
    Spec,
    Deleted,
    Log,
    Image(&'a str),
    Directory,
    Other,
}

/// Reads which image the checkpoint in this archive is of. Blocks.
pub(crate) fn base(path: &Path, max_bytes: u64) -> Result<Base, Error> {
    let mut found = None;
    read(path, max_bytes, &mut |member, size, archive| {
        if let Member::Config = member {
            found = Some(parse_base(&content(archive, size)?)?);
        }
        Ok(found.is_some())
    })?;
    found.ok_or_else(|| broken(path, "it lacks config.dump, so it is no checkpoint of a container"))
}

/// Writes what a restore needs into `directory`, which is empty: the images below `checkpoint`, the layer beside it. At most
/// `max_bytes`. Blocks.
pub(crate) fn unpack(path: &Path, directory: &Path, max_bytes: u64) -> Result<(), Error> {
    let failed = |error: io::Error| Error::failed(format!("write into {}", directory.display()), error);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |path: &Path| rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(io::Error::from);
    let root = open(directory).map_err(failed)?;
    rustix::fs::mkdirat(&root, IMAGE, Mode::from_raw_mode(0o700)).map_err(|error| failed(error.into()))?;
    let images = open(&directory.join(IMAGE)).map_err(failed)?;
    let mut left = super::room::within(directory, max_bytes)?;
    let mut has_images = false;
    read(path, max_bytes, &mut |member, size, archive| {
        let to = match member {
            Member::Layer => Some((root.as_fd(), LAYER)),
            Member::Spec if size <= MAX_SPEC => Some((root.as_fd(), SPEC)),
            Member::Image(name) if images::usage(name) == Some(Use::Dropped) => None,
            Member::Image(name) => {
                has_images = true;
                Some((images.as_fd(), name))
            }
            Member::Deleted => Some((root.as_fd(), DELETED)),
            Member::Log => Some((root.as_fd(), LOG)),
            Member::Config | Member::Spec | Member::Directory | Member::Other => None,
        };
        if let Some((dir, name)) = to {
            left = left
                .checked_sub(size)
                .ok_or("it holds more than may be unpacked (max_bytes, or what the disk has left)")?;
            write(dir, name, size, archive)?;
        }
        Ok(false)
    })?;
    if has_images { Ok(()) } else { Err(broken(path, "it holds no images of CRIU, so there is nothing to restore")) }
}

fn write(dir: BorrowedFd<'_>, name: &str, size: u64, archive: &mut Archive<'_>) -> Result<(), String> {
    let failed = |error: io::Error| format!("write {name}: {error}");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file =
        rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o600)).map_err(|error| failed(error.into()))?;
    let mut file = BufWriter::with_capacity(1 << 20, Bounded::new(File::from(file), size));
    let mut left = size;
    while let Some(data) = archive.data(left).map_err(|error| chain(&error))? {
        left -= data.len() as u64;
        file.write_all(data).map_err(failed)?;
    }
    file.flush().map_err(failed)
}

/// Called for each member with its name and size; may read its content and answers whether the rest is of no interest.
type Visit<'a> = dyn FnMut(Member<'_>, u64, &mut Archive<'_>) -> Result<bool, String> + 'a;

/// Goes through the members.
fn read(path: &Path, max_bytes: u64, visit: &mut Visit<'_>) -> Result<(), Error> {
    let mut stream = open(path)?;
    // Each member is counted by its size before it is written; these bound the headers, and what is passed over.
    let limits = Limits { bytes: max_bytes, inodes: MAX_MEMBERS, ..Limits::default() };
    let mut archive = Archive::new(&mut stream, &limits);
    let mut seen = BTreeSet::new();
    let mut passed = 0u64;
    let refused = |name: &str, why: &str| broken(path, &format!("{name:?} in it {why}"));
    while let Some(entry) = archive.next_entry().map_err(|error| broken(path, &chain(&error)))? {
        let name = std::str::from_utf8(&entry.name).map_err(|_| broken(path, "a name in it is not UTF-8"))?;
        let name = name.strip_prefix("./").unwrap_or(name);
        let (is_directory, size) = match &entry.kind {
            Kind::File { size } => (false, *size),
            Kind::Directory => (true, 0),
            _ => (false, 0),
        };
        let is_regular = is_directory || matches!(entry.kind, Kind::File { .. });
        let name = if is_directory { name.trim_end_matches('/') } else { name };
        if name.is_empty() && is_directory {
            continue;
        }
        if name.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(refused(name, "is no name of a member"));
        }
        let member = member(name).ok_or_else(|| refused(name, "is of a kind that is not restored"))?;
        let is_known = !matches!(member, Member::Other) || IGNORED.contains(&name);
        let fits = is_directory == matches!(member, Member::Directory);
        if is_known && !(is_regular && fits) {
            return Err(refused(name, "is no regular file, which it has to be"));
        }
        passed = passed.saturating_add(size);
        if passed > max_bytes || seen.len() as u64 >= MAX_MEMBERS {
            return Err(broken(
                path,
                &format!("it holds more than {max_bytes} bytes (max_bytes), or {MAX_MEMBERS} members"),
            ));
        }
        if !seen.insert(name.to_owned()) && is_known {
            return Err(refused(name, "is there twice"));
        }
        if visit(member, size, &mut archive).map_err(|why| broken(path, &why))? {
            return Ok(());
        }
    }
    Ok(())
}

/// What a member is by its name; `None` for images that are refused.
fn member(name: &str) -> Option<Member<'_>> {
    match name.split_once('/') {
        None if name == CONFIG => Some(Member::Config),
        None if name == LAYER => Some(Member::Layer),
        None if name == SPEC => Some(Member::Spec),
        None if name == DELETED => Some(Member::Deleted),
        None if name == LOG => Some(Member::Log),
        None if name == IMAGE => Some(Member::Directory),
        Some((IMAGE, image)) => images::usage(image).map(|_| Member::Image(image)),
        _ => Some(Member::Other),
    }
}

/// Opens an archive: a regular file, whatever it is compressed with.
fn open(path: &Path) -> Result<Box<dyn Read>, Error> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(CWD, path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => {
            return Err(Error::NotFound { kind: "checkpoint", id: path.display().to_string() });
        }
        Err(rustix::io::Errno::LOOP) => return Err(broken(path, "it is a link, not an archive")),
        opened => opened.map_err(|error| Error::failed(format!("open {}", path.display()), error))?,
    };
    let failed = |error: io::Error| Error::failed(format!("read {}", path.display()), error);
    let stat = rustix::fs::fstat(&file).map_err(|error| failed(error.into()))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
        return Err(broken(path, "it is no regular file"));
    }
    let mut file = BufReader::with_capacity(256 << 10, File::from(file));
    let start = file.fill_buf().map_err(failed)?;
    match start {
        [0x1f, 0x8b, ..] => Ok(Box::new(flate2::read::MultiGzDecoder::new(file))),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok(Box::new(zstd::stream::read::Decoder::with_buffer(file).map_err(failed)?)),
        _ => Ok(Box::new(file)),
    }
}

fn content(archive: &mut Archive<'_>, size: u64) -> Result<Vec<u8>, String> {
    if size > MAX_CONFIG {
        return Err(format!("a description in it has {size} bytes, at most {MAX_CONFIG} are read"));
    }
    let mut bytes = Vec::new();
    while let Some(data) = archive.data(size).map_err(|error| chain(&error))? {
        bytes.extend_from_slice(data);
    }
    Ok(bytes)
}

fn parse_base(text: &[u8]) -> Result<Base, String> {
    let base: Base = serde_json::from_slice(text).map_err(|error| format!("its config.dump: {error}"))?;
    if base.reference.is_empty() && base.name.is_empty() {
        return Err("its config.dump does not say which image the container ran on".into());
    }
    Ok(base)
}

fn broken(path: &Path, why: &str) -> Error {
    Error::Invalid(format!("checkpoint {}: {why}", path.display()))
}
