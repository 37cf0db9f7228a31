//! V-O11 and V-C27: what an archive would mount, keep open, and put its processes into.

use serde_json::json;

use super::{
    privileges::{Change, all, refused, restored},
    sample::*,
};
use crate::{
    checkpoint::image::{Magic, Writer, file},
    host::CgroupMode,
};

fn add(mount: MountEntry) -> Change {
    Box::new(move |sample| sample.mounts.push(mount.clone()))
}

fn change(point: &'static str, change: impl Fn(&mut MountEntry) + 'static) -> Change {
    Box::new(move |sample| change(sample.mount(point)))
}

fn without(point: &'static str) -> Change {
    Box::new(move |sample| sample.mounts.retain(|mount| mount.point != point))
}

#[test]
fn v_o11_mounts_that_the_request_does_not_have_are_refused() {
    refused(vec![
        // A block device, by its name: CRIU's file systems of any name, and the type for what it does not know.
        ("neither the request has it", add(MountEntry::new(16, 200, 166, 0, "/host"))),
        ("neither the request has it", add(MountEntry::new(0, 200, 166, 0, "/host"))),
        (
            "mnt_entry in it has field 14",
            Box::new(|sample| {
                let mut mounts: Vec<Writer> = sample.mounts.iter().map(MountEntry::message).collect();
                let ext4 = MountEntry::new(16, 200, 166, 0, "/data").message().text(14, "ext4");
                mounts.retain(|mount| mount.0 != sample.mounts[3].message().0);
                mounts.push(ext4);
                sample.set("mountpoints-13.img", file(Magic::Mounts, &mounts));
            }),
        ),
        // Of the host: by the key of another mount, by CRIU's own keys, or by none.
        ("it is not the bind mount", change("/data", |mount| mount.external = "/etc/hosts")),
        ("it is not the bind mount", change("/data", |mount| mount.external = "AUTODETECTED_MOUNT")),
        ("it is not the bind mount", change("/data", |mount| mount.external = "dev[8:1]")),
        ("it is not the bind mount", change("/data", |mount| mount.external = "")),
        ("neither the request has it", add(MountEntry::external(200, 166, 0, "/run/docker.sock"))),
        ("neither the request has it", add(MountEntry::external(200, 166, 0, "/host"))),
        ("it is no tmpfs", change("/dev", |mount| mount.kind = 3)),
        ("it is no tmpfs", change("/dev", |mount| mount.external = "/dev")),
        ("it is no proc", change("/proc", |mount| mount.root = "/sys")),
        ("it is no sysfs", change("/sys", |mount| mount.kind = 11)),
        ("it shares its file system with another", change("/dev/mqueue", |mount| mount.device = 40 + 167)),
        ("would be a part of what is from outside", change("/dev", |mount| mount.device = 8)),
        ("it is not the container's root", change("/", |mount| mount.external = "/etc/hosts")),
        ("it is not the container's root", change("/", |mount| mount.kind = 16)),
        (
            "neither the request has it",
            add(MountEntry { root: "/0", ..MountEntry::new(6, 200, 170, 0xa, "/dev/console") }),
        ),
    ]);
    restored(vec![
        (
            "the console of a terminal",
            Box::new(|sample| {
                sample.spec["process"]["terminal"] = json!(true);
                let device = sample.mount("/dev/pts").device;
                let console = MountEntry::new(6, 200, 170, 0xa, "/dev/console");
                sample.mounts.push(MountEntry { root: "/0", device, ..console });
            }),
        ),
        (
            "a destination behind a link of the image",
            Box::new(|sample| {
                // /volumes/data is there in the root; the parts before it are no links, so only the name is spelled anew.
                sample.spec["mounts"][7]["destination"] = json!("/volumes/./data");
                let mount = sample.mount("/data");
                (mount.point, mount.external) = ("/volumes/data", "/volumes/data");
            }),
        ),
    ]);
}

