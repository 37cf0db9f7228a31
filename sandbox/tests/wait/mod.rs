//! Waiting for a condition of the fake machine or of the views, which nothing announces.

use std::time::Duration;

/// Panics if it is not reached in a time that is long for any of them.
pub(crate) async fn until(what: &str, condition: impl Fn() -> bool) {
    let reached = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), reached).await.unwrap_or_else(|_| panic!("never: {what}"));
}
