//! The RuntimeDefault system call filter: what ordinary programs call is allowed, everything else fails with EPERM.
//!
//! A table by purpose. Left out on purpose, whatever the capabilities: `io_uring_*` (its operations pass by a filter),
//! `userfaultfd`, `keyctl` and its kin (keys have no namespace), `kexec_*`, `swapon`, `nfsservctl` and other remains.
//! What the kernel itself checks a capability for is allowed only with it, so that a kernel bug behind it stays out of reach.
//!
//! Names that a runtime's libseccomp does not know are passed over by it.

use std::collections::HashSet;

use oci_spec::runtime::{
    Arch, Capability, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompOperator,
    LinuxSyscall,
};

const EPERM: u32 = 1;
const ENOSYS: u32 = 38;

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET of linux/sched.h.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;

/// Socket families 0 to 63 without 38 (AF_ALG) and 40 (AF_VSOCK), as (mask, value) of the argument.
///
/// Masks and not comparisons: the kernel takes the lower 32 bits for the family, but a comparison sees all 64, so one of
/// the upper bits would make any family look like a greater one.
const FAMILIES: [(u64, u64); 8] = [
    (0xffff_ffe0, 0),
    (0xffff_fffc, 32),
    (0xffff_fffe, 36),
    (0xffff_ffff, 39),
    (0xffff_ffff, 41),
    (0xffff_fffe, 42),
    (0xffff_fffc, 44),
    (0xffff_fff0, 48),
];

/// linux/net.h: the first argument of `socketcall` that makes a socket.
const SYS_SOCKET: u64 = 1;

/// Process personalities: Linux, 32-bit names in uname, no address randomisation, both, and the question.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

#[rustfmt::skip]
const FILES: &[&str] = &[
    "access", "chdir", "chmod", "chown", "chown32", "close", "close_range", "copy_file_range", "creat", "dup", "dup2",
    "dup3", "faccessat", "faccessat2", "fadvise64", "fadvise64_64", "fallocate", "fchdir", "fchmod", "fchmodat",
    "fchmodat2", "fchown", "fchown32", "fchownat", "fcntl", "fcntl64", "fdatasync", "flock", "fstat", "fstat64",
    "fstatat64", "fstatfs", "fstatfs64", "fsync", "ftruncate", "ftruncate64", "futimesat", "getcwd", "getdents",
    "getdents64", "ioctl", "lchown", "lchown32", "link", "linkat", "_llseek", "lseek", "lstat", "lstat64", "mkdir",
    "mkdirat", "mknod", "mknodat", "name_to_handle_at", "newfstatat", "open", "openat", "openat2", "pread64", "preadv",
    "preadv2", "pwrite64", "pwritev", "pwritev2", "read", "readahead", "readlink", "readlinkat", "readv", "rename",
    "renameat", "renameat2", "rmdir", "sendfile", "sendfile64", "splice", "stat", "stat64", "statfs", "statfs64",
    "statx", "symlink", "symlinkat", "sync", "sync_file_range", "sync_file_range2", "arm_sync_file_range", "syncfs",
    "tee", "truncate", "truncate64", "umask", "unlink", "unlinkat", "utime", "utimensat", "utimensat_time64", "utimes",
    "vmsplice", "write", "writev", "cachestat",
];

#[rustfmt::skip]
const ATTRIBUTES_AND_WATCHES: &[&str] = &[
    "fgetxattr", "flistxattr", "fremovexattr", "fsetxattr", "getxattr", "getxattrat", "lgetxattr", "listxattr",
    "listxattrat", "llistxattr", "lremovexattr", "lsetxattr", "removexattr", "removexattrat", "setxattr", "setxattrat",
    "fanotify_mark", "inotify_add_watch", "inotify_init", "inotify_init1", "inotify_rm_watch",
];

#[rustfmt::skip]
const MEMORY: &[&str] = &[
    "brk", "madvise", "map_shadow_stack", "membarrier", "memfd_create", "memfd_secret", "mincore", "mlock", "mlock2",
    "mlockall", "mmap", "mmap2", "mprotect", "mremap", "mseal", "msync", "munlock", "munlockall", "munmap",
    "pkey_alloc", "pkey_free", "pkey_mprotect", "process_mrelease", "remap_file_pages",
];

