//! The OCI runtime spec of a pod's pause container and of a container, as pure functions of their inputs.
//!
//! What needs the file system is asked for before, by functions that say so: [`user::read_files`],
//! [`mounts::resolve_sources`], [`devices::resolve`], [`seccomp::read_profile`], [`crate::host::Host::read`].
//! What CRI asks and we cannot do is refused by name ([`Error::Unsupported`]), never left out.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use oci_spec::runtime::{LinuxSeccomp, Spec};

use crate::{
    error::Error,
    host::Host,
    model::{ContainerSpec, ContainerUser, Id, Image, PodSpec},
};

pub mod annotations;
pub mod apparmor;
pub mod args;
pub mod base;
pub mod capabilities;
pub mod cgroup;
mod container;
pub mod devices;
pub mod env;
mod masked_paths;
pub mod mounts;
mod namespaces;
mod pod;
pub mod resources;
pub mod seccomp;
pub(crate) mod seccomp_default;
pub(crate) mod sysctls;
pub mod user;

#[cfg(test)]
mod tests;

/// The spec version of runc 1.1, enough for all that is written here except recursive read-only mounts.
pub const OCI_VERSION: &str = "1.0.2";

/// How the configuration's runtime handler wants its containers made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HandlerOptions {
    /// `SystemdCgroup` of the runtime's options.
    pub systemd_cgroup: bool,
    /// `privileged_without_host_devices`
    pub privileged_without_host_devices: bool,
    /// `privileged_without_host_devices_all_devices_allowed`
    pub privileged_without_host_devices_all_devices_allowed: bool,
    /// The runtime lists `rro` among its mount options, so `recursive_read_only` can be kept.
    pub recursive_readonly_mounts: bool,
    /// The runtime and the kernel can map the ids of a mount, so `uid_mappings` and `gid_mappings` can be kept.
    pub mapped_mounts: bool,
    /// `cgroup_writable`: the cgroup file system of unprivileged containers is writable.
    pub cgroup_writable: bool,
    /// `enable_unprivileged_ports = false`: low ports of a pod's own network stay root's.
    pub keep_privileged_ports: bool,
    /// `enable_unprivileged_icmp = false`: the kernel's default of who may ping stays.
    pub keep_ping_group_range: bool,
    /// `pod_annotations`: globs of pod annotations that are passed on to the runtime.
    pub pod_annotations: Vec<String>,
    /// `container_annotations`: the same of containers.
    pub container_annotations: Vec<String>,
    /// `disable_proc_mount`: the default masked and read-only paths, whatever CRI says.
    pub disable_proc_mount: bool,
    /// `device_ownership_from_security_context`
    pub device_ownership: bool,
    /// `ignore_blockio_not_enabled_errors`
    pub ignore_blockio: bool,
    /// `ignore_rdt_not_enabled_errors`
    pub ignore_rdt: bool,
    /// `base_runtime_spec`
    pub base_spec: Option<Arc<Spec>>,
}

/// The files of a pod that its containers see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SandboxFiles {
    pub hostname: PathBuf,
    pub hosts: PathBuf,
    pub resolv_conf: PathBuf,
    /// The pod's own shared memory; the host's with IPC mode NODE.
    pub shm: PathBuf,
}

/// All that a pause container's spec depends on.
#[derive(Clone, Debug)]
pub struct PodInput<'a> {
    pub id: &'a Id,
    pub pod: &'a PodSpec,
    pub image: &'a Image,
    /// Who the pause process runs as ([`user::resolve`]).
    pub user: &'a ContainerUser,
    /// The pinned network namespace; `None` with the host's network.
    pub netns: Option<&'a Path>,
    /// The pinned user namespace of a pod that has its own.
    pub userns: Option<&'a Path>,
    pub files: &'a SandboxFiles,
    pub host: &'a Host,
    pub handler: &'a HandlerOptions,
    pub oci_version: &'a str,
    /// The Localhost profile, read by [`seccomp::read_profile`].
    pub seccomp: Option<&'a LinuxSeccomp>,
}

/// All that a container's spec depends on.
#[derive(Clone, Debug)]
pub struct ContainerInput<'a> {
    pub id: &'a Id,
    pub container: &'a ContainerSpec,
    pub image: &'a Image,
    pub sandbox_id: &'a Id,
    pub pod: &'a PodSpec,
    /// The pause process, whose namespaces are joined.
    pub sandbox_pid: i32,
    /// The pinned network namespace; `None` with the host's network.
    pub netns: Option<&'a Path>,
    /// The pinned user namespace of a pod that has its own.
    pub userns: Option<&'a Path>,
    /// The process of the container that `NamespaceMode::Target` names, found by the caller, who has checked that it runs.
    pub target_pid: Option<i32>,
    pub files: &'a SandboxFiles,
    /// Who the process runs as ([`user::resolve`]).
    pub user: &'a ContainerUser,
    /// The container's mounts in their order ([`mounts::resolve_sources`]).
    pub mounts: &'a [mounts::ResolvedMount],
    /// The container's devices ([`devices::resolve`]).
    pub devices: &'a [devices::ResolvedDevice],
    pub host: &'a Host,
    pub handler: &'a HandlerOptions,
    pub oci_version: &'a str,
    /// The Localhost profile, read by [`seccomp::read_profile`].
    pub seccomp: Option<&'a LinuxSeccomp>,
}

/// The spec of a pod's pause container.
pub fn pod(input: &PodInput<'_>) -> Result<Spec, Error> {
    let spec = pod::spec(input)?;
    input.handler.base_spec.iter().try_fold(spec, |spec, base| base::complete(base, spec))
}

/// The spec of a container.
pub fn container(input: &ContainerInput<'_>) -> Result<Spec, Error> {
    let spec = container::spec(input)?;
    input.handler.base_spec.iter().try_fold(spec, |spec, base| base::complete(base, spec))
}
