//! What pods and containers use: read from the kernel's files when somebody asks, from published views alone.
//!
//! ```text
//! Stats (mod.rs) ─► cgroup.rs finds the cgroup ─► v1.rs | v2.rs read its files      network.rs, process.rs: /proc
//!        ▲
//!        ├── sampler.rs: CPU rates, a reading a second of what runs
//!        └── layers.rs: writable layers, measured behind the requests
//! ```
//!
//! Never awaits an owner or a shim, and starts no process. All reading is on the blocking pool, a whole list in one go.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::SystemTime,
};

use tokio_util::task::AbortOnDropHandle;

use crate::{
    Error, Pods,
    model::{ContainerState, ContainerView, Id, PodView},
};

pub(crate) mod cgroup;
mod layers;
mod network;
mod process;
mod psi;
mod sampler;
mod usage;
mod v1;
mod v2;

pub use layers::{Filesystem, Layer};
pub use network::{Interface, Traffic};
pub use process::Processes;
pub use psi::{Pressure, Stall};
pub use usage::{CgroupUsage, Cpu, DeviceIo, Hugetlb, Io, Memory, Pids, Swap};

use cgroup::Hierarchy;
use layers::Layers;
use sampler::Rates;

/// Reads what pods and containers use. Clones are handles of the same; with the last one the sampling ends.
#[derive(Clone)]
pub struct Stats {
    reader: Arc<Reader>,
    _background: Arc<[AbortOnDropHandle<()>; 2]>,
}

/// What one container uses.
#[derive(Clone, Debug)]
pub struct ContainerStats {
    pub view: Arc<ContainerView>,
    /// When the cgroup was read.
    pub at: SystemTime,
    /// `None` for a container that does not run.
    pub cgroup: Option<CgroupUsage>,
    /// CPU time over wall time, in billionths, over the last second; `None` before the second sample.
    pub nano_cores: Option<u64>,
    /// `None` until it is measured for the first time.
    pub layer: Option<Layer>,
}

/// What one pod uses.
#[derive(Clone, Debug)]
pub struct PodStats {
    pub view: Arc<PodView>,
    pub at: SystemTime,
    /// Of the pod's own cgroup; of a pod without one, the sum over its containers.
    pub cgroup: Option<CgroupUsage>,
    pub nano_cores: Option<u64>,
    /// All but the loopback. Empty with the host's network: its traffic is not the pod's.
    pub interfaces: Vec<Interface>,
    pub processes: u64,
    pub containers: Vec<ContainerStats>,
}

/// What one pod uses, in the detail that metrics have.
#[derive(Clone, Debug)]
pub struct PodMetrics {
    pub pod: PodStats,
    /// Of the containers that run.
    pub processes: BTreeMap<Id, Processes>,
    /// The file system of each container's writable layer.
    pub filesystems: BTreeMap<Id, Filesystem>,
}

impl Stats {
    /// Starts the sampling. `roots`: where each snapshotter keeps its trees, by name.
    pub fn start(pods: Pods, roots: BTreeMap<String, PathBuf>) -> Stats {
        let (mode, snapshotters, namespace) = pods.stats_sources();
        let reader = Arc::new(Reader {
            hierarchy: Hierarchy::new(Path::new("/sys/fs/cgroup"), mode),
            rates: Rates::default(),
            layers: Layers::new(snapshotters, namespace, roots),
            pods,
        });
        let sampling = tokio::spawn(sampler::sample(Arc::clone(&reader)));
        let measuring = tokio::spawn(layers::measure(Arc::clone(&reader)));
        let background = [sampling, measuring].map(AbortOnDropHandle::new);
        Stats { reader, _background: Arc::new(background) }
    }

    /// What these containers use.
    pub async fn containers(&self, views: Vec<Arc<ContainerView>>) -> Result<Vec<ContainerStats>, Error> {
        self.blocking(move |reader| views.into_iter().map(|view| reader.container(view)).collect()).await
    }

    /// What these pods and their containers use.
    pub async fn pods(&self, views: Vec<Arc<PodView>>) -> Result<Vec<PodStats>, Error> {
        self.blocking(move |reader| reader.pods(views)).await
    }

    /// The same with what only metrics show, which takes longer: every open file of every process is looked at.
    pub async fn metrics(&self, views: Vec<Arc<PodView>>) -> Result<Vec<PodMetrics>, Error> {
        self.blocking(move |reader| {
            // All layers are in one or two places: each is looked at once.
            let mut known = BTreeMap::new();
            reader.pods(views).into_iter().map(|pod| reader.detail(pod, &mut known)).collect()
        })
        .await
    }

