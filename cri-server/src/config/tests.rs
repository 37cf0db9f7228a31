use std::path::Path;

use sandbox::RuncOptions;

use super::*;

pub(super) fn parsed(text: &str) -> Result<Loaded, String> {
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
    assert_eq!(
        expected.config.runtime.handlers["runc"].options,
        RuntimeOptions::Runc(RuncOptions { systemd_cgroup: true, ..RuncOptions::default() })
    );
    assert_eq!(parsed(&three).unwrap().config, expected.config);
    assert_eq!(parsed(&four).unwrap().config, expected.config);
}

#[test]
fn a_version_that_is_unknown_names_the_way_out() {
    for text in ["version = 0", "version = 5"] {
        let error = parsed(text).unwrap_err();
        assert!(error.contains("write the file in version 2, 3 or 4"), "{error}");
    }
}

#[test]
fn a_file_without_a_version_is_of_version_1_whose_plugins_had_other_names() {
    let text = "[grpc]\naddress = \"/run/x.sock\"\n[plugins.cri]\nsandbox_image = \"registry.example/pause:1\"\n\
                enable_selinx = true\n[plugins.cri.cni]\nmax_conf_num = 2\n[plugins.tasks-service]\n\
                blockio_config_file = \"/b.yaml\"\n[plugins.scheduler]\npause_threshold = 0.5\n[plugins.opt]\npath = \"/opt/containerd\"\n";
    let Loaded { config, warnings } = parsed(text).unwrap();
    assert_eq!((config.images.pause_image.as_str(), config.runtime.cni.max_conf_num), ("registry.example/pause:1", 2));
    assert_eq!(config.blockio_config_file, Path::new("/b.yaml"));
    assert_eq!(
        warnings,
        [
            "unknown key plugins.\"io.containerd.grpc.v1.cri\".enable_selinx has no effect; did you mean enable_selinux?",
            "plugins.\"io.containerd.gc.v1.scheduler\".pause_threshold has no effect: garbage is collected when it arises",
        ]
    );
    // A file may have the newer names all the same.
    let newer = "[plugins.\"io.containerd.grpc.v1.cri\"]\nenable_selinux = true\n";
    assert!(parsed(newer).unwrap().config.runtime.enable_selinux);
}

/// What version 3 split from CRI has its names in an older file too, and CRI's own names are of no use in a newer one.
#[test]
fn keys_under_the_names_of_another_version_count_or_say_where_they_belong() {
    let older = "version = 2\n[plugins.\"io.containerd.cri.v1.runtime\"]\nenable_selinux = true\n\
                 [plugins.\"io.containerd.cri.v1.images\"]\nsnapshotter = \"native\"\n\
                 [plugins.\"io.containerd.grpc.v1.cri\"]\nrestrict_oom_score_adj = true\n";
    let Loaded { config, warnings } = parsed(older).unwrap();
    assert_eq!(warnings, [""; 0]);
    assert!(config.runtime.enable_selinux && config.runtime.restrict_oom_score_adj);
    assert_eq!(config.images.snapshotter, "native");
    let newer = "version = 3\n[plugins.\"io.containerd.grpc.v1.cri\"]\nstream_server_port = \"1\"\nsandbox_imag = \"x\"\n\
                 enable_selinux = true\n[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.x]\nruntime_type = \"y\"\n";
    let Loaded { config, warnings } = parsed(newer).unwrap();
    assert_eq!((config.streaming.port, config.runtime.handlers.len(), config.runtime.enable_selinux), (1, 1, false));
    let moved = |key: &str| {
        format!(
            "plugins.\"io.containerd.grpc.v1.cri\".{key} has no effect in version 3: there it belongs to \
             io.containerd.cri.v1.runtime or io.containerd.cri.v1.images"
        )
    };
    let unknown = "unknown key plugins.\"io.containerd.grpc.v1.cri\".sandbox_imag has no effect";
    assert_eq!(warnings, [moved("enable_selinux"), moved("containerd"), unknown.to_owned()]);
}

#[test]
fn servers_are_read_where_they_were_and_where_version_4_has_them() {
    let (older, newer) =
        ("[grpc]\naddress = \"/old\"\nuid = 7\n", "[plugins.\"io.containerd.server.v1.grpc\"]\naddress = \"/new\"\n");
    for version in 2..=4 {
        let grpc = |text: &str| parsed(&format!("version = {version}\n{text}")).unwrap().config;
        assert_eq!((grpc(older).grpc.address, grpc(older).grpc.uid), ("/old".into(), 7));
        let both = grpc(&format!("{older}{newer}"));
        assert_eq!((both.grpc.address, both.grpc.uid), ("/new".into(), 7));
        assert_eq!(both.ttrpc_address, Path::new("/new.ttrpc"));
    }
}

