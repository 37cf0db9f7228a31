//! What the daemon's configuration says about pods, already validated by whoever read it.

use std::{collections::BTreeMap, path::PathBuf, sync::Arc, time::Duration};

use ::store::Namespace;
use oci_spec::runtime::Spec;

use crate::{Error, features::Features, nri};

/// Everything that [`crate::Pods`] needs to know and that does not change while it runs.
#[derive(Clone, Debug)]
pub struct Config {
    /// What survives a boot: `/var/lib/containerd`.
    pub root: PathBuf,
    /// What does not: `/run/containerd`.
    pub state: PathBuf,
    /// The daemon's own sockets, told to every shim.
    pub grpc_address: PathBuf,
    pub ttrpc_address: PathBuf,
    /// Directories in which a shim's binary is looked for, before `PATH`.
    pub shim_search: Vec<PathBuf>,
    /// Where network namespaces are pinned: `/run/netns`.
    pub netns_dir: PathBuf,
    pub namespace: Namespace,
    /// By the name that CRI's `runtime_handler` uses.
    pub handlers: BTreeMap<String, Handler>,
    pub default_handler: String,
    /// The snapshotter of handlers that name none.
    pub snapshotter: String,
    /// Longest line of a container's log before it is split, in bytes.
    pub max_log_line: usize,
    /// Where pods without a cgroup parent go; empty is the root.
    pub default_cgroup_parent: String,
    /// A container asking for a lower OOM score than the daemon has gets the daemon's.
    pub restrict_oom_score_adj: bool,
    /// Label pods and containers where the host has SELinux, with this many categories to keep pods apart; `None` does not.
    pub selinux_categories: Option<u32>,
    /// Where vendors' CDI files are, the later ones winning; `None` disables CDI.
    pub cdi_spec_dirs: Option<Vec<PathBuf>>,
    /// Classes of block I/O; `None` has none.
    pub blockio_config_file: Option<PathBuf>,
    /// `rdt_config_file`: classes of RDT, in goresctrl's format.
    pub rdt_config_file: Option<PathBuf>,
    /// Where this host's mounts are listed, in the form of `/proc/self/mounts`.
    pub mounts: PathBuf,
    /// Pods and containers get no AppArmor profile, and none may ask for one.
    pub disable_apparmor: bool,
    /// Make no volumes for what images declare as such (`VOLUME`).
    pub ignore_image_volumes: bool,
    /// Plugins that follow and change pods; `None` has none.
    pub nri: Option<nri::Config>,
    /// Limits of huge pages are left out.
    pub disable_hugetlb: bool,
    /// They are left out where the host cannot hold containers to them; else a container with such limits is refused.
    pub tolerate_missing_hugetlb: bool,
    /// What a checkpoint of a container may hold, in bytes.
    pub max_checkpoint_bytes: u64,
    pub timeouts: Timeouts,
}

impl Config {
    /// The handler of that name. The error is Invalid, and says how to add it.
    pub fn handler(&self, name: &str) -> Result<&Handler, Error> {
        self.handlers.get(name).ok_or_else(|| {
            let known: Vec<&str> = self.handlers.keys().map(String::as_str).collect();
            Error::Invalid(format!(
                "no runtime for {name:?} is configured; add [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.{name}] \
                 to the configuration and restart the daemon, or use one of: {}",
                known.join(", ")
            ))
        })
    }
}

/// One runtime: which shim is started for it and what its pods get.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handler {
    /// `io.containerd.runc.v2`.
    pub runtime_type: String,
    /// The shim's binary, if it is not to be found by its type.
    pub runtime_path: Option<PathBuf>,
    pub options: RuntimeOptions,
    pub privileged_without_host_devices: bool,
    /// Privileged containers without the host's devices may still use any that they make.
    pub all_devices_allowed: bool,
    /// The cgroup file system of unprivileged containers is writable.
    pub cgroup_writable: bool,
    /// What takes the place of the spec's defaults ([`crate::oci::base`]).
    pub base_spec: Option<Arc<Spec>>,
    /// CRI's masked and read-only paths are passed over for the default ones.
    pub disable_proc_mount: bool,
    /// Devices that a container names belong to who it runs as.
    pub device_ownership: bool,
    /// Annotations that ask for classes of block IO or RDT are passed over.
    pub ignore_blockio: bool,
    pub ignore_rdt: bool,
    pub snapshotter: Option<String>,
    /// Low ports of a pod's own network stay root's (`enable_unprivileged_ports = false`).
    pub keep_privileged_ports: bool,
    /// Who may ping stays the kernel's default (`enable_unprivileged_icmp = false`).
    pub keep_ping_group_range: bool,
    /// Patterns of pod annotations that are passed to the runtime in the OCI spec.
    pub pod_annotations: Vec<String>,
    pub container_annotations: Vec<String>,
    /// What its runtime and this kernel can do ([`crate::features::probe`]).
    pub features: Features,
}

