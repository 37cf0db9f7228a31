//! What the edges call: a method a verb, which asks the pod's owner and waits, and the published views.
//!
//! ```text
//! Pods::verb(id) ──► index (shared.rs): id → inbox ──► owner task of the pod ──► answer
//! Pods::pods()   ──► published views
//! ```
//!
//! It decides nothing about a pod's state and performs no effect: a caller that drops a future here drops only its wait.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ::store::{Namespace, Store};
use snapshotter::Snapshotter;
use tokio::{net::UnixListener, sync::Notify};
use tokio_util::sync::CancellationToken;

use crate::{
    Config, Error, Handler, Session, blockio,
    changes::Changes,
    checkpoint::Checkpoint,
    host::{CgroupMode, Host},
    launcher::Launcher,
    model::{
        ContainerSpec, ContainerView, ExecOutput, Id, Image, PodResources, PodSpec, PodView, Resources, StreamRequest,
    },
    network::Network,
    node::{Node, ThisNode},
    nri::{LimitChange, Nri},
    paths::Paths,
    rdt,
    record::PodRecord,
    recover,
    request::{ContainerRequest, Create, Reply, Request, Run, ask},
    selinux,
    shared::{Shared, found},
    store::Rows,
    world::{Operation, World},
};

/// How long the end of the daemon waits for running operations. Service managers kill after a minute or more.
const SHUTDOWN: Duration = Duration::from_secs(30);

/// All pods of this node and their containers. Clones are handles of the same.
#[derive(Clone)]
pub struct Pods {
    shared: Arc<Shared>,
}

impl Pods {
    /// Recovers what an earlier process left, and answers when every pod is in its place.
    ///
    /// `store` has been opened with [`crate::SCHEMA`].
    pub async fn open(
        config: Config,
        store: Store,
        snapshotters: BTreeMap<String, Arc<dyn Snapshotter>>,
        network: Arc<dyn Network>,
        launcher: Arc<dyn Launcher>,
    ) -> Result<Pods, Error> {
        Pods::open_on(Arc::new(ThisNode), config, store, snapshotters, network, launcher).await
    }

    /// [`Pods::open`] on another machine than this one, for tests that count effects.
    pub async fn open_on(
        node: Arc<dyn Node>,
        config: Config,
        store: Store,
        snapshotters: BTreeMap<String, Arc<dyn Snapshotter>>,
        network: Arc<dyn Network>,
        launcher: Arc<dyn Launcher>,
    ) -> Result<Pods, Error> {
        let of_config = config.clone();
        let host = tokio::task::spawn_blocking(move || read_host(&of_config));
        let host = host.await.map_err(|error| Error::failed("read facts about the host", error))??;
        let categories = config.selinux_categories;
        let selinux = tokio::task::spawn_blocking(move || categories.and_then(selinux::read));
        let selinux = selinux.await.map_err(|error| Error::failed("read the SELinux policy", error))?;
        let of = config.clone();
        let load = move || {
            let block_io = blockio::Classes::load(of.blockio_config_file.as_deref());
            (block_io, rdt::of_host(of.rdt_config_file.as_deref(), &of.mounts))
        };
        let loaded = tokio::task::spawn_blocking(load).await;
        let (block_io, rdt) = loaded.map_err(|error| Error::failed("read the classes of block IO and RDT", error))?;
        let world = World {
            paths: Paths::new(&config),
            rows: Rows::new(store, config.namespace.clone()),
            boot: ::store::boot_id().map_err(|error| Error::failed("read the boot id", error))?,
            nri: Nri::new(config.nri.clone()),
            block_io,
            rdt,
            config,
            snapshotters,
            network,
            launcher,
            node,
            host,
            selinux,
            discarded: Notify::new(),
        };
        let shared = Shared::new(world);
        let recovered = recover::all(&shared.world).await?;
        shared.owners.spawn(Arc::clone(&shared.world).free_discarded(shared.closing.clone()));
        let pods = recovered.iter().map(|recovered| &recovered.pod).filter(|pod| !pod.host_network());
        let pods = pods.map(|pod| (pod.id.clone(), pod.handler.clone())).collect();
        shared.owners.spawn(collect_networks(Arc::clone(&shared.world), pods, shared.closing.clone()));
        for pod in recovered {
            shared.adopt(pod);
        }
        Ok(Pods { shared })
    }

    /// Makes and starts a pod. The same request while it is being made joins; once it is ready, answers its id.
    pub async fn run(&self, spec: PodSpec, image: Image) -> Result<Id, Error> {
        let run = Box::new(Run { spec, image });
        loop {
            let inbox = self.shared.inbox_for(&run)?;
            // The pod of this name may end its owner at this moment, being removed: then its name is free.
            if let Ok(answer) = ask(&inbox, |reply| Request::Run(run.clone(), reply)).await {
                return answer;
            }
        }
    }

