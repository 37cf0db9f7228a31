//! The daemon's side of a running shim: the task service that every shim has, and what only ours adds.

mod extension;
mod task;

pub use extension::{AttachInput, AttachOutput, AttachStream, AttachTo, Extension, Output};
pub use task::TaskClient;

#[cfg(test)]
mod tests;
