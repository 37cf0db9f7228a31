//! The image store as a client of CRI sees it: names, removal, sizes on disk, and snapshotters of runtime handlers.
#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use api::cri;
use tonic::Code;
use windlass_e2e::{
    client::{Client, container, image_spec},
    image::{Image, Pushed},
    layer::LayerBuilder,
    node::{BUSYBOX, PAUSE, TestNode},
    wait::{self, SOON},
};

fn small(content: &str) -> Image {
    let layer = LayerBuilder::new().file("content", 0o644, content.as_bytes()).build();
    Image::new(vec![layer], serde_json::json!({"Cmd": ["/content"]}))
}

fn push(node: &TestNode, repository: &str, tag: &str, content: &str) -> Pushed {
    small(content).push(&node.registry.pusher(), &format!("library/{repository}"), tag)
}

/// Ids of the images that the filter lets through, sorted.
async fn listed(client: &Client, filter: &str) -> Vec<String> {
    let filter = Some(cri::ImageFilter { image: Some(image_spec(filter)) });
    let answer = client.images.clone().list_images(cri::ListImagesRequest { filter }).await.unwrap().into_inner();
    let mut ids: Vec<String> = answer.images.into_iter().map(|image| image.id).collect();
    ids.sort();
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_lists_and_statuses_know_an_image_by_all_its_names_and_by_no_other() {
    let node = TestNode::start().await;
    let client = node.client();
    // One image with two tags; one known by `latest`; one that lost its tag to another.
    let [twice, latest, old] = [("twice", "1"), ("plain", "latest"), ("moved", "1")]
        .map(|(repository, tag)| push(&node, repository, tag, &format!("store {repository}")));
    push(&node, "twice", "2", "store twice");
    for name in ["twice:1", "twice:2", "plain", "moved:1"] {
        client.pull(name).await.unwrap();
    }
    let new = push(&node, "moved", "1", "store moved again");
    client.pull("moved:1").await.unwrap();
    let mut all = [&twice, &latest, &old, &new].map(|pushed| pushed.id.clone());
    all.sort();
    assert_eq!(listed(&client, "").await, all);

    let digest = |repository: &str, pushed: &Pushed| format!("docker.io/library/{repository}@{}", pushed.digest);
    let short = |pushed: &Pushed| pushed.id["sha256:".len()..][..13].to_owned();
    let cases = [
        ("twice:1".to_owned(), Some(&twice)),
        ("docker.io/library/twice:2".to_owned(), Some(&twice)),
        ("library/twice:2".to_owned(), Some(&twice)),
        (digest("twice", &twice), Some(&twice)),
        (format!("twice:2@{}", twice.digest), Some(&twice)),
        (twice.id.clone(), Some(&twice)),
        (short(&twice), Some(&twice)),
        (format!("sha256:{}", short(&twice)), Some(&twice)),
        ("plain".to_owned(), Some(&latest)),
        ("docker.io/library/plain:latest".to_owned(), Some(&latest)),
        ("moved:1".to_owned(), Some(&new)),
        (digest("moved", &old), Some(&old)),
        (old.id.clone(), Some(&old)),
        // A repository without a tag is its `latest`, and a digest is of a repository.
        ("twice".to_owned(), None),
        ("twice:3".to_owned(), None),
        ("other/twice:1".to_owned(), None),
        ("quay.io/library/twice:1".to_owned(), None),
        (digest("plain", &twice), None),
        (twice.digest.clone(), None),
        (format!("sha256:{}", "0".repeat(64)), None),
        ("UPPER".to_owned(), None),
        ("twice*".to_owned(), None),
    ];
    for (name, expected) in cases {
        let id = expected.map(|pushed| pushed.id.clone());
        assert_eq!(client.image(&name).await.unwrap().map(|image| image.id), id, "ImageStatus {name}");
        assert_eq!(listed(&client, &name).await, id.into_iter().collect::<Vec<_>>(), "ListImages {name}");
    }
    let names = |image: cri::Image| (image.repo_tags, image.repo_digests);
    let tags = vec!["docker.io/library/twice:1".to_owned(), "docker.io/library/twice:2".to_owned()];
    assert_eq!(names(client.image(&twice.id).await.unwrap().unwrap()), (tags, vec![digest("twice", &twice)]));
    assert_eq!(names(client.image(&old.id).await.unwrap().unwrap()), (vec![], vec![digest("moved", &old)]));

    let without = cri::ImageStatusRequest { image: None, verbose: false };
    let refused = client.images.clone().image_status(without).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::InvalidArgument, "image: is required"));
    let verbose = cri::ImageStatusRequest { image: Some(image_spec("absent")), verbose: true };
    let absent = client.images.clone().image_status(verbose).await.unwrap().into_inner();
    assert_eq!(absent, cri::ImageStatusResponse::default());
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_is_removed_is_the_whole_image_and_nothing_else() {
    let node = TestNode::start().await;
    let client = node.client();
    let kept = push(&node, "kept", "1", "store kept");
    let gone = push(&node, "gone", "1", "store gone");
    push(&node, "gone", "2", "store gone");
    push(&node, "alias", "1", "store gone");
    client.pull("kept:1").await.unwrap();
    let short = &gone.id["sha256:".len()..][..13];
    let by_digest = format!("docker.io/library/gone@{}", gone.digest);
    for name in ["gone:1", "docker.io/library/gone:2", "alias:1", by_digest.as_str(), gone.id.as_str(), short] {
        for tag in ["gone:1", "gone:2", "alias:1"] {
            client.pull(tag).await.unwrap();
        }
        assert_eq!(listed(&client, "").await.len(), 2);
        let (first, second) = tokio::join!(client.remove_image(name), client.remove_image(name));
        first.and(second).unwrap_or_else(|status| panic!("removal of {name} by two: {status}"));
        assert_eq!(listed(&client, "").await, std::slice::from_ref(&kept.id), "after the removal of {name}");
        for unknown in [name, "absent", &gone.digest, "UPPER"] {
            client.remove_image(unknown).await.unwrap();
        }
    }
    assert_eq!(listed(&client, "").await, [kept.id]);
    // Pinned is for the kubelet's own collection; who names the image means it.
    client.pull(PAUSE).await.unwrap();
    assert!(client.image(PAUSE).await.unwrap().unwrap().pinned);
    assert!(!client.image("kept:1").await.unwrap().unwrap().pinned);
    client.remove_image(PAUSE).await.unwrap();
    assert_eq!(client.image(PAUSE).await.unwrap(), None);
    node.finish().await;
}

