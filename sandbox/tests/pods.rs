//! What clients can rely on when they retry, give up, or ask for several things at once.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[expect(dead_code, reason = "faults and the end of a process are for the crash tests")]
mod fake;
mod wait;

use std::{sync::Arc, time::Duration};

use fake::{Fault, Machine, Process, container_spec, image, pod_spec};
use wait::until;
use windlass_sandbox::{
    Config, Error, Pods,
    changes::ChangeKind,
    model::{
        ContainerSpec, ContainerState, Id, PodResources, PodSpec, PodState, Resources, SecurityProfile, StringMap,
    },
};

struct Node {
    machine: Arc<Machine>,
    process: Arc<Process>,
    pods: Pods,
}

async fn node() -> Node {
    let machine = Machine::new();
    let process = Process::new(&machine, Fault::default());
    let pods = process.open().await;
    Node { machine, process, pods }
}

#[tokio::test]
async fn a_retry_joins_the_start_that_its_caller_gave_up() {
    let Node { machine, process, pods } = node().await;
    process.hold_attach.send_replace(true);
    {
        let first = pods.run(pod_spec("web"), image());
        tokio::pin!(first);
        // The caller's deadline passes while the network is being made.
        tokio::select! {
            _ = &mut first => panic!("the start cannot end"),
            () = until("the pod's shim runs", || !machine.state.lock().unwrap().shims.is_empty()) => {}
        }
    }
    let retry = tokio::spawn({
        let pods = pods.clone();
        async move { pods.run(pod_spec("web"), image()).await }
    });
    process.hold_attach.send_replace(false);
    let id = retry.await.unwrap().unwrap();
    assert_eq!(pods.pods().iter().map(|pod| pod.id.clone()).collect::<Vec<_>>(), std::slice::from_ref(&id));
    assert_eq!(pods.run(pod_spec("web"), image()).await.unwrap(), id, "and so does one that comes later");
    pods.remove(id.as_str()).await.unwrap();
    machine.assert_clean("after the remove");
}

#[tokio::test]
async fn the_same_name_with_another_spec_is_refused_and_changes_nothing() {
    let Node { machine, pods, .. } = node().await;
    let id = pods.run(pod_spec("web"), image()).await.unwrap();
    let other = windlass_sandbox::model::PodSpec { hostname: "other".into(), ..pod_spec("web") };
    assert!(matches!(pods.run(other, image()).await, Err(Error::AlreadyExists(_))));
    let app = pods.create_container(id.as_str(), container_spec("app"), image()).await.unwrap();
    let other = ContainerSpec { tty: true, ..container_spec("app") };
    assert!(matches!(pods.create_container(id.as_str(), other, image()).await, Err(Error::AlreadyExists(_))));
    assert_eq!(pods.create_container(id.as_str(), container_spec("app"), image()).await.unwrap(), app);
    pods.remove(id.as_str()).await.unwrap();
    machine.assert_clean("after the remove");
}

#[tokio::test]
async fn a_remove_interrupts_a_start_that_hangs_in_its_network() {
    let Node { machine, process, pods } = node().await;
    process.hold_attach.send_replace(true);
    let start = tokio::spawn({
        let pods = pods.clone();
        async move { pods.run(pod_spec("web"), image()).await }
    });
    until("the pod's shim runs", || !machine.state.lock().unwrap().shims.is_empty()).await;
    let id = machine.state.lock().unwrap().shims.first().unwrap().clone();
    pods.remove(id.as_str()).await.unwrap();
    assert!(matches!(start.await.unwrap(), Err(Error::Unavailable(_))));
    assert!(pods.pods().is_empty());
    machine.assert_clean("after the interrupted start");
}

/// A plugin that is killed half-way can leave what its DEL does not know of.
#[tokio::test]
async fn a_pod_that_fails_beside_its_network_lets_the_network_end_before_it_is_taken_back() {
    let Node { machine, process, pods } = node().await;
    process.hold_attach.send_replace(true);
    let missing = SecurityProfile::Localhost("/no/such/profile.json".into());
    let spec = windlass_sandbox::model::PodSpec { seccomp: missing, ..pod_spec("web") };
    let start = tokio::spawn(async move { pods.run(spec, image()).await });
    until("the pause container has its root file system", || process.effects() >= 5).await;
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(!start.is_finished(), "the network is still being made");
    process.hold_attach.send_replace(false);
    let error = start.await.unwrap().unwrap_err();
    assert!(error.chain().contains("/no/such/profile.json"), "{error}");
    let log = machine.state.lock().unwrap().log.clone();
    assert!(log.iter().any(|effect| effect == "attach"), "{log:?}");
    machine.assert_clean("after the failed start");
}

