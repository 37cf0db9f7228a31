//! How a plugin comes and goes: it connects or is started, registers, is configured, joins, is told what there is.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use futures_util::future::join_all;
use shim::ttrpc::{self, BoxFuture, Call, Client, Code, Handler, Status, Stream};
use tokio::{
    net::{UnixListener, UnixStream},
    process::Child,
    sync::{Semaphore, oneshot},
};
use tokio_util::sync::CancellationToken;

use crate::{Error, model::ContainerState, shared::Shared, world::Operation};

use super::{
    Hub, Nri,
    launch::{self, Installed},
    mux::{Ends, Trunk},
    objects,
    plugin::{Plugin, Registration},
    proto::{
        Container, Empty, PodSandbox, RegisterPluginRequest, UpdateContainersRequest, UpdateContainersResponse, service,
    },
};

/// Plugins that may be connected at once.
const CONNECTIONS: usize = 64;

/// How long operations that began before a plugin came may hold it up.
const JOIN: Duration = Duration::from_secs(30);

/// How long a started plugin may take to end after its connection.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How long the daemon's end waits for connections and processes.
const SHUTDOWN: Duration = Duration::from_secs(5);

impl Nri {
    /// Starts the plugins that are installed and lets others connect on `listener`. Returns when the installed ones take
    /// events, or have failed to, so that no pod is made without them.
    pub(crate) async fn start(&self, pods: &Arc<Shared>, listener: Option<UnixListener>) {
        let Some(hub) = &self.0 else { return };
        if hub.pods.set(Arc::downgrade(pods)).is_err() {
            return tracing::error!("NRI is started already");
        }
        hub.start_installed().await;
        if let Some(listener) = listener {
            hub.tasks.spawn(Arc::clone(hub).accept(listener));
        }
    }

    /// Closes all connections and ends the plugins that were started.
    pub(crate) async fn shutdown(&self) {
        let Some(hub) = &self.0 else { return };
        hub.shutdown.cancel();
        hub.tasks.close();
        if tokio::time::timeout(SHUTDOWN, hub.tasks.wait()).await.is_err() {
            tracing::warn!("NRI plugins are left behind");
        }
    }
}

impl Hub {
    async fn start_installed(self: &Arc<Hub>) {
        let config = self.config.clone();
        let found = Operation::default().blocking(move || launch::discover(&config)).await;
        let installed = found.unwrap_or_else(|error| {
            tracing::error!(error = error.chain(), "no installed NRI plugin is started");
            Vec::new()
        });
        join_all(installed.into_iter().map(|plugin| self.start_one(plugin))).await;
    }

    async fn start_one(self: &Arc<Hub>, installed: Installed) {
        let name = installed.registration.name();
        let (child, socket) = match launch::start(&installed) {
            Ok(started) => started,
            Err(error) => return tracing::error!(plugin = name, %error, "an NRI plugin cannot be started"),
        };
        let closing = self.shutdown.child_token();
        self.tasks.spawn(attend(child, name.clone(), closing.clone()));
        let origin = Some((installed.registration, installed.config));
        if let Err(error) = self.introduce(socket, origin, closing.clone()).await {
            tracing::error!(plugin = name, error = error.chain(), "an installed NRI plugin takes no part");
            closing.cancel();
        }
    }

