//! A machine in memory: what the seams of this crate would do to a real one, counted, and stopped or failed at will.
//!
//! A [`Machine`] outlives processes. A [`Process`] is one life of the daemon on it: after its nth effect it is stopped as by
//! `kill -9` (the effect has happened, nobody learns of it, nothing happens any more), or its nth effect fails.

pub(crate) mod shapes;
mod shims;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, future::BoxFuture};
use snapshotter::{Info, Labels, Mount, Snapshotter, Usage};
use store::{Namespace, Store};
use tokio::sync::{Notify, watch};
use windlass_sandbox::{
    Config, Error, Handler, Pods, SCHEMA, Timeouts,
    launcher::{TaskExit, TaskState},
    model::{Id, PodNetwork},
    network::{Attachment, Network},
    node::{Node, ThisNode},
};

pub(crate) use shapes::{container_spec, image, pod_spec};

/// What there is on the machine.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) netns: BTreeSet<PathBuf>,
    pub(crate) mounts: BTreeSet<PathBuf>,
    pub(crate) attached: BTreeSet<Id>,
    pub(crate) snapshots: BTreeSet<String>,
    /// Removed snapshots whose files are still there.
    pub(crate) trash: BTreeSet<String>,
    pub(crate) shims: BTreeSet<Id>,
    /// Of shims; those of dead ones stay.
    pub(crate) sockets: BTreeSet<Id>,
    /// A shim that is told to end is killed before it has.
    pub(crate) die_at_shutdown: bool,
    pub(crate) tasks: BTreeMap<Id, Task>,
    /// What must never happen, and did.
    pub(crate) violations: Vec<String>,
    /// Every effect of every process, for the message of a test that fails.
    pub(crate) log: Vec<String>,
}

#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Task {
    pub(crate) shim: Id,
    pub(crate) state: TaskState,
    /// What the last update set.
    pub(crate) memory_limit: Option<i64>,
}

pub(crate) struct Machine {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) state: Mutex<State>,
    /// Counts changes of tasks.
    tasks: watch::Sender<u64>,
}

impl Machine {
    pub(crate) fn new() -> Arc<Machine> {
        let dir = tempfile::tempdir().unwrap();
        Arc::new(Machine { dir, state: Mutex::default(), tasks: watch::Sender::new(0) })
    }

    /// Ends a task as if by itself.
    pub(crate) fn exit(&self, id: &Id, code: i32) {
        end(&mut self.state.lock().unwrap(), id, code);
        self.tasks.send_modify(|count| *count += 1);
    }

    /// What a machine loses with its power: all but the store, the snapshots, the directories on disk, and what network
    /// plugins remember. The store's rows are of another boot then.
    pub(crate) fn reboot(&self) {
        let mut state = self.state.lock().unwrap();
        state.netns.clear();
        state.mounts.clear();
        state.shims.clear();
        state.sockets.clear();
        state.tasks.clear();
        drop(state);
        drop(std::fs::remove_dir_all(self.dir.path().join("state")));
        self.change_rows("UPDATE pod SET record = json_set(record, '$.boot', 'another')");
    }

    /// Makes everything that exists an orphan.
    pub(crate) fn forget_records(&self) {
        self.change_rows("DELETE FROM pod");
    }

    fn change_rows(&self, statement: &'static str) {
        let store = Store::open(&self.dir.path().join("meta.db"), &[SCHEMA]).unwrap();
        let changed = store.write_blocking(move |conn| conn.execute(statement, []).map_err(store::Error::from));
        assert_eq!(changed.unwrap(), 1);
    }

    /// Asserts that nothing is left, in memory and in the directories.
    pub(crate) fn assert_clean(&self, when: &str) {
        let state = self.state.lock().unwrap();
        let log = state.log.join("\n  ");
        let nothing: Vec<String> = Vec::new();
        let mut left: Vec<String> = state.violations.clone();
        left.extend(state.netns.iter().map(|path| format!("netns {}", path.display())));
        left.extend(state.mounts.iter().map(|path| format!("mount {}", path.display())));
        left.extend(state.attached.iter().map(|id| format!("network of {id}")));
        left.extend(state.snapshots.iter().map(|key| format!("snapshot {key}")));
        left.extend(state.shims.iter().map(|id| format!("shim {id}")));
        left.extend(state.sockets.iter().map(|id| format!("socket {id}")));
        left.extend(state.tasks.keys().map(|id| format!("task {id}")));
        left.extend(self.directories());
        assert_eq!(left, nothing, "{when}; effects:\n  {log}");
    }