#[test]
fn v_o11_mounts_that_the_request_has_have_to_be_there_as_it_has_them() {
    refused(vec![
        ("it lacks the mount on /data", without("/data")),
        ("it lacks the mount on /proc/version", without("/proc/version")),
        ("it lacks the mount on /proc/sys", without("/proc/sys")),
        ("it lacks the mount on /", without("/")),
        ("the mount on /data: it is not read-only", change("/data", |mount| mount.flags = 0)),
        ("the mount on /proc/sys: it is not read-only", change("/proc/sys", |mount| mount.flags = 0xe)),
        ("the mount on /proc: it is not nosuid", change("/proc", |mount| mount.flags = 0xc)),
        ("the mount on /proc: it is not nodev", change("/proc", |mount| mount.flags = 0xa)),
        ("the mount on /proc: it is not noexec", change("/proc", |mount| mount.flags = 0x6)),
        ("the mount on /sys: it is not read-only", change("/sys", |mount| mount.flags = 0xe)),
        ("the mount on /sys/fs/cgroup: it is not read-only", change("/sys/fs/cgroup", |mount| mount.flags = 0xe)),
        ("flags 0x4001", change("/data", |mount| mount.flags = 0x4001)),
        ("seen outside", change("/data", |mount| mount.shared = 5)),
        ("seen outside", change("/data", |mount| mount.flags |= 1 << 20)),
        ("follow what is mounted outside", change("/data", |mount| mount.master = 5)),
        ("neither the request has it", change("/proc/version", |mount| mount.external = "/etc/hosts")),
        ("neither the request has it", change("/proc/sys", |mount| mount.root = "/")),
        // Covered by the mount that it should be on.
        (
            "the mount on /proc/version: it is not on the mount on /proc",
            change("/proc/version", |mount| mount.parent = 166),
        ),
        ("two mounts are on /data", add(MountEntry::external(200, 172, 1, "/data"))),
        ("have the id 166", change("/data", |mount| mount.id = 166)),
        ("is no path to mount on", change("/data", |mount| mount.point = "/data/../etc")),
        ("is no path to mount on", change("/data", |mount| mount.point = "./data")),
        ("is no path to mount on", change("/data", |mount| mount.point = "/data/")),
        ("the mount on /: it is not read-only", Box::new(|sample| sample.spec["root"]["readonly"] = json!(true))),
        (
            "mountpoints-14.img is of a namespace that no process is in",
            Box::new(|sample| sample.set("mountpoints-14.img", Vec::new())),
        ),
        (
            "made by a plugin",
            Box::new(|sample| {
                let mut mounts: Vec<Writer> = sample.mounts.iter().map(MountEntry::message).collect();
                mounts[3] = sample.mounts[3].message().number(12, 1);
                sample.set("mountpoints-13.img", file(Magic::Mounts, &mounts));
            }),
        ),
    ]);
    restored(vec![(
        "a shared mount that the request asks for",
        Box::new(|sample| {
            sample.spec["mounts"][7]["options"] = json!(["rbind", "rshared", "ro"]);
            sample.mount("/data").shared = 5;
        }),
    )]);
}

#[test]
fn v_c27_open_files_that_take_a_privilege_are_refused() {
    let files =
        |files: Vec<Writer>| -> Change { Box::new(move |sample| sample.set("files.img", file(Magic::Files, &files))) };
    let kind = |kind: u64, field: u32| Writer::default().number(1, kind).number(2, 1).child(field, Writer::default());
    let image =
        |name: &'static str, content: Vec<u8>| -> Change { Box::new(move |sample| sample.set(name, content.clone())) };
    let ghost = |mode: u64| file(Magic::Ghost, &[Writer::default().number(1, 0).number(2, 0).number(3, mode)]);
    let remap = |kind: Option<u64>| {
        let entry = Writer::default().number(1, 1).number(2, 1);
        file(Magic::Remap, &[kind.map_or(entry.clone(), |kind| entry.number(3, kind))])
    };
    refused(vec![
        ("a namespace is open", files(vec![kind(14, 5)])),
        ("a packet socket is open", files(vec![kind(10, 6)])),
        ("a tun device is open", files(vec![kind(15, 11)])),
        ("a file from outside is open", files(vec![kind(16, 15)])),
        ("a BPF map is open", files(vec![kind(19, 21)])),
        ("a fanotify is open", files(vec![kind(12, 14)])),
        ("something of kind 77", files(vec![kind(77, 3)])),
        ("described as something else too (field 5)", files(vec![regular(1, "/x", 166).child(5, Writer::default())])),
        ("lacks field 3", files(vec![Writer::default().number(1, 1).number(2, 1)])),
        ("\"/etc/shadow\" is open from outside", files(vec![regular(1, "/etc/shadow", 999)])),
        ("family 2, type 3, protocol 1", files(vec![socket(2, 3, 1, 0)])),
        ("family 16", files(vec![socket(16, 2, 6, 0)])),
        ("a socket marks its packets", files(vec![socket(2, 1, 6, 7)])),
        ("a netlink socket is open", image("fdinfo-2.img", file(Magic::FdInfo, &[Writer::default().number(3, 13)]))),
        ("a deleted file of mode 104755", image("ghost-file-1.img", ghost(0o104_755))),
        ("a deleted file of mode 60600", image("ghost-file-1.img", ghost(0o060_600))),
        ("a deleted file is kept", image("remap-fpath.img", remap(Some(0)))),
        ("a deleted file is kept", image("remap-fpath.img", remap(None))),
        (
            "a terminal of type 3",
            image("tty-info.img", file(Magic::TtyInfo, &[Writer::default().number(1, 1).number(2, 3)])),
        ),
    ]);
    restored(vec![
        ("sockets of TCP and UDP", files(vec![socket(2, 1, 6, 0), socket(10, 2, 17, 0)])),
        ("pipes", files(vec![kind(2, 18)])),
        ("a deleted file", image("ghost-file-1.img", [ghost(0o100_644), b"its content".to_vec()].concat())),
        ("a deleted file's name", image("remap-fpath.img", remap(Some(1)))),
    ]);
}

