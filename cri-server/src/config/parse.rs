//! Where each version of the file keeps each key: version 2 has all of CRI in one plugin, version 3 splits images and
//! runtime from it, version 4 also moves the servers' sections below `plugins`.

use std::path::PathBuf;

use toml::Table;

use super::{Config, LogFormat, StreamTls, handler, handler::Options, registry, section::Section};

/// Top-level keys of containerd that have no meaning here, or none yet.
const ACCEPTED: &[&str] = &[
    "imports",
    "temp",
    "plugin_dir",
    "disabled_plugins",
    "required_plugins",
    "metrics",
    "cgroup",
    "timeouts",
    "proxy_plugins",
    "stream_processors",
];

/// Puts what `table` says into `config`; what it does not say stays as it was.
///
/// `options` collects those of runtimes: whose they are, only all files together tell.
pub(super) fn apply(
    table: Table,
    config: &mut Config,
    options: &mut Options,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    let mut top = Section::top(table);
    let mut version: i64 = 1;
    top.number("version", &mut version)?;
    if !(2..=4).contains(&version) {
        return Err(format!(
            "version {version} is not supported; write the file in version 2, 3 or 4 and say so by `version = 2` (a file without it is version 1)"
        ));
    }
    top.path_value("root", &mut config.root)?;
    top.path_value("state", &mut config.state)?;
    top.number("oom_score", &mut config.oom_score)?;
    log(top.section("debug")?, config, warnings)?;
    let (own_grpc, own_ttrpc) = (top.section("grpc")?, top.section("ttrpc")?);
    let mut plugins = top.section("plugins")?;
    let (grpc, ttrpc) = if version < 4 {
        (own_grpc, own_ttrpc)
    } else {
        (
            plugins.named_section("io.containerd.server.v1.grpc")?,
            plugins.named_section("io.containerd.server.v1.ttrpc")?,
        )
    };
    server(grpc, ttrpc, config, warnings)?;
    if version == 2 {
        let mut cri = plugins.named_section("io.containerd.grpc.v1.cri")?;
        let mut containerd = cri.section("containerd")?;
        images_v2(&mut cri, &mut containerd, config, warnings)?;
        runtime(&mut cri, containerd, config, options, warnings)?;
        streaming(cri, config, warnings)?;
    } else {
        streaming(plugins.named_section("io.containerd.grpc.v1.cri")?, config, warnings)?;
        images(plugins.named_section("io.containerd.cri.v1.images")?, config, warnings)?;
        let mut section = plugins.named_section("io.containerd.cri.v1.runtime")?;
        let containerd = section.section("containerd")?;
        runtime(&mut section, containerd, config, options, warnings)?;
        section.unknown(warnings);
    }
    let verifiers = plugins.named_section("io.containerd.image-verifier.v1.bindir")?;
    registry::verifiers(verifiers, &mut config.images.policy, warnings)?;
    own(plugins.named_section("io.windlass.v1.images")?, config, warnings)?;
    nri(plugins.named_section("io.containerd.nri.v1.nri")?, config, warnings)?;
    // What is left below `plugins` belongs to plugins that this daemon does not have; containerd's own default file
    // carries dozens, so they are no news to anyone.
    top.accept(ACCEPTED);
    top.unknown(warnings);
    Ok(())
}

/// What only the whole configuration can tell.
pub(super) fn validate(config: &Config) -> Result<(), String> {
    if config.root == config.state {
        return Err(format!("root and state must be two directories, both are {}", config.root.display()));
    }
    registry::validate(&config.images)?;
    stream_pair(&config.streaming.tls)?;
    let runtime = &config.runtime;
    if !runtime.handlers.contains_key(&runtime.default_handler) {
        let names: Vec<_> = runtime.handlers.keys().map(String::as_str).collect();
        return Err(format!(
            "default_runtime_name {:?} is not one of the configured runtimes: {}",
            runtime.default_handler,
            names.join(", ")
        ));
    }
    if !["", "ipv4", "ipv6", "cni"].contains(&runtime.cni.ip_pref.as_str()) {
        return Err(format!("cni.ip_pref must be ipv4, ipv6 or cni, not {:?}", runtime.cni.ip_pref));
    }
    if !["", "unconfined", "runtime/default"].contains(&runtime.unset_seccomp_profile.as_str())
        && !runtime.unset_seccomp_profile.starts_with("localhost/")
    {
        return Err(format!(
            "unset_seccomp_profile must be empty, unconfined, runtime/default or localhost/<path>, not {:?}",
            runtime.unset_seccomp_profile
        ));
    }
    Ok(())
}

