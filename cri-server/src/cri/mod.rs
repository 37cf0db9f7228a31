//! CRI v1: the RPCs, one file a noun. Each parses its request, asks `sandbox` or `image-service`, and answers.
//!
//! Nothing here holds state or performs an effect: a handler that tonic drops, because its client gave up, drops only the
//! wait for an answer. What is not built answers Unimplemented.

mod containers;
mod convert;
mod errors;
mod events;
mod exec;
mod image_service;
mod images;
mod info;
mod list;
mod metrics;
mod node;
mod node_info;
mod pods;
mod restore;
mod runtime_service;
mod stats;

use std::sync::Arc;

use ::image_service::images::Images;
use sandbox::{Pods, stats::Stats};
use store::Namespace;
use tokio_util::sync::CancellationToken;
use tonic::Status;

pub(crate) use sandbox::error::chain;

use crate::{config::Config, streaming::Streaming};

/// What all RPCs work on. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Cri {
    pub(crate) pods: Pods,
    pub(crate) stats: Stats,
    pub(crate) images: Images,
    pub(crate) streaming: Streaming,
    pub(crate) config: Arc<Config>,
    /// `k8s.io`, for everything that CRI makes.
    pub(crate) namespace: Namespace,
    /// Ends the streams that would not end by themselves, so that the server can.
    pub(crate) shutdown: CancellationToken,
}

/// Does all of `work`, also when the client gives up on the answer: for a handler that has more to do once an owner has
/// answered it. It ends with what the owner does, which has its deadlines.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, Status>> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::spawn(work).await;
    done.unwrap_or_else(|error| Err(Status::internal(format!("the call ended badly: {error}"))))
}
