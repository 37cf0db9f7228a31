//! One pass over the archive: documents are kept in memory, all other files become blobs.
//!
//! What a file is called says only how the documents may speak of it. A file below `blobs/` must have the digest that its
//! name says.

use std::{
    collections::{BTreeMap, HashMap},
    io::{BufReader, Read},
    sync::atomic::{AtomicBool, Ordering},
};

use serde::Deserialize;
use snapshotter::apply::{
    Limits,
    archive::{Archive, Kind},
};

use super::{Import, ImportError, archive_error};
use crate::{
    digest::{Algorithm, Digest},
    manifest::MAX_DOCUMENT,
    unpack::inflate,
};

/// What is read into memory, by its name at the archive's top.
const DOCUMENTS: [&str; 3] = ["oci-layout", "index.json", "manifest.json"];
/// What Docker's older versions put beside the layers and nobody reads.
const IGNORED: [&str; 3] = ["repositories", "VERSION", "json"];
/// Files of one archive; each image has a handful and one a layer.
const MAX_FILES: u64 = 100_000;
/// How many links may lead to a file one after the other.
const MAX_LINKS: usize = 10;

/// An archive that was read.
#[derive(Debug, Default)]
pub(super) struct Packed {
    documents: BTreeMap<&'static str, Vec<u8>>,
    files: HashMap<String, Digest>,
    /// Where symbolic links lead, in names of the archive.
    links: HashMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Layout {
    image_layout_version: String,
}

impl Packed {
    pub(super) fn document(&self, name: &str) -> Option<&[u8]> {
        self.documents.get(name).map(Vec::as_slice)
    }

    /// The file that a document speaks of.
    pub(super) fn file(&self, name: &str) -> Result<&Digest, ImportError> {
        let mut at = clean(name.as_bytes())?;
        for _ in 0..MAX_LINKS {
            if let Some(digest) = self.files.get(&at) {
                return Ok(digest);
            }
            match self.links.get(&at) {
                Some(target) => at.clone_from(target),
                None => {
                    return Err(ImportError::Invalid(format!("it speaks of the file {name:?} and does not hold it")));
                }
            }
        }
        Err(ImportError::Invalid(format!("the file {name:?} is a link through more than {MAX_LINKS} others")))
    }

    /// Whether it is an OCI image layout, of a version that is known.
    pub(super) fn layout(&self) -> Result<bool, ImportError> {
        let Some(bytes) = self.document("oci-layout") else { return Ok(false) };
        let layout: Layout = parse("oci-layout", bytes)?;
        match layout.image_layout_version.as_str() {
            "1.0.0" => Ok(true),
            other => Err(ImportError::Invalid(format!("its oci-layout is of version {other:?}, known is 1.0.0"))),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.documents.contains_key(name) || self.files.contains_key(name) || self.links.contains_key(name)
    }
}

pub(super) fn parse<'a, T: Deserialize<'a>>(name: &str, bytes: &'a [u8]) -> Result<T, ImportError> {
    serde_json::from_slice(bytes).map_err(|error| ImportError::Invalid(format!("its {name} cannot be read: {error}")))
}

impl Import<'_> {
    pub(super) fn read(&mut self, archive: &mut dyn Read) -> Result<Packed, ImportError> {
        let limits = self.shared.config.limits;
        let cancelled = self.cancelled;
        let source = Stoppable { inner: archive, stops: [cancelled, &self.shared.closing] };
        let mut plain = inflate(BufReader::with_capacity(256 << 10, source)).map_err(ImportError::Read)?;
        let read = self.read_plain(&mut plain, &limits);
        let stopped = cancelled.load(Ordering::Relaxed) || self.shared.closing.load(Ordering::Relaxed);
        if read.is_err() && stopped { Err(ImportError::Cancelled) } else { read }
    }

