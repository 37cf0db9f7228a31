//! What a test left on the machine: everything that carries the node's directory, cgroup, network or sockets in its name,
//! told one line each.
//!
//! Only what can be told to be the node's is looked at, so other programs on the machine do not matter. In the places that
//! all nodes share (`/run/netns`, `/run/containerd/s`, the `k8s.io` cgroups), a name is a function of a pod's or container's
//! id; the ids are those that the daemon's log, its bundles or a client have named.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    sync::Mutex,
};

use rusqlite::{Connection, OpenFlags};
use serde_json::Value;

use crate::{command, layer::sha256};

/// What is looked for.
#[derive(Debug)]
pub struct Leakcheck {
    pub dir: PathBuf,
    /// Without the leading slash.
    pub cgroup_parent: String,
    pub network: String,
    pub bridge: String,
    /// Of pods and containers. Locked for single statements only.
    ids: Mutex<BTreeSet<String>>,
}

impl Leakcheck {
    pub fn new(dir: &Path, cgroup_parent: &str, network: &str, bridge: &str) -> Leakcheck {
        Leakcheck {
            dir: dir.to_owned(),
            cgroup_parent: cgroup_parent.to_owned(),
            network: network.to_owned(),
            bridge: bridge.to_owned(),
            ids: Mutex::default(),
        }
    }

    /// Everything that is there and belongs to no pod any more, once the node has none. `daemon` is no leak.
    pub fn find(&self, daemon: Option<u32>) -> Vec<String> {
        let mut found = Vec::new();
        found.extend(self.processes().into_iter().filter(|(pid, _)| Some(*pid) != daemon).map(|(_, what)| what));
        found.extend(self.mounts().into_iter().map(|line| format!("mount: {line}")));
        found.extend(self.cgroups().into_iter().map(|path| format!("cgroup: {}", path.display())));
        found.extend(self.links().into_iter().map(|name| format!("link: {name} on {}", self.bridge)));
        found.extend(self.addresses().into_iter().map(|path| format!("address: {}", path.display())));
        found.extend(self.cache_files().into_iter().map(|path| format!("cni cache: {}", path.display())));
        found.extend(self.directories());
        found.extend(self.snapshots());
        found.extend(self.shared().into_iter().map(|path| format!("shared: {}", path.display())));
        found
    }

    /// Takes note of the ids that have bundles now, or were told by a client: what later has their names is the node's.
    pub fn note(&self, told: impl IntoIterator<Item = String>) {
        let bundles = entries(&self.dir.join("state/io.containerd.runtime.v2.task/k8s.io"));
        let mut ids = self.ids.lock().unwrap();
        ids.extend(told);
        ids.extend(bundles.iter().map(|path| name(path).to_owned()));
    }

    /// What there is of the ids in the places that all nodes of a machine share.
    pub fn shared(&self) -> Vec<PathBuf> {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let words = log.split(|c: char| !c.is_ascii_hexdigit()).filter(|word| word.len() == 64).map(str::to_owned);
        self.note(words);
        let ids = self.ids.lock().unwrap().clone();
        let hierarchies = hierarchies();
        let mut found = Vec::new();
        for id in ids.iter().filter(|id| id.len() == 64) {
            // The shim contract: the digest of the daemon's socket, the namespace and the id.
            let socket = sha256(format!("{}/k8s.io/{id}", self.dir.join("cri.sock").display()).as_bytes());
            found.push(Path::new("/run/containerd/s").join(socket.trim_start_matches("sha256:")));
            let netns = format!("cni-{}-{}-{}-{}-{}", &id[..8], &id[8..12], &id[12..16], &id[16..20], &id[20..32]);
            found.push(Path::new("/run/netns").join(netns));
            found.extend(hierarchies.iter().map(|root| root.join("k8s.io").join(id)));
        }
        found.retain(|path| path.exists());
        found
    }

