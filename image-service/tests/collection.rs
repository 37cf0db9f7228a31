//! Collection beside pulls, lists and leases: nobody waits for a deletion, and nothing that is relied on goes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "pull/hooked.rs"]
mod hooked;
#[path = "pull/node.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod node;
mod support;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use hooked::{Door, hooked};
use node::{Compression, Layer, Node, Pushed, Recipe};
use support::TestRegistry;
use tokio::runtime::Handle;
use windlass_image_service::images::Images;
use windlass_image_service::leases::{Collected, Resource};

fn push(registry: &TestRegistry, name: &str, layers: &[&str]) -> Pushed {
    let layers = layers.iter().map(|content| Layer::new(Compression::Gzip).file(content, content)).collect();
    Recipe::new(layers).push(registry, &format!("team/{name}"), &["v1"])
}

fn name(image: &str) -> String {
    format!("registry.test/team/{image}:v1")
}

impl Node {
    fn tags(&self) -> Vec<String> {
        let mut tags: Vec<String> = self.images.list(&self.ns).iter().flat_map(|image| image.tags.clone()).collect();
        tags.sort();
        tags
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_pulls_lists_and_leases_go_on_while_the_space_of_layers_is_freed() {
    let registry = TestRegistry::http().await;
    push(&registry, "large", &["shared", "tree"]);
    push(&registry, "next", &["shared", "other"]);
    let door = Door::default();
    let held = door.clone();
    let setup = hooked(move |call| {
        if call == "empty_trash" {
            held.pass();
        }
    });
    let node = Node::set_up(&registry, |_| {}, setup).await;
    node.pull(&name("large")).await.unwrap();
    door.shut();
    let (images, ns) = (node.images.clone(), node.ns.clone());
    let removing = tokio::spawn(async move { images.remove(&ns, &name("large")).await });
    door.somebody_waits().await;

    // The tree is not freed yet, but what it was is not there any more.
    assert_eq!(node.tags(), [""; 0]);
    assert_eq!(node.snapshots(), [""; 0]);
    node.pull(&name("next")).await.unwrap();
    assert_eq!(node.tags(), [name("next")]);
    assert!(node.images.resolve(&node.ns, &name("next")).is_some());
    let lease = node.images.leases().create(&node.ns, "", BTreeMap::new()).await.unwrap();
    node.images.leases().delete(&node.ns, &lease.id, Collected::Soon).await.unwrap();
    // The same image again, whose layers' directories are still in the trash.
    node.pull(&name("large")).await.unwrap();
    assert!(!removing.is_finished());

    door.open();
    removing.await.unwrap().unwrap();
    assert_eq!(node.tags(), [name("large"), name("next")]);
    assert_eq!(node.snapshots().len(), 3);
}

/// Between the decision that something goes and its going, nobody is told that it is kept.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_lease_is_added_before_a_collection_or_behind_it() {
    let registry = TestRegistry::http().await;
    let pushed = push(&registry, "app", &["layer"]);
    let door = Door::default();
    let held = door.clone();
    let setup = hooked(move |call| {
        if call == "discard" {
            held.pass();
        }
    });
    let node = Node::set_up(&registry, |_| {}, setup).await;
    node.pull(&name("app")).await.unwrap();
    node.images.leases().create(&node.ns, "l", BTreeMap::new()).await.unwrap();
    door.shut();
    let (images, ns) = (node.images.clone(), node.ns.clone());
    let removing = tokio::spawn(async move { images.remove(&ns, &name("app")).await });
    door.somebody_waits().await;

    let top = Resource::Snapshot { snapshotter: "overlayfs".into(), key: pushed.chain()[0].clone() };
    let (images, ns, resource) = (node.images.clone(), node.ns.clone(), top.clone());
    let adding = tokio::spawn(async move {
        images.leases().add(&ns, "l", resource).await.unwrap();
    });
    // Whatever else is to run has run; the lease waits for the collection.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    assert!(!adding.is_finished());
    assert_eq!(node.images.leases().resources(&node.ns, "l").await.unwrap(), []);
    door.open();
    removing.await.unwrap().unwrap();
    adding.await.unwrap();
    assert_eq!(node.images.leases().resources(&node.ns, "l").await.unwrap(), [top]);
    assert_eq!(node.snapshots_sorted(), [""; 0]);
}

/// A collection, whole, before each thing that a pull does with layers: what the pull has looked at stays.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_collection_at_any_point_of_a_pull_takes_nothing_from_it() {
    static IMAGES: OnceLock<Images> = OnceLock::new();
    static IS_ON: AtomicBool = AtomicBool::new(false);
    static COLLECTIONS: AtomicUsize = AtomicUsize::new(0);
    let setup = hooked(|call| {
        if ["stat", "prepare", "rebase", "commit"].contains(&call)
            && IS_ON.load(Ordering::Relaxed)
            && let Some(images) = IMAGES.get()
        {
            Handle::current().block_on(images.collect()).unwrap();
            COLLECTIONS.fetch_add(1, Ordering::Relaxed);
        }
    });
    let registry = TestRegistry::http().await;
    let gone = push(&registry, "gone", &["one", "two", "three"]);
    let pushed = push(&registry, "app", &["one", "two", "four"]);
    let node = Node::set_up(&registry, |_| {}, setup).await;
    assert!(IMAGES.set(node.images.clone()).is_ok());
    for round in 0..3 {
        // In the second round, what the pull finds is no image's any more and was only not collected yet.
        if round == 1 {
            let whole = Resource::Content(gone.manifest.digest.clone());
            node.images.leases().create(&node.ns, "l", BTreeMap::new()).await.unwrap();
            node.images.leases().add(&node.ns, "l", whole).await.unwrap();
            node.pull(&name("gone")).await.unwrap();
            node.images.remove(&node.ns, &name("gone")).await.unwrap();
            node.images.leases().delete(&node.ns, "l", Collected::Soon).await.unwrap();
        }
        IS_ON.store(true, Ordering::Relaxed);
        node.pull(&name("app")).await.unwrap();
        IS_ON.store(false, Ordering::Relaxed);
        node.images.collect().await.unwrap();
        let mut expected = pushed.chain();
        expected.sort();
        assert_eq!((node.snapshots_sorted(), node.blobs()), (expected, pushed.blobs()), "round {round}");
        if round < 2 {
            node.images.remove(&node.ns, &name("app")).await.unwrap();
            node.is_empty();
        }
    }
    assert!(COLLECTIONS.load(Ordering::Relaxed) >= 3 * 3 * 2, "{COLLECTIONS:?}");
    // What is left can be read again after a restart.
    assert_eq!(node.tags(), [name("app")]);
}

