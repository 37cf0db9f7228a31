//! Image volumes (CRI `Mount.image`, KEP-4639): images of the node mounted into a container beside its own, read-only.
//!
//! ```text
//! <container's directory>/image-volumes/<n>/root   the image: a view of its layers, mounted with the pod's ids
//! ```
//!
//! Directory, view and mount are made in this order and taken back in the other one, so the directories tell what there
//! may be. The view is a child of the image's layers, which keeps collection from them; the image's name may go meanwhile.
//! A sub path is opened beneath the mounted root only (`openat2`, no magic links). All functions block.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use snapshotter::Labels;

use crate::{
    Error, bundle,
    model::{Id, ImageVolume},
    oci::mounts::{ResolvedMount, absolute},
    paths::image_volume_key,
    record::{ContainerRecord, PodRecord},
    world::World,
};

/// How the error begins by which the kubelet knows a volume's failure from the container's own (cri-api `pkg/errors`).
pub(crate) const FAILED: &str = "ImageVolumeMountFailed";

/// Mounts the images that the container asks for, each once, and answers where its runtime finds what is wanted of them.
pub(crate) fn make(world: &World, pod: &PodRecord, container: &ContainerRecord) -> Result<Vec<ResolvedMount>, Error> {
    let mut mounted: Vec<(&str, PathBuf)> = Vec::new();
    let mut resolved = Vec::new();
    for mount in &container.spec.mounts {
        let Some(volume) = &mount.image else { continue };
        let failed = |error: Error| {
            let what = format!("{FAILED}: mount image {:?} at {:?}", volume.requested, mount.container_path);
            Error::failed(what, error)
        };
        let known = mounted.iter().find(|(id, _)| *id == volume.id).map(|(_, root)| root.clone());
        let root = match known {
            Some(root) => root,
            None => {
                let root = mount_image(world, pod, container, mounted.len(), volume).map_err(failed)?;
                mounted.push((&volume.id, root.clone()));
                root
            }
        };
        resolved.push(ResolvedMount {
            destination: absolute(&mount.container_path),
            source: directory(&root, &volume.sub_path).map_err(failed)?,
            readonly: true,
            recursive_readonly: mount.recursive_readonly,
            propagation: mount.propagation,
            // The mounted image has the pod's ids already.
            mapping: None,
        });
    }
    Ok(resolved)
}

/// Takes back all image volumes of a container but their directories. What is missing is done.
pub(crate) fn remove(world: &World, id: &Id, snapshotter: &str) -> Result<(), Error> {
    let mut result = Ok(());
    for index in indexes(&world.paths.image_volumes(id))? {
        result = result.and(remove_one(world, id, index, snapshotter));
    }
    result
}

fn mount_image(
    world: &World,
    pod: &PodRecord,
    container: &ContainerRecord,
    index: usize,
    volume: &ImageVolume,
) -> Result<PathBuf, Error> {
    let id = &container.id;
    let root = world.paths.image_volume(id, index);
    // A layer's set-uid programs must not be within reach of the host's users.
    world.node.make_dir(root.parent().unwrap_or(&root), 0o700)?;
    world.node.make_dir(&root, 0o755)?;
    let (key, parent) = (image_volume_key(id, index), Some(volume.chain_id.as_str()).filter(|chain| !chain.is_empty()));
    let view = world.snapshotter(&pod.snapshotter)?.view(&world.config.namespace, &key, parent, &Labels::new());
    let mounts =
        view.map_err(|error| Error::failed("make a view of its layers; pull it again if they are gone", error))?;
    bundle::mount(world, pod, &mounts, &root, world.labels(pod, Some(&container.spec)).as_ref())?;
    Ok(root)
}

/// Where a sub path of a mounted image really is, free of symlinks: the image is read-only, so it stays there.
fn directory(root: &Path, sub_path: &str) -> Result<PathBuf, Error> {
    if sub_path.is_empty() {
        return Ok(root.to_owned());
    }
    let failed = |error: io::Error| Error::failed(format!("open directory {sub_path:?} of the image"), error);
    let opened = || {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let beneath = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let directory = openat2(File::open(root)?, sub_path, flags, Mode::empty(), beneath)?;
        fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))
    };
    let found = opened().map_err(failed)?;
    // What the kernel tells must lie where it was looked for, whatever is mounted over the daemon's own directories.
    let root = fs::canonicalize(root).map_err(failed)?;
    match found.starts_with(&root) {
        true => Ok(found),
        false => Err(failed(io::Error::other(format!("{} is outside of the image", found.display())))),
    }
}

/// The numbers of the volumes that may exist.
fn indexes(volumes: &Path) -> Result<Vec<usize>, Error> {
    let failed = |error: io::Error| Error::failed(format!("list {}", volumes.display()), error);
    let entries = match fs::read_dir(volumes) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut indexes = Vec::new();
    for entry in entries {
        indexes.extend(entry.map_err(failed)?.file_name().to_str().and_then(|name| name.parse::<usize>().ok()));
    }
    Ok(indexes)
}

fn remove_one(world: &World, id: &Id, index: usize, snapshotter: &str) -> Result<(), Error> {
    // A view that is still mounted must not be removed from under its mount.
    world.node.unmount(&world.paths.image_volume(id, index))?;
    world.discard(snapshotter, &image_volume_key(id, index))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn a_sub_path_is_a_directory_of_the_image_whatever_its_links_say() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().canonicalize().unwrap();
        let root = top.join("root");
        fs::create_dir_all(root.join("usr/share/data")).unwrap();
        fs::create_dir(top.join("outside")).unwrap();
        fs::write(root.join("file"), "x").unwrap();
        symlink("/usr/share", root.join("absolute")).unwrap();
        symlink("../../outside", root.join("usr/above")).unwrap();
        symlink("/proc/self/cwd", root.join("magic")).unwrap();
        symlink("loop", root.join("loop")).unwrap();
        let check = |sub_path: &str, expected: Result<&str, &str>| {
            let found = directory(&root, sub_path).map_err(|error| error.chain());
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, root.join(expected), "{sub_path}"),
                (Err(error), Err(expected)) => {
                    let what = format!("open directory {sub_path:?} of the image: {expected}");
                    assert!(error.starts_with(&what), "{error} should start with {what}");
                }
                (found, expected) => panic!("{sub_path}: {found:?} instead of {expected:?}"),
            }
        };
        assert_eq!(directory(&root, "").unwrap(), root);
        check("usr/./share//data", Ok("usr/share/data"));
        check("absolute/data", Ok("usr/share/data"));
        check("usr/above", Err("No such file or directory"));
        check("../outside", Err("No such file or directory"));
        check("missing", Err("No such file or directory"));
        check("file", Err("Not a directory"));
        check("magic", Err("No such file or directory"));
        check("loop", Err("Too many levels of symbolic links"));
    }
}
