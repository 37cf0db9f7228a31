//! Where the cgroup of a container or a pod is, and which version's files are read there.
//!
//! The path is what the OCI spec says, that is, what the runtime was told; it is never searched for.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use super::{CgroupUsage, Pressure, psi, v1, v2};
use crate::{host::CgroupMode, model::PodView, node::cgroup::expand};

/// The mounted cgroup file systems.
#[derive(Clone, Debug)]
pub(super) struct Hierarchy {
    root: PathBuf,
    mode: CgroupMode,
}

impl Hierarchy {
    pub(super) fn new(root: &Path, mode: CgroupMode) -> Hierarchy {
        Hierarchy { root: root.to_owned(), mode }
    }

    /// All that the cgroup tells; `None` if it is not there.
    pub(super) fn read(&self, directory: &Path) -> Option<CgroupUsage> {
        match self.mode {
            CgroupMode::V2 => v2::read(&self.root.join(directory)),
            CgroupMode::V1 => v1::read(&self.root, directory),
            CgroupMode::Hybrid => {
                let mut usage = v1::read(&self.root, directory)?;
                // Pressure needs no controller: the runtime makes the cgroup in this hierarchy, too.
                let unified = Cgroup(self.root.join("unified").join(directory));
                usage.cpu.pressure = unified.pressure("cpu.pressure");
                usage.io.pressure = unified.pressure("io.pressure");
                if let Some(memory) = &mut usage.memory {
                    memory.pressure = unified.pressure("memory.pressure");
                }
                Some(usage)
            }
        }
    }

    /// Nanoseconds of CPU time alone, which is one file.
    pub(super) fn cpu_time(&self, directory: &Path) -> Option<u64> {
        match self.mode {
            CgroupMode::V2 => v2::cpu_time(&self.root.join(directory)),
            CgroupMode::V1 | CgroupMode::Hybrid => v1::cpu_time(&self.root, directory),
        }
    }

    /// The processes in the cgroup and in those below it.
    pub(super) fn processes(&self, directory: &Path) -> Vec<i32> {
        let cgroup = match self.mode {
            CgroupMode::V2 => self.root.join(directory),
            CgroupMode::V1 | CgroupMode::Hybrid => self.root.join("pids").join(directory),
        };
        let mut found = Vec::new();
        collect_processes(&cgroup, &mut found);
        found
    }
}

/// The directory of one cgroup in one hierarchy.
pub(super) struct Cgroup(pub(super) PathBuf);

impl Cgroup {
    /// A file's text. `None` is no error: which files there are depends on the kernel, its configuration and the
    /// controllers enabled, some fail to be read where their feature is switched off, and all vanish with the cgroup.
    pub(super) fn text(&self, file: &str) -> Option<String> {
        fs::read_to_string(self.0.join(file)).ok()
    }

    pub(super) fn number(&self, file: &str) -> Option<u64> {
        parse_limit(&self.text(file)?)
    }

    pub(super) fn pressure(&self, file: &str) -> Option<Pressure> {
        psi::parse(&self.text(file)?)
    }

    /// The sizes of huge pages for which there is `hugetlb.<size>.<file>`, in order.
    pub(super) fn huge_page_sizes(&self, file: &str) -> Vec<String> {
        let Ok(entries) = fs::read_dir(&self.0) else { return Vec::new() };
        let name = |entry: io::Result<fs::DirEntry>| entry.ok()?.file_name().into_string().ok();
        let size =
            |name: String| Some(name.strip_prefix("hugetlb.")?.strip_suffix(file)?.strip_suffix('.')?.to_owned());
        let sizes = entries.filter_map(name).filter_map(size);
        let mut sizes: Vec<String> = sizes.filter(|size| !size.contains('.')).collect();
        sizes.sort();
        sizes
    }
}

