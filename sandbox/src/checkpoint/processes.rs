//! What the processes of a checkpoint are: inventory, process tree, namespaces, and each thread's credentials.
//!
//! A restored process runs whatever its memory says, as any image's program does. What keeps it is what it runs with, and
//! that is read here, thread by thread, and compared with what the request gives.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    given::{Given, SETGID, SETPCAP, SETUID, SYS_NICE, names},
    image::{Kind, Magic, Message, Refused, messages, only},
    images::Images,
};

const INVENTORY: Kind = Kind { name: "inventory_entry", once: &[1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13], many: &[] };
const IDS: Kind = Kind { name: "task_kobj_ids_entry", once: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12], many: &[] };
const PSTREE: Kind = Kind { name: "pstree_entry", once: &[1, 2, 3, 4], many: &[5] };
// Without the deprecated identifiers (4), and, below, the seccomp modes of whole tasks (11, 12), which CRIU reads where those
// of threads are missing.
pub(super) const CORE: Kind = Kind { name: "core_entry", once: &[1, 2, 3, 5, 6, 8, 9, 10, 11, 12, 13], many: &[] };
const TASK: Kind =
    Kind { name: "task_core_entry", once: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 18, 20, 21, 22], many: &[15] };
pub(super) const THREAD: Kind =
    Kind { name: "thread_core_entry", once: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16], many: &[] };
const LIMITS: Kind = Kind { name: "task_rlimits_entry", once: &[], many: &[1] };
const LIMIT: Kind = Kind { name: "rlimit_entry", once: &[1, 2], many: &[] };
// Without what AppArmor is told of a policy of its own (17).
pub(super) const CREDS: Kind =
    Kind { name: "creds_entry", once: &[1, 2, 3, 4, 5, 6, 7, 8, 13, 15, 16, 18], many: &[9, 10, 11, 12, 14, 19] };
/// Namespaces by the names that they have in /proc, and the fields of their identifiers.
const NAMESPACES: [(&str, u32); 8] =
    [("pid", 5), ("net", 6), ("ipc", 7), ("uts", 8), ("mnt", 9), ("user", 10), ("cgroup", 11), ("time", 12)];
const NET: Kind = Kind { name: "netns_entry", once: &[8], many: &[] };
const PID: Kind = Kind { name: "pidns_entry", once: &[1], many: &[] };

/// The image format 1.1, which every CRIU since 2.0 writes.
const VERSION: u32 = 2;
const ZOMBIES: [u32; 2] = [2, 6];
/// SCHED_OTHER, SCHED_BATCH, SCHED_IDLE: those that everybody may have.
const ORDINARY: [u32; 3] = [0, 3, 5];

/// What the other checks go on with.
pub(crate) struct Processes {
    /// The identifier of their mount namespace.
    pub(crate) namespace: u32,
    /// The threads of each process that lives, itself first.
    pub(crate) living: Vec<Vec<u32>>,
}

