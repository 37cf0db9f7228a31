//! The exit of a container's init process, kept in the bundle.
//!
//! Written the moment the exit is seen, before anybody is told, so that the shim's own death afterwards cannot lose
//! it: `delete` and the daemon read it. Published by rename; a reader sees all of it or nothing.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use prost_types::Timestamp;

const FILE: &str = "exit.json";

/// How a process ended.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct Exit {
    pub(crate) pid: i32,
    /// 128+n for signal n.
    pub(crate) status: u32,
    seconds: u64,
    nanos: u32,
    pub(crate) oom_killed: bool,
}

impl Exit {
    pub(crate) fn now(pid: i32, status: u32, oom_killed: bool) -> Self {
        // A clock before 1970 has no better name for now than its start.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        Self { pid, status, seconds: since.as_secs(), nanos: since.subsec_nanos(), oom_killed }
    }

    pub(crate) fn at(&self) -> Timestamp {
        Timestamp { seconds: self.seconds as i64, nanos: self.nanos as i32 }
    }

    pub(crate) fn write(&self, bundle: &Path) -> io::Result<()> {
        let temporary = bundle.join(format!(".{FILE}"));
        fs::write(&temporary, serde_json::to_vec(self)?)?;
        fs::rename(temporary, bundle.join(FILE))
    }

    pub(crate) fn read(bundle: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(bundle.join(FILE)).ok()?).ok()
    }

    /// A new container in a bundle that was used before has not ended.
    pub(crate) fn forget(bundle: &Path) -> io::Result<()> {
        match fs::remove_file(bundle.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_read_as_it_was_written() {
        let bundle = tempfile::tempdir().unwrap();
        let exit = Exit::now(42, 137, true);
        assert_eq!(Exit::read(bundle.path()), None);
        exit.write(bundle.path()).unwrap();
        assert_eq!(Exit::read(bundle.path()), Some(exit));
        Exit::forget(bundle.path()).unwrap();
        assert_eq!(Exit::read(bundle.path()), None);
    }
}
