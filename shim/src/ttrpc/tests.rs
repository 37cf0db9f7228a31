//! Client and server against each other over socket pairs, and each against frames written by hand.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use prost::Message;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::{Notify, Semaphore},
};
use tokio_util::sync::CancellationToken;

use super::{BoxFuture, Call, CallOptions, Client, Code, Handler, MAX_PAYLOAD, Status, Stream, serve_connection};
use crate::proto::ttrpc as wire;

/// A service whose methods each do one thing that a test needs.
struct Service {
    release: Notify,
    started: Semaphore,
    dropped: Arc<Semaphore>,
}

struct Tell(Arc<Semaphore>);

impl Drop for Tell {
    fn drop(&mut self) {
        self.0.add_permits(1);
    }
}

impl Service {
    fn new() -> Arc<Self> {
        let dropped = Arc::new(Semaphore::new(0));
        Arc::new(Self { release: Notify::new(), started: Semaphore::new(0), dropped })
    }
}

impl Handler for Service {
    fn unary(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Vec<u8>, Status>> {
        Box::pin(async move {
            match call.method.as_str() {
                "Echo" => Ok(call.payload.to_vec()),
                "Metadata" => {
                    let value = call.metadata("key").unwrap_or_default().to_owned();
                    Ok(wire::KeyValue { key: format!("{:?}", call.timeout), value }.encode_to_vec())
                }
                "Fail" => Err(Status::not_found("no such thing")),
                "Panic" => panic!("on purpose"),
                "Huge" => Ok(vec![0; MAX_PAYLOAD + 1]),
                "Hang" => {
                    let _tell = Tell(self.dropped.clone());
                    self.started.add_permits(1);
                    self.release.notified().await;
                    Ok(Vec::new())
                }
                _ => Err(call.unimplemented()),
            }
        })
    }

    fn stream(self: Arc<Self>, call: Call, mut stream: Stream) -> BoxFuture<'static, Result<(), Status>> {
        Box::pin(async move {
            if call.method == "Count" {
                for number in 0..call.payload.len() {
                    stream.send(entry(&number.to_string()).encode_to_vec()).await?;
                }
                return Ok(());
            }
            while let Some(message) = stream.recv().await? {
                if message.is_empty() {
                    return Err(Status::invalid("an empty message"));
                }
                stream.send(message.to_vec()).await?;
            }
            stream.send(b"bye".to_vec()).await
        })
    }

    fn is_stream(&self, _service: &str, method: &str) -> bool {
        matches!(method, "Count" | "Chat")
    }
}

struct World {
    client: Client,
    service: Arc<Service>,
    shutdown: CancellationToken,
    served: tokio::task::JoinHandle<()>,
}

fn world() -> World {
    let (near, far) = UnixStream::pair().unwrap();
    let (service, shutdown) = (Service::new(), CancellationToken::new());
    let served = tokio::spawn(serve_connection(far, service.clone(), shutdown.clone()));
    World { client: Client::from_socket(near), service, shutdown, served }
}

fn entry(key: &str) -> wire::KeyValue {
    wire::KeyValue { key: key.into(), value: String::new() }
}

async fn echo(client: &Client, key: &str) -> Result<wire::KeyValue, Status> {
    client.call("test", "Echo", &entry(key)).await
}

/// Fails a test that would wait for ever.
async fn soon<T>(waiting: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(20), waiting).await.expect("it happens within 20 s")
}

#[tokio::test]
async fn a_call_gets_its_answer() {
    assert_eq!(echo(&world().client, "a").await, Ok(entry("a")));
}

#[tokio::test]
async fn a_failure_carries_code_and_message() {
    let failed = world().client.call::<wire::KeyValue>("test", "Fail", &entry("a")).await;
    assert_eq!(failed, Err(Status::not_found("no such thing")));
}

#[tokio::test]
async fn a_handler_that_panics_fails_only_its_call() {
    let world = world();
    let failed = soon(world.client.call::<()>("test", "Panic", &entry("a"))).await;
    assert_eq!(failed, Err(Status::internal("the handler of this call panicked")));
    assert_eq!(echo(&world.client, "a").await, Ok(entry("a")));
}

