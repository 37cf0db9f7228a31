//! A checkpoint as runc and CRIU make one of a container with two processes and three threads, and the spec of its request.

use std::{collections::BTreeMap, fs, path::Path};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::{
    Error,
    checkpoint::{
        image::{Magic, Writer, file},
        verify::{Circumstances, verify},
    },
    host::CgroupMode,
};

pub(super) const CAPABILITIES: u64 = 0xa804_25fb;
pub(super) const CGROUP: &str = "pods/0123";

/// One thread's credentials and what else core-*.img says of it. Every field may be changed by a test.
#[derive(Clone)]
pub(super) struct Thread {
    pub(super) uids: [u64; 4],
    pub(super) gids: [u64; 4],
    pub(super) groups: Vec<u64>,
    /// Inheritable, permitted, effective, bounding, ambient.
    pub(super) sets: [u64; 5],
    pub(super) secbits: u64,
    pub(super) profile: &'static str,
    pub(super) no_new_privs: Option<u64>,
    pub(super) seccomp: Option<(u64, u64)>,
    pub(super) nice: u64,
    pub(super) policy: u64,
    pub(super) cgroups: u64,
    pub(super) oom_score_adj: i64,
    pub(super) state: u64,
    pub(super) nofile: u64,
}

impl Thread {
    pub(super) fn root() -> Thread {
        Thread {
            uids: [0; 4],
            gids: [0; 4],
            groups: vec![0],
            sets: [0, CAPABILITIES, CAPABILITIES, CAPABILITIES, 0],
            secbits: 0,
            profile: "",
            no_new_privs: None,
            seccomp: None,
            nice: 0,
            policy: 0,
            cgroups: 2,
            oom_score_adj: 0,
            state: 1,
            nofile: 1024,
        }
    }

    pub(super) fn user(uid: u64) -> Thread {
        Thread { uids: [uid; 4], gids: [uid; 4], groups: vec![], sets: [0, 0, 0, CAPABILITIES, 0], ..Thread::root() }
    }

    pub(super) fn creds(&self) -> Writer {
        let mut creds = Writer::default();
        for (at, (uid, gid)) in self.uids.into_iter().zip(self.gids).enumerate() {
            creds = creds.number(1 + 2 * at as u32, uid).number(2 + 2 * at as u32, gid);
        }
        for (field, set) in [9, 10, 11, 12, 19].into_iter().zip(self.sets) {
            creds = creds.number(field, set & 0xffff_ffff).number(field, set >> 32);
        }
        creds = creds.number(13, self.secbits);
        for group in &self.groups {
            creds = creds.number(14, *group);
        }
        creds = creds.text(15, self.profile);
        match self.no_new_privs {
            Some(value) => creds.number(18, value),
            None => creds,
        }
    }

    pub(super) fn thread(&self) -> Writer {
        let mut thread = Writer::default().number(1, 0).number(2, 24).number(3, self.nice).number(4, self.policy);
        thread = thread.child(10, self.creds());
        match self.seccomp {
            Some((mode, filter)) => thread.number(11, mode).number(12, filter),
            None => thread,
        }
    }

    pub(super) fn task(&self) -> Writer {
        let limit = |value: u64| Writer::default().number(1, value).number(2, value);
        let mut limits = Writer::default();
        for number in 0..16 {
            limits = limits.child(1, limit(if number == 7 { self.nofile } else { u64::MAX }));
        }
        Writer::default()
            .number(1, self.state)
            .number(2, 0)
            .number(3, 0)
            .number(4, 0)
            .number(5, 0)
            .text(6, "sh")
            .child(8, limits)
            .number(9, self.cgroups)
            .number(14, self.oom_score_adj.cast_unsigned())
    }

    /// The core of a process, whose first thread this is.
    pub(super) fn leader(&self) -> Writer {
        Writer::default().number(1, 1).child(2, Writer::default()).child(3, self.task()).child(5, self.thread())
    }

    /// The core of a further thread.
    pub(super) fn follower(&self) -> Writer {
        Writer::default().number(1, 1).child(2, Writer::default()).child(5, self.thread())
    }
}

/// A mount of the container.
#[derive(Clone)]
pub(super) struct MountEntry {
    pub(super) kind: u64,
    pub(super) id: u64,
    pub(super) device: u64,
    pub(super) parent: u64,
    pub(super) flags: u64,
    pub(super) root: &'static str,
    pub(super) point: &'static str,
    pub(super) external: &'static str,
    pub(super) shared: u64,
    pub(super) master: u64,
}

