//! The task service, typed, whichever of its two versions the shim serves.
//!
//! A client begins with the version that the shim announced. If that is 3 and the shim turns out not to serve it, the
//! call is repeated as version 2; the first answer that version 3 surely gave settles it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use prost::Message;

use crate::{
    bootstrap::{Bootstrap, Protocol},
    proto::{NAMESPACE_METADATA, service, task},
    ttrpc::{CallOptions, Client, Code, Status},
};

/// Calls the tasks of one shim in one containerd namespace. Clones share the connection.
#[derive(Clone)]
pub struct TaskClient {
    client: Client,
    namespace: String,
    version: Arc<AtomicU8>,
    timeout: Option<Duration>,
}

/// Whether version 3 is served is not known yet.
const V3_UNPROVEN: u8 = 0;
const V2: u8 = 2;
const V3: u8 = 3;

impl TaskClient {
    pub fn new(client: Client, namespace: impl Into<String>, version: u32) -> Self {
        let version = if version >= 3 { V3_UNPROVEN } else { V2 };
        Self { client, namespace: namespace.into(), version: Arc::new(AtomicU8::new(version)), timeout: None }
    }

    /// Connects to a shim that was started or found in a bundle.
    pub async fn connect_to(bootstrap: &Bootstrap, namespace: impl Into<String>) -> Result<Self, Status> {
        if bootstrap.protocol == Protocol::Grpc {
            return Err(Status::unimplemented(format!(
                "the shim at {} speaks gRPC, which is not supported",
                bootstrap.address
            )));
        }
        let address = bootstrap.socket().map_err(Status::invalid)?;
        let client = Client::connect(address.socket_path())
            .await
            .map_err(|error| Status::unavailable(format!("connect to shim at {}: {error}", bootstrap.address)))?;
        Ok(Self::new(client, namespace, bootstrap.version))
    }

    /// The same client with a deadline on each of its calls.
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self.clone() }
    }

    /// The connection, for other services of the same shim.
    pub fn connection(&self) -> &Client {
        &self.client
    }

    /// Resolves when the connection to the shim is lost.
    pub async fn closed(&self) {
        self.client.closed().await;
    }

    pub async fn create(&self, request: &task::CreateTaskRequest) -> Result<task::CreateTaskResponse, Status> {
        self.call("Create", request).await
    }

    pub async fn start(&self, id: &str, exec_id: &str) -> Result<task::StartResponse, Status> {
        self.call("Start", &task::StartRequest { id: id.into(), exec_id: exec_id.into() }).await
    }

    pub async fn exec(&self, request: &task::ExecProcessRequest) -> Result<(), Status> {
        self.call("Exec", request).await
    }

    /// Waits for the process's end; resolves at once when it already ended.
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<task::WaitResponse, Status> {
        self.call("Wait", &task::WaitRequest { id: id.into(), exec_id: exec_id.into() }).await
    }

    pub async fn kill(&self, request: &task::KillRequest) -> Result<(), Status> {
        self.call("Kill", request).await
    }

    pub async fn delete(&self, id: &str, exec_id: &str) -> Result<task::DeleteResponse, Status> {
        self.call("Delete", &task::DeleteRequest { id: id.into(), exec_id: exec_id.into() }).await
    }

    pub async fn state(&self, id: &str, exec_id: &str) -> Result<task::StateResponse, Status> {
        self.call("State", &task::StateRequest { id: id.into(), exec_id: exec_id.into() }).await
    }

    pub async fn pids(&self, id: &str) -> Result<task::PidsResponse, Status> {
        self.call("Pids", &task::PidsRequest { id: id.into() }).await
    }

    pub async fn stats(&self, id: &str) -> Result<task::StatsResponse, Status> {
        self.call("Stats", &task::StatsRequest { id: id.into() }).await
    }

    pub async fn update(&self, request: &task::UpdateTaskRequest) -> Result<(), Status> {
        self.call("Update", request).await
    }

    pub async fn pause(&self, id: &str) -> Result<(), Status> {
        self.call("Pause", &task::PauseRequest { id: id.into() }).await
    }

    pub async fn resume(&self, id: &str) -> Result<(), Status> {
        self.call("Resume", &task::ResumeRequest { id: id.into() }).await
    }

    pub async fn checkpoint(&self, request: &task::CheckpointTaskRequest) -> Result<(), Status> {
        self.call("Checkpoint", request).await
    }

    pub async fn resize_pty(&self, request: &task::ResizePtyRequest) -> Result<(), Status> {
        self.call("ResizePty", request).await
    }

    /// Closes the process's stdin.
    pub async fn close_stdin(&self, id: &str, exec_id: &str) -> Result<(), Status> {
        self.call("CloseIO", &task::CloseIoRequest { id: id.into(), exec_id: exec_id.into(), stdin: true }).await
    }

    /// Asks who is there. A shim that does not know the id answers with a task pid of 0.
    pub async fn connect(&self, id: &str) -> Result<task::ConnectResponse, Status> {
        self.call("Connect", &task::ConnectRequest { id: id.into() }).await
    }

    /// Ends the shim unless it still holds containers.
    pub async fn shutdown(&self, id: &str) -> Result<(), Status> {
        let ended = self.call("Shutdown", &task::ShutdownRequest { id: id.into(), now: false }).await;
        match ended {
            // A shim may be gone before its answer is.
            Err(status) if status.code == Code::Unavailable => Ok(()),
            other => other,
        }
    }

    async fn call<Response: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<Response, Status> {
        match self.version.load(Ordering::Relaxed) {
            V2 => self.call_version(service::TASK_V2, method, request).await,
            V3 => self.call_version(service::TASK_V3, method, request).await,
            _ => self.call_unproven(method, request).await,
        }
    }

    async fn call_unproven<Response: Message + Default>(
        &self,
        method: &str,
        request: &impl Message,
    ) -> Result<Response, Status> {
        let newer = self.call_version(service::TASK_V3, method, request).await;
        let refused = match newer {
            Err(status) if may_mean_unimplemented(status.code) => status,
            Err(status) if matches!(status.code, Code::Unavailable | Code::DeadlineExceeded) => return Err(status),
            answered => {
                self.version.store(V3, Ordering::Relaxed);
                return answered;
            }
        };
        let older = self.call_version(service::TASK_V2, method, request).await;
        let settled = match (refused.code, older.as_ref().err().map(|status| status.code)) {
            (Code::Unimplemented, Some(Code::Unimplemented)) => V3_UNPROVEN,
            (Code::Unimplemented, _) | (_, None) => V2,
            (_, Some(Code::Unimplemented)) => V3,
            // Both may be honest answers about the task, so the next call asks again.
            (_, Some(_)) => V3_UNPROVEN,
        };
        self.version.store(settled, Ordering::Relaxed);
        if settled == V2 { older } else { Err(refused) }
    }

    async fn call_version<Response: Message + Default>(
        &self,
        service: &str,
        method: &str,
        request: &impl Message,
    ) -> Result<Response, Status> {
        let metadata = vec![(NAMESPACE_METADATA.to_owned(), self.namespace.clone())];
        self.client.call_with(service, method, request, CallOptions { timeout: self.timeout, metadata }).await
    }
}

/// Go answers `Unimplemented` for a service it does not have; servers built on ttrpc-rust answer `InvalidArgument` or
/// `NotFound`. Repeating such a call is harmless: whoever answered so did nothing.
fn may_mean_unimplemented(code: Code) -> bool {
    matches!(code, Code::Unimplemented | Code::InvalidArgument | Code::NotFound)
}
