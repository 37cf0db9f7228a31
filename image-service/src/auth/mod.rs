//! Who the node is to a registry: credentials, challenges, tokens.
//!
//! Secrets are never printed: [`Credentials`] shows only what is set, and no error of this module carries one.

mod authenticator;
mod challenge;
mod credentials;
mod token;

pub use challenge::{Challenge, parse_challenges};
pub use credentials::{Credentials, CredentialsError};

pub(crate) use authenticator::Authenticator;
pub(crate) use credentials::{Secret, canonical_host};
pub(crate) use token::TokenError;
