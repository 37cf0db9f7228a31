//! Whole pulls from a registry with a fault script: each ends with the image, or with one error that names the image, the host
//! and what happened, and with nothing of the image on the node.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "pull/node.rs"]
#[expect(dead_code, reason = "each test binary includes the module and uses a part of it")]
mod node;
mod support;

use bytes::Bytes;
use node::{Compression, Layer, Node, Pushed, Recipe};
use support::clock::fast;
use support::{Action, TestHosts, TestRegistry};
use windlass_image_service::digest::Digest;

const REFERENCE: &str = "registry.test/team/app:v1";

fn recipe() -> Recipe {
    Recipe::new(vec![
        Layer::new(Compression::Gzip).file("below", &"below".repeat(50_000)),
        Layer::new(Compression::None).file("above", &"above".repeat(50_000)),
    ])
}

async fn registry() -> (TestRegistry, Pushed) {
    let registry = TestRegistry::http().await;
    let pushed = recipe().push(&registry, "team/app", &["v1"]);
    (registry, pushed)
}

/// A node for which these serve the image, the last one being the registry itself.
async fn node_of(hosts: &[&TestRegistry]) -> (Node, TestHosts) {
    let (server, mirrors) = hosts.split_last().unwrap();
    let files = TestHosts::new();
    let tables: String = mirrors.iter().map(|mirror| format!("[host.\"{}\"]\n", mirror.url())).collect();
    files.write("registry.test", &format!("server = \"{}\"\n{tables}", server.url()));
    let node = Node::with(server, |config| config.registry.config_path = vec![files.root()]).await;
    (node, files)
}

/// What of the image a fault is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Manifest,
    Config,
    Layer,
}

impl Part {
    fn digest(self, pushed: &Pushed) -> &Digest {
        match self {
            Part::Manifest => &pushed.manifest.digest,
            Part::Config => &pushed.config.digest,
            Part::Layer => &pushed.layers[1].digest,
        }
    }

    fn size(self, pushed: &Pushed) -> usize {
        let descriptor = match self {
            Part::Manifest => &pushed.manifest,
            Part::Config => &pushed.config,
            Part::Layer => &pushed.layers[1],
        };
        usize::try_from(descriptor.size).unwrap()
    }
}