/// As containerd has it: half a pair is a mistake, and so is a pair that nothing would show.
fn stream_pair(tls: &StreamTls) -> Result<(), String> {
    let [certificate, key] = [&tls.certificate, &tls.key].map(|path| !path.as_os_str().is_empty());
    if certificate != key {
        let (set, missing) =
            if certificate { ("tls_cert_file", "tls_key_file") } else { ("tls_key_file", "tls_cert_file") };
        return Err(format!("x509_key_pair_streaming.{set} is set without {missing}; set both or neither"));
    }
    if certificate && !tls.enabled {
        return Err(
            "x509_key_pair_streaming is set, but enable_tls_streaming is not true; set it or leave the pair out".into(),
        );
    }
    Ok(())
}

fn log(mut section: Section, config: &mut Config, warnings: &mut Vec<String>) -> Result<(), String> {
    section.string("level", &mut config.log.level)?;
    if config.log.level == "fatal" || config.log.level == "panic" {
        config.log.level = "error".to_owned();
    }
    if !["trace", "debug", "info", "warn", "error"].contains(&config.log.level.as_str()) {
        return Err(format!("debug.level must be trace, debug, info, warn or error, not {:?}", config.log.level));
    }
    let mut format = String::new();
    section.string("format", &mut format)?;
    match format.as_str() {
        "" => {}
        "text" => config.log.format = LogFormat::Text,
        "json" => config.log.format = LogFormat::Json,
        other => return Err(format!("debug.format must be text or json, not {other:?}")),
    }
    section.accept(&["address", "uid", "gid", "log_trace_id"]);
    section.unknown(warnings);
    Ok(())
}

fn server(
    mut grpc: Section,
    mut ttrpc: Section,
    config: &mut Config,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    let before = config.grpc.address.clone();
    grpc.path_value("address", &mut config.grpc.address)?;
    if config.grpc.address != before {
        config.ttrpc_address = PathBuf::from(format!("{}.ttrpc", config.grpc.address.display()));
    }
    grpc.number("uid", &mut config.grpc.uid)?;
    grpc.number("gid", &mut config.grpc.gid)?;
    grpc.number("max_recv_message_size", &mut config.grpc.max_recv_message_size)?;
    grpc.number("max_send_message_size", &mut config.grpc.max_send_message_size)?;
    grpc.pending(&["tcp_address"], warnings);
    grpc.accept(&["tcp_tls_ca", "tcp_tls_cert", "tcp_tls_key", "tcp_tls_common_name"]);
    grpc.unknown(warnings);
    ttrpc.path_value("address", &mut config.ttrpc_address)?;
    ttrpc.accept(&["uid", "gid"]);
    ttrpc.unknown(warnings);
    Ok(())
}

fn streaming(mut cri: Section, config: &mut Config, warnings: &mut Vec<String>) -> Result<(), String> {
    let streaming = &mut config.streaming;
    cri.string("stream_server_address", &mut streaming.address)?;
    let mut port = String::new();
    cri.string("stream_server_port", &mut port)?;
    if !port.is_empty() {
        streaming.port =
            port.parse().map_err(|_| format!("stream_server_port must be a port number in a string, not {port:?}"))?;
    }
    cri.duration("stream_idle_timeout", &mut streaming.idle_timeout)?;
    cri.boolean("enable_tls_streaming", &mut streaming.tls.enabled)?;
    let mut pair = cri.section("x509_key_pair_streaming")?;
    pair.path_value("tls_cert_file", &mut streaming.tls.certificate)?;
    pair.path_value("tls_key_file", &mut streaming.tls.key)?;
    pair.unknown(warnings);
    cri.accept(&["disable_tcp_service"]);
    cri.unknown(warnings);
    Ok(())
}

