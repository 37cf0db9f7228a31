//! A place from which nothing of the machine can be reached, for archives that try to reach it.
//!
//! A thread of its own gets a mount namespace whose only file system is a fresh tmpfs: the machine's are not hidden in it
//! but taken out. Of procfs there are the names of the thread's own descriptors, which the code under test needs, and none
//! of the links that lead anywhere else; of descriptors, none but those of one file in memory. So even code that follows
//! every link destroys nothing but the jail. It ends with the thread.

use std::fs::{self, File};
use std::io::{Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use rustix::fs::MemfdFlags;

/// What the archives must not change stands at the top, for absolute names, and in `/tmp`, beside the tests' directories.
const CANARIES: [&str; 2] = ["canary", "tmp/canary"];

/// Runs the test in a jail of its own, and fails it before it starts unless the jail is one.
pub(super) fn confined(test: impl FnOnce() + Send) {
    // Where tests say what went wrong: the real streams are not open in there.
    let said = File::from(rustix::fs::memfd_create("said", MemfdFlags::CLOEXEC).unwrap());
    let outside = tempfile::tempdir().unwrap();
    let result = std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(outside.path(), &said);
            assert!(fs::symlink_metadata(outside.path()).is_err(), "a directory of the machine is in the jail");
            assert_confined();
            test();
        });
        thread.join()
    });
    let mut text = String::new();
    (&said).rewind().unwrap();
    (&said).read_to_string(&mut text).unwrap();
    eprint!("{text}");
    if let Err(panic) = result {
        std::panic::resume_unwind(panic);
    }
}

/// Fails unless the calling thread is in a jail.
pub(super) fn assert_confined() {
    for name in ["/etc", "/etc/passwd", "/root", "/usr", "/home", "/dev", "/proc/1", "/proc/self"] {
        assert!(fs::symlink_metadata(name).is_err(), "{name} of the machine can be reached");
    }
    assert_eq!(names("/"), ["canary", "proc", "tmp"], "not the root of a jail");
    assert_eq!(names("/proc"), ["thread-self"]);
    assert_eq!(names("/proc/thread-self"), ["fd"]);
    assert_eq!(rustix::fs::statfs("/").unwrap().f_type, 0x0102_1994, "the root is not a tmpfs");
    let (root, above) = (fs::metadata("/").unwrap(), fs::metadata("/..").unwrap());
    assert_eq!((root.dev(), root.ino()), (above.dev(), above.ino()), "there is something above the root");
    assert_eq!(std::env::current_dir().unwrap(), Path::new("/"));
}

/// Shuts the thread in. `point` is an empty directory of the machine that the new root is mounted on, in a namespace where
/// nobody else sees it.
fn enter(point: &Path, said: &File) {
    let namespace = |task: &str| fs::read_link(format!("/proc/{task}/ns/mnt")).unwrap();
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FILES).unwrap();
    assert_ne!(namespace("thread-self"), namespace("self"), "the mounts are those of the whole process");
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
    mount(Some("tmpfs"), point, Some("tmpfs"), MsFlags::empty(), Some("mode=0755,size=64m")).unwrap();
    let descriptors = point.join("proc/thread-self/fd");
    fs::create_dir_all(&descriptors).unwrap();
    fs::create_dir(point.join("tmp")).unwrap();
    for canary in CANARIES {
        fs::write(point.join(canary), "alive").unwrap();
    }
    mount(Some("/proc/thread-self/fd"), &descriptors, nothing, MsFlags::MS_BIND, nothing).unwrap();
    std::env::set_current_dir(point).unwrap();
    // The old root comes to lie on top of the new one, and is taken off with everything in it.
    nix::unistd::pivot_root(".", ".").unwrap();
    umount2(".", MntFlags::MNT_DETACH).unwrap();
    nix::unistd::chroot("/").unwrap();
    std::env::set_current_dir("/").unwrap();
    close_all_but(said);
}

/// The thread's table is its own since `unshare`, so nobody else's descriptors are closed.
fn close_all_but(said: &File) {
    rustix::stdio::dup2_stdin(said).unwrap();
    rustix::stdio::dup2_stdout(said).unwrap();
    rustix::stdio::dup2_stderr(said).unwrap();
    let open = || names("/proc/thread-self/fd").into_iter().map(|name| name.parse().unwrap()).collect::<Vec<i32>>();
    for descriptor in open().into_iter().filter(|descriptor| *descriptor > 2) {
        // That of the listing is closed already.
        let _closed = nix::unistd::close(descriptor);
    }
    // The fourth is that of the listing.
    assert_eq!(open(), [0, 1, 2, 3], "descriptors of the machine are open");
}

fn names(dir: &str) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// All of the jail but what is in `root`: every name, with what it stands for and when that was changed last in any way.
pub(super) fn surroundings(root: &Path) -> Vec<String> {
    let mut found = vec![describe(Path::new("/"))];
    let mut waiting = vec![Path::new("/").to_owned()];
    while let Some(dir) = waiting.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let path = entry.unwrap().path();
            if path == root || path == Path::new("/proc") {
                continue;
            }
            found.push(describe(&path));
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                waiting.push(path);
            }
        }
    }
    found.sort();
    found
}

fn describe(path: &Path) -> String {
    let meta = fs::symlink_metadata(path).unwrap();
    let content = match meta.file_type() {
        kind if kind.is_file() => fs::read_to_string(path).unwrap(),
        kind if kind.is_symlink() => fs::read_link(path).unwrap().display().to_string(),
        _ => String::new(),
    };
    let owner = (meta.uid(), meta.gid());
    let times = (meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
    format!("{} {content:?} {:o} {owner:?} {} {times:?}", path.display(), meta.mode(), meta.nlink())
}

#[test]
fn privileged_a_jail_is_none_until_it_is_entered() {
    // The assertion is what every other test here relies on, so it has to fail on the machine itself.
    let outside = std::panic::catch_unwind(assert_confined);
    assert!(outside.is_err());
    confined(assert_confined);
}

#[test]
fn privileged_what_is_written_and_removed_in_a_jail_is_not_the_machines() {
    let machine = tempfile::tempdir().unwrap();
    let file = machine.path().join("canary");
    fs::write(&file, "alive").unwrap();
    confined(|| {
        assert!(!file.exists());
        fs::create_dir_all(file.parent().unwrap()).unwrap();
        fs::write(&file, "dead").unwrap();
        fs::remove_dir_all("/tmp").unwrap();
    });
    assert_eq!(fs::read_to_string(&file).unwrap(), "alive");
}
