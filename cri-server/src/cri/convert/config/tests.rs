use std::{collections::HashMap, sync::Arc};

use image_service::{digest::Digest, images::Image as NodeImage};
use prost::Message;
use prost_types::{DescriptorProto, FileDescriptorSet, field_descriptor_proto::Type};

use super::*;
use crate::cri::convert::{container::parse_container, image::to_sandbox_image, pod::parse_pod};

/// Every key is the name of a field of the message, and every message in it likewise.
fn check_names(descriptors: &FileDescriptorSet, value: &Value, message: &str) {
    let found = |file: &prost_types::FileDescriptorProto| -> Option<DescriptorProto> {
        file.message_type.iter().find(|known| format!(".{}.{}", file.package(), known.name()) == message).cloned()
    };
    let Some(message) = descriptors.file.iter().find_map(found) else { panic!("{message} is no message") };
    for (key, value) in value.as_object().unwrap_or_else(|| panic!("{value} is no {message:?}")) {
        let field = message.field.iter().find(|field| field.name() == key);
        let field = field.unwrap_or_else(|| panic!("{} has no field {key}", message.name()));
        let is_map =
            message.nested_type.iter().any(|nested| field.type_name().ends_with(&format!(".{}", nested.name())));
        match field.r#type() {
            Type::Message if is_map => assert!(value.is_object(), "{key}: {value}"),
            Type::Message => {
                let all = value.as_array().cloned().unwrap_or_else(|| vec![value.clone()]);
                all.iter().for_each(|value| check_names(descriptors, value, field.type_name()));
            }
            Type::String | Type::Bytes => assert!(value.is_string() || value.is_array(), "{key}: {value}"),
            Type::Bool => assert!(value.is_boolean(), "{key}: {value}"),
            _ => assert!(value.is_number() || value.is_array(), "{key}: {value}"),
        }
    }
}

