//! Room for the store's own writes on a disk that is full. Without it, nothing could be removed any more, since a removal is
//! written down before it is done.
//!
//! It is a file of blocks beside the store, given back a little at a time when hardly anything is left, and made anew when
//! there is enough again. Whoever else writes to the disk may be faster; then the next write gets the next piece.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::FallocateFlags;

const SIZE: u64 = 8 << 20;
const PIECE: u64 = 512 << 10;
/// Less than this is little: a transaction on a large image writes some hundred kibibytes to the log.
const LITTLE: u64 = 1 << 20;
/// With this much, the reserve is no burden.
const ENOUGH: u64 = 4 * SIZE;

pub(crate) struct Reserve {
    path: PathBuf,
    /// Bytes that are there to be given back.
    left: u64,
}

impl Reserve {
    /// That of a store. A small disk has none.
    pub(crate) fn of(store: &Path) -> Reserve {
        let mut name = store.as_os_str().to_owned();
        name.push("-reserve");
        let path = PathBuf::from(name);
        let left = fs::metadata(&path).map_or(0, |found| found.len());
        let mut reserve = Reserve { path, left };
        reserve.prepare();
        reserve
    }

    /// To be called before something is written. That there is no reserve is no reason not to write.
    pub(crate) fn prepare(&mut self) {
        let changed = match self.free() {
            Ok(free) if free < LITTLE && self.left > 0 => self.give(),
            Ok(free) if free > ENOUGH && self.left < SIZE => self.make(),
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = changed {
            let error = &error as &dyn std::error::Error;
            tracing::debug!(path = %self.path.display(), error, "the store's reserve is as it was");
        }
    }

    /// Bytes that root can still write; only root runs this.
    fn free(&self) -> io::Result<u64> {
        let directory = self.path.parent().filter(|directory| !directory.as_os_str().is_empty());
        let found = rustix::fs::statvfs(directory.unwrap_or(Path::new(".")))?;
        Ok(found.f_bfree.saturating_mul(found.f_frsize))
    }

    fn give(&mut self) -> io::Result<()> {
        if self.left == SIZE {
            tracing::warn!(path = %self.path.display(), "the disk is full; the store goes on with its reserve");
        }
        let left = self.left.saturating_sub(PIECE);
        match left {
            0 => fs::remove_file(&self.path)?,
            _ => self.open()?.set_len(left)?,
        }
        self.left = left;
        Ok(())
    }

    fn make(&mut self) -> io::Result<()> {
        let made = rustix::fs::fallocate(self.open()?, FallocateFlags::empty(), 0, SIZE);
        self.left = if made.is_ok() { SIZE } else { 0 };
        if made.is_err() {
            // A part would only confuse; not every file system can do this.
            fs::remove_file(&self.path)?;
        }
        Ok(made?)
    }

    fn open(&self) -> io::Result<File> {
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&self.path)
    }
}
