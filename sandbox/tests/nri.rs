//! What plugins can rely on, and what pods can rely on when a plugin cannot be.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "faults and the end of a process are for the crash tests")]
mod fake;
mod plugin;

use std::{fs, os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc, time::Duration};

use fake::{Fault, Machine, Process, container_spec, image, pod_spec};
use plugin::{Plugin, Script, Seen};
use prost::Message;
use shim::ttrpc::{Code, Status};
use tokio::{net::UnixListener, sync::watch};
use windlass_sandbox::{
    Error, Pods,
    model::{ContainerState, Id, Resources},
    nri::{
        self, ValidatorConfig,
        proto::{
            ContainerAdjustment, ContainerEvent, ContainerUpdate, CreateContainerResponse, Event, KeyValue,
            LinuxContainerAdjustment, LinuxContainerUpdate, LinuxCpu, LinuxMemory, LinuxResources, OptionalInt,
            OptionalUInt64, PodSandbox, SynchronizeResponse, UpdateContainerResponse,
            ValidateContainerAdjustmentResponse,
        },
    },
};

struct Node {
    machine: Arc<Machine>,
    pods: Pods,
    socket: PathBuf,
}

async fn node() -> Node {
    node_with(nri::Config { request_timeout: Duration::from_secs(10), ..nri::Config::default() }, |_| {}).await
}

/// `prepare` gets the directory of installed plugins.
async fn node_with(config: nri::Config, prepare: impl FnOnce(&PathBuf)) -> Node {
    let machine = Machine::new();
    let dir = machine.dir.path().to_owned();
    let (socket, plugins) = (dir.join("nri.sock"), dir.join("plugins"));
    fs::create_dir(&plugins).unwrap();
    prepare(&plugins);
    let process = Process::new(&machine, Fault::default());
    let nri = nri::Config { plugin_path: plugins, plugin_config_path: dir.join("conf.d"), ..config };
    let pods = process.open_with(windlass_sandbox::Config { nri: Some(nri), ..fake::config(&dir) }).await;
    pods.start_plugins(Some(UnixListener::bind(&socket).unwrap())).await;
    Node { machine, pods, socket }
}

impl Node {
    async fn plugin(&self, index: &str, name: &str, script: Script) -> Plugin {
        Plugin::connect(&self.socket, index, name, script).await
    }

    async fn run(&self, name: &str) -> Id {
        self.pods.run(pod_spec(name), image()).await.unwrap()
    }

    async fn create(&self, pod: &Id, name: &str) -> Result<Id, Error> {
        self.pods.create_container(pod.as_str(), container_spec(name), image()).await
    }
}

/// Waits for a condition, not for a time.
async fn until(what: &str, condition: impl Fn() -> bool) {
    let reached = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), reached).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn seen(method: &str, pod: &Id, container: Option<&Id>) -> Seen {
    let container = container.map(Id::to_string).unwrap_or_default();
    Seen { method: method.into(), pod: pod.to_string(), container }
}

fn set_env(key: &str, value: &str) -> CreateContainerResponse {
    let env = vec![KeyValue { key: key.into(), value: value.into() }];
    CreateContainerResponse { adjust: Some(ContainerAdjustment { env, ..Default::default() }), ..Default::default() }
}

fn memory(limit: i64) -> LinuxResources {
    let limit = Some(OptionalInt { value: limit });
    LinuxResources { memory: Some(LinuxMemory { limit, ..LinuxMemory::default() }), ..LinuxResources::default() }
}

fn update(container: &Id, limits: LinuxResources) -> ContainerUpdate {
    let linux = Some(LinuxContainerUpdate { resources: Some(limits) });
    ContainerUpdate { container_id: container.to_string(), linux, ignore_failure: false }
}

/// Fails every call of `method` while `failing`.
fn failing(method: &'static str, failing: &watch::Sender<bool>) -> Script {
    let failing = failing.subscribe();
    Script::answering(move |call| {
        (call.method == method && *failing.borrow()).then(|| Err(Status::unknown("not today")))
    })
}

/// Holds every call of `method` whose pod has this name until it is let go.
fn holding(method: &'static str, pod: &'static str, held: &watch::Sender<bool>) -> Script {
    let held = held.subscribe();
    Script::waiting(move |call| {
        let mut held = held.clone();
        Box::pin(async move {
            let name = match call.method.as_str() {
                "Synchronize" => pod.to_owned(),
                _ => call.decode::<ContainerEvent>().unwrap().pod.unwrap_or_default().name,
            };
            if call.method == method && name == pod {
                held.wait_for(|held| !held).await.unwrap();
            }
            None
        })
    })
}

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