#[rustfmt::skip]
const PROCESSES: &[&str] = &[
    "capget", "capset", "execve", "execveat", "exit", "exit_group", "fork", "getcpu", "getpgid", "getpgrp", "getpid",
    "getppid", "getpriority", "getrlimit", "ugetrlimit", "get_robust_list", "getrusage", "getsid", "gettid", "ioprio_get",
    "ioprio_set", "kill", "landlock_add_rule", "landlock_create_ruleset", "landlock_restrict_self", "pidfd_open",
    "pidfd_send_signal", "prctl", "prlimit64", "rseq", "sched_getaffinity", "sched_getattr", "sched_getparam",
    "sched_get_priority_max", "sched_get_priority_min", "sched_getscheduler", "sched_rr_get_interval",
    "sched_rr_get_interval_time64", "sched_setaffinity", "sched_setattr", "sched_setparam", "sched_setscheduler",
    "sched_yield", "seccomp", "setpgid", "setpriority", "setrlimit", "set_robust_list", "setsid", "set_tid_address",
    "sysinfo", "tgkill", "tkill", "uname", "vfork", "wait4", "waitid", "waitpid",
];

#[rustfmt::skip]
const IDENTITIES: &[&str] = &[
    "getegid", "getegid32", "geteuid", "geteuid32", "getgid", "getgid32", "getgroups", "getgroups32", "getresgid",
    "getresgid32", "getresuid", "getresuid32", "getuid", "getuid32", "setfsgid", "setfsgid32", "setfsuid", "setfsuid32",
    "setgid", "setgid32", "setgroups", "setgroups32", "setregid", "setregid32", "setresgid", "setresgid32", "setresuid",
    "setresuid32", "setreuid", "setreuid32", "setuid", "setuid32",
];

#[rustfmt::skip]
const SIGNALS_AND_WAITING: &[&str] = &[
    "epoll_create", "epoll_create1", "epoll_ctl", "epoll_ctl_old", "epoll_pwait", "epoll_pwait2", "epoll_wait",
    "epoll_wait_old", "eventfd", "eventfd2", "futex", "futex_requeue", "futex_time64", "futex_wait", "futex_waitv",
    "futex_wake", "_newselect", "pause", "poll", "ppoll", "ppoll_time64", "pselect6", "pselect6_time64",
    "restart_syscall", "rt_sigaction", "rt_sigpending", "rt_sigprocmask", "rt_sigqueueinfo", "rt_sigreturn",
    "rt_sigsuspend", "rt_sigtimedwait", "rt_sigtimedwait_time64", "rt_tgsigqueueinfo", "select", "sigaltstack",
    "signal", "signalfd", "signalfd4", "sigaction", "sigpending", "sigprocmask", "sigreturn", "sigsuspend",
];

#[rustfmt::skip]
const TIME: &[&str] = &[
    "adjtimex", "alarm", "clock_adjtime", "clock_adjtime64", "clock_getres", "clock_getres_time64", "clock_gettime",
    "clock_gettime64", "clock_nanosleep", "clock_nanosleep_time64", "getitimer", "gettimeofday", "nanosleep",
    "setitimer", "time", "timer_create", "timer_delete", "timer_getoverrun", "timer_gettime", "timer_gettime64",
    "timer_settime", "timer_settime64", "timerfd_create", "timerfd_gettime", "timerfd_gettime64", "timerfd_settime",
    "timerfd_settime64", "times",
];

#[rustfmt::skip]
const MESSAGES: &[&str] = &[
    "io_cancel", "io_destroy", "io_getevents", "io_pgetevents", "io_pgetevents_time64", "io_setup", "io_submit", "ipc",
    "mq_getsetattr", "mq_notify", "mq_open", "mq_timedreceive", "mq_timedreceive_time64", "mq_timedsend",
    "mq_timedsend_time64", "mq_unlink", "msgctl", "msgget", "msgrcv", "msgsnd", "pipe", "pipe2", "semctl", "semget",
    "semop", "semtimedop", "semtimedop_time64", "shmat", "shmctl", "shmdt", "shmget",
];

#[rustfmt::skip]
const NETWORK: &[&str] = &[
    "accept", "accept4", "bind", "connect", "getpeername", "getrandom", "getsockname", "getsockopt", "listen", "recv",
    "recvfrom", "recvmmsg", "recvmmsg_time64", "recvmsg", "send", "sendmmsg", "sendmsg", "sendto", "setsockopt",
    "shutdown", "socketpair",
];

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: &[&str] = &["arch_prctl", "get_thread_area", "modify_ldt", "set_thread_area"];
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: &[&str] = &["breakpoint", "cacheflush", "get_tls", "set_tls"];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
const ARCHITECTURE: &[&str] = &[];

const ALWAYS: [&[&str]; 10] = [
    FILES,
    ATTRIBUTES_AND_WATCHES,
    MEMORY,
    PROCESSES,
    IDENTITIES,
    SIGNALS_AND_WAITING,
    TIME,
    MESSAGES,
    NETWORK,
    ARCHITECTURE,
];

