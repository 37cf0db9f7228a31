//! The directory that CRIU's images are unpacked to. It is the daemon's own; nothing in it is followed all the same.
//!
//! Which kinds of images there may be is decided here, by their names: CRIU acts on a file because it is there.

use std::{collections::BTreeSet, fs::File, io::Read, os::fd::OwnedFd, path::Path};

use rustix::fs::{CWD, Dir, FileType, Mode, OFlags};

use super::image::Refused;
use crate::Error;

/// What is read into memory to be checked. Tables of open files are the largest, at some hundred bytes a file.
const MAX_CHECKED: u64 = 64 << 20;

/// What becomes of a file of a checkpoint, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// It decides about privileges and is read.
    Checked,
    /// It is memory and state of the processes themselves.
    Kept,
    /// What CRIU says of how the dump went.
    Dropped,
}

/// Names as CRIU writes them: a text, then for some a number. Anything else is refused, what older CRIUs wrote in place of
/// `files.img` and `core-*.img` included.
const KINDS: [(&str, &str, Use); 45] = [
    ("inventory", ".img", Use::Checked),
    ("pstree", ".img", Use::Checked),
    ("core-#", ".img", Use::Checked),
    ("ids-#", ".img", Use::Checked),
    ("mountpoints-#", ".img", Use::Checked),
    ("files", ".img", Use::Checked),
    ("fdinfo-#", ".img", Use::Checked),
    ("cgroup", ".img", Use::Checked),
    ("seccomp", ".img", Use::Checked),
    ("netns-#", ".img", Use::Checked),
    ("pidns-#", ".img", Use::Checked),
    ("remap-fpath", ".img", Use::Checked),
    ("ghost-file-#", ".img", Use::Checked),
    ("tty-info", ".img", Use::Checked),
    ("mm-#", ".img", Use::Kept),
    ("pagemap-#", ".img", Use::Kept),
    ("pagemap-shmem-#", ".img", Use::Kept),
    ("pages-#", ".img", Use::Kept),
    ("fs-#", ".img", Use::Kept),
    ("tmpfs-#", ".tar.gz.img", Use::Kept),
    ("tmpfs-dev-#", ".tar.gz.img", Use::Kept),
    ("ipcns-var-#", ".img", Use::Kept),
    ("ipcns-shm-#", ".img", Use::Kept),
    ("ipcns-msg-#", ".img", Use::Kept),
    ("ipcns-sem-#", ".img", Use::Kept),
    ("utsns-#", ".img", Use::Kept),
    ("timens-#", ".img", Use::Kept),
    ("pipes-data", ".img", Use::Kept),
    ("fifo-data", ".img", Use::Kept),
    ("sk-queues", ".img", Use::Kept),
    ("tcp-stream-#", ".img", Use::Kept),
    ("tty-data", ".img", Use::Kept),
    ("filelocks", ".img", Use::Kept),
    ("memfd", ".img", Use::Kept),
    ("cpuinfo", ".img", Use::Kept),
    ("descriptors", ".json", Use::Kept),
    ("dump", ".log", Use::Dropped),
    ("restore", ".log", Use::Dropped),
    ("criu", ".log", Use::Dropped),
    ("page-server", ".log", Use::Dropped),
    ("stats-dump", "", Use::Dropped),
    ("stats-restore", "", Use::Dropped),
    ("stats-dump", ".img", Use::Dropped),
    ("irmap-cache", "", Use::Dropped),
    ("irmap-cache", ".img", Use::Dropped),
];

/// What becomes of the file of this name; `None` for one that is refused.
pub(crate) fn usage(name: &str) -> Option<Use> {
    let fits = |(pattern, suffix, _): &&(&str, &str, Use)| {
        let Some(stem) = name.strip_suffix(suffix) else { return false };
        match pattern.strip_suffix('#') {
            None => stem == *pattern,
            Some(prefix) => stem.strip_prefix(prefix).is_some_and(is_number),
        }
    };
    KINDS.iter().find(fits).map(|(_, _, usage)| *usage)
}