/// Bytes and inodes of a directory and all below it.
fn walk(path: &Path) -> (u64, u64) {
    let meta = fs::symlink_metadata(path).unwrap();
    let mut sum = (meta.blocks() * 512, 1);
    if meta.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            let (bytes, inodes) = walk(&entry.unwrap().path());
            sum = (sum.0 + bytes, sum.1 + inodes);
        }
    }
    sum
}

/// What the layers of images have on disk: snapshots but those that were made for pods.
fn on_disk(node: &TestNode, snapshotter: &str, without: &[String]) -> (u64, u64) {
    let root = node.path("root").join(format!("io.containerd.snapshotter.v1.{snapshotter}/snapshots"));
    let directories = fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    let layers =
        directories.filter(|path| !without.contains(&path.file_name().unwrap().to_string_lossy().into_owned()));
    layers.fold((0, 0), |sum, path| {
        let own = if path.join("fs").is_dir() { path.join("fs") } else { path };
        let (bytes, inodes) = walk(&own);
        (sum.0 + bytes, sum.1 + inodes)
    })
}

/// Mount point, bytes and inodes of each file system that has images.
async fn filesystems(client: &Client) -> Vec<(String, u64, u64)> {
    let info = client.images.clone().image_fs_info(cri::ImageFsInfoRequest {}).await.unwrap().into_inner();
    assert_eq!(info.image_filesystems, info.container_filesystems);
    let value = |value: Option<cri::UInt64Value>| value.unwrap().value;
    let told = info.image_filesystems.into_iter();
    told.map(|told| (told.fs_id.unwrap().mountpoint, value(told.used_bytes), value(told.inodes_used))).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_image_fs_info_is_what_the_layers_have_on_disk() {
    let node = TestNode::start().await;
    let client = node.client();
    let check = async |what: &str, without: &[String]| {
        let (bytes, inodes) = on_disk(&node, "overlayfs", without);
        let mountpoint = node.path("root/io.containerd.snapshotter.v1.overlayfs").display().to_string();
        assert_eq!(filesystems(&client).await, [(mountpoint, bytes, inodes)], "{what}");
        (bytes, inodes)
    };
    assert_eq!(check("an empty node", &[]).await, (0, 0));
    for name in [BUSYBOX, PAUSE] {
        client.pull(name).await.unwrap();
        check(name, &[]).await;
    }
    let pushed = push(&node, "fs-info", "1", &"x".repeat(300_000));
    client.pull("fs-info:1").await.unwrap();
    let before = check("a third image", &[]).await;
    client.pull("fs-info:1").await.unwrap();
    assert_eq!(check("the third again", &[]).await, before);

    // What containers write is theirs, and not the images'.
    let root = node.path("root/io.containerd.snapshotter.v1.overlayfs/snapshots");
    let layers: Vec<String> = names(&root);
    let pod_config = node.pod("fs-info");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &container("app", BUSYBOX, &["sleep", "1000"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    client.output(&app, &["dd", "if=/dev/zero", "of=/written", "bs=1M", "count=8"]).await;
    let made: Vec<String> = names(&root).into_iter().filter(|name| !layers.contains(name)).collect();
    assert_eq!(made.len(), 2, "a pod and a container");
    assert_eq!(check("a container that wrote", &made).await, before);

    // Layers of a removed image that a container stands on are still there, and go with it.
    client.remove_image(&pushed.id).await.unwrap();
    client.remove_image(BUSYBOX).await.unwrap();
    let held = check("images that were removed", &made).await;
    assert!(held.0 > 0 && held.0 < before.0, "{held:?} {before:?}");
    client.stop(&app, 0).await.unwrap();
    client.remove(&app).await.unwrap();
    wait::until("the layers of the container's image are gone", SOON, || async {
        let now = filesystems(&client).await;
        if now[0].1 < held.0 { Ok(()) } else { Err(format!("{now:?}")) }
    })
    .await;
    node.remove_all_pods().await;
    check("no pods", &[]).await;
    client.remove_image(PAUSE).await.unwrap();
    assert_eq!(check("nothing", &[]).await, (0, 0));
    node.finish().await;
}

fn names(directory: &Path) -> Vec<String> {
    fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect()
}

/// A second handler like the first, but that its snapshotter copies.
async fn node_with_copies(cri: &str) -> TestNode {
    let mut node = TestNode::prepare().await;
    let runtime = "[plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.copies";
    let (runc, shim, root) = (&node.settings.runc, &node.settings.shim, node.path("runc").display().to_string());
    node.settings.cri = format!(
        "{cri}\n{runtime}]\nruntime_type = \"io.containerd.runc.v2\"\nruntime_path = \"{shim}\"\nsnapshotter = \"native\"\n\
         {runtime}.options]\nBinaryName = \"{runc}\"\nRoot = \"{root}\"\n"
    );
    node.boot().await;
    node
}

async fn run_copies(client: &Client, config: &cri::PodSandboxConfig) -> Result<String, tonic::Status> {
    let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: "copies".into() };
    Ok(client.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_images_are_unpacked_again_for_a_handler_with_another_snapshotter() {
    let node = node_with_copies("").await;
    let client = node.client();
    for name in [BUSYBOX, PAUSE] {
        client.pull(name).await.unwrap();
    }
    push(&node, "volume", "1", "of a volume");
    client.pull("volume:1").await.unwrap();
    assert_eq!(filesystems(&client).await.len(), 1);
    let pod_config = node.pod("copies");
    let pod = run_copies(&client, &pod_config).await.unwrap();
    let mut app = container("app", BUSYBOX, &["sleep", "1000"]);
    app.mounts.push(cri::Mount {
        container_path: "/volume".into(),
        image: Some(image_spec("volume:1")),
        readonly: true,
        ..cri::Mount::default()
    });
    let app = client.create(&pod, &app, &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    assert_eq!(client.output(&app, &["cat", "/volume/content"]).await, "of a volume");
    // A copy is one mount, and no overlay.
    let mounts = client.output(&app, &["cat", "/proc/mounts"]).await;
    assert!(mounts.lines().all(|line| !line.contains(" / overlay ")), "{mounts}");
    assert_eq!(filesystems(&client).await.len(), 2);

    node.remove_all_pods().await;
    for (name, (bytes, inodes)) in ["overlayfs", "native"].map(|name| (name, on_disk(&node, name, &[]))).into_iter() {
        let mountpoint = node.path("root").join(format!("io.containerd.snapshotter.v1.{name}")).display().to_string();
        assert!(filesystems(&client).await.contains(&(mountpoint, bytes, inodes)), "{name} {bytes} {inodes}");
    }
    for name in [BUSYBOX, PAUSE, "volume:1"] {
        client.remove_image(name).await.unwrap();
    }
    assert_eq!([on_disk(&node, "overlayfs", &[]), on_disk(&node, "native", &[])], [(0, 0); 2]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_without_kept_layers_the_error_names_the_pull_that_helps() {
    let node =
        node_with_copies("[plugins.\"io.containerd.grpc.v1.cri\".containerd]\ndiscard_unpacked_layers = true").await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("copies");
    // The sandbox image is pulled for the handler that needs it first.
    let pod = run_copies(&client, &pod_config).await.unwrap();
    let config = container("app", BUSYBOX, &["sleep", "1000"]);
    let refused = client.create(&pod, &config, &pod_config).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    for part in [BUSYBOX, "snapshotter native", "pull the image again with image.runtime_handler = \"copies\""] {
        assert!(refused.message().contains(part), "{refused}");
    }
    let image = cri::ImageSpec { runtime_handler: "copies".into(), ..image_spec(BUSYBOX) };
    let pull = cri::PullImageRequest { image: Some(image), auth: None, sandbox_config: Some(pod_config.clone()) };
    client.images.clone().pull_image(pull).await.unwrap();
    let app = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    node.remove_all_pods().await;
    node.finish().await;
}
