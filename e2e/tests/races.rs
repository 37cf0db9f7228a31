//! Calls that meet at one object, and clients that give up in the middle: each call has an answer, and nothing is left.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::time::Duration;

use api::cri;
use tonic::{Code, Request};
use windlass_e2e::{
    client::{Answer, Client, container},
    node::{BUSYBOX, TestNode},
    streams::Spdy,
    wait::{self, SOON},
};

fn exec(id: &str, command: &[&str]) -> cri::ExecSyncRequest {
    let cmd = command.iter().map(|&word| word.to_owned()).collect();
    cri::ExecSyncRequest { container_id: id.into(), cmd, timeout: 0 }
}

/// Waits until the container has so many processes with this command line.
async fn has(client: &Client, id: &str, command: &str, count: usize) {
    wait::until(&format!("there are {count} of {command:?}"), SOON, || async {
        let all = client.output(id, &["ps", "-o", "args"]).await;
        let found = all.lines().filter(|line| line.trim() == command).count();
        if found == count { Ok(()) } else { Err(all) }
    })
    .await;
}

/// A probe's kubelet may be restarted: the command must not go on for nobody.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_command_that_its_client_gave_up_is_killed_with_all_it_started() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("given-up");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &container("app", BUSYBOX, &["sleep", "1000"]), &pod_config).await.unwrap();
    client.start(&app).await.unwrap();

    let mut late = Request::new(exec(&app, &["sh", "-c", "sleep 881 & sleep 881"]));
    late.set_timeout(Duration::from_secs(2));
    let status = client.runtime.clone().exec_sync(late).await.unwrap_err();
    assert!([Code::Cancelled, Code::DeadlineExceeded].contains(&status.code()), "{status}");
    has(&client, &app, "sleep 881", 0).await;

    let dropped = tokio::spawn({
        let (mut runtime, request) = (client.runtime.clone(), exec(&app, &["sleep", "882"]));
        async move { runtime.exec_sync(request).await }
    });
    has(&client, &app, "sleep 882", 1).await;
    dropped.abort();
    has(&client, &app, "sleep 882", 0).await;
    has(&client, &app, "sleep 1000", 1).await;
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_the_end_of_a_container_ends_what_runs_in_it_and_who_listens_to_it() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("ends");
    let pod = client.run_pod(&pod_config).await.unwrap();
    for verb in ["stop", "remove", "remove pod"] {
        let name = verb.replace(' ', "-");
        let app = client.create(&pod, &container(&name, BUSYBOX, &["sleep", "1000"]), &pod_config).await.unwrap();
        client.start(&app).await.unwrap();
        let waiting = tokio::spawn({
            let (mut runtime, request) = (client.runtime.clone(), exec(&app, &["sleep", "883"]));
            async move { runtime.exec_sync(request).await }
        });
        let cmd = vec!["sleep".to_owned(), "883".to_owned()];
        let request = cri::ExecRequest { container_id: app.clone(), cmd, stdout: true, ..Default::default() };
        let url = client.runtime.clone().exec(request).await.unwrap().into_inner().url;
        let mut streamed = Spdy::connect(&url).await;
        let error = streamed.open("error").await;
        streamed.open("stdout").await;
        let request = cri::AttachRequest { container_id: app.clone(), stdout: true, ..Default::default() };
        let url = client.runtime.clone().attach(request).await.unwrap().into_inner().url;
        let mut attached = Spdy::connect(&url).await;
        attached.open("error").await;
        attached.open("stdout").await;
        has(&client, &app, "sleep 883", 2).await;

        match verb {
            "stop" => client.stop(&app, 0).await.unwrap(),
            "remove" => client.remove(&app).await.unwrap(),
            _ => client.remove_pod(&pod).await.unwrap(),
        }
        let ended = tokio::time::timeout(SOON, waiting).await.expect("the command has an answer").unwrap();
        assert_eq!(ended.unwrap().into_inner().exit_code, 137, "{verb}");
        let heard = tokio::time::timeout(SOON, streamed.rest()).await.expect("the exec ends");
        let status = String::from_utf8_lossy(&heard[&error]).into_owned();
        assert!(status.contains("\"message\":\"137\""), "{verb}: {status}");
        tokio::time::timeout(SOON, attached.rest()).await.expect("the attach ends");
    }
    node.remove_all_pods().await;
    node.finish().await;
}

