//! The cgroups of a checkpoint.
//!
//! CRIU puts processes into the cgroups that the archive names, and makes them where they are missing: any of the host's. A
//! runtime may have it put the container's own in their place, but on version 2 runc does so only since 1.2, and on all it
//! is done by comparing texts. So an archive's file is looked at, for there may be one cgroup only, and then written anew
//! with the path of the container.

use super::{
    given::Given,
    image::{Kind, Magic, Message, Refused, Writer, file, only},
    images::Images,
};

const CGROUPS: Kind = Kind { name: "cgroup_entry", once: &[], many: &[1, 2] };
const SET: Kind = Kind { name: "cg_set_entry", once: &[1], many: &[2] };
const MEMBER: Kind = Kind { name: "cg_member_entry", once: &[1, 2, 3], many: &[] };
const CONTROLLER: Kind = Kind { name: "cg_controller_entry", once: &[3], many: &[1, 2] };
const DIRECTORY: Kind = Kind { name: "cgroup_dir_entry", once: &[1, 4], many: &[2, 3] };
const PERMISSIONS: Kind = Kind { name: "cgroup_perms", once: &[1, 2, 3], many: &[] };

/// The hierarchies of version 1 that the OCI runtime puts a container into.
const VERSION_1: [&str; 15] = [
    "blkio",
    "cpu",
    "cpuacct",
    "cpuset",
    "devices",
    "freezer",
    "hugetlb",
    "memory",
    "misc",
    "name=systemd",
    "net_cls",
    "net_prio",
    "perf_event",
    "pids",
    "rdma",
];

/// Checks the cgroups; answers the file to be put in the place of the archive's. `unified`: this host has version 2.
pub(crate) fn check(images: &Images, given: &Given, unified: bool) -> Result<Option<Vec<u8>>, Refused> {
    // Without the file every process stays where CRIU itself was put, which is the container's cgroup; but then it is
    // in the host's cgroup namespace as well.
    if !images.has("cgroup.img") {
        return match given.namespaces.contains_key("cgroup") {
            false => Ok(None),
            true => Err(Refused::new("cgroup.img: the checkpoint lacks it, and the request has a cgroup namespace")),
        };
    }
    let found = images.read("cgroup.img")?;
    let checked = only(&found, Magic::Cgroup).and_then(|bytes| check_message(bytes, given, unified));
    checked.map(|own| Some(file(Magic::Cgroup, &[own]))).map_err(|refused| refused.of("cgroup.img"))
}

/// Answers the same with the container's own cgroup: the same sets of the same controllers, and nothing that is set on them.
fn check_message(bytes: &[u8], given: &Given, unified: bool) -> Result<Writer, Refused> {
    let own =
        given.cgroup.as_deref().ok_or_else(|| Refused::new("the request names no cgroup to put the processes into"))?;
    let mut rewritten = Writer::default();
    let message = Message::parse(bytes, &CGROUPS)?;
    // Which controllers stand together, and the one directory of each such group.
    let mut directories: Vec<(Vec<&str>, &str)> = Vec::new();
    // Beside version 1, the hierarchies that the origin's runtime had not put its processes into: version 2's, and those of
    // controllers that it did not know, of which they are in the root. Here they stay where the runtime has put CRIU.
    let mut unused: Vec<Vec<&str>> = Vec::new();
    for controller in message.children(2, &CONTROLLER)? {
        let names = controller.texts(1)?;
        if !unified && names == [""] {
            unused.push(names);
            continue;
        }
        let known = |name: &&str| if unified { name.is_empty() } else { VERSION_1.contains(name) };
        let again = names.iter().any(|name| {
            let mut seen = directories.iter().map(|(others, _)| others).chain(&unused);
            seen.any(|others| others.contains(name))
        });
        if names.is_empty() || again || !names.iter().all(known) {
            return Err(Refused(format!("controllers {names:?} are not ones that this host's runtime sets")));
        }
        if controller.is_set(3)? {
            return Err(Refused::new("threads of one process are in several cgroups"));
        }
        let [directory] = &controller.children(2, &DIRECTORY)?[..] else {
            return Err(Refused::new("its processes are not all in one cgroup"));
        };
        let name = directory.text(1)?;
        if name.is_empty() && !unified {
            unused.push(names);
            continue;
        }
        if !directory.children(2, &DIRECTORY)?.is_empty() {
            return Err(Refused(format!("cgroup {name:?} has others in it")));
        }
        let odd = name.split('/').any(|part| matches!(part, "" | "." | ".."));
        if odd {
            return Err(Refused(format!("{name:?} is no path of a cgroup")));
        }
        // They are set on a cgroup that is there.
        if let Some(permissions) = directory.child(4, &PERMISSIONS)?
            && (permissions.required(1)? & 0o022 != 0 || permissions.required(2)? != 0 || permissions.required(3)? != 0)
        {
            return Err(Refused(format!("cgroup {name:?} can be written to by others than root")));
        }
        let controllers = names.iter().fold(Writer::default(), |all, name| all.text(1, name));
        rewritten = rewritten.child(2, controllers.child(2, Writer::default().text(1, own)));
        directories.push((names, name));
    }
    let private = given.namespaces.contains_key("cgroup");
    for set in message.children(1, &SET)? {
        let members = set.children(2, &MEMBER)?;
        let mut own_set = Writer::default().number(1, set.required(1)?.into());
        if private && members.is_empty() {
            return Err(Refused::new("a process is in no cgroup"));
        }
        for member in members {
            let (name, path) = (member.text(1)?, member.text(2)?);
            // Those that stand together are named together.
            let is_of = |names: &Vec<&str>| names.join(",") == name;
            if unused.iter().any(is_of) {
                continue;
            }
            let directory = directories.iter().find(|(names, _)| is_of(names)).map(|(_, directory)| *directory);
            if directory.is_none_or(|directory| path.strip_prefix('/') != Some(directory)) {
                return Err(Refused(format!("{path:?} of controller {name:?} is not the container's cgroup")));
            }
            // Where the namespace's root is: the whole path or, without a namespace, nothing.
            let root = member.number(3)?.map(|length| length as usize);
            if root != private.then_some(path.len()) {
                return Err(Refused(format!("the cgroup namespace of {path:?} is not what the request has")));
            }
            let path = format!("/{own}");
            let member = Writer::default().text(1, name).text(2, &path);
            let member = if private { member.number(3, path.len() as u64) } else { member };
            own_set = own_set.child(2, member);
        }
        rewritten = rewritten.child(1, own_set);
    }
    Ok(rewritten)
}
