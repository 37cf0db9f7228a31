//! The same server by WebSocket and by TLS.

use rustls::{
    ClientConfig, DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio_rustls::TlsConnector;

use super::*;

/// A WebSocket client that knows no protocol above messages.
struct Channels(TcpStream);

const HANDSHAKE: [&str; 4] = [
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
];

impl Channels {
    async fn open(url: &str, protocol: Option<&str>) -> Channels {
        let offer = protocol.map(|name| format!("Sec-WebSocket-Protocol: {name}"));
        let headers: Vec<&str> = HANDSHAKE.into_iter().chain(offer.as_deref()).collect();
        let (socket, head) = http(url, "GET", &headers).await;
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        let agreed = head.lines().find_map(|line| line.strip_prefix("sec-websocket-protocol: "));
        assert_eq!(agreed, protocol, "{head}");
        Channels(socket)
    }

    /// One frame, whose mask of zeroes changes nothing.
    async fn send(&mut self, opcode: u8, payload: &[u8]) {
        let mut frame = vec![0x80 | opcode, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0];
        frame.extend(payload);
        self.0.write_all(&frame).await.unwrap();
    }

    /// Opcode and payload of the next frame.
    async fn next(&mut self) -> (u8, Vec<u8>) {
        let opcode = self.0.read_u8().await.unwrap() & 0x0F;
        let length = match self.0.read_u8().await.unwrap() {
            126 => self.0.read_u16().await.unwrap().into(),
            length => usize::from(length),
        };
        let mut payload = vec![0; length];
        self.0.read_exact(&mut payload).await.unwrap();
        (opcode, payload)
    }

    /// The data messages up to the server's close.
    async fn rest(&mut self) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        loop {
            match self.next().await {
                (8, payload) => {
                    assert_eq!(payload, [3, 232], "1000 says that all is well");
                    return messages;
                }
                (_, payload) => messages.push(payload),
            }
        }
    }
}

/// Listens, and a port where nobody does.
async fn open_and_closed_port(world: &mut World) -> (u16, u16) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap().local_addr().unwrap().port();
    world.serving.spawn(reversing(listener));
    (port, closed)
}

#[tokio::test]
async fn each_port_has_a_channel_for_data_and_one_for_its_error() {
    let mut world = world().await;
    let (port, closed) = open_and_closed_port(&mut world).await;
    let url = world.streaming.port_forward(&id(), None, vec![closed, port]).unwrap();
    let mut client = Channels::open(&url, Some("v5.channel.k8s.io")).await;
    for (channel, port) in [(0, closed), (1, closed), (2, port), (3, port)] {
        let [low, high] = port.to_le_bytes();
        assert_eq!(client.next().await, (2, vec![channel, low, high]));
    }
    let (_, refused) = client.next().await;
    let text = String::from_utf8(refused[1..].to_vec()).unwrap();
    assert_eq!(refused[0], 1);
    assert!(text.starts_with(&format!("error forwarding port {closed} to pod {}: ", id())), "{text}");
    assert!(text.contains("refused"), "{text}");
    assert_eq!([client.next().await, client.next().await], [(2, vec![255, 0]), (2, vec![255, 1])]);

    client.send(2, b"\x02abc").await;
    client.send(2, b"\x03to an error channel, which nobody reads").await;
    client.send(2, b"\x63to a channel that there is none of").await;
    client.send(2, b"\x02def").await;
    client.send(2, &[255, 2]).await;
    client.send(2, b"\x02after its end").await;
    assert_eq!(client.rest().await, [b"\x02fedcba".to_vec(), vec![255, 2], vec![255, 3]]);
}

#[tokio::test]
async fn the_ports_can_be_in_the_url_and_messages_in_base64() {
    let mut world = world().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    // Answers at once, since a client of version 4 cannot say that it has no more.
    world.serving.spawn(async move {
        let (mut socket, _) = listener.accept().await.unwrap();
        let mut word = [0; 2];
        socket.read_exact(&mut word).await.unwrap();
        assert_eq!(&word, b"hi");
        socket.write_all(b"hello").await.unwrap();
    });
    let url = world.streaming.port_forward(&id(), None, vec![1]).unwrap();
    let mut client = Channels::open(&format!("{url}?port={port}"), Some("v4.base64.channel.k8s.io")).await;
    let (greeting, error) = (client.next().await, client.next().await);
    assert_eq!((greeting.0, greeting.1[0], error.1[0]), (1, b'0', b'1'));
    assert_eq!(greeting.1[1..], error.1[1..]);
    client.send(1, b"0aGk=").await;
    assert_eq!(client.rest().await, [b"0aGVsbG8=".to_vec()]);
}

