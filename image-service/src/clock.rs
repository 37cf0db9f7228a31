//! What time it is, and waiting for a time: of the wall, since what expires says when in dates.
//!
//! The clock is given to [`crate::images::Config`], so that tests can turn it.

use std::{
    fmt::Debug,
    future::Future,
    pin::Pin,
    time::{Duration, SystemTime},
};

/// A clock may be set in both directions, and stands still while the machine sleeps only for those who wait by ticks. So a
/// long wait looks at the clock this often.
const LOOK_EVERY: Duration = Duration::from_secs(10 * 60);

pub trait Clock: Debug + Send + Sync {
    fn now(&self) -> SystemTime;

    /// Ends when it is `when`, or a little later.
    fn until(&self, when: SystemTime) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// The clock of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn until(&self, when: SystemTime) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            while let Ok(left) = when.duration_since(SystemTime::now())
                && !left.is_zero()
            {
                tokio::time::sleep(left.min(LOOK_EVERY)).await;
            }
        })
    }
}
