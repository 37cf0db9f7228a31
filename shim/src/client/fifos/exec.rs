//! The output of an exec, read straight from its FIFOs as fast as its client takes it.

use std::{io, path::Path};

use super::{copy::piece, files};
use crate::{client::Output, sys::WatchedFd};

const CHUNK: usize = 32 << 10;

pub(in crate::client) struct ExecOutput {
    stdout: Side,
    stderr: Side,
}

struct Side {
    fifo: Option<WatchedFd>,
    buffer: Vec<u8>,
}

impl Side {
    fn open(path: Option<&Path>) -> io::Result<Self> {
        let fifo = path.map(files::open_reader).transpose()?;
        let buffer = if fifo.is_some() { vec![0; CHUNK] } else { Vec::new() };
        Ok(Self { fifo, buffer })
    }

    /// The number of bytes read; 0 once at the end.
    async fn read(&mut self) -> usize {
        let Some(fifo) = &self.fifo else { return std::future::pending().await };
        // An error ends the output as its end does: the exit tells what became of the process.
        let count = fifo.read(&mut self.buffer).await.unwrap_or(0);
        if count == 0 {
            self.fifo = None;
        }
        count
    }
}

impl ExecOutput {
    /// Opens the ends before the shim opens its own.
    pub(super) fn open(stdout: Option<&Path>, stderr: Option<&Path>) -> io::Result<Self> {
        Ok(Self { stdout: Side::open(stdout)?, stderr: Side::open(stderr)? })
    }

    /// The next piece; `None` when both outputs have ended. Cancel-safe.
    pub(in crate::client) async fn next(&mut self) -> Option<Output> {
        while self.stdout.fifo.is_some() || self.stderr.fifo.is_some() {
            tokio::select! {
                count = self.stdout.read() => if count > 0 {
                    return Some(Output::Stdout(piece(&self.stdout.buffer, count)));
                },
                count = self.stderr.read() => if count > 0 {
                    return Some(Output::Stderr(piece(&self.stderr.buffer, count)));
                },
            }
        }
        None
    }
}