/// A container may have written very many files.
#[tokio::test]
async fn a_remove_does_not_wait_for_the_files_of_the_container_to_be_deleted() {
    let Node { machine, process, pods } = node().await;
    process.hold_trash.send_replace(true);
    let id = pods.run(pod_spec("web"), image()).await.unwrap();
    let app = pods.create_container(id.as_str(), container_spec("app"), image()).await.unwrap();
    pods.remove_container(app.as_str()).await.unwrap();
    assert!(machine.state.lock().unwrap().trash.contains(app.as_str()));
    pods.remove(id.as_str()).await.unwrap();
    assert_eq!(machine.state.lock().unwrap().trash.len(), 2);
    machine.assert_clean("after the remove");
    process.hold_trash.send_replace(false);
    until("the files are deleted", || machine.state.lock().unwrap().trash.is_empty()).await;
}

#[tokio::test]
async fn stop_and_remove_of_what_is_unknown_succeed_and_the_rest_is_not_found() {
    let Node { pods, .. } = node().await;
    pods.stop("nope").await.unwrap();
    pods.remove("nope").await.unwrap();
    pods.stop_container("nope", Duration::ZERO).await.unwrap();
    pods.remove_container("nope").await.unwrap();
    let missing = |error| matches!(error, Err(Error::NotFound { .. }));
    assert!(missing(pods.start_container("nope").await));
    assert!(missing(pods.create_container("nope", container_spec("app"), image()).await.map(drop)));
    assert!(missing(pods.pod("nope").map(drop)));
    assert!(missing(pods.container("").map(drop)));
}

#[tokio::test]
async fn a_stop_with_less_grace_ends_the_wait_of_an_earlier_one() {
    let Node { machine, pods, .. } = node().await;
    let pod = pods.run(pod_spec("web"), image()).await.unwrap();
    let app = pods.create_container(pod.as_str(), container_spec("app"), image()).await.unwrap();
    pods.start_container(app.as_str()).await.unwrap();
    let patient = tokio::spawn({
        let (pods, app) = (pods.clone(), app.clone());
        async move { pods.stop_container(app.as_str(), Duration::from_secs(3600)).await }
    });
    let sent = |signal: &str| machine.state.lock().unwrap().log.iter().filter(|entry| *entry == signal).count();
    until("the stop signal is sent", || sent("kill 15") == 1).await;
    pods.stop_container(app.as_str(), Duration::ZERO).await.unwrap();
    patient.await.unwrap().unwrap();
    assert_eq!((sent("kill 15"), sent("kill 9")), (1, 1));
    match &pods.container(app.as_str()).unwrap().state {
        ContainerState::Exited { exit, .. } => assert_eq!((exit.code, exit.reason.as_str()), (137, "Error")),
        other => panic!("{other:?}"),
    }
    pods.remove(pod.as_str()).await.unwrap();
    machine.assert_clean("after the remove");
}

#[tokio::test]
async fn a_stop_signal_that_could_not_be_sent_is_sent_by_the_next_stop() {
    async fn started(pods: &Pods) -> Id {
        let pod = pods.run(pod_spec("web"), image()).await.unwrap();
        let app = pods.create_container(pod.as_str(), container_spec("app"), image()).await.unwrap();
        pods.start_container(app.as_str()).await.unwrap();
        app
    }
    let counted = node().await;
    started(&counted.pods).await;
    let before = counted.process.effects();
    let machine = Machine::new();
    let process = Process::new(&machine, Fault { fail_at: Some(before + 1), ..Fault::default() });
    let pods = process.open().await;
    let app = started(&pods).await;
    let failed = pods.stop_container(app.as_str(), Duration::from_secs(3600)).await.unwrap_err();
    assert!(failed.chain().contains("injected into kill 15"), "{failed}");
    let stopping = tokio::spawn({
        let (pods, app) = (pods.clone(), app.clone());
        async move { pods.stop_container(app.as_str(), Duration::from_secs(3600)).await }
    });
    let sent = |signal: &str| machine.state.lock().unwrap().log.iter().filter(|entry| *entry == signal).count();
    until("the stop signal is sent again", || sent("kill 15") == 2).await;
    machine.exit(&app, 0);
    stopping.await.unwrap().unwrap();
    assert_eq!(sent("kill 9"), 0);
}

