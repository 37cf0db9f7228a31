//! Garbage collection: what no image names, no lease holds and no pull relies on is deleted, blobs and layers alike.
//!
//! It marks from the rows of images and leases (`mark.rs`) and sweeps behind the gate of `claims.rs`, in steps that only
//! change rows and names: pulls pass between two of them, and what takes long, freeing the space, is done when the gate is
//! open again. Layers that containers or other snapshots stand on are refused by the snapshotter and stay until a later
//! collection. `collector.rs` collects when nobody asks for it.

use std::{
    collections::{BTreeSet, HashSet},
    fs::File,
    sync::{Arc, PoisonError},
};

use snapshotter::{Kind, Snapshotter};
use store::Namespace;
use tokio::task::JoinHandle;

use crate::{
    content::KEPT_FOR,
    digest::Digest,
    images::{Error, FsUsage, Images, Shared, Usages},
    leases,
    mark::with_parents,
    store::{self as rows, to_nanos},
    unpack::{self, EXTRACT_PREFIX, LAYER_LABEL},
};

/// How many layers and files go while the gate is shut.
const STEP: usize = 64;

/// What becomes of whole blobs that nothing refers to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unused {
    Delete,
    /// The disk is full, so the starts of blobs that nobody is fetching go as well.
    DeleteWithStarts,
    /// A pull that did not end brought them. The next pull of the same goes on with them, as with the starts of blobs.
    Keep,
}

impl Images {
    /// Frees what nothing refers to. What cannot be deleted is logged and tried again by the next collection.
    pub async fn collect(&self) -> Result<(), Error> {
        self.collect_and(Unused::Delete).await
    }

    /// As [`Images::collect`], when all that nothing refers to is of pulls that did not end.
    pub(crate) async fn collect_and(&self, unused: Unused) -> Result<(), Error> {
        let failed = |source| Error::failed("collect images", source);
        loop {
            let shared = Arc::clone(&self.shared);
            let (gate, spared) = shared.claims.close().await;
            let sweeping = self.shared.tasks.spawn_blocking(move || {
                let step = shared.sweep(&spared, unused)?;
                if step.is_last {
                    shared.expire_downloads(&spared, &step.ingests, unused)?;
                }
                drop(gate);
                // The space of files goes with their last descriptor.
                drop(step.files);
                for snapshotter in shared.snapshotters.values() {
                    snapshotter.empty_trash().map_err(|source| Error::failed("free the space of layers", source))?;
                }
                shared.measure()?;
                Ok::<_, Error>(step.is_last)
            });
            if sweeping.await.map_err(failed)?? {
                return Ok(());
            }
        }
    }

    /// After a pull: waits for its data to reach the disk, behind the pull and not in it, and marks it so.
    pub(crate) fn settle(&self) -> JoinHandle<()> {
        let shared = Arc::clone(&self.shared);
        self.shared.tasks.spawn_blocking(move || {
            if let Err(error) = shared.make_durable() {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "pulled images are not marked as on disk; a power failure would drop them");
            }
        })
    }
}

/// What one look behind the gate came to.
struct Step {
    is_last: bool,
    /// Digests of blobs whose starts a lease holds.
    ingests: BTreeSet<String>,
    /// Blobs without a name, whose space is still taken.
    files: Vec<File>,
}

impl Shared {
    fn sweep(&self, spared: &HashSet<String>, unused: Unused) -> Result<Step, Error> {
        let mut left = STEP;
        let now = to_nanos(self.config.clock.now());
        let expired = self.store.write_blocking(move |conn| leases::rows::expire(conn, now))?;
        if expired > 0 {
            tracing::info!(expired, "leases are over");
        }
        let marked = self.mark()?;
        for (ns, marks) in &marked.namespaces {
            self.sweep_rows(ns, marks.blobs.clone(), spared)?;
            for (name, snapshotter) in &self.snapshotters {
                sweep_layers(snapshotter.as_ref(), ns, marks.in_snapshotter(name), spared, &mut left)?;
            }
        }
        let files = self.sweep_files(spared, unused, &mut left)?;
        Ok(Step { is_last: left > 0, ingests: marked.ingests, files })
    }

    /// Drops starts of blobs that nobody goes on with.
    fn expire_downloads(
        &self,
        spared: &HashSet<String>,
        leased: &BTreeSet<String>,
        unused: Unused,
    ) -> Result<(), Error> {
        let now = self.config.clock.now();
        let spared = spared.iter().chain(leased).cloned().collect();
        // Before its time, each is old enough.
        let until = if unused == Unused::DeleteWithStarts { now + KEPT_FOR } else { now };
        match self.content.expire_ingests(&spared, until)? {
            true => self.collector.keep_downloads(now),
            false => self.collector.forget_downloads(),
        }
        Ok(())
    }

