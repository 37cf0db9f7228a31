//! Attach: the streams of the container's own process, which goes on when the session ends.

use std::{future::Ready, time::Duration};

use crate::{
    Error,
    launcher::Clients,
    model::{Id, StreamRequest},
    ops::stream::{Ended, Process, Until, attach_to, serve},
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
    let process = Process { clients: &clients, container: &id, exec_id: "" };
    // Exit or given up: either way the container is not ours to end.
    // Not by the container's exit: ttrpc cannot take a call back, and each wait of a client that left would stay with the shim.
    let until = Until::<Ready<_>>::Streams;
    let (Ended::Exit | Ended::GivenUp) = serve(far, stream, until, process, drain).await;
}
