//! Who waits for which child.
//!
//! Every child that the shim knows is waited for by its own [`Child`], through its pidfd. As a subreaper the shim
//! also inherits orphans of its containers; [`Reaper::sweep`] waits for those, and for nothing else.
//!
//! Invariants: the sweep never takes the exit of a child that is owned. While runc runs, a process can become our
//! child and die before its pid is known; such exits are kept as long as a launch is under way that they may belong to.
//! A launch never takes the exit of a process that was there before it: pids are used again, and the process that has
//! this one now may live.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::os::fd::AsFd;
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, WaitOptions};

use crate::sys::{WatchedFd, peek_dead_child, signal_pidfd};

/// What a process reports whose exit could not be read, as runc and containerd spell it.
pub(crate) const UNKNOWN_EXIT: u32 = 255;

/// Shared by everything that starts or adopts a process.
#[derive(Clone, Debug, Default)]
pub(crate) struct Reaper {
    known: Arc<Mutex<Known>>,
}

#[derive(Debug, Default)]
struct Known {
    owned: HashSet<i32>,
    /// The next launch's number.
    next: u64,
    launches: BTreeSet<u64>,
    /// Exits of orphans seen while a launch was under way, by pid.
    early: HashMap<i32, Early>,
}

#[derive(Debug)]
struct Early {
    code: u32,
    /// Launches from this number on began after the exit was seen.
    before: u64,
    /// When the process was started, in clock ticks since the boot; `None` if that could not be read.
    started: Option<u64>,
}

impl Reaper {
    fn known(&self) -> MutexGuard<'_, Known> {
        // The guarded data is plain collections that are valid after any panic.
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a command; its exit belongs to the returned value.
    ///
    /// No await lies between spawn and registration, and the sweep runs on this thread, so it cannot come between.
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<Child> {
        let pid = command.spawn()?.id() as i32;
        let pidfd = open_pidfd(pid)?;
        self.known().owned.insert(pid);
        Ok(Child { pid, state: ChildState::Alive(pidfd), reaper: self.clone() })
    }

    /// Marks that a process may become our child whose pid is not known yet.
    pub(crate) fn launch(&self) -> Launch {
        let mut known = self.known();
        let number = known.next;
        known.next += 1;
        known.launches.insert(number);
        drop(known);
        Launch { reaper: self.clone(), number, began: now_in_ticks() }
    }

    /// Waits for every dead child that nobody owns. Called after each SIGCHLD and after each owned exit.
    pub(crate) fn sweep(&self) {
        while let Ok(Some(pid)) = peek_dead_child() {
            if self.known().owned.contains(&pid) {
                // Its owner is woken by the pidfd and sweeps afterwards.
                return;
            }
            let Some(raw) = Pid::from_raw(pid) else { return };
            // Before it is waited for: then the number is free, and the file may be another process's.
            let wanted = !self.known().launches.is_empty();
            let started = if wanted { start_time(pid) } else { None };
            let Ok(Some((_, status))) = rustix::process::waitpid(Some(raw), WaitOptions::NOHANG) else { return };
            let code = status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or(0)) as u32;
            self.note(pid, code, started);
        }
    }

    /// Keeps the exit of a child that nobody owns, if somebody may yet ask for it.
    fn note(&self, pid: i32, code: u32, started: Option<u64>) {
        let mut known = self.known();
        let before = known.next;
        if !known.launches.is_empty() {
            known.early.insert(pid, Early { code, before, started });
        }
    }
}

/// Held from before runc starts until the pid that it wrote has been adopted.
pub(crate) struct Launch {
    reaper: Reaper,
    number: u64,
    /// In clock ticks since the boot.
    began: u64,
}

impl Launch {
    /// Takes over a process that runc has made our child.
    pub(crate) fn adopt(&self, pid: i32) -> io::Result<Child> {
        let early = self.reaper.known().early.remove(&pid);
        if let Some(exit) = early.filter(|exit| self.may_have_started(exit)) {
            return Ok(Child { pid, state: ChildState::Gone(exit.code), reaper: self.reaper.clone() });
        }
        let pidfd = open_pidfd(pid)?;
        self.reaper.known().owned.insert(pid);
        Ok(Child { pid, state: ChildState::Alive(pidfd), reaper: self.reaper.clone() })
    }
}

impl Launch {
    fn may_have_started(&self, exit: &Early) -> bool {
        exit.before > self.number && exit.started.is_none_or(|started| started >= self.began)
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        let mut known = self.reaper.known();
        known.launches.remove(&self.number);
        match known.launches.first().copied() {
            Some(oldest) => known.early.retain(|_, exit| exit.before > oldest),
            None => known.early.clear(),
        }
    }
}

/// One process of ours and the right to wait for it.
pub(crate) struct Child {
    pub(crate) pid: i32,
    state: ChildState,
    reaper: Reaper,
}

enum ChildState {
    Alive(WatchedFd),
    Gone(u32),
}