#[tokio::test]
async fn an_unknown_method_is_unimplemented() {
    let failed = world().client.call::<wire::KeyValue>("test", "Nope", &entry("a")).await;
    assert_eq!(failed, Err(Status::new(Code::Unimplemented, "test/Nope is not served here")));
}

#[tokio::test]
async fn metadata_and_timeout_arrive() {
    let options = CallOptions {
        timeout: Some(Duration::from_secs(60)),
        metadata: vec![("key".into(), "value".into()), ("key".into(), "second".into())],
    };
    let answer = world().client.call_with::<wire::KeyValue>("test", "Metadata", &entry(""), options).await;
    assert_eq!(answer, Ok(wire::KeyValue { key: "Some(60s)".into(), value: "value".into() }));
}

#[tokio::test]
async fn a_call_that_hangs_holds_up_no_other() {
    let world = world();
    let hanging = tokio::spawn({
        let client = world.client.clone();
        async move { client.call::<()>("test", "Hang", &entry("")).await }
    });
    soon(world.service.started.acquire()).await.unwrap().forget();
    for number in 0..100 {
        let key = number.to_string();
        assert_eq!(soon(echo(&world.client, &key)).await, Ok(entry(&key)));
    }
    assert!(!hanging.is_finished());
    world.service.release.notify_one();
    assert_eq!(soon(hanging).await.unwrap(), Ok(()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_calls_at_once_each_get_their_own_answer() {
    let world = world();
    let calls: Vec<_> = (0..500)
        .map(|number| {
            let client = world.client.clone();
            tokio::spawn(async move { echo(&client, &number.to_string()).await })
        })
        .collect();
    for (number, call) in calls.into_iter().enumerate() {
        assert_eq!(soon(call).await.unwrap(), Ok(entry(&number.to_string())));
    }
}

#[tokio::test(start_paused = true)]
async fn a_timeout_ends_the_call_on_both_sides() {
    let world = world();
    let options = CallOptions { timeout: Some(Duration::from_secs(1)), metadata: Vec::new() };
    let failed = world.client.call_with::<()>("test", "Hang", &entry(""), options).await;
    assert_eq!(failed.unwrap_err().code, Code::DeadlineExceeded);
    soon(world.service.dropped.acquire()).await.unwrap().forget();
}

#[tokio::test]
async fn calls_on_a_lost_connection_are_unavailable() {
    let (near, far) = UnixStream::pair().unwrap();
    let client = Client::from_socket(near);
    let pending = tokio::spawn({
        let client = client.clone();
        async move { echo(&client, "a").await }
    });
    let mut stream = client.open_stream("test", "Chat", CallOptions::default()).await.unwrap();
    drop(far);
    soon(client.closed()).await;
    let lost = Status::unavailable("the ttrpc connection was closed");
    assert_eq!(soon(pending).await.unwrap(), Err(lost.clone()));
    assert_eq!(soon(stream.recv()).await, Err(lost.clone()));
    assert_eq!(echo(&client, "b").await, Err(lost));
    assert!(client.is_closed());
}

#[tokio::test]
async fn the_server_drops_calls_whose_client_left() {
    let world = world();
    let client = world.client;
    let hanging = tokio::spawn(async move { client.call::<()>("test", "Hang", &entry("")).await });
    soon(world.service.started.acquire()).await.unwrap().forget();
    hanging.abort();
    soon(world.service.dropped.acquire()).await.unwrap().forget();
    soon(world.served).await.unwrap();
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_refused_before_it_is_sent() {
    let world = world();
    let failed = echo(&world.client, &"x".repeat(MAX_PAYLOAD)).await;
    assert_eq!(failed.unwrap_err().code, Code::ResourceExhausted);
    assert_eq!(echo(&world.client, "a").await, Ok(entry("a")));
}

#[tokio::test]
async fn an_answer_beyond_the_limit_fails_only_its_call() {
    let world = world();
    let failed = world.client.call::<wire::KeyValue>("test", "Huge", &entry("a")).await;
    assert_eq!(failed.unwrap_err().code, Code::ResourceExhausted);
    assert_eq!(echo(&world.client, "a").await, Ok(entry("a")));
}

#[tokio::test]
async fn a_stream_carries_messages_both_ways_and_ends() {
    let mut stream = world().client.open_stream("test", "Chat", CallOptions::default()).await.unwrap();
    for text in ["one", "two"] {
        stream.send(text.into()).await.unwrap();
        assert_eq!(soon(stream.recv()).await, Ok(Some(Bytes::from(text))));
    }
    stream.close_send().await.unwrap();
    assert_eq!(soon(stream.recv()).await, Ok(Some(Bytes::from("bye"))));
    assert_eq!(soon(stream.recv()).await, Ok(None));
    assert_eq!(soon(stream.recv()).await, Ok(None));
}

#[tokio::test]
async fn a_stream_ends_with_its_failure() {
    let mut stream = world().client.open_stream("test", "Chat", CallOptions::default()).await.unwrap();
    stream.send(Vec::new()).await.unwrap();
    assert_eq!(soon(stream.recv()).await, Err(Status::invalid("an empty message")));
}

#[tokio::test]
async fn a_server_stream_gives_every_message_in_order() {
    let request = entry(&"x".repeat(298));
    let count = request.encoded_len();
    let mut stream =
        world().client.open_server_stream("test", "Count", &request, CallOptions::default()).await.unwrap();
    let mut received = Vec::new();
    while let Some(message) = soon(stream.recv()).await.unwrap() {
        received.push(wire::KeyValue::decode(message).unwrap().key);
    }
    let expected: Vec<_> = (0..count).map(|number| number.to_string()).collect();
    assert_eq!(received, expected);
}

#[tokio::test]
async fn a_stream_keeps_its_connection_after_the_client_is_dropped() {
    let World { client, service: _service, shutdown: _shutdown, served } = world();
    let mut stream = client.open_stream("test", "Chat", CallOptions::default()).await.unwrap();
    drop(client);
    stream.send(b"still here".to_vec()).await.unwrap();
    assert_eq!(soon(stream.recv()).await, Ok(Some(Bytes::from("still here"))));
    drop(stream);
    soon(served).await.unwrap();
}

#[tokio::test]
async fn a_call_in_flight_is_answered_when_the_server_shuts_down() {
    let world = world();
    let hanging = tokio::spawn({
        let client = world.client.clone();
        async move { client.call::<()>("test", "Hang", &entry("")).await }
    });
    soon(world.service.started.acquire()).await.unwrap().forget();
    world.shutdown.cancel();
    world.service.release.notify_one();
    assert_eq!(soon(hanging).await.unwrap(), Ok(()));
    soon(world.served).await.unwrap();
    soon(world.client.closed()).await;
}

/// Sends one frame by hand and gives the first answer: stream id, kind, flags, status.
async fn answer_to(id: u32, flags: u8, method: &str) -> (u32, u8, u8, Option<Status>) {
    let (mut near, far) = UnixStream::pair().unwrap();
    tokio::spawn(serve_connection(far, Service::new(), CancellationToken::new()));
    let request = wire::Request { service: "test".into(), method: method.into(), ..Default::default() };
    let payload = request.encode_to_vec();
    near.write_u32(u32::try_from(payload.len()).unwrap()).await.unwrap();
    near.write_u32(id).await.unwrap();
    near.write_all(&[1, flags]).await.unwrap();
    near.write_all(&payload).await.unwrap();
    let length = soon(near.read_u32()).await.unwrap();
    let (id, kind, flags) =
        (near.read_u32().await.unwrap(), near.read_u8().await.unwrap(), near.read_u8().await.unwrap());
    let mut payload = vec![0; length as usize];
    near.read_exact(&mut payload).await.unwrap();
    let response = wire::Response::decode(payload.as_slice()).unwrap();
    (id, kind, flags, response.status.and_then(Status::parse_wire))
}

#[tokio::test]
async fn the_server_keeps_to_the_protocol() {
    let table = [
        ((1, 0, "Echo"), (1, 2, 0, None)),
        ((7, 0, "Echo"), (7, 2, 0, None)),
        ((2, 0, "Echo"), (2, 2, 0, Some(Status::invalid("stream id 2 of a client is not odd")))),
        ((1, 0, "Chat"), (1, 2, 0, Some(Status::invalid("test/Chat is a stream")))),
        // A stream that ends well ends with an empty data frame.
        ((1, 1, "Count"), (1, 3, 5, None)),
    ];
    for ((id, flags, method), expected) in table {
        assert_eq!(answer_to(id, flags, method).await, expected, "{id} {flags} {method}");
    }
}
