//! What a client asked for, as verbose status shows it: `PodSandboxConfig` and `ContainerConfig` as JSON.
//!
//! Names and numbers are CRI's, as in every other runtime's `info`: security agents and `crictl inspect` users read single
//! fields of it (`config.envs`, `config.linux.security_context.privileged`). What is not set is left out.

use api::cri;
use sandbox::model::{
    ContainerSpec, GroupsPolicy, IdMapping, Image, Namespaces, PodSpec, PortMapping, Protocol, Resources, RunAs,
    SecurityProfile, Selinux, VolumeMount,
};
use serde_json::{Map, Value, json};

use super::{container::to_stop_signal, mount::to_mount, security::to_namespaces, to_resources_json};

pub(in crate::cri) fn to_pod_config(spec: &PodSpec) -> Value {
    let context = object([
        ("namespace_options", namespaces(&spec.namespaces)),
        ("selinux_options", spec.selinux.as_ref().map_or(Value::Null, selinux)),
        ("readonly_rootfs", json!(spec.readonly_rootfs)),
        ("privileged", json!(spec.privileged)),
        ("seccomp", profile(&spec.seccomp)),
        ("apparmor", profile(&spec.apparmor)),
    ]);
    let linux = object([
        ("cgroup_parent", json!(spec.cgroup_parent)),
        ("security_context", both(context, run_as(&spec.run_as))),
        ("sysctls", json!(spec.sysctls)),
        ("overhead", spec.overhead.as_ref().map_or(Value::Null, resources)),
        ("resources", spec.resources.as_ref().map_or(Value::Null, resources)),
    ]);
    let dns = spec.dns.as_ref().map_or(Value::Null, |dns| {
        object([("servers", json!(dns.servers)), ("searches", json!(dns.searches)), ("options", json!(dns.options))])
    });
    object([
        (
            "metadata",
            object([
                ("name", json!(spec.name.name)),
                ("uid", json!(spec.name.uid)),
                ("namespace", json!(spec.name.namespace)),
                ("attempt", json!(spec.name.attempt)),
            ]),
        ),
        ("hostname", json!(spec.hostname)),
        ("log_directory", json!(spec.log_directory)),
        ("dns_config", dns),
        ("port_mappings", spec.port_mappings.iter().map(port).collect()),
        ("labels", json!(spec.labels)),
        ("annotations", json!(spec.annotations)),
        ("linux", linux),
    ])
}

pub(in crate::cri) fn to_container_config(spec: &ContainerSpec, image: &Image) -> Value {
    let context = object([
        (
            "capabilities",
            object([
                ("add_capabilities", json!(spec.capabilities.add)),
                ("drop_capabilities", json!(spec.capabilities.drop)),
                ("add_ambient_capabilities", json!(spec.capabilities.add_ambient)),
            ]),
        ),
        ("privileged", json!(spec.privileged)),
        ("namespace_options", namespaces(&spec.namespaces)),
        ("selinux_options", spec.selinux.as_ref().map_or(Value::Null, selinux)),
        ("readonly_rootfs", json!(spec.readonly_rootfs)),
        ("no_new_privs", json!(spec.no_new_privs)),
        ("masked_paths", json!(spec.masked_paths)),
        ("readonly_paths", json!(spec.readonly_paths)),
        ("seccomp", profile(&spec.seccomp)),
        ("apparmor", profile(&spec.apparmor)),
    ]);
    let image = object([
        ("image", json!(image.requested)),
        ("annotations", json!(image.annotations)),
        ("user_specified_image", json!(image.user_specified)),
        ("runtime_handler", json!(image.runtime_handler)),
    ]);
    let device = |device: &sandbox::model::Device| json!({"container_path": device.container_path, "host_path": device.host_path, "permissions": device.permissions});
    object([
        ("metadata", object([("name", json!(spec.name.name)), ("attempt", json!(spec.name.attempt))])),
        ("image", image),
        ("command", json!(spec.command)),
        ("args", json!(spec.args)),
        ("working_dir", json!(spec.working_dir)),
        // Text, as all readers expect it, although CRI has called it bytes since 0.36.
        ("envs", spec.env.iter().map(|(key, value)| json!({"key": key, "value": value})).collect()),
        ("mounts", spec.mounts.iter().map(mount).collect()),
        ("devices", spec.devices.iter().map(device).collect()),
        ("labels", json!(spec.labels)),
        ("annotations", json!(spec.annotations)),
        ("log_path", json!(spec.log_path)),
        ("stdin", json!(spec.stdin)),
        ("stdin_once", json!(spec.stdin_once)),
        ("tty", json!(spec.tty)),
        (
            "linux",
            object([
                ("resources", resources(&spec.resources)),
                ("security_context", both(context, run_as(&spec.run_as))),
            ]),
        ),
        ("CDI_devices", spec.cdi_devices.iter().map(|name| json!({ "name": name })).collect()),
        ("stop_signal", spec.stop_signal.as_deref().map_or(Value::Null, |name| json!(to_stop_signal(name) as i32))),
    ])
}

