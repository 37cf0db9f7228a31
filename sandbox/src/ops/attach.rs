//! Attach: the streams of the container's own process, which goes on when the session ends.

use std::time::Duration;

use crate::{
    Error,
    launcher::Clients,
    model::{Id, StreamRequest},
    ops::stream::{Ended, Process, attach_to, serve},
    request::Reply,
    session,
};

/// Connects, answers with the session, and serves it to its end.
pub(crate) async fn run(
    clients: Clients,
    id: Id,
    request: StreamRequest,
    drain: Duration,
    reply: Reply<crate::Session>,
) {
    let stream = match clients.streams.attach(attach_to(&id, "", &request)).await {
        Ok(stream) => stream,
        Err(status) => {
            let error = Error::failed(format!("attach to container {id}"), status);
            // A caller that gave up has no use for the error.
            return drop(reply.send(Err(error)));
        }
    };
    let (session, far) = session::pair(request.stdin);
    // If the caller gave up, the session is dropped here, and serving it ends at once.
    drop(reply.send(Ok(session)));
    let exit = async {
        let exit = clients.streams.wait(id.as_str(), "").await;
        exit.map(|exit| i32::try_from(exit.exit_status).unwrap_or(255))
            .map_err(|status| Error::failed(format!("wait for container {id}"), status))
    };
    let process = Process { clients: &clients, container: &id, exec_id: "" };
    // Exit or given up: either way the container is not ours to end.
    let (Ended::Exit | Ended::GivenUp) = serve(far, stream, exit, process, drain).await;
}
