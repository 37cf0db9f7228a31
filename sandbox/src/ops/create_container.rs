//! CreateContainer: directory, snapshot, image volumes, volumes of the image, OCI spec, bundle. Nothing runs yet.

use std::{fs, sync::Arc};

use oci_spec::runtime::{LinuxBlockIo, LinuxIntelRdt};

use crate::{
    Error, apparmor, bundle, cdi,
    checkpoint::{criu, restore},
    image_volumes,
    model::{ContainerSpec, ContainerState, ContainerUser, Id, Resources, VolumeMount},
    nri::{Adjustment, HostLimits},
    oci::{self, ContainerInput, HandlerOptions, devices, mounts, seccomp},
    ops::{Undone, update_container::merge},
    rdt,
    record::{ContainerRecord, PodRecord},
    selinux,
    teardown::{self, Task},
    volumes,
    world::{Operation, World, handler_options},
};

/// What a created container has.
pub(crate) struct Created {
    pub(crate) user: ContainerUser,
    pub(crate) oci_spec: serde_json::Value,
    /// The limits that plugins have made of those it was asked with.
    pub(crate) limits: Option<Resources>,
}

/// Prepares the container, or leaves nothing of it. `target_pid`: see [`ContainerInput`].
pub(crate) async fn run(
    world: Arc<World>,
    pod: PodRecord,
    container: ContainerRecord,
    target_pid: Option<i32>,
    again: bool,
    operation: Operation,
) -> Result<Created, Undone> {
    if again && let Some(error) = undo(&world, &pod, &container).await {
        return Err(Undone { left: Some(error.clone()), error, network_returned: false });
    }
    let made = async {
        let (on, of, record) = (Arc::clone(&world), pod.clone(), container.clone());
        let created = operation.blocking(move || make(&on, &of, &record, target_pid)).await?;
        let created = Box::pin(adjust(&world, &pod, &container, created, &operation)).await?;
        verify(&world, &container, created, &operation).await
    };
    match operation.until_interrupted(made).await {
        Ok(created) => {
            if world.nri.is_on() {
                let state = Some(ContainerState::Created);
                let container = Box::new(ContainerRecord { state, oci_spec: created.oci_spec.clone(), ..container });
                Box::pin(world.nri.post_create(&operation, &pod, &container)).await;
            }
            Ok(created)
        }
        Err(error) => {
            Box::pin(world.nri.undo_container(&operation, &pod, &container)).await;
            let left = undo(&world, &pod, &container).await;
            Err(Undone { error, left, network_returned: false })
        }
    }
}

async fn undo(world: &Arc<World>, pod: &PodRecord, container: &ContainerRecord) -> Option<Error> {
    teardown::container(world, pod, container, Task::None).await.complete(&format!("container {}", container.id)).err()
}

/// Lets plugins change the container, of which nothing but files is made yet.
async fn adjust(
    world: &Arc<World>,
    pod: &PodRecord,
    container: &ContainerRecord,
    created: Created,
    operation: &Operation,
) -> Result<Created, Error> {
    let adjustment = world.nri.create_container(operation, pod, container, &created.oci_spec).await?;
    let Some(adjustment) = adjustment else { return Ok(created) };
    let limits = adjustment.limits()?.map(|limits| merge(&container.spec.resources, &limits));
    let (on, of, id) = (Arc::clone(world), pod.clone(), container.id.clone());
    let applied = operation.blocking(move || {
        let oci_spec = apply(&on, &of, &id, &adjustment, created.oci_spec)?;
        Ok(Created { oci_spec, limits, ..created })
    });
    applied.await
}

/// Looks at a checkpoint that the container is to begin with, now that its spec is what it will be.
async fn verify(
    world: &Arc<World>,
    container: &ContainerRecord,
    created: Created,
    operation: &Operation,
) -> Result<Created, Error> {
    let Some(from) = container.restore.clone() else { return Ok(created) };
    let criu = operation.step(criu::check()).await?;
    let (on, id) = (Arc::clone(world), container.id.clone());
    let checked = operation.blocking(move || {
        restore::verify_unpacked(&on, &id, &created.oci_spec, criu, &from)?;
        Ok(created)
    });
    checked.await
}

