//! CreateContainer, StartContainer, StopContainer, RemoveContainer, UpdateContainerResources, ContainerStatus,
//! ReopenContainerLog.

use std::{
    collections::{BTreeSet, HashMap},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use api::cri;
use sandbox::{checkpoint::Checkpoint, model::ContainerView};
use tonic::Status;

use super::{
    Cri,
    convert::{
        container::parse_container, image::to_sandbox_image, invalid, parse_name, parse_resources, required,
        status::to_container_status,
    },
    errors::sandbox_status,
    restore::absent,
    to_the_end,
};

impl Cri {
    pub(super) async fn create_container(
        &self,
        request: cri::CreateContainerRequest,
    ) -> Result<cri::CreateContainerResponse, Status> {
        let pod = parse_name(request.pod_sandbox_id, "pod_sandbox_id")?;
        required(request.sandbox_config, "sandbox_config")?;
        let images = |name: &str| self.images.resolve(&self.namespace, name);
        let (mut spec, requested) = parse_container(required(request.config, "config")?, &images)?;
        spec.seccomp = self.seccomp_of(spec.seccomp)?;
        let name = &requested.image;
        let found = images(name);
        let (found, restore) = match self.checkpoint_of(name, found.clone()).await? {
            Some(archive) => self.base_of(name, archive).await.map(|(base, restore)| (base, Some(restore)))?,
            None => (found.ok_or_else(|| absent(name))?, None),
        };
        // A pod that is not there is refused with the rest of what its owner looks at.
        if let Ok(pod) = self.pods.pod(&pod) {
            let volumes = spec.mounts.iter().filter_map(|mount| images(&mount.image.as_ref()?.id));
            for image in volumes.chain([Arc::clone(&found)]) {
                self.unpack_for(&image, Some(&pod.snapshotter), &pod.spec.handler).await?;
            }
        }
        let image = to_sandbox_image(&found, requested);
        let created = match restore {
            Some(restore) => self.pods.restore_container(&pod, spec, image, restore).await,
            None => self.pods.create_container(&pod, spec, image).await,
        };
        let id = created.map_err(sandbox_status)?;
        Ok(cri::CreateContainerResponse { container_id: id.to_string() })
    }

    pub(super) async fn checkpoint_container(
        &self,
        request: cri::CheckpointContainerRequest,
    ) -> Result<cri::CheckpointContainerResponse, Status> {
        /// What the kubelet allows a call of the runtime at most, where it sets no time-out itself.
        const DEFAULT: Duration = Duration::from_secs(600);
        let id = parse_name(request.container_id, "container_id")?;
        let location = PathBuf::from(parse_name(request.location, "location")?);
        if !location.is_absolute() || location.file_name().is_none() {
            return Err(invalid("location", format_args!("{} is not the absolute path of a file", location.display())));
        }
        let timeout = match u64::try_from(request.timeout) {
            Err(_) => return Err(invalid("timeout", format_args!("{} seconds is negative", request.timeout))),
            Ok(0) => DEFAULT,
            Ok(seconds) => Duration::from_secs(seconds),
        };
        if !self.config.runtime.checkpoints {
            return Err(Status::unimplemented("checkpoints are switched off; enable_criu = true allows them"));
        }
        let checkpoint = Checkpoint { location, timeout };
        self.pods.checkpoint_container(&id, checkpoint).await.map_err(sandbox_status)?;
        Ok(cri::CheckpointContainerResponse {})
    }

    pub(super) async fn start_container(
        &self,
        request: cri::StartContainerRequest,
    ) -> Result<cri::StartContainerResponse, Status> {
        let id = parse_name(request.container_id, "container_id")?;
        self.pods.start_container(&id).await.map_err(sandbox_status)?;
        Ok(cri::StartContainerResponse {})
    }

    pub(super) async fn stop_container(
        &self,
        request: cri::StopContainerRequest,
    ) -> Result<cri::StopContainerResponse, Status> {
        let id = parse_name(request.container_id, "container_id")?;
        let seconds = u64::try_from(request.timeout)
            .map_err(|_| invalid("timeout", format_args!("{} seconds is negative", request.timeout)))?;
        self.pods.stop_container(&id, Duration::from_secs(seconds)).await.map_err(sandbox_status)?;
        Ok(cri::StopContainerResponse {})
    }

    pub(super) async fn remove_container(
        &self,
        request: cri::RemoveContainerRequest,
    ) -> Result<cri::RemoveContainerResponse, Status> {
        let id = parse_name(request.container_id, "container_id")?;
        let images = self.pods.container(&id).map(|container| images_of(&container)).unwrap_or_default();
        let cri = self.clone();
        to_the_end(async move {
            cri.pods.remove_container(&id).await.map_err(sandbox_status)?;
            images.iter().for_each(|image| cri.images.let_go(&cri.namespace, image));
            Ok(cri::RemoveContainerResponse {})
        })
        .await
    }

    /// The annotations are nobody's: NRI has no field for them.
    pub(super) async fn update_container_resources(
        &self,
        request: cri::UpdateContainerResourcesRequest,
    ) -> Result<cri::UpdateContainerResourcesResponse, Status> {
        let id = parse_name(request.container_id, "container_id")?;
        let update = parse_resources(required(request.linux, "linux")?, "linux")?;
        self.pods.update_container(&id, update).await.map_err(sandbox_status)?;
        Ok(cri::UpdateContainerResourcesResponse {})
    }

    pub(super) async fn reopen_log(
        &self,
        request: cri::ReopenContainerLogRequest,
    ) -> Result<cri::ReopenContainerLogResponse, Status> {
        let id = parse_name(request.container_id, "container_id")?;
        self.pods.reopen_log(&id).await.map_err(sandbox_status)?;
        Ok(cri::ReopenContainerLogResponse {})
    }

    pub(super) fn container_status(
        &self,
        request: cri::ContainerStatusRequest,
    ) -> Result<cri::ContainerStatusResponse, Status> {
        let id = parse_name(request.container_id, "container_id")?;
        let container = self.pods.container(&id).map_err(sandbox_status)?;
        Ok(cri::ContainerStatusResponse {
            status: Some(to_container_status(&container)),
            info: if request.verbose { self.container_info(&container) } else { HashMap::new() },
        })
    }
}

/// Ids of the images that the container stands on: its own, and those of its volumes.
pub(super) fn images_of(container: &ContainerView) -> BTreeSet<String> {
    let volumes = container.spec.mounts.iter().filter_map(|mount| mount.image.as_ref()).map(|image| &image.id);
    volumes.chain([&container.image.id]).cloned().collect()
}
