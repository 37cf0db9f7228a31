//! FIFOs as files: made, opened without ever waiting for the other side, removed.

use std::{
    fs, io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::{sys::WatchedFd, ttrpc::Status};

/// Makes what is not there yet.
pub(super) fn make_all(paths: &[PathBuf]) -> io::Result<()> {
    for path in paths {
        match mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

pub(super) fn remove_all(paths: &[PathBuf]) {
    for path in paths {
        // One that is missing is as good, and the rest goes with the bundle.
        let _ = fs::remove_file(path);
    }
}

/// The reader's end alone, so that it is told when the last writer has gone.
pub(super) fn open_reader(path: &Path) -> io::Result<WatchedFd> {
    WatchedFd::new(fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?.into())
}

/// The way into a process: what is written before the shim has opened its end waits in the FIFO.
pub(in crate::client) struct FifoInput {
    fifo: Mutex<Option<Arc<WatchedFd>>>,
    /// Tells the shim that no more comes; none where another client may come back.
    end: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl FifoInput {
    /// Open for reading as well: then opening waits for nobody, and writing never fails for want of a reader.
    pub(super) fn open(path: &Path, end: Option<Box<dyn FnOnce() + Send>>) -> io::Result<Self> {
        let fifo = fs::OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        Ok(Self { fifo: Mutex::new(Some(Arc::new(WatchedFd::new(fifo.into())?))), end: Mutex::new(end) })
    }

    pub(in crate::client) async fn write(&self, bytes: &[u8]) -> Result<(), Status> {
        let fifo = self.fifo.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Some(fifo) = fifo else { return Ok(()) };
        fifo.write_all(bytes).await.map_err(|error| Status::internal(format!("write to a process's stdin: {error}")))
    }

    pub(in crate::client) async fn close(&self) -> Result<(), Status> {
        self.finish();
        Ok(())
    }

    fn finish(&self) {
        *self.fifo.lock().unwrap_or_else(PoisonError::into_inner) = None;
        let end = self.end.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(end) = end {
            end();
        }
    }
}

impl Drop for FifoInput {
    fn drop(&mut self) {
        self.finish();
    }
}
