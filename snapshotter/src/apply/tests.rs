//! Layers that behave and layers that do not. Each is applied in a jail, so that a mistake costs nothing.

mod build;
mod diff;
mod differential;
mod endless;
mod gnu;
mod headers;
mod hostile;
mod jail;
mod made_up;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use super::{Applied, Error, Limits, Target, Whiteouts, apply, apply_ahead};
use build::{Tar, tree};
use jail::{assert_confined, confined, surroundings};

/// A directory to apply to, with a canary beside it. There are none outside a jail.
struct World {
    dir: tempfile::TempDir,
    whiteouts: Whiteouts,
    parents: Vec<std::path::PathBuf>,
}

impl World {
    fn new(whiteouts: Whiteouts) -> World {
        assert_confined();
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        fs::create_dir(dir.path().join("root")).unwrap();
        fs::write(dir.path().join("canary"), "alive").unwrap();
        World { dir, whiteouts, parents: Vec::new() }
    }

    fn root(&self) -> std::path::PathBuf {
        self.dir.path().join("root")
    }

    /// Adds a layer below the others.
    fn below(&mut self, tar: &Tar) {
        let path = self.dir.path().join(format!("below{}", self.parents.len()));
        fs::create_dir(&path).unwrap();
        let target = Target { root: path.clone(), parents: Vec::new(), whiteouts: Whiteouts::Overlay };
        apply(&mut tar.bytes().as_slice(), &target, &Limits::default()).unwrap();
        self.parents.push(path);
    }

    fn apply(&self, tar: &Tar) -> Result<Applied, Error> {
        self.apply_within(tar, &Limits::default())
    }

    fn apply_within(&self, tar: &Tar, limits: &Limits) -> Result<Applied, Error> {
        let target = Target { root: self.root(), parents: self.parents.clone(), whiteouts: self.whiteouts };
        apply(&mut tar.bytes().as_slice(), &target, limits)
    }

    fn canary_lives(&self) -> bool {
        fs::read_to_string(self.dir.path().join("canary")).is_ok_and(|text| text == "alive")
    }
}

fn check(tar: &Tar, expected: &[&str]) {
    let world = World::new(Whiteouts::Remove);
    world.apply(tar).unwrap();
    assert_eq!(tree(&world.root()), expected);
    assert!(world.canary_lives());
}

#[test]
fn privileged_every_kind_of_entry_is_made() {
    confined(|| {
        let world = World::new(Whiteouts::Remove);
        let applied = world
            .apply(
                &Tar::new()
                    .dir("d", 0o711)
                    .file("d/f", "hello")
                    .symlink("d/s", "f")
                    .hardlink("d/h", "d/f")
                    .node("p", b'6', 0, 0)
                    .node("c", b'3', 1, 3)
                    .node("b", b'4', 7, 0),
            )
            .unwrap();
        // The content of the file, and the target of the link.
        assert_eq!(applied, Applied { bytes: 6, inodes: 6 });
        assert_eq!(tree(&world.root()), ["b", "c", "d/", "d/f=hello", "d/h=hello", "d/s->f", "p"]);
        let meta = |name: &str| fs::symlink_metadata(world.root().join(name)).unwrap();
        assert_eq!(meta("d/f").ino(), meta("d/h").ino());
        assert!(meta("p").file_type().is_fifo());
        assert!(meta("c").file_type().is_char_device());
        assert_eq!(meta("c").rdev(), rustix::fs::makedev(1, 3));
        assert!(meta("b").file_type().is_block_device());
        assert_eq!(meta("d").permissions().mode() & 0o7777, 0o711);
    });
}

#[test]
fn privileged_owner_set_id_bits_capabilities_and_times_are_kept() {
    confined(|| {
        let world = World::new(Whiteouts::Remove);
        let capability = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
        let tar = Tar::new()
            .pax(&[("mtime", b"1700000000.123456789"), ("SCHILY.xattr.security.capability", capability)])
            .raw("bin/su", b'0', "", b"x", |h| {
                h.mode(0o4755);
                h.owner(1234, 567);
            })
            .dir("bin", 0o1777);
        world.apply(&tar).unwrap();
        let meta = fs::metadata(world.root().join("bin/su")).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (1234, 567, 0o4755));
        assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_700_000_000, 123_456_789));
        let mut value = [0; 64];
        let len = rustix::fs::getxattr(world.root().join("bin/su"), "security.capability", &mut value[..]).unwrap();
        assert_eq!(&value[..len], capability);
        let bin = fs::metadata(world.root().join("bin")).unwrap();
        assert_eq!((bin.mode() & 0o7777, bin.mtime()), (0o1777, build::MTIME));
    });
}