/// Collections without a pause beside pulls and removals of images that share layers.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn privileged_images_stay_whole_while_others_go_and_collections_never_pause() {
    let registry = TestRegistry::http().await;
    let names = ["a", "b", "c", "d"];
    let all: Vec<Pushed> = names
        .iter()
        .enumerate()
        .map(|(number, image)| push(&registry, image, &["shared", ["x", "y"][number % 2], image]))
        .collect();
    let node = Node::new(&registry).await;
    let is_over = Arc::new(AtomicBool::new(false));
    let (images, over) = (node.images.clone(), Arc::clone(&is_over));
    let collecting = tokio::spawn(async move {
        let mut count = 0;
        while !over.load(Ordering::Relaxed) {
            images.collect().await.unwrap();
            count += 1;
        }
        count
    });
    let works: Vec<_> = names
        .iter()
        .zip(all)
        .enumerate()
        .map(|(number, (image, pushed))| {
            let (images, ns, request, image) =
                (node.images.clone(), node.ns.clone(), node.request(&name(image)), name(image));
            tokio::spawn(async move {
                for round in 0..6 {
                    let pulled = images.pull(request.clone()).await.unwrap();
                    assert_eq!(pulled.id, pushed.config.digest);
                    // What a pull answered is there until it is removed.
                    let exported = images.export(ns.clone(), vec![image.clone()], Vec::new()).await;
                    assert!(exported.is_ok(), "{image}, round {round}: {exported:?}");
                    if (round + number) % 3 != 2 {
                        images.remove(&ns, &image).await.unwrap();
                    }
                }
            })
        })
        .collect();
    for work in works {
        work.await.unwrap();
    }
    is_over.store(true, Ordering::Relaxed);
    assert!(collecting.await.unwrap() > 0);
    for image in node.images.list(&node.ns) {
        node.images.remove(&node.ns, &image.id.to_string()).await.unwrap();
    }
    node.is_empty();
}
