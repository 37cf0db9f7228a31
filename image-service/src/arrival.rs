//! A blob on its way to the disk, followed by whoever unpacks it meanwhile.
//!
//! ```text
//! fetch ──► Arriving ──► [written so far | whole, digest verified | failed] ──► Follower: Read
//! ```
//!
//! A [`Follower`] reaches the end of the stream only when the blob is whole and its digest was verified. An [`Arriving`]
//! that is dropped before has failed, so nobody waits for it for ever. What came from one host and was wrong may come
//! again from another: [`Arrivals`] then tells [`Followers`] whom to follow.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

/// The end that may bring the blob more than once.
pub(crate) struct Arrivals {
    first: Option<Arriving>,
    followers: watch::Sender<Follower>,
}

/// The end that begins anew when it has to.
pub(crate) struct Followers(watch::Receiver<Follower>);

/// The end that brings the blob.
pub(crate) struct Arriving(Arc<Shared>);

/// The end that reads it. A clone goes on from the same place.
#[derive(Clone)]
pub(crate) struct Follower {
    shared: Arc<Shared>,
    at: u64,
}

struct Shared {
    /// Guards a few plain values; nothing panics while it is held.
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    file: Option<Arc<File>>,
    written: u64,
    stage: Stage,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Coming,
    Whole,
    Failed,
}

pub(crate) fn arrivals() -> (Arrivals, Followers) {
    let (arriving, follower) = arrival();
    let (followers, receiver) = watch::channel(follower);
    (Arrivals { first: Some(arriving), followers }, Followers(receiver))
}

impl Arrivals {
    /// For the first time, and then for each further one.
    pub(crate) fn next(&mut self) -> Arriving {
        self.first.take().unwrap_or_else(|| {
            let (arriving, follower) = arrival();
            self.followers.send_replace(follower);
            arriving
        })
    }
}

impl Followers {
    pub(crate) fn current(&mut self) -> Follower {
        self.0.borrow_and_update().clone()
    }

    /// The one of the next time; none if there will not be another.
    pub(crate) async fn next(&mut self) -> Option<Follower> {
        self.0.changed().await.ok()?;
        Some(self.current())
    }
}

fn arrival() -> (Arriving, Follower) {
    let state = State { file: None, written: 0, stage: Stage::Coming };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    (Arriving(Arc::clone(&shared)), Follower { shared, at: 0 })
}

impl Arriving {
    /// Where the bytes go; opened for reading as well.
    pub(crate) fn begin(&self, file: File) {
        self.0.change(|state| state.file = Some(Arc::new(file)));
    }

    /// This many bytes are in the file by now.
    pub(crate) fn written(&self, count: u64) {
        self.0.change(|state| state.written = count);
    }

    /// The blob is in the content store.
    pub(crate) fn whole(self) {
        self.0.change(|state| state.stage = Stage::Whole);
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.change(|state| {
            if state.stage == Stage::Coming {
                state.stage = Stage::Failed;
            }
        });
    }
}

impl Follower {
    /// Reads a blob that is in the content store.
    pub(crate) fn of(file: File, size: u64) -> Follower {
        let (arriving, follower) = arrival();
        arriving.begin(file);
        arriving.written(size);
        arriving.whole();
        follower
    }

    /// Waits for the end; false if the blob did not arrive.
    pub(crate) fn has_arrived(&self) -> bool {
        let coming = |state: &mut State| state.stage == Stage::Coming;
        let state = self.shared.changed.wait_while(self.shared.lock(), coming);
        state.unwrap_or_else(PoisonError::into_inner).stage == Stage::Whole
    }
}

impl Follower {
    /// Whether the blob is whole already, and has at most this many bytes.
    pub(crate) fn is_whole_within(&self, size: u64) -> bool {
        let state = self.shared.lock();
        state.stage == Stage::Whole && state.written <= size
    }
}

impl Read for Follower {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let at = self.at;
        let nothing_new = |state: &mut State| state.stage == Stage::Coming && state.written <= at;
        let state = self.shared.changed.wait_while(self.shared.lock(), nothing_new);
        let state = state.unwrap_or_else(PoisonError::into_inner);
        let (file, ready) = match (&state.file, state.stage) {
            (_, Stage::Failed) => return Err(io::Error::other("the blob did not arrive")),
            (Some(file), _) if state.written > at => (Arc::clone(file), state.written - at),
            _ => return Ok(0),
        };
        drop(state);
        let most = buffer.len().min(usize::try_from(ready).unwrap_or(usize::MAX));
        let count = file.read_at(&mut buffer[..most], at)?;
        self.at += count as u64;
        Ok(count)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn a_follower_reads_what_is_there_and_ends_only_when_it_is_whole() {
        let mut file = tempfile::tempfile().unwrap();
        let (arriving, mut follower) = arrival();
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            follower.read_to_string(&mut text).map(|_| (text, follower.has_arrived()))
        });
        arriving.begin(file.try_clone().unwrap());
        for (piece, sum) in [("one ", 4), ("two ", 8), ("three", 13)] {
            file.write_all(piece.as_bytes()).unwrap();
            arriving.written(sum);
        }
        assert!(!reader.is_finished());
        arriving.whole();
        assert_eq!(reader.join().unwrap().unwrap(), ("one two three".to_owned(), true));
    }

    #[test]
    fn a_follower_of_what_is_given_up_fails() {
        let (arriving, mut follower) = arrival();
        let reader = std::thread::spawn(move || (follower.read(&mut [0; 8]).is_err(), follower.has_arrived()));
        drop(arriving);
        assert_eq!(reader.join().unwrap(), (true, false));
    }

    #[tokio::test]
    async fn who_followed_what_was_wrong_follows_what_comes_next() {
        let (mut arrivals, mut followers) = arrivals();
        let mut follower = followers.current();
        drop(arrivals.next());
        assert!(follower.read(&mut [0; 8]).is_err());
        let again = arrivals.next();
        let mut follower = followers.next().await.unwrap();
        let mut file = tempfile::tempfile().unwrap();
        again.begin(file.try_clone().unwrap());
        file.write_all(b"right").unwrap();
        again.written(5);
        again.whole();
        let mut text = String::new();
        follower.read_to_string(&mut text).unwrap();
        assert_eq!(text, "right");
        drop(arrivals);
        assert!(followers.next().await.is_none());
    }
}
