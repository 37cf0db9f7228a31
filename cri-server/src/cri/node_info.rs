//! The verbose part of Status: the configuration as containerd's CRI shows it, since kubeadm and node tools read single
//! keys of it, and the networks as they were loaded.

use std::{collections::HashMap, path::Path};

use sandbox::RuntimeOptions;
use serde_json::{Map, Value, json};

use super::Cri;
use crate::config::{Config, Handler};

impl Cri {
    pub(super) async fn node_info(&self, network: &Result<(), sandbox::Error>) -> HashMap<String, String> {
        let mut info = HashMap::from([
            ("config".to_owned(), config(&self.config).to_string()),
            ("cniconfig".to_owned(), cni_config(&self.config, self.pods.networks().await).to_string()),
            ("runtimeVersion".to_owned(), json!(crate::VERSION).to_string()),
            ("lastCNILoadStatus".to_owned(), load_status(network)),
        ]);
        for (handler, network) in self.pods.handler_networks_ready().await {
            info.insert(format!("lastCNILoadStatus.{handler}"), load_status(&network));
        }
        info
    }
}

fn load_status(network: &Result<(), sandbox::Error>) -> String {
    match network {
        Ok(()) => "OK".to_owned(),
        Err(error) => error.chain(),
    }
}

/// Names are containerd's, their odd spellings included.
fn config(config: &Config) -> Value {
    let (images, runtime, streaming) = (&config.images, &config.runtime, &config.streaming);
    let handlers: Map<String, Value> =
        runtime.handlers.iter().map(|(name, value)| (name.clone(), handler(value))).collect();
    json!({
        "containerd": {
            "defaultRuntimeName": runtime.default_handler,
            "runtimes": handlers,
            "snapshotter": images.snapshotter,
            "ignoreBlockIONotEnabledErrors": runtime.ignore_blockio,
            "ignoreRdtNotEnabledErrors": runtime.ignore_rdt,
        },
        "cni": {
            "binDirs": runtime.cni.bin_dirs,
            "confDir": runtime.cni.conf_dir,
            "maxConfNum": runtime.cni.max_conf_num,
            "setupSerially": runtime.cni.setup_serially,
            "ipPref": runtime.cni.ip_pref,
            "useInternalLoopback": true,
        },
        "registry": {"configPath": paths(&images.registry_paths)},
        "enableSelinux": runtime.enable_selinux,
        "selinuxCategoryRange": runtime.selinux_category_range,
        // Its name in containerd 1, and in 2.
        "maxContainerLogSize": runtime.max_log_line,
        "maxContainerLogLineSize": runtime.max_log_line,
        "disableApparmor": runtime.disable_apparmor,
        "enableCDI": runtime.enable_cdi,
        "cdiSpecDirs": runtime.cdi_spec_dirs,
        "restrictOOMScoreAdj": runtime.restrict_oom_score_adj,
        "disableProcMount": runtime.disable_proc_mount,
        "unsetSeccompProfile": runtime.unset_seccomp_profile,
        "tolerateMissingHugetlbController": runtime.tolerate_missing_hugetlb,
        "disableHugetlbController": runtime.disable_hugetlb,
        "device_ownership_from_security_context": runtime.device_ownership,
        "ignoreImageDefinedVolumes": runtime.ignore_image_volumes,
        "netnsMountsUnderStateDir": runtime.netns_under_state,
        "enableUnprivilegedPorts": runtime.unprivileged_ports,
        "enableUnprivilegedICMP": runtime.unprivileged_icmp,
        "drainExecSyncIOTimeout": format!("{:?}", runtime.drain_exec_sync),
        "ignoreDeprecationWarnings": runtime.ignored_deprecations,
        "streamServerAddress": streaming.address,
        "streamServerPort": streaming.port.to_string(),
        "streamIdleTimeout": format!("{:?}", streaming.idle_timeout),
        "enableTLSStreaming": streaming.tls.enabled,
        "sandboxImage": images.pause_image,
        "maxConcurrentDownloads": images.max_concurrent_downloads,
        "imagePullProgressTimeout": format!("{:?}", images.progress_timeout),
        "containerdRootDir": config.root,
        "containerdEndpoint": config.grpc.address,
        "rootDir": config.root.join("io.containerd.grpc.v1.cri"),
        "stateDir": config.state.join("io.containerd.grpc.v1.cri"),
    })
}

fn handler(handler: &Handler) -> Value {
    json!({
        "runtimeType": handler.runtime_type,
        "runtimePath": handler.runtime_path.as_deref().unwrap_or(Path::new("")),
        "PodAnnotations": handler.pod_annotations,
        "ContainerAnnotations": handler.container_annotations,
        "options": options(&handler.options),
        "privileged_without_host_devices": handler.privileged_without_host_devices,
        "privileged_without_host_devices_all_devices_allowed": handler.all_devices_allowed,
        "cgroupWritable": handler.cgroup_writable,
        "baseRuntimeSpec": handler.base_runtime_spec,
        "cniConfDir": handler.cni_conf_dir,
        "cniMaxConfNum": handler.cni_max_conf_num,
        "snapshotter": handler.snapshotter.as_deref().unwrap_or_default(),
        "sandboxer": "podsandbox",
        "io_type": "fifo",
    })
}

fn options(options: &RuntimeOptions) -> Value {
    match options {
        RuntimeOptions::Runc(options) => json!({
            "BinaryName": options.binary_name,
            "Root": options.root,
            "SystemdCgroup": options.systemd_cgroup,
            "NoPivotRoot": options.no_pivot_root,
            "NoNewKeyring": options.no_new_keyring,
            "ShimCgroup": options.shim_cgroup,
            "IoUid": options.io_uid,
            "IoGid": options.io_gid,
            "CriuImagePath": options.criu_image_path,
            "CriuWorkPath": options.criu_work_path,
        }),
        // The body is the runtime's own, and may be long.
        RuntimeOptions::Generic(options) => json!({"TypeUrl": options.type_url, "ConfigPath": options.config_path}),
        RuntimeOptions::None => Value::Null,
    }
}

/// As go-cni shows what it has loaded.
fn cni_config(config: &Config, networks: Value) -> Value {
    let cni = &config.runtime.cni;
    json!({
        "PluginDirs": cni.bin_dirs,
        "PluginConfDir": cni.conf_dir,
        "PluginMaxConfNum": cni.max_conf_num,
        "Prefix": "eth",
        "Networks": networks,
    })
}

fn paths(paths: &[std::path::PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(":")
}
