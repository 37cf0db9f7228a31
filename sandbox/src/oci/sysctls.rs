//! Sysctls of a pod: which may be set at all, and the two that every pod with a network of its own gets.
//!
//! A sysctl that the kernel does not keep for each namespace would change the whole node, and so would one of a namespace
//! that the pod shares with the host. The kernel's `Documentation/admin-guide/sysctl` says which belong to a namespace;
//! OCI runtimes refuse the same ones, with less to say.

use std::collections::HashMap;

use super::namespaces;
use crate::{
    error::Error,
    model::{NamespaceMode, PodSpec},
    oci::PodInput,
};

const FIELD: &str = "config.linux.sysctls";

/// Those of System V IPC, beside POSIX message queues (`fs.mqueue.*`).
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Refuses the sysctls that would not stay in the pod's own namespaces. For runtimes that share the host's kernel: that of
/// a virtual machine belongs to the pod as a whole.
pub(crate) fn check(pod: &PodSpec) -> Result<(), Error> {
    let host_network = namespaces::host_network(&pod.namespaces);
    let host_ipc = pod.namespaces.ipc == NamespaceMode::Node;
    for name in pod.sysctls.keys() {
        let dotted = dotted(name);
        let refused = match dotted.as_str() {
            "kernel.hostname" => "is the pod's hostname; set config.hostname",
            "kernel.domainname" if host_network => "is the host's for a pod in the host's network",
            "kernel.domainname" => continue,
            net if net.starts_with("net.") && host_network => "would change the host's network, which this pod is in",
            net if net.starts_with("net.") => continue,
            ipc if IPC.contains(&ipc) || ipc.starts_with("fs.mqueue.") => match host_ipc {
                true => "would change the host's IPC namespace, which this pod is in",
                false => continue,
            },
            _ => "is not kept for each namespace by the kernel, so it would change the whole node; set it there",
        };
        return Err(Error::Invalid(format!("{FIELD}: {name:?} {refused}")));
    }
    Ok(())
}

/// The pod's, and the two that let unprivileged processes use low ports and ping in a network of their own.
pub(super) fn of_pod(input: &PodInput<'_>) -> HashMap<String, String> {
    let mut found: HashMap<String, String> =
        input.pod.sysctls.iter().map(|(name, value)| (dotted(name), value.clone())).collect();
    if namespaces::host_network(&input.pod.namespaces) {
        return found;
    }
    if !input.handler.keep_privileged_ports {
        found.entry("net.ipv4.ip_unprivileged_port_start".into()).or_insert_with(|| "0".into());
    }
    if !input.handler.keep_ping_group_range {
        // The kernel takes only groups that the namespace has.
        let last = input.pod.namespaces.user.as_ref().map_or(2_147_483_647, |user| user.gid.length.saturating_sub(1));
        found.entry("net.ipv4.ping_group_range".into()).or_insert_with(|| format!("0 {last}"));
    }
    found
}

/// The form that OCI runtimes take; sysctl(8) takes slashes as well.
fn dotted(name: &str) -> String {
    name.replace('/', ".")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Namespaces;

    #[test]
    fn a_sysctl_that_would_reach_beyond_the_pod_is_refused_by_name() {
        let host_network = Namespaces { network: NamespaceMode::Node, ..Namespaces::default() };
        let host_ipc = Namespaces { ipc: NamespaceMode::Node, ..Namespaces::default() };
        let own = Namespaces::default();
        let check = |name: &str, namespaces: &Namespaces, expected: Option<&str>| {
            let sysctls = [(name.to_owned(), "1".to_owned())].into();
            let pod = PodSpec { sysctls, namespaces: namespaces.clone(), ..crate::store::tests::pod().spec };
            let refused = super::check(&pod).err().map(|error| error.chain());
            let expected = expected.map(|why| format!("config.linux.sysctls: {name:?} {why}"));
            assert_eq!(refused, expected, "{name}");
        };
        for name in ["net.core.somaxconn", "net/ipv4/ip_forward", "kernel.shmmax", "fs.mqueue.msg_max", "kernel.sem"] {
            check(name, &own, None);
        }
        check("kernel.domainname", &own, None);
        check("kernel.shmmax", &host_network, None);
        check("net.core.somaxconn", &host_ipc, None);
        let network = "would change the host's network, which this pod is in";
        check("net.core.somaxconn", &host_network, Some(network));
        check("net/core/somaxconn", &host_network, Some(network));
        let ipc = "would change the host's IPC namespace, which this pod is in";
        check("kernel.shm_rmid_forced", &host_ipc, Some(ipc));
        check("fs.mqueue.msg_max", &host_ipc, Some(ipc));
        check("kernel.domainname", &host_network, Some("is the host's for a pod in the host's network"));
        check("kernel.hostname", &own, Some("is the pod's hostname; set config.hostname"));
        let node = "is not kept for each namespace by the kernel, so it would change the whole node; set it there";
        for name in ["vm.swappiness", "kernel.panic", "kernel.shm", "fs.file-max", "network.x", "net"] {
            check(name, &own, Some(node));
        }
    }
}
