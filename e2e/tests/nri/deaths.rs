//! Plugins that die or hang in the middle: pods go on, or fail whole where the plugin is required.

use std::time::Duration;

use tonic::Code;
use windlass_e2e::{client::container, node::BUSYBOX};

use crate::{adjusting, connect, hanging, plugin::Script, set_env, start};

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_plugin_that_goes_while_it_is_asked_is_as_if_it_had_not_been_there() {
    let node = start("").await;
    let client = node.client();
    let dies = connect(&node, "10", "dies", hanging("app")).await;
    let stays = connect(&node, "20", "stays", adjusting("app", set_env("BY", "stays"))).await;
    let pod_config = node.pod("goes-on");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let creating = tokio::spawn({
        let (client, pod, pod_config) = (client.clone(), pod.clone(), pod_config.clone());
        async move { client.create(&pod, &container("app", BUSYBOX, &["sleep", "600"]), &pod_config).await }
    });
    dies.until("CreateContainer", 1).await;
    assert_eq!(client.containers().await.unwrap(), [], "it is not seen before plugins have agreed");
    drop(dies);
    let app = creating.await.unwrap().unwrap();
    client.start(&app).await.unwrap();
    assert!(client.output(&app, &["env"]).await.contains("BY=stays\n"));
    stays.until("PostStartContainer", 1).await;
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_without_a_required_plugin_no_container_is_made_and_nothing_is_left() {
    let node = start(
        "[plugins.\"io.containerd.nri.v1.nri\".default_validator]\nenable = true\nrequired_plugins = [\"needed\"]\n",
    )
    .await;
    let client = node.client();
    let pod_config = node.pod("needs");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let config = container("app", BUSYBOX, &["sleep", "600"]);
    let missing = "required plugins are not there: needed";
    let refused = client.create(&pod, &config, &pod_config).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().ends_with(missing), "{refused}");

    let dies = connect(&node, "10", "needed", hanging("app")).await;
    let creating = tokio::spawn({
        let (client, pod, config, pod_config) = (client.clone(), pod.clone(), config.clone(), pod_config.clone());
        async move { client.create(&pod, &config, &pod_config).await }
    });
    dies.until("CreateContainer", 1).await;
    drop(dies);
    let refused = creating.await.unwrap().unwrap_err();
    assert!(refused.message().ends_with(missing), "{refused}");
    assert_eq!(client.containers().await.unwrap(), []);

    let _needed = connect(&node, "10", "needed", adjusting("app", set_env("BY", "needed"))).await;
    let app = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    assert!(client.output(&app, &["env"]).await.contains("BY=needed\n"));
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_plugin_that_hangs_is_closed_after_its_time_and_named() {
    let node = start("plugin_request_timeout = \"700ms\"\n").await;
    let client = node.client();
    let hangs = connect(&node, "10", "hangs", hanging("app")).await;
    assert_eq!(hangs.configured().request_timeout, 700);
    let pod_config = node.pod("waits");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let begun = std::time::Instant::now();
    let app = client.create(&pod, &container("app", BUSYBOX, &["sleep", "600"]), &pod_config).await.unwrap();
    assert!(begun.elapsed() >= Duration::from_millis(700), "it had its time");
    hangs.closed().await;
    client.start(&app).await.unwrap();
    assert_eq!(hangs.methods(), ["RunPodSandbox", "CreateContainer"], "it is asked no more");
    let log = node.log_tail();
    let line = log.lines().find(|line| line.contains("closing an NRI plugin")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("10-hangs") && line.contains("CreateContainer"), "{line}");
    // It may come again.
    let again = connect(&node, "10", "hangs", Script::new()).await;
    assert_eq!(again.synchronised(), (vec![pod], vec![app]));
    node.remove_all_pods().await;
    node.finish().await;
}