/// Fails unless the call was done, or refused with one of the codes.
fn done_or<T>(what: &str, answer: Answer<T>, codes: &[Code]) {
    if let Err(status) = answer {
        assert!(codes.contains(&status.code()), "{what}: {status}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_start_stop_and_remove_of_one_container_may_meet_in_any_order() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("meet");
    let pod = client.run_pod(&pod_config).await.unwrap();
    for number in 0..12u64 {
        let config = container(&format!("app-{number}"), BUSYBOX, &["sleep", "1000"]);
        let id = client.create(&pod, &config, &pod_config).await.unwrap();
        // The calls begin a little apart, so that each round cuts the start elsewhere.
        let pause = Duration::from_millis(number * 7);
        let (start, stop, remove, status) = tokio::join!(
            client.start(&id),
            async {
                tokio::time::sleep(pause).await;
                client.stop(&id, 0).await
            },
            async {
                tokio::time::sleep(pause * 2).await;
                client.remove(&id).await
            },
            client.status(&id),
        );
        done_or("start", start, &[Code::Unavailable, Code::NotFound, Code::FailedPrecondition]);
        stop.unwrap();
        remove.unwrap();
        done_or("status", status, &[Code::NotFound]);
        assert_eq!(client.status(&id).await.unwrap_err().code(), Code::NotFound);
    }
    assert_eq!(client.containers().await.unwrap(), []);
    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_containers_that_are_created_while_their_pod_stops_are_made_or_refused_and_all_go_with_it() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    for round in 0..3u64 {
        let pod_config = node.pod(&format!("stops-{round}"));
        let pod = client.run_pod(&pod_config).await.unwrap();
        let creations = (0..6).map(|number| {
            let config = container(&format!("app-{number}"), BUSYBOX, &["sleep", "1000"]);
            let (client, pod, pod_config) = (client.clone(), pod.clone(), pod_config.clone());
            async move {
                let id = client.create(&pod, &config, &pod_config).await?;
                client.start(&id).await
            }
        });
        let (made, stopped) = tokio::join!(futures_util::future::join_all(creations), async {
            tokio::time::sleep(Duration::from_millis(round * 40)).await;
            client.stop_pod(&pod).await
        });
        stopped.unwrap();
        for answer in made {
            done_or("create and start", answer, &[Code::FailedPrecondition, Code::Unavailable]);
        }
        client.remove_pod(&pod).await.unwrap();
        assert_eq!(client.containers().await.unwrap(), []);
    }
    node.finish().await;
}

/// What the layers of images take.
async fn used(client: &Client) -> u64 {
    let info = client.images.clone().image_fs_info(cri::ImageFsInfoRequest {}).await.unwrap().into_inner();
    info.image_filesystems.iter().filter_map(|one| Some(one.used_bytes.as_ref()?.value)).sum()
}

fn impatient<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_millis(1));
    request
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_removal_whose_client_gave_up_frees_the_layers_of_an_image_that_is_gone_as_well() {
    let node = TestNode::start().await;
    let client = node.client();
    let first = client.run_pod(&node.pod("first")).await.unwrap();
    client.remove_pod(&first).await.unwrap();
    // The sandbox image stays.
    let empty = used(&client).await;
    for verb in ["RemoveContainer", "RemovePodSandbox"] {
        client.pull(BUSYBOX).await.unwrap();
        let pod_config = node.pod("given-up");
        let pod = client.run_pod(&pod_config).await.unwrap();
        let app = client.create(&pod, &container("app", BUSYBOX, &["sleep", "1000"]), &pod_config).await.unwrap();
        client.start(&app).await.unwrap();
        client.remove_image(BUSYBOX).await.unwrap();
        assert!(used(&client).await > empty, "the container stands on the layers");
        let mut runtime = client.runtime.clone();
        let status = match verb {
            "RemoveContainer" => {
                let request = cri::RemoveContainerRequest { container_id: app.clone() };
                runtime.remove_container(impatient(request)).await.map(drop).unwrap_err()
            }
            _ => {
                let request = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.clone() };
                runtime.remove_pod_sandbox(impatient(request)).await.map(drop).unwrap_err()
            }
        };
        assert!([Code::Cancelled, Code::DeadlineExceeded].contains(&status.code()), "{verb}: {status}");
        wait::until("the layers are gone", SOON, || async {
            match used(&client).await {
                now if now == empty => Ok(()),
                now => Err(format!("{verb}: {now} bytes, {empty} at first")),
            }
        })
        .await;
        client.remove_pod(&pod).await.unwrap();
    }
    node.finish().await;
}
