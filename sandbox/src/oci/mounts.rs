//! What is mounted in a container: the default file systems, the pod's files, and CRI's mounts, merged by destination.
//!
//! [`resolve_sources`] is the only function here that looks at the file system.

use std::{
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt,
    path::{Component, Path, PathBuf},
};

use oci_spec::runtime::Mount;

use crate::{
    error::Error,
    model::{IdMapping, Propagation, VolumeMount},
    oci::{SandboxFiles, namespaces::mapping},
};

/// A CRI mount whose source is known to exist, free of symlinks, and fit for the propagation asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResolvedMount {
    pub destination: PathBuf,
    pub source: PathBuf,
    pub readonly: bool,
    pub recursive_readonly: bool,
    pub propagation: Propagation,
    /// The ids that the mount shows, for volumes of pods with a user namespace.
    pub mapping: Option<(Vec<IdMapping>, Vec<IdMapping>)>,
}

/// Looks up the source of every mount of a host path: symlinks resolved, a missing directory made (0755, as kubelet's hostPath relies on),
/// propagation checked against the mount the source is on. Blocks.
pub fn resolve_sources(mounts: &[VolumeMount]) -> Result<Vec<ResolvedMount>, Error> {
    mounts.iter().try_for_each(check)?;
    let needs_table = mounts.iter().any(|mount| mount.propagation != Propagation::Private);
    let table = if needs_table { read_mountinfo()? } else { Vec::new() };
    mounts.iter().filter(|mount| mount.image.is_none()).map(|mount| resolve(mount, &table)).collect()
}

/// What can be refused without looking.
fn check(mount: &VolumeMount) -> Result<(), Error> {
    let at = &mount.container_path;
    if mount.container_path.is_empty() {
        return Err(Error::Invalid("mount: container_path is empty".into()));
    }
    if mount.image.is_none() && !Path::new(&mount.host_path).is_absolute() {
        return Err(Error::Invalid(format!("mount {at:?}: host_path {:?} is not absolute", mount.host_path)));
    }
    if mount.uid_mappings.is_empty() != mount.gid_mappings.is_empty() {
        return Err(Error::Invalid(format!("mount {at:?}: uid_mappings and gid_mappings are set together")));
    }
    if mount.recursive_readonly && !mount.readonly {
        return Err(Error::Invalid(format!("mount {at:?}: recursive_read_only requires readonly")));
    }
    if mount.recursive_readonly && mount.propagation != Propagation::Private {
        return Err(Error::Invalid(format!("mount {at:?}: recursive_read_only requires propagation private")));
    }
    Ok(())
}

fn resolve(mount: &VolumeMount, table: &[MountPoint]) -> Result<ResolvedMount, Error> {
    let source = existing(Path::new(&mount.host_path))?;
    check_propagation(&source, mount.propagation, table)?;
    Ok(ResolvedMount {
        destination: absolute(&mount.container_path),
        source,
        readonly: mount.readonly,
        recursive_readonly: mount.recursive_readonly,
        propagation: mount.propagation,
        mapping: (!mount.uid_mappings.is_empty()).then(|| (mount.uid_mappings.clone(), mount.gid_mappings.clone())),
    })
}

/// The path without symlinks; a directory is made where nothing is.
fn existing(path: &Path) -> Result<PathBuf, Error> {
    match fs::canonicalize(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let made = DirBuilder::new().recursive(true).mode(0o755).create(path);
            made.map_err(|error| Error::failed(format!("create mount source {}", path.display()), error))?;
            fs::canonicalize(path)
        }
        found => found,
    }
    .map_err(|error| Error::failed(format!("resolve mount source {}", path.display()), error))
}

/// `/x` for `x`; `.` and doubled slashes removed and `..` applied, so that equal destinations compare equal.
pub(crate) fn absolute(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    clean
}

/// One line of mountinfo, as far as propagation needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct MountPoint {
    path: PathBuf,
    shared: bool,
    slave: bool,
}

fn read_mountinfo() -> Result<Vec<MountPoint>, Error> {
    let path = "/proc/self/mountinfo";
    let text = fs::read_to_string(path).map_err(|error| Error::failed(format!("read {path}"), error))?;
    Ok(text.lines().filter_map(parse_mountinfo_line).collect())
}

/// `id parent dev root mount-point options [tags…] - type source super-options`
fn parse_mountinfo_line(line: &str) -> Option<MountPoint> {
    let mut fields = line.split(' ');
    let path = fields.nth(4)?;
    let tags: Vec<&str> = fields.skip(1).take_while(|field| *field != "-").collect();
    Some(MountPoint {
        path: PathBuf::from(unescape(path)),
        shared: tags.iter().any(|tag| tag.starts_with("shared:")),
        slave: tags.iter().any(|tag| tag.starts_with("master:")),
    })
}

