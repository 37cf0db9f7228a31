//! Tables of answers, one plugin after another.

use std::collections::BTreeMap;

use super::*;
use crate::nri::proto::{
    CdiDevice, Hook, LinuxContainerUpdate, LinuxCpu, LinuxMemory, LinuxNetDevice, OptionalInt, OptionalString,
    OptionalUInt64, Rlimit,
};

fn container() -> Container {
    Container {
        id: "c".into(),
        env: vec!["PATH=/bin".into(), "A=own".into()],
        args: vec!["sh".into()],
        mounts: vec![mount("/data", "/host")],
        annotations: map(&[("kept", "1"), ("gone", "1")]),
        ..Container::default()
    }
}

fn map(entries: &[(&str, &str)]) -> BTreeMap<String, String> {
    entries.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect()
}

fn env(entries: &[(&str, &str)]) -> Vec<KeyValue> {
    entries.iter().map(|(key, value)| KeyValue { key: (*key).into(), value: (*value).into() }).collect()
}

fn mount(destination: &str, source: &str) -> Mount {
    Mount { destination: destination.into(), source: source.into(), ..Mount::default() }
}

fn memory(limit: i64) -> LinuxResources {
    let limit = Some(OptionalInt { value: limit });
    LinuxResources { memory: Some(LinuxMemory { limit, ..LinuxMemory::default() }), ..LinuxResources::default() }
}

fn update(container: &str, limits: LinuxResources, ignore_failure: bool) -> ContainerUpdate {
    let linux = Some(LinuxContainerUpdate { resources: Some(limits) });
    ContainerUpdate { container_id: container.into(), linux, ignore_failure }
}

/// Merges one adjustment a plugin, called `10-a`, `20-b` and so on.
fn merge(adjustments: Vec<ContainerAdjustment>) -> Result<Creation, Refusal> {
    let mut creation = Creation::new(container());
    for (plugin, adjust) in ["10-a", "20-b", "30-c"].into_iter().zip(adjustments) {
        creation.take(plugin, CreateContainerResponse { adjust: Some(adjust), ..Default::default() })?;
    }
    Ok(creation)
}

fn linux(linux: LinuxContainerAdjustment) -> ContainerAdjustment {
    ContainerAdjustment { linux: Some(linux), ..Default::default() }
}

#[test]
fn the_next_plugin_is_shown_what_the_ones_before_have_made() {
    let first = ContainerAdjustment {
        annotations: map(&[("-gone", ""), ("new", "a")]),
        env: env(&[("A", "a"), ("-PATH", ""), ("B", "a")]),
        mounts: vec![mount("/data", "/other"), mount("/more", "/x")],
        args: vec!["sleep".into()],
        ..Default::default()
    };
    let creation = merge(vec![first.clone()]).unwrap();
    let expected = Container {
        env: vec!["A=a".into(), "B=a".into()],
        args: vec!["sleep".into()],
        mounts: vec![mount("/data", "/other"), mount("/more", "/x")],
        annotations: map(&[("kept", "1"), ("new", "a")]),
        hooks: Some(Hooks::default()),
        ..container()
    };
    assert_eq!(creation.container, expected);
    let adjust = ContainerAdjustment { env: env(&[("-PATH", ""), ("A", "a"), ("B", "a")]), ..first };
    assert_eq!(creation.adjust, adjust);
}

