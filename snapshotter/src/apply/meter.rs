//! What a layer has used up of what it may use. All of it grows with the stream only, so a stream that compresses to nothing
//! could else use up the node: its disk, its memory, or its time.

use super::{Applied, Budget, Error, Limits};

/// The names of directories, which are remembered to the end for their times, have this many bytes in all. Large images have
/// a few hundred thousand directories with names of some sixty bytes.
pub(super) const MAX_NAMES: u64 = 64 << 20;
/// How often each file that the limits allow may be looked at, on average, to find what is deleted.
pub(super) const MAX_WALKS: u64 = 16;

#[derive(Debug)]
pub(super) struct Meter<'a> {
    limits: Limits,
    /// What the other layers use up as well.
    shared: Option<&'a Budget>,
    applied: Applied,
    names: u64,
    walked: u64,
}

impl<'a> Meter<'a> {
    pub(super) fn new(limits: &Limits, shared: Option<&'a Budget>) -> Meter<'a> {
        Meter { limits: *limits, shared, applied: Applied::default(), names: 0, walked: 0 }
    }

    pub(super) fn applied(&self) -> Applied {
        self.applied
    }

    pub(super) fn inode(&mut self) -> Result<(), Error> {
        add(&mut self.applied.inodes, 1, "files", self.limits.inodes)?;
        self.shared.map_or(Ok(()), |shared| shared.take_inodes(1))
    }

    /// Content, and what is kept beside it.
    pub(super) fn bytes(&mut self, count: u64) -> Result<(), Error> {
        add(&mut self.applied.bytes, count, "bytes of files", self.limits.bytes)?;
        self.shared.map_or(Ok(()), |shared| shared.take_bytes(count))
    }

    /// A name that is remembered.
    pub(super) fn name(&mut self, name: &[u8]) -> Result<(), Error> {
        add(&mut self.names, name.len() as u64, "bytes of names of directories", MAX_NAMES)
    }

    /// Files that were looked at.
    pub(super) fn walked(&mut self, count: u64) -> Result<(), Error> {
        let most = self.limits.inodes.saturating_mul(MAX_WALKS);
        add(&mut self.walked, count, "files to look at for what it deletes", most)
    }
}

fn add(sum: &mut u64, count: u64, what: &'static str, limit: u64) -> Result<(), Error> {
    *sum = sum.saturating_add(count);
    if *sum > limit { Err(Error::TooMuch { what, limit }) } else { Ok(()) }
}
