//! Random profiles: the program does what the profile says, read straight from it.

use oci_spec::runtime::{LinuxSeccomp, LinuxSyscall};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    super::{
        compile_for,
        numbers::{Abi, X32_BIT},
        rules::{ALLOW, ERRNO, KILL_PROCESS, KILL_THREAD, LOG, TRACE, TRAP, strictness},
    },
    interpreter::{Call, check, run},
};

/// Names that exist everywhere, on some ABIs, and nowhere; made directly or through another call.
const NAMES: [&str; 18] = [
    "read",
    "write",
    "execve",
    "clone",
    "clone3",
    "personality",
    "socket",
    "bind",
    "socketcall",
    "ipc",
    "semget",
    "semop",
    "clock_gettime64",
    "chown32",
    "rt_sigaction",
    "nfsservctl",
    "mseal",
    "no_such_call",
];
const VALUES: [u64; 9] = [0, 1, 2, 0x7e02_0000, 0xffff_fffe, 0xffff_ffff, 1 << 32, (1 << 32) | 1, u64::MAX];
const OPERATORS: [&str; 7] = ["NE", "LT", "LE", "EQ", "GE", "GT", "MASKED_EQ"];
const ACTIONS: [&str; 8] = ["KILL", "KILL_THREAD", "KILL_PROCESS", "TRAP", "ERRNO", "TRACE", "LOG", "ALLOW"];

fn value() -> impl Strategy<Value = u64> {
    prop_oneof![proptest::sample::select(&VALUES[..]), any::<u64>(), 0..70u64]
}

fn arg() -> impl Strategy<Value = Value> {
    (0..3usize, value(), value(), proptest::sample::select(&OPERATORS[..])).prop_map(|(index, value, two, operator)| {
        json!({"index": index, "value": value, "valueTwo": two, "op": format!("SCMP_CMP_{operator}")})
    })
}

fn rule() -> impl Strategy<Value = Value> {
    let names = proptest::sample::subsequence(&NAMES[..], 1..5);
    let args = prop_oneof![2 => Just(Vec::new()), 3 => proptest::collection::vec(arg(), 1..4)];
    (names, proptest::sample::select(&ACTIONS[..]), proptest::option::of(0..3u32), args).prop_map(
        |(names, action, number, args)| {
            let mut rule = json!({"names": names, "action": format!("SCMP_ACT_{action}"), "args": args});
            if let Some(number) = number {
                rule["errnoRet"] = json!(number);
            }
            rule
        },
    )
}

fn profile(abis: &'static [Abi]) -> impl Strategy<Value = LinuxSeccomp> {
    let native = abis[0].profile_name();
    let others: Vec<_> = abis.iter().map(|abi| abi.profile_name()).collect();
    let architectures = proptest::sample::subsequence(others.clone(), 0..=others.len());
    (proptest::sample::select(&ACTIONS[..]), architectures, proptest::collection::vec(rule(), 0..7)).prop_map(
        move |(default, architectures, rules)| {
            let architectures = architectures.into_iter().chain([native]).collect::<Vec<_>>();
            let value = json!({"defaultAction": format!("SCMP_ACT_{default}"), "architectures": architectures, "syscalls": rules});
            serde_json::from_value(value).unwrap()
        },
    )
}

fn calls(abis: &'static [Abi]) -> impl Strategy<Value = Call> {
    let each = proptest::sample::select(abis);
    let numbers =
        (each, proptest::sample::select(&NAMES[..])).prop_map(|(abi, name)| abi.number(name).map(|it| (abi, it)));
    let odd = prop_oneof![0..600u32, Just(u32::MAX), Just(X32_BIT - 1), X32_BIT..X32_BIT + 600, any::<u32>()];
    let odd = (proptest::sample::select(abis), odd).prop_map(Some);
    let which = prop_oneof![6 => numbers, 1 => odd];
    (which.prop_filter_map("a call of this ABI", |it| it), proptest::array::uniform6(value()))
        .prop_map(|((abi, number), arguments)| Call { arch: abi.audit(), number, arguments })
}

fn value_of(action: &str, number: Option<u32>) -> u32 {
    let number = number.unwrap_or(1);
    match action.strip_prefix("SCMP_ACT_").unwrap() {
        "KILL" | "KILL_THREAD" => KILL_THREAD,
        "KILL_PROCESS" => KILL_PROCESS,
        "TRAP" => TRAP,
        "ERRNO" => ERRNO | number,
        "TRACE" => TRACE | number,
        "LOG" => LOG,
        "ALLOW" => ALLOW,
        other => panic!("{other}"),
    }
}

