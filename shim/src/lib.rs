//! The shim v2 protocol of containerd: ttrpc, the task service, how a shim is started, found and spoken to.
//!
//! The daemon uses `launch` and `client`; the shim binary uses `ttrpc::serve`. Both share the messages in `proto`.

pub mod address;
pub mod bootstrap;
mod cgroup;
pub mod client;
pub mod launch;
pub mod mount;
pub mod proto;
mod runc;
pub mod server;
mod signals;
mod stdio;
mod sys;
pub mod ttrpc;