    async fn blocking<T: Send + 'static>(&self, read: impl FnOnce(&Reader) -> T + Send + 'static) -> Result<T, Error> {
        let reader = Arc::clone(&self.reader);
        let read = tokio::task::spawn_blocking(move || read(&reader));
        read.await.map_err(|error| Error::failed("read statistics", error))
    }
}

/// Where the numbers are. All methods block.
pub(crate) struct Reader {
    pods: Pods,
    hierarchy: Hierarchy,
    rates: Rates,
    layers: Layers,
}

impl Reader {
    fn container(&self, view: Arc<ContainerView>) -> ContainerStats {
        let running = matches!(view.state, ContainerState::Running { .. });
        let directory = running.then(|| cgroup::directory(&view.oci_spec)).flatten();
        ContainerStats {
            at: SystemTime::now(),
            cgroup: directory.and_then(|directory| self.hierarchy.read(&directory)),
            nano_cores: self.rates.nano_cores(&view.id).filter(|_| running),
            layer: self.layers.of(&view),
            view,
        }
    }

    fn pods(&self, views: Vec<Arc<PodView>>) -> Vec<PodStats> {
        let mut of: BTreeMap<Id, Vec<Arc<ContainerView>>> = BTreeMap::new();
        for container in self.pods.containers() {
            of.entry(container.pod.clone()).or_default().push(container);
        }
        views.into_iter().map(|view| self.pod(of.remove(&view.id).unwrap_or_default(), view)).collect()
    }

    fn pod(&self, containers: Vec<Arc<ContainerView>>, view: Arc<PodView>) -> PodStats {
        let containers: Vec<_> = containers.into_iter().map(|container| self.container(container)).collect();
        let pause = cgroup::directory(&view.oci_spec);
        let rate = self.rates.nano_cores(&view.id);
        let (cgroup, nano_cores) = match cgroup::of_pod(&view) {
            Some(own) => (self.hierarchy.read(&own), rate),
            None => {
                let members = containers.iter().filter_map(|container| container.cgroup.as_ref());
                let pause = pause.as_deref().and_then(|pause| self.hierarchy.read(pause));
                let rates = containers.iter().filter_map(|container| container.nano_cores);
                let sum = members.fold(pause, |sum, usage| Some(sum.unwrap_or_default().plus(usage)));
                (sum, rate.map(|rate| rate + rates.sum::<u64>()))
            }
        };
        let running = containers.iter().filter(|container| container.cgroup.is_some());
        let directories = running.filter_map(|container| cgroup::directory(&container.view.oci_spec)).chain(pause);
        let processes: usize = directories.map(|directory| self.hierarchy.processes(&directory).len()).sum();
        PodStats {
            at: SystemTime::now(),
            cgroup,
            nano_cores,
            interfaces: network::of_pod(&view),
            processes: u64::try_from(processes).unwrap_or(u64::MAX),
            containers,
            view,
        }
    }

    fn detail(&self, pod: PodStats, known: &mut BTreeMap<PathBuf, Option<Filesystem>>) -> PodMetrics {
        let mut processes = BTreeMap::new();
        let mut filesystems = BTreeMap::new();
        for container in &pod.containers {
            let view = &container.view;
            if let (ContainerState::Running { pid, .. }, Some(directory)) =
                (&view.state, cgroup::directory(&view.oci_spec))
            {
                processes.insert(view.id.clone(), process::read(*pid, &self.hierarchy.processes(&directory)));
            }
            let Some(Layer { root, .. }) = &container.layer else { continue };
            let filesystem = known.entry(root.clone()).or_insert_with(|| self.layers.filesystem(root));
            if let Some(filesystem) = filesystem {
                filesystems.insert(view.id.clone(), filesystem.clone());
            }
        }
        PodMetrics { pod, processes, filesystems }
    }

    /// The CPU time of every running container, and of every live pod: its cgroup's, or without one its pause process's.
    fn cpu_times(&self) -> Vec<sampler::Reading> {
        let mut readings = Vec::new();
        let mut read = |id: &Id, directory: Option<PathBuf>| {
            // One that has ended since it was published is gone, and gets no sample.
            if let Some(usage) = directory.and_then(|directory| self.hierarchy.cpu_time(&directory)) {
                readings.push(sampler::Reading { id: id.clone(), at: std::time::Instant::now(), usage });
            }
        };
        for container in self.pods.containers() {
            if matches!(container.state, ContainerState::Running { .. }) {
                read(&container.id, cgroup::directory(&container.oci_spec));
            }
        }
        for pod in self.pods.pods() {
            if pod.pid.is_some() {
                read(&pod.id, cgroup::of_pod(&pod).or_else(|| cgroup::directory(&pod.oci_spec)));
            }
        }
        readings
    }
}