/// Puts what plugins want into the spec and into the bundle. Blocks.
fn apply(
    world: &World,
    pod: &PodRecord,
    id: &Id,
    adjustment: &Adjustment,
    mut spec: serde_json::Value,
) -> Result<serde_json::Value, Error> {
    let failed = |error| Error::failed(format!("change the OCI spec of {id}"), error);
    let cdi_devices = cdi::resolve_named(&adjustment.cdi_devices(), world.config.cdi_spec_dirs.as_deref())?;
    cdi::check(&cdi_devices, world.handler(&pod.handler)?, pod.host_network())?;
    if !cdi_devices.is_empty() {
        let mut typed = serde_json::from_value(spec).map_err(failed)?;
        cdi::apply(&mut typed, &cdi_devices);
        spec = serde_json::to_value(typed).map_err(failed)?;
    }
    let host = HostLimits { swap: world.host.swap, lowest_oom_score_adj: world.host.lowest_oom_score_adj };
    if let Some(device) = adjustment.net_device() {
        let able = world.handler(&pod.handler)?.check_net_devices();
        able.map_err(|why| Error::Unsupported(format!("NRI: network device {device:?}: {why}")))?;
    }
    let block_io = adjustment.block_io_class().map(|class| world.block_io.resolve(class)).transpose()?;
    let block_io = block_io.map(serde_json::to_value).transpose().map_err(failed)?;
    adjustment.apply(&mut spec, host, block_io)?;
    bundle::rewrite_config(world, id, &spec)?;
    Ok(spec)
}

/// Blocks.
fn make(
    world: &World,
    pod: &PodRecord,
    container: &ContainerRecord,
    target_pid: Option<i32>,
) -> Result<Created, Error> {
    let (id, request) = (&container.id, &container.spec);
    if container.restore.is_some() {
        restore::check(world, pod)?;
    }
    let handler = handler_options(world.handler(&pod.handler)?, world.cgroup_parent(pod));
    // What can be refused without an effect is refused before the first one.
    let mut resolved = mounts::resolve_sources(&request.mounts)?;
    let devices = devices::resolve(request, &handler)?;
    let cdi_devices = cdi::resolve(request, world.config.cdi_spec_dirs.as_deref())?;
    cdi::check(&cdi_devices, world.handler(&pod.handler)?, pod.host_network())?;
    let block_io = block_io(world, pod, request, &handler)?;
    let rdt_group = rdt_group(world, pod, request, &handler)?;
    let profile = seccomp::read_profile(&request.seccomp)?;
    if let Some(profile) = oci::apparmor::of_container(&request.apparmor, request.privileged, &world.host)? {
        apparmor::ready(&profile)?;
    }
    let labels = labels(world, pod, container)?;
    world.node.make_dir(&world.paths.container_root(id), 0o755)?;
    let rootfs = bundle::make(world, pod, id, &container.image, labels.as_ref(), container.restore.is_none())?;
    let root = bundle::open_root(&rootfs)?;
    let user = bundle::resolve_user(&root, &request.run_as, &container.image)?;
    resolved.extend(image_volumes::make(world, pod, container)?);
    let volumes = volumes::make(world, container, &root, &resolved)?;
    if let Some(labels) = &labels {
        volumes.iter().try_for_each(|volume| selinux::relabel(&volume.source, &labels.mount))?;
    }
    resolved.extend(volumes);
    let mut pod_spec = pod.spec.clone();
    pod_spec.cgroup_parent = world.cgroup_parent(pod).to_owned();
    let (netns, userns) = (world.netns(pod), world.userns(pod));
    let mut spec = oci::container(&ContainerInput {
        id,
        container: request,
        image: &container.image,
        sandbox_id: &pod.id,
        pod: &pod_spec,
        sandbox_pid: pod
            .pid
            .ok_or_else(|| Error::Precondition(format!("sandbox container {:?} is not running", pod.id.as_str())))?,
        netns: netns.as_deref(),
        userns: userns.as_deref(),
        target_pid,
        files: &world.paths.pod_files(&pod.id, pod.host_ipc()),
        user: &user,
        mounts: &resolved,
        devices: &devices,
        host: &world.host,
        handler: &handler,
        oci_version: oci::OCI_VERSION,
        seccomp: profile.as_ref(),
    })?;
    cdi::apply(&mut spec, &cdi_devices);
    if let Some(block_io) = block_io {
        let linux = spec.linux_mut().get_or_insert_default();
        linux.resources_mut().get_or_insert_default().set_block_io(Some(block_io));
    }
    if let Some(group) = rdt_group {
        spec.linux_mut().get_or_insert_default().set_intel_rdt(Some(group));
    }
    if let Some(labels) = labels.clone().filter(|_| !request.privileged) {
        selinux::apply(&mut spec, labels);
    }
    let oci_spec = bundle::write_config(world, id, &spec)?;
    if let Some(from) = &container.restore {
        drop(root);
        restore::fill(world, pod, container, from, labels.as_ref())?;
        // The archive's layer may have changed what was looked at before.
        drop(bundle::open_root(&rootfs)?);
    }
    Ok(Created { user, oci_spec, limits: None })
}