    fn directories(&self) -> Vec<String> {
        let root = self.dir.path();
        let places = [
            "root/io.containerd.grpc.v1.cri/sandboxes",
            "root/io.containerd.grpc.v1.cri/containers",
            "state/io.containerd.grpc.v1.cri/sandboxes",
            "state/io.containerd.runtime.v2.task/k8s.io",
        ];
        let entries = places.iter().filter_map(|place| std::fs::read_dir(root.join(place)).ok()).flatten();
        entries.map(|entry| entry.unwrap().path().display().to_string()).collect()
    }
}

/// When a process is stopped or fails, by the number of effects.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Fault {
    pub(crate) stop_after: Option<usize>,
    pub(crate) fail_at: Option<usize>,
}

#[derive(Default)]
struct Life {
    effects: usize,
    dead: bool,
    /// Nothing fails any more.
    disarmed: bool,
    /// The dead process's threads may end.
    released: bool,
}

/// One life of the daemon.
pub(crate) struct Process {
    pub(crate) machine: Arc<Machine>,
    fault: Fault,
    life: Mutex<Life>,
    release: Condvar,
    pub(crate) died: Notify,
    /// Network attaches wait while this is true.
    pub(crate) hold_attach: watch::Sender<bool>,
    /// Their detaches while this is.
    pub(crate) hold_detach: watch::Sender<bool>,
    /// And the deletion of removed snapshots' files while this is.
    pub(crate) hold_trash: watch::Sender<bool>,
}

impl Process {
    pub(crate) fn new(machine: &Arc<Machine>, fault: Fault) -> Arc<Process> {
        Arc::new(Process {
            machine: Arc::clone(machine),
            fault,
            life: Mutex::default(),
            release: Condvar::new(),
            died: Notify::new(),
            hold_attach: watch::Sender::new(false),
            hold_detach: watch::Sender::new(false),
            hold_trash: watch::Sender::new(false),
        })
    }

    pub(crate) async fn open(self: &Arc<Process>) -> Pods {
        self.open_with(config(self.machine.dir.path())).await
    }

    pub(crate) async fn open_with(self: &Arc<Process>, config: Config) -> Pods {
        let dir = self.machine.dir.path();
        let store = Store::open(&dir.join("meta.db"), &[SCHEMA]).unwrap();
        let seams = Seams(Arc::clone(self));
        let snapshotters: BTreeMap<String, Arc<dyn Snapshotter>> =
            [("fake".to_owned(), Arc::new(seams.clone()) as Arc<dyn Snapshotter>)].into();
        let (network, launcher) = (Arc::new(seams.clone()), Arc::new(seams.clone()));
        Pods::open_on(Arc::new(seams), config, store, snapshotters, network, launcher).await.unwrap()
    }

    /// Lets the threads of a dead process go, once its tasks are dropped.
    pub(crate) fn release(&self) {
        self.life.lock().unwrap().released = true;
        self.release.notify_all();
    }

    /// Makes nothing fail from now on; answers how many effects there were.
    pub(crate) fn disarm(&self) -> usize {
        let mut life = self.life.lock().unwrap();
        life.disarmed = true;
        life.effects
    }

    pub(crate) fn effects(&self) -> usize {
        self.life.lock().unwrap().effects
    }

    /// Performs an effect; `None` if the process is dead, and now or soon nobody waits for the answer.
    fn act<T>(&self, name: String, effect: impl FnOnce(&mut State) -> Result<T, Error>) -> Option<Result<T, Error>> {
        let mut life = self.life.lock().unwrap();
        if life.dead {
            return None;
        }
        life.effects += 1;
        let mut state = self.machine.state.lock().unwrap();
        state.log.push(name.clone());
        if self.fault.fail_at == Some(life.effects) && !life.disarmed {
            return Some(Err(Error::plain(format!("injected into {name}"))));
        }
        let result = effect(&mut state);
        drop(state);
        self.machine.tasks.send_modify(|count| *count += 1);
        if self.fault.stop_after == Some(life.effects) {
            life.dead = true;
            self.died.notify_one();
            return None;
        }
        Some(result)
    }

