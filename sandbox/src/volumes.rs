//! Image-defined volumes (`VOLUME`): a host directory each, with what the image has at that path.
//!
//! The image's side is only opened beneath its root (`openat2`, no magic links) and walked by directory descriptors, so a
//! symlink in an image never leads to a file of the host. Blocks.

use std::{
    ffi::OsStr,
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{
        AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, chownat, fchmod, fchown, mkdirat, mknodat,
        openat, openat2, readlinkat, statat, symlinkat,
    },
    io::Errno,
};

use crate::{Error, model::Propagation, oci::mounts::ResolvedMount, record::ContainerRecord, world::World};

/// Directories deeper than this in a volume are refused: each holds a descriptor while it is copied.
const MAX_DEPTH: usize = 200;

/// Makes the volumes that no mount of the request takes the place of.
pub(crate) fn make(
    world: &World,
    container: &ContainerRecord,
    root: &File,
    requested: &[ResolvedMount],
) -> Result<Vec<ResolvedMount>, Error> {
    if world.config.ignore_image_volumes {
        return Ok(Vec::new());
    }
    let mut made = Vec::new();
    let paths = wanted(container, requested)?;
    for (index, destination) in paths.into_iter().enumerate() {
        let source = world.paths.volume(&container.id, index);
        world.node.make_dir(&source, 0o755)?;
        if let Some(user) = &container.spec.namespaces.user {
            let root = std::os::unix::fs::chown(&source, Some(user.uid.host), Some(user.gid.host));
            root.map_err(|error| Error::failed(format!("give {} to the pod's root", source.display()), error))?;
        }
        copy(root, &destination, &source).map_err(|error| {
            Error::failed(
                format!("copy the image's {} to a volume of container {}", destination.display(), container.id),
                error,
            )
        })?;
        made.push(ResolvedMount {
            destination,
            source,
            readonly: false,
            recursive_readonly: false,
            propagation: Propagation::Private,
            mapping: None,
        });
    }
    Ok(made)
}

/// The image's volumes as absolute, normal paths, in order, each once.
fn wanted(container: &ContainerRecord, requested: &[ResolvedMount]) -> Result<Vec<PathBuf>, Error> {
    let config = container.image.config.config().as_ref();
    let volumes = config.and_then(|config| config.volumes().as_ref()).into_iter().flatten();
    let requested: Vec<PathBuf> = requested.iter().map(|mount| normal(&mount.destination.to_string_lossy())).collect();
    let mut paths = Vec::new();
    for volume in volumes {
        let path = normal(volume);
        if requested.contains(&path) || paths.contains(&path) {
            continue;
        }
        if let Some(why) = refusal(&path) {
            return Err(Error::Invalid(format!("image {}: volume {volume:?} is {why}", container.image.name)));
        }
        paths.push(path);
    }
    paths.sort();
    Ok(paths)
}

/// Why an image cannot have a volume there: the runtime relies on what is mounted at these places, and would write the labels
/// of a process or make devices in a directory of the image's instead (CVE-2019-16884).
fn refusal(path: &Path) -> Option<&'static str> {
    match path.to_str() {
        Some("/") => Some("its root"),
        Some("/dev" | "/sys") => Some("what the runtime mounts itself"),
        _ if path.starts_with("/proc") => Some("in /proc, which is the kernel's"),
        _ => None,
    }
}

/// The path below `/`, without `.` and `..`.
pub(crate) fn normal(path: &str) -> PathBuf {
    let mut normal = PathBuf::from("/");
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => normal.push(name),
            Component::ParentDir => drop(normal.pop()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    normal
}

/// Copies the directory at `path` of the image; an image may name a volume it has nothing for.
fn copy(root: &File, path: &Path, target: &Path) -> io::Result<()> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let beneath = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let from = match openat2(root, relative, flags, Mode::empty(), beneath) {
        Ok(from) => from,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    let to: OwnedFd = File::open(target)?.into();
    copy_dir(from.as_fd(), to.as_fd(), 0)?;
    own(to.as_fd(), &rustix::fs::fstat(&from)?)
}

fn copy_dir(from: BorrowedFd<'_>, to: BorrowedFd<'_>, depth: usize) -> io::Result<()> {
    if depth > MAX_DEPTH {
        return Err(io::Error::other("directories are nested too deeply"));
    }
    for entry in Dir::read_from(from)? {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name == "." || name == ".." {
            continue;
        }
        copy_entry(from, to, name, depth)?;
    }
    Ok(())
}

fn copy_entry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, name: &OsStr, depth: usize) -> io::Result<()> {
    let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let nofollow = OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let source = openat(from, name, OFlags::RDONLY | OFlags::DIRECTORY | nofollow, Mode::empty())?;
            mkdirat(to, name, Mode::RWXU)?;
            let target = openat(to, name, OFlags::RDONLY | OFlags::DIRECTORY | nofollow, Mode::empty())?;
            copy_dir(source.as_fd(), target.as_fd(), depth + 1)?;
            own(target.as_fd(), &stat)
        }
        FileType::RegularFile => {
            let mut source: File =
                openat(from, name, OFlags::RDONLY | OFlags::NONBLOCK | nofollow, Mode::empty())?.into();
            let create = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
            let mut target: File = openat(to, name, create | nofollow, Mode::RUSR | Mode::WUSR)?.into();
            io::copy(&mut source, &mut target)?;
            own(target.as_fd(), &stat)
        }
        FileType::Symlink => {
            symlinkat(readlinkat(from, name, Vec::new())?, to, name)?;
            let (user, group) = owner(&stat);
            Ok(chownat(to, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?)
        }
        FileType::Fifo => {
            mknodat(to, name, FileType::Fifo, Mode::from_raw_mode(stat.st_mode), 0)?;
            let (user, group) = owner(&stat);
            Ok(chownat(to, name, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?)
        }
        // A device of an image must not become one of the host's disk; a socket has no listener.
        FileType::CharacterDevice | FileType::BlockDevice | FileType::Socket | FileType::Unknown => Ok(()),
    }
}

