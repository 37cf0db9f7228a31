//! Whether a checkpoint may be restored: no process of it may have more than the request gives.
//!
//! ```text
//! image.rs, images.rs  CRIU's files and their names        given.rs       what the request gives
//! processes.rs         ids, capabilities, profiles, namespaces, limits
//! mounts.rs            what is mounted, and what has to be                 cgroups.rs  where the processes are put: there
//!                                                                                      the archive's file is written anew
//! open_files.rs        what is open; connections are closed               filters.rs  system call filters: written anew, with
//!                                                                                      the request's before all others
//! ```
//!
//! What is not understood is refused. What is not checked, because it is the processes' own or a matter of the host's: the
//! content of memory and of tmpfs; by which user an open file could have been opened, since CRIU opens it as root, though only
//! in the container's mounts and within its device rules; limits (rlimits) that the request does not name; timers, signals
//! and socket options; filters of the processes' own, which can only restrict. CRIU itself reads every file as root: whoever
//! allows restores trusts it with that.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

use super::{
    cgroups,
    criu::{Version, WITH_NO_NEW_PRIVS},
    filters,
    given::Given,
    images::Images,
    mounts, open_files, processes,
};
use crate::{Error, host::CgroupMode};

/// What is known from elsewhere.
pub(crate) struct Circumstances {
    /// The archive's spec has a seccomp profile.
    pub(crate) had_profile: bool,
    /// This program runs under a filter, and so would CRIU.
    pub(crate) is_filtered: bool,
    /// What restores.
    pub(crate) criu: Version,
}

/// Fails unless the images in `directory`, which is the daemon's own, may be restored into a container with this OCI spec,
/// whose root file system is mounted at `rootfs`. Blocks.
pub(crate) fn verify(
    directory: &Path,
    spec: &serde_json::Value,
    rootfs: &Path,
    cgroup: CgroupMode,
    circumstances: &Circumstances,
    name: &str,
) -> Result<(), Error> {
    let given = Given::parse(spec)?;
    let (major, minor) = circumstances.criu;
    if given.no_new_privileges && circumstances.criu < WITH_NO_NEW_PRIVS {
        return Err(Error::Unsupported(format!(
            "checkpoint {name} is not restored: CRIU {major}.{minor} would let its processes gain privileges, which the request \
             forbids (no_new_privs); install CRIU 3.19 or newer"
        )));
    }
    let images = Images::open(directory)?;
    let place = |path: &Path| place(rootfs, path);
    // A path that this kernel does not have is not there in a container either.
    let on_host = |path: &Path| {
        let kernels = path.starts_with("/proc") || path.starts_with("/sys");
        !kernels || rustix::fs::statat(CWD, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).is_ok()
    };
    let checked = processes::check(&images, &given).and_then(|processes| {
        let mounts = mounts::check(&images, &given, processes.namespace, &place, &on_host)?;
        let table = open_files::check(&images, &given, &mounts)?;
        let cgroups = cgroups::check(&images, &given, cgroup == CgroupMode::V2)?;
        let mut rewritten = filters::rewrite(&images, &given, &processes.living, circumstances.had_profile)?;
        rewritten.files.extend(cgroups.map(|cgroups| ("cgroup.img".to_owned(), cgroups)));
        rewritten.files.extend(table.map(|table| (open_files::NAME.to_owned(), table)));
        Ok(rewritten)
    });
    let rewritten = checked.map_err(|refused| {
        Error::Invalid(format!(
            "checkpoint {name} is refused: {refused}; its processes would get what this container's configuration does not give"
        ))
    })?;
    if circumstances.is_filtered && rewritten.is_filtered {
        return Err(Error::Precondition(format!(
            "checkpoint {name} is not restored: CRIU loads its seccomp filters safely only if it runs under none itself, as this \
             daemon does; start the daemon without a seccomp profile"
        )));
    }
    for (name, content) in rewritten.files {
        let path = directory.join(name);
        let written = replace(&path, &content);
        written.map_err(|error| Error::failed(format!("write {}", path.display()), error))?;
    }
    Ok(())
}

fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    file.write_all(content)
}

/// Where a path leads in the container, with its links followed beneath the root. What is missing is made by the runtime.
fn place(rootfs: &Path, path: &Path) -> PathBuf {
    let resolved = |path: &Path| {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let root = rustix::fs::openat(CWD, rootfs, flags | OFlags::DIRECTORY, Mode::empty()).ok()?;
        let found = rustix::fs::openat2(&root, path, flags, Mode::empty(), resolve).ok()?;
        let name = |fd: &std::os::fd::OwnedFd| {
            use std::os::fd::AsRawFd;
            std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd())).ok()
        };
        let inside = name(&found)?.strip_prefix(name(&root)?).ok()?.to_owned();
        Some(Path::new("/").join(inside))
    };
    for known in path.ancestors() {
        if let Some(found) = resolved(known) {
            let rest = path.strip_prefix(known).unwrap_or(Path::new(""));
            return if rest.as_os_str().is_empty() { found } else { found.join(rest) };
        }
    }
    path.to_owned()
}
