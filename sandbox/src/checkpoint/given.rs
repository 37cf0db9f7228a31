//! What a request gives to the processes of its container: the bounds that a checkpoint's processes have to keep.
//!
//! Read from the finished OCI spec, plugins' changes included, and from nothing else.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use oci_spec::runtime::{Capability, LinuxNamespaceType, Mount, Spec};

use crate::{Error, oci::capabilities::KERNEL_ORDER, seccomp, stats};

/// The bounds. Sets of capabilities are bit masks, by the kernel's numbers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    pub(crate) uid: u32,
    /// Supplementary groups, and the group.
    pub(crate) groups: BTreeSet<u32>,
    pub(crate) bounding: u64,
    pub(crate) inheritable: u64,
    pub(crate) ambient: u64,
    pub(crate) no_new_privileges: bool,
    /// Names of LSM profiles; empty is none.
    pub(crate) apparmor: String,
    pub(crate) selinux: String,
    /// What every thread is to run under.
    pub(crate) seccomp: Option<seccomp::Filter>,
    pub(crate) oom_score_adj: i32,
    /// Hard limits, by their numbers.
    pub(crate) rlimits: BTreeMap<usize, u64>,
    /// The kinds of namespaces that are not the host's; whether each is joined by a path.
    pub(crate) namespaces: BTreeMap<&'static str, bool>,
    /// Below a hierarchy's root; `None` if the spec names none.
    pub(crate) cgroup: Option<String>,
    pub(crate) terminal: bool,
    pub(crate) readonly_root: bool,
    pub(crate) shared_root: bool,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) masked: Vec<PathBuf>,
    pub(crate) readonly: Vec<PathBuf>,
}

pub(crate) const SETGID: u64 = 1 << 6;
pub(crate) const SETUID: u64 = 1 << 7;
pub(crate) const SETPCAP: u64 = 1 << 8;
pub(crate) const NET_ADMIN: u64 = 1 << 12;
pub(crate) const SYS_NICE: u64 = 1 << 23;

impl Given {
    /// Reads a spec. Fails on one for which no restore can be checked.
    pub(crate) fn parse(value: &serde_json::Value) -> Result<Given, Error> {
        let spec: Spec = serde_json::from_value(value.clone())
            .map_err(|error| Error::failed("read the OCI spec of the container to restore", error))?;
        let lacks = |what: &str| Error::plain(format!("the OCI spec of the container to restore lacks {what}"));
        let process = spec.process().as_ref().ok_or_else(|| lacks("process"))?;
        let linux = spec.linux().as_ref().ok_or_else(|| lacks("linux"))?;
        super::refuse_options(value)?;
        let user = process.user();
        let capabilities = process.capabilities().as_ref();
        let set = |set: Option<&std::collections::HashSet<Capability>>| set.map_or(0, mask);
        let mut given = Given {
            uid: user.uid(),
            groups: user.additional_gids().iter().flatten().copied().chain([user.gid()]).collect(),
            bounding: set(capabilities.and_then(|sets| sets.bounding().as_ref())),
            inheritable: set(capabilities.and_then(|sets| sets.inheritable().as_ref())),
            ambient: set(capabilities.and_then(|sets| sets.ambient().as_ref())),
            no_new_privileges: process.no_new_privileges().unwrap_or_default(),
            apparmor: process.apparmor_profile().clone().unwrap_or_default(),
            selinux: process.selinux_label().clone().unwrap_or_default(),
            seccomp: linux.seccomp().as_ref().map(seccomp::compile).transpose()?,
            oom_score_adj: process.oom_score_adj().unwrap_or_default(),
            cgroup: stats::cgroup::directory(value)
                .and_then(|path| path.to_str().map(str::to_owned))
                .filter(|path| !path.is_empty()),
            terminal: process.terminal().unwrap_or_default(),
            readonly_root: spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or_default(),
            shared_root: linux.rootfs_propagation().as_deref().is_some_and(|mode| mode.ends_with("shared")),
            mounts: spec.mounts().clone().unwrap_or_default(),
            masked: paths(linux.masked_paths()),
            readonly: paths(linux.readonly_paths()),
            ..Given::default()
        };
        for limit in process.rlimits().iter().flatten() {
            given.rlimits.insert(limit.typ() as usize, limit.hard());
        }
        for namespace in linux.namespaces().iter().flatten() {
            let name = match namespace.typ() {
                LinuxNamespaceType::Mount => "mnt",
                LinuxNamespaceType::Cgroup => "cgroup",
                LinuxNamespaceType::Uts => "uts",
                LinuxNamespaceType::Ipc => "ipc",
                LinuxNamespaceType::User => "user",
                LinuxNamespaceType::Pid => "pid",
                LinuxNamespaceType::Network => "net",
                LinuxNamespaceType::Time => "time",
            };
            given.namespaces.insert(name, namespace.path().is_some());
        }
        for unbuilt in ["user", "time"] {
            if given.namespaces.contains_key(unbuilt) {
                return Err(Error::Unsupported(format!(
                    "a container is not restored into a pod with a {unbuilt} namespace of its own"
                )));
            }
        }
        Ok(given)
    }

    /// What a process of the container has when it is started, and may regain: for root all that bounds it, for others what
    /// is kept without being root.
    pub(crate) fn permitted(&self) -> u64 {
        if self.uid == 0 { self.bounding } else { self.ambient & self.bounding }
    }
}

fn mask(set: &std::collections::HashSet<Capability>) -> u64 {
    let bits = KERNEL_ORDER.iter().enumerate().filter(|(_, capability)| set.contains(capability));
    bits.fold(0, |mask, (bit, _)| mask | 1 << bit)
}

fn paths(paths: &Option<Vec<String>>) -> Vec<PathBuf> {
    paths.iter().flatten().map(PathBuf::from).collect()
}

/// The capabilities of a mask, as people know them.
pub(crate) fn names(mask: u64) -> String {
    let known = KERNEL_ORDER.iter().enumerate().filter(|(bit, _)| mask & 1 << bit != 0);
    let mut names: Vec<String> = known.map(|(_, capability)| format!("CAP_{capability}")).collect();
    let unknown = mask >> KERNEL_ORDER.len();
    if unknown != 0 {
        names.push(format!("unknown ones ({unknown:#x} << {})", KERNEL_ORDER.len()));
    }
    names.join(", ")
}
