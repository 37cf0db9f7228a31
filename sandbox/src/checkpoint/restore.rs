//! A container that begins with a checkpoint: its files put where they belong, and looked at, before anything of it runs.

use std::{
    fs::File,
    io::{self, BufReader},
};

use snapshotter::apply::{self, Limits, Target};

use super::{Restore, archive::IMAGE, archive::LAYER, room, unpack, verify::verify};
use crate::{
    Error, bundle,
    error::chain,
    model::Id,
    record::{ContainerRecord, PodRecord},
    selinux,
    world::World,
};

/// The runtime type whose OCI runtime can restore.
const RUNC: &str = "io.containerd.runc.v2";

/// Fails where a restore could not be, before anything is made.
pub(crate) fn check(world: &World, pod: &PodRecord) -> Result<(), Error> {
    let unsupported = |what: &str| Err(Error::Unsupported(format!("a container is not restored {what}")));
    if world.handler(&pod.handler)?.runtime_type != RUNC {
        return unsupported(&format!("by runtime handler {:?}: its runtime type is not {RUNC}", pod.handler));
    }
    match pod.spec.namespaces.user {
        Some(_) => unsupported("into a pod with a user namespace of its own"),
        None => Ok(()),
    }
}

/// Unpacks the archive and puts its layer onto the container's, whose root is mounted and not in use: nothing that was
/// resolved in it before (users, volumes, the OCI spec) comes from the checkpoint. Blocks.
pub(crate) fn fill(
    world: &World,
    pod: &PodRecord,
    container: &ContainerRecord,
    restore: &Restore,
    labels: Option<&selinux::Labels>,
) -> Result<(), Error> {
    let id = &container.id;
    let (directory, rootfs) = (world.paths.restore(id), world.paths.rootfs(id));
    world.node.remove_dir(&directory)?;
    world.node.make_dir(&directory, 0o700)?;
    unpack::unpack(&restore.archive, &directory, world.config.max_checkpoint_bytes)?;
    let layer = match File::open(directory.join(LAYER)) {
        Ok(layer) => layer,
        // The container had changed nothing.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::failed(format!("open the layer of checkpoint {}", restore.name), error)),
    };
    let snapshotter = world.snapshotter(&pod.snapshotter)?;
    let failed = |error| Error::failed(format!("find the writable layer of {id}"), error);
    let mounts = snapshotter.mounts(&world.config.namespace, id.as_str()).map_err(failed)?;
    let dirs = snapshotter::layer_dirs(&mounts);
    let dirs =
        dirs.ok_or_else(|| Error::Unsupported(format!("snapshotter {} has no writable layers", pod.snapshotter)))?;
    // What lies below an overlay must not change while it is mounted.
    world.node.unmount(&rootfs)?;
    let bytes = room::within(&dirs.upper, world.config.max_checkpoint_bytes)?;
    let limits = Limits { bytes, ..Limits::default() };
    let mut stream = BufReader::with_capacity(1 << 20, layer);
    apply::apply(&mut stream, &Target::from(dirs), &limits).map_err(|error| match error {
        apply::Error::Failed { .. } => Error::failed(format!("write the layer of checkpoint {}", restore.name), error),
        _ => Error::Invalid(format!("checkpoint {}: its rootfs-diff.tar: {}", restore.name, chain(&error))),
    })?;
    // Up to here it was needed, and it may be large.
    let removed = std::fs::remove_file(directory.join(LAYER));
    removed.map_err(|error| Error::failed(format!("remove the layer of checkpoint {}", restore.name), error))?;
    bundle::mount(world, pod, &mounts, &rootfs, labels)
}

/// Fails unless the checkpoint may run as a container with this OCI spec, the one that the OCI runtime will get. Blocks.
pub(crate) fn verify_unpacked(
    world: &World,
    id: &Id,
    spec: &serde_json::Value,
    restore: &Restore,
) -> Result<(), Error> {
    let images = world.paths.restore(id).join(IMAGE);
    verify(&images, spec, &world.paths.rootfs(id), world.host.cgroup, &restore.name)
}