/// The kernel writes blanks and backslashes in paths as three octal digits.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, plain)| text.replace(code, plain))
}

fn check_propagation(source: &Path, propagation: Propagation, table: &[MountPoint]) -> Result<(), Error> {
    if propagation == Propagation::Private {
        return Ok(());
    }
    // The last of equally long ones is on top.
    let on = table
        .iter()
        .filter(|mount| source.starts_with(&mount.path))
        .max_by_key(|mount| mount.path.components().count())
        .ok_or_else(|| Error::plain(format!("no mount in mountinfo holds {}", source.display())))?;
    let wanted = match propagation {
        Propagation::Bidirectional if !on.shared => "shared",
        Propagation::HostToContainer if !on.shared && !on.slave => "shared or slave",
        Propagation::Private | Propagation::Bidirectional | Propagation::HostToContainer => return Ok(()),
    };
    let (source, on) = (source.display(), on.path.display());
    Err(Error::Invalid(format!("path \"{source}\" is mounted on \"{on}\" but it is not a {wanted} mount")))
}

/// How the container's own file systems are mounted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Defaults {
    /// `/sys` is the host's: only who owns a network namespace can mount its own.
    pub(super) host_sys: bool,
    /// `/sys` and cgroups writable, for privileged containers.
    pub(super) sys_writable: bool,
    pub(super) cgroup: Option<CgroupMount>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct CgroupMount {
    pub(super) writable: bool,
}

/// The file systems every container has, without /dev/shm, which is the pod's.
pub(super) fn defaults(how: Defaults) -> Vec<Mount> {
    let access = |writable| if writable { "rw" } else { "ro" };
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ];
    mounts.push(match how.host_sys {
        true => bind("/sys", Path::new("/sys"), &["rbind", "rro", "nosuid", "nodev", "noexec"]),
        false => mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access(how.sys_writable)]),
    });
    if let Some(cgroup) = how.cgroup {
        let options = ["nosuid", "noexec", "nodev", "relatime", access(cgroup.writable)];
        mounts.push(mount("/sys/fs/cgroup", "cgroup", "cgroup", &options));
    }
    mounts
}

/// A pause container's two files; it writes to neither.
pub(super) fn pause_files(files: &SandboxFiles) -> Vec<Mount> {
    let options = ["rbind", "ro", "nosuid", "nodev", "noexec"];
    vec![bind("/dev/shm", &files.shm, &options), bind("/etc/resolv.conf", &files.resolv_conf, &options)]
}

/// The pod's files as its containers see them.
pub(super) fn container_files(files: &SandboxFiles, readonly_rootfs: bool) -> Vec<Mount> {
    let access = if readonly_rootfs { "ro" } else { "rw" };
    let options = ["rbind", "rprivate", access];
    vec![
        bind("/etc/hostname", &files.hostname, &options),
        bind("/etc/hosts", &files.hosts, &options),
        bind("/etc/resolv.conf", &files.resolv_conf, &options),
        bind("/dev/shm", &files.shm, &["rbind", "rprivate", "rw"]),
    ]
}

/// A CRI mount as the runtime wants it.
pub(super) fn volume(volume: &ResolvedMount) -> Mount {
    let propagation = match volume.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match (volume.readonly, volume.recursive_readonly) {
        (_, true) => "rro",
        (true, false) => "ro",
        (false, false) => "rw",
    };
    let mut mount = bind(volume.destination.clone(), &volume.source, &["rbind", propagation, access]);
    if let Some((uids, gids)) = &volume.mapping {
        let all = |ids: &[IdMapping]| Some(ids.iter().map(mapping).collect());
        mount.set_uid_mappings(all(uids)).set_gid_mappings(all(gids));
    }
    mount
}

/// The propagation that the root needs, so that a volume's own can reach the host or come from it.
pub(super) fn rootfs_propagation(volumes: &[ResolvedMount]) -> Option<String> {
    let any = |wanted| volumes.iter().any(|volume| volume.propagation == wanted);
    if any(Propagation::Bidirectional) {
        Some("rshared".into())
    } else if any(Propagation::HostToContainer) {
        Some("rslave".into())
    } else {
        None
    }
}

