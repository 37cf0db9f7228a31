//! One blob from a registry into the content store, followed meanwhile by whoever unpacks it.
//!
//! ```text
//! registry ─► copy ─► a few pieces ─► write: hash and file ─► Arriving        wrong content: the same from another host
//! ```
//!
//! What a pull that ended left of a blob is gone on with. A blob is fetched once, however many ask for it.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot},
    time::Instant,
};

use crate::{
    arrival::{Arrivals, Arriving},
    images::{Error, Shared},
    pull::{Pull, PullError},
    registry::{BlobStream, Descriptor, Parts, Session, Watch},
    store as rows,
};

/// Bytes of a blob between the network and the disk, but for the last piece.
const ON_THE_WAY: usize = 1 << 20;
/// Pieces are some kilobytes at least, so the bytes are the limit that counts.
const PIECES: usize = 64;
/// More hosts than anybody configures for one registry.
const MAX_TIMES: usize = 16;
/// Below this, one connection per layer is used whatever the configuration says, as for containerd.
const LEAST_PART: u64 = 512;

/// A piece of a blob, and the room that it takes up on its way.
type Piece = (Bytes, OwnedSemaphorePermit);

impl Pull<'_> {
    /// Gets a blob into the content store, unless it is there, and lets others follow it meanwhile.
    pub(crate) async fn fetch(
        &self,
        session: &Session,
        descriptor: &Descriptor,
        mut arrivals: Arrivals,
    ) -> Result<(), PullError> {
        let shared = &self.images.shared;
        let digest = &descriptor.digest;
        self.claim(&digest.to_string()).await;
        let _turn = shared.claims.turn(&digest.to_string()).await;
        if self.has(digest, descriptor.size).await? {
            let (shared, descriptor, arriving) = (Arc::clone(shared), descriptor.clone(), arrivals.next());
            let opened = self.work.spawn_blocking(move || {
                arriving.begin(shared.content.open_blob(&descriptor.digest)?);
                arriving.written(descriptor.size);
                arriving.whole();
                Ok(())
            });
            return self.joined(opened.await);
        }
        for _ in 1..MAX_TIMES {
            let watch = Watch::default();
            let (went_on, fetched) = self.fetch_once(session, descriptor, arrivals.next(), &watch).await;
            let wrong = match fetched {
                Err(PullError::Failed { source, .. }) if matches!(*source, Error::Corrupt(_)) => source,
                other => return other,
            };
            tracing::warn!(%digest, went_on, error = %wrong, "a blob was not what was asked for");
            // What had come earlier may be to blame, which is gone now. If it was not, somebody lied.
            if !went_on && (watch.received() == 0 || !session.distrust(&watch)) {
                let from = session.shown_sources(&watch);
                let what = if from.is_empty() { wrong.to_string() } else { format!("{wrong}; it came from {from}") };
                return Err(self.failed(Error::Corrupt(what)));
            }
        }
        self.fetch_once(session, descriptor, arrivals.next(), &Watch::default()).await.1
    }

    /// Tells as well whether it went on with what was there.
    async fn fetch_once(
        &self,
        session: &Session,
        descriptor: &Descriptor,
        arriving: Arriving,
        watch: &Watch,
    ) -> (bool, Result<(), PullError>) {
        let (pieces, incoming) = mpsc::channel(PIECES);
        let (tell, told) = oneshot::channel();
        let writing = {
            let (shared, descriptor, namespace) =
                (Arc::clone(&self.images.shared), descriptor.clone(), self.key.namespace.clone());
            self.work.spawn_blocking(move || {
                write(&shared, &descriptor, arriving, tell, incoming)?;
                let boot = shared.boot.clone();
                shared.store.write_blocking(move |conn| {
                    rows::put_blob(conn, &namespace, &descriptor.digest, descriptor.size, &boot)
                })
            })
        };
        // The writer that does not tell has failed, and says why.
        let offset = told.await.unwrap_or(descriptor.size);
        let copied = self.copy(session, descriptor, offset, &pieces, watch).await;
        drop(pieces);
        // A network error says more than the short blob that it leaves behind.
        let written = self.joined(writing.await);
        (offset > 0, copied.and(written))
    }

    async fn copy(
        &self,
        session: &Session,
        descriptor: &Descriptor,
        offset: u64,
        pieces: &mpsc::Sender<Piece>,
        watch: &Watch,
    ) -> Result<(), PullError> {
        let mut progress = Progress { watch, after: self.images.shared.config.progress_timeout, last: None };
        let room = Arc::new(Semaphore::new(ON_THE_WAY));
        let mut at = offset;
        let stalled = |at| PullError::Stalled {
            reference: self.reference.to_string(),
            digest: descriptor.digest.clone(),
            at,
            size: descriptor.size,
            after: self.images.shared.config.progress_timeout,
        };
        let mut opening = Box::pin(session.fetch(descriptor, offset, self.parts(), watch));
        let opened = progress.wait(&mut opening).await.ok_or_else(|| stalled(at))?;
        let mut body: BlobStream = opened.map_err(|error| self.registry(error))?;
        while let Some(piece) = progress.wait(&mut body.next()).await.ok_or_else(|| stalled(at))? {
            let piece = piece.map_err(|error| self.registry(error))?;
            at += piece.len() as u64;
            // At most what there is room for in all, which fits.
            let size = u32::try_from(piece.len().min(ON_THE_WAY)).unwrap_or(u32::MAX);
            let Ok(permit) = Arc::clone(&room).acquire_many_owned(size).await else { return Ok(()) };
            if pieces.send((piece, permit)).await.is_err() {
                // The writer has failed, and says why.
                return Ok(());
            }
            progress.last = None;
        }
        Ok(())
    }

    fn parts(&self) -> Option<Parts> {
        let config = &self.images.shared.config;
        let at_once = if config.max_concurrent_downloads == 0 { 3 } else { config.max_concurrent_downloads };
        (config.layer_fetch_buffer >= LEAST_PART).then_some(Parts { size: config.layer_fetch_buffer, at_once })
    }
}

