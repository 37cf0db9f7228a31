//! Layers in every form that the tools of others write: each gives the same files, and one that is cut gives none.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "pull/node.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod node;
mod support;

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use node::{Layer, Node, Recipe};
use serde_json::{Value, json};
use support::TestRegistry;
use windlass_image_service::digest::Digest;

const IMAGE: &str = "registry.test/team/app:v1";

fn text(lines: usize) -> String {
    (0..lines).map(|n| format!("line {n} of {lines}\n")).collect()
}

/// Larger than all buffers on the way, and small files behind it.
fn archive() -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in [("large", text(100_000)), ("small", text(1)), ("empty", String::new())] {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

/// What a program makes of its standard input.
fn filter(program: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program} cannot be run ({error}): hack/setup tests installs it"));
    let (mut stdin, mut output) = (child.stdin.take().unwrap(), Vec::new());
    thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(input).unwrap());
        child.stdout.take().unwrap().read_to_end(&mut output).unwrap();
    });
    assert!(child.wait().unwrap().success(), "{program} {arguments:?}");
    output
}

fn gzip(input: &[u8]) -> Vec<u8> {
    filter("gzip", &["-n"], input)
}

fn zstd(input: &[u8]) -> Vec<u8> {
    filter("zstd", &["-q", "-c"], input)
}

/// As eStargz has it: a member for each entry, the table of contents as the last one, and a footer, an empty member whose
/// extra field says where the table is (stargz-snapshotter, docs/estargz.md). The table is an entry of the archive.
fn estargz(plain: &[u8]) -> Vec<u8> {
    let mut blob: Vec<u8> = plain.chunks(128 << 10).flat_map(gzip).collect();
    let extra = format!("SG\x16\x00{:016x}STARGZ", blob.len());
    let footer = flate2::GzBuilder::new().extra(extra).write(Vec::new(), flate2::Compression::none());
    blob.extend(footer.finish().unwrap());
    blob
}

/// zstd:chunked, made by skopeo: a frame for each file, and tables in skippable frames.
fn zstd_chunked(plain: &[u8]) -> Vec<u8> {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("plain")).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::sha256_of(bytes);
        fs::write(at("plain").join(digest.hex()), bytes).unwrap();
        json!({"digest": digest, "size": bytes.len()})
    };
    let described = |mut descriptor: Value, kind: &str| {
        descriptor["mediaType"] = format!("application/vnd.oci.image.{kind}").into();
        descriptor
    };
    let diff_ids = [Digest::sha256_of(plain)];
    let config = json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}});
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": described(put(config.to_string().as_bytes()), "config.v1+json"),
        "layers": [described(put(plain), "layer.v1.tar")],
    });
    fs::write(at("plain/manifest.json"), manifest.to_string()).unwrap();
    fs::write(at("plain/version"), "Directory Transport Version: 1.1\n").unwrap();
    let (from, to) = (format!("dir:{}", at("plain").display()), format!("oci:{}:x", at("packed").display()));
    let arguments = ["--insecure-policy", "copy", "-q", "--dest-compress-format", "zstd:chunked", &from, &to];
    filter("skopeo", &arguments, b"");
    let blob = largest(&at("packed/blobs/sha256"));
    let count = |magic: &[u8]| blob.windows(magic.len()).filter(|window| *window == magic).count();
    assert!(
        count(&[0x28, 0xb5, 0x2f, 0xfd]) > 2 && count(&[0x50, 0x2a, 0x4d, 0x18]) > 0,
        "skopeo made no zstd:chunked"
    );
    blob
}

fn largest(directory: &Path) -> Vec<u8> {
    let files = fs::read_dir(directory).unwrap().map(|entry| fs::read(entry.unwrap().path()).unwrap());
    files.max_by_key(Vec::len).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_layer_in_any_form_gives_the_same_files_and_cut_short_none() {
    let plain = archive();
    let (start, rest) = plain.split_at(plain.len() / 3);
    let skippable = [0x5e, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    let forms = [
        ("plain", plain.clone()),
        ("gzip", gzip(&plain)),
        ("the fastest gzip", filter("gzip", &["-n", "-1"], &plain)),
        ("gzip with a name", filter("gzip", &["-9", "-N"], &plain)),
        ("members of gzip", [gzip(start), gzip(b""), gzip(rest)].concat()),
        ("eStargz", estargz(&plain)),
        ("zstd", zstd(&plain)),
        ("the best zstd", filter("zstd", &["-q", "-c", "-19"], &plain)),
        ("frames of zstd", [skippable.to_vec(), zstd(start), skippable.to_vec(), zstd(rest)].concat()),
        ("zstd:chunked", zstd_chunked(&plain)),
    ];
    let mut expected = vec!["empty=".to_owned(), format!("large={}", text(100_000)), format!("small={}", text(1))];
    expected.sort();
    for (form, blob) in forms {
        let registry = TestRegistry::http().await;
        let pushed = Recipe::new(vec![Layer::packed(plain.clone(), blob.clone())]).push(&registry, "team/app", &["v1"]);
        let node = Node::new(&registry).await;
        node.pull(IMAGE).await.unwrap_or_else(|error| panic!("{form}: {}", node::chain(&error)));
        assert!(node.files() == expected, "{form}");
        assert_eq!(node.snapshots(), pushed.chain(), "{form}");

        let cut = blob[..blob.len() / 2].to_vec();
        Recipe::new(vec![Layer::packed(plain.clone(), cut)]).push(&registry, "team/app", &["v1"]);
        let node = Node::new(&registry).await;
        let error = node::chain(&node.pull(IMAGE).await.unwrap_err());
        assert!(error.contains("unpack layer sha256:"), "{form}: {error}");
        node.is_empty();
    }
}
