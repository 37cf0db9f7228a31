//! What plugins are told, and what pods can rely on when a plugin cannot be.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "faults and the end of a process are for the crash tests")]
mod fake;
#[expect(dead_code, reason = "each file of tests needs a part of it")]
mod plugin;
#[expect(dead_code, reason = "each file of tests needs a part of it")]
mod plugin_node;

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use fake::{container_spec, image, pod_spec};
use plugin::{Plugin, Script, Seen};
use plugin_node::{failing, holding, node, node_with, seen, set_env};
use shim::ttrpc::{Code, Status};
use tokio::sync::watch;
use windlass_sandbox::{
    Error,
    model::{ContainerState, Id},
    nri::{self, proto::Event},
};

#[tokio::test]
async fn a_pod_and_its_container_are_told_in_order_and_once() {
    let node = node().await;
    let plugin = node.plugin("10", "a", Script::new()).await;
    let pod = node.run("web").await;
    let app = node.create(&pod, "app").await.unwrap();
    node.pods.start_container(app.as_str()).await.unwrap();
    node.pods.stop_container(app.as_str(), Duration::ZERO).await.unwrap();
    node.pods.stop_container(app.as_str(), Duration::ZERO).await.unwrap();
    node.pods.remove_container(app.as_str()).await.unwrap();
    node.pods.stop(pod.as_str()).await.unwrap();
    node.pods.stop(pod.as_str()).await.unwrap();
    node.pods.remove(pod.as_str()).await.unwrap();
    let container = [
        "CreateContainer",
        "PostCreateContainer",
        "StartContainer",
        "PostStartContainer",
        "StopContainer",
        "RemoveContainer",
    ];
    let mut expected = vec![seen("RunPodSandbox", &pod, None)];
    expected.extend(container.map(|method| seen(method, &pod, Some(&app))));
    expected.extend(["StopPodSandbox", "RemovePodSandbox"].map(|method| seen(method, &pod, None)));
    // It validates as well, having subscribed to everything.
    let told: Vec<Seen> =
        plugin.seen().into_iter().filter(|seen| seen.method != "ValidateContainerAdjustment").collect();
    assert_eq!(told, expected);
    let configured = plugin.configured();
    assert_eq!((configured.registration_timeout, configured.request_timeout), (5000, 10000));
    node.machine.assert_clean("after the remove");
}

#[tokio::test]
async fn a_pod_that_is_removed_while_it_runs_is_told_from_the_inside_out() {
    let node = node().await;
    let plugin = node.plugin("10", "a", Script::new()).await;
    let pod = node.run("web").await;
    let (first, second) = (node.create(&pod, "first").await.unwrap(), node.create(&pod, "second").await.unwrap());
    node.pods.start_container(first.as_str()).await.unwrap();
    let before = plugin.seen().len();
    node.pods.remove(pod.as_str()).await.unwrap();
    let told = plugin.seen().split_off(before);
    let at = |method: &str, container: Option<&Id>| {
        let wanted = seen(method, &pod, container);
        let found: Vec<usize> = (0..told.len()).filter(|at| told[*at] == wanted).collect();
        assert_eq!(found.len(), 1, "{wanted:?} in {told:?}");
        found[0]
    };
    let stopped = at("StopPodSandbox", None);
    for container in [&first, &second] {
        assert!(at("StopContainer", Some(container)) < stopped, "{told:?}");
        assert!(stopped < at("RemoveContainer", Some(container)), "{told:?}");
    }
    assert_eq!(at("RemovePodSandbox", None), told.len() - 1);
    node.machine.assert_clean("after the remove");
}

#[tokio::test]
async fn a_container_that_ends_by_itself_is_told_without_anybody_asking() {
    let node = node().await;
    let plugin = node.plugin("10", "a", Script::new()).await;
    let pod = node.run("web").await;
    let app = node.create(&pod, "app").await.unwrap();
    node.pods.start_container(app.as_str()).await.unwrap();
    node.machine.exit(&app, 1);
    plugin.until("StopContainer", 1).await;
    let state = node.pods.container(app.as_str()).unwrap().state.clone();
    assert!(matches!(state, ContainerState::Exited { .. }), "it was published before: {state:?}");
    node.pods.remove(pod.as_str()).await.unwrap();
    assert_eq!(plugin.methods().iter().filter(|method| *method == "StopContainer").count(), 1);
}

#[tokio::test]
async fn a_plugin_that_refuses_a_pod_fails_it_and_the_retry_succeeds() {
    let node = node().await;
    let fails = watch::Sender::new(true);
    let plugin = node.plugin("10", "a", failing("RunPodSandbox", &fails)).await;
    let error = node.pods.run(pod_spec("web"), image()).await.unwrap_err();
    assert_eq!(error.chain(), "NRI plugin 10-a refused RunPodSandbox: not today");
    assert_eq!(plugin.methods(), ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]);
    assert!(node.pods.pods().is_empty());
    node.machine.assert_clean("after the failure");
    fails.send_replace(false);
    node.run("web").await;
}

