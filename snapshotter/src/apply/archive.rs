//! An archive as a sequence of entries. Parsing is tar-core's; here are the buffer, the limits, and checks on what it
//! lets through. Where implementations of tar differ, this one reads what Go's reads.
//!
//! Layers are read with it, and archives of whole images. It touches no file.

use std::io::Read;

use rustix::fs::Timespec;
use tar_core::parse::{ParseError, ParseEvent, ParsedEntry, Parser};
use tar_core::{EntryType, HEADER_SIZE, PaxExtensions, SparseEntry};

use super::{Error, Limits};

/// Read from the stream at once, at least.
const CHUNK: usize = 256 << 10;

/// The kernel has twelve and twenty bits (linux/kdev_t.h). Larger ones would be those of another device.
const MAX_MAJOR: u32 = (1 << 12) - 1;
const MAX_MINOR: u32 = (1 << 20) - 1;

/// An entry with everything that precedes its content.
#[derive(Debug)]
pub struct Entry {
    /// As written; not yet cleaned.
    pub name: Vec<u8>,
    pub kind: Kind,
    pub looks: Looks,
}

#[derive(Debug)]
pub enum Kind {
    Directory,
    File { size: u64 },
    Sparse { regions: Vec<Region>, size: u64 },
    Symlink { target: Vec<u8> },
    Hardlink { target: Vec<u8> },
    Fifo,
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
}

/// A part of a sparse file that holds data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    pub offset: u64,
    pub length: u64,
}

/// Extended attributes, by name.
pub type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// What is set on a file besides its content.
#[derive(Debug)]
pub struct Looks {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub accessed: Timespec,
    pub modified: Timespec,
    pub xattrs: Xattrs,
}

pub struct Archive<'a> {
    stream: &'a mut dyn Read,
    parser: Parser,
    /// `buffer[start..end]` was read and not used yet.
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    /// Bytes of the current entry's content that are still in the stream, and the padding behind them.
    content: u64,
    padding: u64,
    /// Entries so far, headers that are about all of them included.
    entries: u64,
    /// Bytes of content that nobody asked for.
    skipped: u64,
    limits: Limits,
}

/// What one look at the buffer came to.
enum Step {
    More { wanted: usize },
    Skip { consumed: usize },
    Entry { consumed: usize, entry: Entry, content: u64 },
    End { consumed: usize },
}

impl<'a> Archive<'a> {
    pub fn new(stream: &'a mut dyn Read, limits: &Limits) -> Archive<'a> {
        let mut parser = Parser::new(tar_core::parse::Limits {
            max_metadata_size: limits.header_bytes,
            max_path_len: Some(limits.path_bytes),
            ..tar_core::parse::Limits::default()
        });
        // Times may be negative or fractional, which the parser takes for errors; numbers that matter are checked below.
        parser.set_ignore_pax_errors(true);
        Archive {
            stream,
            parser,
            buffer: vec![0; CHUNK],
            start: 0,
            end: 0,
            content: 0,
            padding: 0,
            entries: 0,
            skipped: 0,
            limits: *limits,
        }
    }

    /// The next entry; what is left of the content of the one before is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, Error> {
        self.skip_content()?;
        loop {
            match self.step()? {
                Step::More { wanted } => {
                    if !self.fill(wanted)? {
                        return Ok(None);
                    }
                }
                Step::Skip { consumed } => {
                    self.start += consumed;
                    self.count_entry()?;
                }
                Step::End { consumed } => {
                    self.start += consumed;
                    return Ok(None);
                }
                Step::Entry { consumed, entry, content } => {
                    self.start += consumed;
                    self.count_entry()?;
                    self.content = content;
                    self.padding = content.next_multiple_of(HEADER_SIZE as u64) - content;
                    return Ok(Some(entry));
                }
            }
        }
    }

    /// The next piece of the current entry's content, or nothing at its end.
    pub fn data(&mut self, most: u64) -> Result<Option<&[u8]>, Error> {
        let wanted = self.content.min(most);
        if wanted == 0 {
            return Ok(None);
        }
        if self.start == self.end && !self.read_more()? {
            return Err(Error::Malformed { reason: "it ends inside a file".into() });
        }
        let len = usize::try_from(wanted).unwrap_or(usize::MAX).min(self.end - self.start);
        let from = self.start;
        self.start += len;
        self.content -= len as u64;
        Ok(Some(&self.buffer[from..from + len]))
    }

    /// Reads on to the end of the stream.
    pub fn drain(&mut self) -> Result<(), Error> {
        loop {
            self.count_skipped(self.end - self.start, "bytes after its end")?;
            self.start = self.end;
            if !self.read_more()? {
                return Ok(());
            }
        }
    }

