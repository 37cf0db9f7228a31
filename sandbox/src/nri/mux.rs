//! NRI's multiplexing: two ttrpc connections, one in each direction, over one socket.
//!
//! ```text
//! u32 connection │ u32 payload length (≤ 4 MiB + 10) │ payload: any piece of that connection's bytes
//!
//! ttrpc client ─ socket pair ─┐                 ┌─ connection 1: the plugin serves
//!                             ├─ Trunk ─ socket ┤
//! ttrpc server ─ socket pair ─┘                 └─ connection 2: the runtime serves
//! ```
//!
//! Peers written in Go read a payload in one read, through a buffer of 4096 bytes, and drop the whole connection when it
//! does not fit or when more than 256 payloads wait. So a ttrpc message goes out as they send it themselves: its first 4096
//! bytes, and then all the rest in one.

use std::io;

use bytes::{Bytes, BytesMut};
use shim::ttrpc::MAX_PAYLOAD;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    net::{
        UnixStream,
        unix::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::mpsc,
};

/// The plugin's service is on this connection.
pub const PLUGIN: u32 = 1;
/// The runtime's service is on this one.
pub const RUNTIME: u32 = 2;

/// Of ttrpc: payload length, stream, kind, flags.
const TTRPC_HEADER: usize = 10;

/// The most that a Go peer reads when it waits for the start of a message.
const FIRST: usize = 4096;

/// Payloads that wait for the socket. More make their senders wait.
const QUEUE: usize = 16;

/// Both connections of a socket.
pub struct Trunk {
    socket: UnixStream,
    plugin: UnixStream,
    runtime: UnixStream,
}

/// The near ends: what a ttrpc client or server is put on.
pub struct Ends {
    /// Connection [`PLUGIN`].
    pub plugin: UnixStream,
    /// Connection [`RUNTIME`].
    pub runtime: UnixStream,
}

impl Trunk {
    /// Splits a socket in two. Nothing moves until [`Trunk::run`].
    pub fn new(socket: UnixStream) -> io::Result<(Ends, Trunk)> {
        let (plugin, plugin_far) = UnixStream::pair()?;
        let (runtime, runtime_far) = UnixStream::pair()?;
        Ok((Ends { plugin, runtime }, Trunk { socket, plugin: plugin_far, runtime: runtime_far }))
    }

    /// Moves bytes until the socket or either end is closed. Dropping the future closes all of them.
    pub async fn run(self) -> io::Result<()> {
        let (source, sink) = self.socket.into_split();
        let (from_plugin, to_plugin) = self.plugin.into_split();
        let (from_runtime, to_runtime) = self.runtime.into_split();
        let (queue, queued) = mpsc::channel(QUEUE);
        tokio::select! {
            ended = demultiplex(source, to_plugin, to_runtime) => ended,
            ended = multiplex(PLUGIN, from_plugin, queue.clone()) => ended,
            ended = multiplex(RUNTIME, from_runtime, queue) => ended,
            ended = write_all(queued, sink) => ended,
        }
    }
}

