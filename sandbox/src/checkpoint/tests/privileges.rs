//! V-C27: what the processes of an archive would have beyond the request's spec.

use serde_json::{Value, json};

use super::sample::*;
use crate::{
    Error,
    checkpoint::image::{Magic, Writer, file},
};

pub(super) type Change = Box<dyn Fn(&mut Sample)>;

/// Each change of a checkpoint that is restored has to be refused, with this in the reason.
pub(super) fn refused(cases: Vec<(&str, Change)>) {
    Sample::new().verify().unwrap();
    for (reason, change) in cases {
        let mut sample = Sample::new();
        change(&mut sample);
        match sample.verify() {
            Err(Error::Invalid(text)) => assert!(text.contains(reason), "expected {reason:?} in: {text}"),
            other => panic!("not refused, as {reason:?}: {other:?}"),
        }
    }
}

pub(super) fn restored(cases: Vec<(&str, Change)>) {
    for (what, change) in cases {
        let mut sample = Sample::new();
        change(&mut sample);
        sample.verify().unwrap_or_else(|error| panic!("{what}: {error}"));
    }
}

/// All threads like this.
pub(super) fn all(change: impl Fn(&mut Thread) + 'static) -> Change {
    Box::new(move |sample| {
        let mut thread = Thread::root();
        change(&mut thread);
        sample.threads(&thread);
    })
}

/// As a container of user 1000, who has no capabilities but what bounds what programs may give.
fn user(change: impl Fn(&mut Thread) + 'static) -> Change {
    Box::new(move |sample| {
        sample.spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "additionalGids": [50]});
        let mut thread = Thread::user(1000);
        change(&mut thread);
        sample.threads(&thread);
    })
}

const SYS_ADMIN: u64 = 1 << 21;

#[test]
fn v_c27_capabilities_beyond_the_request_are_refused() {
    refused(vec![
        ("core-6.img: its permitted set has CAP_SYS_ADMIN", all(|thread| thread.sets[1] |= SYS_ADMIN)),
        ("its effective set has CAP_SYS_ADMIN", all(|thread| thread.sets[2] |= SYS_ADMIN)),
        ("its bounding set has CAP_SYS_ADMIN, CAP_SYSLOG", all(|thread| thread.sets[3] |= SYS_ADMIN | 1 << 34)),
        ("its inheritable set has CAP_SYS_ADMIN", all(|thread| thread.sets[0] |= SYS_ADMIN)),
        ("its ambient set has CAP_SYS_ADMIN", all(|thread| thread.sets[4] |= SYS_ADMIN)),
        ("its bounding set has unknown ones", all(|thread| thread.sets[3] |= 1 << 63)),
        ("core-6.img: its effective set has CAP_CHOWN", user(|thread| thread.sets[2] |= 1)),
        ("its permitted set has CAP_CHOWN", user(|thread| thread.sets[1] |= 1)),
        ("its ambient set has CAP_CHOWN", user(|thread| thread.sets[4] |= 1)),
        (
            "core-7.img: its effective set",
            Box::new(|sample| {
                let mut thread = Thread::root();
                thread.sets[2] |= SYS_ADMIN;
                sample.set("core-7.img", file(Magic::Core, &[thread.follower()]));
            }),
        ),
        (
            // The kernel's threads have no state of their own: as a zombie it would run unseen.
            "core-7.img: its effective set",
            Box::new(|sample| {
                let mut thread = Thread { state: 6, ..Thread::root() };
                thread.sets[2] |= SYS_ADMIN;
                sample.set("core-7.img", file(Magic::Core, &[thread.leader()]));
            }),
        ),
        (
            "more words than the kernel knows",
            Box::new(|sample| {
                let creds = Thread::root().creds().number(12, 1);
                let thread = Writer::default().number(1, 0).number(2, 0).child(10, creds);
                let core = Writer::default().number(1, 1).child(3, Thread::root().task()).child(5, thread);
                sample.set("core-23.img", file(Magic::Core, &[core]));
            }),
        ),
    ]);
    restored(vec![
        ("fewer capabilities", all(|thread| thread.sets = [0; 5])),
        ("user 1000", user(|_| ())),
        (
            "capabilities that a user keeps",
            Box::new(|sample| {
                user(|thread| thread.sets = [1, 1, 1, CAPABILITIES, 1])(sample);
                sample.spec["process"]["capabilities"]["ambient"] = json!(["CAP_CHOWN"]);
            }),
        ),
        (
            "a process that has ended",
            Box::new(|sample| {
                let dead = Thread { state: 6, ..Thread::root() };
                sample.set("core-23.img", file(Magic::Core, &[Writer::default().number(1, 1).child(3, dead.task())]));
                sample.files.remove("ids-23.img");
            }),
        ),
    ]);
}

