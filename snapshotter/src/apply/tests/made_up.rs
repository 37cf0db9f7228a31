//! Archives made up of everything that could lead out of the root: whatever they come to, nothing beside it changes.

use proptest::prelude::*;

use super::*;

fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => Just("a"), 4 => Just("b"), 2 => Just("c"), 3 => Just(".."), 1 => Just("."), 1 => Just(""),
        2 => Just("canary"), 1 => Just("tmp"), 1 => Just("root"), 1 => Just("below0"),
        1 => Just(".wh.a"), 1 => Just(".wh.b"), 1 => Just(".wh.canary"), 1 => Just(".wh.tmp"), 1 => Just(".wh..wh..opq"),
    ];
    proptest::collection::vec(part, 1..5).prop_map(|parts| parts.join("/"))
}

/// A name, what it may be linked to, and what it is.
type Line = (String, String, u8);

fn archive() -> impl Strategy<Value = Vec<Line>> {
    let target = (any::<bool>(), path()).prop_map(|(absolute, path)| if absolute { format!("/{path}") } else { path });
    let name = (0..8u8, path()).prop_map(|(absolute, path)| if absolute == 0 { format!("/{path}") } else { path });
    proptest::collection::vec((name, target, 0..13u8), 1..14)
}

fn pack(lines: &[Line]) -> Tar {
    lines.iter().fold(Tar::new(), |tar, (name, target, kind)| match kind {
        0..=2 => tar.file(name, "dead"),
        3 | 4 => tar.dir(name, 0o700),
        5..=7 => tar.symlink(name, target),
        8 | 9 => tar.hardlink(name, target),
        10 => tar.node(name, b'6', 0, 0),
        // Overlayfs takes this one for a deletion.
        11 => tar.node(name, b'3', 0, 0),
        _ => tar.node(name, b'4', 7, 200),
    })
}

/// Applies one archive on top of the other: in one directory, and as two layers.
fn contained(first: &Tar, second: &Tar) {
    for whiteouts in [Whiteouts::Remove, Whiteouts::Overlay] {
        let mut world = World::new(whiteouts);
        let before_first = surroundings(&world.root());
        // The archive may well be refused halfway; what was made until then stays for the second.
        let ended = world.apply(first);
        assert_eq!(surroundings(&world.root()), before_first, "{whiteouts:?}: {ended:?}");
        if whiteouts == Whiteouts::Overlay {
            let below = world.dir.path().join("below0");
            fs::rename(world.root(), &below).unwrap();
            fs::create_dir(world.root()).unwrap();
            world.parents.push(below);
        }
        let before = surroundings(&world.root());
        let ended = world.apply(second);
        assert_eq!(surroundings(&world.root()), before, "{whiteouts:?}: {ended:?}");
        assert!(world.canary_lives());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn privileged_no_archive_touches_anything_beside_the_root(first in archive(), second in archive()) {
        confined(|| contained(&pack(&first), &pack(&second)));
    }
}
