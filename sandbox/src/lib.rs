//! Pods and containers: one owner task a pod, operations, OCI spec, CNI, the launch of shims, recovery.
//!
//! This crate knows neither gRPC nor registries. An image reaches it as a value ([`model::Image`]).

mod config;
pub mod error;
pub mod files;
pub mod host;
pub mod model;
pub mod netns;
pub mod network;
pub mod oci;
mod pods;
mod request;
mod session;
mod view;

pub use config::{Config, Handler, Timeouts};
pub use error::Error;
pub use pods::Pods;
pub use session::{ExitStatus, Output, Session};
