//! A running exec or attach, as the streaming server drives it: bytes in, bytes out, the window's size, the end.
//!
//! Every part is a bounded channel to a task that the pod's owner keeps, so the server may drop any of them at any time:
//! dropping `stdin` closes the process's input, dropping `output` discards the rest, dropping all of them ends the session.

use bytes::Bytes;
use tokio::sync::{mpsc, oneshot};

use crate::Error;

/// An exec's or attach's streams.
#[derive(Debug)]
pub struct Session {
    /// `None` when no stdin was asked for.
    pub stdin: Option<mpsc::Sender<Bytes>>,
    /// Ends when both streams have ended.
    pub output: mpsc::Receiver<Output>,
    /// Width and height in characters. Ignored without a terminal.
    pub resize: mpsc::Sender<(u16, u16)>,
    pub exit: ExitStatus,
}

/// The daemon's ends of a session.
#[derive(Debug)]
pub(crate) struct Far {
    pub(crate) stdin: Option<mpsc::Receiver<Bytes>>,
    pub(crate) output: mpsc::Sender<Output>,
    pub(crate) resize: mpsc::Receiver<(u16, u16)>,
    /// Closed when the session was given up.
    pub(crate) exit: oneshot::Sender<Result<i32, Error>>,
}

/// Pieces that wait in each direction. Beyond it the writer waits, and with it the process.
const PIECES: usize = 16;

/// A session and its far ends.
pub(crate) fn pair(with_stdin: bool) -> (Session, Far) {
    let (stdin, stdin_far) = mpsc::channel(PIECES);
    let (output_far, output) = mpsc::channel(PIECES);
    let (resize, resize_far) = mpsc::channel(PIECES);
    let (exit_far, exit) = oneshot::channel();
    let session = Session { stdin: with_stdin.then_some(stdin), output, resize, exit: ExitStatus(exit) };
    let far = Far { stdin: with_stdin.then_some(stdin_far), output: output_far, resize: resize_far, exit: exit_far };
    (session, far)
}

/// A piece of what the process wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
}

/// The exit code to come.
#[derive(Debug)]
pub struct ExitStatus(pub(crate) oneshot::Receiver<Result<i32, Error>>);

impl ExitStatus {
    /// Waits for the process of an exec to end. For attach it is the end of the streams, and code 0.
    pub async fn wait(self) -> Result<i32, Error> {
        self.0.await.unwrap_or_else(|_| Err(Error::Unavailable("the stream was closed by the daemon".into())))
    }
}
