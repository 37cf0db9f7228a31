//! The spec of a pause container.

use oci_spec::runtime::{Linux, Process, Root, Spec, User, get_default_readonly_paths};

use super::{
    PodInput, annotations, apparmor, args, base, capabilities, cgroup, devices, env, masked_paths, mounts, namespaces,
    resources, seccomp, sysctls,
};
use crate::error::Error;

/// The kernel kills the pause process last: with it the whole pod would go.
const OOM_SCORE_ADJ: i64 = -998;

pub(super) fn spec(input: &PodInput<'_>) -> Result<Spec, Error> {
    let pod = input.pod;
    let own_uts = !namespaces::host_network(&pod.namespaces);
    let mut root = Root::default();
    root.set_path("rootfs".into()).set_readonly(Some(true));
    // A pause process has no use for its cgroup's files.
    let defaults = mounts::defaults(mounts::Defaults {
        host_sys: namespaces::host_sys(&pod.namespaces),
        sys_writable: pod.privileged,
        cgroup: None,
    });
    let defaults = base::mounts(input.handler.base_spec.as_deref(), pod.privileged, defaults);
    let mut spec = Spec::default();
    spec.set_version(input.oci_version.to_owned())
        .set_root(Some(root))
        // Without a UTS namespace of its own the runtime would rename the host.
        .set_hostname((own_uts && !pod.hostname.is_empty()).then(|| pod.hostname.clone()))
        .set_process(Some(process(input)?))
        .set_mounts(Some(mounts::merge(defaults, mounts::pause_files(input.files), &[])))
        .set_annotations(Some(annotations::of_pod(input.id, pod, input.image, input.handler)))
        .set_linux(Some(linux(input)?));
    Ok(spec)
}

fn process(input: &PodInput<'_>) -> Result<Process, Error> {
    let image = input.image.config.config().as_ref();
    let args = args::resolve(&[], &[], image).map_err(|_| {
        Error::Invalid(format!("pause image {:?} has neither entrypoint nor cmd", input.image.requested))
    })?;
    let image_env = image.and_then(|image| image.env().clone()).unwrap_or_default();
    let cwd = image.and_then(|image| image.working_dir().clone()).filter(|cwd| !cwd.is_empty());
    let (oom_score_adj, _) = resources::clamp_oom_score_adj(OOM_SCORE_ADJ, input.host);
    let mut process = Process::default();
    process
        .set_terminal(None)
        .set_user(user(input.user))
        .set_args(Some(args))
        .set_env(Some(env::resolve(false, "", &image_env, &[])))
        .set_cwd(cwd.unwrap_or_else(|| "/".into()).into())
        .set_capabilities(Some(capabilities::to_linux(&capabilities::default_set().into())))
        .set_rlimits(None)
        .set_no_new_privileges(Some(true))
        .set_apparmor_profile(apparmor::of_pod(&input.pod.apparmor, input.pod.privileged, input.host)?)
        .set_oom_score_adj(Some(oom_score_adj));
    Ok(process)
}

pub(super) fn user(found: &crate::model::ContainerUser) -> User {
    let mut user = User::default();
    user.set_uid(found.uid).set_gid(found.gid).set_additional_gids(Some(found.supplemental_groups.clone()));
    user
}

fn linux(input: &PodInput<'_>) -> Result<Linux, Error> {
    let pod = input.pod;
    let filter = seccomp::filter(
        &pod.seccomp,
        &seccomp::Process {
            privileged: pod.privileged,
            capabilities: &capabilities::default_set(),
            host: input.host,
            localhost: input.seccomp,
        },
    )?;
    let mut limits = resources::of_pod();
    limits.set_devices(Some(devices::all_denied()));
    let (uids, gids) = namespaces::mappings(&pod.namespaces);
    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces::of_pod(&pod.namespaces, input.netns, input.userns)?))
        .set_uid_mappings(uids)
        .set_gid_mappings(gids)
        .set_sysctl(Some(sysctls::of_pod(input)))
        .set_cgroups_path(Some(cgroup::path(&pod.cgroup_parent, input.id, input.handler.systemd_cgroup)?))
        .set_resources(Some(limits))
        .set_masked_paths(Some(masked_paths::default()))
        .set_readonly_paths(Some(get_default_readonly_paths()))
        .set_seccomp(filter);
    Ok(linux)
}
