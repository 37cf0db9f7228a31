//! Proof by exhaustion: the daemon is stopped, or one effect fails, after every single effect of a pod's life. Whatever
//! the moment, the next life finds its way, nothing leaks, and the client's retry succeeds.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

// Shared with the end-to-end tests: what they restore is what is restored here.
#[path = "../../e2e/src/criu.rs"]
#[expect(unreachable_pub, reason = "it is public where it is a crate's own")]
mod criu;
mod fake;

use std::{
    fs::File,
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use fake::{Fault, Machine, Process, container_spec, image, pod_spec, shapes::image_volume};
use windlass_sandbox::{
    Error, Pods,
    checkpoint::Restore,
    model::{ContainerSpec, ContainerState, ContainerView, PodState, Resources},
};

fn memory(limit: i64) -> Resources {
    Resources { memory_limit: limit, ..Resources::default() }
}

const RESTORED: &str = "restored";

/// A checkpoint of a container like this one.
fn checkpoint(like: &ContainerView) -> Restore {
    static ARCHIVE: OnceLock<(tempfile::TempDir, PathBuf)> = OnceLock::new();
    let (_, archive) = ARCHIVE.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let (images, path) = (dir.path().join("images"), dir.path().join("c.tar"));
        std::fs::create_dir(&images).unwrap();
        criu::write_images(&images, &like.oci_spec, 0);
        let mut tar = tar::Builder::new(File::create(&path).unwrap());
        tar.append_dir_all("checkpoint", &images).unwrap();
        tar.into_inner().unwrap();
        (dir, path)
    });
    Restore { archive: archive.clone(), name: "c.tar".into() }
}

/// A pod's life: three containers, of which one is stopped and removed, and the others go with the pod. The first one has
/// two images as volumes, one of them twice; the last one begins with a checkpoint.
async fn life(pods: &Pods) -> Result<(), Error> {
    let pod = pods.run(pod_spec("web"), image()).await?;
    let mounts = [("/a", "one"), ("/b", "two"), ("/c", "one")].map(|(path, name)| image_volume(path, name));
    let with_images = ContainerSpec { mounts: mounts.into(), ..container_spec("first") };
    let first = pods.create_container(pod.as_str(), with_images, image()).await?;
    let second = pods.create_container(pod.as_str(), container_spec("second"), image()).await?;
    let from = checkpoint(&*pods.container(second.as_str())?);
    let restored = pods.restore_container(pod.as_str(), container_spec(RESTORED), image(), from).await?;
    pods.update_container(first.as_str(), memory(1 << 20)).await?;
    pods.start_container(first.as_str()).await?;
    pods.start_container(second.as_str()).await?;
    pods.start_container(restored.as_str()).await?;
    pods.update_container(second.as_str(), memory(1 << 20)).await?;
    pods.stop_container(first.as_str(), Duration::from_millis(1)).await?;
    pods.remove_container(first.as_str()).await?;
    pods.stop(pod.as_str()).await?;
    pods.remove(pod.as_str()).await
}

/// Goes on from wherever a crash left things, as a client that lists and retries does, to an empty node.
async fn resume(pods: &Pods) -> Result<(), Error> {
    for container in pods.containers() {
        if container.state == ContainerState::Created && pods.pod(container.pod.as_str())?.state == PodState::Ready {
            // The retry of the creation answers the same container, and the container can still be started.
            let (pod, spec) = (container.pod.as_str(), container.spec.clone());
            let again = if container.spec.name.name == RESTORED {
                pods.restore_container(pod, spec, image(), checkpoint(&container)).await?
            } else {
                pods.create_container(pod, spec, image()).await?
            };
            assert_eq!(again, container.id);
            pods.start_container(container.id.as_str()).await?;
        }
    }
    for pod in pods.pods() {
        if pod.state == PodState::Ready {
            assert_eq!(pods.run(pod.spec.clone(), image()).await?, pod.id, "a retry gets the pod that is there");
            let third = pods.create_container(pod.id.as_str(), container_spec("third"), image()).await?;
            pods.start_container(third.as_str()).await?;
        }
        pods.remove(pod.id.as_str()).await?;
    }
    Ok(())
}