#[test]
fn what_containerd_has_for_pulls_in_its_transfer_service_counts() {
    let images = |text: &str| parsed(&format!("version = 3\n{text}")).unwrap();
    let transfer = "[plugins.\"io.containerd.transfer.v1.local\"]\nmax_concurrent_downloads = 9\nconcurrent_layer_fetch_buffer = 4096\n";
    let cri = "[plugins.\"io.containerd.cri.v1.images\"]\nmax_concurrent_downloads = 5\n";
    let loaded = images(transfer);
    assert_eq!((loaded.config.images.max_concurrent_downloads, loaded.config.images.layer_fetch_buffer), (9, 4096));
    assert_eq!(loaded.warnings, [""; 0]);
    let usual = transfer.replace('9', "3").replace("4096", "0");
    assert_eq!(images(&format!("{cri}{usual}")).config.images.max_concurrent_downloads, 5);
    let other = images("[plugins.\"io.containerd.transfer.v1.local\"]\nconfig_path = \"/x\"\n").warnings;
    assert!(
        matches!(&other[..], [one] if one.contains("config_path has no effect: pulls are configured with")),
        "{other:?}"
    );
}

#[test]
fn imports_are_patterns_of_any_form_in_any_part() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("config.toml", "version = 2\nimports = [\"*.d/1*-*.toml\"]\n");
    write("a.d/10-x.toml", "version = 2\noom_score = 1\n");
    write("b.d/11-y.toml", "version = 2\n[grpc]\nuid = 5\n");
    write("b.d/11y.toml", "version = 2\noom_score = 9\n");
    let config = load(&dir.path().join("config.toml")).unwrap().config;
    assert_eq!((config.oom_score, config.grpc.uid), (1, 5));
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
    let text = |value: &str| format!("version = 2\n[grpc]\ntcp_address = {value:?}\n");
    assert_eq!(parsed(&text("")).unwrap().warnings, Vec::<String>::new());
    let warnings = parsed(&text("127.0.0.1:1")).unwrap().warnings;
    assert_eq!(warnings, ["grpc.tcp_address is not supported yet and has no effect"]);
}

#[test]
fn nri_is_configured_in_the_same_place_in_every_version() {
    let body = r#"
[plugins."io.containerd.nri.v1.nri"]
disable_connections = true
socket_path = "/run/x.sock"
plugin_request_timeout = "500ms"
[plugins."io.containerd.nri.v1.nri".default_validator]
enable = true
reject_oci_hook_adjustment = true
required_plugins = ["a"]
"#;
    for version in 2..=4 {
        let loaded = parsed(&format!("version = {version}\n{body}")).unwrap();
        assert_eq!(loaded.warnings, Vec::<String>::new());
        let expected = Nri {
            disable_connections: true,
            socket_path: "/run/x.sock".into(),
            request_timeout: Duration::from_millis(500),
            validator: ValidatorConfig {
                enable: true,
                reject_hooks: true,
                required_plugins: vec!["a".into()],
                ..ValidatorConfig::default()
            },
            ..Nri::default()
        };
        assert_eq!(loaded.config.nri, expected);
    }
    let never = "version = 2\n[plugins.\"io.containerd.nri.v1.nri\"]\nplugin_request_timeout = \"0\"\n";
    assert!(parsed(never).unwrap_err().contains("plugin_request_timeout must be more than 0"));
}

