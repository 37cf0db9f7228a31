//! What operations act on, and how an operation runs its blocking and its uninterruptible steps.

use std::{
    collections::BTreeMap,
    future::Future,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use snapshotter::Snapshotter;
use tokio::sync::Notify;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Config, Error, Handler, blockio,
    host::Host,
    launcher::{Bundle, Launcher},
    model::{ContainerSpec, Id},
    network::{Attachment, Network},
    node::Node,
    nri::{Admission, Nri},
    oci::HandlerOptions,
    paths::Paths,
    rdt,
    record::PodRecord,
    selinux,
    store::Rows,
};

/// Everything outside of the owners' memory.
pub(crate) struct World {
    pub(crate) config: Config,
    pub(crate) paths: Paths,
    pub(crate) rows: Rows,
    pub(crate) snapshotters: BTreeMap<String, Arc<dyn Snapshotter>>,
    pub(crate) network: Arc<dyn Network>,
    pub(crate) launcher: Arc<dyn Launcher>,
    pub(crate) node: Arc<dyn Node>,
    pub(crate) host: Host,
    pub(crate) nri: Nri,
    pub(crate) block_io: blockio::Classes,
    pub(crate) rdt: rdt::Classes,
    /// Only where labels are enabled and the host has SELinux.
    pub(crate) selinux: Option<selinux::Policy>,
    /// This boot's id.
    pub(crate) boot: String,
    /// Told of snapshots whose space is to be freed.
    pub(crate) discarded: Notify,
}

impl World {
    /// The handler of that name; it may have left the configuration since the pod was made.
    pub(crate) fn handler(&self, name: &str) -> Result<&Handler, Error> {
        self.config.handler(name)
    }

    pub(crate) fn bundle(&self, pod: &PodRecord, id: &Id) -> Bundle {
        // A handler that is gone from the configuration must not keep its pods from being removed.
        let handler = self.handler(&pod.handler).or_else(|_| self.handler(&self.config.default_handler));
        Bundle { id: id.clone(), path: self.paths.bundle(id), handler: handler.cloned().unwrap_or_default() }
    }

    pub(crate) fn snapshotter(&self, name: &str) -> Result<Arc<dyn Snapshotter>, Error> {
        let found = self.snapshotters.get(name);
        found.cloned().ok_or_else(|| Error::Invalid(format!("snapshotter {name:?} is not configured")))
    }

    /// Removes a snapshot; a missing one is removed. Blocks, but not for the files in it, of which there may be very many:
    /// [`World::free_discarded`] deletes them.
    pub(crate) fn discard(&self, snapshotter: &str, key: &str) -> Result<(), Error> {
        match self.snapshotter(snapshotter)?.discard(&self.config.namespace, key) {
            Ok(()) => self.discarded.notify_one(),
            Err(snapshotter::Error::NotFound { .. }) => {}
            Err(error) => return Err(Error::failed(format!("remove snapshot {key}"), error)),
        }
        Ok(())
    }

    /// Deletes what snapshots held that were discarded, until `closing`; what is left then, the next start finds.
    pub(crate) async fn free_discarded(self: Arc<World>, closing: CancellationToken) {
        while closing.run_until_cancelled(self.discarded.notified()).await.is_some() {
            let world = Arc::clone(&self);
            let emptied = tokio::task::spawn_blocking(move || {
                for (name, snapshotter) in &world.snapshotters {
                    if let Err(error) = snapshotter.empty_trash() {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(snapshotter = name, error, "the space of removed snapshots is not free yet");
                    }
                }
            });
            if let Some(Err(error)) = closing.run_until_cancelled(emptied).await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "the space of removed snapshots is not free yet"
                );
            }
        }
    }

    pub(crate) fn netns(&self, pod: &PodRecord) -> Option<PathBuf> {
        (!pod.host_network()).then(|| self.paths.netns(&pod.id))
    }

    /// The pod's user namespace, if it has one of its own.
    pub(crate) fn userns(&self, pod: &PodRecord) -> Option<PathBuf> {
        pod.spec.namespaces.user.is_some().then(|| self.paths.userns(&pod.id))
    }

    pub(crate) fn attachment(&self, pod: &PodRecord) -> Attachment {
        Attachment {
            id: pod.id.clone(),
            handler: pod.handler.clone(),
            netns: self.netns(pod),
            name: pod.spec.name.clone(),
            port_mappings: pod.spec.port_mappings.clone(),
            dns: pod.spec.dns.clone(),
            annotations: pod.spec.annotations.clone(),
            cgroup_parent: pod.spec.cgroup_parent.clone(),
        }
    }

    /// The SELinux labels of a container of the pod, or of its pause container; `None` where nothing is labelled.
    pub(crate) fn labels(&self, pod: &PodRecord, container: Option<&ContainerSpec>) -> Option<selinux::Labels> {
        let policy = self.selinux.as_ref()?;
        let own = container.and_then(|container| container.selinux.as_ref());
        Some(policy.labels(&pod.selinux_level, &[pod.spec.selinux.as_ref(), own]))
    }

    /// The cgroup parent that the pod's containers get.
    pub(crate) fn cgroup_parent<'a>(&'a self, pod: &'a PodRecord) -> &'a str {
        match pod.spec.cgroup_parent.as_str() {
            "" => &self.config.default_cgroup_parent,
            parent => parent,
        }
    }
}

