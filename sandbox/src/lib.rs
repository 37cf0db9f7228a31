//! Pods and containers: one owner task a pod, operations, OCI spec, CNI, the launch of shims, recovery.
//!
//! This crate knows neither gRPC nor registries. An image reaches it as a value ([`model::Image`]).

pub mod error;
pub mod model;

pub use error::Error;
