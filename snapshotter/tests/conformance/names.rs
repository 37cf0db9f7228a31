//! Keys, names, parents, kinds and labels.

use std::time::SystemTime;

use store::Namespace;
use windlass_snapshotter::{Error, Info, Kind, Labels};

use super::kit::{Open, World};

fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

pub(crate) fn a_new_snapshot_is_told_by_stat_and_list(open: Open) {
    let world = World::new(open);
    let before = SystemTime::now();
    world.layer("base", None, |_| {});
    world.snapshots.prepare(&world.ns, "rw", Some("base"), &labels(&[("a", "1"), ("b", "ü")])).unwrap();
    world.snapshots.view(&world.ns, "ro", Some("base"), &Labels::new()).unwrap();

    let info = world.snapshots.stat(&world.ns, "rw").unwrap();
    assert!(before <= info.created && info.created <= SystemTime::now(), "{info:?}");
    let want = Info {
        key: "rw".into(),
        parent: Some("base".into()),
        kind: Kind::Active,
        labels: labels(&[("a", "1"), ("b", "ü")]),
        created: info.created,
        updated: info.created,
    };
    assert_eq!(info, want);
    let list = world.snapshots.list(&world.ns).unwrap();
    let told: Vec<_> = list.iter().map(|i| (i.key.as_str(), i.parent.as_deref(), i.kind)).collect();
    let base = Some("base");
    assert_eq!(told, [("base", None, Kind::Committed), ("ro", base, Kind::View), ("rw", base, Kind::Active)]);
    assert_eq!(list[2], info);
}

pub(crate) fn a_key_is_taken_once(open: Open) {
    let world = World::new(open);
    world.layer("base", None, |_| {});
    world.prepare("one", None).unwrap();
    let before = world.directories();
    for key in ["one", "base"] {
        let error = world.prepare(key, None).unwrap_err();
        assert_eq!(error.to_string(), format!("snapshot {key:?} already exists"));
        let again = world.snapshots.view(&world.ns, key, None, &Labels::new()).unwrap_err();
        assert!(matches!(again, Error::AlreadyExists { .. }), "{again:?}");
    }
    let error = world.snapshots.commit(&world.ns, "base", "one", &Labels::new()).unwrap_err();
    assert!(matches!(error, Error::AlreadyExists { ref key } if key == "base"), "{error:?}");
    assert_eq!(world.directories(), before);
}

pub(crate) fn a_parent_must_be_a_committed_snapshot_of_the_namespace(open: Open) {
    let world = World::new(open);
    world.layer("base", None, |_| {});
    world.prepare("active", None).unwrap();

    let error = world.prepare("child", Some("nothing")).unwrap_err();
    assert!(matches!(error, Error::ParentNotFound { ref parent } if parent == "nothing"), "{error:?}");
    let error = world.prepare("child", Some("active")).unwrap_err();
    assert!(matches!(error, Error::WrongKind { kind: Kind::Active, .. }), "{error:?}");
    let moby = Namespace::new("moby").unwrap();
    let error = world.snapshots.prepare(&moby, "child", Some("base"), &Labels::new()).unwrap_err();
    assert!(matches!(error, Error::ParentNotFound { .. }), "{error:?}");
    assert_eq!(world.keys(), ["active", "base"]);
}

pub(crate) fn namespaces_do_not_see_each_other(open: Open) {
    let world = World::new(open);
    let moby = Namespace::new("moby").unwrap();
    let here = world.prepare("same", None).unwrap();
    let there = world.snapshots.prepare(&moby, "same", None, &Labels::new()).unwrap();
    assert_ne!(here, there);
    world.snapshots.remove(&moby, "same").unwrap();

    assert_eq!(world.snapshots.list(&moby).unwrap(), []);
    assert!(matches!(world.snapshots.stat(&moby, "same"), Err(Error::NotFound { .. })));
    assert_eq!(world.snapshots.mounts(&world.ns, "same").unwrap(), here);
}

pub(crate) fn a_committed_snapshot_takes_its_name_and_its_own_labels(open: Open) {
    let world = World::new(open);
    world.layer("base", None, |_| {});
    world.snapshots.prepare(&world.ns, "key", Some("base"), &labels(&[("of", "active")])).unwrap();
    world.snapshots.commit(&world.ns, "name", "key", &labels(&[("of", "layer")])).unwrap();

    assert_eq!(world.keys(), ["base", "name"]);
    let info = world.snapshots.stat(&world.ns, "name").unwrap();
    let told = (info.parent.as_deref(), info.kind, info.labels);
    assert_eq!(told, (Some("base"), Kind::Committed, labels(&[("of", "layer")])));
    world.prepare("key", Some("name")).unwrap();
}

pub(crate) fn only_an_active_snapshot_is_committed(open: Open) {
    let world = World::new(open);
    world.layer("base", None, |_| {});
    world.snapshots.view(&world.ns, "view", Some("base"), &Labels::new()).unwrap();
    for (key, kind) in [("base", Kind::Committed), ("view", Kind::View)] {
        match world.snapshots.commit(&world.ns, "name", key, &Labels::new()).unwrap_err() {
            Error::WrongKind { kind: told, .. } => assert_eq!(told, kind),
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(world.keys(), ["base", "view"]);
}

pub(crate) fn a_snapshot_with_a_child_is_not_removed(open: Open) {
    let world = World::new(open);
    world.layer("base", None, |_| {});
    world.prepare("child", Some("base")).unwrap();
    let error = world.snapshots.remove(&world.ns, "base").unwrap_err();
    assert!(matches!(error, Error::HasChildren { ref key } if key == "base"), "{error:?}");
    assert_eq!(world.keys(), ["base", "child"]);

    world.snapshots.remove(&world.ns, "child").unwrap();
    world.snapshots.remove(&world.ns, "base").unwrap();
    assert_eq!(world.keys(), Vec::<String>::new());
}

pub(crate) fn what_is_not_there_is_not_found(open: Open) {
    let world = World::new(open);
    let (all, ns) = (&world.snapshots, &world.ns);
    let errors = [
        all.stat(ns, "x").unwrap_err(),
        all.mounts(ns, "x").unwrap_err(),
        all.usage(ns, "x").unwrap_err(),
        all.remove(ns, "x").unwrap_err(),
        all.commit(ns, "y", "x", &Labels::new()).unwrap_err(),
    ];
    for error in errors {
        assert!(matches!(error, Error::NotFound { ref key } if key == "x"), "{error:?}");
    }
}

pub(crate) fn mounts_are_told_again_but_not_of_a_layer(open: Open) {
    let world = World::new(open);
    world.layer("one", None, |_| {});
    world.layer("two", Some("one"), |_| {});
    for (key, parent) in [("a", None), ("b", Some("one")), ("c", Some("two"))] {
        let made = world.prepare(key, parent).unwrap();
        assert_eq!(world.snapshots.mounts(&world.ns, key).unwrap(), made);
        let view = format!("view-{key}");
        let made = world.snapshots.view(&world.ns, &view, parent, &Labels::new()).unwrap();
        assert_eq!(world.snapshots.mounts(&world.ns, &view).unwrap(), made);
    }
    let error = world.snapshots.mounts(&world.ns, "two").unwrap_err();
    assert!(matches!(error, Error::WrongKind { kind: Kind::Committed, .. }), "{error:?}");
}
