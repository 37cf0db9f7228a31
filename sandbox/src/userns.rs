//! User namespaces of pods: pinned together with the network namespace that they own, and root file systems shown with
//! their ids.
//!
//! A process of the host that is root in no namespace of a pod owns nothing of it: a layer's files keep their owners on
//! disk, and only the mounts that the pod sees map them. All functions block.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions},
    io,
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown},
    },
    path::{Path, PathBuf},
};

use nix::sched::CloneFlags;
use rustix::{
    fs::CWD,
    mount::{
        MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_bind, mount_remount, move_mount, open_tree,
        unmount,
    },
};
use shim::mount::mount_all;
use snapshotter::Mount;

use crate::{
    Error,
    model::{IdMapping, UserNamespace},
    sys,
};

/// Makes a user namespace with this mapping and a network namespace that it owns, and pins both. Without that owner a
/// pod's root could not set up its network, nor mount its own `/sys`. A pod in the host's network has neither of these, and
/// `netns` is `None`. Nothing is left at the paths when this fails.
pub(crate) fn pin(userns: &Path, netns: Option<&Path>, mapping: &UserNamespace) -> Result<(), Error> {
    let failed = |error: io::Error| Error::failed(format!("pin a user namespace at {}", userns.display()), error);
    let pins: Vec<(&str, &Path)> = [("user", userns)].into_iter().chain(netns.map(|netns| ("net", netns))).collect();
    for (_, path) in &pins {
        let parent = path.parent().unwrap_or(path);
        DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed)?;
    }
    let network = if netns.is_some() { CloneFlags::CLONE_NEWNET } else { CloneFlags::empty() };
    let pinned = sys::beside_new_namespaces(CloneFlags::CLONE_NEWUSER | network, |pid| {
        fs::write(format!("/proc/{pid}/uid_map"), line(&mapping.uid))?;
        fs::write(format!("/proc/{pid}/gid_map"), line(&mapping.gid))?;
        for (kind, path) in &pins {
            // As with network namespaces alone: what is there already is another pod's, or a leftover.
            OpenOptions::new().write(true).create_new(true).mode(0o444).open(path)?;
            mount_bind(format!("/proc/{pid}/ns/{kind}"), *path)?;
        }
        Ok(())
    });
    pinned.map_err(|error| {
        for (_, path) in &pins {
            // The first error is the one to report; whatever is left is found by the pod's teardown.
            let _ = unmount(*path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            let _ = fs::remove_file(path);
        }
        failed(error)
    })
}

/// A line of `/proc/PID/uid_map`.
fn line(mapping: &IdMapping) -> String {
    format!("{} {} {}\n", mapping.container, mapping.host, mapping.length)
}

/// What an id of the container is on the host.
fn host_id(id: u32, mapping: &IdMapping) -> io::Result<u32> {
    let within = id.checked_sub(mapping.container).filter(|offset| *offset < mapping.length);
    within
        .and_then(|offset| mapping.host.checked_add(offset))
        .ok_or_else(|| io::Error::other(format!("id {id} is not mapped in the pod's user namespace")))
}

/// Mounts a snapshot at `rootfs` so that the files of the namespace's root are its root's, and lets that root reach it:
/// the bundle, `rootfs`'s parent, is closed to everyone else.
pub(crate) fn mount_root(mounts: &[Mount], rootfs: &Path, userns: &Path, mapping: &UserNamespace) -> Result<(), Error> {
    let failed = |error: io::Error| Error::failed(format!("mount {} with a pod's ids", rootfs.display()), error);
    let bundle = rootfs.parent().unwrap_or(rootfs);
    let root_group = host_id(0, &mapping.gid).map_err(failed)?;
    chown(bundle, None, Some(root_group)).map_err(failed)?;
    fs::set_permissions(bundle, Permissions::from_mode(0o710)).map_err(failed)?;
    let namespace = File::open(userns).map_err(failed)?;
    match mounts {
        [only] if only.fstype == "overlay" => overlay(only, rootfs, &namespace, mapping),
        [only] if only.options.iter().any(|option| option == "bind" || option == "rbind") => {
            // The whole tree is one mount: what the container writes is mapped back as it is written.
            let tree = mapped(Path::new(&only.source), &namespace).map_err(failed)?;
            attach(&tree, rootfs).map_err(failed)?;
            match only.options.iter().any(|option| option == "ro") {
                true => read_only(rootfs).map_err(failed),
                false => Ok(()),
            }
        }
        _ => Err(Error::Unsupported(format!("{}: this snapshotter's mounts cannot map ids", rootfs.display()))),
    }
}

