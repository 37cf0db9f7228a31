//! Pods and containers as plugins are shown them.

use std::{
    collections::BTreeMap,
    time::{SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use crate::model::{
    ContainerSpec, ContainerState, ContainerView, Id, Image, PodResources, PodSpec, PodView, SecurityProfile, StringMap,
};
use crate::record::{ContainerRecord, PodRecord};

use super::{
    limits,
    proto::{self, OptionalBool, OptionalInt, OptionalString, OptionalStrings, OptionalUInt32},
};

/// A pod as its owner knows it.
pub(super) fn of_pod(pod: &PodRecord) -> proto::PodSandbox {
    sandbox(&pod.id, &pod.spec, &pod.resources(), pod.pid, &pod.network.ips, &pod.oci_spec)
}

/// The same of a pod that is removed: its network namespace has gone with its stop, and another may get the path.
pub(super) fn of_gone_pod(pod: &PodRecord) -> proto::PodSandbox {
    let mut shown = of_pod(pod);
    if let Some(linux) = &mut shown.linux {
        linux.namespaces.retain(|namespace| namespace.r#type != "network");
    }
    shown
}

/// A pod as clients see it.
pub(super) fn of_pod_view(pod: &PodView) -> proto::PodSandbox {
    sandbox(&pod.id, &pod.spec, &pod.resources, pod.pid, &pod.ips, &pod.oci_spec)
}

fn sandbox(
    id: &Id,
    spec: &PodSpec,
    resources: &PodResources,
    pid: Option<i32>,
    ips: &[String],
    oci: &Value,
) -> proto::PodSandbox {
    let mut annotations = spec.annotations.clone();
    annotations.extend(strings_by_name(&oci["annotations"]));
    proto::PodSandbox {
        id: id.to_string(),
        name: spec.name.name.clone(),
        uid: spec.name.uid.clone(),
        namespace: spec.name.namespace.clone(),
        labels: spec.labels.clone(),
        annotations,
        runtime_handler: spec.handler.clone(),
        linux: Some(proto::LinuxPodSandbox {
            pod_overhead: resources.overhead.as_ref().map(limits::of_request),
            pod_resources: resources.resources.as_ref().map(limits::of_request),
            cgroup_parent: spec.cgroup_parent.clone(),
            cgroups_path: text(&oci["linux"]["cgroupsPath"]),
            namespaces: namespaces(oci),
            resources: limits::of_spec(oci),
        }),
        pid: pid.and_then(|pid| u32::try_from(pid).ok()).unwrap_or_default(),
        ips: ips.to_vec(),
    }
}

/// A container as its owner knows it.
pub(super) fn of_container(container: &ContainerRecord) -> proto::Container {
    let ContainerRecord { id, pod, spec, image, state, created_at, oci_spec, .. } = container;
    describe(id, pod, spec, image, state.as_ref(), *created_at, oci_spec)
}

/// A container that is being created, with the spec it is to have.
pub(super) fn of_new_container(container: &ContainerRecord, oci: &Value) -> proto::Container {
    let ContainerRecord { id, pod, spec, image, created_at, .. } = container;
    describe(id, pod, spec, image, None, *created_at, oci)
}

/// A container as clients see it.
pub(super) fn of_container_view(container: &ContainerView) -> proto::Container {
    let ContainerView { id, pod, spec, image, state, created_at, oci_spec, .. } = container;
    describe(id, pod, spec, image, Some(state), *created_at, oci_spec)
}

fn describe(
    id: &Id,
    pod: &Id,
    spec: &ContainerSpec,
    image: &Image,
    state: Option<&ContainerState>,
    created_at: SystemTime,
    oci: &Value,
) -> proto::Container {
    let mut annotations: StringMap = strings_by_name(&oci["annotations"]).collect();
    for (name, value) in &spec.annotations {
        annotations.entry(name.clone()).or_insert_with(|| value.clone());
    }
    let process = &oci["process"];
    let mut described = proto::Container {
        id: id.to_string(),
        pod_sandbox_id: pod.to_string(),
        name: spec.name.name.clone(),
        labels: spec.labels.clone(),
        annotations,
        args: strings(&process["args"]),
        env: strings(&process["env"]),
        mounts: list(&oci["mounts"]).map(mount).collect(),
        hooks: oci["hooks"].is_object().then(|| hooks(&oci["hooks"])),
        linux: Some(linux(spec, oci)),
        rlimits: list(&process["rlimits"]).map(rlimit).collect(),
        created_at: nanoseconds(created_at),
        cdi_devices: spec.cdi_devices.iter().map(|name| proto::CdiDevice { name: name.clone() }).collect(),
        user: Some(user(&process["user"])),
        image: Some(proto::Image {
            name: image.name.clone(),
            digest: image.digest.split_once('@').map(|(_, digest)| digest.to_owned()).unwrap_or_default(),
            config_digest: image.id.clone(),
        }),
        ..proto::Container::default()
    };
    described.show(state);
    described
}

impl proto::Container {
    /// Sets what depends on the state: none while it is being created.
    fn show(&mut self, state: Option<&ContainerState>) {
        let shown = match state {
            None | Some(ContainerState::Unknown) => proto::ContainerState::ContainerUnknown,
            Some(ContainerState::Created) => proto::ContainerState::ContainerCreated,
            Some(ContainerState::Running { pid, started_at }) => {
                self.pid = u32::try_from(*pid).unwrap_or_default();
                self.started_at = nanoseconds(*started_at);
                proto::ContainerState::ContainerRunning
            }
            Some(ContainerState::Exited { started_at, exit }) => {
                self.started_at = started_at.map(nanoseconds).unwrap_or_default();
                self.finished_at = nanoseconds(exit.at);
                self.exit_code = exit.code;
                self.status_reason = exit.reason.clone();
                self.status_message = exit.message.clone();
                proto::ContainerState::ContainerStopped
            }
        };
        self.state = shown.into();
    }
}

fn linux(spec: &ContainerSpec, oci: &Value) -> proto::LinuxContainer {
    let linux = &oci["linux"];
    proto::LinuxContainer {
        namespaces: namespaces(oci),
        devices: list(&linux["devices"]).map(device).collect(),
        resources: limits::of_spec(oci),
        oom_score_adj: oci["process"]["oomScoreAdj"].as_i64().map(|value| OptionalInt { value }),
        cgroups_path: text(&linux["cgroupsPath"]),
        seccomp_profile: seccomp_profile(&spec.seccomp),
        sysctl: strings_by_name(&linux["sysctl"]).collect(),
        io_priority: present(&oci["process"]["ioPriority"]).map(io_priority),
        scheduler: present(&oci["process"]["scheduler"]).map(scheduler),
        seccomp_policy: present(&linux["seccomp"]).map(seccomp_policy),
        net_devices: net_devices(&linux["netDevices"]),
        rdt: present(&linux["intelRdt"]).map(rdt),
    }
}

fn io_priority(value: &Value) -> proto::LinuxIoPriority {
    let class = value["class"].as_str().and_then(proto::IoPriorityClass::from_str_name);
    let priority = value["priority"].as_i64().and_then(|priority| i32::try_from(priority).ok());
    proto::LinuxIoPriority { class: class.unwrap_or_default().into(), priority: priority.unwrap_or_default() }
}

fn scheduler(value: &Value) -> proto::LinuxScheduler {
    let number = |name: &str| value[name].as_i64().and_then(|value| i32::try_from(value).ok()).unwrap_or_default();
    let time = |name: &str| value[name].as_u64().unwrap_or_default();
    let flag = |flag: &Value| flag.as_str().and_then(proto::SchedulerFlag::from_str_name).map(i32::from);
    proto::LinuxScheduler {
        policy: value["policy"].as_str().and_then(proto::SchedulerPolicy::from_str_name).unwrap_or_default().into(),
        nice: number("nice"),
        priority: number("priority"),
        flags: list(&value["flags"]).filter_map(flag).collect(),
        runtime: time("runtime"),
        deadline: time("deadline"),
        period: time("period"),
    }
}

fn seccomp_policy(value: &Value) -> proto::LinuxSeccomp {
    let errno = |value: &Value| value.as_u64().and_then(|value| u32::try_from(value).ok());
    let errno = |value: &Value| errno(value).map(|value| OptionalUInt32 { value });
    let arg = |value: &Value| proto::LinuxSeccompArg {
        index: value["index"].as_u64().and_then(|index| u32::try_from(index).ok()).unwrap_or_default(),
        value: value["value"].as_u64().unwrap_or_default(),
        value_two: value["valueTwo"].as_u64().unwrap_or_default(),
        op: text(&value["op"]),
    };
    let syscall = |value: &Value| proto::LinuxSyscall {
        names: strings(&value["names"]),
        action: text(&value["action"]),
        errno_ret: errno(&value["errnoRet"]),
        args: list(&value["args"]).map(arg).collect(),
    };
    proto::LinuxSeccomp {
        default_action: text(&value["defaultAction"]),
        default_errno: errno(&value["defaultErrnoRet"]),
        architectures: strings(&value["architectures"]),
        flags: strings(&value["flags"]),
        listener_path: text(&value["listenerPath"]),
        listener_metadata: text(&value["listenerMetadata"]),
        syscalls: list(&value["syscalls"]).map(syscall).collect(),
    }
}

fn net_devices(value: &Value) -> BTreeMap<String, proto::LinuxNetDevice> {
    let devices = value.as_object().into_iter().flatten();
    devices.map(|(host, device)| (host.clone(), proto::LinuxNetDevice { name: text(&device["name"]) })).collect()
}

fn rdt(value: &Value) -> proto::LinuxRdt {
    proto::LinuxRdt {
        clos_id: value["closID"].as_str().map(|id| OptionalString { value: id.to_owned() }),
        schemata: present(&value["schemata"]).map(|lines| OptionalStrings { value: strings(lines) }),
        enable_monitoring: value["enableMonitoring"].as_bool().map(|value| OptionalBool { value }),
        remove: false,
    }
}

fn present(value: &Value) -> Option<&Value> {
    (!value.is_null()).then_some(value)
}

fn seccomp_profile(profile: &SecurityProfile) -> Option<proto::SecurityProfile> {
    use proto::security_profile::ProfileType;
    let (kind, path) = match profile {
        SecurityProfile::Unset => return None,
        SecurityProfile::RuntimeDefault => (ProfileType::RuntimeDefault, String::new()),
        SecurityProfile::Unconfined => (ProfileType::Unconfined, String::new()),
        SecurityProfile::Localhost(path) => (ProfileType::Localhost, path.clone()),
    };
    Some(proto::SecurityProfile { profile_type: kind.into(), localhost_ref: path })
}

fn namespaces(oci: &Value) -> Vec<proto::LinuxNamespace> {
    let parse = |value: &Value| proto::LinuxNamespace { r#type: text(&value["type"]), path: text(&value["path"]) };
    list(&oci["linux"]["namespaces"]).map(parse).collect()
}

fn device(value: &Value) -> proto::LinuxDevice {
    let number = |name: &str| value[name].as_u64().and_then(|value| u32::try_from(value).ok());
    let optional = |name: &str| number(name).map(|value| OptionalUInt32 { value });
    proto::LinuxDevice {
        path: text(&value["path"]),
        r#type: text(&value["type"]),
        major: value["major"].as_i64().unwrap_or_default(),
        minor: value["minor"].as_i64().unwrap_or_default(),
        file_mode: optional("fileMode"),
        uid: optional("uid"),
        gid: optional("gid"),
    }
}

fn mount(value: &Value) -> proto::Mount {
    proto::Mount {
        destination: text(&value["destination"]),
        r#type: text(&value["type"]),
        source: text(&value["source"]),
        options: strings(&value["options"]),
    }
}

fn hooks(value: &Value) -> proto::Hooks {
    let of = |kind: &str| list(&value[kind]).map(hook).collect();
    proto::Hooks {
        prestart: of("prestart"),
        create_runtime: of("createRuntime"),
        create_container: of("createContainer"),
        start_container: of("startContainer"),
        poststart: of("poststart"),
        poststop: of("poststop"),
    }
}

fn hook(value: &Value) -> proto::Hook {
    proto::Hook {
        path: text(&value["path"]),
        args: strings(&value["args"]),
        env: strings(&value["env"]),
        timeout: value["timeout"].as_i64().map(|value| OptionalInt { value }),
    }
}

fn rlimit(value: &Value) -> proto::Rlimit {
    let number = |name: &str| value[name].as_u64().unwrap_or_default();
    proto::Rlimit { r#type: text(&value["type"]), hard: number("hard"), soft: number("soft") }
}

fn user(value: &Value) -> proto::User {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok()).unwrap_or_default();
    proto::User {
        uid: id(&value["uid"]),
        gid: id(&value["gid"]),
        additional_gids: list(&value["additionalGids"]).map(id).collect(),
    }
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn strings(value: &Value) -> Vec<String> {
    list(value).map(text).collect()
}

fn strings_by_name(value: &Value) -> impl Iterator<Item = (String, String)> {
    value.as_object().into_iter().flatten().map(|(name, value)| (name.clone(), text(value)))
}

fn nanoseconds(at: SystemTime) -> i64 {
    let since = at.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::nri::{
        proto::{ContainerAdjustment, LinuxContainerAdjustment},
        spec::{self, HostLimits},
    };

    /// What a plugin has adjusted, another one is shown as the same.
    #[test]
    fn what_was_adjusted_is_shown_as_it_was() {
        let adjusted = LinuxContainerAdjustment {
            io_priority: Some(proto::LinuxIoPriority {
                class: proto::IoPriorityClass::IoprioClassIdle.into(),
                priority: 3,
            }),
            scheduler: Some(proto::LinuxScheduler {
                policy: proto::SchedulerPolicy::SchedDeadline.into(),
                flags: vec![proto::SchedulerFlag::SchedFlagReclaim.into()],
                runtime: 1,
                deadline: 2,
                period: 3,
                ..proto::LinuxScheduler::default()
            }),
            seccomp_policy: Some(proto::LinuxSeccomp {
                default_action: "SCMP_ACT_ERRNO".into(),
                default_errno: Some(OptionalUInt32 { value: 38 }),
                syscalls: vec![proto::LinuxSyscall {
                    names: vec!["read".into()],
                    action: "SCMP_ACT_ALLOW".into(),
                    errno_ret: None,
                    args: vec![proto::LinuxSeccompArg { index: 1, value: 2, value_two: 3, op: "SCMP_CMP_EQ".into() }],
                }],
                ..proto::LinuxSeccomp::default()
            }),
            net_devices: [("eth9".to_owned(), proto::LinuxNetDevice { name: "in".into() })].into(),
            rdt: Some(proto::LinuxRdt {
                clos_id: Some(OptionalString { value: "gold".into() }),
                schemata: Some(OptionalStrings { value: vec!["L3:0=f".into()] }),
                enable_monitoring: Some(OptionalBool { value: true }),
                remove: false,
            }),
            ..LinuxContainerAdjustment::default()
        };
        let mut oci = json!({"process": {}, "linux": {}});
        let host = HostLimits { swap: true, lowest_oom_score_adj: 0 };
        let adjust = ContainerAdjustment { linux: Some(adjusted.clone()), ..ContainerAdjustment::default() };
        spec::apply(&adjust, &mut oci, host, None).unwrap();
        let process = &oci["process"];
        assert_eq!(present(&process["ioPriority"]).map(io_priority), adjusted.io_priority);
        assert_eq!(present(&process["scheduler"]).map(scheduler), adjusted.scheduler);
        assert_eq!(present(&oci["linux"]["seccomp"]).map(seccomp_policy), adjusted.seccomp_policy);
        assert_eq!(net_devices(&oci["linux"]["netDevices"]), adjusted.net_devices);
        assert_eq!(present(&oci["linux"]["intelRdt"]).map(rdt), adjusted.rdt);
        assert_eq!(present(&oci["linux"]["nothing"]), None);
    }
}
