//! What plugins change: new containers, those that exist, and what they may not.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "faults and the end of a process are for the crash tests")]
mod fake;
#[expect(dead_code, reason = "each file of tests needs a part of it")]
mod plugin;
#[expect(dead_code, reason = "each file of tests needs a part of it")]
mod plugin_node;
mod wait;

use std::fs;

use fake::{image, pod_spec};
use plugin::Script;
use plugin_node::{failing, memory, node, node_with, seen, set_env, update};
use prost::Message;
use tokio::sync::watch;
use wait::until;
use windlass_sandbox::{
    model::{Id, PodResources, Resources},
    nri::{
        self, ValidatorConfig,
        proto::{
            CdiDevice, ContainerAdjustment, CreateContainerResponse, Event, LinuxContainerAdjustment, LinuxCpu,
            LinuxResources, OptionalUInt64, PodSandbox, SynchronizeResponse, UpdateContainerResponse,
            ValidateContainerAdjustmentResponse,
        },
    },
};

#[tokio::test]
async fn adjustments_reach_the_spec_of_the_record_and_of_the_bundle() {
    let node = node().await;
    let mut answer = set_env("BY", "plugin");
    answer.adjust.as_mut().unwrap().linux =
        Some(LinuxContainerAdjustment { resources: Some(memory(1 << 20)), ..Default::default() });
    let _plugin = node.plugin("10", "a", Script::creating(answer)).await;
    let pod = node.run("web").await;
    let app = node.create(&pod, "app").await.unwrap();
    let view = node.pods.container(app.as_str()).unwrap();
    let env = view.oci_spec["process"]["env"].as_array().unwrap();
    assert_eq!(env.last().unwrap(), "BY=plugin");
    assert_eq!(view.spec.resources.memory_limit, 1 << 20, "Status tells the limit that holds");
    let bundle = node.machine.dir.path().join("state/io.containerd.runtime.v2.task/k8s.io").join(app.as_str());
    let written: serde_json::Value = serde_json::from_slice(&fs::read(bundle.join("config.json")).unwrap()).unwrap();
    assert_eq!(written, view.oci_spec);
    assert_eq!(node.create(&pod, "app").await.unwrap(), app, "a retry is known as one all the same");
}

#[tokio::test]
async fn cdi_devices_that_a_plugin_asks_for_are_resolved_or_fail_the_creation() {
    let node = node().await;
    let cdi = |name: &str| CreateContainerResponse {
        adjust: Some(ContainerAdjustment {
            cdi_devices: vec![CdiDevice { name: name.into() }],
            ..set_env("BY", "plugin").adjust.unwrap()
        }),
        ..Default::default()
    };
    let document = serde_json::json!({
        "cdiVersion": "0.6.0",
        "kind": "vendor.example/device",
        "devices": [{"name": "one", "containerEdits": {"env": ["OF_CDI=1"]}}],
    });
    let dir = node.machine.dir.path().join("cdi");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("vendor.json"), document.to_string()).unwrap();
    let pod = node.run("web").await;
    let plugin = node.plugin("10", "a", Script::creating(cdi("vendor.example/device=one"))).await;
    let app = node.create(&pod, "app").await.unwrap();
    let spec = node.pods.container(app.as_str()).unwrap().oci_spec.clone();
    let env = spec["process"]["env"].as_array().unwrap();
    assert_eq!(env[env.len() - 2..], ["OF_CDI=1", "BY=plugin"]);
    drop(plugin);
    let plugin = node.plugin("20", "b", Script::creating(cdi("vendor.example/device=two"))).await;
    let error = node.create(&pod, "other").await.unwrap_err();
    assert!(error.chain().contains("vendor.example/device=two"), "{}", error.chain());
    assert_eq!(plugin.methods().last().unwrap(), "RemoveContainer", "the creation is taken back");
}

#[tokio::test]
async fn an_update_of_a_pods_resources_is_asked_before_it_is_kept() {
    let node = node().await;
    let fails = watch::Sender::new(true);
    let plugin = node.plugin("10", "a", failing("UpdatePodSandbox", &fails)).await;
    let pod = node.run("web").await;
    let limit = |memory_limit: i64| PodResources {
        overhead: None,
        resources: Some(Resources { memory_limit, ..Resources::default() }),
    };
    let before = node.pods.pod(pod.as_str()).unwrap().resources.clone();
    let error = node.pods.update_pod(pod.as_str(), limit(7)).await.unwrap_err();
    assert_eq!(error.chain(), "NRI plugin 10-a refused UpdatePodSandbox: not today");
    assert_eq!(node.pods.pod(pod.as_str()).unwrap().resources, before);
    fails.send_replace(false);
    node.pods.update_pod(pod.as_str(), limit(7)).await.unwrap();
    assert_eq!(node.pods.pod(pod.as_str()).unwrap().resources, limit(7));
    plugin.until("PostUpdatePodSandbox", 1).await;
    let expected = ["RunPodSandbox", "UpdatePodSandbox", "UpdatePodSandbox", "PostUpdatePodSandbox"];
    assert_eq!(plugin.seen(), expected.map(|method| seen(method, &pod, None)));
}

#[tokio::test]
async fn two_plugins_that_set_the_same_fail_the_creation_and_nothing_of_it_is_left() {
    let node = node().await;
    let second = node.plugin("20", "b", Script::creating(set_env("X", "b"))).await;
    let first = node.plugin("10", "a", Script::creating(set_env("X", "a"))).await;
    let pod = node.run("web").await;
    let error = node.create(&pod, "app").await.unwrap_err();
    assert!(error.chain().contains("\"10-a\" and \"20-b\" both tried to set env \"X\""), "{}", error.chain());
    for plugin in [&first, &second] {
        let told = plugin.methods();
        assert_eq!(told[1..], ["CreateContainer", "StopContainer", "RemoveContainer"], "{told:?}");
    }
    assert!(node.pods.containers().is_empty());
    node.pods.remove(pod.as_str()).await.unwrap();
    node.machine.assert_clean("after the remove");
}

