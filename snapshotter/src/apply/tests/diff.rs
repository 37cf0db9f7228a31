//! A layer that was written out and applied again is the same layer.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::Path;

use rustix::fs::XattrFlags;

use super::super::{Error, Limits, Target, Whiteouts, apply, diff};
use super::World;
use super::build::{Tar, tree};
use super::jail::confined;

fn written(upper: &Path) -> Vec<u8> {
    let mut archive = Vec::new();
    diff(upper, &mut archive).unwrap();
    archive
}

/// All that can be seen of every file, but for its inode.
fn looks(root: &Path) -> Vec<String> {
    let line = |name: &String| {
        let path = root.join(name.split(['=', '>']).next().unwrap().trim_end_matches('-'));
        let stat = fs::symlink_metadata(&path).unwrap();
        // Directories change with what is put into them, and nobody sees a whiteout's time.
        let timeless = stat.is_dir() || stat.file_type().is_char_device() && stat.rdev() == 0;
        let time = if timeless { (0, 0) } else { (stat.mtime(), stat.mtime_nsec()) };
        let mut value = [0; 64];
        let read = rustix::fs::lgetxattr(&path, "user.note", &mut value[..]).unwrap_or(0);
        format!("{name} {:o} {}:{} {time:?} {} {:?}", stat.mode(), stat.uid(), stat.gid(), stat.rdev(), &value[..read])
    };
    tree(root).iter().map(line).collect()
}

#[test]
fn privileged_a_layer_is_the_same_after_a_round_trip() {
    confined(|| {
        let mut world = World::new(Whiteouts::Overlay);
        world.below(&Tar::new().dir("gone", 0o755).file("gone/f", "x").file("also", "x").dir("hidden", 0o755));
        let long = format!("{}/{}", "d".repeat(120), "f".repeat(150));
        let layer = Tar::new()
            .file(".wh.gone", "")
            .file(".wh.also", "")
            .dir("hidden", 0o750)
            .file("hidden/.wh..wh..opq", "")
            .file("hidden/new", "n")
            .pax(&[("SCHILY.xattr.user.note", b"a=b\n"), ("mtime", b"7.25")])
            .raw("noted", b'0', "", b"content", |header| {
                header.mode(0o4751);
                header.owner(1000, 1001);
            })
            .hardlink("other", "noted")
            .symlink("link", "/nowhere/at all")
            .node("pipe", b'6', 0, 0)
            .node("null", b'3', 1, 3)
            .pax(&[("path", long.as_bytes())])
            .file("short", "deep");
        world.apply(&layer).unwrap();
        UnixListener::bind(world.root().join("socket")).unwrap();

        let archive = written(&world.root());
        assert_eq!(archive, written(&world.root()));
        let again = World { parents: world.parents.clone(), ..World::new(Whiteouts::Overlay) };
        let target = Target { root: again.root(), parents: again.parents.clone(), whiteouts: Whiteouts::Overlay };
        apply(&mut archive.as_slice(), &target, &Limits::default()).unwrap();
        fs::remove_file(world.root().join("socket")).unwrap();
        assert_eq!(looks(&again.root()), looks(&world.root()));
        assert!(fs::symlink_metadata(again.root().join("gone")).unwrap().file_type().is_char_device());
        let inode = |name: &str| fs::metadata(again.root().join(name)).unwrap().ino();
        assert_eq!(inode("noted"), inode("other"));
        let mut opaque = [0; 2];
        rustix::fs::lgetxattr(again.root().join("hidden"), "trusted.overlay.opaque", &mut opaque[..]).unwrap();
        assert_eq!(opaque[0], b'y');
    });
}

#[test]
fn privileged_links_in_a_layer_are_not_followed() {
    confined(|| {
        let world = World::new(Whiteouts::Remove);
        fs::write(world.dir.path().join("secret"), "secret").unwrap();
        symlink("../secret", world.root().join("file")).unwrap();
        symlink("..", world.root().join("dir")).unwrap();
        let archive = written(&world.root());
        // Only as the target of the link.
        let text = String::from_utf8_lossy(&archive);
        assert_eq!((text.matches("secret").count(), text.contains("../secret")), (1, true));
    });
}

#[test]
fn privileged_a_renamed_directory_of_a_lower_layer_is_refused_by_name() {
    confined(|| {
        let world = World::new(Whiteouts::Overlay);
        let moved = world.root().join("moved");
        fs::create_dir(&moved).unwrap();
        fs::set_permissions(&moved, fs::Permissions::from_mode(0o755)).unwrap();
        rustix::fs::lsetxattr(&moved, "trusted.overlay.redirect", b"/old", XattrFlags::empty()).unwrap();
        let error = diff(&world.root(), &mut Vec::new()).unwrap_err();
        assert!(matches!(&error, Error::Refused { name, .. } if name == "moved"), "{error}");
    });
}
