//! What only our own shim serves: log rotation, exits with the out-of-memory mark, attach.
//!
//! Each attach has a connection of its own, because ttrpc has no flow control inside one: a terminal that nobody reads
//! must not hold up the pod's other calls.

use std::{path::PathBuf, time::Duration};

use prost::Message;

use super::attach::{AttachInput, AttachOutput, AttachStream, AttachTo, InputWay, OutputWay, garbled, input};
use crate::{
    bootstrap::Bootstrap,
    proto::{extension as wire, service},
    ttrpc::{CallOptions, Client, Status},
};

/// How long a shim may take to open an attach.
const OPEN_DEADLINE: Duration = Duration::from_secs(10);

/// Calls the extension service of one shim. A shim that is not ours answers every call with `Unimplemented`.
#[derive(Clone)]
pub struct Extension {
    client: Client,
    socket: PathBuf,
}

impl Extension {
    /// Calls over `client`, which is connected to `socket`; each attach connects to `socket` anew.
    pub fn new(client: Client, socket: impl Into<PathBuf>) -> Self {
        Self { client, socket: socket.into() }
    }

    /// Calls the shim that `client` is connected to.
    pub fn of_shim(client: Client, bootstrap: &Bootstrap) -> Result<Self, Status> {
        let address = bootstrap.socket().map_err(Status::invalid)?;
        Ok(Self::new(client, address.socket_path()))
    }

    /// What the shim serves beside the task service.
    pub async fn info(&self) -> Result<wire::InfoResponse, Status> {
        self.client.call(service::EXTENSION, "Info", &()).await
    }

    /// Opens the container's log anew, after its file was renamed.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Status> {
        self.client.call(service::EXTENSION, "ReopenLog", &wire::ReopenLogRequest { id: id.into() }).await
    }

    /// Waits for the process's end; resolves at once when it already ended.
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<wire::WaitResponse, Status> {
        let request = wire::WaitRequest { id: id.into(), exec_id: exec_id.into() };
        self.client.call(service::EXTENSION, "Wait", &request).await
    }

    /// Joins a process's stdio. Output that the process writes after this returned is delivered.
    pub async fn attach(&self, to: AttachTo) -> Result<AttachStream, Status> {
        tokio::time::timeout(OPEN_DEADLINE, self.open(to)).await.unwrap_or_else(|_| {
            Err(Status::deadline_exceeded(format!("the shim did not open the attach within {OPEN_DEADLINE:?}")))
        })
    }

    async fn open(&self, to: AttachTo) -> Result<AttachStream, Status> {
        let client = Client::connect(&self.socket)
            .await
            .map_err(|error| Status::unavailable(format!("connect to shim at {}: {error}", self.socket.display())))?;
        let mut stream = client.open_stream(service::EXTENSION, "Attach", CallOptions::default()).await?;
        let AttachTo { id, exec_id, stdin, stdout, stderr, terminal } = to;
        let open = wire::AttachOpen { id, exec_id, stdin, stdout, stderr, terminal };
        stream.send(input(wire::attach_input::Input::Open(open))).await?;
        let first = stream.recv().await?.map(wire::AttachOutput::decode).transpose().map_err(garbled)?;
        match first.and_then(|output| output.output) {
            Some(wire::attach_output::Output::Opened(_)) => {}
            _ => return Err(Status::internal("the shim began an attach with something else than `opened`")),
        }
        let (sender, receiver) = stream.split();
        Ok(AttachStream { stdin: AttachInput(InputWay::Shim(sender)), output: AttachOutput(OutputWay::Shim(receiver)) })
    }
}
