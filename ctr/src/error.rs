//! What `ctr` fails with, in the words of the stock client: the daemon's message, then the class of the error.

use std::fmt;
use std::io;
use std::path::PathBuf;

use tonic::{Code, Status};

#[derive(Debug)]
pub(crate) enum Error {
    /// No connection to the daemon.
    Dial { address: PathBuf, source: tonic::transport::Error },
    /// The namespace cannot be sent as a header.
    Namespace(String),
    /// The daemon answered with an error.
    Rpc(Status),
    /// As `Rpc`, where the stock client says what it was doing.
    Failed { what: &'static str, status: Status },
    /// Standard output does not take the answer.
    Print(io::Error),
}

impl std::error::Error for Error {}

impl From<Status> for Error {
    fn from(status: Status) -> Self {
        Self::Rpc(status)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            // tonic says only "transport error"; the reason is the last of its sources.
            Self::Dial { address, source } => {
                write!(f, "failed to dial {:?}: {}", address, root_cause(source))
            }
            Self::Namespace(name) => write!(f, "namespace {name:?} has characters that no namespace may have"),
            Self::Rpc(status) => f.write_str(&describe(status)),
            Self::Failed { what, status } => write!(f, "{what}: {}", describe(status)),
            Self::Print(source) => write!(f, "failed to write to standard output: {source}"),
        }
    }
}

fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

/// The status as the stock client prints it: the class once, at the end.
fn describe(status: &Status) -> String {
    let message = status.message();
    let Some(class) = class(status.code()) else { return message.to_owned() };
    if message.is_empty() || message == class {
        return class.to_owned();
    }
    format!("{}: {class}", message.strip_suffix(class).and_then(|rest| rest.strip_suffix(": ")).unwrap_or(message))
}

/// The stock client's name of a class; `None` for codes that it passes through as they are.
fn class(code: Code) -> Option<&'static str> {
    match code {
        Code::Cancelled => Some("context canceled"),
        Code::InvalidArgument => Some("invalid argument"),
        Code::DeadlineExceeded => Some("context deadline exceeded"),
        Code::NotFound => Some("not found"),
        Code::AlreadyExists => Some("already exists"),
        Code::FailedPrecondition => Some("failed precondition"),
        Code::Unavailable => Some("unavailable"),
        Code::Unimplemented => Some("not implemented"),
        Code::Ok
        | Code::Unknown
        | Code::PermissionDenied
        | Code::ResourceExhausted
        | Code::Aborted
        | Code::OutOfRange
        | Code::Internal
        | Code::DataLoss
        | Code::Unauthenticated => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_followed_by_its_class() {
        assert_eq!(Error::from(Status::not_found("image \"a\"")).to_string(), "image \"a\": not found");
    }

    #[test]
    fn a_class_that_the_message_ends_with_is_not_said_twice() {
        assert_eq!(Error::from(Status::not_found("image \"a\": not found")).to_string(), "image \"a\": not found");
    }

    #[test]
    fn a_status_without_a_message_is_its_class() {
        assert_eq!(Error::from(Status::unimplemented("")).to_string(), "not implemented");
    }

    #[test]
    fn an_unknown_error_of_a_runtime_passes_through() {
        assert_eq!(Error::from(Status::unknown("OCI runtime create failed")).to_string(), "OCI runtime create failed");
    }

    #[test]
    fn what_was_being_done_comes_first() {
        let error = Error::Failed { what: "failed to list images", status: Status::unimplemented("") };
        assert_eq!(error.to_string(), "failed to list images: not implemented");
    }
}
