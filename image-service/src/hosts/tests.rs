//! Tables: what files and directories mean, as lists of hosts.

use std::path::Path;

use super::*;

#[test]
fn the_upstream_of_a_name_is_https_except_on_loopback() {
    let check = |registry: &str, shown: &str, skip_verify: Option<bool>| {
        let host = Host::upstream(registry);
        assert_eq!((host.to_string().as_str(), host.tls.skip_verify), (shown, skip_verify));
        assert_eq!((host.path.as_str(), host.capabilities), ("/v2", Capabilities::ALL));
    };
    check("docker.io", "https://registry-1.docker.io", None);
    check("quay.io", "https://quay.io", None);
    check("10.0.0.1:80", "https://10.0.0.1:80", None);
    check("localhost", "https://localhost", Some(true));
    check("localhost:443", "https://localhost:443", Some(true));
    check("localhost:5000", "http://localhost:5000", Some(true));
    check("127.1.2.3:80", "http://127.1.2.3:80", None);
    check("[::1]:5000", "http://[::1]:5000", Some(true));
}

#[test]
fn only_plain_hosts_with_tls_settings_off_port_80_try_tls_first() {
    for (registry, expected) in
        [("localhost:5000", true), ("localhost:80", false), ("localhost", false), ("quay.io:5000", false)]
    {
        assert_eq!(Host::upstream(registry).tries_tls_first(), expected, "{registry}");
    }
}

#[test]
fn the_namespace_is_for_hosts_that_are_not_the_registry() {
    let check = |host: &str, registry: &str, expected: bool| {
        let host = Host { authority: host.to_owned(), ..Host::upstream("x.example") };
        assert_eq!(host.needs_namespace(registry), expected);
    };
    check("quay.io", "quay.io", false);
    check("registry-1.docker.io", "docker.io", false);
    check("mirror:5000", "docker.io", true);
    check("quay.io", "docker.io", true);
}

#[test]
fn nobody_leads_to_addresses_that_only_this_machine_can_reach() {
    let check = |from: &str, to: &str, expected: bool| assert_eq!(may_lead_to(from, to), expected, "{from} {to}");
    for (to, from_elsewhere, from_here) in [
        ("quay.io", true, true),
        ("10.0.0.1", true, true),
        ("localhost", false, true),
        ("127.1.2.3", false, true),
        ("[::1]", false, true),
        ("[::ffff:127.0.0.1]", false, true),
        ("0.0.0.0", false, true),
        ("169.254.169.254", false, false),
        ("[::ffff:169.254.169.254]", false, false),
        ("[fe80::1]", false, false),
    ] {
        check("registry.example:5000", to, from_elsewhere);
        check("localhost:5000", to, from_here);
    }
}

fn parse(text: &str) -> Vec<Host> {
    parse_hosts_file(text, Path::new("/certs/dir"), "docker.io").unwrap()
}

fn shown(hosts: &[Host]) -> Vec<String> {
    hosts.iter().map(|host| format!("{}://{}{}", host.scheme.as_str(), host.authority, host.path)).collect()
}

#[test]
fn hosts_keep_the_order_of_the_file_and_the_server_is_last() {
    // A table of headers that comes before its host's own table does not move the host.
    let text = r#"
        server = "https://upstream.example"
        [host."https://zz.example"]
        [host."https://mm.example".header]
          X-A = "1"
        [host."http://aa.example:5000"]
        [host."https://mm.example"]
          skip_verify = true
        [host."https://bb.example"]
    "#;
    let expected = [
        "https://zz.example/v2",
        "http://aa.example:5000/v2",
        "https://mm.example/v2",
        "https://bb.example/v2",
        "https://upstream.example/v2",
    ];
    assert_eq!(shown(&parse(text)), expected);
}

#[test]
fn without_a_server_the_registry_itself_is_last_and_can_do_everything() {
    let hosts = parse("capabilities = [\"push\"]\nskip_verify = true\n[host.\"mirror:5000\"]\n");
    assert_eq!(shown(&hosts), ["https://mirror:5000/v2", "https://registry-1.docker.io/v2"]);
    assert_eq!((hosts[1].capabilities, hosts[1].tls.skip_verify), (Capabilities::ALL, Some(true)));
}

