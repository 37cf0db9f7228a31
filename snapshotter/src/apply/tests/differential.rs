//! The same layers by umoci: what it makes of them, in one directory, is what we make of them, in one directory and as a
//! stack of overlayfs.
//!
//! umoci unpacks in a jail as well, where nothing of the machine is but its program and the loader of it.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::*;

/// How the layers of one image are called and what is in them, bottom first.
struct Case {
    name: &'static str,
    layers: Vec<Vec<u8>>,
    /// A layer of a stack is applied without the links of those below, as containerd does, and umoci has but one directory.
    is_stacked_otherwise: bool,
}

fn case(name: &'static str, layers: Vec<Tar>) -> Case {
    Case { name, layers: layers.iter().map(Tar::bytes).collect(), is_stacked_otherwise: false }
}

fn cases() -> Vec<Case> {
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
    ]
}

/// What GNU tar makes of one tree, in each of its formats; umoci does not read the sparse files of the older ones.
fn gnu_cases(dir: &Path) -> Vec<Case> {
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

/// Files of the machine that a jail is given, by the names that they get there.
type Files = BTreeMap<String, Vec<u8>>;

/// umoci with the libraries that it loads.
fn umoci() -> Files {
    let found = Command::new("sh").args(["-c", "command -v umoci && ldd \"$(command -v umoci)\""]).output().unwrap();
    assert!(found.status.success(), "umoci is not installed: hack/setup tests installs it");
    let text = String::from_utf8(found.stdout).unwrap();
    let mut files = Files::new();
    for path in text.split_whitespace().filter(|word| word.starts_with('/')) {
        let name = Path::new(path).file_name().unwrap().to_str().unwrap();
        files.insert(if name.starts_with("ld-") { "ld.so".into() } else { name.into() }, fs::read(path).unwrap());
    }
    files
}

/// An OCI layout with the layers, which umoci packs without looking into them.
fn layout(case: &Case) -> Files {
    let dir = tempfile::tempdir().unwrap();
    let top = dir.path().join("layout");
    let (layout, image) = (top.display().to_string(), format!("{}:1", top.display()));
    let run = |arguments: &[&str]| {
        let output = Command::new("umoci").args(arguments).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run(&["init", "--layout", &layout]);
    run(&["new", "--image", &image]);
    for layer in &case.layers {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(layer).unwrap();
        run(&["raw", "add-layer", "--image", &image, file.path().to_str().unwrap()]);
    }
    let mut files = Files::new();
    let mut waiting = vec![top.clone()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => waiting.push(path),
                false => {
                    let name = path.strip_prefix(&top).unwrap().to_str().unwrap().to_owned();
                    files.insert(name, fs::read(&path).unwrap());
                }
            }
        }
    }
    files
}

fn put(files: &Files, dir: &Path) {
    for (name, content) in files {
        let path = dir.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }
}

