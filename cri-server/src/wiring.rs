//! The daemon's configuration as each part wants it: no part sees a key that is not its own.

use std::{collections::BTreeMap, env, path::PathBuf, sync::Arc, time::Duration};

use image_service::{
    clock::SystemClock,
    images,
    registry::{Credentials, RegistryConfig},
};
use sandbox::{
    events::Ooms,
    launcher::{Launcher, ShimLauncher},
    network::{CniConfig, IpPreference},
};
use snapshotter::apply::Limits;
use store::Namespace;

use crate::config::{Auth, Config, Handler, Nri, Runtime};

/// Where a snapshotter keeps its trees, as containerd lays them out.
pub(crate) fn snapshotter_root(config: &Config, name: &str) -> PathBuf {
    config.root.join(format!("io.containerd.snapshotter.v1.{name}"))
}

/// The roots of all snapshotters that are built in, by name.
pub(crate) fn snapshotter_roots(config: &Config) -> BTreeMap<String, PathBuf> {
    ["overlayfs", "native"].into_iter().map(|name| (name.to_owned(), snapshotter_root(config, name))).collect()
}

/// Where archives of images lie that are imported at the start.
pub(crate) fn preload_dir(config: &Config) -> PathBuf {
    let named = &config.images.preload_dir;
    if named.as_os_str().is_empty() { config.root.join("images") } else { named.clone() }
}

pub(crate) fn images(config: &Config) -> images::Config {
    let filesystems = snapshotter_roots(config);
    let images = &config.images;
    images::Config {
        root: config.root.clone(),
        filesystems,
        registry: RegistryConfig {
            config_path: images.registry_paths.clone(),
            auths: images.auths.iter().map(|(host, auth)| (host.clone(), credentials(auth))).collect(),
            mirrors: images.mirrors.clone(),
            headers: images.headers.clone(),
            foreign_layers: images.foreign_layers,
        },
        policy: images.policy.clone(),
        default_snapshotter: images.snapshotter.clone(),
        max_concurrent_downloads: images.max_concurrent_downloads,
        layer_fetch_buffer: images.layer_fetch_buffer,
        discard_unpacked_layers: images.discard_unpacked_layers,
        waits_for_disk: images.waits_for_disk,
        progress_timeout: images.progress_timeout,
        limits: Limits { bytes: images.max_layer_bytes, inodes: images.max_layer_files, ..Limits::default() },
        max_image_bytes: images.max_image_bytes,
        max_image_files: images.max_image_files,
        clock: Arc::new(SystemClock),
        // The sandbox image is needed by every pod, so it is never offered for collection.
        pinned: std::iter::once(images.pause_image.clone()).chain(images.pinned.iter().cloned()).collect(),
    }
}

fn credentials(auth: &Auth) -> Credentials {
    Credentials {
        username: auth.username.clone(),
        password: auth.password.clone(),
        auth: auth.auth.clone(),
        identity_token: auth.identity_token.clone(),
        ..Credentials::default()
    }
}

pub(crate) fn cni(config: &Config) -> CniConfig {
    let cni = &config.runtime.cni;
    CniConfig {
        conf_dir: cni.conf_dir.clone(),
        bin_dirs: cni.bin_dirs.clone(),
        max_conf_num: cni.max_conf_num,
        cache_dir: PathBuf::from("/var/lib/cni"),
        ip_pref: match cni.ip_pref.as_str() {
            "ipv6" => IpPreference::Ipv6,
            "cni" => IpPreference::Cni,
            _ => IpPreference::Ipv4,
        },
        setup_serially: cni.setup_serially,
        handlers: config
            .runtime
            .handlers
            .iter()
            .filter(|(_, handler)| handler.cni_conf_dir != PathBuf::new())
            .map(|(name, handler)| (name.clone(), (handler.cni_conf_dir.clone(), handler.cni_max_conf_num)))
            .collect(),
        // A little less than an ADD as a whole may take, so that of a plugin that hangs the error tells the name.
        deadline: sandbox::Timeouts::default().network - Duration::from_secs(10),
    }
}