    fn read_plain(&mut self, plain: &mut dyn Read, limits: &Limits) -> Result<Packed, ImportError> {
        let mut packed = Packed::default();
        let mut archive = Archive::new(plain, limits);
        let (mut files, mut bytes) = (0u64, 0u64);
        while let Some(entry) = archive.next_entry().map_err(archive_error)? {
            let name = clean(&entry.name)?;
            let size = match entry.kind {
                Kind::Directory => continue,
                Kind::File { size } => size,
                Kind::Symlink { target } => {
                    let base = name.rsplit_once('/').map_or("", |(directory, _)| directory);
                    // Links that lead out lead to nothing here; that is told if a document speaks of them.
                    if let Ok(target) = clean(&[base.as_bytes(), b"/", &target].concat()) {
                        add(&mut packed.links, name, target)?;
                    }
                    continue;
                }
                Kind::Hardlink { target } => {
                    let target = clean(&target)?;
                    add(&mut packed.links, name, target)?;
                    continue;
                }
                Kind::Sparse { .. } => {
                    let what = format!("{name:?} is stored as a sparse file; pack the archive without --sparse");
                    return Err(ImportError::Invalid(what));
                }
                Kind::Fifo | Kind::Char { .. } | Kind::Block { .. } => {
                    return Err(ImportError::Invalid(format!("{name:?} is neither a file nor a link")));
                }
            };
            if packed.has(&name) {
                return Err(ImportError::Invalid(format!("it holds {name:?} twice")));
            }
            files += 1;
            bytes = bytes.saturating_add(size);
            if files > MAX_FILES {
                return Err(ImportError::TooMuch { what: "files", limit: MAX_FILES });
            }
            if bytes > limits.bytes {
                return Err(ImportError::TooMuch { what: "bytes of files", limit: limits.bytes });
            }
            if let Some(document) = DOCUMENTS.iter().find(|document| **document == name) {
                packed.documents.insert(document, read_document(&mut archive, document, size)?);
            } else if !IGNORED.contains(&name.rsplit('/').next().unwrap_or_default()) {
                let digest = self.read_blob(&mut archive, &name)?;
                packed.files.insert(name, digest);
            }
        }
        archive.drain().map_err(archive_error)?;
        Ok(packed)
    }

    fn read_blob(&mut self, archive: &mut Archive<'_>, name: &str) -> Result<Digest, ImportError> {
        let wanted = match name.strip_prefix("blobs/") {
            None => None,
            Some(rest) => {
                let digest = Digest::parse(&rest.replacen('/', ":", 1));
                Some(digest.map_err(|error| ImportError::Invalid(format!("its file {name:?} is no blob: {error}")))?)
            }
        };
        let algorithm = wanted.as_ref().map_or(Algorithm::Sha256, Digest::algorithm);
        let mut spool = self.shared.content.spool(algorithm)?;
        while let Some(data) = archive.data(u64::MAX).map_err(archive_error)? {
            spool.write(data)?;
        }
        let spooled = spool.finish();
        if let Some(wanted) = wanted.filter(|wanted| *wanted != spooled.digest) {
            let what = format!("its blob {wanted} has other content: its digest is {}", spooled.digest);
            return Err(ImportError::Invalid(what));
        }
        self.commit_blob(spooled)
    }
}

fn add(links: &mut HashMap<String, String>, name: String, target: String) -> Result<(), ImportError> {
    if links.len() as u64 >= MAX_FILES {
        return Err(ImportError::TooMuch { what: "links", limit: MAX_FILES });
    }
    match links.insert(name.clone(), target) {
        None => Ok(()),
        Some(_) => Err(ImportError::Invalid(format!("it holds {name:?} twice"))),
    }
}

fn read_document(archive: &mut Archive<'_>, name: &str, size: u64) -> Result<Vec<u8>, ImportError> {
    if size > MAX_DOCUMENT {
        let what = format!("its {name} has {size} bytes, at most {MAX_DOCUMENT} are read");
        return Err(ImportError::Invalid(what));
    }
    let mut bytes = Vec::new();
    while let Some(data) = archive.data(u64::MAX).map_err(archive_error)? {
        bytes.extend_from_slice(data);
    }
    Ok(bytes)
}

/// A name as a key: relative, without `.` and `..`. What leads out of the archive is refused.
fn clean(name: &[u8]) -> Result<String, ImportError> {
    let text = str::from_utf8(name)
        .map_err(|_| ImportError::Invalid(format!("the name {:?} is not UTF-8", String::from_utf8_lossy(name))))?;
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/').filter(|part| !part.is_empty() && *part != ".") {
        match part {
            ".." if parts.pop().is_none() => {
                return Err(ImportError::Invalid(format!("the name {text:?} leads out of the archive")));
            }
            ".." => {}
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// A stream that ends when nobody wants it any more.
struct Stoppable<'a> {
    inner: &'a mut dyn Read,
    stops: [&'a AtomicBool; 2],
}

impl Read for Stoppable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if self.stops.iter().any(|stop| stop.load(Ordering::Relaxed)) {
            return Err(std::io::Error::other("the import was cancelled"));
        }
        self.inner.read(buffer)
    }
}
