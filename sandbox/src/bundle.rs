//! A container's bundle: snapshot, root file system, `config.json`. Written here, read by shim and OCI runtime only.
//!
//! The daemon mounts the root itself, so that what the image says about users and volumes is read beneath it before the
//! runtime sees it. All functions block.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use std::os::fd::AsFd;

use oci_spec::runtime::Spec;
use rustix::{
    fs::{AtFlags, FileType, statat},
    io::Errno,
};
use snapshotter::{Labels, Mount};

use crate::{
    Error,
    model::{ContainerUser, Id, Image, RunAs},
    oci::user,
    record::PodRecord,
    selinux,
    world::World,
};

/// Makes snapshot and bundle and mounts the root; answers where. `once`: nothing will mount it again.
pub(crate) fn make(
    world: &World,
    pod: &PodRecord,
    id: &Id,
    image: &Image,
    labels: Option<&selinux::Labels>,
    once: bool,
) -> Result<PathBuf, Error> {
    let snapshotter = world.snapshotter(&pod.snapshotter)?;
    let parent = (!image.chain_id.is_empty()).then_some(image.chain_id.as_str());
    let mounts =
        snapshotter.prepare(&world.config.namespace, id.as_str(), parent, &Labels::new()).map_err(|error| {
            Error::failed(format!("prepare the root file system of {id} from image {}", image.name), error)
        })?;
    let mounts = if once { without_syncs(mounts, world.host.kernel) } else { mounts };
    let rootfs = world.paths.rootfs(id);
    world.node.make_dir(&world.paths.bundle(id), 0o700)?;
    world.node.make_dir(&rootfs, 0o711)?;
    mount(world, pod, &mounts, &rootfs, labels)?;
    Ok(rootfs)
}

/// A writable layer does not outlive its boot, so nothing in it has to reach the disk: syncs are left out, and with them the
/// one of the whole disk that an unmount would wait for. Such a layer can be mounted once only (overlayfs' `volatile`,
/// Linux 5.10, Documentation/filesystems/overlayfs.rst).
fn without_syncs(mut mounts: Vec<Mount>, kernel: (u32, u32)) -> Vec<Mount> {
    let writable = |mount: &&mut Mount| {
        mount.fstype == "overlay"
            && mount.options.iter().any(|option| option.starts_with("upperdir="))
            && mount.options.iter().all(|option| option != "volatile")
    };
    if kernel >= (5, 10) {
        mounts.iter_mut().filter(writable).for_each(|mount| mount.options.push("volatile".into()));
    }
    mounts
}

/// Mounts a snapshot with the ids of the pod, on a directory whose parent is for nothing else. Its files get the label.
pub(crate) fn mount(
    world: &World,
    pod: &PodRecord,
    mounts: &[Mount],
    target: &Path,
    labels: Option<&selinux::Labels>,
) -> Result<(), Error> {
    let mut mounts = mounts.to_vec();
    let bound = |mount: &Mount| mount.options.iter().any(|option| option == "bind" || option == "rbind");
    if let Some(labels) = labels {
        for mount in mounts.iter_mut().filter(|mount| bound(mount) && is_read_only(mount)) {
            let nothing = target.with_file_name("nothing");
            world.node.make_dir(&nothing, 0o755)?;
            *mount = overlaid(mount, &nothing)?;
        }
        for mount in mounts.iter_mut().filter(|mount| !bound(mount)) {
            mount.options.push(selinux::mount_option(&labels.mount));
        }
    }
    match (&pod.spec.namespaces.user, world.userns(pod)) {
        (Some(mapping), Some(userns)) => world.node.mount_mapped(&mounts, target, &userns, mapping)?,
        _ => world.node.mount(&mounts, target)?,
    }
    match labels {
        // A bind mount shows the labels that the files have; the directory is this snapshot's alone.
        Some(labels) if mounts.iter().any(bound) => selinux::relabel(target, &labels.mount),
        _ => Ok(()),
    }
}

fn is_read_only(mount: &Mount) -> bool {
    mount.options.iter().any(|option| option == "ro")
}

/// A view of one layer as an overlay, since a bind mount takes no label and the layer is everybody's. An overlay that nobody
/// writes to needs two layers: the other one is an empty directory.
fn overlaid(view: &Mount, nothing: &Path) -> Result<Mount, Error> {
    let lower = nothing.display().to_string();
    if [&view.source, &lower].iter().any(|path| path.contains([':', ',', '\\'])) {
        let what = format!("mount {} with an SELinux label", view.source);
        return Err(Error::failed(what, io::Error::other("options of an overlay cannot carry ':', ',' or '\\'")));
    }
    let options = vec![format!("lowerdir={}:{lower}", view.source)];
    Ok(Mount { fstype: "overlay".into(), source: "overlay".into(), options })
}

