//! `base_runtime_spec`: a spec that the configuration gives, which takes the place of the defaults.
//!
//! What CRI or this program decides is decided as without it. Of the base are kept: mounts in place of the default ones,
//! the set of capabilities that CRI adds to and drops from, resource limits of processes, hooks, and everything else that
//! is set nowhere else. Its security profiles are dropped, as containerd drops them: CRI's are the ones that count.

use std::{collections::HashSet, fs, path::Path};

use oci_spec::runtime::{Capability, LinuxDeviceCgroup, Mount, Spec};
use serde_json::{Map, Value};

use crate::error::Error;

/// Reads and checks the file. Blocks.
pub fn read(path: &Path) -> Result<Spec, Error> {
    let text = fs::read(path).map_err(|error| Error::failed(format!("read {}", path.display()), error))?;
    let invalid = |what: String| Error::Invalid(format!("{}: {what}", path.display()));
    let spec: Spec = serde_json::from_slice(&text).map_err(|error| invalid(format!("no OCI runtime spec: {error}")))?;
    if spec.process().is_none() || spec.linux().is_none() {
        return Err(invalid("an OCI runtime spec for Linux has process and linux".to_owned()));
    }
    Ok(spec)
}

/// The mounts of the base in place of the `default` ones, with a writable `/sys` for privileged containers. The cgroup
/// file system is mounted in any case, as CRI has it.
pub(super) fn mounts(base: Option<&Spec>, sys_writable: bool, default: Vec<Mount>) -> Vec<Mount> {
    let Some(given) = base.and_then(|base| base.mounts().as_ref()) else { return default };
    // A pod that cannot mount a sysfs of its own binds the host's, whatever the base has there.
    let bound_sys = default.iter().any(|mount| mount.destination() == Path::new("/sys") && !is_sysfs(mount));
    let ours = |mount: &Mount| {
        mount.destination() == Path::new("/sys/fs/cgroup") || bound_sys && mount.destination() == Path::new("/sys")
    };
    // Containers get no /run of their own, whoever lists it: images bring one.
    let kept = given.iter().filter(|mount| !ours(mount) && mount.destination() != Path::new("/run"));
    let made_writable = kept.cloned().map(|mut mount| {
        if sys_writable && is_sysfs(&mount) {
            let options = mount.options().clone().unwrap_or_default();
            mount.set_options(Some(options.into_iter().filter(|option| option != "ro").chain(["rw".into()]).collect()));
        }
        mount
    });
    made_writable.chain(default.into_iter().filter(ours)).collect()
}

fn is_sysfs(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("sysfs")
}

/// The set that CRI's additions and removals begin with.
pub(super) fn capabilities(base: &Spec) -> Option<HashSet<Capability>> {
    let given = base.process().as_ref()?.capabilities().as_ref()?;
    given.bounding().clone()
}

/// `made` over `base`.
pub(super) fn complete(base: &Spec, made: Spec) -> Result<Spec, Error> {
    let failed = |error| Error::failed("complete an OCI spec from base_runtime_spec", error);
    let allowed = allowed_devices(base);
    let mut below = serde_json::to_value(base).map_err(failed)?;
    forget(&mut below);
    let mut merged = serde_json::to_value(made).map_err(failed)?;
    fill(&mut merged, below);
    let mut spec: Spec = serde_json::from_value(merged).map_err(failed)?;
    if let Some(linux) = spec.linux_mut()
        && let Some(resources) = linux.resources_mut()
    {
        let rules = resources.devices().iter().flatten().cloned().chain(allowed).collect();
        resources.set_devices(Some(rules));
    }
    Ok(spec)
}

/// Rules that forbid are not kept: each container's own list begins with one that forbids all.
fn allowed_devices(base: &Spec) -> Vec<LinuxDeviceCgroup> {
    let resources = base.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let rules = resources.and_then(|resources| resources.devices().as_ref()).into_iter().flatten();
    rules.filter(|rule| rule.allow()).cloned().collect()
}

/// Removes what a container never takes from the base.
fn forget(base: &mut Value) {
    const TOP: [&str; 5] = ["ociVersion", "root", "hostname", "domainname", "mounts"];
    const PROCESS: [&str; 7] =
        ["terminal", "consoleSize", "user", "args", "capabilities", "apparmorProfile", "selinuxLabel"];
    const LINUX: [&str; 8] = [
        "namespaces",
        "uidMappings",
        "gidMappings",
        "cgroupsPath",
        "maskedPaths",
        "readonlyPaths",
        "seccomp",
        "mountLabel",
    ];
    let drop_keys = |value: Option<&mut Value>, keys: &[&str]| {
        if let Some(object) = value.and_then(Value::as_object_mut) {
            object.retain(|key, _| !keys.contains(&key.as_str()));
        }
    };
    drop_keys(Some(base), &TOP);
    drop_keys(base.get_mut("process"), &PROCESS);
    drop_keys(base.get_mut("linux"), &LINUX);
    drop_keys(base.pointer_mut("/linux/resources"), &["devices"]);
}

/// Puts what `below` has into `value` where that has nothing. Lists are one value, but for the environment and devices,
/// whose entries count singly.
fn fill(value: &mut Value, below: Value) {
    match (value, below) {
        (Value::Object(object), Value::Object(below)) => fill_object(object, below),
        (value @ Value::Null, below) => *value = below,
        _ => {}
    }
}

