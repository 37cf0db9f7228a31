//! Port-forward over WebSocket channels: the ports are named before, and port n of them has two channels.
//!
//! ```text
//! client ──► 2n data     255 close of the channel in the next byte (v5)
//!        ◄── 2n data     2n+1 why it failed      255 (v5)
//! ```
//!
//! The first message on each channel is its port, two bytes, the lower first: the client knows by it that it is connected.
//! One TCP connection a port, made at once. Before v5 a client cannot half close, and learns of a connection's end when all
//! have ended and the server closes. WebSocket has no windows: a target that does not read holds up its neighbours.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sandbox::Error;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::tcp::{OwnedReadHalf, OwnedWriteHalf},
    sync::mpsc,
    task::JoinSet,
};

use super::{
    Gone, Outgoing,
    channel::{CLOSE, Coding},
    open, run_to_the_end,
};
use crate::streaming::port_forward::{Target, connect, copy, refusal};

/// A subprotocol: how messages are written, and whether channels are closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::streaming) struct Protocol {
    pub(in crate::streaming) name: &'static str,
    coding: Coding,
    closes: bool,
}

impl Protocol {
    /// From the best.
    pub(in crate::streaming) const ALL: [Protocol; 3] = [
        Protocol { name: "v5.channel.k8s.io", coding: Coding::Binary, closes: true },
        Protocol::UNNAMED,
        Protocol { name: "v4.base64.channel.k8s.io", coding: Coding::Base64, closes: false },
    ];

    /// What a client gets that names none.
    pub(in crate::streaming) const UNNAMED: Protocol =
        Protocol { name: "v4.channel.k8s.io", coding: Coding::Binary, closes: false };
}

/// Ports of one session, so that every channel has a number in every coding.
pub(in crate::streaming) const MOST_PORTS: usize = (Coding::MOST as usize).div_ceil(2);

/// Messages that wait for one target.
const QUEUE: usize = 16;

/// Serves one session to its end, which is the client's or that of all connections.
pub(in crate::streaming) async fn serve<IO: AsyncRead + AsyncWrite>(
    io: IO,
    protocol: Protocol,
    target: &Target,
    ports: &[u16],
    idle: Duration,
) {
    let (mut incoming, outgoing, running) = open(io, idle);
    let session = async move {
        let mut inputs = Vec::new();
        let mut connections = JoinSet::new();
        for (&port, data) in ports.iter().zip((0u8..).step_by(2)) {
            for channel in [data, data + 1] {
                outgoing.send(protocol.coding.encode(channel, &port.to_le_bytes())).await.ok()?;
            }
            let (input, from_client) = mpsc::channel(QUEUE);
            inputs.push(Some(input));
            let to_client = Channel { data, protocol, outgoing: outgoing.clone() };
            connections.spawn(forward(target.clone(), port, from_client, to_client));
        }
        loop {
            tokio::select! {
                message = incoming.next() => {
                    if let Some((channel, content)) = protocol.coding.decode(&message?) {
                        take(&mut inputs, protocol, channel, content).await;
                    }
                }
                ended = connections.join_next() => match ended {
                    None => {
                        outgoing.close().await;
                        return Some(incoming);
                    }
                    Some(Ok(())) => {}
                    Some(Err(error)) => tracing::error!(%error, pod = target.pod, "a forwarded connection ended badly"),
                },
            }
        }
    };
    run_to_the_end(session, running).await;
}

/// A message of the client to the connection that it is for. What is for none is dropped.
async fn take(inputs: &mut [Option<mpsc::Sender<Bytes>>], protocol: Protocol, channel: u8, content: Bytes) {
    let (channel, closed) = match (channel, content.first()) {
        (CLOSE, Some(&channel)) if protocol.closes => (channel, true),
        _ => (channel, false),
    };
    let input = match inputs.get_mut(usize::from(channel / 2)) {
        // Clients never write to the error channels.
        Some(input) if channel.is_multiple_of(2) => input,
        _ => return,
    };
    let gone = match input {
        Some(sender) => closed || sender.send(content).await.is_err(),
        None => false,
    };
    if gone {
        // The end of the connection's input, or a connection that has ended.
        *input = None;
    }
}

/// The two channels of a port, on the way to the client.
struct Channel {
    data: u8,
    protocol: Protocol,
    outgoing: Outgoing,
}

impl Channel {
    async fn data(&self, bytes: &[u8]) -> Result<(), Gone> {
        self.outgoing.send(self.protocol.coding.encode(self.data, bytes)).await
    }

    /// Says why it failed, if it did, and that nothing more comes.
    async fn end(self, failure: Option<String>) {
        let coding = self.protocol.coding;
        let mut last = Vec::new();
        last.extend(failure.map(|text| coding.encode(self.data + 1, text.as_bytes())));
        if self.protocol.closes {
            last.extend([self.data, self.data + 1].map(|channel| coding.encode(CLOSE, &[channel])));
        }
        for message in last {
            // A client that has left does not want to know.
            let _ = self.outgoing.send(message).await;
        }
    }
}

/// One TCP connection to its end.
async fn forward(target: Target, port: u16, from_client: mpsc::Receiver<Bytes>, to_client: Channel) {
    let copied = match connect(&target, port).await {
        Ok(socket) => {
            let (from_target, to_target) = socket.into_split();
            copy(copy_up(from_client, to_target), copy_down(from_target, &to_client)).await
        }
        Err(error) => Err(error),
    };
    let failure = copied.err().map(|error: Error| refusal(&target, port, &error));
    to_client.end(failure).await;
}

async fn copy_up(mut from_client: mpsc::Receiver<Bytes>, mut to_target: OwnedWriteHalf) -> std::io::Result<()> {
    while let Some(bytes) = from_client.recv().await {
        to_target.write_all(&bytes).await?;
    }
    to_target.shutdown().await
}

async fn copy_down(mut from_target: OwnedReadHalf, to_client: &Channel) -> std::io::Result<()> {
    let mut buffer = BytesMut::with_capacity(16 * 1024);
    while from_target.read_buf(&mut buffer).await? > 0 {
        if let Err(Gone) = to_client.data(&buffer).await {
            break;
        }
        buffer.clear();
    }
    Ok(())
}
