//! One container: its init, its execs, and what the runtime needs to be asked about it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::{OnceCell, watch};

use crate::runc::Runc;

use super::error::TaskError;
use super::io::PipeOwner;
use super::process::Process;
use super::record::Exit;
use crate::cgroup::Cgroup;

pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) runc: Runc,
    pub(crate) owner: PipeOwner,
    /// Processes outlive an init that does not end their pid namespace with it.
    pub(crate) shares_pids: bool,
    /// The directory of the checkpoint that a start restores.
    pub(crate) checkpoint: Option<PathBuf>,
    pub(crate) init: Process,
    pub(crate) paused: AtomicBool,
    pub(crate) cgroup: OnceLock<Cgroup>,
    /// Set by the delete that took the container down; another one that comes meanwhile waits for it.
    pub(crate) deleted: OnceCell<Exit>,
    /// Execs between the begin of their start and their exit; init's exit is published when there are none.
    pub(crate) running_execs: watch::Sender<usize>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    oom_kills_seen: AtomicU64,
}

impl Container {
    pub(crate) fn new(id: &str, bundle: &Path, runc: Runc, owner: PipeOwner, shares_pids: bool, init: Process) -> Self {
        Self {
            id: id.to_owned(),
            bundle: bundle.to_owned(),
            runc,
            owner,
            shares_pids,
            checkpoint: None,
            init,
            paused: AtomicBool::new(false),
            cgroup: OnceLock::new(),
            deleted: OnceCell::new(),
            running_execs: watch::Sender::new(0),
            execs: Mutex::default(),
            oom_kills_seen: AtomicU64::new(0),
        }
    }

    pub(crate) fn add_exec(&self, id: &str, process: Process) -> Result<Arc<Process>, TaskError> {
        let mut execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        if execs.contains_key(id) {
            return Err(TaskError::AlreadyExists(format!("exec {id} exists in container {}", self.id)));
        }
        let process = Arc::new(process);
        execs.insert(id.to_owned(), process.clone());
        Ok(process)
    }

    pub(crate) fn exec(&self, id: &str) -> Result<Arc<Process>, TaskError> {
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs.get(id).cloned().ok_or_else(|| TaskError::NotFound(format!("exec {id} not found in {}", self.id)))
    }

    pub(crate) fn execs(&self) -> Vec<Arc<Process>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    pub(crate) fn remove_exec(&self, id: &str) {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }

    /// Whether of these kills for memory, all that there were here, one is since the last answer of yes, or ever for
    /// init's own exit.
    pub(crate) fn oom_killed(&self, kills: u64, is_init: bool) -> bool {
        let seen = self.oom_kills_seen.fetch_max(kills, Ordering::Relaxed);
        kills > if is_init { 0 } else { seen }
    }
}

/// What the shim reads of a bundle's `config.json`.
#[derive(Debug, Default, serde::Deserialize)]
pub(crate) struct Spec {
    linux: Option<Linux>,
}

#[derive(Debug, serde::Deserialize)]
struct Linux {
    namespaces: Option<Vec<Namespace>>,
}

#[derive(Debug, serde::Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

impl Spec {
    pub(crate) fn read(bundle: &Path) -> std::io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(bundle.join("config.json"))?)?)
    }

    /// Whether the container joins a pid namespace that does not end with its init.
    pub(crate) fn shares_pids(&self) -> bool {
        let namespaces = self.linux.as_ref().and_then(|linux| linux.namespaces.as_deref()).unwrap_or_default();
        !namespaces.iter().any(|namespace| namespace.kind == "pid" && namespace.path.is_empty())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_pid_namespace_of_its_own_ends_with_init() {
        for (spec, shares) in [
            (r#"{"linux":{"namespaces":[{"type":"pid"}]}}"#, false),
            (r#"{"linux":{"namespaces":[{"type":"pid","path":"/proc/1/ns/pid"}]}}"#, true),
            (r#"{"linux":{"namespaces":[{"type":"mount"}]}}"#, true),
            ("{}", true),
        ] {
            let spec: Spec = serde_json::from_str(spec).unwrap();
            assert_eq!(spec.shares_pids(), shares, "{spec:?}");
        }
    }
}
