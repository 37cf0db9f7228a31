//! Downloads that break off, come in parts, or bring what was not asked for; and layers that wait for each other.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "pull/node.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod node;
mod support;

use std::fs;
use std::time::Duration;

use node::{Compression, Layer, Node, Pushed, Recipe, eventually};
use support::{Action, TestRegistry};
use windlass_image_service::digest::Digest;
use windlass_image_service::images::PullError;

const MIB: usize = 1 << 20;
const IMAGE: &str = "registry.test/team/app:v1";

/// Text that differs everywhere, so that a part in the wrong place is noticed.
fn text(size: usize) -> String {
    (0..).map(|n: u32| format!("{n:07} ")).take(size / 8).collect()
}

/// One layer of three MiB and a little.
fn large(registry: &TestRegistry) -> Pushed {
    Recipe::new(vec![Layer::new(Compression::None).file("large", &text(3 * MIB))]).push(registry, "team/app", &["v1"])
}

/// The `Range` of each request for the blob, in the order in which they came.
fn ranges(registry: &TestRegistry, blob: &Digest) -> Vec<String> {
    let asked = registry.seen().into_iter().filter(|seen| seen.path.ends_with(&blob.to_string()));
    asked.map(|seen| seen.header("range").unwrap_or("all").to_owned()).collect()
}

