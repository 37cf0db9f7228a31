//! Errors of the domain as gRPC statuses, one code a variant. The message carries the whole chain on one line, since that is
//! all the kubelet shows in an event.

use image_service::images::{Error as ImagesError, PullError};
use sandbox::error::chain;
use tonic::Status;

/// A status travels in a header, where clients take 8 to 16 KiB with every special byte written as three.
const LONGEST: usize = 4096;

pub(super) fn sandbox_status(error: sandbox::Error) -> Status {
    let text = shortened(error.chain());
    match error {
        sandbox::Error::NotFound { .. } => Status::not_found(text),
        sandbox::Error::AlreadyExists(_) => Status::already_exists(text),
        sandbox::Error::Invalid(_) => Status::invalid_argument(text),
        sandbox::Error::Precondition(_) => Status::failed_precondition(text),
        sandbox::Error::Unavailable(_) => Status::unavailable(text),
        sandbox::Error::Deadline(_) => Status::deadline_exceeded(text),
        sandbox::Error::Unsupported(_) => Status::unimplemented(text),
        sandbox::Error::Failed { .. } => Status::unknown(text),
    }
}

/// The kubelet recognises an unreachable registry and a signature that does not hold by the text's start (cri-api
/// `pkg/errors`), in an error of code Unknown.
pub(super) fn pull_status(error: PullError) -> Status {
    let text = shortened(chain(&error));
    let is_disk_full = error.is_disk_full();
    match error {
        PullError::Reference { .. } => Status::invalid_argument(text),
        PullError::NotFound(_) => Status::not_found(text),
        PullError::Unavailable(_) | PullError::Stalled { .. } => {
            Status::unknown(format!("RegistryUnavailable: {text}"))
        }
        PullError::Policy { .. } => Status::unknown(format!("SignatureValidationFailed: {text}")),
        PullError::Failed { .. } if is_disk_full => Status::resource_exhausted(text),
        PullError::Registry(_) | PullError::Manifest { .. } | PullError::Failed { .. } => Status::unknown(text),
        PullError::Cancelled(_) => Status::cancelled(text),
    }
}

pub(super) fn image_status(error: ImagesError) -> Status {
    Status::unknown(shortened(chain(&error)))
}

/// A longer text, of a runtime or with what the client sent, would cost the client the whole answer. Its end goes.
pub(super) fn shortened(mut text: String) -> String {
    if text.len() > LONGEST {
        text.truncate(text.floor_char_boundary(LONGEST - "…".len()));
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Arc};

    use image_service::{policy::PolicyError, registry};
    use tonic::Code;

    use super::*;

    #[test]
    fn what_the_kubelet_looks_for_in_a_failed_pull_is_at_the_start_of_an_unknown_error() {
        let reference = || "registry.example/app:1".to_owned();
        let tried = || registry::Tried(Vec::new());
        let policy = PolicyError::NoVerdict { verifier: "v".into(), digest: "d".into(), problem: "p".into() };
        let digest = image_service::digest::Digest::sha256_of(b"x");
        let stalled = PullError::Stalled {
            reference: reference(),
            digest,
            at: 1,
            size: 2,
            after: std::time::Duration::from_secs(3),
        };
        let unavailable = registry::Error::Unavailable { reference: reference(), tried: tried() };
        let absent = registry::Error::NotFound { reference: reference(), tried: tried() };
        let no_room = io::Error::from(io::ErrorKind::StorageFull);
        let failed = ImagesError::Failed { what: "write the blob".into(), source: no_room.into() };
        let full = PullError::Failed { reference: reference(), source: Arc::new(failed) };
        for (error, code, start) in [
            (
                PullError::Unavailable(Arc::new(unavailable)),
                Code::Unknown,
                "RegistryUnavailable: registry.example/app:1: ",
            ),
            (stalled, Code::Unknown, "RegistryUnavailable: pull registry.example/app:1: "),
            (
                PullError::Policy { reference: reference(), source: Arc::new(policy) },
                Code::Unknown,
                "SignatureValidationFailed: pull registry.example/app:1: image verifier v gave no verdict on d: p",
            ),
            (PullError::NotFound(Arc::new(absent)), Code::NotFound, "registry.example/app:1: not found"),
            (full, Code::ResourceExhausted, "pull registry.example/app:1: write the blob: "),
        ] {
            let status = pull_status(error);
            assert_eq!(status.code(), code);
            assert!(status.message().starts_with(start), "{}", status.message());
        }
    }

    #[test]
    fn a_text_of_any_length_leaves_room_in_a_header() {
        assert_eq!(shortened("short".to_owned()), "short");
        let long = shortened("ä".repeat(LONGEST));
        assert!(long.len() <= LONGEST && long.ends_with("ä…"), "{} bytes", long.len());
    }
}
