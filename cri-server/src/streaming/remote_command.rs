//! Exec and attach over SPDY: `v4.channel.k8s.io` down to v1, which is `channel.k8s.io`.
//!
//! ```text
//! client opens     error  stdin?  stdout?  stderr?  resize? (terminal, v3+)       header streamtype names each
//! then             stdin, resize ──► process        process ──► stdout, stderr
//! at the end       FIN on stdout and stderr, the status on error, FIN, GOAWAY
//! ```
//!
//! The process is started once all streams are there, so nothing it writes is lost, and what the client sends before waits
//! in the streams' buffers. The session ends when the process has ended and its output is written out. When the client
//! leaves first, all ends of the [`Process`] are dropped, which ends the session in `sandbox`.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use sandbox::{Error, Output, model::StreamRequest};
use serde::Deserialize;
use serde_json::json;
use tokio::{sync::mpsc, time::timeout};

use super::{
    Process,
    spdy::{Connection, StreamReader, StreamWriter},
};

/// What was agreed on in `X-Stream-Protocol-Version`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Version {
    V1,
    V2,
    V3,
    V4,
}

impl Version {
    /// From the best.
    pub(super) const ALL: [Version; 4] = [Version::V4, Version::V3, Version::V2, Version::V1];

    pub(super) fn name(self) -> &'static str {
        match self {
            Version::V1 => "channel.k8s.io",
            Version::V2 => "v2.channel.k8s.io",
            Version::V3 => "v3.channel.k8s.io",
            Version::V4 => "v4.channel.k8s.io",
        }
    }
}

/// Which of the two it is: they differ only in what the end says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    Exec(StreamRequest),
    Attach(StreamRequest),
}

impl Command {
    fn request(&self) -> &StreamRequest {
        match self {
            Command::Exec(request) | Command::Attach(request) => request,
        }
    }
}

/// Streams that one session may open: the five known ones, and what a client opens by mistake.
pub(super) const STREAMS: usize = 8;

/// How long the client may take to open its streams.
const OPENING: Duration = Duration::from_secs(30);

/// Serves one session to its end.
pub(super) async fn serve(
    mut connection: Connection,
    version: Version,
    command: &Command,
    start: impl Future<Output = Result<Process, Error>>,
) {
    let request = command.request();
    let wanted = Wanted::of(request, version);
    let Ok(opened) = timeout(OPENING, wanted.open(&mut connection)).await else {
        tracing::warn!("a streaming client did not open its streams in time");
        return connection.close().await;
    };
    let Some(streams) = opened else { return };
    let Streams { error, stdin, stdout, stderr, resize } = streams;
    let input = Input { stdin, resize };
    let out = Out { stdout, stderr };
    let ended = tokio::select! {
        ended = run(input, &out, start) => ended,
        () = connection.ended() => return,
    };
    for stream in [out.stdout, out.stderr].into_iter().flatten() {
        stream.finish().await;
    }
    if let Some(error) = error {
        if let Some(text) = status(version, command, ended) {
            // A client that has closed this stream does not want to know.
            let _ = error.write(text).await;
        }
        error.finish().await;
    }
    connection.close().await;
}

/// Which streams the client is going to open.
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    resize: bool,
}

/// The streams, in the directions in which they are used.
#[derive(Default)]
struct Streams {
    error: Option<StreamWriter>,
    stdin: Option<StreamReader>,
    stdout: Option<StreamWriter>,
    stderr: Option<StreamWriter>,
    resize: Option<StreamReader>,
}

impl Wanted {
    fn of(request: &StreamRequest, version: Version) -> Wanted {
        Wanted {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr && !request.tty,
            resize: request.tty && version >= Version::V3,
        }
    }

    fn complete(&self, streams: &Streams) -> bool {
        streams.error.is_some()
            && streams.stdin.is_some() == self.stdin
            && streams.stdout.is_some() == self.stdout
            && streams.stderr.is_some() == self.stderr
            && streams.resize.is_some() == self.resize
    }

