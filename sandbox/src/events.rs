//! Where shims send their events: the ttrpc socket beside the daemon's own (`<grpc address>.ttrpc`).
//!
//! No state is kept by events: a pod's owner learns of exits by `Wait` calls that survive what an event does not, a daemon
//! that is down. So each event is acknowledged, which keeps a shim's queue empty, and shown in the log at debug level.

use std::sync::Arc;

use shim::{
    proto::{forward::ForwardRequest, service},
    ttrpc::{self, BoxFuture, Call, Handler, Status, Stream},
};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// Takes events until `shutdown`.
pub async fn serve(listener: UnixListener, shutdown: CancellationToken) -> std::io::Result<()> {
    ttrpc::serve(listener, Arc::new(Events), shutdown).await
}

struct Events;

impl Handler for Events {
    fn unary(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Vec<u8>, Status>> {
        Box::pin(async move {
            if call.service != service::EVENTS || call.method != "Forward" {
                return Err(call.unimplemented());
            }
            let request: ForwardRequest = call.decode()?;
            let envelope = request.envelope.ok_or_else(|| Status::invalid("an event without an envelope"))?;
            let kind = envelope.event.map(|event| event.type_url).unwrap_or_default();
            tracing::debug!(namespace = envelope.namespace, topic = envelope.topic, kind, "event of a shim");
            Ok(Vec::new())
        })
    }

    fn stream(self: Arc<Self>, call: Call, _: Stream) -> BoxFuture<'static, Result<(), Status>> {
        Box::pin(async move { Err(call.unimplemented()) })
    }

    fn is_stream(&self, _: &str, _: &str) -> bool {
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use shim::{
        proto::{events::TaskOom, to_any, types::Envelope},
        ttrpc::{Client, Code},
    };

    #[tokio::test]
    async fn an_event_is_acknowledged_and_anything_else_is_unimplemented() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let shutdown = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, shutdown.clone()));
        let client = Client::connect(&path).await.unwrap();
        let event = Envelope {
            topic: "/tasks/oom".to_owned(),
            namespace: "k8s.io".to_owned(),
            event: Some(to_any(&TaskOom { container_id: "c".to_owned() })),
            ..Envelope::default()
        };
        let request = ForwardRequest { envelope: Some(event) };
        client.call::<()>(service::EVENTS, "Forward", &request).await.unwrap();
        let empty = client.call::<()>(service::EVENTS, "Forward", &ForwardRequest::default()).await.unwrap_err();
        assert_eq!(empty.code, Code::InvalidArgument);
        let other = client.call::<()>(service::EVENTS, "Publish", &request).await.unwrap_err();
        assert_eq!(other.code, Code::Unimplemented);
        shutdown.cancel();
        serving.await.unwrap().unwrap();
    }
}