fn strings(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn mapping() -> cri::IdMapping {
    cri::IdMapping { host_id: 1000, container_id: 0, length: 65536 }
}

fn namespaces_of_node() -> cri::NamespaceOption {
    cri::NamespaceOption {
        network: 2,
        pid: 1,
        ipc: 2,
        target_id: String::new(),
        userns_options: Some(cri::UserNamespace { mode: 0, uids: vec![mapping()], gids: vec![mapping()] }),
    }
}

fn limits() -> cri::LinuxContainerResources {
    cri::LinuxContainerResources { cpu_shares: 2, oom_score_adj: -998, ..Default::default() }
}

fn profile_of(kind: i32, name: &str) -> Option<cri::SecurityProfile> {
    Some(cri::SecurityProfile { profile_type: kind, localhost_ref: name.into() })
}

fn context() -> cri::LinuxSandboxSecurityContext {
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces_of_node()),
        selinux_options: Some(cri::SeLinuxOption { r#type: "t".into(), level: "s0".into(), ..Default::default() }),
        run_as_user: Some(cri::Int64Value { value: 0 }),
        run_as_group: Some(cri::Int64Value { value: 5 }),
        readonly_rootfs: true,
        supplemental_groups: vec![7],
        privileged: true,
        seccomp: profile_of(0, ""),
        apparmor: profile_of(2, "mine"),
        supplemental_groups_policy: 1,
        ..Default::default()
    }
}

#[test]
fn a_pods_config_is_shown_with_cris_names_and_numbers() {
    let config = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: "web".into(),
            uid: "u".into(),
            namespace: "prod".into(),
            attempt: 2,
        }),
        hostname: "web-0".into(),
        log_directory: "/var/log/pods/web".into(),
        dns_config: Some(cri::DnsConfig {
            servers: vec!["10.0.0.10".into()],
            searches: vec!["cluster.local".into()],
            options: vec!["ndots:5".into()],
        }),
        port_mappings: vec![cri::PortMapping {
            protocol: 1,
            container_port: 53,
            host_port: 5353,
            host_ip: "127.0.0.1".into(),
        }],
        labels: strings(&[("app", "web")]),
        annotations: strings(&[("note", "x")]),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/pod1".into(),
            security_context: Some(context()),
            sysctls: strings(&[("kernel.shm_rmid_forced", "1")]),
            overhead: Some(limits()),
            resources: Some(limits()),
        }),
        windows: None,
    };
    let shown = to_pod_config(&parse_pod(config, String::new()).unwrap());
    let limits = json!({"cpu_shares": 2, "oom_score_adj": -998});
    let ids = json!([{"host_id": 1000, "length": 65536}]);
    assert_eq!(
        shown,
        json!({
            "metadata": {"name": "web", "uid": "u", "namespace": "prod", "attempt": 2},
            "hostname": "web-0",
            "log_directory": "/var/log/pods/web",
            "dns_config": {"servers": ["10.0.0.10"], "searches": ["cluster.local"], "options": ["ndots:5"]},
            "port_mappings": [{"protocol": 1, "container_port": 53, "host_port": 5353, "host_ip": "127.0.0.1"}],
            "labels": {"app": "web"},
            "annotations": {"note": "x"},
            "linux": {
                "cgroup_parent": "/kubepods/pod1",
                "security_context": {
                    "namespace_options": {
                        "network": 2, "pid": 1, "ipc": 2, "userns_options": {"uids": ids, "gids": ids},
                    },
                    "selinux_options": {"type": "t", "level": "s0"},
                    "run_as_user": {"value": 0},
                    "run_as_group": {"value": 5},
                    "readonly_rootfs": true,
                    "supplemental_groups": [7],
                    "privileged": true,
                    "seccomp": {"profile_type": 0},
                    "apparmor": {"profile_type": 2, "localhost_ref": "mine"},
                    "supplemental_groups_policy": 1,
                },
                "sysctls": {"kernel.shm_rmid_forced": "1"},
                "overhead": limits,
                "resources": limits,
            },
        })
    );
    let descriptors = FileDescriptorSet::decode(api::CRI_DESCRIPTORS).unwrap();
    check_names(&descriptors, &shown, ".runtime.v1.PodSandboxConfig");
}

fn node_image() -> Arc<NodeImage> {
    let id = Digest::parse(&format!("sha256:{}", "2".repeat(64))).unwrap();
    let config = r#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}"#;
    Arc::new(NodeImage {
        target: id.clone(),
        id,
        tags: vec!["docker.io/library/app:1".into()],
        digests: Vec::new(),
        size: 0,
        chain_id: String::new(),
        config: serde_json::from_str(config).unwrap(),
        pinned: false,
    })
}

