//! The real launcher: a shim's binary run by the shim crate, and its tasks called over ttrpc.

use std::{
    fs,
    io::ErrorKind,
    os::unix::net::UnixStream,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures_util::future::BoxFuture;
use oci_spec::runtime::LinuxResources;
use shim::{
    address::{Address, DEFAULT_SOCKET_DIR, SocketName},
    bootstrap::{Bootstrap, CURRENT_VERSION, Protocol},
    client::{StdioUrls, Streams, TaskClient},
    launch::{Launch, LaunchError, open_log},
    proto::{AnyMessage, Timestamp, process, task},
    ttrpc::{Code, Status},
};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio_util::task::AbortOnDropHandle;

use super::{Bundle, Clients, Launcher, NewTask, Shim, TaskExit, TaskState, clean_up, installed, options::options};
use crate::{Config, Error, Handler, events::Ooms, model::Id};

/// The name of LinuxResources in an `Any`.
const LIMITS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// Runs shims of any runtime that speaks containerd's shim protocol over ttrpc.
#[derive(Clone, Debug)]
pub struct ShimLauncher {
    config: Arc<Config>,
    ooms: Ooms,
}

impl ShimLauncher {
    /// `ooms` is what the server of shims' events notes.
    pub fn new(config: Config, ooms: Ooms) -> ShimLauncher {
        ShimLauncher { config: Arc::new(config), ooms }
    }

    fn launch(&self, bundle: &Bundle) -> Result<Launch, Error> {
        Ok(Launch {
            binary: installed::shim(&bundle.handler, &self.config.shim_search).map_err(Error::plain)?,
            namespace: self.config.namespace.to_string(),
            id: bundle.id.to_string(),
            bundle: bundle.path.clone(),
            grpc_address: self.config.grpc_address.to_string_lossy().into_owned(),
            ttrpc_address: self.config.ttrpc_address.to_string_lossy().into_owned(),
            debug: false,
            options: options(&bundle.handler, (0, 0)),
            deadline: self.config.timeouts.launch,
        })
    }

    /// Where our shim's socket is by its name alone, if there is one.
    fn usual(&self, pod: &Id) -> Option<Bootstrap> {
        let name = SocketName {
            socket_dir: Path::new(DEFAULT_SOCKET_DIR),
            grpc_address: &self.config.grpc_address.to_string_lossy(),
            namespace: self.config.namespace.as_str(),
            group: pod.as_str(),
        };
        // The default directory is short enough for every name.
        let address = name.address().ok()?;
        let found = address.socket_path().exists();
        found.then(|| Bootstrap { version: CURRENT_VERSION, address: address.to_string(), protocol: Protocol::Ttrpc })
    }

    async fn connect(&self, bundle: &Bundle, bootstrap: &Bootstrap, limit: Duration) -> Result<Arc<dyn Shim>, Status> {
        // Before anything is asked: a shim may wait until somebody reads its log.
        let log = copy_log(bundle.id.clone(), &bundle.path);
        let connecting = async {
            let tasks = TaskClient::connect_to(bootstrap, self.config.namespace.as_str()).await?;
            let say = |line: &str| tracing::warn!("{line}");
            let streams = Streams::of_shim(&tasks, bootstrap, say).await?;
            Ok(Clients { tasks, streams })
        };
        let clients = tokio::time::timeout(limit, connecting)
            .await
            .unwrap_or_else(|_| Err(Status::deadline_exceeded("the shim did not take the connection")))?;
        let (timeout, ooms) = (self.config.timeouts.task, self.ooms.clone());
        Ok(Arc::new(Connected { clients, timeout, ooms, _log: log }))
    }
}

impl Launcher for ShimLauncher {
    fn check(&self, name: &str, handler: &Handler) -> Result<(), Error> {
        installed::check(handler, &self.config.shim_search).map_err(|why| installed::refuse(name, why))
    }

    fn launch(&self, bundle: Bundle) -> BoxFuture<'_, Result<Arc<dyn Shim>, Error>> {
        Box::pin(async move {
            let failed =
                |error: LaunchError| Error::failed(format!("start the shim of pod sandbox {}", bundle.id), error);
            let bootstrap = ShimLauncher::launch(self, &bundle)?.start().await.map_err(failed)?;
            let connected = self.connect(&bundle, &bootstrap, self.config.timeouts.launch).await;
            connected.map_err(|error| Error::failed(format!("connect to the shim of pod sandbox {}", bundle.id), error))
        })
    }

    fn reconnect(&self, bundle: Bundle) -> BoxFuture<'_, Result<Option<Arc<dyn Shim>>, Error>> {
        Box::pin(async move {
            let path = bundle.path.clone();
            let read = tokio::task::spawn_blocking(move || Bootstrap::read(&path)).await;
            let bootstrap = read
                .map_err(|error| Error::failed("read a shim's address", error))?
                .map_err(|error| Error::failed(format!("read the address of shim {}", bundle.id), error))?;
            // A daemon that was killed before it wrote the address down may have left a shim all the same.
            let Some(bootstrap) = bootstrap.or_else(|| self.usual(&bundle.id)) else { return Ok(None) };
            match self.connect(&bundle, &bootstrap, self.config.timeouts.reconnect).await {
                Ok(shim) => Ok(Some(shim)),
                Err(status) if matches!(status.code, Code::Unavailable | Code::DeadlineExceeded) => {
                    tracing::warn!(pod = %bundle.id, error = %status, "the shim does not answer");
                    Ok(None)
                }
                Err(status) => Err(Error::failed(format!("connect to shim {}", bundle.id), status)),
            }
        })
    }

    fn clean_up(&self, bundle: Bundle) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            if let Err(error) = self.remove_socket(&bundle.id) {
                tracing::warn!(error = error.chain(), "a dead shim's socket is left");
            }
            // A shim that is not installed has never run, and cannot keep its pods from being removed.
            let Ok(launch) = ShimLauncher::launch(self, &bundle) else { return Ok(()) };
            clean_up::run(&launch, &bundle).await
        })
    }

    fn remove_socket(&self, pod: &Id) -> Result<(), Error> {
        let Some(Ok(Address::Path(path))) = self.usual(pod).map(|usual| usual.socket()) else { return Ok(()) };
        if UnixStream::connect(&path).is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(Error::failed(format!("remove {}, the socket of a dead shim", path.display()), error));
                }
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }
}