impl MountEntry {
    pub(super) fn new(kind: u64, id: u64, parent: u64, flags: u64, point: &'static str) -> MountEntry {
        let device = 40 + id;
        MountEntry { kind, id, device, parent, flags, root: "/", point, external: "", shared: 0, master: 0 }
    }

    pub(super) fn external(id: u64, parent: u64, flags: u64, point: &'static str) -> MountEntry {
        MountEntry { external: point, device: 8, root: "/some/file", ..MountEntry::new(0, id, parent, flags, point) }
    }

    pub(super) fn message(&self) -> Writer {
        let entry = Writer::default()
            .number(1, self.kind)
            .number(2, self.id)
            .number(3, self.device)
            .number(4, self.parent)
            .number(5, self.flags)
            .text(6, self.root)
            .text(7, self.point)
            .text(8, "source")
            .text(9, "")
            .number(10, self.shared)
            .number(11, self.master);
        if self.external.is_empty() { entry } else { entry.text(18, self.external) }
    }
}

/// An open file.
pub(super) fn regular(id: u64, name: &str, mount: u64) -> Writer {
    let file = Writer::default().number(1, id).number(2, 0).number(3, 0).child(5, Writer::default()).text(6, name);
    Writer::default().number(1, 1).number(2, id).child(3, file.number(7, mount * 2))
}

pub(super) fn socket(family: u64, kind: u64, protocol: u64, mark: u64) -> Writer {
    let options = Writer::default().number(1, 1).number(2, 1).number(10, mark);
    let socket =
        Writer::default().number(1, 9).number(3, family).number(4, kind).number(5, protocol).child(14, options);
    Writer::default().number(1, 4).number(2, 9).child(4, socket)
}

pub(super) fn cgroup_set(id: u64, name: &str, path: &str, prefix: Option<u64>) -> Writer {
    let member = Writer::default().text(1, name).text(2, path);
    let member = match prefix {
        Some(prefix) => member.number(3, prefix),
        None => member,
    };
    Writer::default().number(1, id).child(2, member)
}

pub(super) fn controller(name: &str, directories: &[Writer]) -> Writer {
    directories.iter().fold(Writer::default().text(1, name), |all, directory| all.child(2, directory.clone()))
}

pub(super) fn directory(name: &str) -> Writer {
    let permissions = Writer::default().number(1, 0o40_755).number(2, 0).number(3, 0);
    Writer::default().text(1, name).child(4, permissions)
}

pub(super) fn cgroups(sets: &[Writer], controllers: &[Writer]) -> Vec<u8> {
    let all = sets.iter().fold(Writer::default(), |all, set| all.child(1, set.clone()));
    let all = controllers.iter().fold(all, |all, controller| all.child(2, controller.clone()));
    file(Magic::Cgroup, &[all])
}

/// Identifiers in the order of the fields 5 to 12: pid, net, ipc, uts, mnt, user, cgroup, time.
pub(super) fn ids(namespaces: [u64; 8]) -> Writer {
    let first = (1..=4).fold(Writer::default(), |ids, field| ids.number(field, 2));
    namespaces.into_iter().zip(5..).fold(first, |ids, (id, field)| ids.number(field, id))
}

pub(super) const HOST: [u64; 8] = [1, 2, 3, 4, 6, 7, 8, 5];
pub(super) const OWN: [u64; 8] = [9, 10, 11, 12, 13, 7, 14, 5];

pub(super) fn inventory(version: u64, module: u64, host: [u64; 8]) -> Vec<u8> {
    let inventory = Writer::default().number(1, version).number(2, 1).child(3, ids(host)).number(4, 1).number(5, 1);
    file(Magic::Inventory, &[inventory.number(6, module)])
}

pub(super) fn process(pid: u64, parent: u64, threads: &[u64]) -> Writer {
    let entry = Writer::default().number(1, pid).number(2, parent).number(3, 6).number(4, 6);
    threads.iter().fold(entry, |entry, thread| entry.number(5, *thread))
}