    fn sweep_rows(&self, ns: &Namespace, used: BTreeSet<Digest>, spared: &HashSet<String>) -> Result<(), Error> {
        let (ns, spared) = (ns.clone(), spared.clone());
        self.store.write_blocking(move |conn| {
            for digest in rows::blobs_of(conn, &ns)? {
                if !used.contains(&digest) && !spared.contains(&digest.to_string()) {
                    rows::delete_blob(conn, &ns, &digest)?;
                }
            }
            Ok(())
        })
    }

    /// Files without a row, which a crash between the two leaves as well.
    fn sweep_files(&self, spared: &HashSet<String>, unused: Unused, left: &mut usize) -> Result<Vec<File>, Error> {
        let mut files = Vec::new();
        let known: BTreeSet<Digest> = self.store.read_blocking(rows::all_blobs)?.into_iter().collect();
        for digest in self.content.list()? {
            if *left == 0 {
                break;
            }
            if !known.contains(&digest) && !spared.contains(&digest.to_string()) {
                *left -= 1;
                match unused {
                    Unused::Delete | Unused::DeleteWithStarts => {
                        files.extend(self.content.open_blob(&digest));
                        self.content.remove(&digest)?;
                    }
                    Unused::Keep => self.content.shelve(&digest)?,
                }
            }
        }
        Ok(files)
    }

    fn make_durable(&self) -> Result<(), Error> {
        let _settling = self.settling.lock().unwrap_or_else(PoisonError::into_inner);
        let until = rows::now();
        if self.store.read_blocking(rows::has_torn_blobs)? {
            self.content.sync()?;
        }
        self.store.write_blocking(move |conn| rows::mark_blobs_durable(conn, until))?;
        for snapshotter in self.snapshotters.values() {
            snapshotter.mark_durable().map_err(|source| Error::failed("mark layers as on disk", source))?;
        }
        Ok(())
    }

    /// Adds up what the snapshotters know of their committed snapshots.
    pub(crate) fn measure(&self) -> Result<(), Error> {
        let default = self.config.default_snapshotter.as_str();
        let mut filesystems = Vec::new();
        for (name, snapshotter) in &self.snapshotters {
            let total = snapshotter.total(&Namespace::k8s());
            let total = total.map_err(|source| Error::failed(format!("measure the snapshots of {name}"), source))?;
            let usage = FsUsage {
                mountpoint: self.config.filesystems.get(name).cloned().unwrap_or_default(),
                used_bytes: total.bytes,
                inodes_used: total.inodes,
            };
            match name == default {
                true => filesystems.insert(0, usage),
                false if total.inodes > 0 => filesystems.push(usage),
                false => {}
            }
        }
        let content_bytes = self.store.read_blocking(rows::content_bytes)?;
        *self.usage.write().unwrap_or_else(PoisonError::into_inner) = Usages { filesystems, content_bytes };
        Ok(())
    }
}

/// Removes layers of ours that no image has, from the top down: each pass frees the parents of the one before.
fn sweep_layers(
    snapshotter: &dyn Snapshotter,
    ns: &Namespace,
    used: BTreeSet<String>,
    spared: &HashSet<String>,
    left: &mut usize,
) -> Result<(), Error> {
    let snapshots = snapshotter.list(ns).map_err(|source| Error::failed("list snapshots", source))?;
    let used = with_parents(&snapshots, used);
    // What a pull that was cut off had extracted and not committed.
    for key in snapshots.iter().map(|info| &info.key) {
        if key.strip_prefix(EXTRACT_PREFIX).is_some_and(|chain_id| !spared.contains(chain_id)) && !used.contains(key) {
            unpack::discard(snapshotter, ns, key)?;
        }
    }
    let mut unused: Vec<String> = snapshots
        .into_iter()
        .filter(|info| info.kind == Kind::Committed && info.labels.contains_key(LAYER_LABEL))
        .map(|info| info.key)
        .filter(|key| !used.contains(key) && !spared.contains(key))
        .collect();
    loop {
        let before = unused.len();
        let mut kept = Vec::new();
        for key in unused {
            if *left == 0 {
                return Ok(());
            }
            match snapshotter.discard(ns, &key) {
                Ok(()) => *left -= 1,
                Err(snapshotter::Error::NotFound { .. }) => {}
                Err(snapshotter::Error::HasChildren { .. }) => kept.push(key),
                Err(error) => {
                    tracing::warn!(layer = %key, error = &error as &dyn std::error::Error, "a layer is removed later");
                }
            }
        }
        if kept.is_empty() || kept.len() == before {
            return Ok(());
        }
        unused = kept;
    }
}
