//! What whoever copies a container's output needs: our shim for its own containers, the daemon for those of other shims.
//!
//! Bytes are cut into CRI records ([`record`]), which go to the log ([`cri_log`]) and live to Attach streams ([`hub`]).

pub(crate) mod cri_log;
pub(crate) mod hub;
pub(crate) mod record;
pub(crate) mod sink;

/// Which of a process's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout,
    Stderr,
}
