//! Pods and containers: one owner task a pod, operations, OCI spec, CNI, the launch of shims, recovery.
//!
//! This crate knows neither gRPC nor registries. An image reaches it as a value ([`model::Image`]).
//!
//! ```text
//! Pods (pods.rs) ─► owner.rs ─► machine.rs decides ─► ops/<verb>.rs acts on world.rs ─► launcher, network, node, snapshots
//!        ▲             └─► record.rs in store.rs, view.rs               └─► teardown.rs undoes
//!        └── recover.rs, once
//! ```

mod apparmor;
mod blockio;
mod bundle;
pub mod cdi;
pub mod changes;
pub mod checkpoint;
mod config;
pub mod error;
pub mod events;
pub mod features;
pub mod files;
pub mod glob;
pub mod host;
mod image_volumes;
pub mod launcher;
mod machine;
pub mod model;
pub mod netns;
pub mod network;
pub mod node;
pub mod nri;
pub mod oci;
mod ops;
mod owner;
mod paths;
mod pods;
mod rdt;
mod record;
mod recover;
mod request;
mod seccomp;
mod selinux;
mod session;
mod shared;
mod signal;
pub mod stats;
mod store;
mod sys;
mod teardown;
mod userns;
mod view;
mod volumes;
mod world;

pub use config::{Config, Drain, GenericOptions, Handler, RuncOptions, RuntimeOptions, Timeouts};
pub use error::Error;
pub use paths::CRI as CRI_DIRECTORY;
pub use pods::Pods;
pub use session::{ExitStatus, Output, Session};
pub use store::SCHEMA;
