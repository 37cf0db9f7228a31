//! What is in a snapshot, seen through real mounts where the stack matters.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags};
use windlass_snapshotter::{Labels, layer_dirs};

use super::kit::{Open, World, privately};

pub(crate) fn usage_counts_what_a_snapshot_adds_and_hard_links_once(open: Open) {
    let world = World::new(open);
    world.layer("empty", None, |_| {});
    world.layer("full", None, |top| {
        fs::write(top.join("file"), vec![7; 1 << 20]).unwrap();
        fs::hard_link(top.join("file"), top.join("again")).unwrap();
    });
    let usage = |key| world.snapshots.usage(&world.ns, key).unwrap();
    let (empty, full) = (usage("empty"), usage("full"));
    assert_eq!((empty.inodes, full.inodes), (1, 2));
    let added = full.bytes - empty.bytes;
    assert!((1 << 20..(1 << 20) + (64 << 10)).contains(&added), "{added}");

    let mounts = world.prepare("active", Some("empty")).unwrap();
    let before = usage("active");
    fs::write(layer_dirs(&mounts).unwrap().upper.join("new"), "x").unwrap();
    assert_eq!(usage("active").inodes, before.inodes + 1);
}

pub(crate) fn a_removed_snapshot_leaves_no_directory(open: Open) {
    let world = World::new(open);
    world.layer("base", None, |top| {
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::write(top.join("a/b/c"), "c").unwrap();
        symlink("/etc", top.join("a/link")).unwrap();
    });
    world.prepare("active", Some("base")).unwrap();
    world.snapshots.view(&world.ns, "view", Some("base"), &Labels::new()).unwrap();
    for key in ["view", "active", "base"] {
        world.snapshots.remove(&world.ns, key).unwrap();
    }
    assert_eq!(world.directories(), Vec::<String>::new());
    assert!(Path::new("/etc/passwd").exists());
}

pub(crate) fn the_root_looks_like_its_parents(open: Open) {
    let world = World::new(open);
    world.layer("base", None, |top| {
        assert_eq!(fs::metadata(top).unwrap().mode() & 0o7777, 0o755);
        fs::set_permissions(top, Permissions::from_mode(0o1750)).unwrap();
    });
    let mounts = world.prepare("active", Some("base")).unwrap();
    let top = layer_dirs(&mounts).unwrap().upper;
    assert_eq!(fs::metadata(top).unwrap().mode() & 0o7777, 0o1750);
}

/// Every file below `top` with its text.
fn texts(top: &Path) -> BTreeMap<String, String> {
    let read = |entry: Result<fs::DirEntry, _>| {
        let entry = entry.unwrap();
        (entry.file_name().into_string().unwrap(), fs::read_to_string(entry.path()).unwrap())
    };
    fs::read_dir(top).unwrap().map(read).collect()
}

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

pub(crate) fn privileged_a_chain_shows_the_top_of_each_file(open: Open) {
    privately(open, |world| {
        world.layer("one", None, |top| {
            for name in ["a", "b", "c", "gone"] {
                fs::write(top.join(name), "one").unwrap();
            }
        });
        let mounts = world.prepare("unpack", Some("one")).unwrap();
        let top = world.mount("two", &mounts);
        fs::write(top.join("b"), "two").unwrap();
        fs::write(top.join("c"), "two").unwrap();
        fs::remove_file(top.join("gone")).unwrap();
        world.snapshots.commit(&world.ns, "two", "unpack", &Labels::new()).unwrap();
        let mounts = world.prepare("rw", Some("two")).unwrap();
        let top = world.mount("three", &mounts);
        fs::write(top.join("c"), "three").unwrap();

        assert_eq!(texts(&top), map(&[("a", "one"), ("b", "two"), ("c", "three")]));
        let mounts = world.snapshots.view(&world.ns, "ro", Some("two"), &Labels::new()).unwrap();
        assert_eq!(texts(&world.mount("view", &mounts)), map(&[("a", "one"), ("b", "two"), ("c", "two")]));
        let mounts = world.snapshots.view(&world.ns, "ro-one", Some("one"), &Labels::new()).unwrap();
        let one = map(&[("a", "one"), ("b", "one"), ("c", "one"), ("gone", "one")]);
        assert_eq!(texts(&world.mount("view-one", &mounts)), one);
    });
}

pub(crate) fn privileged_two_children_do_not_see_each_other(open: Open) {
    privately(open, |world| {
        world.layer("base", None, |top| fs::write(top.join("file"), "base").unwrap());
        let tops = ["left", "right"].map(|key| world.mount(key, &world.prepare(key, Some("base")).unwrap()));
        fs::write(tops[0].join("file"), "left").unwrap();
        fs::write(tops[0].join("more"), "left").unwrap();

        assert_eq!(texts(&tops[0]), map(&[("file", "left"), ("more", "left")]));
        assert_eq!(texts(&tops[1]), map(&[("file", "base")]));
    });
}

