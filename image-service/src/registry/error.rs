//! What a pull can fail with, one variant for each decision of the caller, and the list of hosts that were tried.
//!
//! No error holds a secret: addresses are shown without user, query and fragment, and text that a server sent is
//! cut, stripped of control characters and of nothing else.

use std::fmt;

use crate::digest::Digest;
use crate::reference::Reference;

/// A registry operation failed. Each message is one line that names the image and every host tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Every host was asked and none has it.
    #[error("{reference}: not found: {tried}")]
    NotFound { reference: String, tried: Tried },
    /// A host refused; other credentials may help.
    #[error(
        "{reference}: pull access denied, repository does not exist or may require authorization: server message: {message}: {tried}"
    )]
    Unauthorized { reference: String, message: String, tried: Tried },
    /// No host gave an answer that settles it; trying again later may help.
    #[error("{reference}: no registry could serve it: {tried}")]
    Unavailable { reference: String, tried: Tried },
    /// What was asked for or what a registry sent is not acceptable; trying again does not help.
    #[error("{reference}: {what}")]
    Invalid { reference: String, what: String },
    #[error("{what}")]
    Failed {
        what: String,
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// The hosts that were tried, in order, each with what came of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Tried(pub Vec<Attempt>);

/// One host and what came of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Scheme, host, port and path prefix.
    pub host: String,
    pub outcome: Outcome,
}

/// Why a host did not serve a request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Outcome {
    /// Name lookup, connection, TLS, a time limit, a broken answer.
    #[error("{0}")]
    Transport(String),
    #[error("404 not found")]
    NotFound,
    #[error("{message}")]
    Denied { status: u16, message: String },
    #[error("unexpected status {status}{}", detail(message))]
    Status { status: u16, message: String },
    #[error("sent content that is not {expected}: {found}")]
    WrongContent { expected: Digest, found: String },
    #[error("{0}")]
    Unacceptable(String),
}

impl Error {
    /// The error that the outcomes of all hosts add up to. The most telling outcome decides:
    /// content that must not be used, a refusal, another status, not found, no connection.
    pub(crate) fn from_tried(reference: &Reference, tried: Tried) -> Error {
        let reference = reference.to_string();
        let worst = tried.0.iter().max_by_key(|attempt| attempt.outcome.weight()).map(|attempt| &attempt.outcome);
        match worst {
            None | Some(Outcome::NotFound) => Error::NotFound { reference, tried },
            Some(Outcome::Transport(_)) => Error::Unavailable { reference, tried },
            Some(Outcome::Denied { message, .. }) => Error::Unauthorized { reference, message: message.clone(), tried },
            Some(Outcome::Status { status, .. }) if *status >= 500 || matches!(status, 408 | 429) => {
                Error::Unavailable { reference, tried }
            }
            Some(Outcome::Status { .. } | Outcome::WrongContent { .. } | Outcome::Unacceptable(_)) => {
                Error::Invalid { reference, what: tried.to_string() }
            }
        }
    }
}

impl Outcome {
    fn weight(&self) -> u8 {
        match self {
            Outcome::Transport(_) => 1,
            Outcome::NotFound => 2,
            Outcome::Status { .. } => 3,
            Outcome::Denied { .. } => 4,
            Outcome::WrongContent { .. } | Outcome::Unacceptable(_) => 5,
        }
    }
}

impl Tried {
    /// Whether the last host could not be reached.
    pub(crate) fn ends_in_loss(&self) -> bool {
        self.0.last().is_some_and(|attempt| matches!(attempt.outcome, Outcome::Transport(_)))
    }
}

impl fmt::Display for Tried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("no host is configured for it");
        }
        for (position, attempt) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { "; " };
            write!(f, "{separator}{}: {}", attempt.host, attempt.outcome)?;
        }
        Ok(())
    }
}

fn detail(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}
