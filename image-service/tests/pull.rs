//! Pulls from an in-process registry into a real store, content directory and snapshotter.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "pull/node.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod node;
mod support;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use node::{Compression, Layer, Node, Recipe, chain, eventually};
use serde_json::json;
use support::{Action, TestRegistry};
use windlass_image_service::digest::Digest;
use windlass_image_service::images::{Config, PullError};
use windlass_image_service::registry::media_type;

fn two_layers() -> Recipe {
    Recipe::new(vec![
        Layer::new(Compression::Gzip).file("etc/name", "below").file("gone", "x"),
        Layer::new(Compression::Zstd).file("etc/name", "above").file(".wh.gone", ""),
    ])
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pulled_image_has_its_names_its_layers_and_its_blobs() {
    let registry = TestRegistry::http().await;
    let pushed = two_layers().push(&registry, "team/app", &["v1"]);
    let node = Node::new(&registry).await;
    let image = node.pull("registry.test/team/app:v1").await.unwrap();

    assert_eq!(image.id, pushed.config.digest);
    assert_eq!(image.tags, ["registry.test/team/app:v1"]);
    assert_eq!(image.digests, [format!("registry.test/team/app@{}", pushed.manifest.digest)]);
    assert_eq!(image.target, pushed.manifest.digest);
    assert_eq!(
        image.size,
        pushed.manifest.size + pushed.config.size + pushed.layers.iter().map(|l| l.size).sum::<u64>()
    );
    assert_eq!(image.config.config().as_ref().unwrap().cmd().as_ref().unwrap(), &["/bin/app"]);
    assert!(!image.pinned);
    assert_eq!(node.snapshots(), pushed.chain());
    assert_eq!(image.chain_id, *pushed.chain().last().unwrap());
    assert_eq!(node.blobs(), pushed.blobs());
    assert_eq!(node.files(), ["etc/name=above", "etc/name=below", "gone", "gone=x"]);
    assert!(node.images.filesystems()[0].used_bytes > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_snapshotter_that_copies_gets_layers_with_the_deleted_really_gone() {
    let registry = TestRegistry::http().await;
    let pushed = two_layers().push(&registry, "team/app", &["v1"]);
    let node = Node::with(&registry, |config| config.default_snapshotter = "native".into()).await;
    node.pull("registry.test/team/app:v1").await.unwrap();
    assert_eq!(node.snapshots(), pushed.chain());
    assert_eq!(node.files(), ["etc/name=above", "etc/name=below", "gone=x"]);
}

/// What is left is what says what the image is.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_blobs_of_unpacked_layers_go_if_they_are_not_wanted() {
    let registry = TestRegistry::http().await;
    let pushed = two_layers().push(&registry, "team/app", &["v1"]);
    let node = Node::with(&registry, |config| config.discard_unpacked_layers = true).await;
    let mut kept = [pushed.manifest.digest.to_string(), pushed.config.digest.to_string()];
    kept.sort();
    for _ in 0..2 {
        node.pull("registry.test/team/app:v1").await.unwrap();
        assert_eq!(node.blobs(), kept);
    }
    let node = node.reopen().await;
    assert_eq!(node.images.list(&node.ns).len(), 1);
    assert_eq!(node.snapshots(), pushed.chain());
    node.images.remove(&node.ns, "registry.test/team/app:v1").await.unwrap();
    node.is_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_every_name_of_an_image_leads_to_the_same_and_removing_one_removes_all() {
    let registry = TestRegistry::http().await;
    let pushed = two_layers().push(&registry, "team/app", &["a", "b", "latest"]);
    let node = Node::new(&registry).await;
    for tag in [":a", ":b", ""] {
        node.pull(&format!("registry.test/team/app{tag}")).await.unwrap();
    }
    let (id, manifest) = (pushed.config.digest.to_string(), pushed.manifest.digest.to_string());
    let [image] = node.images.list(&node.ns).try_into().unwrap();
    let tags = ["a", "b", "latest"].map(|tag| format!("registry.test/team/app:{tag}"));
    assert_eq!(image.tags, tags);
    for name in [
        id.clone(),
        id["sha256:".len()..][..12].to_owned(),
        "registry.test/team/app".to_owned(),
        format!("registry.test/team/app@{manifest}"),
        format!("registry.test/team/app:a@{manifest}"),
    ] {
        let found = node.images.resolve(&node.ns, &name);
        assert_eq!(found.map(|found| found.id.to_string()), Some(id.clone()), "{name}");
    }
    assert!(node.images.resolve(&node.ns, "registry.test/team/other").is_none());

    node.images.remove(&node.ns, "registry.test/team/app:b").await.unwrap();
    node.images.remove(&node.ns, "registry.test/team/app:b").await.unwrap();
    assert!(node.images.list(&node.ns).is_empty());
    node.is_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pull_by_digest_gives_no_tag() {
    let registry = TestRegistry::http().await;
    let pushed = two_layers().push(&registry, "team/app", &["v1"]);
    let node = Node::new(&registry).await;
    let reference = format!("registry.test/team/app@{}", pushed.manifest.digest);
    let image = node.pull(&reference).await.unwrap();
    assert_eq!((image.tags.as_slice(), image.digests.as_slice()), ([].as_slice(), [reference].as_slice()));
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_moved_tag_leaves_the_old_image_its_digest() {
    let registry = TestRegistry::http().await;
    let old = two_layers().push(&registry, "team/app", &["v1"]);
    let node = Node::new(&registry).await;
    node.pull("registry.test/team/app:v1").await.unwrap();
    let new = Recipe::new(vec![Layer::new(Compression::None).file("new", "1")]).push(&registry, "team/app", &["v1"]);
    let image = node.pull("registry.test/team/app:v1").await.unwrap();
    assert_eq!((&image.id, image.tags.len()), (&new.config.digest, 1));
    let old_image = node.images.resolve(&node.ns, &old.config.digest.to_string()).unwrap();
    assert_eq!(old_image.tags, [""; 0]);
    assert_eq!(old_image.digests, [format!("registry.test/team/app@{}", old.manifest.digest)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_index_gives_this_nodes_image() {
    let registry = TestRegistry::http().await;
    let pushed = two_layers().push(&registry, "team/app", &[]);
    let mut here = serde_json::to_value(&pushed.manifest).unwrap();
    here["platform"] = json!({"os": "linux", "architecture": node::architecture()});
    let mut other = here.clone();
    other["platform"]["architecture"] = "s390x".into();
    other["digest"] = Digest::sha256_of(b"other").to_string().into();
    let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [other, here]});
    let index = registry.put_manifest("team/app", Some("v1"), media_type::OCI_INDEX, index.to_string());
    let node = Node::new(&registry).await;
    let image = node.pull("registry.test/team/app:v1").await.unwrap();
    assert_eq!((&image.id, &image.target), (&pushed.config.digest, &index.digest));
    assert_eq!(node.blobs().len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_wrong_content_fails_the_pull_and_leaves_nothing() {
    let registry = TestRegistry::http().await;
    let node = Node::new(&registry).await;
    let check = async |tag: &str, wanted: &str| {
        let error = node.pull(&format!("registry.test/team/app:{tag}")).await.unwrap_err();
        let text = node::chain(&error);
        assert!(text.contains(wanted), "{tag}: {text}");
        assert!(text.contains(&format!("registry.test/team/app:{tag}")), "{text}");
        node.is_empty();
    };
    let mut lies = two_layers();
    lies.diff_ids = Some(vec![Digest::sha256_of(b"not this"), Digest::sha256_of(b"nor this")]);
    lies.push(&registry, "team/app", &["diff-id"]);
    check("diff-id", "the image says sha256:").await;

    let swapped = two_layers().push(&registry, "team/app", &["blob"]);
    let other = vec![b'x'; usize::try_from(swapped.layers[0].size).unwrap()];
    registry.fault(None, swapped.layers[0].digest.hex(), 1, Action::Body(other.into()));
    check("blob", "has other content").await;

    Recipe::new(vec![Layer::raw(b"this is no archive".repeat(100))]).push(&registry, "team/app", &["garbage"]);
    check("garbage", "not a valid tar archive").await;

    let old = json!({"schemaVersion": 1, "name": "team/app", "tag": "old", "fsLayers": []}).to_string();
    registry.put_manifest("team/app", Some("old"), "application/vnd.docker.distribution.manifest.v1+json", old);
    check("old", "schema").await;

    // After all that, the right content is taken.
    node.pull("registry.test/team/app:blob").await.unwrap();
    assert_eq!(node.images.list(&node.ns).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_callers_of_the_same_pull_share_it() {
    let registry = TestRegistry::http().await;
    let pushed = two_layers().push(&registry, "team/app", &["v1"]);
    let node = Node::new(&registry).await;
    let done = AtomicUsize::new(0);
    let one = async {
        let image = node.pull("registry.test/team/app:v1").await.unwrap();
        done.fetch_add(1, Ordering::Relaxed);
        image.id.clone()
    };
    let another = async { node.pull("registry.test/team/app:v1").await.unwrap().id.clone() };
    let third = async { node.pull("registry.test/team/app:v1").await.unwrap().id.clone() };
    assert_eq!(
        tokio::join!(one, another, third),
        std::array::from_fn::<_, 3, _>(|_| pushed.config.digest.clone()).into()
    );
    let fetched = registry.lines().iter().filter(|line| line.contains(pushed.layers[1].digest.hex())).count();
    assert_eq!((fetched, done.into_inner()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_the_last_caller_that_gives_up_cancels_the_pull() {
    let registry = TestRegistry::http().await;
    let pushed = two_layers().push(&registry, "team/app", &["v1"]);
    let node = Node::new(&registry).await;
    let blob = pushed.layers[0].digest.hex().to_owned();
    registry.fault(None, &blob, 1, Action::HoldBody(20));
    let first = tokio::spawn({
        let (images, request) = (node.images.clone(), node.request("registry.test/team/app:v1"));
        async move { images.pull(request).await }
    });
    eventually("the layer is asked for", || registry.lines().iter().any(|line| line.contains(&blob))).await;
    first.abort();
    assert!(first.await.unwrap_err().is_cancelled());
    eventually("what was fetched is gone", || node.leftovers().is_empty()).await;
    assert!(node.images.list(&node.ns).is_empty());
    node.pull("registry.test/team/app:v1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_registry_that_stops_in_the_middle_fails_the_pull_and_is_named() {
    let registry = TestRegistry::http().await;
    let pushed = two_layers().push(&registry, "team/app", &["v1"]);
    let node = Node::with(&registry, |config| config.progress_timeout = Duration::from_millis(300)).await;
    registry.fault(None, pushed.layers[1].digest.hex(), 1, Action::HoldBody(20));
    let error = node.pull("registry.test/team/app:v1").await.unwrap_err();
    let PullError::Stalled { reference, digest, at, size, .. } = error else { panic!("{error:?}") };
    assert_eq!(
        (reference.as_str(), digest, at, size),
        ("registry.test/team/app:v1", pushed.layers[1].digest.clone(), 20, pushed.layers[1].size)
    );
    node.is_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_a_pull_has_in_common_with_another_image_is_not_fetched_again_and_outlives_it() {
    let registry = TestRegistry::http().await;
    let below = || Layer::new(Compression::Gzip).file("base", "1");
    let one =
        Recipe::new(vec![below(), Layer::new(Compression::Gzip).file("one", "1")]).push(&registry, "team/one", &["v1"]);
    let two =
        Recipe::new(vec![below(), Layer::new(Compression::Gzip).file("two", "1")]).push(&registry, "team/two", &["v1"]);
    let node = Node::new(&registry).await;
    node.pull("registry.test/team/one:v1").await.unwrap();
    node.pull("registry.test/team/two:v1").await.unwrap();
    let fetched = registry.lines().iter().filter(|line| line.contains(one.layers[0].digest.hex())).count();
    assert_eq!(fetched, 1);
    node.images.remove(&node.ns, &one.config.digest.to_string()).await.unwrap();
    assert_eq!(node.blobs(), two.blobs());
    let mut chain = two.chain();
    chain.sort();
    assert_eq!(node.snapshots_sorted(), chain);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_images_outlive_the_daemon_but_not_a_power_failure_before_they_are_on_disk() {
    let registry = TestRegistry::http().await;
    let pushed = two_layers().push(&registry, "team/app", &["v1"]);
    let node = Node::new(&registry).await;
    node.pull("registry.test/team/app:v1").await.unwrap();
    let node = node.reopen().await;
    let image = node.images.resolve(&node.ns, "registry.test/team/app:v1").unwrap();
    assert_eq!((&image.id, &image.chain_id), (&pushed.config.digest, pushed.chain().last().unwrap()));

    node.pretend_power_failure().await;
    let node = node.reopen().await;
    assert!(node.images.list(&node.ns).is_empty());
    node.is_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_image_whose_layers_are_gone_is_not_shown() {
    let registry = TestRegistry::http().await;
    two_layers().push(&registry, "team/app", &["v1"]);
    let node = Node::new(&registry).await;
    node.pull("registry.test/team/app:v1").await.unwrap();
    node.drop_top_layer();
    let node = node.reopen().await;
    assert!(node.images.list(&node.ns).is_empty());
    node.is_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_layers_of_a_container_outlive_their_image() {
    let registry = TestRegistry::http().await;
    let pushed = two_layers().push(&registry, "team/app", &["v1"]);
    let node = Node::new(&registry).await;
    let image = node.pull("registry.test/team/app:v1").await.unwrap();
    node.start_container(&image.chain_id);
    node.images.remove(&node.ns, "registry.test/team/app:v1").await.unwrap();
    let mut expected = pushed.chain();
    expected.push("container".into());
    expected.sort();
    assert_eq!((node.snapshots_sorted(), node.blobs().len()), (expected, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pinned_reference_makes_a_pinned_image() {
    let registry = TestRegistry::http().await;
    two_layers().push(&registry, "pause", &["3.10"]);
    let node = Node::with(&registry, |config| config.pinned = vec!["registry.test/pause:3.10".into()]).await;
    assert!(node.pull("registry.test/pause:3.10").await.unwrap().pinned);
}

/// Each layer is small; the layers of an image are counted together, those that are there already too.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_image_may_hold_only_so_much_in_all_and_leaves_nothing_if_it_holds_more() {
    let registry = TestRegistry::http().await;
    let layer =
        |name: &str| Layer::new(Compression::Gzip).file(name, &"x".repeat(40_000)).file(&format!("more {name}"), name);
    Recipe::new(vec![layer("one"), layer("two")]).push(&registry, "team/two", &["v1"]);
    Recipe::new(vec![layer("one"), layer("two"), layer("three")]).push(&registry, "team/three", &["v1"]);
    type Change = fn(&mut Config);
    let bytes: Change = |config| config.max_image_bytes = 110_000;
    let files: Change = |config| config.max_image_files = 5;
    for default in ["overlayfs", "native"] {
        let cases = [(bytes, "hold more than 110000 bytes of files"), (files, "hold more than 5 files")];
        for (change, expected) in cases {
            let set = |config: &mut Config| {
                config.default_snapshotter = default.into();
                change(config);
            };
            let node = Node::with(&registry, set).await;
            let refused = async || {
                let error = chain(&node.pull("registry.test/team/three:v1").await.unwrap_err());
                assert!(error.contains(&format!("the layers of the image together {expected}")), "{default}: {error}");
            };
            refused().await;
            node.is_empty();
            let fitting = node.pull("registry.test/team/two:v1").await;
            fitting.unwrap_or_else(|error| panic!("{default}: {}", chain(&error)));
            let before = (node.snapshots_sorted(), node.blobs());
            refused().await;
            assert_eq!((node.snapshots_sorted(), node.blobs()), before, "{default}");
            // What is there already is counted once.
            node.pull("registry.test/team/two:v1").await.unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_errors_tell_what_the_caller_can_do() {
    let registry = TestRegistry::http().await;
    let node = Node::new(&registry).await;
    assert!(matches!(node.pull("UPPER").await, Err(PullError::Reference { .. })));
    assert!(matches!(node.pull("registry.test/absent:v1").await, Err(PullError::NotFound(_))));
    let mut request = node.request("registry.test/absent:v1");
    request.snapshotter = Some("nope".into());
    let text = node::chain(&node.images.pull(request).await.unwrap_err());
    assert!(text.contains("nope"), "{text}");
    assert_eq!(registry.lines().iter().filter(|line| line.contains("blobs")).count(), 0);
}
