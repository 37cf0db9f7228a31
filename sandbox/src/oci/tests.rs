//! Whole specs, as JSON, from the inputs that decide their form.

use std::path::Path;

use oci_spec::{image::ImageConfiguration, runtime::Capability, runtime::Spec};
use serde_json::Value;

use super::{
    ContainerInput, HandlerOptions, OCI_VERSION, PodInput, SandboxFiles, container, mounts::ResolvedMount, pod,
};
use crate::{
    error::Error,
    host::{CgroupMode, Host, HugePages},
    model::{
        ContainerName, ContainerSpec, ContainerUser, Id, IdMapping, Image, NamespaceMode, Namespaces, PodName, PodSpec,
        Propagation, Resources, SecurityProfile, StringMap, UserNamespace,
    },
};

/// Inputs with their own values, to borrow from and to change.
struct World {
    id: Id,
    sandbox_id: Id,
    pod: PodSpec,
    container: ContainerSpec,
    image: Image,
    user: ContainerUser,
    host: Host,
    handler: HandlerOptions,
    files: SandboxFiles,
    mounts: Vec<ResolvedMount>,
}

impl World {
    fn new() -> World {
        World {
            id: Id::parse(&"c".repeat(64)).unwrap(),
            sandbox_id: Id::parse(&"5".repeat(64)).unwrap(),
            pod: pod_spec(),
            container: container_spec(),
            image: image(),
            user: ContainerUser { uid: 0, gid: 0, supplemental_groups: vec![0] },
            host: host(),
            handler: HandlerOptions::default(),
            files: SandboxFiles {
                hostname: "/pod/hostname".into(),
                hosts: "/pod/hosts".into(),
                resolv_conf: "/pod/resolv.conf".into(),
                shm: "/pod/shm".into(),
            },
            mounts: Vec::new(),
        }
    }

    fn netns(&self) -> Option<&Path> {
        (self.pod.namespaces.network != NamespaceMode::Node).then(|| Path::new("/run/netns/pod"))
    }

    fn userns(&self) -> Option<&Path> {
        self.pod.namespaces.user.is_some().then(|| Path::new("/pod/user"))
    }

    fn try_pod(&self) -> Result<Spec, Error> {
        pod(&PodInput {
            id: &self.sandbox_id,
            pod: &self.pod,
            image: &self.image,
            user: &self.user,
            netns: self.netns(),
            userns: self.userns(),
            files: &self.files,
            host: &self.host,
            handler: &self.handler,
            oci_version: OCI_VERSION,
            seccomp: None,
        })
    }

    fn try_container(&self) -> Result<Spec, Error> {
        container(&ContainerInput {
            id: &self.id,
            container: &self.container,
            image: &self.image,
            sandbox_id: &self.sandbox_id,
            pod: &self.pod,
            sandbox_pid: 42,
            netns: self.netns(),
            userns: self.userns(),
            target_pid: None,
            files: &self.files,
            user: &self.user,
            mounts: &self.mounts,
            devices: &[],
            host: &self.host,
            handler: &self.handler,
            oci_version: OCI_VERSION,
            seccomp: None,
        })
    }

    fn pod(&self) -> Value {
        sorted(&self.try_pod().unwrap())
    }

    fn container(&self) -> Value {
        sorted(&self.try_container().unwrap())
    }

    fn refused(&self) -> String {
        self.try_container().unwrap_err().to_string()
    }
}

/// As JSON, with the sets of capabilities in order.
fn sorted(spec: &Spec) -> Value {
    let mut json = serde_json::to_value(spec).unwrap();
    for set in json["process"]["capabilities"].as_object_mut().unwrap().values_mut() {
        set.as_array_mut().unwrap().sort_by_key(|name| name.as_str().unwrap().to_owned());
    }
    json
}

fn pod_spec() -> PodSpec {
    PodSpec {
        name: PodName { name: "web".into(), namespace: "prod".into(), uid: "u-1".into(), attempt: 0 },
        hostname: "web-0".into(),
        log_directory: "/var/log/pods/web".into(),
        cgroup_parent: "/kubepods/podu-1".into(),
        namespaces: Namespaces { pid: NamespaceMode::Container, ..Namespaces::default() },
        ..PodSpec::default()
    }
}

fn container_spec() -> ContainerSpec {
    ContainerSpec {
        name: ContainerName { name: "app".into(), attempt: 0 },
        env: vec![("MODE".into(), "test".into())],
        log_path: "app/0.log".into(),
        namespaces: Namespaces { pid: NamespaceMode::Container, ..Namespaces::default() },
        masked_paths: vec!["/proc/kcore".into()],
        readonly_paths: vec!["/proc/sys".into()],
        ..ContainerSpec::default()
    }
}

