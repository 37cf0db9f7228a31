//! The mounts of a checkpoint, compared with those of the request.
//!
//! CRIU mounts what the archive lists, as root and in the archive's order. So each entry has to be one of the request's, or
//! of the few that the OCI runtime adds by itself, and everything that the request has mounted, hidden or made read-only has
//! to be there.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Path, PathBuf},
};

use oci_spec::runtime::Mount;
use rustix::mount::MountFlags;

use super::{
    given::Given,
    image::{Kind, Magic, Message, Refused, messages},
    images::Images,
};

// Without entries of old format (13) and file systems by name (14).
const ENTRY: Kind =
    Kind { name: "mnt_entry", once: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 15, 16, 17, 18], many: &[] };

const PROC: u32 = 1;
const TMPFS: u32 = 5;
const DEVPTS: u32 = 6;
const CGROUP: u32 = 12;
const OVERLAY: u32 = 17;
const CGROUP2: u32 = 23;
/// By the types of the OCI spec.
const TYPES: [(&str, &[u32]); 6] = [
    ("proc", &[PROC]),
    ("sysfs", &[2]),
    ("tmpfs", &[TMPFS]),
    ("devpts", &[DEVPTS]),
    ("mqueue", &[14]),
    ("cgroup", &[CGROUP2, TMPFS]),
];

/// How a mount may be propagated, in mount(2)'s flags.
const SHARED: u32 = 1 << 20;
const SLAVE: u32 = 1 << 19;
/// Those that only forbid, or say when times are written, or are private: MS_RDONLY, NOSUID, NODEV, NOEXEC, NOATIME,
/// NODIRATIME, UNBINDABLE, PRIVATE, RELATIME, STRICTATIME, NOSYMFOLLOW. MS_REC, which would bring the mounts below along,
/// is not among them.
const HARMLESS: u32 = 0b1111 | 1 << 8 | 1 << 10 | 1 << 11 | 1 << 17 | 1 << 18 | 1 << 21 | 1 << 24;

struct Entry<'a> {
    kind: u32,
    id: u32,
    device: u32,
    parent: u32,
    flags: u32,
    root: &'a str,
    point: &'a Path,
    external: &'a str,
    shared: bool,
    slave: bool,
}

/// Checks the mounts of this namespace. `place` says where a destination is once the links of the root file system are
/// followed; `on_host` whether a path of proc or sysfs is there at all. Answers the ids of the mounts.
pub(crate) fn check(
    images: &Images,
    given: &Given,
    namespace: u32,
    place: &dyn Fn(&Path) -> PathBuf,
    on_host: &dyn Fn(&Path) -> bool,
) -> Result<BTreeSet<u32>, Refused> {
    let name = format!("mountpoints-{namespace}.img");
    if let Some(other) = images.named("mountpoints-").find(|other| *other != name) {
        return Err(Refused(format!("{other} is of a namespace that no process is in")));
    }
    let file = images.read(&name)?;
    check_file(&file, given, place, on_host).map_err(|refused| refused.of(name))
}

fn check_file(
    file: &[u8],
    given: &Given,
    place: &dyn Fn(&Path) -> PathBuf,
    on_host: &dyn Fn(&Path) -> bool,
) -> Result<BTreeSet<u32>, Refused> {
    let entries = messages(file, Magic::Mounts)?;
    let entries: Vec<Message<'_>> =
        entries.into_iter().map(|bytes| Message::parse(bytes, &ENTRY)).collect::<Result<_, _>>()?;
    let mut by_point = BTreeMap::new();
    let mut ids = BTreeSet::new();
    for message in &entries {
        let entry = parse(message)?;
        let (id, point) = (entry.id, entry.point);
        if !ids.insert(id) || by_point.insert(point, entry).is_some() {
            return Err(Refused(format!("two mounts are on {}, or have the id {id}", point.display())));
        }
    }
    // The last mount of a request on a place is the one that is seen.
    let wanted: BTreeMap<PathBuf, &Mount> =
        given.mounts.iter().map(|mount| (place(mount.destination()), mount)).collect();
    let mut parts_of = BTreeMap::new();
    for entry in by_point.values() {
        let at = |refused: Refused| refused.of(format_args!("the mount on {}", entry.point.display()));
        check_parent(entry, &by_point).map_err(at)?;
        let is_part = check_entry(entry, given, &wanted).map_err(at)?;
        // Two entries of one device are one file system, which the second only binds from the first. Those that may are
        // parts of what is mounted above them, and what comes from outside is not CRIU's to choose.
        if entry.external.is_empty() && !is_part && parts_of.insert(entry.device, entry.point).is_some() {
            return Err(at(Refused::new("it shares its file system with another")));
        }
    }
    for entry in by_point.values().filter(|entry| !entry.external.is_empty()) {
        if let Some(other) = parts_of.get(&entry.device) {
            let (one, other) = (entry.point.display(), other.display());
            return Err(Refused(format!("the mount on {other} would be a part of what is from outside on {one}")));
        }
    }
    let hidden = given.masked.iter().chain(&given.readonly).filter(|path| on_host(path)).map(PathBuf::as_path);
    let needed = wanted.keys().map(PathBuf::as_path).chain(hidden).chain([Path::new("/")]);
    for path in needed {
        if !by_point.contains_key(path) {
            return Err(Refused(format!("it lacks the mount on {}, which the request has", path.display())));
        }
    }
    Ok(ids)
}

