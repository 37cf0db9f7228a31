//! Device nodes of a container, and the cgroup rules that let it use them.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use crate::{
    error::Error,
    model::{ContainerSpec, Device},
    oci::HandlerOptions,
};

/// What a privileged container does not get of the host's /dev: file systems that it has its own of, and what belongs
/// to another container manager.
const NOT_SHARED: [&str; 8] = ["pts", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts", ".udev"];

/// A device node of the host, found and looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedDevice {
    /// In the container.
    pub path: PathBuf,
    pub kind: LinuxDeviceType,
    pub major: i64,
    pub minor: i64,
    /// Permission bits only.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// A subset of `rwm`, for the cgroup.
    pub permissions: String,
}

/// Finds the device nodes that a container is to have: those it names, and for a privileged one the host's. Blocks.
pub fn resolve(container: &ContainerSpec, handler: &HandlerOptions) -> Result<Vec<ResolvedDevice>, Error> {
    let mut found = Vec::new();
    if container.privileged && !handler.privileged_without_host_devices {
        let root = Path::new("/dev");
        walk(root, root, "rwm", &mut found).map_err(|error| Error::failed("list the host's devices", error))?;
    }
    for device in &container.devices {
        for mut resolved in named(device)? {
            if handler.device_ownership {
                // Root can use any device: the host's owner stays, as containerd leaves it.
                resolved.uid = container.run_as.user.filter(|user| *user != 0).unwrap_or(resolved.uid);
                resolved.gid = container.run_as.group.filter(|group| *group != 0).unwrap_or(resolved.gid);
            }
            // What is named explicitly replaces what came with the host's /dev.
            found.retain(|other: &ResolvedDevice| other.path != resolved.path);
            found.push(resolved);
        }
    }
    Ok(found)
}

/// The nodes one CRI device stands for: itself, or all below it if it is a directory.
fn named(device: &Device) -> Result<Vec<ResolvedDevice>, Error> {
    let name = &device.host_path;
    if device.permissions.chars().any(|c| !"rwm".contains(c)) {
        return Err(Error::Invalid(format!("device {name:?}: permissions {:?} are not of rwm", device.permissions)));
    }
    let failed = |error: io::Error| Error::failed(format!("device {name:?}"), error);
    let host = fs::canonicalize(name).map_err(failed)?;
    let container = if device.container_path.is_empty() { name } else { &device.container_path };
    let metadata = fs::metadata(&host).map_err(failed)?;
    if !metadata.is_dir() {
        let found = node(&metadata, PathBuf::from(container), &device.permissions);
        return Ok(vec![found.ok_or_else(|| Error::Invalid(format!("{name:?} is not a device")))?]);
    }
    let mut found = Vec::new();
    walk(&host, Path::new(container), &device.permissions, &mut found).map_err(failed)?;
    Ok(found)
}

/// Adds all device nodes below `host`, named as below `container`. Symlinks are not followed, or a loop would not end.
fn walk(host: &Path, container: &Path, permissions: &str, found: &mut Vec<ResolvedDevice>) -> io::Result<()> {
    let entries = match fs::read_dir(host) {
        // A device that was unplugged took its directory with it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    let mut entries: Vec<fs::DirEntry> = entries.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let name = entry.file_name();
        let metadata = match entry.metadata() {
            // Devices come and go.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            metadata => metadata?,
        };
        if name.to_str().is_some_and(|name| NOT_SHARED.contains(&name)) {
            continue;
        }
        let inside = container.join(&name);
        if metadata.is_dir() {
            walk(&entry.path(), &inside, permissions, found)?;
        } else if let Some(node) = node(&metadata, inside, permissions) {
            found.push(node);
        }
    }
    Ok(())
}

