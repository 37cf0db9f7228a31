//! Views as CRI's statuses and list items.

use api::cri;
use sandbox::model::{ContainerState, ContainerView, Image, PodState, PodView};

use super::{
    container::to_stop_signal, mount::to_mount, security::to_namespaces, to_map, to_nanoseconds, to_resources,
};

pub(super) fn to_pod_metadata(pod: &PodView) -> cri::PodSandboxMetadata {
    let name = pod.spec.name.clone();
    cri::PodSandboxMetadata { name: name.name, uid: name.uid, namespace: name.namespace, attempt: name.attempt }
}

pub(in crate::cri) fn to_pod_state(state: PodState) -> cri::PodSandboxState {
    match state {
        PodState::Ready => cri::PodSandboxState::SandboxReady,
        PodState::NotReady => cri::PodSandboxState::SandboxNotready,
    }
}

pub(in crate::cri) fn to_pod_status(pod: &PodView) -> cri::PodSandboxStatus {
    let mut ips = pod.ips.iter().cloned();
    cri::PodSandboxStatus {
        id: pod.id.to_string(),
        metadata: Some(to_pod_metadata(pod)),
        state: to_pod_state(pod.state) as i32,
        created_at: to_nanoseconds(pod.created_at),
        network: Some(cri::PodSandboxNetworkStatus {
            ip: ips.next().unwrap_or_default(),
            additional_ips: ips.map(|ip| cri::PodIp { ip }).collect(),
        }),
        linux: Some(cri::LinuxPodSandboxStatus {
            namespaces: Some(cri::Namespace { options: Some(to_namespaces(&pod.spec.namespaces)) }),
        }),
        labels: to_map(&pod.spec.labels),
        annotations: to_map(&pod.spec.annotations),
        runtime_handler: pod.spec.handler.clone(),
    }
}

pub(in crate::cri) fn to_pod_item(pod: &PodView) -> cri::PodSandbox {
    cri::PodSandbox {
        id: pod.id.to_string(),
        metadata: Some(to_pod_metadata(pod)),
        state: to_pod_state(pod.state) as i32,
        created_at: to_nanoseconds(pod.created_at),
        labels: to_map(&pod.spec.labels),
        annotations: to_map(&pod.spec.annotations),
        runtime_handler: pod.spec.handler.clone(),
    }
}

pub(super) fn to_container_metadata(container: &ContainerView) -> cri::ContainerMetadata {
    let name = container.spec.name.clone();
    cri::ContainerMetadata { name: name.name, attempt: name.attempt }
}

pub(in crate::cri) fn to_container_state(state: &ContainerState) -> cri::ContainerState {
    match state {
        ContainerState::Created => cri::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => cri::ContainerState::ContainerRunning,
        ContainerState::Exited { .. } => cri::ContainerState::ContainerExited,
        ContainerState::Unknown => cri::ContainerState::ContainerUnknown,
    }
}

pub(in crate::cri) fn to_container_item(container: &ContainerView) -> cri::Container {
    cri::Container {
        id: container.id.to_string(),
        pod_sandbox_id: container.pod.to_string(),
        metadata: Some(to_container_metadata(container)),
        image: Some(to_image_spec(&container.image, &container.image.requested)),
        image_ref: container.image.id.clone(),
        state: to_container_state(&container.state) as i32,
        created_at: to_nanoseconds(container.created_at),
        labels: to_map(&container.spec.labels),
        annotations: to_map(&container.spec.annotations),
        image_id: container.image.id.clone(),
    }
}

/// What users are shown as the image's id. Records of earlier versions have no digest.
fn image_ref(image: &Image) -> String {
    if image.digest.is_empty() { image.id.clone() } else { image.digest.clone() }
}

/// The image as it was asked for, by the name given.
fn to_image_spec(image: &Image, name: &str) -> cri::ImageSpec {
    cri::ImageSpec {
        image: name.to_owned(),
        annotations: to_map(&image.annotations),
        user_specified_image: image.user_specified.clone(),
        runtime_handler: image.runtime_handler.clone(),
        ..Default::default()
    }
}

/// Only the times that the state has are set; the others stay 0.
pub(in crate::cri) fn to_container_status(container: &ContainerView) -> cri::ContainerStatus {
    let spec = &container.spec;
    let mut status = cri::ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(to_container_metadata(container)),
        state: to_container_state(&container.state) as i32,
        created_at: to_nanoseconds(container.created_at),
        image: Some(to_image_spec(&container.image, &container.image.name)),
        image_ref: image_ref(&container.image),
        image_id: container.image.id.clone(),
        labels: to_map(&spec.labels),
        annotations: to_map(&spec.annotations),
        mounts: spec.mounts.iter().map(to_mount).collect(),
        log_path: container.log_path.as_ref().map(|path| path.display().to_string()).unwrap_or_default(),
        resources: Some(cri::ContainerResources { linux: Some(to_resources(&spec.resources)), windows: None }),
        user: Some(cri::ContainerUser {
            linux: Some(cri::LinuxContainerUser {
                uid: container.user.uid.into(),
                gid: container.user.gid.into(),
                supplemental_groups: container.user.supplemental_groups.iter().map(|gid| (*gid).into()).collect(),
            }),
        }),
        stop_signal: to_stop_signal(&container.stop_signal()) as i32,
        ..Default::default()
    };
    match &container.state {
        ContainerState::Created => {}
        ContainerState::Unknown => status.started_at = container.began.map(to_nanoseconds).unwrap_or_default(),
        ContainerState::Running { started_at, .. } => status.started_at = to_nanoseconds(*started_at),
        ContainerState::Exited { started_at, exit } => {
            status.started_at = started_at.map(to_nanoseconds).unwrap_or_default();
            status.finished_at = to_nanoseconds(exit.at);
            status.exit_code = exit.code;
            status.reason = exit.reason.clone();
            status.message = exit.message.clone();
        }
    }
    status
}