#[tokio::test]
async fn a_forwarding_client_that_names_no_protocol_gets_binary_channels() {
    let mut world = world().await;
    let (_, closed) = open_and_closed_port(&mut world).await;
    let url = world.streaming.port_forward(&id(), None, vec![closed]).unwrap();
    let mut client = Channels::open(&url, None).await;
    let messages = client.rest().await;
    assert_eq!(messages.iter().map(|message| message[0]).collect::<Vec<_>>(), [0, 1, 1]);
}

#[tokio::test]
async fn forwarding_by_channels_without_ports_or_with_bad_ones_is_refused() {
    let world = world().await;
    let offer = "Sec-WebSocket-Protocol: v4.channel.k8s.io";
    let headers: Vec<&str> = HANDSHAKE.into_iter().chain([offer]).collect();
    let many = (1..=40).map(|port| port.to_string()).collect::<Vec<_>>().join(",");
    for query in ["", "?port=", "?port=0", "?port=65536", "?port=80,x", &format!("?port={many}")] {
        let url = world.streaming.port_forward(&id(), None, Vec::new()).unwrap() + query;
        let (_, head) = http(&url, "GET", &headers).await;
        assert!(head.starts_with("HTTP/1.1 400 "), "{query}: {head}");
    }
    let url = world.streaming.port_forward(&id(), None, vec![80]).unwrap();
    let headers: Vec<&str> = HANDSHAKE.into_iter().chain(["Sec-WebSocket-Protocol: v9"]).collect();
    let (_, head) = http(&url, "GET", &headers).await;
    assert!(head.starts_with("HTTP/1.1 403 "), "{head}");
    assert_eq!(head.matches("x-accepted-stream-protocol-versions: ").count(), 4, "{head}");
}

#[tokio::test]
async fn a_client_that_leaves_ends_its_connections() {
    let mut world = world().await;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let url = world.streaming.port_forward(&id(), None, vec![port]).unwrap();
    let client = Channels::open(&url, Some("v4.channel.k8s.io")).await;
    let (mut target, _) = listener.accept().await.unwrap();
    drop(client);
    // The end, or a reset: either way nobody is there any more.
    assert!(!matches!(target.read(&mut [0]).await, Ok(1..)));
    world.stop.cancel();
    world.serving.join_next().await.unwrap().unwrap();
}

/// Takes any certificate: what is tested is the server.
#[derive(Debug)]
struct Anyone;

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = aws_lc_rs::default_provider().signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}

#[tokio::test]
async fn with_tls_urls_are_https_and_an_exec_runs_through_it() {
    let mut world = world_with(config::StreamTls { enabled: true, ..config::StreamTls::default() }).await;
    let url = world.streaming.exec(id(), request(&["cat"], "io", false)).unwrap();
    let (host, path) = url.strip_prefix("https://").unwrap().split_once('/').unwrap();

    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anyone))
        .with_no_client_auth();
    let socket = TcpStream::connect(host).await.unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut stream = TlsConnector::from(Arc::new(config)).connect(name, socket).await.unwrap();
    let head = format!(
        "POST /{path} HTTP/1.1\r\nHost: {host}\r\n{}\r\n{}\r\nX-Stream-Protocol-Version: {V4}\r\n\r\n",
        UPGRADE[0], UPGRADE[1]
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(stream.read_u8().await.unwrap());
    }
    assert!(answer.starts_with(b"HTTP/1.1 101 "));

    let mut client = Client::new(stream);
    let mut ids = Vec::new();
    for kind in ["error", "stdin", "stdout"] {
        ids.push(client.open(&[("streamtype", kind)]).await.unwrap());
    }
    world.start.notify_one();
    let far = world.started.recv().await.unwrap();
    far.output.send(Output::Stdout("secret".into())).await.unwrap();
    drop(far.output);
    far.exit.send(Ok(0)).unwrap();
    let heard = client.hear().await;
    assert_eq!(heard.data[&ids[2]], (b"secret".to_vec(), true));
    assert_eq!(heard.data[&ids[0]].0, br#"{"metadata":{},"status":"Success"}"#);
}

#[tokio::test]
async fn a_client_without_tls_is_turned_away_from_a_server_with_it() {
    let world = world_with(config::StreamTls { enabled: true, ..config::StreamTls::default() }).await;
    let url = world.streaming.exec(id(), request(&["cat"], "o", false)).unwrap();
    let host = url.strip_prefix("https://").unwrap().split_once('/').unwrap().0;
    let mut socket = TcpStream::connect(host).await.unwrap();
    socket.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // A TLS alert, perhaps, and the end.
    let _ = socket.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}
