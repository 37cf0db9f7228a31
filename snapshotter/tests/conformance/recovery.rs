//! What a sweep at boot drops and keeps.

use std::fs;

use windlass_snapshotter::{Error, Labels, Swept};

use super::kit::{Open, World};

/// base ← mid ← top (committed), and an active snapshot on the top.
fn chain(world: &World) {
    world.layer("base", None, |top| fs::write(top.join("file"), "base").unwrap());
    world.layer("mid", Some("base"), |_| {});
    world.layer("top", Some("mid"), |_| {});
    world.prepare("rw", Some("top")).unwrap();
}

pub(crate) fn a_sweep_of_a_healthy_root_drops_nothing(open: Open) {
    let mut world = World::new(open);
    chain(&world);
    world.snapshots.view(&world.ns, "ro", Some("mid"), &Labels::new()).unwrap();
    let before = (world.snapshots.list(&world.ns).unwrap(), world.directories());
    assert_eq!(world.restart(), Swept { rows: 0, directories: 0 });
    assert_eq!((world.snapshots.list(&world.ns).unwrap(), world.directories()), before);
}

pub(crate) fn a_sweep_drops_directories_without_rows(open: Open) {
    let mut world = World::new(open);
    chain(&world);
    let before = world.directories();
    for stray in ["snapshots/999/fs", "snapshots/new-12", "trash/3/fs/deep"] {
        fs::create_dir_all(world.dir.join("root").join(stray)).unwrap();
    }
    fs::write(world.dir.join("root/snapshots/file"), "x").unwrap();
    assert_eq!(world.restart(), Swept { rows: 0, directories: 4 });
    assert_eq!(world.directories(), before);
}

pub(crate) fn a_sweep_drops_rows_without_directories_and_what_stands_on_them(open: Open) {
    let mut world = World::new(open);
    chain(&world);
    // Ids count from one: this is "mid".
    fs::remove_dir_all(world.dir.join("root/snapshots/2")).unwrap();
    assert_eq!(world.restart(), Swept { rows: 3, directories: 2 });
    assert_eq!((world.keys(), world.directories()), (vec!["base".to_owned()], vec!["snapshots/1".to_owned()]));
}

pub(crate) fn a_sweep_drops_what_was_not_finished(open: Open) {
    let mut world = World::new(open);
    chain(&world);
    world.sql("UPDATE snapshot SET ready = 0 WHERE key = 'rw'");
    assert!(matches!(world.snapshots.stat(&world.ns, "rw"), Err(Error::NotFound { .. })));
    assert!(matches!(world.prepare("rw", None), Err(Error::AlreadyExists { .. })));
    assert_eq!(world.restart(), Swept { rows: 1, directories: 1 });
    world.prepare("rw", Some("top")).unwrap();
}

pub(crate) fn a_layer_not_known_to_be_on_disk_does_not_outlive_its_boot(open: Open) {
    let mut world = World::new(open);
    world.layer("base", None, |_| {});
    assert_eq!(world.snapshots.sync().unwrap(), 1);
    world.layer("mid", Some("base"), |_| {});
    world.prepare("on-mid", Some("mid")).unwrap();
    world.prepare("on-base", Some("base")).unwrap();
    world.sql("UPDATE snapshot SET boot = 'an earlier one' WHERE boot IS NOT NULL");

    assert_eq!(world.restart(), Swept { rows: 2, directories: 2 });
    assert_eq!(world.keys(), ["base", "on-base"]);
}

pub(crate) fn a_durable_layer_outlives_its_boot(open: Open) {
    let mut world = World::new(open);
    chain(&world);
    assert_eq!(world.snapshots.sync().unwrap(), 3);
    assert_eq!(world.snapshots.sync().unwrap(), 0);
    world.sql("UPDATE snapshot SET boot = 'an earlier one' WHERE boot IS NOT NULL");
    assert_eq!(world.restart(), Swept { rows: 0, directories: 0 });
    assert_eq!(world.keys(), ["base", "mid", "rw", "top"]);
}

pub(crate) fn a_snapshot_that_could_not_be_made_leaves_nothing(open: Open) {
    let world = World::new(open);
    let folder = world.dir.join("root/snapshots");
    fs::rename(&folder, world.dir.join("away")).unwrap();
    let error = world.prepare("key", None).unwrap_err();
    assert!(matches!(error, Error::Failed { .. }), "{error:?}");
    fs::rename(world.dir.join("away"), &folder).unwrap();
    assert_eq!((world.keys(), world.directories()), (vec![], vec![]));
    world.prepare("key", None).unwrap();
}
