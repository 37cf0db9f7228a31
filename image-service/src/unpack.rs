//! A layer from its blob to a committed snapshot, in one pass: inflate ∥ hash ∥ apply.
//!
//! The snapshot is committed under the chain id only when the uncompressed bytes have the diff id that the configuration
//! promises. Whatever fails before leaves no snapshot. Blocks.

use std::{
    io::{self, BufReader, Read},
    sync::atomic::{AtomicBool, Ordering},
};

use flate2::read::MultiGzDecoder;
use snapshotter::{
    Kind, Labels, Snapshotter,
    apply::{Limits, Target, apply},
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
}

/// Whether the snapshot of this chain id is there already.
pub(crate) fn is_unpacked(snapshotter: &dyn Snapshotter, ns: &Namespace, chain_id: &str) -> Result<bool, Error> {
    match snapshotter.stat(ns, chain_id) {
        Ok(info) => Ok(info.kind == Kind::Committed),
        Err(snapshotter::Error::NotFound { .. }) => Ok(false),
        Err(source) => Err(Error::failed(format!("look for layer {chain_id}"), source)),
    }
}

/// Makes the snapshot `chain_id`.
pub(crate) fn unpack(snapshotter: &dyn Snapshotter, mut layer: Layer<'_>) -> Result<(), Error> {
    let (ns, chain_id) = (layer.namespace, layer.chain_id);
    let key = format!("{EXTRACT_PREFIX}{chain_id}");
    let labels = Labels::from([(LAYER_LABEL.to_owned(), chain_id.to_owned())]);
    // Left by a pull whose clean-up failed; a layer half applied is of no use.
    discard(snapshotter, ns, &key)?;
    let applied = fill(snapshotter, &mut layer, &key, &labels).and_then(|()| {
        snapshotter
            .commit(ns, chain_id, &key, &labels)
            .map_err(|source| Error::failed(format!("commit layer {chain_id}"), source))
    });
    if applied.is_err()
        && let Err(error) = discard(snapshotter, ns, &key)
    {
        tracing::warn!(%key, %error, "a half unpacked layer stays until the next start");
    }
    applied
}

fn fill(snapshotter: &dyn Snapshotter, layer: &mut Layer<'_>, key: &str, labels: &Labels) -> Result<(), Error> {
    let mounts = snapshotter
        .prepare(layer.namespace, key, layer.parent, labels)
        .map_err(|source| Error::failed(format!("prepare a snapshot for layer {}", layer.digest), source))?;
    let dirs = layer_dirs(&mounts).ok_or_else(|| {
        Error::Corrupt(format!("the snapshotter gave no directory to unpack layer {} into: {mounts:?}", layer.digest))
    })?;
    let read = apply_all(layer, &Target::from(dirs));
    // A blob that did not arrive, or is not what was asked for, says more than the archive that it broke.
    if !layer.blob.has_arrived() {
        return Err(Error::Corrupt(format!("layer {} did not arrive", layer.digest)));
    }
    let found = read?;
    if found != *layer.diff_id {
        let what = format!("layer {} unpacks to {found}, the image says {}", layer.digest, layer.diff_id);
        return Err(Error::Corrupt(what));
    }
    Ok(())
}

/// Applies the archive in the blob and answers with the digest of all of it, what follows the archive's end included.
fn apply_all(layer: &mut Layer<'_>, target: &Target) -> Result<Digest, Error> {
    let cancelled = layer.cancelled;
    let inner = inflate(BufReader::with_capacity(128 * 1024, &mut layer.blob))
        .map_err(|source| Error::failed(format!("read layer {}", layer.digest), source))?;
    let digester = Digester::new(layer.diff_id.algorithm());
    let mut tar = Hashing { inner: Cancellable { inner, cancelled }, digester };
    apply(&mut tar, target, &Limits::default())
        .map_err(|source| Error::failed(format!("unpack layer {}", layer.digest), source))?;
    Ok(tar.digester.finish())
}

/// Removes an active snapshot; one that is not there is removed.
pub(crate) fn discard(snapshotter: &dyn Snapshotter, ns: &Namespace, key: &str) -> Result<(), Error> {
    match snapshotter.remove(ns, key) {
        Ok(()) | Err(snapshotter::Error::NotFound { .. }) => Ok(()),
        Err(source) => Err(Error::failed(format!("remove snapshot {key:?}"), source)),
    }
}

/// The plain archive, whatever the media type claims: the first bytes decide, as for containerd.
fn inflate<'a>(mut blob: BufReader<impl Read + 'a>) -> io::Result<Box<dyn Read + 'a>> {
    use std::io::BufRead;
    const GZIP: &[u8] = &[0x1f, 0x8b];
    const ZSTD: &[u8] = &[0x28, 0xb5, 0x2f, 0xfd];
    // A zstd:chunked or seekable file may start with a skippable frame, 0x184D2A50 to 0x184D2A5F in little endian.
    let start = blob.fill_buf()?;
    let skippable = start.len() >= 4 && start[0] & 0xf0 == 0x50 && start[1..4] == [0x2a, 0x4d, 0x18];
    if start.starts_with(GZIP) {
        Ok(Box::new(MultiGzDecoder::new(blob)))
    } else if start.starts_with(ZSTD) || skippable {
        Ok(Box::new(zstd::stream::read::Decoder::with_buffer(blob)?))
    } else {
        Ok(Box::new(blob))
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

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    fn plain(bytes: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        inflate(BufReader::new(bytes)).unwrap().read_to_end(&mut out).unwrap();
        out
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn the_first_bytes_tell_the_compression() {
        assert_eq!(plain(b"tar"), b"tar");
        assert_eq!(plain(b""), b"");
        assert_eq!(plain(&gzip(b"tar")), b"tar");
        assert_eq!(plain(&[gzip(b"two "), gzip(b"members")].concat()), b"two members");
        assert_eq!(plain(&zstd::encode_all(b"tar".as_slice(), 1).unwrap()), b"tar");
        let skippable = [
            &[0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3],
            zstd::encode_all(b"tar".as_slice(), 1).unwrap().as_slice(),
        ]
        .concat();
        assert_eq!(plain(&skippable), b"tar");
    }
}