    /// Processes that run in, with, or below the node's directories, or in its cgroups.
    pub fn processes(&self) -> Vec<(u32, String)> {
        let own = std::process::id();
        let pids = entries(Path::new("/proc")).into_iter().filter_map(|path| name(&path).parse::<u32>().ok());
        pids.filter(|pid| *pid != own)
            .filter_map(|pid| {
                let at = PathBuf::from(format!("/proc/{pid}"));
                let command = fs::read(at.join("cmdline")).unwrap_or_default();
                let command = String::from_utf8_lossy(&command).replace('\0', " ");
                let cwd = fs::read_link(at.join("cwd")).unwrap_or_default();
                let cgroups = fs::read_to_string(at.join("cgroup")).unwrap_or_default();
                let dir = self.dir.to_str().unwrap();
                let ours = command.contains(dir)
                    || cwd.starts_with(&self.dir)
                    || cgroups.contains(&format!("/{}", self.cgroup_parent));
                ours.then(|| (pid, format!("process: {pid} {}", command.trim())))
            })
            .collect()
    }

    fn mounts(&self) -> Vec<String> {
        let dir = self.dir.to_str().unwrap();
        let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
        all.lines().filter(|line| line.contains(dir)).map(str::to_owned).collect()
    }

    /// Mount points below the node's directory, the deepest first.
    pub fn mount_points(&self) -> Vec<PathBuf> {
        let points = self.mounts().into_iter().filter_map(|line| line.split(' ').nth(4).map(PathBuf::from));
        points.filter(|point| point.starts_with(&self.dir)).rev().collect()
    }

    /// Everything below the node's cgroup, in every hierarchy, the deepest first.
    pub fn cgroups(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for parent in self.cgroup_parents() {
            descend(&parent, &mut found);
        }
        found
    }

    /// The node's own cgroup in each hierarchy: made by the OCI runtime on the way to a container's, owned by whoever named it.
    pub fn cgroup_parents(&self) -> Vec<PathBuf> {
        hierarchies().into_iter().map(|root| root.join(&self.cgroup_parent)).filter(|path| path.is_dir()).collect()
    }

    fn links(&self) -> Vec<String> {
        let answer = command::answer("ip", &["-json", "link", "show", "master", &self.bridge]);
        let links: Value = serde_json::from_str(&answer.stdout).unwrap_or_default();
        let names = links.as_array().into_iter().flatten().filter_map(|link| link["ifname"].as_str());
        names.map(str::to_owned).collect()
    }

    /// host-local's reservations: one file an address.
    fn addresses(&self) -> Vec<PathBuf> {
        let all = entries(&self.dir.join("ipam").join(&self.network));
        all.into_iter().filter(|path| name(path).parse::<std::net::IpAddr>().is_ok()).collect()
    }

    /// libcni's results of this node's network.
    pub fn cache_files(&self) -> Vec<PathBuf> {
        let all = entries(Path::new("/var/lib/cni/results"));
        all.into_iter().filter(|path| name(path).contains(&self.network)).collect()
    }

    /// Directories that are empty when there are no pods and no pulls.
    fn directories(&self) -> Vec<String> {
        let empty = [
            "state/io.containerd.runtime.v2.task/k8s.io",
            "state/io.containerd.grpc.v1.cri/sandboxes",
            "state/netns",
            "root/io.containerd.grpc.v1.cri/sandboxes",
            "root/io.containerd.grpc.v1.cri/containers",
            "root/io.containerd.content.v1.content/ingest",
            "runc/k8s.io",
        ];
        let all = empty.iter().flat_map(|relative| entries(&self.dir.join(relative)));
        all.map(|path| format!("file: {}", path.display())).collect()
    }

