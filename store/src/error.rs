//! What can go wrong in the store, as far as a caller decides differently on it.

use std::error::Error as StdError;
use std::path::PathBuf;

use rusqlite::ErrorCode;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store was closed: the daemon is shutting down.
    #[error("the store is closed")]
    Closed,

    /// The file was written by a newer program.
    #[error(
        "store {path}: table group {schema:?} has version {found}, this program knows up to {known}: \
         run the newer program again, or give this one another root",
        path = path.display()
    )]
    TooNew { path: PathBuf, schema: String, found: i64, known: i64 },

    /// The file is not a database, or is damaged beyond what the write-ahead log repairs.
    #[error("store {path} is damaged: move it and its -wal file away and start again", path = path.display())]
    Corrupt { path: PathBuf, source: Box<dyn StdError + Send + Sync> },

    #[error("{what}")]
    Failed { what: String, source: Box<dyn StdError + Send + Sync> },
}

impl Error {
    pub(crate) fn failed(what: impl Into<String>, source: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error::Failed { what: what.into(), source: source.into() }
    }

    /// An error met while opening `path`: damage is told apart, since the way out differs.
    pub(crate) fn opening(path: &std::path::Path, what: &str, source: rusqlite::Error) -> Error {
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                Error::Corrupt { path: path.to_owned(), source: source.into() }
            }
            _ => Error::failed(format!("{what} store {}", path.display()), source),
        }
    }
}

impl From<rusqlite::Error> for Error {
    fn from(source: rusqlite::Error) -> Error {
        Error::failed("run a statement in the store", source)
    }
}
