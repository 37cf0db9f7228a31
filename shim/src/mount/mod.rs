//! Mounting what a snapshotter hands out: a list of [`Mount`] values onto one directory.
//!
//! Owns the translation of fstab-like options to mount(2) flags, the second calls that bind mounts need
//! (`ro`, propagation), and the way around the one-page limit of option strings (see `overlay`).
//! Never creates the target, never decides what is mounted. All calls block; async callers use the blocking pool.

mod options;
mod overlay;

use std::io;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use options::Options;

/// One mount as containerd's API carries it: type, source, and options in fstab spelling.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Mount {
    pub fstype: String,
    pub source: String,
    pub options: Vec<String>,
}

#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The option is real but needs support that is not built: the caller must not mount without it.
    #[error("mount option {option:?} on {} is not supported", target.display())]
    Unsupported { option: String, target: PathBuf },
    #[error("{what} {}", target.display())]
    Failed { what: String, target: PathBuf, source: io::Error },
}

/// Mounts every entry in order on `target`; on an error what was mounted before is taken off again.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<(), MountError> {
    for (done, mount) in mounts.iter().enumerate() {
        if let Err(error) = mount_one(mount, target) {
            for _ in 0..done {
                // The first error is the one to report; what cannot be detached here is found by unmount_all later.
                let _ = rustix::mount::unmount(target, UnmountFlags::DETACH);
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Detaches everything that is mounted on `target`, however often; nothing there is success.
pub fn unmount_all(target: &Path) -> Result<(), MountError> {
    loop {
        match rustix::mount::unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // EINVAL: not (or no longer) a mount point. ENOENT: the directory is gone already.
            Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(failed("unmount", target, errno)),
        }
    }
}

fn mount_one(mount: &Mount, target: &Path) -> Result<(), MountError> {
    let options = Options::parse(&mount.options);
    if let Some(option) = options.unsupported {
        return Err(MountError::Unsupported { option, target: target.to_owned() });
    }
    if options.bind {
        bind(mount, &options, target)?;
    } else if mount.fstype == "overlay" {
        overlay::mount(&mount.source, &options, target)?;
    } else {
        let data = options.data_string(target)?;
        rustix::mount::mount(mount.source.as_str(), target, mount.fstype.as_str(), options.flags, data.as_c_str())
            .map_err(|errno| failed(&format!("mount {} {} on", mount.fstype, mount.source), target, errno))?;
    }
    if let Some(propagation) = options.propagation {
        change(target, propagation)?;
    }
    Ok(())
}

fn bind(mount: &Mount, options: &Options, target: &Path) -> Result<(), MountError> {
    let call = if options.recursive { rustix::mount::mount_bind_recursive } else { rustix::mount::mount_bind };
    call(mount.source.as_str(), target).map_err(|errno| failed(&format!("bind {} on", mount.source), target, errno))?;
    if options.flags.is_empty() {
        return Ok(());
    }
    // The kernel ignores ro, nosuid and the like on the first bind call; only a remount applies them.
    let flags = options.flags | MountFlags::BIND;
    rustix::mount::mount_remount(target, flags, c"").map_err(|errno| {
        // A bind without its restrictions must not stay.
        let _ = rustix::mount::unmount(target, UnmountFlags::DETACH);
        failed("remount with its flags", target, errno)
    })
}

fn change(target: &Path, propagation: MountPropagationFlags) -> Result<(), MountError> {
    rustix::mount::mount_change(target, propagation).map_err(|errno| failed("set the propagation of", target, errno))
}

fn failed(what: &str, target: &Path, errno: rustix::io::Errno) -> MountError {
    MountError::Failed { what: what.to_owned(), target: target.to_owned(), source: errno.into() }
}
