//! Time that goes more than a hundred times as fast, for what waits for seconds in order to be polite; and a clock on the
//! wall that only a test turns.

use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::Instant;
use windlass_image_service::clock::Clock;

/// A clock that stands still until it is turned. Clones are the same clock.
#[derive(Clone, Debug)]
pub struct TestClock(watch::Sender<SystemTime>);

impl TestClock {
    pub fn at(now: SystemTime) -> TestClock {
        TestClock(watch::Sender::new(now))
    }

    pub fn turn(&self, by: Duration) {
        self.0.send_modify(|now| *now += by);
    }
}

impl Clock for TestClock {
    fn now(&self) -> SystemTime {
        *self.0.borrow()
    }

    fn until(&self, when: SystemTime) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        let mut hand = self.0.subscribe();
        Box::pin(async move { hand.wait_for(|now| *now >= when).await.map(drop).expect("the clock is held here") })
    }
}

/// Runs a future while a paused clock is moved on, in steps that leave the sockets of the test time to answer. Tells as well
/// how long it took by that clock. For a runtime of one thread.
pub async fn fast<T>(future: impl Future<Output = T>) -> (T, Duration) {
    tokio::time::pause();
    let start = Instant::now();
    let mut future = std::pin::pin!(future);
    let output = loop {
        // A clock does not jump to the next timer on its own while something blocks.
        let pause = tokio::task::spawn_blocking(|| std::thread::sleep(Duration::from_millis(1)));
        tokio::select! {
            biased;
            output = &mut future => break output,
            _ = pause => tokio::time::advance(Duration::from_millis(250)).await,
        }
    };
    let took = start.elapsed();
    tokio::time::resume();
    (output, took)
}
