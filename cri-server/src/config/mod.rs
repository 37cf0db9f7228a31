//! The daemon's configuration: containerd's file format, read once, validated once, passed down as plain data.
//!
//! `section.rs` reads one table and notes what nobody asked for; `load.rs` reads files, follows `imports` and merges;
//! `parse.rs` knows where each version of the format keeps each key, `others.rs` what containerd has beside. The defaults are `Config::default()` here, and
//! `deploy/config.toml` documents them; a test holds the two together.

mod deprecated;
mod handler;
#[cfg(test)]
mod keys;
mod load;
mod others;
mod parse;
#[cfg(test)]
mod real_files;
mod registry;
mod runtime;
mod section;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use http::HeaderMap;
use image_service::{hosts::Mirrors, policy::PolicyConfig};
use sandbox::{RuntimeOptions, nri::ValidatorConfig};
use thiserror::Error;

pub(crate) use deprecated::deprecations;
pub(crate) use load::load;

/// The documented default configuration, as `windlass config default` prints it.
pub(crate) const DEFAULT_TOML: &str = include_str!("../../../deploy/config.toml");

/// Why no configuration could be made of the file.
#[derive(Debug, Error)]
pub(crate) enum ConfigError {
    /// The file, or one that it imports, cannot be read.
    #[error("read configuration {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    /// It is not TOML.
    #[error("configuration {} is not valid TOML", path.display())]
    Syntax { path: PathBuf, source: Box<toml::de::Error> },
    /// A value has the wrong type or form, or two values contradict each other.
    #[error("configuration {}: {what}", path.display())]
    Invalid { path: PathBuf, what: String },
}

/// A configuration and what its reader should be told about the file.
#[derive(Debug)]
pub(crate) struct Loaded {
    pub(crate) config: Config,
    /// Keys with no effect, each with the nearest known name; never fatal, since real nodes carry keys of other tools.
    pub(crate) warnings: Vec<String>,
}

/// How the daemon logs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// `[debug]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Log {
    /// `trace`, `debug`, `info`, `warn` or `error`.
    pub(crate) level: String,
    pub(crate) format: LogFormat,
}

/// `[grpc]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grpc {
    pub(crate) address: PathBuf,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Bytes of one message.
    pub(crate) max_recv_message_size: usize,
    pub(crate) max_send_message_size: usize,
}

/// Credentials for one registry host (`registry.configs.<host>.auth`, `registry.auths`). Its `Debug` shows none of them.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Auth {
    pub(crate) username: String,
    pub(crate) password: String,
    pub(crate) auth: String,
    pub(crate) identity_token: String,
}

impl std::fmt::Debug for Auth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Auth(redacted)")
    }
}

/// Images: where they come from and what they are unpacked with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Images {
    pub(crate) snapshotter: String,
    /// The sandbox image (`sandbox_image`, `pinned_images.sandbox`).
    pub(crate) pause_image: String,
    /// Further references that are never offered for garbage collection.
    pub(crate) pinned: Vec<String>,
    /// Roots of `hosts.toml` directories, in order; always split at `:`.
    pub(crate) registry_paths: Vec<PathBuf>,
    /// The older configuration, which takes the place of the directories.
    pub(crate) mirrors: Mirrors,
    /// By host.
    pub(crate) auths: BTreeMap<String, Auth>,
    /// Of `mirrors`, `configs` and `auths`, the older ways to configure registries, those that say something.
    pub(crate) older_ways: BTreeSet<&'static str>,
    /// Sent with every request to every registry. Their `Debug` shows no value.
    pub(crate) headers: HeaderMap,
    /// Fetch layers that registries may not hand out from where their image says (`registry.allow_foreign_layers`, ours).
    pub(crate) foreign_layers: bool,
    /// The image verifiers.
    pub(crate) policy: PolicyConfig,
    pub(crate) max_concurrent_downloads: usize,
    /// With at least 512, a larger layer is fetched over several connections, in parts of this many bytes.
    pub(crate) layer_fetch_buffer: u64,
    /// Blobs of layers go once they are unpacked.
    pub(crate) discard_unpacked_layers: bool,
    /// Answer a pull only when all of it is on disk.
    pub(crate) waits_for_disk: bool,
    /// A pull that moves no byte for this long is given up; zero never does.
    pub(crate) progress_timeout: Duration,
    /// Archives of images that are imported at the start; empty is `images` below the root.
    pub(crate) preload_dir: PathBuf,
    /// What one layer may hold, unpacked.
    pub(crate) max_layer_bytes: u64,
    pub(crate) max_layer_files: u64,
    /// What the layers of one image may hold together, unpacked.
    pub(crate) max_image_bytes: u64,
    pub(crate) max_image_files: u64,
}

