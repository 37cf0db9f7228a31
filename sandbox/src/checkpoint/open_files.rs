//! What the processes of a checkpoint have open: CRIU opens it again, as root.
//!
//! By kind: what any process may have is restored, and what takes a privilege to make, or leads out of the container, is
//! refused. A file is opened by its path in the container's own mounts; its permissions are not asked again, so a
//! checkpoint can hold open what its user could not open.
//!
//! Of TCP connections the other end knows another address, and has gone on without them: their sockets are written anew as ones
//! that were never connected, and programs find them closed. (CRIU's option for that, --tcp-close, is none of OCI runtimes'.)

use std::collections::BTreeSet;

use super::{
    given::{Given, NET_ADMIN},
    image::{Kind, Magic, Message, Refused, Writer, file, first_message, messages},
    images::Images,
};

const FILE: Kind = Kind {
    name: "file_entry",
    once: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22],
    many: &[],
};
const DESCRIPTOR: Kind = Kind { name: "fdinfo_entry", once: &[1, 2, 3, 4, 5], many: &[] };
const REGULAR: Kind = Kind { name: "reg_file_entry", once: &[1, 2, 3, 5, 6, 7, 8, 9, 10, 12, 13, 14], many: &[11] };
const INET: Kind = Kind {
    name: "inet_sk_entry",
    once: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 13, 14, 15, 16, 17, 18, 19, 20],
    many: &[11, 12],
};
const SOCKET: Kind = Kind {
    name: "sk_opts_entry",
    once: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 17, 18, 19, 20, 21, 22, 23, 24, 25],
    many: &[16],
};
const IP: Kind = Kind { name: "ip_opts_entry", once: &[1, 4, 5, 6, 7], many: &[] };
const REMAP: Kind = Kind { name: "remap_file_path_entry", once: &[1, 2, 3], many: &[] };
const GHOST: Kind = Kind { name: "ghost_file_entry", once: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11], many: &[] };
const TERMINAL: Kind =
    Kind { name: "tty_info_entry", once: &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15], many: &[] };

/// The kinds of open files, by CRIU's numbers, and the field of `file_entry` that each has.
const KINDS: [(u32, &str, Option<u32>); 20] = [
    (1, "file", Some(3)),
    (2, "pipe", Some(18)),
    (3, "FIFO", Some(17)),
    (4, "IP socket", Some(4)),
    (5, "Unix socket", Some(16)),
    (6, "eventfd", Some(8)),
    (7, "epoll", Some(9)),
    (8, "inotify", Some(13)),
    (9, "signalfd", Some(10)),
    (10, "packet socket", None),
    (11, "terminal", Some(19)),
    (12, "fanotify", None),
    (13, "netlink socket", None),
    (14, "namespace", None),
    (15, "tun device", None),
    (16, "file from outside", None),
    (17, "timerfd", Some(12)),
    (18, "memfd", Some(20)),
    (19, "BPF map", None),
    (20, "pidfd", None),
];

/// AF_INET, AF_INET6; SOCK_STREAM, SOCK_DGRAM; TCP, UDP, UDP-Lite.
const FAMILIES: [u32; 2] = [2, 10];
const TYPES: [u32; 2] = [1, 2];
const PROTOCOLS: [u32; 3] = [TCP, 17, 136];
const TCP: u32 = 6;
/// Fields of `inet_sk_entry`: state, both ports and addresses, and which directions were shut down.
const STATE: u32 = 6;
const PORTS: [u32; 2] = [7, 8];
const ADDRESSES: [u32; 2] = [11, 12];
const SHUT_DOWN: u32 = 19;
/// TCP_CLOSE, the state of a socket that is new.
const CLOSED: u64 = 7;

const GHOST_FILE: u32 = 1;
const PROCESS: u32 = 2;
/// A pseudoterminal, and the controlling terminal of the process.
const TERMINALS: [u32; 2] = [1, 4];

/// Where the open files are.
pub(crate) const NAME: &str = "files.img";

/// Checks all open files; answers the table to be put in the place of the archive's, if it holds connections. `mounts` are the
/// ids of the container's.
pub(crate) fn check(images: &Images, given: &Given, mounts: &BTreeSet<u32>) -> Result<Option<Vec<u8>>, Refused> {
    let each = |name: &str, magic: Magic, kind: &'static Kind, check: &dyn Fn(&Message<'_>) -> Result<(), Refused>| {
        if !images.has(name) {
            return Ok(());
        }
        let file = images.read(name)?;
        let checked = messages(&file, magic).and_then(|found| {
            found.into_iter().try_for_each(|bytes| Message::parse(bytes, kind).and_then(|message| check(&message)))
        });
        checked.map_err(|refused| refused.of(name))
    };
    let table = if images.has(NAME) { check_table(&images.read(NAME)?, given, mounts) } else { Ok(None) };
    let table = table.map_err(|refused| refused.of(NAME))?;
    let tables: Vec<&str> = images.named("fdinfo-").collect();
    for name in tables {
        each(name, Magic::FdInfo, &DESCRIPTOR, &|descriptor| kind_of(descriptor.required(3)?).map(drop))?;
    }
    each("remap-fpath.img", Magic::Remap, &REMAP, &|remap| match remap.number(3)? {
        Some(GHOST_FILE | PROCESS) => Ok(()),
        kind => Err(Refused(format!("a deleted file is kept in a way ({kind:?}) that is not restored"))),
    })?;
    let ghosts: Vec<&str> = images.named("ghost-file-").collect();
    for name in ghosts {
        let file = images.read_start(name)?;
        let ghost = first_message(&file, Magic::Ghost).and_then(|bytes| Message::parse(bytes, &GHOST));
        ghost.and_then(|ghost| check_ghost(&ghost)).map_err(|refused| refused.of(name))?;
    }
    each("tty-info.img", Magic::TtyInfo, &TERMINAL, &|terminal| match terminal.required(2)? {
        kind if TERMINALS.contains(&kind) => Ok(()),
        kind => Err(Refused(format!("a terminal of type {kind} is the host's"))),
    })?;
    Ok(table)
}

