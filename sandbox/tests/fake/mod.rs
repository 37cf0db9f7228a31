//! A machine in memory: what the seams of this crate would do to a real one, counted, and stopped or failed at will.
//!
//! A [`Machine`] outlives processes. A [`Process`] is one life of the daemon on it: after its nth effect it is stopped as by
//! `kill -9` (the effect has happened, nobody learns of it, nothing happens any more), or its nth effect fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
    sync::{Arc, Condvar, Mutex},
    time::{Duration, SystemTime},
};

use futures_util::{FutureExt, future::BoxFuture};
use oci_spec::runtime::LinuxResources;
use snapshotter::{Info, Labels, Mount, Snapshotter, Usage};
use store::{Namespace, Store};
use tokio::sync::{Notify, watch};
use windlass_sandbox::{
    Config, Error, Handler, Pods, SCHEMA, Timeouts,
    launcher::{Bundle, Clients, Launcher, NewTask, Shim, TaskExit, TaskState},
    model::{
        Capabilities, ContainerName, ContainerSpec, Id, Image, ImageVolume, Namespaces, PodName, PodNetwork, PodSpec,
        Resources, RunAs, SecurityProfile, StringMap, VolumeMount,
    },
    network::{Attachment, Network},
    node::{Node, ThisNode},
};

/// What there is on the machine.
#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) netns: BTreeSet<PathBuf>,
    pub(crate) mounts: BTreeSet<PathBuf>,
    pub(crate) attached: BTreeSet<Id>,
    pub(crate) snapshots: BTreeSet<String>,
    pub(crate) shims: BTreeSet<Id>,
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
        disable_apparmor: false,
        ignore_image_volumes: false,
        nri: None,
        disable_hugetlb: false,
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

    fn usage(&self, _: &Namespace, key: &str) -> Result<Usage, snapshotter::Error> {
        Err(snapshotter::Error::NotFound { key: key.into() })
    }
}

fn failed(error: Error) -> snapshotter::Error {
    snapshotter::Error::Failed { what: error.to_string(), source: error.into() }
}

impl Launcher for Seams {
    fn launch(&self, bundle: Bundle) -> BoxFuture<'_, Result<Arc<dyn Shim>, Error>> {
        async move {
            assert!(bundle.path.join("config.json").exists());
            let id = bundle.id.clone();
            let launch = |state: &mut State| {
                state.shims.insert(bundle.id);
                Ok(())
            };
            self.0.wait("launch".into(), launch).await?;
            Ok(Arc::new(FakeShim { process: Arc::clone(&self.0), id }) as Arc<dyn Shim>)
        }
        .boxed()
    }

    fn reconnect(&self, bundle: Bundle) -> BoxFuture<'_, Result<Option<Arc<dyn Shim>>, Error>> {
        async move {
            let there = self.0.machine.state.lock().unwrap().shims.contains(&bundle.id);
            let shim = FakeShim { process: Arc::clone(&self.0), id: bundle.id };
            Ok(there.then(|| Arc::new(shim) as Arc<dyn Shim>))
        }
        .boxed()
    }

    fn clean_up(&self, bundle: Bundle) -> BoxFuture<'_, Result<(), Error>> {
        async move {
            let clean = |state: &mut State| {
                state.tasks.remove(&bundle.id);
                Ok(())
            };
            self.0.wait("clean up".into(), clean).await
        }
        .boxed()
    }
}

struct FakeShim {
    process: Arc<Process>,
    id: Id,
}

impl FakeShim {
    fn lost(&self) -> Error {
        Error::Unavailable(format!("shim {} is gone", self.id))
    }

    fn task(&self, id: &Id) -> Result<Option<TaskState>, Error> {
        let state = self.process.machine.state.lock().unwrap();
        match state.shims.contains(&self.id) {
            true => Ok(state.tasks.get(id).map(|task| task.state.clone())),
            false => Err(self.lost()),
        }
    }

    async fn act<T>(&self, name: &str, effect: impl FnOnce(&mut State) -> Result<T, Error>) -> Result<T, Error> {
        let act = |state: &mut State| match state.shims.contains(&self.id) {
            true => effect(state),
            false => Err(self.lost()),
        };
        self.process.wait(name.to_owned(), act).await
    }
}

