//! The name of every resource, as a function of the id of the pod or container that owns it.
//!
//! So whoever has an id can tear down all that may exist for it, with no other memory. Nothing here touches the disk.

use std::path::{Path, PathBuf};

use ::store::Namespace;

use crate::{Config, model::Id, oci::SandboxFiles};

/// Below root and state, what is of pods and containers, but for their bundles. Part of containerd's layout that cAdvisor, log
/// collectors and people know.
pub const CRI: &str = "io.containerd.grpc.v1.cri";
const TASKS: &str = "io.containerd.runtime.v2.task";

/// The directories under which everything lies.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    root: PathBuf,
    state: PathBuf,
    netns: PathBuf,
    namespace: Namespace,
}

impl Paths {
    pub(crate) fn new(config: &Config) -> Paths {
        Paths {
            root: config.root.clone(),
            state: config.state.clone(),
            netns: config.netns_dir.clone(),
            namespace: config.namespace.clone(),
        }
    }

    /// What the shim and the OCI runtime get: `config.json`, `rootfs`, and what they leave there.
    pub(crate) fn bundle(&self, id: &Id) -> PathBuf {
        self.bundles().join(id.as_str())
    }

    pub(crate) fn bundles(&self) -> PathBuf {
        self.state.join(TASKS).join(self.namespace.as_str())
    }

    pub(crate) fn rootfs(&self, id: &Id) -> PathBuf {
        self.bundle(id).join("rootfs")
    }

    /// A pod's files that outlive a boot.
    pub(crate) fn pod_root(&self, id: &Id) -> PathBuf {
        self.pod_roots().join(id.as_str())
    }

    pub(crate) fn pod_roots(&self) -> PathBuf {
        self.root.join(CRI).join("sandboxes")
    }

    pub(crate) fn pod_state(&self, id: &Id) -> PathBuf {
        self.pod_states().join(id.as_str())
    }

    pub(crate) fn pod_states(&self) -> PathBuf {
        self.state.join(CRI).join("sandboxes")
    }

    /// A container's directory: its image-defined volumes, and the mounts of its image volumes.
    pub(crate) fn container_root(&self, id: &Id) -> PathBuf {
        self.container_roots().join(id.as_str())
    }

    /// What a checkpoint of the container is made in.
    pub(crate) fn checkpoint(&self, id: &Id) -> PathBuf {
        self.container_root(id).join("checkpoint")
    }

    /// What a container is restored from, until it is started.
    pub(crate) fn restore(&self, id: &Id) -> PathBuf {
        self.container_root(id).join("restore")
    }

    pub(crate) fn container_roots(&self) -> PathBuf {
        self.root.join(CRI).join("containers")
    }

    /// The host directory of the nth image-defined volume.
    pub(crate) fn volume(&self, id: &Id, index: usize) -> PathBuf {
        self.container_root(id).join("volumes").join(index.to_string())
    }

    /// Where a container's image volumes are mounted, each in a directory named by its number.
    pub(crate) fn image_volumes(&self, id: &Id) -> PathBuf {
        self.container_root(id).join("image-volumes")
    }

    /// The mount of the nth image volume. Its parent is the volume's own and closed to other users of the host.
    pub(crate) fn image_volume(&self, id: &Id, index: usize) -> PathBuf {
        self.image_volumes(id).join(index.to_string()).join("root")
    }

    /// The files of the pod that its containers see. `host_ipc`: the host's shared memory instead of the pod's own.
    pub(crate) fn pod_files(&self, id: &Id, host_ipc: bool) -> SandboxFiles {
        let root = self.pod_root(id);
        SandboxFiles {
            hostname: root.join("hostname"),
            hosts: root.join("hosts"),
            resolv_conf: root.join("resolv.conf"),
            shm: if host_ipc { PathBuf::from("/dev/shm") } else { self.shm(id) },
        }
    }

    pub(crate) fn shm(&self, id: &Id) -> PathBuf {
        self.pod_state(id).join("shm")
    }

    /// The pinned user namespace. It lies below the pod's state directory and goes with it.
    pub(crate) fn userns(&self, id: &Id) -> PathBuf {
        self.pod_state(id).join("pinned-namespaces/user")
    }

    /// The pinned network namespace: `cni-` and the first 32 digits of the id in the form of a UUID, the form that
    /// tools which look for pods' namespaces know.
    pub(crate) fn netns(&self, id: &Id) -> PathBuf {
        let hex = id.as_str();
        let name = format!("cni-{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32]);
        self.netns.join(name)
    }
}

/// The snapshot of a container's nth image volume, a read-only view of the image's layers.
pub(crate) fn image_volume_key(id: &Id, index: usize) -> String {
    format!("{id}-image-volume-{index}")
}

/// The log of a container: only with a directory and a path, as CRI has it.
pub(crate) fn log_path(directory: &str, path: &str) -> Option<PathBuf> {
    (!directory.is_empty() && !path.is_empty()).then(|| Path::new(directory).join(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_the_one_that_node_tools_know() {
        let paths = Paths {
            root: "/var/lib/containerd".into(),
            state: "/run/containerd".into(),
            netns: "/run/netns".into(),
            namespace: Namespace::k8s(),
        };
        let id = Id::parse(&"0123456789abcdef".repeat(4)).unwrap();
        let at = |path: PathBuf| path.to_str().unwrap().replace(id.as_str(), "ID");
        assert_eq!(at(paths.rootfs(&id)), "/run/containerd/io.containerd.runtime.v2.task/k8s.io/ID/rootfs");
        assert_eq!(at(paths.pod_root(&id)), "/var/lib/containerd/io.containerd.grpc.v1.cri/sandboxes/ID");
        assert_eq!(at(paths.shm(&id)), "/run/containerd/io.containerd.grpc.v1.cri/sandboxes/ID/shm");
        assert_eq!(at(paths.volume(&id, 1)), "/var/lib/containerd/io.containerd.grpc.v1.cri/containers/ID/volumes/1");
        assert_eq!(
            at(paths.image_volume(&id, 0)),
            "/var/lib/containerd/io.containerd.grpc.v1.cri/containers/ID/image-volumes/0/root"
        );
        assert_eq!(image_volume_key(&id, 2), format!("{id}-image-volume-2"));
        assert_eq!(at(paths.netns(&id)), "/run/netns/cni-01234567-89ab-cdef-0123-456789abcdef");
    }

    #[test]
    fn a_log_needs_a_directory_and_a_path() {
        assert_eq!(log_path("/var/log/pods/p", "c/0.log"), Some("/var/log/pods/p/c/0.log".into()));
        assert_eq!(log_path("", "c/0.log"), None);
        assert_eq!(log_path("/var/log/pods/p", ""), None);
    }
}
