//! The CRI log file of one container.
//!
//! Both streams write through one [`CriLog`], whole records at a time in one write on an O_APPEND descriptor, so
//! records never interleave and a reader of the old file after a rename sees no torn line. A failed write loses its
//! records and nothing else: the container is never blocked by its log.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use jiff::Timestamp;
use jiff::tz::TimeZone;

pub(crate) struct CriLog {
    path: PathBuf,
    /// The descriptor that records go to, and whether the last write failed, so that an outage is told once.
    file: Mutex<(File, bool)>,
    /// Where an outage is told.
    say: fn(&str),
}

impl CriLog {
    pub(crate) fn open(path: &Path, say: fn(&str)) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), file: Mutex::new((open(path)?, false)), say })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Goes on in a new file of the same name. On an error the old one stays in use.
    pub(crate) fn reopen(&self) -> io::Result<()> {
        let new = open(&self.path)?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = (new, false);
        Ok(())
    }

    pub(crate) fn write(&self, records: &[u8]) {
        let mut guard = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let (file, failing) = &mut *guard;
        match file.write_all(records) {
            Ok(()) => *failing = false,
            Err(error) if !*failing => {
                *failing = true;
                (self.say)(&format!("cannot write {}: {error}; its lines are lost", self.path.display()));
            }
            Err(_) => {}
        }
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

    #[test]
    fn the_time_carries_the_offset_of_the_node() {
        assert!(time_of_record(&TimeZone::UTC).ends_with('Z'));
        assert!(time_of_record(&TimeZone::fixed(jiff::tz::offset(2))).ends_with("+02:00"));
    }
}
