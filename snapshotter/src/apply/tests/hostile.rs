//! Archives that try to reach out of the root.

use rustix::io::Errno;

use super::super::root::Root;
use super::*;

/// Applies the archive in both modes; whatever comes of it, nothing beside the root may change.
fn contained(what: &str, tar: &Tar) {
    for whiteouts in [Whiteouts::Remove, Whiteouts::Overlay] {
        let mut world = World::new(whiteouts);
        if whiteouts == Whiteouts::Overlay {
            world.below(&Tar::new().dir("etc", 0o755).file("etc/passwd", "root"));
        }
        let before = surroundings(&world.root());
        let result = world.apply(tar);
        assert_eq!(surroundings(&world.root()), before, "{what}: {result:?}");
    }
}

#[test]
fn privileged_an_absolute_link_to_a_place_on_the_host_leads_to_one_in_the_root() {
    confined(|| {
        let world = World::new(Whiteouts::Remove);
        let outside = world.dir.path().to_str().unwrap();
        let tar = Tar::new()
            .symlink("l", outside)
            .file("l/canary", "dead")
            .file("l/.wh.canary", "")
            .hardlink("h", "l/canary");
        world.apply(&tar).unwrap();
        assert!(world.canary_lives());
        let inside = world.root().join(outside.trim_start_matches('/')).join("canary");
        assert_eq!(fs::read_to_string(inside).unwrap(), "dead");
    });
}

#[test]
fn privileged_nothing_leads_out_of_the_root() {
    confined(|| {
        let out = "../../canary";
        for (what, tar) in [
            ("a name with ..", Tar::new().file("../canary", "dead").file("a/../../canary", "dead").dir("..", 0o700)),
            (
                "a file through an absolute link",
                Tar::new().symlink("l", "/tmp").file("l/canary", "dead").file("l/.wh..wh..opq", ""),
            ),
            ("a hard link to an absolute name", Tar::new().hardlink("h", "/canary").file("h", "dead")),
            ("an absolute name", Tar::new().file("/canary", "x").file("//canary", "x")),
            ("a file through a link", Tar::new().symlink("l", "..").file("l/canary", "dead")),
            ("a file over a link", Tar::new().symlink("l", "../canary").file("l", "dead")),
            (
                "a chain of links",
                Tar::new().symlink("a", "b").symlink("b", "..").dir("a/c", 0o755).file("a/canary", "dead"),
            ),
            ("a link to itself", Tar::new().symlink("a", "a").file("a/b", "x")),
            ("a dangling link as a parent", Tar::new().symlink("a", "../x/../../y").file("a/b", "x")),
            ("a hard link out", Tar::new().hardlink("h", out).file("h", "dead")),
            ("a hard link through a link", Tar::new().symlink("l", "..").hardlink("h", "l/canary").file("h", "dead")),
            ("a hard link to a link", Tar::new().symlink("l", "../canary").hardlink("h", "l").file("h", "dead")),
            ("a hard link to the root", Tar::new().hardlink("h", ".").hardlink("h", "..").hardlink("h", "/")),
            ("a whiteout through a link", Tar::new().symlink("l", "..").file("l/.wh.canary", "")),
            ("an opaque link", Tar::new().symlink("l", "..").file("l/.wh..wh..opq", "")),
            ("a whiteout of ..", Tar::new().dir("a", 0o755).file("a/.wh...", "")),
            ("a whiteout of the root", Tar::new().file(".wh..", "").file(".wh.", "").file(".wh..wh..opq", "")),
            ("a directory over a link", Tar::new().symlink("l", "..").dir("l", 0o700).file("l/canary", "x")),
            (
                "a link swapped in",
                Tar::new().dir("d", 0o755).file("d/a", "").symlink("d", "..").file("d/canary", "dead"),
            ),
            (
                "procfs",
                Tar::new()
                    .symlink("l", "/proc/self/cwd")
                    .file("l/canary", "x")
                    .symlink("m", "/proc/self/root")
                    .file("m/x", ""),
            ),
        ] {
            contained(what, &tar);
        }
    });
}

