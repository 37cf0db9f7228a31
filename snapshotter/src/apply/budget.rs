//! What the layers of one image may hold together, counted while several of them are applied side by side.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Error;

/// Shared by all who apply a layer of the same image.
#[derive(Debug)]
pub struct Budget {
    most_bytes: u64,
    most_inodes: u64,
    bytes: AtomicU64,
    inodes: AtomicU64,
}

impl Budget {
    pub fn new(most_bytes: u64, most_inodes: u64) -> Budget {
        Budget { most_bytes, most_inodes, bytes: AtomicU64::new(0), inodes: AtomicU64::new(0) }
    }

    /// Counts what a layer holds that is there already.
    pub fn take(&self, bytes: u64, inodes: u64) -> Result<(), Error> {
        self.take_bytes(bytes)?;
        self.take_inodes(inodes)
    }

    pub(super) fn take_bytes(&self, bytes: u64) -> Result<(), Error> {
        take(&self.bytes, bytes, self.most_bytes, "bytes of files")
    }

    pub(super) fn take_inodes(&self, inodes: u64) -> Result<(), Error> {
        take(&self.inodes, inodes, self.most_inodes, "files")
    }
}

fn take(counted: &AtomicU64, more: u64, limit: u64, what: &'static str) -> Result<(), Error> {
    // Nothing else is read or written by what these numbers say.
    let before = counted
        .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |before| Some(before.saturating_add(more)))
        .unwrap_or_else(|before| before);
    if before.saturating_add(more) > limit { Err(Error::TooMuchTogether { what, limit }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_adds_up_to_the_limit_and_not_beyond() {
        let budget = Budget::new(10, 3);
        budget.take(4, 1).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| budget.take(3, 1).unwrap());
            }
        });
        let refused = |result: Result<(), Error>| result.unwrap_err().to_string();
        assert_eq!(refused(budget.take_bytes(1)), "the layers of the image together hold more than 10 bytes of files");
        assert_eq!(refused(budget.take_inodes(1)), "the layers of the image together hold more than 3 files");
        assert_eq!(
            refused(budget.take(u64::MAX, 0)),
            "the layers of the image together hold more than 10 bytes of files"
        );
    }
}
