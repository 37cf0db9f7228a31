//! The spec of a container.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, Linux, LinuxResources, Process, Root, Spec, get_default_readonly_paths};

use super::{
    ContainerInput, annotations, apparmor, args, base,
    capabilities::{self, Granted},
    cgroup, devices, env, masked_paths, mounts, namespaces, pod, resources, seccomp,
};
use crate::{error::Error, volumes::normal};

pub(super) fn spec(input: &ContainerInput<'_>) -> Result<Spec, Error> {
    check(input)?;
    let container = input.container;
    let capabilities = granted(input)?;
    let mut root = Root::default();
    root.set_path("rootfs".into()).set_readonly(Some(container.readonly_rootfs));
    let mut spec = Spec::default();
    spec.set_version(input.oci_version.to_owned())
        .set_root(Some(root))
        // The name is the pause container's: the UTS namespace is joined.
        .set_hostname(None)
        .set_process(Some(process(input, &capabilities)?))
        .set_mounts(Some(all_mounts(input)))
        .set_annotations(Some(annotations::of_container(
            input.sandbox_id,
            input.pod,
            container,
            input.image,
            input.handler,
        )))
        .set_linux(Some(linux(input, &capabilities)?));
    Ok(spec)
}

fn check(input: &ContainerInput<'_>) -> Result<(), Error> {
    let container = input.container;
    if container.privileged && !input.pod.privileged {
        return Err(Error::Invalid("no privileged container allowed in sandbox".into()));
    }
    if container.namespaces.user != input.pod.namespaces.user {
        return Err(Error::Invalid("userns_options of the container differ from those of its pod".into()));
    }
    if input.mounts.iter().any(|mount| mount.recursive_readonly) && !input.handler.recursive_readonly_mounts {
        // kubelet looks for this word.
        return Err(Error::Unsupported(
            "RROUnsupported: recursive_read_only: the runtime handler does not support recursive read-only mounts"
                .into(),
        ));
    }
    if let Some(mount) = input.mounts.iter().find(|mount| mount.mapping.is_some() && !input.handler.mapped_mounts) {
        let at = mount.destination.display();
        return Err(Error::Unsupported(format!(
            "mount {at}: uid_mappings and gid_mappings: the runtime or the kernel has no mapped mounts"
        )));
    }
    Ok(())
}

/// Whether a path is below a `fd` of `/proc`. A runtime that has a directory of the host open there while it changes to it
/// leaves the process outside of its root (CVE-2024-21626).
fn is_of_descriptors(path: &str) -> bool {
    let path = normal(path);
    let names: Vec<_> = path.iter().skip(1).filter_map(|name| name.to_str()).collect();
    matches!(names[..], ["proc", _, "fd", ..] | ["proc", _, "task", _, "fd", ..])
}

fn granted(input: &ContainerInput<'_>) -> Result<Granted, Error> {
    if input.container.privileged {
        return Ok(input.host.capabilities.iter().copied().collect::<HashSet<Capability>>().into());
    }
    let start = input.handler.base_spec.as_deref().and_then(base::capabilities);
    let start = start.unwrap_or_else(capabilities::default_set);
    capabilities::effective(start, &input.container.capabilities, &input.host.capabilities)
}

fn process(input: &ContainerInput<'_>, granted: &Granted) -> Result<Process, Error> {
    let container = input.container;
    let image = input.image.config.config().as_ref();
    let image_env = image.and_then(|image| image.env().clone()).unwrap_or_default();
    let image_cwd = image.and_then(|image| image.working_dir().clone()).unwrap_or_default();
    let cwd = [container.working_dir.as_str(), &image_cwd, "/"].into_iter().find(|cwd| !cwd.is_empty());
    let cwd = cwd.expect("the last one is not empty");
    if !cwd.starts_with('/') {
        return Err(Error::Invalid(format!("working_dir {cwd:?} is not absolute")));
    }
    if is_of_descriptors(cwd) {
        return Err(Error::Invalid(format!(
            "working_dir {cwd:?} is of descriptors, which may be another's than the container's"
        )));
    }
    let (oom_score_adj, _) = resources::clamp_oom_score_adj(container.resources.oom_score_adj, input.host);
    let mut process = Process::default();
    process
        .set_terminal(container.tty.then_some(true))
        .set_user(pod::user(input.user))
        .set_args(Some(args::resolve(&container.command, &container.args, image)?))
        .set_env(Some(env::resolve(container.tty, hostname(input), &image_env, &container.env)))
        .set_cwd(cwd.into())
        .set_capabilities(Some(capabilities::to_linux(granted)))
        // Inherited from the daemon, whose unit file sets them.
        .set_rlimits(None)
        .set_no_new_privileges(Some(container.no_new_privs))
        .set_apparmor_profile(apparmor::of_container(&container.apparmor, container.privileged, input.host)?)
        .set_oom_score_adj(Some(oom_score_adj));
    Ok(process)
}