    fn block<T>(&self, name: String, effect: impl FnOnce(&mut State) -> Result<T, Error>) -> Result<T, Error> {
        self.act(name, effect).unwrap_or_else(|| {
            let life = self.life.lock().unwrap();
            drop(self.release.wait_while(life, |life| !life.released).unwrap());
            Err(Error::plain("the process is dead"))
        })
    }

    async fn wait<T>(&self, name: String, effect: impl FnOnce(&mut State) -> Result<T, Error>) -> Result<T, Error> {
        match self.act(name, effect) {
            Some(result) => result,
            None => std::future::pending().await,
        }
    }
}

pub(crate) fn config(dir: &Path) -> Config {
    Config {
        root: dir.join("root"),
        state: dir.join("state"),
        grpc_address: dir.join("c.sock"),
        ttrpc_address: dir.join("c.sock.ttrpc"),
        shim_search: Vec::new(),
        netns_dir: dir.join("netns"),
        namespace: Namespace::k8s(),
        handlers: [("runc".to_owned(), Handler { runtime_type: "io.containerd.runc.v2".into(), ..Handler::default() })]
            .into(),
        default_handler: "runc".into(),
        snapshotter: "fake".into(),
        max_log_line: 16384,
        default_cgroup_parent: String::new(),
        restrict_oom_score_adj: false,
        selinux_categories: None,
        cdi_spec_dirs: Some(Vec::new()),
        blockio_config_file: None,
        rdt_config_file: None,
        mounts: dir.join("mounts"),
        disable_apparmor: false,
        ignore_image_volumes: false,
        nri: None,
        disable_hugetlb: false,
        max_checkpoint_bytes: 1 << 30,
        tolerate_missing_hugetlb: true,
        timeouts: Timeouts { kill: Duration::from_secs(5), ..Timeouts::default() },
    }
}

fn end(state: &mut State, id: &Id, code: i32) {
    if let Some(task) = state.tasks.get_mut(id)
        && !matches!(task.state, TaskState::Stopped(_))
    {
        task.state = TaskState::Stopped(TaskExit { code, at: SystemTime::UNIX_EPOCH, oom_killed: false });
    }
}

#[derive(Clone)]
pub(crate) struct Seams(Arc<Process>);

impl Node for Seams {
    fn pin_netns(&self, path: &Path) -> Result<(), Error> {
        self.0.block("pin netns".into(), |state| match state.netns.insert(path.to_owned()) {
            true => Ok(()),
            false => Err(Error::plain("netns is pinned already")),
        })
    }

    fn unpin_netns(&self, path: &Path) -> Result<(), Error> {
        self.0.block("unpin netns".into(), |state| {
            state.netns.remove(path);
            Ok(())
        })
    }

    fn mount(&self, _mounts: &[Mount], target: &Path) -> Result<(), Error> {
        self.0.block(format!("mount {}", target.display()), |state| {
            assert!(target.is_dir(), "{}", target.display());
            if !state.mounts.insert(target.to_owned()) {
                state.violations.push(format!("{} is mounted twice", target.display()));
            }
            Ok(())
        })
    }

    fn unmount(&self, target: &Path) -> Result<(), Error> {
        self.0.block(format!("unmount {}", target.display()), |state| {
            state.mounts.remove(target);
            Ok(())
        })
    }

    fn kill_cgroup(&self, cgroup: &Path) -> Result<(), Error> {
        self.0.block(format!("kill {}", cgroup.display()), |state| {
            let id = Id::parse(cgroup.file_name().unwrap().to_str().unwrap()).unwrap();
            end(state, &id, 137);
            Ok(())
        })
    }

    fn make_dir(&self, path: &Path, mode: u32) -> Result<(), Error> {
        self.0.block(format!("mkdir {}", path.display()), |_| ThisNode.make_dir(path, mode))
    }

    fn remove_dir(&self, path: &Path) -> Result<(), Error> {
        self.0.block(format!("rmdir {}", path.display()), |state| {
            if state.mounts.iter().any(|mount| mount.starts_with(path)) {
                state.violations.push(format!("{} is removed through a mount", path.display()));
            }
            ThisNode.remove_dir(path)
        })
    }
}