/// Reads the base specs of the handlers once more: the daemon may have been started long after the file was checked.
pub(crate) fn sandbox(config: &Config) -> Result<sandbox::Config, sandbox::Error> {
    let runtime = &config.runtime;
    Ok(sandbox::Config {
        root: config.root.clone(),
        state: config.state.clone(),
        grpc_address: config.grpc.address.clone(),
        ttrpc_address: config.ttrpc_address.clone(),
        shim_search: shim_search(),
        netns_dir: if runtime.netns_under_state { config.state.join("netns") } else { PathBuf::from("/run/netns") },
        namespace: Namespace::k8s(),
        handlers: handlers(runtime)?,
        default_handler: runtime.default_handler.clone(),
        snapshotter: config.images.snapshotter.clone(),
        // Zero and less mean "never split" in the file.
        max_log_line: usize::try_from(runtime.max_log_line).unwrap_or_default(),
        default_cgroup_parent: String::new(),
        restrict_oom_score_adj: runtime.restrict_oom_score_adj,
        selinux_categories: runtime.enable_selinux.then_some(runtime.selinux_category_range),
        cdi_spec_dirs: runtime.enable_cdi.then(|| runtime.cdi_spec_dirs.clone()),
        blockio_config_file: Some(config.blockio_config_file.clone()).filter(|file| *file != PathBuf::new()),
        mounts: PathBuf::from("/proc/self/mounts"),
        rdt_config_file: Some(config.rdt_config_file.clone()).filter(|file| *file != PathBuf::new()),
        disable_apparmor: runtime.disable_apparmor,
        ignore_image_volumes: runtime.ignore_image_volumes,
        disable_hugetlb: runtime.disable_hugetlb,
        tolerate_missing_hugetlb: runtime.tolerate_missing_hugetlb,
        nri: nri(&config.nri),
        max_checkpoint_bytes: runtime.max_checkpoint_bytes,
        timeouts: timeouts(runtime),
    })
}

/// What keeps pods of some handler from being started on this host.
pub(crate) fn unusable_handlers(config: &Config) -> Result<Vec<sandbox::Error>, sandbox::Error> {
    let config = sandbox(config)?;
    let launcher = ShimLauncher::new(config.clone(), Ooms::default());
    Ok(config.handlers.iter().filter_map(|(name, handler)| launcher.check(name, handler).err()).collect())
}

fn nri(nri: &Nri) -> Option<sandbox::nri::Config> {
    (!nri.disable).then(|| sandbox::nri::Config {
        plugin_path: nri.plugin_path.clone(),
        plugin_config_path: nri.plugin_config_path.clone(),
        registration_timeout: nri.registration_timeout,
        request_timeout: nri.request_timeout,
        validator: nri.validator.clone(),
    })
}

fn timeouts(runtime: &Runtime) -> sandbox::Timeouts {
    let defaults = sandbox::Timeouts::default();
    // Zero is containerd's "for ever", which would keep ExecSync from answering while anybody holds the pipe.
    let drain = match runtime.drain_exec_sync {
        Duration::ZERO => defaults.drain,
        limit => sandbox::Drain { limit, in_silence: true },
    };
    sandbox::Timeouts { drain, ..defaults }
}

fn handlers(runtime: &Runtime) -> Result<BTreeMap<String, sandbox::Handler>, sandbox::Error> {
    let named = |(name, value): (&String, &Handler)| Ok((name.clone(), handler(name, value, runtime)?));
    runtime.handlers.iter().map(named).collect()
}

fn handler(name: &str, handler: &Handler, runtime: &Runtime) -> Result<sandbox::Handler, sandbox::Error> {
    let base_spec = match handler.base_runtime_spec == PathBuf::new() {
        true => None,
        false => Some(Arc::new(sandbox::oci::base::read(&handler.base_runtime_spec)?)),
    };
    Ok(sandbox::Handler {
        runtime_type: handler.runtime_type.clone(),
        runtime_path: handler.runtime_path.clone(),
        options: handler.options.clone(),
        privileged_without_host_devices: handler.privileged_without_host_devices,
        all_devices_allowed: handler.all_devices_allowed,
        cgroup_writable: handler.cgroup_writable,
        base_spec,
        disable_proc_mount: runtime.disable_proc_mount,
        device_ownership: runtime.device_ownership,
        ignore_blockio: runtime.ignore_blockio,
        ignore_rdt: runtime.ignore_rdt,
        snapshotter: handler.snapshotter.clone().or_else(|| runtime.platform_snapshotters.get(name).cloned()),
        keep_privileged_ports: !runtime.unprivileged_ports,
        keep_ping_group_range: !runtime.unprivileged_icmp,
        pod_annotations: handler.pod_annotations.clone(),
        container_annotations: handler.container_annotations.clone(),
        // Asked of the runtime itself when the daemon starts.
        features: sandbox::features::Features::default(),
    })
}

/// Our own shim before whatever PATH has: `<prefix>/libexec/windlass` of an installation, else beside the daemon.
fn shim_search() -> Vec<PathBuf> {
    let Ok(own) = env::current_exe() else { return Vec::new() };
    let directory = own.parent().map(PathBuf::from).unwrap_or_default();
    vec![directory.join("../libexec/windlass"), directory]
}