/// Whether one of a rule's conditions holds.
fn holds(arg: &Value, call: &Call, is_wide: bool) -> bool {
    let cut = |value: u64| if is_wide { value } else { value & 0xffff_ffff };
    let number = |key: &str| cut(arg[key].as_u64().unwrap());
    let found = cut(call.arguments[arg["index"].as_u64().unwrap() as usize]);
    let wanted = number("value");
    match arg["op"].as_str().unwrap().strip_prefix("SCMP_CMP_").unwrap() {
        "NE" => found != wanted,
        "LT" => found < wanted,
        "LE" => found <= wanted,
        "EQ" => found == wanted,
        "GE" => found >= wanted,
        "GT" => found > wanted,
        "MASKED_EQ" => found & wanted == number("valueTwo") & wanted,
        other => panic!("{other}"),
    }
}

/// Whether a rule that names the call is about it with these arguments: alternatives if two are of one argument.
fn fits(rule: &Value, call: &Call, is_wide: bool) -> bool {
    let args = rule["args"].as_array().unwrap();
    let shared = args.iter().enumerate().any(|(at, arg)| args[..at].iter().any(|other| other["index"] == arg["index"]));
    let mut each = args.iter().map(|arg| holds(arg, call, is_wide));
    if shared { each.any(|it| it) } else { each.all(|it| it) }
}

fn abi_of(call: &Call, abis: &[Abi]) -> Abi {
    let is_of = |abi: &&Abi| abi.audit() == call.arch;
    let x32 = call.number >= X32_BIT;
    match abis.iter().find(is_of).unwrap() {
        Abi::X86_64 if x32 => Abi::X32,
        abi => *abi,
    }
}

/// What the profile says of a call that is within the numbers it names.
fn expected(profile: &LinuxSeccomp, call: &Call, abis: &[Abi]) -> Option<u32> {
    let abi = abi_of(call, abis);
    let value = serde_json::to_value(profile).unwrap();
    let default = value_of(value["defaultAction"].as_str().unwrap(), None);
    let rules: Vec<Value> = profile.syscalls().iter().flatten().map(rule_value).collect();
    let listed = value["architectures"].as_array().unwrap();
    if !listed.contains(&serde_json::to_value(abi.profile_name()).unwrap()) {
        // No call at all, of any ABI.
        if call.number == u32::MAX && abi == Abi::X32 {
            return Some(default);
        }
        return Some(KILL_THREAD);
    }
    let mut fitting = vec![];
    let mut is_named = false;
    for rule in &rules {
        let action = value_of(rule["action"].as_str().unwrap(), rule["errnoRet"].as_u64().map(|it| it as u32));
        for name in rule["names"].as_array().unwrap() {
            let name = name.as_str().unwrap();
            is_named |= abi.number(name) == Some(call.number);
            if action != default && abi.number(name) == Some(call.number) && fits(rule, call, abi.is_wide()) {
                fitting.push(action);
            }
            // A call that is made through another one.
            let (through, which) = match name {
                "socket" => ("socketcall", 1),
                "bind" => ("socketcall", 2),
                "semop" => ("ipc", 1),
                "semget" => ("ipc", 2),
                _ => continue,
            };
            let is_it = abi == Abi::X86 && abi.number(through) == Some(call.number);
            let strict = rule["args"].as_array().unwrap().is_empty() || strictness(action) <= strictness(default);
            if action != default && is_it && call.arguments[0] as u32 == which && strict {
                fitting.push(action);
            }
        }
    }
    let strictest = fitting.into_iter().min_by_key(|action| strictness(*action));
    strictest.or(is_named.then_some(default))
}

fn rule_value(rule: &LinuxSyscall) -> Value {
    let mut value = serde_json::to_value(rule).unwrap();
    if value["args"].is_null() {
        value["args"] = json!([]);
    }
    value
}

/// The ABIs of the machines that filters are compiled for, each machine's own first.
const MACHINES: [&[Abi]; 2] = [&[Abi::X86_64, Abi::X32, Abi::X86], &[Abi::Aarch64, Abi::Arm]];

fn cases() -> impl Strategy<Value = (&'static [Abi], LinuxSeccomp, Vec<Call>)> {
    proptest::sample::select(&MACHINES[..])
        .prop_flat_map(|abis| (Just(abis), profile(abis), proptest::collection::vec(calls(abis), 60)))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn a_filter_does_what_its_profile_says((abis, profile, calls) in cases()) {
        let program = compile_for(&profile, abis).unwrap().program;
        check(&program);
        let default = serde_json::to_value(profile.default_action()).unwrap();
        let default = value_of(default.as_str().unwrap(), None);
        for call in calls {
            let found = run(&program, &call);
            match expected(&profile, &call, abis) {
                // Of two rules with one action and two numbers either may be followed.
                Some(wanted) => {
                    prop_assert_eq!(strictness(found), strictness(wanted), "{:x?} {:x} {:x}", call, found, wanted);
                }
                None => prop_assert!([default, ERRNO | 38].contains(&found), "{:x?} {:x}", call, found),
            }
        }
    }
}