#[tokio::test]
async fn an_update_before_the_start_is_in_the_spec_that_the_runtime_gets_and_one_after_the_end_is_refused() {
    let Node { machine, pods, .. } = node().await;
    let pod = pods.run(pod_spec("web"), image()).await.unwrap();
    let spec =
        ContainerSpec { resources: Resources { cpu_shares: 7, ..Resources::default() }, ..container_spec("app") };
    let app = pods.create_container(pod.as_str(), spec, image()).await.unwrap();
    let update = Resources { memory_limit: 1 << 20, memory_swap_limit: 1 << 21, ..Resources::default() };
    pods.update_container(app.as_str(), update.clone()).await.unwrap();
    let container = pods.container(app.as_str()).unwrap();
    assert_eq!(container.spec.resources, Resources { cpu_shares: 7, ..update.clone() });
    let bundle = machine.dir.path().join("state/io.containerd.runtime.v2.task/k8s.io").join(app.as_str());
    let written: serde_json::Value =
        serde_json::from_slice(&std::fs::read(bundle.join("config.json")).unwrap()).unwrap();
    assert_eq!(written, container.oci_spec);
    let limits = &written["linux"]["resources"];
    assert_eq!(limits["memory"], serde_json::json!({"limit": 1 << 20, "swap": 1 << 21}));
    assert_eq!(limits["cpu"], serde_json::json!({"shares": 7}));
    assert!(limits["devices"].is_array(), "{limits}");
    assert!(!machine.state.lock().unwrap().log.contains(&"update task".to_owned()), "no task is there to update");
    let negative = Resources { cpu_shares: -1, ..Resources::default() };
    assert!(matches!(pods.update_container(app.as_str(), negative).await, Err(Error::Invalid(_))));
    pods.start_container(app.as_str()).await.unwrap();
    pods.stop_container(app.as_str(), Duration::ZERO).await.unwrap();
    assert!(matches!(pods.update_container(app.as_str(), update).await, Err(Error::Precondition(_))));
    pods.remove(pod.as_str()).await.unwrap();
    machine.assert_clean("after the remove");
}

#[tokio::test]
async fn every_step_of_a_life_is_told_once_in_order_with_what_there_is_then() {
    use ChangeKind::{Created, Deleted, Started, Stopped};
    let Node { machine, pods, .. } = node().await;
    let mut changes = pods.changes();
    let pod = pods.run(pod_spec("web"), image()).await.unwrap();
    let app = pods.create_container(pod.as_str(), container_spec("app"), image()).await.unwrap();
    pods.start_container(app.as_str()).await.unwrap();
    pods.stop_container(app.as_str(), Duration::ZERO).await.unwrap();
    pods.remove_container(app.as_str()).await.unwrap();
    pods.stop(pod.as_str()).await.unwrap();
    pods.remove(pod.as_str()).await.unwrap();
    let expected = [
        (&pod, Created, Some(PodState::Ready), 0),
        (&pod, Started, Some(PodState::Ready), 0),
        (&app, Created, Some(PodState::Ready), 1),
        (&app, Started, Some(PodState::Ready), 1),
        (&app, Stopped, Some(PodState::Ready), 1),
        (&app, Deleted, Some(PodState::Ready), 0),
        (&pod, Stopped, Some(PodState::NotReady), 0),
        (&pod, Deleted, Some(PodState::NotReady), 0),
    ];
    for (id, kind, state, containers) in expected {
        let change = changes.next().await.unwrap().unwrap();
        let told = (&change.id, change.kind, change.pod.as_ref().map(|pod| pod.state), change.containers.len());
        assert_eq!(told, (id, kind, state, containers));
    }
    pods.shutdown().await;
    assert!(changes.next().await.is_none(), "nothing else was told");
    machine.assert_clean("after the remove");
}

