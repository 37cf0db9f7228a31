//! The rate at which CPU time is used: CRI's `usage_nano_cores`.
//!
//! One task reads one file of every running container and every live pod once a second, and keeps the last reading of
//! each: memory is bounded by what runs. The task ends with the last handle of [`super::Stats`].

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::time::MissedTickBehavior;

use super::Reader;
use crate::model::Id;

const INTERVAL: Duration = Duration::from_secs(1);

/// Takes samples for ever.
pub(super) async fn sample(reader: Arc<Reader>) {
    let mut ticks = tokio::time::interval(INTERVAL);
    // After a suspension there is nothing to catch up with.
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let on = Arc::clone(&reader);
        let sampled = tokio::task::spawn_blocking(move || on.rates.take(on.cpu_times()));
        if let Err(error) = sampled.await {
            tracing::error!(%error, "a sample of CPU times was lost");
        }
    }
}

/// CPU time that was used until a moment.
pub(super) struct Reading {
    pub(super) id: Id,
    pub(super) at: Instant,
    /// Nanoseconds.
    pub(super) usage: u64,
}

/// The last reading of each id, and the rate since the one before.
#[derive(Default)]
pub(super) struct Rates(Mutex<HashMap<Id, Sample>>);

struct Sample {
    at: Instant,
    usage: u64,
    nano_cores: Option<u64>,
}

impl Rates {
    /// Billionths of a core between the last two readings.
    pub(super) fn nano_cores(&self, id: &Id) -> Option<u64> {
        self.samples().get(id)?.nano_cores
    }

    /// Takes the readings of one round. Whoever has none in it does not run any more and is forgotten.
    pub(super) fn take(&self, readings: Vec<Reading>) {
        let mut samples = self.samples();
        let mut last = std::mem::take(&mut *samples);
        for Reading { id, at, usage } in readings {
            let nano_cores = last.remove(&id).and_then(|last| rate(&last, at, usage));
            samples.insert(id, Sample { at, usage, nano_cores });
        }
    }

    /// Guards the map for a look-up or the change of a round, never across an await.
    fn samples(&self) -> MutexGuard<'_, HashMap<Id, Sample>> {
        // A round cut short by a panic has lost samples, which the next one makes good.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// `None` when the counter went back: then it is another cgroup of the same name.
fn rate(last: &Sample, at: Instant, usage: u64) -> Option<u64> {
    let used = u128::from(usage.checked_sub(last.usage)?);
    let passed = at.checked_duration_since(last.at)?.as_nanos();
    u64::try_from((used * 1_000_000_000).checked_div(passed)?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(digit: &str) -> Id {
        Id::parse(&digit.repeat(64)).unwrap()
    }

    #[test]
    fn the_rate_is_that_between_the_last_two_readings() {
        let rates = Rates::default();
        let start = Instant::now();
        let take = |milliseconds, usage| {
            let at = start + Duration::from_millis(milliseconds);
            rates.take(vec![Reading { id: id("a"), at, usage }]);
            rates.nano_cores(&id("a"))
        };
        assert_eq!(take(0, 5_000_000_000), None, "one reading has no rate");
        assert_eq!(take(1000, 5_250_000_000), Some(250_000_000), "a quarter of a core");
        assert_eq!(take(3000, 9_250_000_000), Some(2_000_000_000), "two cores for two seconds");
        assert_eq!(take(3000, 9_250_000_000), None, "no time has passed");
        assert_eq!(take(4000, 100), None, "the counter went back");
        assert_eq!(take(5000, 100), Some(0));
    }

    #[test]
    fn what_runs_no_more_is_forgotten() {
        let rates = Rates::default();
        let start = Instant::now();
        let reading =
            |digit, seconds, usage| Reading { id: id(digit), at: start + Duration::from_secs(seconds), usage };
        rates.take(vec![reading("a", 0, 0), reading("b", 0, 0)]);
        rates.take(vec![reading("a", 1, 10), reading("b", 1, 20)]);
        rates.take(vec![reading("b", 2, 50)]);
        assert_eq!((rates.nano_cores(&id("a")), rates.nano_cores(&id("b"))), (None, Some(30)));
        assert_eq!(rates.samples().len(), 1);
    }
}
