//! The files in a bundle by which `delete` knows the runtime of a container whose shim is gone.
//!
//! `options.json` has containerd's field names, so that its own tools read it, and ours reads what they wrote.

use std::fs;
use std::io;
use std::path::Path;

use crate::proto::runc;

const OPTIONS: &str = "options.json";
const RUNTIME: &str = "runtime";

#[derive(Debug, Default, serde::Serialize, serde::Deserialize)]
#[serde(default)]
struct Options {
    binary_name: String,
    root: String,
    systemd_cgroup: bool,
    no_pivot_root: bool,
    no_new_keyring: bool,
    io_uid: u32,
    io_gid: u32,
}

pub(crate) fn write_options(bundle: &Path, options: &runc::Options) -> io::Result<()> {
    let kept = Options {
        binary_name: options.binary_name.clone(),
        root: options.root.clone(),
        systemd_cgroup: options.systemd_cgroup,
        no_pivot_root: options.no_pivot_root,
        no_new_keyring: options.no_new_keyring,
        io_uid: options.io_uid,
        io_gid: options.io_gid,
    };
    fs::write(bundle.join(OPTIONS), serde_json::to_vec(&kept)?)?;
    fs::write(bundle.join(RUNTIME), &options.binary_name)
}

/// Missing or unreadable files mean the defaults: `delete` has to do what it can.
pub(crate) fn read_options(bundle: &Path) -> runc::Options {
    let kept: Options =
        fs::read(bundle.join(OPTIONS)).ok().and_then(|json| serde_json::from_slice(&json).ok()).unwrap_or_default();
    runc::Options {
        binary_name: kept.binary_name,
        root: kept.root,
        systemd_cgroup: kept.systemd_cgroup,
        ..runc::Options::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delete_finds_the_runtime_that_create_was_given() {
        let bundle = tempfile::tempdir().unwrap();
        let options = runc::Options {
            binary_name: "crun".to_owned(),
            root: "/run/x".to_owned(),
            systemd_cgroup: true,
            ..runc::Options::default()
        };
        write_options(bundle.path(), &options).unwrap();
        assert_eq!(read_options(bundle.path()), options);
    }
}
