//! The streams of one process between a shim's attach and a session, and the process of an exec.

use std::time::Duration;

use bytes::Bytes;
use shim::{
    client::{AttachInput, AttachOutput, AttachStream, AttachTo, ExecStdio, Output as ShimOutput},
    proto::{AnyMessage, task},
    ttrpc::{MAX_PAYLOAD, Status},
};
use tokio::sync::mpsc;

use crate::{
    Error, Output,
    config::Drain,
    launcher::Clients,
    model::{Id, StreamRequest},
    record::ContainerRecord,
    session::Far,
};

/// The type of an exec's `spec`, as every shim knows it.
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// A process in a container, beside its first.
pub(super) struct Exec {
    clients: Clients,
    container: Id,
    exec_id: String,
    /// As the shim tells it; 0 before the start.
    pid: u32,
}

impl Exec {
    /// Makes the exec, opens its streams, starts it. Nothing is left when this fails.
    pub(super) async fn start(
        clients: Clients,
        container: &ContainerRecord,
        request: &StreamRequest,
        drain: Drain,
    ) -> Result<(Exec, AttachStream), Error> {
        let exec_id = Id::random().map_err(|error| Error::failed("make an id for the exec", error))?.to_string();
        let mut exec = Exec { clients, container: container.id.clone(), exec_id, pid: 0 };
        match exec.open(container, request, drain).await {
            Ok(stream) => Ok((exec, stream)),
            Err(error) => {
                exec.delete().await;
                Err(error)
            }
        }
    }

    async fn open(
        &mut self,
        container: &ContainerRecord,
        request: &StreamRequest,
        drain: Drain,
    ) -> Result<AttachStream, Error> {
        let made = self.request(container, request, drain).await?;
        let (tasks, streams) = (&self.clients.tasks, &self.clients.streams);
        tasks.exec(&made).await.map_err(|status| self.failed("make", status))?;
        let to = attach_to(&self.container, &self.exec_id, request);
        let stream = streams.attach(to).await.map_err(|status| self.failed("open the streams of", status))?;
        let started = tasks.start(self.container.as_str(), &self.exec_id).await;
        self.pid = started.map_err(|status| self.failed("start", status))?.pid;
        Ok(stream)
    }

    async fn request(
        &self,
        container: &ContainerRecord,
        request: &StreamRequest,
        drain: Drain,
    ) -> Result<task::ExecProcessRequest, Error> {
        let process = process(&container.oci_spec, &request.command, request.tty)
            .ok_or_else(|| Error::plain(format!("container {}: its OCI spec has no process", container.id)))?;
        let spec = fitting(process.to_string().into_bytes())?;
        let stdio = ExecStdio {
            id: self.container.to_string(),
            exec_id: self.exec_id.clone(),
            terminal: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            hold: drain.in_silence,
        };
        let urls = self.clients.streams.prepare_exec(stdio).await;
        let urls = urls.map_err(|status| self.failed("prepare the streams of", status))?;
        Ok(task::ExecProcessRequest {
            id: self.container.to_string(),
            exec_id: self.exec_id.clone(),
            terminal: request.tty,
            stdin: urls.stdin,
            stdout: urls.stdout,
            stderr: urls.stderr,
            spec: Some(AnyMessage { type_url: PROCESS.to_owned(), value: spec }),
        })
    }

    /// Waits for the end; answers the exit code.
    pub(super) async fn wait(&self) -> Result<i32, Error> {
        let exit = self.clients.streams.wait(self.container.as_str(), &self.exec_id).await;
        exit.map(|exit| code(exit.exit_status)).map_err(|status| self.failed("wait for", status))
    }

    /// Kills the process and all that it started.
    pub(super) async fn kill(&self) -> Result<(), Error> {
        let (tasks, id) = (&self.clients.tasks, self.container.as_str());
        let killed = self.clients.streams.kill_exec(tasks, id, &self.exec_id, self.pid).await;
        killed.map_err(|status| self.failed("kill", status))
    }

    pub(super) fn process(&self) -> Process<'_> {
        Process { clients: &self.clients, container: &self.container, exec_id: &self.exec_id }
    }

    /// Deletes the exec in the shim. What cannot be deleted goes with the container.
    pub(super) async fn delete(&self) {
        if let Err(error) = self.clients.tasks.delete(self.container.as_str(), &self.exec_id).await {
            tracing::debug!(container = %self.container, exec = self.exec_id, error = %error, "an exec is left in the shim");
        }
        self.clients.streams.forget_exec(self.container.as_str(), &self.exec_id);
    }

    fn failed(&self, verb: &str, status: Status) -> Error {
        Error::failed(format!("failed to {verb} exec process in container {}", self.container), status)
    }
}

pub(super) fn attach_to(container: &Id, exec_id: &str, request: &StreamRequest) -> AttachTo {
    AttachTo {
        id: container.to_string(),
        exec_id: exec_id.to_owned(),
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr && !request.tty,
        terminal: request.tty,
    }
}

/// Whose terminal a session's window is.
pub(super) struct Process<'a> {
    pub(super) clients: &'a Clients,
    pub(super) container: &'a Id,
    /// Empty for the container's first process.
    pub(super) exec_id: &'a str,
}

impl Process<'_> {
    /// Tells the terminal its size. A process that ends meanwhile has no terminal to resize.
    async fn resize(&self, width: u16, height: u16) {
        let request = task::ResizePtyRequest {
            id: self.container.to_string(),
            exec_id: self.exec_id.to_owned(),
            width: width.into(),
            height: height.into(),
        };
        if let Err(error) = self.clients.tasks.resize_pty(&request).await {
            tracing::debug!(container = %self.container, error = %error, "the terminal was not resized");
        }
    }
}

