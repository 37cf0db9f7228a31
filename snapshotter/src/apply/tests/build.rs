//! Archives by hand, since builders refuse what hostile archives hold, and a tree's content as text.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;

/// The modification time of every entry that does not say otherwise.
pub(super) const MTIME: i64 = 1_600_000_000;

#[derive(Debug, Clone)]
pub(super) struct Tar {
    bytes: Vec<u8>,
    whole: bool,
    after: Vec<u8>,
}

pub(super) struct Header([u8; 512]);

impl Tar {
    pub(super) fn new() -> Tar {
        Tar { bytes: Vec::new(), whole: false, after: Vec::new() }
    }

    pub(super) fn from(bytes: Vec<u8>) -> Tar {
        Tar { bytes, whole: true, after: Vec::new() }
    }

    /// A piece of the content of an entry that stands before it.
    pub(super) fn from_content(bytes: &[u8]) -> Tar {
        Tar { bytes: bytes.to_vec(), whole: true, after: Vec::new() }
    }

    /// The bytes without an end of the archive.
    pub(super) fn entries(&self) -> &[u8] {
        &self.bytes
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        if !self.whole {
            bytes.extend([0; 1024]);
        }
        bytes.extend(&self.after);
        bytes
    }

    pub(super) fn after_the_end(mut self, bytes: &[u8]) -> Tar {
        self.after.extend(bytes);
        self
    }

    pub(super) fn file(self, name: impl AsRef<[u8]>, content: &str) -> Tar {
        self.raw(name, b'0', "", content.as_bytes(), |_| {})
    }

    pub(super) fn dir(self, name: impl AsRef<[u8]>, mode: u32) -> Tar {
        self.raw(name, b'5', "", b"", |header| header.mode(mode))
    }

    pub(super) fn symlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Tar {
        self.raw(name, b'2', target, b"", |_| {})
    }

    pub(super) fn hardlink(self, name: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Tar {
        self.raw(name, b'1', target, b"", |_| {})
    }

    pub(super) fn node(self, name: impl AsRef<[u8]>, kind: u8, major: u32, minor: u32) -> Tar {
        self.raw(name, kind, "", b"", |header| {
            header.octal(329, 8, major.into());
            header.octal(337, 8, minor.into());
        })
    }

    /// An extended header for the entry that follows.
    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut data = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut len = rest + 1;
            while len != rest + len.to_string().len() {
                len = rest + len.to_string().len();
            }
            data.extend(format!("{len} {key}=").bytes());
            data.extend(*value);
            data.push(b'\n');
        }
        self.raw("PaxHeaders/x", b'x', "", &data, |_| {})
    }

    /// The content of a sparse file of version 1.0: a map, then the data.
    pub(super) fn sparse(self, name: &str, regions: &[(u64, &[u8])]) -> Tar {
        let mut data = format!("{}\n", regions.len()).into_bytes();
        for (offset, content) in regions {
            data.extend(format!("{offset}\n{}\n", content.len()).bytes());
        }
        data.resize(data.len().next_multiple_of(512), 0);
        for (_, content) in regions {
            data.extend(*content);
        }
        self.raw(name, b'0', "", &data, |_| {})
    }

    pub(super) fn raw(
        mut self,
        name: impl AsRef<[u8]>,
        kind: u8,
        link: impl AsRef<[u8]>,
        content: &[u8],
        change: impl FnOnce(&mut Header),
    ) -> Tar {
        let mut header = Header([0; 512]);
        let (name, link) = (name.as_ref(), link.as_ref());
        header.0[..name.len()].copy_from_slice(name);
        header.0[157..157 + link.len()].copy_from_slice(link);
        header.0[156] = kind;
        header.0[257..265].copy_from_slice(b"ustar\x0000");
        header.mode(0o644);
        header.owner(0, 0);
        header.octal(124, 12, content.len() as u64);
        header.octal(136, 12, MTIME as u64);
        change(&mut header);
        header.0[148..156].fill(b' ');
        let sum: u64 = header.0.iter().map(|byte| u64::from(*byte)).sum();
        header.octal(148, 7, sum);
        self.bytes.extend(header.0);
        self.bytes.extend(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }
}

impl Header {
    pub(super) fn mode(&mut self, mode: u32) {
        self.octal(100, 8, mode.into());
    }

    pub(super) fn owner(&mut self, uid: u32, gid: u32) {
        self.octal(108, 8, uid.into());
        self.octal(116, 8, gid.into());
    }

    pub(super) fn octal(&mut self, at: usize, len: usize, value: u64) {
        let text = format!("{value:0width$o}\0", width = len - 1);
        self.0[at..at + len].copy_from_slice(text.as_bytes());
    }

    pub(super) fn bytes(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

/// Everything below `root`, sorted: `dir/`, `file=content`, `link->target`, and devices by their name.
pub(super) fn tree(root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![root.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            let name = path.strip_prefix(root).unwrap().to_string_lossy().into_owned();
            let kind = fs::symlink_metadata(&path).unwrap().file_type();
            found.push(if kind.is_dir() {
                waiting.push(path);
                format!("{name}/")
            } else if kind.is_symlink() {
                format!("{name}->{}", fs::read_link(&path).unwrap().display())
            } else if kind.is_fifo() || kind.is_char_device() || kind.is_block_device() {
                name
            } else {
                format!("{name}={}", String::from_utf8_lossy(&fs::read(&path).unwrap()))
            });
        }
    }
    found.sort();
    found
}