/// A connection to a shim.
struct Connected {
    clients: Clients,
    timeout: Duration,
    ooms: Ooms,
    /// Ends with the connection. The FIFO stays open in the shim, so no line is lost to a closed pipe.
    _log: Option<AbortOnDropHandle<()>>,
}

impl Connected {
    fn timed(&self) -> TaskClient {
        self.clients.tasks.with_timeout(self.timeout)
    }
}

impl Shim for Connected {
    fn create(&self, new: NewTask) -> BoxFuture<'_, Result<i32, Error>> {
        Box::pin(async move {
            clean_up::note(&new.bundle).await?;
            let terminal = new.stdio.as_ref().is_some_and(|stdio| stdio.terminal);
            let urls = match new.stdio {
                Some(stdio) => self.clients.streams.prepare(stdio).await,
                None => Ok(StdioUrls::default()),
            };
            let urls = urls.map_err(|status| failed("make the stdio of", &new.id, status))?;
            let request = task::CreateTaskRequest {
                id: new.id.clone(),
                bundle: new.bundle.to_string_lossy().into_owned(),
                terminal,
                stdin: urls.stdin,
                stdout: urls.stdout,
                stderr: urls.stderr,
                options: options(&new.handler, new.io_owner),
                checkpoint: new.checkpoint.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
                ..task::CreateTaskRequest::default()
            };
            let created = self.timed().create(&request).await;
            if created.is_err() {
                self.clients.streams.forget(&new.id).await;
            }
            created.map(|made| pid(made.pid)).map_err(|status| failed("create", &new.id, status))
        })
    }

    fn start<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<i32, Error>> {
        Box::pin(async move {
            let started = self.timed().start(id.as_str(), "").await;
            started.map(|started| pid(started.pid)).map_err(|status| failed("start", id.as_str(), status))
        })
    }

    fn state<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<Option<TaskState>, Error>> {
        Box::pin(async move {
            let state = match self.timed().state(id.as_str(), "").await {
                Err(status) if status.code == Code::NotFound => return Ok(None),
                state => state.map_err(|status| failed("ask the state of", id.as_str(), status))?,
            };
            Ok(Some(match state.status() {
                process::Status::Created => TaskState::Created,
                // The shim's Wait answers at once, and knows what State does not: whether memory was the reason.
                process::Status::Stopped => TaskState::Stopped(self.wait(id).await?),
                process::Status::Running
                | process::Status::Paused
                | process::Status::Pausing
                | process::Status::Unknown => TaskState::Running { pid: pid(state.pid) },
            }))
        })
    }

    fn wait<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<TaskExit, Error>> {
        Box::pin(async move {
            let exit = self.clients.streams.wait(id.as_str(), "").await;
            let exit = exit.map_err(|status| match status.code {
                Code::NotFound => Error::NotFound { kind: "task", id: id.to_string() },
                _ => failed("wait for", id.as_str(), status),
            })?;
            // What only an event tells, such as a guest kernel's kill, counts as what the cgroup has counted.
            let oom_killed = self.ooms.contains(id.as_str()) || exit.oom_killed;
            Ok(task_exit(exit.exit_status, exit.exited_at, oom_killed))
        })
    }

    fn kill<'a>(&'a self, id: &'a Id, signal: i32) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let request =
                task::KillRequest { id: id.to_string(), signal: signal.unsigned_abs(), ..task::KillRequest::default() };
            match self.timed().kill(&request).await {
                Err(status) if status.code == Code::NotFound => Ok(()),
                killed => killed.map_err(|status| failed("kill", id.as_str(), status)),
            }
        })
    }

    fn update<'a>(&'a self, id: &'a Id, limits: LinuxResources) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let value = serde_json::to_vec(&limits).map_err(|error| Error::failed("write limits as JSON", error))?;
            // Stock shims look the type up by this name: JSON of the runtime spec, as Go clients mark it.
            let resources = AnyMessage { type_url: LIMITS_TYPE.into(), value };
            let request = task::UpdateTaskRequest {
                id: id.to_string(),
                resources: Some(resources),
                ..task::UpdateTaskRequest::default()
            };
            match self.timed().update(&request).await {
                Err(status) if status.code == Code::NotFound => Ok(()),
                updated => updated.map_err(|status| failed("update", id.as_str(), status)),
            }
        })
    }

    fn delete<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            match self.timed().delete(id.as_str(), "").await {
                Err(status) if status.code == Code::NotFound => {}
                deleted => drop(deleted.map_err(|status| failed("delete", id.as_str(), status))?),
            }
            self.clients.streams.forget(id.as_str()).await;
            self.ooms.forget(id.as_str());
            Ok(())
        })
    }

    fn resume(&self, task: NewTask, started: bool) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move {
            let Some(stdio) = task.stdio else { return Ok(()) };
            let resumed = self.clients.streams.resume(stdio, started).await;
            resumed.map_err(|status| failed("go on with the stdio of", &task.id, status))
        })
    }

    fn shutdown<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<(), Error>> {
        Box::pin(async move {
            let ended = self.timed().shutdown(id.as_str()).await;
            ended.map_err(|status| Error::failed(format!("shut down shim {id}"), status))
        })
    }

    fn clients(&self) -> Option<Clients> {
        Some(self.clients.clone())
    }
}

