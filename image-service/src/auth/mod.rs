//! Who the node is to a registry: credentials, challenges, tokens.
//!
//! Secrets are never printed: [`Credentials`] shows only what is set, and no error of this module carries one.

mod credentials;

pub use credentials::{Credentials, CredentialsError};
