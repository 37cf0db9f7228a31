//! Images on this node: what a reference means, where registries are, how an image is pulled, kept and removed.
//!
//! ```text
//! reference ─► hosts (hosts.toml) ─► registry (HTTP, auth) ─┐
//!                                                           ├─► flight, pull, layers, fetch ─► content, unpack ─► images
//!          manifest, platform (what fits this node) ─────┘    claims, collect (what may be deleted)
//! archives ─► import, preload ─► content, unpack ─► images ─► export
//! ```
//!
//! This crate knows neither CRI nor pods. Invariant: a blob or a layer exists only if its digest was verified.

mod arrival;
pub mod auth;
mod claims;
mod collect;
mod content;
pub mod digest;
pub mod export;
mod fetch;
mod flight;
pub mod hosts;
pub mod images;
pub mod import;
mod layers;
mod local;
mod manifest;
mod platform;
pub mod policy;
mod preload;
mod pull;
pub mod reference;
pub mod registry;
mod store;
mod unpack;

pub use manifest::ManifestError;
pub use store::SCHEMA;
