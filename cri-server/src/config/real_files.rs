//! Configuration files as other programs write them: containerd itself, installers, device toolkits.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use sandbox::{RuncOptions, RuntimeOptions};

use super::{ConfigError, Loaded, load, tests::parsed};

/// containerds of this machine: Debian's, and those of `WINDLASS_CONTAINERDS`, separated by colons.
fn containerds() -> Vec<PathBuf> {
    let more = std::env::var_os("WINDLASS_CONTAINERDS").unwrap_or_default();
    let all = std::env::split_paths(&more).chain(["/usr/bin/containerd".into()]);
    all.filter(|path: &PathBuf| path.exists()).collect()
}

#[test]
fn what_containerd_prints_as_its_default_is_read_without_a_warning() {
    let found = containerds();
    if found.is_empty() {
        println!("skipped: no containerd is installed (it is in Debian's containerd package)");
    }
    for containerd in found {
        let output = Command::new(&containerd).args(["config", "default"]).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let loaded = parsed(&text).unwrap_or_else(|error| panic!("{}: {error}", containerd.display()));
        assert_eq!(loaded.warnings, Vec::<String>::new(), "{}", containerd.display());
        assert_eq!(loaded.config.runtime.default_handler, "runc");
        assert!(loaded.config.runtime.disable_hugetlb, "it is in every dump");
    }
}

/// A handler of a version 3 file.
fn handler(text: &str) -> Result<Loaded, String> {
    parsed(&format!("version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc]\n{text}\n"))
}

#[test]
fn every_key_of_a_handler_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base.json");
    fs::write(&base, r#"{"ociVersion": "1.0.2", "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}}, "linux": {}}"#)
        .unwrap();
    let text = format!(
        r#"runtime_type = "io.containerd.runc.v2"
runtime_path = "/opt/shim"
pod_annotations = ["a/*"]
container_annotations = ["b"]
privileged_without_host_devices = true
privileged_without_host_devices_all_devices_allowed = true
base_runtime_spec = "{}"
cni_conf_dir = "/etc/cni/other.d"
cni_max_conf_num = 2
snapshotter = "native"
sandboxer = "podsandbox"
io_type = "fifo"
disable_pause_image_pull = true
"#,
        base.display()
    );
    let loaded = handler(&text).unwrap();
    assert_eq!(loaded.warnings, Vec::<String>::new());
    let expected = super::Handler {
        runtime_path: Some("/opt/shim".into()),
        pod_annotations: vec!["a/*".into()],
        container_annotations: vec!["b".into()],
        privileged_without_host_devices: true,
        all_devices_allowed: true,
        base_runtime_spec: base,
        cni_conf_dir: "/etc/cni/other.d".into(),
        cni_max_conf_num: 2,
        snapshotter: Some("native".into()),
        disable_pause_image_pull: true,
        ..super::Handler::default()
    };
    assert_eq!(loaded.config.runtime.handlers["runc"], expected);
}

