//! Pod networks by CNI plugins: which networks a pod is attached to, in which order, and how that is taken back.
//!
//! The first network's interface is `eth0`, the next one's `eth1`, by the order of the configuration files. `lo` is
//! brought up before, by us. What was attached is known from the cache, with the configuration of that time, so a
//! changed or removed configuration does not keep old pods from being detached.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures_util::future::{BoxFuture, join_all};
use serde_json::{Map, Value, json};
use tokio::{sync::RwLock, task::spawn_blocking};

use super::{
    Attachment, Network, args,
    cache::{Cache, Entry},
    config::{Loader, NetworkList, Plugin, Version},
    loopback,
    plugin::{Plugins, Subject},
    result::{self, Raised},
    runs::{Runs, end_leftovers},
};
use crate::{
    error::Error,
    model::{Id, PodNetwork},
    netns,
};

/// A plugin that collects holds up the first pods of a daemon.
const COLLECT_DEADLINE: Duration = Duration::from_secs(30);
/// A plugin that is asked for its state has to answer while a client waits for CRI's Status.
const STATUS_DEADLINE: Duration = Duration::from_secs(10);

/// Which of several addresses is the primary one (`ip_pref`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IpPreference {
    #[default]
    Ipv4,
    Ipv6,
    /// The order of the CNI result.
    Cni,
}

/// Where CNI's files are and how plugins are run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CniConfig {
    pub conf_dir: PathBuf,
    /// Searched in this order.
    pub bin_dirs: Vec<PathBuf>,
    /// Networks to load, in the order of their file names; 0 is all.
    pub max_conf_num: usize,
    /// libcni's, with the attachments in `results/`.
    pub cache_dir: PathBuf,
    pub ip_pref: IpPreference,
    /// One network after the other.
    pub setup_serially: bool,
    /// Handlers with networks of their own: the directory, and how many to load.
    pub handlers: BTreeMap<String, (PathBuf, usize)>,
    /// For each run of a plugin.
    pub deadline: Duration,
}

impl Default for CniConfig {
    fn default() -> CniConfig {
        CniConfig {
            conf_dir: "/etc/cni/net.d".into(),
            // The second is where distributions' packages put them.
            bin_dirs: vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
            max_conf_num: 1,
            cache_dir: "/var/lib/cni".into(),
            ip_pref: IpPreference::default(),
            setup_serially: false,
            handlers: BTreeMap::new(),
            deadline: Duration::from_secs(120),
        }
    }
}

/// Pod networks by CNI plugins.
#[derive(Clone, Debug)]
pub struct Cni {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    loader: Loader,
    /// By handler.
    own_loaders: BTreeMap<String, Loader>,
    plugins: Plugins,
    cache: Cache,
    runs: Runs,
    /// Read by what attaches, written by what collects: an attachment in the making is in no list of valid ones.
    attaching: RwLock<()>,
    config: CniConfig,
}

impl Cni {
    /// Nothing is read yet: a missing configuration is no error before it is needed.
    pub fn new(config: CniConfig) -> Cni {
        let loader = Loader::new(config.conf_dir.clone(), config.max_conf_num);
        let own = config.handlers.iter().map(|(name, (dir, max))| (name.clone(), Loader::new(dir.clone(), *max)));
        let own_loaders = own.collect();
        let plugins = Plugins { bin_dirs: config.bin_dirs.clone(), deadline: config.deadline };
        let cache = Cache::new(&config.cache_dir);
        let (runs, attaching) = (Runs::default(), RwLock::default());
        Cni { inner: Arc::new(Inner { loader, own_loaders, plugins, cache, runs, attaching, config }) }
    }

    /// Asks the plugins whether a pod's attachments are as they left them.
    pub async fn check(&self, pod: Attachment) -> Result<(), Error> {
        self.inner.check(&pod).await
    }
}

impl Network for Cni {
    fn ready(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(self.inner.ready(""))
    }

