//! Plugins that still run for a pod, and waiting for them before anything is taken back.
//!
//! A plugin that is killed between two of its effects leaves what no DEL takes back (a bridge without its address, on which
//! every later ADD fails), and a DEL beside a running ADD takes back what is made only afterwards. So a plugin ends by
//! itself or at its deadline, and a DEL comes after the last ADD of its pod: after those of this process ([`Runs`]), and
//! after those that a killed one has left behind ([`end_leftovers`]).

use std::{
    collections::HashMap,
    fs, io,
    os::fd::OwnedFd,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use tokio::sync::{OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock};

use crate::{error::Error, model::Id};

/// How long a killed plugin may take to be gone.
const GONE: Duration = Duration::from_secs(5);

/// The plugins that this process runs, by pod: adding ones side by side, and nothing beside a deletion.
#[derive(Debug, Default)]
pub(super) struct Runs {
    pods: Mutex<HashMap<Id, Arc<RwLock<()>>>>,
}

impl Runs {
    /// Held while a plugin adds something to the pod.
    pub(super) async fn add(&self, pod: &Id) -> OwnedRwLockReadGuard<()> {
        self.of(pod).read_owned().await
    }

    /// Waits for the plugins that add something to the pod, and keeps others from starting.
    pub(super) async fn delete(&self, pod: &Id) -> OwnedRwLockWriteGuard<()> {
        self.of(pod).write_owned().await
    }

    fn of(&self, pod: &Id) -> Arc<RwLock<()>> {
        // Guards the map only; nothing below can panic between its changes.
        let mut pods = self.pods.lock().unwrap_or_else(PoisonError::into_inner);
        pods.retain(|_, runs| Arc::strong_count(runs) > 1);
        Arc::clone(pods.entry(pod.clone()).or_default())
    }
}

/// Waits until no plugin of an earlier process works for the pod any more; one that goes on past `deadline` is killed.
/// Blocks.
///
/// They are known by the environment that CNI gives them, which their own children inherit, and by their pid namespace,
/// which no ordinary container shares. A pidfd is what is waited for and killed, so a number that is used again is nobody
/// else's.
pub(super) fn end_leftovers(pod: &Id, deadline: Duration) -> Result<(), Error> {
    let failed = |error: io::Error| Error::failed(format!("wait for network plugins of pod {pod}"), error);
    let kill_at = Instant::now() + deadline;
    let mut killed = false;
    loop {
        let left = leftovers(pod).map_err(failed)?;
        if left.is_empty() {
            return Ok(());
        }
        if Instant::now() >= kill_at {
            if killed {
                let pids: Vec<String> = left.iter().map(|(pid, _)| pid.to_string()).collect();
                let pids = pids.join(", ");
                return Err(Error::plain(format!("network plugins of pod {pod} cannot be killed: processes {pids}")));
            }
            tracing::warn!(%pod, plugins = left.len(), "killing network plugins that an earlier daemon has left");
            for (_, process) in &left {
                match pidfd_send_signal(process, Signal::KILL) {
                    Ok(()) | Err(Errno::SRCH) => {}
                    Err(error) => return Err(failed(error.into())),
                }
            }
            killed = true;
        }
        let until = if killed { Instant::now() + GONE } else { kill_at };
        for (_, process) in &left {
            wait(process, until).map_err(failed)?;
        }
    }
}

/// Waits for the end of a process, or for the time.
fn wait(process: &OwnedFd, until: Instant) -> io::Result<()> {
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
            Err(Errno::INTR) => {}
            ended => return ended.map(drop).map_err(io::Error::from),
        }
    }
}

/// The processes that have the environment of a plugin which changes this pod's network.
fn leftovers(pod: &Id) -> io::Result<Vec<(i32, OwnedFd)>> {
    let own = fs::read_link("/proc/self/ns/pid")?;
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.parse::<i32>().ok());
        let Some((number, pid)) = number.and_then(|number| Some((number, Pid::from_raw(number)?))) else { continue };
        let path = Path::new("/proc").join(&name);
        if !is_plugin_of(&path, pod) || fs::read_link(path.join("ns/pid")).is_ok_and(|namespace| namespace != own) {
            continue;
        }
        let process = match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(process) => process,
            Err(Errno::SRCH) => continue,
            Err(error) => return Err(error.into()),
        };
        // Looked at again, since the number may have changed hands before it was held.
        if is_plugin_of(&path, pod) {
            found.push((number, process));
        }
    }
    Ok(found)
}

/// A process that ended while it was looked at, or that has no environment, is none.
fn is_plugin_of(process: &Path, pod: &Id) -> bool {
    let Ok(environment) = fs::read(process.join("environ")) else { return false };
    let mut entries = environment.split(|byte| *byte == 0);
    let of_pod = |entry: &[u8]| entry.strip_prefix(b"CNI_CONTAINERID=").is_some_and(|id| id == pod.as_str().as_bytes());
    let changes = |entry: &[u8]| entry == b"CNI_COMMAND=ADD" || entry == b"CNI_COMMAND=DEL";
    entries.clone().any(of_pod) && entries.any(changes)
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    fn plugin(id: &Id, verb: &str) -> Child {
        let mut command = Command::new("sleep");
        command.arg("1000").env("CNI_CONTAINERID", id.as_str()).env("CNI_COMMAND", verb);
        command.spawn().unwrap()
    }

    #[tokio::test]
    async fn a_deletion_waits_for_all_additions_and_leaves_no_trace() {
        let (runs, pod) = (Runs::default(), Id::random().unwrap());
        let (one, two) = (runs.add(&pod).await, runs.add(&pod).await);
        let other = runs.delete(&Id::random().unwrap()).await;
        let deleting = runs.delete(&pod);
        tokio::pin!(deleting);
        assert!(futures_util::poll!(&mut deleting).is_pending());
        drop((one, other));
        assert!(futures_util::poll!(&mut deleting).is_pending());
        drop(two);
        drop(deleting.await);
        drop(runs.add(&Id::random().unwrap()).await);
        assert!(runs.pods.lock().unwrap().len() <= 1);
    }

    #[test]
    fn a_leftover_is_waited_for_until_its_deadline_and_then_killed_and_others_are_not() {
        let (pod, other) = (Id::random().unwrap(), Id::random().unwrap());
        let (mut adding, mut of_other, mut asking) =
            (plugin(&pod, "ADD"), plugin(&other, "ADD"), plugin(&pod, "CHECK"));
        let reaper = std::thread::spawn(move || adding.wait().unwrap());
        let begin = Instant::now();
        end_leftovers(&pod, Duration::from_millis(300)).unwrap();
        assert!(begin.elapsed() >= Duration::from_millis(300));
        assert!(!reaper.join().unwrap().success());
        for child in [&mut of_other, &mut asking] {
            assert!(child.try_wait().unwrap().is_none(), "it was none of the pod's");
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    #[test]
    fn a_leftover_that_ends_by_itself_is_waited_for_no_longer() {
        let pod = Id::random().unwrap();
        let mut adding = plugin(&pod, "ADD");
        let waiting = std::thread::spawn({
            let pod = pod.clone();
            move || end_leftovers(&pod, Duration::from_secs(60))
        });
        adding.kill().unwrap();
        adding.wait().unwrap();
        waiting.join().unwrap().unwrap();
        assert!(leftovers(&pod).unwrap().is_empty());
    }
}