    /// Stops the pod's containers and gives back its network. Unknown and stopped pods are stopped.
    pub async fn stop(&self, id: &str) -> Result<(), Error> {
        let Some((_, inbox)) = found(self.shared.pod(id))? else { return Ok(()) };
        self.shared.gone_is_ok(ask(&inbox, Request::Stop).await)
    }

    /// Stops the pod and removes all that belongs to it.
    pub async fn remove(&self, id: &str) -> Result<(), Error> {
        let Some((_, inbox)) = found(self.shared.pod(id))? else { return Ok(()) };
        self.shared.gone_is_ok(ask(&inbox, Request::Remove).await)
    }

    /// Records other resources of a pod than it was run with. Nothing in the kernel changes.
    pub async fn update_pod(&self, id: &str, update: PodResources) -> Result<(), Error> {
        let (id, inbox) = self.shared.pod(id)?;
        let asked = ask(&inbox, |reply| Request::UpdateResources(Box::new(update), reply)).await;
        self.shared.gone_is_missing("pod sandbox", &id, asked)
    }

    /// Prepares a container in a ready pod.
    pub async fn create_container(&self, pod: &str, spec: ContainerSpec, image: Image) -> Result<Id, Error> {
        self.create(pod, Create { spec, image, restore: None }).await
    }

    pub(crate) async fn create(&self, pod: &str, create: Create) -> Result<Id, Error> {
        let (id, inbox) = self.shared.pod(pod)?;
        let create = Box::new(create);
        let asked = ask(&inbox, |reply| Request::Create(create, reply)).await;
        self.shared.gone_is_missing("pod sandbox", &id, asked)
    }

    /// Starts a created container. If that fails, the container has ended with code 128.
    pub async fn start_container(&self, id: &str) -> Result<(), Error> {
        self.of_container(id, ContainerRequest::Start).await
    }

