//! Image verifiers in front of real pulls: what they reject is not fetched, and nothing of it stays.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "pull/node.rs"]
#[expect(dead_code, reason = "each test binary includes the module and uses a part of it")]
mod node;
mod support;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use node::{Compression, Layer, Node, Pushed, Recipe, eventually};
use support::TestRegistry;
use windlass_image_service::images::PullError;
use windlass_image_service::policy::{PolicyConfig, PolicyError};

const REFERENCE: &str = "registry.test/team/app:v1";

fn write(directory: &Path, name: &str, script: &str) {
    let path = directory.join(name);
    fs::write(&path, format!("#!/bin/sh\nDIR={}\n{script}\n", directory.parent().unwrap().display())).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// A node with one verifier, whose directory is in the given one.
async fn with_verifier(directory: &Path, script: &str) -> (TestRegistry, Pushed, Node) {
    let registry = TestRegistry::http().await;
    let pushed =
        Recipe::new(vec![Layer::new(Compression::Gzip).file("name", "1")]).push(&registry, "team/app", &["v1"]);
    let bin_dir = directory.join("bin");
    fs::create_dir(&bin_dir).unwrap();
    write(&bin_dir, "one", script);
    let policy = PolicyConfig { bin_dir, ..PolicyConfig::default() };
    let node = Node::with(&registry, |config| config.policy = policy).await;
    (registry, pushed, node)
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_image_that_a_verifier_rejects_is_resolved_and_not_fetched() {
    let directory = tempfile::tempdir().unwrap();
    let (registry, pushed, node) = with_verifier(directory.path(), "echo \"$@\" > $DIR/told; echo no; exit 2").await;
    let error = node.pull(REFERENCE).await.unwrap_err();
    let PullError::Policy { reference, source } = &error else { panic!("{error:?}") };
    assert_eq!(reference, REFERENCE);
    assert!(matches!(&**source, PolicyError::Rejected { code: 2, reason, .. } if reason == "no"), "{source:?}");
    let told = fs::read_to_string(directory.path().join("told")).unwrap();
    assert!(told.starts_with(&format!("-name {REFERENCE} -digest {} ", pushed.manifest.digest)), "{told}");
    assert_eq!(registry.lines(), ["HEAD /v2/team/app/manifests/v1"]);
    assert!(node.images.list(&node.ns).is_empty());
    node.is_empty();

    // Programs are looked for at every pull.
    write(&directory.path().join("bin"), "one", "exit 0");
    assert_eq!(node.pull(REFERENCE).await.unwrap().id, pushed.config.digest);
    // What is here already is asked about all the same.
    write(&directory.path().join("bin"), "two", "exit 1");
    assert!(matches!(node.pull(REFERENCE).await, Err(PullError::Policy { .. })));
    assert_eq!(node.images.list(&node.ns).len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_verifier_ends_with_the_pull_that_nobody_wants_any_more() {
    let directory = tempfile::tempdir().unwrap();
    let (_registry, _, node) =
        with_verifier(directory.path(), "echo $$ > $DIR/pid.part; mv $DIR/pid.part $DIR/pid; exec sleep 1000").await;
    let pull = tokio::spawn({
        let (images, request) = (node.images.clone(), node.request(REFERENCE));
        async move { images.pull(request).await }
    });
    let pid = directory.path().join("pid");
    eventually("the verifier runs", || pid.exists()).await;
    let process = Path::new("/proc").join(fs::read_to_string(pid).unwrap().trim());
    assert!(process.exists());
    pull.abort();
    assert!(pull.await.unwrap_err().is_cancelled());
    eventually("the verifier is gone", || !process.exists()).await;
    node.is_empty();
}
