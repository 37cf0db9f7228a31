//! RunPodSandbox, StopPodSandbox, RemovePodSandbox, PodSandboxStatus.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::SystemTime,
};

use ::image_service::images::{Image, PullRequest};
use api::cri;
use sandbox::{
    model::{NamespaceMode, PodResources, PodSpec, PodView, SecurityProfile},
    netns,
};
use tonic::Status;

use super::{
    Cri,
    containers::images_of,
    convert::{
        image::{Requested, to_sandbox_image},
        invalid, parse_name, parse_resources,
        pod::parse_pod,
        required,
        security::parse_profile,
        status::{to_container_status, to_pod_status},
        to_nanoseconds,
    },
    errors::{pull_status, sandbox_status},
    to_the_end,
};

/// The annotation by which pods asked for a runtime that isolates them better, before Kubernetes had runtime classes. Such a
/// pod must not run with less than it asks for because nobody reads it any more.
const UNTRUSTED: &str = "io.kubernetes.cri.untrusted-workload";

/// The handler that an untrusted pod gets (containerd's `RuntimeUntrusted`).
const UNTRUSTED_HANDLER: &str = "untrusted";

impl Cri {
    pub(super) async fn run_pod(
        &self,
        request: cri::RunPodSandboxRequest,
    ) -> Result<cri::RunPodSandboxResponse, Status> {
        let mut spec = parse_pod(required(request.config, "config")?, request.runtime_handler)?;
        demand_isolation(&mut spec)?;
        if !spec.handler.is_empty() {
            self.pods.handler(&spec.handler).map_err(|error| invalid("runtime_handler", error))?;
        }
        spec.seccomp = self.seccomp_of(spec.seccomp)?;
        let pause = self.pause_image(&spec.handler).await?;
        let image = to_sandbox_image(&pause, Requested::by_name(self.config.images.pause_image.clone()));
        let id = self.pods.run(spec, image).await.map_err(sandbox_status)?;
        Ok(cri::RunPodSandboxResponse { pod_sandbox_id: id.to_string() })
    }

    /// The sandbox image, pulled now if the node does not have it yet and the handler lets it.
    async fn pause_image(&self, handler: &str) -> Result<Arc<Image>, Status> {
        let reference = &self.config.images.pause_image;
        let runtime = &self.config.runtime;
        let name = if handler.is_empty() { &runtime.default_handler } else { handler };
        let snapshotter = self.pods.handlers().get(name).and_then(|handler| handler.snapshotter.clone());
        if let Some(image) = self.images.resolve(&self.namespace, reference) {
            self.unpack_for(&image, snapshotter.as_deref(), name).await?;
            return Ok(image);
        }
        if runtime.handlers.get(name).is_some_and(|handler| handler.disable_pause_image_pull) {
            return Err(Status::not_found(format!(
                "sandbox image {reference} is not on the node, and runtime {name} has disable_pause_image_pull"
            )));
        }
        let request = PullRequest {
            namespace: self.namespace.clone(),
            reference: reference.clone(),
            credentials: None,
            snapshotter,
        };
        self.images.pull(request).await.map_err(|error| {
            let status = pull_status(error);
            let what =
                format!("sandbox image {reference} is not on the node and cannot be pulled: {}", status.message());
            Status::new(status.code(), what)
        })
    }

    /// A profile that the client left unset is what the configuration says (`unset_seccomp_profile`).
    pub(super) fn seccomp_of(&self, profile: SecurityProfile) -> Result<SecurityProfile, Status> {
        match profile {
            SecurityProfile::Unset => {
                parse_profile(None, &self.config.runtime.unset_seccomp_profile, "unset_seccomp_profile")
            }
            set => Ok(set),
        }
    }

    pub(super) async fn stop_pod(
        &self,
        request: cri::StopPodSandboxRequest,
    ) -> Result<cri::StopPodSandboxResponse, Status> {
        let id = parse_name(request.pod_sandbox_id, "pod_sandbox_id")?;
        self.pods.stop(&id).await.map_err(sandbox_status)?;
        Ok(cri::StopPodSandboxResponse {})
    }

    pub(super) async fn remove_pod(
        &self,
        request: cri::RemovePodSandboxRequest,
    ) -> Result<cri::RemovePodSandboxResponse, Status> {
        let id = parse_name(request.pod_sandbox_id, "pod_sandbox_id")?;
        let images = self.images_in(&id);
        let cri = self.clone();
        to_the_end(async move {
            cri.pods.remove(&id).await.map_err(sandbox_status)?;
            images.iter().for_each(|image| cri.images.let_go(&cri.namespace, image));
            Ok(cri::RemovePodSandboxResponse {})
        })
        .await
    }

    /// Ids of the images that the pod and its containers stand on.
    fn images_in(&self, id: &str) -> BTreeSet<String> {
        let Ok(pod) = self.pods.pod(id) else { return BTreeSet::new() };
        let containers = self.pods.containers();
        let own = containers.iter().filter(|container| container.pod == pod.id);
        own.flat_map(|container| images_of(container)).chain([pod.image.id.clone()]).collect()
    }

