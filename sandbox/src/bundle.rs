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

/// Opens a mounted root. Everything below it is then reached through this only.
pub(crate) fn open_root(rootfs: &Path) -> Result<File, Error> {
    File::open(rootfs).map_err(|error| Error::failed(format!("open {}", rootfs.display()), error))
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
}
