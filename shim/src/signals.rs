//! Signals to many processes of one cgroup: all of them, or one with all that it has started.
//!
//! Invariant: a signal goes only to a process whose pidfd was opened before it was seen in the container's cgroup,
//! so a reused pid is never hit.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags};

use crate::cgroup::Cgroup;
use crate::sys::signal_pidfd;

/// A fork can outrun one look at the process list; this many looks, one every [`PAUSE`], end every sane tree.
const ROUNDS: u32 = 100;
const PAUSE: Duration = Duration::from_millis(10);

/// Signals what `choose` picks until it picks nothing that lives.
pub(crate) async fn kill_until_none(cgroup: &Cgroup, signal: i32, choose: impl Fn(&BTreeSet<i32>) -> BTreeSet<i32>) {
    for _ in 0..ROUNDS {
        if !signal_all(cgroup, signal, &choose) {
            return;
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Signals a process and all that it has started; with SIGKILL until none of them is left.
pub(crate) async fn signal_tree(cgroup: &Cgroup, root: i32, signal: i32) {
    if signal == libc::SIGKILL {
        kill_until_none(cgroup, signal, |pids| tree(root, pids)).await;
    } else {
        signal_all(cgroup, signal, |pids| tree(root, pids));
    }
}

/// Signals what `choose` picks of the cgroup's processes; says whether there was any.
pub(crate) fn signal_all(cgroup: &Cgroup, signal: i32, choose: impl Fn(&BTreeSet<i32>) -> BTreeSet<i32>) -> bool {
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
