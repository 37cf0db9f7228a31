//! What a pod and a container are, in our own terms: parsed at the edge, stored as JSON, read by every operation.
//!
//! Plain data with public fields. Whoever builds one has validated it (`cri-server/src/cri/convert`); nothing here talks
//! to the kernel, the store or a shim.

use std::{
    collections::BTreeMap,
    fmt,
    path::PathBuf,
    time::{Duration, SystemTime},
};

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

/// Labels or annotations, in the order that makes stored rows and lists deterministic.
pub type StringMap = BTreeMap<String, String>;

/// The id of a pod or of a container: 64 lower-case hexadecimal digits, from 32 random bytes.
///
/// Every resource's name is a function of it (see `paths.rs`), and cAdvisor recognises a container's cgroup by its form.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Id(String);

impl Id {
    /// A new random id. Fails only when the kernel's random source does.
    pub fn random() -> Result<Id, getrandom::Error> {
        let mut bytes = [0u8; 32];
        getrandom::fill(&mut bytes)?;
        Ok(Id(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    /// The id that `text` is, if it has the form of one.
    pub fn parse(text: &str) -> Option<Id> {
        let hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        (text.len() == 64 && text.bytes().all(hex)).then(|| Id(text.to_owned()))
    }

    /// The 64 digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

// Ids are searched by prefix in ordered maps, so an id must order as its text does: the derived order does.
impl std::borrow::Borrow<str> for Id {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An image as the image service resolved it, handed over by value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Image {
    /// What the client asked for (`ContainerConfig.image.image`): the kubelet asks for an id.
    pub requested: String,
    /// What the pod's author wrote (`ImageSpec.user_specified_image`), if the client told.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub user_specified: String,
    /// `ImageSpec.annotations`.
    #[serde(default, skip_serializing_if = "StringMap::is_empty")]
    pub annotations: StringMap,
    /// `ImageSpec.runtime_handler`.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub runtime_handler: String,
    /// Digest of the image's configuration, `sha256:…`: CRI's image id.
    pub id: String,
    /// What `ContainerStatus.image.image` shows: the tag that was asked for, else another of the image's names, else its id.
    pub name: String,
    /// `repository@digest` that it was pulled as, else the id: what `ContainerStatus.image_ref` shows, and the kubelet as a
    /// container's `imageID`.
    #[serde(default)]
    pub digest: String,
    /// The snapshot that holds the unpacked layers; empty for an image with no layers.
    pub chain_id: String,
    /// Entrypoint, environment, user, volumes and so on.
    pub config: ImageConfiguration,
}

impl Image {
    /// Whether two requests mean the same. Names that the image got in between make no difference.
    pub(crate) fn is_same(&self, other: &Image) -> bool {
        (&self.requested, &self.id) == (&other.requested, &other.id)
    }
}

/// How a namespace of a pod or a container is chosen (CRI `NamespaceMode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum NamespaceMode {
    /// Shared by the containers of the pod.
    #[default]
    Pod,
    /// Private to each container.
    Container,
    /// The host's.
    Node,
    /// That of another container of the same pod (`NamespaceOptions.target_id`).
    Target,
}

/// CRI `NamespaceOption`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespaces {
    pub network: NamespaceMode,
    pub pid: NamespaceMode,
    pub ipc: NamespaceMode,
    /// The container whose PID namespace is joined when `pid` is `Target`.
    pub target: Option<String>,
    /// The user namespace's mapping; `None` is the host's user namespace.
    pub user: Option<UserNamespace>,
}

/// CRI `UserNamespace` in mode POD: exactly one range for uids and one for gids, both from container id 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserNamespace {
    pub uid: IdMapping,
    pub gid: IdMapping,
}

/// CRI `IDMapping`: one line of `/proc/PID/uid_map`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMapping {
    pub container: u32,
    pub host: u32,
    pub length: u32,
}

/// CRI `SecurityProfile`, for seccomp and AppArmor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SecurityProfile {
    /// The client said nothing; the configuration decides.
    #[default]
    Unset,
    RuntimeDefault,
    Unconfined,
    /// A file (seccomp, absolute path) or a loaded profile's name (AppArmor).
    Localhost(String),
}

/// CRI `SELinuxOption`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selinux {
    pub user: String,
    pub role: String,
    pub kind: String,
    pub level: String,
}

/// CRI `SupplementalGroupsPolicy`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum GroupsPolicy {
    /// The groups of the image's `/etc/group` and those of the request.
    #[default]
    Merge,
    /// Those of the request only.
    Strict,
}

