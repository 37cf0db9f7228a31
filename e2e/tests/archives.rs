//! Images from files: the directory that is read at the start, and `windlass image` while no daemon runs.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::{
    fs,
    process::{Command, Output},
};

use windlass_e2e::{
    client::container,
    node::{BUSYBOX, TestNode, binary},
    wait::{SOON, until},
};

fn image(node: &TestNode, arguments: &[&str]) -> Output {
    let config = node.path("config.toml");
    Command::new(binary("windlass")).arg("--config").arg(config).arg("image").args(arguments).output().unwrap()
}

fn succeeds(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_archive_in_the_directory_runs_after_a_restart_without_a_registry() {
    let mut node = TestNode::start().await;
    let id = node.client().pull(BUSYBOX).await.unwrap();
    let archive = node.path("busybox.tar");
    let refused = image(&node, &["export", archive.to_str().unwrap(), BUSYBOX]);
    let said = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success() && said.contains("another daemon works in"), "{said}");
    let preload = node.path("root").join("images");
    assert!(said.contains(preload.to_str().unwrap()), "{said}");

    node.terminate().await;
    succeeds(&image(&node, &["export", archive.to_str().unwrap(), BUSYBOX]));
    node.boot().await;
    node.client().remove_image(BUSYBOX).await.unwrap();
    node.terminate().await;
    fs::create_dir(&preload).unwrap();
    fs::copy(&archive, preload.join("busybox.tar")).unwrap();
    fs::write(preload.join("broken.tar.gz"), "broken").unwrap();
    node.boot().await;
    let client = node.client();
    let found = until("the archive is imported", SOON, || async {
        client.image(BUSYBOX).await.unwrap().ok_or_else(|| "it is not shown".to_owned())
    })
    .await;
    assert_eq!((&found.id, found.pinned), (&id, true));
    let log = node.log_tail();
    assert!(log.contains("broken.tar.gz"), "{log}");

    let pod_config = node.pod("preloaded");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &container("app", BUSYBOX, &["sleep", "1000"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    assert_eq!(client.output(&app, &["echo", "from a file"]).await, "from a file\n");
    node.remove_all_pods().await;

    // Done once: what was removed stays so.
    client.remove_image(BUSYBOX).await.unwrap();
    node.restart().await;
    assert_eq!(node.client().image(BUSYBOX).await.unwrap(), None);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_images_go_out_and_in_while_no_daemon_runs() {
    let mut node = TestNode::start().await;
    let id = node.client().pull(BUSYBOX).await.unwrap();
    node.terminate().await;
    let archive = node.path("all.tar");
    let archive = archive.to_str().unwrap();
    succeeds(&image(&node, &["export", archive, BUSYBOX]));
    let wrong = image(&node, &["export", archive, "registry.test/none:1"]);
    assert!(String::from_utf8(wrong.stderr).unwrap().contains("registry.test/none:1"));
    node.boot().await;
    node.client().remove_image(BUSYBOX).await.unwrap();
    node.terminate().await;
    assert!(!succeeds(&image(&node, &["list"])).contains(&id));
    assert!(succeeds(&image(&node, &["import", "--pin", archive])).contains(&id));
    assert!(succeeds(&image(&node, &["list"])).contains(&id));
    node.boot().await;
    let shown = node.client().image(BUSYBOX).await.unwrap().unwrap();
    assert_eq!((&shown.id, shown.pinned), (&id, true));
    node.finish().await;
}
