//! What tests ask for: an image, a pod and a container with nothing special about them.

use windlass_sandbox::model::{
    Capabilities, ContainerName, ContainerSpec, Image, ImageVolume, Namespaces, PodName, PodSpec, Resources, RunAs,
    SecurityProfile, StringMap, VolumeMount,
};

pub(crate) fn image() -> Image {
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/pause"], "Volumes": {"/data": {}}},
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    Image {
        requested: "pause".into(),
        id: "sha256:1".into(),
        name: "pause".into(),
        chain_id: String::new(),
        config: serde_json::from_value(config).unwrap(),
    }
}

pub(crate) fn pod_spec(name: &str) -> PodSpec {
    PodSpec {
        name: PodName { name: name.into(), namespace: "default".into(), uid: "u".into(), attempt: 0 },
        hostname: name.into(),
        log_directory: String::new(),
        dns: None,
        port_mappings: Vec::new(),
        labels: StringMap::new(),
        annotations: StringMap::new(),
        cgroup_parent: String::new(),
        sysctls: StringMap::new(),
        namespaces: Namespaces::default(),
        run_as: RunAs::default(),
        readonly_rootfs: false,
        privileged: false,
        seccomp: SecurityProfile::Unset,
        apparmor: SecurityProfile::Unset,
        selinux: None,
        overhead: None,
        resources: None,
        handler: String::new(),
    }
}

pub(crate) fn container_spec(name: &str) -> ContainerSpec {
    ContainerSpec {
        name: ContainerName { name: name.into(), attempt: 0 },
        command: vec!["/app".into()],
        args: Vec::new(),
        working_dir: String::new(),
        env: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        cdi_devices: Vec::new(),
        labels: StringMap::new(),
        annotations: StringMap::new(),
        log_path: String::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        stop_signal: None,
        resources: Resources::default(),
        capabilities: Capabilities::default(),
        privileged: false,
        namespaces: Namespaces::default(),
        run_as: RunAs::default(),
        readonly_rootfs: false,
        no_new_privs: false,
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        seccomp: SecurityProfile::Unset,
        apparmor: SecurityProfile::Unset,
        selinux: None,
    }
}

/// A mount of an image at this path.
pub(crate) fn image_volume(path: &str, image: &str) -> VolumeMount {
    let volume = ImageVolume { requested: image.into(), id: format!("sha256:{image}"), ..ImageVolume::default() };
    VolumeMount { container_path: path.into(), readonly: true, image: Some(volume), ..VolumeMount::default() }
}