    fn handlers_ready(&self) -> BoxFuture<'_, Vec<(String, Result<(), Error>)>> {
        let each = self.inner.own_loaders.keys().map(async |name| (name.clone(), self.inner.ready(name).await));
        Box::pin(join_all(each))
    }

    fn describe(&self) -> BoxFuture<'_, Value> {
        Box::pin(async move {
            // A configuration that cannot be read has no networks; `ready` tells why.
            let networks = self.inner.load("").await.unwrap_or_default();
            let shown = networks.iter().enumerate().map(|(at, network)| {
                let plugins = network.plugins.iter().map(
                    |plugin| json!({"Network": plugin.conf, "Source": Value::Object(plugin.conf.clone()).to_string()}),
                );
                json!({
                    "Config": {
                        "Name": network.name,
                        "CNIVersion": network.version.as_str(),
                        "Plugins": plugins.collect::<Vec<_>>(),
                        "Source": String::from_utf8_lossy(&network.bytes),
                    },
                    "IFName": interface(at),
                })
            });
            Value::Array(shown.collect())
        })
    }

    fn attach(&self, pod: Attachment) -> BoxFuture<'_, Result<PodNetwork, Error>> {
        Box::pin(async move { self.inner.attach(&pod).await })
    }

    fn detach(&self, pod: Attachment) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.inner.detach(&pod).await })
    }

    fn collect(&self, pods: Vec<(Id, String)>) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async move { self.inner.collect(&pods).await })
    }

    fn cached(&self) -> BoxFuture<'_, Result<Vec<Id>, Error>> {
        Box::pin(self.inner.with_cache(Cache::pods))
    }
}

impl Inner {
    fn loader(&self, handler: &str) -> &Loader {
        self.own_loaders.get(handler).unwrap_or(&self.loader)
    }

    /// A handler's networks as configured now; none is no error.
    async fn load(self: &Arc<Self>, handler: &str) -> Result<Arc<Vec<NetworkList>>, Error> {
        let (this, handler) = (Arc::clone(self), handler.to_owned());
        blocking(move || this.loader(&handler).load()).await
    }

    /// A handler's networks as configured now, at least one.
    async fn networks(self: &Arc<Self>, handler: &str) -> Result<Arc<Vec<NetworkList>>, Error> {
        let networks = self.load(handler).await?;
        if networks.is_empty() {
            let dir = self.config.handlers.get(handler).map_or(&self.config.conf_dir, |(dir, _)| dir).display();
            return Err(Error::Unavailable(format!("cni plugin not initialized: no network config found in {dir}")));
        }
        Ok(networks)
    }