    fn step(&mut self) -> Result<Step, Error> {
        let event = self.parser.parse(&self.buffer[self.start..self.end]).map_err(malformed)?;
        Ok(match event {
            ParseEvent::NeedData { min_bytes } => Step::More { wanted: min_bytes },
            ParseEvent::GlobalExtensions { consumed, .. } => Step::Skip { consumed },
            ParseEvent::End { consumed } => Step::End { consumed },
            ParseEvent::Entry { consumed, entry } => {
                let kind = parse_kind(&entry)?;
                let content = if let Kind::File { size } = kind { size } else { 0 };
                Step::Entry { consumed, entry: parse_entry(&entry, kind)?, content }
            }
            ParseEvent::SparseEntry { consumed, entry, sparse_map, real_size } => {
                let content = entry.size;
                let regions = parse_regions(&entry, &sparse_map, real_size)?;
                let entry = parse_entry(&entry, Kind::Sparse { regions, size: real_size })?;
                Step::Entry { consumed, entry, content }
            }
        })
    }

    fn skip_content(&mut self) -> Result<(), Error> {
        while let Some(data) = self.data(u64::MAX)? {
            let count = data.len();
            self.count_skipped(count, "bytes of what is no file")?;
        }
        self.content = std::mem::take(&mut self.padding);
        // An archive may end without the padding of its last file.
        while self.content > 0 {
            if self.start == self.end && !self.read_more()? {
                self.content = 0;
            }
            self.data(u64::MAX)?;
        }
        Ok(())
    }

    fn count_entry(&mut self) -> Result<(), Error> {
        self.entries += 1;
        match self.entries > self.limits.inodes {
            true => Err(Error::TooMuch { what: "entries", limit: self.limits.inodes }),
            false => Ok(()),
        }
    }

    fn count_skipped(&mut self, count: usize, what: &'static str) -> Result<(), Error> {
        self.skipped += count as u64;
        match self.skipped > self.limits.bytes {
            true => Err(Error::TooMuch { what, limit: self.limits.bytes }),
            false => Ok(()),
        }
    }

    /// Reads until the parser can go on; false if the archive is over. The end of the stream between two entries, or after
    /// one block of zeros, ends an archive as well as the two blocks of zeros do.
    fn fill(&mut self, wanted: usize) -> Result<bool, Error> {
        let have = self.end - self.start;
        // The parser asks for what it knows it needs, which for lists without an end is never enough.
        let most = self.limits.header_bytes as usize + 64 * HEADER_SIZE;
        if wanted.max(have) > most {
            return Err(Error::TooMuch {
                what: "bytes of headers in one entry",
                limit: self.limits.header_bytes.into(),
            });
        }
        let wanted = wanted.max(have * 2);
        while self.end - self.start < wanted {
            if !self.read_more()? {
                break;
            }
        }
        let (now, zeros) = (self.end - self.start, self.buffer[self.start..self.end].iter().all(|byte| *byte == 0));
        match now > have {
            true => Ok(true),
            false if now == 0 || (now == HEADER_SIZE && zeros) => Ok(false),
            false => Err(Error::Malformed { reason: "it ends inside a header".into() }),
        }
    }

    /// Reads something to the end of the buffer; false at the end of the stream.
    fn read_more(&mut self) -> Result<bool, Error> {
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        } else if self.end == self.buffer.len() {
            self.buffer.copy_within(self.start..self.end, 0);
            (self.start, self.end) = (0, self.end - self.start);
        }
        if self.end == self.buffer.len() {
            self.buffer.resize(self.buffer.len() * 2, 0);
        }
        loop {
            match self.stream.read(&mut self.buffer[self.end..]) {
                Ok(len) => {
                    self.end += len;
                    return Ok(len > 0);
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::Read { source }),
            }
        }
    }
}

fn malformed(error: ParseError) -> Error {
    Error::Malformed { reason: error.to_string() }
}

fn parse_kind(entry: &ParsedEntry<'_>) -> Result<Kind, Error> {
    let target = || {
        let target = entry.link_target.as_deref().filter(|target| !target.is_empty());
        let target = target.ok_or_else(|| Error::refused(&entry.path, "a link without a target"))?;
        no_nul(target).map(|()| target.to_vec())
    };
    let device = || {
        let (major, minor) = (entry.dev_major.unwrap_or(0), entry.dev_minor.unwrap_or(0));
        match major <= MAX_MAJOR && minor <= MAX_MINOR {
            true => Ok((major, minor)),
            false => Err(Error::refused(&entry.path, "its device number is out of range")),
        }
    };
    Ok(match entry.entry_type {
        // The oldest archives mark directories by their name only.
        EntryType::Regular if entry.header.as_bytes()[156] == 0 && entry.path.ends_with(b"/") => Kind::Directory,
        EntryType::Regular | EntryType::Continuous => Kind::File { size: content_size(entry)? },
        EntryType::Directory => Kind::Directory,
        EntryType::Symlink => Kind::Symlink { target: target()? },
        EntryType::Link => Kind::Hardlink { target: target()? },
        EntryType::Fifo => Kind::Fifo,
        EntryType::Char => {
            let (major, minor) = device()?;
            Kind::Char { major, minor }
        }
        EntryType::Block => {
            let (major, minor) = device()?;
            Kind::Block { major, minor }
        }
        EntryType::Other(_)
        | EntryType::GnuLongName
        | EntryType::GnuLongLink
        | EntryType::GnuSparse
        | EntryType::XHeader
        | EntryType::XGlobalHeader => {
            let byte = char::from(entry.entry_type.as_byte());
            return Err(Error::refused(&entry.path, format!("entries of type {byte:?} are not known")));
        }
    })
}