/// Checks all processes.
pub(crate) fn check(images: &Images, given: &Given) -> Result<Processes, Refused> {
    let inventory = images.read("inventory.img")?;
    let of_inventory = |refused: Refused| refused.of("inventory.img");
    let inventory = only(&inventory, Magic::Inventory).and_then(|bytes| Message::parse(bytes, &INVENTORY));
    let inventory = inventory.map_err(of_inventory)?;
    let host = check_inventory(&inventory, given).map_err(of_inventory)?;

    let tree = images.read("pstree.img")?;
    let tree = parse_tree(&tree).map_err(|refused| refused.of("pstree.img"))?;
    let mut seen: Option<BTreeMap<&'static str, u32>> = None;
    let mut cores = BTreeSet::new();
    let mut living = Vec::new();
    for (pid, threads) in &tree {
        let mut dead = false;
        for thread in threads {
            let name = format!("core-{thread}.img");
            let file = images.read(&name)?;
            let core = only(&file, Magic::Core).and_then(|bytes| Message::parse(bytes, &CORE));
            let checked = core.and_then(|core| check_core(&core, given, &host, thread == pid));
            dead |= checked.map_err(|refused| refused.of(&name))?;
            cores.insert(name);
        }
        if !dead {
            living.push(threads.clone());
        }
        // A process that has ended and was not waited for has no namespaces any more.
        let name = format!("ids-{pid}.img");
        if dead && !images.has(&name) {
            continue;
        }
        let file = images.read(&name)?;
        let ids = only(&file, Magic::Ids).and_then(|bytes| Message::parse(bytes, &IDS));
        let ids = ids.and_then(|ids| identifiers(&ids)).map_err(|refused| refused.of(&name))?;
        match &seen {
            None => check_namespaces(&ids, &host.namespaces, given).map_err(|refused| refused.of(&name))?,
            Some(first) if *first == ids => {}
            Some(_) => return Err(Refused::new("not all processes are in the same namespaces").of(&name)),
        }
        seen.get_or_insert(ids);
    }
    if let Some(name) = images.named("core-").find(|name| !cores.contains(*name)) {
        return Err(Refused(format!("{name} is of no process in pstree.img")));
    }
    let ids = seen.ok_or_else(|| Refused::new("pstree.img: no process in it lives"))?;
    check_joined(images, "netns-", Magic::NetNs, &NET, 8, given.namespaces.get("net"), ids.get("net"), "extRootNetNS")?;
    check_joined(images, "pidns-", Magic::PidNs, &PID, 1, given.namespaces.get("pid"), ids.get("pid"), "extRootPidNS")?;
    let namespace = ids.get("mnt").copied().ok_or_else(|| Refused::new("the processes have no mount namespace"))?;
    Ok(Processes { namespace, living })
}

/// What the inventory says of the host that the checkpoint was made on.
struct Host {
    /// Its namespaces, by the identifiers that the processes' have.
    namespaces: BTreeMap<&'static str, u32>,
    /// The set of cgroups that CRIU itself was in.
    cgroups: Option<u32>,
}

fn check_inventory(inventory: &Message<'_>, given: &Given) -> Result<Host, Refused> {
    let version = inventory.required(1)?;
    if version != VERSION || !inventory.is_set(2)? || !inventory.is_set(4)? {
        return Err(Refused(format!(
            "images of version {version}, or without an entry for each namespace, are not read"
        )));
    }
    // By a run's id newer CRIUs name tables of the firewall.
    let run = inventory.text(13)?;
    if !run.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-') {
        return Err(Refused::new("the id of CRIU's run is none"));
    }
    let module = inventory.number(6)?.unwrap_or(0);
    let wanted = match (given.selinux.is_empty(), given.apparmor.is_empty()) {
        (false, _) => 1,
        (_, false) => 2,
        (true, true) => module,
    };
    if module != wanted {
        return Err(Refused::new(
            "its processes were not under the security module (LSM) that the request has a profile of",
        ));
    }
    let namespaces = identifiers(&inventory.child(3, &IDS)?.ok_or_else(|| inventory.lacks(3))?)?;
    Ok(Host { namespaces, cgroups: inventory.number(5)? })
}

