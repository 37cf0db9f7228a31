//! The operations, one file a verb, each a straight line: effects in order, and what to do when one fails.
//!
//! None touches the owner's state or the store. The owner has committed the intent before it calls one of these, and
//! commits what it returns.

pub(crate) mod attach;
pub(crate) mod checkpoint_container;
pub(crate) mod create_container;
pub(crate) mod exec;
pub(crate) mod exec_sync;
pub(crate) mod remove_container;
pub(crate) mod remove_pod;
pub(crate) mod reopen_log;
pub(crate) mod rescue_pod;
pub(crate) mod start_container;
pub(crate) mod start_pod;
pub(crate) mod stop_container;
pub(crate) mod stop_pod;
mod stream;
pub(crate) mod update_container;

use crate::Error;

/// A start or a creation that failed, after it was torn down again.
#[derive(Debug)]
pub(crate) struct Undone {
    /// Why, for the caller.
    pub(crate) error: Error,
    /// What could not be torn down, if anything.
    pub(crate) left: Option<Error>,
    /// The network has been given back, or there was none.
    pub(crate) network_returned: bool,
}