fn failed(verb: &str, id: &str, status: Status) -> Error {
    let what = format!("{verb} task {id}");
    match status.code {
        Code::Unavailable => Error::Unavailable(format!("{what}: {}", status.message)),
        _ => Error::failed(what, status),
    }
}

/// Linux pids fit; a shim that sends more has none.
fn pid(pid: u32) -> i32 {
    i32::try_from(pid).unwrap_or(0)
}

fn task_exit(status: u32, at: Option<Timestamp>, oom_killed: bool) -> TaskExit {
    let at = at.and_then(|at| SystemTime::try_from(at).ok()).unwrap_or_else(SystemTime::now);
    TaskExit { code: i32::try_from(status).unwrap_or(255), at, oom_killed }
}

/// A shim blocks when its log FIFO is full, so its lines are read as long as it is connected, and shown as ours.
fn copy_log(pod: Id, bundle: &Path) -> Option<AbortOnDropHandle<()>> {
    let log = match open_log(bundle) {
        Ok(log) => log,
        Err(error) => {
            tracing::warn!(pod = %pod, error = &error as &dyn std::error::Error, "the shim's log cannot be read");
            return None;
        }
    };
    let copy = async move {
        let mut lines = BufReader::new(log).lines();
        // An error ends the copy as the end of the file does: there is nothing else to do with a broken FIFO.
        while let Ok(Some(line)) = lines.next_line().await {
            tracing::info!(pod = %pod, line, "shim");
        }
    };
    Some(AbortOnDropHandle::new(tokio::spawn(copy)))
}
