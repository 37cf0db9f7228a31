//! A daemon that is killed in the middle of a pull: the next one finishes it, and nothing is left of the first try.
//!
//! The moments are not times but places: after so many bytes of the registry's answers, which a gate holds, and once
//! something is to be seen in the store.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

use rusqlite::{Connection, OpenFlags};
use serde_json::json;
use windlass_e2e::{
    gate::Gate,
    image::{Image, Pushed},
    layer::{LayerBuilder, sha256},
    node::TestNode,
    wait,
};

const IMAGE: &str = "docker.io/crash/app:1";
const MIB: usize = 1 << 20;

/// Bytes that gzip cannot make smaller, so that sizes on the way are sizes in the layer.
fn noise(seed: u64, size: usize) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    (0..size).map(|_| next()).collect()
}

fn image() -> Image {
    let layers = (0..4).map(|number: u64| {
        let mut layer = LayerBuilder::new();
        for file in 0..20 {
            layer = layer.file(&format!("{number}/small-{file}"), 0o644, format!("{number}.{file}").as_bytes());
        }
        if number > 0 {
            layer = layer.whiteout(&format!("{}/small-1", number - 1));
        }
        layer.file(&format!("{number}/large"), 0o644, &noise(number + 1, 2 * MIB)).build()
    });
    Image::new(layers.collect(), json!({"Cmd": ["/nothing"]}))
}

/// What the store says of pulls at this moment: names, committed layers, layers being unpacked, blobs.
fn rows(node: &TestNode) -> [i64; 4] {
    let database = node.path("root/windlass.db");
    let Ok(conn) = Connection::open_with_flags(database, OpenFlags::SQLITE_OPEN_READ_ONLY) else { return [0; 4] };
    let count = |sql: &str| conn.query_row(sql, [], |row| row.get(0)).unwrap_or_default();
    [
        count("SELECT count(*) FROM images WHERE name LIKE '%crash/app%'"),
        count("SELECT count(*) FROM snapshot WHERE kind = 'committed'"),
        count("SELECT count(*) FROM snapshot WHERE key LIKE 'extract %'"),
        count("SELECT count(*) FROM blobs"),
    ]
}

/// What is at the top of the daemon's directories, where nothing of a single pull has a place.
fn tops(node: &TestNode) -> [Vec<String>; 2] {
    ["root", "state"].map(|directory| names(&node.path(directory)))
}

fn content(node: &TestNode) -> PathBuf {
    node.path("root/io.containerd.content.v1.content")
}

fn snapshots(node: &TestNode) -> PathBuf {
    node.path("root/io.containerd.snapshotter.v1.overlayfs")
}

/// The starts of blobs, which are the image's and of this boot, with what they have.
fn ingests(node: &TestNode, pushed: &Pushed, after: &str) -> BTreeMap<String, u64> {
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let known: BTreeSet<&String> = pushed.layers.iter().chain([&pushed.digest, &pushed.id]).collect();
    let directory = content(node).join("ingest");
    let begun = names(&directory).into_iter().map(|name| {
        let digest = name.strip_suffix(&format!(".{}", boot.trim())).map(|name| name.replacen('-', ":", 1));
        let digest = digest.unwrap_or_else(|| panic!("{after}: {name} is of no blob, or of another boot"));
        assert!(known.contains(&digest), "{after}: {name} is not of the image");
        (digest, fs::metadata(directory.join(name)).unwrap().len())
    });
    begun.collect()
}

/// Blobs under their names, each whole.
fn blobs(node: &TestNode, after: &str) -> BTreeSet<String> {
    let directory = content(node).join("blobs/sha256");
    let whole = if directory.exists() { names(&directory) } else { Vec::new() };
    whole
        .into_iter()
        .map(|name| {
            let digest = format!("sha256:{name}");
            assert_eq!(sha256(&fs::read(directory.join(name)).unwrap()), digest, "{after}: a blob with other content");
            digest
        })
        .collect()
}