#[test]
fn privileged_times_that_no_clock_tells_are_those_of_1970() {
    confined(|| {
        let world = World::new(Whiteouts::Remove);
        let times =
            ["-1", "-1234567890.5", "253402300799", "9223372037", "18446744073709551616", "soon", "9223372036.5"];
        let tar = times.iter().enumerate().fold(Tar::new(), |tar, (position, time)| {
            tar.pax(&[("mtime", time.as_bytes())]).file(format!("{position}"), "")
        });
        world.apply(&tar).unwrap();
        let found = (0..times.len()).map(|position| fs::metadata(world.root().join(position.to_string())).unwrap());
        // What cannot be read leaves the time of the older header.
        let expected = [0, 0, 0, 0, build::MTIME, build::MTIME, 9_223_372_036];
        assert_eq!(found.map(|meta| meta.mtime()).collect::<Vec<_>>(), expected);
    });
}

#[test]
fn privileged_notes_of_overlayfs_in_an_archive_are_dropped() {
    confined(|| {
        let world = World::new(Whiteouts::Remove);
        let tar = Tar::new()
            .pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc"), ("SCHILY.xattr.trusted.kept", b"yes")])
            .dir("d", 0o755);
        world.apply(&tar).unwrap();
        let mut names = [0; 256];
        let len = rustix::fs::listxattr(world.root().join("d"), &mut names[..]).unwrap();
        assert_eq!(&names[..len], b"trusted.kept\0");
    });
}

#[test]
fn privileged_long_names_of_both_formats_are_read() {
    confined(|| {
        let long = format!("{}/{}", "d".repeat(180), "f".repeat(200));
        let mut gnu = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        header.set_mode(0o644);
        gnu.append_data(&mut header, &long, &b"ok"[..]).unwrap();
        let expected = [format!("{}/", "d".repeat(180)), format!("{long}=ok")];
        let expected: Vec<&str> = expected.iter().map(String::as_str).collect();
        check(&Tar::from(gnu.into_inner().unwrap()), &expected);
        check(&Tar::new().pax(&[("path", long.as_bytes())]).file("short", "ok"), &expected);
    });
}

#[test]
fn privileged_a_sparse_file_has_its_holes() {
    confined(|| {
        let world = World::new(Whiteouts::Remove);
        let tar = Tar::new()
            .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"1048576")])
            .sparse("holes", &[(4096, b"middle"), (1_048_576, b"")]);
        world.apply(&tar).unwrap();
        let content = fs::read(world.root().join("holes")).unwrap();
        assert_eq!(content.len(), 1 << 20);
        assert_eq!(&content[4096..4102], b"middle");
        assert!(content[4102..].iter().all(|byte| *byte == 0));
        assert!(fs::metadata(world.root().join("holes")).unwrap().blocks() < 64);
    });
}

#[test]
fn privileged_a_later_entry_replaces_an_earlier_one_of_any_type() {
    confined(|| {
        check(&Tar::new().file("a", "1").file("a", "2"), &["a=2"]);
        check(&Tar::new().file("a", "1").dir("a", 0o755).file("a/b", "x"), &["a/", "a/b=x"]);
        check(&Tar::new().dir("a", 0o755).file("a/b/c", "x").file("a", "file"), &["a=file"]);
        check(&Tar::new().dir("a", 0o755).file("a/b", "x").symlink("a", "b"), &["a->b"]);
        check(&Tar::new().dir("a", 0o700).file("a/b", "x").dir("a", 0o755), &["a/", "a/b=x"]);
        check(&Tar::new().file("a", "1").hardlink("a", "a"), &["a=1"]);
    });
}

#[test]
fn privileged_a_replaced_parent_is_looked_up_again() {
    confined(|| {
        let tar = Tar::new().dir("a", 0o755).file("a/1", "").dir("b", 0o755).symlink("a", "b").file("a/2", "");
        check(&tar, &["a->b", "b/", "b/2="]);
    });
}

