//! How a task call fails, by what the caller decides on, and the ttrpc code for each.

use crate::mount::MountError;
use crate::runc::RuncError;
use crate::ttrpc::{Code, Status};

use super::io::IoError;

#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    #[error("{0}")]
    NotFound(String),
    #[error("{0}")]
    AlreadyExists(String),
    #[error("{0}")]
    WrongState(String),
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Unimplemented(String),
    #[error("{what}: {source}")]
    Failed { what: String, source: std::io::Error },
    #[error(transparent)]
    Runtime(#[from] RuncError),
    #[error(transparent)]
    Criu(crate::runc::CriuError),
    #[error(transparent)]
    Stdio(#[from] IoError),
    #[error(transparent)]
    Mount(#[from] MountError),
}

impl TaskError {
    pub(crate) fn failed(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.into();
        move |source| Self::Failed { what, source }
    }

    pub(crate) fn to_status(&self) -> Status {
        let code = match self {
            Self::NotFound(_) => Code::NotFound,
            Self::AlreadyExists(_) => Code::AlreadyExists,
            Self::WrongState(_) => Code::FailedPrecondition,
            Self::Invalid(_) | Self::Stdio(IoError::Unknown(_)) => Code::InvalidArgument,
            Self::Unimplemented(_) | Self::Mount(MountError::Unsupported { .. }) => Code::Unimplemented,
            // containerd's clients know only that it did not work, and show the text.
            Self::Failed { .. } | Self::Runtime(_) | Self::Criu(_) | Self::Stdio(_) | Self::Mount(_) => Code::Unknown,
        };
        Status::new(code, self)
    }
}