fn parse<'a>(message: &Message<'a>) -> Result<Entry<'a>, Refused> {
    let point = message.text(7)?;
    let clean = point == "/" || (point.starts_with('/') && Path::new(point).components().as_path() == Path::new(point));
    let odd = point.split('/').skip(1).any(|part| matches!(part, "." | "..") || (part.is_empty() && point != "/"));
    if !clean || odd {
        return Err(Refused(format!("{point:?} is no path to mount on")));
    }
    if message.is_set(12)? || message.is_set(16)? {
        return Err(Refused(format!("the mount on {point} is made by a plugin, or deleted")));
    }
    Ok(Entry {
        kind: message.required(1)?,
        id: message.required(2)?,
        device: message.required(3)?,
        parent: message.required(4)?,
        flags: message.required(5)?,
        root: message.text(6)?,
        point: Path::new(point),
        external: message.text(18)?,
        shared: message.number(10)?.unwrap_or(0) != 0,
        slave: message.number(11)?.unwrap_or(0) != 0,
    })
}

/// A mount below another one's place has to be on it, or it could be covered by it.
fn check_parent(entry: &Entry<'_>, all: &BTreeMap<&Path, Entry<'_>>) -> Result<(), Refused> {
    let below = entry.point.ancestors().skip(1).find_map(|point| all.get(point));
    match below {
        None => Ok(()),
        Some(below) if below.id == entry.parent => Ok(()),
        Some(below) => Err(Refused(format!("it is not on the mount on {}", below.point.display()))),
    }
}

/// Whether the entry is a part of a file system that is mounted as a whole elsewhere.
fn check_entry(entry: &Entry<'_>, given: &Given, wanted: &BTreeMap<PathBuf, &Mount>) -> Result<bool, Refused> {
    if entry.flags & !(HARMLESS | SHARED | SLAVE) != 0 {
        return Err(Refused(format!("flags {:#x} are not ones that the runtime sets", entry.flags)));
    }
    let shared = entry.shared || entry.flags & SHARED != 0;
    let slave = entry.slave || entry.flags & SLAVE != 0;
    let is_whole = entry.root == "/";
    if entry.point == Path::new("/") {
        // What is there is the root that the runtime hands over, whatever the entry says.
        demand(entry, if given.readonly_root { MountFlags::RDONLY } else { MountFlags::empty() })?;
        return match entry.external.is_empty() && is_whole && (!shared || given.shared_root) {
            true if entry.kind == OVERLAY || entry.kind == 0 => Ok(false),
            _ => Err(Refused::new("it is not the container's root")),
        };
    }
    if let Some(mount) = wanted.get(entry.point) {
        let options = mount.options().as_deref().unwrap_or_default();
        let has = |names: &[&str]| options.iter().any(|option| names.contains(&option.as_str()));
        let kind = mount.typ().as_deref().unwrap_or_default();
        // Of cgroups of version 1, runc has only the hierarchies read-only, not the tmpfs that they are mounted in.
        let left = if kind == "cgroup" && entry.kind == TMPFS { MountFlags::RDONLY } else { MountFlags::empty() };
        demand(entry, forbidding(options) - left)?;
        if shared && !has(&["shared", "rshared"]) {
            return Err(Refused::new(
                "what is mounted there later would be seen outside, which the request does not ask",
            ));
        }
        if slave && !has(&["slave", "rslave", "shared", "rshared"]) {
            return Err(Refused::new("it would follow what is mounted outside, which the request does not ask"));
        }
        if kind == "bind" || has(&["bind", "rbind"]) {
            // CRIU gets the source of the request from the runtime, by the key.
            return if Path::new(entry.external) == entry.point {
                Ok(false)
            } else {
                Err(Refused::new("it is not the bind mount that the request has there"))
            };
        }
        let kinds = TYPES.iter().find(|(name, _)| *name == kind).map(|(_, kinds)| *kinds).unwrap_or_default();
        return if kinds.contains(&entry.kind) && entry.external.is_empty() && is_whole {
            Ok(false)
        } else {
            Err(Refused(format!("it is no {kind}, which the request has there")))
        };
    }
    // runc binds hierarchies of version 1 from the host, whose mounts are shared with the container's.
    if shared || (slave && !is_hierarchy(entry, wanted)) {
        return Err(Refused::new("it is propagated, which none of the runtime's own mounts is"));
    }
    check_own(entry, given, wanted)
}

