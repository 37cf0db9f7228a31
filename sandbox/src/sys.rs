//! Kernel calls that have no safe wrapper: of user namespaces, and between fork and exec. Nothing here decides anything.
#![expect(
    unsafe_code,
    reason = "a closure between fork and exec, mount_setattr with a user namespace, and ptrace with a buffer have no safe form in std and rustix 1.1"
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

/// What tests of filters need: the filters of another process, and a process with a filter of its own.
#[cfg(test)]
pub(crate) mod filters {
    use super::{Command, CommandExt, Read, Write, io};
    use crate::seccomp::program::{Instruction, MAX_INSTRUCTIONS, SIZE};

    /// PTRACE_SECCOMP_GET_FILTER of linux/ptrace.h.
    const GET_FILTER: libc::c_uint = 0x420c;

    fn ptrace(request: libc::c_uint, pid: i32, at: usize, data: *mut u8) -> io::Result<usize> {
        // SAFETY: of the requests made here only GET_FILTER writes, and its buffer has room for the longest filter.
        let answer = unsafe { libc::ptrace(request, pid, at, data) };
        usize::try_from(answer).map_err(|_| io::Error::last_os_error())
    }

    /// The filters of a process, as they were loaded. This thread stops it for a moment.
    pub(crate) fn filters_of(pid: i32) -> io::Result<Vec<Vec<Instruction>>> {
        ptrace(libc::PTRACE_SEIZE, pid, 0, std::ptr::null_mut())?;
        ptrace(libc::PTRACE_INTERRUPT, pid, 0, std::ptr::null_mut())?;
        let stopped =
            nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), Some(nix::sys::wait::WaitPidFlag::__WALL))?;
        assert!(matches!(stopped, nix::sys::wait::WaitStatus::PtraceEvent(..)), "{stopped:?}");
        let mut filters = Vec::new();
        loop {
            let mut buffer = vec![0; MAX_INSTRUCTIONS * SIZE];
            match ptrace(GET_FILTER, pid, filters.len(), buffer.as_mut_ptr()) {
                Ok(length) => filters.push(buffer[..length * SIZE].chunks_exact(SIZE).map(instruction).collect()),
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => break,
                Err(error) => return Err(error),
            }
        }
        ptrace(libc::PTRACE_DETACH, pid, 0, std::ptr::null_mut())?;
        Ok(filters)
    }

    fn instruction(bytes: &[u8]) -> Instruction {
        let [code, more, then, otherwise, k0, k1, k2, k3] = *bytes else { panic!("{bytes:?}") };
        let code = u16::from_le_bytes([code, more]);
        Instruction { code, then, otherwise, constant: u32::from_le_bytes([k0, k1, k2, k3]) }
    }

    /// What a process that has loaded this program gets for each of these calls: an error's number, 0 for none.
    pub(crate) fn probe(program: &[u8], flags: u32, calls: &'static [(i64, [i64; 3])]) -> io::Result<Vec<i32>> {
        /// `struct sock_fprog`.
        #[repr(C)]
        struct Program {
            length: u16,
            first: *const u8,
        }
        let (mut answers, mut tell) = io::pipe()?;
        let program = program.to_vec();
        let mut command = Command::new("/proc/self/exe");
        let in_child = move || -> io::Result<()> {
            let loaded = Program { length: (program.len() / SIZE) as u16, first: program.as_ptr() };
            let mut found = [0i32; 64];
            // SAFETY: system calls with numbers and a pointer to a program that outlives the call; the calls to be tried are
            // those that fail, or do nothing to memory.
            unsafe {
                if libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0
                    || libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, &raw const loaded) != 0
                {
                    return Err(io::Error::last_os_error());
                }
                for ((number, [a, b, c]), found) in calls.iter().zip(&mut found) {
                    if libc::syscall(*number, *a, *b, *c) < 0 {
                        *found = io::Error::last_os_error().raw_os_error().unwrap_or(-1);
                    }
                }
            }
            for found in found.iter().take(calls.len()) {
                tell.write_all(&found.to_le_bytes())?;
            }
            // Whatever is an error here keeps the child from being executed.
            Err(io::Error::from_raw_os_error(libc::ECANCELED))
        };
        // SAFETY: the closure makes system calls only, and allocates nothing.
        unsafe { command.pre_exec(in_child) };
        match command.spawn() {
            Err(error) if error.raw_os_error() == Some(libc::ECANCELED) => {}
            Err(error) => return Err(error),
            Ok(_) => return Err(io::Error::other("the child was executed")),
        }
        drop(command);
        let mut text = Vec::new();
        answers.read_to_end(&mut text)?;
        Ok(text.chunks_exact(4).map(|bytes| i32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])).collect())
    }
}
