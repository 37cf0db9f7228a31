//! Kernel calls that have no safe wrapper: of user namespaces, and between fork and exec. Nothing here decides anything.
#![expect(
    unsafe_code,
    reason = "a closure between fork and exec, and mount_setattr with a user namespace, have no safe form in std and rustix 1.1"
)]

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, BorrowedFd, OwnedFd},
        unix::process::CommandExt,
    },
    process::Command,
    thread,
};

use nix::sched::{CloneFlags, unshare};
use rustix::{
    pipe::{PipeFlags, pipe_with},
    process::{Signal, getpid, set_parent_process_death_signal},
};

/// Runs `work` while a child, whose pid it gets, sits in new namespaces of these kinds; then the child ends.
///
/// A child of its own, because the kernel lets no process with more than one thread enter a user namespace. It is never
/// executed: between fork and exec it makes the namespaces and waits.
pub(crate) fn beside_new_namespaces<T>(kinds: CloneFlags, work: impl FnOnce(i32) -> io::Result<T>) -> io::Result<T> {
    let (ready, mut tell_ready) = pipe()?;
    let (mut wait, done) = pipe()?;
    let mut command = Command::new("/proc/self/exe");
    let in_child = move || -> io::Result<()> {
        unshare(kinds)?;
        // With its parent's thread gone nobody would ever write to `done`.
        set_parent_process_death_signal(Some(Signal::KILL))?;
        tell_ready.write_all(&getpid().as_raw_nonzero().get().to_ne_bytes())?;
        wait.read_exact(&mut [0])?;
        // Whatever is an error here keeps the child from being executed.
        Err(io::Error::from_raw_os_error(libc::ECANCELED))
    };
    // SAFETY: the closure calls unshare, prctl, getpid, read and write only, all safe after fork, and allocates nothing:
    // its errors are numbers.
    unsafe { command.pre_exec(in_child) };
    thread::scope(|scope| {
        // It waits for the child's end, and closes the child's ends of the pipes with the command.
        let child = thread::Builder::new().name("userns".into()).spawn_scoped(scope, move || command.spawn())?;
        let answer = told(ready).and_then(|pid| {
            let _end = Done(done);
            work(pid)
        });
        let spawned = child.join().map_err(|_| io::Error::other("the thread that makes user namespaces panicked"))?;
        match (answer, spawned) {
            // Nothing was told: the child's own error says why.
            (Err(error), Err(of_child)) if error.kind() == io::ErrorKind::UnexpectedEof => Err(of_child),
            (answer, _) => answer,
        }
    })
}

fn pipe() -> io::Result<(File, File)> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok((read.into(), write.into()))
}

fn told(mut ready: File) -> io::Result<i32> {
    let mut pid = [0; 4];
    ready.read_exact(&mut pid)?;
    Ok(i32::from_ne_bytes(pid))
}

/// Lets the child end, however the work ended.
struct Done(File);

impl Drop for Done {
    fn drop(&mut self) {
        // A child that is gone already has closed the other end.
        let _ = self.0.write_all(&[0]);
    }
}

/// Gives a command's process a descriptor under this number.
pub(crate) fn pass_descriptor(command: &mut Command, descriptor: OwnedFd, number: i32) {
    let in_child = move || -> io::Result<()> {
        let own = descriptor.as_raw_fd();
        // SAFETY: both calls take numbers only. The closure owns the descriptor, so its number is that of an open one;
        // what else the child has under the wanted number is closed by exec in any case.
        let answer = unsafe {
            // A copy does not close at exec; of a descriptor that has the number already there is no copy.
            if own == number { libc::fcntl(own, libc::F_SETFD, 0) } else { libc::dup2(own, number) }
        };
        if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    };
    // SAFETY: the closure calls fcntl or dup2 only, both safe after fork, and allocates nothing.
    unsafe { command.pre_exec(in_child) };
}

/// Shows a detached mount with the ids of a user namespace: a file of 0 belongs to what 0 is mapped to.
pub(crate) fn map_ids(mount: BorrowedFd<'_>, userns: BorrowedFd<'_>) -> io::Result<()> {
    const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
    /// `struct mount_attr` of mount_setattr(2), in its first version.
    #[repr(C)]
    struct Attributes {
        set: u64,
        clear: u64,
        propagation: u64,
        userns: u64,
    }
    let userns = u64::try_from(userns.as_raw_fd()).map_err(io::Error::other)?;
    let attributes = Attributes { set: MOUNT_ATTR_IDMAP, clear: 0, propagation: 0, userns };
    // SAFETY: the path is an empty C string, the structure is valid for the call and its size is told, and both
    // descriptors are borrowed for the call.
    let answer = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    if answer == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
