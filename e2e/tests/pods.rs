//! The life of a pod: pulled through a mirror, run, started, logged, looked into, stopped and removed.

use std::time::{Duration, Instant};

use api::cri::{self, ContainerState, PodSandboxState};
use tonic::Code;
use windlass_e2e::{
    client::{container, program},
    crilog::LogLine,
    node::{BUSYBOX, PROBE, TestNode},
    wait::{self, SOON},
};

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_pod_lives_from_pull_to_removal() {
    let node = TestNode::start().await;
    let client = node.client();

    let id = client.pull(PROBE).await.unwrap();
    assert_eq!(id, node.registry.probe.id);

    let pod_config = node.pod("life");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let status = client.pod_status(&pod).await.unwrap();
    assert_eq!(status.state(), PodSandboxState::SandboxReady);
    assert_eq!(status.metadata, pod_config.metadata);
    let ip = status.network.unwrap().ip;
    assert!(ip.starts_with("10."), "the pod's address is {ip:?}");

    let config = program("app", PROBE, &["count"]);
    let app = client.create(&pod, &config, &pod_config).await.unwrap();
    assert_eq!(client.status(&app).await.unwrap().state(), ContainerState::ContainerCreated);
    client.start(&app).await.unwrap();
    let running = client.status(&app).await.unwrap();
    assert_eq!(running.state(), ContainerState::ContainerRunning);
    let probe = &node.registry.probe;
    assert_eq!(running.image_id, probe.id);
    // The kubelet shows this one as the container's imageID.
    assert_eq!(running.image_ref, format!("docker.io/library/probe@{}", probe.digest));
    assert_eq!(running.image.unwrap().image, PROBE);
    assert!(running.log_path.ends_with("/life/app.log"), "{}", running.log_path);

    let lines = wait::until_ok("three lines are logged", SOON, || {
        let lines = node.log_of("life", "app");
        if lines.len() >= 3 { Ok(lines) } else { Err(format!("{lines:?}")) }
    })
    .await;
    assert_eq!(lines[..3], ["1", "2", "3"].map(|number| LogLine::new("stdout", number)));

    client.stop(&app, 30).await.unwrap();
    let ended = client.status(&app).await.unwrap();
    assert_eq!((ended.state(), ended.exit_code, ended.reason.as_str()), (ContainerState::ContainerExited, 7, "Error"));
    assert!(ended.created_at < ended.started_at && ended.started_at < ended.finished_at);
    client.remove(&app).await.unwrap();
    assert_eq!(client.containers().await.unwrap(), []);

    client.stop_pod(&pod).await.unwrap();
    assert_eq!(client.pod_status(&pod).await.unwrap().state(), PodSandboxState::SandboxNotready);
    client.remove_pod(&pod).await.unwrap();
    assert_eq!(client.pods().await.unwrap(), []);
    assert_eq!(client.pod_status(&pod).await.unwrap_err().code(), Code::NotFound);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_both_streams_of_a_container_are_in_its_log_and_success_is_completed() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(PROBE).await.unwrap();
    let pod_config = node.pod("streams");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &program("app", PROBE, &["say", "to out", "to err"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    let ended = client.exited(&app).await;
    assert_eq!((ended.exit_code, ended.reason.as_str()), (0, "Completed"));
    let mut lines = wait::until_ok("both lines are logged", SOON, || {
        let lines = node.log_of("streams", "app");
        if lines.len() == 2 { Ok(lines) } else { Err(format!("{lines:?}")) }
    })
    .await;
    lines.sort_by(|one, other| other.stream.cmp(&one.stream));
    assert_eq!(lines, [LogLine::new("stdout", "to out"), LogLine::new("stderr", "to err")]);
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_exec_sync_gives_output_and_exit_code_and_kills_what_runs_too_long() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("exec");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &container("app", BUSYBOX, &["sleep", "1000"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();

    let answer = client.exec(&app, &["sh", "-c", "echo out; echo err >&2; exit 3"], 30).await.unwrap();
    let expected = cri::ExecSyncResponse { stdout: b"out\n".into(), stderr: b"err\n".into(), exit_code: 3 };
    assert_eq!(answer, expected);

    // What is too much for an answer is read and left out, and the command is not held up.
    let much = client.exec(&app, &["head", "-c", "40000000", "/dev/zero"], 30).await.unwrap();
    assert_eq!((much.stdout.len(), much.stderr.len(), much.exit_code), ((16 << 20) - 1024, 0, 0));
    // A process that the command leaves behind, with its output in hand, holds up nobody.
    let left = client.exec(&app, &["sh", "-c", "sleep 778 & echo hi"], 30).await.unwrap();
    assert_eq!((left.stdout.as_slice(), left.exit_code), (&b"hi\n"[..], 0));

    let begin = Instant::now();
    let late = client.exec(&app, &["sh", "-c", "sleep 777 & sleep 777"], 1).await.unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    assert!(begin.elapsed() < Duration::from_secs(60), "the time-out of one second took {:?}", begin.elapsed());
    wait::until("the process that ran too long is gone", SOON, || async {
        let left = client.output(&app, &["ps", "-o", "args"]).await;
        if left.lines().any(|line| line == "sleep 777") { Err(left) } else { Ok(()) }
    })
    .await;

    let missing = client.exec(&app, &["/no/such/program"], 30).await;
    assert!(
        missing.as_ref().is_err_and(|status| status.message().contains("/no/such/program")),
        "a program that is not there is an error that names it: {missing:?}"
    );
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_output_that_is_still_to_come_is_waited_for_as_long_as_configured() {
    let mut node = TestNode::prepare().await;
    node.settings.cri = "drain_exec_sync_io_timeout = \"6s\"\n".into();
    node.boot().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("drain");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &container("app", BUSYBOX, &["sleep", "1000"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    let answer = client.exec(&app, &["sh", "-c", "(sleep 2; echo late) & echo done"], 0).await.unwrap();
    assert_eq!((answer.stdout, answer.exit_code), (b"done\nlate\n".to_vec(), 0));
    let held = client.exec(&app, &["sh", "-c", "sleep 778 &"], 0).await.unwrap_err();
    assert!(held.message().contains("failed to drain exec process within 6s"), "{held}");
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_container_that_ignores_the_stop_signal_is_killed_after_its_grace() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(PROBE).await.unwrap();
    let pod_config = node.pod("stubborn");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &program("app", PROBE, &["stubborn"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    wait::until_ok("it is deaf", SOON, || match node.log_of("stubborn", "app").as_slice() {
        [] => Err("nothing is logged".to_owned()),
        lines => {
            assert_eq!(lines, [LogLine::new("stdout", "deaf")]);
            Ok(())
        }
    })
    .await;
    let begin = Instant::now();
    client.stop(&app, 2).await.unwrap();
    assert!(begin.elapsed() >= Duration::from_secs(2), "killed after {:?}", begin.elapsed());
    assert_eq!(client.status(&app).await.unwrap().exit_code, 137);
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_rotated_log_goes_on_in_a_new_file() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(PROBE).await.unwrap();
    let pod_config = node.pod("rotate");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &program("app", PROBE, &["count"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    let path = node.path("logs/rotate/app.log");
    wait::until_ok("a line is logged", SOON, || {
        if node.log_of("rotate", "app").is_empty() { Err("none".to_owned()) } else { Ok(()) }
    })
    .await;
    let old = node.path("logs/rotate/app.log.1");
    std::fs::rename(&path, &old).unwrap();
    client.reopen_log(&app).await.unwrap();
    let lines = wait::until_ok("the new file has a line", SOON, || {
        let lines = node.log_of("rotate", "app");
        if lines.is_empty() { Err("none".to_owned()) } else { Ok(lines) }
    })
    .await;
    // No line is lost or doubled between the two files.
    let before = windlass_e2e::crilog::read(&old);
    assert_eq!(lines[0].text.parse::<usize>().unwrap(), before.len() + 1);
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_containers_of_a_pod_share_its_network_and_reach_another_pod() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let one_config = node.pod("one");
    let one = client.run_pod(&one_config).await.unwrap();
    let serve =
        container("serve", BUSYBOX, &["sh", "-c", "mkdir /www; echo hello > /www/index.html; httpd -f -p 80 -h /www"]);
    let serve = client.create(&one, &serve, &one_config).await.unwrap();
    client.start(&serve).await.unwrap();
    let beside = client.create(&one, &container("beside", BUSYBOX, &["sleep", "1000"]), &one_config).await.unwrap();
    client.start(&beside).await.unwrap();
    let two_config = node.pod("two");
    let two = client.run_pod(&two_config).await.unwrap();
    let other = client.create(&two, &container("other", BUSYBOX, &["sleep", "1000"]), &two_config).await.unwrap();
    client.start(&other).await.unwrap();

    let ip = client.pod_status(&one).await.unwrap().network.unwrap().ip;
    for (from, url) in [(&beside, "http://127.0.0.1/".to_owned()), (&other, format!("http://{ip}/"))] {
        wait::until("the page is served", SOON, || async {
            let answer = client.exec(from, &["wget", "-q", "-O", "-", &url], 10).await.map_err(|e| e.to_string())?;
            if answer.stdout == b"hello\n" { Ok(()) } else { Err(format!("{url}: {answer:?}")) }
        })
        .await;
    }
    assert_eq!(client.output(&beside, &["hostname"]).await, "one\n");
    assert_eq!(client.output(&other, &["hostname"]).await, "two\n");
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_every_step_is_an_event_with_the_statuses_of_then_and_a_listener_does_not_hold_up_the_end() {
    use cri::ContainerEventType::{
        ContainerCreatedEvent as Created, ContainerDeletedEvent as Deleted, ContainerStartedEvent as Started,
        ContainerStoppedEvent as Stopped,
    };
    let mut node = TestNode::start().await;
    let client = node.client();
    client.pull(PROBE).await.unwrap();
    let mut events = client.runtime.clone().get_container_events(cri::GetEventsRequest {}).await.unwrap().into_inner();

    let pod_config = node.pod("told");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &program("app", PROBE, &["count"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    client.stop(&app, 30).await.unwrap();
    client.remove(&app).await.unwrap();
    client.stop_pod(&pod).await.unwrap();
    client.remove_pod(&pod).await.unwrap();

    let mut last = 0;
    for (id, kind, state) in [
        (&pod, Created, None),
        (&pod, Started, None),
        (&app, Created, Some(ContainerState::ContainerCreated)),
        (&app, Started, Some(ContainerState::ContainerRunning)),
        (&app, Stopped, Some(ContainerState::ContainerExited)),
        (&app, Deleted, None),
        (&pod, Stopped, None),
        (&pod, Deleted, None),
    ] {
        let event = tokio::time::timeout(SOON, events.message()).await.unwrap().unwrap().unwrap();
        assert_eq!((&event.container_id, event.container_event_type()), (id, kind));
        assert_eq!(event.containers_statuses.first().map(cri::ContainerStatus::state), state);
        let status = event.pod_sandbox_status.unwrap();
        assert_eq!((status.id, status.metadata), (pod.clone(), pod_config.metadata.clone()));
        assert!(event.created_at >= last);
        last = event.created_at;
    }
    node.terminate().await;
    assert_eq!(events.message().await.unwrap(), None);
    node.boot().await;
    node.finish().await;
}