/// Owner, then mode: a change of the owner clears the set-uid bits.
fn own(fd: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
    let (user, group) = owner(stat);
    fchown(fd, Some(user), Some(group))?;
    Ok(fchmod(fd, Mode::from_raw_mode(stat.st_mode))?)
}

fn owner(stat: &Stat) -> (Uid, Gid) {
    (Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{PermissionsExt, symlink},
    };

    use super::*;

    #[test]
    fn a_volume_gets_the_images_files_and_never_the_hosts() {
        let dir = tempfile::tempdir().unwrap();
        let (root, target, host) = (dir.path().join("root"), dir.path().join("target"), dir.path().join("host"));
        for made in [root.join("real/sub"), target.clone(), host.clone()] {
            fs::create_dir_all(made).unwrap();
        }
        fs::write(host.join("secret"), "host").unwrap();
        fs::write(root.join("real/sub/file"), "image").unwrap();
        fs::set_permissions(root.join("real/sub/file"), fs::Permissions::from_mode(0o640)).unwrap();
        symlink(host.join("secret"), root.join("real/link")).unwrap();
        // The volume's path is a link itself: it is resolved inside the image.
        symlink("/real", root.join("data")).unwrap();
        copy(&File::open(&root).unwrap(), Path::new("/data"), &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("sub/file")).unwrap(), "image");
        assert_eq!(fs::metadata(target.join("sub/file")).unwrap().permissions().mode() & 0o7777, 0o640);
        assert_eq!(fs::read_link(target.join("link")).unwrap(), host.join("secret"));
        assert_eq!(fs::read_dir(&target).unwrap().count(), 2);
    }

    #[test]
    fn a_volume_that_the_image_has_nothing_for_is_empty() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        fs::create_dir(&target).unwrap();
        symlink(dir.path(), dir.path().join("out")).unwrap();
        copy(&File::open(dir.path()).unwrap(), Path::new("/missing/data"), &target).unwrap();
        copy(&File::open(dir.path()).unwrap(), Path::new("/out/target"), &target).unwrap();
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
    }

    /// What an image calls a volume leads nowhere but into its root, and every copy of nothing is empty.
    #[test]
    fn v_c09_hostile_names_of_volumes_copy_nothing_of_the_host() {
        let dir = tempfile::tempdir().unwrap();
        let (root, host) = (dir.path().join("root"), dir.path().join("host"));
        for made in [root.join("deep/er"), host.clone()] {
            fs::create_dir_all(made).unwrap();
        }
        fs::write(host.join("secret"), "host").unwrap();
        symlink(&host, root.join("link")).unwrap();
        symlink("../../../..", root.join("up")).unwrap();
        symlink("/proc/self/root", root.join("magic")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let canary = host.display();
        let names = [
            format!("/../../../..{canary}"),
            "/link".into(),
            "/link/".into(),
            format!("/up{canary}"),
            format!("/up/../..{canary}"),
            format!("/magic{canary}"),
            format!("/deep/../link/./../link{canary}"),
            format!("//{canary}"),
            "/deep/er/nothing".into(),
        ];
        for (index, name) in names.iter().enumerate() {
            let target = dir.path().join(format!("target{index}"));
            fs::create_dir(&target).unwrap();
            copy(&File::open(&root).unwrap(), &normal(name), &target).unwrap();
            assert_eq!(fs::read_dir(&target).unwrap().count(), 0, "{name}");
        }
        let target = dir.path().join("looped");
        fs::create_dir(&target).unwrap();
        let error = copy(&File::open(&root).unwrap(), Path::new("/loop"), &target).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
    }

    #[test]
    fn v_r02_no_volume_takes_the_place_of_what_the_runtime_relies_on() {
        let refused = |name: &str| refusal(&normal(name));
        for name in [
            "",
            ".",
            "/",
            "//",
            "/a/..",
            "/proc",
            "/proc/self/attr",
            "proc/../proc/",
            "/proc/self/root/x",
            "/sys",
            "/dev",
            "/dev/.",
        ] {
            assert!(refused(name).is_some(), "{name}");
        }
        for name in ["/data", "/process", "/sys/fs/cgroup", "/dev/shm", "/var/proc"] {
            assert_eq!(refused(name), None, "{name}");
        }
    }

    #[test]
    fn volume_paths_are_made_normal() {
        assert_eq!(normal("data/./x/../y"), Path::new("/data/y"));
        assert_eq!(normal("/../.."), Path::new("/"));
    }
}
