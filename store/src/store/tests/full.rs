//! A disk without a free byte, which is a tmpfs in a mount namespace of the test's own thread: the writer's thread comes from it
//! and shares it.

use std::fs;
use std::io::Write;
use std::path::Path;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

use super::*;

/// Runs a test with a disk of this size.
fn on_a_disk(size: &str, test: impl FnOnce(&Path) + Send) {
    let point = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_FS).unwrap();
            let nothing = None::<&str>;
            mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing).unwrap();
            let options = format!("size={size}");
            mount(Some("tmpfs"), point.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
            test(point.path());
            umount2(point.path(), MntFlags::MNT_DETACH).unwrap();
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
}

/// Writes until nothing fits any more.
fn fill(disk: &Path) {
    let mut ballast = fs::OpenOptions::new().create(true).append(true).open(disk.join("ballast")).unwrap();
    while ballast.write_all(&[7; 4096]).is_ok() {}
}

fn reserved(disk: &Path) -> u64 {
    fs::metadata(disk.join("store.db-reserve")).map_or(0, |found| found.len())
}

#[test]
fn privileged_a_full_disk_leaves_room_for_the_writes_that_free_it() {
    on_a_disk("64m", |disk| {
        let path = disk.join("store.db");
        let store = Store::open(&path, &[NUMBERS]).unwrap();
        assert_eq!(reserved(disk), 8 << 20);
        for n in 0..10 {
            fill(disk);
            store.write_blocking(move |conn| insert(conn, n)).unwrap();
        }
        assert_eq!(store.read_blocking(all).unwrap(), (0..10).collect::<Vec<_>>());
        assert!((1..8 << 20).contains(&reserved(disk)), "{}", reserved(disk));
        drop(store);

        // A daemon that starts on a full disk.
        fill(disk);
        let store = Store::open(&path, &[NUMBERS]).unwrap();
        store.write_blocking(|conn| insert(conn, 10)).unwrap();
        // With the last of it gone, a write fails, and what was written stays.
        fs::remove_file(disk.join("store.db-reserve")).unwrap();
        fill(disk);
        let large = "x".repeat(4 << 20);
        let refused = store.write_blocking(move |conn| {
            conn.execute("INSERT INTO number (n, note) VALUES (11, ?1)", [large])?;
            Ok::<_, Error>(())
        });
        assert!(refused.is_err());
        assert_eq!(store.read_blocking(all).unwrap(), (0..11).collect::<Vec<_>>());

        // With room, all is as before.
        fs::remove_file(disk.join("ballast")).unwrap();
        store.write_blocking(|conn| insert(conn, 12)).unwrap();
        store.write_blocking(|conn| insert(conn, 13)).unwrap();
        assert_eq!(reserved(disk), 8 << 20);
        drop(store);
        let store = Store::open(&path, &[NUMBERS]).unwrap();
        assert_eq!(store.read_blocking(all).unwrap().len(), 13);
    });
}

#[test]
fn privileged_a_small_disk_has_no_reserve() {
    on_a_disk("16m", |disk| {
        let store = Store::open(&disk.join("store.db"), &[NUMBERS]).unwrap();
        store.write_blocking(|conn| insert(conn, 1)).unwrap();
        assert_eq!(reserved(disk), 0);
    });
}