/// What a capability unlocks.
#[rustfmt::skip]
const UNLOCKED: &[(Capability, &[&str])] = &[
    (Capability::DacReadSearch, &["open_by_handle_at"]),
    (Capability::SysAdmin, &[
        "bpf", "clone", "clone3", "fanotify_init", "fsconfig", "fsmount", "fsopen", "fspick", "listmount",
        "lookup_dcookie", "lsm_get_self_attr", "lsm_list_modules", "lsm_set_self_attr", "mount", "mount_setattr",
        "move_mount", "open_tree", "perf_event_open", "quotactl", "quotactl_fd", "setdomainname", "sethostname",
        "setns", "statmount", "syslog", "umount", "umount2", "unshare",
    ]),
    (Capability::SysBoot, &["reboot"]),
    (Capability::SysChroot, &["chroot"]),
    (Capability::SysModule, &["delete_module", "finit_module", "init_module"]),
    (Capability::SysPacct, &["acct"]),
    (Capability::SysPtrace, &[
        "kcmp", "pidfd_getfd", "process_madvise", "process_vm_readv", "process_vm_writev", "ptrace",
    ]),
    (Capability::SysRawio, &["ioperm", "iopl"]),
    (Capability::SysTime, &["clock_settime", "clock_settime64", "settimeofday", "stime"]),
    (Capability::SysTtyConfig, &["vhangup"]),
    (Capability::SysNice, &["get_mempolicy", "mbind", "set_mempolicy", "set_mempolicy_home_node"]),
    (Capability::Syslog, &["syslog"]),
    (Capability::Bpf, &["bpf"]),
    (Capability::Perfmon, &["perf_event_open"]),
];

/// The profile of a process with these capabilities on this kernel.
pub(crate) fn profile(capabilities: &HashSet<Capability>, kernel: (u32, u32)) -> LinuxSeccomp {
    let mut rules = vec![allow(&ALWAYS.concat())];
    // Before 4.8 a tracer could change a call after the filter had seen it.
    if kernel >= (4, 8) {
        rules.push(allow(&["process_vm_readv", "process_vm_writev", "ptrace"]));
    }
    rules.extend(
        PERSONALITIES.map(|which| allow_if("personality", argument(0, LinuxSeccompOperator::ScmpCmpEq, which))),
    );
    rules.extend(sockets());
    if !capabilities.contains(&Capability::SysAdmin) {
        rules.extend(clone_without_namespaces());
    }
    for (capability, names) in UNLOCKED {
        if capabilities.contains(capability) {
            rules.push(allow(names));
        }
    }
    let mut profile = LinuxSeccomp::default();
    profile
        .set_default_action(LinuxSeccompAction::ScmpActErrno)
        .set_default_errno_ret(Some(EPERM))
        .set_architectures(Some(architectures()))
        .set_syscalls(Some(rules));
    profile
}

/// The machine's own, and those whose programs it runs as well: a filter that left them out would be passed by.
fn architectures() -> Vec<Arch> {
    if cfg!(target_arch = "x86_64") {
        vec![Arch::ScmpArchX86_64, Arch::ScmpArchX86, Arch::ScmpArchX32]
    } else if cfg!(target_arch = "aarch64") {
        vec![Arch::ScmpArchAarch64, Arch::ScmpArchArm]
    } else {
        vec![Arch::ScmpArchNative]
    }
}

/// Every family but AF_ALG, the kernel's cryptography with its history of bugs, and AF_VSOCK, which leads to the
/// hypervisor past every network namespace.
///
/// `socketcall` is how 32-bit programs of old made sockets, with the family out of a filter's sight: making one by it is
/// refused here, the rest of it works on sockets that exist. libseccomp does not follow that: for a rule about `socket` it
/// makes one for `socketcall` as well, of which the family is no part (abi_rule_add in its syscalls.c, 2.5 and 2.6), so under
/// runc 32-bit programs still reach both families. Filters that this program compiles itself (`crate::seccomp`) refuse it.
fn sockets() -> Vec<LinuxSyscall> {
    let family = |(mask, value)| allow_if("socket", masked(mask, value));
    let mut rules: Vec<LinuxSyscall> = FAMILIES.into_iter().map(family).collect();
    rules.push(allow_if("socketcall", argument(0, LinuxSeccompOperator::ScmpCmpNe, SYS_SOCKET)));
    rules
}

/// `clone` with no flag that makes a namespace. `clone3` has its flags in memory, where a filter cannot look, so it does
/// not exist: libraries then fall back to `clone`.
fn clone_without_namespaces() -> [LinuxSyscall; 2] {
    let no_namespaces = masked(CLONE_NAMESPACES, 0);
    let mut clone3 = allow(&["clone3"]);
    clone3.set_action(LinuxSeccompAction::ScmpActErrno).set_errno_ret(Some(ENOSYS));
    [allow_if("clone", no_namespaces), clone3]
}

fn allow(names: &[&str]) -> LinuxSyscall {
    let mut rule = LinuxSyscall::default();
    rule.set_names(names.iter().map(|name| (*name).to_owned()).collect()).set_action(LinuxSeccompAction::ScmpActAllow);
    rule
}