#[test]
fn privileged_whiteouts_remove_what_was_there_and_not_what_the_layer_brings() {
    confined(|| {
        let prepare = || {
            let world = World::new(Whiteouts::Remove);
            fs::create_dir_all(world.root().join("d/old/deep")).unwrap();
            fs::write(world.root().join("d/old/deep/file"), "old").unwrap();
            fs::write(world.root().join("d/file"), "old").unwrap();
            world
        };
        let check = |tar: &Tar, expected: &[&str]| {
            let world = prepare();
            world.apply(tar).unwrap();
            assert_eq!(tree(&world.root()), expected);
        };
        check(&Tar::new().file("d/.wh.old", ""), &["d/", "d/file=old"]);
        check(
            &Tar::new().file("d/.wh.absent", ""),
            &["d/", "d/file=old", "d/old/", "d/old/deep/", "d/old/deep/file=old"],
        );
        check(&Tar::new().file("d/.wh..wh..opq", "").file("d/new", "1"), &["d/", "d/new=1"]);
        check(&Tar::new().file("d/new", "1").file("d/.wh..wh..opq", ""), &["d/", "d/new=1"]);
        check(
            &Tar::new().file("d/old/deep/new", "1").file("d/.wh.old", ""),
            &["d/", "d/file=old", "d/old/", "d/old/deep/", "d/old/deep/new=1"],
        );
        check(
            &Tar::new().file("d/file", "new").file("d/.wh.file", "").file(".wh..wh.plnk", ""),
            &["d/", "d/file=new", "d/old/", "d/old/deep/", "d/old/deep/file=old"],
        );
        check(&Tar::new().file(".wh.d", ""), &[]);
        // A name of a file of the layers below that this layer brings stays, and the name below goes.
        for tar in [
            Tar::new().hardlink("e/again", "d/file").file(".wh.d", "").file("e/.wh..wh..opq", ""),
            Tar::new()
                .hardlink("e/again", "d/file")
                .file("e/.wh.again", "")
                .file("d/.wh..wh..opq", "")
                .file(".wh.d", ""),
        ] {
            check(&tar, &["e/", "e/again=old"]);
        }
    });
}

#[test]
fn privileged_whiteouts_become_those_of_overlayfs() {
    confined(|| {
        let mut world = World::new(Whiteouts::Overlay);
        world.below(&Tar::new().dir("gone", 0o755).dir("opaque", 0o750).file("opaque/x", "").dir("back", 0o755));
        let tar = Tar::new()
            .file(".wh.gone", "")
            .file("opaque/.wh..wh..opq", "")
            .file(".wh.back", "")
            .dir("back", 0o755)
            .file("kept", "1")
            .file(".wh.kept", "");
        world.apply(&tar).unwrap();
        assert_eq!(tree(&world.root()), ["back/", "gone", "kept=1", "opaque/"]);
        let gone = fs::symlink_metadata(world.root().join("gone")).unwrap();
        assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
        for name in ["opaque", "back"] {
            let mut value = [0; 8];
            let len = rustix::fs::getxattr(world.root().join(name), "trusted.overlay.opaque", &mut value[..]).unwrap();
            assert_eq!(&value[..len], b"y", "{name}");
        }
        assert_eq!(fs::metadata(world.root().join("opaque")).unwrap().mode() & 0o7777, 0o750);
    });
}

#[test]
fn privileged_parents_left_out_look_like_those_below() {
    confined(|| {
        let mut world = World::new(Whiteouts::Overlay);
        world.below(&Tar::new().raw("a", b'5', "", b"", |h| {
            h.mode(0o2750);
            h.owner(11, 22);
        }));
        world.apply(&Tar::new().file("a/b/c", "")).unwrap();
        let meta = fs::metadata(world.root().join("a")).unwrap();
        assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777, meta.mtime()), (11, 22, 0o2750, build::MTIME));
        assert_eq!(fs::metadata(world.root().join("a/b")).unwrap().mode() & 0o7777, 0o755);
    });
}

#[test]
fn privileged_a_hard_link_to_a_file_below_copies_it() {
    confined(|| {
        let mut world = World::new(Whiteouts::Overlay);
        world.below(&Tar::new().dir("a", 0o700).file("a/f", "content"));
        world.apply(&Tar::new().hardlink("b", "a/f")).unwrap();
        assert_eq!(tree(&world.root()), ["a/", "a/f=content", "b=content"]);
        let ino = |name: &str| fs::metadata(world.root().join(name)).unwrap().ino();
        assert_eq!(ino("a/f"), ino("b"));

        let mut hidden = World::new(Whiteouts::Overlay);
        hidden.below(&Tar::new().file(".wh.f", ""));
        hidden.below(&Tar::new().file("f", "secret"));
        let error = hidden.apply(&Tar::new().hardlink("b", "f")).unwrap_err();
        assert!(matches!(error, Error::Refused { ref name, .. } if name == "f"), "{error}");
    });
}