/// The kubelet keeps one state for a pod, by its uid; with that of an attempt before it would start all again.
#[tokio::test]
async fn what_becomes_of_an_earlier_attempt_is_told_with_the_newest() {
    use ChangeKind::{Deleted, Stopped};
    let Node { machine, pods, .. } = node().await;
    let other = pods.run(pod_spec("other"), image()).await.unwrap();
    let old = pods.run(pod_spec("web"), image()).await.unwrap();
    let was = pods.create_container(old.as_str(), container_spec("app"), image()).await.unwrap();
    pods.start_container(was.as_str()).await.unwrap();
    machine.exit(&old, 1);
    until("the pod is not ready", || pods.pod(old.as_str()).unwrap().state == PodState::NotReady).await;
    let mut again = pod_spec("web");
    again.name.attempt = 1;
    let new = pods.run(again, image()).await.unwrap();
    let is = pods.create_container(new.as_str(), container_spec("app"), image()).await.unwrap();

    let mut changes = pods.changes();
    pods.stop_container(was.as_str(), Duration::ZERO).await.unwrap();
    pods.remove_container(was.as_str()).await.unwrap();
    pods.remove(old.as_str()).await.unwrap();
    pods.remove(new.as_str()).await.unwrap();
    let both: &[&Id] = &[&was, &is];
    let expected = [
        (&was, Stopped, &new, PodState::Ready, both),
        (&was, Deleted, &new, PodState::Ready, &[&is]),
        (&old, Deleted, &new, PodState::Ready, &[&is]),
        (&is, Deleted, &new, PodState::NotReady, &[]),
        (&new, Deleted, &new, PodState::NotReady, &[]),
    ];
    let mut told = Vec::new();
    while told.len() < expected.len() {
        let change = changes.next().await.unwrap().unwrap();
        if change.id == new && change.kind == Stopped {
            continue;
        }
        told.push(change);
    }
    for (change, (id, kind, pod, state, containers)) in told.iter().zip(expected) {
        let shown = change.pod.as_ref().unwrap();
        assert_eq!((&change.id, change.kind, &shown.id, shown.state), (id, kind, pod, state));
        let mut ids: Vec<&Id> = change.containers.iter().map(|container| &container.id).collect();
        ids.sort_unstable();
        let mut containers = containers.to_vec();
        containers.sort_unstable();
        assert_eq!(ids, containers, "at {kind:?} of {id}");
    }
    pods.remove(other.as_str()).await.unwrap();
    machine.assert_clean("after the remove");
}

#[tokio::test]
async fn a_pause_process_that_dies_makes_the_pod_not_ready_and_closed_to_containers() {
    let Node { machine, pods, .. } = node().await;
    let pod = pods.run(pod_spec("web"), image()).await.unwrap();
    machine.exit(&pod, 1);
    until("the pod is not ready", || pods.pod(pod.as_str()).unwrap().state == PodState::NotReady).await;
    let refused = pods.create_container(pod.as_str(), container_spec("app"), image()).await;
    assert!(matches!(refused, Err(Error::Precondition(_))));
    pods.stop(pod.as_str()).await.unwrap();
    pods.stop(pod.as_str()).await.unwrap();
    pods.remove(pod.as_str()).await.unwrap();
    machine.assert_clean("after the remove");
}