/// Who a process runs as: CRI's `run_as_user`, `run_as_group`, `run_as_username`, `supplemental_groups`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunAs {
    pub user: Option<u32>,
    pub group: Option<u32>,
    pub username: Option<String>,
    pub supplemental_groups: Vec<u32>,
    pub groups_policy: GroupsPolicy,
}

/// What identifies a pod to the kubelet (CRI `PodSandboxMetadata`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodName {
    pub name: String,
    pub namespace: String,
    pub uid: String,
    pub attempt: u32,
}

impl PodName {
    /// The key under which the name is reserved: `name_namespace_uid_attempt`.
    pub fn key(&self) -> String {
        format!("{}_{}_{}_{}", self.name, self.namespace, self.uid, self.attempt)
    }
}

/// CRI `DNSConfig`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dns {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

/// A transport protocol of a port mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// CRI `PortMapping`; `host_port` 0 means that none was asked for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub container_port: u16,
    pub host_port: u16,
    pub host_ip: String,
}

/// CRI `LinuxContainerResources`; zero and empty mean "not set", as in CRI.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    pub cpu_period: i64,
    pub cpu_quota: i64,
    pub cpu_shares: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    /// Bytes.
    pub memory_limit: i64,
    /// Bytes of memory and swap together.
    pub memory_swap_limit: i64,
    pub oom_score_adj: i64,
    /// Page size (`2MB`) to limit in bytes.
    pub hugepage_limits: Vec<(String, u64)>,
    /// cgroup v2 files and their content, written verbatim.
    pub unified: StringMap,
}

/// All that RunPodSandbox was asked (CRI `PodSandboxConfig` and the runtime handler).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PodSpec {
    pub name: PodName,
    pub hostname: String,
    /// Where the containers' log paths start; empty disables logs.
    pub log_directory: String,
    /// `None` copies the host's resolv.conf.
    pub dns: Option<Dns>,
    pub port_mappings: Vec<PortMapping>,
    pub labels: StringMap,
    pub annotations: StringMap,
    pub cgroup_parent: String,
    pub sysctls: StringMap,
    pub namespaces: Namespaces,
    pub run_as: RunAs,
    pub readonly_rootfs: bool,
    pub privileged: bool,
    pub seccomp: SecurityProfile,
    pub apparmor: SecurityProfile,
    pub selinux: Option<Selinux>,
    pub overhead: Option<Resources>,
    pub resources: Option<Resources>,
    /// The runtime handler as the client wrote it; empty is the default one.
    pub handler: String,
}

/// What UpdatePodSandboxResources says of a pod. For status and plugins: the pod's cgroup is the kubelet's own.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodResources {
    pub overhead: Option<Resources>,
    pub resources: Option<Resources>,
}

/// What identifies a container within its pod (CRI `ContainerMetadata`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerName {
    pub name: String,
    pub attempt: u32,
}

/// CRI `MountPropagation`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Propagation {
    #[default]
    Private,
    HostToContainer,
    Bidirectional,
}

/// CRI `Mount`: of a host path, or of an image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeMount {
    pub container_path: String,
    /// Empty for an image volume.
    pub host_path: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub image: Option<ImageVolume>,
    pub readonly: bool,
    pub recursive_readonly: bool,
    pub selinux_relabel: bool,
    pub propagation: Propagation,
    pub uid_mappings: Vec<IdMapping>,
    pub gid_mappings: Vec<IdMapping>,
}

/// CRI `Mount.image` and `Mount.image_sub_path`, with the image as the image service resolved it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImageVolume {
    /// What the client asked for (`ImageSpec.image`).
    pub requested: String,
    /// `ImageSpec.user_specified_image`.
    pub user_specified: String,
    /// `ImageSpec.annotations`.
    pub annotations: StringMap,
    /// Digest of the image's configuration: `ImageSpec.image_ref` of the status.
    pub id: String,
    /// The snapshot that holds the unpacked layers; empty for an image with no layers.
    pub chain_id: String,
    /// The directory of the image that is mounted in place of its root: relative, without `..`; empty is the root.
    pub sub_path: String,
}

/// CRI `Device`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Device {
    pub container_path: String,
    pub host_path: String,
    /// A subset of `rwm`.
    pub permissions: String,
}

/// CRI `Capability`: names as sent, with or without `CAP_`, in any case, `ALL` included.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities {
    pub add: Vec<String>,
    pub drop: Vec<String>,
    pub add_ambient: Vec<String>,
}

