//! Where a container's cgroup is, in the form that runc and cAdvisor both understand.

use std::path::{Path, PathBuf};

use crate::{error::Error, model::Id};

/// `linux.cgroupsPath` below the pod's parent.
///
/// With systemd's cgroup driver it is `slice:prefix:name`, which becomes `cri-containerd-<id>.scope`: agents on the node
/// find containers by that name. The form of the parent and the runtime's driver have to agree, or the runtime would
/// fail later and less clearly.
pub fn path(parent: &str, id: &Id, systemd: bool) -> Result<PathBuf, Error> {
    if parent.split('/').any(|part| part == "..") {
        return Err(Error::Invalid(format!("cgroup_parent {parent:?} leaves its parent")));
    }
    match (parent, parent.ends_with(".slice"), systemd) {
        ("", _, true) => Ok(PathBuf::from(format!("system.slice:cri-containerd:{id}"))),
        ("", _, false) => Ok(PathBuf::from(format!("/k8s.io/{id}"))),
        (_, true, true) => {
            let slice = Path::new(parent).file_name().unwrap_or_default().to_string_lossy();
            Ok(PathBuf::from(format!("{slice}:cri-containerd:{id}")))
        }
        (_, false, true) => Err(Error::Invalid(format!(
            "cgroup_parent {parent:?} is not a systemd slice, but the runtime handler has SystemdCgroup = true"
        ))),
        (_, _, false) => Ok(Path::new("/").join(parent).join(id.as_str())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_follows_the_driver() {
        let id = Id::parse(&"a".repeat(64)).unwrap();
        let check = |parent: &str, systemd| match path(parent, &id, systemd) {
            Ok(path) => path.to_str().unwrap().replace(id.as_str(), "ID"),
            Err(error) => error.to_string(),
        };
        assert_eq!(check("", false), "/k8s.io/ID");
        assert_eq!(check("/kubepods/burstable/pod1", false), "/kubepods/burstable/pod1/ID");
        assert_eq!(check("kubepods/pod1", false), "/kubepods/pod1/ID");
        assert_eq!(check("/kubepods.slice/kubepods-pod1.slice", true), "kubepods-pod1.slice:cri-containerd:ID");
        assert_eq!(check("", true), "system.slice:cri-containerd:ID");
        assert_eq!(check("/a/../../b", false), "cgroup_parent \"/a/../../b\" leaves its parent");
        assert!(check("/kubepods", true).contains("is not a systemd slice"));
    }
}