/// An overlay cannot be mapped itself, but its layers can. The upper one holds what the container wrote, by its ids on the
/// host, so only the top directory, made like the image's, has to change hands.
fn overlay(mount: &Mount, rootfs: &Path, namespace: &File, mapping: &UserNamespace) -> Result<(), Error> {
    let failed = |error: io::Error| Error::failed(format!("map the layers of {}", rootfs.display()), error);
    let scratch = rootfs.with_file_name("layers");
    let mut options = Vec::with_capacity(mount.options.len());
    let mut layers = Vec::new();
    for option in &mount.options {
        match option.split_once('=') {
            Some(("lowerdir", lower)) => {
                layers = map_layers(lower, &scratch, namespace).map_err(failed)?;
                let paths: Vec<_> = layers.iter().map(|layer| layer.to_string_lossy()).collect();
                options.push(format!("lowerdir={}", paths.join(":")));
            }
            Some(("upperdir", upper)) => {
                let like = fs::metadata(upper).map_err(failed)?;
                let (uid, gid) = (host_id(like.uid(), &mapping.uid), host_id(like.gid(), &mapping.gid));
                lchown(upper, Some(uid.map_err(failed)?), Some(gid.map_err(failed)?)).map_err(failed)?;
                options.push(option.clone());
            }
            _ => options.push(option.clone()),
        }
    }
    let mapped = shim::mount::Mount { fstype: mount.fstype.clone(), source: mount.source.clone(), options };
    let mounted = mount_all(&[mapped], rootfs);
    // The overlay keeps clones of its own; these are in nobody's way, so the mount's error comes first.
    let removed = layers.iter().try_for_each(|layer| unmount(layer, UnmountFlags::DETACH));
    mounted.map_err(|error| Error::failed(format!("mount {}", rootfs.display()), error))?;
    removed.map_err(|error| failed(error.into()))?;
    fs::remove_dir_all(&scratch).map_err(failed)
}

/// Each layer, mapped, on a directory of its own below `scratch`, in the same order.
fn map_layers(lower: &str, scratch: &Path, namespace: &File) -> io::Result<Vec<PathBuf>> {
    let mut layers = Vec::new();
    for (index, layer) in lower.split(':').enumerate() {
        let at = scratch.join(index.to_string());
        DirBuilder::new().recursive(true).mode(0o700).create(&at)?;
        attach(&mapped(Path::new(layer), namespace)?, &at)?;
        layers.push(at);
    }
    Ok(layers)
}

