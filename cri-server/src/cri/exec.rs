//! ExecSync, Exec, Attach, PortForward. All but the first answer a URL; the work is the streaming server's.

use std::{sync::Arc, time::Duration};

use api::cri;
use sandbox::model::{ContainerState, ContainerView, PodState, StreamRequest};
use tonic::Status;

use super::{
    Cri,
    convert::{invalid, parse_name, parse_words},
    errors::sandbox_status,
};
use crate::streaming::TokenError;

impl Cri {
    pub(super) async fn exec_sync(&self, request: cri::ExecSyncRequest) -> Result<cri::ExecSyncResponse, Status> {
        let id = parse_name(request.container_id, "container_id")?;
        let command = parse_command(request.cmd)?;
        let timeout = match request.timeout {
            0 => None,
            seconds => Some(Duration::from_secs(
                u64::try_from(seconds)
                    .map_err(|_| invalid("timeout", format_args!("{seconds} seconds is negative")))?,
            )),
        };
        let output = self.pods.exec_sync(&id, command, timeout).await.map_err(sandbox_status)?;
        Ok(cri::ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.exit_code })
    }

    pub(super) fn exec(&self, request: cri::ExecRequest) -> Result<cri::ExecResponse, Status> {
        let container = self.running(request.container_id)?;
        let stream = parse_streams(StreamRequest {
            command: parse_command(request.cmd)?,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            tty: request.tty,
        })?;
        let url = self.streaming.exec(container.id.clone(), stream).map_err(token_status)?;
        Ok(cri::ExecResponse { url })
    }

    pub(super) fn attach(&self, request: cri::AttachRequest) -> Result<cri::AttachResponse, Status> {
        let container = self.running(request.container_id)?;
        if request.tty != container.spec.tty {
            let has = if container.spec.tty { "has" } else { "does not have" };
            return Err(invalid("tty", format_args!("container {} {has} a terminal", container.id)));
        }
        let stream = parse_streams(StreamRequest {
            command: Vec::new(),
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            tty: request.tty,
        })?;
        let url = self.streaming.attach(container.id.clone(), stream).map_err(token_status)?;
        Ok(cri::AttachResponse { url })
    }

    /// The ports come with the streams; only WebSocket channels are for those of the request.
    pub(super) fn port_forward(&self, request: cri::PortForwardRequest) -> Result<cri::PortForwardResponse, Status> {
        let pod = self.pods.pod(&parse_name(request.pod_sandbox_id, "pod_sandbox_id")?).map_err(sandbox_status)?;
        let port = |port: i32| match u16::try_from(port) {
            Ok(0) | Err(_) => Err(invalid("port", format_args!("{port} is not a port"))),
            Ok(port) => Ok(port),
        };
        let ports = request.port.into_iter().map(port).collect::<Result<Vec<_>, _>>()?;
        if pod.state != PodState::Ready {
            return Err(Status::failed_precondition(format!("pod sandbox {} is not ready", pod.id)));
        }
        let url = self.streaming.port_forward(&pod.id, pod.netns.clone(), ports).map_err(token_status)?;
        Ok(cri::PortForwardResponse { url })
    }

    fn running(&self, id: String) -> Result<Arc<ContainerView>, Status> {
        let container = self.pods.container(&parse_name(id, "container_id")?).map_err(sandbox_status)?;
        let state = match &container.state {
            ContainerState::Running { .. } => return Ok(container),
            ContainerState::Created => "CONTAINER_CREATED",
            ContainerState::Exited { .. } => "CONTAINER_EXITED",
            ContainerState::Unknown => "CONTAINER_UNKNOWN",
        };
        Err(Status::failed_precondition(format!("container {} is in {state} state", container.id)))
    }
}

fn token_status(error: TokenError) -> Status {
    Status::resource_exhausted(error.to_string())
}

fn parse_command(command: Vec<String>) -> Result<Vec<String>, Status> {
    if command.is_empty() {
        return Err(invalid("cmd", "must not be empty"));
    }
    parse_words(command, "cmd")
}

/// CRI: at least one stream, and no stderr beside a terminal, which has only one output.
fn parse_streams(request: StreamRequest) -> Result<StreamRequest, Status> {
    if !request.stdin && !request.stdout && !request.stderr {
        return Err(invalid("stdin, stdout, stderr", "one of them must be set"));
    }
    if request.tty && request.stderr {
        return Err(invalid("tty, stderr", "cannot both be set: a terminal has one output"));
    }
    Ok(request)
}
