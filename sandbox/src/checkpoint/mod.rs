//! Checkpoints of containers: what they hold, what making one needs of the machine, and containers that begin with one.
//!
//! ```text
//! ops/checkpoint_container.rs   pause ─► dump by CRIU ─► writable layer ─► resume ─► archive ─► rename
//! archive.rs                    the files of an archive, in the layout that checkpointctl and other runtimes know
//! criu.rs, room.rs              whether CRIU is there, and space on the disk
//!
//! ops/create_container.rs       all as without a checkpoint ─► restore.rs: unpack ─► layer ─► verify
//! unpack.rs                     the way from an archive, which is hostile, to the daemon's own directory
//! verify.rs, and what it names  whether the processes would have more than the request gives
//! ops/start_container.rs        log.rs; a task of the shim's with the images, which the OCI runtime restores
//! ```
//!
//! Invariants: the directory `Paths::checkpoint` exists while a container may be paused for a checkpoint, so whoever finds it
//! after a crash knows what to resume. What a container gets is made from its request and its base image alone; an archive
//! adds memory, open files and a layer, and is refused where these would bring more.

pub(crate) mod archive;
mod cgroups;
pub(crate) mod criu;
mod deleted;
mod filters;
mod given;
mod image;
mod images;
pub(crate) mod log;
mod mounts;
mod open_files;
mod processes;
pub(crate) mod restore;
pub(crate) mod room;
pub(crate) mod unpack;
mod verify;

pub use unpack::Base;

use std::{path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{
    Error, Pods,
    launcher::Clients,
    model::{ContainerSpec, Id, Image},
    request::Create,
    world::{Operation, World},
};

/// What CheckpointContainer asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The archive to make. A file that is there is replaced when the new one is complete.
    pub location: PathBuf,
    pub timeout: Duration,
}

/// What a container is restored from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restore {
    /// The archive: a tar, maybe compressed with gzip or zstd. It is read when the container is created, and not again.
    pub archive: PathBuf,
    /// What the client called it, for errors.
    pub name: String,
}

impl Pods {
    /// As [`Pods::create_container`], with processes and files from a checkpoint of a container of this image. They run when
    /// it is started.
    pub async fn restore_container(
        &self,
        pod: &str,
        spec: ContainerSpec,
        image: Image,
        restore: Restore,
    ) -> Result<Id, Error> {
        self.create(pod, Create { spec, image, restore: Some(restore) }).await
    }

    /// Which image the container of a checkpoint ran on, as its archive says. Reads and changes nothing.
    pub async fn base_of_checkpoint(&self, archive: PathBuf) -> Result<Base, Error> {
        let most = self.max_checkpoint_bytes();
        Operation::default().blocking(move || unpack::base(&archive, most)).await
    }
}

/// Fails if an annotation of the spec names a file of CRIU's own options, which the OCI runtime would hand on: a path of the
/// host, chosen by who made the pod, with programs to run among the options.
pub(crate) fn refuse_options(spec: &serde_json::Value) -> Result<(), Error> {
    let annotations = spec["annotations"].as_object();
    match annotations.and_then(|annotations| annotations.keys().find(|name| name.starts_with("org.criu."))) {
        None => Ok(()),
        Some(name) => Err(Error::Invalid(format!(
            "annotation {name:?} reaches the OCI runtime, which would read options of CRIU from there; take it out of the \
             handler's pod_annotations and container_annotations"
        ))),
    }
}

/// Lets a container go on that the daemon's last life left paused, and removes the rest of its checkpoint. Blocks for the
/// removal.
pub(crate) async fn resume_after_crash(world: &World, id: &Id, clients: Option<Clients>) -> Result<(), Error> {
    let directory = world.paths.checkpoint(id);
    if !directory.exists() {
        return Ok(());
    }
    let clients = clients.ok_or_else(|| Error::Unavailable(format!("the shim of container {id} is not connected")))?;
    resume(world, id, &clients).await?;
    world.node.remove_dir(&directory)
}

/// Lets the container go on. One that is not paused, or has ended, goes on anyway.
pub(crate) async fn resume(world: &World, id: &Id, clients: &Clients) -> Result<(), Error> {
    let tasks = clients.tasks.with_timeout(world.config.timeouts.task);
    let failed = |status| Error::failed(format!("resume container {id}"), status);
    let state = tasks.state(id.as_str(), "").await.map_err(failed)?;
    if state.status() != shim::proto::process::Status::Paused {
        return Ok(());
    }
    tasks.resume(id.as_str()).await.map_err(failed)
}

#[cfg(test)]
mod tests;
