//! Filters against what their profiles say, against the kernel, and against those of runc.

mod interpreter;
mod kernel;
mod properties;
mod runc;

use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};

use super::{
    FLAG_LOG, FLAG_SPEC_ALLOW, compile,
    numbers::Abi,
    rules::{ALLOW, ERRNO, KILL_THREAD, LOG},
};
use crate::Error;
use interpreter::{Call, check, run};

fn profile(value: Value) -> LinuxSeccomp {
    serde_json::from_value(value).unwrap()
}

/// A call of this machine's own ABI.
fn call(name: &str, arguments: &[u64]) -> Call {
    let abi = Abi::of_this_machine()[0];
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    Call { arch: abi.audit(), number: abi.number(name).unwrap(), arguments: all }
}

#[test]
fn a_profile_is_followed() {
    let filter = compile(&profile(json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": 13,
        "flags": ["SECCOMP_FILTER_FLAG_LOG", "SECCOMP_FILTER_FLAG_SPEC_ALLOW", "SECCOMP_FILTER_FLAG_TSYNC"],
        "syscalls": [
            {"names": ["read", "no_such_call"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["write"], "action": "SCMP_ACT_LOG", "args": [{"index": 2, "op": "SCMP_CMP_LE", "value": 4_294_967_296u64}]},
            {"names": ["pipe2"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "op": "SCMP_CMP_EQ", "value": 1}, {"index": 1, "op": "SCMP_CMP_EQ", "value": 2}]},
            {"names": ["dup3"], "action": "SCMP_ACT_ALLOW", "args": [
                {"index": 0, "op": "SCMP_CMP_EQ", "value": 1}, {"index": 0, "op": "SCMP_CMP_EQ", "value": 2}]},
            {"names": ["openat"], "action": "SCMP_ACT_ALLOW"},
            {"names": ["openat"], "action": "SCMP_ACT_KILL", "args": [{"index": 2, "op": "SCMP_CMP_MASKED_EQ", "value": 3, "valueTwo": 1}]},
        ],
    })))
    .unwrap();
    check(&filter.program);
    assert_eq!(filter.flags, FLAG_LOG | FLAG_SPEC_ALLOW);
    for (call, expected) in [
        (call("read", &[]), ALLOW),
        (call("write", &[0, 0, 1 << 32]), LOG),
        (call("write", &[0, 0, 0xffff_ffff]), LOG),
        (call("write", &[0, 0, (1 << 32) + 1]), ERRNO | 13),
        (call("pipe2", &[1, 2]), ALLOW),
        (call("pipe2", &[1, 3]), ERRNO | 13),
        (call("dup3", &[1]), ALLOW),
        (call("dup3", &[2]), ALLOW),
        (call("dup3", &[3]), ERRNO | 13),
        (call("openat", &[0, 0, 2]), ALLOW),
        (call("openat", &[0, 0, 0xf1]), KILL_THREAD),
        (call("getpid", &[]), ERRNO | 13),
        (Call { number: 4000, ..call("read", &[]) }, ERRNO | 38),
        (Call { arch: 0x8000_0016, ..call("read", &[]) }, KILL_THREAD),
    ] {
        assert_eq!(run(&filter.program, &call), expected, "{call:?}");
    }
}

#[test]
fn what_cannot_be_followed_is_refused() {
    let notified = compile(&profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]})));
    assert!(matches!(notified, Err(Error::Unsupported(_))), "{notified:?}");
    let seventh = compile(&profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 6, "op": "SCMP_CMP_EQ", "value": 0}]}]})));
    assert!(matches!(seventh, Err(Error::Invalid(_))), "{seventh:?}");
    let args: Vec<Value> = (0..2000).map(|value| json!({"index": 0, "op": "SCMP_CMP_EQ", "value": value})).collect();
    let large = compile(&profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["mount"], "action": "SCMP_ACT_ERRNO", "args": args}]})));
    let Err(Error::Invalid(text)) = large else { panic!("{large:?}") };
    assert!(text.contains("the kernel takes 4096"), "{text}");
}
