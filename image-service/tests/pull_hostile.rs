//! Images made to harm whoever pulls them. Each pull ends with one error that says what is wrong, having fetched no more than
//! it took to see that; nothing of the image is on the node, and the next pull is as good as any.
//!
//! Where each hostile image and each hostile answer of a registry is tried:
//!
//! ```text
//! layers        names, links, whiteouts, devices, mounts   snapshotter/src/apply/tests/hostile.rs, made_up.rs (any mix of them)
//!               headers, sparse maps, types, trailers      snapshotter/src/apply/tests/headers.rs
//!               entries, names, searches without an end    snapshotter/src/apply/tests/endless.rs
//!               the same tree as umoci's                   snapshotter/src/apply/tests/differential/cases.rs
//! compression   members, frames, windows, broken streams   src/unpack/tests.rs; every real form: tests/formats.rs
//!               bombs, wrong digests                       here
//! documents     every field                                src/manifest/tests.rs; over a registry: here
//! archives      of whole images                            tests/import.rs
//! names         references, digests, hosts                 src/reference/tests.rs, src/digest.rs, src/hosts/tests.rs
//! registries    statuses, broken bodies, dead hosts        tests/registry_faults.rs, tests/pull_faults.rs, tests/resume.rs
//!               lies: digests, ranges, lengths, pages      tests/registry_lies.rs
//!               who gets credentials and headers           tests/registry_auth.rs, tests/registry_origins.rs
//! disks         full, without inodes, read-only            tests/pull_storage.rs, store/src/store/tests/full.rs
//! crashes       at any byte, at any step                   e2e/tests/pull_crash.rs
//! ```
//!
//! Holes of other runtimes and libraries, and the tests that show that they are not here:
//!
//! ```text
//! CVE-2020-15157 headers to a foreign layer's host         registry_origins: the_place_of_a_foreign_layer_learns_nothing_of_us
//! CVE-2021-32760 mode through a hard link to a link        differential: "a hard link says nothing of its file"; made_up
//! CVE-2021-41190 index or manifest                         here, and src/manifest/tests.rs
//! CVE-2022-24778 encrypted layers                          src/manifest/tests.rs: a_document_is_what_its_fields_say
//! CVE-2023-25153 archives with endless documents           import: privileged_bad_archives_are_refused_and_leave_nothing
//! CVE-2025-47290 a parent replaced once it was checked     hostile: "a link swapped in"; privileged_a_replaced_parent_is_looked_up_again
//! device numbers that wrap (containerd#13792)              hostile: privileged_a_device_is_never_another_one
//! CVE-2019-10214 token server without TLS verification     registry_origins: skip_verify_and_client_certificates_are_for_the_host_and_not_for_its_token_server
//! CVE-2020-1702  manifests of any size                     registry: a_manifest_of_more_than_four_mebibytes_is_refused; registry_lies
//! CVE-2024-3727  digests that are paths                    src/digest.rs; src/manifest/tests.rs; registry_lies
//! CVE-2021-20291 a broken stream that is waited for        src/unpack/tests.rs: what_is_broken_anywhere_is_an_error…
//! CVE-2021-29136 the root as a link                        headers: "the root as a link"
//! CVE-2026-33540 credentials to a realm of others' choice  registry_auth: another_origin_cannot_ask_for_our_credentials
//! CVE-2025-58183 endless maps of holes                     hostile: privileged_a_list_of_holes_without_an_end_stops_at_the_limit
//! CVE-2022-30631 recursion over members of gzip            src/unpack/tests.rs: members_and_frames_that_hold_nothing…
//! doubled keys, deep nesting                               src/manifest/tests.rs
//! ```
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "pull/node.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod node;
mod support;

use std::io::Write;

use node::{Compression, Layer, Node, Recipe};
use serde_json::{Value, json};
use support::{Action, TestRegistry};
use windlass_image_service::digest::Digest;
use windlass_image_service::registry::media_type;

