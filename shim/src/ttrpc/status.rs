//! How a call fails: a code that callers decide on and a message for people.

use std::fmt;

use crate::proto::rpc;

/// A failed call. `Display` is the message alone; the code is for programs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    pub code: Code,
    pub message: String,
}

impl Status {
    pub fn new(code: Code, message: impl fmt::Display) -> Self {
        Self { code, message: message.to_string() }
    }

    pub fn not_found(message: impl fmt::Display) -> Self {
        Self::new(Code::NotFound, message)
    }

    pub fn invalid(message: impl fmt::Display) -> Self {
        Self::new(Code::InvalidArgument, message)
    }

    pub fn already_exists(message: impl fmt::Display) -> Self {
        Self::new(Code::AlreadyExists, message)
    }

    pub fn failed_precondition(message: impl fmt::Display) -> Self {
        Self::new(Code::FailedPrecondition, message)
    }

    pub fn unimplemented(message: impl fmt::Display) -> Self {
        Self::new(Code::Unimplemented, message)
    }

    pub fn unavailable(message: impl fmt::Display) -> Self {
        Self::new(Code::Unavailable, message)
    }

    pub fn deadline_exceeded(message: impl fmt::Display) -> Self {
        Self::new(Code::DeadlineExceeded, message)
    }

    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(Code::Internal, message)
    }

    /// containerd's code for "something went wrong" that no caller decides on.
    pub fn unknown(message: impl fmt::Display) -> Self {
        Self::new(Code::Unknown, message)
    }

    pub(crate) fn to_wire(&self) -> rpc::Status {
        rpc::Status { code: self.code as i32, message: self.message.clone(), details: Vec::new() }
    }

    /// `None` is success: a peer may send a status with code 0 as well as none at all.
    pub(crate) fn parse_wire(wire: rpc::Status) -> Option<Self> {
        (wire.code != 0).then(|| Self { code: Code::parse(wire.code), message: wire.message })
    }
}

/// The codes of gRPC, which ttrpc uses unchanged. Success is not among them: it is not a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(i32)]
pub enum Code {
    Cancelled = 1,
    Unknown = 2,
    InvalidArgument = 3,
    DeadlineExceeded = 4,
    NotFound = 5,
    AlreadyExists = 6,
    PermissionDenied = 7,
    ResourceExhausted = 8,
    FailedPrecondition = 9,
    Aborted = 10,
    OutOfRange = 11,
    Unimplemented = 12,
    Internal = 13,
    Unavailable = 14,
    DataLoss = 15,
    Unauthenticated = 16,
}

impl Code {
    /// A code this version does not know is `Unknown`.
    fn parse(number: i32) -> Self {
        match number {
            1 => Self::Cancelled,
            3 => Self::InvalidArgument,
            4 => Self::DeadlineExceeded,
            5 => Self::NotFound,
            6 => Self::AlreadyExists,
            7 => Self::PermissionDenied,
            8 => Self::ResourceExhausted,
            9 => Self::FailedPrecondition,
            10 => Self::Aborted,
            11 => Self::OutOfRange,
            12 => Self::Unimplemented,
            13 => Self::Internal,
            14 => Self::Unavailable,
            15 => Self::DataLoss,
            16 => Self::Unauthenticated,
            _ => Self::Unknown,
        }
    }
}
