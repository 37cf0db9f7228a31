//! GetContainerEvents and clients that do not read: they are cut off and told so, and nobody else notices.

use api::cri::{self, runtime_service_client::RuntimeServiceClient};
use tonic::Code;
use windlass_e2e::{
    client::{Client, container, narrow_channel},
    node::{BUSYBOX, TestNode},
};

/// More than the daemon keeps for one client (1,024 events) and HTTP/2 takes before it is read ([`WINDOW`], below 200).
const CONTAINERS: usize = 650;
const WINDOW: u32 = 64 << 10;

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_client_that_does_not_read_events_is_cut_off_and_others_hear_all() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let config = node.pod("events");
    let pod = client.run_pod(&config).await.unwrap();

    // A connection of its own: what is not read must not hold up the others' answers.
    let deaf = RuntimeServiceClient::new(narrow_channel(&node.socket(), WINDOW).await.unwrap());
    let mut unread = deaf.clone().get_container_events(cri::GetEventsRequest {}).await.unwrap().into_inner();
    let reader = Client::connect(&node.socket()).await.unwrap();
    let mut events = reader.runtime.clone().get_container_events(cri::GetEventsRequest {}).await.unwrap().into_inner();
    let hearing = tokio::spawn(async move {
        let mut heard = Vec::new();
        while heard.len() < 2 * CONTAINERS {
            let event = events.message().await.unwrap().expect("events do not end");
            heard.push((event.container_id.clone(), event.container_event_type()));
        }
        heard
    });

    let mut expected = Vec::new();
    for _ in 0..CONTAINERS {
        let id = client.create(&pod, &container("app", BUSYBOX, &["true"]), &config).await.unwrap();
        client.remove(&id).await.unwrap();
        expected.push((id.clone(), cri::ContainerEventType::ContainerCreatedEvent));
        expected.push((id, cri::ContainerEventType::ContainerDeletedEvent));
    }
    assert_eq!(hearing.await.unwrap(), expected);

    let mut heard = 0;
    let status = loop {
        match unread.message().await {
            Ok(Some(_)) => heard += 1,
            Ok(None) => panic!("the stream ended without a word after {heard} events"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
    let lost = status.message().split(' ').next().unwrap().parse::<usize>().unwrap();
    assert!(lost > 0 && heard + lost <= 2 * CONTAINERS, "{heard} heard, {status}");
    // It listens again, and hears what comes.
    let mut again = deaf.clone().get_container_events(cri::GetEventsRequest {}).await.unwrap().into_inner();
    let id = client.create(&pod, &container("app", BUSYBOX, &["true"]), &config).await.unwrap();
    assert_eq!(again.message().await.unwrap().unwrap().container_id, id);
    node.remove_all_pods().await;
    node.finish().await;
}
