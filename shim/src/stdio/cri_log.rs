//! The CRI log file of one container.
//!
//! Both streams write through one [`CriLog`], whole records at a time in one write on an O_APPEND descriptor, so
//! records never interleave and a reader of the old file after a rename sees no torn line. A failed write loses its
//! records and nothing else: the container is never blocked by its log, and what a full disk took half of is a line of its
//! own.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use jiff::tz::TimeZone;

pub(crate) struct CriLog {
    path: PathBuf,
    file: Mutex<Appender<File>>,
    /// Where an outage is told.
    say: fn(&str),
}

/// The descriptor that records go to, and what became of the last write.
struct Appender<W> {
    to: W,
    /// It failed: an outage is told once.
    failing: bool,
    /// What is there ends in the middle of a record.
    torn: bool,
}

impl CriLog {
    pub(crate) fn open(path: &Path, say: fn(&str)) -> io::Result<Self> {
        let file = Appender { to: open(path)?, failing: false, torn: false };
        Ok(Self { path: path.to_owned(), file: Mutex::new(file), say })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Goes on in a new file of the same name. On an error the old one stays in use.
    pub(crate) fn reopen(&self) -> io::Result<()> {
        let new = open(&self.path)?;
        // Who reopens without renaming goes on in the same file.
        let empty = new.metadata()?.len() == 0;
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let torn = file.torn && !empty;
        *file = Appender { to: new, failing: false, torn };
        Ok(())
    }

    pub(crate) fn write(&self, records: &[u8]) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let was_failing = file.failing;
        if let Err(error) = file.append(records)
            && !was_failing
        {
            (self.say)(&format!("cannot write {}: {error}; its lines are lost", self.path.display()));
        }
    }
}

impl<W: Write> Appender<W> {
    /// Writes whole records, on a line of their own.
    fn append(&mut self, records: &[u8]) -> io::Result<()> {
        let written = self.end_torn().and_then(|()| self.put(records));
        self.failing = written.is_err();
        written
    }

    fn end_torn(&mut self) -> io::Result<()> {
        if self.torn {
            self.to.write_all(b"\n")?;
            self.torn = false;
        }
        Ok(())
    }

    fn put(&mut self, records: &[u8]) -> io::Result<()> {
        let mut rest = records;
        while !rest.is_empty() {
            match self.to.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.torn = rest[count - 1] != b'\n';
                    rest = &rest[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The time of a record, in RFC 3339 with nanoseconds and the node's own offset, as Go prints it.
pub(crate) fn time_of_record(zone: &TimeZone) -> String {
    let now = Timestamp::now();
    let offset = zone.to_offset(now);
    if offset.seconds() == 0 { now.to_string() } else { now.display_with_offset(offset).to_string() }
}

fn open(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_reopen_records_go_to_the_new_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod/0.log");
        let log = CriLog::open(&path, |_| ()).unwrap();
        log.write(b"one\n");
        std::fs::rename(&path, dir.path().join("old")).unwrap();
        log.write(b"two\n");
        log.reopen().unwrap();
        log.write(b"three\n");
        assert_eq!(std::fs::read_to_string(dir.path().join("old")).unwrap(), "one\ntwo\n");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "three\n");
    }

    #[test]
    fn a_reopen_that_fails_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod/0.log");
        let log = CriLog::open(&path, |_| ()).unwrap();
        std::fs::rename(dir.path().join("pod"), dir.path().join("moved")).unwrap();
        std::fs::write(dir.path().join("pod"), "a file in the way").unwrap();
        log.reopen().unwrap_err();
        log.write(b"kept\n");
        assert_eq!(std::fs::read_to_string(dir.path().join("moved/0.log")).unwrap(), "kept\n");
    }

    /// A disk with so much room, that gets more from time to time.
    struct Disk {
        held: Vec<u8>,
        room: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            if self.room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            let count = bytes.len().min(self.room);
            self.held.extend_from_slice(&bytes[..count]);
            self.room -= count;
            Ok(count)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_a_full_disk_took_half_of_spoils_no_other_line() {
        let check = |room: usize, expected: &str| {
            let to = Disk { held: Vec::new(), room };
            let mut log = Appender { to, failing: false, torn: false };
            for (records, more) in
                [("first F 1\nfirst F 2\n", 0), ("lost\n", 100), ("later F 1\n", 0), ("later F 2\n", 0)]
            {
                // Each failure is an outage of its own here.
                drop(log.append(records.as_bytes()));
                log.to.room += more;
            }
            assert_eq!(String::from_utf8(log.to.held).unwrap(), expected, "room for {room} bytes");
        };
        check(20, "first F 1\nfirst F 2\nlater F 1\nlater F 2\n");
        check(15, "first F 1\nfirst\nlater F 1\nlater F 2\n");
        check(10, "first F 1\nlater F 1\nlater F 2\n");
        check(0, "later F 1\nlater F 2\n");
    }

    #[test]
    fn the_time_carries_the_offset_of_the_node() {
        assert!(time_of_record(&TimeZone::UTC).ends_with('Z'));
        assert!(time_of_record(&TimeZone::fixed(jiff::tz::offset(2))).ends_with("+02:00"));
    }
}
