//! What a container had logged before its checkpoint, put before what it logs from now on.
//!
//! An archive's log is a text of whoever made it, and who reads logs takes them apart by their format. So only whole records of
//! CRI's format are taken over, and of a long log no more than its end.

use std::{
    fs::{File, OpenOptions},
    io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use rustix::fs::{CWD, RenameFlags};

/// About what the kubelet keeps of a log before it rotates it (10 MiB, unless configured).
const MOST: u64 = 16 << 20;
/// A longer record is none of a runtime's: it cuts lines at some kilobytes.
const MAX_RECORD: u64 = 1 << 20;

/// Makes the log at `to` begin with the records of the log at `from`. One that is there already is left alone. Blocks.
pub(crate) fn take_over(from: &Path, to: &Path) -> io::Result<()> {
    let file = match File::open(from) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    let mut name = std::ffi::OsString::from(".");
    name.push(to.file_name().ok_or(io::ErrorKind::InvalidInput)?);
    name.push(".restored");
    let partial = to.with_file_name(name);
    let made = write(file, &partial).and_then(|()| {
        match rustix::fs::renameat_with(CWD, &partial, CWD, to, RenameFlags::NOREPLACE) {
            Ok(()) => Ok(()),
            Err(rustix::io::Errno::EXIST) => std::fs::remove_file(&partial),
            Err(error) => Err(error.into()),
        }
    });
    if made.is_err() {
        // The error that counts is the other one.
        let _ = std::fs::remove_file(&partial);
    }
    made
}

fn write(mut file: File, partial: &Path) -> io::Result<()> {
    let size = file.metadata()?.len();
    let mut log = if size > MOST {
        // In the middle of a record, maybe; one that is cut short is none.
        file.seek(SeekFrom::Start(size - MOST))?;
        let mut log = BufReader::new(file);
        log.skip_until(b'\n')?;
        log
    } else {
        BufReader::new(file)
    };
    // Of an attempt that was killed; the name is nobody else's.
    match std::fs::remove_file(partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    // As a log that the shim makes.
    let to = OpenOptions::new().write(true).create_new(true).mode(0o640).open(partial)?;
    let mut to = BufWriter::with_capacity(256 << 10, to);
    let mut record = Vec::new();
    loop {
        record.clear();
        if log.by_ref().take(MAX_RECORD).read_until(b'\n', &mut record)? == 0 {
            return to.flush();
        }
        if record.last() != Some(&b'\n') {
            // The rest of it, if there is more.
            log.skip_until(b'\n')?;
        } else if is_record(&record) {
            to.write_all(&record)?;
        }
    }
}

/// `<RFC 3339> stdout|stderr P|F[:tag…] <text>`, as the kubelet's logs.go reads it.
fn is_record(record: &[u8]) -> bool {
    let mut parts = record.splitn(4, |byte| *byte == b' ');
    let (Some(time), Some(stream), Some(tags), Some(_)) = (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return false;
    };
    let time = std::str::from_utf8(time).ok().and_then(|time| time.parse::<jiff::Timestamp>().ok());
    time.is_some()
        && matches!(stream, b"stdout" | b"stderr")
        && matches!(tags.split(|byte| *byte == b':').next(), Some(b"P" | b"F"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const TIME: &str = "2026-01-02T03:04:05.678901234+01:00";

    fn taken(text: &[u8]) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("from"), text).unwrap();
        take_over(&dir.path().join("from"), &dir.path().join("0.log")).unwrap();
        let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names.len(), 2, "{names:?}");
        fs::read(dir.path().join("0.log")).unwrap()
    }

    #[test]
    fn whole_records_are_taken_over_and_nothing_else() {
        for good in ["stdout F a line", "stderr P \u{1b}[2J", "stdout F ", "stdout P:x:y z", "stdout F two  spaces"] {
            let text = format!("{TIME} {good}\n");
            assert_eq!(taken(text.as_bytes()), text.as_bytes(), "{good}");
        }
        for bad in [
            "a log of somebody else",
            "stdout F a line",
            "2026-01-02 stdout F no time",
            "2026-01-02T03:04:05Z stdin F a line",
            "2026-01-02T03:04:05Z stdout Q a line",
            "2026-01-02T03:04:05Z stdout F",
            "",
        ] {
            let good = format!("{TIME} stdout F good\n");
            assert_eq!(taken(format!("{good}{bad}\n{good}").as_bytes()), format!("{good}{good}").as_bytes(), "{bad}");
        }
        let cut = format!("{TIME} stdout F good\n{TIME} stdout F cut");
        assert_eq!(taken(cut.as_bytes()), format!("{TIME} stdout F good\n").as_bytes());
    }

    #[test]
    fn of_a_long_log_the_end_is_taken_over() {
        let record = format!("{TIME} stdout F {}\n", "x".repeat(1000));
        let long = format!("{TIME} stdout F {}\n", "y".repeat(2 << 20));
        let text = record.repeat(20_000) + &long + &record;
        let found = taken(text.as_bytes());
        assert_eq!(found.len() % record.len(), 0);
        let most = MOST as usize;
        assert!((most - (3 << 20)..most).contains(&found.len()), "{}", found.len());
        assert_eq!(taken(b""), b"");
    }

    #[test]
    fn a_log_that_is_there_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("0.log"));
        take_over(&from, &to).unwrap();
        assert!(!to.exists(), "no log, nothing to take over");
        fs::write(&from, format!("{TIME} stdout F old\n")).unwrap();
        fs::write(&to, "there").unwrap();
        fs::write(dir.path().join(".0.log.restored"), "of an attempt that was killed").unwrap();
        take_over(&from, &to).unwrap();
        assert_eq!(fs::read_to_string(&to).unwrap(), "there");
        assert!(!dir.path().join(".0.log.restored").exists());
        assert!(take_over(&from, &dir.path().join("no/0.log")).is_err());
    }
}
