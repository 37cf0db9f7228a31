//! An NRI plugin in the test's own process: it connects over a socket, notes every call, and answers as the test says.
//!
//! The end-to-end tests include this file as well, so it names nothing of this crate's tests.

use std::{
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::future::BoxFuture;
use prost::Message;
use shim::ttrpc::{self, Call, Client, Handler, Status, Stream};
use tokio::{net::UnixStream, sync::watch};
use tokio_util::sync::CancellationToken;
use windlass_sandbox::nri::{
    mux::{Ends, Trunk},
    proto::{
        ConfigureRequest, ConfigureResponse, ContainerEvent, ContainerEviction, ContainerUpdate,
        CreateContainerResponse, Empty, RegisterPluginRequest, StateChangeEvent, SynchronizeRequest,
        SynchronizeResponse, UpdateContainersRequest, UpdateContainersResponse, service,
    },
};

/// One call that the plugin got. The pod and the container are ids; empty if the call has none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) method: String,
    pub(crate) pod: String,
    pub(crate) container: String,
}

/// What a plugin answers. `None` is the empty answer.
type Answers = Arc<dyn Fn(Call) -> BoxFuture<'static, Option<Result<Vec<u8>, Status>>> + Send + Sync>;

/// How a plugin is to behave.
#[derive(Clone)]
pub(crate) struct Script {
    /// The mask of events; 0 is all of them.
    pub(crate) events: i32,
    answers: Answers,
}

impl Script {
    /// Agrees to everything.
    pub(crate) fn new() -> Script {
        Script::answering(|_| None)
    }

    /// Answers what `answers` does, and agrees to the rest.
    pub(crate) fn answering(
        answers: impl Fn(&Call) -> Option<Result<Vec<u8>, Status>> + Send + Sync + 'static,
    ) -> Script {
        Script::waiting(move |call| {
            let answer = answers(&call);
            Box::pin(async move { answer })
        })
    }

    /// The same, with time between.
    pub(crate) fn waiting(
        answers: impl Fn(Call) -> BoxFuture<'static, Option<Result<Vec<u8>, Status>>> + Send + Sync + 'static,
    ) -> Script {
        Script { events: 0, answers: Arc::new(answers) }
    }

    /// Answers each CreateContainer with this.
    pub(crate) fn creating(answer: CreateContainerResponse) -> Script {
        Script::answering(move |call| (call.method == "CreateContainer").then(|| Ok(answer.encode_to_vec())))
    }
}

/// A connected plugin. Its connection ends with it.
pub(crate) struct Plugin {
    shared: Arc<Shared>,
    runtime: Client,
    closing: CancellationToken,
}

struct Shared {
    script: Script,
    seen: Mutex<Vec<Seen>>,
    synchronised: Mutex<SynchronizeRequest>,
    configured: Mutex<ConfigureRequest>,
    changes: watch::Sender<usize>,
}

impl Plugin {
    /// Connects, registers and returns; what follows is in [`Plugin::seen`].
    pub(crate) async fn register(socket: &Path, index: &str, name: &str, script: Script) -> Result<Plugin, Status> {
        Plugin::register_on(UnixStream::connect(socket).await.unwrap(), index, name, script).await
    }

    /// The same on a connection that is there already.
    pub(crate) async fn register_on(
        socket: UnixStream,
        index: &str,
        name: &str,
        script: Script,
    ) -> Result<Plugin, Status> {
        let (Ends { plugin, runtime }, trunk) = Trunk::new(socket).unwrap();
        let closing = CancellationToken::new();
        let shared = Arc::new(Shared {
            script,
            seen: Mutex::default(),
            synchronised: Mutex::default(),
            configured: Mutex::default(),
            changes: watch::Sender::new(0),
        });
        let (carrying, serving) = (closing.clone(), closing.clone());
        tokio::spawn(async move {
            carrying.run_until_cancelled(trunk.run()).await;
            carrying.cancel();
        });
        tokio::spawn(ttrpc::serve_connection(plugin, Arc::clone(&shared) as Arc<dyn Handler>, serving));
        let runtime = Client::from_socket(runtime);
        let request =
            RegisterPluginRequest { plugin_name: name.into(), plugin_idx: index.into(), nri_version: String::new() };
        runtime.call::<Empty>(service::RUNTIME, "RegisterPlugin", &request).await?;
        Ok(Plugin { shared, runtime, closing })
    }

    /// Connects, and waits until it has been told what there is.
    pub(crate) async fn connect(socket: &Path, index: &str, name: &str, script: Script) -> Plugin {
        let plugin = Plugin::register(socket, index, name, script).await.unwrap();
        plugin.until("Synchronize", 1).await;
        plugin
    }