/// What umoci makes of the image, or its error.
fn by_umoci(program: &Files, image: &Files) -> Result<Vec<String>, String> {
    assert_confined();
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let at = |name: &str| dir.path().join(name);
    put(program, &at("bin"));
    put(image, &at("layout"));
    let output = Command::new(at("bin").join("ld.so"))
        .arg("--library-path")
        .arg(at("bin"))
        .arg(at("bin").join("umoci"))
        .args(["unpack", "--image", &format!("{}:1", at("layout").display())])
        .arg(at("bundle"))
        .env_clear()
        .env("TMPDIR", "/tmp")
        .stdin(Stdio::from(fs::File::open(at("bin/ld.so")).unwrap()))
        .output()
        .unwrap();
    match output.status.success() {
        true => Ok(looks(&at("bundle/rootfs"), true)),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

/// What we make of it in one directory.
fn by_copying(case: &Case) -> Result<Vec<String>, Error> {
    let world = World::new(Whiteouts::Remove);
    for layer in &case.layers {
        world.apply(&Tar::from(layer.clone()))?;
    }
    Ok(looks(&world.root(), true))
}

/// What overlayfs shows of our layers, each in a directory of its own.
fn by_stacking(case: &Case) -> Result<Vec<String>, Error> {
    assert_confined();
    let dir = tempfile::tempdir_in("/tmp").unwrap();
    let mut parents: Vec<PathBuf> = Vec::new();
    for (position, layer) in case.layers.iter().enumerate() {
        let root = dir.path().join(position.to_string());
        fs::create_dir(&root).unwrap();
        let whiteouts = if position == 0 { Whiteouts::Remove } else { Whiteouts::Overlay };
        let target = Target { root: root.clone(), parents: parents.clone(), whiteouts };
        apply(&mut layer.as_slice(), &target, &Limits::default())?;
        parents.insert(0, root);
    }
    let empty = dir.path().join("empty");
    fs::create_dir(&empty).unwrap();
    parents.push(empty);
    let merged = dir.path().join("merged");
    fs::create_dir(&merged).unwrap();
    let lower: Vec<String> = parents.iter().map(|path| path.display().to_string()).collect();
    let options = format!("lowerdir={}", lower.join(":"));
    let none = nix::mount::MsFlags::empty();
    nix::mount::mount(Some("overlay"), &merged, Some("overlay"), none, Some(options.as_str())).unwrap();
    let looks = looks(&merged, false);
    nix::mount::umount(&merged).unwrap();
    Ok(looks)
}

/// Everything that can be seen below `top`. Overlayfs counts the names of a file that are hidden as well, so `links` says
/// whether they are looked at.
fn looks(top: &Path, links: bool) -> Vec<String> {
    let mut found = Vec::new();
    let mut waiting = vec![top.to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            // Overlayfs lists whiteouts in a directory that only one layer has, and does not find them.
            let Ok(meta) = fs::symlink_metadata(&path) else { continue };
            let kind = meta.file_type();
            let content = match kind {
                kind if kind.is_symlink() => format!("-> {:?}", fs::read_link(&path).unwrap()),
                kind if kind.is_file() => format!("{} {:x}", meta.len(), sum(&fs::read(&path).unwrap())),
                _ => String::new(),
            };
            let links = if links && !kind.is_dir() { meta.nlink() } else { 0 };
            let name = path.strip_prefix(top).unwrap();
            // A directory without an entry is of the time when it was made.
            let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64;
            let time = match (now - 600..=now).contains(&meta.mtime()) {
                true => "now".to_owned(),
                false => format!("{}.{:09}", meta.mtime(), meta.mtime_nsec()),
            };
            let (owner, device) = ((meta.uid(), meta.gid()), meta.rdev());
            found.push(format!(
                "{name:?} {:o} {owner:?} {device:x} x{links} {time} {:?} {content}",
                meta.mode(),
                xattrs(&path),
            ));
            if kind.is_dir() {
                waiting.push(path);
            }
        }
    }
    found.sort();
    found
}

fn sum(bytes: &[u8]) -> u64 {
    use std::hash::{DefaultHasher, Hasher};
    let mut hasher = DefaultHasher::new();
    hasher.write(bytes);
    hasher.finish()
}

fn xattrs(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut names = vec![0; 4096];
    let len = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let names = names.map(|name| String::from_utf8(name.to_vec()).unwrap());
    let shown = names.filter(|name| !name.starts_with("trusted.overlay."));
    shown
        .map(|name| {
            let mut value = vec![0; 4096];
            let len = rustix::fs::lgetxattr(path, name.as_str(), value.as_mut_slice()).unwrap();
            (name, value[..len].to_vec())
        })
        .collect()
}

/// Lines that only one of the two has.
fn difference(ours: &[String], theirs: &[String]) -> Vec<String> {
    let only = |sign: char, some: &[String], others: &[String]| -> Vec<String> {
        some.iter().filter(|line| !others.contains(line)).map(|line| format!("{sign} {line}")).collect()
    };
    [only('+', ours, theirs), only('-', theirs, ours)].concat()
}

fn without_links(looks: &[String]) -> Vec<String> {
    looks
        .iter()
        .map(|line| line.split(' ').map(|word| if is_count(word) { "x0" } else { word }).collect::<Vec<_>>().join(" "))
        .collect()
}

fn is_count(word: &str) -> bool {
    word.strip_prefix('x').is_some_and(|count| !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit()))
}

#[test]
fn privileged_umoci_makes_the_same_of_every_layer() {
    let machine = tempfile::tempdir().unwrap();
    let program = umoci();
    let mut wrong = Vec::new();
    for case in cases().into_iter().chain(gnu_cases(machine.path())) {
        let image = layout(&case);
        let (mut copied, mut stacked) = (Vec::new(), Vec::new());
        confined(|| {
            let theirs = by_umoci(&program, &image);
            let (one, many) = (by_copying(&case), by_stacking(&case));
            match (&theirs, &one, &many) {
                (Ok(theirs), Ok(one), Ok(many)) => {
                    copied = difference(one, theirs);
                    if !case.is_stacked_otherwise {
                        stacked = difference(many, &without_links(theirs));
                    }
                }
                (Err(_), Err(_), Err(_)) => {}
                _ => copied = vec![format!("umoci: {theirs:?}\nin one directory: {one:?}\nstacked: {many:?}")],
            }
        });
        for (how, lines) in [("in one directory", copied), ("stacked", stacked)] {
            if !lines.is_empty() {
                wrong.push(format!("{}, {how}:\n  {}", case.name, lines.join("\n  ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
