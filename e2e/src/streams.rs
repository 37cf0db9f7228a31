//! A streaming client: SPDY/3.1 and WebSocket, each as much of it as the tests need, over plain TCP.
//!
//! It reads what the server sends and asserts nothing about it; a test can also stop in the middle and drop it.

use std::collections::BTreeMap;

use flate2::{Compress, Compression, FlushCompress};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

/// The error stream's text for success.
pub const SUCCESS: &[u8] = br#"{"metadata":{},"status":"Success"}"#;

/// Connects to the URL of a CRI answer and upgrades. Panics with the server's answer if that is a refusal.
async fn upgrade(url: &str, headers: &[&str]) -> TcpStream {
    let (host, path) = url.strip_prefix("http://").expect("a plain URL").split_once('/').unwrap();
    let mut socket = TcpStream::connect(host).await.unwrap();
    let headers = headers.join("\r\n");
    let request = format!("GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\n{headers}\r\n\r\n");
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(socket.read_u8().await.unwrap());
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("HTTP/1.1 101 "), "{url}: {head}");
    socket
}

/// A SPDY connection, `v4.channel.k8s.io`.
pub struct Spdy {
    socket: TcpStream,
    /// One for all header blocks of a connection. It names no dictionary, which zlib allows.
    zlib: Compress,
    next: u32,
}

impl Spdy {
    pub async fn connect(url: &str) -> Spdy {
        let socket = upgrade(url, &["Upgrade: SPDY/3.1", "X-Stream-Protocol-Version: v4.channel.k8s.io"]).await;
        Spdy { socket, zlib: Compress::new(Compression::fast(), true), next: 1 }
    }

    /// SYN_STREAM, without waiting for the reply.
    pub async fn open(&mut self, kind: &str) -> u32 {
        let id = self.next;
        self.next += 2;
        let mut plain = 1u32.to_be_bytes().to_vec();
        for text in ["streamtype", kind] {
            plain.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
            plain.extend(text.as_bytes());
        }
        let mut block = Vec::with_capacity(256);
        self.zlib.compress_vec(&plain, &mut block, FlushCompress::Sync).unwrap();
        let length = u8::try_from(block.len() + 10).unwrap();
        let mut frame = vec![0x80, 3, 0, 1, 0, 0, 0, length];
        frame.extend(id.to_be_bytes());
        frame.extend([0; 6]);
        frame.extend(block);
        self.socket.write_all(&frame).await.unwrap();
        id
    }

    pub async fn data(&mut self, id: u32, data: &[u8], fin: bool) {
        let mut frame = id.to_be_bytes().to_vec();
        frame.push(fin.into());
        frame.extend(&u32::try_from(data.len()).unwrap().to_be_bytes()[1..]);
        frame.extend(data);
        self.socket.write_all(&frame).await.unwrap();
    }

    /// The next data frame's stream and content; `None` after GOAWAY. Other frames are passed over.
    pub async fn next(&mut self) -> Option<(u32, Vec<u8>)> {
        loop {
            let mut head = [0; 8];
            self.socket.read_exact(&mut head).await.unwrap();
            let length = u32::from_be_bytes([0, head[5], head[6], head[7]]);
            let mut body = vec![0; length.try_into().unwrap()];
            self.socket.read_exact(&mut body).await.unwrap();
            match head {
                [0..0x80, ..] => return Some((u32::from_be_bytes([head[0], head[1], head[2], head[3]]), body)),
                [_, _, 0, 7, ..] => return None,
                _ => {}
            }
        }
    }

    /// What came on each stream up to the server's goodbye.
    pub async fn rest(mut self) -> BTreeMap<u32, Vec<u8>> {
        let mut heard: BTreeMap<u32, Vec<u8>> = BTreeMap::new();
        while let Some((id, data)) = self.next().await {
            heard.entry(id).or_default().extend(data);
        }
        heard
    }
}

/// A WebSocket connection whose messages begin with their channel.
pub struct Channels(TcpStream);

impl Channels {
    pub async fn connect(url: &str, protocol: &str) -> Channels {
        let protocol = format!("Sec-WebSocket-Protocol: {protocol}");
        let version = "Sec-WebSocket-Version: 13";
        let key = "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==";
        Channels(upgrade(url, &["Upgrade: websocket", version, key, &protocol]).await)
    }

    /// One binary message. A mask of zeroes changes nothing.
    pub async fn send(&mut self, channel: u8, content: &[u8]) {
        let length = u16::try_from(content.len() + 1).unwrap();
        let mut frame = vec![0x82, 0x80 | 126];
        frame.extend(length.to_be_bytes());
        frame.extend([0, 0, 0, 0, channel]);
        frame.extend(content);
        self.0.write_all(&frame).await.unwrap();
    }

    /// Channel and content of the next message; `None` after the server's close.
    pub async fn next(&mut self) -> Option<(u8, Vec<u8>)> {
        let opcode = self.0.read_u8().await.unwrap() & 0x0F;
        let length = match self.0.read_u8().await.unwrap() {
            126 => self.0.read_u16().await.unwrap().into(),
            127 => self.0.read_u64().await.unwrap(),
            length => u64::from(length),
        };
        let mut message = vec![0; length.try_into().unwrap()];
        self.0.read_exact(&mut message).await.unwrap();
        match opcode {
            8 => None,
            _ => Some((message[0], message.split_off(1))),
        }
    }

    /// What came on each channel up to the server's close.
    pub async fn rest(mut self) -> BTreeMap<u8, Vec<u8>> {
        let mut heard: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
        while let Some((channel, content)) = self.next().await {
            heard.entry(channel).or_default().extend(content);
        }
        heard
    }
}