/// Writes what comes in behind what is there, and makes it exist if it is whole and right.
fn write(
    shared: &Shared,
    descriptor: &Descriptor,
    arriving: Arriving,
    tell: oneshot::Sender<u64>,
    mut incoming: mpsc::Receiver<Piece>,
) -> Result<(), Error> {
    let mut writer = shared.content.resume(&descriptor.digest, descriptor.size)?;
    arriving.begin(writer.file()?);
    arriving.written(writer.written());
    // Nobody listens any more if the pull has ended; then nothing comes either.
    let _ = tell.send(writer.written());
    while let Some((piece, _room)) = incoming.blocking_recv() {
        writer.write(&piece)?;
        arriving.written(writer.written());
    }
    writer.commit()?;
    arriving.whole();
    Ok(())
}

/// Whether bytes come at all, over whichever connection.
struct Progress<'a> {
    watch: &'a Watch,
    /// Zero waits for ever.
    after: Duration,
    /// How many bytes there were when it was looked last, and when that was.
    last: Option<(u64, Instant)>,
}

impl Progress<'_> {
    /// The future's output, or `None` if for too long nothing has come.
    async fn wait<T>(&mut self, future: &mut (impl Future<Output = T> + Unpin)) -> Option<T> {
        if self.after.is_zero() {
            return Some(future.await);
        }
        loop {
            let now = self.watch.received();
            let (_, since) = *self.last.get_or_insert_with(|| (now, Instant::now()));
            match tokio::time::timeout_at(since + self.after, &mut *future).await {
                Ok(output) => return Some(output),
                Err(_) if self.last.is_some_and(|(before, _)| before == self.watch.received()) => return None,
                Err(_) => self.last = None,
            }
        }
    }
}
