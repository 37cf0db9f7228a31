//! Exec and attach over WebSocket: the first byte of every message is its channel.
//!
//! ```text
//! client ──► 0 stdin   4 resize   255 close of the channel in the next byte (v5)
//!        ◄── 1 stdout  2 stderr   3 how it ended
//! ```
//!
//! How a channel and its content make a message is in `channel.rs`.

use std::time::Duration;

use bytes::Bytes;
use sandbox::{Error, Output};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::mpsc,
};

use super::{
    Gone, Incoming, Outgoing,
    channel::{CLOSE, Coding},
    open, run_to_the_end,
};
use crate::streaming::{
    Process,
    remote_command::{Command, Sizes, Version, status},
};

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// A subprotocol: how messages are written, and how the end is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::streaming) struct Protocol {
    pub(in crate::streaming) name: &'static str,
    coding: Coding,
    status: Version,
}

impl Protocol {
    /// From the best. The last is what a client gets that names none.
    pub(in crate::streaming) const ALL: [Protocol; 5] = [
        Protocol { name: "v5.channel.k8s.io", coding: Coding::Binary, status: Version::V4 },
        Protocol { name: "v4.channel.k8s.io", coding: Coding::Binary, status: Version::V4 },
        Protocol { name: "v4.base64.channel.k8s.io", coding: Coding::Base64, status: Version::V4 },
        Protocol { name: "base64.channel.k8s.io", coding: Coding::Base64, status: Version::V1 },
        Protocol { name: "channel.k8s.io", coding: Coding::Binary, status: Version::V1 },
    ];
}

/// Serves one session to its end.
pub(in crate::streaming) async fn serve<IO: AsyncRead + AsyncWrite>(
    io: IO,
    protocol: Protocol,
    command: &Command,
    idle: Duration,
    start: impl Future<Output = Result<Process, Error>>,
) {
    let (mut incoming, outgoing, running) = open(io, idle);
    let session = async move {
        // The client waits for a first message to know that it is connected.
        outgoing.send(protocol.coding.encode(STDOUT, &[])).await.ok()?;
        let ended = run(&mut incoming, &outgoing, protocol, start).await?;
        if let Some(text) = status(protocol.status, command, ended) {
            outgoing.send(protocol.coding.encode(ERROR, &text)).await.ok()?;
        }
        outgoing.close().await;
        Some(incoming)
    };
    run_to_the_end(session, running).await;
}

/// Starts the process and copies until it has ended; `None` when the client left first.
async fn run<IO: AsyncRead>(
    incoming: &mut Incoming<IO>,
    outgoing: &Outgoing,
    protocol: Protocol,
    start: impl Future<Output = Result<Process, Error>>,
) -> Option<Result<i32, Error>> {
    let Process { stdin, mut output, resize, exit } = match start.await {
        Ok(process) => process,
        Err(error) => return Some(Err(error)),
    };
    let mut input = Input { stdin, resize, sizes: Sizes::default() };
    let copying = async move {
        while let Some(message) = incoming.next().await {
            if let Some((channel, content)) = protocol.coding.decode(&message) {
                input.take(channel, content).await;
            }
        }
    };
    let ending = async {
        while let Some(piece) = output.recv().await {
            let (channel, bytes) = match piece {
                Output::Stdout(bytes) => (STDOUT, bytes),
                Output::Stderr(bytes) => (STDERR, bytes),
            };
            if let Err(Gone) = outgoing.send(protocol.coding.encode(channel, &bytes)).await {
                return None;
            }
        }
        Some(exit.await)
    };
    tokio::select! {
        ended = ending => ended,
        () = copying => None,
    }
}

/// The process's ends that a client writes to.
struct Input {
    stdin: Option<mpsc::Sender<Bytes>>,
    resize: mpsc::Sender<(u16, u16)>,
    sizes: Sizes,
}

impl Input {
    async fn take(&mut self, channel: u8, content: Bytes) {
        match channel {
            STDIN => {
                if let Some(stdin) = &self.stdin
                    && stdin.send(content).await.is_err()
                {
                    // A process that does not read any more.
                    self.stdin = None;
                }
            }
            RESIZE => match self.sizes.read(&content) {
                Ok(sizes) => {
                    for size in sizes {
                        // A process that has ended has no window.
                        let _ = self.resize.send(size).await;
                    }
                }
                Err(error) => tracing::debug!(%error, "a WebSocket client sent a window size that is none"),
            },
            CLOSE if content.first() == Some(&STDIN) => self.stdin = None,
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;
    use sandbox::model::StreamRequest;

    fn command() -> Command {
        Command::Exec(StreamRequest {
            command: vec!["cat".into()],
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        })
    }

    /// A client's frame with a zero mask.
    fn frame(opcode: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x80 | opcode, 0x80 | u8::try_from(payload.len()).unwrap(), 0, 0, 0, 0];
        frame.extend(payload);
        frame
    }

    /// Says on stdout what came by stdin, once that has ended, and leaves with 3.
    fn echo() -> Process {
        let (stdin, mut from_client) = mpsc::channel::<Bytes>(4);
        let (to_client, output) = mpsc::channel(4);
        let (resize, _) = mpsc::channel(4);
        tokio::spawn(async move {
            while let Some(bytes) = from_client.recv().await {
                to_client.send(Output::Stdout(bytes)).await.unwrap();
            }
        });
        Process { stdin: Some(stdin), output, resize, exit: Box::pin(async { Ok(3) }) }
    }

    async fn talk(protocol: Protocol, sent: Vec<u8>) -> Vec<u8> {
        let (server, mut client) = duplex(1 << 16);
        client.write_all(&sent).await.unwrap();
        let mut answer = Vec::new();
        let command = command();
        let serving = async {
            serve(server, protocol, &command, Duration::ZERO, async { Ok(echo()) }).await;
        };
        tokio::join!(serving, async { client.read_to_end(&mut answer).await.unwrap() });
        answer
    }

    #[tokio::test]
    async fn closing_stdin_by_its_channel_ends_the_process_whose_code_is_told() {
        let sent = [frame(2, b"\x00hello"), frame(2, &[255, 0])].concat();
        let answer = talk(Protocol::ALL[0], sent).await;
        let text = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with(&[0x82, 1, 1, 0x82, 6, 1, b'h', b'e', b'l', b'l', b'o', 0x82]), "{text}");
        assert!(text.contains(r#""message":"3""#) && text.contains("NonZeroExitCode"), "{text}");
        assert!(answer.ends_with(&[0x88, 2, 3, 232]));
    }

    #[tokio::test]
    async fn in_the_base64_form_messages_are_text() {
        let sent = [frame(1, b"0aGk="), frame(8, &[3, 232])].concat();
        let answer = talk(Protocol::ALL[2], sent).await;
        assert!(answer.starts_with(&[0x81, 1, b'1']), "{answer:?}");
        assert!(answer.ends_with(&[0x88, 2, 3, 232]), "a close is answered: {answer:?}");
    }
}
