//! ExecSync: a command run to its end, with its output collected.

use std::time::Duration;

use shim::client::{AttachOutput, Output as ShimOutput};

use crate::{
    Error,
    launcher::Clients,
    model::{ExecOutput, StreamRequest},
    ops::stream::Exec,
    record::ContainerRecord,
    request::Reply,
    world::{World, within},
};

/// Kept of both streams together: the answer is one message, of which clients take 16 MiB. The rest is read and thrown
/// away, so that the command does not block on a full pipe.
const KEPT: usize = (16 << 20) - 1024;

/// Runs the command and answers. Past `timeout`, or once nobody waits for the answer, it and all that it started is killed:
/// a probe whose client was restarted must not go on for ever.
pub(crate) async fn run(
    world: &World,
    clients: Clients,
    container: &ContainerRecord,
    command: Vec<String>,
    timeout: Option<Duration>,
    mut reply: Reply<ExecOutput>,
) {
    let ended = execute(world, clients, container, command, timeout, reply.closed()).await;
    // Nobody may be there to hear it.
    drop(reply.send(ended));
}

async fn execute(
    world: &World,
    clients: Clients,
    container: &ContainerRecord,
    command: Vec<String>,
    timeout: Option<Duration>,
    abandoned: impl Future<Output = ()>,
) -> Result<ExecOutput, Error> {
    let request = StreamRequest { command, stdin: false, stdout: true, stderr: true, tty: false };
    let (exec, stream) = Exec::start(clients, container, &request, world.config.timeouts.drain).await?;
    // Held to the end: dropping the input would say that the attach is over.
    let _input = stream.stdin;
    let ended = finish(world, &exec, stream.output, timeout, abandoned).await;
    exec.delete().await;
    ended
}

async fn finish(
    world: &World,
    exec: &Exec,
    output: AttachOutput,
    timeout: Option<Duration>,
    abandoned: impl Future<Output = ()>,
) -> Result<ExecOutput, Error> {
    let deadline = async {
        match timeout {
            Some(timeout) => tokio::time::sleep(timeout).await,
            None => std::future::pending().await,
        }
    };
    let (exit, collecting) = (exec.wait(), collect(output));
    tokio::pin!(deadline, exit, collecting, abandoned);
    let mut collected = None;
    let exit_code = loop {
        tokio::select! {
            biased;
            code = &mut exit => break code?,
            all = &mut collecting, if collected.is_none() => collected = Some(all),
            () = &mut deadline => {
                end(world, exec, exit).await?;
                let limit = timeout.unwrap_or_default();
                return Err(Error::Deadline(format!("timeout {limit:?} exceeded: context deadline exceeded")));
            }
            () = &mut abandoned => {
                end(world, exec, exit).await?;
                return Err(Error::plain("the client did not wait for the command"));
            }
        }
    };
    let limit = world.config.timeouts.drain.limit;
    let (stdout, stderr) = match collected {
        Some(all) => all,
        None => tokio::time::timeout(limit, collecting).await.map_err(|_| {
            Error::plain(format!(
                "failed to drain exec process within {limit:?}: its io is still held by other processes"
            ))
        })?,
    };
    Ok(ExecOutput { stdout, stderr, exit_code })
}

/// Kills the command and sees it end.
async fn end(world: &World, exec: &Exec, exit: impl Future<Output = Result<i32, Error>>) -> Result<(), Error> {
    exec.kill().await?;
    within(world.config.timeouts.kill, || "kill exec process".to_owned(), exit).await.map(drop)
}

async fn collect(mut output: AttachOutput) -> (Vec<u8>, Vec<u8>) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    // A stream that is lost ends the output; the exit code says what became of the process.
    while let Ok(Some(piece)) = output.next().await {
        let room = KEPT - stdout.len() - stderr.len();
        let (kept, bytes) = match &piece {
            ShimOutput::Stdout(bytes) => (&mut stdout, bytes),
            ShimOutput::Stderr(bytes) => (&mut stderr, bytes),
        };
        kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }
    (stdout, stderr)
}
