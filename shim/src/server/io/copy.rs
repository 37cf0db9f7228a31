//! One direction, one stream: from the container's descriptor to a [`Sink`].
//!
//! Byte-exact, in order, unbuffered. An exec whose process has ended while a descendant still holds its pipe gets one
//! more second for each further byte, or as long as its reader wants; what was written before that is always delivered.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::ended_or_gone;
use crate::stdio::{Stream, hub::Chunk, sink::CriSink};
use crate::sys::WatchedFd;

const CHUNK: usize = 16 * 1024;

/// How long an ended exec's pipe may stay silent before its Attach stream ends.
const QUIET: Duration = Duration::from_secs(1);

pub(super) enum Sink {
    Discard,
    /// Opened for reading and writing: without a reader the container waits, and is never killed by SIGPIPE.
    Fifo(WatchedFd),
    File(File),
    Single {
        stream: Stream,
        sender: mpsc::Sender<Chunk>,
        /// Silence does not end it, but whoever reads it.
        hold: bool,
    },
    Cri(Box<CriSink>),
}

impl Sink {
    /// A FIFO or file that the client made; nothing if it is not there, as containerd's shims have it.
    pub(super) fn open_existing(path: &Path) -> io::Result<Option<Self>> {
        let kind = match std::fs::metadata(path) {
            Ok(metadata) => metadata.file_type(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if !kind.is_fifo() {
            return Ok(Some(Self::File(OpenOptions::new().append(true).open(path)?)));
        }
        let fifo = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        Ok(Some(Self::Fifo(WatchedFd::new(fifo.into())?)))
    }

    pub(super) fn create(path: &Path) -> io::Result<Self> {
        if let Some(parent) = path.parent() {
            DirBuilder::new().recursive(true).mode(0o755).create(parent)?;
        }
        Ok(Self::File(OpenOptions::new().append(true).create(true).mode(0o644).open(path)?))
    }

    async fn take(&mut self, bytes: &[u8]) {
        let delivered = match self {
            Self::Discard => true,
            Self::Fifo(fifo) => fifo.write_all(bytes).await.is_ok(),
            Self::File(file) => {
                // A full disk must not stop the container: the bytes are lost, and the next write tries again.
                let _ = file.write_all(bytes);
                true
            }
            Self::Single { stream, sender, .. } => {
                let chunk = Chunk { stream: *stream, bytes: Bytes::copy_from_slice(bytes) };
                sender.send(chunk).await.is_ok()
            }
            Self::Cri(cri) => {
                cri.take(bytes);
                true
            }
        };
        if !delivered {
            *self = Self::Discard;
        }
    }

    fn finish(&mut self) {
        if let Self::Cri(cri) = self {
            cri.finish();
        }
    }
}

pub(super) async fn copy(
    source: &WatchedFd,
    mut sink: Sink,
    mut ended: watch::Receiver<bool>,
    stop: &CancellationToken,
) {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = tokio::select! {
            // What has been written is read before any reason to end is looked at.
            biased;
            read = source.read(&mut buffer) => match read {
                // EIO is how a pty master says that no process holds the other side any more.
                Ok(0) | Err(_) => break,
                Ok(count) => count,
            },
            () = quiet(&sink, &mut ended) => break,
            () = stop.cancelled() => break,
        };
        tokio::select! {
            () = sink.take(&buffer[..count]) => {}
            () = stop.cancelled() => break,
        }
    }
    sink.finish();
}

/// Resolves when nobody is served by going on.
async fn quiet(sink: &Sink, ended: &mut watch::Receiver<bool>) {
    match sink {
        Sink::Fifo(_) | Sink::File(_) | Sink::Cri(_) => std::future::pending().await,
        Sink::Single { sender, hold: true, .. } => {
            ended_or_gone(ended).await;
            sender.closed().await;
        }
        Sink::Single { hold: false, .. } | Sink::Discard => {
            ended_or_gone(ended).await;
            tokio::time::sleep(QUIET).await;
        }
    }
}
