//! The plugins there are, in their order, and the rule by which a new one misses nothing and hears nothing twice.
//!
//! ```text
//! an operation:  admit ─► asks the plugins it was given ─► published ─► settled
//! a new plugin:  join ─► waits until who was admitted before it has settled ─► is told what is published ─► takes events
//! ```
//!
//! Joining and admitting take one lock, so each operation either has the plugin in its list, and waits for it, or is
//! published before the plugin is told what there is. Nobody waits for an operation that began after its own turn, so
//! there are no circles. The lock is held for look-ups and changes only.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::{OnceCell, watch};

use crate::model::Id;

use super::{
    plugin::Plugin,
    proto::{Container, PodSandbox},
};

#[derive(Default)]
pub(crate) struct Registry {
    inner: Mutex<Inner>,
    /// Changes with each operation that settles.
    settled: watch::Sender<()>,
}

#[derive(Default)]
struct Inner {
    plugins: Vec<Arc<Plugin>>,
    /// Operations that are admitted, by their turn.
    admitted: BTreeSet<u64>,
    next_turn: u64,
    /// Pods and containers that end or have ended.
    ending: BTreeMap<Id, Arc<Ending>>,
}

/// The end of a pod or a container, which is told once, whoever sees it first.
#[derive(Default)]
pub(crate) struct Ending {
    pub(crate) stopped: OnceCell<()>,
    pub(crate) removed: OnceCell<()>,
    /// What is told of a container, as the first one to see its end knows it.
    pub(crate) event: OnceLock<(PodSandbox, Container)>,
    removing: AtomicBool,
}

/// An operation's leave to ask plugins. It has settled when this is dropped.
pub(crate) struct Admission {
    registry: Arc<Registry>,
    turn: u64,
    /// In the order in which they are asked.
    pub(crate) plugins: Vec<Arc<Plugin>>,
    /// A plugin may have heard of what the operation makes.
    told: AtomicBool,
}

impl Registry {
    /// The plugins as they are now, for an operation that will publish what it does.
    pub(crate) fn admit(self: &Arc<Registry>) -> Admission {
        let mut inner = self.lock();
        let turn = inner.next_turn;
        inner.next_turn += 1;
        inner.admitted.insert(turn);
        Admission { registry: Arc::clone(self), turn, plugins: inner.plugins.clone(), told: AtomicBool::new(false) }
    }

    /// The plugins as they are now, for the end of a pod or container: no plugin that joins later is told of it.
    pub(crate) fn end(&self, id: &Id, removing: bool) -> (Arc<Ending>, Vec<Arc<Plugin>>) {
        let mut inner = self.lock();
        let ending = Arc::clone(inner.ending.entry(id.clone()).or_default());
        ending.removing.fetch_or(removing, Ordering::Relaxed);
        (ending, inner.plugins.clone())
    }

    /// Forgets a pod or container that is not published any more.
    pub(crate) fn forget(&self, id: &Id) {
        self.lock().ending.remove(id);
    }

    pub(crate) fn ends(&self, id: &Id) -> bool {
        self.lock().ending.contains_key(id)
    }

    /// Whether plugins have been told that it is removed, or are being told.
    pub(crate) fn is_removed(&self, id: &Id) -> bool {
        self.lock().ending.get(id).is_some_and(|ending| ending.removing.load(Ordering::Relaxed))
    }

    /// Adds a plugin, and returns when everything that is not published yet will ask it.
    pub(crate) async fn join(&self, plugin: &Arc<Plugin>) {
        let before = {
            let mut inner = self.lock();
            let at = inner.plugins.partition_point(|other| other.index <= plugin.index);
            inner.plugins.insert(at, Arc::clone(plugin));
            inner.admitted.clone()
        };
        let mut settled = self.settled.subscribe();
        loop {
            settled.borrow_and_update();
            if self.lock().admitted.is_disjoint(&before) {
                return;
            }
            // The sender is this registry's own.
            drop(settled.changed().await);
        }
    }

    pub(crate) fn leave(&self, plugin: &Arc<Plugin>) {
        self.lock().plugins.retain(|other| !Arc::ptr_eq(other, plugin));
    }

    pub(crate) fn plugins(&self) -> Vec<Arc<Plugin>> {
        self.lock().plugins.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Each change is one insert or remove, so a panic leaves it whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admission {
    pub(crate) fn note_told(&self) {
        self.told.store(true, Ordering::Relaxed);
    }

    pub(crate) fn was_told(&self) -> bool {
        self.told.load(Ordering::Relaxed)
    }
}

impl Drop for Admission {
    fn drop(&mut self) {
        self.registry.lock().admitted.remove(&self.turn);
        self.registry.settled.send_replace(());
    }
}