/// One runtime handler (`runtimes.<name>`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Handler {
    /// `io.containerd.runc.v2`, another shim's name, or an absolute path.
    pub(crate) runtime_type: String,
    /// The shim binary, if not to be searched for.
    pub(crate) runtime_path: Option<PathBuf>,
    pub(crate) snapshotter: Option<String>,
    /// Globs of pod annotations that reach the OCI spec.
    pub(crate) pod_annotations: Vec<String>,
    pub(crate) container_annotations: Vec<String>,
    pub(crate) privileged_without_host_devices: bool,
    /// Privileged containers may still use every device that they make themselves.
    pub(crate) all_devices_allowed: bool,
    pub(crate) cgroup_writable: bool,
    /// An OCI spec in place of the defaults; empty is none.
    pub(crate) base_runtime_spec: PathBuf,
    /// Networks of its own; empty is none.
    pub(crate) cni_conf_dir: PathBuf,
    /// As [`Cni::max_conf_num`].
    pub(crate) cni_max_conf_num: usize,
    /// The sandbox image has to be on the node.
    pub(crate) disable_pause_image_pull: bool,
    pub(crate) options: RuntimeOptions,
}

/// `cni`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cni {
    pub(crate) bin_dirs: Vec<PathBuf>,
    /// They were given by the older `bin_dir`.
    pub(crate) single_bin_dir: bool,
    pub(crate) conf_dir: PathBuf,
    /// 0 loads all.
    pub(crate) max_conf_num: usize,
    pub(crate) setup_serially: bool,
    /// ``, `ipv4`, `ipv6` or `cni`.
    pub(crate) ip_pref: String,
}

/// Pods and containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Runtime {
    pub(crate) default_handler: String,
    pub(crate) handlers: BTreeMap<String, Handler>,
    pub(crate) cni: Cni,
    /// Bytes of content in one log record; 0 or less never splits.
    pub(crate) max_log_line: i64,
    pub(crate) restrict_oom_score_adj: bool,
    pub(crate) unset_seccomp_profile: String,
    pub(crate) disable_apparmor: bool,
    pub(crate) enable_selinux: bool,
    pub(crate) selinux_category_range: u32,
    pub(crate) enable_cdi: bool,
    pub(crate) cdi_spec_dirs: Vec<PathBuf>,
    pub(crate) netns_under_state: bool,
    /// Make no volumes for the `VOLUME`s of images.
    pub(crate) ignore_image_volumes: bool,
    pub(crate) unprivileged_ports: bool,
    pub(crate) unprivileged_icmp: bool,
    /// CheckpointContainer, which writes what a container has in memory to a file (`enable_criu`).
    pub(crate) checkpoints: bool,
    /// CreateContainer from a checkpoint (`restore` of `io.windlass.v1.checkpoints`).
    pub(crate) restores: bool,
    pub(crate) max_checkpoint_bytes: u64,
    /// `/proc` is masked as by default, whatever CRI says.
    pub(crate) disable_proc_mount: bool,
    /// Devices belong to the user and group that the container runs as.
    pub(crate) device_ownership: bool,
    /// Limits of huge pages are left out.
    pub(crate) disable_hugetlb: bool,
    /// They are left out where the host has no controller for them, which is an error otherwise.
    pub(crate) tolerate_missing_hugetlb: bool,
    /// How long an exec's output is waited for that others than its command hold open; zero is the daemon's own way.
    pub(crate) drain_exec_sync: Duration,
    /// Annotations for block IO and RDT classes are passed over instead of refused.
    pub(crate) ignore_blockio: bool,
    pub(crate) ignore_rdt: bool,
    /// Ids of deprecations that Status does not tell.
    pub(crate) ignored_deprecations: Vec<String>,
    /// `runtime_platforms`: the snapshotter of a handler that names none itself.
    pub(crate) platform_snapshotters: BTreeMap<String, String>,
}

/// The server of Exec, Attach and PortForward.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Streaming {
    /// Empty is the host's first address.
    pub(crate) address: String,
    /// 0 is any free port.
    pub(crate) port: u16,
    /// Zero never cuts an idle stream.
    pub(crate) idle_timeout: Duration,
    pub(crate) tls: StreamTls,
}

/// TLS of that server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StreamTls {
    pub(crate) enabled: bool,
    /// PEM files; both or neither. Without them the certificate is made at start and signed by itself.
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

