//! What images take up: the numbers that are kept are those that a walk finds, whatever came and went.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "pull/node.rs"]
#[expect(dead_code, reason = "shared with the tests of pulls, and each uses a part of it")]
mod node;
#[path = "import/pack.rs"]
#[expect(dead_code, reason = "shared with the tests of imports, and each uses a part of it")]
mod pack;
mod support;

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use node::Node;
use support::TestRegistry;
use windlass_image_service::import::ImportRequest;

/// Bytes and inodes of a directory and all below it.
fn walk(path: &Path) -> (u64, u64) {
    let meta = fs::symlink_metadata(path).unwrap();
    let (mut bytes, mut inodes) = (meta.blocks() * 512, 1);
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            let (more, below) = walk(&entry.unwrap().path());
            bytes += more;
            inodes += below;
        }
    }
    (bytes, inodes)
}

async fn check(node: &Node, what: &str) {
    let mut found = (0, 0);
    for directory in node.layer_directories().await {
        let (bytes, inodes) = walk(&directory);
        found = (found.0 + bytes, found.1 + inodes);
    }
    let blobs: u64 = node.blob_files().iter().map(|file| fs::metadata(file).unwrap().len()).sum();
    let [kept] = node.images.filesystems().try_into().unwrap();
    let content = node.images.content_bytes();
    assert_eq!((kept.used_bytes, kept.inodes_used, content), (found.0, found.1, blobs), "after {what}");
}

/// Images of up to four layers of five, which they share.
fn archive(number: usize) -> Vec<u8> {
    let layers = (0..5).filter(|layer| number & 1 << layer != 0).map(|layer| {
        let (name, content) = (format!("dir{layer}/file"), "x".repeat(layer * 5_000));
        pack::image(&[(name.as_str(), content.as_str()), ("same", "")]).layers[0].clone()
    });
    let image = pack::image(&[]).with_layers(layers.collect());
    pack::named(&image, &[("io.containerd.image.name", &format!("registry.test/image:{number}"))]).tar()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_the_numbers_that_are_kept_are_those_of_a_walk() {
    let mut node = Node::new(&TestRegistry::http().await).await;
    let mut random = 42_u64;
    let mut contained = false;
    for step in 0..80 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let (choice, number) = ((random >> 33) % 10, 1 + (random >> 40) as usize % 31);
        let name = format!("registry.test/image:{number}");
        let what = match choice {
            0..=4 => {
                let request =
                    ImportRequest { namespace: node.ns.clone(), snapshotter: None, repository: None, pinned: false };
                node.images.import(request, Cursor::new(archive(number))).await.unwrap();
                format!("import of {number}")
            }
            5..=7 => {
                // Of what is there, the one that is next.
                let all = node.images.list(&node.ns);
                let gone =
                    all.get(number % all.len().max(1)).and_then(|image| image.tags.first()).cloned().unwrap_or(name);
                node.images.remove(&node.ns, &gone).await.unwrap();
                format!("removal of {gone}")
            }
            8 if contained => {
                node.remove_container();
                node.images.collect().await.unwrap();
                contained = false;
                "removal of a container".to_owned()
            }
            8 => match node.images.resolve(&node.ns, &name) {
                Some(image) => {
                    node.start_container(&image.chain_id);
                    contained = true;
                    format!("start of a container of {number}")
                }
                None => continue,
            },
            _ => {
                node = node.reopen().await;
                "restart".to_owned()
            }
        };
        check(&node, &format!("step {step}, {what}")).await;
    }
    if contained {
        node.remove_container();
    }
    for image in node.images.list(&node.ns) {
        node.images.remove(&node.ns, &image.id.to_string()).await.unwrap();
    }
    node.images.collect().await.unwrap();
    check(&node, "the end").await;
    assert_eq!(node.images.filesystems()[0].used_bytes, 0);
    node.is_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_more_layers_than_one_step_takes_go_in_one_collection() {
    let node = Node::new(&TestRegistry::http().await).await;
    let layers = (0..150).map(|number| pack::image(&[(format!("f{number}").as_str(), "")]).layers[0].clone()).collect();
    let image = pack::image(&[]).with_layers(layers);
    let archive = pack::named(&image, &[("io.containerd.image.name", "registry.test/tower:1")]).tar();
    let request = ImportRequest { namespace: node.ns.clone(), snapshotter: None, repository: None, pinned: false };
    node.images.import(request, Cursor::new(archive)).await.unwrap();
    assert_eq!(node.snapshots().len(), 150);
    node.images.remove(&node.ns, "registry.test/tower:1").await.unwrap();
    node.is_empty();
}
