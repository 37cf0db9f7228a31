//! Files of vendors, found, checked, and applied to a spec.

use std::{
    fs,
    path::{Path, PathBuf},
};

use oci_spec::runtime::Spec;
use serde_json::{Value, json};

use super::{check, document, edits, name::Name, registry};
use crate::{
    config::{Handler, RuntimeOptions},
    error::Error,
    features::Features,
};

/// A document with one device and these edits of it.
fn with(version: &str, edits: Value) -> Value {
    json!({"cdiVersion": version, "kind": "v/c", "devices": [{"name": "d", "containerEdits": edits}]})
}

fn names(names: &[&str]) -> Vec<Name> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

/// The spec `before` with these devices of the directories.
fn applied(dirs: &[PathBuf], devices: &[&str], before: Value) -> Result<Value, Error> {
    let mut spec: Spec = serde_json::from_value(before).unwrap();
    let found = registry::find(dirs, &names(devices))?;
    edits::apply(&mut spec, &found);
    Ok(serde_json::to_value(spec).unwrap())
}

/// `etc` and `run` in a directory of their own, the second one winning.
struct Dirs {
    _root: tempfile::TempDir,
    dirs: Vec<PathBuf>,
}

impl Dirs {
    fn new() -> Dirs {
        let root = tempfile::tempdir().unwrap();
        let dirs: Vec<PathBuf> = ["etc", "run"].iter().map(|name| root.path().join(name)).collect();
        for dir in &dirs {
            fs::create_dir(dir).unwrap();
        }
        Dirs { _root: root, dirs }
    }

    fn write(&self, dir: usize, name: &str, text: &str) {
        fs::write(self.dirs[dir].join(name), text).unwrap();
    }

    fn refused(&self, devices: &[&str]) -> String {
        applied(&self.dirs, devices, minimal())
            .unwrap_err()
            .to_string()
            .replace(self.dirs[0].to_str().unwrap(), "ETC")
            .replace(self.dirs[1].to_str().unwrap(), "RUN")
    }
}

fn minimal() -> Value {
    json!({"ociVersion": "1.0.2", "process": {"user": {"uid": 1000, "gid": 100}, "cwd": "/", "args": ["sh"], "env": ["A=1", "B=2"]}})
}

#[test]
fn a_document_is_refused_with_its_reason() {
    let refused = |document: &Value, expected: &str| {
        let error = document::parse(Path::new("x.json"), &document.to_string()).unwrap_err();
        assert!(error.contains(expected), "{error}");
    };
    let env = json!({"env": ["A=1"]});
    refused(&with("1.2.0", env.clone()), "cdiVersion \"1.2.0\" is not known");
    refused(&with("nonsense", env.clone()), "cdiVersion \"nonsense\" is not known");
    refused(&with("0.3.0", json!({})), "device d: containerEdits is empty");
    refused(&with("0.3.0", json!({"novel": 1})), "unknown field `novel`");
    refused(&with("0.3.0", json!({"env": ["A"]})), "env \"A\" has not the form NAME=value");
    refused(&with("0.3.0", json!({"deviceNodes": [{"path": "dev/x"}]})), "path \"dev/x\" is not absolute");
    refused(&with("0.3.0", json!({"deviceNodes": [{"path": "/dev/x", "type": "z"}]})), "type \"z\" is not one of");
    refused(&with("0.3.0", json!({"deviceNodes": [{"path": "/dev/x", "permissions": "rx"}]})), "\"rx\" are not of rwm");
    let moved = |all: &[[&str; 2]]| {
        let all = all.iter().map(|[host, name]| json!({"hostInterfaceName": host, "name": name}));
        with("1.1.0", json!({"netDevices": all.collect::<Vec<_>>()}))
    };
    for bad in ["", "..", "a/b", "a b", "sixteen-letters-"] {
        refused(&moved(&[["eth9", bad]]), &format!("{bad:?} is no name of a network interface"));
        refused(&moved(&[[bad, "eth9"]]), &format!("{bad:?} is no name of a network interface"));
    }
    refused(&moved(&[["a", "x"], ["a", "y"]]), "\"a\" as \"x\" and \"a\" as \"y\" cannot be at once");
    refused(&moved(&[["a", "x"], ["b", "x"]]), "\"a\" as \"x\" and \"b\" as \"x\" cannot be at once");
    refused(&with("0.3.0", json!({"hooks": [{"hookName": "before", "path": "/x"}]})), "hook \"before\" is not one of");
    refused(&with("0.3.0", json!({"hooks": [{"hookName": "prestart", "path": "x"}]})), "path \"x\" is not absolute");
    refused(&with("0.3.0", json!({"mounts": [{"hostPath": "", "containerPath": "/x"}]})), "are required");
    refused(&with("0.7.0", json!({"intelRdt": {"closID": "../x"}})), "closID \"../x\" is no name of a directory");
    refused(&json!({"cdiVersion": "0.3.0", "kind": "c", "devices": []}), "kind \"c\" has not the form vendor/class");
    refused(&json!({"cdiVersion": "0.3.0", "kind": "v/c", "devices": []}), "it has no devices");
}

