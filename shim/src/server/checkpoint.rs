//! Checkpoint: a running container's processes written to a directory by CRIU, through the runtime; and the restore of one.
//!
//! The container goes on after a checkpoint unless the options say otherwise. A container that is created from a
//! checkpoint has no process until it is started: CRIU restores running processes, so there is nothing that could wait.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::proto::{self, events, runc, task};
use crate::runc::{CheckpointCall, CriuError, RestoreCall};

use super::container::Container;
use super::error::TaskError;
use super::process::Phase;
use super::reaper::{Child, UNKNOWN_EXIT};
use super::record::Exit;
use super::tasks::Tasks;
use crate::cgroup::Cgroup;

/// CRIU's own messages of a dump, as containerd's tools look for them.
const DUMP_LOG: &str = "dump.log";
/// How long what took, likewise.
const DUMP_STATS: &str = "stats-dump";
const RESTORE_LOG: &str = "restore.log";
/// CRIU's working directory in the bundle when the options name none.
const WORK: &str = "criu-work";

pub(crate) async fn checkpoint(tasks: &Tasks, request: &task::CheckpointTaskRequest) -> Result<(), TaskError> {
    let container = tasks.container(&request.id)?;
    // CRIU freezes the processes itself, so a paused container will do.
    if !matches!(container.init.phase(), Phase::Running { .. }) {
        return Err(TaskError::WrongState(format!("cannot checkpoint container {}: it is not running", request.id)));
    }
    let options = parse_options(request)?;
    let image = if request.path.is_empty() { &options.image_path } else { &request.path };
    if !Path::new(image).is_absolute() {
        return Err(TaskError::Invalid(format!("a checkpoint needs an absolute path for its files, not {image:?}")));
    }
    let (image, own_work) = (PathBuf::from(image), options.work_path.is_empty());
    let work = if own_work { container.bundle.join(WORK) } else { PathBuf::from(&options.work_path) };
    make_directories(&image, &work).await?;
    let call = CheckpointCall { id: &container.id, image: &image, work: &work, options: &options };
    let dumped = container.runc.checkpoint(call).await.map_err(|error| explained(error.into(), &work, DUMP_LOG));
    if own_work {
        // With the files of the checkpoint, so that who asked for it can read how it went.
        let image = image.clone();
        super::blocking(move || {
            // A checkpoint without them is still one, and the directory goes with the bundle at the latest.
            for name in [DUMP_LOG, DUMP_STATS] {
                let _ = fs::copy(work.join(name), image.join(name));
            }
            let _ = fs::remove_dir_all(work);
        })
        .await;
    }
    dumped?;
    let event = events::TaskCheckpointed {
        container_id: container.id.clone(),
        checkpoint: image.to_string_lossy().into_owned(),
    };
    tasks.events.publish("/tasks/checkpointed", &event);
    Ok(())
}

/// Starts a container that was created from a checkpoint.
pub(crate) async fn restore(tasks: &Arc<Tasks>, container: &Arc<Container>) -> Result<u32, TaskError> {
    let Some(image) = container.checkpoint.clone() else {
        return Err(TaskError::WrongState(format!("container {} was not created from a checkpoint", container.id)));
    };
    let init = &container.init;
    init.begin_start()?;
    match run_restore(tasks, container, &image).await {
        Ok(child) => {
            let pid = child.pid;
            if let Some(cgroup) = Cgroup::of_own(pid) {
                tasks.kills.enter(&container.id, cgroup.clone());
                // Nothing else sets it.
                let _ = container.cgroup.set(cgroup);
            }
            init.set_child(child);
            let event = events::TaskStart { container_id: container.id.clone(), pid: pid as u32 };
            tasks.events.publish("/tasks/start", &event);
            init.started(pid);
            tasks.io.tasks.spawn(super::exit::watch_init(tasks.clone(), container.clone()));
            Ok(pid as u32)
        }
        Err(error) => {
            // Its stdio is spent: this container cannot be started again, only deleted.
            init.exited(Exit::now(0, UNKNOWN_EXIT, false));
            Err(error)
        }
    }
}

async fn run_restore(tasks: &Tasks, container: &Arc<Container>, image: &Path) -> Result<Arc<Child>, TaskError> {
    let pid_file = container.bundle.join("init.pid");
    let work = container.bundle.join(WORK);
    make_directories(image, &work).await?;
    let launch = tasks.reaper.launch();
    let restored = super::create::with_stdio(&container.init, &container.bundle, |stdio, console| {
        let (container, pid_file, work) = (container.clone(), &pid_file, &work);
        async move {
            let call = RestoreCall {
                id: &container.id,
                bundle: &container.bundle,
                image,
                work,
                pid_file,
                console_socket: console.as_deref(),
            };
            container.runc.restore(call, stdio).await
        }
    })
    .await;
    restored.map_err(|error| explained(error, &work, RESTORE_LOG))?;
    super::launch::adopt(&launch, &pid_file)
}

fn parse_options(request: &task::CheckpointTaskRequest) -> Result<runc::CheckpointOptions, TaskError> {
    let Some(any) = request.options.as_ref().filter(|any| !any.type_url.is_empty()) else {
        return Ok(runc::CheckpointOptions::default());
    };
    match proto::parse_any(any) {
        Some(Ok(options)) => Ok(options),
        Some(Err(error)) => Err(TaskError::Invalid(format!("checkpoint options: {error}"))),
        None => Err(TaskError::Invalid(format!("checkpoint options are of type {:?}, not runc's", any.type_url))),
    }
}

async fn make_directories(image: &Path, work: &Path) -> Result<(), TaskError> {
    let paths = [image.to_owned(), work.to_owned()];
    super::blocking(move || {
        paths.iter().try_for_each(|path| {
            fs::create_dir_all(path).map_err(TaskError::failed(format!("make the directory {}", path.display())))
        })
    })
    .await
}

/// The runtime says only that CRIU failed and names a log that will soon be gone; its last error is the reason.
fn explained(error: TaskError, work: &Path, log: &str) -> TaskError {
    let TaskError::Runtime(runtime) = error else { return error };
    let text = fs::read_to_string(work.join(log)).unwrap_or_default();
    match text.lines().rev().find(|line| line.contains("Error")) {
        Some(line) => TaskError::Criu(CriuError { runtime, reason: without_stamp(line).to_owned() }),
        None => TaskError::Runtime(runtime),
    }
}

/// CRIU's lines start with a time in brackets, and some with a pid.
fn without_stamp(line: &str) -> &str {
    line.find("Error").map_or(line, |from| &line[from..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_error_of_crius_log_explains_a_failure() {
        let work = tempfile::tempdir().unwrap();
        let log = "(00.001) Warn  (a.c:1): w\n(00.002) Error (a.c:2): first\n(00.003)     12: Error (b.c:3): last\n(00.004) bye\n";
        fs::write(work.path().join(DUMP_LOG), log).unwrap();
        let refused = || {
            TaskError::Runtime(crate::runc::RuncError::Refused {
                what: "runc checkpoint c".into(),
                message: "criu failed".into(),
            })
        };
        let error = explained(refused(), work.path(), DUMP_LOG);
        assert_eq!(error.to_string(), "runc checkpoint c: criu failed; CRIU: Error (b.c:3): last");
        let error = explained(refused(), work.path(), RESTORE_LOG);
        assert_eq!(error.to_string(), "runc checkpoint c: criu failed");
    }
}
