//! SELinux labels of processes and files: what this host's policy says of containers, and giving labels to files.
//!
//! A pod has a level of its own, kept in its record, and all labels of its containers follow from it (`label.rs`). While any
//! record has a level, no other pod gets it. Where the configuration does not enable SELinux, or the host has none,
//! there is no [`Policy`], and nothing is labelled. All functions block.

use std::{
    ffi::CString,
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    path::{Path, PathBuf},
};

use oci_spec::runtime::Spec;
use rustix::{
    fs::{CWD, Dir, FileType, Mode, OFlags, XattrFlags, fstat, openat, setxattr},
    io::Errno,
};

use crate::error::Error;

mod label;

pub(crate) use label::{Labels, Policy, check};

/// Directories deeper than this are refused: each holds a descriptor while it is relabelled.
const MAX_DEPTH: usize = 200;

/// What the host itself needs as it is labelled.
const NOT_RELABELLED: [&str; 17] = [
    "/", "/bin", "/boot", "/dev", "/etc", "/home", "/lib", "/lib64", "/opt", "/proc", "/root", "/run", "/sbin", "/sys",
    "/tmp", "/usr", "/var",
];

/// The policy of the host, if SELinux is enabled here. `categories`: `selinux_category_range`.
pub(crate) fn read(categories: u32) -> Option<Policy> {
    if !Path::new("/sys/fs/selinux/enforce").exists() {
        tracing::warn!("enable_selinux: this host has no SELinux; nothing is labelled");
        return None;
    }
    let config = fs::read_to_string("/etc/selinux/config").unwrap_or_default();
    let kind = value(&config, "SELINUXTYPE").unwrap_or("targeted");
    let own = PathBuf::from(format!("/etc/selinux/{kind}/contexts/lxc_contexts"));
    let found = [own.as_path(), Path::new("/usr/share/containers/selinux/contexts")].into_iter().find_map(|path| {
        let text = fs::read_to_string(path).ok()?;
        let label = |key| value(&text, key)?.parse().ok();
        Some(Policy { process: label("process")?, file: label("file")?, categories })
    });
    if found.is_none() {
        let file = own.display();
        tracing::warn!(%file, "enable_selinux: the policy has no labels for containers (is container-selinux installed?); nothing is labelled");
    }
    found
}

/// `key = value` or `key = "value"` of a line of its own.
fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .find(|(name, _)| name.trim() == key)
        .map(|(_, value)| value.trim().trim_matches('"'))
        .filter(|value| !value.is_empty())
}

/// Refuses labels that the loaded policy does not know, before a runtime fails on them with less to say.
pub(crate) fn known(labels: &Labels) -> Result<(), Error> {
    for label in [&labels.process, &labels.mount] {
        let path = "/sys/fs/selinux/context";
        match fs::write(path, format!("{label}\0")) {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                return Err(Error::Precondition(format!(
                    "selinux_options: label {label:?} is not valid in this host's policy; if none was asked for, the \
                     policy lacks its module for containers: install it, or unset enable_selinux"
                )));
            }
            written => written.map_err(|error| Error::failed(format!("write {path}"), error))?,
        }
    }
    Ok(())
}

/// Puts the labels into a spec; the runtime labels what it mounts itself.
pub(crate) fn apply(spec: &mut Spec, labels: Labels) {
    spec.process_mut().get_or_insert_default().set_selinux_label(Some(labels.process));
    spec.linux_mut().get_or_insert_default().set_mount_label(Some(labels.mount));
}

/// The mount option that gives all files of a file system this label.
pub(crate) fn mount_option(label: &str) -> String {
    // A level has commas, which end an option.
    format!("context=\"{label}\"")
}

/// Gives a file, or a directory with all in it, this label. A file system without labels is left as it is.
///
/// Symlinks are labelled and never followed, neither by name nor in the course of the walk.
pub(crate) fn relabel(path: &Path, label: &str) -> Result<(), Error> {
    if NOT_RELABELLED.iter().any(|host| Path::new(host) == path) {
        let path = path.display();
        return Err(Error::Invalid(format!(
            "selinux_relabel: relabelling {path} is not allowed, the host needs it as it is"
        )));
    }
    let value = CString::new(label).map_err(|error| Error::failed(format!("label {label:?}"), error))?;
    let failed = |error| Error::failed(format!("relabel {}", path.display()), io::Error::from(error));
    let opened = openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()).map_err(failed)?;
    walk(opened.as_fd(), &value, 0).map_err(failed)
}

fn walk(file: BorrowedFd<'_>, label: &CString, depth: usize) -> Result<(), Errno> {
    if depth > MAX_DEPTH {
        return Err(Errno::LOOP);
    }
    // The descriptor's own link: it leads to this very file, also if it is a symlink.
    let link = format!("/proc/self/fd/{}", file.as_raw_fd());
    match setxattr(link.as_str(), "security.selinux", label.as_bytes_with_nul(), XattrFlags::empty()) {
        Ok(()) => {}
        // All of it is on one file system, or on others whose roots are found so.
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error),
    }
    if FileType::from_raw_mode(fstat(file)?.st_mode) != FileType::Directory {
        return Ok(());
    }
    let directory = openat(file, ".", OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    for entry in Dir::read_from(&directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match openat(&directory, name, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
            Ok(child) => walk(child.as_fd(), label, depth + 1)?,
            // It went meanwhile.
            Err(Errno::NOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_read_with_and_without_quotes() {
        let text = "# SELINUX=x\nSELINUXTYPE=default\nprocess = \"u:r:t:s0\"\nempty =\n";
        assert_eq!(value(text, "SELINUXTYPE"), Some("default"));
        assert_eq!(value(text, "process"), Some("u:r:t:s0"));
        assert_eq!((value(text, "empty"), value(text, "file")), (None, None));
    }

    #[test]
    fn what_the_host_needs_is_not_relabelled() {
        let refused = relabel(Path::new("/usr"), "u:object_r:t:s0").unwrap_err();
        assert!(
            matches!(&refused, Error::Invalid(text) if text.contains("relabelling /usr is not allowed")),
            "{refused}"
        );
    }

    #[test]
    fn privileged_a_tree_is_relabelled_and_what_its_links_lead_to_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let (tree, outside) = (dir.path().join("tree"), dir.path().join("outside"));
        fs::create_dir_all(tree.join("a/b")).unwrap();
        fs::write(tree.join("a/b/file"), "").unwrap();
        fs::write(&outside, "").unwrap();
        std::os::unix::fs::symlink(&outside, tree.join("link")).unwrap();
        relabel(&tree, "system_u:object_r:container_file_t:s0:c1,c2").unwrap();
        let of = |path: &Path| {
            let mut value = vec![0u8; 256];
            let length = rustix::fs::lgetxattr(path, "security.selinux", value.as_mut_slice()).ok()?;
            Some(String::from_utf8_lossy(&value[..length]).trim_end_matches('\0').to_owned())
        };
        // Without the module the kernel stores what it is given; a kernel that refuses is as a file system without labels.
        let expected = Some("system_u:object_r:container_file_t:s0:c1,c2".to_owned());
        if of(&tree).is_none() {
            eprintln!("left out: this file system keeps no labels");
            return;
        }
        for path in [tree.clone(), tree.join("a"), tree.join("a/b"), tree.join("a/b/file"), tree.join("link")] {
            assert_eq!(of(&path), expected, "{}", path.display());
        }
        assert_ne!(of(&outside), expected);
    }
}