    /// Replies to the streams as they come. `None` when the client left before the last.
    async fn open(&self, connection: &mut Connection) -> Option<Streams> {
        let mut streams = Streams::default();
        while !self.complete(&streams) {
            let stream = connection.accept().await?;
            let missing = match stream.headers.get("streamtype") {
                Some("error") => streams.error.is_none(),
                Some("stdin") => self.stdin && streams.stdin.is_none(),
                Some("stdout") => self.stdout && streams.stdout.is_none(),
                Some("stderr") => self.stderr && streams.stderr.is_none(),
                Some("resize") => self.resize && streams.resize.is_none(),
                _ => false,
            };
            if !missing {
                stream.refuse().await;
                continue;
            }
            let kind = stream.headers.get("streamtype").unwrap_or_default().to_owned();
            let (reader, writer) = stream.accept().await.ok()?;
            match kind.as_str() {
                "error" => streams.error = Some(writer),
                "stdin" => streams.stdin = Some(reader),
                "stdout" => streams.stdout = Some(writer),
                "stderr" => streams.stderr = Some(writer),
                _ => streams.resize = Some(reader),
            }
        }
        Some(streams)
    }
}

struct Input {
    stdin: Option<StreamReader>,
    resize: Option<StreamReader>,
}

struct Out {
    stdout: Option<StreamWriter>,
    stderr: Option<StreamWriter>,
}

/// Starts the process and copies until it has ended and everything it wrote is queued to the client.
async fn run(input: Input, out: &Out, start: impl Future<Output = Result<Process, Error>>) -> Result<i32, Error> {
    let Process { stdin, mut output, resize, exit } = start.await?;
    let copying = async {
        tokio::join!(copy_stdin(input.stdin, stdin), copy_resize(input.resize, resize));
        // The end of input ends nothing else.
        std::future::pending::<()>().await;
    };
    let ending = async {
        while let Some(piece) = output.recv().await {
            let (stream, bytes) = match piece {
                Output::Stdout(bytes) => (&out.stdout, bytes),
                Output::Stderr(bytes) => (&out.stderr, bytes),
            };
            if let Some(stream) = stream {
                // A client that has reset one stream still has the others; the process must not block on it.
                let _ = stream.write(bytes).await;
            }
        }
        exit.await
    };
    tokio::select! {
        ended = ending => ended,
        () = copying => Err(Error::plain("the copying of input ended the session")),
    }
}

/// Client to process. The end of the stream drops the sender, which is the process's end of input.
async fn copy_stdin(stream: Option<StreamReader>, process: Option<mpsc::Sender<Bytes>>) {
    let (Some(mut stream), Some(process)) = (stream, process) else { return };
    while let Some(bytes) = stream.read().await {
        // A process that does not read any more: the rest is dropped with the stream, so that it blocks nothing.
        if process.send(bytes).await.is_err() {
            return;
        }
    }
}

/// Window sizes to the process.
async fn copy_resize(stream: Option<StreamReader>, process: mpsc::Sender<(u16, u16)>) {
    let Some(mut stream) = stream else { return };
    let mut sizes = Sizes::default();
    while let Some(bytes) = stream.read().await {
        let Ok(read) = sizes.read(&bytes) else {
            tracing::debug!("a streaming client sent a window size that is none; later ones are ignored");
            return;
        };
        for size in read {
            if process.send(size).await.is_err() {
                return;
            }
        }
    }
}

/// The resize stream: JSON objects one after the other, cut anywhere.
#[derive(Default)]
pub(super) struct Sizes {
    partial: BytesMut,
}

#[derive(Deserialize)]
struct Size {
    #[serde(rename = "Width", alias = "width", default)]
    width: u16,
    #[serde(rename = "Height", alias = "height", default)]
    height: u16,
}

/// The longest that one size may be.
const MAX_SIZE: usize = 1024;

impl Sizes {
    /// The sizes that `bytes` complete. A size with a zero says that the client does not know, and is left out.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<Vec<(u16, u16)>, serde_json::Error> {
        self.partial.extend_from_slice(bytes);
        let mut sizes = Vec::new();
        let mut objects = serde_json::Deserializer::from_slice(&self.partial).into_iter::<Size>();
        let mut used = 0;
        while let Some(size) = objects.next() {
            match size {
                Ok(Size { width, height }) => {
                    used = objects.byte_offset();
                    sizes.extend((width > 0 && height > 0).then_some((width, height)));
                }
                Err(error) if error.is_eof() && self.partial.len() - used <= MAX_SIZE => break,
                Err(error) => return Err(error),
            }
        }
        // Split off by copy: what is left is at most one object.
        self.partial = BytesMut::from(&self.partial[used..]);
        Ok(sizes)
    }
}