#[test]
fn privileged_a_layer_that_is_ahead_asks_for_those_below_only_when_it_needs_them() {
    confined(|| {
        let mut world = World::new(Whiteouts::Overlay);
        world.below(&Tar::new().dir("a", 0o700).file("a/f", "content"));
        let ahead = |tar: &Tar| {
            let target = Target { root: world.root(), parents: Vec::new(), whiteouts: Whiteouts::Overlay };
            let asked = std::cell::Cell::new(0);
            let below = Box::new(|| {
                asked.set(asked.get() + 1);
                Ok(world.parents.clone())
            });
            apply_ahead(&mut tar.bytes().as_slice(), &target, below, &Limits::default()).unwrap();
            asked.get()
        };
        assert_eq!(
            ahead(&Tar::new().dir("d", 0o755).file("d/new", "1").file("d/.wh.gone", "").hardlink("e", "d/new")),
            0
        );
        assert_eq!(ahead(&Tar::new().hardlink("b", "a/f").file("a/g", "").file("c/x", "")), 1);
        assert_eq!(
            tree(&world.root()),
            ["a/", "a/f=content", "a/g=", "b=content", "c/", "c/x=", "d/", "d/gone", "d/new=1", "e=1"]
        );
        assert_eq!(fs::metadata(world.root().join("a")).unwrap().mode() & 0o7777, 0o700);

        let target = Target { root: world.root(), parents: Vec::new(), whiteouts: Whiteouts::Overlay };
        let lost = Box::new(|| Err(Error::Read { source: std::io::ErrorKind::BrokenPipe.into() }));
        let tar = Tar::new().hardlink("again", "a/lost").bytes();
        let error = apply_ahead(&mut tar.as_slice(), &target, lost, &Limits::default()).unwrap_err();
        assert!(matches!(error, Error::Read { .. }), "{error}");
    });
}

#[test]
fn privileged_limits_end_the_work() {
    confined(|| {
        let limits = Limits { bytes: 10, inodes: 3, header_bytes: 4096, path_bytes: 300 };
        let within = |tar: &Tar| match World::new(Whiteouts::Remove).apply_within(tar, &limits) {
            Err(Error::TooMuch { what, limit }) => format!("{what} {limit}"),
            Err(Error::Malformed { .. }) => "malformed".to_owned(),
            other => panic!("{other:?}"),
        };
        assert_eq!(within(&Tar::new().file("a", "0123456789").file("b", "0")), "bytes of files 10");
        assert_eq!(within(&Tar::new().file("a", "").file("b", "").file("c", "").file("d", "")), "entries 3");
        assert_eq!(within(&Tar::new().file("a/b/c/d", "")), "files 3");
        assert_eq!(within(&Tar::new().pax(&[("path", "x".repeat(301).as_bytes())]).file("a", "")), "malformed");
        assert_eq!(within(&Tar::new().pax(&[("comment", &[b'x'; 5000])]).file("a", "")), "malformed");
        assert_eq!(within(&Tar::new().after_the_end(&[0; 4096])), "bytes after its end 10");
    });
}

#[test]
fn privileged_a_stream_cut_anywhere_is_an_error_or_ends_between_entries() {
    confined(|| {
        let whole = Tar::new().pax(&[("comment", b"x")]).file("a", "content").bytes();
        // Blocks: two of the extended header, one header, one of content, two at the end. The padding of the content and the
        // second block at the end may be missing.
        let content_ends = 3 * 512 + "content".len();
        for len in 1..whole.len() {
            let world = World::new(Whiteouts::Remove);
            let result = world.apply(&Tar::from(whole[..len].to_vec()));
            let may_end = (content_ends..=4 * 512).contains(&len) || len == 5 * 512;
            match may_end {
                true => assert_eq!(result.unwrap(), Applied { bytes: 7, inodes: 1 }, "{len}"),
                false => assert!(matches!(result, Err(Error::Malformed { .. })), "{len}: {result:?}"),
            }
        }
    });
}

#[test]
fn privileged_a_stream_that_fails_is_told_from_a_bad_archive() {
    confined(|| {
        struct Broken;
        impl std::io::Read for Broken {
            fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::ConnectionReset.into())
            }
        }
        let world = World::new(Whiteouts::Remove);
        let target = Target { root: world.root(), parents: Vec::new(), whiteouts: Whiteouts::Remove };
        let error = apply(&mut Broken, &target, &Limits::default()).unwrap_err();
        assert!(matches!(error, Error::Read { ref source } if source.kind() == std::io::ErrorKind::ConnectionReset));
    });
}

#[test]
fn privileged_links_in_the_root_are_followed_inside_it() {
    confined(|| {
        let world = World::new(Whiteouts::Remove);
        fs::create_dir_all(world.root().join("usr/bin")).unwrap();
        symlink("/windlass-test", world.root().join("link")).unwrap();
        symlink("usr/bin", world.root().join("windlass-test")).unwrap();
        world.apply(&Tar::new().file("link/tool", "1")).unwrap();
        assert_eq!(
            tree(&world.root()),
            ["link->/windlass-test", "usr/", "usr/bin/", "usr/bin/tool=1", "windlass-test->usr/bin"]
        );
    });
}
