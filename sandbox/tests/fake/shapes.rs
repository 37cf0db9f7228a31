//! What tests ask for: an image, a pod and a container with nothing special about them.

use windlass_sandbox::model::{ContainerName, ContainerSpec, Image, ImageVolume, PodName, PodSpec, VolumeMount};

pub(crate) fn image() -> Image {
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/pause"], "Volumes": {"/data": {}}},
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    Image {
        requested: "pause".into(),
        id: "sha256:1".into(),
        name: "pause".into(),
        digest: "sha256:1".into(),
        chain_id: String::new(),
        config: serde_json::from_value(config).unwrap(),
        ..Image::default()
    }
}

pub(crate) fn pod_spec(name: &str) -> PodSpec {
    PodSpec {
        name: PodName { name: name.into(), namespace: "default".into(), uid: "u".into(), attempt: 0 },
        hostname: name.into(),
        ..PodSpec::default()
    }
}

pub(crate) fn container_spec(name: &str) -> ContainerSpec {
    ContainerSpec {
        name: ContainerName { name: name.into(), attempt: 0 },
        command: vec!["/app".into()],
        ..ContainerSpec::default()
    }
}

/// A mount of an image at this path.
pub(crate) fn image_volume(path: &str, image: &str) -> VolumeMount {
    let volume = ImageVolume { requested: image.into(), id: format!("sha256:{image}"), ..ImageVolume::default() };
    VolumeMount { container_path: path.into(), readonly: true, image: Some(volume), ..VolumeMount::default() }
}
