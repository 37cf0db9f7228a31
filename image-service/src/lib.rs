//! Images on this node: references, registries, content and pulls.

pub mod auth;
pub mod digest;
pub mod hosts;
pub mod reference;
pub mod registry;
