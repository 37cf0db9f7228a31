//! The server from the URL to the last frame, by a client that is not ours but for the codec, before processes that the
//! test plays.

mod channels;

use std::{
    net::Ipv4Addr,
    process,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Notify, oneshot},
    task::JoinSet,
};

use super::{spdy::client::Client, *};

/// A process's other end.
struct Far {
    container: Id,
    command: Command,
    stdin: Option<mpsc::Receiver<Bytes>>,
    output: mpsc::Sender<Output>,
    resize: mpsc::Receiver<(u16, u16)>,
    exit: oneshot::Sender<Result<i32, Error>>,
}

/// A server and the processes it starts.
struct World {
    streaming: Streaming,
    started: mpsc::Receiver<Far>,
    /// Processes start when this says so.
    start: Arc<Notify>,
    stop: CancellationToken,
    serving: JoinSet<()>,
}

async fn world() -> World {
    world_with(config::StreamTls::default()).await
}

async fn world_with(tls: config::StreamTls) -> World {
    let start = Arc::new(Notify::new());
    let (starting, started) = mpsc::channel(16);
    let gate = start.clone();
    let backend: Backend = Arc::new(move |container, command| {
        let (gate, starting) = (gate.clone(), starting.clone());
        Box::pin(async move {
            gate.notified().await;
            let (stdin, far_stdin) = mpsc::channel(4);
            let (far_output, output) = mpsc::channel(4);
            let (resize, far_resize) = mpsc::channel(4);
            let (far_exit, exit) = oneshot::channel();
            let (Command::Exec(request) | Command::Attach(request)) = &command;
            let stdin = request.stdin.then_some(stdin);
            let far_stdin = request.stdin.then_some(far_stdin);
            let far =
                Far { container, command, stdin: far_stdin, output: far_output, resize: far_resize, exit: far_exit };
            starting.send(far).await.map_err(|_| Error::plain("the test has ended"))?;
            let exit: Later<_> = Box::pin(async { exit.await.unwrap_or_else(|_| Err(Error::plain("lost"))) });
            Ok(Process { stdin, output, resize, exit })
        })
    });
    let idle_timeout = Duration::from_secs(4 * 60 * 60);
    let config = config::Streaming { address: "127.0.0.1".into(), port: 0, idle_timeout, tls };
    let streaming = Streaming::with_backend(&config, backend).await.unwrap();
    let stop = CancellationToken::new();
    let mut serving = JoinSet::new();
    serving.spawn(streaming.clone().serve(stop.clone()));
    World { streaming, started, start, stop, serving }
}

fn id() -> Id {
    Id::parse(&"0123456789abcdef".repeat(4)).unwrap()
}

fn request(command: &[&str], streams: &str, tty: bool) -> StreamRequest {
    StreamRequest {
        command: command.iter().map(|&word| word.to_owned()).collect(),
        stdin: streams.contains('i'),
        stdout: streams.contains('o'),
        stderr: streams.contains('e'),
        tty,
    }
}