/// Runs `work` in a process of its own; false if the process was stopped before it was done.
fn process<F>(machine: &Arc<Machine>, fault: Fault, work: impl FnOnce(Pods, Arc<Process>) -> F) -> (bool, usize)
where
    F: Future<Output = ()>,
{
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let process = Process::new(machine, fault);
    let done = runtime.block_on(async {
        let work = async { work(process.open().await, Arc::clone(&process)).await };
        let work = tokio::time::timeout(Duration::from_secs(60), work);
        tokio::select! {
            done = work => { done.unwrap_or_else(|_| panic!("stuck with {fault:?}; effects: {:#?}", machine.state.lock().unwrap().log)); true }
            () = process.died.notified() => false,
        }
    });
    // Every task is dropped where it waits, as by a kill. Only then may blocked threads end.
    runtime.shutdown_background();
    process.release();
    (done, process.effects())
}

async fn ends_clean(pods: Pods, _: Arc<Process>) {
    resume(&pods).await.unwrap();
    assert_eq!(pods.pods().len() + pods.containers().len(), 0);
    life(&pods).await.unwrap();
    pods.shutdown().await;
}

#[test]
fn a_daemon_that_is_killed_after_any_effect_recovers_leaks_nothing_and_serves_the_retry() {
    let mut n = 0;
    loop {
        n += 1;
        let machine = Machine::new();
        let fault = Fault { stop_after: Some(n), ..Fault::default() };
        let (done, effects) = process(&machine, fault, async |pods, _| life(&pods).await.unwrap());
        if done {
            assert!(effects > 40, "the life of a pod is made of more effects than {effects}");
            break;
        }
        process(&machine, Fault::default(), ends_clean);
        machine.assert_clean(&format!("killed after effect {n}"));
    }
}

#[test]
fn a_daemon_that_is_killed_again_while_it_recovers_recovers_all_the_same() {
    // One moment of each operation: in the start, in a creation, in the stop and in the remove of the pod.
    for first in (3..60).step_by(6) {
        for second in 1..6 {
            let machine = Machine::new();
            let stop = |n| Fault { stop_after: Some(n), ..Fault::default() };
            process(&machine, stop(first), async |pods, _| life(&pods).await.unwrap());
            process(&machine, stop(second), ends_clean);
            process(&machine, Fault::default(), ends_clean);
            machine.assert_clean(&format!("killed after effect {first}, then after {second} of the recovery"));
        }
    }
}

#[test]
fn an_operation_that_fails_at_any_effect_can_be_undone_and_repeated() {
    let mut n = 0;
    loop {
        n += 1;
        let machine = Machine::new();
        let fault = Fault { fail_at: Some(n), ..Fault::default() };
        let mut effects = 0;
        process(&machine, fault, async |pods, process| {
            // Some failures are made good by a later step, and the client never hears of them.
            if let Err(error) = life(&pods).await {
                assert!(error.chain().contains("injected into"), "{}", error.chain());
            }
            effects = process.disarm();
            ends_clean(pods, process).await;
        });
        machine.assert_clean(&format!("effect {n} failed"));
        if n > effects {
            break;
        }
    }
}

#[test]
fn a_failed_start_leaves_nothing_and_the_next_try_works() {
    let mut n = 0;
    let mut failed = true;
    while failed {
        n += 1;
        let machine = Machine::new();
        let fault = Fault { fail_at: Some(n), ..Fault::default() };
        process(&machine, fault, async |pods, process| {
            let first = pods.run(pod_spec("web"), image()).await;
            process.disarm();
            failed = first.is_err();
            if let Err(error) = first {
                assert!(error.chain().contains("injected into"), "{}", error.chain());
                assert!(pods.pods().is_empty());
                machine.assert_clean(&format!("effect {n} of the start failed"));
            }
            let pod = pods.run(pod_spec("web"), image()).await.unwrap();
            pods.remove(pod.as_str()).await.unwrap();
        });
        machine.assert_clean(&format!("after the retry of the start that failed at effect {n}"));
    }
    assert!(n > 10, "a start is made of more effects than {n}");
}

