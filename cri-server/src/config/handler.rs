//! One runtime handler: `runtimes.<name>`, and the options of its runtime.
//!
//! Options are collected as they are until every file is read, because their meaning depends on the runtime's type, which
//! another file may set.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use sandbox::{GenericOptions, RuncOptions, RuntimeOptions, oci::base};
use toml::Table;

use super::{Handler, section::Section};

/// By handler: the path at which its options were last seen, and what they are by now.
pub(super) type Options = BTreeMap<String, (String, Table)>;

/// What `section` says of the handler `name`, over what earlier files said.
pub(super) fn parse(
    name: &str,
    mut section: Section,
    mut handler: Handler,
    options: &mut Options,
    warnings: &mut Vec<String>,
) -> Result<Handler, String> {
    section.string("runtime_type", &mut handler.runtime_type)?;
    let mut path = PathBuf::new();
    section.path_value("runtime_path", &mut path)?;
    if path != PathBuf::new() {
        handler.runtime_path = Some(path);
    }
    let mut snapshotter = String::new();
    section.string("snapshotter", &mut snapshotter)?;
    if !snapshotter.is_empty() {
        handler.snapshotter = Some(snapshotter);
    }
    section.strings("pod_annotations", &mut handler.pod_annotations)?;
    section.strings("container_annotations", &mut handler.container_annotations)?;
    section.boolean("privileged_without_host_devices", &mut handler.privileged_without_host_devices)?;
    let path = section.path("options");
    let found = section.table("options")?;
    if !found.is_empty() {
        let known = options.entry(name.to_owned()).or_default();
        known.0 = path;
        known.1.extend(found);
    }
    section.boolean("privileged_without_host_devices_all_devices_allowed", &mut handler.all_devices_allowed)?;
    section.boolean("cgroup_writable", &mut handler.cgroup_writable)?;
    section.boolean("disable_pause_image_pull", &mut handler.disable_pause_image_pull)?;
    section.path_value("base_runtime_spec", &mut handler.base_runtime_spec)?;
    section.path_value("cni_conf_dir", &mut handler.cni_conf_dir)?;
    section.number("cni_max_conf_num", &mut handler.cni_max_conf_num)?;
    one_of(&mut section, "sandboxer", "podsandbox", "sandboxes are made by the daemon, not by shims")?;
    one_of(&mut section, "sandbox_mode", "podsandbox", "sandboxes are made by the daemon, not by shims")?;
    one_of(&mut section, "io_type", "fifo", "stdio goes through FIFOs, or is kept by the shim itself")?;
    let why = "they are BinaryName and Root in the options";
    section.fixed("runtime_engine", "", why, warnings);
    section.fixed("runtime_root", "", why, warnings);
    section.unknown(warnings);
    Ok(handler)
}

/// A key with one value that can be had.
fn one_of(section: &mut Section, key: &'static str, value: &str, why: &str) -> Result<(), String> {
    let mut set = String::new();
    section.string(key, &mut set)?;
    match set == value || set.is_empty() {
        true => Ok(()),
        false => Err(format!("{} can only be {value:?}, not {set:?}: {why}", section.path(key))),
    }
}

/// What only all files together can tell.
pub(super) fn validate(handlers: &BTreeMap<String, Handler>) -> Result<(), String> {
    for (name, handler) in handlers {
        if handler.all_devices_allowed && !handler.privileged_without_host_devices {
            return Err(format!(
                "runtimes.{name}: privileged_without_host_devices_all_devices_allowed needs privileged_without_host_devices"
            ));
        }
        if handler.cgroup_writable && !Path::new("/sys/fs/cgroup/cgroup.controllers").exists() {
            return Err(format!("runtimes.{name}: cgroup_writable needs a host with cgroup version 2 alone"));
        }
        if handler.base_runtime_spec != PathBuf::new() {
            base::read(&handler.base_runtime_spec)
                .map_err(|error| format!("runtimes.{name}.base_runtime_spec: {}", error.chain()))?;
        }
    }
    Ok(())
}