/// Pulls until so much of the layer is on disk, and gives up then.
async fn give_up_after(node: &Node, registry: &TestRegistry, blob: &Digest, count: usize) {
    registry.fault(None, blob.hex(), 1, Action::HoldBody(count));
    let (images, request) = (node.images.clone(), node.request(IMAGE));
    let pull = tokio::spawn(async move { images.pull(request).await });
    eventually("the layer has come so far", || node.ingests().iter().any(|(_, size)| *size == count as u64)).await;
    pull.abort();
    assert!(pull.await.unwrap_err().is_cancelled());
    eventually("nothing but the start of the layer is left", || {
        node.snapshots_sorted().is_empty() && node.blobs().is_empty() && node.ingests().len() == 1
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pull_goes_on_where_the_last_one_ended_also_after_a_restart_and_with_another_mirror() {
    let (registry, mirror) = (TestRegistry::http().await, TestRegistry::http().await);
    let pushed = large(&registry);
    large(&mirror);
    let blob = &pushed.layers[0].digest;
    let node = Node::new(&registry).await;
    give_up_after(&node, &registry, blob, 2 * MIB).await;
    let node = node.reopen().await;
    assert_eq!(node.ingests().len(), 1);
    node.set_hosts(&registry, &[&mirror]);
    node.pull(IMAGE).await.unwrap();
    assert_eq!(ranges(&registry, blob), ["all"]);
    assert_eq!(ranges(&mirror, blob), [format!("bytes={}-", 2 * MIB)]);
    assert_eq!(node.files(), [format!("large={}", text(3 * MIB))]);
    assert_eq!(node.ingests(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_whole_blobs_of_a_pull_that_did_not_end_are_not_fetched_again() {
    let registry = TestRegistry::http().await;
    let layer = |name: &str, size| Layer::new(Compression::None).file(name, &text(size));
    let recipe = Recipe::new(vec![layer("whole", 2 * MIB), layer("small", 1000), layer("begun", 3 * MIB)]);
    let pushed = recipe.push(&registry, "team/app", &["v1"]);
    let [whole, small, begun] = [0, 1, 2].map(|n| &pushed.layers[n].digest);
    let node = Node::with(&registry, |config| config.max_concurrent_downloads = 1).await;
    registry.fault(None, begun.hex(), 1, Action::HoldBody(2 * MIB));
    let (images, request) = (node.images.clone(), node.request(IMAGE));
    let pull = tokio::spawn(async move { images.pull(request).await });
    eventually("the last layer has begun", || node.ingests().iter().any(|(_, size)| *size == 2 * MIB as u64)).await;
    pull.abort();
    assert!(pull.await.unwrap_err().is_cancelled());
    eventually("nothing is in use", || node.snapshots_sorted().is_empty() && node.blobs().is_empty()).await;
    assert_eq!(node.ingests().len(), 2);
    let node = node.reopen().await;
    node.pull(IMAGE).await.unwrap();
    assert_eq!(ranges(&registry, whole), ["all"]);
    assert_eq!(ranges(&registry, small), ["all", "all"]);
    assert_eq!(ranges(&registry, begun), ["all".to_owned(), format!("bytes={}-", 2 * MIB)]);
    assert_eq!(node.ingests(), []);
    // What is removed is gone at once, however young it is.
    node.images.remove(&node.ns, IMAGE).await.unwrap();
    node.is_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_start_that_turns_out_wrong_is_fetched_again_and_nobody_is_blamed() {
    let registry = TestRegistry::http().await;
    let pushed = large(&registry);
    let blob = &pushed.layers[0].digest;
    let node = Node::new(&registry).await;
    give_up_after(&node, &registry, blob, 2 * MIB).await;
    fs::write(&node.ingests()[0].0, vec![0; MIB]).unwrap();
    node.pull(IMAGE).await.unwrap();
    assert_eq!(ranges(&registry, blob), ["all".to_owned(), format!("bytes={MIB}-"), "all".to_owned()]);
    assert_eq!(node.files(), [format!("large={}", text(3 * MIB))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_blob_that_breaks_off_is_gone_on_with_at_the_next_host() {
    let (registry, mirror) = (TestRegistry::http().await, TestRegistry::http().await);
    let pushed = large(&registry);
    large(&mirror);
    let blob = &pushed.layers[0].digest;
    let node = Node::new(&registry).await;
    node.set_hosts(&registry, &[&mirror]);
    mirror.fault(None, blob.hex(), 1, Action::Reset(MIB));
    mirror.fault(None, blob.hex(), 99, Action::Status(503, String::new()));
    node.pull(IMAGE).await.unwrap();
    let asked = ranges(&registry, blob);
    assert_eq!(asked.len(), 1);
    let start: usize = asked[0].strip_prefix("bytes=").unwrap().strip_suffix('-').unwrap().parse().unwrap();
    // A reset may take with it what was not read yet.
    assert!(start <= MIB, "{start}");
    assert_eq!(node.files(), [format!("large={}", text(3 * MIB))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_who_sends_wrong_content_is_not_asked_again_and_the_next_host_is() {
    let (registry, mirror) = (TestRegistry::http().await, TestRegistry::http().await);
    let recipe = || {
        let layer = |name: &str| Layer::new(Compression::Gzip).file(name, name);
        Recipe::new(vec![layer("a"), layer("b"), layer("c")])
    };
    let pushed = recipe().push(&registry, "team/app", &["v1"]);
    recipe().push(&mirror, "team/app", &["v1"]);
    let first = &pushed.layers[0];
    let wrong = vec![b'x'; usize::try_from(first.size).unwrap()];
    mirror.fault(None, first.digest.hex(), 9, Action::Body(wrong.into()));
    let node = Node::with(&registry, |config| config.max_concurrent_downloads = 1).await;
    node.set_hosts(&registry, &[&mirror]);
    node.pull(IMAGE).await.unwrap();
    for (layer, times) in pushed.layers.iter().zip([1, 0, 0]) {
        assert_eq!(ranges(&mirror, &layer.digest).len(), times);
        assert_eq!(ranges(&registry, &layer.digest), ["all"]);
    }
    assert_eq!(node.files(), ["a=a", "b=b", "c=c"]);
    assert_eq!(node.ingests(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_large_blob_comes_in_parts_if_the_registry_knows_ranges() {
    let registry = TestRegistry::http().await;
    let pushed = large(&registry);
    let (blob, size) = (&pushed.layers[0].digest, usize::try_from(pushed.layers[0].size).unwrap());
    let part = MIB - 1;
    let parts = |config: &mut windlass_image_service::images::Config| config.layer_fetch_buffer = part as u64;
    let node = Node::with(&registry, parts).await;
    registry.fault(None, blob.hex(), 1, Action::CutBody(1000));
    node.pull(IMAGE).await.unwrap();
    assert_eq!(node.files(), [format!("large={}", text(3 * MIB))]);
    let mut expected: Vec<String> = (0..3).map(|n| format!("bytes={}-{}", n * part, (n + 1) * part - 1)).collect();
    expected.push(format!("bytes={}-", 3 * part));
    expected.push(format!("bytes=1000-{}", part - 1));
    let mut asked = ranges(&registry, blob);
    assert!(size > 3 * part);
    asked.sort();
    expected.sort();
    assert_eq!(asked, expected);

    let other = TestRegistry::http().await;
    large(&other);
    other.fault(None, blob.hex(), 9, Action::IgnoreRange);
    let node = Node::with(&other, parts).await;
    node.pull(IMAGE).await.unwrap();
    assert_eq!(ranges(&other, blob), [format!("bytes=0-{}", part - 1)]);
    assert_eq!(node.files(), [format!("large={}", text(3 * MIB))]);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pull_that_moves_is_not_given_up_and_one_that_stopped_is() {
    let registry = TestRegistry::http().await;
    let pushed = large(&registry);
    let blob = pushed.layers[0].digest.hex();
    let limit = Duration::from_millis(400);
    let node = Node::with(&registry, |config| {
        config.progress_timeout = limit;
        config.layer_fetch_buffer = (2 * MIB) as u64;
    })
    .await;
    // A part takes longer than the limit, but something always comes.
    registry.fault(None, blob, 1, Action::Drip(MIB / 4, limit / 4));
    node.pull(IMAGE).await.unwrap();
    node.images.remove(&node.ns, IMAGE).await.unwrap();
    registry.fault(None, blob, 1, Action::HoldBody(MIB));
    let error = node.pull(IMAGE).await.unwrap_err();
    let PullError::Stalled { reference, size, .. } = &error else { panic!("{error:?}") };
    assert_eq!((reference.as_str(), *size), (IMAGE, pushed.layers[0].size));
}

/// An archive with hard links, which need what they lead to.
fn archive(fill: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Layer {
    let mut tar = tar::Builder::new(Vec::new());
    fill(&mut tar);
    Layer::raw(tar.into_inner().unwrap())
}

fn header(kind: tar::EntryType, mode: u32) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    header
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_layer_that_comes_before_the_one_below_finds_what_it_refers_to() {
    let registry = TestRegistry::http().await;
    let below = archive(|tar| {
        tar.append_data(&mut header(tar::EntryType::Directory, 0o700), "dir/", &[][..]).unwrap();
        let mut file = header(tar::EntryType::Regular, 0o644);
        file.set_size(4);
        tar.append_data(&mut file, "dir/file", &b"text"[..]).unwrap();
    });
    let above = archive(|tar| {
        tar.append_link(&mut header(tar::EntryType::Link, 0o644), "again", "dir/file").unwrap();
        tar.append_data(&mut header(tar::EntryType::Regular, 0o644), "dir/.wh.gone", &[][..]).unwrap();
    });
    let pushed = Recipe::new(vec![below, above]).push(&registry, "team/app", &["v1"]);
    registry.fault(None, pushed.layers[0].digest.hex(), 1, Action::Drip(700, Duration::from_millis(100)));
    let node = Node::new(&registry).await;
    node.pull(IMAGE).await.unwrap();
    assert_eq!(node.files(), ["again=text", "dir/file=text", "dir/file=text", "dir/gone"]);
    assert_eq!(node.snapshots(), pushed.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_error_below_is_told_and_not_what_it_leads_to_above() {
    let registry = TestRegistry::http().await;
    let above = archive(|tar| {
        tar.append_link(&mut header(tar::EntryType::Link, 0o644), "again", "dir/file").unwrap();
    });
    Recipe::new(vec![Layer::raw(b"this is no archive".repeat(100)), above]).push(&registry, "team/app", &["v1"]);
    let node = Node::new(&registry).await;
    let text = node::chain(&node.pull(IMAGE).await.unwrap_err());
    assert!(text.contains("not a valid tar archive"), "{text}");
    node.is_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_images_with_layers_in_common_are_pulled_together_and_each_layer_is_fetched_once() {
    let registry = TestRegistry::http().await;
    let common = || (0..12).map(|n| Layer::new(Compression::Gzip).file(&format!("common-{n}"), &n.to_string()));
    let mut blobs = Vec::new();
    for image in 0..10 {
        // Each has another number of the common layers.
        let mut layers: Vec<Layer> = common().take(3 + image).collect();
        layers.push(Layer::new(Compression::Zstd).file("own", &image.to_string()));
        blobs.extend(Recipe::new(layers).push(&registry, &format!("team/app-{image}"), &["v1"]).layers);
    }
    let node = Node::with(&registry, |config| config.max_concurrent_downloads = 2).await;
    let pulls = (0..10).map(|image| {
        let (images, request) = (node.images.clone(), node.request(&format!("registry.test/team/app-{image}:v1")));
        tokio::spawn(async move { images.pull(request).await.map(|image| image.id.clone()) })
    });
    for pull in pulls.collect::<Vec<_>>() {
        pull.await.unwrap().unwrap();
    }
    for blob in blobs {
        assert_eq!(ranges(&registry, &blob.digest), ["all"]);
    }
    assert_eq!(node.images.list(&node.ns).len(), 10);
    assert_eq!(node.snapshots().len(), 12 + 10);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pull_that_waits_for_the_disk_leaves_nothing_that_a_power_failure_takes() {
    let registry = TestRegistry::http().await;
    large(&registry);
    let node = Node::with(&registry, |config| config.waits_for_disk = true).await;
    node.pull(IMAGE).await.unwrap();
    assert_eq!(node.not_durable().await, 0);
}
