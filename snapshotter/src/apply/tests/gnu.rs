//! GNU tar as the oracle: what it packs, in each of its formats, comes out as it went in.

use std::fs::{File, FileTimes, Permissions};
use std::os::unix::fs::{FileExt, chown};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

use super::*;

/// A tree with something of everything; returns its top.
pub(super) fn make(dir: &Path) -> PathBuf {
    let top = dir.join("tree");
    fs::create_dir_all(top.join("sub/empty")).unwrap();
    fs::write(top.join("plain"), "content").unwrap();
    fs::write(top.join("sub/empty file"), "").unwrap();
    fs::write(top.join("sub/odd \n\\ ü name"), vec![7; 70_000]).unwrap();
    fs::hard_link(top.join("plain"), top.join("sub/again")).unwrap();
    symlink("../plain", top.join("sub/link")).unwrap();
    symlink("/nowhere/at/all", top.join("dangling")).unwrap();
    let long = "n".repeat(200);
    fs::create_dir(top.join(&long)).unwrap();
    fs::write(top.join(&long).join(&long), "long").unwrap();
    symlink(format!("{long}/{long}"), top.join("long link")).unwrap();
    rustix::fs::mknodat(rustix::fs::CWD, top.join("pipe"), rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .unwrap();
    let sparse = File::create(top.join("sparse")).unwrap();
    for hole in 0..30_u64 {
        sparse.write_all_at(b"island", hole << 16).unwrap();
    }
    sparse.set_len(2 << 20).unwrap();
    chown(top.join("sub/empty"), Some(100), Some(65_534)).unwrap();
    fs::set_permissions(top.join("sub/empty"), Permissions::from_mode(0o3571)).unwrap();
    let time = SystemTime::UNIX_EPOCH + Duration::from_secs(1_234_567_890);
    let times = FileTimes::new().set_accessed(time).set_modified(time);
    File::open(top.join("sub")).unwrap().set_times(times).unwrap();
    top
}

/// Everything that can be seen of a tree, but for what no archive keeps.
fn looks(top: &Path) -> Vec<String> {
    let mut found: Vec<String> = tree(top)
        .into_iter()
        .map(|entry| {
            let name = entry.split(['=']).next().unwrap().split("->").next().unwrap().trim_end_matches('/');
            let meta = fs::symlink_metadata(top.join(name)).unwrap();
            let (mode, owner) = (meta.mode(), (meta.uid(), meta.gid()));
            let links = if meta.is_dir() { 0 } else { meta.nlink() };
            format!("{entry:?} {mode:o} {owner:?} {links} {}", meta.mtime())
        })
        .collect();
    found.sort();
    found
}

#[test]
fn privileged_what_gnu_tar_packs_comes_out_as_it_went_in() {
    let machine = tempfile::tempdir().unwrap();
    let top = make(machine.path());
    let expected = looks(&top);
    for options in [
        &["--format=gnu", "--sparse"][..],
        &["--format=oldgnu", "--sparse"],
        &["--format=posix", "--sparse", "--sparse-version=0.0"],
        &["--format=posix", "--sparse", "--sparse-version=0.1"],
        &["--format=posix", "--sparse", "--sparse-version=1.0"],
        &["--format=posix", "--xattrs", "--acls"],
    ] {
        let output = Command::new("tar").args(options).arg("-C").arg(&top).args(["-cf", "-", "."]).output().unwrap();
        assert!(output.status.success(), "{options:?}: {}", String::from_utf8_lossy(&output.stderr));
        confined(|| {
            let world = World::new(Whiteouts::Remove);
            world.apply(&Tar::from(output.stdout)).unwrap_or_else(|error| panic!("{options:?}: {error}"));
            assert_eq!(looks(&world.root()), expected, "{options:?}");
        });
    }
}