#[tokio::test]
async fn any_mix_of_requests_at_once_ends_with_one_remove_and_nothing_left() {
    let Node { machine, pods, .. } = node().await;
    for round in 0..10 {
        let pod = pods.run(pod_spec("web"), image()).await.unwrap();
        let mut calls = tokio::task::JoinSet::new();
        for n in 0..6 {
            let (pods, pod) = (pods.clone(), pod.clone());
            calls.spawn(async move {
                // Each may succeed or be refused, by the order in which they arrive.
                let Ok(app) =
                    pods.create_container(pod.as_str(), container_spec(&format!("app{}", n % 3)), image()).await
                else {
                    return;
                };
                drop(pods.start_container(app.as_str()).await);
                let update = Resources { memory_limit: 1 << 20, ..Resources::default() };
                drop(pods.update_container(app.as_str(), update).await);
                drop(pods.stop_container(app.as_str(), Duration::ZERO).await);
                if n % 2 == 0 {
                    drop(pods.remove_container(app.as_str()).await);
                }
            });
        }
        for n in 0..3 {
            let (pods, pod) = (pods.clone(), pod.clone());
            calls.spawn(async move {
                for _ in 0..n * round {
                    tokio::task::yield_now().await;
                }
                match n {
                    0 => drop(pods.run(pod_spec("web"), image()).await),
                    1 => pods.stop(pod.as_str()).await.unwrap(),
                    _ => pods.remove(pod.as_str()).await.unwrap(),
                }
            });
        }
        while let Some(call) = calls.join_next().await {
            call.unwrap();
        }
        for pod in pods.pods() {
            pods.remove(pod.id.as_str()).await.unwrap();
        }
        assert_eq!(pods.containers().len(), 0);
        machine.assert_clean(&format!("round {round}"));
    }
}

#[tokio::test]
async fn a_shim_that_dies_takes_its_containers_with_it_and_the_pod_can_be_removed() {
    let Node { machine, pods, .. } = node().await;
    let pod = pods.run(pod_spec("web"), image()).await.unwrap();
    let app = pods.create_container(pod.as_str(), container_spec("app"), image()).await.unwrap();
    pods.start_container(app.as_str()).await.unwrap();
    machine.state.lock().unwrap().shims.clear();
    // Any change wakes those who wait for a task, and they find the shim gone.
    machine.exit(&pod, 137);
    until("the container has ended", || {
        matches!(&pods.container(app.as_str()).unwrap().state, ContainerState::Exited { exit, .. } if exit.code == 255)
    })
    .await;
    assert_eq!(pods.pod(pod.as_str()).unwrap().state, PodState::NotReady);
    pods.remove(pod.as_str()).await.unwrap();
    machine.assert_clean("after the remove");
}

#[tokio::test]
async fn a_shim_that_is_killed_when_its_tasks_have_ended_leaves_no_socket() {
    let Node { machine, pods, .. } = node().await;
    let pod = pods.run(pod_spec("web"), image()).await.unwrap();
    machine.exit(&pod, 137);
    until("the pod is not ready", || pods.pod(pod.as_str()).unwrap().state == PodState::NotReady).await;
    machine.state.lock().unwrap().tasks.clear();
    machine.state.lock().unwrap().die_at_shutdown = true;
    pods.stop(pod.as_str()).await.unwrap();
    pods.remove(pod.as_str()).await.unwrap();
    machine.assert_clean("after the remove");
}

#[tokio::test]
async fn a_stop_whose_shim_dies_is_answered_when_it_is_known_that_the_container_has_ended() {
    let Node { machine, pods, .. } = node().await;
    let pod = pods.run(pod_spec("web"), image()).await.unwrap();
    let app = pods.create_container(pod.as_str(), container_spec("app"), image()).await.unwrap();
    pods.start_container(app.as_str()).await.unwrap();
    let stopping = tokio::spawn({
        let (pods, app) = (pods.clone(), app.clone());
        async move { pods.stop_container(app.as_str(), Duration::from_secs(3600)).await }
    });
    let sent = |signal: &str| machine.state.lock().unwrap().log.iter().filter(|entry| *entry == signal).count();
    until("the stop signal is sent", || sent("kill 15") == 1).await;
    machine.state.lock().unwrap().shims.clear();
    machine.exit(&pod, 137);
    stopping.await.unwrap().unwrap();
    let state = pods.container(app.as_str()).unwrap().state.clone();
    assert!(matches!(&state, ContainerState::Exited { exit, .. } if exit.code == 255), "{state:?}");
    pods.remove(pod.as_str()).await.unwrap();
    machine.assert_clean("after the remove");
}