/// Gives every handler its options, once the runtime types are known.
pub(super) fn finish(
    handlers: &mut BTreeMap<String, Handler>,
    options: Options,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    for (name, handler) in handlers.iter_mut().filter(|(_, handler)| !is_runc(&handler.runtime_type)) {
        if !options.contains_key(name) {
            handler.options = RuntimeOptions::None;
        }
    }
    for (name, (path, table)) in options {
        let Some(handler) = handlers.get_mut(&name) else { continue };
        handler.options = match is_runc(&handler.runtime_type) {
            true => RuntimeOptions::Runc(runc(Section::again(&path, table), warnings)?),
            false => RuntimeOptions::Generic(generic(&path, table)?),
        };
    }
    Ok(())
}

/// Whether containerd sends the options of runc to a shim of this type. A path names no type.
fn is_runc(runtime_type: &str) -> bool {
    runtime_type == "io.containerd.runc.v2"
}

fn runc(mut section: Section, warnings: &mut Vec<String>) -> Result<RuncOptions, String> {
    let mut options = RuncOptions::default();
    section.string("BinaryName", &mut options.binary_name)?;
    section.string("Root", &mut options.root)?;
    section.boolean("SystemdCgroup", &mut options.systemd_cgroup)?;
    section.boolean("NoPivotRoot", &mut options.no_pivot_root)?;
    section.boolean("NoNewKeyring", &mut options.no_new_keyring)?;
    section.string("ShimCgroup", &mut options.shim_cgroup)?;
    section.number("IoUid", &mut options.io_uid)?;
    section.number("IoGid", &mut options.io_gid)?;
    section.string("CriuImagePath", &mut options.criu_image_path)?;
    section.string("CriuWorkPath", &mut options.criu_work_path)?;
    // runc finds criu in PATH since 1.2, and shims do not pass it on any more.
    section.pending(&["CriuPath"], warnings);
    section.unknown(warnings);
    Ok(options)
}

/// Without a path to a file, the table itself is the runtime's configuration.
fn generic(path: &str, table: Table) -> Result<GenericOptions, String> {
    let text = toml::to_string(&table).map_err(|error| format!("{path}: {error}"))?;
    let mut section = Section::again(path, table);
    let mut options = GenericOptions::default();
    section.string("TypeUrl", &mut options.type_url)?;
    section.string("ConfigPath", &mut options.config_path)?;
    if options.config_path.is_empty() {
        options.config_body = text;
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::parsed;

    #[test]
    fn options_are_runcs_or_the_table_itself_by_the_type_that_the_last_file_sets() {
        let text = |kind: &str, options: &str| {
            format!(
                "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.x]\nruntime_type = \"{kind}\"\n\
             [plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.x.options]\n{options}\n"
            )
        };
        let options = |kind: &str, options: &str| {
            parsed(&text(kind, options))
                .map(|loaded| (loaded.config.runtime.handlers["x"].options.clone(), loaded.warnings))
        };
        let runc = RuncOptions { io_uid: 5, shim_cgroup: "/shims".into(), ..RuncOptions::default() };
        assert_eq!(
            options("io.containerd.runc.v2", "IoUid = 5\nShimCgroup = \"/shims\""),
            Ok((RuntimeOptions::Runc(runc), vec![]))
        );
        let body = GenericOptions { config_body: "a = 1\n".into(), ..GenericOptions::default() };
        assert_eq!(options("io.containerd.kata.v2", "a = 1"), Ok((RuntimeOptions::Generic(body), vec![])));
        let by_path = GenericOptions { config_path: "/etc/kata.toml".into(), ..GenericOptions::default() };
        assert_eq!(
            options("/opt/kata/shim", "ConfigPath = \"/etc/kata.toml\""),
            Ok((RuntimeOptions::Generic(by_path), vec![]))
        );
        assert_eq!(options("io.containerd.kata.v2", ""), Ok((RuntimeOptions::None, vec![])));
        let wrong = options("io.containerd.runc.v2", "SystemdCgroup = \"yes\"").unwrap_err();
        assert!(
            wrong.ends_with("runtimes.x.options.SystemdCgroup must be true or false, not string \"yes\""),
            "{wrong}"
        );
        let unknown = options("io.containerd.runc.v2", "SystemdCgrup = true").unwrap().1;
        assert!(unknown[0].ends_with("did you mean SystemdCgroup?"), "{unknown:?}");
    }
}