#[test]
fn a_container_that_ended_while_the_daemon_was_down_has_its_real_exit() {
    let machine = Machine::new();
    process(&machine, Fault::default(), async |pods, _| {
        let pod = pods.run(pod_spec("web"), image()).await.unwrap();
        for name in ["ends", "goes-on"] {
            let id = pods.create_container(pod.as_str(), container_spec(name), image()).await.unwrap();
            pods.start_container(id.as_str()).await.unwrap();
        }
        pods.shutdown().await;
    });
    let ids: Vec<_> = machine.state.lock().unwrap().tasks.keys().cloned().collect();
    assert_eq!(ids.len(), 3, "containers go on without the daemon");
    process(&machine, Fault::default(), async |pods, _| {
        let ends = pods.containers().into_iter().find(|container| container.spec.name.name == "ends").unwrap();
        machine.exit(&ends.id, 3);
        pods.shutdown().await;
    });
    process(&machine, Fault::default(), async |pods, _| {
        let mut states: Vec<_> = pods
            .containers()
            .iter()
            .map(|container| match &container.state {
                ContainerState::Exited { exit, .. } => {
                    (container.spec.name.name.clone(), exit.code, exit.reason.clone())
                }
                ContainerState::Running { pid, .. } => (container.spec.name.name.clone(), *pid, "running".into()),
                other => panic!("{other:?}"),
            })
            .collect();
        states.sort();
        assert_eq!(states, [("ends".into(), 3, "Error".into()), ("goes-on".into(), 7, "running".into())]);
        assert_eq!(pods.pods()[0].state, PodState::Ready);
        pods.remove(pods.pods()[0].id.as_str()).await.unwrap();
    });
    machine.assert_clean("after the remove");
}

#[test]
fn how_a_container_ended_is_not_lost_when_the_daemon_is_killed_in_the_stop_of_its_pod() {
    let mut n = 0;
    loop {
        n += 1;
        let machine = Machine::new();
        process(&machine, Fault::default(), async |pods, _| {
            let pod = pods.run(pod_spec("web"), image()).await.unwrap();
            for name in ["one", "two"] {
                let id = pods.create_container(pod.as_str(), container_spec(name), image()).await.unwrap();
                pods.start_container(id.as_str()).await.unwrap();
            }
            pods.shutdown().await;
        });
        // Also while the next process finishes the stop.
        let kill = Fault { stop_after: Some(n), ..Fault::default() };
        let (done, _) = process(&machine, kill, async |pods, _| pods.stop(pods.pods()[0].id.as_str()).await.unwrap());
        process(&machine, Fault { stop_after: Some(2), ..Fault::default() }, async |pods, _| pods.shutdown().await);
        process(&machine, Fault::default(), async |pods, _| {
            // A kill before the intent was committed leaves a pod that runs.
            pods.stop(pods.pods()[0].id.as_str()).await.unwrap();
            for container in pods.containers() {
                match &container.state {
                    ContainerState::Exited { exit, .. } => {
                        assert_eq!((exit.code, exit.reason.as_str()), (137, "Error"), "killed after effect {n}");
                    }
                    other => panic!("{other:?}, killed after effect {n}"),
                }
            }
            pods.remove(pods.pods()[0].id.as_str()).await.unwrap();
        });
        machine.assert_clean(&format!("killed after effect {n}"));
        if done {
            assert!(n > 5, "the stop of a pod is made of more effects than {n}");
            break;
        }
    }
}

