//! A layer from its blob to a committed snapshot, in one pass: inflate ∥ hash and apply.
//!
//! ```text
//! blob ─► inflate, on a thread of its own ─► a few pieces ─► hash, apply ─► snapshot     diff id right? ─► commit
//! ```
//!
//! The snapshot is committed under the chain id only when the uncompressed bytes have the diff id that the configuration
//! promises. Whatever fails before leaves no snapshot. Blocks.

use std::{
    io::{self, BufRead, BufReader, Read},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, SyncSender, sync_channel},
    },
    thread,
};

use flate2::read::MultiGzDecoder;
use snapshotter::{
    Kind, Labels, Snapshotter, Usage,
    apply::{Below, Budget, Limits, Target, Whiteouts, apply_within},
    layer_dirs,
};
use store::Namespace;

use crate::{
    arrival::Follower,
    digest::{Digest, Digester},
    images::Error,
};

/// Marks the snapshots that this crate made of layers, and may delete.
pub(crate) const LAYER_LABEL: &str = "containerd.io/snapshot.ref";
/// How the snapshots of layers being unpacked are called, before the chain id.
pub(crate) const EXTRACT_PREFIX: &str = "extract ";

/// Read from a blob at once.
const COMPRESSED: usize = 128 << 10;
/// A piece on its way from inflating to applying, and how many there are.
const PIECE: usize = 256 << 10;
const PIECES: usize = 4;
/// A blob up to this size is done by one thread before another one has started.
const SMALL: u64 = 128 << 10;

/// One layer and where it goes.
pub(crate) struct Layer<'a> {
    pub(crate) namespace: &'a Namespace,
    /// Perhaps still arriving.
    pub(crate) blob: Follower,
    pub(crate) digest: &'a Digest,
    pub(crate) diff_id: &'a Digest,
    pub(crate) chain_id: &'a str,
    pub(crate) parent: Option<&'a str>,
    /// Set when nobody wants the image any more.
    pub(crate) cancelled: &'a AtomicBool,
    pub(crate) limits: &'a Limits,
    /// Of all layers of the image.
    pub(crate) budget: &'a Budget,
}

/// Whether the snapshot of this chain id is there already.
pub(crate) fn is_unpacked(snapshotter: &dyn Snapshotter, ns: &Namespace, chain_id: &str) -> Result<bool, Error> {
    match snapshotter.stat(ns, chain_id) {
        Ok(info) => Ok(info.kind == Kind::Committed),
        Err(snapshotter::Error::NotFound { .. }) => Ok(false),
        Err(source) => Err(Error::failed(format!("look for layer {chain_id}"), source)),
    }
}

/// Counts what a layer holds that is there already.
pub(crate) fn count(
    snapshotter: &dyn Snapshotter,
    ns: &Namespace,
    chain_id: &str,
    parent: Option<&str>,
    budget: &Budget,
) -> Result<(), Error> {
    let usage = |key: &str| {
        snapshotter.usage(ns, key).map_err(|source| Error::failed(format!("measure layer {chain_id}"), source))
    };
    let (whole, below) = match parent.filter(|_| !snapshotter.can_rebase()) {
        // A copy holds what its parent does, but for what it replaces.
        Some(parent) => (usage(chain_id)?, usage(parent)?),
        // The root is no file of the layer's.
        None => (usage(chain_id)?, Usage { bytes: 0, inodes: 1 }),
    };
    budget
        .take(whole.bytes.saturating_sub(below.bytes), whole.inodes.saturating_sub(below.inodes))
        .map_err(|source| Error::failed(format!("use layer {chain_id}"), source))
}

/// Why a layer was not extracted.
#[derive(Debug)]
pub(crate) enum UnpackError {
    /// Whoever fetches the blob knows why.
    DidNotArrive,
    Failed(Error),
}

impl From<Error> for UnpackError {
    fn from(error: Error) -> UnpackError {
        UnpackError::Failed(error)
    }
}

/// What the snapshot of a layer is called until it is committed.
pub(crate) fn key(chain_id: &str) -> String {
    format!("{EXTRACT_PREFIX}{chain_id}")
}

/// Makes the snapshot `chain_id`.
pub(crate) fn unpack(snapshotter: &dyn Snapshotter, layer: Layer<'_>) -> Result<(), Error> {
    let (ns, digest, chain_id) = (layer.namespace, layer.digest, layer.chain_id);
    extract(snapshotter, layer, None).map_err(|error| match error {
        UnpackError::DidNotArrive => Error::Corrupt(format!("layer {digest} did not arrive")),
        UnpackError::Failed(error) => error,
    })?;
    commit(snapshotter, ns, chain_id, None)
}

