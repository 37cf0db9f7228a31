//! Create: a container whose init waits to be started; and Exec: a process that is only prepared.
//!
//! Whatever fails, nothing is left: no runtime state, no mount, no copy.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use crate::mount::{Mount, mount_all, unmount_all};
use crate::proto::{self, events, runc, task};
use crate::runc::{ChildStdio, Create, Runc};

use super::container::{Container, Spec};
use super::error::TaskError;
use super::io::console::ConsoleSocket;
use super::io::request::StdioRequest;
use super::io::{ChildSide, PipeOwner, ProcessIo};
use super::process::Process;
use super::reaper::Child;
use super::record::Exit;
use super::tasks::Tasks;
use crate::cgroup::Cgroup;

const DEFAULT_ROOT: &str = "/run/containerd/runc";
const DEFAULT_BINARY: &str = "runc";

/// How long a runtime that has succeeded may take to hand over the terminal.
const CONSOLE_DEADLINE: Duration = Duration::from_secs(10);

pub(crate) async fn create(tasks: &Arc<Tasks>, request: task::CreateTaskRequest) -> Result<u32, TaskError> {
    check_id(&request.id)?;
    if !request.checkpoint.is_empty() && !Path::new(&request.checkpoint).is_absolute() {
        return Err(TaskError::Invalid(format!("checkpoint {:?} is no absolute path", request.checkpoint)));
    }
    let _reservation = tasks.reserve(&request.id)?;
    let bundle = PathBuf::from(&request.bundle);
    let options = parse_options(&request)?;
    let mounts = parse_mounts(&request)?;
    let spec = prepare(&bundle, &options, mounts).await?;
    let rootfs = bundle.join("rootfs");
    let container = match container(tasks, &request, &bundle, &options, &spec) {
        Ok(container) => Arc::new(container),
        Err(error) => {
            super::blocking(move || unmount_all(&rootfs)).await?;
            return Err(error);
        }
    };
    if container.checkpoint.is_some() {
        tasks.insert(container);
        tasks.events.publish("/tasks/create", &created_event(&request, 0));
        return Ok(0);
    }
    let child = match run_create(tasks, &container, &options).await {
        Ok(child) => child,
        Err(error) => {
            give_up(&container).await;
            return Err(error);
        }
    };
    if let Some(cgroup) = Cgroup::of_process(child.pid) {
        tasks.kills.enter(&container.id, cgroup.clone());
        // Nothing else sets it.
        let _ = container.cgroup.set(cgroup);
    }
    let pid = child.pid as u32;
    container.init.created(child);
    tasks.insert(container.clone());
    tasks.events.publish("/tasks/create", &created_event(&request, pid));
    tasks.io.tasks.spawn(super::exit::watch_init(tasks.clone(), container));
    Ok(pid)
}

pub(crate) fn add_exec(tasks: &Tasks, request: &task::ExecProcessRequest) -> Result<(), TaskError> {
    check_id(&request.exec_id)?;
    let container = tasks.container(&request.id)?;
    super::launch::check_container(&container)?;
    let spec = request.spec.as_ref().ok_or_else(|| TaskError::Invalid("exec has no process spec".to_owned()))?;
    let process = parse_process(&spec.value, request.terminal)?;
    let stdio = StdioRequest {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    };
    let exec = Process::new(&request.exec_id, stdio, container.owner, &tasks.io)?;
    container.add_exec(&request.exec_id, exec)?;
    let file = super::launch::process_file(&container.bundle, &request.exec_id);
    if let Err(error) = std::fs::write(&file, process) {
        container.remove_exec(&request.exec_id);
        return Err(TaskError::failed(format!("write {}", file.display()))(error));
    }
    let event = events::TaskExecAdded { container_id: request.id.clone(), exec_id: request.exec_id.clone() };
    tasks.events.publish("/tasks/exec-added", &event);
    Ok(())
}

/// Runs the runtime with what the process's stdio needs, and takes over the terminal if there is one.
pub(crate) async fn with_stdio<Run>(
    process: &Process,
    bundle: &Path,
    run: impl FnOnce(ChildStdio, Option<PathBuf>) -> Run,
) -> Result<(), TaskError>
where
    Run: Future<Output = Result<(), crate::runc::RuncError>>,
{
    match process.take_child_side() {
        Some(ChildSide::Pipes(stdio)) => Ok(run(stdio, None).await?),
        Some(ChildSide::Terminal) => {
            let what = || format!("receive the terminal of {}", process.id);
            let socket = ConsoleSocket::bind(bundle, &process.id).map_err(TaskError::failed(what()))?;
            let running = run(ChildStdio::default(), Some(socket.path()));
            let receiving = take_console(&socket, &process.io);
            tokio::pin!(running, receiving);
            // The runtime waits for nobody to accept, but a failed one never connects.
            tokio::select! {
                biased;
                received = &mut receiving => {
                    // A runtime that fails after it has connected says why itself.
                    running.await?;
                    received.map_err(TaskError::failed(what()))
                }
                ran = &mut running => {
                    ran?;
                    let received = tokio::time::timeout(CONSOLE_DEADLINE, receiving).await;
                    received.unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into())).map_err(TaskError::failed(what()))
                }
            }
        }
        None => Err(TaskError::WrongState(format!("process {} has been started before", process.id))),
    }
}

async fn take_console(socket: &ConsoleSocket, io: &ProcessIo) -> std::io::Result<()> {
    io.set_console(socket.receive().await?)
}

/// Ids become file names in the bundle.
fn check_id(id: &str) -> Result<(), TaskError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    if id.is_empty() || id.starts_with('.') || id.len() > 200 || !id.bytes().all(plain) {
        return Err(TaskError::Invalid(format!("{id:?} is no valid id: letters, digits, '_', '-' and '.' make one")));
    }
    Ok(())
}