/// Plugins that follow and change pods and containers (`io.containerd.nri.v1.nri`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Nri {
    pub(crate) disable: bool,
    /// Only installed plugins.
    pub(crate) disable_connections: bool,
    pub(crate) socket_path: PathBuf,
    pub(crate) plugin_path: PathBuf,
    pub(crate) plugin_config_path: PathBuf,
    pub(crate) registration_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) validator: ValidatorConfig,
}

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Config {
    /// What survives a reboot.
    pub(crate) root: PathBuf,
    /// What does not.
    pub(crate) state: PathBuf,
    pub(crate) oom_score: i32,
    pub(crate) log: Log,
    pub(crate) grpc: Grpc,
    pub(crate) ttrpc_address: PathBuf,
    pub(crate) images: Images,
    pub(crate) runtime: Runtime,
    pub(crate) streaming: Streaming,
    pub(crate) nri: Nri,
    /// Classes of block I/O; empty is none.
    pub(crate) blockio_config_file: PathBuf,
    /// Classes of RDT; empty is none.
    pub(crate) rdt_config_file: PathBuf,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            root: "/var/lib/containerd".into(),
            state: "/run/containerd".into(),
            oom_score: 0,
            log: Log { level: "info".into(), format: LogFormat::Text },
            grpc: Grpc {
                address: "/run/containerd/containerd.sock".into(),
                uid: 0,
                gid: 0,
                max_recv_message_size: 16 << 20,
                max_send_message_size: 16 << 20,
            },
            ttrpc_address: "/run/containerd/containerd.sock.ttrpc".into(),
            images: Images::default(),
            runtime: Runtime::default(),
            streaming: Streaming {
                address: "127.0.0.1".into(),
                port: 0,
                idle_timeout: Duration::from_secs(4 * 60 * 60),
                tls: StreamTls::default(),
            },
            nri: Nri::default(),
            blockio_config_file: PathBuf::new(),
            rdt_config_file: PathBuf::new(),
        }
    }
}

impl Default for Nri {
    fn default() -> Nri {
        Nri {
            disable: false,
            disable_connections: false,
            socket_path: "/var/run/nri/nri.sock".into(),
            plugin_path: "/opt/nri/plugins".into(),
            plugin_config_path: "/etc/nri/conf.d".into(),
            registration_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(2),
            validator: ValidatorConfig::default(),
        }
    }
}

impl Default for Images {
    fn default() -> Images {
        Images {
            snapshotter: "overlayfs".into(),
            pause_image: "registry.k8s.io/pause:3.10.2".into(),
            pinned: Vec::new(),
            registry_paths: vec!["/etc/containerd/certs.d".into(), "/etc/docker/certs.d".into()],
            mirrors: Mirrors::default(),
            auths: BTreeMap::new(),
            older_ways: BTreeSet::new(),
            headers: HeaderMap::new(),
            foreign_layers: false,
            policy: PolicyConfig::default(),
            max_concurrent_downloads: 3,
            layer_fetch_buffer: 0,
            discard_unpacked_layers: false,
            waits_for_disk: false,
            progress_timeout: Duration::from_secs(5 * 60),
            preload_dir: PathBuf::new(),
            max_layer_bytes: 128 << 30,
            max_layer_files: 4_000_000,
            max_image_bytes: 256 << 30,
            max_image_files: 8_000_000,
        }
    }
}

impl Default for Runtime {
    fn default() -> Runtime {
        Runtime {
            default_handler: "runc".into(),
            handlers: BTreeMap::from([("runc".to_owned(), Handler::default())]),
            cni: Cni {
                bin_dirs: vec!["/opt/cni/bin".into()],
                single_bin_dir: false,
                conf_dir: "/etc/cni/net.d".into(),
                max_conf_num: 1,
                setup_serially: false,
                ip_pref: String::new(),
            },
            max_log_line: 16 * 1024,
            restrict_oom_score_adj: false,
            unset_seccomp_profile: String::new(),
            disable_apparmor: false,
            enable_selinux: false,
            selinux_category_range: 1024,
            enable_cdi: true,
            cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            netns_under_state: false,
            ignore_image_volumes: false,
            unprivileged_ports: true,
            unprivileged_icmp: true,
            checkpoints: false,
            restores: false,
            max_checkpoint_bytes: 64 << 30,
            disable_proc_mount: false,
            device_ownership: false,
            disable_hugetlb: false,
            tolerate_missing_hugetlb: true,
            drain_exec_sync: Duration::ZERO,
            ignore_blockio: false,
            ignore_rdt: false,
            ignored_deprecations: Vec::new(),
            platform_snapshotters: BTreeMap::new(),
        }
    }
}

impl Default for Handler {
    fn default() -> Handler {
        Handler {
            runtime_type: "io.containerd.runc.v2".into(),
            runtime_path: None,
            snapshotter: None,
            pod_annotations: Vec::new(),
            container_annotations: Vec::new(),
            privileged_without_host_devices: false,
            all_devices_allowed: false,
            cgroup_writable: false,
            base_runtime_spec: PathBuf::new(),
            cni_conf_dir: PathBuf::new(),
            cni_max_conf_num: 0,
            disable_pause_image_pull: false,
            options: RuntimeOptions::default(),
        }
    }
}