/// A number, or `None` for `max` and for what version 1 writes when there is no limit: the largest multiple of a page.
pub(super) fn parse_limit(text: &str) -> Option<u64> {
    text.trim().parse().ok().filter(|limit| *limit < 1 << 62)
}

/// The value of a key in lines of `key value`.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// `8:0` of a block device.
pub(super) fn parse_device(text: &str) -> Option<(u64, u64)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// The cgroup in an OCI spec, below a hierarchy's root; `None` if the spec names none.
pub(crate) fn directory(oci_spec: &serde_json::Value) -> Option<PathBuf> {
    let path = oci_spec.pointer("/linux/cgroupsPath")?.as_str()?;
    // systemd's driver: a scope in a slice.
    if let [slice, prefix, name] = path.split(':').collect::<Vec<_>>()[..] {
        return Some(expand(slice).join(format!("{prefix}-{name}.scope")));
    }
    let clean = !path.split('/').any(|part| part == "..");
    clean.then(|| PathBuf::from(path.trim_start_matches('/')))
}

/// The cgroup that holds all of a pod's. `None` without a parent of its own: pods then share one that says nothing
/// about any of them.
pub(super) fn of_pod(view: &PodView) -> Option<PathBuf> {
    if view.spec.cgroup_parent.trim_matches('/').is_empty() {
        return None;
    }
    Some(directory(&view.oci_spec)?.parent()?.to_owned())
}

fn collect_processes(directory: &Path, found: &mut Vec<i32>) {
    // What cannot be read has just vanished, with its processes.
    let Ok(text) = fs::read_to_string(directory.join("cgroup.procs")) else { return };
    // 0 is a process that this pid namespace cannot see.
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            collect_processes(&entry.path(), found);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_is_the_one_that_the_runtime_was_told() {
        let check = |path: &str, expected: Option<&str>| {
            let spec = serde_json::json!({"linux": {"cgroupsPath": path}});
            assert_eq!(directory(&spec), expected.map(PathBuf::from), "{path}");
        };
        check("/k8s.io/abc", Some("k8s.io/abc"));
        check("/kubepods/burstable/pod1/abc", Some("kubepods/burstable/pod1/abc"));
        check(
            "kubepods-pod1.slice:cri-containerd:abc",
            Some("kubepods.slice/kubepods-pod1.slice/cri-containerd-abc.scope"),
        );
        check("/a/../../b", None);
        assert_eq!(directory(&serde_json::Value::Null), None);
    }

    #[test]
    fn limits_that_are_none_are_told_from_limits() {
        assert_eq!(parse_limit("67108864\n"), Some(67_108_864));
        assert_eq!(parse_limit("max\n"), None);
        assert_eq!(parse_limit("9223372036854771712\n"), None);
        assert_eq!(parse_limit("-1\n"), None);
        assert_eq!(parse_limit(""), None);
    }

    #[test]
    fn a_key_is_found_by_its_whole_name() {
        let text = "total_rss_huge 1\nrss 2\ntotal_rss 3\n";
        assert_eq!(keyed(text, "rss"), Some(2));
        assert_eq!(keyed(text, "total_rss"), Some(3));
        assert_eq!(keyed(text, "total"), None);
    }

    #[test]
    fn processes_of_nested_cgroups_are_counted() {
        let root = tempfile::tempdir().unwrap();
        let nested = root.path().join("pids/k8s.io/abc/init/below");
        fs::create_dir_all(&nested).unwrap();
        for (directory, procs) in [("", "7\n0\n8\n"), ("init", ""), ("init/below", "9\n")] {
            fs::write(root.path().join("pids/k8s.io/abc").join(directory).join("cgroup.procs"), procs).unwrap();
        }
        let hierarchy = Hierarchy::new(root.path(), CgroupMode::Hybrid);
        assert_eq!(hierarchy.processes(Path::new("k8s.io/abc")), [7, 8, 9]);
        assert_eq!(hierarchy.processes(Path::new("k8s.io/gone")), [0; 0]);
    }
}