    /// Snapshots that only a container or an unpacking has, and directories that no row knows.
    fn snapshots(&self) -> Vec<String> {
        let database = self.dir.join("root/windlass.db");
        if !database.exists() {
            return Vec::new();
        }
        let rows = snapshot_rows(&database).unwrap_or_else(|error| panic!("read {}: {error}", database.display()));
        let mut found: Vec<String> = rows
            .iter()
            .filter(|row| row.kind != "committed")
            .map(|row| format!("snapshot: {} {} {}", row.snapshotter, row.kind, row.key))
            .collect();
        for snapshotter in ["overlayfs", "native"] {
            let dir = self.dir.join(format!("root/io.containerd.snapshotter.v1.{snapshotter}/snapshots"));
            for path in entries(&dir) {
                let known = rows.iter().any(|row| row.snapshotter == snapshotter && row.id == name(&path));
                if !known {
                    found.push(format!("snapshot directory without a row: {}", path.display()));
                }
            }
        }
        found
    }
}

struct SnapshotRow {
    id: String,
    snapshotter: String,
    key: String,
    kind: String,
}

fn snapshot_rows(database: &Path) -> rusqlite::Result<Vec<SnapshotRow>> {
    let connection = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY)?;
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    let mut statement = connection.prepare("SELECT id, snapshotter, key, kind FROM snapshot")?;
    let rows = statement.query_map([], |row| {
        let id: i64 = row.get(0)?;
        Ok(SnapshotRow { id: id.to_string(), snapshotter: row.get(1)?, key: row.get(2)?, kind: row.get(3)? })
    })?;
    rows.collect()
}

/// Every mounted cgroup hierarchy, version 1 and 2 alike.
fn hierarchies() -> Vec<PathBuf> {
    let all = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let of_cgroups = all.lines().filter(|line| line.contains(" - cgroup"));
    of_cgroups.filter_map(|line| line.split(' ').nth(4).map(PathBuf::from)).collect()
}

fn descend(dir: &Path, found: &mut Vec<PathBuf>) {
    for path in entries(dir).into_iter().filter(|path| path.is_dir()) {
        descend(&path, found);
        found.push(path);
    }
}

/// What is in a directory; one that is not there is empty.
fn entries(dir: &Path) -> Vec<PathBuf> {
    let Ok(all) = fs::read_dir(dir) else { return Vec::new() };
    all.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect()
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_a_mount_point_and_a_file_are_told_and_the_daemon_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let check = Leakcheck::new(dir.path(), "windlass-none", "windlass-none", "windlass-none");
        assert_eq!(check.find(None), Vec::<String>::new());
        let bundle = dir.path().join("state/io.containerd.runtime.v2.task/k8s.io/abc");
        fs::create_dir_all(&bundle).unwrap();
        let mut child = Command::new("sleep").arg("60").current_dir(&bundle).spawn().unwrap();
        let expected = [format!("process: {} sleep 60", child.id()), format!("file: {}", bundle.display())];
        let all = crate::wait::SOON;
        let end = std::time::Instant::now() + all;
        // Between fork and exec the child has the test's own command line.
        while check.find(None) != expected && std::time::Instant::now() < end {
            std::thread::yield_now();
        }
        assert_eq!(check.find(None), expected);
        assert_eq!(check.find(Some(child.id())), expected[1..]);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_snapshot_in_use_and_a_directory_without_a_row_are_told() {
        let dir = tempfile::tempdir().unwrap();
        let check = Leakcheck::new(dir.path(), "windlass-none", "windlass-none", "windlass-none");
        let root = dir.path().join("root");
        for id in ["1", "2", "3"] {
            fs::create_dir_all(root.join("io.containerd.snapshotter.v1.overlayfs/snapshots").join(id)).unwrap();
        }
        let connection = Connection::open(root.join("windlass.db")).unwrap();
        connection
            .execute_batch(
                "CREATE TABLE snapshot (id INTEGER, snapshotter TEXT, key TEXT, kind TEXT);
                 INSERT INTO snapshot VALUES (1, 'overlayfs', 'chain', 'committed'), (2, 'overlayfs', 'pod', 'active');",
            )
            .unwrap();
        let directory = root.join("io.containerd.snapshotter.v1.overlayfs/snapshots/3");
        let expected = [
            "snapshot: overlayfs active pod".to_owned(),
            format!("snapshot directory without a row: {}", directory.display()),
        ];
        assert_eq!(check.find(None), expected);
    }
}