/// Whether it is one of those that version 1 of cgroups has for each controller, below the tmpfs of the request's mount.
fn is_hierarchy(entry: &Entry<'_>, wanted: &BTreeMap<PathBuf, &Mount>) -> bool {
    let is_below = |(point, mount): (&PathBuf, &&Mount)| {
        mount.typ().as_deref() == Some("cgroup") && entry.point.parent() == Some(point.as_path())
    };
    entry.kind == CGROUP && Path::new(entry.external) == entry.point && wanted.iter().any(is_below)
}

/// What the OCI runtime mounts by itself.
fn check_own(entry: &Entry<'_>, given: &Given, wanted: &BTreeMap<PathBuf, &Mount>) -> Result<bool, Refused> {
    let has = |paths: &[PathBuf]| paths.iter().any(|path| path == entry.point);
    let above = |kind: &str| {
        let mut found = wanted.iter().filter(|(point, mount)| {
            mount.typ().as_deref() == Some(kind) && entry.point.starts_with(point) && entry.point != point.as_path()
        });
        found.next()
    };
    if has(&given.masked) {
        // A file is hidden by /dev/null, under its own path as the key; a directory by an empty tmpfs.
        let null = Path::new(entry.external) == entry.point;
        let empty = entry.external.is_empty() && entry.kind == TMPFS && entry.root == "/";
        if null {
            return Ok(false);
        }
        if empty {
            return demand(entry, MountFlags::RDONLY).map(|()| false);
        }
    }
    if has(&given.readonly) && entry.external.is_empty() {
        // A part of a file system bound onto itself.
        let host = ["proc", "sysfs"].iter().find_map(|kind| above(kind).map(|(point, _)| (*kind, point)));
        if let Some((kind, point)) = host {
            let inside = entry.point.strip_prefix(point).unwrap_or(Path::new(""));
            let kinds = TYPES.iter().find(|(name, _)| *name == kind).map(|(_, kinds)| *kinds).unwrap_or_default();
            if Path::new(entry.root) == Path::new("/").join(inside) && kinds.contains(&entry.kind) {
                return demand(entry, MountFlags::RDONLY).map(|()| true);
            }
        }
    }
    if given.terminal && entry.point == Path::new("/dev/console") && entry.kind == DEVPTS && entry.external.is_empty() {
        let terminal = entry.root.strip_prefix('/').unwrap_or_default();
        if !terminal.is_empty() && terminal.bytes().all(|byte| byte.is_ascii_digit()) {
            return Ok(true);
        }
    }
    if let Some((_, mount)) = above("cgroup")
        && is_hierarchy(entry, wanted)
    {
        return demand(entry, forbidding(mount.options().as_deref().unwrap_or_default())).map(|()| false);
    }
    Err(Refused(format!(
        "neither the request has it nor does the runtime make it (type {} of CRIU, {:?} of its file system)",
        entry.kind, entry.root
    )))
}

/// Fails unless the entry forbids at least this.
fn demand(entry: &Entry<'_>, flags: MountFlags) -> Result<(), Refused> {
    let missing = flags.bits() & !entry.flags;
    for (flag, name) in [
        (MountFlags::RDONLY, "read-only"),
        (MountFlags::NOSUID, "nosuid"),
        (MountFlags::NODEV, "nodev"),
        (MountFlags::NOEXEC, "noexec"),
    ] {
        if missing & flag.bits() != 0 {
            return Err(Refused(format!("it is not {name}, which the request has")));
        }
    }
    Ok(())
}

fn forbidding(options: &[String]) -> MountFlags {
    let mut flags = MountFlags::empty();
    for option in options {
        match option.as_str() {
            "ro" | "rro" => flags |= MountFlags::RDONLY,
            "rw" => flags -= MountFlags::RDONLY,
            "nosuid" | "rnosuid" => flags |= MountFlags::NOSUID,
            "suid" => flags -= MountFlags::NOSUID,
            "nodev" | "rnodev" => flags |= MountFlags::NODEV,
            "dev" => flags -= MountFlags::NODEV,
            "noexec" | "rnoexec" => flags |= MountFlags::NOEXEC,
            "exec" => flags -= MountFlags::NOEXEC,
            _ => {}
        }
    }
    flags
}
