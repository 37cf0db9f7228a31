//! The cgroup of a container, found through its init process or by its path: which processes it holds, and what the
//! kernel killed.
//!
//! Only reads. Works on cgroup v1 (the memory controller's hierarchy), on hybrid hosts, and on v2.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

const MOUNT: &str = "/sys/fs/cgroup";

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cgroup {
    directory: PathBuf,
    version: Version,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    One,
    Two,
}

impl Cgroup {
    /// Nothing if the process is gone or the host has no memory controller to look at.
    pub(crate) fn of_process(pid: i32) -> Option<Self> {
        let unified = Path::new(MOUNT).join("cgroup.controllers").exists();
        parse(&fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?, unified)
    }

    /// The same, if it is the process's own: not the root, and not the one that this program is in. Of those everything would
    /// be killed with the container.
    pub(crate) fn of_own(pid: i32) -> Option<Self> {
        let found = Self::of_process(pid)?;
        let own = Self::of_process(std::process::id().cast_signed());
        (own.as_ref() != Some(&found) && found != Self::at(Path::new("/"))).then_some(found)
    }

    /// The cgroup of this path, below the root of whatever hierarchy there is.
    pub(crate) fn at(path: &Path) -> Self {
        let unified = Path::new(MOUNT).join("cgroup.controllers").exists();
        let (root, version) = match unified {
            true => (PathBuf::from(MOUNT), Version::Two),
            false => (Path::new(MOUNT).join("memory"), Version::One),
        };
        Self { directory: root.join(path.strip_prefix("/").unwrap_or(path)), version }
    }

    /// Every process in it, nested cgroups included. A directory that vanishes meanwhile holds none.
    pub(crate) fn pids(&self) -> BTreeSet<i32> {
        let mut pids = BTreeSet::new();
        self.visit(&self.directory, &mut |directory| {
            let text = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
            pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
        });
        pids
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The cgroup above this one, if it counts what happens in this one: on v2 only.
    pub(crate) fn parent(&self) -> Option<Self> {
        match self.version {
            Version::One => None,
            Version::Two => Some(Self { directory: self.directory.parent()?.to_owned(), version: Version::Two }),
        }
    }

    /// The names of the cgroups directly in this one.
    pub(crate) fn children(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.directory).into_iter().flatten().flatten();
        let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
    }

    /// How many processes the kernel has killed here for memory; nothing of a cgroup that is gone.
    pub(crate) fn oom_kills(&self) -> Option<u64> {
        match self.version {
            // The counter of v1 leaves nested cgroups out.
            Version::One => {
                let mut kills = counter(&self.directory.join("memory.oom_control"))?;
                for child in self.children() {
                    self.visit(&self.directory.join(child), &mut |directory| {
                        kills += counter(&directory.join("memory.oom_control")).unwrap_or(0);
                    });
                }
                Some(kills)
            }
            Version::Two => counter(&self.directory.join("memory.events")),
        }
    }

    #[cfg(test)]
    pub(crate) fn unified(directory: PathBuf) -> Self {
        Self { directory, version: Version::Two }
    }

    fn visit(&self, directory: &Path, see: &mut impl FnMut(&Path)) {
        see(directory);
        let Ok(entries) = fs::read_dir(directory) else { return };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.visit(&entry.path(), see);
            }
        }
    }
}

fn parse(text: &str, unified: bool) -> Option<Cgroup> {
    let (version, path) = text.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        match (unified, controllers) {
            (true, "") => Some((Version::Two, path)),
            (false, list) if list.split(',').any(|name| name == "memory") => Some((Version::One, path)),
            _ => None,
        }
    })?;
    let root = match version {
        Version::One => Path::new(MOUNT).join("memory"),
        Version::Two => PathBuf::from(MOUNT),
    };
    Some(Cgroup { directory: root.join(path.trim_start_matches('/')), version })
}

/// The value of `oom_kill` in a file of `name value` lines; nothing if the file is gone.
fn counter(file: &Path) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    Some(value.and_then(|value| value.trim().parse().ok()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hybrid_host_uses_the_memory_hierarchy() {
        let found = parse("11:cpu,cpuacct:/a\n4:memory:/k8s/x\n0::/u\n", false);
        let expected = Cgroup { directory: "/sys/fs/cgroup/memory/k8s/x".into(), version: Version::One };
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn a_unified_host_uses_its_only_hierarchy() {
        let found = parse("0::/kubepods.slice/x.scope\n", true);
        let expected = Cgroup { directory: "/sys/fs/cgroup/kubepods.slice/x.scope".into(), version: Version::Two };
        assert_eq!(found, Some(expected));
    }

    #[test]
    fn kills_and_processes_of_nested_cgroups_count() {
        let dir = tempfile::tempdir().unwrap();
        let nested = dir.path().join("nested");
        fs::create_dir(&nested).unwrap();
        for (directory, pid, kills) in [(dir.path(), 10, 1), (nested.as_path(), 11, 2)] {
            fs::write(directory.join("cgroup.procs"), format!("{pid}\n")).unwrap();
            fs::write(directory.join("memory.oom_control"), format!("under_oom 0\noom_kill {kills}\n")).unwrap();
        }
        let cgroup = Cgroup { directory: dir.path().to_owned(), version: Version::One };
        assert_eq!((cgroup.pids(), cgroup.oom_kills()), (BTreeSet::from([10, 11]), Some(3)));
        drop(dir);
        assert_eq!((cgroup.pids(), cgroup.oom_kills()), (BTreeSet::new(), None));
    }
}