#[test]
fn v_c27_other_cgroups_than_the_containers_are_refused() {
    let path = format!("/{CGROUP}");
    let length = path.len() as u64;
    let image = |sets: Vec<Writer>, controllers: Vec<Writer>| -> Change {
        Box::new(move |sample| sample.set("cgroup.img", cgroups(&sets, &controllers)))
    };
    let set = |path: &str, prefix| cgroup_set(2, "", path, prefix);
    let good = || controller("", &[directory(CGROUP)]);
    refused(vec![
        ("\"/\" of controller \"\" is not the container's", image(vec![set("/", Some(1))], vec![good()])),
        ("is not the container's cgroup", image(vec![set("/pods/0123/more", Some(length))], vec![good()])),
        ("is not the container's cgroup", image(vec![cgroup_set(2, "devices", &path, Some(length))], vec![good()])),
        ("not what the request has", image(vec![set(&path, None)], vec![good()])),
        ("not what the request has", image(vec![set(&path, Some(0))], vec![good()])),
        ("a process is in no cgroup", image(vec![Writer::default().number(1, 2)], vec![good()])),
        ("controllers [\"devices\"]", image(vec![set(&path, Some(length))], vec![good(), controller("devices", &[])])),
        ("not all in one cgroup", image(vec![], vec![controller("", &[directory(CGROUP), directory("b")])])),
        ("has others in it", image(vec![], vec![controller("", &[directory(CGROUP).child(2, directory("c"))])])),
        ("is no path of a cgroup", image(vec![], vec![controller("", &[directory("a/../b")])])),
        (
            "written to by others than root",
            image(
                vec![],
                vec![controller(
                    "",
                    &[Writer::default()
                        .text(1, CGROUP)
                        .child(4, Writer::default().number(1, 0o40_755).number(2, 1000).number(3, 0))],
                )],
            ),
        ),
        ("cgroup.img: the checkpoint lacks it", Box::new(|sample| drop(sample.files.remove("cgroup.img")))),
        ("the host's cgroup namespace", all(|thread| thread.cgroups = 1)),
        ("the host's cgroup namespace", all(|thread| thread.cgroups = 0)),
    ]);
    let version_1 = |names: &'static [&'static str]| -> Change {
        Box::new(move |sample| {
            sample.cgroup = CgroupMode::Hybrid;
            let namespaces = sample.spec["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|namespace| namespace["type"] != "cgroup");
            for name in ["ids-6.img", "ids-23.img"] {
                sample.set(name, file(Magic::Ids, &[ids([9, 10, 11, 12, 13, 7, 8, 5])]));
            }
            let path = format!("/{CGROUP}");
            let sets: Vec<Writer> = names.iter().map(|name| cgroup_set(2, name, &path, None)).collect();
            let controllers: Vec<Writer> = names.iter().map(|name| controller(name, &[directory(CGROUP)])).collect();
            sample.set("cgroup.img", cgroups(&sets, &controllers));
        })
    };
    // What the origin's runtime did not use: nobody is put anywhere in it.
    let with = |name: &'static str, cgroup: &'static str| -> Change {
        Box::new(move |sample| {
            version_1(&["devices", "name=systemd"])(sample);
            let path = format!("/{CGROUP}");
            let other = Writer::default().text(1, name).text(2, &format!("/{cgroup}"));
            let sets =
                [cgroup_set(2, "devices", &path, None).child(2, other), cgroup_set(2, "name=systemd", &path, None)];
            let mut controllers =
                ["devices", "name=systemd"].map(|name| controller(name, &[directory(CGROUP)])).to_vec();
            controllers.push(controller(name, &[directory(cgroup)]));
            sample.set("cgroup.img", cgroups(&sets, &controllers));
        })
    };
    // Those that stand together: named one by one, and together where a process is in them.
    let mut joined = Sample::new();
    version_1(&["devices", "name=systemd"])(&mut joined);
    let two = Writer::default().text(1, "cpu").text(1, "cpuacct").child(2, directory(CGROUP));
    let path = format!("/{CGROUP}");
    joined.set("cgroup.img", cgroups(&[cgroup_set(2, "cpu,cpuacct", &path, None)], &[two]));
    let own = Writer::default().text(1, "cpu").text(1, "cpuacct").child(2, Writer::default().text(1, "pods/4567"));
    let set = cgroup_set(2, "cpu,cpuacct", "/pods/4567", None);
    joined.own_cgroup = Some(file(Magic::Cgroup, &[Writer::default().child(2, own).child(1, set)]));
    joined.verify().unwrap();
    restored(vec![
        ("an unknown controller's root", with("misc", "")),
        ("version 2 beside version 1", with("", "system.slice/containerd.service")),
    ]);
    restored(vec![("version 1", version_1(&["devices", "name=systemd"]))]);
    refused(vec![("controllers [\"name=other\"]", version_1(&["devices", "name=other"]))]);
}