/// Writes what will be the snapshot. With `ahead`, the parent is not there yet, and is asked for if need be.
pub(crate) fn extract(
    snapshotter: &dyn Snapshotter,
    mut layer: Layer<'_>,
    ahead: Option<Below<'_>>,
) -> Result<(), UnpackError> {
    let (ns, key) = (layer.namespace, key(layer.chain_id));
    let filled = fill(snapshotter, &mut layer, &key, ahead);
    if filled.is_err() {
        give_up(snapshotter, ns, &key);
    }
    filled
}

/// Turns what was extracted into the snapshot `chain_id`, on top of `onto` if it was made ahead of that.
pub(crate) fn commit(
    snapshotter: &dyn Snapshotter,
    ns: &Namespace,
    chain_id: &str,
    onto: Option<&str>,
) -> Result<(), Error> {
    let key = key(chain_id);
    let rebased = onto.map_or(Ok(()), |parent| snapshotter.rebase(ns, &key, parent).map(drop));
    let committed = rebased.and_then(|()| snapshotter.commit(ns, chain_id, &key, &labels(chain_id)));
    if committed.is_err() {
        give_up(snapshotter, ns, &key);
    }
    committed.map_err(|source| Error::failed(format!("commit layer {chain_id}"), source))
}

fn labels(chain_id: &str) -> Labels {
    Labels::from([(LAYER_LABEL.to_owned(), chain_id.to_owned())])
}

fn give_up(snapshotter: &dyn Snapshotter, ns: &Namespace, key: &str) {
    if let Err(error) = discard(snapshotter, ns, key) {
        tracing::warn!(%key, %error, "a half unpacked layer stays for a while");
    }
}

fn fill(
    snapshotter: &dyn Snapshotter,
    layer: &mut Layer<'_>,
    key: &str,
    ahead: Option<Below<'_>>,
) -> Result<(), UnpackError> {
    let parent = layer.parent.filter(|_| ahead.is_none());
    let prepare = || snapshotter.prepare(layer.namespace, key, parent, &labels(layer.chain_id));
    let prepared = match prepare() {
        // Left by a pull that was cut off; a layer half applied is of no use.
        Err(snapshotter::Error::AlreadyExists { .. }) => {
            discard(snapshotter, layer.namespace, key)?;
            prepare()
        }
        other => other,
    };
    let mounts =
        prepared.map_err(|source| Error::failed(format!("prepare a snapshot for layer {}", layer.digest), source))?;
    let dirs = layer_dirs(&mounts).ok_or_else(|| {
        Error::Corrupt(format!("the snapshotter gave no directory to unpack layer {} into: {mounts:?}", layer.digest))
    })?;
    let mut target = Target::from(dirs);
    if ahead.is_some() {
        target.whiteouts = Whiteouts::Overlay;
    }
    let read = apply_all(layer, &target, ahead);
    // A blob that did not arrive, or is not what was asked for, says more than the archive that it broke.
    if !layer.blob.has_arrived() {
        return Err(UnpackError::DidNotArrive);
    }
    let found = read?;
    if found != *layer.diff_id {
        let what = format!("layer {} unpacks to {found}, the image says {}", layer.digest, layer.diff_id);
        return Err(Error::Corrupt(what).into());
    }
    Ok(())
}

/// Applies the archive in the blob and answers with the digest of all of it, what follows the archive's end included.
fn apply_all(layer: &mut Layer<'_>, target: &Target, ahead: Option<Below<'_>>) -> Result<Digest, Error> {
    let (cancelled, digest) = (layer.cancelled, layer.digest);
    let unread = |source| Error::failed(format!("read layer {digest}"), source);
    let digester = Digester::new(layer.diff_id.algorithm());
    let finish = |tar: &mut dyn Read| {
        let applied = apply_within(tar, target, ahead, layer.limits, layer.budget);
        applied.map(drop).map_err(|source| Error::failed(format!("unpack layer {digest}"), source))
    };
    let mut blob = BufReader::with_capacity(COMPRESSED, &mut layer.blob);
    blob.fill_buf().map_err(unread)?;
    if blob.get_ref().is_whole_within(SMALL) {
        let mut tar = Hashing { inner: Cancellable { inner: inflate(blob).map_err(unread)?, cancelled }, digester };
        finish(&mut tar)?;
        return Ok(tar.digester.finish());
    }
    thread::scope(|scope| {
        let (send, incoming) = sync_channel(PIECES);
        // Empty ones come back this way; there are never more than were made.
        let (back, empty) = sync_channel(PIECES + 2);
        let inflating = thread::Builder::new().name("inflate".into());
        inflating
            .spawn_scoped(scope, move || inflate_all(Cancellable { inner: blob, cancelled }, &send, &empty))
            .map_err(unread)?;
        let pieces = Pieces { incoming, back, piece: Vec::new(), at: 0 };
        let mut tar = Hashing { inner: pieces, digester };
        finish(&mut tar)?;
        Ok(tar.digester.finish())
    })
}