fn nri(mut section: Section, config: &mut Config, warnings: &mut Vec<String>) -> Result<(), String> {
    let nri = &mut config.nri;
    section.boolean("disable", &mut nri.disable)?;
    section.boolean("disable_connections", &mut nri.disable_connections)?;
    section.path_value("socket_path", &mut nri.socket_path)?;
    section.path_value("plugin_path", &mut nri.plugin_path)?;
    section.path_value("plugin_config_path", &mut nri.plugin_config_path)?;
    for (key, limit) in [
        ("plugin_registration_timeout", &mut nri.registration_timeout),
        ("plugin_request_timeout", &mut nri.request_timeout),
    ] {
        section.duration(key, limit)?;
        if limit.is_zero() {
            return Err(format!("{} must be more than 0: no plugin could answer in time", section.path(key)));
        }
    }
    let mut validator = section.section("default_validator")?;
    let rules = &mut nri.validator;
    validator.boolean("enable", &mut rules.enable)?;
    validator.boolean("reject_oci_hook_adjustment", &mut rules.reject_hooks)?;
    validator.boolean("reject_runtime_default_seccomp_adjustment", &mut rules.reject_runtime_default_seccomp)?;
    validator.boolean("reject_unconfined_seccomp_adjustment", &mut rules.reject_unconfined_seccomp)?;
    validator.boolean("reject_custom_seccomp_adjustment", &mut rules.reject_custom_seccomp)?;
    validator.boolean("reject_namespace_adjustment", &mut rules.reject_namespaces)?;
    validator.boolean("reject_sysctl_adjustment", &mut rules.reject_sysctls)?;
    validator.strings("required_plugins", &mut rules.required_plugins)?;
    validator.string("tolerate_missing_plugins_annotation", &mut rules.tolerate_missing_annotation)?;
    validator.unknown(warnings);
    section.unknown(warnings);
    Ok(())
}

fn images_v2(
    cri: &mut Section,
    containerd: &mut Section,
    config: &mut Config,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    let images = &mut config.images;
    containerd.string("snapshotter", &mut images.snapshotter)?;
    containerd.pending(&["discard_unpacked_layers"], warnings);
    containerd.accept(&["disable_snapshot_annotations"]);
    cri.string("sandbox_image", &mut images.pause_image)?;
    shared_image_keys(cri, config, warnings)
}

/// What containerd has no key for, in a plugin that it does not know and so passes over.
fn own(mut section: Section, config: &mut Config, warnings: &mut Vec<String>) -> Result<(), String> {
    let images = &mut config.images;
    section.path_value("preload_dir", &mut images.preload_dir)?;
    section.number("max_layer_bytes", &mut images.max_layer_bytes)?;
    section.number("max_layer_files", &mut images.max_layer_files)?;
    section.unknown(warnings);
    Ok(())
}

fn images(mut section: Section, config: &mut Config, warnings: &mut Vec<String>) -> Result<(), String> {
    section.string("snapshotter", &mut config.images.snapshotter)?;
    let mut pinned = section.section("pinned_images")?;
    pinned.string("sandbox", &mut config.images.pause_image)?;
    let mut others = Vec::new();
    for name in pinned.names() {
        let Some(reference) = pinned.named_string(&name)? else { continue };
        others.push(reference);
    }
    config.images.pinned.extend(others);
    section.pending(&["discard_unpacked_layers", "runtime_platforms"], warnings);
    section.accept(&["disable_snapshot_annotations", "use_local_image_pull"]);
    shared_image_keys(&mut section, config, warnings)?;
    section.unknown(warnings);
    Ok(())
}

fn shared_image_keys(section: &mut Section, config: &mut Config, warnings: &mut Vec<String>) -> Result<(), String> {
    let images = &mut config.images;
    section.number("max_concurrent_downloads", &mut images.max_concurrent_downloads)?;
    section.duration("image_pull_progress_timeout", &mut images.progress_timeout)?;
    registry::registry(section.section("registry")?, images, warnings)?;
    section.number("concurrent_layer_fetch_buffer", &mut images.layer_fetch_buffer)?;
    section.boolean("image_pull_with_sync_fs", &mut images.waits_for_disk)?;
    section.accept(&["image_decryption", "stats_collect_period"]);
    Ok(())
}