    async fn with_cache<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Cache) -> Result<T, Error> + Send + 'static,
    ) -> Result<T, Error> {
        let this = Arc::clone(self);
        blocking(move || work(&this.cache)).await
    }

    /// No handler is named so: the empty name is that of the networks of all others.
    async fn ready(self: &Arc<Self>, handler: &str) -> Result<(), Error> {
        for network in self.networks(handler).await?.iter().filter(|network| network.version >= Version::V1_1) {
            for plugin in &network.plugins {
                let asked = self.plugins.status(network, plugin, STATUS_DEADLINE).await;
                asked.map_err(|error| Error::Unavailable(format!("cni plugin not ready: {}", error.chain())))?;
            }
        }
        Ok(())
    }

    async fn attach(self: &Arc<Self>, pod: &Attachment) -> Result<PodNetwork, Error> {
        let netns = pod.netns.clone().ok_or_else(|| Error::plain("attach a pod without a network namespace"))?;
        let _attaching = self.attaching.read().await;
        let networks = self.networks(&pod.handler).await?;
        let mut call = Call::new(pod)?;
        call.netns = text(&netns)?;
        blocking(move || loopback::up(&netns)).await?;
        let error = match self.add_all(&networks, &call).await.and_then(|added| self.summarize(pod, &added)) {
            Ok(network) => return Ok(network),
            Err(error) => error,
        };
        if let Err(undo) = self.detach(pod).await {
            // The caller's teardown detaches again: the answer is the first error, which is the reason.
            tracing::warn!(pod = %pod.id, error = undo.chain(), "cannot detach a pod that could not be attached");
        }
        Err(error)
    }

    /// Adds every network, also when one fails: what is cut off in the middle is harder to take back.
    async fn add_all(self: &Arc<Self>, networks: &[NetworkList], call: &Call) -> Result<Vec<(String, Raised)>, Error> {
        let named = networks.iter().enumerate().map(|(at, network)| (interface(at), network));
        if !self.config.setup_serially {
            let all = join_all(named.map(|(interface, network)| self.add(network, interface, call))).await;
            return all.into_iter().collect();
        }
        let mut added = Vec::new();
        for (interface, network) in named {
            added.push(self.add(network, interface, call).await?);
        }
        Ok(added)
    }

    async fn add(
        self: &Arc<Self>,
        network: &NetworkList,
        interface: String,
        call: &Call,
    ) -> Result<(String, Raised), Error> {
        let mut previous = None;
        for plugin in &network.plugins {
            previous = Some(self.add_by(network, plugin, &interface, call, previous).await?);
        }
        let result = previous.expect("a network has at least one plugin");
        let raised = result::raise(&result, network.version)
            .map_err(|reason| Error::plain(format!("cni result of network {:?} {reason}", network.name)))?;
        let mut entry = Entry::new(network, &call.id, &interface, &call.netns);
        entry.cni_args = call.args.clone();
        entry.capability_args = call.capabilities.clone();
        entry.result = result;
        self.with_cache(move |cache| cache.put(&entry)).await?;
        Ok((interface, raised))
    }

    /// One plugin, to its end: dropping this starts no other one, but the plugin goes on, and a detach waits for it.
    async fn add_by(
        self: &Arc<Self>,
        network: &NetworkList,
        plugin: &Plugin,
        interface: &str,
        call: &Call,
        previous: Option<Value>,
    ) -> Result<Value, Error> {
        let running = self.runs.add(&call.id).await;
        let (this, network, plugin) = (Arc::clone(self), network.clone(), plugin.clone());
        let (interface, call) = (interface.to_owned(), call.clone());
        let added = tokio::spawn(async move {
            let added = this.plugins.add(&network, &plugin, &call.subject(&interface), previous.as_ref()).await;
            drop(running);
            added
        });
        added.await.map_err(|error| Error::failed("a network plugin's run was lost", error))?
    }

    fn summarize(&self, pod: &Attachment, added: &[(String, Raised)]) -> Result<PodNetwork, Error> {
        let bad = |reason: String| Error::plain(format!("cni result of pod {} {reason}", pod.id));
        let ips = result::pod_ips(added, &interface(0), self.config.ip_pref).map_err(bad)?;
        if ips.is_empty() {
            return Err(Error::plain(format!("failed to find network info for sandbox \"{}\"", pod.id)));
        }
        Ok(PodNetwork { ips, result: result::merge(added).map_err(bad)? })
    }

    async fn detach(self: &Arc<Self>, pod: &Attachment) -> Result<(), Error> {
        let mut call = Call::new(pod)?;
        // A plugin that is told of a namespace that is gone would fail on it; none is what the specification has then.
        if let Some(netns) = pod.netns.as_deref().filter(|netns| netns::is_pinned(netns)) {
            call.netns = text(netns)?;
        }
        let _alone = self.runs.delete(&pod.id).await;
        let owed = self.owed(pod).await?;
        if owed.iter().any(|(_, owed)| owed.entry.is_none()) {
            // An ADD that nobody knows the end of.
            let (id, deadline) = (pod.id.clone(), self.config.deadline);
            blocking(move || end_leftovers(&id, deadline)).await?;
        }
        let mut failed = Vec::new();
        for (network, owed) in owed.iter().rev() {
            if let Err(error) = self.delete(network, owed, &call).await {
                failed.push(error);
            }
        }
        all_of(failed)
    }

    /// What a pod has to be detached from: all that the cache knows, and the configured networks besides, whose ADD may
    /// have failed half-way.
    async fn owed(self: &Arc<Self>, pod: &Attachment) -> Result<Vec<(NetworkList, Owed)>, Error> {
        let id = pod.id.clone();
        let entries = self.with_cache(move |cache| cache.of_pod(&id)).await?;
        let loaded = match self.load(&pod.handler).await {
            Ok(loaded) => loaded,
            // The attachments are known, so nothing is lost by a configuration that cannot be read now.
            Err(_) if !entries.is_empty() => Arc::new(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut owed = Vec::new();
        for (at, network) in loaded.iter().enumerate() {
            let interface = interface(at);
            // By the interface alone: the network that has it may have been another one then.
            if !entries.iter().any(|entry| entry.if_name == interface) {
                owed.push((network.clone(), Owed { interface, entry: None }));
            }
        }
        for entry in entries {
            let current = || loaded.iter().find(|network| network.name == entry.network_name).cloned();
            let network = entry.network().or_else(|reason| {
                current().ok_or_else(|| Error::plain(format!("cni cache of pod {}: {reason}", pod.id)))
            })?;
            owed.push((network, Owed { interface: entry.if_name.clone(), entry: Some(entry) }));
        }
        owed.sort_by(|(_, one), (_, other)| one.interface.cmp(&other.interface));
        Ok(owed)
    }

    async fn delete(self: &Arc<Self>, network: &NetworkList, owed: &Owed, call: &Call) -> Result<(), Error> {
        let call = call.as_cached(owed.entry.as_ref());
        let subject = call.subject(&owed.interface);
        // Plugins of older versions do not expect the result.
        let cached = owed.entry.as_ref().filter(|_| network.version >= Version::V0_4);
        let previous = cached.map(|entry| &entry.result).filter(|result| result.is_object());
        for plugin in network.plugins.iter().rev() {
            self.plugins.delete(network, plugin, &subject, previous).await?;
        }
        let (name, id, interface) = (network.name.clone(), call.id.clone(), owed.interface.clone());
        self.with_cache(move |cache| cache.remove(&name, &id, &interface)).await
    }

    /// The specification's GC, of every network that has it and does not forbid it. Valid is what the cache knows, also of
    /// other programs, and what the pods that there are have whatever the cache knows.
    async fn collect(self: &Arc<Self>, pods: &[(Id, String)]) -> Result<(), Error> {
        let _alone = self.attaching.write().await;
        let mut lists = BTreeMap::new();
        for handler in [""].into_iter().chain(self.own_loaders.keys().map(String::as_str)) {
            lists.insert(handler, self.load(handler).await?);
        }
        let can = |network: &&NetworkList| network.version >= Version::V1_1 && !network.disable_gc;
        let networks: BTreeMap<&str, &NetworkList> =
            lists.values().flat_map(|list| list.iter()).filter(can).map(|list| (list.name.as_str(), list)).collect();
        if networks.is_empty() {
            return Ok(());
        }
        let cached = self.with_cache(Cache::all).await?;
        let mut failed = Vec::new();
        for (name, network) in networks {
            let known = cached.iter().filter(|entry| entry.network_name == name);
            let known = known.map(|entry| (entry.container_id.as_str(), entry.if_name.clone()));
            let of_pods = pods.iter().filter_map(|(id, handler)| {
                let list = lists.get(handler.as_str()).or_else(|| lists.get(""))?;
                let at = list.iter().position(|network| network.name == name)?;
                Some((id.as_str(), interface(at)))
            });
            let valid: BTreeSet<(&str, String)> = known.chain(of_pods).collect();
            let valid: Vec<Value> =
                valid.iter().map(|(id, interface)| json!({"containerID": id, "ifname": interface})).collect();
            for plugin in &network.plugins {
                failed.extend(self.plugins.collect(network, plugin, &valid, COLLECT_DEADLINE).await.err());
            }
        }
        all_of(failed)
    }

    async fn check(self: &Arc<Self>, pod: &Attachment) -> Result<(), Error> {
        let mut call = Call::new(pod)?;
        call.netns = pod.netns.as_deref().map(text).transpose()?.unwrap_or_default();
        let id = pod.id.clone();
        for entry in self.with_cache(move |cache| cache.of_pod(&id)).await? {
            let network =
                entry.network().map_err(|reason| Error::plain(format!("cni cache of pod {}: {reason}", pod.id)))?;
            if network.disable_check || network.version < Version::V0_4 {
                continue;
            }
            let call = call.as_cached(Some(&entry));
            for plugin in &network.plugins {
                self.plugins.check(&network, plugin, &call.subject(&entry.if_name), &entry.result).await?;
            }
        }
        Ok(())
    }
}

/// One network that a pod may be attached to.
#[derive(Debug)]
struct Owed {
    interface: String,
    entry: Option<Entry>,
}

/// What is the same for all plugins of a pod.
#[derive(Clone, Debug)]
struct Call {
    id: Id,
    /// Empty when it is gone.
    netns: String,
    args: Vec<[String; 2]>,
    capabilities: Map<String, Value>,
}

impl Call {
    fn new(pod: &Attachment) -> Result<Call, Error> {
        Ok(Call {
            id: pod.id.clone(),
            netns: String::new(),
            args: args::cni_args(pod)?,
            capabilities: args::capabilities(pod)?,
        })
    }

    /// With the arguments of the attachment, if the cache has them: what was asked for then is what is taken back.
    fn as_cached(&self, entry: Option<&Entry>) -> Call {
        let mut call = self.clone();
        if let Some(entry) = entry.filter(|entry| !entry.cni_args.is_empty()) {
            call.args.clone_from(&entry.cni_args);
            call.capabilities.clone_from(&entry.capability_args);
        }
        call
    }

    fn subject(&self, interface: &str) -> Subject<'_> {
        Subject {
            container: self.id.as_str(),
            netns: &self.netns,
            interface: interface.to_owned(),
            args: args::join(&self.args),
            capabilities: &self.capabilities,
        }
    }
}

/// The one error that tells all.
fn all_of(mut failed: Vec<Error>) -> Result<(), Error> {
    match failed.len() {
        0 => Ok(()),
        1 => Err(failed.remove(0)),
        _ => Err(Error::plain(failed.iter().map(Error::chain).collect::<Vec<_>>().join("; "))),
    }
}

/// The name of the interface of the network at this place.
fn interface(at: usize) -> String {
    format!("eth{at}")
}

fn text(path: &Path) -> Result<String, Error> {
    let text = path.to_str().ok_or_else(|| Error::plain(format!("{} is not UTF-8", path.display())))?;
    Ok(text.to_owned())
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Error> + Send + 'static) -> Result<T, Error> {
    spawn_blocking(work).await.map_err(|error| Error::failed("network work did not end", error))?
}