/// Sends a request for the URL and answers the connection and the response's head.
async fn http(url: &str, method: &str, headers: &[&str]) -> (TcpStream, String) {
    let (host, path) = url.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let mut socket = TcpStream::connect(host).await.unwrap();
    let mut text = format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\n");
    headers.iter().for_each(|header| text.push_str(&format!("{header}\r\n")));
    socket.write_all(format!("{text}\r\n").as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    (socket, String::from_utf8(head).unwrap())
}

const UPGRADE: [&str; 2] = ["Connection: Upgrade", "Upgrade: SPDY/3.1"];

async fn upgrade(url: &str, protocols: &[&str]) -> Client<TcpStream> {
    let headers: Vec<String> =
        protocols.iter().map(|protocol| format!("X-Stream-Protocol-Version: {protocol}")).collect();
    let headers: Vec<&str> = UPGRADE.into_iter().chain(headers.iter().map(String::as_str)).collect();
    let (socket, head) = http(url, "POST", &headers).await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    match protocols.first() {
        Some(first) => assert!(head.contains(&format!("x-stream-protocol-version: {first}\r\n")), "{head}"),
        None => assert!(!head.contains("x-stream-protocol-version"), "{head}"),
    }
    Client::new(socket)
}

async fn open(client: &mut Client<TcpStream>, kind: &str) -> u32 {
    client.open(&[("streamtype", kind)]).await.unwrap()
}

const V4: &str = "v4.channel.k8s.io";

#[tokio::test]
async fn exec_copies_its_streams_and_tells_the_exit_code_after_the_last_byte() {
    let mut world = world().await;
    let wanted = request(&["sh", "-c", "exit 3"], "ioe", false);
    let url = world.streaming.exec(id(), wanted.clone()).unwrap();
    let mut client = upgrade(&url, &[V4, "v3.channel.k8s.io"]).await;
    let error = open(&mut client, "error").await;
    let stdin = open(&mut client, "stdin").await;
    let stdout = open(&mut client, "stdout").await;
    let stderr = open(&mut client, "stderr").await;
    world.start.notify_one();
    let mut far = world.started.recv().await.unwrap();
    assert_eq!((&far.container, &far.command), (&id(), &Command::Exec(wanted)));

    client.data(stdin, "hello", true).await;
    let input = far.stdin.as_mut().unwrap();
    assert_eq!(input.recv().await, Some(Bytes::from("hello")));
    assert_eq!(input.recv().await, None);

    let much = vec![b'x'; 1 << 20];
    let process = async {
        far.output.send(Output::Stdout(much.clone().into())).await.unwrap();
        far.output.send(Output::Stderr("sorry".into())).await.unwrap();
        far.exit.send(Ok(3)).unwrap();
        drop(far.output);
    };
    let (heard, ()) = tokio::join!(client.hear(), process);
    assert!(heard.data[&stdout] == (much, true));
    assert_eq!(heard.data[&stderr], (b"sorry".to_vec(), true));
    let (status, ended) = &heard.data[&error];
    assert!(ended);
    let status: serde_json::Value = serde_json::from_slice(status).unwrap();
    assert_eq!(status["details"], serde_json::json!({"causes": [{"reason": "ExitCode", "message": "3"}]}));
    assert_eq!((heard.resets, heard.goodbye), (vec![], Some(0)));
}

#[tokio::test]
async fn input_that_comes_before_the_process_waits_for_it() {
    let mut world = world().await;
    let url = world.streaming.exec(id(), request(&["sh"], "io", true)).unwrap();
    let mut client = upgrade(&url, &[V4]).await;
    open(&mut client, "error").await;
    let stdin = open(&mut client, "stdin").await;
    open(&mut client, "stdout").await;
    let resize = open(&mut client, "resize").await;
    client.data(resize, r#"{"Width":80,"Height":24}"#, false).await;
    client.data(stdin, "typed ahead", false).await;
    client.data(resize, r#"{"Width":132,"Height":43}"#, false).await;
    world.start.notify_one();
    let mut far = world.started.recv().await.unwrap();
    assert_eq!(far.resize.recv().await, Some((80, 24)));
    assert_eq!(far.resize.recv().await, Some((132, 43)));
    assert_eq!(far.stdin.unwrap().recv().await, Some(Bytes::from("typed ahead")));
}

#[tokio::test]
async fn the_end_of_input_ends_nothing_else_and_the_session_waits_for_the_exit() {
    let mut world = world().await;
    let url = world.streaming.attach(id(), request(&[], "io", false)).unwrap();
    let mut client = upgrade(&url, &[V4]).await;
    let error = open(&mut client, "error").await;
    let stdin = open(&mut client, "stdin").await;
    let stdout = open(&mut client, "stdout").await;
    world.start.notify_one();
    let mut far = world.started.recv().await.unwrap();
    client.data(stdin, "", true).await;
    assert_eq!(far.stdin.take().unwrap().recv().await, None);
    far.output.send(Output::Stdout("still here".into())).await.unwrap();
    drop(far.output);
    far.exit.send(Ok(0)).unwrap();
    let heard = client.hear().await;
    assert_eq!(heard.data[&stdout], (b"still here".to_vec(), true));
    assert_eq!(heard.data[&error], (br#"{"metadata":{},"status":"Success"}"#.to_vec(), true));
}

#[tokio::test]
async fn a_process_that_does_not_read_its_input_still_ends_the_session() {
    let mut world = world().await;
    let url = world.streaming.exec(id(), request(&["true"], "io", false)).unwrap();
    let mut client = upgrade(&url, &[V4]).await;
    let error = open(&mut client, "error").await;
    let stdin = open(&mut client, "stdin").await;
    open(&mut client, "stdout").await;
    world.start.notify_one();
    let far = world.started.recv().await.unwrap();
    let talk = async {
        client.data(stdin, vec![0; 1 << 20], true).await;
        client.hear().await
    };
    let process = async {
        drop(far.output);
        far.exit.send(Ok(0)).unwrap();
    };
    let (heard, ()) = tokio::join!(talk, process);
    assert_eq!(heard.data[&error].0, br#"{"metadata":{},"status":"Success"}"#);
}

#[tokio::test]
async fn a_client_that_leaves_ends_all_ends_of_the_process() {
    let mut world = world().await;
    let url = world.streaming.exec(id(), request(&["sleep"], "io", true)).unwrap();
    let mut client = upgrade(&url, &[V4]).await;
    for kind in ["error", "stdin", "stdout", "resize"] {
        open(&mut client, kind).await;
    }
    world.start.notify_one();
    let mut far = world.started.recv().await.unwrap();
    drop(client);
    far.output.closed().await;
    assert_eq!(far.stdin.unwrap().recv().await, None);
    assert_eq!(far.resize.recv().await, None);
    far.exit.closed().await;
}

#[tokio::test]
async fn a_client_that_leaves_with_more_input_than_the_process_reads_ends_it_too() {
    let mut world = world().await;
    let url = world.streaming.exec(id(), request(&["sleep"], "io", false)).unwrap();
    let mut client = upgrade(&url, &[V4]).await;
    open(&mut client, "error").await;
    let stdin = open(&mut client, "stdin").await;
    open(&mut client, "stdout").await;
    world.start.notify_one();
    let far = world.started.recv().await.unwrap();
    client.data(stdin, vec![0; 1 << 20], false).await;
    drop(client);
    tokio::time::timeout(Duration::from_secs(60), far.output.closed()).await.expect("the session goes on");
}

#[tokio::test]
async fn a_client_without_negotiation_speaks_version_1() {
    let mut world = world().await;
    let url = world.streaming.exec(id(), request(&["false"], "o", true)).unwrap();
    let mut client = upgrade(&url, &[]).await;
    let error = open(&mut client, "error").await;
    assert_eq!(client.open(&[("streamtype", "resize")]).await, Err(3), "version 1 has no resize stream");
    let stdout = open(&mut client, "stdout").await;
    world.start.notify_one();
    let far = world.started.recv().await.unwrap();
    drop(far.output);
    far.exit.send(Ok(1)).unwrap();
    let heard = client.hear().await;
    let text = "command terminated with non-zero exit code: error executing command [false], exit code 1";
    assert_eq!(heard.data, [(error, (text.into(), true)), (stdout, (vec![], true))].into());
}

#[tokio::test]
async fn requests_that_cannot_be_served_are_refused_by_their_code() {
    let world = world().await;
    let url = || world.streaming.exec(id(), request(&["x"], "o", false)).unwrap();
    let unknown = url().rsplit_once('/').unwrap().0.to_owned() + "/AAAAAAAAAAAAAAAA";
    let websocket = ["Connection: Upgrade", "Upgrade: websocket"];
    let version = |text: &'static str| [UPGRADE[0], UPGRADE[1], text];
    let other_kind = url().replace("/exec/", "/attach/");
    let cases: [(String, &str, &[&str], &str); 7] = [
        (unknown, "GET", &UPGRADE, "404"),
        (other_kind, "POST", &UPGRADE, "404"),
        (url().replace("/exec/", "/"), "POST", &UPGRADE, "404"),
        (url(), "PUT", &UPGRADE, "405"),
        (url(), "GET", &[], "400"),
        (url(), "GET", &websocket, "400"),
        (url(), "POST", &version("X-Stream-Protocol-Version: v9.channel.k8s.io, w"), "403"),
    ];
    for (url, method, headers, code) in cases {
        let (_, head) = http(&url, method, headers).await;
        assert!(head.starts_with(&format!("HTTP/1.1 {code} ")), "{method} {url}: {head}");
        let accepted = head.matches("x-accepted-stream-protocol-versions: ").count();
        assert_eq!(accepted, if code == "403" { 4 } else { 0 });
    }
    let once = url();
    upgrade(&once, &[V4]).await;
    assert!(http(&once, "POST", &UPGRADE).await.1.starts_with("HTTP/1.1 404 "));
}

#[tokio::test]
async fn stopping_cuts_sessions_and_returns_when_they_have_ended() {
    let mut world = world().await;
    let url = world.streaming.exec(id(), request(&["sleep"], "o", false)).unwrap();
    let mut client = upgrade(&url, &[V4]).await;
    open(&mut client, "error").await;
    open(&mut client, "stdout").await;
    world.start.notify_one();
    let far = world.started.recv().await.unwrap();
    world.stop.cancel();
    world.serving.join_next().await.unwrap().unwrap();
    assert!(far.output.is_closed());
    assert_eq!(client.frame().await, None);
}

#[tokio::test]
async fn an_address_that_is_none_is_refused() {
    let backend: Backend = Arc::new(|_, _| Box::pin(async { Err(Error::plain("none")) }));
    let config = config::Streaming {
        address: "localhost".into(),
        port: 0,
        idle_timeout: Duration::ZERO,
        tls: Default::default(),
    };
    let error = Streaming::with_backend(&config, backend).await.err().unwrap();
    assert_eq!(error.to_string(), "stream_server_address \"localhost\" is not an IP address");
}

/// Opens both streams of a forwarded connection.
async fn forward(client: &mut Client<TcpStream>, port: u16, request: &str) -> (u32, u32) {
    let port = port.to_string();
    let headers = |kind: &'static str| [("streamtype", kind), ("port", port.as_str()), ("requestid", request)];
    let error = client.open(&headers("error")).await.unwrap();
    let data = client.open(&headers("data")).await.unwrap();
    (error, data)
}

/// Answers what it has read when the client has half closed, then closes.
async fn reversing(listener: TcpListener) {
    loop {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        socket.read_to_end(&mut all).await.unwrap();
        all.reverse();
        socket.write_all(&all).await.unwrap();
    }
}

#[tokio::test]
async fn forwarded_connections_half_close_and_do_not_disturb_each_other() {
    let mut world = world().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
    world.serving.spawn(reversing(listener));
    let url = world.streaming.port_forward(&id(), None, Vec::new()).unwrap();
    let mut client = upgrade(&url, &["portforward.k8s.io"]).await;

    let (first_error, first) = forward(&mut client, port, "1").await;
    client.data(first, "abc", false).await;
    let (refused_error, refused) = forward(&mut client, closed, "2").await;
    let text = client.until_fin(&[refused_error, refused]).await;
    let text = String::from_utf8(text[&refused_error].clone()).unwrap();
    assert!(text.starts_with(&format!("error forwarding port {closed} to pod {}: ", id())), "{text}");
    assert!(text.contains("refused"), "{text}");

    client.data(first, "def", true).await;
    let heard = client.until_fin(&[first_error, first]).await;
    assert_eq!((heard[&first].as_slice(), heard[&first_error].as_slice()), (&b"fedcba"[..], &b""[..]));
}

/// As kubectl has it for a browser: one session, and a connection for whatever the page asks for.
#[tokio::test]
async fn many_connections_are_forwarded_at_once_through_one_session() {
    const CONNECTIONS: usize = 200;
    let mut world = world().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    world.serving.spawn(async move {
        let mut all = JoinSet::new();
        loop {
            let (mut socket, _) = listener.accept().await.unwrap();
            all.spawn(async move {
                let (mut read, mut write) = socket.split();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
            });
        }
    });
    let url = world.streaming.port_forward(&id(), None, Vec::new()).unwrap();
    let mut client = upgrade(&url, &["portforward.k8s.io"]).await;
    let mut pairs = Vec::new();
    for number in 0..CONNECTIONS {
        pairs.push(forward(&mut client, port, &number.to_string()).await);
    }
    // All are open before the first of them ends, and the last one opened is the first to end.
    for (number, (_, data)) in pairs.iter().enumerate().rev() {
        client.data(*data, format!("hello from {number}"), true).await;
    }
    let ids: Vec<u32> = pairs.iter().flat_map(|(error, data)| [*error, *data]).collect();
    let heard = client.until_fin(&ids).await;
    for (number, (error, data)) in pairs.iter().enumerate() {
        assert_eq!(heard[data], format!("hello from {number}").as_bytes());
        assert_eq!(heard[error], b"");
    }
}

#[tokio::test]
async fn streams_without_a_request_id_pair_by_their_stream_ids() {
    let mut world = world().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port().to_string();
    world.serving.spawn(reversing(listener));
    let url = world.streaming.port_forward(&id(), None, Vec::new()).unwrap();
    let mut client = upgrade(&url, &[]).await;
    client.open(&[("streamtype", "error"), ("port", &port)]).await.unwrap();
    let data = client.open(&[("streamtype", "data"), ("port", &port)]).await.unwrap();
    client.data(data, "123", true).await;
    assert_eq!(client.until_fin(&[data]).await[&data], b"321");
}

#[tokio::test]
async fn forward_streams_that_make_no_sense_are_refused() {
    let world = world().await;
    let url = world.streaming.port_forward(&id(), None, Vec::new()).unwrap();
    let mut client = upgrade(&url, &["portforward.k8s.io"]).await;
    let cases: [&[(&str, &str)]; 5] = [
        &[],
        &[("streamtype", "stdin"), ("port", "80"), ("requestid", "1")],
        &[("streamtype", "data"), ("requestid", "1")],
        &[("streamtype", "data"), ("port", "0"), ("requestid", "1")],
        &[("streamtype", "data"), ("port", "65536"), ("requestid", "1")],
    ];
    for headers in cases {
        assert_eq!(client.open(headers).await, Err(3), "{headers:?}");
    }
    let data = [("streamtype", "data"), ("port", "80"), ("requestid", "1")];
    client.open(&data).await.unwrap();
    assert_eq!(client.open(&data).await, Err(3), "a second data stream of the same request");
}

#[tokio::test]
async fn privileged_forwarding_reaches_the_loopback_of_the_pods_network() {
    let world = world().await;
    let directory = tempfile::tempdir().unwrap();
    let netns = directory.path().join("pod");
    sandbox::netns::pin(&netns).unwrap();
    let listener = sandbox::netns::with_netns(&netns, || {
        let up = process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        std::net::TcpListener::bind("[::1]:0").unwrap()
    })
    .unwrap();
    let port = listener.local_addr().unwrap().port();
    let answered = Arc::new(Mutex::new(None));
    let answering = answered.clone();
    let thread = std::thread::spawn(move || {
        let (mut socket, peer) = listener.accept().unwrap();
        *answering.lock().unwrap() = Some(peer.ip());
        std::io::Write::write_all(&mut socket, b"from the pod").unwrap();
    });
    let url = world.streaming.port_forward(&id(), Some(netns.clone()), Vec::new()).unwrap();
    let mut client = upgrade(&url, &["portforward.k8s.io"]).await;
    let (error, data) = forward(&mut client, port, "1").await;
    let heard = client.until_fin(&[error, data]).await;
    assert_eq!((heard[&data].as_slice(), heard[&error].as_slice()), (&b"from the pod"[..], &b""[..]));
    thread.join().unwrap();
    assert_eq!(*answered.lock().unwrap(), Some("::1".parse().unwrap()));
    sandbox::netns::unpin(&netns).unwrap();
}
