//! All layers of an image: fetched side by side and unpacked side by side, each while it arrives, committed bottom first.
//!
//! ```text
//! fetch      ██████ ████████     as many at once as the configuration says
//! unpack      ██████ ██████████  as many at once as there are processors, and one more
//! commit            │        │   after the layer below
//! ```
//!
//! A layer waits for the one below only to be committed, or if it refers to something that it does not hold. A snapshotter
//! that copies the parent cannot do that: with it, each layer waits for the one below before it is begun.

use std::{
    cell::Cell,
    io,
    sync::{Arc, atomic::AtomicBool},
    thread,
};

use futures_util::{StreamExt, stream::FuturesUnordered};
use snapshotter::{Snapshotter, apply, layer_dirs};
use store::Namespace;
use tokio::{
    runtime::Handle,
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tokio_util::sync::CancellationToken;

use crate::{
    arrival::{Arrivals, Follower, Followers, arrivals},
    digest::Digest,
    manifest::chain_ids,
    pull::{Pull, PullError},
    registry::{Descriptor, Session},
    unpack::{self, Layer, UnpackError},
};

/// One layer on its way to be a snapshot.
struct Step {
    followers: Followers,
    digest: Digest,
    diff_id: Digest,
    chain_id: String,
    below: Option<Below>,
    /// True once it is committed; dropped before, it has failed.
    done: watch::Sender<bool>,
}

/// The layer that another one stands on.
#[derive(Clone)]
struct Below {
    chain_id: String,
    done: watch::Receiver<bool>,
}

impl Below {
    /// Waits until it is committed; false if it will not be.
    async fn is_done(&mut self) -> bool {
        self.done.wait_for(|done| *done).await.is_ok()
    }
}

impl Pull<'_> {
    /// Fetches and unpacks all layers, and answers with their chain ids. What they unpack to may become known meanwhile.
    pub(crate) async fn layers(
        &self,
        session: &Session,
        layers: &[Descriptor],
        diff_ids: impl Future<Output = Result<Vec<Digest>, PullError>>,
    ) -> Result<Vec<String>, PullError> {
        let (arrivals, followers): (Vec<_>, Vec<_>) = layers.iter().map(|_| arrivals()).unzip();
        let stop = CancellationToken::new();
        let fetching = async {
            tokio::select! {
                fetched = self.fetch_layers(session, layers, arrivals) => fetched,
                () = stop.cancelled() => Ok(()),
            }
        };
        let unpacking = async {
            // Dropped on an error, it stops what is fetched in vain.
            let stop = stop.clone().drop_guard();
            let chain = self.unpack_layers(layers, followers, diff_ids.await?).await?;
            // All are unpacked; those that were already may still be on their way.
            if !self.images.shared.config.discard_unpacked_layers {
                stop.disarm();
            }
            Ok(chain)
        };
        // What is not fetched is not unpacked either, so the first error is the one that tells.
        let ((), chain) = tokio::try_join!(fetching, unpacking)?;
        Ok(chain)
    }

    /// Ends with the first failure, which drops the other fetches, and so ends whoever follows them.
    async fn fetch_layers(
        &self,
        session: &Session,
        layers: &[Descriptor],
        arrivals: Vec<Arrivals>,
    ) -> Result<(), PullError> {
        let permits = match self.images.shared.config.max_concurrent_downloads {
            0 => layers.len().max(1),
            count => count,
        };
        let permits = &Semaphore::new(permits);
        let mut fetches: FuturesUnordered<_> = layers
            .iter()
            .zip(arrivals)
            .map(async |(layer, arrivals)| {
                // Never closed, so a permit is always to be had.
                let _permit = permits.acquire().await;
                self.fetch(session, layer, arrivals).await
            })
            .collect();
        while let Some(fetched) = fetches.next().await {
            fetched?;
        }
        Ok(())
    }

    async fn unpack_layers(
        &self,
        layers: &[Descriptor],
        followers: Vec<Followers>,
        diff_ids: Vec<Digest>,
    ) -> Result<Vec<String>, PullError> {
        let chain = chain_ids(&diff_ids);
        for chain_id in &chain {
            self.claim(chain_id).await;
        }
        let width = thread::available_parallelism().map_or(2, |cores| cores.get() + 1);
        let permits = Arc::new(Semaphore::new(width));
        let budget = Arc::new(self.images.shared.config.budget());
        let mut steps = FuturesUnordered::new();
        let mut below = None;
        for (((layer, followers), diff_id), chain_id) in layers.iter().zip(followers).zip(diff_ids).zip(&chain) {
            let (done, is_done) = watch::channel(false);
            let on_top = Below { chain_id: chain_id.clone(), done: is_done };
            let below = below.replace(on_top);
            let (digest, chain_id) = (layer.digest.clone(), chain_id.clone());
            steps.push(self.unpack(Step { followers, digest, diff_id, chain_id, below, done }, &permits, &budget));
        }
        while let Some(unpacked) = steps.next().await {
            unpacked?;
        }
        drop(steps);
        Ok(chain)
    }

    /// Makes the snapshot of one layer. Whoever holds the turn of a layer waits only for layers further down, so that
    /// pulls that have layers in common cannot wait for each other.
    async fn unpack(&self, step: Step, permits: &Arc<Semaphore>, budget: &Arc<apply::Budget>) -> Result<(), PullError> {
        let Step { mut followers, digest, diff_id, chain_id, mut below, done } = step;
        let shared = &self.images.shared;
        let named = shared.snapshotter(self.key.snapshotter.as_deref()).map_err(|error| self.failed(error))?;
        let snapshotter = Arc::clone(named);
        let mut turn = shared.claims.turn(&chain_id).await;
        let is_ahead = below.is_some() && snapshotter.can_rebase();
        if let (Some(below), false) = (&mut below, is_ahead)
            && !below.is_done().await
        {
            return std::future::pending().await;
        }
        let mut follower = followers.current();
        loop {
            // Never closed, so a permit is always to be had.
            let Ok(permit) = Arc::clone(permits).acquire_owned().await else { return Ok(()) };
            let work = Extraction {
                snapshotter: Arc::clone(&snapshotter),
                digest: digest.clone(),
                diff_id: diff_id.clone(),
                chain_id: chain_id.clone(),
                below: below.clone(),
                is_ahead,
                permit,
                limits: self.images.shared.config.limits,
                budget: Arc::clone(budget),
            };
            let (namespace, cancelled) = (self.key.namespace.clone(), Arc::clone(&self.cancelled));
            let extracting = self.work.spawn_blocking(move || {
                // The turn ends with the work, also when the flight is cancelled before.
                let extracted = work.run(&namespace, &cancelled, follower);
                Ok((extracted, turn))
            });
            let extracted;
            (extracted, turn) = self.joined(extracting.await)?;
            match extracted {
                Ok(Extracted::Already) => {
                    done.send_replace(true);
                    return Ok(());
                }
                Ok(Extracted::Now) => break,
                Err(UnpackError::Failed(error)) => return Err(self.failed(error)),
                // It comes once more from somewhere else, or the fetch tells why it does not.
                Err(UnpackError::DidNotArrive) => match followers.next().await {
                    Some(next) => follower = next,
                    None => return std::future::pending().await,
                },
            }
        }
        if let Some(below) = &mut below
            && !below.is_done().await
        {
            // The one below tells why.
            return std::future::pending().await;
        }
        let (namespace, parent) = (self.key.namespace.clone(), below.map(|below| below.chain_id));
        let committing = self.work.spawn_blocking(move || {
            let _turn = turn;
            let parent = parent.as_deref().filter(|_| is_ahead);
            unpack::commit(snapshotter.as_ref(), &namespace, &chain_id, parent)
        });
        self.joined(committing.await)?;
        done.send_replace(true);
        Ok(())
    }
}