/// `runtimes.<name>.options`: whose they are depends on the runtime's type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RuntimeOptions {
    Runc(RuncOptions),
    Generic(GenericOptions),
    /// Another runtime than runc, without any.
    None,
}

/// The options of runc's shims.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuncOptions {
    /// The OCI runtime's binary; empty is `runc`.
    pub binary_name: String,
    /// The OCI runtime's `--root`; empty is the shim's default.
    pub root: String,
    pub systemd_cgroup: bool,
    pub no_pivot_root: bool,
    pub no_new_keyring: bool,
    /// The cgroup that the shim itself joins; empty is the one that it is started in.
    pub shim_cgroup: String,
    /// Who owns the pipes of containers without a user namespace.
    pub io_uid: u32,
    pub io_gid: u32,
    pub criu_image_path: String,
    pub criu_work_path: String,
}

/// The options of all other shims.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GenericOptions {
    pub type_url: String,
    pub config_path: String,
    /// The whole table as TOML, if it names no path.
    pub config_body: String,
}

impl Default for RuntimeOptions {
    fn default() -> RuntimeOptions {
        RuntimeOptions::Runc(RuncOptions::default())
    }
}

impl Handler {
    /// Whether systemd makes the cgroups of a pod with this parent. runc is told by its options; any other runtime has to
    /// find out by the form of the path, which the kubelet chose by the driver that it was told.
    pub fn systemd_cgroup(&self, parent: &str) -> bool {
        match &self.options {
            RuntimeOptions::Runc(options) => options.systemd_cgroup,
            RuntimeOptions::Generic(_) | RuntimeOptions::None => parent.ends_with(".slice"),
        }
    }

    /// Fails if the OCI runtime is known not to move network devices of the host into containers.
    pub(crate) fn check_net_devices(&self) -> Result<(), String> {
        match self.oci_runtime() {
            Some(runtime) if !self.features.net_devices => Err(format!(
                "the OCI runtime {runtime} cannot move network devices into containers (netDevices of runtime specification 1.3, as of runc 1.4)"
            )),
            // Other runtimes cannot be asked.
            Some(_) | None => Ok(()),
        }
    }

    /// The OCI runtime that the shim runs, as far as the options tell.
    pub fn oci_runtime(&self) -> Option<&str> {
        match &self.options {
            RuntimeOptions::Runc(options) if options.binary_name.is_empty() => Some("runc"),
            RuntimeOptions::Runc(options) => Some(&options.binary_name),
            RuntimeOptions::Generic(_) | RuntimeOptions::None => None,
        }
    }
}

/// Deadlines of what leaves this process. None is ever infinite.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// One CNI ADD or DEL, all plugins together.
    pub network: Duration,
    /// Starting a shim until it answers.
    pub launch: Duration,
    /// Connecting again to a shim that runs.
    pub reconnect: Duration,
    /// One call of a shim that runs the OCI runtime (create, start, delete).
    pub task: Duration,
    /// How long a killed process may take to be gone.
    pub kill: Duration,
    /// Recovery of one pod at boot.
    pub recover: Duration,
    /// The same of a pod in the middle of a start, stop or removal. Nobody can be served before, and what is not finished by
    /// then is left to the next stop or removal; a network plugin may take much longer.
    pub finish: Duration,
    pub drain: Drain,
}

/// How the rest of an exec's output is waited for that processes hold open which it left running.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    pub limit: Duration,
    /// Until the limit, whatever the shim. Otherwise a second without output is the end of it on our shim.
    pub in_silence: bool,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            network: Duration::from_secs(120),
            launch: Duration::from_secs(30),
            reconnect: Duration::from_secs(5),
            task: Duration::from_secs(120),
            kill: Duration::from_secs(60),
            recover: Duration::from_secs(60),
            // The kubelet calls a node not ready whose runtime has not answered for half a minute.
            finish: Duration::from_secs(10),
            drain: Drain { limit: Duration::from_secs(10), in_silence: false },
        }
    }
}
