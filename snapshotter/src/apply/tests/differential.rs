//! The same layers by umoci: what it makes of them, in one directory, is what we make of them, in one directory and as a
//! stack of overlayfs.
//!
//! umoci unpacks in a jail as well, where nothing of the machine is but its program and the loader of it.

mod cases;

use std::collections::BTreeMap;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::*;
use cases::{Case, cases, gnu_cases};

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
