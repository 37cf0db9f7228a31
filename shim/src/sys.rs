//! The few kernel calls that have no safe wrapper.
//!
//! Owns [`WatchedFd`], a descriptor registered with the reactor, and the peek at the next dead child.
//! Nothing here decides anything; callers are ordinary safe code.
#![expect(
    unsafe_code,
    reason = "AsyncFd registration and waitid with WNOWAIT have no safe form in tokio 1.54 and rustix 1.1"
)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use tokio::io::unix::AsyncFd;

/// A descriptor of ours (pipe, FIFO, pty, pidfd, eventfd, inotify) that can be awaited.
///
/// The descriptor is non-blocking and stays the same for the whole life of the value.
#[derive(Debug)]
pub(crate) struct WatchedFd(AsyncFd<OwnedFd>);

impl WatchedFd {
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        let flags = rustix::fs::fcntl_getfl(&fd)?;
        rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
        // JUSTIFICATION: tokio's safe constructors are deprecated as unsound for types that can change their fd.
        // SAFETY: an OwnedFd is open and keeps its number until dropped; the AsyncFd owns it, and this type gives
        // out only shared borrows, so nobody can replace it while it is registered.
        let registered = unsafe { AsyncFd::register(fd) };
        registered.map(Self).map_err(|failed| failed.into_parts().1)
    }

    /// Waits until the descriptor is readable, without consuming anything: a pidfd stays readable for good.
    pub(crate) async fn readable(&self) -> io::Result<()> {
        self.0.readable().await.map(|mut guard| guard.retain_ready())
    }

    pub(crate) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut guard = self.0.readable().await?;
            match guard.try_io(|fd| rustix::io::read(fd.get_ref(), &mut *buffer).map_err(io::Error::from)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }

    /// Reads what is there now; `WouldBlock` is nothing, and 0 the end.
    pub(crate) fn try_read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        rustix::io::retry_on_intr(|| rustix::io::read(self.0.get_ref(), &mut *buffer)).map_err(io::Error::from)
    }

    pub(crate) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut guard = self.0.writable().await?;
            match guard.try_io(|fd| rustix::io::write(fd.get_ref(), bytes).map_err(io::Error::from)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Ok(Ok(written)) => bytes = &bytes[written..],
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

impl AsFd for WatchedFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.get_ref().as_fd()
    }
}

/// The pid of a dead child that nobody has waited for yet; it stays a zombie.
pub(crate) fn peek_dead_child() -> io::Result<Option<i32>> {
    // SAFETY: siginfo_t is plain data for which all zeroes is a valid value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: `info` is a valid, writable siginfo_t for the time of the call.
    let answer = unsafe { libc::waitid(libc::P_ALL, 0, &mut info, options) };
    if answer != 0 {
        let error = io::Error::last_os_error();
        return if error.raw_os_error() == Some(libc::ECHILD) { Ok(None) } else { Err(error) };
    }
    // SAFETY: waitid filled the SIGCHLD variant, or left the zeroes, for which si_pid is 0.
    let pid = unsafe { info.si_pid() };
    Ok((pid != 0).then_some(pid))
}

/// Sends any signal number, real-time ones included; the kernel judges the number.
pub(crate) fn signal_pidfd(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: pidfd_send_signal(2) takes plain numbers and a null siginfo; the descriptor is borrowed for the call.
    let answer = unsafe {
        libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, std::ptr::null::<libc::siginfo_t>(), 0)
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