fn runtime(
    section: &mut Section,
    mut containerd: Section,
    config: &mut Config,
    options: &mut Options,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    let runtime = &mut config.runtime;
    section.number("max_container_log_line_size", &mut runtime.max_log_line)?;
    section.boolean("restrict_oom_score_adj", &mut runtime.restrict_oom_score_adj)?;
    section.string("unset_seccomp_profile", &mut runtime.unset_seccomp_profile)?;
    section.boolean("disable_apparmor", &mut runtime.disable_apparmor)?;
    section.boolean("enable_cdi", &mut runtime.enable_cdi)?;
    let mut dirs = Vec::new();
    section.strings("cdi_spec_dirs", &mut dirs)?;
    if let Some(bad) = dirs.iter().find(|dir| !dir.starts_with('/')) {
        return Err(format!("{} must be absolute paths, not {bad:?}", section.path("cdi_spec_dirs")));
    }
    if !dirs.is_empty() {
        runtime.cdi_spec_dirs = dirs.into_iter().map(PathBuf::from).collect();
    }
    section.boolean("netns_mounts_under_state_dir", &mut runtime.netns_under_state)?;
    section.boolean("enable_unprivileged_ports", &mut runtime.unprivileged_ports)?;
    section.boolean("enable_unprivileged_icmp", &mut runtime.unprivileged_icmp)?;
    section.boolean("ignore_image_defined_volumes", &mut runtime.ignore_image_volumes)?;
    section.boolean("enable_criu", &mut runtime.checkpoints)?;
    section.boolean("enable_selinux", &mut runtime.enable_selinux)?;
    section.number("selinux_category_range", &mut runtime.selinux_category_range)?;
    // Kernels and policies know 1024; a pod takes two.
    if !(2..=1024).contains(&runtime.selinux_category_range) {
        return Err(format!("{} must be 2 to 1024", section.path("selinux_category_range")));
    }
    section.pending(&["disable_proc_mount", "device_ownership_from_security_context"], warnings);
    section.accept(&[
        "tolerate_missing_hugetlb_controller",
        "disable_hugetlb_controller",
        "drain_exec_sync_io_timeout",
        "ignore_deprecation_warnings",
        "stats_collect_period",
        "stats_retention_period",
        "disable_cgroup",
    ]);
    cni(section.section("cni")?, config, warnings)?;
    containerd.string("default_runtime_name", &mut config.runtime.default_handler)?;
    let mut runtimes = containerd.section("runtimes")?;
    for name in runtimes.names() {
        let before = config.runtime.handlers.remove(&name).unwrap_or_default();
        let handler = handler::parse(&name, runtimes.named_section(&name)?, before, options, warnings)?;
        config.runtime.handlers.insert(name, handler);
    }
    containerd.accept(&[
        "ignore_blockio_not_enabled_errors",
        "ignore_rdt_not_enabled_errors",
        "no_pivot",
        "default_runtime",
        "untrusted_workload_runtime",
        "disable_snapshot_annotations",
        "discard_unpacked_layers",
        "snapshotter",
    ]);
    containerd.unknown(warnings);
    Ok(())
}

fn cni(mut section: Section, config: &mut Config, warnings: &mut Vec<String>) -> Result<(), String> {
    let cni = &mut config.runtime.cni;
    let mut single = PathBuf::new();
    section.path_value("bin_dir", &mut single)?;
    if single != PathBuf::new() {
        cni.bin_dirs = vec![single];
    }
    let mut several = Vec::new();
    section.strings("bin_dirs", &mut several)?;
    if !several.is_empty() {
        cni.bin_dirs = several.into_iter().map(PathBuf::from).collect();
    }
    section.path_value("conf_dir", &mut cni.conf_dir)?;
    section.number("max_conf_num", &mut cni.max_conf_num)?;
    section.boolean("setup_serially", &mut cni.setup_serially)?;
    section.string("ip_pref", &mut cni.ip_pref)?;
    section.pending(&["conf_template"], warnings);
    section.accept(&["use_internal_loopback"]);
    section.unknown(warnings);
    Ok(())
}