#[test]
fn paths_end_in_v2_unless_overridden() {
    let check = |url: &str, override_path: bool, expected: &str| {
        let hosts = parse(&format!("[host.\"{url}\"]\noverride_path = {override_path}\n"));
        assert_eq!(hosts[0].path, expected, "{url}");
    };
    check("https://h", false, "/v2");
    check("https://h/", false, "/v2");
    check("https://h/v2/", false, "/v2");
    check("https://h/a//b/../c", false, "/a/c/v2");
    check("https://h/v2/project", false, "/v2/project/v2");
    check("https://h/v2/project/", true, "/v2/project");
    check("https://h", true, "");
}

#[test]
fn capabilities_are_those_listed_or_all() {
    let hosts = parse("[host.\"a\"]\ncapabilities = [\"pull\", \"resolve\"]\n[host.\"b\"]\n");
    let two = Capabilities { pull: true, resolve: true, push: false, referrers: false };
    assert_eq!((hosts[0].capabilities, hosts[1].capabilities), (two, Capabilities::ALL));
}

#[test]
fn certificates_may_be_written_in_every_form() {
    let pair = |certificate: &str, key: Option<&str>| ClientCertificate {
        certificate: certificate.into(),
        key: key.map(PathBuf::from),
    };
    let check = |line: &str, ca: &[&str], client: Vec<ClientCertificate>| {
        let tls = parse(&format!("[host.\"h\"]\n{line}\n"))[0].tls.clone();
        assert_eq!(tls, Tls { ca: ca.iter().map(PathBuf::from).collect(), client, skip_verify: None }, "{line}");
    };
    check("ca = \"ca.pem\"", &["/certs/dir/ca.pem"], vec![]);
    check("ca = [\"/a.pem\", \"b.pem\"]", &["/a.pem", "/certs/dir/b.pem"], vec![]);
    check("client = \"c.pem\"", &[], vec![pair("/certs/dir/c.pem", None)]);
    check("client = [\"c.pem\", \"/d.pem\"]", &[], vec![pair("/certs/dir/c.pem", None), pair("/d.pem", None)]);
    let both = vec![pair("/certs/dir/c.pem", Some("/certs/dir/c.key")), pair("/certs/dir/d.pem", None)];
    check("client = [[\"c.pem\", \"c.key\"], [\"d.pem\", \"\"]]", &[], both);
}

#[test]
fn headers_and_the_dial_timeout_are_read() {
    let hosts = parse(
        "dial_timeout = \"1m30s\"\n[host.\"h\"]\ndial_timeout = \"5s\"\n[host.\"h\".header]\nx-a = [\"1\", \"2\"]\nx-b = \"3\"\n",
    );
    let headers: Vec<(&str, &[u8])> = hosts[0].headers.iter().map(|(k, v)| (k.as_str(), v.as_bytes())).collect();
    assert_eq!(headers, [("x-a", b"1".as_slice()), ("x-a", b"2"), ("x-b", b"3")]);
    let seconds = |host: &Host| host.dial_timeout.map(|timeout| timeout.as_secs());
    assert_eq!((seconds(&hosts[0]), seconds(&hosts[1])), (Some(5), Some(90)));
    assert!(!format!("{hosts:?}").contains("\"3\""));
}

#[test]
fn mistakes_are_named_with_their_table() {
    let check = |text: &str, expected: &str| {
        let error = parse_hosts_file(text, Path::new("/"), "docker.io").unwrap_err().to_string();
        assert_eq!(error, expected);
    };
    check("server = [", "not valid TOML");
    check("server = 1", "the file has an invalid server: expected a string");
    check(
        "[host.\"h\"]\ncapabilities = [\"fly\"]",
        "[host.\"h\"] has an invalid capabilities: \"fly\" is not one of pull, resolve, push and referrers",
    );
    check("[host.\"https:///x\"]", "invalid host \"https:///x\": it names no host");
    check("[host.\"ftp://h\"]", "invalid host \"ftp://h\": the scheme must be http or https");
    check("server = \"ftp://user:canary@h\"", "invalid host \"ftp://h\": the scheme must be http or https");
    check(
        "[host.\"h\".header]\nx-a = \"canary\\n\"",
        "[host.\"h\"] has an invalid header: the value of x-a is not a string that a header can carry",
    );
    check("dial_timeout = \"soon\"", "the file has an invalid dial_timeout: expected a duration such as \"5s\"");
}

/// Two roots, with files given as `root/registry/file` and their text.
fn look_up(files: &[(&str, &str)], registry: &str) -> Vec<Host> {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        let path = directory.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    }
    lookup(&[directory.path().join("one"), directory.path().join("two")], registry).unwrap()
}

