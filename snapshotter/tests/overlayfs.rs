//! What only overlayfs does: the exact mounts, which other programs execute, and the directories behind them.

#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use store::{Namespace, Store};
use windlass_snapshotter::{
    Error, Labels, Mount, Native, Overlayfs, OverlayfsOptions, SCHEMA, Snapshotter, Swept, layer_dirs,
};

fn open(dir: &Path, options: OverlayfsOptions) -> Overlayfs {
    let store = Store::open(&dir.join("store.db"), &[SCHEMA]).unwrap();
    Overlayfs::open(&dir.join("root"), store, options).unwrap()
}

/// Makes the layers `one` and `two` on top of it: directories 1 and 2.
fn two_layers(snapshots: &Overlayfs) -> Namespace {
    let ns = Namespace::k8s();
    for (name, parent) in [("one", None), ("two", Some("one"))] {
        snapshots.prepare(&ns, "unpack", parent, &Labels::new()).unwrap();
        snapshots.commit(&ns, name, "unpack", &Labels::new()).unwrap();
    }
    ns
}

fn mount(fstype: &str, source: &str, options: &[String]) -> Vec<Mount> {
    vec![Mount { fstype: fstype.into(), source: source.into(), options: options.to_vec() }]
}

/// `index=off` stands first on kernels whose overlay module uses indexes by default.
fn without_kernel_options(mut mounts: Vec<Mount>) -> Vec<Mount> {
    mounts[0].options.retain(|option| option != "index=off" && option != "userxattr");
    mounts
}

#[test]
fn one_layer_is_a_bind_mount() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path(), OverlayfsOptions::default());
    let ns = two_layers(&snapshots);
    let path = |id| format!("{}/root/snapshots/{id}/fs", dir.path().display());
    let options = |access: &str| [access.to_owned(), "rbind".to_owned()];

    let made = snapshots.prepare(&ns, "rw", None, &Labels::new()).unwrap();
    assert_eq!(made, mount("bind", &path(3), &options("rw")));
    let made = snapshots.view(&ns, "ro", None, &Labels::new()).unwrap();
    assert_eq!(made, mount("bind", &path(4), &options("ro")));
    let made = snapshots.view(&ns, "ro-one", Some("one"), &Labels::new()).unwrap();
    assert_eq!(made, mount("bind", &path(1), &options("ro")));
}

#[test]
fn more_layers_are_an_overlay_with_the_top_first() {
    let dir = tempfile::tempdir().unwrap();
    let extra = OverlayfsOptions { mount_options: vec!["volatile".into()], ..OverlayfsOptions::default() };
    let snapshots = open(dir.path(), extra);
    let ns = two_layers(&snapshots);
    let root = format!("{}/root/snapshots", dir.path().display());
    let lower = format!("lowerdir={root}/2/fs:{root}/1/fs");

    let made = snapshots.prepare(&ns, "rw", Some("two"), &Labels::new()).unwrap();
    let options = ["volatile".into(), format!("workdir={root}/3/work"), format!("upperdir={root}/3/fs"), lower.clone()];
    assert_eq!(without_kernel_options(made), mount("overlay", "overlay", &options));
    let made = snapshots.view(&ns, "ro", Some("two"), &Labels::new()).unwrap();
    assert_eq!(without_kernel_options(made), mount("overlay", "overlay", &["volatile".into(), lower]));
    let made = snapshots.prepare(&ns, "on-one", Some("one"), &Labels::new()).unwrap();
    assert_eq!(without_kernel_options(made)[0].options[3], format!("lowerdir={root}/1/fs"));
}

#[test]
fn only_an_active_snapshot_has_a_work_directory() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path(), OverlayfsOptions::default());
    let ns = two_layers(&snapshots);
    snapshots.prepare(&ns, "rw", Some("two"), &Labels::new()).unwrap();
    snapshots.view(&ns, "ro", Some("two"), &Labels::new()).unwrap();

    let modes = |id: i64| {
        let below = dir.path().join("root/snapshots").join(id.to_string());
        let mode = |entry: Result<fs::DirEntry, _>| {
            let entry: fs::DirEntry = entry.unwrap();
            (entry.file_name().into_string().unwrap(), entry.metadata().unwrap().mode() & 0o7777)
        };
        let mut modes: Vec<_> = fs::read_dir(below).unwrap().map(mode).collect();
        modes.sort();
        modes
    };
    assert_eq!(modes(3), [("fs".to_owned(), 0o755), ("work".to_owned(), 0o711)]);
    assert_eq!(modes(4), [("fs".to_owned(), 0o755)]);
}