/// The files of a checkpoint, by their names.
#[derive(Clone)]
pub(super) struct Sample {
    pub(super) files: BTreeMap<String, Vec<u8>>,
    pub(super) mounts: Vec<MountEntry>,
    pub(super) spec: Value,
    pub(super) cgroup: CgroupMode,
    pub(super) had_profile: bool,
    pub(super) is_filtered: bool,
    pub(super) criu: (u32, u32),
    /// What is restored of the cgroups, if it is not what this sample's controllers make.
    pub(super) own_cgroup: Option<Vec<u8>>,
}

impl Sample {
    /// Process 6 with the threads 6 and 7, and its child 23.
    pub(super) fn new() -> Sample {
        let mut sample = Sample {
            files: BTreeMap::new(),
            mounts: vec![
                MountEntry::external(176, 170, 0, "/dev/shm"),
                MountEntry { kind: 23, ..MountEntry::new(23, 175, 169, 0x20_000f, "/sys/fs/cgroup") },
                MountEntry::external(173, 166, 0x400, "/etc/hosts"),
                MountEntry::external(172, 166, 1, "/data"),
                MountEntry::new(14, 171, 170, 0x20_000e, "/dev/mqueue"),
                MountEntry::new(5, 170, 166, 0x100_0002, "/dev"),
                MountEntry::new(6, 174, 170, 0x20_000a, "/dev/pts"),
                MountEntry::new(2, 169, 166, 0x20_000f, "/sys"),
                MountEntry::new(5, 178, 169, 0x20_0001, "/sys/firmware"),
                MountEntry::new(1, 167, 166, 0x20_000e, "/proc"),
                MountEntry::external(179, 167, 0, "/proc/version"),
                MountEntry { root: "/sys", device: 40 + 167, ..MountEntry::new(1, 180, 167, 0x20_000f, "/proc/sys") },
                MountEntry { master: 57, ..MountEntry::new(17, 166, 127, 0x28_0000, "/") },
            ],
            spec: spec(),
            cgroup: CgroupMode::V2,
            had_profile: false,
            is_filtered: false,
            criu: (3, 19),
            own_cgroup: None,
        };
        sample.set("inventory.img", inventory(2, 0, HOST));
        sample.set("pstree.img", file(Magic::Pstree, &[process(6, 0, &[6, 7]), process(23, 6, &[23])]));
        for name in ["ids-6.img", "ids-23.img"] {
            sample.set(name, file(Magic::Ids, &[ids(OWN)]));
        }
        sample.threads(&Thread::root());
        let key = |field: u32, key: &str| Writer::default().text(field, key);
        sample.set("netns-10.img", file(Magic::NetNs, &[key(8, "extRootNetNS")]));
        sample.set("pidns-9.img", file(Magic::PidNs, &[key(1, "extRootPidNS")]));
        sample.set("files.img", file(Magic::Files, &[regular(1, "/bin/busybox", 166), regular(2, "/dev/null", 170)]));
        let descriptor = Writer::default().number(1, 2).number(2, 0).number(3, 1).number(4, 0);
        sample.set("fdinfo-2.img", file(Magic::FdInfo, &[descriptor]));
        let path = format!("/{CGROUP}");
        let set = |id| cgroup_set(id, "", &path, Some(path.len() as u64));
        sample.set("cgroup.img", cgroups(&[set(2), set(3)], &[controller("", &[directory(CGROUP)])]));
        sample.set("seccomp.img", Vec::new());
        for name in ["mm-6.img", "mm-23.img", "pages-1.img", "pagemap-6.img", "timens-0.img", "descriptors.json"] {
            sample.set(name, b"state of the processes".to_vec());
        }
        sample
    }

    pub(super) fn set(&mut self, name: &str, content: Vec<u8>) {
        self.files.insert(name.to_owned(), content);
    }

    /// Makes every thread like this.
    pub(super) fn threads(&mut self, thread: &Thread) {
        self.set("core-6.img", file(Magic::Core, &[thread.leader()]));
        self.set("core-7.img", file(Magic::Core, &[thread.follower()]));
        self.set("core-23.img", file(Magic::Core, &[thread.leader()]));
    }

    /// All files, those of the mounts included.
    pub(super) fn all(&self) -> BTreeMap<String, Vec<u8>> {
        let mut files = self.files.clone();
        let mounts: Vec<Writer> = self.mounts.iter().map(MountEntry::message).collect();
        files.entry("mountpoints-13.img".to_owned()).or_insert_with(|| file(Magic::Mounts, &mounts));
        files
    }