impl Shim for FakeShim {
    fn create(&self, task: NewTask) -> BoxFuture<'_, Result<i32, Error>> {
        async move {
            assert!(task.bundle.join("config.json").exists());
            let id = Id::parse(&task.id).unwrap();
            let create = |state: &mut State| {
                if !state.mounts.contains(&task.bundle.join("rootfs")) {
                    state.violations.push("a task is made without a root file system".into());
                }
                let task = Task { shim: self.id.clone(), state: TaskState::Created, memory_limit: None };
                match state.tasks.insert(id, task) {
                    None => Ok(1),
                    Some(_) => Err(Error::plain("the task is there already")),
                }
            };
            self.act("create task", create).await
        }
        .boxed()
    }

    fn start<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<i32, Error>> {
        async move {
            let start = |state: &mut State| {
                let task = state.tasks.get_mut(id).ok_or_else(|| Error::plain("no such task"))?;
                task.state = TaskState::Running { pid: 7 };
                Ok(7)
            };
            self.act("start task", start).await
        }
        .boxed()
    }

    fn state<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<Option<TaskState>, Error>> {
        async move { self.task(id) }.boxed()
    }

    fn wait<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<TaskExit, Error>> {
        async move {
            let mut changes = self.process.machine.tasks.subscribe();
            loop {
                match self.task(id)? {
                    Some(TaskState::Stopped(exit)) => return Ok(exit),
                    Some(_) => changes.changed().await.unwrap(),
                    None => return Err(Error::plain("no such task")),
                }
            }
        }
        .boxed()
    }

    fn kill<'a>(&'a self, id: &'a Id, signal: i32) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let kill = |state: &mut State| {
                // The fake app ignores everything that can be ignored.
                if signal == 9 {
                    end(state, id, 137);
                }
                Ok(())
            };
            self.act(&format!("kill {signal}"), kill).await
        }
        .boxed()
    }

    fn update<'a>(&'a self, id: &'a Id, limits: LinuxResources) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let update = |state: &mut State| {
                if let Some(task) = state.tasks.get_mut(id) {
                    let limit = limits.memory().as_ref().and_then(|memory| memory.limit());
                    task.memory_limit = limit.or(task.memory_limit);
                }
                Ok(())
            };
            self.act("update task", update).await
        }
        .boxed()
    }

    fn delete<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let delete = |state: &mut State| {
                if state.tasks.get(id).is_some_and(|task| !matches!(task.state, TaskState::Stopped(_))) {
                    return Err(Error::plain("the task lives"));
                }
                state.tasks.remove(id);
                Ok(())
            };
            self.act("delete task", delete).await
        }
        .boxed()
    }

    fn shutdown<'a>(&'a self, id: &'a Id) -> BoxFuture<'a, Result<(), Error>> {
        async move {
            let shutdown = |state: &mut State| {
                if !state.tasks.values().any(|task| task.shim == *id) {
                    state.shims.remove(id);
                }
                Ok(())
            };
            self.act("shutdown", shutdown).await
        }
        .boxed()
    }

    fn clients(&self) -> Option<Clients> {
        None
    }
}

pub(crate) fn image() -> Image {
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Entrypoint": ["/pause"], "Volumes": {"/data": {}}},
        "rootfs": {"type": "layers", "diff_ids": []},
    });
    Image {
        requested: "pause".into(),
        id: "sha256:1".into(),
        name: "pause".into(),
        chain_id: String::new(),
        config: serde_json::from_value(config).unwrap(),
    }
}

pub(crate) fn pod_spec(name: &str) -> PodSpec {
    PodSpec {
        name: PodName { name: name.into(), namespace: "default".into(), uid: "u".into(), attempt: 0 },
        hostname: name.into(),
        log_directory: String::new(),
        dns: None,
        port_mappings: Vec::new(),
        labels: StringMap::new(),
        annotations: StringMap::new(),
        cgroup_parent: String::new(),
        sysctls: StringMap::new(),
        namespaces: Namespaces::default(),
        run_as: RunAs::default(),
        readonly_rootfs: false,
        privileged: false,
        seccomp: SecurityProfile::Unset,
        apparmor: SecurityProfile::Unset,
        selinux: None,
        overhead: None,
        resources: None,
        handler: String::new(),
    }
}

pub(crate) fn container_spec(name: &str) -> ContainerSpec {
    ContainerSpec {
        name: ContainerName { name: name.into(), attempt: 0 },
        command: vec!["/app".into()],
        args: Vec::new(),
        working_dir: String::new(),
        env: Vec::new(),
        mounts: Vec::new(),
        devices: Vec::new(),
        cdi_devices: Vec::new(),
        labels: StringMap::new(),
        annotations: StringMap::new(),
        log_path: String::new(),
        stdin: false,
        stdin_once: false,
        tty: false,
        stop_signal: None,
        resources: Resources::default(),
        capabilities: Capabilities::default(),
        privileged: false,
        namespaces: Namespaces::default(),
        run_as: RunAs::default(),
        readonly_rootfs: false,
        no_new_privs: false,
        masked_paths: Vec::new(),
        readonly_paths: Vec::new(),
        seccomp: SecurityProfile::Unset,
        apparmor: SecurityProfile::Unset,
        selinux: None,
    }
}

/// A mount of an image at this path.
pub(crate) fn image_volume(path: &str, image: &str) -> VolumeMount {
    let volume = ImageVolume { requested: image.into(), id: format!("sha256:{image}"), ..ImageVolume::default() };
    VolumeMount { container_path: path.into(), readonly: true, image: Some(volume), ..VolumeMount::default() }
}
