//! What can go wrong with a snapshot, as far as a caller decides differently on it.

use std::error::Error as StdError;

use crate::Kind;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("snapshot {key} does not exist")]
    NotFound { key: String },

    /// Answered as "not found" as well, but names what is missing.
    #[error("parent snapshot {parent} does not exist")]
    ParentNotFound { parent: String },

    #[error("snapshot {key:?} already exists")]
    AlreadyExists { key: String },

    /// A precondition: remove the children first.
    #[error("cannot remove snapshot {key} with child")]
    HasChildren { key: String },

    /// A precondition: the snapshot exists, but what was asked for goes with another kind.
    #[error("snapshot {key} is {kind}, which cannot be {wanted}")]
    WrongKind { key: String, kind: Kind, wanted: &'static str },

    #[error("{what}")]
    Failed { what: String, source: Box<dyn StdError + Send + Sync> },
}

impl Error {
    pub(crate) fn failed(what: impl Into<String>, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::Failed { what: what.into(), source: source.into() }
    }
}

impl From<store::Error> for Error {
    fn from(source: store::Error) -> Error {
        Error::failed("use the store of snapshots", source)
    }
}

impl From<store::rusqlite::Error> for Error {
    fn from(source: store::rusqlite::Error) -> Error {
        Error::failed("use the rows of snapshots", source)
    }
}
