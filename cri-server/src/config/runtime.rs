//! Pods and containers: in version 2 beside all other keys of CRI, later `io.containerd.cri.v1.runtime`.

use std::path::PathBuf;

use super::{Config, handler, handler::Options, section::Section};

/// Puts what the section of pods and containers says into `config`.
pub(super) fn runtime(
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
    section.boolean("enable_selinux", &mut runtime.enable_selinux)?;
    section.number("selinux_category_range", &mut runtime.selinux_category_range)?;
    // Kernels and policies know 1024; a pod takes two.
    if !(2..=1024).contains(&runtime.selinux_category_range) {
        return Err(format!("{} must be 2 to 1024", section.path("selinux_category_range")));
    }
    section.boolean("disable_proc_mount", &mut runtime.disable_proc_mount)?;
    section.boolean("device_ownership_from_security_context", &mut runtime.device_ownership)?;
    section.boolean("disable_hugetlb_controller", &mut runtime.disable_hugetlb)?;
    section.boolean("tolerate_missing_hugetlb_controller", &mut runtime.tolerate_missing_hugetlb)?;
    section.duration("drain_exec_sync_io_timeout", &mut runtime.drain_exec_sync)?;
    section.strings("ignore_deprecation_warnings", &mut runtime.ignored_deprecations)?;
    section.boolean("enable_criu", &mut runtime.checkpoints)?;
    stats(section, warnings);
    section.fixed("systemd_cgroup", false, "it is SystemdCgroup in a runtime's options", warnings);
    section.fixed("disable_cgroup", false, "every container has a cgroup", warnings);
    cni(section.section("cni")?, config, warnings)?;
    containerd.string("default_runtime_name", &mut config.runtime.default_handler)?;
    let mut runtimes = containerd.section("runtimes")?;
    for name in runtimes.names() {
        let before = config.runtime.handlers.remove(&name).unwrap_or_default();
        let handler = handler::parse(&name, runtimes.named_section(&name)?, before, options, warnings)?;
        config.runtime.handlers.insert(name, handler);
    }
    containerd.boolean("ignore_blockio_not_enabled_errors", &mut config.runtime.ignore_blockio)?;
    containerd.boolean("ignore_rdt_not_enabled_errors", &mut config.runtime.ignore_rdt)?;
    containerd.fixed("no_pivot", false, "it is NoPivotRoot in a runtime's options", warnings);
    for name in ["default_runtime", "untrusted_workload_runtime"] {
        let mut older = containerd.section(name)?;
        older.fixed("runtime_type", "", "runtimes.<name> and default_runtime_name are the way", warnings);
    }
    // Read with the images.
    containerd.accept(&["disable_snapshot_annotations", "discard_unpacked_layers", "snapshotter"]);
    containerd.unknown(warnings);
    Ok(())
}

fn cni(mut section: Section, config: &mut Config, warnings: &mut Vec<String>) -> Result<(), String> {
    let cni = &mut config.runtime.cni;
    let mut single = PathBuf::new();
    section.path_value("bin_dir", &mut single)?;
    let mut several = Vec::new();
    section.strings("bin_dirs", &mut several)?;
    if let Some(bad) = several.iter().find(|dir| !dir.starts_with('/')) {
        return Err(format!("{} must be absolute paths, not {bad:?}", section.path("bin_dirs")));
    }
    let several: Vec<PathBuf> = several.into_iter().map(PathBuf::from).collect();
    let default = super::Runtime::default().cni.bin_dirs;
    match (single != PathBuf::new(), several.is_empty() || several == default) {
        (true, true) => {
            cni.bin_dirs = vec![single];
            cni.single_bin_dir = true;
        }
        (true, false) => {
            return Err(format!("{} and bin_dirs cannot be set together; leave bin_dir out", section.path("bin_dir")));
        }
        (false, _) if !several.is_empty() => cni.bin_dirs = several,
        (false, _) => {}
    }
    section.path_value("conf_dir", &mut cni.conf_dir)?;
    section.number("max_conf_num", &mut cni.max_conf_num)?;
    section.boolean("setup_serially", &mut cni.setup_serially)?;
    section.string("ip_pref", &mut cni.ip_pref)?;
    section.fixed("conf_template", "", "the network's own agent writes its configuration", warnings);
    // The loopback interface is always brought up from within.
    section.accept(&["use_internal_loopback"]);
    section.unknown(warnings);
    Ok(())
}

/// Version 2 has one key for both what containers and what layers take; it is a number there.
fn stats(section: &mut Section, warnings: &mut Vec<String>) {
    let why = "usage is sampled every second, writable layers every ten seconds";
    match section.is_number("stats_collect_period") {
        true => section.fixed("stats_collect_period", 10, why, warnings),
        false => section.fixed("stats_collect_period", "", why, warnings),
    }
    section.fixed("stats_retention_period", "", "usage is kept as long as its container is there", warnings);
}
