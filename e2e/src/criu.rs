//! CRIU's images, as small as they can be for a container of one process: written for a spec, so that what is restored is
//! what was asked for, or with one thing more.

use std::{fs, path::Path};

use serde_json::Value;

const COMMON: u32 = 0x5456_4319;
const INVENTORY: u32 = 0x5831_3116;
const PSTREE: u32 = 0x5027_3030;
pub(crate) const CORE: u32 = 0x5505_3847;
const IDS: u32 = 0x5443_2030;
const MOUNTS: u32 = 0x5556_3928;
const FILES: u32 = 0x5630_3138;
const NETNS: u32 = 0x5593_3752;
const PIDNS: u32 = 0x6115_7326;
/// The capabilities of a container that asked for none.
const DEFAULT: u64 = 0xa804_25fb;

/// A message of protobuf.
#[derive(Clone, Default)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    fn varint(&mut self, mut value: u64) {
        while value > 0x7f {
            self.0.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.0.push(value as u8);
    }

    pub(crate) fn number(mut self, field: u64, value: u64) -> Message {
        self.varint(field << 3);
        self.varint(value);
        self
    }

    pub(crate) fn bytes(mut self, field: u64, value: &[u8]) -> Message {
        self.varint(field << 3 | 2);
        self.varint(value.len() as u64);
        self.0.extend(value);
        self
    }

    fn text(self, field: u64, value: &str) -> Message {
        self.bytes(field, value.as_bytes())
    }
}

pub(crate) fn write(directory: &Path, name: &str, magic: u32, messages: &[Message]) {
    let mut file = if magic == INVENTORY { Vec::new() } else { COMMON.to_le_bytes().to_vec() };
    file.extend(magic.to_le_bytes());
    for message in messages {
        file.extend((message.0.len() as u32).to_le_bytes());
        file.extend(&message.0);
    }
    fs::write(directory.join(name), file).unwrap();
}

/// Writes images of one process of root with these capabilities more than by default, for a container with this OCI spec.
pub fn write_images(directory: &Path, spec: &Value, more: u64) {
    let namespaces: Vec<(&str, bool)> = spec["linux"]["namespaces"]
        .as_array()
        .unwrap()
        .iter()
        .map(|namespace| (namespace["type"].as_str().unwrap(), namespace["path"].is_string()))
        .collect();
    // Of the host 1 to 8, of the container the same and ten.
    let kinds = ["pid", "network", "ipc", "uts", "mount", "user", "cgroup", "time"];
    let ids = |own: bool| {
        let first = (1..=4).fold(Message::default(), |ids, field| ids.number(field, 1));
        kinds.iter().zip(1..).fold(first, |ids, (kind, id)| {
            let is_own = own && namespaces.iter().any(|(name, _)| name == kind);
            ids.number(4 + id, if is_own { 10 + id } else { id })
        })
    };
    let inventory = Message::default().number(1, 2).number(2, 1).bytes(3, &ids(false).0).number(4, 1).number(6, 0);
    write(directory, "inventory.img", INVENTORY, &[inventory]);
    write(directory, "ids-6.img", IDS, &[ids(true)]);
    let process = Message::default().number(1, 6).number(2, 0).number(3, 6).number(4, 6).number(5, 6);
    write(directory, "pstree.img", PSTREE, &[process]);
    for (kind, name, magic, field, key) in
        [("network", "netns-12.img", NETNS, 8, "extRootNetNS"), ("pid", "pidns-11.img", PIDNS, 1, "extRootPidNS")]
    {
        if namespaces.contains(&(kind, true)) {
            write(directory, name, magic, &[Message::default().text(field, key)]);
        }
    }
    write(directory, "core-6.img", CORE, &[core(DEFAULT | more)]);
    let mounts = spec["mounts"].as_array().unwrap().iter().enumerate();
    let mut entries: Vec<Message> = mounts.map(|(at, mount)| mount_entry(at as u64, mount, spec)).collect();
    entries.push(entry(17, 100, 1, 0, "/", ""));
    write(directory, "mountpoints-15.img", MOUNTS, &entries);
    write(directory, "files.img", FILES, &[]);
}

fn core(capabilities: u64) -> Message {
    let creds = (1..=8).fold(Message::default(), |creds, field| creds.number(field, 0));
    let words = [capabilities & 0xffff_ffff, capabilities >> 32];
    let creds =
        [10, 11, 12].into_iter().fold(creds, |creds, field| creds.number(field, words[0]).number(field, words[1]));
    let creds = creds.number(13, 0);
    let limits = (0..16)
        .fold(Message::default(), |limits, _| limits.bytes(1, &Message::default().number(1, 64).number(2, 64).0));
    let task = Message::default().number(1, 1).number(2, 0).number(3, 0).number(4, 0).number(5, 0).text(6, "sh");
    let task = task.bytes(8, &limits.0).number(14, 0);
    let thread = Message::default().number(1, 0).number(2, 0).bytes(10, &creds.0);
    Message::default().number(1, 1).bytes(3, &task.0).bytes(5, &thread.0)
}

fn mount_entry(at: u64, mount: &Value, spec: &Value) -> Message {
    let point = mount["destination"].as_str().unwrap();
    let kind = match mount["type"].as_str().unwrap() {
        "proc" => 1,
        "sysfs" => 2,
        "tmpfs" | "cgroup" => 5,
        "devpts" => 6,
        "mqueue" => 14,
        _ => 0,
    };
    let has = |name: &str| mount["options"].as_array().unwrap().iter().any(|option| option == name);
    let flags = [("ro", 1), ("nosuid", 2), ("nodev", 4), ("noexec", 8)];
    let flags = flags.iter().filter(|(name, _)| has(name)).fold(0, |all, (_, flag)| all | flag);
    // It is on the longest of the others that it is below.
    let others = spec["mounts"].as_array().unwrap().iter().enumerate();
    let below = others.filter(|(_, other)| {
        let other = other["destination"].as_str().unwrap();
        other != point && Path::new(point).starts_with(other)
    });
    let parent =
        below.max_by_key(|(_, other)| other["destination"].as_str().unwrap().len()).map(|(at, _)| 101 + at as u64);
    entry(kind, 101 + at, parent.unwrap_or(100), flags, point, if kind == 0 { point } else { "" })
}

fn entry(kind: u64, id: u64, parent: u64, flags: u64, point: &str, external: &str) -> Message {
    let device = if external.is_empty() { id } else { 8 };
    let entry = Message::default().number(1, kind).number(2, id).number(3, device).number(4, parent).number(5, flags);
    let entry = entry.text(6, "/").text(7, point).text(8, "source").text(9, "");
    if external.is_empty() { entry } else { entry.text(18, external) }
}
