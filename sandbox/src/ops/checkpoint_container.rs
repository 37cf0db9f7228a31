//! CheckpointContainer: the processes of a running container, its writable layer and its log, in one archive.
//!
//! The container is paused from before the dump until its layer is written, so that memory and files belong together, and
//! goes on whatever happens. Nothing of its state changes.

use std::{fs::File, io::BufWriter, path::Path, sync::Arc};

use shim::proto::{runc::CheckpointOptions, task::CheckpointTaskRequest, to_any};
use tokio::sync::Mutex;

use crate::{
    Error,
    checkpoint::{
        Checkpoint,
        archive::{self, IMAGE, LAYER},
        criu, refuse_options, resume,
        room::{self, Bounded},
    },
    launcher::Clients,
    record::{ContainerRecord, PodRecord},
    world::{Operation, World, within},
};

/// Makes the archive. `one_at_a_time` is the container's own.
pub(crate) async fn run(
    world: Arc<World>,
    clients: Clients,
    pod: PodRecord,
    container: ContainerRecord,
    checkpoint: Checkpoint,
    one_at_a_time: Arc<Mutex<()>>,
) -> Result<(), Error> {
    let id = container.id.clone();
    let Ok(_only) = one_at_a_time.try_lock() else {
        return Err(Error::Unavailable(format!("a checkpoint of container {id} is being made; try again")));
    };
    refuse_options(&container.oci_spec)?;
    criu::check().await?;
    let Checkpoint { location, timeout } = checkpoint;
    let work = world.paths.checkpoint(&id);
    let (on, space, target) = (Arc::clone(&world), work.clone(), location.clone());
    let asked = clients.tasks.pids(id.as_str()).await;
    let pids = asked.map_err(|status| Error::failed(format!("list the processes of {id}"), status))?;
    let pids = pids.processes.iter().map(|process| process.pid).collect();
    blocking(move || prepare(&on, &space, &target, pids)).await?;
    let what = || format!("checkpoint container {id}");
    let made = within(timeout, what, Box::pin(make(&world, &clients, &pod, &container, &work, &location))).await;
    // A time-out leaves it paused.
    let resumed = resume(&world, &id, &clients).await;
    if resumed.is_ok() {
        let (on, work) = (Arc::clone(&world), work);
        if let Err(error) = blocking(move || on.node.remove_dir(&work)).await {
            tracing::warn!(container = %id, error = error.chain(), "the rest of a checkpoint is left until the container is removed");
        }
    }
    made.and(resumed)
}

/// Blocks.
fn prepare(world: &World, work: &Path, location: &Path, pids: Vec<u32>) -> Result<(), Error> {
    let directory = location.parent().unwrap_or(Path::new("/"));
    if !directory.is_dir() {
        return Err(Error::Invalid(format!("location: {} is no directory", directory.display())));
    }
    if location.is_dir() {
        return Err(Error::Invalid(format!("location: {} is a directory, not a file to write", location.display())));
    }
    world.node.remove_dir(work)?;
    world.node.make_dir(work, 0o700)?;
    let (memory, most) = (memory(&pids), world.config.max_checkpoint_bytes);
    if memory > most {
        return Err(Error::Invalid(format!(
            "the container holds {memory} bytes in memory, a checkpoint may have {most}; raise max_bytes of \
             io.windlass.v1.checkpoints"
        )));
    }
    let roomy = room::check(work, memory).and_then(|()| room::check(directory, memory));
    if roomy.is_err()
        && let Err(error) = world.node.remove_dir(work)
    {
        tracing::warn!(error = error.chain(), "an empty directory is left until the container is removed");
    }
    roomy
}

async fn make(
    world: &Arc<World>,
    clients: &Clients,
    pod: &PodRecord,
    container: &ContainerRecord,
    work: &Path,
    location: &Path,
) -> Result<(), Error> {
    let id = &container.id;
    // The call is bounded by the caller's time-out.
    let failed = |status| Error::failed(format!("checkpoint container {id}"), status);
    clients.tasks.pause(id.as_str()).await.map_err(failed)?;
    let request = CheckpointTaskRequest {
        id: id.to_string(),
        path: work.join(IMAGE).display().to_string(),
        options: Some(to_any(&CheckpointOptions { open_tcp: true, file_locks: true, ..Default::default() })),
    };
    clients.tasks.checkpoint(&request).await.map_err(failed)?;
    let (on, of, from, to) = (Arc::clone(world), pod.clone(), id.clone(), work.join(LAYER));
    blocking(move || {
        let snapshotter = on.snapshotter(&of.snapshotter)?;
        let failed = |error| Error::failed(format!("find the writable layer of {from}"), error);
        let mounts = snapshotter.mounts(&on.config.namespace, from.as_str()).map_err(failed)?;
        let layer = snapshotter::layer_dirs(&mounts).filter(|layer| !layer.parents.is_empty()).ok_or_else(|| {
            Error::Unsupported(format!(
                "checkpoints need writable layers, which snapshotter {} has not",
                of.snapshotter
            ))
        })?;
        let failed = |error: std::io::Error| Error::failed(format!("write {}", to.display()), error);
        let file = Bounded::new(File::create_new(&to).map_err(failed)?, on.config.max_checkpoint_bytes);
        let out = BufWriter::with_capacity(1 << 20, file);
        let written = snapshotter::apply::diff(&layer.upper, out);
        written.map_err(|error| Error::failed(format!("write the writable layer of {from}"), error))
    })
    .await?;
    // What it logs once it goes on, a container that is restored from here will log again.
    let log = container.log_path.clone();
    let logged = blocking(move || {
        let length = log.and_then(|path| std::fs::metadata(path).ok()).map(|metadata| metadata.len());
        Ok(length.unwrap_or_default())
    })
    .await?;
    resume(world, id, clients).await?;
    let (of, work, location) = (container.clone(), work.to_owned(), location.to_owned());
    let (runtime, most) = (pod.handler.clone(), world.config.max_checkpoint_bytes);
    blocking(move || {
        let directory = location.parent().unwrap_or(Path::new("/"));
        room::check(directory, size(&work).unwrap_or(0))?;
        archive::write(&of, &runtime, &work, &location, logged, most)
    })
    .await
}

/// What processes hold in memory, in bytes: about what the dump will take. Blocks.
fn memory(pids: &[u32]) -> u64 {
    let pages = pids.iter().filter_map(|pid| {
        // The second field of statm is the resident set, in pages. A process that has ended holds none.
        let text = std::fs::read_to_string(format!("/proc/{pid}/statm")).ok()?;
        text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok()
    });
    pages.sum::<u64>() * rustix::param::page_size() as u64
}

/// The bytes of all files in the directory and those directly in it.
fn size(directory: &Path) -> std::io::Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        bytes += if metadata.is_dir() { size(&entry.path())? } else { metadata.len() };
    }
    Ok(bytes)
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    Operation::default().blocking(work).await
}
