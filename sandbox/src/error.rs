//! Why an operation on a pod or a container was refused or failed, by what the caller can do about it.

use std::{error::Error as StdError, sync::Arc};

use thiserror::Error;

/// The answer of every operation in this crate. Clonable, because all callers that joined an operation get it.
///
/// `cri-server` maps each variant to one gRPC code.
#[derive(Clone, Debug, Error)]
pub enum Error {
    /// gRPC NotFound.
    #[error("{kind} {id:?}: not found")]
    NotFound { kind: &'static str, id: String },
    /// gRPC AlreadyExists.
    #[error("{0}")]
    AlreadyExists(String),
    /// gRPC InvalidArgument.
    #[error("{0}")]
    Invalid(String),
    /// The object is not in a state that allows it. gRPC FailedPrecondition (CRI clients read the text).
    #[error("{0}")]
    Precondition(String),
    /// Something the operation needs is not there now: try again. gRPC Unavailable.
    #[error("{0}")]
    Unavailable(String),
    /// gRPC DeadlineExceeded.
    #[error("{0}")]
    Deadline(String),
    /// gRPC Unimplemented.
    #[error("{0}")]
    Unsupported(String),
    /// Anything else. gRPC Unknown, with the whole chain as text.
    #[error("{what}")]
    Failed {
        what: String,
        #[source]
        source: Option<Arc<dyn StdError + Send + Sync>>,
    },
}

impl Error {
    /// A failure with its cause.
    pub fn failed(what: impl Into<String>, source: impl StdError + Send + Sync + 'static) -> Error {
        Error::Failed { what: what.into(), source: Some(Arc::new(source)) }
    }

    /// A failure that is its own cause.
    pub fn plain(what: impl Into<String>) -> Error {
        Error::Failed { what: what.into(), source: None }
    }

    /// The error and its causes on one line, as a client should read it.
    pub fn chain(&self) -> String {
        chain(self)
    }
}

/// Any error and its causes on one line.
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