/// What a daemon that was killed leaves: whole blobs, the starts of others, layers and the starts of layers. Of each only those
/// of the image, and nothing else anywhere.
fn assert_killed(node: &TestNode, pushed: &Pushed, tops_before: &[Vec<String>; 2], after: &str) {
    let (begun, whole) = (ingests(node, pushed, after), blobs(node, after));
    let image: BTreeSet<String> = pushed.layers.iter().chain([&pushed.digest, &pushed.id]).cloned().collect();
    assert!(whole.is_subset(&image), "{after}: {whole:?}");
    assert!(begun.len() <= image.len(), "{after}: {begun:?}");
    let [_, layers, extracts, blobs] = rows(node);
    // A row is written when its blob is whole.
    assert!(blobs <= whole.len() as i64, "{after}: {blobs} rows, {whole:?}");
    let directories = names(&snapshots(node).join("snapshots"));
    assert!(directories.iter().all(|name| name.parse::<u64>().is_ok()), "{after}: {directories:?}");
    assert!(layers + extracts <= 4 && directories.len() <= 4, "{after}: {layers} {extracts} {directories:?}");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let own = node.path("root");
    let left: Vec<&str> = mounts.lines().filter(|line| line.contains(own.to_str().unwrap())).collect();
    assert_eq!(left, [""; 0], "{after}: a pull mounts nothing");
    assert_eq!(tops(node), *tops_before, "{after}");
}

/// What is there of a pull that was cut off once the daemon has started again: the image, if it had been named, or else
/// nothing but downloads that are worth going on with.
async fn assert_started(node: &TestNode, pushed: &Pushed, after: &str) {
    if node.client().image(IMAGE).await.unwrap().is_some() {
        return assert_whole(node, pushed, after).await;
    }
    assert_eq!(rows(node), [0; 4], "{after}");
    assert_eq!(blobs(node, after), BTreeSet::new(), "{after}");
    assert_eq!(names(&snapshots(node).join("snapshots")), [""; 0], "{after}");
    assert_eq!(names(&snapshots(node).join("trash")), [""; 0], "{after}");
    let begun = ingests(node, pushed, after);
    assert!(begun.values().all(|size| *size >= MIB as u64), "{after}: {begun:?}");
}