/// Opens a mounted root. Everything below it is then reached through this only.
///
/// One in which a place that the runtime mounts on is a symlink, or no directory, is refused: runtimes have followed it out of
/// the root (CVE-2026-41579 and CVE-2026-47766).
pub(crate) fn open_root(rootfs: &Path) -> Result<File, Error> {
    let root = File::open(rootfs).map_err(|error| Error::failed(format!("open {}", rootfs.display()), error))?;
    for name in ["dev", "proc", "sys"] {
        match statat(&root, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) if FileType::from_raw_mode(found.st_mode) == FileType::Directory => {}
            Ok(_) => {
                return Err(Error::Invalid(format!(
                    "the image's /{name} is not a directory, and the runtime mounts there"
                )));
            }
            Err(Errno::NOENT) => {}
            Err(error) => return Err(Error::failed(format!("look at /{name} of the image"), error)),
        }
    }
    Ok(root)
}

/// Who a process of the image in `root` runs as.
pub(crate) fn resolve_user(root: &File, run_as: &RunAs, image: &Image) -> Result<ContainerUser, Error> {
    let files = user::read_files(root.as_fd())?;
    let image_user = image.config.config().as_ref().and_then(|config| config.user().as_deref()).unwrap_or_default();
    user::resolve(run_as, image_user, &files)
}

/// Writes `config.json`; answers what it holds.
pub(crate) fn write_config(world: &World, id: &Id, spec: &Spec) -> Result<serde_json::Value, Error> {
    let value = serde_json::to_value(spec)
        .map_err(|error| Error::failed(format!("write the OCI spec of {id}"), io::Error::from(error)))?;
    rewrite_config(world, id, &value)?;
    Ok(value)
}

/// Writes a stored spec into `config.json`. What is there may be cut short by a crash: the record is what counts.
pub(crate) fn rewrite_config(world: &World, id: &Id, spec: &serde_json::Value) -> Result<(), Error> {
    let failed = |error: io::Error| Error::failed(format!("write the OCI spec of {id}"), error);
    let text = serde_json::to_vec(spec).map_err(|error| failed(error.into()))?;
    fs::write(world.paths.bundle(id).join("config.json"), text).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v_r12_a_root_whose_mount_points_lead_elsewhere_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let root = |make: &dyn Fn(&Path)| {
            let root = tempfile::tempdir_in(dir.path()).unwrap();
            make(root.path());
            open_root(root.path()).map(drop).map_err(|error| error.to_string())
        };
        assert_eq!(root(&|_| {}), Ok(()));
        assert_eq!(root(&|root| fs::create_dir_all(root.join("proc/self")).unwrap()), Ok(()));
        for name in ["dev", "proc", "sys"] {
            let refused = Err(format!("the image's /{name} is not a directory, and the runtime mounts there"));
            for target in ["/var/tmp", "../..", "real", "."] {
                let link = |root: &Path| {
                    fs::create_dir(root.join("real")).unwrap();
                    std::os::unix::fs::symlink(target, root.join(name)).unwrap();
                };
                assert_eq!(root(&link), refused, "{target}");
            }
            assert_eq!(root(&|root| fs::write(root.join(name), "").unwrap()), refused);
        }
    }

    #[test]
    fn writable_overlays_are_mounted_without_syncs_where_the_kernel_can() {
        let mount = |fstype: &str, options: &[&str]| Mount {
            fstype: fstype.into(),
            source: fstype.into(),
            options: options.iter().map(|option| (*option).into()).collect(),
        };
        let upper = ["workdir=/w", "upperdir=/u", "lowerdir=/l"];
        let with = ["workdir=/w", "upperdir=/u", "lowerdir=/l", "volatile"];
        for (kernel, given, expected) in [
            ((6, 1), mount("overlay", &upper), mount("overlay", &with)),
            ((5, 10), mount("overlay", &upper), mount("overlay", &with)),
            ((5, 9), mount("overlay", &upper), mount("overlay", &upper)),
            ((6, 1), mount("overlay", &with), mount("overlay", &with)),
            ((6, 1), mount("overlay", &["lowerdir=/a:/b"]), mount("overlay", &["lowerdir=/a:/b"])),
            ((6, 1), mount("bind", &["rbind", "rw"]), mount("bind", &["rbind", "rw"])),
        ] {
            assert_eq!(without_syncs(vec![given], kernel), [expected]);
        }
    }

    #[test]
    fn privileged_a_view_of_one_layer_as_an_overlay_shows_that_layer_read_only() {
        let dir = tempfile::tempdir().unwrap();
        let (layer, nothing, root) = (dir.path().join("layer"), dir.path().join("nothing"), dir.path().join("root"));
        for made in [&layer, &nothing, &root] {
            fs::create_dir(made).unwrap();
        }
        fs::write(layer.join("file"), "x").unwrap();
        let source = layer.to_str().unwrap().to_owned();
        let view = Mount { fstype: "bind".into(), source, options: vec!["ro".into(), "rbind".into()] };
        let Mount { fstype, source, options } = overlaid(&view, &nothing).unwrap();
        shim::mount::mount_all(&[shim::mount::Mount { fstype, source, options }], &root).unwrap();
        let names: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        let written = fs::write(root.join("file"), "y").unwrap_err().kind();
        rustix::mount::unmount(&root, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert_eq!((names, written), (vec!["file".into()], io::ErrorKind::ReadOnlyFilesystem));

        let colon = Mount { source: "/a:b".into(), ..view };
        let refused = overlaid(&colon, &nothing).unwrap_err().to_string();
        assert_eq!(refused, "mount /a:b with an SELinux label");
    }
}
