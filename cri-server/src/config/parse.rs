//! Where each version of the file keeps each key: version 2 has all of CRI in one plugin, version 3 splits images and
//! runtime from it, version 4 also moves the servers' sections below `plugins`.

use std::path::PathBuf;

use toml::Table;

use super::{
    Config, LogFormat, StreamTls, handler, handler::Options, others, registry, runtime::runtime, section::Section,
};

const CRI: &str = "io.containerd.grpc.v1.cri";

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
    if !(1..=4).contains(&version) {
        return Err(format!("version {version} is not supported; write the file in version 2, 3 or 4"));
    }
    top.path_value("root", &mut config.root)?;
    top.path_value("state", &mut config.state)?;
    top.number("oom_score", &mut config.oom_score)?;
    log(top.section("debug")?, config, warnings)?;
    let (grpc, ttrpc) = (top.section("grpc")?, top.section("ttrpc")?);
    let mut plugins = top.section("plugins")?;
    if version == 1 {
        plugins.rename(plugin_of_version_1);
    }
    // The older place first: what version 4 moved below `plugins` wins where a file has both, as containerd has it.
    server(grpc, ttrpc, config, warnings)?;
    let (grpc, ttrpc) =
        (plugins.section("io.containerd.server.v1.grpc")?, plugins.section("io.containerd.server.v1.ttrpc")?);
    server(grpc, ttrpc, config, warnings)?;
    cri(&mut plugins, version, config, options, warnings)?;
    let verifiers = plugins.section("io.containerd.image-verifier.v1.bindir")?;
    registry::verifiers(verifiers, &mut config.images.policy, warnings)?;
    own(plugins.section("io.windlass.v1.images")?, config, warnings)?;
    checkpoints(plugins.section("io.windlass.v1.checkpoints")?, config, warnings)?;
    nri(plugins.section("io.containerd.nri.v1.nri")?, config, warnings)?;
    classes(plugins.section("io.containerd.service.v1.tasks-service")?, config, warnings)?;
    others::plugins(plugins, warnings)?;
    others::top(top, config, warnings)
}

/// What a plugin of version 1 is called since version 2. Nothing else changed between the two.
fn plugin_of_version_1(name: &str) -> Option<String> {
    let kind = match name {
        name if name.contains('.') => return None,
        "cgroups" => "monitor.v1",
        "linux" => "runtime.v1",
        "task" => "runtime.v2",
        "scheduler" => "gc.v1",
        "bolt" => "metadata.v1",
        "opt" | "restart" | "tracing" => "internal.v1",
        "otlp" => "tracing.processor.v1",
        "aufs" | "btrfs" | "devmapper" | "native" | "overlayfs" | "zfs" => "snapshotter.v1",
        name if name.ends_with("-service") => "service.v1",
        _ => "grpc.v1",
    };
    Some(format!("io.containerd.{kind}.{name}"))
}

/// CRI: one plugin until version 2, three since. The names of the three count in an older file as well, as containerd has it;
/// those of the one do not in a newer file, where they are a common mistake.
fn cri(
    plugins: &mut Section,
    version: i64,
    config: &mut Config,
    options: &mut Options,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    images(plugins.section("io.containerd.cri.v1.images")?, config, warnings)?;
    transfer(plugins, config)?;
    let mut section = plugins.section("io.containerd.cri.v1.runtime")?;
    let containerd = section.section("containerd")?;
    runtime(&mut section, containerd, config, options, warnings)?;
    section.unknown(warnings);
    let mut cri = plugins.section(CRI)?;
    if version <= 2 {
        let mut containerd = cri.section("containerd")?;
        images_v2(&mut cri, &mut containerd, config, warnings)?;
        runtime(&mut cri, containerd, config, options, warnings)?;
    } else {
        misplaced(&mut cri, version, warnings);
    }
    streaming(cri, config, warnings)
}

/// Takes out the keys that were CRI's own in version 2 and says so.
fn misplaced(cri: &mut Section, version: i64, warnings: &mut Vec<String>) {
    let mut rest = cri.clone();
    let read = |rest: &mut Section| -> Result<(), String> {
        let (config, options) = (&mut Config::default(), &mut Options::new());
        let mut containerd = rest.section("containerd")?;
        images_v2(rest, &mut containerd, config, &mut Vec::new())?;
        runtime(rest, containerd, config, options, &mut Vec::new())
    };
    // A value that is wrong besides is no news where it has no effect: what was read until then is taken out.
    if let Err(error) = read(&mut rest) {
        tracing::debug!(error, "keys of version 2 in a file of a later one");
    }
    let left = rest.names();
    for key in cri.names().into_iter().filter(|key| !left.contains(key)) {
        warnings.push(format!(
            "{} has no effect in version {version}: there it belongs to io.containerd.cri.v1.runtime or \
             io.containerd.cri.v1.images",
            cri.path(&key)
        ));
        cri.drop_key(&key);
    }
}