#[test]
fn privileged_what_cannot_be_a_name_or_a_number_is_refused() {
    confined(|| {
        let check = |tar: &Tar| {
            let world = World::new(Whiteouts::Remove);
            let error = world.apply(tar).unwrap_err();
            assert!(matches!(error, Error::Refused { .. } | Error::Malformed { .. }), "{error:?}");
            assert_eq!(tree(&world.root()), [""; 0]);
        };
        check(&Tar::new().pax(&[("path", b"a\0b")]).file("x", ""));
        check(&Tar::new().pax(&[("linkpath", b"a\0b")]).symlink("x", "y"));
        check(&Tar::new().pax(&[("path", b"")]).file("x", ""));
        check(&Tar::new().pax(&[("size", b"-1")]).file("x", ""));
        check(&Tar::new().pax(&[("uid", b"4294967295")]).file("x", ""));
        check(&Tar::new().symlink("x", ""));
        check(&Tar::new().hardlink("x", "."));
        check(&Tar::new().file(".wh.", ""));
        check(&Tar::new().file(".wh..", ""));
        check(&Tar::new().raw("x", b'Q', "", b"", |_| {}));
        // Sizes in binary: negative, and one that does not fit 64 bits.
        check(&Tar::new().raw("x", b'0', "", b"", |header| header.bytes(124, &[0xff; 12])));
        check(
            &Tar::new().raw("x", b'0', "", b"", |header| header.bytes(124, &[0x80, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0])),
        );
        // A map of holes that reaches over the end, and one that does not account for the data.
        let sparse = |size: &[u8]| {
            Tar::new().pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", size)])
        };
        check(&sparse(b"3").sparse("x", &[(0, b"four")]));
        check(&sparse(b"100").sparse("x", &[(8, b"later"), (0, b"first")]));
        let mut broken = Tar::new().file("x", "1").bytes();
        broken[0] ^= 1;
        check(&Tar::from(broken));
    });
}

#[test]
fn privileged_a_device_is_never_another_one() {
    confined(|| {
        let half = |at: usize, bytes: [u8; 8]| {
            move |header: &mut build::Header| {
                header.octal(329, 8, 1);
                header.octal(337, 8, 3);
                header.bytes(at, &bytes);
            }
        };
        for kind in [b'3', b'4'] {
            for at in [329, 337] {
                for bytes in [
                    // Two to the power of 32, and one; minus one; two to the power of 55; more than octal digits can be.
                    [0x80, 0, 0, 1, 0, 0, 0, 1],
                    [0xff; 8],
                    [0x80, 0x80, 0, 0, 0, 0, 0, 1],
                    *b"7777777\0",
                    // What the kernel has not: a major of 13 bits, a minor of 21.
                    if at == 329 { *b"0010001\0" } else { *b"4000003\0" },
                ] {
                    let world = World::new(Whiteouts::Remove);
                    let result = world.apply(&Tar::new().raw("x", kind, "", b"", half(at, bytes)));
                    assert!(
                        matches!(result, Err(Error::Refused { .. } | Error::Malformed { .. })),
                        "{at} {bytes:x?}: {result:?}"
                    );
                    assert_eq!(tree(&world.root()), [""; 0]);
                }
            }
        }
        let world = World::new(Whiteouts::Remove);
        world.apply(&Tar::new().node("largest", b'3', 4095, (1 << 20) - 1)).unwrap();
        let found = fs::symlink_metadata(world.root().join("largest")).unwrap().rdev();
        assert_eq!(found, rustix::fs::makedev(4095, (1 << 20) - 1));
    });
}

#[test]
fn privileged_a_list_of_holes_without_an_end_stops_at_the_limit() {
    confined(|| {
        let endless = vec![b'1'; 3 << 20];
        let tar = Tar::new()
            .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"1")])
            .raw("x", b'0', "", &endless, |_| {});
        let world = World::new(Whiteouts::Remove);
        let error = world.apply(&tar).unwrap_err();
        assert!(matches!(error, Error::TooMuch { limit: 1_048_576, .. }), "{error:?}");
    });
}

