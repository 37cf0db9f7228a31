//! The layers that are compared: by hand, and of GNU tar.

use std::path::Path;
use std::process::Command;

use super::super::{build::Tar, gnu};

/// How the layers of one image are called and what is in them, bottom first.
pub(super) struct Case {
    pub(super) name: &'static str,
    pub(super) layers: Vec<Vec<u8>>,
    /// A layer of a stack is applied without the links of those below, as containerd does, and umoci has but one directory.
    pub(super) is_stacked_otherwise: bool,
}

fn case(name: &'static str, layers: Vec<Tar>) -> Case {
    Case { name, layers: layers.iter().map(Tar::bytes).collect(), is_stacked_otherwise: false }
}

pub(super) fn cases() -> Vec<Case> {
    let base = || {
        Tar::new()
            .dir("d", 0o755)
            .dir("d/sub", 0o700)
            .file("d/sub/deep", "deep")
            .file("d/one", "1")
            .file("d/two", "2")
            .symlink("d/link", "one")
            .dir("e", 0o755)
            .file("e/x", "x")
            .file("f", "f")
    };
    let capability: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let owned = |tar: Tar, name: &str, kind: u8, mode: u32, uid: u32, gid: u32| {
        tar.raw(name, kind, "", if kind == b'0' { b"content" } else { b"" }, |header| {
            header.mode(mode);
            header.owner(uid, gid);
        })
    };
    let mut modes = Tar::new();
    for (position, mode) in
        [0, 0o1, 0o111, 0o444, 0o644, 0o755, 0o1755, 0o2755, 0o4755, 0o6711, 0o7777].iter().enumerate()
    {
        modes = owned(modes, &format!("f{position}"), b'0', *mode, 1000 + position as u32, 65_534);
        modes = owned(modes, &format!("d{position}"), b'5', *mode, 0, position as u32);
        modes = modes.file(format!("d{position}/inner"), "in a directory of any mode");
    }
    let mut times = Tar::new();
    for (position, time) in ["0", "1", "1.5", "1234567890.123456789", "4102444800", "1.000000001"].iter().enumerate() {
        times = times.pax(&[("mtime", time.as_bytes())]).file(format!("f{position}"), "");
        times = times.pax(&[("mtime", time.as_bytes())]).dir(format!("d{position}"), 0o755);
        times = times.pax(&[("mtime", time.as_bytes())]).symlink(format!("l{position}"), "nowhere");
    }
    let long = format!("{}/{}", "n".repeat(200), "m".repeat(250));
    vec![
        case("one layer", vec![base()]),
        case("modes and owners", vec![modes]),
        case("times", vec![times]),
        case(
            "devices and pipes",
            vec![
                Tar::new()
                    .node("p", b'6', 0, 0)
                    .node("c", b'3', 1, 3)
                    .node("b", b'4', 7, 4095)
                    .node("big", b'3', 511, 70_000),
            ],
        ),
        case(
            "attributes",
            vec![
                Tar::new()
                    .pax(&[("SCHILY.xattr.security.capability", capability), ("SCHILY.xattr.trusted.one", b"\0\xff")])
                    .file("f", "x")
                    .pax(&[("SCHILY.xattr.trusted.two", b"2")])
                    .dir("d", 0o755),
                Tar::new().pax(&[("SCHILY.xattr.trusted.three", b"3")]).dir("d", 0o700).file("f", "no more capability"),
            ],
        ),
        case(
            "files deleted",
            vec![base(), Tar::new().file("d/.wh.one", "").file("d/.wh.absent", "").file(".wh.f", "")],
        ),
        case("a directory deleted", vec![base(), Tar::new().file(".wh.d", "")]),
        case(
            "deleted and made again",
            vec![base(), Tar::new().file(".wh.d", ""), Tar::new().dir("d", 0o711).file("d/new", "")],
        ),
        case(
            "deleted and made again in one layer",
            vec![base(), Tar::new().file(".wh.d", "").dir("d", 0o711).file("d/new", "")],
        ),
        case(
            "made and deleted in one layer",
            vec![base(), Tar::new().dir("d", 0o711).file("d/new", "").file(".wh.f", "").file("f", "new")],
        ),
        case(
            "opaque, then more",
            vec![base(), Tar::new().dir("d", 0o750).file("d/.wh..wh..opq", "").file("d/new", "new")],
        ),
        case(
            "more, then opaque",
            vec![base(), Tar::new().dir("d", 0o750).file("d/new", "new").file("d/.wh..wh..opq", "")],
        ),
        case(
            "opaque below what stays",
            vec![
                base(),
                Tar::new().dir("d", 0o750).dir("d/sub", 0o711).file("d/sub/.wh..wh..opq", "").file("d/sub/kept", ""),
            ],
        ),
        case(
            "directories to files and back",
            vec![
                base(),
                Tar::new().file("d", "a file").file("e", "another"),
                Tar::new().dir("d", 0o755).file("d/back", "").symlink("e", "d"),
            ],
        ),
        case(
            "a link to a directory and back",
            vec![base(), Tar::new().symlink("d", "e"), Tar::new().dir("d", 0o700).file("d/x", "y")],
        ),
        case("files to links", vec![base(), Tar::new().symlink("f", "d/one"), Tar::new().file("f", "a file again")]),
        case(
            "kinds over each other",
            vec![
                base(),
                Tar::new().node("f", b'6', 0, 0).node("d/one", b'3', 1, 7).symlink("d/two", "one"),
                Tar::new().file("d/one", "file").node("f", b'4', 7, 1).dir("d/two", 0o755),
            ],
        ),
        case(
            "hard links in a layer",
            vec![Tar::new().file("a", "a").hardlink("b", "a").hardlink("c", "b").dir("d", 0o755).hardlink("d/d", "a")],
        ),
        case(
            "hard links to links, pipes and devices",
            vec![
                Tar::new()
                    .symlink("s", "x")
                    .hardlink("s2", "s")
                    .node("p", b'6', 0, 0)
                    .hardlink("p2", "p")
                    .node("c", b'3', 1, 5)
                    .hardlink("c2", "c"),
            ],
        ),
        case(
            "hard links to a layer below",
            vec![base(), Tar::new().hardlink("again", "d/one").hardlink("d/sub/third", "again")],
        ),
        case(
            "a hard link over a file of the layer below",
            vec![base(), Tar::new().hardlink("f", "d/one").hardlink("d/two", "d/one")],
        ),
        case(
            "one name of two is replaced",
            vec![
                Tar::new().file("a", "shared").hardlink("b", "a"),
                Tar::new().file("a", "own"),
                Tar::new().hardlink("c", "b").file(".wh.b", ""),
            ],
        ),
        case(
            "a hard link to what is deleted after it",
            vec![base(), Tar::new().hardlink("kept", "d/one").file("d/.wh.one", "")],
        ),
        case("a hard link to what is not there", vec![base(), Tar::new().hardlink("new", "absent")]),
        case(
            "a hard link to what was deleted",
            vec![base(), Tar::new().file("d/.wh.one", ""), Tar::new().hardlink("new", "d/one")],
        ),
        case("a hard link to a directory", vec![base(), Tar::new().hardlink("new", "d")]),
        case(
            "names of every form",
            vec![
                Tar::new()
                    .file("./dot", "")
                    .file("/absolute", "")
                    .file("a//double", "")
                    .file("up/../plain", "")
                    .dir("slash//", 0o755)
                    .file("new\nline", "")
                    .file("back\\slash", "")
                    .file("\u{fc}", "")
                    .file("..data", "")
                    .file("...", ""),
            ],
        ),
        case(
            "long names",
            vec![
                Tar::new()
                    .pax(&[("path", long.as_bytes())])
                    .file("short", "long")
                    .pax(&[("linkpath", long.as_bytes())])
                    .symlink("link", "short"),
            ],
        ),
        case(
            "entries twice",
            vec![
                Tar::new()
                    .file("a", "1")
                    .file("a", "22")
                    .dir("d", 0o700)
                    .file("d/x", "")
                    .dir("d", 0o755)
                    .symlink("l", "a")
                    .symlink("l", "d"),
            ],
        ),
        case(
            "through links of the layer",
            vec![
                Tar::new()
                    .dir("real", 0o755)
                    .symlink("link", "real")
                    .file("link/in", "1")
                    .symlink("abs", "/real")
                    .file("abs/in2", "2"),
            ],
        ),
        Case {
            is_stacked_otherwise: true,
            ..case(
                "through links of the layer below",
                vec![base(), Tar::new().symlink("to", "d"), Tar::new().file("to/one", "new").file("to/.wh.two", "")],
            )
        },
        case("parents left out", vec![Tar::new().file("a/b/c", "").symlink("x/y", "z")]),
        case("notes of old drivers", vec![base(), Tar::new().file(".wh..wh.plnk", "").file("d/.wh..wh.aufs", "")]),
        case(
            "a hard link to what is in a directory that is deleted after it",
            vec![
                base(),
                Tar::new()
                    .hardlink("kept", "d/sub/deep")
                    .file(".wh.d", "")
                    .hardlink("e/y", "e/x")
                    .file("e/.wh..wh..opq", ""),
            ],
        ),
        case("an empty layer", vec![base(), Tar::new()]),
        case(
            "opaque and opaque again below",
            vec![
                base(),
                Tar::new()
                    .dir("d", 0o755)
                    .file("d/.wh..wh..opq", "")
                    .dir("d/sub", 0o750)
                    .file("d/sub/.wh..wh..opq", "")
                    .file("d/sub/new", "1"),
                Tar::new().file(".wh.e", "").dir("d/sub", 0o700).file("d/sub/more", "2"),
            ],
        ),
        case(
            "names of bytes that are no text, and as long as a name can be",
            vec![
                Tar::new()
                    .file(b"\xff\xfe", "bytes")
                    .file("\u{1b}[31mred", "")
                    .pax(&[("path", "l".repeat(255).as_bytes())])
                    .file("short", "255")
                    .symlink("to", b"\xff\xfe"),
            ],
        ),
        case(
            "times at the edges",
            ["9223372036", "9223372035.999999999", "0.000000001"]
                .iter()
                .enumerate()
                .map(|(position, time)| Tar::new().pax(&[("mtime", time.as_bytes())]).file(format!("f{position}"), ""))
                .collect(),
        ),
        case(
            "types of old",
            vec![
                Tar::new()
                    .raw("old", 0, "", b"y", |_| {})
                    .raw("old-dir/", 0, "", b"", |header| header.mode(0o755))
                    .file("after", ""),
            ],
        ),
        case(
            "links that end in a slash, and to the top",
            vec![
                Tar::new()
                    .dir("real", 0o755)
                    .symlink("slash", "real/")
                    .symlink("top", "/")
                    .symlink("up", "../../..")
                    .file("slash/one", "1")
                    .file("top/two", "2")
                    .file("up/three", "3"),
            ],
        ),
        case(
            "a hard link says nothing of its file",
            vec![Tar::new().file("f", "x").raw("h", b'1', "f", b"", |header| {
                header.mode(0o4777);
                header.owner(7, 7);
            })],
        ),
    ]
}

/// What GNU tar makes of one tree, in each of its formats; umoci does not read the sparse files of the older ones.
pub(super) fn gnu_cases(dir: &Path) -> Vec<Case> {
    let top = gnu::make(dir);
    [
        ("gnu", &["--format=gnu"][..]),
        ("oldgnu", &["--format=oldgnu"]),
        ("posix, sparse 0.0", &["--format=posix", "--sparse", "--sparse-version=0.0"]),
        ("posix, sparse 0.1", &["--format=posix", "--sparse", "--sparse-version=0.1"]),
        ("posix, sparse 1.0", &["--format=posix", "--sparse", "--sparse-version=1.0"]),
        ("posix with attributes", &["--format=posix", "--xattrs", "--xattrs-include=*", "--acls"]),
        ("ustar", &["--format=ustar", "--exclude=nnn*", "--exclude=long link"]),
        ("v7", &["--format=v7", "--exclude=nnn*", "--exclude=long link", "--exclude=pipe"]),
    ]
    .into_iter()
    .map(|(name, options)| {
        let output = Command::new("tar").args(options).arg("-C").arg(&top).args(["-cf", "-", "."]).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        Case { name, layers: vec![output.stdout], is_stacked_otherwise: false }
    })
    .collect()
}