fn fill_object(object: &mut Map<String, Value>, below: Map<String, Value>) {
    for (key, below) in below {
        match (object.get_mut(&key), &below) {
            (None, _) => drop(object.insert(key, below)),
            (Some(Value::Array(own)), Value::Array(entries)) if key == "env" => {
                let name = |entry: &Value| entry.as_str().and_then(|text| text.split('=').next()).map(str::to_owned);
                let names: Vec<Option<String>> = own.iter().map(name).collect();
                let kept = entries.iter().filter(|entry| !names.contains(&name(entry))).cloned();
                *own = kept.chain(own.iter().cloned()).collect();
            }
            (Some(Value::Array(own)), Value::Array(entries)) if key == "devices" => {
                let paths: Vec<Value> = own.iter().map(|entry| entry["path"].clone()).collect();
                own.extend(entries.iter().filter(|entry| !paths.contains(&entry["path"])).cloned());
            }
            (Some(own), _) => fill(own, below),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(value: Value) -> Spec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_nobody_else_sets_comes_from_the_base() {
        let base = spec(json!({
            "ociVersion": "1.0.0", "hostname": "base", "root": {"path": "/base"},
            "process": {
                "args": ["base"], "cwd": "/base", "user": {"uid": 5, "gid": 5}, "env": ["PATH=/base", "EXTRA=1"],
                "apparmorProfile": "base", "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512}],
            },
            "hooks": {"prestart": [{"path": "/bin/hook"}]},
            "annotations": {"a": "base", "b": "base"},
            "linux": {
                "seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}, "cgroupsPath": "/base",
                "namespaces": [{"type": "network"}],
                "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 2}],
                "resources": {
                    "pids": {"limit": 77}, "memory": {"limit": 1},
                    "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 9, "minor": 9}],
                },
            },
        }));
        let made = spec(json!({
            "ociVersion": "1.0.2", "root": {"path": "rootfs"},
            "process": {"args": ["own"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["PATH=/own"]},
            "annotations": {"b": "own"},
            "linux": {
                "cgroupsPath": "/own", "namespaces": [{"type": "pid"}],
                "resources": {"memory": {"limit": 2}, "devices": [{"allow": false, "access": "rwm"}]},
            },
        }));
        let found = serde_json::to_value(complete(&base, made).unwrap()).unwrap();
        assert_eq!(
            found,
            serde_json::to_value(spec(json!({
                "ociVersion": "1.0.2", "root": {"path": "rootfs"},
                "process": {
                    "args": ["own"], "cwd": "/", "user": {"uid": 0, "gid": 0}, "env": ["EXTRA=1", "PATH=/own"],
                    "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 512}],
                },
                "hooks": {"prestart": [{"path": "/bin/hook"}]},
                "annotations": {"a": "base", "b": "own"},
                "linux": {
                    "cgroupsPath": "/own", "namespaces": [{"type": "pid"}],
                    "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 2}],
                    "resources": {
                        "pids": {"limit": 77}, "memory": {"limit": 2},
                        "devices": [{"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 9, "minor": 9}],
                    },
                },
            })))
            .unwrap()
        );
    }

    #[test]
    fn the_bases_mounts_are_the_defaults_without_run() {
        let base = spec(json!({
            "ociVersion": "1.0.0",
            "mounts": [
                {"destination": "/run", "type": "tmpfs"},
                {"destination": "/sys", "type": "sysfs", "options": ["nosuid", "ro"]},
            ],
        }));
        let default: Vec<Mount> = serde_json::from_value(json!([
            {"destination": "/proc", "type": "proc"}, {"destination": "/sys/fs/cgroup", "type": "cgroup"},
        ]))
        .unwrap();
        let found = mounts(Some(&base), true, default.clone());
        let at: Vec<&Path> = found.iter().map(|mount| mount.destination().as_path()).collect();
        assert_eq!(at, [Path::new("/sys"), Path::new("/sys/fs/cgroup")]);
        assert_eq!(found[0].options().as_deref(), Some(&["nosuid".to_owned(), "rw".to_owned()][..]));
        assert_eq!(mounts(None, true, default.clone()), default);
    }

    #[test]
    fn capabilities_of_the_base_are_what_cri_begins_with() {
        let base = spec(json!({
            "ociVersion": "1.0.0",
            "process": {"cwd": "/", "user": {"uid": 0, "gid": 0}, "capabilities": {"bounding": ["CAP_KILL"]}},
        }));
        assert_eq!(capabilities(&base), Some([Capability::Kill].into()));
        assert_eq!(capabilities(&spec(json!({"ociVersion": "1.0.0"}))), None);
    }

    #[test]
    fn a_file_that_cannot_be_one_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("base.json");
        let error = |text: &str| {
            fs::write(&path, text).unwrap();
            read(&path).unwrap_err().chain()
        };
        for text in ["{", r#"{"ociVersion": 1}"#, r#"{"ociVersion": "1.0.0"}"#] {
            assert!(error(text).starts_with(&format!("{}: ", path.display())), "{}", error(text));
        }
        assert!(read(&dir.path().join("none.json")).unwrap_err().chain().contains("none.json"));
    }
}
