//! The same profiles, compiled by runc: what it lets a process do and what is compiled here are compared, call by call.
//!
//! `WINDLASS_RUNCS` names runtimes, with `:` between them; without it, it is the one in `PATH`.

use std::{
    collections::{BTreeSet, HashSet},
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use oci_spec::runtime::{Capability, LinuxSeccomp};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    super::{
        compile,
        numbers::{Abi, X32_BIT},
        program::Instruction,
        rules::strictness,
    },
    interpreter::{Call, run},
    profile,
};
use crate::{oci::seccomp_default, sys::filters::filters_of};

/// The first number that libseccomp 2.5.4 of Debian 12 does not know a name of.
const FIRST_NEW: u32 = 451;
/// A number of no call of any ABI.
const NO_CALL: u32 = 511;

/// A container that is created and never started: its filter is loaded, and nothing runs in it.
struct Created<'a> {
    runc: &'a str,
    dir: TempDir,
    id: String,
}

impl Created<'_> {
    fn make<'a>(runc: &'a str, profile: &LinuxSeccomp) -> Created<'a> {
        let dir = TempDir::new().unwrap();
        let program = dir.path().join("rootfs/program");
        for place in ["rootfs/proc", "rootfs/dev", "state"] {
            fs::create_dir_all(dir.path().join(place)).unwrap();
        }
        fs::write(&program, "").unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
        let id = format!("windlass-seccomp-{}", dir.path().file_name().unwrap().to_str().unwrap().replace('.', ""));
        let spec = json!({
            "ociVersion": "1.0.2",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["/program"], "cwd": "/", "noNewPrivileges": false},
            "root": {"path": "rootfs"},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "linux": {
                "cgroupsPath": format!("/{id}"),
                "namespaces": [{"type": "mount"}, {"type": "pid"}],
                "seccomp": profile,
            },
        });
        fs::write(dir.path().join("config.json"), spec.to_string()).unwrap();
        let created = Created { runc, dir, id };
        created.run(&["create", "--bundle", created.path(), "--pid-file", created.pid_file().to_str().unwrap()]);
        created
    }

    fn path(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    fn pid_file(&self) -> std::path::PathBuf {
        self.dir.path().join("pid")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(self.runc);
        let log = self.dir.path().join("log");
        command.arg("--root").arg(self.dir.path().join("state")).arg("--log").arg(log);
        command.args(arguments).arg(&self.id).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) {
        let status = self.command(arguments).status().unwrap();
        let log = fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        assert!(status.success(), "{} {arguments:?}: {log}", self.runc);
    }

    fn filters(&self) -> Vec<Vec<Instruction>> {
        let pid = fs::read_to_string(self.pid_file()).unwrap().trim().parse().unwrap();
        filters_of(pid).unwrap()
    }
}

impl Drop for Created<'_> {
    fn drop(&mut self) {
        // What is left is a test's process; the directory says which.
        let _ = self.command(&["delete", "--force"]).status();
    }
}