#[test]
fn v_c27_users_and_groups_beyond_the_request_are_refused() {
    refused(vec![
        ("its uid is 0, the request's is 1000", user(|thread| thread.uids[0] = 0)),
        ("its effective uid is 0", user(|thread| thread.uids[1] = 0)),
        ("its saved uid is 0", user(|thread| thread.uids[2] = 0)),
        ("its file system uid is 0", user(|thread| thread.uids[3] = 0)),
        ("it is in group 0", user(|thread| thread.gids[3] = 0)),
        ("it is in group 4", user(|thread| thread.groups = vec![50, 4])),
        (
            "its uid is 7",
            Box::new(|sample| {
                sample.spec["process"]["capabilities"] = json!({});
                sample.threads(&Thread { sets: [0; 5], uids: [7; 4], ..Thread::root() });
            }),
        ),
    ]);
    restored(vec![
        ("a root that became somebody else", all(|thread| (thread.uids, thread.gids) = ([33; 4], [33; 4]))),
        ("a group of the request", user(|thread| thread.groups = vec![50, 1000])),
    ]);
}

#[test]
fn v_c27_profiles_and_limits_below_the_request_are_refused() {
    fn process(sample: &mut Sample, key: &str, value: Value) {
        sample.spec["process"][key] = value;
    }
    let apparmor = |profile: &'static str, module: u64| -> Change {
        Box::new(move |sample| {
            process(sample, "apparmorProfile", json!("cri-containerd.apparmor.d"));
            sample.set("inventory.img", inventory(2, module, HOST));
            sample.threads(&Thread { profile, ..Thread::root() });
        })
    };
    let no_new_privs = |value: Option<u64>| -> Change {
        Box::new(move |sample| {
            process(sample, "noNewPrivileges", json!(true));
            sample.threads(&Thread { no_new_privs: value, ..Thread::root() });
        })
    };
    refused(vec![
        ("its LSM profile is \"\", the request's is \"cri-containerd.apparmor.d\"", apparmor("", 2)),
        ("its LSM profile is \"unconfined\"", apparmor("unconfined", 2)),
        ("security module", apparmor("cri-containerd.apparmor.d", 0)),
        ("its LSM profile is \"another\", the request's is \"\"", all(|thread| thread.profile = "another")),
        ("secure bits", user(|thread| thread.secbits = 0x10)),
        ("its oom_score_adj is -1000", all(|thread| thread.oom_score_adj = -1000)),
        ("its rlimit 7 is above the 1024", all(|thread| thread.nofile = 1025)),
        ("scheduled before others", all(|thread| thread.policy = 1)),
        ("scheduled before others", all(|thread| thread.nice = 39)),
    ]);
    restored(vec![
        ("the request's profile", apparmor("cri-containerd.apparmor.d", 2)),
        ("no new privileges", no_new_privs(Some(1))),
        ("no new privileges, whatever the archive says", no_new_privs(None)),
        ("a lower priority", all(|thread| (thread.nice, thread.policy) = (38, 3))),
    ]);
}

#[test]
fn v_c27_namespaces_that_are_the_hosts_are_refused() {
    let own = |own: [u64; 8]| -> Change {
        Box::new(move |sample| {
            for name in ["ids-6.img", "ids-23.img"] {
                sample.set(name, file(Magic::Ids, &[ids(own)]));
            }
        })
    };
    let mut cases: Vec<(&str, Change)> = Vec::new();
    for (at, reason) in ["pid", "net", "ipc", "uts", "mnt", "", "cgroup"].into_iter().enumerate() {
        let mut changed = OWN;
        changed[at] = HOST[at];
        if !reason.is_empty() {
            cases.push(("its processes were in the host's", own(changed)));
        }
    }
    cases.extend::<Vec<(&str, Change)>>(vec![
        ("a user namespace of their own", own([9, 10, 11, 12, 13, 99, 14, 5])),
        ("a time namespace of their own", own([9, 10, 11, 12, 13, 7, 14, 99])),
        (
            "not all processes are in the same namespaces",
            Box::new(|sample| sample.set("ids-23.img", file(Magic::Ids, &[ids([9, 10, 11, 12, 99, 7, 14, 5])]))),
        ),
        ("ids-23.img: the checkpoint lacks it", Box::new(|sample| drop(sample.files.remove("ids-23.img")))),
        ("netns-10.img: the checkpoint lacks it", Box::new(|sample| drop(sample.files.remove("netns-10.img")))),
        (
            "the namespace is not extRootNetNS",
            Box::new(|sample| sample.set("netns-10.img", file(Magic::NetNs, &[Writer::default()]))),
        ),
        (
            "field 4, which this program does not know",
            Box::new(|sample| {
                let sysctl = Writer::default().text(8, "extRootNetNS").child(4, Writer::default());
                sample.set("netns-10.img", file(Magic::NetNs, &[sysctl]));
            }),
        ),
        (
            "netns-11.img is of a namespace that no process is in",
            Box::new(|sample| sample.set("netns-11.img", sample.files["netns-10.img"].clone())),
        ),
        (
            "netns-2.img is of a namespace, where the request's",
            Box::new(move |sample| {
                let namespaces = sample.spec["linux"]["namespaces"].as_array_mut().unwrap();
                namespaces.retain(|namespace| namespace["type"] != "network");
                own([9, 2, 11, 12, 13, 7, 14, 5])(sample);
                let netns = sample.files["netns-10.img"].clone();
                sample.files.remove("netns-10.img");
                sample.set("netns-2.img", netns);
            }),
        ),
        ("images of version 1", Box::new(|sample| sample.set("inventory.img", inventory(1, 0, HOST)))),
        (
            "the id of CRIU's run",
            Box::new(|sample| {
                let mut inventory = Writer(sample.files["inventory.img"][8..].to_vec());
                inventory = inventory.text(13, "x; nft flush");
                sample.set("inventory.img", file(Magic::Inventory, &[inventory]));
            }),
        ),
    ]);
    refused(cases);
}