#[tokio::test]
async fn plugins_update_other_containers_in_answers_and_on_their_own() {
    let node = node().await;
    let pod = node.run("web").await;
    let app = node.create(&pod, "app").await.unwrap();
    node.pods.start_container(app.as_str()).await.unwrap();
    let limit = || node.machine.state.lock().unwrap().tasks[&app].memory_limit;
    let answer = CreateContainerResponse { update: vec![update(&app, memory(4096))], ..Default::default() };
    let plugin = node.plugin("10", "a", Script::creating(answer)).await;
    node.create(&pod, "other").await.unwrap();
    assert_eq!(limit(), Some(4096));
    let shares = LinuxCpu { shares: Some(OptionalUInt64 { value: 7 }), ..LinuxCpu::default() };
    let shares = LinuxResources { cpu: Some(shares), ..LinuxResources::default() };
    assert_eq!(plugin.update(vec![update(&app, shares.clone())]).await.unwrap(), []);
    let resources = node.pods.container(app.as_str()).unwrap().spec.resources.clone();
    assert_eq!((resources.memory_limit, resources.cpu_shares), (4096, 7));
    let unknown = update(&Id::random().unwrap(), shares);
    assert_eq!(plugin.update(vec![unknown.clone()]).await.unwrap(), [unknown]);
    let methods = plugin.methods();
    assert!(!methods.contains(&"UpdateContainer".to_owned()), "a plugin's own update asks nobody: {methods:?}");
}

#[tokio::test]
async fn an_update_of_the_client_is_what_plugins_make_of_it() {
    let node = node().await;
    let pod = node.run("web").await;
    let app = node.create(&pod, "app").await.unwrap();
    node.pods.start_container(app.as_str()).await.unwrap();
    let id = app.clone();
    let plugin = node
        .plugin(
            "10",
            "a",
            Script::answering(move |call| {
                let answer = UpdateContainerResponse { update: vec![update(&id, memory(8192))], ..Default::default() };
                (call.method == "UpdateContainer").then(|| Ok(answer.encode_to_vec()))
            }),
        )
        .await;
    let wanted = Resources { memory_limit: 4096, cpu_shares: 9, ..Resources::default() };
    node.pods.update_container(app.as_str(), wanted).await.unwrap();
    assert_eq!(node.machine.state.lock().unwrap().tasks[&app].memory_limit, Some(8192));
    let resources = node.pods.container(app.as_str()).unwrap().spec.resources.clone();
    assert_eq!((resources.memory_limit, resources.cpu_shares), (8192, 9));
    assert_eq!(plugin.methods(), ["UpdateContainer", "PostUpdateContainer"]);
}

#[tokio::test]
async fn validators_are_asked_last_and_can_reject() {
    let node = node_with(
        nri::Config {
            validator: ValidatorConfig { enable: true, required_plugins: vec!["b".into()], ..Default::default() },
            ..nri::Config::default()
        },
        |_| {},
    )
    .await;
    let pod = node.run("web").await;
    let error = node.create(&pod, "app").await.unwrap_err();
    assert!(error.chain().ends_with("required plugins are not there: b"), "{}", error.chain());
    let _first = node.plugin("10", "b", Script::creating(set_env("X", "b"))).await;
    let verdict = ValidateContainerAdjustmentResponse { reject: true, reason: "no X here".into() };
    let mut script = Script::answering(move |call| {
        (call.method == "ValidateContainerAdjustment").then(|| Ok(verdict.encode_to_vec()))
    });
    script.events = Event::ValidateContainerAdjustment.bit().cast_signed();
    let validator = node.plugin("00", "v", script).await;
    let error = node.create(&pod, "app").await.unwrap_err();
    assert!(
        error.chain().ends_with("NRI plugin 00-v rejects the adjustment of the container: no X here"),
        "{}",
        error.chain()
    );
    drop(validator);
}

#[tokio::test]
async fn what_there_is_is_told_in_pieces_and_what_plugins_ask_then_is_done() {
    let node = node().await;
    let mut ids = Vec::new();
    for name in ["a", "b", "c"] {
        let mut spec = pod_spec(name);
        spec.annotations.insert("large".into(), "x".repeat(2 << 20));
        ids.push(node.pods.run(spec, image()).await.unwrap().to_string());
    }
    let pod: PodSandbox = PodSandbox { id: ids[0].clone(), ..PodSandbox::default() };
    let app = node.create(&Id::parse(&pod.id).unwrap(), "app").await.unwrap();
    let target = app.clone();
    let plugin = node
        .plugin(
            "10",
            "a",
            Script::answering(move |call| {
                let last =
                    call.method == "Synchronize" && !call.decode::<nri::proto::SynchronizeRequest>().unwrap().more;
                let answer = SynchronizeResponse { update: vec![update(&target, memory(4096))], more: false };
                last.then(|| Ok(answer.encode_to_vec()))
            }),
        )
        .await;
    let (mut pods, containers) = plugin.synchronised();
    pods.sort();
    ids.sort();
    assert_eq!((pods, containers), (ids, vec![app.to_string()]));
    until("the limit is set", || node.pods.container(app.as_str()).unwrap().spec.resources.memory_limit == 4096).await;
}