#[test]
fn the_first_root_with_a_directory_decides_and_default_is_the_last_of_a_root() {
    let check = |files: &[&str], registry: &str, expected: &str| {
        let texts: Vec<(String, String)> = files
            .iter()
            .map(|name| (format!("{name}/hosts.toml"), format!("[host.\"https://x/{name}\"]\noverride_path = true")))
            .collect();
        let files: Vec<(&str, &str)> = texts.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
        let path = look_up(&files, registry)[0].path.clone();
        assert_eq!(path.trim_start_matches('/'), expected);
    };
    check(&["one/h:1", "one/h_1_", "one/_default"], "h:1", "one/h_1_");
    check(&["one/h:1", "one/_default"], "h:1", "one/h:1");
    check(&["one/_default", "two/h"], "h", "one/_default");
    check(&["two/h", "two/_default"], "h", "two/h");
    check(&["two/h"], "h:1", "v2");
}

#[test]
fn a_default_directory_keeps_the_upstream_of_the_registry_asked_for() {
    let hosts = look_up(&[("one/_default/hosts.toml", "[host.\"http://mirror\"]\n")], "quay.io");
    assert_eq!(shown(&hosts), ["http://mirror/v2", "https://quay.io/v2"]);
}

#[test]
fn docker_style_certificates_count_where_the_hosts_file_is_missing_empty_or_broken() {
    for text in [None, Some(""), Some("server = [")] {
        let mut files = vec![
            ("one/h/ca.crt", "x"),
            ("one/h/a.cert", "x"),
            ("one/h/a.key", "x"),
            ("one/h/b.cert", "x"),
            ("one/h/orphan.key", "x"),
            ("one/h/sub.crt/file", "x"),
        ];
        files.extend(text.map(|text| ("one/h/hosts.toml", text)));
        let hosts = look_up(&files, "h");
        assert_eq!(shown(&hosts), ["https://h/v2"]);
        let name = |path: &Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let tls = &hosts[0].tls;
        let client: Vec<_> =
            tls.client.iter().map(|pair| (name(&pair.certificate), pair.key.as_deref().map(name))).collect();
        assert_eq!(tls.ca.iter().map(|path| name(path)).collect::<Vec<_>>(), ["ca.crt"]);
        assert_eq!(client, [("a.cert".into(), Some("a.key".into())), ("b.cert".into(), None)]);
    }
}

proptest::proptest! {
    #[test]
    fn any_file_gives_hosts_or_an_error(
        server in "(server = (\"[^\"\\\\\n]{0,30}\"|[0-9]{1,3}|\\[\\]))?",
        url in "(https?://)?[a-z0-9.:\\[\\]/@%_-]{0,30}",
        key in "(ca|client|capabilities|skip_verify|dial_timeout|override_path|header|x)",
        value in "(\"[^\"\\\\\n]{0,20}\"|true|[0-9]{1,20}|\\[(\"[a-z]{0,6}\"(, )?){0,3}\\]|\\[\\[\"a\", \"b\"\\]\\]|\\{a = \"b\"\\})",
    ) {
        let text = format!("{server}\n[host.\"{url}\"]\n{key} = {value}\n");
        if let Ok(hosts) = parse_hosts_file(&text, Path::new("/certs"), "registry.test") {
            // The mirror and the server, each with an address that can be connected to.
            assert_eq!(hosts.len(), 2, "{text}");
            assert!(hosts.iter().all(|host| !host.authority.is_empty() && (host.path.is_empty() || host.path.starts_with('/'))), "{hosts:?}");
        }
    }

    #[test]
    fn any_text_is_a_file_or_an_error(text in "[ -~\\n]{0,200}") {
        let _ = parse_hosts_file(&text, Path::new("/certs"), "registry.test");
    }

    /// What a mirror is told by is what the file says.
    #[test]
    fn a_mirror_is_read_back(name in "[a-z]{1,10}(\\.[a-z]{2,5}){0,2}(:[1-9][0-9]{0,3})?", path in "(/[a-z0-9]{1,6}){0,3}", plain: bool) {
        let scheme = if plain { "http" } else { "https" };
        let text = format!("[host.\"{scheme}://{name}{path}\"]\noverride_path = true\n");
        let hosts = parse_hosts_file(&text, Path::new("/certs"), "registry.test").unwrap();
        assert_eq!((hosts[0].scheme.as_str(), hosts[0].authority.as_str()), (scheme, name.as_str()));
        assert_eq!(hosts[0].path, path);
    }
}
