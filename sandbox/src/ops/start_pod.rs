//! RunPodSandbox: the pinned namespace, then CNI beside the pause container's preparation, then its start.

use std::{sync::Arc, time::Duration};

use snapshotter::Mount;

use crate::{
    Error, apparmor, bundle, files,
    launcher::{NewTask, Shim},
    model::PodNetwork,
    oci::{self, PodInput, seccomp},
    ops::Undone,
    record::PodRecord,
    selinux, teardown,
    world::{Operation, World, handler_options, within},
};

/// How long network plugins may go on after the pod they work for has failed.
const PLUGINS_END: Duration = Duration::from_secs(10);

/// What a started pod has.
pub(crate) struct Started {
    pub(crate) network: PodNetwork,
    pub(crate) pid: i32,
    pub(crate) oci_spec: serde_json::Value,
    pub(crate) shim: Arc<dyn Shim>,
}

/// Starts the pod, or leaves nothing of it. `again` says that an earlier start may have left something.
pub(crate) async fn run(
    world: Arc<World>,
    pod: PodRecord,
    again: bool,
    operation: Operation,
) -> Result<Started, Undone> {
    if again {
        let left = undo(&world, &pod).await;
        if let Some(error) = left.0 {
            return Err(Undone { left: Some(error.clone()), error, network_returned: left.1 });
        }
    }
    let started = operation.until_interrupted(start(&world, &pod, &operation)).await;
    match started {
        Ok(started) => Ok(started),
        Err(error) => {
            Box::pin(world.nri.undo_pod(&operation, &pod)).await;
            let (left, network_returned) = undo(&world, &pod).await;
            Err(Undone { error, left, network_returned })
        }
    }
}

async fn undo(world: &Arc<World>, pod: &PodRecord) -> (Option<Error>, bool) {
    let torn = teardown::pod(world, pod, &[], None).await;
    let root = teardown::pod_root(world, &pod.id).await;
    (torn.complete(&format!("pod sandbox {}", pod.id)).and(root).err(), torn.network_returned)
}

async fn start(world: &Arc<World>, pod: &PodRecord, operation: &Operation) -> Result<Started, Error> {
    let (on, of) = (Arc::clone(world), pod.clone());
    operation.blocking(move || pin_namespaces(&on, &of)).await?;
    let (network, (oci_spec, shim)) = attach_and_make_pause(world, pod, operation).await?;
    let (starting, id) = (Arc::clone(&shim), pod.id.clone());
    let pid = operation.step(async move { starting.start(&id).await }).await?;
    if world.nri.is_on() {
        let (network, oci_spec) = (network.clone(), oci_spec.clone());
        let pod = Box::new(PodRecord { network, pid: Some(pid), oci_spec, ..pod.clone() });
        Box::pin(world.nri.run_pod(operation, &pod)).await?;
    }
    Ok(Started { network, pid, oci_spec, shim })
}

/// What there has to be before anything else, unless the handler cannot start pods at all. Blocks.
fn pin_namespaces(world: &World, pod: &PodRecord) -> Result<(), Error> {
    world.launcher.check(&pod.handler, world.handler(&pod.handler)?)?;
    match (&pod.spec.namespaces.user, world.netns(pod)) {
        (Some(mapping), netns) => world.node.pin_userns(&world.paths.userns(&pod.id), netns.as_deref(), mapping),
        (None, Some(netns)) => world.node.pin_netns(&netns),
        (None, None) => Ok(()),
    }
}

/// CNI beside the pause container. When the container fails, the plugins may still end by themselves: one that is killed
/// between two of its effects leaves what its DEL does not take back, such as a bridge without the address it was to get,
/// on which every later ADD fails.
async fn attach_and_make_pause(
    world: &Arc<World>,
    pod: &PodRecord,
    operation: &Operation,
) -> Result<(PodNetwork, (serde_json::Value, Arc<dyn Shim>)), Error> {
    let (attaching, making) = (attach(world, pod), make_pause(world, pod, operation));
    tokio::pin!(attaching, making);
    tokio::select! {
        network = &mut attaching => Ok((network?, making.await?)),
        made = &mut making => match made {
            Ok(made) => Ok((attaching.await?, made)),
            Err(error) => {
                if tokio::time::timeout(PLUGINS_END, attaching).await.is_err() {
                    tracing::warn!(pod = %pod.id, "the network of a pod that failed to start takes long; no further plugin is run");
                }
                Err(error)
            }
        },
    }
}

