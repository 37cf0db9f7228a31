//! Archives of images, in and out: made here, by skopeo and by hand; good ones, and bad ones that must leave nothing.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "pull/node.rs"]
#[expect(dead_code, reason = "shared with the tests of pulls, and each uses a part of it")]
mod node;
#[path = "import/pack.rs"]
mod pack;
mod support;

use std::io::{Cursor, Read};
use std::process::Command;
use std::sync::Arc;

use node::{Compression, Layer, Node, Recipe, chain, eventually};
use pack::{Pack, gzip, image, named};
use serde_json::json;
use support::TestRegistry;
use windlass_image_service::digest::Digest;
use windlass_image_service::images::Image;
use windlass_image_service::import::{ImportError, ImportRequest};

async fn node() -> Node {
    Node::new(&TestRegistry::http().await).await
}

fn request(node: &Node) -> ImportRequest {
    ImportRequest { namespace: node.ns.clone(), snapshotter: None, repository: None, pinned: false }
}

async fn import(node: &Node, archive: Vec<u8>) -> Result<Vec<Arc<Image>>, ImportError> {
    node.images.import(request(node), Cursor::new(archive)).await
}

async fn export(node: &Node, names: &[&str]) -> Vec<u8> {
    let names = names.iter().map(|name| (*name).to_owned()).collect();
    node.images.export(node.ns.clone(), names, Vec::new()).await.unwrap()
}

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_oci_archive_in_any_compression_gives_its_images_under_their_names() {
    let image = image(&[("etc/name", "hello")]);
    let plain = named(&image, &[("io.containerd.image.name", "registry.test/team/app:v1")]).tar();
    for archive in [plain.clone(), gzip(&plain), zstd::encode_all(plain.as_slice(), 1).unwrap()] {
        let node = node().await;
        let [shown] = import(&node, archive).await.unwrap().try_into().unwrap();
        assert_eq!(shown.id, image.config_digest());
        assert_eq!(shown.tags, ["registry.test/team/app:v1"]);
        assert_eq!(shown.digests, [format!("registry.test/team/app@{}", image.manifest_digest())]);
        assert!(!shown.pinned);
        assert_eq!(node.files(), ["etc/name=hello"]);
        assert_eq!(node.blobs(), image.blobs());
        assert!(Arc::ptr_eq(&node.images.resolve(&node.ns, "registry.test/team/app:v1").unwrap(), &shown));
        let node = node.reopen().await;
        assert_eq!(node.images.resolve(&node.ns, "registry.test/team/app:v1").unwrap().id, shown.id);
        node.images.remove(&node.ns, "registry.test/team/app:v1").await.unwrap();
        node.is_empty();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_names_come_from_the_annotations_and_a_bare_tag_needs_a_repository() {
    let image = image(&[("a", "1")]);
    let ref_name = "org.opencontainers.image.ref.name";
    for (annotations, repository, tags) in [
        (vec![(ref_name, "busybox:1.36")], None, vec!["docker.io/library/busybox:1.36"]),
        (vec![(ref_name, "quay.io/a/b")], None, vec!["quay.io/a/b:latest"]),
        (vec![(ref_name, "1.36"), ("io.containerd.image.name", "quay.io/a/b:2")], None, vec!["quay.io/a/b:2"]),
        (vec![(ref_name, "1.36")], Some("registry.test/x"), vec!["registry.test/x:1.36"]),
        (vec![(ref_name, "1.36")], None, vec![]),
        (vec![], None, vec![]),
    ] {
        let node = node().await;
        let request = ImportRequest { repository: repository.map(str::to_owned), ..request(&node) };
        let archive = Cursor::new(named(&image, &annotations).tar());
        let [shown] = node.images.import(request, archive).await.unwrap().try_into().unwrap();
        assert_eq!(shown.tags, tags, "{annotations:?} {repository:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_of_several_platforms_this_nodes_is_taken_and_the_rest_need_not_be_there() {
    let here = image(&[("a", "1")]);
    let mut pack = Pack::default();
    pack.blobs(&here);
    let mut ours = here.descriptor();
    ours["platform"] = json!({"os": "linux", "architecture": node::architecture()});
    let mut theirs = json!({"mediaType": ours["mediaType"], "digest": Digest::sha256_of(b"not here"), "size": 7});
    theirs["platform"] = json!({"os": "linux", "architecture": "s390x"});
    let index = pack.document(&json!({"schemaVersion": 2, "manifests": [theirs, ours]}));
    let mut entry = index.clone();
    entry["annotations"] = json!({"io.containerd.image.name": "registry.test/multi:1"});
    let archive = pack.index(&[entry]).tar();
    let node = node().await;
    let [shown] = import(&node, archive).await.unwrap().try_into().unwrap();
    let target = index["digest"].as_str().unwrap();
    assert_eq!(shown.digests, [format!("registry.test/multi@{target}")]);
    assert_eq!(shown.id, here.config_digest());

    // The index goes on being what the name stands for.
    let exported = export(&node, &["registry.test/multi:1"]).await;
    let other = Node::new(&TestRegistry::http().await).await;
    let [again] = import(&other, exported).await.unwrap().try_into().unwrap();
    assert_eq!((&again.tags, &again.digests), (&shown.tags, &shown.digests));
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_docker_saves_is_taken_in_with_links_and_several_tags() {
    let image = image(&[("etc/name", "docker")]);
    let config = format!("{}.json", image.config_digest().hex());
    let entries =
        json!([{"Config": config, "RepoTags": ["app:1", "team/app:2"], "Layers": ["one/layer.tar", "two/layer.tar"]}]);
    let layer = image.layers[0].clone();
    let twice = image.with_layers(vec![layer.clone(), layer.clone()]);
    let entries = entries.to_string().replace(&config, &format!("{}.json", twice.config_digest().hex()));
    let archive = Pack::default()
        .directory("one")
        .file("one/VERSION", b"1.0")
        .file("one/json", b"{}")
        .file("one/layer.tar", &layer)
        .symlink("two/layer.tar", "../one/layer.tar")
        .file(&format!("{}.json", twice.config_digest().hex()), &twice.config)
        .file("repositories", b"{}")
        .file("manifest.json", entries.as_bytes());
    let node = node().await;
    let [shown] = import(&node, archive.tar()).await.unwrap().try_into().unwrap();
    assert_eq!(shown.id, twice.config_digest());
    assert_eq!(shown.tags, ["docker.io/library/app:1", "docker.io/team/app:2"]);
    assert_eq!(shown.digests, [""; 0]);
    assert_eq!(node.snapshots().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_skopeo_reads_what_is_exported_and_its_archives_are_read() {
    let registry = TestRegistry::http().await;
    let layers = vec![
        Layer::new(Compression::Gzip).file("etc/name", "below").file("gone", "x"),
        Layer::new(Compression::Gzip).file("etc/name", "above").file(".wh.gone", ""),
    ];
    let pushed = Recipe::new(layers).push(&registry, "team/app", &["v1"]);
    let from = Node::new(&registry).await;
    from.pull("registry.test/team/app:v1").await.unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    std::fs::write(path("exported.tar"), export(&from, &["registry.test/team/app:v1"]).await).unwrap();

    // Each reads the whole archive and checks every digest.
    for (from, to) in [
        (format!("oci-archive:{}:v1", path("exported.tar")), format!("dir:{}", path("as-oci"))),
        (
            format!("docker-archive:{}:registry.test/team/app:v1", path("exported.tar")),
            format!("dir:{}", path("as-docker")),
        ),
        (
            format!("oci-archive:{}:v1", path("exported.tar")),
            format!("docker-archive:{}:registry.test/team/app:v1", path("docker.tar")),
        ),
        (
            format!("oci-archive:{}:v1", path("exported.tar")),
            format!("oci-archive:{}:registry.test/team/app:v1", path("oci.tar")),
        ),
    ] {
        run("skopeo", &["copy", "--insecure-policy", &from, &to]);
    }
    for archive in ["exported.tar", "docker.tar", "oci.tar"] {
        let node = node().await;
        let archive = std::fs::File::open(path(archive)).unwrap();
        let [shown] = node.images.import(request(&node), archive).await.unwrap().try_into().unwrap();
        assert_eq!(shown.tags, ["registry.test/team/app:v1"]);
        assert_eq!((&shown.id, shown.chain_id.as_str()), (&pushed.config.digest, pushed.chain()[1].as_str()));
        assert_eq!(node.files(), from.files());
    }
    // The same images give the same bytes.
    assert_eq!(std::fs::read(path("exported.tar")).unwrap(), export(&from, &["registry.test/team/app:v1"]).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_layout_that_umoci_made_is_taken_in() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let tag = format!("{}:v1", at("layout"));
    std::fs::write(at("content"), "from umoci").unwrap();
    run("umoci", &["init", "--layout", &at("layout")]);
    run("umoci", &["new", "--image", &tag]);
    run("umoci", &["insert", "--image", &tag, &at("content"), "/etc/content"]);
    run("tar", &["-C", &at("layout"), "-cf", &at("layout.tar"), "."]);
    let node = node().await;
    let request = ImportRequest { repository: Some("registry.test/umoci".into()), ..request(&node) };
    let archive = std::fs::File::open(at("layout.tar")).unwrap();
    let [shown] = node.images.import(request, archive).await.unwrap().try_into().unwrap();
    assert_eq!(shown.tags, ["registry.test/umoci:v1"]);
    assert_eq!(node.files(), ["etc/content=from umoci"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_several_images_are_exported_together_and_their_layers_once() {
    let (one, two) = (image(&[("a", "1")]), image(&[("a", "1")]).with_command("other"));
    let mut pack = Pack::default();
    pack.blobs(&one);
    pack.blobs(&two);
    let mut entries = [one.descriptor(), two.descriptor()];
    for (entry, name) in entries.iter_mut().zip(["registry.test/one:1", "registry.test/two:1"]) {
        entry["annotations"] = json!({"io.containerd.image.name": name});
    }
    let node = node().await;
    let shown = import(&node, pack.index(&entries).tar()).await.unwrap();
    assert_eq!(
        shown.iter().map(|image| image.id.clone()).collect::<Vec<_>>(),
        [one.config_digest(), two.config_digest()]
    );
    let id = two.config_digest().to_string();
    let archive = export(&node, &["registry.test/one:1", &id]).await;
    let names = pack::names(&archive);
    assert_eq!(names[..3], ["oci-layout", "index.json", "manifest.json"]);
    assert_eq!(names.len(), 3 + 2 * 2 + 1);
    let missing = node.images.export(node.ns.clone(), vec!["registry.test/none".into()], Vec::new()).await.unwrap_err();
    assert_eq!(missing.to_string(), "image \"registry.test/none\" is not on this node");
}

/// The archive is refused with this text, and nothing of it stays.
async fn refused(archive: Vec<u8>, expected: &str) {
    let node = node().await;
    let error = import(&node, archive).await.unwrap_err();
    let text = chain(&error);
    assert!(text.contains(expected), "{text:?} does not say {expected:?}");
    assert!(node.images.list(&node.ns).is_empty());
    node.is_empty();
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_bad_archives_are_refused_and_leave_nothing() {
    let image = image(&[("a", "1")]);
    let good = || named(&image, &[("io.containerd.image.name", "registry.test/app:1")]);
    let layout = || Pack::default().file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#);
    let zeros = format!("sha256:{}", "0".repeat(64));
    let absent = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": zeros, "size": 7});

    refused(b"not a tar".to_vec(), "it is not a tar archive").await;
    refused(Vec::new(), "neither oci-layout").await;
    refused(Pack::default().file("etc/passwd", b"root").tar(), "neither oci-layout").await;
    refused(gzip(&good().tar())[..500].to_vec(), "read the image archive").await;
    let cut = good().tar();
    refused(cut[..cut.len() - 2000].to_vec(), "not a tar archive").await;
    refused(Pack::default().file("oci-layout", br#"{"imageLayoutVersion":"2"}"#).tar(), "version \"2\"").await;
    refused(layout().tar(), "without an index.json").await;
    refused(layout().file("index.json", b"{").tar(), "not valid JSON").await;
    refused(layout().file("index.json", "[".repeat(100_000).as_bytes()).tar(), "not valid JSON").await;
    refused(layout().file("index.json", br#"{"manifests":[]}"#).tar(), "names no image").await;
    refused(layout().file("index.json", br#"{"manifests":[],"manifests":[]}"#).tar(), "duplicate field").await;
    refused(layout().file("index.json", &vec![b' '; (8 << 20) + 1]).tar(), "at most 8388608 are read").await;
    refused(Pack::default().index(std::slice::from_ref(&absent)).tar(), "which the archive does not hold").await;
    let mut outside = absent.clone();
    outside["digest"] = "sha256:../../../etc/passwd".into();
    refused(Pack::default().index(&[outside]).tar(), "not valid JSON").await;
    let mut lying = image.descriptor();
    lying["size"] = 5.into();
    let mut pack = Pack::default();
    pack.blobs(&image);
    refused(pack.index(&[lying]).tar(), "its descriptor says 5").await;
    refused(good().file(&format!("blobs/sha256/{}", "0".repeat(64)), b"other").tar(), "has other content").await;
    refused(good().file("blobs/sha256/xyz", b"").tar(), "is no blob").await;
    refused(good().file("blobs/md5/d41d8cd98f00b204e9800998ecf8427e", b"").tar(), "is no blob").await;
    refused(good().file("oci-layout", b"{}").tar(), "\"oci-layout\" twice").await;
    let layer = format!("blobs/sha256/{}", Digest::sha256_of(&image.layers[0]).hex());
    refused(good().file(&layer, &image.layers[0]).tar(), "twice").await;
    refused(good().file("../outside", b"x").tar(), "leads out of the archive").await;
    refused(good().node("device").tar(), "neither a file nor a link").await;
    let twice = Pack::default().name_two("registry.test/same:1", &image, &image.with_command("b"));
    refused(twice.tar(), "to two images").await;
    let bad_name = named(&image, &[("io.containerd.image.name", "Not A Name")]);
    refused(bad_name.tar(), "names an image badly").await;
    let digest_name = named(&image, &[("io.containerd.image.name", format!("registry.test/app@{zeros}").as_str())]);
    refused(digest_name.tar(), "it gives the name").await;
    // A layer that is not what the configuration says.
    refused(named(&image.with_diff_ids(&[&zeros]), &[]).tar(), "the image says").await;
    refused(named(&image.with_diff_ids(&[]), &[]).tar(), "names 0 layers, the manifest has 1").await;
    // The first image is good, and still nothing of it may stay.
    let mut both = Pack::default();
    both.blobs(&image);
    refused(both.index(&[image.descriptor(), absent]).tar(), "which the archive does not hold").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_indexes_nested_too_deep_are_refused() {
    let image = image(&[("a", "1")]);
    for (depth, fits) in [(3, true), (4, false), (50, false)] {
        let mut pack = Pack::default();
        pack.blobs(&image);
        let mut at = image.descriptor();
        for _ in 0..depth {
            at = pack.document(&json!({"schemaVersion": 2, "manifests": [at]}));
        }
        let archive = pack.index(&[at]).tar();
        match fits {
            true => assert_eq!(import(&node().await, archive).await.unwrap().len(), 1),
            false => refused(archive, "nested more than 4 indexes deep").await,
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_bad_archives_of_docker_are_refused_and_leave_nothing() {
    let image = image(&[("a", "1")]);
    let config = format!("{}.json", image.config_digest().hex());
    let manifest = |config: &str, layer: &str, tags: serde_json::Value| {
        json!([{"Config": config, "RepoTags": tags, "Layers": [layer]}]).to_string()
    };
    let pack = |manifest: String| {
        Pack::default()
            .file(&config, &image.config)
            .file("layer.tar", &image.layers[0])
            .file("manifest.json", manifest.as_bytes())
    };
    let [shown] = import(&node().await, pack(manifest(&config, "layer.tar", json!(null))).tar())
        .await
        .unwrap()
        .try_into()
        .unwrap();
    assert_eq!((&shown.id, shown.tags.len()), (&image.config_digest(), 0));
    refused(pack(manifest(&config, "none.tar", json!(["a:1"]))).tar(), "does not hold it").await;
    refused(pack(manifest(&config, "../../layer.tar", json!(["a:1"]))).tar(), "leads out of the archive").await;
    refused(pack(manifest(&config, "layer.tar", json!(["A:1:2"]))).tar(), "names an image badly").await;
    refused(pack("[]".into()).tar(), "names no image").await;
    refused(pack("{}".into()).tar(), "manifest.json cannot be read").await;
    let looping = pack(manifest(&config, "a", json!(["a:1"]))).symlink("a", "b").symlink("b", "a");
    refused(looping.tar(), "link through more than 10 others").await;
    let outside = pack(manifest(&config, "a", json!(["a:1"]))).symlink("a", "../../../etc/passwd");
    refused(outside.tar(), "does not hold it").await;
    let other = format!("{}.json", Digest::sha256_of(b"other").hex());
    let forged = pack(manifest(&other, "layer.tar", json!(["a:1"]))).file(&other, &image.config);
    refused(forged.tar(), "has other content").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_limits_hold_for_archives_and_their_layers() {
    let image = image(&[("zeros", &"0".repeat(100_000))]);
    let archive = gzip(&named(&image, &[]).tar());
    let limited = |change: fn(&mut windlass_image_service::images::Config)| async move {
        Node::with(&TestRegistry::http().await, change).await
    };
    let node = limited(|config| config.limits.bytes = 50_000).await;
    let error = import(&node, archive.clone()).await.unwrap_err();
    assert!(matches!(error, ImportError::TooMuch { what: "bytes of files", limit: 50_000 }), "{error:?}");
    node.is_empty();
    let many: Vec<(String, &str)> = (0..20).map(|number| (format!("f{number}"), "")).collect();
    let many: Vec<(&str, &str)> = many.iter().map(|(name, content)| (name.as_str(), *content)).collect();
    let node = limited(|config| config.limits.inodes = 10).await;
    let error = import(&node, named(&pack::image(&many), &[]).tar()).await.unwrap_err();
    assert!(chain(&error).contains("the layer holds more than 10 entries"), "{}", chain(&error));
    node.is_empty();
    let node = limited(|config| config.max_image_files = 10).await;
    let error = import(&node, named(&pack::image(&many), &[]).tar()).await.unwrap_err();
    assert!(chain(&error).contains("the layers of the image together hold more than 10 files"), "{}", chain(&error));
    node.is_empty();
}

/// A stream that gives a part and then nothing more.
struct Stalls(Cursor<Vec<u8>>, std::sync::mpsc::Receiver<()>);

impl Read for Stalls {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self.0.read(buffer)? {
            0 => {
                // Ends when the test lets go of the other side.
                let _ended = self.1.recv();
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
            count => Ok(count),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_import_whose_caller_gives_up_leaves_nothing() {
    let image = image(&[("a", "1")]);
    let archive = named(&image, &[]).tar();
    let node = Arc::new(node().await);
    let (hold, held) = std::sync::mpsc::channel();
    let stream = Stalls(Cursor::new(archive[..archive.len() - 1024].to_vec()), held);
    let (importing, request) = (Arc::clone(&node), request(&node));
    let task = tokio::spawn(async move { importing.images.import(request, stream).await });
    eventually("a blob arrives", || !node.blobs().is_empty()).await;
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
    drop(hold);
    eventually("nothing is left", || node.leftovers().is_empty()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_lies_in_the_directory_is_imported_once_and_pinned() {
    let node = node().await;
    let directory = tempfile::tempdir().unwrap();
    let put = |name: &str, bytes: &[u8]| std::fs::write(directory.path().join(name), bytes).unwrap();
    let archive = |name: &str, content: &str| -> Vec<u8> {
        named(&image(&[("a", content)]), &[("io.containerd.image.name", name)]).tar()
    };
    put("a.tar", b"this is no archive");
    put("b.tar.gz", &gzip(&archive("registry.test/b:1", "b")));
    put("c.tar.zst", &zstd::encode_all(archive("registry.test/c:1", "c").as_slice(), 1).unwrap());
    put("d.tar.partial", &archive("registry.test/d:1", "d"));
    rustix::fs::mknodat(
        rustix::fs::CWD,
        directory.path().join("e.tar"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    std::fs::create_dir(directory.path().join("f.tar")).unwrap();
    put("g.tar", &archive("registry.test/g:1", "g"));
    let tags = |node: &Node| {
        let mut tags: Vec<String> = node.images.list(&node.ns).iter().flat_map(|image| image.tags.clone()).collect();
        tags.sort();
        tags
    };
    node.images.preload_all(&node.ns, directory.path()).await.unwrap();
    assert_eq!(tags(&node), ["registry.test/b:1", "registry.test/c:1", "registry.test/g:1"]);
    assert!(node.images.list(&node.ns).iter().all(|image| image.pinned));

    // What was removed stays removed, until its file changes.
    let node = node.reopen().await;
    assert!(node.images.list(&node.ns).iter().all(|image| image.pinned));
    node.images.remove(&node.ns, "registry.test/b:1").await.unwrap();
    node.images.remove(&node.ns, "registry.test/c:1").await.unwrap();
    put("c.tar.zst", &zstd::encode_all(archive("registry.test/c:2", "changed").as_slice(), 1).unwrap());
    put("a.tar", &archive("registry.test/a:1", "a"));
    node.images.preload_all(&node.ns, directory.path()).await.unwrap();
    assert_eq!(tags(&node), ["registry.test/a:1", "registry.test/c:2", "registry.test/g:1"]);
    node.images.preload_all(&node.ns, &directory.path().join("absent")).await.unwrap();
}