/// All that CreateContainer was asked (CRI `ContainerConfig`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContainerSpec {
    pub name: ContainerName,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: String,
    /// In the order given; a later entry wins.
    pub env: Vec<(String, String)>,
    pub mounts: Vec<VolumeMount>,
    pub devices: Vec<Device>,
    pub cdi_devices: Vec<String>,
    pub labels: StringMap,
    pub annotations: StringMap,
    /// Relative to the pod's `log_directory`; empty disables the log.
    pub log_path: String,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// CRI `stop_signal` (`SIGTERM`, `SIGRTMIN+3`), if one was set.
    pub stop_signal: Option<String>,
    pub resources: Resources,
    pub capabilities: Capabilities,
    pub privileged: bool,
    pub namespaces: Namespaces,
    pub run_as: RunAs,
    pub readonly_rootfs: bool,
    pub no_new_privs: bool,
    pub masked_paths: Vec<String>,
    pub readonly_paths: Vec<String>,
    pub seccomp: SecurityProfile,
    pub apparmor: SecurityProfile,
    pub selinux: Option<Selinux>,
}

/// The address answer of a pod's CNI ADD.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodNetwork {
    /// Primary first.
    pub ips: Vec<String>,
    /// The merged CNI result, as JSON, for `inspectp`.
    pub result: serde_json::Value,
}

/// A pod as clients see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum PodState {
    Ready,
    NotReady,
}

/// One pod in the published view: all that Status and List answer with.
#[derive(Clone, Debug)]
pub struct PodView {
    pub id: Id,
    pub spec: PodSpec,
    pub state: PodState,
    pub created_at: SystemTime,
    /// Empty with the host's network, and after the pod was stopped.
    pub ips: Vec<String>,
    /// The pause process, while it lives.
    pub pid: Option<i32>,
    /// The pinned network namespace; `None` with the host's network.
    pub netns: Option<PathBuf>,
    pub image: Image,
    /// Of the pause container and of all containers to come.
    pub snapshotter: String,
    /// Those of the spec, or what they were updated to.
    pub resources: PodResources,
    /// For verbose status.
    pub cni_result: serde_json::Value,
    /// The pause container's OCI spec, for verbose status.
    pub oci_spec: serde_json::Value,
}

impl PodView {
    /// Whether the two are attempts at one pod of Kubernetes.
    pub(crate) fn is_same_pod(&self, other: &PodView) -> bool {
        let (one, two) = (&self.spec.name, &other.spec.name);
        (&one.uid, &one.namespace, &one.name) == (&two.uid, &two.namespace, &two.name)
    }
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// 128+n for signal n; 128 when the start failed; 255 when nobody can know.
    pub code: i32,
    pub at: SystemTime,
    /// CRI reasons: `Completed`, `Error`, `OOMKilled`, `StartError`, `Unknown`.
    pub reason: String,
    pub message: String,
}

/// A container as clients see it (CRI `ContainerState`, with the data each state has).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ContainerState {
    Created,
    Running {
        pid: i32,
        started_at: SystemTime,
    },
    /// `started_at` is `None` when the start failed.
    Exited {
        started_at: Option<SystemTime>,
        exit: Exit,
    },
    /// Its shim cannot be asked; it can only be stopped and removed.
    Unknown,
}

/// Who the container's process runs as, as CRI's `ContainerStatus.user` reports it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUser {
    pub uid: u32,
    pub gid: u32,
    pub supplemental_groups: Vec<u32>,
}

/// One container in the published view.
#[derive(Clone, Debug)]
pub struct ContainerView {
    pub id: Id,
    pub pod: Id,
    pub spec: ContainerSpec,
    pub image: Image,
    pub state: ContainerState,
    pub created_at: SystemTime,
    /// Absolute, if the container has a log.
    pub log_path: Option<PathBuf>,
    pub user: ContainerUser,
    /// It is being removed.
    pub removing: bool,
    /// When it was started, if its state is unknown.
    pub began: Option<SystemTime>,
    /// The container's OCI spec, for verbose status.
    pub oci_spec: serde_json::Value,
}

/// What ExecSync answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExecOutput {
    /// At most 16 MiB; what came beyond was read and discarded.
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    pub exit_code: i32,
}

/// What Exec and Attach ask for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamRequest {
    /// Empty for attach.
    pub command: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// How long ExecSync may take: `None` is for ever (CRI `ExecSyncRequest.timeout` 0).
pub type ExecTimeout = Option<Duration>;
