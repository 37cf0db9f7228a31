//! What the black-box tests are made of: a node of the built binaries, a registry with images made on the spot, a CRI
//! client, and the check that a test left nothing on the machine.
//!
//! Nothing here links the daemon: it is driven by its sockets, its files and its signals, as a kubelet would. The tests
//! of NRI take its messages and transports from the daemon's crates, for plugins of their own.
//! A failure panics with what was expected and what the daemon logged.

#![expect(clippy::unwrap_used, reason = "everything here is test code")]

pub mod client;
pub mod command;
pub mod crictl;
pub mod crilog;
pub mod criu;
pub mod filters;
pub mod fixture;
pub mod gate;
pub mod image;
pub mod layer;
pub mod leakcheck;
pub mod locked;
pub mod node;
pub mod push;
pub mod refusals;
pub mod registry;
pub mod streams;
pub mod wait;
