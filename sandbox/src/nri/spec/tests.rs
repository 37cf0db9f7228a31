//! A table: what is adjusted, and what becomes of the spec.

use std::collections::BTreeMap;

use super::*;
use crate::nri::proto::{
    HugepageLimit, LinuxContainerAdjustment, LinuxCpu, LinuxDeviceCgroup, LinuxIoPriority, LinuxMemory, LinuxNetDevice,
    LinuxPids, LinuxResources, LinuxSeccompArg, LinuxSyscall, OptionalBool, OptionalInt, OptionalString,
    OptionalStrings, OptionalUInt32, OptionalUInt64, Rlimit,
};

const HOST: HostLimits = HostLimits { swap: true, lowest_oom_score_adj: -100 };

fn spec() -> Value {
    json!({
        "annotations": {"kept": "1", "gone": "1"},
        "process": {"args": ["sh"], "env": ["PATH=/bin", "A=own"], "oomScoreAdj": 0},
        "mounts": [{"destination": "/proc", "type": "proc"}, {"destination": "/data/deep", "source": "/x"}],
        "linux": {
            "namespaces": [{"type": "network", "path": "/n"}, {"type": "mount"}],
            "resources": {"cpu": {"shares": 2}, "devices": [{"allow": false, "access": "rwm"}]},
            "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"},
        },
    })
}

fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

/// Asserts what the spec has at each place; `null` is that nothing is there.
fn check(adjust: ContainerAdjustment, expected: &[(&str, Value)]) {
    let mut adjusted = spec();
    apply(&adjust, &mut adjusted, HOST, None).unwrap();
    for (place, value) in expected {
        assert_eq!(adjusted.pointer(place).unwrap_or(&Value::Null), value, "{place} of {adjusted:#}");
    }
}

fn check_linux(adjust: LinuxContainerAdjustment, expected: &[(&str, Value)]) {
    check(ContainerAdjustment { linux: Some(adjust), ..Default::default() }, expected);
}

fn entry(key: &str, value: &str) -> KeyValue {
    KeyValue { key: key.into(), value: value.into() }
}

#[test]
fn nothing_adjusted_changes_nothing() {
    let mut adjusted = spec();
    let nothing = ContainerAdjustment { linux: Some(LinuxContainerAdjustment::default()), ..Default::default() };
    apply(&nothing, &mut adjusted, HOST, None).unwrap();
    assert_eq!(adjusted, spec());
}

#[test]
fn names_are_set_and_removed_and_variables_keep_their_place() {
    check(
        ContainerAdjustment {
            annotations: map(&[("-gone", ""), ("new", "2")]),
            env: vec![entry("B", "b"), entry("PATH", "/sbin"), entry("-A", ""), entry("-none", "")],
            args: vec!["sleep".into(), "1".into()],
            ..Default::default()
        },
        &[
            ("/annotations", json!({"kept": "1", "new": "2"})),
            ("/process/env", json!(["PATH=/sbin", "B=b"])),
            ("/process/args", json!(["sleep", "1"])),
        ],
    );
}

#[test]
fn mounts_replace_by_destination_parents_first_and_carry_propagation_to_the_root() {
    let mount = |destination: &str, options: &[&str]| Mount {
        destination: destination.into(),
        r#type: "bind".into(),
        source: "/s".into(),
        options: options.iter().map(|option| (*option).to_owned()).collect(),
    };
    let written = |destination: &str, options: &[&str]| json!({"destination": destination, "type": "bind", "source": "/s", "options": options});
    check(
        ContainerAdjustment {
            mounts: vec![mount("/data", &["rbind", "rslave", "relabel"]), mount("-/proc", &[]), mount("-/none", &[])],
            ..Default::default()
        },
        &[
            ("/mounts", json!([written("/data", &["rbind", "rslave"]), {"destination": "/data/deep", "source": "/x"}])),
            ("/linux/rootfsPropagation", json!("rslave")),
        ],
    );
    check(
        ContainerAdjustment {
            mounts: vec![mount("/data/deep", &["rshared"]), mount("/a", &["rslave"])],
            ..Default::default()
        },
        &[
            ("/linux/rootfsPropagation", json!("rshared")),
            (
                "/mounts",
                json!([{"destination": "/proc", "type": "proc"}, written("/a", &["rslave"]), written("/data/deep", &["rshared"])]),
            ),
        ],
    );
    let relative = ContainerAdjustment { mounts: vec![mount("data", &[])], ..Default::default() };
    let error = apply(&relative, &mut spec(), HOST, None).unwrap_err();
    assert_eq!(error.to_string(), "NRI: mount \"data\": the destination is not absolute");
}

