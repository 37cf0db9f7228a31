//! Images as CRI shows them, and what a container sees of their layers.

use std::collections::BTreeSet;

use api::cri;
use windlass_e2e::{
    client::container,
    fixture,
    image::{self, Image, push_index},
    layer::LayerBuilder,
    node::{BUSYBOX, TestNode},
};

fn small(content: &str) -> Image {
    let layer = LayerBuilder::new().file("content", 0o644, content.as_bytes()).build();
    Image::new(vec![layer], serde_json::json!({"Cmd": ["/content"], "User": "1234"}))
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_image_is_known_by_tag_digest_and_id() {
    let node = TestNode::start().await;
    let client = node.client();
    let pushed = small("names").push(&node.registry.pusher(), "library/names", "1");
    let id = client.pull("names:1").await.unwrap();
    assert_eq!(id, pushed.id);
    let (tag, digest) = ("docker.io/library/names:1".to_owned(), format!("docker.io/library/names@{}", pushed.digest));
    for name in ["names:1", tag.as_str(), digest.as_str(), id.as_str(), id.strip_prefix("sha256:").unwrap()] {
        let image = client.image(name).await.unwrap().unwrap_or_else(|| panic!("{name} is not known"));
        assert_eq!(
            (&image.id, &image.repo_tags, &image.repo_digests),
            (&id, &vec![tag.clone()], &vec![digest.clone()])
        );
        assert_eq!(image.uid, Some(cri::Int64Value { value: 1234 }));
        assert!(image.size > 0);
    }
    let listed: Vec<String> = client.image_list().await.unwrap().into_iter().map(|image| image.id).collect();
    assert_eq!(listed, [id]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pull_by_digest_gives_an_image_without_a_tag_and_a_tag_may_move() {
    let node = TestNode::start().await;
    let client = node.client();
    let pusher = node.registry.pusher();
    let first = small("first").push(&pusher, "library/moving", "1");
    let reference = format!("docker.io/library/moving@{}", first.digest);
    assert_eq!(client.pull(&reference).await.unwrap(), first.id);
    assert_eq!(client.image(&reference).await.unwrap().unwrap().repo_tags, Vec::<String>::new());
    client.pull("moving:1").await.unwrap();
    let second = small("second").push(&pusher, "library/moving", "1");
    assert_eq!(client.pull("moving:1").await.unwrap(), second.id);
    assert_eq!(client.image(&first.id).await.unwrap().unwrap().repo_tags, Vec::<String>::new());
    assert_eq!(client.image("moving:1").await.unwrap().unwrap().id, second.id);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_removing_an_image_by_any_name_removes_all_of_it() {
    let node = TestNode::start().await;
    let client = node.client();
    let pushed = small("removed").push(&node.registry.pusher(), "library/removed", "1");
    let digest = format!("docker.io/library/removed@{}", pushed.digest);
    for name in ["removed:1", digest.as_str(), pushed.id.as_str()] {
        client.pull("removed:1").await.unwrap();
        client.remove_image(name).await.unwrap();
        assert_eq!(client.image_list().await.unwrap(), [], "after removing {name}");
        assert_eq!(client.image(&pushed.id).await.unwrap(), None, "after removing {name}");
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_of_an_index_the_image_for_this_machine_is_pulled() {
    let node = TestNode::start().await;
    let client = node.client();
    let pusher = node.registry.pusher();
    let ours = small("ours").push(&pusher, "library/multi", "ours");
    let mut foreign = small("foreign");
    foreign.architecture = if image::host_architecture() == "s390x" { "amd64" } else { "s390x" }.into();
    let foreign = foreign.push(&pusher, "library/multi", "foreign");
    let index = push_index(&pusher, "library/multi", "1", &[foreign.clone(), ours.clone()]);
    assert_eq!(client.pull("multi:1").await.unwrap(), ours.id);
    let shown = client.image("multi:1").await.unwrap().unwrap();
    // The digest that a user can pin is that of what the tag names: the index.
    assert_eq!(shown.repo_digests, [format!("docker.io/library/multi@{index}")]);
    push_index(&pusher, "library/multi", "2", &[foreign]);
    let refused = client.pull("multi:2").await.unwrap_err();
    assert!(refused.message().contains("multi:2"), "{refused}");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_image_fs_info_grows_with_an_image_and_shrinks_when_it_goes() {
    let node = TestNode::start().await;
    let client = node.client();
    let usage = || async {
        let info = client.images.clone().image_fs_info(cri::ImageFsInfoRequest {}).await.unwrap().into_inner();
        let [images] = &info.image_filesystems[..] else { panic!("one filesystem has the images: {info:?}") };
        assert!(images.fs_id.as_ref().unwrap().mountpoint.starts_with(node.path("root").to_str().unwrap()));
        images.clone()
    };
    let used = || async { usage().await.used_bytes.unwrap().value };
    // The kubelet passes over figures that are no newer than the last, when it looks for a want of disk.
    let first = usage().await.timestamp;
    assert!(first > 0 && usage().await.timestamp > first);
    let empty = used().await;
    client.pull(BUSYBOX).await.unwrap();
    let full = used().await;
    // The static busybox alone has more than a MiB.
    assert!(full > empty + (1 << 20), "{empty} bytes without an image, {full} with one");
    client.remove_image(BUSYBOX).await.unwrap();
    assert_eq!(used().await, empty);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_layers_of_a_debian_are_seen_merged() {
    let node = TestNode::start().await;
    let client = node.client();
    let pushed = fixture::debian().push(&node.registry.pusher(), "library/debian", "1");
    assert_eq!(client.pull("debian:1").await.unwrap(), pushed.id);
    let pod_config = node.pod("debian");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &container("app", "debian:1", &["sleep", "1000"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();

    assert!(client.output(&app, &["dpkg", "--version"]).await.contains("Debian"));
    let names = client
        .output(&app, &["find", "/layers", "-type", "d", "-printf", "%p %M\\n", "-o", "-printf", "%p %M %n\\n"])
        .await;
    let expected = "/layers drwxr-xr-x\n/layers/hidden drwxr-xr-x\n/layers/hidden/above -rw-r--r-- 1\n\
                    /layers/kept -rw-r--r-- 1\n/layers/link -rw-r----- 2\n/layers/linked -rw-r----- 2\n\
                    /layers/replaced -rw------- 1\n/layers/symlink lrwxrwxrwx 1\n/layers/xattr -rw-r--r-- 1\n";
    assert_eq!(names.lines().collect::<BTreeSet<_>>(), expected.lines().collect::<BTreeSet<_>>());
    assert_eq!(client.output(&app, &["cat", "/layers/replaced", "/layers/symlink"]).await, "two\nkept\n");
    assert_eq!(client.exec(&app, &["test", "-e", "/usr/bin/perl"], 10).await.unwrap().exit_code, 1);
    assert_eq!(client.output(&app, &["stat", "-c", "%U:%G %a", "/etc/shadow"]).await, "root:shadow 640\n");

    let mut value = [0u8; 64];
    let path = format!("/proc/{}/root/layers/xattr", node.first_process(&app));
    let length = rustix::fs::getxattr(&path, "user.windlass", &mut value).unwrap();
    assert_eq!(&value[..length], fixture::XATTR_VALUE);

    // What a container writes is its own.
    client.output(&app, &["sh", "-c", "echo three > /layers/replaced && rm /layers/kept"]).await;
    let again = client.create(&pod, &container("again", "debian:1", &["sleep", "1000"]), &pod_config).await.unwrap();
    client.start(&again).await.unwrap();
    assert_eq!(client.output(&again, &["cat", "/layers/replaced", "/layers/kept"]).await, "two\nkept\n");
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_image_of_a_hundred_layers_is_mounted_whole() {
    const HEIGHT: usize = 100;
    let node = TestNode::start().await;
    let client = node.client();
    let pushed = fixture::tower(HEIGHT).push(&node.registry.pusher(), "library/tower", "1");
    assert_eq!(client.pull("tower:1").await.unwrap(), pushed.id);
    let pod_config = node.pod("tower");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &container("app", "tower:1", &["sleep", "1000"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    let expected: String = (1..HEIGHT).map(|number| format!("tower/{number:03}")).collect();
    assert_eq!(client.output(&app, &["sh", "-c", "cat /tower/*"]).await, expected);
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_registry_on_loopback_needs_no_configuration_to_be_spoken_to_without_tls() {
    let node = TestNode::start().await;
    let reference = format!("{}/library/busybox:1", node.registry.address);
    assert_eq!(node.client().pull(&reference).await.unwrap(), node.registry.busybox.id);
    assert_eq!(node.client().image(&reference).await.unwrap().unwrap().repo_tags, [reference]);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_the_image_of_a_running_container_can_be_removed_and_the_container_goes_on() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("app");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &container("app", BUSYBOX, &["sleep", "1000"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    client.remove_image(BUSYBOX).await.unwrap();
    assert_eq!(client.image(BUSYBOX).await.unwrap(), None);
    assert_eq!(client.output(&app, &["cat", "/etc/group"]).await, "root:x:0:\nnogroup:x:65534:\n");
    node.remove_all_pods().await;
    node.finish().await;
}
