//! Waiting for a condition with a deadline: the only place of the tests that lets time pass.

use std::{future::Future, time::Duration};

use tokio::time::{Instant, sleep};

/// How long something on this machine may take that does not wait for anything by design.
pub const SOON: Duration = Duration::from_secs(30);

/// Asks until the answer is `Ok`, and panics with the last `Err` once `deadline` has passed.
pub async fn until<T, F, Fut>(what: &str, deadline: Duration, mut ask: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let end = Instant::now() + deadline;
    loop {
        match ask().await {
            Ok(answer) => return answer,
            Err(why) => assert!(Instant::now() < end, "{what}: not within {deadline:?}: {why}"),
        }
        sleep(Duration::from_millis(25)).await;
    }
}

/// As [`until`], for a condition that is looked up without waiting.
pub async fn until_ok<T>(what: &str, deadline: Duration, mut ask: impl FnMut() -> Result<T, String>) -> T {
    until(what, deadline, || std::future::ready(ask())).await
}