#[test]
fn a_pod_whose_shim_died_with_the_daemon_is_not_ready_and_its_containers_ended_unknown() {
    let machine = Machine::new();
    process(&machine, Fault::default(), async |pods, _| {
        let pod = pods.run(pod_spec("web"), image()).await.unwrap();
        let id = pods.create_container(pod.as_str(), container_spec("app"), image()).await.unwrap();
        pods.start_container(id.as_str()).await.unwrap();
        pods.shutdown().await;
    });
    machine.state.lock().unwrap().shims.clear();
    process(&machine, Fault::default(), async |pods, _| {
        assert_eq!(pods.pods()[0].state, PodState::NotReady);
        match &pods.containers()[0].state {
            ContainerState::Exited { exit, .. } => assert_eq!((exit.code, exit.reason.as_str()), (255, "Unknown")),
            other => panic!("{other:?}"),
        }
        pods.remove(pods.pods()[0].id.as_str()).await.unwrap();
    });
    machine.assert_clean("after the remove");
}

#[test]
fn no_shim_is_asked_about_a_container_that_was_never_started() {
    let machine = Machine::new();
    process(&machine, Fault::default(), async |pods, _| {
        let pod = pods.run(pod_spec("web"), image()).await.unwrap();
        for name in ["idle", "removed", "started"] {
            pods.create_container(pod.as_str(), container_spec(name), image()).await.unwrap();
        }
        let id = |name: &str| {
            pods.containers().into_iter().find(|container| container.spec.name.name == name).unwrap().id.to_string()
        };
        let (idle, removed, started) = (id("idle"), id("removed"), id("started"));
        pods.start_container(&started).await.unwrap();
        machine.state.lock().unwrap().shims.clear();
        pods.remove_container(&removed).await.unwrap();
        pods.stop(pod.as_str()).await.unwrap();
        pods.remove(pod.as_str()).await.unwrap();
        let log = machine.state.lock().unwrap().log.clone();
        let asked = |id: &str| log.iter().any(|effect| *effect == format!("clean up {id}"));
        assert_eq!((asked(&idle), asked(&removed), asked(&started)), (false, false, true), "{log:?}");
    });
    machine.assert_clean("after the remove");
}

#[test]
fn after_a_reboot_nothing_lives_and_the_network_is_still_given_back() {
    let machine = Machine::new();
    process(&machine, Fault::default(), async |pods, _| {
        let pod = pods.run(pod_spec("web"), image()).await.unwrap();
        let id = pods.create_container(pod.as_str(), container_spec("app"), image()).await.unwrap();
        pods.start_container(id.as_str()).await.unwrap();
        pods.create_container(pod.as_str(), container_spec("created"), image()).await.unwrap();
        pods.shutdown().await;
    });
    machine.reboot();
    process(&machine, Fault::default(), async |pods, _| {
        assert_eq!(pods.pods()[0].state, PodState::NotReady);
        let ended = pods.containers().into_iter().find(|container| container.spec.name.name == "app").unwrap();
        match &ended.state {
            ContainerState::Exited { exit, .. } => assert_eq!((exit.code, exit.reason.as_str()), (255, "Unknown")),
            other => panic!("{other:?}"),
        }
        let log = machine.state.lock().unwrap().log.clone();
        pods.stop(pods.pods()[0].id.as_str()).await.unwrap();
        let since: Vec<String> = machine.state.lock().unwrap().log[log.len()..].to_vec();
        assert!(since.contains(&"detach".to_owned()), "{since:?}");
        pods.remove(pods.pods()[0].id.as_str()).await.unwrap();
    });
    machine.assert_clean("after the remove");
}

/// The limit that a container's status shows, and the one that its task is held to.
fn limits(machine: &Machine, pods: &Pods) -> (i64, Option<i64>) {
    let container = Arc::clone(&pods.containers()[0]);
    let held = machine.state.lock().unwrap().tasks[&container.id].memory_limit;
    (container.spec.resources.memory_limit, held)
}

