//! Live copies of a container's output for Attach streams.
//!
//! Invariant: publishing never waits. A subscriber whose buffer is full is dropped, so neither the container nor its
//! log waits for somebody's terminal.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc;

use super::Stream;

/// Chunks of at most 16 KiB, so a subscriber may be up to 2 MiB behind.
const BUFFERED_CHUNKS: usize = 128;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) stream: Stream,
    pub(crate) bytes: Bytes,
}

#[derive(Default)]
pub(crate) struct Hub {
    subscribers: Mutex<Subscribers>,
}

#[derive(Default)]
struct Subscribers {
    senders: Vec<mpsc::Sender<Chunk>>,
    closed: bool,
}

impl Hub {
    /// Output from now on; the receiver ends when the container's output does, or when it falls behind.
    pub(crate) fn subscribe(&self) -> mpsc::Receiver<Chunk> {
        let (sender, receiver) = mpsc::channel(BUFFERED_CHUNKS);
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        // Those who left while nothing was published.
        subscribers.senders.retain(|sender| !sender.is_closed());
        if !subscribers.closed {
            subscribers.senders.push(sender);
        }
        receiver
    }

    pub(crate) fn publish(&self, stream: Stream, bytes: &[u8]) {
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        if subscribers.senders.is_empty() {
            return;
        }
        let chunk = Chunk { stream, bytes: Bytes::copy_from_slice(bytes) };
        subscribers.senders.retain(|sender| sender.try_send(chunk.clone()).is_ok());
    }

    pub(crate) fn close(&self) {
        let mut subscribers = self.subscribers.lock().unwrap_or_else(PoisonError::into_inner);
        subscribers.closed = true;
        subscribers.senders.clear();
    }

    /// Tells the two ends of a subscription apart.
    pub(crate) fn is_closed(&self) -> bool {
        self.subscribers.lock().unwrap_or_else(PoisonError::into_inner).closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_slow_subscriber_is_dropped_and_the_others_go_on() {
        let hub = Hub::default();
        let mut slow = hub.subscribe();
        let mut quick = hub.subscribe();
        for _ in 0..=BUFFERED_CHUNKS {
            hub.publish(Stream::Stdout, b"x");
            quick.recv().await.unwrap();
        }
        let mut kept = 0;
        while slow.recv().await.is_some() {
            kept += 1;
        }
        assert_eq!((kept, hub.is_closed()), (BUFFERED_CHUNKS, false));
        hub.publish(Stream::Stderr, b"y");
        assert_eq!(quick.recv().await, Some(Chunk { stream: Stream::Stderr, bytes: Bytes::from_static(b"y") }));
    }

    #[test]
    fn those_who_leave_a_silent_container_are_forgotten() {
        let hub = Hub::default();
        let _stays = hub.subscribe();
        for _ in 0..10 {
            drop(hub.subscribe());
        }
        assert_eq!(hub.subscribers.lock().unwrap().senders.len(), 2, "one that stays, and the last to leave");
    }

    #[tokio::test]
    async fn a_subscription_after_the_end_ends_at_once() {
        let hub = Hub::default();
        hub.close();
        assert_eq!(hub.subscribe().recv().await, None);
    }
}