fn content_size(entry: &ParsedEntry<'_>) -> Result<u64, Error> {
    // In the binary form, the parser drops the bits of negative and of enormous numbers that do not fit.
    let field = &entry.header.as_bytes()[124..136];
    if field[0] & 0x80 != 0 && (field[0] & 0x7f != 0 || field[1..4].iter().any(|byte| *byte != 0)) {
        return Err(Error::refused(&entry.path, "its size is out of range"));
    }
    if entry.size > i64::MAX as u64 {
        return Err(Error::refused(&entry.path, "its size is out of range"));
    }
    Ok(entry.size)
}

/// The map must be in order, inside the file, and account for every byte of the content.
fn parse_regions(entry: &ParsedEntry<'_>, map: &[SparseEntry], size: u64) -> Result<Vec<Region>, Error> {
    let wrong = || Error::refused(&entry.path, "its map of holes is wrong");
    let (mut end, mut sum) = (0u64, 0u64);
    let mut regions = Vec::with_capacity(map.len());
    for &SparseEntry { offset, length } in map {
        let next = offset.checked_add(length).ok_or_else(wrong)?;
        if offset < end || next > size {
            return Err(wrong());
        }
        (end, sum) = (next, sum + length);
        regions.push(Region { offset, length });
    }
    match sum == entry.size && size <= i64::MAX as u64 {
        true => Ok(regions),
        false => Err(wrong()),
    }
}

fn parse_entry(entry: &ParsedEntry<'_>, kind: Kind) -> Result<Entry, Error> {
    no_nul(&entry.path)?;
    let id = |what, id: u64| match u32::try_from(id) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(Error::refused(&entry.path, format!("its {what} {id} is out of range"))),
    };
    let pax = entry.pax.unwrap_or_default();
    check_records(pax)?;
    check_numbers(&entry.path, pax)?;
    let header = Timespec { tv_sec: i64::try_from(entry.mtime).unwrap_or(-1), tv_nsec: 0 };
    let modified = bounded(pax_time(pax, "mtime").unwrap_or(header));
    // Not older than the content, as Go's extractors have it.
    let accessed = pax_time(pax, "atime").map_or(modified, bounded);
    let later = (accessed.tv_sec, accessed.tv_nsec) > (modified.tv_sec, modified.tv_nsec);
    let looks = Looks {
        mode: entry.mode & 0o7777,
        uid: id("owner", entry.uid)?,
        gid: id("group", entry.gid)?,
        accessed: if later { accessed } else { modified },
        modified,
        xattrs: entry.xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec())).collect(),
    };
    Ok(Entry { name: entry.path.to_vec(), kind, looks })
}

fn no_nul(name: &[u8]) -> Result<(), Error> {
    match name.contains(&0) {
        true => Err(Error::refused(name, "a name with a NUL byte")),
        false => Ok(()),
    }
}

/// Each record is `<length> <key>=<value>` and a newline, and they fill the header (POSIX pax, "Extended Header"). The
/// parser stops at the first that is not, and would take what follows for nothing.
fn check_records(mut pax: &[u8]) -> Result<(), Error> {
    let wrong = || Error::Malformed { reason: "an extended header holds what is no record".into() };
    while !pax.is_empty() {
        let space = pax.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let len: usize = str::from_utf8(&pax[..space]).ok().and_then(|text| text.parse().ok()).ok_or_else(wrong)?;
        let record = pax.get(space + 1..len).ok_or_else(wrong)?;
        if !record.contains(&b'=') || record.last() != Some(&b'\n') {
            return Err(wrong());
        }
        pax = &pax[len..];
    }
    Ok(())
}

/// The parser was told to pass over values that it cannot read. For these, that would change what the archive means.
fn check_numbers(path: &[u8], pax: &[u8]) -> Result<(), Error> {
    for record in PaxExtensions::new(pax) {
        let record = record.map_err(|error| Error::Malformed { reason: error.to_string() })?;
        let numeric = matches!(record.key(), Ok("size" | "uid" | "gid"));
        if numeric && record.value().ok().and_then(|value| value.parse::<u64>().ok()).is_none() {
            return Err(Error::refused(path, "a number in its extended header cannot be read"));
        }
    }
    Ok(())
}

/// Seconds since 1970 with an optional fraction, perhaps negative; nothing if absent or unreadable.
fn pax_time(pax: &[u8], key: &str) -> Option<Timespec> {
    let text = PaxExtensions::new(pax).get(key)?;
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: String = fraction.chars().chain("000000000".chars()).take(9).collect();
    Some(Timespec { tv_sec: seconds.parse().ok()?, tv_nsec: nanos.parse().ok()? })
}

/// Times that do not fit nanoseconds in 64 bits, or lie before 1970, become 1970, as Go's extractors have it.
fn bounded(time: Timespec) -> Timespec {
    match (0..=i64::MAX / 1_000_000_000).contains(&time.tv_sec) {
        true => time,
        false => Timespec { tv_sec: 0, tv_nsec: 0 },
    }
}