/// runc mounts a tmpfs there, and each hierarchy in it read-only; the tmpfs stays writable, whatever the request's options say.
#[test]
fn cgroups_of_version_1_are_mounted_below_a_tmpfs() {
    let version_1 = |flags: u64, hierarchy: u64| {
        let mut sample = Sample::new();
        let tmpfs = sample.mount("/sys/fs/cgroup");
        (tmpfs.kind, tmpfs.flags) = (5, flags);
        let devices = MountEntry::external(201, 175, hierarchy, "/sys/fs/cgroup/devices");
        sample.mounts.push(MountEntry { kind: 12, master: 12, ..devices });
        sample
    };
    version_1(0x20_000e, 0x20_000f).verify().unwrap();
    version_1(0x20_000f, 0x20_000f).verify().unwrap();
    let mut shared = version_1(0x20_000e, 0x20_000f);
    shared.mount("/sys/fs/cgroup/devices").shared = 12;
    assert!(shared.refusal().contains("it is propagated"), "{}", shared.refusal());
    let refusal = version_1(0x20_000e, 0x20_000e).refusal();
    assert!(refusal.contains("the mount on /sys/fs/cgroup/devices: it is not read-only"), "{refusal}");
    let refusal = version_1(0x20_000a, 0x20_000f).refusal();
    assert!(refusal.contains("the mount on /sys/fs/cgroup: it is not nodev"), "{refusal}");
}

/// The other end is gone, and the address is another pod's by now.
#[test]
fn connections_are_restored_closed_and_other_sockets_as_they_are() {
    let connected = |family: u64, kind: u64, protocol: u64, words: usize| {
        let inet = Writer::default().number(1, 9).number(2, 77).number(3, family).number(4, kind).number(5, protocol);
        let inet = inet.number(6, 1).number(7, 40_000).number(8, 443).number(9, 2).number(10, 0);
        let inet = (0..words).fold(inet, |inet, _| inet.number(11, 0x0a00_0001).number(12, 0x0a00_0002));
        let inet =
            inet.child(13, Writer::default()).child(14, Writer::default().number(1, 1).number(2, 1)).number(19, 3);
        Writer::default().number(1, 4).number(2, 9).child(4, inet)
    };
    let closed = |family: u64, words: usize| {
        let inet = Writer::default().number(1, 9).number(2, 77).number(3, family).number(4, 1).number(5, 6);
        let inet = inet.number(9, 2).number(10, 0).child(13, Writer::default());
        let inet = inet.child(14, Writer::default().number(1, 1).number(2, 1)).number(6, 7).number(7, 0).number(8, 0);
        let inet = (0..words).fold(inet, |inet, _| inet.number(11, 0));
        let inet = (0..words).fold(inet, |inet, _| inet.number(12, 0));
        Writer::default().number(1, 4).number(2, 9).child(4, inet)
    };
    let other = [regular(1, "/bin/busybox", 166), socket(2, 1, 6, 0), connected(2, 2, 17, 1)];
    let mut sample = Sample::new();
    sample.set("files.img", file(Magic::Files, &other));
    assert_eq!(sample.rewritten().unwrap()["files.img"], sample.files["files.img"]);
    let mut some = other.to_vec();
    some.extend([connected(2, 1, 6, 1), connected(10, 1, 6, 4)]);
    sample.set("files.img", file(Magic::Files, &some));
    let mut expected = other.to_vec();
    expected.extend([closed(2, 1), closed(10, 4)]);
    assert_eq!(sample.rewritten().unwrap()["files.img"], file(Magic::Files, &expected));
}