const IMAGE: &str = "registry.test/team/app:v1";
const MIB: usize = 1 << 20;

/// A good image of two layers, of which a test replaces parts.
struct Parts {
    registry: TestRegistry,
    config: Value,
    layers: Vec<Value>,
}

impl Parts {
    async fn new() -> Parts {
        let registry = TestRegistry::http().await;
        let layer = |name: &str| Layer::new(Compression::Gzip).file(name, name);
        let pushed = Recipe::new(vec![layer("a"), layer("b")]).push(&registry, "team/app", &["good"]);
        let layers = pushed.layers.iter().map(|layer| json!(layer)).collect();
        Parts { config: json!(pushed.config), layers, registry }
    }

    fn manifest(&self) -> Value {
        json!({
            "schemaVersion": 2,
            "mediaType": media_type::OCI_MANIFEST,
            "config": self.config,
            "layers": self.layers,
        })
    }

    fn put(&self, media_type: &str, document: impl ToString) {
        self.registry.put_manifest("team/app", Some("v1"), media_type, document.to_string());
    }

    /// A configuration with other bytes, of the same image.
    fn configured(&self, bytes: impl Into<bytes::Bytes>) -> Value {
        let mut config = self.registry.put_blob("team/app", bytes);
        config.media_type = "application/vnd.oci.image.config.v1+json".into();
        let mut manifest = self.manifest();
        manifest["config"] = json!(config);
        manifest
    }
}