#[tokio::test]
async fn updated_resources_of_a_pod_are_shown_and_kept_and_a_retry_still_knows_the_pod() {
    let Node { machine, pods, .. } = node().await;
    let limits = |memory_limit| Some(Resources { memory_limit, ..Resources::default() });
    let spec = PodSpec { overhead: limits(1), resources: limits(2), ..pod_spec("web") };
    let pod = pods.run(spec.clone(), image()).await.unwrap();
    let shown = |pods: &Pods| pods.pods()[0].resources.clone();
    assert_eq!(shown(&pods), PodResources { overhead: limits(1), resources: limits(2) });
    let update = PodResources { overhead: None, resources: limits(4) };
    pods.update_pod(pod.as_str(), update.clone()).await.unwrap();
    assert_eq!(shown(&pods), update);
    assert_eq!(pods.run(spec, image()).await.unwrap(), pod);
    let unknown = pods.update_pod(&"0".repeat(64), update.clone()).await.unwrap_err();
    assert!(matches!(unknown, Error::NotFound { .. }), "{unknown}");
    pods.shutdown().await;

    let pods = Process::new(&machine, Fault::default()).open().await;
    assert_eq!(shown(&pods), update);
    pods.remove(pod.as_str()).await.unwrap();
    machine.assert_clean("after the remove");
}

#[tokio::test]
async fn a_class_of_rdt_is_the_group_that_the_runtime_gets_or_a_refusal_that_names_it() {
    let machine = Machine::new();
    let dir = machine.dir.path();
    let write = |name: &str, text: &str| {
        let path = dir.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("rdt.yaml", "partitions: {p: {l3Allocation: 50%, classes: {gold: {l3Allocation: 50%}, system/default: }}}\n");
    let without = fake::config(dir);
    let with = Config { rdt_config_file: Some(dir.join("rdt.yaml")), ..without.clone() };
    let mut lenient = with.clone();
    lenient.handlers.get_mut("runc").unwrap().ignore_rdt = true;
    let of_pod = |name: &str, class: &str| (format!("rdt.resources.beta.kubernetes.io/{name}"), class.to_owned());
    let annotations: StringMap =
        [of_pod("pod", "gold"), of_pod("container.root", "system/default"), of_pod("container.typo", "glod")].into();
    // The group of each container, or why there is none.
    let create = async |config: &Config, names: &[&str]| -> Vec<String> {
        let pods = Process::new(&machine, Fault::default()).open_with(config.clone()).await;
        let spec = PodSpec { annotations: annotations.clone(), ..pod_spec("web") };
        let pod = pods.run(spec, image()).await.unwrap();
        let mut groups = Vec::new();
        for name in names {
            groups.push(match pods.create_container(pod.as_str(), container_spec(name), image()).await {
                Ok(id) => pods.container(id.as_str()).unwrap().oci_spec["linux"]["intelRdt"].to_string(),
                Err(error) => error.chain().replace(&dir.display().to_string(), "DIR"),
            });
        }
        pods.remove(pod.as_str()).await.unwrap();
        pods.shutdown().await;
        groups
    };
    let annotation = "annotation rdt.resources.beta.kubernetes.io/pod: RDT class \"gold\"";
    let off = create(&without, &["app"]).await;
    assert_eq!(off, [format!("{annotation}: no classes are configured on this node (rdt_config_file)")]);
    let unable = create(&with, &["app"]).await;
    assert!(
        unable[0].starts_with(&format!("{annotation}: DIR/rdt.yaml is not usable: this host has no resctrl")),
        "{unable:?}"
    );
    assert_eq!(create(&lenient, &["app"]).await, ["null"]);

    write("mounts", &format!("resctrl {}/resctrl resctrl rw 0 0\n", dir.display()));
    write("resctrl/info/L3/cbm_mask", "ff\n");
    write("resctrl/info/L3/min_cbm_bits", "1\n");
    write("resctrl/schemata", "L3:0=ff\n");
    let groups = create(&lenient, &["app", "root", "typo"]).await;
    let typo = "annotation rdt.resources.beta.kubernetes.io/container.typo: RDT class \"glod\": neither DIR/rdt.yaml nor \
                DIR/resctrl has it; the file has gold, system/default";
    assert_eq!(groups, [r#"{"closID":"gold"}"#, "null", typo]);
    assert_eq!(std::fs::read_to_string(dir.join("resctrl/gold/schemata")).unwrap(), "L3:0=3\n");
    machine.assert_clean("after the removes");
}