fn allow_if(name: &str, argument: LinuxSeccompArg) -> LinuxSyscall {
    let mut rule = allow(&[name]);
    rule.set_args(Some(vec![argument]));
    rule
}

fn argument(index: usize, operator: LinuxSeccompOperator, value: u64) -> LinuxSeccompArg {
    let argument = LinuxSeccompArgBuilder::default().index(index).op(operator).value(value);
    argument.build().expect("no field is required")
}

/// The first argument's bits under `mask` are `value`.
fn masked(mask: u64, value: u64) -> LinuxSeccompArg {
    let operator = LinuxSeccompOperator::ScmpCmpMaskedEq;
    let argument = LinuxSeccompArgBuilder::default().index(0usize).op(operator).value(mask).value_two(value);
    argument.build().expect("no field is required")
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(profile: &LinuxSeccomp) -> BTreeSet<&str> {
        let rules = profile.syscalls().iter().flatten();
        let allowed = rules.filter(|rule| rule.action() == LinuxSeccompAction::ScmpActAllow && rule.args().is_none());
        allowed.flat_map(|rule| rule.names().iter().map(String::as_str)).collect()
    }

    #[test]
    fn a_capability_unlocks_its_calls_and_no_others() {
        let plain = profile(&HashSet::new(), (6, 1));
        let plain = names(&plain);
        for (capability, unlocked) in UNLOCKED {
            let with = profile(&HashSet::from([*capability]), (6, 1));
            let more: BTreeSet<&str> = names(&with).difference(&plain).copied().collect();
            let wanted: BTreeSet<&str> = unlocked.iter().copied().filter(|name| !plain.contains(name)).collect();
            assert_eq!(more, wanted, "{capability}");
        }
        for never in ["io_uring_setup", "keyctl", "userfaultfd", "kexec_load", "mount", "unshare", "setns", "bpf"] {
            assert!(!plain.contains(never), "{never}");
        }
    }

    #[test]
    fn tracing_needs_a_kernel_that_checks_after_the_tracer() {
        assert!(!names(&profile(&HashSet::new(), (4, 7))).contains("ptrace"));
        assert!(names(&profile(&HashSet::new(), (4, 8))).contains("ptrace"));
    }

    #[test]
    fn all_socket_families_pass_but_two_whatever_the_upper_bits() {
        let passes = |family: u64| FAMILIES.iter().any(|(mask, value)| family & mask == *value);
        for upper in [0, 1 << 32, 0xffff_ffff_0000_0000] {
            let refused: Vec<u64> = (0..64).filter(|family| !passes(family | upper)).collect();
            assert_eq!(refused, [38, 40]);
        }
    }

    #[test]
    fn rules_with_arguments_are_these() {
        let profile = profile(&HashSet::new(), (6, 1));
        let special = profile
            .syscalls()
            .iter()
            .flatten()
            .filter(|rule| rule.args().is_some() || rule.action() != LinuxSeccompAction::ScmpActAllow);
        let lines: Vec<String> = special.map(|rule| serde_json::to_string(rule).unwrap()).collect();
        insta::assert_snapshot!(lines.join("\n"), @r##"
        {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":0,"op":"SCMP_CMP_EQ"}]}
        {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":8,"op":"SCMP_CMP_EQ"}]}
        {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":131072,"op":"SCMP_CMP_EQ"}]}
        {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":131080,"op":"SCMP_CMP_EQ"}]}
        {"names":["personality"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":4294967295,"op":"SCMP_CMP_EQ"}]}
        {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":4294967264,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}
        {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":4294967292,"valueTwo":32,"op":"SCMP_CMP_MASKED_EQ"}]}
        {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":4294967294,"valueTwo":36,"op":"SCMP_CMP_MASKED_EQ"}]}
        {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":4294967295,"valueTwo":39,"op":"SCMP_CMP_MASKED_EQ"}]}
        {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":4294967295,"valueTwo":41,"op":"SCMP_CMP_MASKED_EQ"}]}
        {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":4294967294,"valueTwo":42,"op":"SCMP_CMP_MASKED_EQ"}]}
        {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":4294967292,"valueTwo":44,"op":"SCMP_CMP_MASKED_EQ"}]}
        {"names":["socket"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":4294967280,"valueTwo":48,"op":"SCMP_CMP_MASKED_EQ"}]}
        {"names":["socketcall"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":1,"op":"SCMP_CMP_NE"}]}
        {"names":["clone"],"action":"SCMP_ACT_ALLOW","args":[{"index":0,"value":2114060288,"valueTwo":0,"op":"SCMP_CMP_MASKED_EQ"}]}
        {"names":["clone3"],"action":"SCMP_ACT_ERRNO","errnoRet":38}
        "##);
    }
}