/// What a blocking thread needs to write one layer.
struct Extraction {
    snapshotter: Arc<dyn Snapshotter>,
    digest: Digest,
    diff_id: Digest,
    chain_id: String,
    below: Option<Below>,
    is_ahead: bool,
    permit: OwnedSemaphorePermit,
    limits: apply::Limits,
    budget: Arc<apply::Budget>,
}

enum Extracted {
    Already,
    Now,
}

impl Extraction {
    fn run(self, namespace: &Namespace, cancelled: &AtomicBool, blob: Follower) -> Result<Extracted, UnpackError> {
        let Extraction { snapshotter, digest, diff_id, chain_id, below, is_ahead, permit, limits, budget } = self;
        let snapshotter = snapshotter.as_ref();
        let parent = below.as_ref().map(|below| below.chain_id.clone());
        if unpack::is_unpacked(snapshotter, namespace, &chain_id)? {
            unpack::count(snapshotter, namespace, &chain_id, parent.as_deref(), &budget)?;
            return Ok(Extracted::Already);
        }
        let permit = Cell::new(Some(permit));
        let ahead: Option<apply::Below<'_>> = match &below {
            Some(below) if is_ahead => {
                let mut below = below.clone();
                let key = unpack::key(&chain_id);
                Some(Box::new(move || {
                    let failed =
                        |source: io::Error| apply::Error::Failed { what: "look at the layers below".into(), source };
                    // Others may need the place so that the layer below gets done.
                    drop(permit.take());
                    if !Handle::current().block_on(below.is_done()) {
                        return Err(failed(io::Error::other("one of them was not unpacked")));
                    }
                    let mounts = snapshotter.rebase(namespace, &key, &below.chain_id);
                    let mounts = mounts.map_err(|error| failed(io::Error::other(error)))?;
                    let dirs = layer_dirs(&mounts);
                    let dirs = dirs.ok_or_else(|| failed(io::Error::other(format!("no directories in {mounts:?}"))))?;
                    Ok(dirs.parents)
                }))
            }
            _ => None,
        };
        let layer = Layer {
            namespace,
            blob,
            digest: &digest,
            diff_id: &diff_id,
            chain_id: &chain_id,
            parent: parent.as_deref(),
            cancelled,
            limits: &limits,
            budget: &budget,
        };
        unpack::extract(snapshotter, layer, ahead)?;
        Ok(Extracted::Now)
    }
}