#[test]
fn two_plugins_that_set_the_same_field_are_named_with_it() {
    let fifo = |name: &str| LinuxNetDevice { name: name.into() };
    let table: Vec<(&str, ContainerAdjustment)> = vec![
        ("annotations \"x\"", ContainerAdjustment { annotations: map(&[("x", "1")]), ..Default::default() }),
        ("env \"x\"", ContainerAdjustment { env: env(&[("x", "1")]), ..Default::default() }),
        ("mounts \"/x\"", ContainerAdjustment { mounts: vec![mount("/x", "/")], ..Default::default() }),
        ("args", ContainerAdjustment { args: vec!["x".into()], ..Default::default() }),
        (
            "rlimits \"RLIMIT_NOFILE\"",
            ContainerAdjustment {
                rlimits: vec![Rlimit { r#type: "RLIMIT_NOFILE".into(), hard: 2, soft: 1 }],
                ..Default::default()
            },
        ),
        (
            "cdi devices \"v/c=0\"",
            ContainerAdjustment { cdi_devices: vec![CdiDevice { name: "v/c=0".into() }], ..Default::default() },
        ),
        ("mem limit", linux(LinuxContainerAdjustment { resources: Some(memory(1)), ..Default::default() })),
        ("cgroups path", linux(LinuxContainerAdjustment { cgroups_path: "/x".into(), ..Default::default() })),
        (
            "oom score adj",
            linux(LinuxContainerAdjustment { oom_score_adj: Some(OptionalInt { value: 1 }), ..Default::default() }),
        ),
        ("sysctl \"x\"", linux(LinuxContainerAdjustment { sysctl: map(&[("x", "1")]), ..Default::default() })),
        (
            "net devices \"x\"",
            linux(LinuxContainerAdjustment { net_devices: [("x".into(), fifo("y"))].into(), ..Default::default() }),
        ),
        (
            "namespace \"network\"",
            linux(LinuxContainerAdjustment {
                namespaces: vec![LinuxNamespace { r#type: "-network".into(), path: String::new() }],
                ..Default::default()
            }),
        ),
        (
            "rdt clos id",
            linux(LinuxContainerAdjustment {
                rdt: Some(LinuxRdt { clos_id: Some(OptionalString { value: "x".into() }), ..Default::default() }),
                ..Default::default()
            }),
        ),
        (
            "devices \"/dev/x\"",
            linux(LinuxContainerAdjustment {
                devices: vec![LinuxDevice { path: "/dev/x".into(), ..Default::default() }],
                ..Default::default()
            }),
        ),
    ];
    for (what, adjust) in table {
        let refusal = merge(vec![adjust.clone(), adjust]).unwrap_err();
        let expected = format!("NRI plugins \"10-a\" and \"20-b\" both tried to set {what} of container c");
        assert_eq!(refusal.to_string(), expected);
    }
}

#[test]
fn who_removes_first_takes_over_and_the_third_comes_too_late() {
    let set = |value: &str| ContainerAdjustment {
        annotations: map(&[("x", value)]),
        env: env(&[("x", value)]),
        mounts: vec![mount("/x", value)],
        args: vec![value.into()],
        ..Default::default()
    };
    let over = ContainerAdjustment {
        annotations: map(&[("-x", ""), ("x", "b")]),
        env: env(&[("-x", ""), ("x", "b")]),
        mounts: vec![mount("-/x", ""), mount("/x", "b")],
        args: vec![String::new(), "b".into()],
        ..Default::default()
    };
    let creation = merge(vec![set("a"), over.clone()]).unwrap();
    assert_eq!(creation.adjust, set("b"));
    let refusal = merge(vec![set("a"), over, set("c")]).unwrap_err();
    assert!(refusal.to_string().contains("\"20-b\" and \"30-c\" both tried to set annotations \"x\""), "{refusal}");
}

#[test]
fn what_one_removes_another_may_set() {
    let remove =
        ContainerAdjustment { env: env(&[("-A", "")]), annotations: map(&[("-gone", "")]), ..Default::default() };
    let set = ContainerAdjustment { env: env(&[("A", "b")]), annotations: map(&[("gone", "b")]), ..Default::default() };
    let creation = merge(vec![remove.clone(), set.clone()]).unwrap();
    assert_eq!(creation.adjust, set);
    assert_eq!(creation.container.env, ["PATH=/bin", "A=b"]);
    let creation = merge(vec![set, remove.clone()]).unwrap();
    assert_eq!(creation.adjust, remove);
    assert_eq!(creation.container.env, ["PATH=/bin"]);
}

#[test]
fn hooks_of_all_plugins_are_run_in_their_order() {
    let hook = |path: &str| Hook { path: path.into(), ..Hook::default() };
    let adjust = |path: &str| ContainerAdjustment {
        hooks: Some(Hooks { poststart: vec![hook(path)], ..Hooks::default() }),
        ..Default::default()
    };
    let creation = merge(vec![adjust("/a"), adjust("/b")]).unwrap();
    let hooks = Hooks { poststart: vec![hook("/a"), hook("/b")], ..Hooks::default() };
    assert_eq!(creation.adjust.hooks, Some(hooks));
    assert_eq!(creation.owners.of("c", Field::OciHooks), Some("10-a,20-b"));
}

#[test]
fn an_answer_without_content_adjusts_nothing() {
    let nothing = ContainerAdjustment { hooks: Some(Hooks::default()), ..Default::default() };
    assert!(!merge(vec![ContainerAdjustment::default(), nothing]).unwrap().adjusts());
}

#[test]
fn a_plugin_cannot_update_the_container_that_is_being_created() {
    let answer = CreateContainerResponse { update: vec![update("c", memory(1), true)], ..Default::default() };
    let refusal = Creation::new(container()).take("10-a", answer).unwrap_err();
    assert_eq!(refusal, Refusal::OwnUpdate { plugin: "10-a".into(), container: "c".into() });
}

#[test]
fn updates_of_one_container_are_merged_and_one_that_may_fail_gives_way() {
    let mut updating = Updating::new("c".into(), memory(1));
    let shares = |value: u64| LinuxResources {
        cpu: Some(LinuxCpu { shares: Some(OptionalUInt64 { value }), ..LinuxCpu::default() }),
        ..LinuxResources::default()
    };
    updating.take("10-a", vec![update("d", memory(2), true), update("c", shares(7), false)]).unwrap();
    updating.take("20-b", vec![update("d", shares(3), false), update("d", memory(9), true)]).unwrap();
    let both = LinuxResources { cpu: shares(3).cpu, ..memory(2) };
    assert_eq!(updating.others.0, [update("d", both, false)]);
    assert!(updating.changed);
    assert_eq!(updating.limits, LinuxResources { cpu: shares(7).cpu, ..memory(1) });
    let refusal = updating.take("30-c", vec![update("d", memory(3), false)]).unwrap_err();
    assert!(refusal.to_string().contains("\"10-a\" and \"30-c\" both tried to set mem limit of container d"));
}
