//! Checkpoints of containers: what they hold, and what making one needs of the machine.
//!
//! ```text
//! ops/checkpoint_container.rs   pause ─► dump by CRIU ─► writable layer ─► resume ─► archive ─► rename
//! archive.rs                    the files of an archive, in the layout that checkpointctl and other runtimes know
//! criu.rs                       whether CRIU is there
//! ```
//!
//! Invariant: the directory `Paths::checkpoint` exists while a container may be paused for a checkpoint, so
//! whoever finds it after a crash knows what to resume.

pub(crate) mod archive;
pub(crate) mod criu;

use std::{path::PathBuf, time::Duration};

use crate::{Error, launcher::Clients, model::Id, world::World};

/// What CheckpointContainer asks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// The archive to make. A file that is there is replaced when the new one is complete.
    pub location: PathBuf,
    pub timeout: Duration,
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
