//! The published views: what List and Status read.
//!
//! Owners write, everybody reads, nobody waits, and who listens is told what has changed ([`crate::changes`]): the lock guards two maps of `Arc`s for the time of a look-up or a copy of
//! the pointers, and is never held across an await.

use std::{
    collections::BTreeMap,
    ops::Bound,
    sync::{Arc, PoisonError, RwLock},
    time::SystemTime,
};

use crate::{
    Error,
    changes::{self, Change, ChangeKind, Changes, Feed},
    model::{ContainerView, Id, PodView},
};

#[derive(Debug, Default)]
pub(crate) struct Views {
    pods: Shelf<PodView>,
    containers: Shelf<ContainerView>,
    feed: Feed,
}

impl Views {
    pub(crate) fn publish_pod(&self, view: PodView) {
        let view = Arc::new(view);
        let old = self.pods.put(view.id.clone(), Arc::clone(&view));
        for kind in changes::of_pod(old.map(|old| old.state), view.state) {
            self.tell(&view.id, *kind, Some(&view), &view.id);
        }
    }

    pub(crate) fn publish_container(&self, view: ContainerView) {
        let view = Arc::new(view);
        let old = self.containers.put(view.id.clone(), Arc::clone(&view));
        for kind in changes::of_container(old.as_ref().map(|old| &old.state), &view.state) {
            self.tell(&view.id, *kind, None, &view.pod);
        }
    }

    pub(crate) fn withdraw_pod(&self, id: &Id) {
        if let Some(view) = self.pods.take(id) {
            self.tell(id, ChangeKind::Deleted, Some(&view), id);
        }
    }

    pub(crate) fn withdraw_container(&self, id: &Id) {
        if let Some(view) = self.containers.take(id) {
            self.tell(id, ChangeKind::Deleted, None, &view.pod);
        }
    }

    /// What changes from now on.
    pub(crate) fn changes(&self) -> Changes {
        self.feed.subscribe()
    }

    /// `known`: the pod, if it is at hand or not on its shelf any more.
    ///
    /// A pod that Kubernetes has made again is several here, one an attempt. The kubelet takes what it is told for the state
    /// of the pod as a whole, and forgets the pod with the end of what it is shown: so it is shown the newest attempt, and the
    /// containers of all of them, whichever has changed.
    fn tell(&self, id: &Id, kind: ChangeKind, known: Option<&Arc<PodView>>, pod: &Id) {
        if !self.feed.is_heard() {
            return;
        }
        let own = known.cloned().or_else(|| self.pods.get(pod));
        let mut attempts = match &own {
            Some(own) if !own.spec.name.uid.is_empty() => self.pods.all(),
            // Without a uid nobody says that two are one.
            _ => Vec::new(),
        };
        attempts.retain(|other| own.as_ref().is_some_and(|own| own.id != other.id && own.is_same_pod(other)));
        let mut containers = self.containers.all();
        containers
            .retain(|container| container.pod == *pod || attempts.iter().any(|attempt| attempt.id == container.pod));
        let newest = own.into_iter().chain(attempts).max_by_key(|pod| (pod.created_at, pod.spec.name.attempt));
        self.feed.tell(Change { id: id.clone(), kind, at: SystemTime::now(), pod: newest, containers });
    }

    pub(crate) fn pods(&self) -> Vec<Arc<PodView>> {
        self.pods.all()
    }

    pub(crate) fn containers(&self) -> Vec<Arc<ContainerView>> {
        self.containers.all()
    }

    pub(crate) fn pod(&self, prefix: &str) -> Result<Arc<PodView>, Error> {
        self.pods.find("pod sandbox", prefix)
    }

    pub(crate) fn container(&self, prefix: &str) -> Result<Arc<ContainerView>, Error> {
        self.containers.find("container", prefix)
    }
}

#[derive(Debug)]
struct Shelf<T>(RwLock<BTreeMap<Id, Arc<T>>>);

impl<T> Default for Shelf<T> {
    fn default() -> Shelf<T> {
        Shelf(RwLock::default())
    }
}

impl<T> Shelf<T> {
    /// Answers what was there.
    fn put(&self, id: Id, view: Arc<T>) -> Option<Arc<T>> {
        // A poisoned lock still guards whole values: an insert either happened or did not.
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(id, view)
    }

    fn take(&self, id: &Id) -> Option<Arc<T>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(id)
    }

    fn get(&self, id: &Id) -> Option<Arc<T>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned()
    }

    fn all(&self) -> Vec<Arc<T>> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    fn find(&self, kind: &'static str, prefix: &str) -> Result<Arc<T>, Error> {
        let map = self.0.read().unwrap_or_else(PoisonError::into_inner);
        by_prefix(&map, kind, prefix).map(|(_, view)| Arc::clone(view))
    }
}

/// The one entry whose id starts with `prefix`; a whole id is a prefix of itself only.
pub(crate) fn by_prefix<'m, T>(
    map: &'m BTreeMap<Id, T>,
    kind: &'static str,
    prefix: &str,
) -> Result<(&'m Id, &'m T), Error> {
    let missing = || Error::NotFound { kind, id: prefix.to_owned() };
    if prefix.is_empty() {
        return Err(missing());
    }
    let mut matches = map
        .range::<str, _>((Bound::Included(prefix), Bound::Unbounded))
        .take_while(|(id, _)| id.as_str().starts_with(prefix));
    let first = matches.next().ok_or_else(missing)?;
    match matches.next() {
        None => Ok(first),
        Some(_) => {
            Err(Error::Invalid(format!("{kind} {prefix:?}: more than one id starts with this; give more of it")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_found_by_any_start_that_no_other_has() {
        let id = |start: &str| Id::parse(&format!("{start:0<64}")).unwrap();
        let map: BTreeMap<Id, &str> = [(id("abc1"), "one"), (id("abd"), "two"), (id("f"), "three")].into();
        let check = |prefix: &str| match by_prefix(&map, "pod sandbox", prefix) {
            Ok((_, name)) => (*name).to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(
            [check("abc"), check("abd"), check("f0"), check(id("abc1").as_str())],
            ["one", "two", "three", "one"]
        );
        let ambiguous = "pod sandbox \"ab\": more than one id starts with this; give more of it";
        assert_eq!(check("ab"), ambiguous);
        for missing in ["", "b", "abcd", "zz", "\u{e9}"] {
            assert_eq!(check(missing), format!("pod sandbox {missing:?}: not found"));
        }
        assert_eq!(check(&format!("{}0", id("f"))), format!("pod sandbox \"{}0\": not found", id("f")));
    }
}
