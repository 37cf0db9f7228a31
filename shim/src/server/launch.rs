//! Start: an init that was created, or an exec that was added.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::proto::{events, task};
use crate::runc::Exec;

use super::container::Container;
use super::error::TaskError;
use super::process::{Phase, Process};
use super::reaper::{Child, Launch, UNKNOWN_EXIT};
use super::record::Exit;
use super::tasks::{Found, Tasks};

pub(crate) async fn start(tasks: &Arc<Tasks>, request: &task::StartRequest) -> Result<u32, TaskError> {
    match tasks.process(&request.id, &request.exec_id)? {
        Found::Init(container) if container.checkpoint.is_some() => super::checkpoint::restore(tasks, &container).await,
        Found::Init(container) => start_init(tasks, &container).await,
        Found::Exec(exec) => start_exec(tasks, tasks.container(&request.id)?, exec).await,
    }
}

async fn start_init(tasks: &Tasks, container: &Container) -> Result<u32, TaskError> {
    let init = &container.init;
    init.begin_start()?;
    let pid = init.child().map_or(0, |child| child.pid);
    if let Err(error) = container.runc.start(&container.id).await {
        init.start_failed(pid);
        return Err(error.into());
    }
    // Before the phase changes: an exit that is waiting for it must come after.
    tasks.events.publish("/tasks/start", &events::TaskStart { container_id: container.id.clone(), pid: pid as u32 });
    init.started(pid);
    Ok(pid as u32)
}

async fn start_exec(tasks: &Arc<Tasks>, container: Arc<Container>, exec: Arc<Process>) -> Result<u32, TaskError> {
    check_container(&container)?;
    exec.begin_start()?;
    container.running_execs.send_modify(|running| *running += 1);
    let started = run_exec(tasks, &container, &exec).await;
    remove_files(&container.bundle, &exec.id);
    let child = match started {
        Ok(child) => child,
        Err(error) => {
            exec.exited(Exit::now(0, UNKNOWN_EXIT, false));
            container.running_execs.send_modify(|running| *running -= 1);
            return Err(error);
        }
    };
    let pid = child.pid;
    exec.set_child(child);
    let event =
        events::TaskExecStarted { container_id: container.id.clone(), exec_id: exec.id.clone(), pid: pid as u32 };
    tasks.events.publish("/tasks/exec-started", &event);
    exec.started(pid);
    tasks.io.tasks.spawn(super::exit::watch_exec(tasks.clone(), container, exec));
    Ok(pid as u32)
}

/// Said when an exec is added, and again when it starts.
pub(crate) fn check_container(container: &Container) -> Result<(), TaskError> {
    let state = match container.init.phase() {
        Phase::Exited(_) => "stopped",
        _ if container.paused.load(Ordering::Relaxed) => "paused",
        Phase::Added | Phase::Created { .. } | Phase::Starting { .. } | Phase::Running { .. } => return Ok(()),
    };
    Err(TaskError::WrongState(format!("cannot exec in a {state} state")))
}

async fn run_exec(tasks: &Tasks, container: &Arc<Container>, exec: &Process) -> Result<Arc<Child>, TaskError> {
    let process_file = process_file(&container.bundle, &exec.id);
    let pid_file = pid_file(&container.bundle, &exec.id);
    let launch = tasks.reaper.launch();
    super::create::with_stdio(exec, &container.bundle, |stdio, console| {
        let (container, process_file, pid_file) = (container.clone(), &process_file, &pid_file);
        async move {
            let exec = Exec { id: &container.id, process_file, pid_file, console_socket: console.as_deref() };
            container.runc.exec(exec, stdio).await
        }
    })
    .await?;
    adopt(&launch, &pid_file)
}

/// Takes over the process that the runtime has left behind for us.
pub(crate) fn adopt(launch: &Launch, pid_file: &Path) -> Result<Arc<Child>, TaskError> {
    let text = std::fs::read_to_string(pid_file).map_err(TaskError::failed(format!("read {}", pid_file.display())))?;
    let pid = text.trim().parse::<i32>().map_err(|_| {
        TaskError::failed(format!("read {}", pid_file.display()))(std::io::ErrorKind::InvalidData.into())
    })?;
    launch.adopt(pid).map(Arc::new).map_err(TaskError::failed(format!("watch process {pid}")))
}

pub(crate) fn process_file(bundle: &Path, exec: &str) -> PathBuf {
    bundle.join(format!(".exec-{exec}.json"))
}

fn pid_file(bundle: &Path, exec: &str) -> PathBuf {
    bundle.join(format!(".exec-{exec}.pid"))
}

/// Many short execs must not fill the bundle.
pub(crate) fn remove_files(bundle: &Path, exec: &str) {
    for file in [process_file(bundle, exec), pid_file(bundle, exec)] {
        // Missing is as good, and what stays goes with the bundle.
        let _ = std::fs::remove_file(file);
    }
}
