//! Why a run ends before its end. A list or status call that fails is no such reason: it is a line of the report.

use std::{error::Error, fmt::Display, time::Duration};

use thiserror::Error;
use tonic::Status;

#[derive(Debug, Error)]
pub(crate) enum BenchError {
    #[error("{0}")]
    Usage(String),
    #[error("stopped by {0}")]
    Stopped(&'static str),
    #[error("the time of {0:?} is up; --deadline sets it")]
    TimeUp(Duration),
    #[error("{endpoint}: {verb} answered {code:?}: {message}", code = .status.code(), message = .status.message())]
    Call { endpoint: String, verb: &'static str, status: Box<Status> },
    #[error("{endpoint}: {verb} did not answer within {after:?}")]
    NoAnswer { endpoint: String, verb: &'static str, after: Duration },
    #[error("{what} failed")]
    Failed { what: String, source: Box<dyn Error + Send + Sync> },
}

impl BenchError {
    pub(crate) fn failed(what: impl Display, source: impl Into<Box<dyn Error + Send + Sync>>) -> BenchError {
        BenchError::Failed { what: what.to_string(), source: source.into() }
    }
}

/// An error with all its sources, as one line.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut line = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        line.push_str(": ");
        line.push_str(&error.to_string());
        source = error.source();
    }
    line
}
