//! Kill: one process through its pidfd, a whole container through its cgroup, or an exec with all it has started.
//!
//! Invariant: a signal goes only to a process whose pidfd was opened before it was seen in the container's cgroup,
//! so a reused pid is never hit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags};

use crate::proto::task;
use crate::sys::signal_pidfd;

use super::cgroup::Cgroup;
use super::container::Container;
use super::error::TaskError;
use super::process::{Phase, Process};
use super::tasks::{Found, Tasks};

/// A fork can outrun one look at the process list; this many looks, one every [`PAUSE`], end every sane tree.
const ROUNDS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

pub(crate) async fn kill(tasks: &Tasks, request: &task::KillRequest) -> Result<(), TaskError> {
    let signal =
        i32::try_from(request.signal).map_err(|_| TaskError::Invalid(format!("{} is no signal", request.signal)))?;
    let container = tasks.container(&request.id)?;
    match tasks.process(&request.id, &request.exec_id)? {
        Found::Init(_) if request.all => kill_container(&container, signal).await,
        Found::Init(_) => kill_one(&container.init, signal)?,
        Found::Exec(exec) if request.all => kill_tree(&container, &exec, signal).await,
        Found::Exec(exec) => kill_one(&exec, signal)?,
    }
    thaw_for(&container, signal).await
}

/// A frozen process of cgroup v1 dies only after it is thawed.
async fn thaw_for(container: &Container, signal: i32) -> Result<(), TaskError> {
    if signal == libc::SIGKILL && container.paused.load(Ordering::Relaxed) {
        container.runc.resume(&container.id).await?;
        container.paused.store(false, Ordering::Relaxed);
    }
    Ok(())
}

fn kill_one(process: &Process, signal: i32) -> Result<(), TaskError> {
    let child = match (process.phase(), process.child()) {
        (Phase::Exited(_), _) => return Err(TaskError::NotFound("process already finished".to_owned())),
        (_, Some(child)) => child,
        (_, None) => return Err(TaskError::WrongState("process not created".to_owned())),
    };
    child.signal(signal).map_err(|error| match error.raw_os_error() {
        Some(libc::ESRCH) => TaskError::NotFound("process already finished".to_owned()),
        Some(libc::EINVAL) => TaskError::Invalid(format!("{signal} is no signal")),
        _ => TaskError::failed(format!("send signal {signal} to {}", process.id))(error),
    })
}

async fn kill_container(container: &Container, signal: i32) {
    if signal == libc::SIGKILL && !container.paused.load(Ordering::Relaxed) {
        kill_rest(container).await;
    } else if let Some(cgroup) = container.cgroup.get() {
        signal_all(cgroup, signal, |pids| pids.clone());
    }
}

/// Ends every process that is left in the container.
pub(crate) async fn kill_rest(container: &Container) {
    let Some(cgroup) = container.cgroup.get() else { return };
    for _ in 0..ROUNDS {
        if !signal_all(cgroup, libc::SIGKILL, |pids| pids.clone()) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn kill_tree(container: &Container, exec: &Process, signal: i32) {
    let (Some(cgroup), Some(child)) = (container.cgroup.get(), exec.child()) else { return };
    let root = child.pid;
    for _ in 0..ROUNDS {
        if !signal_all(cgroup, signal, |pids| tree(root, pids)) || signal != libc::SIGKILL {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Signals what `choose` picks of the cgroup's processes; says whether there was any.
fn signal_all(cgroup: &Cgroup, signal: i32, choose: impl Fn(&BTreeSet<i32>) -> BTreeSet<i32>) -> bool {
    let open = |pid: i32| -> Option<(i32, OwnedFd)> {
        let raw = Pid::from_raw(pid)?;
        Some((pid, rustix::process::pidfd_open(raw, PidfdFlags::empty()).ok()?))
    };
    let pidfds: BTreeMap<i32, OwnedFd> = cgroup.pids().into_iter().filter_map(open).collect();
    let mut any = false;
    for pid in choose(&cgroup.pids()) {
        if let Some(pidfd) = pidfds.get(&pid)
            && signal_pidfd(pidfd.as_fd(), signal).is_ok()
        {
            any = true;
        }
    }
    any
}

/// The processes among `pids` that descend from `root`, or belong to its session or process group.
///
/// runc makes every exec the leader of a session, so a daemonised child whose parent is gone is still found unless it
/// made a session of its own.
fn tree(root: i32, pids: &BTreeSet<i32>) -> BTreeSet<i32> {
    let stats: Vec<(i32, Stat)> = pids.iter().filter_map(|pid| Some((*pid, Stat::read(*pid)?))).collect();
    let mut found: BTreeSet<i32> = stats
        .iter()
        .filter(|(pid, stat)| *pid == root || stat.session == root || stat.group == root)
        .map(|(pid, _)| *pid)
        .collect();
    loop {
        let before = found.len();
        for (pid, stat) in &stats {
            if found.contains(&stat.parent) {
                found.insert(*pid);
            }
        }
        if found.len() == before {
            return found;
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: i32,
    group: i32,
    session: i32,
}

impl Stat {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// The name in parentheses may itself hold spaces and parentheses; the fields start after the last one.
    fn parse(text: &str) -> Option<Self> {
        let mut fields = text.rsplit_once(')')?.1.split_ascii_whitespace().skip(1).map(str::parse);
        Some(Self { parent: fields.next()?.ok()?, group: fields.next()?.ok()?, session: fields.next()?.ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_name_cannot_shift_the_fields() {
        let stat = Stat::parse("7 (a) b) (c) S 3 4 5 0 -1 4194560");
        assert_eq!(stat, Some(Stat { parent: 3, group: 4, session: 5 }));
    }
}
