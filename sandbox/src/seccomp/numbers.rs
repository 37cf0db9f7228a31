//! Numbers of system calls by their names, for each of the ABIs that a machine's kernel runs programs of.
//!
//! The tables are the crate `syscalls`', which takes them from the kernel. It has none for x32 (arch/x86/entry/syscalls/syscall_64.tbl:
//! the 64-bit numbers with a bit set, but for those that are told here), and not the calls that ARM keeps to itself.

use oci_spec::runtime::Arch;
use syscalls::{aarch64, arm, x86, x86_64};

/// An ABI of system calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Abi {
    X86_64,
    X32,
    X86,
    Aarch64,
    Arm,
}

/// Set in the numbers of x32, whose programs the kernel shows to filters as x86_64's.
pub(crate) const X32_BIT: u32 = 1 << 30;
const X32_FIRST: u32 = 512;
/// The calls that x32 has under numbers of its own, from 512 on.
#[rustfmt::skip]
const X32_OWN: [&str; 36] = [
    "rt_sigaction", "rt_sigreturn", "ioctl", "readv", "writev", "recvfrom", "sendmsg", "recvmsg", "execve", "ptrace",
    "rt_sigpending", "rt_sigtimedwait", "rt_sigqueueinfo", "sigaltstack", "timer_create", "mq_notify", "kexec_load",
    "waitid", "set_robust_list", "get_robust_list", "vmsplice", "move_pages", "preadv", "pwritev",
    "rt_tgsigqueueinfo", "recvmmsg", "sendmmsg", "process_vm_readv", "process_vm_writev", "setsockopt", "getsockopt",
    "io_setup", "io_submit", "execveat", "preadv2", "pwritev2",
];
/// Those that x32 has not at all.
#[rustfmt::skip]
const NOT_X32: [&str; 13] = [
    "uselib", "_sysctl", "create_module", "get_kernel_syms", "query_module", "nfsservctl", "set_thread_area",
    "get_thread_area", "epoll_ctl_old", "epoll_wait_old", "vserver", "uretprobe", "uprobe",
];
/// arch/arm/include/uapi/asm/unistd.h.
const ARM_OWN: [(&str, u32); 6] = [
    ("breakpoint", 0xf_0001),
    ("cacheflush", 0xf_0002),
    ("usr26", 0xf_0003),
    ("usr32", 0xf_0004),
    ("set_tls", 0xf_0005),
    ("get_tls", 0xf_0006),
];

impl Abi {
    /// The ABIs that this machine's kernel runs, its own first; none where this program has no tables.
    pub(crate) fn of_this_machine() -> &'static [Abi] {
        if cfg!(target_arch = "x86_64") {
            &[Abi::X86_64, Abi::X32, Abi::X86]
        } else if cfg!(target_arch = "aarch64") {
            &[Abi::Aarch64, Abi::Arm]
        } else {
            &[]
        }
    }

    pub(crate) fn profile_name(self) -> Arch {
        match self {
            Abi::X86_64 => Arch::ScmpArchX86_64,
            Abi::X32 => Arch::ScmpArchX32,
            Abi::X86 => Arch::ScmpArchX86,
            Abi::Aarch64 => Arch::ScmpArchAarch64,
            Abi::Arm => Arch::ScmpArchArm,
        }
    }

    /// What the kernel calls it in a filter's data (AUDIT_ARCH_* of linux/audit.h).
    pub(crate) fn audit(self) -> u32 {
        match self {
            Abi::X86_64 | Abi::X32 => 0xc000_003e,
            Abi::X86 => 0x4000_0003,
            Abi::Aarch64 => 0xc000_00b7,
            Abi::Arm => 0x4000_0028,
        }
    }

    /// Whether arguments are compared in all their 64 bits, or, as libseccomp has it for the others, in their lower half.
    pub(crate) fn is_wide(self) -> bool {
        matches!(self, Abi::X86_64 | Abi::Aarch64)
    }

    /// The number of a call; `None` if the ABI has none of this name.
    pub(crate) fn number(self, name: &str) -> Option<u32> {
        let found = match self {
            Abi::X86_64 => name.parse().ok().map(|call: x86_64::Sysno| call.id()),
            Abi::X86 => name.parse().ok().map(|call: x86::Sysno| call.id()),
            Abi::X32 => return x32(name),
            // The kernel's own name and libseccomp's.
            Abi::Aarch64 if name == "newfstatat" => Some(aarch64::Sysno::fstatat.id()),
            Abi::Aarch64 => name.parse().ok().map(|call: aarch64::Sysno| call.id()),
            Abi::Arm => {
                if let Some((_, number)) = ARM_OWN.iter().find(|(own, _)| *own == name) {
                    return Some(*number);
                }
                name.parse().ok().map(|call: arm::Sysno| call.id())
            }
        };
        found.and_then(|number| u32::try_from(number).ok())
    }
}