fn mapped(source: &Path, namespace: &File) -> io::Result<OwnedFd> {
    let tree = open_tree(CWD, source, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    sys::map_ids(tree.as_fd(), namespace.as_fd())?;
    Ok(tree)
}

/// Makes a bind mount read-only, or takes it off: it must not stay without.
fn read_only(target: &Path) -> io::Result<()> {
    mount_remount(target, MountFlags::BIND | MountFlags::RDONLY, c"").map_err(|error| {
        // The first error is the one to report; whatever is left is found by the teardown.
        let _ = unmount(target, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
        error.into()
    })
}

fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    Ok(move_mount(tree, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping() -> UserNamespace {
        let ids = IdMapping { container: 0, host: 100_000, length: 65_536 };
        UserNamespace { uid: ids, gid: ids }
    }

    #[test]
    fn an_id_beyond_the_mapping_is_refused() {
        let ids = mapping().uid;
        assert_eq!(host_id(0, &ids).unwrap(), 100_000);
        assert_eq!(host_id(65_535, &ids).unwrap(), 165_535);
        assert_eq!(
            host_id(65_536, &ids).unwrap_err().to_string(),
            "id 65536 is not mapped in the pod's user namespace"
        );
    }

    #[test]
    fn privileged_both_namespaces_are_pinned_and_the_network_is_owned_by_the_user_namespace() {
        let dir = tempfile::tempdir().unwrap();
        let (user, net) = (dir.path().join("pinned/user"), dir.path().join("netns/pod"));
        pin(&user, Some(&net), &mapping()).unwrap();
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        assert_ne!(inode(&user), inode(Path::new("/proc/self/ns/user")));
        assert_ne!(inode(&net), inode(Path::new("/proc/self/ns/net")));
        let shown = std::process::Command::new("nsenter")
            .arg(format!("--user={}", user.display()))
            .arg(format!("--net={}", net.display()))
            .args(["sh", "-c", "cat /proc/self/uid_map; ip link set lo up && echo up"])
            .output()
            .unwrap();
        let words: Vec<String> =
            String::from_utf8(shown.stdout).unwrap().split_whitespace().map(str::to_owned).collect();
        assert_eq!(words, ["0", "100000", "65536", "up"], "{}", String::from_utf8_lossy(&shown.stderr));
        let taken = pin(&user, Some(&net), &mapping()).unwrap_err().chain();
        assert!(taken.contains("File exists"), "{taken}");
    }

    #[test]
    fn privileged_a_user_namespace_is_pinned_alone_for_the_hosts_network() {
        let dir = tempfile::tempdir().unwrap();
        let user = dir.path().join("user");
        pin(&user, None, &mapping()).unwrap();
        assert_ne!(fs::metadata(&user).unwrap().ino(), fs::metadata("/proc/self/ns/user").unwrap().ino());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        unmount(&user, UnmountFlags::DETACH).unwrap();
    }

    #[test]
    fn privileged_a_mapped_overlay_shows_the_images_root_as_the_pods() {
        let dir = tempfile::tempdir().unwrap();
        let (user, net) = (dir.path().join("user"), dir.path().join("net"));
        pin(&user, Some(&net), &mapping()).unwrap();
        let at = |name: &str| dir.path().join(name);
        for made in ["low/a", "low2", "up", "work", "bundle/rootfs"] {
            fs::create_dir_all(at(made)).unwrap();
        }
        fs::write(at("low/a/of-root"), "x").unwrap();
        let text = |name: &str| at(name).to_str().unwrap().to_owned();
        let mount = Mount {
            fstype: "overlay".into(),
            source: "overlay".into(),
            options: vec![
                format!("workdir={}", text("work")),
                format!("upperdir={}", text("up")),
                format!("lowerdir={}:{}", text("low2"), text("low")),
            ],
        };
        let rootfs = at("bundle/rootfs");
        mount_root(&[mount], &rootfs, &user, &mapping()).unwrap();
        let owner = |path: PathBuf| {
            let found = fs::metadata(path).unwrap();
            (found.uid(), found.gid())
        };
        assert_eq!(owner(rootfs.join("a/of-root")), (100_000, 100_000));
        assert_eq!(owner(rootfs.clone()), (100_000, 100_000));
        assert_eq!(owner(at("low/a/of-root")), (0, 0), "the layer itself is as it was");
        assert!(!at("bundle/layers").exists());
        for path in [rootfs, user, net] {
            unmount(&path, UnmountFlags::DETACH).unwrap();
        }
    }

    #[test]
    fn privileged_a_mapped_view_of_one_layer_is_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let (user, net) = (dir.path().join("user"), dir.path().join("net"));
        pin(&user, Some(&net), &mapping()).unwrap();
        let (layer, root) = (dir.path().join("layer"), dir.path().join("volume/root"));
        for made in [&layer, &root] {
            fs::create_dir_all(made).unwrap();
        }
        fs::write(layer.join("file"), "x").unwrap();
        let source = layer.to_str().unwrap().to_owned();
        let view = Mount { fstype: "bind".into(), source, options: vec!["ro".into(), "rbind".into()] };
        mount_root(&[view], &root, &user, &mapping()).unwrap();
        assert_eq!(fs::metadata(root.join("file")).unwrap().uid(), 100_000);
        assert_eq!(fs::write(root.join("file"), "y").unwrap_err().kind(), io::ErrorKind::ReadOnlyFilesystem);
        for path in [root, user, net] {
            unmount(&path, UnmountFlags::DETACH).unwrap();
        }
    }
}