/// containerd pulls by its transfer service since version 2.1, which has its own keys for what CRI's images have as well:
/// one that is set to something counts.
fn transfer(plugins: &mut Section, config: &mut Config) -> Result<(), String> {
    let mut transfer = plugins.section(TRANSFER)?;
    let defaults = super::Images::default();
    let (mut downloads, mut buffer) = (defaults.max_concurrent_downloads, defaults.layer_fetch_buffer);
    transfer.number("max_concurrent_downloads", &mut downloads)?;
    transfer.number("concurrent_layer_fetch_buffer", &mut buffer)?;
    if downloads != defaults.max_concurrent_downloads {
        config.images.max_concurrent_downloads = downloads;
    }
    if buffer != defaults.layer_fetch_buffer {
        config.images.layer_fetch_buffer = buffer;
    }
    plugins.put_back(TRANSFER, transfer);
    Ok(())
}

const TRANSFER: &str = "io.containerd.transfer.v1.local";

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
    handler::validate(&runtime.handlers)?;
    let mut platforms = runtime.platform_snapshotters.keys();
    if let Some(name) = platforms.find(|name| !runtime.handlers.contains_key(*name)) {
        return Err(format!("runtime_platforms.{name}: no runtime of that name is configured"));
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
    let mut level = String::new();
    section.string("level", &mut level)?;
    if !level.is_empty() {
        config.log.level = level;
    }
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
    section.fixed("address", "", "there is no debug socket", warnings);
    section.accept(&["uid", "gid", "log_trace_id"]);
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
    cri.fixed("disable_tcp_service", true, "CRI is served on the unix socket alone", warnings);
    cri.unknown(warnings);
    Ok(())
}

/// Files of resource classes.
fn classes(mut section: Section, config: &mut Config, warnings: &mut Vec<String>) -> Result<(), String> {
    section.path_value("blockio_config_file", &mut config.blockio_config_file)?;
    section.path_value("rdt_config_file", &mut config.rdt_config_file)?;
    section.unknown(warnings);
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
    containerd.boolean("discard_unpacked_layers", &mut images.discard_unpacked_layers)?;
    containerd.fixed("disable_snapshot_annotations", true, NO_ANNOTATIONS, warnings);
    cri.string("sandbox_image", &mut images.pause_image)?;
    shared_image_keys(cri, config, warnings)
}

/// What containerd has no key for, in a plugin that it does not know and so passes over.
fn own(mut section: Section, config: &mut Config, warnings: &mut Vec<String>) -> Result<(), String> {
    let images = &mut config.images;
    section.path_value("preload_dir", &mut images.preload_dir)?;
    section.number("max_layer_bytes", &mut images.max_layer_bytes)?;
    section.number("max_layer_files", &mut images.max_layer_files)?;
    section.number("max_image_bytes", &mut images.max_image_bytes)?;
    section.number("max_image_files", &mut images.max_image_files)?;
    section.unknown(warnings);
    Ok(())
}

fn checkpoints(mut section: Section, config: &mut Config, warnings: &mut Vec<String>) -> Result<(), String> {
    section.boolean("restore", &mut config.runtime.restores)?;
    section.number("max_bytes", &mut config.runtime.max_checkpoint_bytes)?;
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
    section.boolean("discard_unpacked_layers", &mut config.images.discard_unpacked_layers)?;
    section.fixed("disable_snapshot_annotations", true, NO_ANNOTATIONS, warnings);
    section.fixed("stats_collect_period", 10, "layers are measured every ten seconds", warnings);
    // Both values pull in the daemon: there is no other way here.
    section.accept(&["use_local_image_pull"]);
    platforms(section.section("runtime_platforms")?, config, warnings)?;
    shared_image_keys(&mut section, config, warnings)?;
    section.unknown(warnings);
    Ok(())
}

const NO_ANNOTATIONS: &str = "no snapshotter here reads them";

/// `runtime_platforms.<handler>`: where the images of a handler are unpacked.
fn platforms(mut section: Section, config: &mut Config, warnings: &mut Vec<String>) -> Result<(), String> {
    for name in section.names() {
        let mut platform = section.named_section(&name)?;
        let mut snapshotter = String::new();
        platform.string("snapshotter", &mut snapshotter)?;
        if !snapshotter.is_empty() {
            config.runtime.platform_snapshotters.insert(name, snapshotter);
        }
        platform.fixed("platform", "", "images are of the node's own platform", warnings);
        platform.unknown(warnings);
    }
    Ok(())
}

fn shared_image_keys(section: &mut Section, config: &mut Config, warnings: &mut Vec<String>) -> Result<(), String> {
    let images = &mut config.images;
    section.number("max_concurrent_downloads", &mut images.max_concurrent_downloads)?;
    section.duration("image_pull_progress_timeout", &mut images.progress_timeout)?;
    registry::registry(section.section("registry")?, images, warnings)?;
    section.number("concurrent_layer_fetch_buffer", &mut images.layer_fetch_buffer)?;
    section.boolean("image_pull_with_sync_fs", &mut images.waits_for_disk)?;
    let mut decryption = section.section("image_decryption")?;
    decryption.fixed("key_model", "node", "encrypted images are not supported", warnings);
    decryption.unknown(warnings);
    Ok(())
}
