//! Mounting what snapshotters hand out, in a mount namespace that ends with the test's thread.
#![expect(clippy::unwrap_used, reason = "a test ends where its world is not as it must be")]

use std::fs;
use std::path::{Path, PathBuf};

use windlass_shim::mount::{Mount, mount_all, unmount_all};

/// Runs `test` where its mounts are its own; the namespace ends with the thread.
fn in_private_mounts(test: impl FnOnce(&Path) + Send + 'static) {
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().to_owned();
    let running = std::thread::spawn(move || {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_FS | nix::sched::CloneFlags::CLONE_NEWNS).unwrap();
        let private = rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        // Overlay cannot be stacked on every file system; on tmpfs it can.
        rustix::mount::mount("tmpfs", &base, "tmpfs", rustix::mount::MountFlags::empty(), c"size=16m").unwrap();
        test(&base);
    });
    running.join().unwrap();
}

fn directory(base: &Path, name: &str) -> PathBuf {
    let path = base.join(name);
    fs::create_dir_all(&path).unwrap();
    path
}

fn mount(fstype: &str, source: &str, options: &[String]) -> Mount {
    Mount { fstype: fstype.to_owned(), source: source.to_owned(), options: options.to_vec() }
}

fn is_mounted(path: &Path) -> bool {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    table.lines().any(|line| line.split(' ').nth(4) == path.to_str())
}

#[test]
fn privileged_a_read_only_bind_shows_its_source_and_refuses_writes() {
    in_private_mounts(|base| {
        let (source, target) = (directory(base, "source"), directory(base, "target"));
        fs::write(source.join("file"), "text").unwrap();
        let bind = mount("bind", source.to_str().unwrap(), &["rbind".to_owned(), "ro".to_owned()]);
        mount_all(&[bind], &target).unwrap();
        assert_eq!(fs::read_to_string(target.join("file")).unwrap(), "text");
        let refused = fs::write(target.join("new"), "").unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        unmount_all(&target).unwrap();
        unmount_all(&target).unwrap();
        assert!(!is_mounted(&target));
    });
}

/// Overlay over `count` layers, each with a file of its own.
fn overlay(base: &Path, count: usize, name: impl Fn(usize) -> String) -> Mount {
    let layers: Vec<String> = (0..count)
        .map(|number| {
            let layer = directory(base, &name(number));
            fs::write(layer.join(format!("file-{number}")), "").unwrap();
            layer.to_str().unwrap().to_owned()
        })
        .collect();
    let option = |key: &str, path: PathBuf| format!("{key}={}", path.display());
    let options = [
        option("workdir", directory(base, "work")),
        option("upperdir", directory(base, "upper")),
        format!("lowerdir={}", layers.join(":")),
    ];
    mount("overlay", "overlay", &options)
}

fn check_overlay(count: usize, name: impl Fn(usize) -> String + Send + 'static) {
    in_private_mounts(move |base| {
        let target = directory(base, "target");
        mount_all(&[overlay(base, count, name)], &target).unwrap();
        assert_eq!(fs::read_dir(&target).unwrap().count(), count);
        fs::write(target.join("new"), "").unwrap();
        assert!(base.join("upper/new").exists());
        unmount_all(&target).unwrap();
        assert!(!is_mounted(&target));
    });
}

#[test]
fn privileged_an_overlay_of_a_few_layers_is_mounted() {
    check_overlay(3, |number| format!("l{number}"));
}

#[test]
fn privileged_an_overlay_whose_options_exceed_a_page_is_mounted() {
    check_overlay(120, |number| format!("layer-with-a-long-name-so-that-a-page-is-exceeded-{number}"));
}

#[test]
fn privileged_a_layer_whose_path_no_option_can_hold_is_mounted() {
    check_overlay(20, |number| format!("{}/{}{number}", "a".repeat(200), "b".repeat(200)));
}

#[test]
fn privileged_a_mount_that_fails_leaves_the_ones_before_it_undone() {
    in_private_mounts(|base| {
        let (source, target) = (directory(base, "source"), directory(base, "target"));
        let good = mount("bind", source.to_str().unwrap(), &["bind".to_owned()]);
        let bad = mount("bind", base.join("missing").to_str().unwrap(), &["bind".to_owned()]);
        mount_all(&[good, bad], &target).unwrap_err();
        assert!(!is_mounted(&target));
    });
}
