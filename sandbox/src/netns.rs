//! Network namespaces that outlive their makers: pinned by a bind mount on a file whose name is a function of the pod's id.
//!
//! A thread that changes its namespace is a thread of its own, which then ends; no worker of the runtime ever does.
//! All functions block for as long as a mount takes: call them on the blocking pool.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io,
    os::{
        fd::AsFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::Path,
    thread,
};

use nix::{
    sched::{CloneFlags, unshare},
    sys::statfs::{NSFS_MAGIC, statfs},
};
use rustix::{
    io::Errno,
    mount::{UnmountFlags, mount_bind, unmount},
    thread::{LinkNameSpaceType, gettid, move_into_link_name_space},
};

use crate::error::Error;

/// Makes a new network namespace and pins it at `path`. Nothing is left at `path` when this fails.
pub fn pin(path: &Path) -> Result<(), Error> {
    let failed = |error: io::Error| Error::failed(format!("pin a network namespace at {}", path.display()), error);
    if let Some(parent) = path.parent()
        && !parent.is_dir()
    {
        fs::create_dir_all(parent).map_err(failed)?;
        fs::set_permissions(parent, Permissions::from_mode(0o755)).map_err(failed)?;
    }
    // O_EXCL: a namespace that is there already is another pod's, or a leftover that the caller has to unpin first.
    OpenOptions::new().write(true).create_new(true).mode(0o444).open(path).map_err(failed)?;
    let made = on_own_thread("netns-pin", || -> io::Result<()> {
        unshare(CloneFlags::CLONE_NEWNET)?;
        let own = format!("/proc/self/task/{}/ns/net", gettid().as_raw_nonzero());
        mount_bind(own, path)?;
        Ok(())
    })
    .and_then(|made| made);
    made.map_err(|error| {
        // The first error is the one to report; an unused plain file is removed by unpin as well.
        let _ = fs::remove_file(path);
        failed(error)
    })
}

/// Takes the pin off `path` and removes the file. What is not there any more is success.
pub fn unpin(path: &Path) -> Result<(), Error> {
    let failed = |error: io::Error| Error::failed(format!("unpin the network namespace at {}", path.display()), error);
    loop {
        // The same path can be mounted on more than once after a crash between two attempts.
        match unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // Not a mount point; no such file.
            Err(Errno::INVAL | Errno::NOENT) => break,
            Err(error) => return Err(failed(error.into())),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
        _ => Ok(()),
    }
}

/// Whether a namespace is pinned at `path`; a plain file (as after a reboot) is not one.
pub fn is_pinned(path: &Path) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == NSFS_MAGIC)
}

/// Runs `work` inside the network namespace at `path`, on a thread of its own.
pub fn with_netns<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T, Error> {
    let failed = |error: io::Error| Error::failed(format!("enter the network namespace {}", path.display()), error);
    let namespace = File::open(path).map_err(failed)?;
    on_own_thread("netns-enter", || -> io::Result<T> {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(work())
    })
    .and_then(|entered| entered)
    .map_err(failed)
}

/// Runs `work` on a thread that ends with it, so that no other work ever sees what it did to its namespaces.
fn on_own_thread<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(name.to_owned()).spawn_scoped(scope, work)?;
        thread.join().map_err(|_| io::Error::other(format!("thread {name} panicked")))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_a_pinned_namespace_can_be_entered_and_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netns/pod");
        pin(&path).unwrap();
        assert!(is_pinned(&path));
        let ours = fs::read_link("/proc/thread-self/ns/net").unwrap();
        let theirs = with_netns(&path, || fs::read_link("/proc/thread-self/ns/net").unwrap()).unwrap();
        assert_ne!(ours, theirs);
        assert_eq!(ours, fs::read_link("/proc/thread-self/ns/net").unwrap());
        unpin(&path).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn privileged_unpinning_twice_succeeds_and_a_second_pin_of_the_same_path_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod");
        pin(&path).unwrap();
        assert!(pin(&path).unwrap_err().chain().contains("File exists"));
        assert!(is_pinned(&path), "the refused pin must not touch the first one");
        unpin(&path).unwrap();
        unpin(&path).unwrap();
    }

    #[test]
    fn a_plain_file_is_not_a_pin_and_cannot_be_entered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stale");
        fs::write(&path, "").unwrap();
        assert!(!is_pinned(&path));
        assert!(with_netns(&path, || ()).is_err());
        unpin(&path).unwrap();
        assert!(!path.exists());
    }
}
