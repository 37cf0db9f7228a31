//! Who waits for which child.
//!
//! Every child that the shim knows is waited for by its own [`Child`], through its pidfd. As a subreaper the shim
//! also inherits orphans of its containers; [`Reaper::sweep`] waits for those, and for nothing else.
//!
//! Invariants: the sweep never takes the exit of a child that is owned. While runc runs, a process can become our
//! child and die before its pid is known; such exits are kept until no launch is under way, so none is dropped.

use std::collections::{HashMap, HashSet};
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
    launches: usize,
    /// Exits of orphans seen while a launch was under way: pid to exit status.
    early: HashMap<i32, u32>,
}

impl Reaper {
    fn known(&self) -> MutexGuard<'_, Known> {
        // The guarded data is three plain collections that are valid after any panic.
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
        self.known().launches += 1;
        Launch { reaper: self.clone() }
    }

    /// Waits for every dead child that nobody owns. Called after each SIGCHLD and after each owned exit.
    pub(crate) fn sweep(&self) {
        while let Ok(Some(pid)) = peek_dead_child() {
            if self.known().owned.contains(&pid) {
                // Its owner is woken by the pidfd and sweeps afterwards.
                return;
            }
            let Some(raw) = Pid::from_raw(pid) else { return };
            let Ok(Some((_, status))) = rustix::process::waitpid(Some(raw), WaitOptions::NOHANG) else { return };
            let code = status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or(0)) as u32;
            let mut known = self.known();
            if known.launches > 0 {
                known.early.insert(pid, code);
            }
        }
    }
}

/// Held from before runc starts until the pid that it wrote has been adopted.
pub(crate) struct Launch {
    reaper: Reaper,
}

impl Launch {
    /// Takes over a process that runc has made our child.
    pub(crate) fn adopt(&self, pid: i32) -> io::Result<Child> {
        if let Some(code) = self.reaper.known().early.remove(&pid) {
            return Ok(Child { pid, state: ChildState::Gone(code), reaper: self.reaper.clone() });
        }
        let pidfd = open_pidfd(pid)?;
        self.reaper.known().owned.insert(pid);
        Ok(Child { pid, state: ChildState::Alive(pidfd), reaper: self.reaper.clone() })
    }
}

impl Drop for Launch {
    fn drop(&mut self) {
        let mut known = self.reaper.known();
        known.launches -= 1;
        if known.launches == 0 {
            known.early.clear();
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

fn open_pidfd(pid: i32) -> io::Result<WatchedFd> {
    let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other(format!("{pid} is no process id")))?;
    WatchedFd::new(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_owned_exit_survives_a_sweep() {
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

    #[tokio::test]
    async fn a_signal_is_reported_as_128_and_its_number() {
        let reaper = Reaper::default();
        let child = reaper.spawn(Command::new("/bin/sleep").arg("100")).unwrap();
        child.signal(libc::SIGKILL).unwrap();
        assert_eq!(child.wait().await, 137);
    }
}
