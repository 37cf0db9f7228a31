//! Which namespaces a process gets: new ones, those of the pod, or the host's (by leaving the entry out).

use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceType};

use crate::{
    error::Error,
    host::CgroupMode,
    model::{IdMapping, NamespaceMode, Namespaces},
};

/// Whether the pod lives in the host's network. Then it also has the host's name: no UTS namespace of its own.
pub(super) fn host_network(namespaces: &Namespaces) -> bool {
    namespaces.network == NamespaceMode::Node
}

/// Whether the pod's processes can only have the host's `/sys`: their user namespace does not own the network that a sysfs
/// of their own would show.
pub(super) fn host_sys(namespaces: &Namespaces) -> bool {
    host_network(namespaces) && namespaces.user.is_some()
}

/// Those of a pause container.
pub(super) fn of_pod(
    modes: &Namespaces,
    netns: Option<&Path>,
    userns: Option<&Path>,
) -> Result<Vec<LinuxNamespace>, Error> {
    let mut found = vec![new(LinuxNamespaceType::Mount)];
    if modes.pid != NamespaceMode::Node {
        found.push(new(LinuxNamespaceType::Pid));
    }
    if modes.ipc != NamespaceMode::Node {
        found.push(new(LinuxNamespaceType::Ipc));
    }
    if !host_network(modes) {
        let netns = netns.ok_or_else(|| Error::plain("the pod has no network namespace"))?;
        found.push(new(LinuxNamespaceType::Uts));
        found.push(joined(LinuxNamespaceType::Network, netns.to_owned()));
    }
    found.extend(userns.map(|pinned| joined(LinuxNamespaceType::User, pinned.to_owned())));
    Ok(found)
}

/// What a container's namespaces depend on.
pub(super) struct Container<'a> {
    pub(super) modes: &'a Namespaces,
    pub(super) sandbox_pid: i32,
    pub(super) netns: Option<&'a Path>,
    pub(super) userns: Option<&'a Path>,
    pub(super) target_pid: Option<i32>,
    pub(super) cgroup: CgroupMode,
    pub(super) privileged: bool,
}

/// Those of a container: network, IPC and UTS are always the pause process's, which has the host's where the pod has.
pub(super) fn of_container(container: &Container<'_>) -> Result<Vec<LinuxNamespace>, Error> {
    let of_pause = |kind: LinuxNamespaceType, file: &str| {
        joined(kind, PathBuf::from(format!("/proc/{}/ns/{file}", container.sandbox_pid)))
    };
    let network = match container.netns {
        Some(pinned) => joined(LinuxNamespaceType::Network, pinned.to_owned()),
        None => of_pause(LinuxNamespaceType::Network, "net"),
    };
    let pid = match container.modes.pid {
        NamespaceMode::Container => new(LinuxNamespaceType::Pid),
        NamespaceMode::Pod | NamespaceMode::Node => of_pause(LinuxNamespaceType::Pid, "pid"),
        NamespaceMode::Target => {
            let target = container.target_pid.ok_or_else(|| {
                let name = container.modes.target.as_deref().unwrap_or_default();
                Error::Precondition(format!("container {name:?} is not running"))
            })?;
            joined(LinuxNamespaceType::Pid, PathBuf::from(format!("/proc/{target}/ns/pid")))
        }
    };
    let mut found = vec![
        new(LinuxNamespaceType::Mount),
        pid,
        of_pause(LinuxNamespaceType::Ipc, "ipc"),
        of_pause(LinuxNamespaceType::Uts, "uts"),
        network,
    ];
    found.extend(container.userns.map(|pinned| joined(LinuxNamespaceType::User, pinned.to_owned())));
    // With version 1 the mounts below /sys/fs/cgroup already show a container only its own part.
    if container.cgroup == CgroupMode::V2 && !container.privileged {
        found.push(new(LinuxNamespaceType::Cgroup));
    }
    Ok(found)
}

/// The lines of `/proc/PID/uid_map` and `gid_map` of a pod with a user namespace, as the runtime wants to be told them.
pub(super) fn mappings(modes: &Namespaces) -> (Option<Vec<LinuxIdMapping>>, Option<Vec<LinuxIdMapping>>) {
    let Some(user) = &modes.user else { return (None, None) };
    (Some(vec![mapping(&user.uid)]), Some(vec![mapping(&user.gid)]))
}

pub(super) fn mapping(ids: &IdMapping) -> LinuxIdMapping {
    let built = LinuxIdMappingBuilder::default().container_id(ids.container).host_id(ids.host).size(ids.length).build();
    built.expect("every field has a default")
}

fn new(kind: LinuxNamespaceType) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind).set_path(None);
    namespace
}

fn joined(kind: LinuxNamespaceType, path: PathBuf) -> LinuxNamespace {
    let mut namespace = new(kind);
    namespace.set_path(Some(path));
    namespace
}