/// All mounts of a container. CRI's win over the pod's files, which win over the defaults; parents come before children.
pub(super) fn merge(defaults: Vec<Mount>, files: Vec<Mount>, volumes: &[ResolvedMount]) -> Vec<Mount> {
    let is_volume = |path: &Path| volumes.iter().any(|volume| volume.destination == path);
    // Who mounts /dev brings all that is in it.
    let own_dev = is_volume(Path::new("/dev"));
    let hidden = |path: &Path| is_volume(path) || (own_dev && path.starts_with("/dev"));
    let is_file = |path: &Path| files.iter().any(|file| file.destination().as_path() == path);
    let mut merged: Vec<Mount> =
        defaults.into_iter().filter(|mount| !hidden(mount.destination()) && !is_file(mount.destination())).collect();
    merged.extend(files.iter().filter(|mount| !hidden(mount.destination())).cloned());
    merged.extend(volumes.iter().map(self::volume));
    merged.sort_by_key(|mount| mount.destination().components().count());
    merged
}

fn bind(destination: impl Into<PathBuf>, source: &Path, options: &[&str]) -> Mount {
    let mut bound = mount(destination, "bind", "", options);
    bound.set_source(Some(source.to_owned()));
    bound
}

fn mount(destination: impl Into<PathBuf>, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount
        .set_destination(destination.into())
        .set_typ(Some(kind.to_owned()))
        .set_source(Some(PathBuf::from(source)))
        .set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

#[cfg(test)]
mod tests {
    use super::*;

    fn volume_at(container: &str, host: &str) -> VolumeMount {
        VolumeMount { container_path: container.into(), host_path: host.into(), ..VolumeMount::default() }
    }

    #[test]
    fn symlinks_are_resolved_and_missing_directories_made() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().canonicalize().unwrap();
        fs::create_dir(root.join("real")).unwrap();
        std::os::unix::fs::symlink("real", root.join("link")).unwrap();
        let host = |name: &str| root.join(name).to_str().unwrap().to_owned();
        let found = resolve_sources(&[volume_at("data/./x", &host("link")), volume_at("/b", &host("new/deep"))]);
        let found = found.unwrap();
        assert_eq!(found[0].source, root.join("real"));
        assert_eq!(found[0].destination, Path::new("/data/x"));
        assert_eq!(found[1].source, root.join("new/deep"));
        assert!(root.join("new/deep").is_dir());
    }

    #[test]
    fn what_cannot_be_kept_is_refused_by_name() {
        let volume = volume_at("/a", "/tmp");
        let check = |volume: VolumeMount| resolve_sources(&[volume]).unwrap_err().to_string();
        let table = [
            check(VolumeMount { recursive_readonly: true, ..volume.clone() }),
            check(VolumeMount {
                recursive_readonly: true,
                readonly: true,
                propagation: Propagation::HostToContainer,
                ..volume.clone()
            }),
            check(VolumeMount {
                uid_mappings: vec![crate::model::IdMapping { container: 0, host: 1, length: 1 }],
                ..volume
            }),
            check(volume_at("/a", "")),
            check(volume_at("/a", "tmp")),
            check(volume_at("", "/tmp")),
        ];
        insta::assert_snapshot!(table.join("\n"), @r##"
        mount "/a": recursive_read_only requires readonly
        mount "/a": recursive_read_only requires propagation private
        mount "/a": uid_mappings and gid_mappings are set together
        mount "/a": host_path "" is not absolute
        mount "/a": host_path "tmp" is not absolute
        mount: container_path is empty
        "##);
    }

    #[test]
    fn propagation_needs_a_mount_that_propagates() {
        let table: Vec<MountPoint> = [
            "21 1 0:1 / / rw,relatime - ext4 /dev/sda rw",
            "22 21 0:2 / /shared rw shared:7 - tmpfs tmpfs rw",
            "23 22 0:3 / /shared/a\\040slave rw,nosuid master:7 - tmpfs tmpfs rw",
        ]
        .iter()
        .filter_map(|line| parse_mountinfo_line(line))
        .collect();
        let check = |path: &str, propagation| match check_propagation(Path::new(path), propagation, &table) {
            Ok(()) => "ok".to_owned(),
            Err(error) => error.to_string(),
        };
        assert_eq!(check("/shared/x", Propagation::Bidirectional), "ok");
        assert_eq!(check("/shared/a slave/x", Propagation::HostToContainer), "ok");
        assert_eq!(
            check("/shared/a slave/x", Propagation::Bidirectional),
            "path \"/shared/a slave/x\" is mounted on \"/shared/a slave\" but it is not a shared mount"
        );
        assert_eq!(
            check("/etc", Propagation::HostToContainer),
            "path \"/etc\" is mounted on \"/\" but it is not a shared or slave mount"
        );
        assert_eq!(check("/etc", Propagation::Private), "ok");
    }
}