async fn demultiplex(
    mut source: OwnedReadHalf,
    mut to_plugin: OwnedWriteHalf,
    mut to_runtime: OwnedWriteHalf,
) -> io::Result<()> {
    let mut header = [0; 8];
    loop {
        match source.read_exact(&mut header).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        };
        let [c0, c1, c2, c3, l0, l1, l2, l3] = header;
        let (connection, length) = (u32::from_be_bytes([c0, c1, c2, c3]), u32::from_be_bytes([l0, l1, l2, l3]));
        if length as usize > MAX_PAYLOAD + TTRPC_HEADER {
            return Err(io::Error::other(format!("a multiplexed payload of {length} bytes is too large")));
        }
        let mut payload = (&mut source).take(u64::from(length));
        let copied = match connection {
            PLUGIN => tokio::io::copy(&mut payload, &mut to_plugin).await?,
            RUNTIME => tokio::io::copy(&mut payload, &mut to_runtime).await?,
            // Nobody has opened another one.
            _ => tokio::io::copy(&mut payload, &mut tokio::io::sink()).await?,
        };
        if copied < u64::from(length) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// Cuts what ttrpc writes into its messages.
async fn multiplex(connection: u32, mut from: impl AsyncRead + Unpin, queue: mpsc::Sender<Bytes>) -> io::Result<()> {
    loop {
        let mut message = BytesMut::zeroed(TTRPC_HEADER);
        match from.read_exact(&mut message).await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        };
        let length = u32::from_be_bytes([message[0], message[1], message[2], message[3]]) as usize;
        // Our own ttrpc never sends more, so this cannot make the buffer too large.
        message.resize(TTRPC_HEADER + length, 0);
        from.read_exact(&mut message[TTRPC_HEADER..]).await?;
        let rest = message.split_off(message.len().min(FIRST));
        for part in [message, rest].into_iter().filter(|part| !part.is_empty()) {
            let sent = queue.send(frame(connection, &part)?).await;
            sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
    }
}

fn frame(connection: u32, payload: &[u8]) -> io::Result<Bytes> {
    let length = u32::try_from(payload.len()).map_err(io::Error::other)?;
    let mut frame = Vec::with_capacity(8 + payload.len());
    frame.extend_from_slice(&connection.to_be_bytes());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(payload);
    Ok(frame.into())
}

async fn write_all(mut queued: mpsc::Receiver<Bytes>, mut sink: OwnedWriteHalf) -> io::Result<()> {
    while let Some(frame) = queued.recv().await {
        sink.write_all(&frame).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::task::JoinHandle;

    fn trunk() -> (Ends, UnixStream, JoinHandle<io::Result<()>>) {
        let (near, far) = UnixStream::pair().unwrap();
        let (ends, trunk) = Trunk::new(near).unwrap();
        (ends, far, tokio::spawn(trunk.run()))
    }

    fn ttrpc_message(length: usize) -> Vec<u8> {
        let mut message = u32::try_from(length).unwrap().to_be_bytes().to_vec();
        message.extend_from_slice(&[0, 0, 0, 1, 1, 0]);
        message.extend((0..length).map(|at| at as u8));
        message
    }

    async fn read_frame(far: &mut UnixStream) -> (u32, Vec<u8>) {
        let connection = far.read_u32().await.unwrap();
        let mut payload = vec![0; far.read_u32().await.unwrap() as usize];
        far.read_exact(&mut payload).await.unwrap();
        (connection, payload)
    }

    #[tokio::test]
    async fn a_message_goes_out_as_its_first_4096_bytes_and_all_the_rest() {
        let (mut ends, mut far, _running) = trunk();
        for (length, parts) in
            [(0, vec![10]), (4086, vec![4096]), (4087, vec![4096, 1]), (1 << 20, vec![4096, 1_044_490])]
        {
            let message = ttrpc_message(length);
            let sending = message.clone();
            let sent = tokio::spawn(async move {
                ends.runtime.write_all(&sending).await.unwrap();
                ends
            });
            let mut got = Vec::new();
            for part in parts {
                let (connection, payload) = read_frame(&mut far).await;
                assert_eq!((connection, payload.len()), (RUNTIME, part), "{length}");
                got.extend(payload);
            }
            assert_eq!(got, message);
            ends = sent.await.unwrap();
        }
    }

    #[tokio::test]
    async fn payloads_reach_their_connection_and_those_of_unknown_ones_are_skipped() {
        let (mut ends, mut far, _running) = trunk();
        for (connection, text) in [(2, "to the "), (9, "nobody"), (1, "plugin"), (2, "runtime")] {
            far.write_all(&frame(connection, text.as_bytes()).unwrap()).await.unwrap();
        }
        let mut text = [0; 14];
        ends.runtime.read_exact(&mut text).await.unwrap();
        assert_eq!(&text, b"to the runtime");
        ends.plugin.read_exact(&mut text[..6]).await.unwrap();
        assert_eq!(&text[..6], b"plugin");
    }

    #[tokio::test]
    async fn a_payload_that_is_too_large_or_torn_ends_the_connection() {
        let too_large = (MAX_PAYLOAD + TTRPC_HEADER + 1) as u32;
        for (length, expected) in
            [(too_large, "a multiplexed payload of 4194315 bytes is too large"), (5, "unexpected end of file")]
        {
            let (mut ends, mut far, running) = trunk();
            far.write_all(&[&1_u32.to_be_bytes()[..], &length.to_be_bytes(), b"ab"].concat()).await.unwrap();
            drop(far);
            assert_eq!(running.await.unwrap().unwrap_err().to_string(), expected);
            let mut rest = Vec::new();
            ends.runtime.read_to_end(&mut rest).await.unwrap();
            assert_eq!(rest, b"", "the other connection is closed as well");
        }
    }
}
