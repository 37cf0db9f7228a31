//! A blob on its way to the disk, followed by whoever unpacks it meanwhile.
//!
//! ```text
//! fetch ──► Arriving ──► [written so far | whole, digest verified | failed] ──► Follower: Read
//! ```
//!
//! A [`Follower`] reaches the end of the stream only when the blob is whole and its digest was verified. An [`Arriving`]
//! that is dropped before has failed, so nobody waits for it for ever.

use std::{
    fs::File,
    io::{self, Read},
    os::unix::fs::FileExt,
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
};

/// The end that brings the blob.
pub(crate) struct Arriving(Arc<Shared>);

/// The end that reads it.
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

pub(crate) fn arrival() -> (Arriving, Follower) {
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
    /// Waits for the end; false if the blob did not arrive.
    pub(crate) fn has_arrived(&self) -> bool {
        let coming = |state: &mut State| state.stage == Stage::Coming;
        let state = self.shared.changed.wait_while(self.shared.lock(), coming);
        state.unwrap_or_else(PoisonError::into_inner).stage == Stage::Whole
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
}
