//! The daemon's side of a running shim: the task service that every shim has, and the stdio of its processes, for which
//! ours has a service of its own and all others take FIFOs.

mod attach;
mod extension;
mod fifos;
mod streams;
mod task;

pub use attach::{AttachInput, AttachOutput, AttachStream, AttachTo, Output};
pub use extension::Extension;
pub use streams::{ExecStdio, StdioUrls, Streams, TaskStdio};
pub use task::TaskClient;

#[cfg(test)]
mod tests;