/// The fields that say something.
fn object<const N: usize>(fields: [(&str, Value); N]) -> Value {
    let unset = [json!(null), json!(0), json!(false), json!(""), json!([]), json!({})];
    let set = fields.into_iter().filter(|(_, value)| !unset.contains(value));
    Value::Object(set.map(|(name, value)| (name.to_owned(), value)).collect())
}

fn both(one: Value, two: Value) -> Value {
    let fields = |value| match value {
        Value::Object(fields) => fields,
        _ => Map::new(),
    };
    Value::Object(fields(one).into_iter().chain(fields(two)).collect())
}

fn resources(of: &Resources) -> Value {
    to_resources_json(of)["linux"].take()
}

fn port(mapping: &PortMapping) -> Value {
    let protocol = match mapping.protocol {
        Protocol::Tcp => cri::Protocol::Tcp,
        Protocol::Udp => cri::Protocol::Udp,
        Protocol::Sctp => cri::Protocol::Sctp,
    };
    object([
        ("protocol", json!(protocol as i32)),
        ("container_port", json!(mapping.container_port)),
        ("host_port", json!(mapping.host_port)),
        ("host_ip", json!(mapping.host_ip)),
    ])
}

fn namespaces(modes: &Namespaces) -> Value {
    let modes_of_cri = to_namespaces(modes);
    let user =
        modes.user.as_ref().map_or(Value::Null, |user| json!({"uids": ids([&user.uid]), "gids": ids([&user.gid])}));
    object([
        ("network", json!(modes_of_cri.network)),
        ("pid", json!(modes_of_cri.pid)),
        ("ipc", json!(modes_of_cri.ipc)),
        ("target_id", json!(modes_of_cri.target_id)),
        ("userns_options", user),
    ])
}

fn ids<'a>(mappings: impl IntoIterator<Item = &'a IdMapping>) -> Value {
    let one = |ids: &IdMapping| {
        object([("host_id", json!(ids.host)), ("container_id", json!(ids.container)), ("length", json!(ids.length))])
    };
    mappings.into_iter().map(one).collect()
}

/// Zero is a user too, so it is told from none.
fn run_as(asked: &RunAs) -> Value {
    let id = |id: Option<u32>| id.map_or(Value::Null, |id| json!({ "value": id }));
    object([
        ("run_as_user", id(asked.user)),
        ("run_as_group", id(asked.group)),
        ("run_as_username", json!(asked.username)),
        ("supplemental_groups", json!(asked.supplemental_groups)),
        ("supplemental_groups_policy", json!(i32::from(asked.groups_policy == GroupsPolicy::Strict))),
    ])
}

fn profile(profile: &SecurityProfile) -> Value {
    use cri::security_profile::ProfileType;
    let kind = |kind: ProfileType| json!({"profile_type": kind as i32});
    match profile {
        SecurityProfile::Unset => Value::Null,
        SecurityProfile::RuntimeDefault => kind(ProfileType::RuntimeDefault),
        SecurityProfile::Unconfined => kind(ProfileType::Unconfined),
        SecurityProfile::Localhost(name) => {
            json!({"profile_type": ProfileType::Localhost as i32, "localhost_ref": name})
        }
    }
}

fn selinux(options: &Selinux) -> Value {
    object([
        ("user", json!(options.user)),
        ("role", json!(options.role)),
        ("type", json!(options.kind)),
        ("level", json!(options.level)),
    ])
}

fn mount(volume: &VolumeMount) -> Value {
    let image = volume.image.as_ref().map_or(Value::Null, |image| {
        object([
            ("image", json!(image.requested)),
            ("annotations", json!(image.annotations)),
            ("user_specified_image", json!(image.user_specified)),
        ])
    });
    let told = to_mount(volume);
    object([
        ("container_path", json!(told.container_path)),
        ("host_path", json!(told.host_path)),
        ("readonly", json!(told.readonly)),
        ("selinux_relabel", json!(told.selinux_relabel)),
        ("propagation", json!(told.propagation)),
        ("uidMappings", ids(&volume.uid_mappings)),
        ("gidMappings", ids(&volume.gid_mappings)),
        ("recursive_read_only", json!(told.recursive_read_only)),
        ("image", image),
        ("image_sub_path", json!(told.image_sub_path)),
    ])
}

#[cfg(test)]
mod tests;