/// Sends the plain archive in pieces, and the error that ends it. Ends as well when nobody takes them.
fn inflate_all(blob: impl BufRead, send: &SyncSender<io::Result<Vec<u8>>>, empty: &Receiver<Vec<u8>>) {
    let mut plain = match inflate(blob) {
        Ok(plain) => plain,
        Err(error) => return drop(send.send(Err(error))),
    };
    loop {
        let mut piece = empty.try_recv().unwrap_or_default();
        piece.resize(PIECE, 0);
        let mut filled = 0;
        let end = loop {
            match plain.read(&mut piece[filled..]) {
                Ok(0) => break Some(Ok(())),
                Ok(count) => filled += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => break Some(Err(error)),
            }
            if filled == PIECE {
                break None;
            }
        };
        piece.truncate(filled);
        if send.send(Ok(piece)).is_err() {
            return;
        }
        match end {
            None => {}
            Some(Ok(())) => return,
            Some(Err(error)) => return drop(send.send(Err(error))),
        }
    }
}

/// The plain archive from the thread that inflates it.
struct Pieces {
    incoming: Receiver<io::Result<Vec<u8>>>,
    back: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    at: usize,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.at == self.piece.len() {
            // The thread ends, and with it the channel, behind the last piece.
            let Ok(next) = self.incoming.recv() else { return Ok(0) };
            let used = std::mem::replace(&mut self.piece, next?);
            self.at = 0;
            // The thread may have ended.
            let _ = self.back.try_send(used);
        }
        let count = buffer.len().min(self.piece.len() - self.at);
        buffer[..count].copy_from_slice(&self.piece[self.at..self.at + count]);
        self.at += count;
        Ok(count)
    }
}

/// Removes an active snapshot; one that is not there is removed.
pub(crate) fn discard(snapshotter: &dyn Snapshotter, ns: &Namespace, key: &str) -> Result<(), Error> {
    match snapshotter.remove(ns, key) {
        Ok(()) | Err(snapshotter::Error::NotFound { .. }) => Ok(()),
        Err(source) => Err(Error::failed(format!("remove snapshot {key:?}"), source)),
    }
}

/// The plain archive, whatever the media type claims: the first bytes decide, as for containerd.
pub(crate) fn inflate<'a>(mut blob: impl BufRead + 'a) -> io::Result<Box<dyn Read + 'a>> {
    match compression_of(blob.fill_buf()?) {
        Compression::Gzip => Ok(Box::new(MultiGzDecoder::new(blob))),
        Compression::Zstd => Ok(Box::new(zstd::stream::read::Decoder::with_buffer(blob)?)),
        Compression::None => Ok(Box::new(blob)),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Compression {
    None,
    Gzip,
    Zstd,
}

/// How the content that starts like this is compressed.
pub(crate) fn compression_of(start: &[u8]) -> Compression {
    const GZIP: &[u8] = &[0x1f, 0x8b];
    const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
    // A zstd:chunked or seekable file may start with a skippable frame, 0x184D2A50 to 0x184D2A5F in little endian.
    let skippable = start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18];
    match start {
        start if start.starts_with(GZIP) => Compression::Gzip,
        start if start.starts_with(ZSTD) || skippable => Compression::Zstd,
        _ => Compression::None,
    }
}

struct Hashing<R> {
    inner: R,
    digester: Digester,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.digester.update(&buffer[..count]);
        Ok(count)
    }
}

struct Cancellable<'a, R> {
    inner: R,
    cancelled: &'a AtomicBool,
}

impl<R: Read> Read for Cancellable<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("the pull was cancelled"));
        }
        self.inner.read(buffer)
    }
}

impl<R: BufRead> BufRead for Cancellable<'_, R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(io::Error::other("the pull was cancelled"));
        }
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        self.inner.consume(count);
    }
}

#[cfg(test)]
mod tests;
