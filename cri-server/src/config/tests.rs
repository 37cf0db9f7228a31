use super::*;
use std::path::Path;

fn parsed(text: &str) -> Result<Loaded, String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("config.toml");
    std::fs::write(&path, text).unwrap();
    load(&path).map_err(|error| match error {
        ConfigError::Invalid { what, .. } => what,
        other => other.to_string(),
    })
}

#[test]
fn the_documented_default_file_is_the_default_configuration_and_warns_of_nothing() {
    let loaded = parsed(DEFAULT_TOML).unwrap();
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.warnings, Vec::<String>::new());
}

#[test]
fn a_file_that_is_not_there_gives_the_defaults() {
    assert_eq!(load(Path::new("/nonexistent/config.toml")).unwrap().config, Config::default());
}

#[test]
fn versions_2_3_and_4_say_the_same_in_different_places() {
    let two = r#"
version = 2
[grpc]
address = "/run/x.sock"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.example/pause:1"
stream_server_port = "10010"
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = true
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "/a:/b"
"#;
    let body = r#"
[plugins."io.containerd.grpc.v1.cri"]
stream_server_port = "10010"
[plugins."io.containerd.cri.v1.images"]
snapshotter = "native"
[plugins."io.containerd.cri.v1.images".pinned_images]
sandbox = "registry.example/pause:1"
[plugins."io.containerd.cri.v1.images".registry]
config_path = "/a:/b"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.runc.options]
SystemdCgroup = true
"#;
    let three = format!("version = 3\n[grpc]\naddress = \"/run/x.sock\"\n{body}");
    let four = format!("version = 4\n[plugins.\"io.containerd.server.v1.grpc\"]\naddress = \"/run/x.sock\"\n{body}");
    let expected = parsed(two).unwrap();
    assert_eq!(expected.warnings, Vec::<String>::new());
    assert_eq!(expected.config.images.registry_paths, [PathBuf::from("/a"), PathBuf::from("/b")]);
    assert_eq!(expected.config.ttrpc_address, PathBuf::from("/run/x.sock.ttrpc"));
    assert!(expected.config.runtime.handlers["runc"].options.systemd_cgroup);
    assert_eq!(parsed(&three).unwrap().config, expected.config);
    assert_eq!(parsed(&four).unwrap().config, expected.config);
}

#[test]
fn a_version_that_is_missing_or_too_new_names_the_way_out() {
    for text in ["", "version = 5"] {
        let error = parsed(text).unwrap_err();
        assert!(error.contains("write the file in version 2, 3 or 4"), "{error}");
    }
}

#[test]
fn an_unknown_key_warns_with_the_nearest_known_name() {
    let loaded = parsed("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\nsandbox_imag = \"x\"\n").unwrap();
    assert_eq!(
        loaded.warnings,
        ["unknown key plugins.\"io.containerd.grpc.v1.cri\".sandbox_imag has no effect; did you mean sandbox_image?"]
    );
}

#[test]
fn a_key_that_is_not_built_yet_warns_only_when_it_is_set_to_something() {
    let text = |value: &str| {
        format!(
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]\nbase_runtime_spec = {value:?}\n"
        )
    };
    assert_eq!(parsed(&text("")).unwrap().warnings, Vec::<String>::new());
    assert_eq!(
        parsed(&text("/etc/base.json")).unwrap().warnings,
        [
            "plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.base_runtime_spec is not supported yet and has no effect"
        ]
    );
}

#[test]
fn a_wrong_type_names_the_whole_key() {
    let error =
        parsed("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nmax_conf_num = \"one\"\n").unwrap_err();
    assert_eq!(
        error,
        "plugins.\"io.containerd.grpc.v1.cri\".cni.max_conf_num must be a whole number, not string \"one\""
    );
}

#[test]
fn a_default_runtime_that_is_not_configured_lists_those_that_are() {
    let error =
        parsed("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"kata\"\n")
            .unwrap_err();
    assert_eq!(error, "default_runtime_name \"kata\" is not one of the configured runtimes: runc");
}

#[test]
fn imported_files_add_to_the_first_and_the_last_wins() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| std::fs::write(directory.path().join(name), text).unwrap();
    std::fs::create_dir(directory.path().join("conf.d")).unwrap();
    write("config.toml", "version = 2\nimports = [\"conf.d/*.toml\"]\noom_score = 1\n");
    write(
        "conf.d/10.toml",
        "version = 2\noom_score = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.crun.options]\nBinaryName = \"crun\"\n",
    );
    write(
        "conf.d/20.toml",
        "version = 3\noom_score = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd]\ndefault_runtime_name = \"crun\"\n",
    );
    let config = load(&directory.path().join("config.toml")).unwrap().config;
    assert_eq!(config.oom_score, 3);
    assert_eq!(config.runtime.default_handler, "crun");
    assert_eq!(config.runtime.handlers["crun"].options.binary_name, "crun");
    assert!(config.runtime.handlers.contains_key("runc"));
}

#[test]
fn durations_are_read_as_go_writes_them() {
    let check = |text: &str, expected: Option<u64>| {
        assert_eq!(section::parse_duration(text), expected.map(Duration::from_millis), "{text}");
    };
    check("0", Some(0));
    check("5m0s", Some(300_000));
    check("4h0m0s", Some(14_400_000));
    check("1.5s", Some(1_500));
    check("500ms", Some(500));
    check("5", None);
    check("m", None);
    check("", None);
    check("-1s", None);
}
