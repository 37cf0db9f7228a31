//! A container that begins with a checkpoint: its files put where they belong, and looked at, before anything of it runs.

use std::{
    fs::{self, File},
    io::{self, BufReader, Read},
    path::Path,
};

use snapshotter::apply::{self, Limits, Target};

use super::{
    Restore,
    archive::{DELETED, IMAGE, LAYER, SPEC},
    criu::Version,
    deleted, room, unpack,
    verify::{Circumstances, verify},
};
use crate::{
    Error, bundle,
    error::chain,
    model::Id,
    record::{ContainerRecord, PodRecord},
    selinux,
    world::World,
};

/// The paths that a container has removed; some ten thousand.
const MAX_DELETED: u64 = 4 << 20;

/// The runtime type whose OCI runtime can restore.
const RUNC: &str = "io.containerd.runc.v2";

/// Fails where a restore could not be, before anything is made.
pub(crate) fn check(world: &World, pod: &PodRecord) -> Result<(), Error> {
    let unsupported = |what: &str| Err(Error::Unsupported(format!("a container is not restored {what}")));
    if world.handler(&pod.handler)?.runtime_type != RUNC {
        return unsupported(&format!("by runtime handler {:?}: its runtime type is not {RUNC}", pod.handler));
    }
    match pod.spec.namespaces.user {
        Some(_) => unsupported("into a pod with a user namespace of its own: CRIU knows no mounts with mapped ids"),
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
        Ok(layer) => Some(layer),
        // The container had changed nothing.
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(Error::failed(format!("open the layer of checkpoint {}", restore.name), error)),
    };
    let deleted = deletions(&directory, restore)?;
    if layer.is_none() && deleted.is_none() {
        return Ok(());
    }
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
    let target = Target::from(dirs);
    if let Some(layer) = layer {
        let mut stream = BufReader::with_capacity(1 << 20, layer);
        apply_layer(&mut stream, &target, &limits, LAYER, restore)?;
        // Up to here it was needed, and it may be large.
        let removed = fs::remove_file(directory.join(LAYER));
        removed.map_err(|error| Error::failed(format!("remove the layer of checkpoint {}", restore.name), error))?;
    }
    if let Some(deleted) = deleted {
        apply_layer(&mut deleted.as_slice(), &target, &limits, DELETED, restore)?;
    }
    bundle::mount(world, pod, &mounts, &rootfs, labels)
}

fn apply_layer(
    stream: &mut dyn Read,
    target: &Target,
    limits: &Limits,
    name: &str,
    restore: &Restore,
) -> Result<(), Error> {
    let applied = apply::apply(stream, target, limits);
    applied.map(drop).map_err(|error| match error {
        apply::Error::Failed { .. } => Error::failed(format!("write the layer of checkpoint {}", restore.name), error),
        _ => Error::Invalid(format!("checkpoint {}: its {name}: {}", restore.name, chain(&error))),
    })
}

/// What the archive's list of removed files makes of a layer.
fn deletions(directory: &Path, restore: &Restore) -> Result<Option<Vec<u8>>, Error> {
    let path = directory.join(DELETED);
    let list = match File::open(&path) {
        Ok(file) => read_at_most(file, MAX_DELETED),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => Err(error),
    };
    let list = list.map_err(|error| Error::failed(format!("read {}", path.display()), error))?;
    let made = if list.len() as u64 > MAX_DELETED {
        Err(format!("it has more than {MAX_DELETED} bytes"))
    } else {
        deleted::layer(&list)
    };
    made.map_err(|why| Error::Invalid(format!("checkpoint {}: its {DELETED}: {why}", restore.name)))
}

/// At most a byte more than `most`.
fn read_at_most(file: File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.take(most + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Fails unless the checkpoint may run as a container with this OCI spec, the one that the OCI runtime will get, restored by this
/// CRIU. Blocks.
pub(crate) fn verify_unpacked(
    world: &World,
    id: &Id,
    spec: &serde_json::Value,
    criu: Version,
    restore: &Restore,
) -> Result<(), Error> {
    let directory = world.paths.restore(id);
    let circumstances = Circumstances { had_profile: had_profile(&directory)?, is_filtered: is_filtered()?, criu };
    let (images, rootfs) = (directory.join(IMAGE), world.paths.rootfs(id));
    verify(&images, spec, &rootfs, world.host.cgroup, &circumstances, &restore.name)
}

/// Whether the archive says that the origin's runtime had put a filter before those of the processes. Nothing else of its spec
/// is read.
fn had_profile(directory: &Path) -> Result<bool, Error> {
    let path = directory.join(SPEC);
    let text = match fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(Error::failed(format!("read {}", path.display()), error)),
    };
    let spec: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
    Ok(spec["linux"]["seccomp"].is_object())
}

/// Whether this process runs under a filter, which who it starts inherits.
fn is_filtered() -> Result<bool, Error> {
    let status = fs::read_to_string("/proc/self/status");
    let status = status.map_err(|error| Error::failed("read /proc/self/status", error))?;
    let mode = status.lines().find_map(|line| line.strip_prefix("Seccomp:"));
    Ok(mode.is_some_and(|mode| mode.trim() != "0"))
}
