//! Leases: what they are called, what they keep, and when it goes.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "pull/node.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod node;
mod support;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use node::{Compression, Layer, Node, Pushed, Recipe, eventually};
use store::Namespace;
use support::clock::TestClock;
use support::{Action, TestRegistry};
use windlass_image_service::digest::Digest;
use windlass_image_service::leases::{Collected, LeaseError, Resource};

const IMAGE: &str = "registry.test/team/app:v1";
const HOUR: Duration = Duration::from_secs(3600);

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

/// The label of a lease that is over then.
fn expires(when: SystemTime) -> BTreeMap<String, String> {
    let seconds = when.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs();
    let output = std::process::Command::new("date").args(["-u", "+%FT%TZ", "-d", &format!("@{seconds}")]).output();
    labels(&[("containerd.io/gc.expire", String::from_utf8(output.unwrap().stdout).unwrap().trim())])
}

/// A time of whole seconds, as dates have.
fn noon() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_800)
}

fn push(registry: &TestRegistry) -> Pushed {
    let layer = |name: &str| Layer::new(Compression::Gzip).file(name, name);
    Recipe::new(vec![layer("below"), layer("above")]).push(registry, "team/app", &["v1"])
}

fn content(digest: &Digest) -> Resource {
    Resource::Content(digest.clone())
}

fn snapshot(key: &str) -> Resource {
    Resource::Snapshot { snapshotter: "overlayfs".into(), key: key.to_owned() }
}

impl Node {
    async fn lease(&self, id: &str, labels: BTreeMap<String, String>, resources: &[Resource]) {
        self.images.leases().create(&self.ns, id, labels).await.unwrap();
        for resource in resources {
            self.images.leases().add(&self.ns, id, resource.clone()).await.unwrap();
        }
    }

    async fn lease_ids(&self) -> Vec<String> {
        self.images.leases().list(&self.ns).await.unwrap().into_iter().map(|lease| lease.id).collect()
    }

    async fn remove(&self) {
        self.images.remove(&self.ns, IMAGE).await.unwrap();
    }