#[tokio::test]
async fn a_plugin_that_refuses_a_start_ends_the_container_as_a_failed_start_does() {
    let node = node().await;
    let fails = watch::Sender::new(true);
    let plugin = node.plugin("10", "a", failing("StartContainer", &fails)).await;
    let pod = node.run("web").await;
    let app = node.create(&pod, "app").await.unwrap();
    node.pods.start_container(app.as_str()).await.unwrap_err();
    let ContainerState::Exited { exit, started_at: None } = &node.pods.container(app.as_str()).unwrap().state else {
        panic!("it has not ended");
    };
    assert_eq!((exit.code, exit.reason.as_str()), (128, "StartError"));
    assert_eq!(plugin.methods().last().unwrap(), "StopContainer");
}

#[tokio::test]
async fn a_plugin_that_does_not_answer_is_closed_and_the_pod_goes_on() {
    let short = nri::Config { request_timeout: Duration::from_millis(50), ..nri::Config::default() };
    let node = node_with(short, |_| {}).await;
    let held = watch::Sender::new(true);
    let plugin = node.plugin("10", "a", holding("CreateContainer", "web", &held)).await;
    let other = node.plugin("20", "b", Script::creating(set_env("BY", "b"))).await;
    let pod = node.run("web").await;
    let app = node.create(&pod, "app").await.unwrap();
    plugin.closed().await;
    assert_eq!(
        node.pods.container(app.as_str()).unwrap().oci_spec["process"]["env"].as_array().unwrap().last().unwrap(),
        "BY=b"
    );
    node.pods.start_container(app.as_str()).await.unwrap();
    assert_eq!(plugin.methods(), ["RunPodSandbox", "CreateContainer"]);
    other.until("PostStartContainer", 1).await;
}

#[tokio::test]
async fn a_plugin_that_holds_one_pod_holds_no_other_and_no_list() {
    let node = node().await;
    let held = watch::Sender::new(true);
    let plugin = node.plugin("10", "a", holding("RunPodSandbox", "slow", &held)).await;
    let slow = tokio::spawn({
        let pods = node.pods.clone();
        async move { pods.run(pod_spec("slow"), image()).await }
    });
    plugin.until("RunPodSandbox", 1).await;
    assert!(node.pods.pods().is_empty(), "the pod is not seen yet");
    let fast = node.run("fast").await;
    assert_eq!(node.pods.pods().len(), 1);
    let slow_id: Id = Id::parse(&plugin.seen()[0].pod).unwrap();
    let refused = node.create(&slow_id, "app").await.unwrap_err();
    assert!(matches!(refused, Error::Precondition(_)), "{refused:?}");
    held.send_replace(false);
    assert_eq!(slow.await.unwrap().unwrap(), slow_id);
    node.pods.remove(fast.as_str()).await.unwrap();
}

#[tokio::test]
async fn a_plugin_that_comes_later_is_told_what_lives() {
    let node = node().await;
    let pod = node.run("web").await;
    let (created, running, ended) = (
        node.create(&pod, "a").await.unwrap(),
        node.create(&pod, "b").await.unwrap(),
        node.create(&pod, "c").await.unwrap(),
    );
    for container in [&running, &ended] {
        node.pods.start_container(container.as_str()).await.unwrap();
    }
    node.pods.stop_container(ended.as_str(), Duration::ZERO).await.unwrap();
    let plugin = node.plugin("10", "a", Script::new()).await;
    let (pods, mut containers) = plugin.synchronised();
    containers.sort();
    let mut expected = vec![created.to_string(), running.to_string()];
    expected.sort();
    assert_eq!((pods, containers), (vec![pod.to_string()], expected));
}

#[tokio::test]
async fn a_container_made_while_a_plugin_is_told_what_there_is_is_not_lost() {
    let node = node().await;
    let first = node.plugin("00", "first", Script::new()).await;
    let pod = node.run("web").await;
    let held = watch::Sender::new(true);
    let second = Plugin::register(&node.socket, "10", "second", holding("Synchronize", "", &held)).await.unwrap();
    second.until("Synchronize", 1).await;
    let creating = tokio::spawn({
        let (pods, pod) = (node.pods.clone(), pod.clone());
        async move { pods.create_container(pod.as_str(), container_spec("app"), image()).await }
    });
    first.until("CreateContainer", 1).await;
    assert_eq!(second.methods(), Vec::<String>::new());
    held.send_replace(false);
    let app = creating.await.unwrap().unwrap();
    assert_eq!(second.synchronised().1, Vec::<String>::new());
    assert_eq!(second.seen()[0], seen("CreateContainer", &pod, Some(&app)));
}