#[test]
fn a_field_needs_the_version_that_brought_it() {
    let needs = |edits: Value, first: &str, before: &str| {
        let parse = |version| document::parse(Path::new("x.json"), &with(version, edits.clone()).to_string());
        parse(first).unwrap();
        let error = parse(before).unwrap_err();
        assert!(error.contains("is too low for its fields"), "{error}");
    };
    let mount = |kind: &str| json!({"mounts": [{"hostPath": "/a", "containerPath": "/b", "type": kind}]});
    needs(mount("bind"), "0.4.0", "0.3.0");
    needs(json!({"deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/y"}]}), "0.5.0", "0.4.0");
    needs(json!({"additionalGids": [5]}), "0.7.0", "0.6.0");
    needs(json!({"intelRdt": {"closID": "x", "enableCMT": true}}), "0.8.0", "0.6.0");
    needs(json!({"intelRdt": {"closID": "x", "enableMonitoring": true}}), "1.1.0", "1.0.0");
    needs(json!({"netDevices": [{"hostInterfaceName": "a", "name": "b"}]}), "1.1.0", "1.0.0");
    let digit = |version: &str| {
        let text = json!({"cdiVersion": version, "kind": "v/c.d", "devices": [{"name": "0", "containerEdits": {"env": ["A=1"]}}]});
        document::parse(Path::new("x.json"), &text.to_string())
    };
    digit("0.6.0").unwrap();
    assert!(digit("0.5.0").is_err());
}

#[test]
fn every_edit_reaches_the_spec() {
    let dirs = Dirs::new();
    // YAML, with the octal mode that vendors' tools write.
    dirs.write(
        0,
        "vendor.yaml",
        r#"
cdiVersion: "0.7.0"
kind: vendor.com/gpu
containerEdits:
  env: ["B=all", "C=3"]
  hooks:
  - {hookName: createContainer, path: /usr/bin/hook, args: ["hook", "update"], timeout: 5}
devices:
- name: "0"
  containerEdits:
    deviceNodes:
    - {path: /dev/vendor0, type: c, major: 195, minor: 7, fileMode: 0660, permissions: rw}
    mounts:
    - {hostPath: /usr/lib/vendor, containerPath: /usr/lib/x/vendor, options: [ro, bind]}
    - {hostPath: /usr/lib, containerPath: /usr/lib, options: [ro, bind]}
    additionalGids: [0, 44]
    intelRdt: {closID: gold, l3CacheSchema: "L3:0=f"}
- name: "1"
  containerEdits:
    deviceNodes:
    - {path: /dev/vendor1, hostPath: /dev/null, uid: 7}
"#,
    );
    let spec = applied(&dirs.dirs, &["vendor.com/gpu=1", "vendor.com/gpu=0"], minimal()).unwrap();
    assert_eq!(spec["process"]["env"], json!(["A=1", "B=all", "C=3"]));
    assert_eq!(spec["process"]["user"], json!({"uid": 1000, "gid": 100, "additionalGids": [44]}));
    assert_eq!(
        spec["hooks"],
        json!({"createContainer": [{"path": "/usr/bin/hook", "args": ["hook", "update"], "timeout": 5}]}),
        "what a file has for all its devices comes once"
    );
    let destinations: Vec<_> =
        spec["mounts"].as_array().unwrap().iter().map(|mount| mount["destination"].clone()).collect();
    assert_eq!(destinations, ["/usr/lib", "/usr/lib/x/vendor"], "parents first");
    let null = fs::metadata("/dev/null").unwrap();
    let mode = std::os::unix::fs::MetadataExt::mode(&null) & 0o7777;
    assert_eq!(
        spec["linux"]["devices"],
        json!([
            {"path": "/dev/vendor1", "type": "c", "major": 1, "minor": 3, "fileMode": mode, "uid": 7, "gid": 100},
            {"path": "/dev/vendor0", "type": "c", "major": 195, "minor": 7, "fileMode": 0o660, "uid": 1000, "gid": 100},
        ])
    );
    assert_eq!(
        spec["linux"]["resources"]["devices"],
        json!([
            {"allow": true, "type": "c", "major": 1, "minor": 3, "access": "rwm"},
            {"allow": true, "type": "c", "major": 195, "minor": 7, "access": "rw"},
        ])
    );
    assert_eq!(spec["linux"]["intelRdt"], json!({"closID": "gold", "l3CacheSchema": "L3:0=f"}));
}