/// The pull fails so, with nothing left, and a good image of the same registry is pulled behind it.
async fn refused(what: &str, registry: &TestRegistry, expected: &str, blobs: bool) {
    let node = Node::with(registry, |config| {
        config.limits.bytes = 4 << 20;
        config.limits.inodes = 1_000;
    })
    .await;
    let error = node.pull(IMAGE).await.err().unwrap_or_else(|| panic!("{what}: it was pulled"));
    let text = node::chain(&error);
    assert!(text.contains(expected), "{what}: {text}");
    assert!(text.contains("registry.test/team/app"), "{what}: {text}");
    assert!(text.len() < 2_000 && !text.contains(char::is_control), "{what}: {text:?}");
    let fetched: Vec<String> = registry.lines().into_iter().filter(|line| line.contains("/blobs/")).collect();
    assert!(blobs || fetched.is_empty(), "{what}: {fetched:?}");
    assert!(node.images.list(&node.ns).is_empty(), "{what}");
    node.is_empty();
    node.pull("registry.test/team/app:good").await.unwrap_or_else(|error| panic!("{what}: {}", node::chain(&error)));
    assert_eq!(node.files(), ["a=a", "b=b"], "{what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_document_that_means_two_things_or_nothing_is_refused_before_anything_else_is_fetched() {
    use media_type::{DOCKER_INDEX, OCI_INDEX, OCI_MANIFEST};
    let both = |parts: &Parts| {
        let mut both = parts.manifest();
        both["manifests"] = json!(parts.layers);
        both
    };
    type Make = fn(&Parts) -> Value;
    let with = |parts: &Parts, path: &str, value: Value| {
        let mut manifest = parts.manifest();
        *manifest.pointer_mut(path).unwrap() = value;
        manifest
    };
    for own in ["", OCI_INDEX, OCI_MANIFEST] {
        let parts = Parts::new().await;
        let mut document = both(&parts);
        document["mediaType"] = own.into();
        parts.put(if own.is_empty() { OCI_MANIFEST } else { own }, document);
        refused(&format!("both, as {own:?}"), &parts.registry, "is both an index and a manifest", false).await;
    }
    let makes: [(&str, &str, Make, &str); 5] = [
        ("a manifest called an index", OCI_INDEX, Parts::manifest, "but was announced as"),
        (
            "an index of a manifest's fields",
            OCI_INDEX,
            |parts| json!({"manifests": parts.layers, "layers": parts.layers}),
            "is both",
        ),
        (
            "an index called a manifest",
            OCI_MANIFEST,
            |parts| json!({"manifests": parts.layers}),
            "and has the fields of an index",
        ),
        ("a list of nothing", DOCKER_INDEX, |_| json!({"manifests": []}), "no image for linux/"),
        (
            "an artifact",
            OCI_MANIFEST,
            |parts| json!({"artifactType": "text/spam", "config": {"mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::sha256_of(b"{}"), "size": 2}, "layers": parts.layers}),
            "neither a manifest nor an index",
        ),
    ];
    for (what, announced, make, expected) in makes {
        let parts = Parts::new().await;
        parts.put(announced, make(&parts));
        refused(what, &parts.registry, expected, false).await;
    }
    for (what, path, value, expected) in [
        ("a negative size", "/layers/0/size", json!(-1), "not valid JSON"),
        ("a size beyond any", "/layers/0/size", json!(1u64 << 63), "more than any file"),
        ("a configuration of a gibibyte", "/config/size", json!(1 << 30), "at most 8388608 are read"),
        ("a digest that is a path", "/layers/1/digest", json!("sha256:../../../../etc/passwd"), "digest"),
        (
            "layers without number",
            "/layers",
            json!(vec![json!({"digest": Digest::sha256_of(b"x"), "size": 1}); 10_000]),
            "has 10000 layers",
        ),
        ("values without number", "/layers", json!(vec![1; 200_000]), "values, at most 100000"),
    ] {
        let parts = Parts::new().await;
        parts.put(OCI_MANIFEST, with(&parts, path, value));
        refused(what, &parts.registry, expected, false).await;
    }
    for (what, text, expected) in [
        ("a page for people", "<!DOCTYPE html><html><body>Sign in</body></html>".to_owned(), "is not valid JSON"),
        ("a mark of the order of bytes", format!("\u{feff}{}", json!({"manifests": []})), "is not valid JSON"),
        ("arrays in arrays", "[".repeat(1_000_000), "is not valid JSON"),
        ("nothing", " ".to_owned(), "is not valid JSON"),
    ] {
        let parts = Parts::new().await;
        parts.put(OCI_MANIFEST, text);
        refused(what, &parts.registry, expected, false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_indexes_in_indexes_end_and_one_cannot_hold_itself() {
    let entry = |descriptor: &windlass_image_service::registry::Descriptor| {
        let mut entry = json!(descriptor);
        entry["platform"] = json!({"os": "linux", "architecture": node::architecture()});
        entry
    };
    let parts = Parts::new().await;
    let manifest = parts.manifest().to_string();
    let mut inner = parts.registry.put_manifest("team/app", None, media_type::OCI_MANIFEST, manifest);
    for depth in 0..50 {
        let index = json!({"schemaVersion": 2, "mediaType": media_type::OCI_INDEX, "manifests": [entry(&inner)], "annotations": {"depth": depth.to_string()}});
        inner = parts.registry.put_manifest("team/app", Some("v1"), media_type::OCI_INDEX, index.to_string());
    }
    refused("fifty indexes", &parts.registry, "is nested more than 4 indexes deep", false).await;

    // A registry that always sends the same index says that it is every manifest.
    let parts = Parts::new().await;
    let promised =
        windlass_image_service::registry::Descriptor::new(media_type::OCI_INDEX, Digest::sha256_of(b"another"), 500);
    let index = json!({"mediaType": media_type::OCI_INDEX, "manifests": [entry(&promised)]}).to_string();
    parts.put(media_type::OCI_INDEX, &index);
    let path = format!("/manifests/{}", promised.digest);
    parts.registry.put_manifest("team/app", Some(&promised.digest.to_string()), media_type::OCI_INDEX, index);
    refused("an index that holds itself", &parts.registry, "sent content that is not", false).await;
    assert_eq!(parts.registry.lines().iter().filter(|line| line.ends_with(&path)).count(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_configuration_that_is_none_or_of_another_image_is_refused() {
    let id = Digest::sha256_of(b"a layer");
    let config = |ids: usize| json!({"architecture": node::architecture(), "os": "linux", "rootfs": {"type": "layers", "diff_ids": vec![id.to_string(); ids]}});
    let mut wide = config(2);
    wide["history"] = json!(vec![json!({}); 200_000]);
    let nested = "{\"config\":".repeat(1_000);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("fewer layers", config(1).to_string().into(), "names 1 layers, the manifest has 2"),
        ("more layers", config(3).to_string().into(), "names 3 layers, the manifest has 2"),
        ("one layer twice", config(2).to_string().into(), "the image says"),
        ("a history without end", wide.to_string().into(), "values, at most 100000"),
        ("objects in objects", nested.into(), "is not valid JSON"),
        ("a manifest", json!({"schemaVersion": 2, "layers": []}).to_string().into(), "is not valid JSON"),
        ("an archive", vec![0; 10_240], "is not valid JSON"),
        ("no text", vec![0xff; 100], "is not valid JSON"),
    ];
    for (what, bytes, expected) in cases {
        let parts = Parts::new().await;
        parts.put(media_type::OCI_MANIFEST, parts.configured(bytes));
        refused(what, &parts.registry, expected, true).await;
    }
    let parts = Parts::new().await;
    let mut manifest = parts.manifest();
    manifest["config"]["digest"] = json!(Digest::sha256_of(b"nobody has this"));
    parts.put(media_type::OCI_MANIFEST, manifest);
    refused("a configuration that nobody has", &parts.registry, "404 not found", true).await;
    let parts = Parts::new().await;
    let mut manifest = parts.manifest();
    manifest["config"]["digest"] = manifest["layers"][0]["digest"].clone();
    manifest["config"]["size"] = manifest["layers"][0]["size"].clone();
    parts.put(media_type::OCI_MANIFEST, manifest);
    refused("a layer for a configuration", &parts.registry, "is not valid JSON", true).await;
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn zstd(bytes: &[u8]) -> Vec<u8> {
    zstd::encode_all(bytes, 1).unwrap()
}

fn one_file(size: usize) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(size as u64);
    header.set_mode(0o644);
    tar.append_data(&mut header, "zeros", vec![0; size].as_slice()).unwrap();
    tar.into_inner().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_inflates_to_more_than_a_layer_may_hold_ends_there_however_it_is_packed() {
    let (large, many) = (one_file(64 * MIB), {
        let mut tar = tar::Builder::new(Vec::new());
        for number in 0..5_000 {
            let mut header = tar::Header::new_ustar();
            header.set_size(0);
            tar.append_data(&mut header, format!("{number}"), &[][..]).unwrap();
        }
        tar.into_inner().unwrap()
    });
    let trailing = [one_file(10), vec![0; 64 * MIB]].concat();
    let skipped = {
        // The root as a file: its content goes nowhere.
        let mut tar = one_file(64 * MIB);
        tar[..5].copy_from_slice(b".\0\0\0\0");
        let sum: u32 = tar[..512]
            .iter()
            .enumerate()
            .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
            .sum();
        tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar
    };
    for (what, plain, expected) in [
        ("one large file", &large, "holds more than 4194304 bytes of files"),
        ("many small files", &many, "holds more than 1000 entries"),
        ("zeros behind the end", &trailing, "holds more than 4194304 bytes after its end"),
        ("content of no file", &skipped, "holds more than 4194304 bytes of what is no file"),
    ] {
        for (how, blob) in [("gzip", gzip(plain)), ("zstd", zstd(plain))] {
            let parts = Parts::new().await;
            assert!(blob.len() < plain.len() / 20, "{what}, {how}: {} bytes", blob.len());
            Recipe::new(vec![Layer::packed(plain.clone(), blob)]).push(&parts.registry, "team/app", &["v1"]);
            refused(&format!("{what}, {how}"), &parts.registry, expected, true).await;
        }
    }
    // Packed twice, a layer is no archive: nobody inflates it twice.
    let parts = Parts::new().await;
    let inner = gzip(&large);
    Recipe::new(vec![Layer::packed(inner.clone(), gzip(&inner))]).push(&parts.registry, "team/app", &["v1"]);
    refused("packed twice", &parts.registry, "not a valid tar archive", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_both_digests_of_a_layer_count() {
    // The compressed bytes are those promised, and unpack to something else.
    let parts = Parts::new().await;
    let mut recipe = Recipe::new(vec![Layer::new(Compression::Zstd).file("a", "a")]);
    recipe.diff_ids = Some(vec![Digest::sha256_of(b"something else")]);
    recipe.push(&parts.registry, "team/app", &["v1"]);
    refused("another diff id", &parts.registry, "the image says sha256:", true).await;

    // They unpack to what was promised, and are others: the time in a gzip header differs.
    let parts = Parts::new().await;
    let plain = one_file(100_000);
    let (right, mut other) = (gzip(&plain), gzip(&plain));
    other[4] ^= 1;
    let pushed = Recipe::new(vec![Layer::packed(plain, right)]).push(&parts.registry, "team/app", &["v1"]);
    parts.registry.fault(None, pushed.layers[0].digest.hex(), usize::MAX, Action::Body(other.into()));
    refused("another blob", &parts.registry, "has other content", true).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_layer_may_stand_in_an_image_more_than_once() {
    let registry = TestRegistry::http().await;
    let layer = |name: &str| Layer::new(Compression::Gzip).file(name, name);
    let recipe = Recipe::new(vec![layer("a"), layer("b"), layer("a"), layer("a"), layer("b")]);
    let pushed = recipe.push(&registry, "team/app", &["v1"]);
    let node = Node::new(&registry).await;
    node.pull(IMAGE).await.unwrap();
    assert_eq!(node.snapshots(), pushed.chain());
    for blob in &pushed.layers {
        assert_eq!(registry.lines().iter().filter(|line| line.contains(blob.digest.hex())).count(), 1);
    }
    node.images.remove(&node.ns, IMAGE).await.unwrap();
    node.is_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_a_descriptor_says_of_a_blob_that_is_there_is_not_believed() {
    let parts = Parts::new().await;
    let node = Node::new(&parts.registry).await;
    let good = node.pull("registry.test/team/app:good").await.unwrap();
    let before = node.blobs();
    for (part, size) in
        [("/layers/0/size", json!(1u64 << 40)), ("/layers/0/size", json!(1)), ("/config/size", json!(1))]
    {
        let mut lying = parts.manifest();
        *lying.pointer_mut(part).unwrap() = size;
        parts.put(media_type::OCI_MANIFEST, lying);
        let text = node::chain(&node.pull(IMAGE).await.unwrap_err());
        assert!(text.contains("are due"), "{part}: {text}");
        assert_eq!((node.blobs(), node.images.list(&node.ns).len()), (before.clone(), 1), "{part}");
        assert_eq!(node.images.resolve(&node.ns, "registry.test/team/app:good").unwrap().size, good.size);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_blob_that_was_cut_short_on_disk_is_fetched_again() {
    let parts = Parts::new().await;
    let node = Node::new(&parts.registry).await;
    node.pull("registry.test/team/app:good").await.unwrap();
    for file in node.blob_files() {
        let file = std::fs::File::options().write(true).open(file).unwrap();
        file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    }
    node.pull("registry.test/team/app:good").await.unwrap();
    for (file, name) in node.blob_files().iter().zip(node.blobs()) {
        assert_eq!(Digest::sha256_of(&std::fs::read(file).unwrap()).to_string(), name);
    }
}