/// The parts of a handler that the OCI spec of a pod with this cgroup parent depends on.
pub(crate) fn handler_options(handler: &Handler, cgroup_parent: &str) -> HandlerOptions {
    HandlerOptions {
        systemd_cgroup: handler.systemd_cgroup(cgroup_parent),
        privileged_without_host_devices: handler.privileged_without_host_devices,
        recursive_readonly_mounts: handler.features.recursive_readonly_mounts,
        mapped_mounts: handler.features.user_namespaces,
        keep_privileged_ports: handler.keep_privileged_ports,
        keep_ping_group_range: handler.keep_ping_group_range,
        pod_annotations: handler.pod_annotations.clone(),
        container_annotations: handler.container_annotations.clone(),
        privileged_without_host_devices_all_devices_allowed: handler.all_devices_allowed,
        cgroup_writable: handler.cgroup_writable,
        disable_proc_mount: handler.disable_proc_mount,
        device_ownership: handler.device_ownership,
        ignore_blockio: handler.ignore_blockio,
        ignore_rdt: handler.ignore_rdt,
        base_spec: handler.base_spec.clone(),
    }
}

/// A running operation: its token, and the steps that must have ended before anything may be torn down.
#[derive(Clone, Default)]
pub(crate) struct Operation {
    /// Cancelled when the operation is to give up.
    pub(crate) token: CancellationToken,
    /// Its leave to ask plugins. The owner keeps the operation, and with it this, until the result is published.
    pub(crate) admission: Arc<OnceLock<Admission>>,
    steps: TaskTracker,
}

impl Operation {
    /// Runs a blocking step to its end, also when the operation is interrupted meanwhile: a step that is half done
    /// cannot be torn down.
    pub(crate) async fn blocking<T: Send + 'static>(
        &self,
        step: impl FnOnce() -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let done = self.steps.spawn_blocking(step).await;
        done.unwrap_or_else(|error| Err(Error::failed("run a step on the blocking pool", error)))
    }

    /// The same for an asynchronous step, which has a deadline of its own.
    pub(crate) async fn step<T: Send + 'static>(
        &self,
        step: impl Future<Output = Result<T, Error>> + Send + 'static,
    ) -> Result<T, Error> {
        let done = self.steps.spawn(step).await;
        done.unwrap_or_else(|error| Err(Error::failed("run a step", error)))
    }

    /// Runs `work` until it ends or the operation is interrupted, and returns only when no step runs any more.
    pub(crate) async fn until_interrupted<T>(&self, work: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        let ended = tokio::select! {
            biased;
            () = self.token.cancelled() => Err(Error::Unavailable("interrupted by a stop or a remove".into())),
            ended = work => ended,
        };
        self.steps.close();
        self.steps.wait().await;
        self.steps.reopen();
        ended
    }
}

/// Runs `work` with a deadline.
pub(crate) async fn within<T>(
    limit: Duration,
    what: impl FnOnce() -> String,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(Error::Deadline(format!("{}: not done within {limit:?}", what()))))
}