fn profiles() -> Vec<(&'static str, LinuxSeccomp)> {
    let all: HashSet<Capability> =
        [Capability::SysAdmin, Capability::Bpf, Capability::SysPtrace, Capability::SysTime].into();
    let one = |index: usize, operator: &str, value: u64, two: u64| json!({"index": index, "op": format!("SCMP_CMP_{operator}"), "value": value, "valueTwo": two});
    let rule = |names: &[&str], action: &str, args: Value| json!({"names": names, "action": format!("SCMP_ACT_{action}"), "args": args});
    let large = 0x1_0000_0005u64;
    // Calls that runc does not make before it waits. None has rules about different arguments: where the second of them does
    // not fit, libseccomp (2.5.4 and that of runc 1.4) goes on to compare it with what the first is to be.
    let rules = |action: &str| {
        let mut rules = vec![
            rule(&["sendfile", "no_such_call", "kexec_load", "chown32", "nfsservctl"], action, json!([])),
            rule(&["tee"], action, json!([one(0, "EQ", 3, 0)])),
            rule(&["splice"], action, json!([one(1, "NE", large, 0)])),
            rule(&["vmsplice"], action, json!([one(0, "GT", large, 0)])),
            rule(&["mlock2"], action, json!([one(2, "GE", large, 0)])),
            rule(&["ioprio_set"], action, json!([one(5, "LT", large, 0)])),
            rule(&["sync_file_range"], action, json!([one(4, "LE", large, 0)])),
            rule(&["unshare"], action, json!([one(0, "MASKED_EQ", 0x7e02_0000, 0)])),
            rule(&["personality"], action, json!([one(0, "MASKED_EQ", 0xff_0000_00ff, 0x5_0000_0003)])),
            rule(&["copy_file_range"], action, json!([one(1, "EQ", 3, 0), one(2, "NE", 4, 0), one(0, "LE", 5, 0)])),
            rule(&["keyctl"], action, json!([one(1, "EQ", 3, 0), one(1, "EQ", large, 0)])),
            rule(&["process_vm_readv"], action, json!([one(0, "EQ", 1, 0)])),
            rule(&["process_vm_readv"], action, json!([one(0, "EQ", 2, 0)])),
            rule(&["bind", "accept4", "semop", "shmctl", "mlock"], action, json!([])),
            rule(&["socket"], action, json!([one(0, "NE", 40, 0)])),
            rule(&["semget"], action, json!([one(1, "EQ", 2, 0)])),
            json!({"names": ["uname"], "action": "SCMP_ACT_ERRNO", "errnoRet": 99}),
            rule(&["sync"], "KILL", json!([])),
            rule(&["vhangup"], "KILL_PROCESS", json!([])),
            rule(&["acct"], "TRAP", json!([])),
            json!({"names": ["swapon"], "action": "SCMP_ACT_TRACE", "errnoRet": 5}),
            rule(&["swapoff"], "LOG", json!([])),
        ];
        let tried: HashSet<String> = rules
            .iter()
            .flat_map(|rule| rule["names"].as_array().unwrap())
            .map(|name| name.as_str().unwrap().to_owned())
            .collect();
        let usual = seccomp_default::profile(&all, (6, 1));
        let usual =
            usual.syscalls().iter().flatten().filter(|rule| rule.args().is_none()).flat_map(|rule| rule.names());
        let usual: Vec<&String> = usual.filter(|name| !tried.contains(*name)).collect();
        rules.push(json!({"names": usual, "action": "SCMP_ACT_ALLOW"}));
        json!(rules)
    };
    let listed = json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86", "SCMP_ARCH_X32"]);
    vec![
        ("the default", seccomp_default::profile(&HashSet::new(), (6, 1))),
        ("the default with capabilities", seccomp_default::profile(&all, (6, 1))),
        (
            "what is allowed",
            profile(
                json!({"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 13, "architectures": listed, "syscalls": rules("ALLOW")}),
            ),
        ),
        (
            "what is refused",
            profile(json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": listed, "syscalls": rules("ERRNO")})),
        ),
        (
            "what ends a process",
            profile(
                json!({"defaultAction": "SCMP_ACT_TRACE", "architectures": ["SCMP_ARCH_X86"], "syscalls": rules("KILL_PROCESS")}),
            ),
        ),
        ("this machine's own", profile(json!({"defaultAction": "SCMP_ACT_TRAP", "syscalls": rules("ALLOW")}))),
        ("nothing at all", profile(json!({"defaultAction": "SCMP_ACT_LOG", "architectures": listed, "syscalls": []}))),
    ]
}

/// All numbers that there are, and odd ones.
fn numbers() -> Vec<(u32, u32)> {
    let (native, old) = (Abi::X86_64.audit(), Abi::X86.audit());
    let near = (0..600).flat_map(|number| [(native, number), (native, number | X32_BIT), (old, number)]);
    let odd = [X32_BIT - 1, X32_BIT | 1 << 20, 1 << 31, 1 << 31 | X32_BIT, u32::MAX - 1, u32::MAX];
    let odd = odd.into_iter().flat_map(|number| [(native, number), (old, number)]);
    near.chain(odd).chain([(Abi::Aarch64.audit(), 63), (0, 0)]).collect()
}

fn arguments() -> Vec<[u64; 6]> {
    let values: Vec<u64> =
        [0, 1, 2, 3, 4, 5, 7, 8, 16, 18, 20, 24, 38, 39, 40, 41, 63, 64, 131_072, 0x1000_0000, 0xffff_ffff]
            .into_iter()
            .flat_map(|value| [value, value | 1 << 32, value | 5 << 32, value | 1 << 63])
            .chain([u64::MAX])
            .collect();
    let mut all: Vec<[u64; 6]> = values.iter().map(|value| [*value; 6]).collect();
    all.extend(
        values.iter().flat_map(|value| [[1, *value, 4, 0, 0, 0], [3, 3, *value, 0, 0, 0], [2, *value, 0, 0, 0, 0]]),
    );
    all
}

/// Calls that get another answer here than from runc's filter: refused more strictly, or by a name that runc's libseccomp
/// is too old for. Fails if one is passed more freely.
fn differences(what: &str, theirs: &[Instruction], ours: &[Instruction]) -> BTreeSet<(u32, u32)> {
    let arguments = arguments();
    let mut found = BTreeSet::new();
    for (arch, number) in numbers() {
        for arguments in &arguments {
            let call = Call { arch, number, arguments: *arguments };
            let (wanted, answer) = (run(theirs, &call), run(ours, &call));
            let nameless = Call { number: number & X32_BIT | NO_CALL, ..call };
            if wanted == answer || number & !X32_BIT >= FIRST_NEW && wanted == run(theirs, &nameless) {
                continue;
            }
            assert!(strictness(answer) <= strictness(wanted), "{what}: {call:x?} is {answer:x}, runc has {wanted:x}");
            found.insert((arch, number));
        }
    }
    found
}

#[test]
fn privileged_filters_pass_nothing_that_runcs_do_not_pass() {
    if cfg!(not(target_arch = "x86_64")) {
        eprintln!("left out: the calls that are compared are those of x86_64");
        return;
    }
    // Those of 32-bit x86 that stand for many: libseccomp passes in them what a profile passes for some arguments.
    let stricter = |name: &str| Some((Abi::X86.audit(), Abi::X86.number(name).unwrap()));
    let runcs = std::env::var("WINDLASS_RUNCS").unwrap_or_else(|_| "runc".into());
    for runc in runcs.split(':') {
        for (what, profile) in profiles() {
            let created = Created::make(runc, &profile);
            let filters = created.filters();
            let [theirs] = &filters[..] else { panic!("{runc}: {} filters", filters.len()) };
            let ours = compile(&profile).unwrap().program;
            println!("{runc}, {what}: {} instructions, runc has {}", ours.len(), theirs.len());
            let expected = match what {
                "the default" | "the default with capabilities" | "what is allowed" => stricter("socketcall"),
                "what is refused" | "what ends a process" => stricter("ipc"),
                _ => None,
            };
            assert_eq!(differences(what, theirs, &ours), expected.into_iter().collect(), "{runc}: {what}");
        }
    }
}
