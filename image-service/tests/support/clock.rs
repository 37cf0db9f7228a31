//! Time that goes more than a hundred times as fast, for what waits for seconds in order to be polite.

use std::time::Duration;

use tokio::time::Instant;

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