/// The class of block I/O that annotations give to the container. Blocks.
fn block_io(
    world: &World,
    pod: &PodRecord,
    container: &ContainerSpec,
    handler: &HandlerOptions,
) -> Result<Option<LinuxBlockIo>, Error> {
    let Some(class) = oci::annotations::class("blockio", container, &pod.spec.annotations) else { return Ok(None) };
    if handler.ignore_blockio && !world.block_io.are_on() {
        return Ok(None);
    }
    let resolved = world.block_io.resolve(&class.name);
    resolved.map(Some).map_err(|error| Error::Precondition(format!("annotation {}: {error}", class.annotation)))
}

/// The RDT group that annotations give to the container. Blocks.
fn rdt_group(
    world: &World,
    pod: &PodRecord,
    container: &ContainerSpec,
    handler: &HandlerOptions,
) -> Result<Option<LinuxIntelRdt>, Error> {
    let Some(class) = oci::annotations::class("rdt", container, &pod.spec.annotations) else { return Ok(None) };
    if handler.ignore_rdt && !world.rdt.are_on() {
        return Ok(None);
    }
    let origin = if class.own { rdt::Origin::Container } else { rdt::Origin::Pod };
    let group = world.rdt.resolve(&class.name, origin);
    let group = group.map_err(|error| Error::Precondition(format!("annotation {}: {error}", class.annotation)))?;
    Ok(group.map(|group| {
        let mut rdt = LinuxIntelRdt::default();
        rdt.set_clos_id(Some(group));
        rdt
    }))
}

/// The container's SELinux labels, known to the policy, with those volumes relabelled that ask for it.
fn labels(world: &World, pod: &PodRecord, container: &ContainerRecord) -> Result<Option<selinux::Labels>, Error> {
    if let Some(options) = &container.spec.selinux {
        selinux::check(options, "selinux_options")?;
    }
    let Some(labels) = world.labels(pod, Some(&container.spec)) else { return Ok(None) };
    selinux::known(&labels)?;
    let asked = |mount: &&VolumeMount| mount.selinux_relabel && mount.image.is_none();
    for mount in container.spec.mounts.iter().filter(asked) {
        let what = || format!("resolve mount source {}", mount.host_path);
        let source = fs::canonicalize(&mount.host_path).map_err(|error| Error::failed(what(), error))?;
        selinux::relabel(&source, &labels.mount)?;
    }
    Ok(Some(labels))
}