/// The name that the container's UTS namespace has.
fn hostname<'a>(input: &ContainerInput<'a>) -> &'a str {
    let own = input.pod.hostname.as_str();
    if own.is_empty() || namespaces::host_network(&input.pod.namespaces) { &input.host.hostname } else { own }
}

fn all_mounts(input: &ContainerInput<'_>) -> Vec<oci_spec::runtime::Mount> {
    let container = input.container;
    let writable = container.privileged || input.handler.cgroup_writable;
    let defaults = mounts::defaults(mounts::Defaults {
        host_sys: namespaces::host_sys(&input.pod.namespaces),
        sys_writable: container.privileged,
        cgroup: Some(mounts::CgroupMount { writable }),
    });
    let defaults = base::mounts(input.handler.base_spec.as_deref(), container.privileged, defaults);
    mounts::merge(defaults, mounts::container_files(input.files, container.readonly_rootfs), input.mounts)
}

fn linux(input: &ContainerInput<'_>, granted: &Granted) -> Result<Linux, Error> {
    let container = input.container;
    let namespaces = namespaces::of_container(&namespaces::Container {
        modes: &container.namespaces,
        sandbox_pid: input.sandbox_pid,
        netns: input.netns,
        userns: input.userns,
        target_pid: input.target_pid,
        cgroup: input.host.cgroup,
        privileged: container.privileged,
    })?;
    let filter = seccomp::filter(
        &container.seccomp,
        &seccomp::Process {
            privileged: container.privileged,
            capabilities: &granted.set,
            host: input.host,
            localhost: input.seccomp,
        },
    )?;
    // kubelet sends the lists it wants, so an empty one means none, not the default.
    let (masked, readonly) = match input.handler.disable_proc_mount {
        _ if container.privileged => (None, None),
        true => (Some(masked_paths::default()), Some(get_default_readonly_paths())),
        false => {
            let readonly = &container.readonly_paths;
            (masked_paths::of_client(&container.masked_paths), (!readonly.is_empty()).then(|| readonly.clone()))
        }
    };
    let (uids, gids) = namespaces::mappings(&container.namespaces);
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces))
        .set_uid_mappings(uids)
        .set_gid_mappings(gids)
        .set_cgroups_path(Some(cgroup::path(&input.pod.cgroup_parent, input.id, input.handler.systemd_cgroup)?))
        .set_resources(Some(limits(input)?))
        .set_devices(devices::nodes(input.devices))
        .set_masked_paths(masked)
        .set_readonly_paths(readonly)
        .set_rootfs_propagation(mounts::rootfs_propagation(input.mounts))
        .set_seccomp(filter);
    Ok(linux)
}

fn limits(input: &ContainerInput<'_>) -> Result<LinuxResources, Error> {
    let handler = input.handler;
    let mut limits = resources::of_container(&input.container.resources, input.host)?;
    let all = input.container.privileged
        && (!handler.privileged_without_host_devices || handler.privileged_without_host_devices_all_devices_allowed);
    limits.set_devices(Some(if all { devices::all_allowed() } else { devices::rules(input.devices) }));
    Ok(limits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v_r09_a_working_directory_of_descriptors_is_one_however_it_is_written() {
        for path in
            ["/proc/self/fd/7", "/proc/self/fd", "//proc/./thread-self/../1/fd/3/", "/x/../proc/1/task/2/fd/9/etc"]
        {
            assert!(is_of_descriptors(path), "{path}");
        }
        for path in ["/", "/proc", "/proc/self", "/proc/self/fdinfo", "/srv/proc/self/fd", "/fd"] {
            assert!(!is_of_descriptors(path), "{path}");
        }
    }
}