fn image() -> Image {
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []},
        "config": {"Entrypoint": ["/app"], "Cmd": ["serve"], "Env": ["LANG=C"], "WorkingDir": "/srv"},
    });
    Image {
        requested: "app:1".into(),
        id: "sha256:1".into(),
        name: "docker.io/library/app:1".into(),
        digest: "docker.io/library/app@sha256:3".into(),
        chain_id: "sha256:2".into(),
        config: serde_json::from_value::<ImageConfiguration>(config).unwrap(),
        ..Image::default()
    }
}

pub(super) fn host() -> Host {
    Host {
        hostname: "node".into(),
        kernel: (6, 1),
        cgroup: CgroupMode::V2,
        seccomp: true,
        apparmor: false,
        capabilities: vec![Capability::Chown, Capability::NetAdmin],
        lowest_oom_score_adj: -1000,
        huge_pages: HugePages::Limited(vec!["2MB".into()]),
        swap: true,
    }
}

#[test]
fn a_pause_container_of_an_ordinary_pod() {
    insta::assert_json_snapshot!(World::new().pod());
}

#[test]
fn a_pause_container_in_the_hosts_namespaces() {
    let mut world = World::new();
    let node = NamespaceMode::Node;
    world.pod.namespaces = Namespaces { network: node, pid: node, ipc: node, ..Namespaces::default() };
    world.host.lowest_oom_score_adj = 0;
    let spec = world.pod();
    assert_eq!(spec["hostname"], Value::Null);
    assert_eq!(spec["process"]["oomScoreAdj"], 0);
    insta::assert_json_snapshot!(spec["linux"]);
}

#[test]
fn an_ordinary_container() {
    insta::assert_json_snapshot!(World::new().container());
}

#[test]
fn a_privileged_container() {
    let mut world = World::new();
    world.pod.privileged = true;
    world.container.privileged = true;
    world.container.seccomp = SecurityProfile::RuntimeDefault;
    let spec = world.container();
    assert_eq!(spec["process"]["capabilities"]["bounding"], serde_json::json!(["CAP_CHOWN", "CAP_NET_ADMIN"]));
    insta::assert_json_snapshot!((&spec["mounts"], &spec["linux"]));
    world.pod.privileged = false;
    assert_eq!(world.refused(), "no privileged container allowed in sandbox");
}

#[test]
fn a_terminal_with_a_user_and_groups() {
    let mut world = World::new();
    world.container.tty = true;
    world.container.no_new_privs = true;
    world.container.command = vec!["sh".into()];
    world.container.working_dir = "/home".into();
    world.user = ContainerUser { uid: 1000, gid: 1001, supplemental_groups: vec![1001, 2000] };
    insta::assert_json_snapshot!(world.container()["process"]);
}

#[test]
fn resources_are_written_only_where_set_and_where_the_host_can_keep_them() {
    let mut world = World::new();
    world.container.resources = Resources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        cpuset_cpus: "0-1".into(),
        memory_limit: 64 << 20,
        oom_score_adj: -999,
        hugepage_limits: vec![("2MB".into(), 4 << 20)],
        unified: StringMap::from([("memory.high".into(), "1000".into())]),
        ..Resources::default()
    };
    let full = world.container();
    assert_eq!(full["process"]["oomScoreAdj"], -999);
    let mut limits = full["linux"]["resources"].clone();
    limits.as_object_mut().unwrap().remove("devices");
    insta::assert_json_snapshot!(limits);
    world.host = Host { huge_pages: HugePages::PassedOver, swap: false, lowest_oom_score_adj: -5, ..host() };
    let less = world.container();
    assert_eq!(less["process"]["oomScoreAdj"], -5);
    assert_eq!(less["linux"]["resources"]["hugepageLimits"], Value::Null);
    assert_eq!(less["linux"]["resources"]["memory"], serde_json::json!({"limit": 64 << 20}));
}

#[test]
fn mounts_are_merged_by_destination_parents_first() {
    let mut world = World::new();
    world.container.readonly_rootfs = true;
    let mount = |destination: &str, propagation, readonly| ResolvedMount {
        destination: destination.into(),
        source: Path::new("/host").join(destination.trim_start_matches('/')),
        readonly,
        recursive_readonly: false,
        propagation,
        mapping: None,
    };
    world.mounts = vec![
        mount("/data/deep/er", Propagation::HostToContainer, false),
        mount("/data", Propagation::Bidirectional, false),
        mount("/etc/hosts", Propagation::Private, true),
    ];
    let spec = world.container();
    assert_eq!(spec["linux"]["rootfsPropagation"], "rshared");
    let line = |mount: &Value| format!("{} {} {}", mount["destination"], mount["source"], mount["options"]);
    let lines: Vec<String> = spec["mounts"].as_array().unwrap().iter().map(line).collect();
    insta::assert_snapshot!(lines.join("\n"));
    world.mounts = vec![mount("/dev", Propagation::Private, false)];
    let spec = world.container();
    let below: Vec<&str> =
        spec["mounts"].as_array().unwrap().iter().filter_map(|m| m["destination"].as_str()).collect();
    assert_eq!(below.iter().filter(|path| path.starts_with("/dev")).collect::<Vec<_>>(), [&"/dev"]);
}

