//! Image volumes (`Mount.image`): what of an image a container sees, that it stays while it is used, and what is refused.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use api::cri;
use serde_json::json;
use tonic::Code;
use windlass_e2e::{
    client::{container, image_spec},
    image::Image,
    layer::LayerBuilder,
    node::{BUSYBOX, TestNode},
};

const DATA: &str = "docker.io/library/volume-data:1";

/// Two layers, so that it is an overlay, with a program in it and a link out of it.
fn data() -> Image {
    let busybox = std::fs::read("/bin/busybox").unwrap();
    let below = LayerBuilder::new()
        .file("share/model/weights", 0o644, b"one\n")
        .file("share/model/gone", 0o644, b"gone\n")
        .file("bin/cat", 0o755, &busybox)
        .symlink("current", "/share/model")
        .symlink("out", "../../../../../../../../../etc")
        .build();
    let above = LayerBuilder::new().file("share/model/weights", 0o640, b"two\n").whiteout("share/model/gone").build();
    Image::new(vec![below, above], json!({}))
}

fn mount(path: &str, sub_path: &str) -> cri::Mount {
    cri::Mount {
        container_path: path.into(),
        readonly: true,
        image: Some(image_spec(DATA)),
        image_sub_path: sub_path.into(),
        ..cri::Mount::default()
    }
}

fn sleeper(name: &str, mounts: &[cri::Mount]) -> cri::ContainerConfig {
    cri::ContainerConfig { mounts: mounts.to_vec(), ..container(name, BUSYBOX, &["sleep", "1000"]) }
}

