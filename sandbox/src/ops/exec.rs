//! Exec with streams: the command lives as long as somebody holds its session.

use crate::{
    config::Drain,
    launcher::Clients,
    model::StreamRequest,
    ops::stream::{Ended, Exec, Until, serve},
    record::ContainerRecord,
    request::Reply,
    session,
};

/// Starts the command, answers with its session, and serves that to its end.
pub(crate) async fn run(
    clients: Clients,
    container: ContainerRecord,
    request: StreamRequest,
    drain: Drain,
    reply: Reply<crate::Session>,
) {
    let (exec, stream) = match Exec::start(clients, &container, &request, drain).await {
        Ok(started) => started,
        // A caller that gave up has no use for the error.
        Err(error) => return drop(reply.send(Err(error))),
    };
    let (session, far) = session::pair(request.stdin);
    // If the caller gave up, the session is dropped here, and serving it ends at once.
    drop(reply.send(Ok(session)));
    if let Ended::GivenUp = serve(far, stream, Until::Exit(exec.wait()), exec.process(), drain.limit).await {
        match exec.kill().await {
            Ok(()) => drop(exec.wait().await),
            Err(error) => tracing::debug!(container = %container.id, error = error.chain(), "an exec was not killed"),
        }
    }
    exec.delete().await;
}