fn identifiers(ids: &Message<'_>) -> Result<BTreeMap<&'static str, u32>, Refused> {
    let mut found = BTreeMap::new();
    for (name, field) in NAMESPACES {
        match ids.number(field)? {
            Some(id) => drop(found.insert(name, id)),
            // Kernels before 5.6 have none.
            None if name == "time" => {}
            None => return Err(ids.lacks(field)),
        }
    }
    Ok(found)
}

/// CRIU makes a namespace anew where its identifier differs from the host's, and stays in the host's own where not.
fn check_namespaces(ids: &BTreeMap<&str, u32>, host: &BTreeMap<&str, u32>, given: &Given) -> Result<(), Refused> {
    for (name, _) in NAMESPACES {
        match (ids.get(name) != host.get(name), given.namespaces.contains_key(name)) {
            (true, true) | (false, false) => {}
            (false, true) => {
                return Err(Refused(format!(
                    "its processes were in the host's {name} namespace, the request's are not"
                )));
            }
            (true, false) => {
                return Err(Refused(format!(
                    "its processes had a {name} namespace of their own, the request's have not"
                )));
            }
        }
    }
    Ok(())
}

/// A namespace of the pod's is joined by the key that the runtime gives it; without the key it would be made, and filled
/// with what the archive says.
#[expect(clippy::too_many_arguments, reason = "one row of a table of two")]
fn check_joined(
    images: &Images,
    prefix: &str,
    magic: Magic,
    kind: &'static Kind,
    field: u32,
    joined: Option<&bool>,
    id: Option<&u32>,
    key: &str,
) -> Result<(), Refused> {
    let expected = id.map(|id| format!("{prefix}{id}.img"));
    if let Some(other) = images.named(prefix).find(|name| Some(*name) != expected.as_deref()) {
        return Err(Refused(format!("{other} is of a namespace that no process is in")));
    }
    match (joined, expected) {
        (Some(true), Some(name)) => {
            let file = images.read(&name)?;
            let found = only(&file, magic).and_then(|bytes| Message::parse(bytes, kind));
            match found.and_then(|entry| entry.text(field).map(|found| found == key)) {
                Ok(true) => Ok(()),
                Ok(false) => Err(Refused(format!("{name}: the namespace is not {key}, which would be the pod's"))),
                Err(refused) => Err(refused.of(name)),
            }
        }
        // Made anew for the container alone.
        (Some(false), Some(name)) if images.has(&name) => {
            let file = images.read(&name)?;
            let entry = only(&file, magic).and_then(|bytes| Message::parse(bytes, kind)).map_err(|r| r.of(&name))?;
            if entry.has(field) {
                Err(Refused(format!("{name}: the namespace is from outside, the request's is not")))
            } else {
                Ok(())
            }
        }
        (_, Some(name)) if images.has(&name) && joined.is_none() => {
            Err(Refused(format!("{name} is of a namespace, where the request's processes are in the host's")))
        }
        _ => Ok(()),
    }
}

/// The threads of each process; the first is the process itself.
fn parse_tree(file: &[u8]) -> Result<Vec<(u32, Vec<u32>)>, Refused> {
    let mut tree = Vec::new();
    let mut known = BTreeSet::new();
    for bytes in messages(file, Magic::Pstree)? {
        let entry = Message::parse(bytes, &PSTREE)?;
        let (pid, parent) = (entry.required(1)?, entry.required(2)?);
        if (parent == 0) != tree.is_empty() {
            return Err(Refused::new("its processes are no tree"));
        }
        let threads = match entry.numbers(5)? {
            threads if threads.is_empty() => vec![pid],
            threads => threads,
        };
        if threads.first() != Some(&pid) || pid == 0 || !threads.iter().all(|thread| known.insert(*thread)) {
            return Err(Refused(format!("the threads of process {pid} make no sense")));
        }
        tree.push((pid, threads));
    }
    Ok(tree)
}

/// Whether the process has ended already.
fn check_core(core: &Message<'_>, given: &Given, host: &Host, leads: bool) -> Result<bool, Refused> {
    let task = core.child(3, &TASK)?;
    if let Some(task) = &task {
        // Nothing runs in it: CRIU lets it end again at once. For threads it does not look.
        if leads && ZOMBIES.contains(&task.required(1)?) {
            return Ok(true);
        }
        check_task(task, given)?;
    } else if leads {
        return Err(core.lacks(3));
    }
    let thread = core.child(5, &THREAD)?.ok_or_else(|| core.lacks(5))?;
    // A process that is in CRIU's own cgroups gets no namespace of them.
    let sets = [task.map(|task| task.number(9)).transpose()?.flatten(), thread.number(16)?];
    let mut sets = sets.into_iter().flatten().peekable();
    let is_own = leads && sets.peek().is_none() || sets.any(|set| set == 0 || Some(set) == host.cgroups);
    if is_own && given.namespaces.contains_key("cgroup") {
        return Err(Refused::new("it was in the host's cgroup namespace, the request's processes are not"));
    }
    let policy = thread.number(4)?.unwrap_or(0);
    // Zigzag: an odd number is a negative one.
    let hurried = thread.number(3)?.unwrap_or(0) % 2 == 1;
    if (hurried || !ORDINARY.contains(&policy)) && given.permitted() & SYS_NICE == 0 {
        return Err(Refused::new("it is scheduled before others, for which the request gives no CAP_SYS_NICE"));
    }
    let creds = thread.child(10, &CREDS)?.ok_or_else(|| thread.lacks(10))?;
    check_creds(&creds, given).map(|()| false)
}

fn check_task(task: &Message<'_>, given: &Given) -> Result<(), Refused> {
    let score = task.signed(14)?.unwrap_or(0);
    if score < given.oom_score_adj {
        let wanted = given.oom_score_adj;
        return Err(Refused(format!("its oom_score_adj is {score}, the request gives {wanted}")));
    }
    let limits = task.child(8, &LIMITS)?;
    let limits = limits.map(|limits| limits.children(1, &LIMIT)).transpose()?.unwrap_or_default();
    for (number, hard) in &given.rlimits {
        let found = limits.get(*number).map(|limit| limit.wide(2)).transpose()?.flatten();
        if found.is_none_or(|found| found > *hard) {
            return Err(Refused(format!("its rlimit {number} is above the {hard} of the request")));
        }
    }
    Ok(())
}

fn check_creds(creds: &Message<'_>, given: &Given) -> Result<(), Refused> {
    let all = given.uid == 0 && given.bounding & SETUID != 0;
    for (field, name) in [(1, "uid"), (3, "effective uid"), (5, "saved uid"), (7, "file system uid")] {
        let found = creds.required(field)?;
        if !all && found != given.uid {
            return Err(Refused(format!("its {name} is {found}, the request's is {}", given.uid)));
        }
    }
    let all = given.uid == 0 && given.bounding & SETGID != 0;
    let groups = [2, 4, 6, 8].map(|field| creds.required(field));
    let groups = groups.into_iter().collect::<Result<Vec<_>, _>>()?;
    if let Some(found) = groups.iter().chain(&creds.numbers(14)?).find(|group| !all && !given.groups.contains(group)) {
        return Err(Refused(format!("it is in group {found}, which the request does not give")));
    }
    let permitted = given.permitted();
    for (field, name, most) in [
        (9, "inheritable", permitted | given.inheritable),
        (10, "permitted", permitted),
        (11, "effective", permitted),
        (12, "bounding", given.bounding),
        (19, "ambient", permitted),
    ] {
        let found = capabilities(&creds.numbers(field)?)?;
        if found & !most != 0 {
            let more = names(found & !most);
            return Err(Refused(format!("its {name} set has {more}, which the request does not give")));
        }
    }
    if creds.required(13)? != 0 && given.permitted() & SETPCAP == 0 {
        return Err(Refused::new("it has secure bits set, for which the request gives no CAP_SETPCAP"));
    }
    let profile = creds.text(15)?;
    let fits = match (given.selinux.as_str(), given.apparmor.as_str()) {
        ("", "") => ["", "unconfined"].contains(&profile),
        ("", apparmor) => profile == apparmor,
        (label, _) => profile == label,
    };
    if !fits || !creds.text(16)?.is_empty() {
        let wanted = [given.selinux.as_str(), given.apparmor.as_str()].concat();
        return Err(Refused(format!("its LSM profile is {profile:?}, the request's is {wanted:?}")));
    }
    Ok(())
}

/// A set, from its words of 32 bits.
fn capabilities(words: &[u32]) -> Result<u64, Refused> {
    match words {
        [] => Ok(0),
        [low] => Ok(u64::from(*low)),
        [low, high] => Ok(u64::from(*low) | u64::from(*high) << 32),
        _ => Err(Refused::new("a set of capabilities has more words than the kernel knows")),
    }
}
