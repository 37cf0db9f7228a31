//! From a container's FIFOs to its log and to who is attached.

use std::{io, sync::Arc};

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::to_output;
use crate::{
    client::Output,
    stdio::{Stream, hub::Chunk, hub::Hub, sink::CriSink},
    sys::WatchedFd,
    ttrpc::{Code, Status},
};

/// A pipe holds no more.
const CHUNK: usize = 64 << 10;

pub(super) struct Source {
    pub(super) fifo: WatchedFd,
    /// The shim had opened its end before ours was opened. If it has none now, it has closed it: the kernel tells the end
    /// only to readers that were there.
    pub(super) written: bool,
}

/// Copies one output to its end, or until it is stopped.
pub(super) async fn copy(source: Source, mut sink: CriSink, stop: CancellationToken) {
    let mut buffer = vec![0; CHUNK];
    let mut at_once = source.written;
    loop {
        let count = match std::mem::take(&mut at_once).then(|| source.fifo.try_read(&mut buffer)) {
            Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Some(read) => read,
            None => tokio::select! {
                // What has been written is read before the end is looked at.
                biased;
                read = source.fifo.read(&mut buffer) => read,
                () = stop.cancelled() => break,
            },
        };
        let count = match count {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        // Files block: a slow disk must not hold up a thread of the daemon's reactor.
        let taken = tokio::task::spawn_blocking(move || {
            sink.take(&buffer[..count]);
            (sink, buffer)
        });
        match taken.await {
            Ok(given_back) => (sink, buffer) = given_back,
            // A panic in there has lost the sink; nothing can be written any more.
            Err(_) => return,
        }
    }
    // Not awaited: it is the last thing, and dropping the sink does the same.
    drop(tokio::task::spawn_blocking(move || sink.finish()).await);
}

/// Owns the copies of one container. Attach streams end when the output and the process have ended.
pub(super) async fn run_all(
    copies: Vec<impl Future<Output = ()> + Send + 'static>,
    hub: Arc<Hub>,
    drained: watch::Sender<bool>,
    mut ended: watch::Receiver<bool>,
    stop: CancellationToken,
) {
    copies.into_iter().collect::<tokio::task::JoinSet<()>>().join_all().await;
    drained.send_replace(true);
    tokio::select! {
        // An error means that the container was forgotten.
        _ = ended.wait_for(|ended| *ended) => {}
        () = stop.cancelled() => {}
    }
    hub.close();
}

/// Live copies of a container's output.
pub(in crate::client) struct Copies {
    hub: Arc<Hub>,
    receiver: mpsc::Receiver<Chunk>,
    stdout: bool,
    stderr: bool,
}

impl Copies {
    pub(super) fn new(hub: Arc<Hub>, stdout: bool, stderr: bool) -> Self {
        Self { receiver: hub.subscribe(), hub, stdout, stderr }
    }

    pub(in crate::client) async fn next(&mut self) -> Result<Option<Output>, Status> {
        while let Some(chunk) = self.receiver.recv().await {
            let wanted = match chunk.stream {
                Stream::Stdout => self.stdout,
                Stream::Stderr => self.stderr,
            };
            if wanted {
                return Ok(Some(to_output(chunk)));
            }
        }
        match self.hub.is_closed() {
            true => Ok(None),
            false => {
                Err(Status::new(Code::ResourceExhausted, "the client reads more slowly than the container writes"))
            }
        }
    }
}

/// Bytes of one read, to be given away.
pub(super) fn piece(buffer: &[u8], count: usize) -> Bytes {
    Bytes::copy_from_slice(&buffer[..count])
}