async fn attach(world: &World, pod: &PodRecord) -> Result<PodNetwork, Error> {
    if pod.host_network() {
        return Ok(PodNetwork::default());
    }
    let attached = world.network.attach(world.attachment(pod));
    within(world.config.timeouts.network, || format!("set up the network of pod sandbox {}", pod.id), attached).await
}

async fn make_pause(
    world: &Arc<World>,
    pod: &PodRecord,
    operation: &Operation,
) -> Result<(serde_json::Value, Arc<dyn Shim>), Error> {
    let (for_files, record) = (Arc::clone(world), pod.clone());
    let oci_spec = operation.blocking(move || write_files(&for_files, &record)).await?;
    let bundle = world.bundle(pod, &pod.id);
    let (world, path, handler) = (Arc::clone(world), bundle.path.clone(), bundle.handler.clone());
    let io_owner = pod.root_on_host();
    let task = NewTask { id: pod.id.to_string(), bundle: path, handler, io_owner, ..NewTask::default() };
    let created = operation.step(async move {
        let shim = world.launcher.launch(bundle).await?;
        // The pid of a created container is that of the OCI runtime's init; the start answers with the same.
        shim.create(task).await.map(|_| shim)
    });
    Ok((oci_spec, created.await?))
}

/// The pod's directories and files, and the pause container's bundle. Blocks.
fn write_files(world: &World, pod: &PodRecord) -> Result<serde_json::Value, Error> {
    if let Some(profile) = oci::apparmor::of_pod(&pod.spec.apparmor, pod.spec.privileged, &world.host)? {
        apparmor::ready(&profile)?;
    }
    let files = world.paths.pod_files(&pod.id, pod.host_ipc());
    world.node.make_dir(&world.paths.pod_root(&pod.id), 0o755)?;
    world.node.make_dir(&world.paths.pod_state(&pod.id), 0o755)?;
    files::write(&files, &pod.spec.hostname, &world.host.hostname, pod.spec.dns.as_ref())?;
    let labels = world.labels(pod, None);
    if let Some(labels) = &labels {
        selinux::known(labels)?;
        for file in [&files.hostname, &files.hosts, &files.resolv_conf] {
            selinux::relabel(file, &labels.mount)?;
        }
    }
    if !pod.host_ipc() {
        world.node.make_dir(&files.shm, 0o755)?;
        world.node.mount(&[shm(labels.as_ref())], &files.shm)?;
    }
    let rootfs = bundle::make(world, pod, &pod.id, &pod.image, labels.as_ref(), true)?;
    let user = bundle::resolve_user(&bundle::open_root(&rootfs)?, &pod.spec.run_as, &pod.image)?;
    let profile = seccomp::read_profile(&pod.spec.seccomp)?;
    let mut spec = pod.spec.clone();
    spec.cgroup_parent = world.cgroup_parent(pod).to_owned();
    let (netns, userns) = (world.netns(pod), world.userns(pod));
    let mut spec = oci::pod(&PodInput {
        id: &pod.id,
        pod: &spec,
        image: &pod.image,
        user: &user,
        netns: netns.as_deref(),
        userns: userns.as_deref(),
        files: &files,
        host: &world.host,
        handler: &handler_options(world.handler(&pod.handler)?, world.cgroup_parent(pod)),
        oci_version: oci::OCI_VERSION,
        seccomp: profile.as_ref(),
    })?;
    if let Some(labels) = labels.filter(|_| !pod.spec.privileged) {
        selinux::apply(&mut spec, labels);
    }
    bundle::write_config(world, &pod.id, &spec)
}

/// The pod's `/dev/shm`: what containers expect everywhere, 64 MiB.
fn shm(labels: Option<&selinux::Labels>) -> Mount {
    let options = ["noexec", "nosuid", "nodev", "mode=1777", "size=67108864"].map(String::from);
    let label = labels.map(|labels| selinux::mount_option(&labels.mount));
    Mount { fstype: "tmpfs".into(), source: "shm".into(), options: options.into_iter().chain(label).collect() }
}
