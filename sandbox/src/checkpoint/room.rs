//! How much may be written to a disk that a node lives on: what is asked at most, and never the last of it.

use std::{
    fs::File,
    io::{self, Write},
    path::Path,
};

use crate::Error;

/// What is left free on a file system that a checkpoint is written to, in bytes: a full disk would take the node down.
const FLOOR: u64 = 256 << 20;
/// Others write as well, so it is looked at again after so many bytes.
const LOOK: u64 = 16 << 20;

/// Fails unless `bytes` fit where `path` is, and something is left.
pub(crate) fn check(path: &Path, bytes: u64) -> Result<(), Error> {
    let free =
        free(path).map_err(|error| Error::failed(format!("look at the file system of {}", path.display()), error))?;
    if free >= bytes.saturating_add(FLOOR) {
        return Ok(());
    }
    Err(Error::Unavailable(format!(
        "the checkpoint needs {bytes} bytes in {}, where {free} are free and {FLOOR} must stay free; make room or choose another location",
        path.display()
    )))
}

/// How many bytes may be written where `path` is, at most `cap`.
pub(crate) fn within(path: &Path, cap: u64) -> Result<u64, Error> {
    check(path, 0)?;
    let free =
        free(path).map_err(|error| Error::failed(format!("look at the file system of {}", path.display()), error))?;
    Ok(cap.min(free.saturating_sub(FLOOR)))
}

fn free(path: &Path) -> io::Result<u64> {
    let found = rustix::fs::statvfs(path)?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// A file that ends with an error before it has more than `cap` bytes, or its file system less than the floor.
pub(crate) struct Bounded {
    file: File,
    left: u64,
    until_look: u64,
    floor: u64,
}

impl Bounded {
    pub(crate) fn new(file: File, cap: u64) -> Bounded {
        Bounded { file, left: cap, until_look: 0, floor: FLOOR }
    }

    pub(crate) fn into_inner(self) -> File {
        self.file
    }
}

impl Write for Bounded {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let size = bytes.len() as u64;
        if size > self.left {
            return Err(io::Error::new(
                io::ErrorKind::FileTooLarge,
                "it would be larger than a checkpoint may be (max_bytes)",
            ));
        }
        if self.until_look < size {
            let found = rustix::fs::fstatvfs(&self.file)?;
            let free = found.f_bavail.saturating_mul(found.f_frsize);
            if free < size.saturating_add(self.floor) {
                return Err(io::Error::new(
                    io::ErrorKind::StorageFull,
                    format!("{free} bytes are free and {} must stay free", self.floor),
                ));
            }
            self.until_look = LOOK;
        }
        let written = self.file.write(bytes)?;
        self.left -= written as u64;
        self.until_look = self.until_look.saturating_sub(written as u64);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_ends_at_its_size_and_before_the_disk_is_full() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let mut bounded = Bounded::new(File::create(&path).unwrap(), 10);
        bounded.write_all(b"0123456789").unwrap();
        assert_eq!(bounded.write_all(b"x").unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(std::fs::read(&path).unwrap(), b"0123456789");

        let floor = u64::MAX / 2;
        let mut full = Bounded { floor, ..Bounded::new(File::create(&path).unwrap(), 10) };
        assert_eq!(full.write_all(b"x").unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(std::fs::read(&path).unwrap(), b"");
    }

    #[test]
    fn room_is_what_is_free_above_the_floor() {
        let dir = tempfile::tempdir().unwrap();
        let refused = check(dir.path(), u64::MAX).unwrap_err();
        assert!(matches!(refused, Error::Unavailable(_)), "{refused}");
        assert_eq!(within(dir.path(), 1).unwrap(), 1);
        assert!(within(dir.path(), u64::MAX).unwrap() < u64::MAX);
    }
}