    pub(super) fn verify(&self) -> Result<(), Error> {
        self.rewritten().map(drop)
    }

    /// The files as they are restored.
    pub(super) fn rewritten(&self) -> Result<BTreeMap<String, Vec<u8>>, Error> {
        let dir = TempDir::new().unwrap();
        let (images, rootfs) = (dir.path().join("images"), dir.path().join("rootfs"));
        for path in [&images, &rootfs.join("etc"), &rootfs.join("volumes/data")] {
            fs::create_dir_all(path).unwrap();
        }
        for (name, content) in self.all() {
            fs::write(images.join(name), content).unwrap();
        }
        let circumstances =
            Circumstances { had_profile: self.had_profile, is_filtered: self.is_filtered, criu: self.criu };
        verify(&images, &self.spec, &rootfs, self.cgroup, &circumstances, "c.tar")?;
        // Whatever the archive says, they are put into the container's own.
        if let Ok(cgroup) = fs::read(images.join("cgroup.img")) {
            assert_eq!(cgroup, self.own_cgroup.clone().unwrap_or_else(|| self.own_cgroup()));
        }
        let read = |name: String| {
            let content = fs::read(images.join(&name)).unwrap();
            (name, content)
        };
        let names = fs::read_dir(&images).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        Ok(names.map(read).collect())
    }

    fn own_cgroup(&self) -> Vec<u8> {
        let (own, unified) = ("/pods/4567", self.cgroup == CgroupMode::V2);
        let names: &[&str] = if unified { &[""] } else { &["devices", "name=systemd"] };
        let set = |id, name: &str| cgroup_set(id, name, own, unified.then_some(own.len() as u64));
        let controllers = names.iter().map(|name| controller(name, &[Writer::default().text(1, &own[1..])]));
        let sets = if unified { vec![set(2, ""), set(3, "")] } else { names.iter().map(|name| set(2, name)).collect() };
        let all = controllers.fold(Writer::default(), |all, controller| all.child(2, controller));
        file(Magic::Cgroup, &[sets.into_iter().fold(all, |all, set| all.child(1, set))])
    }

    /// Why it is refused.
    #[track_caller]
    pub(super) fn refusal(&self) -> String {
        match self.verify() {
            Err(Error::Invalid(text)) => text,
            other => panic!("not refused: {other:?}"),
        }
    }

    pub(super) fn mount(&mut self, point: &str) -> &mut MountEntry {
        self.mounts.iter_mut().find(|mount| mount.point == point).unwrap()
    }
}

fn spec() -> Value {
    let capabilities = [
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_SETGID",
        "CAP_SETUID",
        "CAP_SETPCAP",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SYS_CHROOT",
        "CAP_MKNOD",
        "CAP_AUDIT_WRITE",
        "CAP_SETFCAP",
    ];
    let bind = |source: &str, destination: &str, mode: &str| json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", "rprivate", mode]});
    json!({
        "ociVersion": "1.1.0",
        "process": {
            "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
            "args": ["sh"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": false,
            "oomScoreAdj": 0,
        },
        "root": {"path": "rootfs", "readonly": false},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            bind("/pods/hosts", "/etc/hosts", "rw"),
            bind("/pods/shm", "/dev/shm", "rw"),
            bind("/srv/data", "/data", "ro"),
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "linux": {
            "cgroupsPath": "/pods/4567",
            "namespaces": [
                {"type": "mount"}, {"type": "cgroup"}, {"type": "pid", "path": "/proc/9/ns/pid"},
                {"type": "ipc", "path": "/proc/9/ns/ipc"}, {"type": "uts", "path": "/proc/9/ns/uts"},
                {"type": "network", "path": "/run/netns/n"},
            ],
            "maskedPaths": ["/proc/version", "/sys/firmware", "/proc/there-is-no-such-file"],
            "readonlyPaths": ["/proc/sys"],
        },
    })
}

/// Packs files as CheckpointContainer does.
pub(super) fn archive(path: &Path, members: &[(&str, &[u8])]) {
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, content) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        header.set_entry_type(if name.ends_with('/') { tar::EntryType::Directory } else { tar::EntryType::Regular });
        tar.append_data(&mut header, name, *content).unwrap();
    }
    tar.into_inner().unwrap().sync_all().unwrap();
}