#[test]
fn a_device_takes_the_place_of_what_has_its_name() {
    let dirs = Dirs::new();
    let edits = json!({
        "deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/null"}],
        "mounts": [{"hostPath": "/b", "containerPath": "/data"}],
    });
    dirs.write(0, "v.json", &with("0.5.0", edits).to_string());
    let mut before = minimal();
    before["mounts"] = json!([{"destination": "/data", "source": "/a"}]);
    before["linux"] = json!({"devices": [{"path": "/dev/x", "type": "c", "major": 9, "minor": 9}]});
    let spec = applied(&dirs.dirs, &["v/c=d"], before).unwrap();
    assert_eq!(spec["mounts"], json!([{"destination": "/data", "source": "/b"}]));
    assert_eq!(spec["linux"]["devices"].as_array().unwrap().len(), 1);
    assert_eq!(spec["linux"]["devices"][0]["major"], 1);
}

#[test]
fn the_later_directory_wins_and_two_in_one_are_a_conflict() {
    let dirs = Dirs::new();
    let env = |value: &str| with("0.3.0", json!({"env": [format!("WHO={value}")]})).to_string();
    dirs.write(0, "a.json", &env("etc"));
    let who = || applied(&dirs.dirs, &["v/c=d"], minimal()).unwrap()["process"]["env"][2].clone();
    assert_eq!(who(), "WHO=etc");
    dirs.write(1, "a.json", &env("run"));
    assert_eq!(who(), "WHO=run", "it is read at each use");
    dirs.write(0, "b.json", &env("etc again"));
    assert_eq!(who(), "WHO=run", "a conflict below does not count");
    dirs.write(1, "b.yaml", "cdiVersion: 0.3.0\nkind: v/c\ndevices: [{name: d, containerEdits: {env: [X=1]}}]\n");
    assert_eq!(
        dirs.refused(&["v/c=d"]),
        "CDI device v/c=d is defined twice, in RUN/a.json and RUN/b.yaml: remove one of them"
    );
}

#[test]
fn what_cannot_be_found_is_named_with_the_files_that_are_broken() {
    let dirs = Dirs::new();
    dirs.write(0, "good.json", &with("0.3.0", json!({"env": ["A=1"]})).to_string());
    dirs.write(0, "broken.json", "{");
    dirs.write(0, "ignored.txt", "not a spec");
    fs::remove_dir(&dirs.dirs[1]).unwrap();
    applied(&dirs.dirs, &["v/c=d"], minimal()).expect("a broken file hides only its own devices");
    let refused = dirs.refused(&["v/c=d", "v/c=e", "w/c=d"]);
    let expected =
        "unresolvable CDI devices v/c=e, w/c=d: no file in ETC, RUN defines them; ETC/broken.json is not usable: EOF";
    assert!(refused.starts_with(expected), "{refused}");
}

#[test]
fn a_node_that_the_host_has_not_and_one_of_another_type_are_named() {
    let dirs = Dirs::new();
    let node = |node: Value| with("0.5.0", json!({"deviceNodes": [node]})).to_string();
    dirs.write(0, "v.json", &node(json!({"path": "/dev/there-is-none"})));
    let refused = dirs.refused(&["v/c=d"]);
    assert!(
        refused.starts_with("CDI device v/c=d of ETC/v.json: device node /dev/there-is-none: No such file"),
        "{refused}"
    );
    dirs.write(0, "v.json", &node(json!({"path": "/dev/null", "type": "b"})));
    assert!(dirs.refused(&["v/c=d"]).ends_with("device node /dev/null is not of type \"b\" on this host"));
    dirs.write(
        0,
        "v.json",
        &with("1.1.0", json!({"netDevices": [{"hostInterfaceName": "eth9", "name": "eth0"}]})).to_string(),
    );
    let refused = dirs.refused(&["v/c=d"]);
    assert_eq!(refused, "CDI device v/c=d of ETC/v.json: network device \"eth9\" is not on this host, or not any more");
}

#[test]
fn network_devices_are_moved_by_runtimes_that_can_into_pods_with_a_network_of_their_own() {
    let dirs = Dirs::new();
    let moved = json!({"netDevices": [{"hostInterfaceName": "lo", "name": "given0"}]});
    dirs.write(0, "v.json", &with("1.1.0", moved).to_string());
    let spec = applied(&dirs.dirs, &["v/c=d"], minimal()).unwrap();
    assert_eq!(spec["linux"]["netDevices"], json!({"lo": {"name": "given0"}}));
    let found = registry::find(&dirs.dirs, &names(&["v/c=d"])).unwrap();
    let able =
        |net_devices: bool| Handler { features: Features { net_devices, ..Features::default() }, ..Handler::default() };
    check(&found, &able(true), false).unwrap();
    let what = "CDI device v/c=d: network device \"lo\": ";
    let refused = check(&found, &able(true), true).unwrap_err().to_string();
    assert_eq!(refused, format!("{what}the pod is in the host's network already"));
    let refused = check(&found, &able(false), false).unwrap_err().to_string();
    assert!(refused.starts_with(&format!("{what}the OCI runtime runc cannot move network devices")), "{refused}");
    check(&found, &Handler { options: RuntimeOptions::None, ..able(false) }, false).unwrap();
    check(&[], &able(false), true).unwrap();
}