    /// The pod's cgroup is the kubelet's: what is told here is kept for status, as other runtimes do.
    pub(super) async fn update_pod_resources(
        &self,
        request: cri::UpdatePodSandboxResourcesRequest,
    ) -> Result<cri::UpdatePodSandboxResourcesResponse, Status> {
        let id = parse_name(request.pod_sandbox_id, "pod_sandbox_id")?;
        let update = PodResources {
            overhead: request.overhead.map(|told| parse_resources(told, "overhead")).transpose()?,
            resources: request.resources.map(|told| parse_resources(told, "resources")).transpose()?,
        };
        self.pods.update_pod(&id, update).await.map_err(sandbox_status)?;
        Ok(cri::UpdatePodSandboxResourcesResponse {})
    }

    pub(super) fn pod_status(
        &self,
        request: cri::PodSandboxStatusRequest,
    ) -> Result<cri::PodSandboxStatusResponse, Status> {
        let pod = self.pods.pod(&parse_name(request.pod_sandbox_id, "pod_sandbox_id")?).map_err(sandbox_status)?;
        let containers_statuses = self
            .pods
            .containers()
            .iter()
            .filter(|container| container.pod == pod.id)
            .map(|container| to_container_status(container))
            .collect();
        let mut status = to_pod_status(&pod);
        if network_is_gone(&pod) {
            // A ready pod without an address is one that the kubelet makes anew; no container could be started in this one.
            status.network = Some(cri::PodSandboxNetworkStatus::default());
        }
        Ok(cri::PodSandboxStatusResponse {
            status: Some(status),
            info: if request.verbose { self.pod_info(&pod) } else { HashMap::new() },
            containers_statuses,
            timestamp: to_nanoseconds(SystemTime::now()),
        })
    }
}

/// Whether the pod's network namespace is not pinned any more: the pod was stopped, or somebody has taken the mount away.
pub(super) fn network_is_gone(pod: &PodView) -> bool {
    pod.netns.as_deref().is_some_and(|netns| !netns::is_pinned(netns))
}

/// Gives a pod that says it is untrusted the handler for such pods, or refuses what that could not keep apart.
fn demand_isolation(spec: &mut PodSpec) -> Result<(), Status> {
    if spec.annotations.get(UNTRUSTED).is_none_or(|value| value != "true") {
        return Ok(());
    }
    let field = format!("config.annotations.{UNTRUSTED}");
    if !["", UNTRUSTED_HANDLER].contains(&spec.handler.as_str()) {
        let what = format_args!("asks for handler {UNTRUSTED_HANDLER:?}, and runtime_handler for {:?}", spec.handler);
        return Err(invalid(&field, what));
    }
    let modes = &spec.namespaces;
    for (mode, name) in [(modes.network, "network"), (modes.pid, "pid"), (modes.ipc, "ipc")] {
        if mode == NamespaceMode::Node {
            return Err(invalid(&field, format_args!("an untrusted pod cannot be in the host's {name} namespace")));
        }
    }
    UNTRUSTED_HANDLER.clone_into(&mut spec.handler);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_untrusted_pod_gets_the_handler_for_such_pods_or_nothing() {
        let check = |value: &str, handler: &str, network: i32, expected: Result<&str, &str>| {
            let config = cri::PodSandboxConfig {
                metadata: Some(cri::PodSandboxMetadata {
                    name: "n".into(),
                    uid: "u".into(),
                    namespace: "s".into(),
                    attempt: 0,
                }),
                annotations: [(UNTRUSTED.to_owned(), value.to_owned())].into(),
                linux: Some(cri::LinuxPodSandboxConfig {
                    security_context: Some(cri::LinuxSandboxSecurityContext {
                        namespace_options: Some(cri::NamespaceOption { network, ..Default::default() }),
                        ..Default::default()
                    }),
                    ..Default::default()
                }),
                ..Default::default()
            };
            let mut spec = parse_pod(config, handler.to_owned()).unwrap();
            let made = demand_isolation(&mut spec).map(|()| spec.handler);
            let made = made.map_err(|status| status.message().to_owned());
            let prefix = |why: &str| format!("config.annotations.{UNTRUSTED}: {why}");
            assert_eq!(made, expected.map(str::to_owned).map_err(prefix), "{value} {handler} {network}");
        };
        let host = cri::NamespaceMode::Node as i32;
        check("true", "", 0, Ok("untrusted"));
        check("true", "untrusted", 0, Ok("untrusted"));
        check("false", "", host, Ok(""));
        check("true", "runc", 0, Err("asks for handler \"untrusted\", and runtime_handler for \"runc\""));
        check("true", "", host, Err("an untrusted pod cannot be in the host's network namespace"));
    }
}