fn parse_options(request: &task::CreateTaskRequest) -> Result<runc::Options, TaskError> {
    let Some(any) = &request.options else { return Ok(runc::Options::default()) };
    if any.type_url.is_empty() {
        return Ok(runc::Options::default());
    }
    match proto::parse_any::<runc::Options>(any) {
        Some(Ok(options)) => Ok(options),
        Some(Err(error)) => Err(TaskError::Invalid(format!("runtime options: {error}"))),
        None => Err(TaskError::Invalid(format!("runtime options are of type {:?}, not runc's", any.type_url))),
    }
}

fn parse_mounts(request: &task::CreateTaskRequest) -> Result<Vec<Mount>, TaskError> {
    if let Some(mount) = request.rootfs.iter().find(|mount| !mount.target.is_empty()) {
        return Err(TaskError::Unimplemented(format!("rootfs mount with target {:?} is not supported", mount.target)));
    }
    let mounts = request.rootfs.iter().map(|mount| Mount {
        fstype: mount.r#type.clone(),
        source: mount.source.clone(),
        options: mount.options.clone(),
    });
    Ok(mounts.collect())
}

fn parse_process(json: &[u8], terminal: bool) -> Result<Vec<u8>, TaskError> {
    let mut process: serde_json::Map<String, serde_json::Value> =
        serde_json::from_slice(json).map_err(|error| TaskError::Invalid(format!("process spec: {error}")))?;
    // The request decides: a spec that says otherwise would wait for a console that nobody made.
    process.insert("terminal".to_owned(), terminal.into());
    serde_json::to_vec(&process).map_err(|error| TaskError::Invalid(format!("process spec: {error}")))
}

/// Puts the bundle in order: what `delete` must find after our death, no old exit, the root mounted.
async fn prepare(bundle: &Path, options: &runc::Options, mounts: Vec<Mount>) -> Result<Spec, TaskError> {
    let (bundle, options) = (bundle.to_owned(), options.clone());
    super::blocking(move || {
        let written = super::bundle::write_options(&bundle, &options).and_then(|()| Exit::forget(&bundle));
        written.map_err(TaskError::failed(format!("prepare the bundle {}", bundle.display())))?;
        // An unreadable spec is the runtime's to report; until then the careful reading of it holds.
        let spec = Spec::read(&bundle).unwrap_or_default();
        if !mounts.is_empty() {
            let rootfs = bundle.join("rootfs");
            std::fs::create_dir_all(&rootfs).map_err(TaskError::failed(format!("make {}", rootfs.display())))?;
            mount_all(&mounts, &rootfs)?;
        }
        Ok(spec)
    })
    .await
}

fn container(
    tasks: &Tasks,
    request: &task::CreateTaskRequest,
    bundle: &Path,
    options: &runc::Options,
    spec: &Spec,
) -> Result<Container, TaskError> {
    let stdio = StdioRequest {
        stdin: request.stdin.clone(),
        stdout: request.stdout.clone(),
        stderr: request.stderr.clone(),
        terminal: request.terminal,
    };
    let owner = PipeOwner { uid: options.io_uid, gid: options.io_gid };
    let init = Process::new(&request.id, stdio, owner, &tasks.io)?;
    let runc = runtime(options, &tasks.namespace, tasks.reaper.clone());
    let mut container = Container::new(&request.id, bundle, runc, owner, spec.shares_pids(), init);
    container.checkpoint = (!request.checkpoint.is_empty()).then(|| PathBuf::from(&request.checkpoint));
    Ok(container)
}

pub(crate) fn runtime(options: &runc::Options, namespace: &str, reaper: super::reaper::Reaper) -> Runc {
    let root = if options.root.is_empty() { DEFAULT_ROOT } else { &options.root };
    let binary = if options.binary_name.is_empty() { DEFAULT_BINARY } else { &options.binary_name };
    Runc {
        binary: binary.into(),
        root: Path::new(root).join(namespace),
        systemd_cgroup: options.systemd_cgroup,
        reaper,
    }
}

async fn run_create(
    tasks: &Tasks,
    container: &Arc<Container>,
    options: &runc::Options,
) -> Result<Arc<Child>, TaskError> {
    let pid_file = container.bundle.join("init.pid");
    let launch = tasks.reaper.launch();
    with_stdio(&container.init, &container.bundle, |stdio, console| {
        let (container, pid_file) = (container.clone(), &pid_file);
        async move {
            let create = Create {
                id: &container.id,
                bundle: &container.bundle,
                pid_file,
                console_socket: console.as_deref(),
                no_pivot_root: options.no_pivot_root,
                no_new_keyring: options.no_new_keyring,
            };
            container.runc.create(create, stdio).await
        }
    })
    .await?;
    super::launch::adopt(&launch, &pid_file)
}

/// The container is of no use; what the first error says is what the caller hears.
async fn give_up(container: &Arc<Container>) {
    container.init.exited(Exit::now(0, super::reaper::UNKNOWN_EXIT, false));
    container.init.io.stop();
    if let Err(error) = container.runc.delete(&container.id).await {
        super::say(&format!("after a failed create: {error}"));
    }
    let rootfs = container.bundle.join("rootfs");
    if let Err(error) = super::blocking(move || unmount_all(&rootfs)).await {
        super::say(&format!("after a failed create: {error}"));
    }
}

fn created_event(request: &task::CreateTaskRequest, pid: u32) -> events::TaskCreate {
    events::TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs.clone(),
        io: Some(events::TaskIo {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
        }),
        checkpoint: request.checkpoint.clone(),
        pid,
    }
}
