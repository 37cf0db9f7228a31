//! The daemon is killed and started again; pods and their containers do not notice.

use std::{fs, time::Duration};

use api::cri::{self, ContainerState, PodSandboxState};
use windlass_e2e::{
    client::{container, program},
    crilog::LogLine,
    node::{BUSYBOX, PROBE, TestNode},
    wait::{self, SOON},
};

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_container_goes_on_and_keeps_logging_while_the_daemon_is_dead() {
    let mut node = TestNode::start().await;
    let client = node.client();
    client.pull(PROBE).await.unwrap();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("orphan");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let counting = client.create(&pod, &program("count", PROBE, &["count"]), &pod_config).await.unwrap();
    client.start(&counting).await.unwrap();
    let shell = client.create(&pod, &container("shell", BUSYBOX, &["sleep", "1000"]), &pod_config).await.unwrap();
    client.start(&shell).await.unwrap();
    let before = client.status(&counting).await.unwrap();
    let process = node.first_process(&counting);

    node.kill9();
    let logged = node.log_of("orphan", "count").len();
    wait::until_ok("lines are logged without a daemon", SOON, || {
        let now = node.log_of("orphan", "count").len();
        if now >= logged + 5 { Ok(()) } else { Err(format!("{logged}, now {now}")) }
    })
    .await;

    node.boot().await;
    let client = node.client();
    assert_eq!(client.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxReady);
    assert_eq!(client.status(&counting).await.unwrap(), before);
    assert_eq!(node.first_process(&counting), process);
    assert_eq!(client.output(&shell, &["echo", "still here"]).await, "still here\n");
    let lines = node.log_of("orphan", "count");
    let expected: Vec<LogLine> = (1..=lines.len()).map(|n| LogLine::new("stdout", &n.to_string())).collect();
    assert_eq!(lines, expected);

    client.stop(&counting, 30).await.unwrap();
    assert_eq!(client.status(&counting).await.unwrap().exit_code, 7);
    client.remove(&counting).await.unwrap();
    client.stop_pod(&pod).await.unwrap();
    client.remove_pod(&pod).await.unwrap();
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_the_exit_code_of_a_container_that_ended_meanwhile_is_the_real_one() {
    let mut node = TestNode::start().await;
    let client = node.client();
    client.pull(PROBE).await.unwrap();
    let pod_config = node.pod("meanwhile");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let signals = node.path("signals");
    fs::create_dir(&signals).unwrap();
    let mut config = program("app", PROBE, &["wait", "/signals/end", "42"]);
    config.mounts.push(cri::Mount {
        container_path: "/signals".into(),
        host_path: signals.to_str().unwrap().into(),
        ..cri::Mount::default()
    });
    let app = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    let process = node.first_process(&app);

    node.kill9();
    fs::write(signals.join("end"), "").unwrap();
    wait::until_ok("the container ends", SOON, || {
        if fs::exists(format!("/proc/{process}")).unwrap() { Err("it runs".to_owned()) } else { Ok(()) }
    })
    .await;
    node.boot().await;
    let client = node.client();
    let ended = client.status(&app).await.unwrap();
    assert_eq!((ended.state(), ended.exit_code), (ContainerState::ContainerExited, 42));
    assert!(ended.finished_at > ended.started_at, "{} after {}", ended.finished_at, ended.started_at);
    assert_eq!(client.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxReady);
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_pods_and_images_survive_an_orderly_restart() {
    let mut node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("orderly");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &container("app", BUSYBOX, &["sleep", "1000"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    let before = (client.pods().await.unwrap(), client.containers().await.unwrap(), client.image_list().await.unwrap());
    node.restart().await;
    let client = node.client();
    let after = (client.pods().await.unwrap(), client.containers().await.unwrap(), client.image_list().await.unwrap());
    assert_eq!(after, before);
    assert_eq!(client.output(&app, &["echo", "hello"]).await, "hello\n");
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pod_whose_shim_was_killed_with_the_daemon_is_not_ready_and_can_be_removed() {
    let mut node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("shimless");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &container("app", BUSYBOX, &["sleep", "1000"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    node.kill9();
    for (pid, what) in node.leakcheck.processes() {
        if what.contains("containerd-shim-runc-v2") {
            let pid = rustix::process::Pid::from_raw(pid.try_into().unwrap()).unwrap();
            rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
        }
    }
    node.boot().await;
    let client = node.client();
    assert_eq!(client.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxNotready);
    let status = client.status(&app).await.unwrap();
    assert_eq!(
        (status.state(), status.exit_code, status.reason.as_str()),
        (ContainerState::ContainerExited, 255, "Unknown")
    );
    node.remove_all_pods().await;
    node.finish().await;
}

/// The moments are spread over the time that the call takes, denser at its start. Which step each one hits differs from run to
/// run; that none leaks anything may not.
const MOMENTS_MS: [u64; 12] = [0, 5, 10, 20, 35, 55, 80, 120, 170, 240, 330, 450];

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_daemon_killed_at_any_moment_of_run_pod_sandbox_leaks_nothing_and_the_retry_works() {
    let mut node = TestNode::start().await;
    // The pause image is pulled by the first pod, so that the moments are those of the pod alone.
    node.client().run_pod(&node.pod("warm-up")).await.unwrap();
    node.remove_all_pods().await;
    for (round, moment) in MOMENTS_MS.into_iter().enumerate() {
        let config = node.pod(&format!("round-{round}"));
        let (client, asked) = (node.client(), config.clone());
        let call = tokio::spawn(async move { client.run_pod(&asked).await });
        tokio::time::sleep(Duration::from_millis(moment)).await;
        node.kill9();
        // Answered or not: what counts is what the next daemon makes of it.
        let answered = call.await.unwrap();
        node.boot().await;
        let client = node.client();
        if let Ok(id) = &answered {
            assert_eq!(
                client.pod_status(id).await.unwrap().state(),
                PodSandboxState::SandboxReady,
                "after {moment} ms"
            );
        }
        let id = client.run_pod(&config).await.unwrap_or_else(|status| panic!("the retry after {moment} ms: {status}"));
        assert_eq!(client.pod_status(&id).await.unwrap().state(), PodSandboxState::SandboxReady);
        node.remove_all_pods().await;
        node.assert_clean().await;
    }
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_daemon_killed_at_any_moment_of_a_containers_start_leaks_nothing_and_the_retry_works() {
    let mut node = TestNode::start().await;
    node.client().pull(BUSYBOX).await.unwrap();
    for (round, moment) in MOMENTS_MS.into_iter().enumerate() {
        let client = node.client();
        let pod_config = node.pod(&format!("round-{round}"));
        let pod = client.run_pod(&pod_config).await.unwrap();
        let config = container("app", BUSYBOX, &["sleep", "1000"]);
        let (caller, to_pod, asked, asked_pod) = (client.clone(), pod.clone(), config.clone(), pod_config.clone());
        let call = tokio::spawn(async move {
            let id = caller.create(&to_pod, &asked, &asked_pod).await?;
            caller.start(&id).await
        });
        tokio::time::sleep(Duration::from_millis(moment)).await;
        node.kill9();
        // As above: the answer is of no interest, the state of the machine is.
        let _ = call.await.unwrap();
        node.boot().await;
        let client = node.client();
        assert_eq!(client.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxReady, "after {moment} ms");
        // A start that was cut short is told as one that failed; as the kubelet does, it is followed by another attempt.
        for cut in client.containers().await.unwrap() {
            if cut.state() == ContainerState::ContainerExited {
                let status = client.status(&cut.id).await.unwrap();
                assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"), "after {moment} ms");
                client.remove(&cut.id).await.unwrap();
            }
        }
        // What was made before the end is there; what was not is made now.
        let id = match client.containers().await.unwrap().first() {
            Some(made) => made.id.clone(),
            None => {
                let id = client.create(&pod, &config, &pod_config).await;
                id.unwrap_or_else(|status| panic!("the retry of CreateContainer after {moment} ms: {status}"))
            }
        };
        if client.status(&id).await.unwrap().state() == ContainerState::ContainerCreated {
            client.start(&id).await.unwrap_or_else(|status| panic!("StartContainer after {moment} ms: {status}"));
        }
        assert_eq!(client.status(&id).await.unwrap().state(), ContainerState::ContainerRunning, "after {moment} ms");
        assert_eq!(client.containers().await.unwrap().len(), 1, "after {moment} ms");
        node.remove_all_pods().await;
        node.assert_clean().await;
    }
    node.finish().await;
}
