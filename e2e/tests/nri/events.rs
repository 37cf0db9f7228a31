//! What plugins hear of pods and containers, and what they ask of those that exist.

use std::sync::{Arc, Mutex};

use api::cri;
use prost::Message;
use tokio::sync::watch;
use tonic::Code;
use windlass_e2e::{
    client::container,
    node::BUSYBOX,
    wait::{self, SOON},
};
use windlass_sandbox::nri::proto::{
    ContainerEvent, ContainerState, CreateContainerResponse, UpdateContainerResponse,
    ValidateContainerAdjustmentResponse,
};

use crate::{
    adjusting, connect, is_about, memory, memory_limit,
    plugin::{Plugin, Script, Seen},
    seen, set_env, shares, start, told, update,
};

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_plugin_follows_a_pod_from_its_start_to_its_end() {
    let node = start("").await;
    let client = node.client();
    let events: Arc<Mutex<Vec<ContainerEvent>>> = Arc::default();
    let noted = Arc::clone(&events);
    let script = Script::answering(move |call| {
        if ["PostStartContainer", "StopContainer", "RemovePodSandbox"].contains(&call.method.as_str()) {
            noted.lock().unwrap().push(call.decode().unwrap());
        }
        None
    });
    let plugin = connect(&node, "10", "follows", script).await;
    assert_eq!(plugin.synchronised(), (Vec::new(), Vec::new()));
    let pod_config = node.pod("followed");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &container("app", BUSYBOX, &["sleep", "600"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    let (process, ip) = (node.first_process(&app), client.pod_status(&pod).await.unwrap().network.unwrap().ip);
    // This one ends by itself.
    let short = client.create(&pod, &container("short", BUSYBOX, &["sh", "-c", "exit 7"]), &pod_config).await.unwrap();
    client.start(&short).await.unwrap();
    client.exited(&short).await;
    plugin.until("StopContainer", 1).await;
    client.stop(&app, 0).await.unwrap();
    client.stop(&app, 0).await.unwrap();
    client.remove(&app).await.unwrap();
    client.stop_pod(&pod).await.unwrap();
    client.stop_pod(&pod).await.unwrap();
    client.remove_pod(&pod).await.unwrap();

    let begun = |id: &str| {
        ["CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer"]
            .map(|method| seen(method, &pod, Some(id)))
    };
    let mut expected = vec![seen("RunPodSandbox", &pod, None)];
    expected.extend(begun(&app));
    expected.extend(begun(&short));
    expected.extend([
        seen("StopContainer", &pod, Some(&short)),
        seen("StopContainer", &pod, Some(&app)),
        seen("RemoveContainer", &pod, Some(&app)),
        seen("StopPodSandbox", &pod, None),
        seen("RemoveContainer", &pod, Some(&short)),
        seen("RemovePodSandbox", &pod, None),
    ]);
    // A container may end before its start is told.
    let by_container = |all: &[Seen], id: &str| -> Vec<Seen> {
        all.iter().filter(|seen| seen.container == id || seen.container.is_empty()).cloned().collect()
    };
    let told = told(&plugin);
    assert_eq!(told.len(), expected.len(), "{told:?}");
    for id in [&app, &short] {
        let mut of_one = by_container(&told, id);
        let mut wanted = by_container(&expected, id);
        if id == &short {
            let is_racy = |seen: &Seen| ["PostStartContainer", "StopContainer"].contains(&seen.method.as_str());
            of_one.retain(|seen| !is_racy(seen));
            wanted.retain(|seen| !is_racy(seen));
        }
        assert_eq!(of_one, wanted);
    }

    let events = events.lock().unwrap().clone();
    let event = |state: ContainerState, id: &str| {
        let found = events.iter().find(|event| {
            event.container.as_ref().is_some_and(|container| container.id == id && container.state() == state)
        });
        let found = found.unwrap_or_else(|| panic!("no event of {id} with {state:?}")).clone();
        (found.pod.unwrap(), found.container.unwrap())
    };
    let (shown_pod, shown) = event(ContainerState::ContainerRunning, &app);
    assert_eq!((shown_pod.name.as_str(), shown_pod.namespace.as_str()), ("followed", "default"));
    assert_eq!((shown_pod.uid.as_str(), &shown_pod.ips), ("uid-followed", &vec![ip]));
    let removed = events.iter().find(|event| event.container.is_none()).unwrap().pod.clone().unwrap();
    assert_eq!(removed.ips, shown_pod.ips, "what the pod had, for plugins that clean up by address");
    let (image, busybox) = (shown.image.unwrap(), &node.registry.busybox);
    assert_eq!((image.name.as_str(), &image.digest, &image.config_digest), (BUSYBOX, &busybox.digest, &busybox.id));
    assert_eq!((shown.name.as_str(), shown.pod_sandbox_id, shown.pid), ("app", pod, process));
    assert_eq!(shown.args, ["sleep", "600"]);
    assert_eq!(event(ContainerState::ContainerStopped, &short).1.exit_code, 7);
    assert_eq!(event(ContainerState::ContainerStopped, &app).1.exit_code, 137);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_plugins_change_the_limits_of_containers_that_run_and_evict_them() {
    let node = start("").await;
    let client = node.client();
    let pod_config = node.pod("limits");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let first = client.create(&pod, &container("first", BUSYBOX, &["sleep", "600"]), &pod_config).await.unwrap();
    client.start(&first).await.unwrap();
    let answer = CreateContainerResponse { update: vec![update(&first, memory(64 << 20))], ..Default::default() };
    let of_updates = UpdateContainerResponse { update: vec![update(&first, memory(96 << 20))], ..Default::default() };
    let script = Script::answering(move |call| {
        let updates = call.method == "UpdateContainer";
        let creates = is_about(call, "CreateContainer", "second").then(|| Ok(answer.encode_to_vec()));
        creates.or_else(|| updates.then(|| Ok(of_updates.encode_to_vec())))
    });
    let plugin = connect(&node, "10", "limits", script).await;

    let second = client.create(&pod, &container("second", BUSYBOX, &["sleep", "600"]), &pod_config).await.unwrap();
    assert_eq!(memory_limit(&node, &first).await, (64 << 20).to_string(), "asked for with another's creation");
    assert_eq!(plugin.update(vec![update(&first, memory(80 << 20))]).await.unwrap(), []);
    assert_eq!(memory_limit(&node, &first).await, (80 << 20).to_string(), "asked for by nobody");
    let resources = cri::LinuxContainerResources { memory_limit_in_bytes: 72 << 20, ..Default::default() };
    let request = cri::UpdateContainerResourcesRequest {
        container_id: first.clone(),
        linux: Some(resources),
        ..Default::default()
    };
    client.runtime.clone().update_container_resources(request).await.unwrap();
    assert_eq!(memory_limit(&node, &first).await, (96 << 20).to_string(), "made of what the client asked for");
    let told = client.status(&first).await.unwrap().resources.unwrap().linux.unwrap();
    assert_eq!(told.memory_limit_in_bytes, 96 << 20);
    // One that is not there is answered, and the others are done.
    let nobody = update(&"0".repeat(64), memory(1 << 20));
    let failed = plugin.update(vec![nobody.clone(), update(&first, shares(77))]).await.unwrap();
    assert_eq!(failed, [nobody]);
    let told = client.status(&first).await.unwrap().resources.unwrap().linux.unwrap();
    assert_eq!((told.memory_limit_in_bytes, told.cpu_shares), (96 << 20, 77));

    plugin.evict(&first, "it is in the way").await.unwrap();
    let ended = client.exited(&first).await;
    assert_eq!(ended.exit_code, 137);
    plugin.until("StopContainer", 1).await;
    assert_eq!(client.status(&second).await.unwrap().state(), cri::ContainerState::ContainerCreated);
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_validators_reject_is_not_made_and_leaves_nothing() {
    let node = start(
        "[plugins.\"io.containerd.nri.v1.nri\".default_validator]\nenable = true\nreject_sysctl_adjustment = true\n",
    )
    .await;
    let client = node.client();
    let pod_config = node.pod("validated");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let verdict = ValidateContainerAdjustmentResponse { reject: true, reason: "no BY here".into() };
    let validator = Script::answering(move |call| {
        let rejects = is_about(call, "ValidateContainerAdjustment", "app");
        rejects.then(|| Ok(verdict.encode_to_vec()))
    });
    let _validator = connect(&node, "90", "validator", validator).await;
    let adjusts = connect(&node, "10", "adjusts", adjusting("app", set_env("BY", "plugin"))).await;
    let config = container("app", BUSYBOX, &["sleep", "600"]);
    let refused = client.create(&pod, &config, &pod_config).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("NRI plugin 90-validator rejects"), "{refused}");
    assert!(refused.message().ends_with("no BY here"), "{refused}");
    assert_eq!(client.containers().await.unwrap(), []);
    let calls: Vec<String> = told(&adjusts).into_iter().map(|seen| seen.method).collect();
    assert_eq!(calls, ["CreateContainer", "StopContainer", "RemoveContainer"], "it is told that nothing came of it");

    let mut sysctl = set_env("BY", "plugin");
    sysctl.adjust.as_mut().unwrap().linux.get_or_insert_default().sysctl =
        [("net.ipv4.ip_forward".to_owned(), "1".to_owned())].into();
    let _sysctl = connect(&node, "20", "sysctl", adjusting("other", sysctl)).await;
    let other = container("other", BUSYBOX, &["sleep", "600"]);
    let refused = client.create(&pod, &other, &pod_config).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().ends_with("plugin 20-sysctl adjusts sysctl net.ipv4.ip_forward"), "{refused}");

    let fine = client.create(&pod, &container("fine", BUSYBOX, &["sleep", "600"]), &pod_config).await.unwrap();
    client.start(&fine).await.unwrap();
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_plugin_that_comes_back_after_a_crash_of_the_daemon_is_told_what_there_is() {
    let mut node = start("").await;
    let plugin = connect(&node, "10", "returns", Script::new()).await;
    let client = node.client();
    let pod_config = node.pod("crashed");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let mut ids = Vec::new();
    for name in ["running", "created", "ended"] {
        ids.push(client.create(&pod, &container(name, BUSYBOX, &["sleep", "600"]), &pod_config).await.unwrap());
    }
    let [running, created, ended] = &ids[..] else { panic!("three were made") };
    client.start(running).await.unwrap();
    client.start(ended).await.unwrap();
    client.stop(ended, 0).await.unwrap();
    node.kill9();
    plugin.closed().await;

    node.boot().await;
    let client = node.client();
    let held = watch::Sender::new(true);
    let holding = held.subscribe();
    let script = Script::waiting(move |call| {
        let mut holding = holding.clone();
        Box::pin(async move {
            if call.method == "Synchronize" {
                holding.wait_for(|held| !held).await.unwrap();
            }
            None
        })
    });
    let plugin = Plugin::register(&node.path("nri.sock"), "10", "returns", script).await.unwrap();
    plugin.until("Synchronize", 1).await;
    let (pods, mut containers) = plugin.synchronised();
    containers.sort();
    let mut expected = vec![running.clone(), created.clone()];
    expected.sort();
    assert_eq!((pods, containers), (vec![pod.clone()], expected));
    // While it is busy with that, a container is asked for. It is neither lost nor told twice.
    let late = tokio::spawn({
        let (client, pod, pod_config) = (client.clone(), pod.clone(), pod_config.clone());
        async move { client.create(&pod, &container("late", BUSYBOX, &["sleep", "600"]), &pod_config).await }
    });
    // The daemon serves meanwhile.
    let config = node.path("state/io.containerd.runtime.v2.task/k8s.io");
    wait::until_ok("the late container is being made", SOON, || {
        let bundles = std::fs::read_dir(&config).unwrap().count();
        if bundles == 5 { Ok(()) } else { Err(format!("{bundles} bundles")) }
    })
    .await;
    assert_eq!(client.containers().await.unwrap().len(), 3);
    assert_eq!(plugin.seen(), []);
    held.send_replace(false);
    let late = late.await.unwrap().unwrap();
    plugin.until("PostCreateContainer", 1).await;
    let first = [seen("CreateContainer", &pod, Some(&late)), seen("PostCreateContainer", &pod, Some(&late))];
    assert_eq!(told(&plugin), first);

    node.remove_all_pods().await;
    let all = told(&plugin);
    let count = |method: &str, id: Option<&str>| all.iter().filter(|told| **told == seen(method, &pod, id)).count();
    for id in [running, created, &late] {
        assert_eq!((count("StopContainer", Some(id)), count("RemoveContainer", Some(id))), (1, 1), "{id} in {all:?}");
    }
    assert_eq!(count("StopContainer", Some(ended)), 0, "it had ended before the plugin came");
    assert_eq!((count("StopPodSandbox", None), count("RemovePodSandbox", None)), (1, 1));
    node.finish().await;
}
