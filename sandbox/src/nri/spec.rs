//! What plugins adjust, put into a container's OCI spec: a pure function of both.
//!
//! The spec is JSON here, since plugins may set what is newer than the typed one knows (memory policies, network devices);
//! an OCI runtime that does not know a field ignores it, as the runtime spec has it.

use serde_json::{Map, Value, json};

use crate::Error;

use super::{
    limits::{self, list, put},
    proto::{
        ContainerAdjustment, Hook, Hooks, IoPriorityClass, KeyValue, LinuxContainerAdjustment, LinuxDevice,
        LinuxMemoryPolicy, LinuxNamespace, LinuxRdt, LinuxScheduler, LinuxSeccomp, MemoryPolicyFlag, MemoryPolicyMode,
        Mount, SchedulerFlag, SchedulerPolicy, removed,
    },
};

/// What the host can do, as far as adjustments depend on it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HostLimits {
    /// Swap can be limited.
    pub(crate) swap: bool,
    pub(crate) lowest_oom_score_adj: i32,
}

/// Applies everything but CDI devices. These, and the class of block I/O, the caller resolves before.
pub(crate) fn apply(
    adjust: &ContainerAdjustment,
    spec: &mut Value,
    host: HostLimits,
    block_io: Option<Value>,
) -> Result<(), Error> {
    map(&mut spec["annotations"], adjust.annotations.iter().map(|(name, value)| (name.as_str(), json!(value))));
    env(&adjust.env, &mut spec["process"]);
    if !adjust.args.is_empty() {
        spec["process"]["args"] = json!(adjust.args);
    }
    if let Some(hooks) = &adjust.hooks {
        add_hooks(hooks, spec);
    }
    if let Some(adjust) = &adjust.linux {
        linux(adjust, spec, host, block_io)?;
    }
    mounts(&adjust.mounts, spec)?;
    for limit in &adjust.rlimits {
        let rlimits = list(&mut spec["process"], "rlimits");
        rlimits.retain(|known| known["type"] != json!(limit.r#type));
        rlimits.push(json!({"type": limit.r#type, "hard": limit.hard, "soft": limit.soft}));
    }
    Ok(())
}

/// Sets and removes named values.
fn map<'a>(into: &mut Value, from: impl Iterator<Item = (&'a str, Value)>) {
    let mut object = match into.take() {
        Value::Object(object) => object,
        _ => Map::new(),
    };
    for (name, value) in from {
        match removed(name) {
            Some(name) => drop(object.remove(name)),
            None => drop(object.insert(name.to_owned(), value)),
        }
    }
    if !object.is_empty() {
        *into = Value::Object(object);
    }
}

/// A variable keeps its place; a new one comes last.
fn env(from: &[KeyValue], process: &mut Value) {
    for KeyValue { key, value } in from {
        let name = removed(key).unwrap_or(key);
        let entries = list(process, "env");
        let at =
            entries.iter().position(|entry| entry.as_str().and_then(|entry| entry.split('=').next()) == Some(name));
        let set = removed(key).is_none().then(|| json!(format!("{key}={value}")));
        match (at, set) {
            (Some(at), Some(entry)) => entries[at] = entry,
            (Some(at), None) => drop(entries.remove(at)),
            (None, Some(entry)) => entries.push(entry),
            (None, None) => {}
        }
    }
}

fn add_hooks(hooks: &Hooks, spec: &mut Value) {
    let kinds = [
        ("prestart", &hooks.prestart),
        ("createRuntime", &hooks.create_runtime),
        ("createContainer", &hooks.create_container),
        ("startContainer", &hooks.start_container),
        ("poststart", &hooks.poststart),
        ("poststop", &hooks.poststop),
    ];
    for (kind, hooks) in kinds.into_iter().filter(|(_, hooks)| !hooks.is_empty()) {
        list(&mut spec["hooks"], kind).extend(hooks.iter().map(hook));
    }
}

fn hook(hook: &Hook) -> Value {
    let mut written = Map::new();
    written.insert("path".into(), json!(hook.path));
    put(&mut written, "args", (!hook.args.is_empty()).then(|| hook.args.clone()));
    put(&mut written, "env", (!hook.env.is_empty()).then(|| hook.env.clone()));
    put(&mut written, "timeout", hook.timeout.map(|timeout| timeout.value));
    Value::Object(written)
}

fn linux(
    adjust: &LinuxContainerAdjustment,
    spec: &mut Value,
    host: HostLimits,
    block_io: Option<Value>,
) -> Result<(), Error> {
    for device in &adjust.devices {
        set_device(device, &mut spec["linux"])?;
    }
    if !adjust.cgroups_path.is_empty() {
        spec["linux"]["cgroupsPath"] = json!(adjust.cgroups_path);
    }
    if let Some(score) = adjust.oom_score_adj {
        // The same that happens to a score that the kubelet asks for.
        spec["process"]["oomScoreAdj"] = json!(score.value.clamp(i64::from(host.lowest_oom_score_adj), 1000));
    }
    if let Some(priority) = &adjust.io_priority {
        let class = IoPriorityClass::try_from(priority.class).unwrap_or(IoPriorityClass::IoprioClassNone);
        set(
            &mut spec["process"],
            "ioPriority",
            (class != IoPriorityClass::IoprioClassNone)
                .then(|| json!({"class": class.as_str_name(), "priority": priority.priority})),
        );
    }
    if let Some(from) = &adjust.scheduler {
        spec["process"]["scheduler"] = scheduler(from)?;
    }
    if let Some(policy) = &adjust.seccomp_policy {
        spec["linux"]["seccomp"] = seccomp(policy);
    }
    for namespace in &adjust.namespaces {
        set_namespace(namespace, list(&mut spec["linux"], "namespaces"));
    }
    map(&mut spec["linux"]["sysctl"], adjust.sysctl.iter().map(|(name, value)| (name.as_str(), json!(value))));
    let devices = adjust.net_devices.iter().map(|(name, device)| match device.name.as_str() {
        "" => (name.as_str(), json!({})),
        new => (name.as_str(), json!({"name": new})),
    });
    map(&mut spec["linux"]["netDevices"], devices);
    if let Some(policy) = &adjust.memory_policy {
        spec["linux"]["memoryPolicy"] = memory_policy(policy)?;
    }
    if let Some(resources) = &adjust.resources {
        limits::apply(resources, &mut spec["linux"]["resources"], host.swap);
        if resources.blockio_class.is_some() {
            // An empty class takes away what an annotation has given.
            set(&mut spec["linux"]["resources"], "blockIO", block_io);
        }
        if let Some(class) = &resources.rdt_class {
            set(&mut spec["linux"], "intelRdt", (!class.value.is_empty()).then(|| json!({"closID": class.value})));
        }
    }
    if let Some(rdt) = &adjust.rdt {
        set_rdt(rdt, &mut spec["linux"]);
    }
    // What was looked at and is not there must not be written as null.
    if let Some(object) = spec["linux"].as_object_mut() {
        object.retain(|_, value| !value.is_null());
    }
    Ok(())
}

fn set(within: &mut Value, key: &str, value: Option<Value>) {
    match (value, within.as_object_mut()) {
        (Some(value), _) => within[key] = value,
        (None, Some(object)) => drop(object.remove(key)),
        (None, None) => {}
    }
}

/// A device is a node and the rule that lets it be used.
fn set_device(device: &LinuxDevice, linux: &mut Value) -> Result<(), Error> {
    let path = removed(&device.path).unwrap_or(&device.path);
    list(linux, "devices").retain(|known| known["path"] != json!(path));
    if removed(&device.path).is_some() {
        return Ok(());
    }
    if !["b", "c", "u", "p"].contains(&device.r#type.as_str()) {
        return Err(Error::Invalid(format!("NRI: device {path}: type {:?} is not one of b, c, u, p", device.r#type)));
    }
    let mut node = Map::new();
    node.insert("path".into(), json!(path));
    node.insert("type".into(), json!(device.r#type));
    node.insert("major".into(), json!(device.major));
    node.insert("minor".into(), json!(device.minor));
    put(&mut node, "fileMode", device.file_mode.map(|mode| mode.value));
    put(&mut node, "uid", device.uid.map(|uid| uid.value));
    put(&mut node, "gid", device.gid.map(|gid| gid.value));
    list(linux, "devices").push(Value::Object(node));
    if device.r#type != "p" {
        list(&mut linux["resources"], "devices").push(json!({
            "allow": true,
            "type": device.r#type,
            "major": device.major,
            "minor": device.minor,
            "access": access(device),
        }));
    }
    Ok(())
}

/// A node that nobody may write to by its mode is not writable by its rule either.
fn access(device: &LinuxDevice) -> String {
    let mode = device.file_mode.map_or(0o666, |mode| mode.value);
    let mut access = String::new();
    for (bits, letter) in [(0o444, 'r'), (0o222, 'w')] {
        if mode & bits != 0 {
            access.push(letter);
        }
    }
    // Whoever has the node need not make it, but OCI runtimes make it inside.
    access + "m"
}

fn set_namespace(namespace: &LinuxNamespace, namespaces: &mut Vec<Value>) {
    let kind = removed(&namespace.r#type).unwrap_or(&namespace.r#type);
    namespaces.retain(|known| known["type"] != json!(kind));
    match (removed(&namespace.r#type), namespace.path.as_str()) {
        (Some(_), _) => {}
        (None, "") => namespaces.push(json!({"type": kind})),
        (None, path) => namespaces.push(json!({"type": kind, "path": path})),
    }
}

fn scheduler(from: &LinuxScheduler) -> Result<Value, Error> {
    let policy = SchedulerPolicy::try_from(from.policy).unwrap_or_default();
    if policy == SchedulerPolicy::SchedNone {
        return Err(Error::Invalid(format!("NRI: scheduler: {} is no policy", from.policy)));
    }
    let mut written = Map::new();
    written.insert("policy".into(), json!(policy.as_str_name()));
    put(&mut written, "nice", (from.nice != 0).then_some(from.nice));
    put(&mut written, "priority", (from.priority != 0).then_some(from.priority));
    let flags = from.flags.iter().filter_map(|flag| SchedulerFlag::try_from(*flag).ok());
    let flags: Vec<&str> = flags.map(|flag| flag.as_str_name()).collect();
    put(&mut written, "flags", (!flags.is_empty()).then_some(flags));
    put(&mut written, "runtime", (from.runtime != 0).then_some(from.runtime));
    put(&mut written, "deadline", (from.deadline != 0).then_some(from.deadline));
    put(&mut written, "period", (from.period != 0).then_some(from.period));
    Ok(Value::Object(written))
}

fn memory_policy(from: &LinuxMemoryPolicy) -> Result<Value, Error> {
    let mode = MemoryPolicyMode::try_from(from.mode)
        .map_err(|_| Error::Invalid(format!("NRI: memory policy: {} is no mode", from.mode)))?;
    let mut written = Map::new();
    written.insert("mode".into(), json!(mode.as_str_name()));
    put(&mut written, "nodes", (!from.nodes.is_empty()).then(|| from.nodes.clone()));
    let flags = from.flags.iter().filter_map(|flag| MemoryPolicyFlag::try_from(*flag).ok());
    let flags: Vec<&str> = flags.map(|flag| flag.as_str_name()).collect();
    put(&mut written, "flags", (!flags.is_empty()).then_some(flags));
    Ok(Value::Object(written))
}

fn seccomp(policy: &LinuxSeccomp) -> Value {
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    let texts = |texts: &Vec<String>| (!texts.is_empty()).then(|| texts.clone());
    let syscalls = policy.syscalls.iter().map(|call| {
        let args = call
            .args
            .iter()
            .map(|arg| json!({"index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op}));
        let mut written = Map::new();
        written.insert("names".into(), json!(call.names));
        written.insert("action".into(), json!(call.action));
        put(&mut written, "errnoRet", call.errno_ret.map(|errno| errno.value));
        put(&mut written, "args", (!call.args.is_empty()).then(|| args.collect::<Vec<_>>()));
        Value::Object(written)
    });
    let mut written = Map::new();
    written.insert("defaultAction".into(), json!(policy.default_action));
    put(&mut written, "defaultErrnoRet", policy.default_errno.map(|errno| errno.value));
    put(&mut written, "architectures", texts(&policy.architectures));
    put(&mut written, "flags", texts(&policy.flags));
    put(&mut written, "listenerPath", text(&policy.listener_path));
    put(&mut written, "listenerMetadata", text(&policy.listener_metadata));
    put(&mut written, "syscalls", (!policy.syscalls.is_empty()).then(|| syscalls.collect::<Vec<_>>()));
    Value::Object(written)
}

fn set_rdt(rdt: &LinuxRdt, linux: &mut Value) {
    if rdt.remove {
        set(linux, "intelRdt", None);
    }
    let mut written = Map::new();
    put(&mut written, "closID", rdt.clos_id.as_ref().map(|id| id.value.clone()));
    put(&mut written, "schemata", rdt.schemata.as_ref().map(|lines| lines.value.clone()));
    put(&mut written, "enableMonitoring", rdt.enable_monitoring.map(|enable| enable.value));
    for (key, value) in written {
        linux["intelRdt"][key] = value;
    }
}

/// Parents come before children, as everywhere in our specs.
fn mounts(from: &[Mount], spec: &mut Value) -> Result<(), Error> {
    if from.is_empty() {
        return Ok(());
    }
    for mount in from {
        let destination = removed(&mount.destination).unwrap_or(&mount.destination);
        list(spec, "mounts").retain(|known| known["destination"] != json!(destination));
        if removed(&mount.destination).is_some() {
            continue;
        }
        if !destination.starts_with('/') {
            return Err(Error::Invalid(format!("NRI: mount {destination:?}: the destination is not absolute")));
        }
        // containerd's word for what the kubelet's selinux_relabel is; no option of the kernel.
        let options = mount.options.iter().filter(|option| *option != "relabel");
        let mut written = Map::new();
        written.insert("destination".into(), json!(destination));
        put(&mut written, "type", (!mount.r#type.is_empty()).then(|| mount.r#type.clone()));
        put(&mut written, "source", (!mount.source.is_empty()).then(|| mount.source.clone()));
        written.insert("options".into(), options.cloned().collect::<Vec<String>>().into());
        list(spec, "mounts").push(Value::Object(written));
        propagate(&mount.options, &mut spec["linux"]);
    }
    let depth = |mount: &Value| {
        mount["destination"].as_str().unwrap_or_default().split('/').filter(|part| !part.is_empty()).count()
    };
    list(spec, "mounts").sort_by_key(depth);
    Ok(())
}

/// A mount that is shared with the host or follows it needs a root that does.
fn propagate(options: &[String], linux: &mut Value) {
    let known = linux["rootfsPropagation"].as_str().unwrap_or_default();
    let wanted = match options.iter().rev().find(|option| ["rshared", "rslave"].contains(&option.as_str())) {
        Some(option) if option == "rshared" => "rshared",
        Some(_) if known != "rshared" => "rslave",
        Some(_) | None => return,
    };
    linux["rootfsPropagation"] = json!(wanted);
}

#[cfg(test)]
mod tests;