/// The image is there, whole, and nothing else of its pulls.
async fn assert_whole(node: &TestNode, pushed: &Pushed, after: &str) {
    let image = node.client().image(IMAGE).await.unwrap().unwrap_or_else(|| panic!("{after}: no image"));
    assert_eq!(image.id, pushed.id, "{after}");
    let expected = pushed.layers.iter().chain([&pushed.digest, &pushed.id]).cloned().collect();
    assert_eq!(blobs(node, after), expected, "{after}");
    assert_eq!(names(&content(node).join("ingest")), [""; 0], "{after}");
    let snapshots = snapshots(node);
    assert_eq!(names(&snapshots.join("trash")), [""; 0], "{after}");
    let layers = names(&snapshots.join("snapshots"));
    assert_eq!((layers.len(), rows(node)), (4, [2, 4, 0, 6]), "{after}: {layers:?}");
    let mut numbers = BTreeSet::new();
    for layer in layers {
        let root = snapshots.join("snapshots").join(layer).join("fs");
        let own = names(&root).into_iter().find(|name| root.join(name).join("large").exists()).unwrap();
        let number: u64 = own.parse().unwrap();
        assert!(
            fs::read(root.join(&own).join("large")).unwrap() == noise(number + 1, 2 * MIB),
            "{after}: layer {number}"
        );
        for file in 0..20 {
            let text = fs::read_to_string(root.join(&own).join(format!("small-{file}"))).unwrap();
            assert_eq!(text, format!("{number}.{file}"), "{after}");
        }
        numbers.insert(number);
    }
    assert_eq!(numbers, BTreeSet::from([0, 1, 2, 3]), "{after}");
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<String> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// Starts the daemon again, pulls, checks, and makes room for the next round.
async fn recover(node: &mut TestNode, gate: &Gate, pushed: &Pushed, after: &str) {
    gate.set(None);
    node.boot().await;
    assert_started(node, pushed, after).await;
    let client = node.client();
    client.pull(IMAGE).await.unwrap_or_else(|status| panic!("the pull {after}: {status}"));
    assert_whole(node, pushed, after).await;
    client.remove_image(IMAGE).await.unwrap();
    assert_eq!(rows(node), [0; 4], "{after}");
    assert_eq!(blobs(node, after), BTreeSet::new(), "{after}");
    assert_eq!(ingests(node, pushed, after), BTreeMap::new(), "{after}");
    node.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_daemon_killed_after_any_number_of_bytes_of_a_pull_leaves_nothing_and_the_next_goes_on() {
    let mut node = TestNode::prepare().await;
    let pushed = image().push(&node.registry.pusher(), "crash/app", "1");
    let gate = Gate::new(node.registry.address);
    node.add_mirror("docker.io", &format!("http://{}", gate.address));
    node.boot().await;
    node.client().pull(IMAGE).await.unwrap();
    let whole = gate.passed();
    assert_whole(&node, &pushed, "without a crash").await;
    node.client().remove_image(IMAGE).await.unwrap();
    assert!(whole > 8 * MIB as u64, "{whole}");

    let (end, before) = (whole - 2000, tops(&node));
    for left in [0, 400, 1500, 60_000, 900_000, 1_700_000, 2_600_000, 3_500_000, 4_600_000, 6_000_000, 7_400_000, end] {
        gate.set(Some(left));
        let client = node.client();
        let call = tokio::spawn(async move { client.pull(IMAGE).await });
        assert!(gate.is_held_within(wait::SOON), "nothing waits after {left} bytes");
        node.kill9();
        assert!(call.await.unwrap().is_err(), "answered after {left} bytes");
        let came = gate.passed();
        assert_killed(&node, &pushed, &before, &format!("killed after {came} bytes"));
        recover(&mut node, &gate, &pushed, &format!("after {came} bytes")).await;
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_daemon_killed_at_any_step_of_a_pull_leaves_nothing_and_the_next_finishes() {
    let mut node = TestNode::prepare().await;
    let pushed = image().push(&node.registry.pusher(), "crash/app", "1");
    let gate = Gate::new(node.registry.address);
    node.add_mirror("docker.io", &format!("http://{}", gate.address));
    node.boot().await;
    let before = tops(&node);
    type Seen = fn([i64; 4]) -> bool;
    let steps: [(&str, Seen); 8] = [
        ("the first blob", |[_, _, _, blobs]| blobs > 0),
        ("the first layer begun", |[_, _, extracts, _]| extracts > 0),
        ("two layers at once", |[_, layers, extracts, _]| layers + extracts > 1),
        ("the first layer", |[_, layers, _, _]| layers > 0),
        ("the second layer", |[_, layers, _, _]| layers > 1),
        ("the third layer", |[_, layers, _, _]| layers > 2),
        ("the last layer", |[_, layers, _, _]| layers > 3),
        ("the name", |[names, _, _, _]| names > 0),
    ];
    for (step, is_there) in steps {
        let client = node.client();
        let call = tokio::spawn(async move { client.pull(IMAGE).await });
        while !is_there(rows(&node)) && !call.is_finished() {
            tokio::task::yield_now().await;
        }
        node.kill9();
        // The pull may have been quicker than this test's look; the state is what counts.
        let _ = call.await.unwrap();
        assert_killed(&node, &pushed, &before, &format!("killed after {step}"));
        recover(&mut node, &gate, &pushed, &format!("after {step}")).await;
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_daemon_that_is_stopped_in_a_pull_ends_soon_and_the_next_goes_on() {
    let mut node = TestNode::prepare().await;
    let pushed = image().push(&node.registry.pusher(), "crash/app", "1");
    let gate = Gate::new(node.registry.address);
    node.add_mirror("docker.io", &format!("http://{}", gate.address));
    node.boot().await;
    gate.set(Some(5_000_000));
    let client = node.client();
    let call = tokio::spawn(async move { client.pull(IMAGE).await });
    assert!(gate.is_held_within(Duration::from_secs(30)));
    node.terminate().await;
    assert!(call.await.unwrap().is_err());
    recover(&mut node, &gate, &pushed, "after SIGTERM").await;
    node.finish().await;
}