/// Copies what the session writes until it closes its side, then closes the process's.
pub(super) async fn pump_input(from: Option<mpsc::Receiver<Bytes>>, to: AttachInput) {
    let Some(mut from) = from else {
        // Dropping `to` would close the attach; the session has no input to give and none to end.
        return std::future::pending().await;
    };
    while let Some(bytes) = from.recv().await {
        if to.write(bytes).await.is_err() {
            // The process does not read any more. The rest is thrown away, as by a pipe's closed end.
            from.close();
        }
    }
    // The process may be gone, and its stdin with it.
    drop(to.close().await);
    std::future::pending().await
}

/// Copies the process's output to its end. A session that does not listen any more does not hold up the process.
pub(super) async fn pump_output(mut from: AttachOutput, to: mpsc::Sender<Output>) -> Result<(), Status> {
    loop {
        let piece = match from.next().await? {
            Some(ShimOutput::Stdout(bytes)) => Output::Stdout(bytes),
            Some(ShimOutput::Stderr(bytes)) => Output::Stderr(bytes),
            None => return Ok(()),
        };
        // See above: nobody listening is fine.
        drop(to.send(piece).await);
    }
}

/// How a session went.
pub(super) enum Ended {
    /// The process has ended, and its output was delivered or did not end in time.
    Exit,
    /// Nobody waits for the process any more.
    GivenUp,
}

/// What ends a session that is not given up.
pub(super) enum Until<F> {
    /// The process's exit. Lost streams end nothing: the exit tells what became of the process.
    Exit(F),
    /// The end of the streams, which is the process's.
    Streams,
}

/// Serves a session until it ends or is given up.
pub(super) async fn serve(
    far: Far,
    stream: AttachStream,
    until: Until<impl Future<Output = Result<i32, Error>>>,
    process: Process<'_>,
    drain: Duration,
) -> Ended {
    let Far { stdin, output, resize: mut sizes, exit: mut answer } = far;
    let sizes = async {
        while let Some((width, height)) = sizes.recv().await {
            process.resize(width, height).await;
        }
        std::future::pending::<()>().await;
    };
    let side = async { tokio::join!(pump_input(stdin, stream.stdin), sizes) };
    let copying = pump_output(stream.output, output);
    let ends_with_streams = matches!(until, Until::Streams);
    let exit = async {
        match until {
            Until::Exit(exit) => exit.await,
            Until::Streams => std::future::pending().await,
        }
    };
    tokio::pin!(side, copying, exit);
    let mut copied = false;
    let code = loop {
        tokio::select! {
            code = &mut exit => break code,
            ended = &mut copying, if !copied => {
                copied = true;
                if ends_with_streams {
                    let lost = |status| Error::failed(format!("read the streams of container {}", process.container), status);
                    break ended.map(|()| 0).map_err(lost);
                }
            }
            ((), ()) = &mut side => {}
            () = answer.closed() => return Ended::GivenUp,
        }
    };
    if !copied {
        // Output may be held open by what the process left running: then the rest is not waited for.
        drop(tokio::time::timeout(drain, copying).await);
    }
    // The server may have gone in this moment.
    drop(answer.send(code));
    Ended::Exit
}

fn code(status: u32) -> i32 {
    i32::try_from(status).unwrap_or(255)
}

/// The process goes to the shim in one message, which is small beside its arguments and environment.
fn fitting(process: Vec<u8>) -> Result<Vec<u8>, Error> {
    const LONGEST: usize = MAX_PAYLOAD - 4096;
    match process.len() > LONGEST {
        false => Ok(process),
        true => Err(Error::Invalid(format!(
            "cmd: with the container's environment it is {} bytes long as JSON, a shim takes at most {LONGEST}",
            process.len()
        ))),
    }
}

/// The container's process with another command.
fn process(oci_spec: &serde_json::Value, command: &[String], tty: bool) -> Option<serde_json::Value> {
    let mut process = oci_spec.get("process")?.clone();
    let fields = process.as_object_mut()?;
    fields.insert("args".into(), command.into());
    fields.insert("terminal".into(), tty.into());
    fields.remove("consoleSize");
    if tty && let Some(env) = fields.entry("env").or_insert_with(|| serde_json::json!([])).as_array_mut() {
        let has_term = env.iter().filter_map(|entry| entry.as_str()).any(|entry| entry.starts_with("TERM="));
        if !has_term {
            env.push("TERM=xterm".into());
        }
    }
    Some(process)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_execs_process_is_the_containers_with_its_own_command_and_a_terminals_type() {
        let spec =
            json!({"process": {"args": ["sleep"], "terminal": false, "cwd": "/w", "env": ["A=1"], "user": {"uid": 7}}});
        assert_eq!(
            process(&spec, &["sh".into()], true),
            Some(
                json!({"args": ["sh"], "terminal": true, "cwd": "/w", "env": ["A=1", "TERM=xterm"], "user": {"uid": 7}})
            )
        );
        assert_eq!(process(&json!({}), &["sh".into()], false), None);
    }

    #[test]
    fn a_command_that_no_message_to_a_shim_holds_is_refused_before_it_is_sent() {
        let spec = json!({"process": {"env": ["A=1"]}});
        let command = |words: usize| process(&spec, &vec!["x".repeat(100_000); words], false).unwrap();
        assert!(fitting(command(41).to_string().into_bytes()).is_ok());
        let refused = fitting(command(42).to_string().into_bytes()).unwrap_err();
        assert!(matches!(&refused, Error::Invalid(text) if text.starts_with("cmd: ")), "{refused}");
    }
}
