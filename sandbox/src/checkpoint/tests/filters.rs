//! V-C27: under which system call filters the threads of an archive are restored.

use std::collections::BTreeMap;

use serde_json::json;

use super::{privileges::Change, sample::*};
use crate::{
    Error,
    checkpoint::{
        image::{Kind, Magic, Message, Writer, file, only},
        processes::{CORE, CREDS, THREAD},
    },
    seccomp::{self, FLAG_LOG, FLAG_TSYNC, program},
};

/// Programs of one instruction: calls are allowed, fail, or end the process.
const ALLOW: [u8; 8] = [6, 0, 0, 0, 0, 0, 0xff, 0x7f];
const REFUSE: [u8; 8] = [6, 0, 0, 0, 1, 0, 5, 0];
const SHORT: [u8; 7] = [0; 7];
const KILL: [u8; 8] = [6, 0, 0, 0, 0, 0, 0, 0x80];

type Archived<'a> = (&'a [u8], Option<u64>, u64);

fn seccomp_img(filters: &[Archived<'_>]) -> Vec<u8> {
    let entry = filters.iter().fold(Writer::default(), |entry, (program, next, flags)| {
        let filter = Writer::default().bytes(1, program).number(3, *flags);
        entry.child(1, next.map_or(filter.clone(), |next| filter.number(2, next)))
    });
    file(Magic::Seccomp, &[entry])
}

/// Threads 6 and 7 of a process, and the process 23, with the mode and the first filter of each.
fn sample(filters: &[Archived<'_>], threads: [Option<(u64, u64)>; 3]) -> Sample {
    let mut sample = Sample::new();
    sample.spec["linux"]["seccomp"] = profile();
    sample.set("seccomp.img", seccomp_img(filters));
    for (name, seccomp) in ["core-6.img", "core-7.img", "core-23.img"].into_iter().zip(threads) {
        let thread = Thread { seccomp, ..Thread::root() };
        let core = if name == "core-7.img" { thread.follower() } else { thread.leader() };
        sample.set(name, file(Magic::Core, &[core]));
    }
    sample
}

fn profile() -> serde_json::Value {
    json!({"defaultAction": "SCMP_ACT_ERRNO", "flags": ["SECCOMP_FILTER_FLAG_LOG"],
           "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}]})
}

fn own() -> Vec<u8> {
    let filter = seccomp::compile(&serde_json::from_value(profile()).unwrap()).unwrap();
    program::to_bytes(&filter.program)
}

/// As CRIU reads the files: what each thread loads, in that order, with its flags.
fn loaded(files: &BTreeMap<String, Vec<u8>>) -> [Vec<(Vec<u8>, u32)>; 3] {
    const ENTRY: Kind = Kind { name: "entry", once: &[], many: &[1] };
    const FILTER: Kind = Kind { name: "filter", once: &[1, 2, 3], many: &[] };
    let entry = Message::parse(only(&files["seccomp.img"], Magic::Seccomp).unwrap(), &ENTRY).unwrap();
    let filters = entry.children(1, &FILTER).unwrap();
    ["core-6.img", "core-7.img", "core-23.img"].map(|name| {
        let core = Message::parse(only(&files[name], Magic::Core).unwrap(), &CORE).unwrap();
        let thread = core.child(5, &THREAD).unwrap().unwrap();
        assert!(thread.has(10), "{name} has lost its credentials");
        let mode = thread.number(11).unwrap();
        assert_eq!(mode.is_some(), thread.has(12), "{name}");
        let mut next = match mode {
            None => None,
            Some(2) => thread.number(12).unwrap(),
            Some(mode) => panic!("{name} has mode {mode}"),
        };
        let mut chain = Vec::new();
        while let Some(at) = next {
            let filter = &filters[at as usize];
            chain.push((filter.bytes(1).unwrap().unwrap().to_vec(), filter.required(3).unwrap()));
            next = filter.number(2).unwrap();
        }
        chain
    })
}

/// What the threads run under in the end: what the first of several loads for all is the others' as well.
#[track_caller]
fn in_force(sample: &Sample) -> [Vec<Vec<u8>>; 3] {
    let [first, second, other] = loaded(&sample.rewritten().unwrap());
    let shared = first.iter().all(|(_, flags)| flags & FLAG_TSYNC != 0);
    assert!(!shared || second.is_empty(), "who shares has nothing of its own");
    let second = if shared { first.clone() } else { second };
    assert!(second.iter().chain(&other).all(|(_, flags)| shared || flags & FLAG_TSYNC == 0));
    [first, second, other].map(|chain| chain.into_iter().map(|(program, _)| program).collect())
}

const ALL: [Option<(u64, u64)>; 3] = [Some((2, 0)); 3];

#[test]
fn v_c27_every_thread_is_restored_under_the_requests_profile() {
    let only_own = vec![own()];
    let three = |chain: Vec<Vec<u8>>| [chain.clone(), chain.clone(), chain];
    // The archive has none, or says that a thread has none, or is without the file.
    let mut without = sample(&[], [None; 3]);
    assert_eq!(in_force(&without), three(only_own.clone()));
    without.files.remove("seccomp.img");
    assert_eq!(in_force(&without), three(only_own.clone()));
    without.set("seccomp.img", Vec::new());
    assert_eq!(in_force(&without), three(only_own.clone()));
    assert_eq!(in_force(&sample(&[(&ALLOW, None, 0)], [Some((0, 0)); 3])), three(only_own.clone()));

    // The runtime's of the origin gives way, whatever it is.
    for first in [ALLOW, REFUSE] {
        let mut honest = sample(&[(&first, None, 0)], ALL);
        honest.had_profile = true;
        assert_eq!(in_force(&honest), three(only_own.clone()));
    }
    // Without the archive's word for it, it may be the processes' own.
    assert_eq!(in_force(&sample(&[(&REFUSE, None, 0)], ALL)), three(vec![own(), REFUSE.to_vec()]));
    // What they installed themselves stays above it.
    let two: [Archived<'_>; 3] = [(&REFUSE, None, 0), (&REFUSE, Some(2), 0), (&KILL, None, 0)];
    let mut sandboxed = sample(&two, [Some((2, 1)), Some((2, 1)), Some((2, 0))]);
    sandboxed.had_profile = true;
    let chain = vec![own(), KILL.to_vec()];
    assert_eq!(in_force(&sandboxed), [chain.clone(), chain, only_own.clone()]);
    // A first filter that not all have was not the runtime's.
    for threads in [[Some((2, 0)), Some((2, 0)), None], [Some((2, 0)), Some((2, 0)), Some((2, 1))]] {
        let mut odd = sample(&[(&REFUSE, None, 0), (&KILL, None, 0)], threads);
        odd.had_profile = true;
        let kept = vec![own(), REFUSE.to_vec()];
        let other = if threads[2].is_some() { vec![own(), KILL.to_vec()] } else { only_own.clone() };
        assert_eq!(in_force(&odd), [kept.clone(), kept, other]);
    }
}

#[test]
fn v_c27_no_thread_may_gain_privileges_where_the_request_forbids_it() {
    for (asked, archived, expected) in [
        (true, None, Some(1)),
        (true, Some(0), Some(1)),
        (true, Some(1), Some(1)),
        (false, Some(1), Some(1)),
        (false, None, None),
    ] {
        let mut sample = Sample::new();
        sample.spec["process"]["noNewPrivileges"] = json!(asked);
        sample.threads(&Thread { no_new_privs: archived, ..Thread::root() });
        let files = sample.rewritten().unwrap();
        for name in ["core-6.img", "core-7.img", "core-23.img"] {
            let core = Message::parse(only(&files[name], Magic::Core).unwrap(), &CORE).unwrap();
            let creds = core.child(5, &THREAD).unwrap().unwrap().child(10, &CREDS).unwrap().unwrap();
            assert_eq!(creds.number(18).unwrap(), expected, "{name}: {asked} {archived:?}");
            assert_eq!(creds.numbers(12).unwrap(), [CAPABILITIES as u32, 0], "{name}");
        }
    }
}

#[test]
fn a_request_that_forbids_to_gain_privileges_needs_a_criu_that_knows_it() {
    for (criu, asked, is_restored) in
        [((3, 18), true, false), ((3, 18), false, true), ((3, 19), true, true), ((4, 0), true, true)]
    {
        let mut sample = Sample::new();
        sample.spec["process"]["noNewPrivileges"] = json!(asked);
        // What the archive says of it is not enough.
        sample.threads(&Thread { no_new_privs: Some(1), ..Thread::root() });
        sample.criu = criu;
        match sample.verify() {
            Ok(()) => assert!(is_restored, "{criu:?}"),
            Err(Error::Unsupported(text)) => assert!(!is_restored && text.contains("3.18 would"), "{text}"),
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn threads_share_their_filters_only_where_they_are_the_same() {
    let shared: [Archived<'_>; 2] = [(&REFUSE, Some(1), FLAG_TSYNC.into()), (&KILL, None, FLAG_TSYNC.into())];
    let chains = loaded(&sample(&shared, [Some((2, 0)), None, None]).rewritten().unwrap());
    let flags = chains.each_ref().map(|chain| chain.iter().map(|(_, flags)| *flags).collect::<Vec<_>>());
    assert_eq!(flags, [vec![FLAG_TSYNC | FLAG_LOG, FLAG_TSYNC, FLAG_TSYNC], vec![], vec![FLAG_LOG]]);

    // What the leader alone has would keep the kernel from sharing, which CRIU would not see.
    let chains = loaded(&sample(&[(&REFUSE, None, 0)], [Some((2, 0)), None, None]).rewritten().unwrap());
    assert_eq!(chains[0], [(own(), FLAG_LOG), (REFUSE.to_vec(), 0)]);
    assert_eq!(chains[1], [(own(), FLAG_LOG)]);
}

#[test]
fn without_a_profile_the_processes_keep_what_they_have() {
    let mut unconfined = sample(&[(&REFUSE, None, 0)], ALL);
    unconfined.spec["linux"].as_object_mut().unwrap().remove("seccomp");
    unconfined.had_profile = true;
    assert_eq!(in_force(&unconfined), [(); 3].map(|()| vec![REFUSE.to_vec()]));
    unconfined.threads(&Thread::root());
    assert_eq!(in_force(&unconfined), [const { Vec::<Vec<u8>>::new() }; 3]);
}

#[test]
fn v_c27_filters_that_are_more_than_filters_are_refused() {
    let filters = |filters: &'static [Archived<'static>], threads: [Option<(u64, u64)>; 3]| -> Change {
        Box::new(move |changed| *changed = sample(filters, threads))
    };
    super::privileges::refused(vec![
        ("its filter 1 is not in seccomp.img", filters(&[(&ALLOW, None, 0)], [None, None, Some((2, 1))])),
        ("its filter 7 is not in seccomp.img", filters(&[(&ALLOW, Some(7), 0)], ALL)),
        ("more than 32768 instructions", filters(&[(&ALLOW, Some(0), 0)], ALL)),
        ("more than 32768 instructions", filters(&[(&ALLOW, Some(1), 0), (&ALLOW, Some(0), 0)], ALL)),
        ("a filter of 7 bytes is none", filters(&[(&SHORT, None, 0)], ALL)),
        ("a filter of 0 bytes is none", filters(&[(&[], None, 0)], ALL)),
        ("seccomp.img: a filter is loaded with flags (0x8)", filters(&[(&ALLOW, None, 8)], ALL)),
        ("core-23.img: it is in seccomp mode 1", filters(&[], [None, None, Some((1, 0))])),
        (
            "lacks field 12",
            Box::new(|sample| {
                let thread = Thread::root().thread().number(11, 2);
                let core = Writer::default().number(1, 1).child(3, Thread::root().task()).child(5, thread);
                sample.set("core-23.img", file(Magic::Core, &[core]));
            }),
        ),
        (
            "it holds 2 messages",
            Box::new(|sample| {
                sample.set("seccomp.img", file(Magic::Seccomp, &[Writer::default(), Writer::default()]));
            }),
        ),
    ]);
    // Where CRIU could not suspend them, there may be none.
    let mut beneath = sample(&[], [None; 3]);
    beneath.is_filtered = true;
    assert!(matches!(beneath.verify(), Err(Error::Precondition(_))));
    beneath.spec["linux"].as_object_mut().unwrap().remove("seccomp");
    beneath.verify().unwrap();
    // A process that has ended has no filters to give.
    let mut dead = sample(&[], [None; 3]);
    let zombie = Thread { state: 6, ..Thread::root() };
    dead.set("core-23.img", file(Magic::Core, &[Writer::default().number(1, 1).child(3, zombie.task())]));
    let files = dead.rewritten().unwrap();
    assert_eq!(files["core-23.img"], dead.files["core-23.img"]);

    let mut large = Sample::new();
    large.spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
        {"names": ["read"], "action": "SCMP_ACT_ERRNO", "args": [{"index": 9, "op": "SCMP_CMP_EQ", "value": 0}]}]});
    assert!(matches!(large.verify(), Err(Error::Invalid(_))));
}
