//! What operations do to the machine beside network, snapshots and shims: namespaces, mounts, directories, cgroups.
//!
//! A trait of its own although the architecture counts three, because these effects need root and a crash test has to
//! stop between any two of them. Directories have bodies here: a fake counts them and calls these. Every method blocks,
//! is idempotent, and takes what is missing for success.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::{ffi::OsStrExt, fs::DirBuilderExt},
    path::{Path, PathBuf},
};

use shim::mount::{mount_all, unmount_all};
use snapshotter::Mount;

use crate::{Error, model::UserNamespace, netns, userns};

pub(crate) mod cgroup;

/// The machine. See the module's comment.
pub trait Node: Send + Sync {
    fn pin_netns(&self, path: &Path) -> Result<(), Error>;

    /// Pins a new user namespace, and a network namespace that it owns unless the pod is in the host's.
    fn pin_userns(&self, userns: &Path, netns: Option<&Path>, mapping: &UserNamespace) -> Result<(), Error> {
        userns::pin(userns, netns, mapping)
    }

    /// Mounts a root file system on an existing directory with the ids of a user namespace.
    fn mount_mapped(
        &self,
        mounts: &[Mount],
        target: &Path,
        userns: &Path,
        mapping: &UserNamespace,
    ) -> Result<(), Error> {
        userns::mount_root(mounts, target, userns, mapping)
    }

    fn unpin_netns(&self, path: &Path) -> Result<(), Error>;

    /// Mounts on an existing directory.
    fn mount(&self, mounts: &[Mount], target: &Path) -> Result<(), Error>;

    fn unmount(&self, target: &Path) -> Result<(), Error>;

    /// Kills every process in the cgroup of this `linux.cgroupsPath`, and none above it.
    fn kill_cgroup(&self, cgroup: &Path) -> Result<(), Error>;

    /// Makes a directory with this mode; its missing parents are for root only, but can be passed through.
    fn make_dir(&self, path: &Path, mode: u32) -> Result<(), Error> {
        make_dir(path, mode)
    }

    /// Removes a directory and all in it, after everything mounted in it is unmounted.
    fn remove_dir(&self, path: &Path) -> Result<(), Error> {
        remove_dir(path)
    }
}

/// The machine that this runs on.
#[derive(Clone, Copy, Debug)]
pub struct ThisNode;

impl Node for ThisNode {
    fn pin_netns(&self, path: &Path) -> Result<(), Error> {
        netns::pin(path)
    }

    fn unpin_netns(&self, path: &Path) -> Result<(), Error> {
        netns::unpin(path)
    }

    fn mount(&self, mounts: &[Mount], target: &Path) -> Result<(), Error> {
        let mounts: Vec<_> = mounts
            .iter()
            .cloned()
            .map(|Mount { fstype, source, options }| shim::mount::Mount { fstype, source, options })
            .collect();
        mount_all(&mounts, target).map_err(|error| Error::failed(format!("mount {}", target.display()), error))
    }

    fn unmount(&self, target: &Path) -> Result<(), Error> {
        unmount_all(target).map_err(|error| Error::failed(format!("unmount {}", target.display()), error))
    }

    fn kill_cgroup(&self, cgroup: &Path) -> Result<(), Error> {
        cgroup::kill(cgroup)
    }
}

fn make_dir(path: &Path, mode: u32) -> Result<(), Error> {
    let failed = |error| Error::failed(format!("make directory {}", path.display()), error);
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o711).create(parent).map_err(failed)?;
    }
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        made => made.map_err(failed),
    }
}

fn remove_dir(path: &Path) -> Result<(), Error> {
    let failed = |error| Error::failed(format!("remove directory {}", path.display()), error);
    match snapshotter::remove_tree(path) {
        // What is mounted in it is not of it: removing through a mount would delete what belongs to a volume or an image.
        Err(error) if matches!(error.kind(), io::ErrorKind::ResourceBusy | io::ErrorKind::CrossesDevices) => {
            unmount_below(path)?;
            snapshotter::remove_tree(path).map_err(failed)
        }
        removed => removed.map_err(failed),
    }
}

fn unmount_below(path: &Path) -> Result<(), Error> {
    let table = "/proc/self/mountinfo";
    let read = fs::read(table).map_err(|error| Error::failed(format!("read {table}"), error))?;
    // Deepest last in the table, since a mount is listed after the one it is on.
    for point in mount_points(&read).into_iter().rev().filter(|point| point.starts_with(path)) {
        unmount_all(&point).map_err(|error| Error::failed(format!("unmount {}", point.display()), error))?;
    }
    Ok(())
}

/// The fifth field of every line of a mountinfo table, in its order.
fn mount_points(table: &[u8]) -> Vec<PathBuf> {
    let lines = table.split(|byte| *byte == b'\n');
    lines
        .filter_map(|line| line.split(|byte| *byte == b' ').nth(4))
        .map(|field| PathBuf::from(std::ffi::OsStr::from_bytes(&unescape(field))))
        .collect()
}

/// The kernel writes space, tab, newline and backslash as a backslash and three octal digits.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                plain.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                plain.push(*first);
                rest = tail;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_with_their_escapes() {
        let table =
            b"36 35 98:0 /mnt1 /mnt/a\\040b rw,noatime master:1 - ext3 /dev/root rw\n37 36 0:5 / /x rw - tmpfs t rw\n";
        assert_eq!(mount_points(table), [PathBuf::from("/mnt/a b"), PathBuf::from("/x")]);
        assert_eq!(unescape(b"\\134n\\9"), b"\\n\\9");
    }

    #[test]
    fn a_directory_is_made_and_removed_twice() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a/b/c");
        make_dir(&path, 0o755).unwrap();
        make_dir(&path, 0o755).unwrap();
        fs::write(path.join("file"), "x").unwrap();
        remove_dir(&root.path().join("a")).unwrap();
        remove_dir(&root.path().join("a")).unwrap();
        assert!(!root.path().join("a").exists());
    }

    #[test]
    fn privileged_removing_a_directory_keeps_what_is_mounted_in_it() {
        let root = tempfile::tempdir().unwrap();
        let (volume, bundle) = (root.path().join("volume"), root.path().join("bundle"));
        make_dir(&volume, 0o755).unwrap();
        fs::write(volume.join("kept"), "x").unwrap();
        make_dir(&bundle.join("rootfs"), 0o755).unwrap();
        let bind = Mount {
            fstype: "bind".into(),
            source: volume.to_str().unwrap().into(),
            options: vec!["rbind".into(), "rw".into()],
        };
        // On a directory and on a file, and the top itself: each stops a removal in a way of its own.
        let file = Mount { source: volume.join("kept").to_str().unwrap().into(), ..bind.clone() };
        fs::write(bundle.join("hosts"), "").unwrap();
        ThisNode.mount(&[file], &bundle.join("hosts")).unwrap();
        ThisNode.mount(std::slice::from_ref(&bind), &bundle.join("rootfs")).unwrap();
        ThisNode.mount(&[bind], &bundle).unwrap();
        remove_dir(&bundle).unwrap();
        assert!(!bundle.exists());
        assert!(volume.join("kept").exists());
    }
}