#[test]
fn what_cannot_be_kept_is_refused_by_name() {
    let mut world = World::new();
    world.container.apparmor = SecurityProfile::RuntimeDefault;
    assert_eq!(world.refused(), "apparmor is not supported: this host does not have it, or disable_apparmor is set");
    world.container.apparmor = SecurityProfile::Unset;
    world.container.capabilities.add = vec!["FLY".into()];
    assert_eq!(world.refused(), "unknown capability \"FLY\"");
    world.container.capabilities.add.clear();
    world.container.namespaces.pid = NamespaceMode::Target;
    world.container.namespaces.target = Some("other".into());
    assert_eq!(world.refused(), "container \"other\" is not running");
    world.container.namespaces.pid = NamespaceMode::Pod;
    world.mounts = vec![ResolvedMount {
        destination: "/d".into(),
        source: "/d".into(),
        readonly: true,
        recursive_readonly: true,
        propagation: Propagation::Private,
        mapping: None,
    }];
    assert!(world.refused().starts_with("RROUnsupported"));
    world.mounts[0].recursive_readonly = false;
    world.mounts[0].mapping = Some((vec![one_range()], vec![one_range()]));
    assert_eq!(
        world.refused(),
        "mount /d: uid_mappings and gid_mappings: the runtime or the kernel has no mapped mounts"
    );
}

fn one_range() -> IdMapping {
    IdMapping { container: 0, host: 100_000, length: 65_536 }
}

#[test]
fn a_node_may_keep_low_ports_and_ping_as_the_kernel_has_them() {
    let mut world = World::new();
    world.handler.keep_privileged_ports = true;
    assert_eq!(world.pod()["linux"]["sysctl"], serde_json::json!({"net.ipv4.ping_group_range": "0 2147483647"}));
    world.handler.keep_ping_group_range = true;
    assert_eq!(world.pod()["linux"]["sysctl"], serde_json::json!({}));
}

#[test]
fn a_user_namespace_is_joined_with_its_mapping_and_maps_volumes() {
    let mut world = World::new();
    let user = UserNamespace { uid: one_range(), gid: one_range() };
    world.pod.namespaces.user = Some(user.clone());
    let namespace = serde_json::json!({"type": "user", "path": "/pod/user"});
    let ids = serde_json::json!([{"containerID": 0, "hostID": 100_000, "size": 65_536}]);
    let pod = world.pod();
    assert!(pod["linux"]["namespaces"].as_array().unwrap().contains(&namespace));
    assert_eq!((&pod["linux"]["uidMappings"], &pod["linux"]["gidMappings"]), (&ids, &ids));
    assert_eq!(pod["linux"]["sysctl"]["net.ipv4.ping_group_range"], "0 65535");
    assert_eq!(world.refused(), "userns_options of the container differ from those of its pod");
    world.container.namespaces.user = Some(user);
    world.handler.mapped_mounts = true;
    world.mounts = vec![ResolvedMount {
        destination: "/d".into(),
        source: "/d".into(),
        readonly: false,
        recursive_readonly: false,
        propagation: Propagation::Private,
        mapping: Some((vec![one_range()], vec![one_range()])),
    }];
    let container = world.container();
    assert!(container["linux"]["namespaces"].as_array().unwrap().contains(&namespace));
    assert_eq!(container["linux"]["uidMappings"], ids);
    let volume = container["mounts"].as_array().unwrap().iter().find(|mount| mount["destination"] == "/d").unwrap();
    assert_eq!((&volume["uidMappings"], &volume["gidMappings"]), (&ids, &ids));
}

#[test]
fn a_user_namespace_in_the_hosts_network_has_the_hosts_sys_and_cannot_write_to_it() {
    let mut world = World::new();
    let user = UserNamespace { uid: one_range(), gid: one_range() };
    world.pod.namespaces = Namespaces { network: NamespaceMode::Node, user: Some(user), ..Namespaces::default() };
    world.container.namespaces = world.pod.namespaces.clone();
    let expected = serde_json::json!({
        "destination": "/sys", "type": "bind", "source": "/sys", "options": ["rbind", "rro", "nosuid", "nodev", "noexec"],
    });
    for spec in [world.pod(), world.container()] {
        let mounts = spec["mounts"].as_array().unwrap().clone();
        let sys: Vec<_> = mounts.iter().filter(|mount| mount["destination"] == "/sys").collect();
        assert_eq!(sys, [&expected]);
    }
}