#[test]
fn hooks_and_rlimits_are_added() {
    let hook =
        Hook { path: "/h".into(), args: vec!["h".into()], env: Vec::new(), timeout: Some(OptionalInt { value: 3 }) };
    check(
        ContainerAdjustment {
            hooks: Some(Hooks { create_runtime: vec![hook.clone()], poststop: vec![hook], ..Hooks::default() }),
            rlimits: vec![Rlimit { r#type: "RLIMIT_NOFILE".into(), hard: 9, soft: 8 }],
            ..Default::default()
        },
        &[
            ("/hooks/createRuntime", json!([{"path": "/h", "args": ["h"], "timeout": 3}])),
            ("/hooks/poststop", json!([{"path": "/h", "args": ["h"], "timeout": 3}])),
            ("/process/rlimits", json!([{"type": "RLIMIT_NOFILE", "hard": 9, "soft": 8}])),
        ],
    );
}

#[test]
fn a_device_is_a_node_and_a_rule_by_its_mode() {
    let device = |path: &str, mode: Option<u32>| LinuxDevice {
        path: path.into(),
        r#type: "c".into(),
        major: 1,
        minor: 3,
        file_mode: mode.map(|value| OptionalUInt32 { value }),
        ..LinuxDevice::default()
    };
    check_linux(
        LinuxContainerAdjustment {
            devices: vec![device("/dev/a", None), device("/dev/b", Some(0o444)), device("-/dev/c", None)],
            ..Default::default()
        },
        &[
            (
                "/linux/devices",
                json!([
                    {"path": "/dev/a", "type": "c", "major": 1, "minor": 3},
                    {"path": "/dev/b", "type": "c", "major": 1, "minor": 3, "fileMode": 0o444},
                ]),
            ),
            (
                "/linux/resources/devices",
                json!([
                    {"allow": false, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
                    {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rm"},
                ]),
            ),
        ],
    );
    let wrong = LinuxDevice { path: "/dev/x".into(), r#type: "x".into(), ..LinuxDevice::default() };
    let adjust = LinuxContainerAdjustment { devices: vec![wrong], ..Default::default() };
    let adjust = ContainerAdjustment { linux: Some(adjust), ..Default::default() };
    let error = apply(&adjust, &mut spec(), HOST, None).unwrap_err();
    assert_eq!(error.to_string(), "NRI: device /dev/x: type \"x\" is not one of b, c, u, p");
}

#[test]
fn limits_are_set_beside_those_that_stay() {
    let int = |value| Some(OptionalInt { value });
    let resources = LinuxResources {
        cpu: Some(LinuxCpu { quota: int(-1), cpus: "0-1".into(), ..LinuxCpu::default() }),
        memory: Some(LinuxMemory {
            limit: int(4096),
            swappiness: Some(OptionalUInt64 { value: 10 }),
            disable_oom_killer: Some(OptionalBool { value: true }),
            ..LinuxMemory::default()
        }),
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 5 }],
        unified: map(&[("memory.high", "7")]),
        pids: Some(LinuxPids { limit: 9 }),
        devices: vec![LinuxDeviceCgroup { allow: true, r#type: "b".into(), access: "r".into(), ..Default::default() }],
        rdt_class: Some(OptionalString { value: "gold".into() }),
        ..LinuxResources::default()
    };
    check_linux(
        LinuxContainerAdjustment { resources: Some(resources.clone()), ..Default::default() },
        &[
            ("/linux/resources/cpu", json!({"shares": 2, "quota": -1, "cpus": "0-1"})),
            (
                "/linux/resources/memory",
                json!({"limit": 4096, "swap": 4096, "swappiness": 10, "disableOOMKiller": true}),
            ),
            ("/linux/resources/hugepageLimits", json!([{"pageSize": "2MB", "limit": 5}])),
            ("/linux/resources/unified", json!({"memory.high": "7"})),
            ("/linux/resources/pids", json!({"limit": 9})),
            ("/linux/resources/devices/1", json!({"allow": true, "type": "b", "access": "r"})),
            ("/linux/intelRdt", json!({"closID": "gold"})),
        ],
    );
    let mut without_swap = spec();
    limits::apply(&resources, &mut without_swap["linux"]["resources"], false);
    assert_eq!(without_swap["linux"]["resources"]["memory"]["swap"], Value::Null);
}

#[test]
fn a_class_of_block_io_takes_the_place_of_an_earlier_one_and_an_empty_one_takes_it_away() {
    let adjust = |class: Option<&str>| {
        let blockio_class = class.map(|class| OptionalString { value: class.into() });
        let resources = Some(LinuxResources { blockio_class, ..LinuxResources::default() });
        let linux = Some(LinuxContainerAdjustment { resources, ..Default::default() });
        ContainerAdjustment { linux, ..Default::default() }
    };
    let check = |class: Option<&str>, resolved: Option<Value>, expected: Value| {
        let mut adjusted = spec();
        adjusted["linux"]["resources"]["blockIO"] = json!({"weight": 10});
        apply(&adjust(class), &mut adjusted, HOST, resolved).unwrap();
        assert_eq!(adjusted["linux"]["resources"]["blockIO"], expected);
    };
    check(Some("fast"), Some(json!({"weight": 500})), json!({"weight": 500}));
    check(Some(""), None, Value::Null);
    check(None, None, json!({"weight": 10}));
}

#[test]
fn the_rest_of_linux_is_set_and_removed() {
    let namespace = |kind: &str, path: &str| LinuxNamespace { r#type: kind.into(), path: path.into() };
    check_linux(
        LinuxContainerAdjustment {
            cgroups_path: "/c".into(),
            oom_score_adj: Some(OptionalInt { value: -900 }),
            io_priority: Some(LinuxIoPriority { class: IoPriorityClass::IoprioClassBe.into(), priority: 4 }),
            namespaces: vec![namespace("-network", ""), namespace("mount", "/m"), namespace("time", "")],
            sysctl: map(&[("net.x", "1"), ("-net.y", "")]),
            net_devices: [("eth9".to_owned(), LinuxNetDevice { name: "in".into() })].into(),
            scheduler: Some(LinuxScheduler {
                policy: SchedulerPolicy::SchedFifo.into(),
                priority: 5,
                flags: vec![SchedulerFlag::SchedFlagResetOnFork.into()],
                ..LinuxScheduler::default()
            }),
            memory_policy: Some(LinuxMemoryPolicy {
                mode: MemoryPolicyMode::MpolBind.into(),
                nodes: "0".into(),
                flags: vec![MemoryPolicyFlag::MpolFStaticNodes.into()],
            }),
            rdt: Some(LinuxRdt {
                schemata: Some(OptionalStrings { value: vec!["L3:0=f".into()] }),
                ..LinuxRdt::default()
            }),
            ..Default::default()
        },
        &[
            ("/linux/cgroupsPath", json!("/c")),
            ("/process/oomScoreAdj", json!(-100)),
            ("/process/ioPriority", json!({"class": "IOPRIO_CLASS_BE", "priority": 4})),
            ("/linux/namespaces", json!([{"type": "mount", "path": "/m"}, {"type": "time"}])),
            ("/linux/sysctl", json!({"net.x": "1"})),
            ("/linux/netDevices", json!({"eth9": {"name": "in"}})),
            (
                "/process/scheduler",
                json!({"policy": "SCHED_FIFO", "priority": 5, "flags": ["SCHED_FLAG_RESET_ON_FORK"]}),
            ),
            ("/linux/memoryPolicy", json!({"mode": "MPOL_BIND", "nodes": "0", "flags": ["MPOL_F_STATIC_NODES"]})),
            ("/linux/intelRdt", json!({"schemata": ["L3:0=f"]})),
        ],
    );
    let none = LinuxContainerAdjustment { scheduler: Some(LinuxScheduler::default()), ..Default::default() };
    let none = ContainerAdjustment { linux: Some(none), ..Default::default() };
    assert_eq!(apply(&none, &mut spec(), HOST, None).unwrap_err().to_string(), "NRI: scheduler: 0 is no policy");
}

#[test]
fn a_seccomp_policy_replaces_the_whole_one() {
    let policy = LinuxSeccomp {
        default_action: "SCMP_ACT_ERRNO".into(),
        default_errno: Some(OptionalUInt32 { value: 38 }),
        architectures: vec!["SCMP_ARCH_X86_64".into()],
        syscalls: vec![LinuxSyscall {
            names: vec!["read".into()],
            action: "SCMP_ACT_ALLOW".into(),
            errno_ret: None,
            args: vec![LinuxSeccompArg { index: 0, value: 1, value_two: 0, op: "SCMP_CMP_EQ".into() }],
        }],
        ..LinuxSeccomp::default()
    };
    check_linux(
        LinuxContainerAdjustment { seccomp_policy: Some(policy), ..Default::default() },
        &[(
            "/linux/seccomp",
            json!({
                "defaultAction": "SCMP_ACT_ERRNO",
                "defaultErrnoRet": 38,
                "architectures": ["SCMP_ARCH_X86_64"],
                "syscalls": [{
                    "names": ["read"],
                    "action": "SCMP_ACT_ALLOW",
                    "args": [{"index": 0, "value": 1, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
                }],
            }),
        )],
    );
}