#[tokio::test]
async fn a_container_whose_plugins_were_asked_before_another_came_is_told_to_that_one_as_there() {
    let node = node().await;
    let held = watch::Sender::new(true);
    let first = node.plugin("00", "first", holding("CreateContainer", "web", &held)).await;
    let pod = node.run("web").await;
    let creating = tokio::spawn({
        let (pods, pod) = (node.pods.clone(), pod.clone());
        async move { pods.create_container(pod.as_str(), container_spec("app"), image()).await }
    });
    first.until("CreateContainer", 1).await;
    let second = Plugin::register(&node.socket, "10", "second", Script::new()).await.unwrap();
    second.until("Configure", 1).await;
    held.send_replace(false);
    let app = creating.await.unwrap().unwrap();
    second.until("Synchronize", 1).await;
    assert_eq!(second.synchronised(), (vec![pod.to_string()], vec![app.to_string()]));
    assert_eq!(second.methods(), Vec::<String>::new());
}

#[tokio::test]
async fn a_pod_that_stops_is_seen_and_its_containers_have_ended_while_plugins_are_told() {
    let node = node().await;
    let held = watch::Sender::new(true);
    let plugin = node.plugin("10", "a", holding("StopPodSandbox", "web", &held)).await;
    let pod = node.run("web").await;
    let app = node.create(&pod, "app").await.unwrap();
    node.pods.start_container(app.as_str()).await.unwrap();
    let stopping = tokio::spawn({
        let (pods, pod) = (node.pods.clone(), pod.clone());
        async move { pods.stop(pod.as_str()).await }
    });
    plugin.until("StopPodSandbox", 1).await;
    let state = node.pods.container(app.as_str()).unwrap().state.clone();
    assert!(matches!(state, ContainerState::Exited { .. }), "{state:?}");
    node.pods.pod(pod.as_str()).unwrap();
    held.send_replace(false);
    stopping.await.unwrap().unwrap();
    let ContainerState::Exited { exit, .. } = node.pods.container(app.as_str()).unwrap().state.clone() else {
        panic!("it runs");
    };
    assert_eq!(exit.code, 137);
}

#[tokio::test]
async fn a_plugin_from_before_version_0_10_hears_of_events_by_state_change() {
    let node = node().await;
    let calls = ["Configure", "Synchronize", "CreateContainer", "UpdateContainer", "StopContainer", "StateChange"];
    let mut script = Script::answering(move |call| {
        (!calls.contains(&call.method.as_str())).then(|| Err(Status::new(Code::Unimplemented, "no such method")))
    });
    script.events = (Event::RunPodSandbox.bit() | Event::PostStartContainer.bit()).cast_signed();
    let plugin = node.plugin("10", "a", script).await;
    let pod = node.run("web").await;
    node.run("other").await;
    let app = node.create(&pod, "app").await.unwrap();
    node.pods.start_container(app.as_str()).await.unwrap();
    assert_eq!(
        plugin.methods(),
        ["RunPodSandbox", "StateChange", "StateChange", "PostStartContainer", "StateChange"],
        "each call is tried once"
    );
}

#[tokio::test]
async fn a_registration_that_is_wrong_is_refused_by_name() {
    let node = node().await;
    for (index, name, wrong) in [("1", "a", "plugin index \"1\""), ("10", "a/b", "plugin name \"a/b\"")] {
        let Err(status) = Plugin::register(&node.socket, index, name, Script::new()).await else {
            panic!("it is registered");
        };
        assert_eq!(status.code, Code::InvalidArgument);
        assert!(status.message.contains(wrong), "{status}");
    }
    let mut more_events = Script::new();
    more_events.events = 1 << 20;
    let plugin = Plugin::register(&node.socket, "10", "a", more_events).await.unwrap();
    plugin.closed().await;
    node.run("web").await;
    assert_eq!(plugin.methods(), Vec::<String>::new());
}

#[tokio::test]
async fn an_installed_plugin_gets_its_name_and_its_socket_and_may_fail() {
    let install = |dir: &PathBuf, name: &str, script: &str| {
        let path = dir.join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    };
    let node = node_with(nri::Config::default(), |dir| {
        let script = format!("readlink /proc/self/fd/3 > {0}/fd; env | grep -c . >> {0}/fd; echo $NRI_PLUGIN_IDX $NRI_PLUGIN_NAME $NRI_PLUGIN_SOCKET > {0}/env", dir.display());
        install(dir, "10-tells", &script);
        install(dir, "20-fails", "exit 1");
        fs::write(dir.join("30-no-program"), "text").unwrap();
        fs::set_permissions(dir.join("30-no-program"), fs::Permissions::from_mode(0o755)).unwrap();
    })
    .await;
    let told = |name: &str| fs::read_to_string(node.machine.dir.path().join("plugins").join(name)).unwrap();
    assert_eq!(told("env"), "10 tells 3\n");
    assert!(told("fd").starts_with("socket:["), "{}", told("fd"));
    node.run("web").await;
}

#[tokio::test]
async fn the_end_of_the_daemon_closes_connections() {
    let node = node().await;
    let plugin = node.plugin("10", "a", Script::new()).await;
    node.pods.clone().shutdown().await;
    plugin.closed().await;
}

#[tokio::test]
async fn a_daemon_that_no_plugin_ever_connected_to_ends_at_once() {
    let node = node().await;
    tokio::time::timeout(Duration::from_secs(2), node.pods.shutdown()).await.unwrap();
}
