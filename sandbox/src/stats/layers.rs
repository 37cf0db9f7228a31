//! The size of writable layers, which only a walk over all their files tells.
//!
//! One task measures each layer every ten seconds, or less often when it is so large that this would be a load, and the
//! layer of a container that has ended once more. Requests read what was measured last. Only for a container of the last
//! seconds, whose layer is small and was never measured, does the request measure itself.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime},
};

use ::store::Namespace;
use snapshotter::{Snapshotter, Usage};
use tokio::time::MissedTickBehavior;

use super::Reader;
use crate::model::{ContainerState, ContainerView, Id};

/// How often it is looked which layers are due.
const TICK: Duration = Duration::from_secs(1);
/// How old the size of a layer may be.
const PERIOD: Duration = Duration::from_secs(10);
/// A walk takes at most this part of the time.
const REST: u32 = 20;

/// What a writable layer takes up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layer {
    /// Where its snapshotter keeps its trees.
    pub root: PathBuf,
    pub bytes: u64,
    pub inodes: u64,
    /// When it was measured.
    pub at: SystemTime,
}

/// The file system that holds writable layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filesystem {
    /// What is mounted, as the kernel names it (`/dev/vda1`).
    pub device: String,
    pub bytes: u64,
    pub inodes: u64,
    pub free_inodes: u64,
}

/// Measures layers as they become due, for ever.
pub(super) async fn measure(reader: Arc<Reader>) {
    let mut ticks = tokio::time::interval(TICK);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for view in reader.layers.due(&reader.pods.containers(), Instant::now()) {
            let on = Arc::clone(&reader);
            // One walk at a time, so that the daemon's end waits for one at most.
            if let Err(error) = tokio::task::spawn_blocking(move || on.layers.measure(&view)).await {
                tracing::error!(%error, "a measurement of a writable layer was lost");
            }
        }
    }
}

/// What was measured, by container.
pub(super) struct Layers {
    snapshotters: BTreeMap<String, Arc<dyn Snapshotter>>,
    namespace: Namespace,
    /// By snapshotter.
    roots: BTreeMap<String, PathBuf>,
    measured: Mutex<HashMap<Id, Measured>>,
}

#[derive(Clone)]
struct Measured {
    layer: Option<Layer>,
    /// `None`: the container has ended, nothing changes any more.
    next: Option<Instant>,
}

impl Layers {
    pub(super) fn new(
        snapshotters: BTreeMap<String, Arc<dyn Snapshotter>>,
        namespace: Namespace,
        roots: BTreeMap<String, PathBuf>,
    ) -> Layers {
        Layers { snapshotters, namespace, roots, measured: Mutex::default() }
    }

    /// What was measured last. Blocks for a container that has just been made.
    pub(super) fn of(&self, view: &ContainerView) -> Option<Layer> {
        if let Some(measured) = self.measured().get(&view.id) {
            return measured.layer.clone();
        }
        let age = view.created_at.elapsed().unwrap_or_default();
        if age < PERIOD { self.measure(view) } else { None }
    }

    /// The file system below a snapshotter's root.
    pub(super) fn filesystem(&self, root: &Path) -> Option<Filesystem> {
        let statistics = rustix::fs::statvfs(root).ok()?;
        // The table is read each time: what is mounted there can change while this runs.
        let table = fs::read_to_string("/proc/self/mountinfo").ok()?;
        Some(Filesystem {
            device: mounted_at(&table, root)?,
            bytes: statistics.f_blocks.saturating_mul(statistics.f_frsize),
            inodes: statistics.f_files,
            free_inodes: statistics.f_ffree,
        })
    }

    /// Those whose layer is to be measured now. Forgets containers that are gone.
    fn due(&self, views: &[Arc<ContainerView>], now: Instant) -> Vec<Arc<ContainerView>> {
        let mut measured = self.measured();
        let there: HashSet<&Id> = views.iter().map(|view| &view.id).collect();
        measured.retain(|id, _| there.contains(id));
        let is_due = |view: &&Arc<ContainerView>| match measured.get(&view.id) {
            None => true,
            Some(Measured { next: Some(next), .. }) => *next <= now,
            Some(Measured { next: None, .. }) => false,
        };
        views.iter().filter(is_due).cloned().collect()
    }