    /// Sends the stop signal, waits for `grace`, then kills. Unknown containers and those not running are stopped.
    pub async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), Error> {
        self.shared.stop_container(id, grace).await
    }

    /// Removes a container, killing it first if it runs. An unknown one is removed.
    pub async fn remove_container(&self, id: &str) -> Result<(), Error> {
        let Some((id, inbox)) = found(self.shared.container(id))? else { return Ok(()) };
        let remove = |reply| Request::Container(id, ContainerRequest::Remove(reply));
        self.shared.gone_is_ok(ask(&inbox, remove).await)
    }

    /// Changes the limits of a container that is made or runs: those that are set, and no other.
    pub async fn update_container(&self, id: &str, update: Resources) -> Result<(), Error> {
        self.shared.update_container(id, LimitChange { request: update, ..LimitChange::default() }).await
    }

    /// Writes a running container's processes, files and log to an archive. It goes on running.
    pub async fn checkpoint_container(&self, id: &str, checkpoint: Checkpoint) -> Result<(), Error> {
        self.of_container(id, |reply| ContainerRequest::Checkpoint(checkpoint, reply)).await
    }

    /// Makes the shim write to a new file at the container's log path.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Error> {
        self.of_container(id, ContainerRequest::ReopenLog).await
    }

    /// Runs a command in a container to its end. Past `timeout` the command is killed and the answer is a deadline.
    pub async fn exec_sync(
        &self,
        id: &str,
        command: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, Error> {
        self.of_container(id, |reply| ContainerRequest::ExecSync(command, timeout, reply)).await
    }

    /// Starts a command in a container with its streams connected. When the session is dropped, the command is killed.
    pub async fn exec(&self, id: &str, request: StreamRequest) -> Result<Session, Error> {
        self.of_container(id, |reply| ContainerRequest::Exec(request, reply)).await
    }

    /// Connects to the streams of the container's own process.
    pub async fn attach(&self, id: &str, request: StreamRequest) -> Result<Session, Error> {
        self.of_container(id, |reply| ContainerRequest::Attach(request, reply)).await
    }

    /// Every pod that was ever ready, and those whose failed start left something behind.
    pub fn pods(&self) -> Vec<Arc<PodView>> {
        self.shared.views.pods()
    }

    /// The pod whose id is or starts with this.
    pub fn pod(&self, id_or_prefix: &str) -> Result<Arc<PodView>, Error> {
        self.shared.views.pod(id_or_prefix)
    }

    /// The pod with this whole id, from when it is known that it will be made on. Reads the store where no view is
    /// published yet.
    pub async fn pod_from_its_intent(&self, id: &str) -> Result<Option<Arc<PodView>>, Error> {
        if let Some(view) = self.pod(id).ok().filter(|view| view.id.as_str() == id) {
            return Ok(Some(view));
        }
        let Some(record) = self.shared.world.rows.pod(id).await? else { return Ok(None) };
        let netns = self.shared.world.paths.netns(&record.id);
        // Without its intent it is as what it has come to so far: made, and nothing in it runs.
        Ok(PodRecord { intent: None, ..record }.view(netns).map(Arc::new))
    }

    /// Every container that was created and not yet removed.
    pub fn containers(&self) -> Vec<Arc<ContainerView>> {
        self.shared.views.containers()
    }

    /// The container whose id is or starts with this.
    pub fn container(&self, id_or_prefix: &str) -> Result<Arc<ContainerView>, Error> {
        self.shared.views.container(id_or_prefix)
    }

    /// Starts NRI plugins and lets others connect on `listener`; see [`crate::nri`]. Called once.
    pub async fn start_plugins(&self, listener: Option<UnixListener>) {
        self.shared.world.nri.start(&self.shared, listener).await;
    }

    /// What changes in the views from now on.
    pub fn changes(&self) -> Changes {
        self.shared.views.changes()
    }

    /// Whether pods can get a network now; the error's text is for CRI's Status.
    pub async fn network_ready(&self) -> Result<(), Error> {
        self.shared.world.network.ready().await
    }

    /// The same of the handlers that have networks of their own.
    pub async fn handler_networks_ready(&self) -> Vec<(String, Result<(), Error>)> {
        self.shared.world.network.handlers_ready().await
    }

    /// The networks that pods get, as JSON for people.
    pub async fn networks(&self) -> serde_json::Value {
        self.shared.world.network.describe().await
    }

    /// The runtime handlers of the configuration, with what each can do.
    pub fn handlers(&self) -> &BTreeMap<String, Handler> {
        &self.shared.world.config.handlers
    }

    /// The handler of that name, or what to do about it.
    pub fn handler(&self, name: &str) -> Result<&Handler, Error> {
        self.shared.world.config.handler(name)
    }

    /// The handlers of which no pod can be started now, because something that they need is not on this host.
    pub async fn unusable_handlers(&self) -> Vec<Error> {
        let world = Arc::clone(&self.shared.world);
        let check = move || {
            let checked = world.config.handlers.iter().map(|(name, handler)| world.launcher.check(name, handler));
            Ok(checked.filter_map(Result::err).collect())
        };
        Operation::default().blocking(check).await.unwrap_or_else(|error| vec![error])
    }

    pub(crate) fn max_checkpoint_bytes(&self) -> u64 {
        self.shared.world.config.max_checkpoint_bytes
    }

    /// What [`crate::stats`] reads besides the views: the host's cgroups, and the snapshots of writable layers.
    pub(crate) fn stats_sources(&self) -> (CgroupMode, BTreeMap<String, Arc<dyn Snapshotter>>, Namespace) {
        let world = &self.shared.world;
        (world.host.cgroup, world.snapshotters.clone(), world.config.namespace.clone())
    }

    /// Takes no further request, lets every owner finish what it does, and returns. Containers and shims go on.
    pub async fn shutdown(self) {
        self.shared.closing.cancel();
        self.shared.owners.close();
        let ended = tokio::time::timeout(SHUTDOWN, self.shared.owners.wait()).await;
        if ended.is_err() {
            // Their intents are committed: the next start finishes or undoes them, as after a kill.
            tracing::warn!(owners = self.shared.owners.len(), "operations are left for the next start");
        }
        self.shared.world.nri.shutdown().await;
    }

    async fn of_container<T>(&self, id: &str, request: impl FnOnce(Reply<T>) -> ContainerRequest) -> Result<T, Error> {
        self.shared.of_container(id, request).await
    }
}

/// Once, behind the sockets: what crashes of this daemon and of plugins have left in networks' records.
async fn collect_networks(world: Arc<World>, pods: Vec<(Id, String)>, closing: CancellationToken) {
    if let Some(Err(error)) = closing.run_until_cancelled(world.network.collect(pods)).await {
        tracing::warn!(error = error.chain(), "cni plugins did not free what no pod uses");
    }
}

/// The host's facts, as far as the configuration lets them count.
fn read_host(config: &Config) -> Result<Host, Error> {
    let mut host = Host::read()?;
    host.apparmor &= !config.disable_apparmor;
    host.huge_pages = host.huge_pages.configured(config.disable_hugetlb, config.tolerate_missing_hugetlb);
    if config.restrict_oom_score_adj {
        let path = "/proc/self/oom_score_adj";
        let text = std::fs::read_to_string(path).map_err(|error| Error::failed(format!("read {path}"), error))?;
        host.lowest_oom_score_adj = text
            .trim()
            .parse()
            .map_err(|error: std::num::ParseIntError| Error::failed(format!("parse {path}"), error))?;
    }
    Ok(host)
}