#[test]
fn files_of_classes_are_taken_in_every_version() {
    for version in 2..=4 {
        let text = format!(
            "version = {version}\n[plugins.\"io.containerd.service.v1.tasks-service\"]\nblockio_config_file = \"/etc/x.yaml\"\nrdt_config_file = \"/etc/y\"\n"
        );
        let Loaded { config, warnings } = parsed(&text).unwrap();
        assert_eq!(
            (config.blockio_config_file.as_path(), config.rdt_config_file.as_path()),
            (Path::new("/etc/x.yaml"), Path::new("/etc/y"))
        );
        assert_eq!(warnings, [""; 0]);
    }
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
fn a_pair_for_streams_is_whole_and_used() {
    let text = |enabled: bool, pair: &str| {
        format!(
            "version = 3\n[plugins.\"io.containerd.grpc.v1.cri\"]\nenable_tls_streaming = {enabled}\n\
             [plugins.\"io.containerd.grpc.v1.cri\".x509_key_pair_streaming]\n{pair}"
        )
    };
    let both = "tls_cert_file = \"/c\"\ntls_key_file = \"/k\"\n";
    let tls = |enabled, pair: &str| parsed(&text(enabled, pair)).map(|loaded| loaded.config.streaming.tls);
    assert_eq!(tls(true, both), Ok(StreamTls { enabled: true, certificate: "/c".into(), key: "/k".into() }));
    assert_eq!(tls(true, ""), Ok(StreamTls { enabled: true, ..StreamTls::default() }));
    let half = |line: &str, set: &str, missing: &str| {
        let expected = format!("x509_key_pair_streaming.{set} is set without {missing}; set both or neither");
        assert_eq!(tls(true, line), Err(expected));
    };
    half("tls_cert_file = \"/c\"", "tls_cert_file", "tls_key_file");
    half("tls_key_file = \"/k\"", "tls_key_file", "tls_cert_file");
    assert!(
        tls(false, both).unwrap_err().starts_with("x509_key_pair_streaming is set, but enable_tls_streaming is not")
    );
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
    let crun = RuncOptions { binary_name: "crun".into(), ..RuncOptions::default() };
    assert_eq!(config.runtime.handlers["crun"].options, RuntimeOptions::Runc(crun));
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

/// What a version 2 file says below `registry`.
fn registry(text: &str) -> Result<Loaded, String> {
    let text = text.replace("[registry", "[plugins.\"io.containerd.grpc.v1.cri\".registry");
    parsed(&format!("version = 2\n{text}"))
}

#[test]
fn the_older_ways_to_configure_registries_are_read() {
    let text = r#"
[registry.mirrors."docker.io"]
endpoint = ["https://mirror.example", "http://127.0.0.1:5000"]
[registry.mirrors."*"]
endpoint = ["https://any.example"]
[registry.configs."mirror.example".auth]
username = "user"
password = "canary-password"
[registry.configs."mirror.example".tls]
ca_file = "/ca.pem"
cert_file = "/client.pem"
key_file = "/client.key"
insecure_skip_verify = true
[registry.auths."https://gcr.io/v1/"]
auth = "canary-auth"
[registry.auths."https://mirror.example"]
auth = "canary-older"
[registry.headers]
X-Meta = ["canary-1", "canary-2"]
X-One = "canary-3"
"#;
    let loaded = registry(text).unwrap();
    assert_eq!(loaded.warnings, [""; 0]);
    let images = &loaded.config.images;
    let hosts = images.mirrors.hosts("docker.io");
    let shown: Vec<String> = hosts.iter().map(ToString::to_string).collect();
    assert_eq!(shown, ["https://mirror.example", "http://127.0.0.1:5000", "https://registry-1.docker.io"]);
    assert_eq!(images.mirrors.hosts("quay.io")[0].to_string(), "https://any.example");
    let tls = &hosts[0].tls;
    assert_eq!((tls.ca[0].as_path(), tls.skip_verify), (Path::new("/ca.pem"), Some(true)));
    assert_eq!(tls.client[0].key.as_deref(), Some(Path::new("/client.key")));
    assert_eq!(images.auths["mirror.example"].username, "user");
    assert_eq!(images.auths["gcr.io"].auth, "canary-auth");
    let values: Vec<&str> = images.headers.get_all("x-meta").iter().map(|value| value.to_str().unwrap()).collect();
    assert_eq!((values, images.headers.len()), (vec!["canary-1", "canary-2"], 3));
    assert!(!format!("{:?}", loaded.config).contains("canary"));
}

#[test]
fn a_registry_that_is_configured_in_two_ways_or_wrongly_is_refused_by_name() {
    let check = |text: &str, expected: &str| {
        let error = registry(text).unwrap_err();
        assert!(error.contains(expected), "{error}");
        assert!(!error.contains("canary"), "{error}");
    };
    check(
        "[registry]\nconfig_path = \"/certs\"\n[registry.mirrors.\"a\"]\nendpoint = [\"https://b\"]",
        "registry.mirrors and registry.configs.<host>.tls cannot be set together with registry.config_path",
    );
    check(
        "[registry.mirrors.\"a\"]\nendpoint = [\"ftp://u:canary@b\"]",
        "registry.mirrors.a.endpoint: invalid host \"ftp://b\": the scheme must be http or https",
    );
    check("[registry.configs.\"a\".auth]\npassword = [\"canary\"]", "auth.password must be a string, not array");
    check("[registry.configs.\"a\".tls]\nkey_file = \"/key\"", "key_file is set, but");
    check("[registry.headers]\nX-A = [\"canary\\n\"]", "registry.headers.X-A: its value cannot be sent in a header");
    check("[registry.headers]\nX-A = [1]", "registry.headers.X-A must be an array of strings");
    check("[registry.auths.\"https://\"]\nauth = \"canary\"", "must be keyed by addresses");
    // Credentials are read beside directories.
    registry("[registry]\nconfig_path = \"/certs\"\n[registry.configs.\"a\".auth]\nusername = \"u\"").unwrap();
}

#[test]
fn image_verifiers_are_read_in_every_version() {
    for version in [2, 3, 4] {
        let text = format!(
            "version = {version}\n[plugins.\"io.containerd.image-verifier.v1.bindir\"]\nbin_dir = \"/verifiers\"\n\
             max_verifiers = -1\nper_verifier_timeout = \"1m\"\n"
        );
        let policy = parsed(&text).unwrap().config.images.policy;
        let expected = PolicyConfig {
            bin_dir: "/verifiers".into(),
            max_verifiers: None,
            per_verifier_timeout: Duration::from_secs(60),
        };
        assert_eq!(policy, expected);
    }
    let zero = "version = 2\n[plugins.\"io.containerd.image-verifier.v1.bindir\"]\nper_verifier_timeout = \"0\"\n";
    assert!(parsed(zero).unwrap_err().contains("must be more than 0"));
}

#[test]
fn a_value_that_cannot_be_is_refused_by_its_key() {
    let cri = |line: &str| format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\"]\n{line}\n");
    let cni = |line: &str| format!("version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\n{line}\n");
    let table = [
        ("root = \"/a\"\nstate = \"/a\"".to_owned(), "root and state must be two directories, both are /a"),
        ("state = \"run\"".to_owned(), "state must be an absolute path, not \"run\""),
        ("imports = \"conf.d\"".to_owned(), "imports must be an array of paths"),
        ("oom_score = 99999999999".to_owned(), "oom_score is out of range: 99999999999"),
        ("[debug]\nlevel = \"loud\"".to_owned(), "debug.level must be trace, debug, info, warn or error, not \"loud\""),
        ("[debug]\nformat = \"xml\"".to_owned(), "debug.format must be text or json, not \"xml\""),
        ("[grpc]\nmax_recv_message_size = -1".to_owned(), "grpc.max_recv_message_size is out of range: -1"),
        (cri("stream_server_port = \"70000\""), "stream_server_port must be a port number in a string, not \"70000\""),
        (cri("stream_idle_timeout = \"soon\""), "stream_idle_timeout must be a duration such as 5m0s, not \"soon\""),
        (cri("image_pull_progress_timeout = \"5\""), "image_pull_progress_timeout must be a duration such as 5m0s"),
        (cri("selinux_category_range = 1025"), "selinux_category_range must be 2 to 1024"),
        (
            cri("unset_seccomp_profile = \"none\""),
            "unset_seccomp_profile must be empty, unconfined, runtime/default or",
        ),
        (cri("cdi_spec_dirs = [\"cdi\"]"), "cdi_spec_dirs must be absolute paths, not \"cdi\""),
        (cri("enable_selinux = \"true\""), "enable_selinux must be true or false, not string \"true\""),
        (cni("ip_pref = \"ipv5\""), "cni.ip_pref must be ipv4, ipv6 or cni, not \"ipv5\""),
        (cni("bin_dirs = [\"/a\", \"b\"]"), "bin_dirs must be absolute paths, not \"b\""),
        (cni("max_conf_num = -1"), "max_conf_num is out of range: -1"),
        (
            "version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndefault_runtime_name = \"\"".to_owned(),
            "default_runtime_name \"\" is not one of the configured runtimes: runc",
        ),
    ];
    for (text, expected) in table {
        let error = parsed(&text).unwrap_err();
        assert!(error.ends_with(expected) || error.contains(expected), "{text}: {error}");
    }
}