/// A part, what is done to it, given its size, and what is said about that.
type Fault = (Part, fn(usize) -> Action, &'static str);

fn faults() -> Vec<Fault> {
    fn other(size: usize) -> Action {
        Action::Body(vec![b'x'; size].into())
    }
    fn shorter(size: usize) -> Action {
        Action::Body(vec![b'x'; size - 1].into())
    }
    fn longer(size: usize) -> Action {
        Action::Unsized(vec![b'x'; size + 1].into())
    }
    fn cut(size: usize) -> Action {
        Action::CutBody(size / 2)
    }
    fn reset(_: usize) -> Action {
        Action::Reset(0)
    }
    fn missing(_: usize) -> Action {
        Action::Status(404, String::new())
    }
    fn forbidden(_: usize) -> Action {
        Action::Status(403, String::new())
    }
    fn broken(_: usize) -> Action {
        Action::Status(500, String::new())
    }
    fn empty(_: usize) -> Action {
        Action::Body(Bytes::new())
    }
    let mut all: Vec<Fault> = Vec::new();
    for part in [Part::Config, Part::Layer] {
        all.push((part, other, "has other content"));
        all.push((part, shorter, "are due"));
        all.push((part, longer, ""));
        all.push((part, empty, "offers 0 bytes"));
        all.push((part, reset, "body broke off"));
    }
    all.push((Part::Manifest, other, "sent content that is not"));
    for part in [Part::Manifest, Part::Config, Part::Layer] {
        all.push((part, missing, "404 not found"));
        all.push((part, forbidden, "403 forbidden"));
        all.push((part, broken, "unexpected status 500"));
    }
    all.push((Part::Manifest, cut, ""));
    all
}

#[tokio::test]
async fn privileged_a_fault_of_the_only_host_is_one_error_and_leaves_nothing_but_a_way_on() {
    for (part, action, expected) in faults() {
        let (registry, pushed) = registry().await;
        let (node, _files) = node_of(&[&registry]).await;
        let action = action(part.size(&pushed));
        let name = format!("{part:?} {action:?}").chars().take(80).collect::<String>();
        registry.fault(Some(http::Method::GET), part.digest(&pushed).hex(), usize::MAX, action);
        let (result, took) = fast(node.pull(REFERENCE)).await;
        let text = node::chain(&result.unwrap_err());
        assert!(took.as_secs() < 100, "{name}: {took:?}");
        assert!(text.contains("registry.test/team/app"), "{name}: {text}");
        assert!(text.contains(&registry.url()), "{name}: {text}");
        assert!(text.contains(expected), "{name}: {text}");
        assert!(!text.contains('\n'), "{name}: {text}");
        assert!(node.images.list(&node.ns).is_empty(), "{name}");
        assert_eq!((node.blobs(), node.snapshots_sorted()), (Vec::new(), Vec::new()), "{name}");
        registry.clear_faults();
        assert_eq!(node.pull(REFERENCE).await.unwrap().id, pushed.config.digest, "{name}");
        assert_eq!(node.blobs(), pushed.blobs(), "{name}");
    }
}

#[tokio::test]
async fn privileged_a_fault_of_a_mirror_is_made_up_for_by_the_registry() {
    for (part, action, _) in faults() {
        let ((mirror, pushed), (good, _)) = (registry().await, registry().await);
        let (node, _files) = node_of(&[&mirror, &good]).await;
        let action = action(part.size(&pushed));
        let name = format!("{part:?} {action:?}").chars().take(80).collect::<String>();
        mirror.fault(Some(http::Method::GET), part.digest(&pushed).hex(), usize::MAX, action);
        let (result, took) = fast(node.pull(REFERENCE)).await;
        let image = result.unwrap_or_else(|error| panic!("{name}: {}", node::chain(&error)));
        // The clock is fast, and a busy machine makes little of a step of ours much of it; to wait would be a minute.
        assert!(took.as_secs() < 50, "{name}: {took:?}");
        assert_eq!(image.id, pushed.config.digest, "{name}");
        assert_eq!(node.blobs(), pushed.blobs(), "{name}");
        assert_eq!(node.snapshots(), pushed.chain(), "{name}");
    }
}

#[tokio::test]
async fn privileged_a_pull_outlives_a_registry_that_is_away_for_ten_seconds() {
    let (registry, pushed) = registry().await;
    let (node, _files) = node_of(&[&registry]).await;
    let size = Part::Layer.size(&pushed);
    let away = Action::Die(size / 2, std::time::Duration::from_secs(10));
    registry.fault(None, pushed.layers[1].digest.hex(), 1, away);
    let (result, took) = fast(node.pull(REFERENCE)).await;
    assert_eq!(result.unwrap().id, pushed.config.digest);
    // A machine that is busy makes the clock run ahead of the sockets.
    assert!((10..100).contains(&took.as_secs()), "{took:?}");
    assert_eq!(node.blobs(), pushed.blobs());
    let asked = registry.seen().into_iter().filter(|seen| seen.path.contains(pushed.layers[1].digest.hex()));
    let ranges: Vec<Option<String>> = asked.map(|seen| seen.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, [None, Some(format!("bytes={}-", size / 2))]);
}

#[tokio::test]
async fn privileged_a_host_that_was_wrongly_suspected_is_asked_again() {
    let ((mirror, pushed), (liar, _)) = (registry().await, registry().await);
    let (node, _files) = node_of(&[&mirror, &liar]).await;
    let (layer, size) = (pushed.layers[1].digest.hex(), Part::Layer.size(&pushed));
    // The first half is right, and the second comes from somebody else.
    mirror.fault(None, layer, 1, Action::CutBody(size / 2));
    mirror.fault(None, layer, 1, Action::CutBody(1));
    liar.fault(None, layer, 1, Action::Body(vec![b'x'; size - size / 2 - 1].into()));
    liar.fault(None, layer, usize::MAX, Action::Body(vec![b'x'; size].into()));
    let (result, _) = fast(node.pull(REFERENCE)).await;
    assert_eq!(result.unwrap_or_else(|error| panic!("{}", node::chain(&error))).id, pushed.config.digest);
    let asked = |registry: &TestRegistry| registry.lines().iter().filter(|line| line.contains(layer)).count();
    // The mirror has sent it in the end, after the liar was asked for all of it and was found out.
    assert_eq!((asked(&mirror), asked(&liar)), (3, 2), "{:?} {:?}", mirror.lines(), liar.lines());
}