    fn measure(&self, view: &ContainerView) -> Option<Layer> {
        let start = Instant::now();
        let layer = self.usage(&view.id).map(|(root, usage)| Layer {
            root,
            bytes: usage.bytes,
            inodes: usage.inodes,
            at: SystemTime::now(),
        });
        let ended = matches!(view.state, ContainerState::Exited { .. });
        let next = if ended { None } else { next(start, start.elapsed()) };
        self.measured().insert(view.id.clone(), Measured { layer: layer.clone(), next });
        layer
    }

    /// In whichever snapshotter it is: the configuration may have changed since the container was made.
    fn usage(&self, id: &Id) -> Option<(PathBuf, Usage)> {
        for (name, snapshotter) in &self.snapshotters {
            match snapshotter.usage(&self.namespace, id.as_str()) {
                Ok(usage) => return Some((self.roots.get(name)?.clone(), usage)),
                Err(snapshotter::Error::NotFound { .. }) => {}
                Err(error) => tracing::warn!(container = %id, %error, "cannot measure a writable layer"),
            }
        }
        None
    }

    /// Guards the map for a look-up or an insert, never during a walk or across an await.
    fn measured(&self) -> MutexGuard<'_, HashMap<Id, Measured>> {
        // An insert either happened or did not.
        self.measured.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// When to measure again what took so long.
fn next(start: Instant, took: Duration) -> Option<Instant> {
    start.checked_add(PERIOD.max(took.saturating_mul(REST)))
}

/// The source of the mount that holds `path`: of the deepest one, and of those on the same place the last.
fn mounted_at(table: &str, path: &Path) -> Option<String> {
    let mount = |line: &str| {
        let (place, kind) = line.split_once(" - ")?;
        let depth = Path::new(place.split(' ').nth(4)?);
        let source = kind.split(' ').nth(1)?.to_owned();
        path.starts_with(depth).then(|| (depth.components().count(), source))
    };
    table.lines().filter_map(mount).max_by_key(|(depth, _)| *depth).map(|(_, source)| source)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::{ContainerRecord, unknown_exit};

    fn view(state: ContainerState) -> Arc<ContainerView> {
        let record = ContainerRecord { state: Some(state), ..crate::store::tests::container() };
        Arc::new(record.view().unwrap())
    }

    fn layers() -> Layers {
        Layers::new(BTreeMap::new(), Namespace::k8s(), BTreeMap::new())
    }

    #[test]
    fn a_layer_is_due_at_once_and_then_every_ten_seconds() {
        let (layers, view, now) = (layers(), view(ContainerState::Created), Instant::now());
        let due = |at| layers.due(std::slice::from_ref(&view), at).len();
        assert_eq!(due(now), 1);
        layers.measure(&view);
        assert_eq!(due(now + Duration::from_secs(9)), 0);
        assert_eq!(due(now + Duration::from_secs(11)), 1);
    }

    #[test]
    fn the_layer_of_an_ended_container_is_measured_once() {
        let view = view(ContainerState::Exited { started_at: None, exit: unknown_exit() });
        let (layers, now) = (layers(), Instant::now());
        layers.measure(&view);
        assert_eq!(layers.due(&[view], now + Duration::from_secs(3600)).len(), 0);
        assert_eq!(layers.measured().len(), 1);
        assert_eq!(layers.due(&[], now).len(), 0);
        assert_eq!(layers.measured().len(), 0, "a removed container is forgotten");
    }

    #[test]
    fn a_walk_never_takes_more_than_its_part_of_the_time() {
        let start = Instant::now();
        assert_eq!(next(start, Duration::from_millis(3)), Some(start + Duration::from_secs(10)));
        assert_eq!(next(start, Duration::from_secs(2)), Some(start + Duration::from_secs(40)));
    }

    #[test]
    fn the_device_is_that_of_the_deepest_and_last_mount() {
        let table = "1 0 8:1 / / rw - ext4 /dev/root rw\n\
            2 1 8:2 / /var/lib rw,noatime shared:3 - xfs /dev/old rw\n\
            3 1 8:3 / /var/lib rw,noatime shared:4 - xfs /dev/data rw\n\
            4 1 8:4 / /var/lib/other rw - xfs /dev/other rw\n";
        let check = |path: &str| mounted_at(table, Path::new(path));
        assert_eq!(check("/var/lib/containerd"), Some("/dev/data".into()));
        assert_eq!(check("/srv"), Some("/dev/root".into()));
        assert_eq!(mounted_at("", Path::new("/")), None);
    }
}
