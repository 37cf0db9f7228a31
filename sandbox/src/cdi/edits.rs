//! What a device changes in a container's OCI spec. [`apply`] is a pure function; `Edits::resolve` looks at the host's
//! device nodes before.

use std::{fs, io, os::unix::fs::FileTypeExt, os::unix::fs::MetadataExt, path::Path};

use oci_spec::runtime::{
    Hook, Hooks, Linux, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, LinuxIntelRdt, LinuxNetDevice, LinuxResources,
    Mount, Process, Spec, User,
};

use super::{document, name::Name};
use crate::error::Error;

/// Changes to a spec, in the spec's own types.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Edits {
    /// `NAME=value`.
    env: Vec<String>,
    /// With what the device cgroup allows, of `rwm`.
    devices: Vec<(LinuxDevice, String)>,
    mounts: Vec<Mount>,
    /// By the name that the specification gives the hook's moment.
    hooks: Vec<(String, Hook)>,
    intel_rdt: Option<LinuxIntelRdt>,
    additional_gids: Vec<u32>,
    /// Interfaces of the host, and what they are called in the container.
    pub(super) net_devices: Vec<(String, String)>,
    /// The device that brings all this.
    pub(super) device: String,
}

impl Edits {
    /// Finds out what a vendor may leave to the host: numbers, types and modes of device nodes. Blocks.
    pub(super) fn resolve(edits: &document::Edits, device_name: &Name) -> Result<Edits, Error> {
        Ok(Edits {
            device: device_name.to_string(),
            net_devices: edits.net_devices.iter().map(net_device).collect::<Result<_, _>>()?,
            env: edits.env.clone(),
            devices: edits.device_nodes.iter().map(device).collect::<Result<_, _>>()?,
            mounts: edits.mounts.iter().map(mount).collect(),
            hooks: edits.hooks.iter().map(|entry| (entry.hook_name.clone(), hook(entry))).collect(),
            intel_rdt: edits.intel_rdt.as_ref().map(intel_rdt),
            additional_gids: edits.additional_gids.clone(),
        })
    }
}

/// An interface that is not there now may be in a container already: then this is clearer than what the runtime says.
fn net_device(entry: &document::NetDevice) -> Result<(String, String), Error> {
    let host = &entry.host_interface_name;
    if !Path::new("/sys/class/net").join(host).exists() {
        return Err(Error::Precondition(format!("network device {host:?} is not on this host, or not any more")));
    }
    Ok((host.clone(), entry.name.clone()))
}

