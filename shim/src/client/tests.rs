//! The task client against shims of every kind of politeness, and the extension client against a small one of ours.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::{AttachTo, Extension, Output, TaskClient};
use crate::{
    proto::{NAMESPACE_METADATA, extension as wire, service, task},
    ttrpc::{BoxFuture, Call, Client, Code, Handler, Status, Stream, serve, serve_connection},
};

/// Serves one version of the task service, answers the other with `refusal`, and records what was asked.
struct Shim {
    serves: &'static str,
    refusal: Code,
    asked: Mutex<Vec<String>>,
}

impl Handler for Shim {
    fn unary(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Vec<u8>, Status>> {
        Box::pin(async move {
            let namespace = call.metadata(NAMESPACE_METADATA).unwrap_or_default();
            self.asked.lock().unwrap().push(format!("{namespace} {}/{}", call.service, call.method));
            if call.service != self.serves {
                return Err(Status::new(self.refusal, "service does not exist"));
            }
            match call.method.as_str() {
                "Connect" => Ok(task::ConnectResponse { shim_pid: 7, ..Default::default() }.encode_to_vec()),
                "State" => Err(Status::not_found("container not created")),
                _ => Err(call.unimplemented()),
            }
        })
    }

    fn stream(self: Arc<Self>, call: Call, _stream: Stream) -> BoxFuture<'static, Result<(), Status>> {
        Box::pin(async move { Err(call.unimplemented()) })
    }

    fn is_stream(&self, _service: &str, _method: &str) -> bool {
        false
    }
}

fn shim(serves: &'static str, refusal: Code) -> (TaskClient, Arc<Shim>) {
    let (near, far) = UnixStream::pair().unwrap();
    let shim = Arc::new(Shim { serves, refusal, asked: Mutex::default() });
    tokio::spawn(serve_connection(far, shim.clone(), CancellationToken::new()));
    (TaskClient::new(Client::from_socket(near), "k8s.io", 3), shim)
}

#[tokio::test]
async fn version_3_is_asked_first_and_kept() {
    let (client, shim) = shim(service::TASK_V3, Code::Unimplemented);
    for _ in 0..2 {
        assert_eq!(client.connect("c").await.unwrap().shim_pid, 7);
    }
    assert_eq!(*shim.asked.lock().unwrap(), ["k8s.io containerd.task.v3.Task/Connect"; 2]);
}

#[tokio::test]
async fn a_shim_of_version_2_is_found_whatever_its_refusal() {
    for refusal in [Code::Unimplemented, Code::InvalidArgument, Code::NotFound] {
        let (client, shim) = shim(service::TASK_V2, refusal);
        for _ in 0..2 {
            assert_eq!(client.connect("c").await.unwrap().shim_pid, 7, "{refusal:?}");
        }
        assert_eq!(
            *shim.asked.lock().unwrap(),
            [
                "k8s.io containerd.task.v3.Task/Connect",
                "k8s.io containerd.task.v2.Task/Connect",
                "k8s.io containerd.task.v2.Task/Connect"
            ],
            "{refusal:?}"
        );
    }
}

#[tokio::test]
async fn an_honest_not_found_of_version_3_stays_and_settles_it() {
    let (client, shim) = shim(service::TASK_V3, Code::Unimplemented);
    for _ in 0..2 {
        assert_eq!(client.state("c", "").await, Err(Status::not_found("container not created")));
    }
    assert_eq!(
        *shim.asked.lock().unwrap(),
        [
            "k8s.io containerd.task.v3.Task/State",
            "k8s.io containerd.task.v2.Task/State",
            "k8s.io containerd.task.v3.Task/State"
        ]
    );
}

/// Echoes stdin to stdout, says "closed" on stderr when stdin is closed, and ends.
struct Echo;

impl Handler for Echo {
    fn unary(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Vec<u8>, Status>> {
        Box::pin(async move {
            match call.method.as_str() {
                "ReopenLog" => Ok(Vec::new()),
                "Wait" => {
                    Ok(wire::WaitResponse { exit_status: 137, exited_at: None, oom_killed: true }.encode_to_vec())
                }
                _ => Err(call.unimplemented()),
            }
        })
    }

    fn stream(self: Arc<Self>, _call: Call, mut stream: Stream) -> BoxFuture<'static, Result<(), Status>> {
        use wire::{attach_input::Input, attach_output::Output as Out};
        Box::pin(async move {
            while let Some(message) = stream.recv().await? {
                let out = match wire::AttachInput::decode(message).unwrap().input.unwrap() {
                    Input::Open(open) if open.id == "missing" => return Err(Status::not_found("no container missing")),
                    Input::Open(_) => Out::Opened(true),
                    Input::Stdin(bytes) => Out::Stdout(bytes),
                    Input::CloseStdin(_) => Out::Stderr(Bytes::from_static(b"closed")),
                };
                let last = matches!(out, Out::Stderr(_));
                stream.send(wire::AttachOutput { output: Some(out) }.encode_to_vec()).await?;
                if last {
                    break;
                }
            }
            Ok(())
        })
    }

    fn is_stream(&self, service: &str, method: &str) -> bool {
        (service, method) == (service::EXTENSION, "Attach")
    }
}

/// An echoing shim on a socket of its own; the directory lives as long as the test.
async fn echo() -> (Extension, tempfile::TempDir) {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    tokio::spawn(serve(listener, Arc::new(Echo), CancellationToken::new()));
    (Extension::new(Client::connect(&socket).await.unwrap(), socket), directory)
}

#[tokio::test]
async fn an_exit_tells_whether_memory_ran_out() {
    let (extension, _directory) = echo().await;
    let expected = wire::WaitResponse { exit_status: 137, exited_at: None, oom_killed: true };
    assert_eq!(extension.wait("c", "").await, Ok(expected));
    assert_eq!(extension.reopen_log("c").await, Ok(()));
}

#[tokio::test]
async fn an_attach_carries_input_and_output_byte_for_byte() {
    let (extension, _directory) = echo().await;
    let mut attached = extension.attach(AttachTo { id: "c".into(), stdin: true, ..Default::default() }).await.unwrap();
    let sent: Bytes = (0..300_000_u32).map(|number| (number % 251).to_le_bytes()[0]).collect();
    let (input, whole) = (attached.stdin, sent.clone());
    let writing = tokio::spawn(async move {
        input.write(whole).await.unwrap();
        input.close().await.unwrap();
    });
    let (mut received, mut errors) = (Vec::new(), Vec::new());
    while let Some(output) = attached.output.next().await.unwrap() {
        match output {
            Output::Stdout(bytes) => received.extend_from_slice(&bytes),
            Output::Stderr(bytes) => errors.extend_from_slice(&bytes),
        }
    }
    writing.await.unwrap();
    assert!(received == sent, "{} of {} bytes came back", received.len(), sent.len());
    assert_eq!(errors, b"closed");
}

#[tokio::test]
async fn an_attach_to_nothing_fails_when_it_is_opened() {
    let (extension, _directory) = echo().await;
    let failed = extension.attach(AttachTo { id: "missing".into(), ..Default::default() }).await;
    assert_eq!(failed.err(), Some(Status::not_found("no container missing")));
}
