//! Images on this node: what a reference means, where registries are, how an image is pulled, kept and removed.
//!
//! ```text
//! reference ─► hosts (hosts.toml) ─► registry (HTTP, auth) ─┐
//!                                                           ├─► flight, pull, layers, fetch ─► content, unpack ─► images
//!          manifest, platform (what fits this node) ─────┘    claims, leases, collect (what may be deleted)
//! archives ─► import, preload ─► content, unpack ─► images ─► export
//! ```
//!
//! This crate knows neither CRI nor pods. Invariant: a blob or a layer exists only if its digest was verified.

mod annotated;
mod arrival;
pub mod auth;
mod claims;
pub mod clock;
mod collect;
mod collector;
mod content;
pub mod digest;
pub mod export;
mod fetch;
mod flight;
pub mod hosts;
pub mod images;
pub mod import;
mod layers;
pub mod leases;
mod local;
mod manifest;
mod mark;
mod platform;
pub mod policy;
mod preload;
mod pull;
pub mod reference;
pub mod registry;
mod store;
mod unpack;
mod unpack_again;

pub use manifest::ManifestError;
pub use store::SCHEMA;
pub use unpack_again::UnpackAgainError;