#[test]
fn v_c27_a_process_tree_that_hides_a_thread_is_refused() {
    let tree = |entries: Vec<Writer>| -> Change {
        Box::new(move |sample| sample.set("pstree.img", file(Magic::Pstree, &entries)))
    };
    refused(vec![
        ("core-7.img is of no process", tree(vec![process(6, 0, &[6]), process(23, 6, &[23])])),
        ("core-9.img: the checkpoint lacks it", tree(vec![process(6, 0, &[6, 7, 9]), process(23, 6, &[23])])),
        ("no tree", tree(vec![process(6, 0, &[6, 7]), process(23, 0, &[23])])),
        ("no tree", tree(vec![process(6, 1, &[6, 7])])),
        ("make no sense", tree(vec![process(6, 0, &[7, 6]), process(23, 6, &[23])])),
        ("make no sense", tree(vec![process(6, 0, &[6, 7]), process(23, 6, &[23, 7])])),
        ("core-23.img is of no process", tree(vec![])),
        (
            "core_entry in it has field 4",
            Box::new(|sample| {
                let core = Thread::root().leader().child(4, ids(HOST));
                sample.set("core-6.img", file(Magic::Core, &[core]));
            }),
        ),
        (
            "it holds 2 messages",
            Box::new(|sample| {
                let core = Thread::root().leader();
                sample.set("core-6.img", file(Magic::Core, &[core.clone(), core]));
            }),
        ),
        (
            "field 10 twice",
            Box::new(|sample| {
                let thread = Thread::root().thread().child(10, Thread::root().creds());
                let core = Writer::default().number(1, 1).child(3, Thread::root().task()).child(5, thread);
                sample.set("core-6.img", file(Magic::Core, &[core]));
            }),
        ),
    ]);
}

#[test]
fn what_cannot_be_read_is_refused() {
    let mut cases: Vec<(&str, Change)> = Vec::new();
    for name in
        ["inventory.img", "pstree.img", "core-6.img", "ids-6.img", "mountpoints-13.img", "files.img", "cgroup.img"]
    {
        for content in [Vec::new(), b"\x19CVT".to_vec(), vec![0xff; 64]] {
            cases.push((name, Box::new(move |sample| sample.set(name, content.clone()))));
        }
    }
    refused(cases);
    let mut odd = Sample::new();
    odd.set("creds-6.img", Vec::new());
    assert!(odd.refusal().contains("\"creds-6.img\""));
}

/// No prefix of a good file, and no file with one byte changed, makes the reader panic.
#[test]
fn damaged_images_are_answered() {
    let mut sample = Sample::new();
    let filters = (0..2u64).fold(Writer::default(), |filters, at| {
        let filter = Writer::default().bytes(1, &[6, 0, 0, 0, 0, 0, 0xff, 0x7f]).number(3, 0);
        filters.child(1, if at == 0 { filter.number(2, 1) } else { filter })
    });
    sample.set("seccomp.img", file(Magic::Seccomp, &[filters]));
    sample.threads(&Thread { seccomp: Some((2, 0)), ..Thread::root() });
    sample.verify().unwrap();
    let damaged = sample;
    let whole = damaged.all();
    for name in ["seccomp.img", "core-6.img", "mountpoints-13.img", "cgroup.img", "files.img", "inventory.img"] {
        let good = &whole[name];
        for at in (0..good.len()).step_by(7) {
            let mut changed = good.clone();
            changed[at] ^= 0x55;
            for content in [good[..at].to_vec(), changed] {
                let mut sample = damaged.clone();
                sample.set(name, content);
                drop(sample.verify());
            }
        }
    }
}

#[test]
fn requests_for_which_nothing_can_be_compared_are_not_restored() {
    let mut annotated = Sample::new();
    annotated.spec["annotations"] = json!({"org.criu.config": "/host/criu.conf"});
    assert!(annotated.refusal().contains("org.criu.config"));
    let mut notified = Sample::new();
    notified.spec["linux"]["seccomp"] = json!({"defaultAction": "SCMP_ACT_NOTIFY", "syscalls": []});
    assert!(matches!(notified.verify(), Err(Error::Unsupported(_))));
    let mut mapped = Sample::new();
    mapped.spec["linux"]["namespaces"].as_array_mut().unwrap().push(json!({"type": "user"}));
    assert!(matches!(mapped.verify(), Err(Error::Unsupported(_))));
}
