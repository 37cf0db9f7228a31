//! The images of the tests, each made from what is on the machine: a pause program and a probe of ours, Debian's static
//! busybox, and a whole Debian with layers on top that take away, replace and link.
//!
//! What is slow to make (debootstrap) is kept below the build directory, so a second run is quick.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::OnceLock,
};

use serde_json::json;

use crate::{
    command,
    image::Image,
    layer::{Layer, LayerBuilder},
};

/// The value of `user.windlass` on `/layers/xattr` in [`debian`].
pub const XATTR_VALUE: &[u8] = b"kept";

/// Where built things are kept: `WINDLASS_E2E_CACHE`, else `e2e-cache` in the build directory.
pub fn cache_dir() -> PathBuf {
    let dir = std::env::var_os("WINDLASS_E2E_CACHE").map_or_else(|| target_dir().join("e2e-cache"), PathBuf::from);
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// `target/<profile>`, where the test's own executable says cargo builds to: `target/<profile>/deps/<test>`.
pub fn profile_dir() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    own.ancestors().nth(2).expect("a test lies in target/<profile>/deps").to_owned()
}

fn target_dir() -> PathBuf {
    profile_dir().parent().expect("a profile lies in the target directory").to_owned()
}

/// One of the programs in `e2e/fixture`, linked statically.
fn program(name: &str) -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("fixture/{name}.c"));
    let work = tempfile::tempdir().unwrap();
    let binary = work.path().join(name);
    let arguments = ["-static", "-Os", "-s", "-Wall", "-Werror", "-o"].map(PathBuf::from);
    command::run("cc", &[&arguments[..], &[binary.clone(), source]].concat());
    fs::read(binary).unwrap()
}

/// The sandbox image: nothing but its program.
pub fn pause() -> Image {
    let layer = LayerBuilder::new().file("pause", 0o755, &program("pause")).build();
    Image::new(vec![layer], json!({"Entrypoint": ["/pause"], "User": "65535:65535"}))
}

/// `fixture/probe.c`, which behaves as its arguments say.
pub fn probe() -> Image {
    let layer = LayerBuilder::new().file("probe", 0o755, &program("probe")).build();
    Image::new(vec![layer], json!({"Entrypoint": ["/probe"], "Cmd": ["count"]}))
}

/// Debian's static busybox with all its applets.
pub fn busybox() -> Image {
    let path = "/bin/busybox";
    let binary = fs::read(path).unwrap_or_else(|error| panic!("{path}: {error}: install busybox-static"));
    let mut layer = LayerBuilder::new()
        .file("bin/busybox", 0o755, &binary)
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
        .file("etc/group", 0o644, b"root:x:0:\nnogroup:x:65534:\n")
        .directory("root", 0o700)
        .directory("tmp", 0o1777);
    for applet in command::run(path, &["--list"]).lines().filter(|name| *name != "busybox") {
        layer = layer.symlink(&format!("bin/{applet}"), "busybox");
    }
    Image::new(vec![layer.build()], json!({"Cmd": ["sh"], "Env": ["PATH=/bin"]}))
}

/// A minimal Debian in three layers: its root; files of ours; and what takes some of both away.
pub fn debian() -> Image {
    let files = LayerBuilder::new()
        .file("layers/kept", 0o644, b"kept\n")
        .file("layers/deleted", 0o644, b"deleted\n")
        .file("layers/replaced", 0o644, b"one\n")
        .file("layers/hidden/below", 0o644, b"below\n")
        .file("layers/gone/inner", 0o644, b"inner\n")
        .file("layers/linked", 0o640, b"linked\n")
        .hard_link("layers/link", "layers/linked")
        .file_with_xattr("layers/xattr", b"xattr\n", "user.windlass", XATTR_VALUE)
        .build();
    let changes = LayerBuilder::new()
        .whiteout("layers/deleted")
        .whiteout("layers/gone")
        .whiteout("usr/bin/perl")
        .file("layers/replaced", 0o600, b"two\n")
        .opaque("layers/hidden")
        .file("layers/hidden/above", 0o644, b"above\n")
        .symlink("layers/symlink", "kept")
        .build();
    Image::new(
        vec![debian_root(), files, changes],
        json!({"Cmd": ["bash"], "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"]}),
    )
}

/// An image of many layers, each with one file named by its number; the last one lists nothing away.
pub fn tower(height: usize) -> Image {
    let mut image = busybox();
    for number in 1..height {
        let name = format!("tower/{number:03}");
        image.layers.push(LayerBuilder::new().file(&name, 0o644, name.as_bytes()).build());
    }
    image
}

/// The root that debootstrap makes of the machine's own Debian release and mirror.
fn debian_root() -> Layer {
    static ROOT: OnceLock<Layer> = OnceLock::new();
    ROOT.get_or_init(|| {
        let suite = command::run("sh", &["-c", ". /etc/os-release && printf %s \"$VERSION_CODENAME\""]);
        let tar = cache_dir().join(format!("debian-{suite}.tar"));
        if !tar.exists() {
            make_debian_tar(&suite, &tar);
        }
        Layer::of_tar(&fs::read(tar).unwrap())
    })
    .clone()
}

fn make_debian_tar(suite: &str, tar: &Path) {
    // The mirror is the one that apt is configured with: whatever this machine can reach.
    let sites = command::run("apt-get", &["indextargets", "--format", "$(REPO_URI)"]);
    let mirror = sites.lines().find(|site| !site.contains("security")).expect("apt has a Debian mirror").to_owned();
    let work = tempfile::tempdir_in(cache_dir()).unwrap();
    let root = work.path().join("root");
    let root = root.to_str().unwrap();
    command::run("debootstrap", &["--variant=minbase", suite, root, mirror.as_str()]);
    let made = work.path().join("root.tar");
    let exclude = ["--exclude=./var/cache/apt/archives/*.deb", "--exclude=./var/lib/apt/lists/*", "--exclude=./dev/*"];
    let mut arguments = vec!["--create", "--numeric-owner", "--directory", root, "--file", made.to_str().unwrap()];
    arguments.extend(exclude);
    arguments.push(".");
    command::run("tar", &arguments);
    fs::rename(made, tar).unwrap();
}