impl Network for Seams {
    fn ready(&self) -> BoxFuture<'_, Result<(), Error>> {
        async { Ok(()) }.boxed()
    }

    fn attach(&self, pod: Attachment) -> BoxFuture<'_, Result<PodNetwork, Error>> {
        async move {
            let mut held = self.0.hold_attach.subscribe();
            held.wait_for(|held| !held).await.unwrap();
            let attach = |state: &mut State| {
                if !pod.netns.as_ref().is_some_and(|path| state.netns.contains(path)) {
                    state.violations.push("a network is attached to a netns that is not there".into());
                }
                state.attached.insert(pod.id.clone());
                Ok(PodNetwork { ips: vec!["10.0.0.2".into()], result: serde_json::Value::Null })
            };
            self.0.wait("attach".into(), attach).await
        }
        .boxed()
    }

    fn detach(&self, pod: Attachment) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            let mut held = self.0.hold_detach.subscribe();
            held.wait_for(|held| !held).await.unwrap();
            let detach = |state: &mut State| {
                state.attached.remove(&pod.id);
                Ok(())
            };
            self.0.wait("detach".into(), detach).await
        }
        .boxed()
    }

    fn cached(&self) -> BoxFuture<'_, Result<Vec<Id>, Error>> {
        async { Ok(self.0.machine.state.lock().unwrap().attached.iter().cloned().collect()) }.boxed()
    }
}

impl Snapshotter for Seams {
    fn stat(&self, _: &Namespace, key: &str) -> Result<Info, snapshotter::Error> {
        Err(snapshotter::Error::NotFound { key: key.into() })
    }

    fn list(&self, _: &Namespace) -> Result<Vec<Info>, snapshotter::Error> {
        Ok(Vec::new())
    }

    fn prepare(&self, _: &Namespace, key: &str, _: Option<&str>, _: &Labels) -> Result<Vec<Mount>, snapshotter::Error> {
        let prepare = |state: &mut State| match state.snapshots.insert(key.to_owned()) {
            true => Ok(Vec::new()),
            false => Err(Error::plain("snapshot is there already")),
        };
        self.0.block("prepare".into(), prepare).map_err(failed)
    }

    fn view(
        &self,
        ns: &Namespace,
        key: &str,
        parent: Option<&str>,
        labels: &Labels,
    ) -> Result<Vec<Mount>, snapshotter::Error> {
        self.prepare(ns, key, parent, labels)
    }

    fn mounts(&self, _: &Namespace, _: &str) -> Result<Vec<Mount>, snapshotter::Error> {
        Ok(Vec::new())
    }

    fn commit(&self, _: &Namespace, name: &str, _: &str, _: &Labels) -> Result<(), snapshotter::Error> {
        Err(snapshotter::Error::NotFound { key: name.into() })
    }

    fn remove(&self, _: &Namespace, key: &str) -> Result<(), snapshotter::Error> {
        let remove = |state: &mut State| {
            if state.mounts.iter().any(|mount| mount.ends_with(Path::new(key).join("rootfs"))) {
                state.violations.push(format!("snapshot {key} is removed while it is mounted"));
            }
            if let Some((id, index)) = key.split_once("-image-volume-")
                && state.mounts.iter().any(|mount| mount.ends_with(format!("{id}/image-volumes/{index}/root")))
            {
                state.violations.push(format!("snapshot {key} is removed while it is mounted"));
            }
            Ok(state.snapshots.remove(key))
        };
        match self.0.block("remove snapshot".into(), remove).map_err(failed)? {
            true => Ok(()),
            false => Err(snapshotter::Error::NotFound { key: key.into() }),
        }
    }

    fn discard(&self, ns: &Namespace, key: &str) -> Result<(), snapshotter::Error> {
        self.remove(ns, key)?;
        self.0.machine.state.lock().unwrap().trash.insert(key.to_owned());
        Ok(())
    }

    /// Not counted: it runs beside the operations, so a count would be another one each time.
    fn empty_trash(&self) -> Result<(), snapshotter::Error> {
        let mut held = self.0.hold_trash.subscribe();
        // The process may be gone by now.
        let _ = tokio::runtime::Handle::current().block_on(held.wait_for(|held| !held));
        self.0.machine.state.lock().unwrap().trash.clear();
        self.0.machine.tasks.send_modify(|count| *count += 1);
        Ok(())
    }

    fn usage(&self, _: &Namespace, key: &str) -> Result<Usage, snapshotter::Error> {
        Err(snapshotter::Error::NotFound { key: key.into() })
    }
}

fn failed(error: Error) -> snapshotter::Error {
    snapshotter::Error::Failed { what: error.to_string(), source: error.into() }
}