/// A pod with a running container that was created with a limit of 1 MiB.
async fn limited(pods: &Pods) -> Result<(), Error> {
    let pod = pods.run(pod_spec("web"), image()).await?;
    let spec = ContainerSpec { resources: memory(1 << 20), ..container_spec("app") };
    let app = pods.create_container(pod.as_str(), spec, image()).await?;
    pods.start_container(app.as_str()).await
}

#[test]
fn an_update_that_fails_or_is_cut_short_leaves_the_limits_that_the_status_shows() {
    let machine = Machine::new();
    let (_, before) = process(&machine, Fault::default(), async |pods, _| {
        limited(&pods).await.unwrap();
        pods.update_container(pods.containers()[0].id.as_str(), memory(2 << 20)).await.unwrap();
        assert_eq!(limits(&machine, &pods), (2 << 20, Some(2 << 20)));
    });
    let failing = Machine::new();
    process(&failing, Fault { fail_at: Some(before), ..Fault::default() }, async |pods, _| {
        limited(&pods).await.unwrap();
        let failed = pods.update_container(pods.containers()[0].id.as_str(), memory(2 << 20)).await;
        assert!(failed.unwrap_err().chain().contains("injected into update task"));
        assert_eq!(limits(&failing, &pods), (1 << 20, Some(1 << 20)));
    });
    let killed = Machine::new();
    let (done, _) = process(&killed, Fault { stop_after: Some(before), ..Fault::default() }, async |pods, _| {
        limited(&pods).await.unwrap();
        pods.update_container(pods.containers()[0].id.as_str(), memory(2 << 20)).await.unwrap();
    });
    assert!(!done);
    process(&killed, Fault::default(), async |pods, _| {
        assert_eq!(limits(&killed, &pods), (1 << 20, Some(1 << 20)));
        pods.remove(pods.pods()[0].id.as_str()).await.unwrap();
    });
    killed.assert_clean("after the remove");
}

#[test]
fn what_no_record_knows_is_removed_at_the_start() {
    let machine = Machine::new();
    process(&machine, Fault::default(), async |pods, _| {
        let pod = pods.run(pod_spec("web"), image()).await.unwrap();
        pods.create_container(pod.as_str(), container_spec("app"), image()).await.unwrap();
        pods.shutdown().await;
    });
    machine.forget_records();
    process(&machine, Fault::default(), async |pods, _| assert!(pods.pods().is_empty()));
    machine.assert_clean("after the next start");
}

#[test]
fn a_network_that_cannot_be_taken_back_does_not_keep_the_daemon_from_serving() {
    let run = async |pods: Pods, _| drop(pods.run(pod_spec("web"), image()).await);
    let whole = Machine::new();
    process(&whole, Fault::default(), run);
    let attached = whole.state.lock().unwrap().log.iter().position(|effect| effect == "attach").unwrap() + 1;

    let machine = Machine::new();
    process(&machine, Fault { stop_after: Some(attached), ..Fault::default() }, run);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let process = Process::new(&machine, Fault::default());
    process.hold_detach.send_replace(true);
    runtime.block_on(async {
        let mut config = fake::config(machine.dir.path());
        config.timeouts.finish = Duration::from_millis(100);
        let opened = tokio::time::timeout(Duration::from_secs(20), process.open_with(config)).await;
        let pods = opened.expect("it has to serve without the network");
        let left: Vec<_> = pods.pods().iter().map(|pod| (pod.spec.name.name.clone(), pod.state)).collect();
        assert_eq!(left, [("web".to_owned(), PodState::NotReady)]);
        process.hold_detach.send_replace(false);
        let again = pods.run(pod_spec("web"), image()).await.unwrap();
        assert_eq!(pods.pod(again.as_str()).unwrap().state, PodState::Ready);
        pods.remove(again.as_str()).await.unwrap();
        assert_eq!(pods.pods().len(), 0);
        pods.shutdown().await;
    });
    machine.assert_clean("once the network let go");
}
