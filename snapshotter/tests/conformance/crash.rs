//! A snapshotter under `kill -9`: the worker is this test binary, run again for one of the ignored tests below.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use windlass_snapshotter::{Kind, Labels, Swept, layer_dirs};

use super::kit::{Open, World, native, overlayfs};

const DIR: &str = "WINDLASS_CRASH_TEST_DIR";
const ROUNDS: usize = 20;

#[test]
#[ignore = "the child process of overlayfs::rows_and_directories_agree_after_kill_9"]
fn child_on_overlayfs() {
    work(overlayfs);
}

#[test]
#[ignore = "the child process of native::rows_and_directories_agree_after_kill_9"]
fn child_on_native() {
    work(native);
}

/// Makes, commits and removes snapshots until it is killed, and tells each step.
fn work(open: Open) {
    let dir = PathBuf::from(std::env::var_os(DIR).expect("run by its parent"));
    let world = World::at(open, dir);
    // Ticks let the parent choose a moment that has nothing to do with the steps.
    std::thread::spawn(|| {
        loop {
            tell("tick\n");
        }
    });
    for n in 0.. {
        let (key, name) = (format!("key-{}-{n}", std::process::id()), format!("layer-{}-{n}", std::process::id()));
        let mounts = world.prepare(&key, Some("base")).unwrap();
        fs::write(layer_dirs(&mounts).unwrap().upper.join("more"), "x").unwrap();
        world.snapshots.commit(&world.ns, &name, &key, &Labels::new()).unwrap();
        tell(&format!("made {name}\n"));
        world.prepare(&key, Some(&name)).unwrap();
        world.snapshots.remove(&world.ns, &key).unwrap();
        if n % 2 == 0 {
            tell(&format!("going {name}\n"));
            world.snapshots.remove(&world.ns, &name).unwrap();
        }
    }
}

fn tell(line: &str) {
    std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
}

pub(crate) fn rows_and_directories_agree_after_kill_9(open: Open) {
    let child = if std::ptr::fn_addr_eq(open, native as Open) { "child_on_native" } else { "child_on_overlayfs" };
    let mut world = World::new(open);
    world.layer("base", None, |top| {
        for n in 0..20 {
            fs::write(top.join(format!("file-{n}")), "base").unwrap();
        }
    });
    let mut kept = vec!["base".to_owned()];
    let mut interrupted = 0;
    for round in 0..ROUNDS {
        let lines = run_and_kill(&world, child, 1 + round % 4, round * 97 % 400);
        assert!(!lines.is_empty(), "the child of round {round} made nothing");
        interrupted += usize::from(world.restart() != Swept { rows: 0, directories: 0 });
        assert_eq!(world.snapshots.sweep().unwrap(), Swept { rows: 0, directories: 0 }, "round {round}");

        let list = world.snapshots.list(&world.ns).unwrap();
        assert_eq!(list.len(), world.directories().len(), "round {round}");
        let going = |name: &str| lines.iter().any(|line| line.strip_prefix("going ") == Some(name));
        kept.extend(lines.iter().filter_map(|l| l.strip_prefix("made ")).filter(|n| !going(n)).map(str::to_owned));
        for name in &kept {
            assert_eq!(world.snapshots.stat(&world.ns, name).unwrap().kind, Kind::Committed, "round {round}");
        }
        for info in list.iter().filter(|info| info.kind == Kind::Active) {
            world.snapshots.remove(&world.ns, &info.key).unwrap();
        }
    }
    assert!(interrupted > 0, "no kill fell into a change");
}

/// What the child told until it was killed: `ticks` ticks after its first `count` lines, so at any point of its work.
fn run_and_kill(world: &World, child: &str, count: usize, ticks: usize) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &format!("conformance::crash::{child}"), "--ignored", "--nocapture"])
        .env(DIR, &world.dir)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    let is_step = |line: &String| line.starts_with("made ") || line.starts_with("going ");
    let mut told: Vec<String> = lines.by_ref().filter(is_step).take(count).collect();
    told.extend(lines.by_ref().take(ticks).filter(is_step));
    child.kill().unwrap();
    child.wait().unwrap();
    told.extend(lines.filter(is_step));
    told
}
