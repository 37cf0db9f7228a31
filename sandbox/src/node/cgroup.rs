//! Killing what is left in a container's cgroup when its shim is gone.
//!
//! Only the leaf that is named by the container's own id is touched: the last component of the path must be the id, so
//! that a mistake in a record can never reach a pod's parent, a slice, or the root.

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill as signal},
    unistd::Pid,
};

use crate::{Error, model::Id};

const CGROUP: &str = "/sys/fs/cgroup";

/// Version 1 has no kill file: its processes are killed until none is left, against those that fork meanwhile.
const ROUNDS_FOR: Duration = Duration::from_secs(5);

/// Kills every process in the leaf. A cgroup that is not there has none.
pub(super) fn kill(cgroups_path: &Path) -> Result<(), Error> {
    let Some(leaf) = leaf(cgroups_path) else {
        return Err(Error::plain(format!("cgroup {}: it is not named by a container's id", cgroups_path.display())));
    };
    let failed = |error| Error::failed(format!("kill the processes of cgroup {}", cgroups_path.display()), error);
    for root in hierarchies().map_err(failed)? {
        let Some(dir) = find(&root, &leaf) else { continue };
        match fs::write(dir.join("cgroup.kill"), "1") {
            Ok(()) => {}
            // No such file: version 1, or version 2 before Linux 5.14. Anything else as well is worth the slow way.
            Err(_) => kill_each(&dir).map_err(failed)?,
        }
    }
    Ok(())
}

/// Where the leaf is below a hierarchy's root.
enum Leaf {
    Path(PathBuf),
    /// systemd's driver: a scope of this name, below the slice.
    Scope {
        slice: String,
        name: String,
    },
}

fn leaf(cgroups_path: &Path) -> Option<Leaf> {
    let text = cgroups_path.to_str()?;
    if let [slice, prefix, id] = text.split(':').collect::<Vec<_>>()[..] {
        Id::parse(id)?;
        return Some(Leaf::Scope { slice: slice.to_owned(), name: format!("{prefix}-{id}.scope") });
    }
    Id::parse(cgroups_path.file_name()?.to_str()?)?;
    let clean = !text.split('/').any(|part| part == "..");
    clean.then(|| Leaf::Path(PathBuf::from(text.trim_start_matches('/'))))
}

fn hierarchies() -> io::Result<Vec<PathBuf>> {
    let root = PathBuf::from(CGROUP);
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(root)? {
        let entry = entry?;
        // Links are second names of joined controllers (cpu -> cpu,cpuacct).
        if entry.file_type()?.is_dir() {
            found.push(entry.path());
        }
    }
    Ok(found)
}

fn find(root: &Path, leaf: &Leaf) -> Option<PathBuf> {
    let dir = match leaf {
        Leaf::Path(path) => root.join(path),
        Leaf::Scope { slice, name } => root.join(expand(slice)).join(name),
    };
    dir.is_dir().then_some(dir)
}

/// systemd nests slices by the dashes in their names: `a-b.slice` is in `a.slice`.
pub(crate) fn expand(slice: &str) -> PathBuf {
    let stem = slice.strip_suffix(".slice").unwrap_or(slice);
    let mut path = PathBuf::new();
    for (end, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
        path.push(format!("{}.slice", &stem[..end]));
    }
    path
}

fn kill_each(dir: &Path) -> io::Result<()> {
    let until = Instant::now() + ROUNDS_FOR;
    loop {
        let pids = processes(dir)?;
        if pids.is_empty() {
            return Ok(());
        }
        for pid in pids {
            match signal(pid, Signal::SIGKILL) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if Instant::now() > until {
            return Err(io::Error::other("processes are left after five seconds of killing"));
        }
        // A killed process leaves the file when it is reaped, which is another's work.
        thread::sleep(Duration::from_millis(10));
    }
}

/// The processes in the cgroup and in those below it.
fn processes(dir: &Path) -> io::Result<Vec<Pid>> {
    let text = match fs::read_to_string(dir.join("cgroup.procs")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    // A pid of 0 is a process of another pid namespace: signalling 0 would be signalling ourselves.
    let mut pids: Vec<Pid> =
        text.lines().filter_map(|line| line.parse().ok()).filter(|pid| *pid > 0).map(Pid::from_raw).collect();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            pids.extend(processes(&entry.path())?);
        }
    }
    Ok(pids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_cgroup_named_by_an_id_is_a_leaf() {
        let id = "a".repeat(64);
        for wrong in ["/", "/k8s.io", "/kubepods/burstable", "", "system.slice:cri-containerd:x", "kubepods.slice"] {
            assert!(kill(Path::new(wrong)).is_err(), "{wrong}");
        }
        assert!(leaf(Path::new(&format!("/a/../{id}"))).is_none());
        assert!(
            matches!(leaf(Path::new(&format!("/k8s.io/{id}"))), Some(Leaf::Path(path)) if path.starts_with("k8s.io"))
        );
    }

    #[test]
    fn slices_nest_by_their_dashes() {
        assert_eq!(
            expand("kubepods-besteffort-pod1.slice"),
            Path::new("kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice")
        );
        assert_eq!(expand("system.slice"), Path::new("system.slice"));
    }

    #[test]
    fn a_cgroup_that_is_not_there_has_nothing_to_kill() {
        kill(Path::new(&format!("/k8s.io/{}", "f".repeat(64)))).unwrap();
    }
}
