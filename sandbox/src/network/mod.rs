//! The pod's network: the seam that operations use, and its one real implementation, CNI plugins.
//!
//! A pod's attachments are a function of its id: whoever has the id and the netns path can detach, also after a crash.

use std::path::PathBuf;

use futures_util::future::BoxFuture;

use crate::{
    error::Error,
    model::{Dns, Id, PodName, PodNetwork, PortMapping, StringMap},
};

mod args;
mod cache;
mod cni;
mod config;
mod exec;
mod loopback;
mod plugin;
mod result;
mod runs;

#[cfg(test)]
mod tests;

pub use cni::{Cni, CniConfig, IpPreference};

/// One pod, as its network needs to know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub id: Id,
    /// The pod's runtime handler, which may have networks of its own.
    pub handler: String,
    /// The pinned namespace. For detach it may be gone (`None`, or a path where nothing is any more).
    pub netns: Option<PathBuf>,
    pub name: PodName,
    pub port_mappings: Vec<PortMapping>,
    pub dns: Option<Dns>,
    /// Carry the bandwidth limits, and reach plugins that ask for annotations.
    pub annotations: StringMap,
    /// Empty if the pod has none.
    pub cgroup_parent: String,
}

/// What operations ask of the network. Both verbs are idempotent in effect: detach of what is not attached succeeds, and
/// an attach that fails has detached what it had attached.
pub trait Network: Send + Sync {
    /// Whether pods can be attached now; the error's text is what CRI's Status shows.
    fn ready(&self) -> BoxFuture<'_, Result<(), Error>>;

    /// The same of every handler that has networks of its own.
    fn handlers_ready(&self) -> BoxFuture<'_, Vec<(String, Result<(), Error>)>> {
        Box::pin(std::future::ready(Vec::new()))
    }

    /// The networks that pods get, as JSON for people.
    fn describe(&self) -> BoxFuture<'_, serde_json::Value> {
        Box::pin(std::future::ready(serde_json::Value::Array(Vec::new())))
    }

    /// Gives the namespace its interfaces. Dropping it lets the plugins that run end by themselves and starts no others.
    fn attach(&self, pod: Attachment) -> BoxFuture<'_, Result<PodNetwork, Error>>;

    /// Takes everything back, also with a netns that is gone, once no plugin works for the pod any more.
    fn detach(&self, pod: Attachment) -> BoxFuture<'_, Result<(), Error>>;

    /// Lets plugins free what they hold for attachments that nobody knows of any more; `pods` are there, each with its
    /// handler.
    fn collect(&self, _pods: Vec<(Id, String)>) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(std::future::ready(Ok(())))
    }

    /// Pods that plugins may still hold something for: a detach is owed to each that no longer exists.
    fn cached(&self) -> BoxFuture<'_, Result<Vec<Id>, Error>>;
}