fn x32(name: &str) -> Option<u32> {
    if NOT_X32.contains(&name) {
        return None;
    }
    let own = X32_OWN.iter().zip(X32_FIRST..).find(|(own, _)| **own == name).map(|(_, number)| number);
    own.or_else(|| Abi::X86_64.number(name)).map(|number| number | X32_BIT)
}

/// The two calls of 32-bit x86 that stand for many, with the first argument telling which (linux/net.h, linux/ipc.h); answers
/// the one that `name` can be made through as well, and as which.
pub(crate) fn through(abi: Abi, name: &str) -> Option<(&'static str, u32)> {
    #[rustfmt::skip]
    const SOCKETS: [&str; 20] = [
        "socket", "bind", "connect", "listen", "accept", "getsockname", "getpeername", "socketpair", "send", "recv",
        "sendto", "recvfrom", "shutdown", "setsockopt", "getsockopt", "sendmsg", "recvmsg", "accept4", "recvmmsg",
        "sendmmsg",
    ];
    const IPC: [(&str, u32); 12] = [
        ("semop", 1),
        ("semget", 2),
        ("semctl", 3),
        ("semtimedop", 4),
        ("msgsnd", 11),
        ("msgrcv", 12),
        ("msgget", 13),
        ("msgctl", 14),
        ("shmat", 21),
        ("shmdt", 22),
        ("shmget", 23),
        ("shmctl", 24),
    ];
    if abi != Abi::X86 {
        return None;
    }
    let socket = SOCKETS.iter().zip(1..).find(|(known, _)| **known == name);
    let ipc = || IPC.iter().find(|(known, _)| *known == name);
    socket.map(|(_, which)| ("socketcall", which)).or_else(|| ipc().map(|(_, which)| ("ipc", *which)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_has_the_number_of_each_abi() {
        for (name, expected) in [
            ("read", [Some(0), Some(X32_BIT), Some(3), Some(63), Some(3)]),
            ("execve", [Some(59), Some(X32_BIT | 520), Some(11), Some(221), Some(11)]),
            ("pwritev2", [Some(328), Some(X32_BIT | 547), Some(379), Some(287), Some(393)]),
            ("nfsservctl", [Some(180), None, Some(169), Some(42), Some(169)]),
            ("newfstatat", [Some(262), Some(X32_BIT | 262), None, Some(79), None]),
            ("chown32", [None, None, Some(212), None, Some(212)]),
            ("socketcall", [None, None, Some(102), None, None]),
            ("cacheflush", [None, None, None, None, Some(0xf_0002)]),
            ("mseal", [Some(462), Some(X32_BIT | 462), Some(462), Some(462), Some(462)]),
            ("no_such_call", [None; 5]),
            ("", [None; 5]),
        ] {
            let found = [Abi::X86_64, Abi::X32, Abi::X86, Abi::Aarch64, Abi::Arm].map(|abi| abi.number(name));
            assert_eq!(found, expected, "{name}");
        }
    }
}