/// Decimal or hexadecimal, without leading zeros, so that two names cannot be of one thing.
fn is_number(text: &str) -> bool {
    let digits = text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    digits && (1..=20).contains(&text.len()) && (text == "0" || !text.starts_with('0'))
}

/// The images, by their names.
pub(crate) struct Images {
    dir: OwnedFd,
    names: BTreeSet<String>,
}

impl Images {
    pub(crate) fn open(path: &Path) -> Result<Images, Error> {
        let failed = |error: rustix::io::Errno| Error::failed(format!("look into {}", path.display()), error);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(failed)?;
        let mut names = BTreeSet::new();
        for entry in Dir::read_from(&dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            match entry.file_name().to_str() {
                Ok("." | "..") => {}
                Ok(name) if usage(name).is_some() => drop(names.insert(name.to_owned())),
                _ => {
                    let name = entry.file_name().to_string_lossy();
                    return Err(Error::Invalid(format!("{name:?} in {} is no image of a checkpoint", path.display())));
                }
            }
        }
        Ok(Images { dir, names })
    }

    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.contains(name)
    }

    /// The names that begin so and go on with a number.
    pub(crate) fn named(&self, prefix: &str) -> impl Iterator<Item = &str> {
        self.names.iter().map(String::as_str).filter(move |name| {
            let number = name.strip_prefix(prefix).and_then(|rest| rest.split('.').next());
            number.is_some_and(is_number)
        })
    }

    /// The whole of a file that has to be there.
    pub(crate) fn read(&self, name: &str) -> Result<Vec<u8>, Refused> {
        let failed = |error: &dyn std::fmt::Display| Refused(format!("{name}: {error}"));
        if !self.has(name) {
            return Err(failed(&"the checkpoint lacks it"));
        }
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, name, flags, Mode::empty()).map_err(|error| failed(&error))?;
        let stat = rustix::fs::fstat(&file).map_err(|error| failed(&error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(failed(&"it is no regular file"));
        }
        let mut bytes = Vec::new();
        File::from(file).take(MAX_CHECKED + 1).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
        if bytes.len() as u64 > MAX_CHECKED {
            return Err(Refused(format!("{name}: it has more than the {MAX_CHECKED} bytes that are read")));
        }
        Ok(bytes)
    }

    /// As [`Images::read`], but no more than the beginning is needed.
    pub(crate) fn read_start(&self, name: &str) -> Result<Vec<u8>, Refused> {
        const START: u64 = 64 << 10;
        let failed = |error: &dyn std::fmt::Display| Refused(format!("{name}: {error}"));
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&self.dir, name, flags, Mode::empty()).map_err(|error| failed(&error))?;
        let mut bytes = Vec::new();
        File::from(file).take(START).read_to_end(&mut bytes).map_err(|error| failed(&error))?;
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_known_by_its_whole_name() {
        for (name, expected) in [
            ("inventory.img", Some(Use::Checked)),
            ("core-6.img", Some(Use::Checked)),
            ("ghost-file-1f.img", Some(Use::Checked)),
            ("tmpfs-dev-52.tar.gz.img", Some(Use::Kept)),
            ("pages-1.img", Some(Use::Kept)),
            ("descriptors.json", Some(Use::Kept)),
            ("dump.log", Some(Use::Dropped)),
            ("core-.img", None),
            ("core-06.img", None),
            ("core-6.img.img", None),
            ("core--6.img", None),
            ("creds-6.img", None),
            ("reg-files.img", None),
            ("autofs-1.img", None),
            ("apparmor.img", None),
            ("iptables-10.img", None),
            ("netdev-10.img", None),
            ("userns-1.img", None),
            ("parent", None),
            ("../inventory.img", None),
            ("", None),
        ] {
            assert_eq!(usage(name), expected, "{name:?}");
        }
    }
}