#[test]
fn a_containers_config_is_shown_with_cris_names_and_numbers() {
    let spec = cri::ImageSpec {
        image: "app:1".into(),
        annotations: strings(&[("i", "j")]),
        user_specified_image: "app".into(),
        runtime_handler: "runc".into(),
        image_ref: String::new(),
    };
    let of_pod = context();
    let config = cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "app".into(), attempt: 0 }),
        image: Some(spec.clone()),
        command: vec!["sh".into()],
        args: vec!["-c".into()],
        working_dir: "/srv".into(),
        envs: vec![cri::KeyValue { key: "A".into(), value: b"1".to_vec() }],
        mounts: vec![
            cri::Mount {
                container_path: "/data".into(),
                host_path: "/host".into(),
                readonly: true,
                selinux_relabel: true,
                propagation: 1,
                uid_mappings: vec![mapping()],
                gid_mappings: vec![mapping()],
                recursive_read_only: true,
                ..Default::default()
            },
            cri::Mount {
                container_path: "/volume".into(),
                readonly: true,
                image: Some(spec),
                image_sub_path: "a".into(),
                ..Default::default()
            },
        ],
        devices: vec![cri::Device {
            container_path: "/dev/x".into(),
            host_path: "/dev/null".into(),
            permissions: "rw".into(),
        }],
        labels: strings(&[("app", "web")]),
        annotations: strings(&[("note", "x")]),
        log_path: "app/0.log".into(),
        stdin: true,
        stdin_once: true,
        tty: true,
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(limits()),
            security_context: Some(cri::LinuxContainerSecurityContext {
                capabilities: Some(cri::Capability {
                    add_capabilities: vec!["NET_ADMIN".into()],
                    drop_capabilities: vec!["ALL".into()],
                    add_ambient_capabilities: vec!["CHOWN".into()],
                }),
                privileged: true,
                namespace_options: Some(cri::NamespaceOption { pid: 3, target_id: "c".into(), ..Default::default() }),
                selinux_options: of_pod.selinux_options,
                run_as_user: None,
                run_as_group: Some(cri::Int64Value { value: 0 }),
                run_as_username: "www".into(),
                readonly_rootfs: true,
                supplemental_groups: vec![7],
                no_new_privs: true,
                masked_paths: vec!["/proc/kcore".into()],
                readonly_paths: vec!["/proc/sys".into()],
                seccomp: of_pod.seccomp,
                apparmor: of_pod.apparmor,
                ..Default::default()
            }),
        }),
        cdi_devices: vec![cri::CdiDevice { name: "vendor.example/gpu=0".into() }],
        stop_signal: cri::Signal::Sigint as i32,
        windows: None,
    };
    let (parsed, requested) = parse_container(config, &|_| Some(node_image())).unwrap();
    let shown = to_container_config(&parsed, &to_sandbox_image(&node_image(), requested));
    let ids = json!([{"host_id": 1000, "length": 65536}]);
    assert_eq!(
        shown,
        json!({
            "metadata": {"name": "app"},
            "image": {
                "image": "app:1", "annotations": {"i": "j"}, "user_specified_image": "app", "runtime_handler": "runc",
            },
            "command": ["sh"],
            "args": ["-c"],
            "working_dir": "/srv",
            "envs": [{"key": "A", "value": "1"}],
            "mounts": [
                {
                    "container_path": "/data", "host_path": "/host", "readonly": true, "selinux_relabel": true,
                    "propagation": 1, "uidMappings": ids, "gidMappings": ids, "recursive_read_only": true,
                },
                {
                    "container_path": "/volume", "readonly": true, "image_sub_path": "a",
                    "image": {"image": "app:1", "annotations": {"i": "j"}, "user_specified_image": "app"},
                },
            ],
            "devices": [{"container_path": "/dev/x", "host_path": "/dev/null", "permissions": "rw"}],
            "labels": {"app": "web"},
            "annotations": {"note": "x"},
            "log_path": "app/0.log",
            "stdin": true,
            "stdin_once": true,
            "tty": true,
            "linux": {
                "resources": {"cpu_shares": 2, "oom_score_adj": -998},
                "security_context": {
                    "capabilities": {
                        "add_capabilities": ["NET_ADMIN"], "drop_capabilities": ["ALL"],
                        "add_ambient_capabilities": ["CHOWN"],
                    },
                    "privileged": true,
                    "namespace_options": {"pid": 3, "target_id": "c"},
                    "selinux_options": {"type": "t", "level": "s0"},
                    "run_as_group": {"value": 0},
                    "run_as_username": "www",
                    "readonly_rootfs": true,
                    "supplemental_groups": [7],
                    "no_new_privs": true,
                    "masked_paths": ["/proc/kcore"],
                    "readonly_paths": ["/proc/sys"],
                    "seccomp": {"profile_type": 0},
                    "apparmor": {"profile_type": 2, "localhost_ref": "mine"},
                },
            },
            "CDI_devices": [{"name": "vendor.example/gpu=0"}],
            "stop_signal": cri::Signal::Sigint as i32,
        })
    );
    let descriptors = FileDescriptorSet::decode(api::CRI_DESCRIPTORS).unwrap();
    check_names(&descriptors, &shown, ".runtime.v1.ContainerConfig");
}
