//! An open attach: bytes in, bytes out, whatever way they take to the process.

use bytes::Bytes;
use prost::Message;

use super::fifos::{Copies, ExecOutput, FifoInput};
use crate::{
    proto::extension as wire,
    ttrpc::{Receiver, Sender, Status},
};

/// Input is cut to pieces well below ttrpc's limit.
const CHUNK: usize = 64 << 10;

/// What to attach to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttachTo {
    pub id: String,
    /// Empty for the container's init process.
    pub exec_id: String,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub terminal: bool,
}

/// An open attach. Dropping both halves detaches; the process goes on.
pub struct AttachStream {
    pub stdin: AttachInput,
    pub output: AttachOutput,
}

/// The way to the process's stdin. Waits while the process does not read.
pub struct AttachInput(pub(super) InputWay);

pub(super) enum InputWay {
    Shim(Sender),
    Fifo(FifoInput),
    /// The process has no stdin: what is written is thrown away.
    None,
}

/// The process's output in the order in which it was written.
pub struct AttachOutput(pub(super) OutputWay);

pub(super) enum OutputWay {
    Shim(Receiver),
    Copies(Copies),
    Exec(ExecOutput),
}

/// A piece of output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output {
    Stdout(Bytes),
    Stderr(Bytes),
}

impl AttachInput {
    /// Writes to the process's stdin.
    pub async fn write(&self, bytes: Bytes) -> Result<(), Status> {
        match &self.0 {
            InputWay::Shim(sender) => {
                let mut rest = bytes;
                while !rest.is_empty() {
                    let piece = rest.split_to(rest.len().min(CHUNK));
                    sender.send(input(wire::attach_input::Input::Stdin(piece))).await?;
                }
                Ok(())
            }
            InputWay::Fifo(fifo) => fifo.write(&bytes).await,
            InputWay::None => Ok(()),
        }
    }

    /// Ends the process's stdin. Output goes on.
    pub async fn close(&self) -> Result<(), Status> {
        match &self.0 {
            InputWay::Shim(sender) => sender.send(input(wire::attach_input::Input::CloseStdin(true))).await,
            InputWay::Fifo(fifo) => fifo.close().await,
            InputWay::None => Ok(()),
        }
    }
}

impl AttachOutput {
    /// The next piece; `None` when the process ended and all of its output was given. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Output>, Status> {
        let receiver = match &mut self.0 {
            OutputWay::Copies(copies) => return copies.next().await,
            OutputWay::Exec(fifos) => return Ok(fifos.next().await),
            OutputWay::Shim(receiver) => receiver,
        };
        while let Some(message) = receiver.recv().await? {
            match wire::AttachOutput::decode(message).map_err(garbled)?.output {
                Some(wire::attach_output::Output::Stdout(bytes)) => return Ok(Some(Output::Stdout(bytes))),
                Some(wire::attach_output::Output::Stderr(bytes)) => return Ok(Some(Output::Stderr(bytes))),
                // Said once at the beginning, and nothing to a later reader.
                Some(wire::attach_output::Output::Opened(_)) | None => {}
            }
        }
        Ok(None)
    }
}

pub(super) fn input(input: wire::attach_input::Input) -> Vec<u8> {
    wire::AttachInput { input: Some(input) }.encode_to_vec()
}

pub(super) fn garbled(error: prost::DecodeError) -> Status {
    Status::internal(format!("attach output of the shim: {error}"))
}