    async fn accept(self: Arc<Hub>, listener: UnixListener) {
        let slots = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let next = async {
                // It is never closed.
                let slot = Arc::clone(&slots).acquire_owned().await;
                listener.accept().await.map(|(socket, _)| (socket, slot))
            };
            // All of it, so that a daemon that nobody connects to ends as soon as it is told to.
            let (socket, slot) = match self.shutdown.run_until_cancelled(next).await {
                None => return,
                Some(Ok(accepted)) => accepted,
                Some(Err(error)) => {
                    tracing::warn!(%error, "an NRI plugin cannot connect");
                    // Descriptors have run out, most likely: trying again at once would only spin.
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let hub = Arc::clone(&self);
            self.tasks.spawn(async move {
                let closing = hub.shutdown.child_token();
                if let Err(error) = hub.introduce(socket, None, closing.clone()).await {
                    tracing::error!(error = error.chain(), "an NRI plugin that connected takes no part");
                    closing.cancel();
                }
                closing.cancelled().await;
                drop(slot);
            });
        }
    }

    /// Brings a connected plugin to where it takes events.
    async fn introduce(
        self: &Arc<Hub>,
        socket: UnixStream,
        origin: Option<(Registration, String)>,
        closing: CancellationToken,
    ) -> Result<(), Error> {
        let failed = |error| Error::failed("split the connection of an NRI plugin", error);
        let (Ends { plugin: far, runtime }, trunk) = Trunk::new(socket).map_err(failed)?;
        self.tasks.spawn(carry(trunk, closing.clone()));
        let (register, registered) = oneshot::channel();
        let (origin, config) = match origin {
            Some((registration, config)) => (Some(registration), config),
            None => (None, String::new()),
        };
        let handler = Arc::new(Runtime { hub: Arc::downgrade(self), origin, register: Mutex::new(Some(register)) });
        self.tasks.spawn(ttrpc::serve_connection(runtime, handler, closing.clone()));
        let client = Client::from_socket(far);
        let (limit, request) = (self.config.registration_timeout, self.config.request_timeout);
        let registration = match tokio::time::timeout(limit, registered).await {
            Ok(Ok(registration)) => registration,
            Ok(Err(_)) => return Err(Error::Unavailable("it closed its connection before it registered".into())),
            Err(_) => return Err(Error::Deadline(format!("it did not register within {limit:?}"))),
        };
        let plugin = Plugin::configure(registration, client, closing, config, request, limit).await?;
        self.admit(Arc::new(plugin)).await
    }

    async fn admit(self: &Arc<Hub>, plugin: Arc<Plugin>) -> Result<(), Error> {
        let (hub, leaving) = (Arc::clone(self), Arc::clone(&plugin));
        self.tasks.spawn(async move {
            leaving.closed().await;
            hub.registry.leave(&leaving);
            tracing::info!(plugin = leaving.name, "an NRI plugin has left");
        });
        if tokio::time::timeout(JOIN, self.registry.join(&plugin)).await.is_err() {
            return Err(Error::Deadline(format!(
                "operations from before plugin {} did not end within {JOIN:?}",
                plugin.name
            )));
        }
        let (pods, containers) = self.snapshot();
        let (pod_count, container_count) = (pods.len(), containers.len());
        let updates = plugin.synchronize(pods, containers).await?;
        // Before its updates, which may have to wait for operations that wait for the plugin.
        plugin.admit();
        tracing::info!(
            plugin = plugin.name,
            pods = pod_count,
            containers = container_count,
            "an NRI plugin takes part"
        );
        for (id, error) in self.update_all(updates).await {
            tracing::warn!(
                plugin = plugin.name,
                container = id,
                error = error.chain(),
                "an update asked for by an NRI plugin failed"
            );
        }
        Ok(())
    }

    /// What a plugin that comes now is told: every pod, and the containers that have not ended.
    fn snapshot(&self) -> (Vec<PodSandbox>, Vec<Container>) {
        let Some(pods) = self.pods.get().and_then(Weak::upgrade) else { return Default::default() };
        // Containers first: one that is published meanwhile asks the plugin, and its pod is there already.
        let containers = pods.views.containers();
        let containers = containers.iter().filter(|container| {
            matches!(container.state, ContainerState::Created | ContainerState::Running { .. })
                && !self.registry.ends(&container.id)
        });
        let containers = containers.map(|container| objects::of_container_view(container)).collect();
        let sandboxes = pods.views.pods();
        let sandboxes = sandboxes.iter().filter(|pod| !self.registry.is_removed(&pod.id));
        (sandboxes.map(|pod| objects::of_pod_view(pod)).collect(), containers)
    }
}

/// Carries a connection's bytes to its end.
async fn carry(trunk: Trunk, closing: CancellationToken) {
    if let Some(Err(error)) = closing.run_until_cancelled(trunk.run()).await
        && error.kind() != io::ErrorKind::BrokenPipe
        && error.kind() != io::ErrorKind::ConnectionReset
    {
        tracing::warn!(%error, "the connection of an NRI plugin broke");
    }
    closing.cancel();
}

/// Waits for a started plugin's end. After its connection it has a moment for it.
async fn attend(mut child: Child, name: String, closing: CancellationToken) {
    let ended = tokio::select! {
        ended = child.wait() => ended,
        () = closing.cancelled() => match tokio::time::timeout(LAST_WORDS, child.wait()).await {
            Ok(ended) => ended,
            Err(_) => child.kill().await.and(child.wait().await),
        },
    };
    match ended {
        Ok(status) => tracing::info!(plugin = name, %status, "an installed NRI plugin has ended"),
        Err(error) => tracing::warn!(plugin = name, %error, "an installed NRI plugin may be left"),
    }
    closing.cancel();
}

/// The service that a plugin calls.
struct Runtime {
    hub: Weak<Hub>,
    /// Who it is, if it was started and not connected.
    origin: Option<Registration>,
    /// Taken by the registration.
    register: Mutex<Option<oneshot::Sender<Registration>>>,
}

impl Runtime {
    fn register(&self, request: &RegisterPluginRequest) -> Result<(), Status> {
        let registration = match &self.origin {
            Some(known) => known.clone(),
            None => Registration::parse(&request.plugin_idx, &request.plugin_name).map_err(Status::invalid)?,
        };
        let register = self.register.lock().unwrap_or_else(PoisonError::into_inner).take();
        let register =
            register.ok_or_else(|| Status::already_exists("the plugin has registered on this connection"))?;
        tracing::info!(plugin = registration.name(), version = request.nri_version, "an NRI plugin registers");
        // The receiver is gone if the time for it is over, and then the connection is, too.
        drop(register.send(registration));
        Ok(())
    }

    async fn update(&self, request: UpdateContainersRequest) -> Result<UpdateContainersResponse, Status> {
        let registered = self.register.lock().unwrap_or_else(PoisonError::into_inner).is_none();
        let hub = self.hub.upgrade().filter(|_| registered);
        let hub = hub.ok_or_else(|| Status::failed_precondition("the plugin has not registered yet"))?;
        hub.evict(request.evict);
        let failed = hub.update_each(request.update).await;
        Ok(UpdateContainersResponse { failed: failed.into_iter().map(|(update, _)| update).collect() })
    }
}

impl Handler for Runtime {
    fn unary(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Vec<u8>, Status>> {
        Box::pin(async move {
            match (call.service.as_str(), call.method.as_str()) {
                (service::RUNTIME, "RegisterPlugin") => {
                    self.register(&call.decode()?)?;
                    Ok(prost::Message::encode_to_vec(&Empty {}))
                }
                (service::RUNTIME, "UpdateContainers") => {
                    Ok(prost::Message::encode_to_vec(&self.update(call.decode()?).await?))
                }
                _ => Err(call.unimplemented()),
            }
        })
    }

    fn stream(self: Arc<Self>, call: Call, _: Stream) -> BoxFuture<'static, Result<(), Status>> {
        Box::pin(async move { Err(Status::new(Code::Unimplemented, call.unimplemented().message)) })
    }

    fn is_stream(&self, _: &str, _: &str) -> bool {
        false
    }
}
