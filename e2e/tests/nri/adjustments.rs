//! What a plugin adjusts of a container, as it is seen from inside.

use std::{fs, os::unix::fs::PermissionsExt, path::Path};

use api::cri;
use tonic::Code;
use windlass_e2e::{
    client::container,
    command,
    node::{BUSYBOX, TestNode},
};
use windlass_sandbox::nri::proto::{
    CdiDevice, ContainerAdjustment, Hook, Hooks, IoPriorityClass, LinuxContainerAdjustment, LinuxDevice,
    LinuxIoPriority, LinuxResources, LinuxScheduler, LinuxSeccomp, LinuxSyscall, Mount, OptionalInt, OptionalString,
    OptionalUInt32, Rlimit, SchedulerPolicy,
};

use crate::{adjust, adjusting, connect, entry, memory, memory_limit, start};

fn mount(source: &Path, destination: &str, options: &[&str]) -> Mount {
    Mount {
        destination: destination.into(),
        r#type: "bind".into(),
        source: source.to_str().unwrap().into(),
        options: options.iter().map(|&option| option.to_owned()).collect(),
    }
}

fn script(path: &Path, text: &str) {
    fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A container that is its own first process.
fn alone(name: &str) -> cri::ContainerConfig {
    let options = cri::NamespaceOption { pid: cri::NamespaceMode::Container as i32, ..Default::default() };
    let context = cri::LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
    let linux = cri::LinuxContainerConfig { security_context: Some(context), ..Default::default() };
    cri::ContainerConfig { linux: Some(linux), ..container(name, BUSYBOX, &["sleep", "600"]) }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_environment_arguments_mounts_and_hooks() {
    let node = start("").await;
    let client = node.client();
    let (given, taken, hook) = (node.path("given"), node.path("taken"), node.path("hook"));
    for dir in [&given, &taken] {
        fs::create_dir(dir).unwrap();
        fs::write(dir.join("file"), "here\n").unwrap();
    }
    let left = |name: &str| node.path(&format!("hook-{name}"));
    script(&hook, &format!("cat >{}\nenv >{}", left("state").display(), left("env").display()));
    let poststop = node.path("poststop");
    script(&poststop, &format!("echo $1 >>{}", left("stopped").display()));
    let of_hook = |path: &Path, args: &[&str]| Hook {
        path: path.to_str().unwrap().into(),
        args: args.iter().map(|&word| word.to_owned()).collect(),
        timeout: Some(OptionalInt { value: 10 }),
        ..Hook::default()
    };
    let answer = adjust(ContainerAdjustment {
        env: vec![entry("SET", "by plugin"), entry("REPLACED", "new"), entry("-REMOVED", "")],
        args: ["sh", "-c", "echo started by a plugin; exec sleep 599"].map(str::to_owned).into(),
        annotations: [("plugin.example/note".to_owned(), "kept".to_owned())].into(),
        mounts: vec![
            mount(&given, "/given", &["rbind", "ro"]),
            Mount { destination: "-/taken".into(), ..Mount::default() },
        ],
        hooks: Some(Hooks {
            create_runtime: vec![of_hook(&hook, &["hook"])],
            poststop: vec![of_hook(&poststop, &["poststop", "gone"])],
            ..Hooks::default()
        }),
        ..ContainerAdjustment::default()
    });
    let _plugin = connect(&node, "10", "adjusts", adjusting("app", answer)).await;
    let pod_config = node.pod("adjusted");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let mut config = alone("app");
    config.envs = [("REPLACED", "old"), ("REMOVED", "x"), ("LD_PRELOAD", "/evil.so")]
        .map(|(key, value)| cri::KeyValue { key: key.into(), value: value.into() })
        .into();
    config.mounts = vec![cri::Mount {
        container_path: "/taken".into(),
        host_path: taken.to_str().unwrap().into(),
        ..cri::Mount::default()
    }];
    let app = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&app).await.unwrap();

    let env = client.output(&app, &["env"]).await;
    let value = |name: &str| env.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    assert_eq!((value("SET"), value("REPLACED"), value("REMOVED")), (Some("by plugin"), Some("new"), None));
    assert_eq!(client.output(&app, &["cat", "/proc/1/cmdline"]).await, "sleep\x00599\x00");
    assert_eq!(node.log_of("adjusted", "app")[0].text, "started by a plugin");
    assert_eq!(client.output(&app, &["cat", "/given/file"]).await, "here\n");
    assert_ne!(client.exec(&app, &["touch", "/given/new"], 60).await.unwrap().exit_code, 0, "it is read-only");
    assert_ne!(client.exec(&app, &["ls", "/taken"], 60).await.unwrap().exit_code, 0, "it is not mounted");
    let state: serde_json::Value = serde_json::from_slice(&fs::read(left("state")).unwrap()).unwrap();
    assert_eq!(state["id"], app.as_str());
    assert_eq!(state["annotations"]["plugin.example/note"], "kept", "annotations reach the runtime");
    let of_hook = fs::read_to_string(left("env")).unwrap();
    assert!(!of_hook.contains("LD_PRELOAD"), "a hook has nothing of the container's environment: {of_hook}");

    let others = container("other", BUSYBOX, &["sleep", "600"]);
    let other = client.create(&pod, &others, &pod_config).await.unwrap();
    client.start(&other).await.unwrap();
    assert!(!client.output(&other, &["env"]).await.contains("SET="), "nobody has asked for that");
    node.remove_all_pods().await;
    assert_eq!(fs::read_to_string(left("stopped")).unwrap(), "gone\n");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_devices_limits_and_what_else_is_of_linux() {
    let mut node = TestNode::prepare().await;
    let specs = node.path("cdi");
    node.settings.cri = format!("cdi_spec_dirs = [\"{}\"]", specs.display());
    node.boot().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    fs::create_dir(&specs).unwrap();
    let toy = serde_json::json!({
        "cdiVersion": "0.6.0",
        "kind": "vendor.example/toy",
        "devices": [{"name": "one", "containerEdits": {"env": ["TOY=1"]}}],
    });
    fs::write(specs.join("vendor.json"), toy.to_string()).unwrap();
    let number = |value| Some(OptionalUInt32 { value });
    let answer = adjust(ContainerAdjustment {
        // Not of open files: before runc 1.2 the Go runtime may raise the soft one, by a race.
        rlimits: vec![Rlimit { r#type: "RLIMIT_FSIZE".into(), hard: 333 * 512, soft: 222 * 512 }],
        cdi_devices: vec![CdiDevice { name: "vendor.example/toy=one".into() }],
        linux: Some(LinuxContainerAdjustment {
            devices: vec![LinuxDevice {
                path: "/dev/given".into(),
                r#type: "c".into(),
                major: 1,
                minor: 5,
                file_mode: number(0o640),
                uid: number(7),
                gid: number(8),
            }],
            resources: Some(memory(48 << 20)),
            oom_score_adj: Some(OptionalInt { value: 765 }),
            sysctl: [("net.ipv4.ip_default_ttl".to_owned(), "77".to_owned())].into(),
            seccomp_policy: Some(LinuxSeccomp {
                default_action: "SCMP_ACT_ALLOW".into(),
                syscalls: vec![LinuxSyscall {
                    names: ["mkdir", "mkdirat"].map(str::to_owned).into(),
                    action: "SCMP_ACT_ERRNO".into(),
                    errno_ret: number(122),
                    ..LinuxSyscall::default()
                }],
                ..LinuxSeccomp::default()
            }),
            ..LinuxContainerAdjustment::default()
        }),
        ..ContainerAdjustment::default()
    });
    let _plugin = connect(&node, "10", "adjusts", adjusting("app", answer)).await;
    let pod_config = node.pod("adjusted");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &alone("app"), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();

    let inside = async |text: &str| client.output(&app, &["sh", "-c", text]).await.trim().to_owned();
    assert_eq!(inside("stat -c '%F %t %T %a %u %g' /dev/given").await, "character special file 1 5 640 7 8");
    assert_eq!(inside("head -c 3 /dev/given | od -An -tx1").await, "00 00 00", "it is zero(4), and may be read");
    assert_eq!(inside("echo $TOY").await, "1");
    assert_eq!(inside("ulimit -Sf; ulimit -Hf").await, "222\n333", "in blocks of 512 bytes");
    assert_eq!(memory_limit(&node, &app).await, (48 << 20).to_string());
    let told = client.status(&app).await.unwrap().resources.unwrap().linux.unwrap();
    assert_eq!(told.memory_limit_in_bytes, 48 << 20, "the limit that holds is told");
    assert_eq!(inside("cat /proc/1/oom_score_adj").await, "765");
    assert_eq!(inside("cat /proc/sys/net/ipv4/ip_default_ttl").await, "77");
    let made = client.exec(&app, &["mkdir", "/made"], 60).await.unwrap();
    let said = String::from_utf8_lossy(&made.stderr).into_owned();
    assert!(made.exit_code != 0 && said.contains("quota exceeded"), "mkdir fails as the policy says: {said}");
    node.remove_all_pods().await;
    node.finish().await;
}

/// Of runtime specification 1.1, which Debian's runc is older than: `RUNC` names a newer one.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_the_scheduler_and_the_priority_of_input_and_output() {
    let node = start("").await;
    let client = node.client();
    let answer = adjust(ContainerAdjustment {
        linux: Some(LinuxContainerAdjustment {
            scheduler: Some(LinuxScheduler {
                policy: SchedulerPolicy::SchedBatch.into(),
                nice: 5,
                ..LinuxScheduler::default()
            }),
            io_priority: Some(LinuxIoPriority { class: IoPriorityClass::IoprioClassBe.into(), priority: 6 }),
            ..LinuxContainerAdjustment::default()
        }),
        ..ContainerAdjustment::default()
    });
    let _plugin = connect(&node, "10", "adjusts", adjusting("app", answer)).await;
    let pod_config = node.pod("scheduled");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &alone("app"), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    let spec = node.path("state/io.containerd.runtime.v2.task/k8s.io").join(&app).join("config.json");
    let spec: serde_json::Value = serde_json::from_slice(&fs::read(spec).unwrap()).unwrap();
    assert_eq!(spec["process"]["scheduler"], serde_json::json!({"policy": "SCHED_BATCH", "nice": 5}));
    assert_eq!(spec["process"]["ioPriority"], serde_json::json!({"class": "IOPRIO_CLASS_BE", "priority": 6}));
    let runc = if node.settings.runc.is_empty() { "runc" } else { &node.settings.runc };
    let features = command::answer(runc, &["features"]);
    let features: serde_json::Value = serde_json::from_str(&features.stdout).unwrap_or_default();
    // An older runtime ignores what it does not know, as the specification has it.
    if features["ociVersionMax"].as_str().is_some_and(|version| version >= "1.1") {
        let stat = client.output(&app, &["cat", "/proc/1/stat"]).await;
        // proc_pid_stat(5) counts from 1: 19 is the nice value, 41 the policy; 3 is SCHED_BATCH.
        let field = |number: usize| stat.split(' ').nth(number - 1).unwrap();
        assert_eq!((field(19), field(41)), ("5", "3"), "{stat}");
        let priority = command::run("ionice", &["-p", &node.first_process(&app).to_string()]);
        assert_eq!(priority.trim(), "best-effort: prio 6");
    }
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_cannot_be_adjusted_fails_the_creation_by_name() {
    let node = start("").await;
    let client = node.client();
    let pod_config = node.pod("refused");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let device = LinuxDevice { path: "/dev/odd".into(), r#type: "x".into(), ..LinuxDevice::default() };
    let table = [
        (
            "relative",
            ContainerAdjustment { mounts: vec![mount(Path::new("/"), "data", &["bind"])], ..Default::default() },
            Code::InvalidArgument,
            "mount \"data\": the destination is not absolute",
        ),
        (
            "device",
            ContainerAdjustment {
                linux: Some(LinuxContainerAdjustment { devices: vec![device], ..Default::default() }),
                ..Default::default()
            },
            Code::InvalidArgument,
            "device /dev/odd: type \"x\" is not one of b, c, u, p",
        ),
        (
            "cdi",
            ContainerAdjustment {
                cdi_devices: vec![CdiDevice { name: "vendor.example/none=one".into() }],
                ..Default::default()
            },
            Code::FailedPrecondition,
            "vendor.example/none=one",
        ),
    ];
    for (name, wrong, code, message) in table {
        let plugin = connect(&node, "10", "wrong", adjusting(name, adjust(wrong))).await;
        let config = container(name, BUSYBOX, &["sleep", "600"]);
        let refused = client.create(&pod, &config, &pod_config).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(message), "{refused}");
        drop(plugin);
    }
    assert_eq!(client.containers().await.unwrap(), []);
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_classes_of_block_io_by_annotation_and_by_plugin() {
    let disk = fs::read_dir("/sys/block").unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let disk = disk.filter(|name| Path::new("/dev").join(name).exists()).min().expect("the machine has a disk");
    let number = fs::read_to_string(format!("/sys/block/{disk}/dev")).unwrap().trim().to_owned();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("classes.yaml");
    let (first, rest) = disk.split_at(1);
    let item = |rate: &str| format!("  - Devices: [\"/dev/[{first}]{rest}\"]\n    ThrottleReadBps: {rate}\n");
    let wrong = "  wrong:\n  - Weight: 5\n";
    fs::write(&file, format!("Classes:\n  slow:\n{}  fast:\n{}{wrong}", item("500M"), item("1G"))).unwrap();
    let classes = "[plugins.\"io.containerd.service.v1.tasks-service\"]\nblockio_config_file";
    let node = start(&format!("{classes} = \"{}\"\n", file.display())).await;
    let client = node.client();
    let mut pod_config = node.pod("classes");
    let annotate = |name: &str, class: &str| (format!("blockio.resources.beta.kubernetes.io/{name}"), class.to_owned());
    pod_config.annotations = [
        annotate("pod", "slow"),
        annotate("container.typo", "slwo"),
        annotate("container.bad", "wrong"),
        annotate("container.free", ""),
    ]
    .into();
    let pod = client.run_pod(&pod_config).await.unwrap();
    let class = |name: &str| {
        let blockio_class = Some(OptionalString { value: name.into() });
        let resources = Some(LinuxResources { blockio_class, ..LinuxResources::default() });
        let linux = Some(LinuxContainerAdjustment { resources, ..LinuxContainerAdjustment::default() });
        adjust(ContainerAdjustment { linux, ..ContainerAdjustment::default() })
    };
    let _fast = connect(&node, "10", "fast", adjusting("fast", class("fast"))).await;
    let _none = connect(&node, "20", "none", adjusting("none", class(""))).await;
    let _unknown = connect(&node, "30", "unknown", adjusting("unknown", class("unknown"))).await;
    let of_version_1 = format!("{number} 500000000");
    let of_version_2 = format!("{number} rbps=500000000 wbps=max riops=max wiops=max");
    for (name, rate) in [("plain", Some("500000000")), ("fast", Some("1000000000")), ("none", None), ("free", None)] {
        let app = client.create(&pod, &alone(name), &pod_config).await.unwrap();
        client.start(&app).await.unwrap();
        let read = "cd /sys/fs/cgroup; cat blkio/blkio.throttle.read_bps_device 2>/dev/null || cat io.max";
        let limits = client.output(&app, &["sh", "-c", read]).await;
        let expected = |of_one: &str| rate.map(|rate| of_one.replace("500000000", rate)).unwrap_or_default();
        let limits = limits.trim();
        assert!(limits == expected(&of_version_1) || limits == expected(&of_version_2), "{name}: {limits}");
    }
    let path = file.display();
    let refusals = [
        (
            "typo",
            format!(
                "annotation blockio.resources.beta.kubernetes.io/container.typo: block IO class \"slwo\": {path} has none of this name but fast, slow, wrong"
            ),
        ),
        ("bad", format!("block IO class \"wrong\": {path} is wrong about it: Weight: 5 is not between 10 and 1000")),
        ("unknown", format!("block IO class \"unknown\": {path} has none of this name but fast, slow, wrong")),
    ];
    for (name, message) in refusals {
        let refused = client.create(&pod, &alone(name), &pod_config).await.unwrap_err();
        assert_eq!(refused.code(), Code::FailedPrecondition);
        assert!(refused.message().ends_with(&message), "{refused}");
    }
    node.remove_all_pods().await;
    node.finish().await;
}
