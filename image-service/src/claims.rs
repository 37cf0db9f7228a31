//! What pulls that run rely on: names that collection must spare, and work that only one of them does at a time.
//!
//! A pull claims a blob or a snapshot before it looks whether it is there; collection decides and deletes behind the same
//! gate. So nothing is deleted between a pull's look and its use.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::{self, OwnedMutexGuard};

/// Claims of all pulls. Names are digests and chain ids, which never collide in meaning.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// Held for the instant of a claim, and by collection from its decision to the last deletion.
    gate: Arc<sync::Mutex<()>>,
    /// How many pulls rely on each name.
    counts: Arc<Mutex<HashMap<String, usize>>>,
    /// One lock a name, for work that is done once however many ask.
    turns: Mutex<HashMap<String, Arc<sync::Mutex<()>>>>,
}

/// As long as this lives, collection spares the name.
#[derive(Debug)]
pub(crate) struct Claim {
    name: String,
    counts: Arc<Mutex<HashMap<String, usize>>>,
}

impl Claims {
    pub(crate) async fn claim(&self, name: &str) -> Claim {
        let _gate = self.gate.lock().await;
        self.count(name)
    }

    /// [`Claims::claim`] for a thread that may block.
    pub(crate) fn claim_blocking(&self, name: &str) -> Claim {
        let _gate = self.gate.blocking_lock();
        self.count(name)
    }

    fn count(&self, name: &str) -> Claim {
        *counts(&self.counts).entry(name.to_owned()).or_default() += 1;
        Claim { name: name.to_owned(), counts: Arc::clone(&self.counts) }
    }

    /// Keeps claims out until the guard is dropped, and tells which names are spared. The guard goes to the thread that
    /// deletes, since a caller that gives up must not open the gate under it.
    pub(crate) async fn close(&self) -> (OwnedMutexGuard<()>, HashSet<String>) {
        let gate = Arc::clone(&self.gate).lock_owned().await;
        let spared = counts(&self.counts).keys().cloned().collect();
        (gate, spared)
    }

    /// Keeps collection from running until the guard is dropped, for who changes what it goes by.
    pub(crate) async fn enter(&self) -> OwnedMutexGuard<()> {
        Arc::clone(&self.gate).lock_owned().await
    }

    /// Waits for this name's turn.
    pub(crate) async fn turn(&self, name: &str) -> OwnedMutexGuard<()> {
        self.line(name).lock_owned().await
    }

    /// [`Claims::turn`] for a thread that may block.
    pub(crate) fn turn_blocking(&self, name: &str) -> OwnedMutexGuard<()> {
        self.line(name).blocking_lock_owned()
    }

    fn line(&self, name: &str) -> Arc<sync::Mutex<()>> {
        // Guards the map only; nothing below can panic between its changes.
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(name.to_owned()).or_default())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut counts = counts(&self.counts);
        if let Some(count) = counts.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.name);
            }
        }
    }
}

fn counts(counts: &Mutex<HashMap<String, usize>>) -> MutexGuard<'_, HashMap<String, usize>> {
    // Each change is one insert or remove, so a panic elsewhere leaves the map whole.
    counts.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_spared_until_its_last_claim_ends() {
        let claims = Claims::default();
        let first = claims.claim("a").await;
        let second = claims.claim("a").await;
        drop(first);
        assert!(claims.close().await.1.contains("a"));
        drop(second);
        assert_eq!(claims.close().await.1, HashSet::new());
    }

    #[tokio::test]
    async fn a_claim_waits_while_collection_runs() {
        let claims = Claims::default();
        let (gate, _) = claims.close().await;
        let waiting = claims.claim("a");
        tokio::pin!(waiting);
        assert!(futures_util::poll!(&mut waiting).is_pending());
        drop(gate);
        waiting.await;
    }

    #[tokio::test]
    async fn turns_of_one_name_follow_each_other_and_leave_no_trace() {
        let claims = Claims::default();
        let first = claims.turn("a").await;
        let second = claims.turn("a");
        tokio::pin!(second);
        assert!(futures_util::poll!(&mut second).is_pending());
        drop(claims.turn("b").await);
        drop(first);
        drop(second.await);
        drop(claims.turn("c").await);
        assert!(claims.turns.lock().unwrap().len() <= 1);
    }
}
