//! containerd's own API, as far as those who look at a node need it: version, containers and tasks, read only. The kubelet's
//! cAdvisor asks these for the labels, the image and the first process of each cgroup; without them it knows no container
//! metrics and no network of a pod. Everything else answers Unimplemented: pods are changed through CRI.
//!
//! All that there is, is in the namespace of CRI's pods; a pod is its pause container.

mod containers;
mod tasks;

use std::{sync::Arc, time::SystemTime};

use api::containerd::services::version::v1::{VersionResponse, version_server::Version};
use prost_types::Timestamp;
use sandbox::Pods;
use store::Namespace;
use tonic::{Request, Response, Status};

use crate::config::Config;

/// What all calls work on. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Containerd {
    pub(crate) pods: Pods,
    pub(crate) config: Arc<Config>,
    pub(crate) namespace: Namespace,
}

impl Containerd {
    /// Whether a request is about the one namespace that has something.
    fn is_ours<T>(&self, request: &Request<T>) -> Result<bool, Status> {
        Ok(namespace_of(request)? == self.namespace.as_str())
    }
}

/// The namespace that the client has to name.
fn namespace_of<T>(request: &Request<T>) -> Result<&str, Status> {
    let named = request.metadata().get("containerd-namespace").and_then(|value| value.to_str().ok());
    let missing = || Status::failed_precondition("namespace is required: failed precondition");
    named.filter(|name| !name.is_empty()).ok_or_else(missing)
}

fn read_only<T>(what: &str) -> Result<T, Status> {
    Err(Status::unimplemented(format!("{what} is not built: pods and containers are changed through CRI")))
}

fn to_timestamp(time: SystemTime) -> Timestamp {
    Timestamp::from(time)
}

#[tonic::async_trait]
impl Version for Containerd {
    async fn version(&self, _: Request<()>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse { version: crate::VERSION.to_owned(), revision: String::new() }))
    }
}