/// What the error stream says at the end. Before v4 it is text, and success says nothing.
pub(super) fn status(version: Version, command: &Command, ended: Result<i32, Error>) -> Option<Bytes> {
    let code = match (command, &ended) {
        // The client of attach asked for streams, not for the process's fate.
        (Command::Attach(_), Ok(_)) => 0,
        (Command::Exec(_), Ok(code)) => *code,
        (_, Err(error)) => {
            let why = error.chain();
            let message = format!("Internal error occurred: {why}");
            return Some(match version {
                Version::V4 => json(&json!({
                    "metadata": {}, "status": "Failure", "message": message, "reason": "InternalError",
                    "details": {"causes": [{"message": why}]}, "code": 500,
                })),
                _ => Bytes::from(message),
            });
        }
    };
    if code == 0 {
        return (version == Version::V4).then(|| json(&json!({"metadata": {}, "status": "Success"})));
    }
    let words = command.request().command.join(" ");
    let message =
        format!("command terminated with non-zero exit code: error executing command [{words}], exit code {code}");
    Some(match version {
        Version::V4 => json(&json!({
            "metadata": {}, "status": "Failure", "message": message, "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        })),
        _ => Bytes::from(message),
    })
}

fn json(value: &serde_json::Value) -> Bytes {
    Bytes::from(value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_are_cut_anywhere_are_read_and_zeroes_are_left_out() {
        let wire = br#"{"Width":80,"Height":24}{"Width":0,"Height":5}
            {"Width":132,"Height":43}"#;
        for cut in 0..wire.len() {
            let mut sizes = Sizes::default();
            let mut read = sizes.read(&wire[..cut]).unwrap();
            read.extend(sizes.read(&wire[cut..]).unwrap());
            assert_eq!(read, [(80, 24), (132, 43)], "cut at {cut}");
        }
    }

    #[test]
    fn a_size_that_is_none_or_without_end_is_refused() {
        assert!(Sizes::default().read(b"80x24").is_err());
        assert!(Sizes::default().read(br#"{"Width":70000,"Height":1}"#).is_err());
        assert!(Sizes::default().read(&[b'{'; MAX_SIZE + 1]).is_err());
        let mut sizes = Sizes::default();
        assert_eq!(sizes.read(b"{\"Width\":").unwrap(), []);
        assert!(sizes.read(&[b' '; MAX_SIZE]).is_err());
    }

    #[test]
    fn the_end_is_told_as_the_agreed_version_tells_it() {
        let request = StreamRequest {
            command: vec!["sh".into(), "-c".into(), "exit 3".into()],
            stdin: false,
            stdout: true,
            stderr: false,
            tty: false,
        };
        let (exec, attach) = (Command::Exec(request.clone()), Command::Attach(request));
        let text = |version, command: &Command, ended| {
            status(version, command, ended).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
        };
        let message = "command terminated with non-zero exit code: error executing command [sh -c exit 3], exit code 3";
        assert_eq!(text(Version::V3, &exec, Ok(0)), None);
        assert_eq!(text(Version::V1, &exec, Ok(3)), Some(message.into()));
        assert_eq!(
            text(Version::V2, &exec, Err(Error::plain("no shim"))),
            Some("Internal error occurred: no shim".into())
        );
        let parsed = |command, ended| -> serde_json::Value {
            serde_json::from_str(&text(Version::V4, command, ended).unwrap()).unwrap()
        };
        assert_eq!(parsed(&exec, Ok(0)), json!({"metadata": {}, "status": "Success"}));
        assert_eq!(parsed(&attach, Ok(3)), json!({"metadata": {}, "status": "Success"}));
        assert_eq!(
            parsed(&exec, Ok(3)),
            json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode", "message": message,
                   "details": {"causes": [{"reason": "ExitCode", "message": "3"}]}})
        );
        assert_eq!(
            parsed(&attach, Err(Error::plain("no shim"))),
            json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
                   "message": "Internal error occurred: no shim", "details": {"causes": [{"message": "no shim"}]}})
        );
    }
}