    async fn end(&self, id: &str) {
        self.images.leases().delete(&self.ns, id, Collected::Now).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_leases_are_made_listed_and_deleted_with_containerds_errors() {
    let node = Node::new(&TestRegistry::http().await).await;
    let (leases, ns) = (node.images.leases(), &node.ns);
    let made = leases.create(ns, "a/b:c @d", labels(&[("k", "v")])).await.unwrap();
    assert_eq!((made.id.as_str(), &made.labels), ("a/b:c @d", &labels(&[("k", "v")])));
    let generated = leases.create(ns, "", BTreeMap::new()).await.unwrap();
    let (nanoseconds, random) = generated.id.split_once('-').unwrap();
    assert!(nanoseconds.parse::<u32>().is_ok() && random.len() == 4, "{generated:?}");
    let mut all = [made.clone(), generated.clone()];
    all.sort_by(|a, b| a.id.cmp(&b.id));
    assert_eq!(leases.list(ns).await.unwrap(), all);

    let error = leases.create(ns, &made.id, BTreeMap::new()).await.unwrap_err();
    assert!(
        matches!(&error, LeaseError::AlreadyExists { .. }) && error.to_string() == "lease \"a/b:c @d\": already exists"
    );
    let resource = content(&Digest::sha256_of(b"nothing"));
    let missing = [
        leases.add(ns, "x", resource.clone()).await.unwrap_err(),
        leases.remove(ns, "x", resource.clone()).await.unwrap_err(),
        leases.resources(ns, "x").await.unwrap_err(),
        leases.delete(ns, "x", Collected::Now).await.unwrap_err(),
        leases.delete(ns, "x", Collected::Soon).await.unwrap_err(),
    ];
    for error in missing {
        assert!(
            matches!(&error, LeaseError::NotFound { .. }) && error.to_string() == "lease \"x\": not found",
            "{error}"
        );
    }
    let large = leases.create(ns, "large", labels(&[("k", &"v".repeat(5000))])).await.unwrap_err();
    assert!(matches!(large, LeaseError::Invalid(_)), "{large}");

    // What is held need not exist, and is held once.
    let resources = [resource, Resource::Image(IMAGE.into()), Resource::Ingest("layer-x".into()), snapshot("key")];
    for resource in resources.iter().chain(&resources) {
        leases.add(ns, &made.id, resource.clone()).await.unwrap();
    }
    assert_eq!(leases.resources(ns, &made.id).await.unwrap(), resources);
    assert_eq!(leases.resources(ns, &generated.id).await.unwrap(), []);
    for _ in 0..2 {
        leases.remove(ns, &made.id, snapshot("key")).await.unwrap();
    }
    assert_eq!(leases.resources(ns, &made.id).await.unwrap(), resources[..3]);

    // Another namespace has leases of its own.
    let other = Namespace::new("other").unwrap();
    assert_eq!(leases.list(&other).await.unwrap(), []);
    leases.create(&other, &made.id, BTreeMap::new()).await.unwrap();
    leases.delete(ns, &made.id, Collected::Now).await.unwrap();
    assert_eq!(leases.list(ns).await.unwrap(), [generated]);
    assert_eq!(leases.list(&other).await.unwrap().len(), 1);
    // A lease of the same name has nothing of the one before.
    leases.create(ns, &made.id, BTreeMap::new()).await.unwrap();
    assert_eq!(leases.resources(ns, &made.id).await.unwrap(), []);
}

/// What it is, labels and resources of the lease, and the blobs and snapshots that are kept.
type Case<'a> = (&'a str, BTreeMap<String, String>, Vec<Resource>, Vec<String>, Vec<String>);

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_lease_keeps_what_it_holds_and_what_that_refers_to() {
    let registry = TestRegistry::http().await;
    let pushed = push(&registry);
    let node = Node::new(&registry).await;
    let (chain, all) = (pushed.chain(), pushed.blobs());
    let config_only = vec![pushed.config.digest.to_string()];
    let [below, above] = [&chain[0], &chain[1]];
    let flat = || labels(&[("containerd.io/gc.flat", "")]);
    let manifest = pushed.manifest.digest.to_string();
    let cases: [Case<'_>; 7] = [
        ("all by the manifest", labels(&[]), vec![content(&pushed.manifest.digest)], all.clone(), chain.clone()),
        ("the manifest alone", flat(), vec![content(&pushed.manifest.digest)], vec![manifest], vec![]),
        ("a configuration", labels(&[]), vec![content(&pushed.config.digest)], config_only.clone(), chain.clone()),
        ("a flat configuration", flat(), vec![content(&pushed.config.digest)], config_only, vec![]),
        (
            "a layer's blob",
            labels(&[]),
            vec![content(&pushed.layers[0].digest)],
            vec![pushed.layers[0].digest.to_string()],
            vec![],
        ),
        // A snapshot's parents are part of it.
        ("the top of a flat one", flat(), vec![snapshot(above)], vec![], chain.clone()),
        ("the lower one", labels(&[]), vec![snapshot(below)], vec![], vec![below.clone()]),
    ];
    for (what, labels, resources, blobs, snapshots) in cases {
        node.pull(IMAGE).await.unwrap();
        node.lease("l", labels, &resources).await;
        node.remove().await;
        node.images.collect().await.unwrap();
        assert_eq!((node.blobs(), node.snapshots()), (blobs, snapshots), "{what}");
        assert!(node.images.list(&node.ns).is_empty());
        node.end("l").await;
        node.is_empty();
    }
}

/// A flat lease must not hide from another one what that refers to.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_several_leases_keep_together_what_each_keeps() {
    let registry = TestRegistry::http().await;
    let pushed = push(&registry);
    let node = Node::new(&registry).await;
    node.pull(IMAGE).await.unwrap();
    let manifest = [content(&pushed.manifest.digest)];
    node.lease("1 flat", labels(&[("containerd.io/gc.flat", "")]), &manifest).await;
    node.lease("2 whole", labels(&[]), &manifest).await;
    node.lease("3 other", labels(&[]), &[snapshot("of another snapshotter")]).await;
    node.remove().await;
    assert_eq!((node.blobs(), node.snapshots()), (pushed.blobs(), pushed.chain()));
    // What a lease holds does not make it an image; a pull takes it as it is.
    registry.fault(None, "/blobs/", 10, Action::Status(500, String::new()));
    node.pull(IMAGE).await.unwrap();
    node.end("1 flat").await;
    node.end("2 whole").await;
    assert_eq!((node.blobs(), node.snapshots()), (pushed.blobs(), pushed.chain()));
    node.remove().await;
    node.is_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_a_lease_no_longer_holds_goes_behind_an_answer_that_does_not_wait() {
    let registry = TestRegistry::http().await;
    let pushed = push(&registry);
    let node = Node::new(&registry).await;
    node.pull(IMAGE).await.unwrap();
    let layer = content(&pushed.layers[0].digest);
    node.lease("l", labels(&[]), &[content(&pushed.config.digest), layer.clone()]).await;
    node.remove().await;
    node.images.leases().remove(&node.ns, "l", layer).await.unwrap();
    node.images.collect().await.unwrap();
    assert_eq!(node.blobs(), [pushed.config.digest.to_string()]);
    node.images.leases().delete(&node.ns, "l", Collected::Soon).await.unwrap();
    assert_eq!(node.lease_ids().await, [""; 0]);
    eventually("what it held is collected", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_lease_is_over_at_its_time_without_anybody_asking() {
    let registry = TestRegistry::http().await;
    let pushed = push(&registry);
    let clock = TestClock::at(noon());
    let node = Node::with(&registry, |config| config.clock = Arc::new(clock.clone())).await;
    node.pull(IMAGE).await.unwrap();
    let top = pushed.chain()[1].clone();
    node.lease("late", expires(noon() + 3 * HOUR), &[snapshot(&top)]).await;
    node.lease("early", expires(noon() + HOUR), &[content(&pushed.config.digest)]).await;
    node.lease("never", labels(&[("containerd.io/gc.expire", "soon")]), &[content(&pushed.layers[1].digest)]).await;
    node.remove().await;
    clock.turn(HOUR - Duration::from_secs(1));
    node.images.collect().await.unwrap();
    assert_eq!(node.lease_ids().await, ["early", "late", "never"]);
    assert_eq!(node.blobs().len(), 2);

    clock.turn(Duration::from_secs(1));
    eventually("the early one's blob is gone", || node.blobs().len() == 1).await;
    assert_eq!(node.lease_ids().await, ["late", "never"]);
    assert_eq!(node.snapshots(), pushed.chain());
    // A daemon that ends does not wait for a lease.
    let node = node.reopen().await;
    assert_eq!(node.lease_ids().await, ["late", "never"]);
    clock.turn(2 * HOUR);
    eventually("the late one's layers are gone", || node.snapshots_sorted().is_empty()).await;
    assert_eq!(node.lease_ids().await, ["never"]);
    clock.turn(100_000 * HOUR);
    node.images.collect().await.unwrap();
    assert_eq!(node.blobs(), [pushed.layers[1].digest.to_string()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_leases_and_what_they_hold_outlive_a_killed_daemon_and_so_does_their_end() {
    let registry = TestRegistry::http().await;
    let pushed = push(&registry);
    let clock = TestClock::at(noon());
    let node = Node::with(&registry, |config| config.clock = Arc::new(clock.clone())).await;
    node.pull(IMAGE).await.unwrap();
    let top = pushed.chain()[1].clone();
    node.lease("blob", labels(&[]), &[content(&pushed.layers[0].digest)]).await;
    node.lease("later", expires(noon() + 2 * HOUR), &[snapshot(&top)]).await;
    node.lease("meanwhile", expires(noon() + HOUR), &[content(&pushed.layers[1].digest)]).await;
    node.remove().await;
    let kept = node.images.leases().list(&node.ns).await.unwrap();

    let node = node.killed().await;
    assert_eq!(node.images.leases().list(&node.ns).await.unwrap(), kept);
    assert_eq!(node.images.leases().resources(&node.ns, "later").await.unwrap(), [snapshot(&top)]);
    assert_eq!((node.blobs().len(), node.snapshots()), (2, pushed.chain()));
    // One is over while no daemon runs, and the next while the new one does.
    let node = node.killed_while(|| clock.turn(HOUR)).await;
    assert_eq!(node.lease_ids().await, ["blob", "later"]);
    assert_eq!(node.blobs(), [pushed.layers[0].digest.to_string()]);
    clock.turn(HOUR);
    eventually("the snapshot is gone", || node.snapshots_sorted().is_empty()).await;

    // Deleted, and killed before anything was collected.
    node.images.leases().delete(&node.ns, "blob", Collected::Soon).await.unwrap();
    let node = node.killed().await;
    assert_eq!(node.lease_ids().await, [""; 0]);
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_the_start_of_a_blob_is_kept_as_long_as_a_lease_holds_it() {
    const MIB: usize = 1 << 20;
    let registry = TestRegistry::http().await;
    let text: String = (0..3 * MIB / 8).map(|n| format!("{n:07} ")).collect();
    let pushed =
        Recipe::new(vec![Layer::new(Compression::None).file("large", &text)]).push(&registry, "team/app", &["v1"]);
    let blob = &pushed.layers[0].digest;
    // What is written later than now would be of a clock that was set back.
    let clock = TestClock::at(SystemTime::now() + Duration::from_secs(60));
    let node = Node::with(&registry, |config| config.clock = Arc::new(clock.clone())).await;
    registry.fault(None, blob.hex(), 1, Action::HoldBody(2 * MIB));
    let (images, request) = (node.images.clone(), node.request(IMAGE));
    let pull = tokio::spawn(async move { images.pull(request).await });
    eventually("the layer has come so far", || node.ingests().iter().any(|(_, size)| *size == 2 * MIB as u64)).await;
    pull.abort();
    eventually("the rest is gone", || node.blobs().is_empty() && node.snapshots_sorted().is_empty()).await;
    assert_eq!(node.ingests().len(), 1);

    node.lease("l", labels(&[]), &[Resource::Ingest(format!("layer-{blob}"))]).await;
    clock.turn(HOUR);
    node.images.collect().await.unwrap();
    assert_eq!(node.ingests().len(), 1);
    let node = node.killed().await;
    assert_eq!(node.ingests().len(), 1);
    node.end("l").await;
    assert_eq!(node.ingests(), []);
}