#[test]
fn privileged_a_tree_deeper_than_the_stack_is_replaced() {
    confined(|| {
        let mut tar = Tar::new();
        let half = "d/".repeat(40);
        // Links shorten the way, so that the tree grows deeper than one path can say.
        tar = tar.dir(format!("top/{half}"), 0o755).symlink("l0", format!("top/{half}"));
        for step in 0..60 {
            tar = tar.dir(format!("l{step}/{half}"), 0o755);
            // Each link is made inside the one before and then stands for it.
            tar = tar.symlink(format!("l{}", step + 1), format!("l{step}/{half}"));
        }
        let world = World::new(Whiteouts::Remove);
        // The chain of links passes what the kernel follows at some point; what was made until then is deep enough.
        let error = world.apply(&tar).unwrap_err();
        assert!(matches!(error, Error::Failed { .. }), "{error:?}");
        world.apply(&Tar::new().file("top", "flat")).unwrap();
        assert_eq!(fs::read_to_string(world.root().join("top")).unwrap(), "flat");
    });
}

/// Applies the archive in both modes to a root in which a directory from beside it is mounted, as `d/m`.
fn contained_by_mounts(what: &str, tar: &Tar) {
    for whiteouts in [Whiteouts::Remove, Whiteouts::Overlay] {
        let mut world = World::new(whiteouts);
        if whiteouts == Whiteouts::Overlay {
            world.below(&Tar::new().dir("d/m", 0o755).file("d/m/canary", "below"));
        }
        let (outside, point) = (world.dir.path().join("outside"), world.root().join("d/m"));
        fs::create_dir_all(outside.join("sub")).unwrap();
        fs::write(outside.join("canary"), "alive").unwrap();
        fs::create_dir_all(&point).unwrap();
        rustix::mount::mount_bind(&outside, &point).unwrap();
        let before = surroundings(&world.root());
        let result = world.apply(tar);
        assert_eq!(surroundings(&world.root()), before, "{what}, {whiteouts:?}: {result:?}");
        rustix::mount::unmount(&point, rustix::mount::UnmountFlags::empty()).unwrap();
    }
}

#[test]
fn privileged_nothing_that_is_mounted_in_the_root_is_touched() {
    confined(|| {
        for (what, tar) in [
            ("a file in it", Tar::new().file("d/m/canary", "dead")),
            ("a directory in it", Tar::new().dir("d/m/new", 0o700)),
            ("its own entry", Tar::new().dir("d/m", 0o700)),
            ("a file in its place", Tar::new().file("d/m", "dead")),
            ("a file in place of the directory above", Tar::new().file("d", "dead")),
            ("a link in place of the directory above", Tar::new().symlink("d", "..")),
            ("a whiteout in it", Tar::new().file("d/m/.wh.canary", "")),
            ("a whiteout of it", Tar::new().file("d/.wh.m", "")),
            ("a whiteout of the directory above", Tar::new().file(".wh.d", "")),
            ("an opaque directory", Tar::new().file("d/m/.wh..wh..opq", "")),
            ("an opaque directory above", Tar::new().file("d/.wh..wh..opq", "")),
            ("an opaque root", Tar::new().file(".wh..wh..opq", "")),
            ("a hard link to a file in it", Tar::new().hardlink("h", "d/m/canary").file("h", "dead")),
            ("a link to it", Tar::new().symlink("l", "d/m").file("l/.wh..wh..opq", "").file("l/x", "dead")),
        ] {
            contained_by_mounts(what, &tar);
        }
    });
}

#[test]
fn privileged_an_absolute_name_is_never_looked_up() {
    confined(|| {
        let world = World::new(Whiteouts::Remove);
        fs::create_dir(world.root().join("tmp")).unwrap();
        let root = Root::open(&world.root()).unwrap();
        assert_eq!(root.plain_directory(b"/tmp").unwrap_err(), Errno::INVAL);
        assert!(root.plain_directory(b"tmp").is_ok());
    });
}