impl Child {
    /// Resolves to the exit status (128+n for a signal); may be called again.
    pub(crate) async fn wait(&self) -> u32 {
        let pidfd = match &self.state {
            ChildState::Gone(code) => return *code,
            ChildState::Alive(pidfd) => pidfd,
        };
        let code = loop {
            if pidfd.readable().await.is_err() {
                break UNKNOWN_EXIT;
            }
            match rustix::process::waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
                Ok(Some(status)) => {
                    let signal = || status.terminating_signal().map_or(UNKNOWN_EXIT as i32, |signal| 128 + signal);
                    break status.exit_status().unwrap_or_else(signal) as u32;
                }
                Ok(None) => tokio::task::yield_now().await,
                // ECHILD: it was never our child, so its status cannot be known.
                Err(_) => break UNKNOWN_EXIT,
            }
        };
        self.reaper.known().owned.remove(&self.pid);
        self.reaper.sweep();
        code
    }

    /// Sends a signal through the pidfd, so never to a process that reuses the pid.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        match &self.state {
            ChildState::Alive(pidfd) => signal_pidfd(pidfd.as_fd(), signal),
            ChildState::Gone(_) => Err(rustix::io::Errno::SRCH.into()),
        }
    }
}

/// The clock by which the kernel tells when a process was started, in its unit.
fn now_in_ticks() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let (seconds, nanoseconds) = (now.tv_sec.unsigned_abs(), now.tv_nsec.unsigned_abs());
    let ticks = rustix::param::clock_ticks_per_second();
    seconds * ticks + nanoseconds * ticks / 1_000_000_000
}

/// Field 22 of /proc/pid/stat (proc_pid_stat(5)), which a zombie has as well.
fn start_time(pid: i32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is in parentheses and may hold any character; the third is the first after them.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19)?.parse().ok()
}

fn open_pidfd(pid: i32) -> io::Result<WatchedFd> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other(format!("{pid} is no process id")))?;
    WatchedFd::new(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A sweep takes every child of the process, those of other tests too.
    static ALONE: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    #[tokio::test]
    async fn an_owned_exit_survives_a_sweep() {
        let _alone = ALONE.lock().await;
        let reaper = Reaper::default();
        let child = reaper.spawn(Command::new("/bin/sh").args(["-c", "exit 7"])).unwrap();
        let ChildState::Alive(pidfd) = &child.state else { panic!("a new child is alive") };
        while rustix::process::waitid(
            WaitId::PidFd(pidfd.as_fd()),
            WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT,
        )
        .unwrap()
        .is_none()
        {
            tokio::task::yield_now().await;
        }
        reaper.sweep();
        assert_eq!(child.wait().await, 7);
    }

    /// A child that nobody owns, as orphans of containers are, waiting for its stdin to close.
    #[expect(clippy::zombie_processes, reason = "the test waits for it by its pid, as the reaper does")]
    fn orphan(code: i32) -> (i32, std::process::ChildStdin) {
        let script = format!("read line; exit {code}");
        let mut child =
            Command::new("/bin/sh").args(["-c", &script]).stdin(std::process::Stdio::piped()).spawn().unwrap();
        (child.id() as i32, child.stdin.take().unwrap())
    }

    /// What a sweep does with a child that nobody owns.
    fn reap(reaper: &Reaper, pid: i32) {
        let raw = Pid::from_raw(pid).unwrap();
        let dead = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
        rustix::process::waitid(WaitId::Pid(raw), dead).unwrap();
        let started = start_time(pid);
        let (_, status) = rustix::process::waitpid(Some(raw), WaitOptions::empty()).unwrap().unwrap();
        reaper.note(pid, status.exit_status().unwrap() as u32, started);
    }

    #[tokio::test]
    async fn an_exit_before_the_pid_is_known_is_the_launchs() {
        let _alone = ALONE.lock().await;
        let reaper = Reaper::default();
        let launch = reaper.launch();
        let (pid, stdin) = orphan(9);
        drop(stdin);
        reap(&reaper, pid);
        let child = launch.adopt(pid).unwrap();
        assert_eq!(child.wait().await, 9);
    }

    #[tokio::test]
    async fn the_exit_of_an_older_process_is_nobodys() {
        let _alone = ALONE.lock().await;
        let reaper = Reaper::default();
        let (pid, stdin) = orphan(9);
        while now_in_ticks() <= start_time(pid).unwrap() {
            tokio::task::yield_now().await;
        }
        let launch = reaper.launch();
        drop(stdin);
        reap(&reaper, pid);
        // As if the pid were a new process's: whoever has it now is looked at, and here nobody has.
        let taken = launch.adopt(pid).map(|child| child.pid);
        assert_eq!(taken.unwrap_err().raw_os_error(), Some(libc::ESRCH));
    }

    #[tokio::test]
    async fn launches_that_always_overlap_keep_no_exit_for_ever() {
        let _alone = ALONE.lock().await;
        let reaper = Reaper::default();
        let first = reaper.launch();
        let (pid, stdin) = orphan(9);
        drop(stdin);
        reap(&reaper, pid);
        let second = reaper.launch();
        assert_eq!(reaper.known().early.len(), 1);
        // The second began when the process was gone.
        assert!(second.adopt(pid).is_err());
        let (pid, stdin) = orphan(9);
        drop(stdin);
        reap(&reaper, pid);
        let third = reaper.launch();
        drop(first);
        assert_eq!(reaper.known().early.keys().copied().collect::<Vec<_>>(), [pid], "the second may want it");
        drop(second);
        assert!(reaper.known().early.is_empty());
        drop(third);
    }

    #[tokio::test]
    async fn a_signal_is_reported_as_128_and_its_number() {
        let _alone = ALONE.lock().await;
        let reaper = Reaper::default();
        let child = reaper.spawn(Command::new("/bin/sleep").arg("100")).unwrap();
        child.signal(libc::SIGKILL).unwrap();
        assert_eq!(child.wait().await, 137);
    }
}