#[test]
fn what_a_handler_cannot_have_is_refused_by_name() {
    for (text, expected) in [
        ("sandboxer = \"shim\"", "runtimes.runc.sandboxer can only be \"podsandbox\", not \"shim\": "),
        ("sandbox_mode = \"shim\"", "runtimes.runc.sandbox_mode can only be \"podsandbox\""),
        ("io_type = \"streaming\"", "runtimes.runc.io_type can only be \"fifo\", not \"streaming\": "),
        (
            "privileged_without_host_devices_all_devices_allowed = true",
            "privileged_without_host_devices_all_devices_allowed needs privileged_without_host_devices",
        ),
        (
            "base_runtime_spec = \"/nonexistent/base.json\"",
            "runtimes.runc.base_runtime_spec: read /nonexistent/base.json",
        ),
        ("base_runtime_spec = \"base.json\"", "base_runtime_spec must be an absolute path"),
    ] {
        let error = handler(text).unwrap_err();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn keys_that_do_nothing_here_say_why() {
    for (text, expected) in [
        ("version = 2\ntemp = \"/tmp\"", "temp has no effect: set TMPDIR"),
        ("version = 2\n[proxy_plugins.x]\ntype = \"snapshot\"", "proxy_plugins has no effect: "),
        ("version = 2\n[metrics]\naddress = \"127.0.0.1:1338\"", "metrics.address has no effect: "),
        (
            "version = 2\n[timeouts]\n\"io.containerd.timeout.shim.load\" = \"9s\"",
            "shim.load\" has no effect: deadlines are fixed",
        ),
        ("version = 2\ndisabled_plugins = [\"cri\"]", "disabled_plugins names CRI"),
        (
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\ndisable_tcp_service = false",
            "disable_tcp_service has no effect",
        ),
        (
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nconf_template = \"/t\"",
            "conf_template has no effect: ",
        ),
        (
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nruntime_root = \"/r\"",
            "runtime_root has no effect: they are BinaryName and Root",
        ),
        (
            "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\"]\nstats_collect_period = \"5s\"",
            "stats_collect_period has no effect: ",
        ),
    ] {
        let warnings = parsed(text).unwrap().warnings;
        assert!(warnings.len() == 1 && warnings[0].contains(expected), "{text}: {warnings:?}");
    }
}

#[test]
fn plugin_directories_are_given_in_one_way() {
    let cni = |text: &str| parsed(&format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n{text}"));
    let older = cni("bin_dir = \"/usr/lib/cni\"").unwrap().config.runtime.cni;
    assert_eq!((older.bin_dirs, older.single_bin_dir), (vec![PathBuf::from("/usr/lib/cni")], true));
    let both = cni("bin_dir = \"/usr/lib/cni\"\nbin_dirs = [\"/opt/cni/bin\"]").unwrap().config.runtime.cni;
    assert_eq!(both.bin_dirs, [PathBuf::from("/usr/lib/cni")]);
    let error = cni("bin_dir = \"/usr/lib/cni\"\nbin_dirs = [\"/a\"]").unwrap_err();
    assert!(error.ends_with("cni.bin_dir and bin_dirs cannot be set together; leave bin_dir out"), "{error}");
}

#[test]
fn a_snapshotter_for_a_platform_needs_its_runtime() {
    let text = |name: &str| {
        format!(
            "version = 3\n[plugins.\"io.containerd.cri.v1.images\".runtime_platforms.{name}]\nsnapshotter = \"native\""
        )
    };
    let runtime = parsed(&text("runc")).unwrap().config.runtime;
    assert_eq!(runtime.platform_snapshotters["runc"], "native");
    assert_eq!(parsed(&text("kata")).unwrap_err(), "runtime_platforms.kata: no runtime of that name is configured");
}

/// What a device toolkit adds: a drop-in with a runtime of its own, in the version that it knows.
#[test]
fn a_drop_in_beside_the_file_is_read_without_being_named() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::create_dir(at("conf.d")).unwrap();
    fs::write(
        at("config.toml"),
        "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.runc.options]\nSystemdCgroup = true\n",
    )
    .unwrap();
    fs::write(
        at("conf.d/99-nvidia.toml"),
        "version = 2\nimports = [\"more.toml\"]\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"nvidia\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.nvidia]\n\
         runtime_type = \"io.containerd.runc.v2\"\nprivileged_without_host_devices = false\nruntime_engine = \"\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.nvidia.options]\n\
         BinaryName = \"/usr/bin/nvidia-container-runtime\"\n",
    )
    .unwrap();
    // A file that imports what imports it ends.
    fs::write(at("conf.d/more.toml"), "version = 2\noom_score = 7\nimports = [\"99-nvidia.toml\"]\n").unwrap();
    let Loaded { config, warnings } = load(&at("config.toml")).unwrap();
    assert_eq!(warnings, Vec::<String>::new());
    assert_eq!((config.runtime.default_handler.as_str(), config.oom_score), ("nvidia", 7));
    let nvidia = RuncOptions { binary_name: "/usr/bin/nvidia-container-runtime".into(), ..RuncOptions::default() };
    assert_eq!(config.runtime.handlers["nvidia"].options, RuntimeOptions::Runc(nvidia));
    let runc = RuncOptions { systemd_cgroup: true, ..RuncOptions::default() };
    assert_eq!(config.runtime.handlers["runc"].options, RuntimeOptions::Runc(runc));
    // A drop-in that is broken is the one that is named.
    fs::write(at("conf.d/more.toml"), "version = 2\noom_score = \"7\"\n").unwrap();
    let error = load(&at("config.toml")).unwrap_err();
    assert!(
        matches!(&error, ConfigError::Invalid { path, .. } if path == Path::new(&at("conf.d/more.toml"))),
        "{error}"
    );
}