async fn node_with_data() -> TestNode {
    let node = TestNode::start().await;
    data().push(&node.registry.pusher(), "library/volume-data", "1");
    node.client().pull(BUSYBOX).await.unwrap();
    node
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_image_volume_shows_the_image_read_only_and_stays_when_its_image_and_the_daemon_go() {
    let mut node = node_with_data().await;
    let client = node.client();
    let id = client.pull(DATA).await.unwrap();
    let pod_config = node.pod("volumes");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let mounts = [mount("/all", ""), mount("/model", "current"), mount("/etc/inside", "share")];
    let first = client.create(&pod, &sleeper("first", &mounts), &pod_config).await.unwrap();
    let second = client.create(&pod, &sleeper("second", &mounts[..1]), &pod_config).await.unwrap();
    client.start(&first).await.unwrap();

    let shown = client.status(&first).await.unwrap().mounts;
    let mut expected = mounts.to_vec();
    for mount in &mut expected {
        mount.image.as_mut().unwrap().image_ref = id.clone();
    }
    assert_eq!(shown, expected);
    assert_eq!(client.output(&first, &["ls", "/all"]).await, "bin\ncurrent\nout\nshare\n");
    assert_eq!(client.output(&first, &["ls", "/model"]).await, "weights\n");
    assert_eq!(client.output(&first, &["cat", "/model/weights", "/etc/inside/model/weights"]).await, "two\ntwo\n");
    assert_eq!(client.output(&first, &["/all/bin/cat", "/all/share/model/weights"]).await, "two\n");
    for path in ["/all/new", "/model/weights", "/etc/inside/new"] {
        let answer = client.exec(&first, &["sh", "-c", &format!("echo x >{path}")], 60).await.unwrap();
        let said = String::from_utf8_lossy(&answer.stderr).into_owned();
        assert!(answer.exit_code != 0 && said.contains("Read-only file system"), "{path}: {said}");
    }

    // The image's name may go; the layers of a volume that is in use may not. Only a created container needs them later.
    client.remove_image(DATA).await.unwrap();
    assert_eq!(client.image(DATA).await.unwrap(), None);
    node.kill9();
    node.boot().await;
    let client = node.client();
    assert_eq!(client.output(&first, &["cat", "/model/weights"]).await, "two\n");
    client.start(&second).await.unwrap();
    assert_eq!(client.output(&second, &["cat", "/all/share/model/weights"]).await, "two\n");
    client.remove(&first).await.unwrap();
    assert_eq!(client.output(&second, &["cat", "/all/share/model/weights"]).await, "two\n");
    // The kubelet knows a volume's failure by how the text begins.
    let refused = client.create(&pod, &sleeper("third", &[mount("/all", "")]), &pod_config).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    assert!(refused.message().starts_with("ImageVolumeMountFailed: "), "{refused}");
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_sub_path_that_is_no_directory_of_the_image_fails_the_creation_and_leaves_nothing() {
    let node = node_with_data().await;
    let client = node.client();
    client.pull(DATA).await.unwrap();
    let pod_config = node.pod("refused");
    let pod = client.run_pod(&pod_config).await.unwrap();
    for sub_path in ["missing", "share/model/weights", "out"] {
        let config = sleeper("app", &[mount("/good", "share"), mount("/bad", sub_path)]);
        let refused = client.create(&pod, &config, &pod_config).await.unwrap_err();
        let expected = format!(
            "ImageVolumeMountFailed: mount image {DATA:?} at \"/bad\": open directory {sub_path:?} of the image: "
        );
        assert_eq!(refused.code(), Code::Unknown);
        assert!(refused.message().starts_with(&expected), "{refused}");
    }
    assert_eq!(client.containers().await.unwrap(), []);
    // The name is free again, and so is the image once nothing uses it.
    let app = client.create(&pod, &sleeper("app", &[mount("/good", "share")]), &pod_config).await.unwrap();
    client.remove(&app).await.unwrap();
    node.remove_all_pods().await;
    node.finish().await;
}

/// Needs an OCI runtime with mapped mounts: `RUNC` names one where the first in PATH has none.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_image_volume_belongs_to_the_root_of_a_pod_with_a_user_namespace() {
    let mut node = TestNode::prepare_on_given_runc().await;
    node.boot().await;
    let client = node.client();
    let status = client.runtime.clone().status(cri::StatusRequest { verbose: false }).await.unwrap().into_inner();
    let handler = status.runtime_handlers.iter().find(|handler| handler.name.is_empty()).unwrap();
    if !handler.features.as_ref().is_some_and(|features| features.user_namespaces) {
        eprintln!("left out: this runtime or kernel has no mapped mounts");
        return node.finish().await;
    }
    data().push(&node.registry.pusher(), "library/volume-data", "1");
    client.pull(BUSYBOX).await.unwrap();
    client.pull(DATA).await.unwrap();
    let ids = cri::IdMapping { host_id: 200_000, container_id: 0, length: 65_536 };
    let options = cri::NamespaceOption {
        userns_options: Some(cri::UserNamespace { mode: 0, uids: vec![ids], gids: vec![ids] }),
        ..Default::default()
    };
    let mut pod_config = node.pod("mapped");
    let linux = pod_config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(options.clone());
    let pod = client.run_pod(&pod_config).await.unwrap();
    // The kubelet sends the pod's mapping with each mount; what it sends of an image is done by its own mount.
    let mapped = cri::Mount { uid_mappings: vec![ids], gid_mappings: vec![ids], ..mount("/model", "share/model") };
    let mut config = sleeper("app", &[mapped, mount("/all", "")]);
    config.linux = Some(cri::LinuxContainerConfig {
        security_context: Some(cri::LinuxContainerSecurityContext {
            namespace_options: Some(options),
            ..Default::default()
        }),
        ..Default::default()
    });
    let app = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    assert_eq!(
        client.output(&app, &["stat", "-c", "%u %g", "/model/weights", "/all", "/all/bin"]).await,
        "0 0\n0 0\n0 0\n"
    );
    assert_eq!(client.output(&app, &["cat", "/model/weights"]).await, "two\n");
    let written = client.exec(&app, &["touch", "/all/new"], 60).await.unwrap();
    assert!(String::from_utf8_lossy(&written.stderr).contains("Read-only file system"), "{written:?}");
    node.remove_all_pods().await;
    node.finish().await;
}