    /// Every call so far, without the two that begin a connection.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        let seen = self.shared.seen.lock().unwrap();
        seen.iter().filter(|seen| !["Configure", "Synchronize"].contains(&seen.method.as_str())).cloned().collect()
    }

    /// Only their names.
    pub(crate) fn methods(&self) -> Vec<String> {
        self.seen().into_iter().map(|seen| seen.method).collect()
    }

    /// Ids of the pods and containers that it was told at its beginning.
    pub(crate) fn synchronised(&self) -> (Vec<String>, Vec<String>) {
        let told = self.shared.synchronised.lock().unwrap();
        let pods = told.pods.iter().map(|pod| pod.id.clone());
        (pods.collect(), told.containers.iter().map(|container| container.id.clone()).collect())
    }

    pub(crate) fn configured(&self) -> ConfigureRequest {
        self.shared.configured.lock().unwrap().clone()
    }

    /// Waits until `method` was called so often.
    pub(crate) async fn until(&self, method: &str, times: usize) {
        let count = || self.shared.seen.lock().unwrap().iter().filter(|seen| seen.method == method).count();
        let mut changes = self.shared.changes.subscribe();
        let called = async {
            while count() < times {
                changes.changed().await.unwrap();
            }
        };
        let called = tokio::time::timeout(Duration::from_secs(20), called).await;
        called.unwrap_or_else(|_| panic!("{method} was not called {times} times: {:?}", self.seen()));
    }

    /// Asks for updates that answer nothing; answers those that failed.
    pub(crate) async fn update(&self, update: Vec<ContainerUpdate>) -> Result<Vec<ContainerUpdate>, Status> {
        let request = UpdateContainersRequest { update, evict: Vec::new() };
        let answer: UpdateContainersResponse =
            self.runtime.call(service::RUNTIME, "UpdateContainers", &request).await?;
        Ok(answer.failed)
    }

    /// Asks for the end of a container.
    pub(crate) async fn evict(&self, container: &str, reason: &str) -> Result<(), Status> {
        let evict = vec![ContainerEviction { container_id: container.into(), reason: reason.into() }];
        let request = UpdateContainersRequest { update: Vec::new(), evict };
        self.runtime.call::<UpdateContainersResponse>(service::RUNTIME, "UpdateContainers", &request).await.map(drop)
    }

    /// Waits until the connection is closed, however long it takes.
    pub(crate) async fn ended(&self) {
        self.closing.cancelled().await;
    }

    /// Waits until the daemon has closed the connection.
    pub(crate) async fn closed(&self) {
        let closed = tokio::time::timeout(Duration::from_secs(20), self.ended()).await;
        closed.expect("the connection is closed");
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl Shared {
    fn note(&self, call: &Call) {
        let (pod, container) = match call.method.as_str() {
            "Configure" | "Synchronize" => Default::default(),
            "StateChange" => {
                let change: StateChangeEvent = call.decode().unwrap();
                (change.pod, change.container)
            }
            _ => {
                let event: ContainerEvent = call.decode().unwrap();
                (event.pod, event.container)
            }
        };
        self.seen.lock().unwrap().push(Seen {
            method: call.method.clone(),
            pod: pod.map(|pod| pod.id).unwrap_or_default(),
            container: container.map(|container| container.id).unwrap_or_default(),
        });
        self.changes.send_modify(|count| *count += 1);
    }
}

impl Handler for Shared {
    fn unary(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Vec<u8>, Status>> {
        Box::pin(async move {
            assert_eq!(call.service, service::PLUGIN);
            match call.method.as_str() {
                "Configure" => {
                    *self.configured.lock().unwrap() = call.decode()?;
                    self.note(&call);
                    Ok(ConfigureResponse { events: self.script.events }.encode_to_vec())
                }
                "Synchronize" => {
                    let request: SynchronizeRequest = call.decode()?;
                    let more = request.more;
                    {
                        let mut told = self.synchronised.lock().unwrap();
                        told.pods.extend(request.pods);
                        told.containers.extend(request.containers);
                    }
                    if !more {
                        self.note(&call);
                    }
                    match (self.script.answers)(call).await {
                        Some(answer) => answer,
                        None => Ok(SynchronizeResponse { update: Vec::new(), more }.encode_to_vec()),
                    }
                }
                _ => {
                    self.note(&call);
                    (self.script.answers)(call).await.unwrap_or_else(|| Ok(Vec::new()))
                }
            }
        })
    }

    fn stream(self: Arc<Self>, call: Call, _: Stream) -> BoxFuture<'static, Result<(), Status>> {
        Box::pin(async move { Err(call.unimplemented()) })
    }

    fn is_stream(&self, _: &str, _: &str) -> bool {
        false
    }
}