fn check_table(found: &[u8], given: &Given, mounts: &BTreeSet<u32>) -> Result<Option<Vec<u8>>, Refused> {
    let mut rewritten = Vec::new();
    let mut is_other = false;
    for bytes in messages(found, Magic::Files)? {
        let entry = Message::parse(bytes, &FILE)?;
        check_file(&entry, given, mounts)?;
        let closed = if entry.has(4) { closed(&entry)? } else { None };
        is_other |= closed.is_some();
        rewritten.push(closed.unwrap_or_else(|| Writer(bytes.to_vec())));
    }
    Ok(is_other.then(|| file(Magic::Files, &rewritten)))
}

/// The entry of a connection as one of a socket that is new. By its port CRIU knows which sockets are connected.
fn closed(entry: &Message<'_>) -> Result<Option<Writer>, Refused> {
    let Some(socket) = entry.child(4, &INET)? else { return Ok(None) };
    if socket.required(5)? != TCP || socket.number(PORTS[1])?.unwrap_or(0) == 0 {
        return Ok(None);
    }
    let mut left_out = vec![STATE, SHUT_DOWN];
    left_out.extend(PORTS.into_iter().chain(ADDRESSES));
    let mut new = socket.without(&left_out).number(STATE, CLOSED);
    new = PORTS.into_iter().fold(new, |new, port| new.number(port, 0));
    for address in ADDRESSES {
        let words = if socket.required(3)? == FAMILIES[0] { 1 } else { 4 };
        new = (0..words).fold(new, |new, _| new.number(address, 0));
    }
    Ok(Some(entry.without(&[4]).child(4, new)))
}

/// The field that describes a file of this kind.
fn kind_of(kind: u32) -> Result<(u32, &'static str), Refused> {
    match KINDS.iter().find(|(number, ..)| *number == kind) {
        Some((_, name, Some(field))) => Ok((*field, name)),
        Some((_, name, None)) => Err(Refused(format!("a {name} is open, which is not restored"))),
        None => Err(Refused(format!("something of kind {kind} is open, which this program does not know"))),
    }
}

fn check_file(file: &Message<'_>, given: &Given, mounts: &BTreeSet<u32>) -> Result<(), Refused> {
    let (field, name) = kind_of(file.required(1)?)?;
    if let Some(other) = (3..=22).find(|other| *other != field && file.has(*other)) {
        return Err(Refused(format!("a {name} is described as something else too (field {other})")));
    }
    if !file.has(field) {
        return Err(file.lacks(field));
    }
    if let Some(regular) = if field == 3 { file.child(3, &REGULAR)? } else { None } {
        // A mount that is not the container's would be looked for in other namespaces. It is written in zigzag.
        let mount = regular.number(7)?;
        let is_known = mount.is_none_or(|mount| mount % 2 == 0 && mounts.contains(&(mount / 2)));
        if regular.is_set(9)? || !is_known {
            return Err(Refused(format!("{:?} is open from outside of the container", regular.text(6)?)));
        }
    }
    if let Some(socket) = if field == 4 { file.child(4, &INET)? } else { None } {
        check_inet(&socket, given)?;
    }
    Ok(())
}

fn check_inet(socket: &Message<'_>, given: &Given) -> Result<(), Refused> {
    let (family, kind, protocol) = (socket.required(3)?, socket.required(4)?, socket.required(5)?);
    if !FAMILIES.contains(&family) || !TYPES.contains(&kind) || !PROTOCOLS.contains(&protocol) {
        return Err(Refused(format!("a socket of family {family}, type {kind}, protocol {protocol} is not restored")));
    }
    if let Some(options) = socket.child(16, &IP)?
        && options.has(4)
    {
        return Err(Refused::new("a raw IP socket is not restored"));
    }
    let options = socket.child(14, &SOCKET)?.ok_or_else(|| socket.lacks(14))?;
    if options.is_set(10)? && given.permitted() & NET_ADMIN == 0 {
        return Err(Refused::new("a socket marks its packets, for which the request gives no CAP_NET_ADMIN"));
    }
    Ok(())
}

/// A file that is open and has no name any more is made again under one for a moment.
fn check_ghost(ghost: &Message<'_>) -> Result<(), Refused> {
    const KIND: u32 = 0o170_000;
    const REGULAR: u32 = 0o100_000;
    const FIFO: u32 = 0o010_000;
    const SET_ID: u32 = 0o6000;
    let mode = ghost.required(3)?;
    if ![REGULAR, FIFO].contains(&(mode & KIND)) || mode & SET_ID != 0 {
        return Err(Refused(format!("a deleted file of mode {mode:o} is not restored")));
    }
    Ok(())
}