#[test]
fn the_upper_directory_is_told_as_a_label_when_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path(), OverlayfsOptions { upperdir_label: true, ..OverlayfsOptions::default() });
    let ns = two_layers(&snapshots);
    let upper = format!("{}/root/snapshots/2/fs", dir.path().display());
    let want = Labels::from([("containerd.io/snapshot/overlay.upperdir".to_owned(), upper)]);
    assert_eq!(snapshots.stat(&ns, "two").unwrap().labels, want);
    assert_eq!(snapshots.list(&ns).unwrap()[1].labels, want);
}

#[test]
fn a_root_that_mount_options_cannot_carry_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store.db"), &[SCHEMA]).unwrap();
    for name in ["a:b", "a,b", r"a\b"] {
        let root = dir.path().join(name);
        assert!(Overlayfs::open(&root, store.clone(), OverlayfsOptions::default()).is_err(), "{name}");
        assert!(!root.exists(), "{name}");
    }
}

#[test]
fn a_layer_made_without_its_parent_is_put_onto_it_and_is_as_if_made_on_it() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path(), OverlayfsOptions::default());
    let ns = Namespace::k8s();
    let labels = Labels::new();
    // The upper one first: its directory has the smaller number.
    snapshots.prepare(&ns, "upper", None, &labels).unwrap();
    snapshots.prepare(&ns, "lower", None, &labels).unwrap();
    let path = |id: i64| dir.path().join(format!("root/snapshots/{id}/fs"));
    fs::set_permissions(path(2), fs::Permissions::from_mode(0o1711)).unwrap();
    assert!(matches!(snapshots.rebase(&ns, "upper", "lower"), Err(Error::WrongKind { .. })));
    snapshots.commit(&ns, "lower", "lower", &labels).unwrap_err();
    snapshots.commit(&ns, "one", "lower", &labels).unwrap();
    assert!(matches!(snapshots.rebase(&ns, "upper", "none"), Err(Error::ParentNotFound { .. })));
    assert!(matches!(snapshots.rebase(&ns, "none", "one"), Err(Error::NotFound { .. })));

    assert!(snapshots.can_rebase());
    for _ in 0..2 {
        let mounts = snapshots.rebase(&ns, "upper", "one").unwrap();
        let dirs = layer_dirs(&mounts).unwrap();
        assert_eq!((dirs.upper, dirs.parents), (path(1), vec![path(2)]));
    }
    assert_eq!(fs::metadata(path(1)).unwrap().mode() & 0o7777, 0o1711);
    assert!(matches!(snapshots.remove(&ns, "one"), Err(Error::HasChildren { .. })));
    snapshots.commit(&ns, "two", "upper", &labels).unwrap();
    assert!(matches!(snapshots.rebase(&ns, "two", "one"), Err(Error::WrongKind { .. })));
    assert_eq!(snapshots.stat(&ns, "two").unwrap().parent.as_deref(), Some("one"));

    // Another boot: neither is known to be on disk, and the lower one has the greater number.
    let sql = "UPDATE snapshot SET boot = 'another'";
    let store = Store::open(&dir.path().join("store.db"), &[SCHEMA]).unwrap();
    store.write_blocking(move |conn| Ok::<_, store::Error>(conn.execute_batch(sql)?)).unwrap();
    assert_eq!(snapshots.sweep().unwrap().rows, 2);
    assert!(!path(1).exists() && !path(2).exists());
}

#[test]
fn a_sweep_takes_what_stands_on_a_lost_layer_with_it_whatever_the_order_they_were_made_in() {
    let dir = tempfile::tempdir().unwrap();
    let snapshots = open(dir.path(), OverlayfsOptions::default());
    let (ns, labels) = (Namespace::k8s(), Labels::new());
    for key in ["top", "middle", "bottom"] {
        snapshots.prepare(&ns, key, None, &labels).unwrap();
    }
    snapshots.commit(&ns, "1", "bottom", &labels).unwrap();
    for (key, name, parent) in [("middle", "2", "1"), ("top", "3", "2")] {
        snapshots.rebase(&ns, key, parent).unwrap();
        snapshots.commit(&ns, name, key, &labels).unwrap();
    }
    fs::remove_dir_all(dir.path().join("root/snapshots/3")).unwrap();
    assert_eq!(snapshots.sweep().unwrap(), Swept { rows: 3, directories: 2 });
}

#[test]
fn a_snapshotter_that_copies_cannot_put_a_snapshot_onto_another() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("store.db"), &[SCHEMA]).unwrap();
    let snapshots = Native::open(&dir.path().join("root"), store).unwrap();
    assert!(!snapshots.can_rebase());
    assert!(snapshots.rebase(&Namespace::k8s(), "a", "b").is_err());
}
