//! The kernel takes what is compiled, and does with it what the tests' machine does.

use std::collections::HashSet;

use serde_json::json;

use super::{
    super::{compile, program::to_bytes},
    interpreter::check,
    profile,
};
use crate::{oci::seccomp_default, sys::filters::probe};

#[test]
fn the_kernel_follows_a_filter() {
    // Writes are needed to tell what was found, and the rest for a process to end by.
    let filter = compile(&profile(json!({
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": ["getppid"], "action": "SCMP_ACT_ERRNO", "errnoRet": 7},
            {"names": ["dup"], "action": "SCMP_ACT_ERRNO", "errnoRet": 8, "args": [{"index": 0, "op": "SCMP_CMP_GT", "value": 4_294_967_296u64}]},
            {"names": ["kill"], "action": "SCMP_ACT_ERRNO", "errnoRet": 9, "args": [
                {"index": 1, "op": "SCMP_CMP_MASKED_EQ", "value": 240, "valueTwo": 32}]},
        ],
    })))
    .unwrap();
    static CALLS: &[(i64, [i64; 3])] = &[
        (libc::SYS_getpid, [0; 3]),
        (libc::SYS_getppid, [0; 3]),
        (libc::SYS_dup, [-1, 0, 0]),
        (libc::SYS_dup, [1 << 32, 0, 0]),
        (libc::SYS_dup, [(1 << 32) + 1, 0, 0]),
        (libc::SYS_kill, [0, 0x21, 0]),
        (libc::SYS_kill, [0, 0x81, 0]),
    ];
    let found = probe(&to_bytes(&filter.program), 0, CALLS).unwrap();
    // The kernel takes the lower half of what should be a descriptor; 0 can be duplicated.
    assert_eq!(found, [0, 7, 8, 0, 8, 9, libc::EINVAL]);
}

#[test]
fn the_default_profile_is_loaded_and_refuses() {
    let filter = compile(&seccomp_default::profile(&HashSet::new(), (6, 1))).unwrap();
    check(&filter.program);
    assert!(filter.program.len() < 1500, "{} instructions", filter.program.len());
    static CALLS: &[(i64, [i64; 3])] = &[
        (libc::SYS_getpid, [0; 3]),
        (libc::SYS_mount, [0; 3]),
        (libc::SYS_unshare, [0; 3]),
        (libc::SYS_keyctl, [0; 3]),
        (libc::SYS_socket, [38, 5, 0]),
        (libc::SYS_socket, [1, 1, 0]),
        (libc::SYS_clone3, [0; 3]),
        (libc::SYS_clone, [0x1000_0000, 0, 0]),
        (4000, [0; 3]),
    ];
    let found = probe(&to_bytes(&filter.program), 0, CALLS).unwrap();
    let refused = libc::EPERM;
    assert_eq!(found, [0, refused, refused, refused, refused, 0, libc::ENOSYS, refused, libc::ENOSYS]);
}
