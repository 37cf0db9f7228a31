//! The task that collects when nobody asks: behind a deletion that does not wait, and when something is over.
//!
//! ```text
//! open ─► run ─┬ collect_soon(), let_go()           ─► collect
//!              ├ the next lease is over (its row)   ─► collect
//!              └ starts of blobs are too old        ─► collect, which drops them
//! ```
//!
//! There is one for the images, from their opening to their shutdown. What it waits for it reads from the store each time,
//! so it is the same after a restart. It holds nothing while it waits.

use std::{
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use store::Namespace;
use tokio::sync::Notify;

use crate::{
    content::KEPT_FOR,
    images::{Images, Shared},
    leases,
    store::from_nanos,
};

/// Between a collection that failed and the next one.
const RETRY: Duration = Duration::from_secs(60);

#[derive(Default)]
pub(crate) struct Collector {
    look: Notify,
    is_wanted: AtomicBool,
    /// When it is worth to look at starts of blobs again.
    downloads: Mutex<Option<SystemTime>>,
}

impl Collector {
    /// Something may be over earlier than was known.
    pub(crate) fn look_again(&self) {
        self.look.notify_one();
    }

    pub(crate) fn collect_soon(&self) {
        self.is_wanted.store(true, Ordering::Relaxed);
        self.look.notify_one();
    }

    /// Starts of blobs were left, the youngest of them written just `now`.
    pub(crate) fn keep_downloads(&self, now: SystemTime) {
        // Guards one value.
        *self.downloads.lock().unwrap_or_else(PoisonError::into_inner) = Some(now + KEPT_FOR);
        self.look.notify_one();
    }

    pub(crate) fn forget_downloads(&self) {
        *self.downloads.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    fn downloads(&self) -> Option<SystemTime> {
        *self.downloads.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Images {
    /// Something that stood on the layers of this image has gone. If the image has gone before, nothing keeps them any more.
    pub fn let_go(&self, ns: &Namespace, id: &str) {
        if self.resolve(ns, id).is_none() {
            self.shared.collector.collect_soon();
        }
    }

    pub(crate) fn collect_by_itself(&self) {
        let (shared, ending) = (Arc::downgrade(&self.shared), self.shared.flights.ending());
        let collector = Arc::clone(&self.shared.collector);
        self.shared.tasks.spawn(async move {
            tokio::select! {
                () = run(&shared, &collector) => {}
                () = ending.cancelled() => {}
            }
        });
    }
}

async fn run(shared: &Weak<Shared>, collector: &Collector) {
    while let Some(alive) = shared.upgrade() {
        let (clock, next) = (Arc::clone(&alive.config.clock), next(&alive).await);
        drop(alive);
        let due = async {
            match next {
                Some(when) => clock.until(when).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = collector.look.notified() => {}
            () = due => collector.is_wanted.store(true, Ordering::Relaxed),
        }
        if !collector.is_wanted.swap(false, Ordering::Relaxed) {
            continue;
        }
        let Some(shared) = shared.upgrade() else { return };
        // On a task of its own, which the end of the daemon waits for: it is not to be left halfway.
        let (images, tasks) = (Images { shared: Arc::clone(&shared) }, shared.tasks.clone());
        drop(shared);
        match tasks.spawn(async move { images.collect().await }).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "what nothing refers to is collected later");
                tokio::time::sleep(RETRY).await;
                collector.collect_soon();
            }
            // It panicked, which was told, or the runtime ends.
            Err(_) => return,
        }
    }
}

/// When something is over by itself.
async fn next(shared: &Shared) -> Option<SystemTime> {
    let lease = match shared.store.read(leases::rows::next_expiry).await {
        Ok(expiry) => expiry.map(from_nanos),
        Err(error) => {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "it is not known when leases are over");
            Some(shared.config.clock.now() + RETRY)
        }
    };
    [lease, shared.collector.downloads()].into_iter().flatten().min()
}
