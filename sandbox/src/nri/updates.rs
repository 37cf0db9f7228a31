//! What plugins ask of containers that exist: other limits, and their end. Each goes through its pod's owner.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use futures_util::future::join_all;

use crate::{Error, model::Resources, shared::Shared};

use super::{
    Hub, limits,
    proto::{ContainerEviction, ContainerUpdate, LinuxResources},
};

/// How long one update may take, with the operations of that container that it has to wait for.
const UPDATE: Duration = Duration::from_secs(10);

/// Limits that a container is to have.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LimitChange {
    /// In CRI's terms: those that are set, and no other.
    pub(crate) request: Resources,
    /// All of them, if a plugin has told them: some are beyond CRI's terms.
    pub(crate) by_plugin: Option<LinuxResources>,
    /// No plugin is asked about it.
    pub(crate) unasked: bool,
}

impl LimitChange {
    /// What a plugin says.
    pub(crate) fn by_plugin(limits: LinuxResources) -> Result<LimitChange, Error> {
        if limits.blockio_class.is_some() || limits.rdt_class.is_some() {
            // As with containerd; no OCI runtime could change all of what a class says.
            tracing::warn!(
                "an NRI plugin gives a class of block IO or RDT to a container that exists: it has no effect"
            );
        }
        Ok(LimitChange { request: limits::to_request(&limits)?, by_plugin: Some(limits), unasked: false })
    }
}

impl Hub {
    /// Updates containers; answers those that failed and were not allowed to. One that is gone or has ended needs none.
    pub(super) async fn update_all(&self, updates: Vec<ContainerUpdate>) -> Vec<(String, Error)> {
        let failed = self.update_each(updates).await.into_iter();
        let failed = failed.filter(|(update, error)| match error {
            Error::NotFound { .. } | Error::Precondition(_) => false,
            _ if update.ignore_failure => {
                tracing::warn!(container = update.container_id, error = error.chain(), "an update that may fail has");
                false
            }
            _ => true,
        });
        failed.map(|(update, error)| (update.container_id, error)).collect()
    }

    /// Updates containers; answers those that failed.
    pub(super) async fn update_each(&self, updates: Vec<ContainerUpdate>) -> Vec<(ContainerUpdate, Error)> {
        let Some(pods) = self.pods.get().and_then(Weak::upgrade) else { return Vec::new() };
        let updating = updates.into_iter().map(async |update| {
            let updated = update_one(&pods, &update).await;
            updated.err().map(|error| (update, error))
        });
        join_all(updating).await.into_iter().flatten().collect()
    }

    /// Stops containers, for the kubelet to see. Nobody waits for it.
    pub(super) fn evict(&self, evictions: Vec<ContainerEviction>) {
        let Some(pods) = self.pods.get().and_then(Weak::upgrade) else { return };
        for ContainerEviction { container_id: id, reason } in evictions {
            tracing::info!(container = id, reason, "an NRI plugin evicts a container");
            let pods = Arc::clone(&pods);
            self.tasks.spawn(async move {
                if let Err(error) = pods.stop_container(&id, Duration::ZERO).await {
                    tracing::warn!(container = id, error = error.chain(), "a container could not be evicted");
                }
            });
        }
    }
}

async fn update_one(pods: &Arc<Shared>, update: &ContainerUpdate) -> Result<(), Error> {
    let limits = update.linux.as_ref().and_then(|linux| linux.resources.clone());
    let Some(limits) = limits else { return Ok(()) };
    let change = LimitChange { unasked: true, ..LimitChange::by_plugin(limits)? };
    let id = &update.container_id;
    match tokio::time::timeout(UPDATE, pods.update_container(id, change)).await {
        Ok(updated) => updated,
        Err(_) => {
            Err(Error::Deadline(format!("update of container {id} for an NRI plugin: not done within {UPDATE:?}")))
        }
    }
}
