//! What changes in the published views, told to whoever listens.
//!
//! A change is told once, with the pod and its containers as they were published then. Telling never waits: the queue is
//! bounded, and a listener that is more than its length behind is told that it has missed some, and nothing after that.

use std::{sync::Arc, time::SystemTime};

use tokio::sync::broadcast::{self, error::RecvError};

use crate::model::{ContainerState, ContainerView, Id, PodState, PodView};

/// Changes that are kept for the slowest listener: a node full of pods that all start or end at once makes fewer.
const KEPT: usize = 1024;

/// What has become of a pod or a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeKind {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// One change.
#[derive(Clone, Debug)]
pub struct Change {
    /// Of the container; of the pod, if it is the pod that has changed.
    pub id: Id,
    pub kind: ChangeKind,
    pub at: SystemTime,
    /// A pod that is deleted, as it was last; of several attempts at the same pod the newest, whichever has changed.
    pub pod: Option<Arc<PodView>>,
    /// All of the pod's that there are after the change, those of other attempts included.
    pub containers: Vec<Arc<ContainerView>>,
}

/// The changes from a moment on.
#[derive(Debug)]
pub struct Changes {
    queue: broadcast::Receiver<Arc<Change>>,
}

/// So many changes are lost to this listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Missed(pub u64);

impl Changes {
    /// The next one; `None` when there will be no more. After [`Missed`] a listener has to look at everything again.
    pub async fn next(&mut self) -> Option<Result<Arc<Change>, Missed>> {
        match self.queue.recv().await {
            Ok(change) => Some(Ok(change)),
            Err(RecvError::Lagged(count)) => Some(Err(Missed(count))),
            Err(RecvError::Closed) => None,
        }
    }
}

/// The end that owners speak into.
#[derive(Debug)]
pub(crate) struct Feed(broadcast::Sender<Arc<Change>>);

impl Default for Feed {
    fn default() -> Feed {
        Feed(broadcast::Sender::new(KEPT))
    }
}

impl Feed {
    pub(crate) fn subscribe(&self) -> Changes {
        Changes { queue: self.0.subscribe() }
    }

    /// Nothing is gathered for nobody.
    pub(crate) fn is_heard(&self) -> bool {
        self.0.receiver_count() > 0
    }

    pub(crate) fn tell(&self, change: Change) {
        // An error says that the last listener has gone meanwhile.
        drop(self.0.send(Arc::new(change)));
    }
}

/// What a pod that was published as `old` has gone through when it is published as `new`.
pub(crate) fn of_pod(old: Option<PodState>, new: PodState) -> &'static [ChangeKind] {
    use ChangeKind::{Created, Started, Stopped};
    match (old, new) {
        (None, PodState::Ready) => &[Created, Started],
        // What a failed start has left.
        (None, PodState::NotReady) => &[Created],
        (Some(PodState::NotReady), PodState::Ready) => &[Started],
        (Some(PodState::Ready), PodState::NotReady) => &[Stopped],
        (Some(PodState::Ready), PodState::Ready) | (Some(PodState::NotReady), PodState::NotReady) => &[],
    }
}

/// The same of a container.
pub(crate) fn of_container(old: Option<&ContainerState>, new: &ContainerState) -> &'static [ChangeKind] {
    use ChangeKind::{Created, Started, Stopped};
    match (old, new) {
        (None, ContainerState::Created | ContainerState::Unknown) => &[Created],
        (None, ContainerState::Running { .. }) => &[Created, Started],
        (None, ContainerState::Exited { .. }) => &[Created, Stopped],
        (Some(ContainerState::Created), ContainerState::Running { .. }) => &[Started],
        // Of a created one: its start has failed.
        (
            Some(ContainerState::Created | ContainerState::Running { .. } | ContainerState::Unknown),
            ContainerState::Exited { .. },
        ) => &[Stopped],
        // That a container's shim cannot be asked is no news of the container.
        (Some(_), ContainerState::Unknown | ContainerState::Created)
        | (
            Some(ContainerState::Running { .. } | ContainerState::Exited { .. } | ContainerState::Unknown),
            ContainerState::Running { .. },
        )
        | (Some(ContainerState::Exited { .. }), ContainerState::Exited { .. }) => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: ChangeKind) -> Change {
        let id = Id::parse(&"a".repeat(64)).unwrap();
        Change { id, kind, at: SystemTime::UNIX_EPOCH, pod: None, containers: Vec::new() }
    }

    #[tokio::test]
    async fn a_listener_that_is_too_far_behind_learns_how_much_it_missed_and_others_miss_nothing() {
        let feed = Feed::default();
        assert!(!feed.is_heard());
        let (mut slow, mut fast) = (feed.subscribe(), feed.subscribe());
        for _ in 0..KEPT + 6 {
            feed.tell(change(ChangeKind::Started));
            assert_eq!(fast.next().await.unwrap().unwrap().kind, ChangeKind::Started);
        }
        assert_eq!(slow.next().await.unwrap().unwrap_err(), Missed(6));
        drop((slow, fast));
        assert!(!feed.is_heard());
        feed.tell(change(ChangeKind::Stopped));
        let mut late = feed.subscribe();
        drop(feed);
        assert!(late.next().await.is_none(), "a listener hears what happens from then on");
    }
}