/// `None` for what is no device: regular files, FIFOs, sockets, symlinks.
fn node(metadata: &fs::Metadata, path: PathBuf, permissions: &str) -> Option<ResolvedDevice> {
    let kind = match metadata.file_type() {
        kind if kind.is_block_device() => LinuxDeviceType::B,
        kind if kind.is_char_device() => LinuxDeviceType::C,
        _ => return None,
    };
    Some(ResolvedDevice {
        path,
        kind,
        major: i64::from(rustix::fs::major(metadata.rdev())),
        minor: i64::from(rustix::fs::minor(metadata.rdev())),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        permissions: permissions.to_owned(),
    })
}

/// The nodes as the runtime makes them.
pub(super) fn nodes(devices: &[ResolvedDevice]) -> Option<Vec<LinuxDevice>> {
    let to_linux = |device: &ResolvedDevice| {
        let mut linux = LinuxDevice::default();
        linux
            .set_path(device.path.clone())
            .set_typ(device.kind)
            .set_major(device.major)
            .set_minor(device.minor)
            .set_file_mode(Some(device.mode))
            .set_uid(Some(device.uid))
            .set_gid(Some(device.gid));
        linux
    };
    (!devices.is_empty()).then(|| devices.iter().map(to_linux).collect())
}

/// Everything denied but what every program expects (null, zero, full, random, urandom, tty, console, ptmx, pts) and
/// the container's own devices.
pub(super) fn rules(devices: &[ResolvedDevice]) -> Vec<LinuxDeviceCgroup> {
    let mut rules = vec![rule(false, None, None, None, "rwm")];
    let character = Some(LinuxDeviceType::C);
    for (major, minor) in [(1, 3), (1, 8), (1, 7), (5, 0), (1, 5), (1, 9), (5, 1)] {
        rules.push(rule(true, character, Some(major), Some(minor), "rwm"));
    }
    // Any pseudo terminal of the container's own devpts, and its ptmx.
    rules.push(rule(true, character, Some(136), None, "rwm"));
    rules.push(rule(true, character, Some(5), Some(2), "rwm"));
    for device in devices {
        rules.push(rule(true, Some(device.kind), Some(device.major), Some(device.minor), &device.permissions));
    }
    rules
}

/// Everything allowed.
pub(super) fn all_allowed() -> Vec<LinuxDeviceCgroup> {
    vec![rule(true, Some(LinuxDeviceType::A), None, None, "rwm")]
}

/// Everything denied: a pause process opens no device.
pub(super) fn all_denied() -> Vec<LinuxDeviceCgroup> {
    vec![rule(false, None, None, None, "rwm")]
}

fn rule(
    allow: bool,
    kind: Option<LinuxDeviceType>,
    major: Option<i64>,
    minor: Option<i64>,
    access: &str,
) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow).set_typ(kind).set_major(major).set_minor(minor).set_access(Some(access.to_owned()));
    rule
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(host_path: &str, permissions: &str) -> Device {
        Device { container_path: "/dev/inside".into(), host_path: host_path.into(), permissions: permissions.into() }
    }

    #[test]
    fn a_device_is_found_through_a_symlink() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).unwrap();
        let found = named(&device(link.to_str().unwrap(), "rw")).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].major, found[0].minor, found[0].kind), (1, 3, LinuxDeviceType::C));
        assert_eq!((found[0].path.as_path(), found[0].permissions.as_str()), (Path::new("/dev/inside"), "rw"));
    }

    #[test]
    fn a_directory_that_goes_while_devices_are_listed_has_none() {
        let dir = tempfile::tempdir().unwrap();
        let mut found = Vec::new();
        walk(&dir.path().join("unplugged"), Path::new("/dev/bus"), "rwm", &mut found).unwrap();
        assert_eq!(found, []);
        // One that a client asks for by name has to be there.
        assert!(named(&device(dir.path().join("unplugged").to_str().unwrap(), "r")).is_err());
    }

    #[test]
    fn what_is_no_device_and_what_is_no_permission_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        assert!(matches!(named(&device(path, "rw")), Err(Error::Invalid(_))));
        assert!(matches!(named(&device("/dev/null", "rx")), Err(Error::Invalid(_))));
        assert!(named(&device("/dev/there-is-none", "r")).unwrap_err().to_string().contains("there-is-none"));
    }
}
