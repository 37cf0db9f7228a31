//! Attach: one client's stream joined with the stdio of one process.
//!
//! A container's stream gets copies and may fall behind only so far; an exec's stream is the one way out of the
//! process and holds it back. When the client leaves, an exec's stdin is closed and its output drained.

use std::sync::PoisonError;

use prost::Message;
use tokio::sync::mpsc;

use crate::proto::extension::{AttachInput, AttachOpen, AttachOutput, attach_input::Input, attach_output};
use crate::stdio::{Stream as Output, hub::Chunk};
use crate::ttrpc::{Code, Receiver, Sender, Status, Stream};

use super::io::{Outlet, ended_or_gone};
use super::tasks::{Found, Tasks};

pub(crate) async fn attach(tasks: &Tasks, mut stream: Stream) -> Result<(), Status> {
    let open = match parse(stream.recv().await?.as_deref())? {
        Some(Input::Open(open)) => open,
        _ => return Err(Status::invalid("the first message of an attach must be open")),
    };
    let process = tasks.process(&open.id, &open.exec_id).map_err(|error| error.to_status())?;
    let output = subscribe(&process)?;
    let (sender, receiver) = stream.split();
    send(&sender, attach_output::Output::Opened(true)).await?;
    let feeding = feed(&process, &open, receiver);
    let delivering = deliver(&process, &open, &sender, output);
    tokio::pin!(feeding, delivering);
    tokio::select! {
        delivered = &mut delivering => delivered,
        fed = &mut feeding => {
            fed?;
            let mut ended = process.ended();
            tokio::select! {
                biased;
                // The client has said that it is over, and only what the process left running could still write.
                () = ended_or_gone(&mut ended) => Ok(()),
                delivered = &mut delivering => delivered,
            }
        }
    }
}

fn parse(message: Option<&[u8]>) -> Result<Option<Input>, Status> {
    let Some(bytes) = message else { return Ok(None) };
    AttachInput::decode(bytes).map(|message| message.input).map_err(Status::invalid)
}

fn subscribe(process: &Found) -> Result<mpsc::Receiver<Chunk>, Status> {
    match &process.io.outlet {
        Outlet::Hub(hub) => Ok(hub.subscribe()),
        Outlet::Single(output) => output
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
            .ok_or_else(|| Status::failed_precondition(format!("process {} is attached already", process.id))),
        Outlet::None => Err(Status::failed_precondition(format!(
            "process {} has stdio of its client's own and cannot be attached to",
            process.id
        ))),
    }
}

async fn deliver(
    process: &Found,
    open: &AttachOpen,
    sender: &Sender,
    mut output: mpsc::Receiver<Chunk>,
) -> Result<(), Status> {
    while let Some(chunk) = output.recv().await {
        // Prost wants its own bytes; the copy is one per chunk and client.
        let message = match chunk.stream {
            Output::Stdout if open.stdout => attach_output::Output::Stdout(chunk.bytes),
            Output::Stderr if open.stderr => attach_output::Output::Stderr(chunk.bytes),
            Output::Stdout | Output::Stderr => continue,
        };
        send(sender, message).await?;
    }
    match &process.io.outlet {
        Outlet::Hub(hub) if !hub.is_closed() => {
            Err(Status::new(Code::ResourceExhausted, "the client reads more slowly than the container writes"))
        }
        Outlet::Hub(_) | Outlet::Single(_) | Outlet::None => Ok(()),
    }
}

async fn send(sender: &Sender, output: attach_output::Output) -> Result<(), Status> {
    sender.send(AttachOutput { output: Some(output) }.encode_to_vec()).await
}

/// Passes input on until the client ends it or leaves; what a closed stdin gets is read and forgotten.
async fn feed(process: &Found, open: &AttachOpen, mut receiver: Receiver) -> Result<(), Status> {
    let lease = open.stdin.then(|| Lease { process });
    let mut target = match lease {
        Some(_) => process.io.stdin.target(process.ended()).await,
        None => None,
    };
    let mut lease = lease;
    loop {
        match parse(receiver.recv().await?.as_deref())? {
            Some(Input::Stdin(bytes)) => {
                if let Some(pipe) = &target
                    && pipe.write_all(&bytes).await.is_err()
                {
                    // The process has closed its stdin; that is its right.
                    target = None;
                }
            }
            Some(Input::CloseStdin(_)) => {
                target = None;
                lease = None;
            }
            Some(Input::Open(_)) => return Err(Status::invalid("an attach is opened once")),
            None => {
                drop(lease);
                return Ok(());
            }
        }
    }
}

/// The right to be a process's stdin. Its end, however it comes, closes stdin where one client is all there is.
struct Lease<'a> {
    process: &'a Found,
}

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        let only_client = matches!(self.process.io.outlet, Outlet::Single(_));
        if only_client || self.process.io.stdin.once {
            self.process.io.stdin.close();
        }
    }
}