pub(crate) fn privileged_a_view_cannot_be_written(open: Open) {
    privately(open, |world| {
        world.layer("one", None, |top| fs::write(top.join("file"), "1").unwrap());
        world.layer("two", Some("one"), |top| fs::write(top.join("other"), "2").unwrap());
        for (key, parent) in [("of-none", None), ("of-one", Some("one")), ("of-two", Some("two"))] {
            let mounts = world.snapshots.view(&world.ns, key, parent, &Labels::new()).unwrap();
            let top = world.mount(key, &mounts);
            let error = fs::write(top.join("file"), "x").unwrap_err();
            assert_eq!(error.kind(), ErrorKind::ReadOnlyFilesystem, "{key}");
        }
    });
}

pub(crate) fn privileged_everything_about_a_file_is_seen_in_a_child(open: Open) {
    privately(open, |world| {
        world.layer("base", None, fill_with_all_sorts);
        let top = world.mount("child", &world.prepare("child", Some("base")).unwrap());
        let meta = |name: &str| fs::symlink_metadata(top.join(name)).unwrap();

        assert_eq!((meta("suid").mode() & 0o7777, meta("suid").uid(), meta("suid").gid()), (0o6755, 12, 34));
        assert_eq!((meta("suid").mtime(), meta("suid").mtime_nsec()), (1_000_000_000, 123_456_789));
        let mut value = [0; 16];
        let len = rustix::fs::lgetxattr(top.join("suid"), "trusted.test", &mut value[..]).unwrap();
        assert_eq!(&value[..len], b"\0value\xff");
        assert_eq!(fs::read_link(top.join("link")).unwrap(), Path::new("/no/where"));
        assert_eq!((meta("link").uid(), meta("link").mtime()), (56, 1_000_000_000));
        assert_eq!((meta("null").file_type().is_char_device(), meta("null").rdev()), (true, rustix::fs::makedev(1, 3)));
        assert!(meta("pipe").file_type().is_fifo());
        assert_eq!((meta("dir").mode() & 0o7777, meta("dir").mtime()), (0o2700, 1_000_000_000));
        assert_eq!((meta("hard").nlink(), meta("hard").ino()), (2, meta("dir/hard").ino()));
        let sparse = fs::read(top.join("sparse")).unwrap();
        assert_eq!((sparse.len(), &sparse[4 << 20..(4 << 20) + 3]), (8 << 20, &b"mid"[..]));
        assert!(meta("sparse").blocks() * 512 < 1 << 20, "{} blocks", meta("sparse").blocks());
    });
}

fn fill_with_all_sorts(top: &Path) {
    let path = |name: &str| top.join(name);
    fs::write(path("suid"), "#!").unwrap();
    lchown(path("suid"), Some(12), Some(34)).unwrap();
    fs::set_permissions(path("suid"), Permissions::from_mode(0o6755)).unwrap();
    rustix::fs::lsetxattr(path("suid"), "trusted.test", b"\0value\xff", XattrFlags::empty()).unwrap();
    symlink("/no/where", path("link")).unwrap();
    lchown(path("link"), Some(56), Some(56)).unwrap();
    let device = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(CWD, path("null"), FileType::CharacterDevice, Mode::from_raw_mode(0o666), device).unwrap();
    rustix::fs::mknodat(CWD, path("pipe"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
    fs::create_dir(path("dir")).unwrap();
    fs::write(path("hard"), "hard").unwrap();
    fs::hard_link(path("hard"), path("dir/hard")).unwrap();
    fs::set_permissions(path("dir"), Permissions::from_mode(0o2700)).unwrap();
    let sparse = fs::File::create(path("sparse")).unwrap();
    sparse.set_len(8 << 20).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"mid", 4 << 20).unwrap();
    let time = Timespec { tv_sec: 1_000_000_000, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time, last_modification: time };
    for name in ["suid", "link", "dir"] {
        rustix::fs::utimensat(CWD, path(name), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    }
}

pub(crate) fn privileged_a_hundred_layers_can_be_mounted(open: Open) {
    privately(open, |world| {
        // A long root makes the list of lower directories several pages.
        let dir = world.dir.join("long".repeat(30));
        fs::create_dir(&dir).unwrap();
        let world = World::at(open, dir);
        let names: Vec<String> = (0..100).map(|n| format!("layer-{n:03}")).collect();
        for (n, name) in names.iter().enumerate() {
            let parent = n.checked_sub(1).map(|below| names[below].as_str());
            world.layer(name, parent, |top| fs::write(top.join(name), name).unwrap());
        }
        let top = world.mount("rootfs", &world.prepare("rw", Some("layer-099")).unwrap());
        let want: BTreeMap<_, _> = names.iter().map(|name| (name.clone(), name.clone())).collect();
        assert_eq!(texts(&top), want);
        fs::write(top.join("layer-000"), "new").unwrap();
        assert_eq!(fs::read_to_string(top.join("layer-000")).unwrap(), "new");
    });
}