fn device(node: &document::DeviceNode) -> Result<(LinuxDevice, String), Error> {
    let told = match node.r#type.as_str() {
        "b" => Some(LinuxDeviceType::B),
        // Unbuffered is another word for a character device.
        "c" | "u" => Some(LinuxDeviceType::C),
        "p" => Some(LinuxDeviceType::P),
        _ => None,
    };
    let mut found = LinuxDevice::default();
    found.set_path(node.path.clone().into()).set_file_mode(node.file_mode).set_uid(node.uid).set_gid(node.gid);
    match told {
        Some(LinuxDeviceType::P) => {
            found.set_typ(LinuxDeviceType::P);
        }
        Some(kind) if node.major != 0 => {
            found.set_typ(kind).set_major(node.major).set_minor(node.minor);
        }
        _ => {
            let path = if node.host_path.is_empty() { &node.path } else { &node.host_path };
            let (kind, major, minor, mode) =
                on_host(Path::new(path)).map_err(|error| Error::failed(format!("device node {path}"), error))?;
            if told.is_some_and(|told| told != kind) {
                return Err(Error::plain(format!("device node {path} is not of type {:?} on this host", node.r#type)));
            }
            found.set_typ(kind).set_major(major).set_minor(minor).set_file_mode(node.file_mode.or(Some(mode)));
        }
    }
    let permissions = if node.permissions.is_empty() { "rwm" } else { &node.permissions };
    Ok((found, permissions.to_owned()))
}

/// Type, major, minor and permission bits of a node.
fn on_host(path: &Path) -> io::Result<(LinuxDeviceType, i64, i64, u32)> {
    let metadata = fs::metadata(path)?;
    let kind = match metadata.file_type() {
        kind if kind.is_block_device() => LinuxDeviceType::B,
        kind if kind.is_char_device() => LinuxDeviceType::C,
        kind if kind.is_fifo() => LinuxDeviceType::P,
        _ => return Err(io::Error::other("it is not a device")),
    };
    let number = metadata.rdev();
    let (major, minor) = (i64::from(rustix::fs::major(number)), i64::from(rustix::fs::minor(number)));
    Ok((kind, major, minor, metadata.mode() & 0o7777))
}

fn mount(entry: &document::Mount) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_source(Some(entry.host_path.clone().into()))
        .set_destination(entry.container_path.clone().into())
        .set_typ((!entry.r#type.is_empty()).then(|| entry.r#type.clone()))
        .set_options((!entry.options.is_empty()).then(|| entry.options.clone()));
    mount
}

fn hook(entry: &document::Hook) -> Hook {
    let some = |list: &Vec<String>| (!list.is_empty()).then(|| list.clone());
    let mut hook = Hook::default();
    hook.set_path(entry.path.clone().into())
        .set_args(some(&entry.args))
        .set_env(some(&entry.env))
        .set_timeout(entry.timeout);
    hook
}

fn intel_rdt(entry: &document::IntelRdt) -> LinuxIntelRdt {
    let some = |text: &String| (!text.is_empty()).then(|| text.clone());
    let mut rdt = LinuxIntelRdt::default();
    rdt.set_clos_id(some(&entry.clos_id))
        .set_schemata((!entry.schemata.is_empty()).then(|| entry.schemata.clone()))
        .set_l3_cache_schema(some(&entry.l3_cache_schema))
        .set_mem_bw_schema(some(&entry.mem_bw_schema))
        .set_enable_monitoring((entry.enable_monitoring || entry.enable_cmt || entry.enable_mbm).then_some(true));
    rdt
}

/// Puts what devices bring into a spec, in their order. What a device brings takes the place of what the spec has under the
/// same name: an environment variable, a device path, a mount's destination.
pub fn apply(spec: &mut Spec, all: &[Edits]) {
    for edits in all {
        process(spec.process_mut().get_or_insert_with(Process::default), edits);
        if !edits.mounts.is_empty() {
            mounts(spec.mounts_mut().get_or_insert_default(), &edits.mounts);
        }
        if !edits.hooks.is_empty() {
            hooks(spec.hooks_mut().get_or_insert_default(), &edits.hooks);
        }
        let owner = spec.process().as_ref().map(|process| process.user().clone()).unwrap_or_default();
        if !edits.devices.is_empty() || edits.intel_rdt.is_some() || !edits.net_devices.is_empty() {
            linux(spec.linux_mut().get_or_insert_with(Linux::default), edits, &owner);
        }
    }
}

fn process(process: &mut Process, edits: &Edits) {
    if !edits.env.is_empty() {
        let env = process.env_mut().get_or_insert_default();
        for entry in &edits.env {
            let name = |entry: &str| entry.split_once('=').map(|(name, _)| name.to_owned());
            match env.iter_mut().find(|present| name(present) == name(entry)) {
                Some(present) => present.clone_from(entry),
                None => env.push(entry.clone()),
            }
        }
    }
    let gids = process.user_mut().additional_gids_mut().get_or_insert_default();
    for gid in &edits.additional_gids {
        // Root's group is not given by a device (SPEC.md, "additionalGids").
        if *gid != 0 && !gids.contains(gid) {
            gids.push(*gid);
        }
    }
}

fn mounts(mounts: &mut Vec<Mount>, added: &[Mount]) {
    for mount in added {
        mounts.retain(|present| present.destination() != mount.destination());
        mounts.push(mount.clone());
    }
    // Parents before what is mounted in them.
    mounts.sort_by_key(|mount| mount.destination().components().count());
}

fn hooks(hooks: &mut Hooks, added: &[(String, Hook)]) {
    for (name, hook) in added {
        let list = match name.as_str() {
            "createRuntime" => hooks.create_runtime_mut(),
            "createContainer" => hooks.create_container_mut(),
            "startContainer" => hooks.start_container_mut(),
            "poststart" => hooks.poststart_mut(),
            "poststop" => hooks.poststop_mut(),
            // The name was checked with the document.
            _ => hooks.prestart_mut(),
        };
        list.get_or_insert_default().push(hook.clone());
    }
}

fn linux(linux: &mut Linux, edits: &Edits, owner: &User) {
    for (device, permissions) in &edits.devices {
        let mut device = device.clone();
        // A device that says nothing belongs to who the container runs as, or only root could use it.
        if device.uid().is_none() && owner.uid() > 0 {
            device.set_uid(Some(owner.uid()));
        }
        if device.gid().is_none() && owner.gid() > 0 {
            device.set_gid(Some(owner.gid()));
        }
        // The cgroup has no rules for FIFOs.
        if device.typ() != LinuxDeviceType::P {
            let mut rule = LinuxDeviceCgroup::default();
            rule.set_allow(true)
                .set_typ(Some(device.typ()))
                .set_major(Some(device.major()))
                .set_minor(Some(device.minor()))
                .set_access(Some(permissions.clone()));
            let resources = linux.resources_mut().get_or_insert_with(LinuxResources::default);
            resources.devices_mut().get_or_insert_default().push(rule);
        }
        let devices = linux.devices_mut().get_or_insert_default();
        devices.retain(|present| present.path() != device.path());
        devices.push(device);
    }
    for (host, name) in &edits.net_devices {
        let mut device = LinuxNetDevice::default();
        device.set_name(Some(name.clone()));
        linux.net_devices_mut().get_or_insert_default().insert(host.clone(), device);
    }
    if let Some(rdt) = &edits.intel_rdt {
        linux.set_intel_rdt(Some(rdt.clone()));
    }
}
