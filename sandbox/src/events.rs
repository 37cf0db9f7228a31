//! Where shims send their events: the ttrpc socket beside the daemon's own (`<grpc address>.ttrpc`).
//!
//! No state is kept by events: a pod's owner learns of exits by `Wait` calls that survive what an event does not, a daemon
//! that is down. So each event is acknowledged, which keeps a shim's queue empty, and shown in the log at debug level.
//! One thing is noted, because a shim of a virtual machine has no other way to tell it: that memory ran out in a container.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use shim::{
    proto::{events::TaskOom, forward::ForwardRequest, parse_any, service},
    ttrpc::{self, BoxFuture, Call, Handler, Status, Stream},
};
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

/// Takes events until `shutdown`, and notes in `ooms` what they tell of memory.
pub async fn serve(listener: UnixListener, ooms: Ooms, shutdown: CancellationToken) -> std::io::Result<()> {
    ttrpc::serve(listener, Arc::new(Events(ooms)), shutdown).await
}

/// Containers in which the kernel has killed for memory, as far as events told. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Ooms(Arc<Mutex<VecDeque<String>>>);

/// A container is forgotten when its task is deleted; those of a shim that never gets that far are not kept for ever.
const NOTED: usize = 1024;

impl Ooms {
    pub(crate) fn contains(&self, id: &str) -> bool {
        self.noted().iter().any(|noted| noted == id)
    }

    pub(crate) fn forget(&self, id: &str) {
        self.noted().retain(|noted| noted != id);
    }

    fn note(&self, id: String) {
        let mut noted = self.noted();
        if !noted.contains(&id) {
            noted.push_back(id);
        }
        if noted.len() > NOTED {
            noted.pop_front();
        }
    }

    fn noted(&self) -> MutexGuard<'_, VecDeque<String>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Events(Ooms);

impl Handler for Events {
    fn unary(self: Arc<Self>, call: Call) -> BoxFuture<'static, Result<Vec<u8>, Status>> {
        Box::pin(async move {
            if call.service != service::EVENTS || call.method != "Forward" {
                return Err(call.unimplemented());
            }
            let request: ForwardRequest = call.decode()?;
            let envelope = request.envelope.ok_or_else(|| Status::invalid("an event without an envelope"))?;
            let event = envelope.event.unwrap_or_default();
            if let Some(Ok(oom)) = parse_any::<TaskOom>(&event) {
                self.0.note(oom.container_id);
            }
            let kind = event.type_url;
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

    #[test]
    fn what_is_noted_is_bounded_and_forgotten() {
        let ooms = Ooms::default();
        for n in 0..=NOTED {
            ooms.note(n.to_string());
        }
        assert_eq!((ooms.contains("0"), ooms.contains("1"), ooms.noted().len()), (false, true, NOTED));
        ooms.forget("1");
        assert!(!ooms.contains("1"));
    }

    #[tokio::test]
    async fn an_event_is_acknowledged_and_noted_and_anything_else_is_unimplemented() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        let shutdown = CancellationToken::new();
        let ooms = Ooms::default();
        let serving = tokio::spawn(serve(listener, ooms.clone(), shutdown.clone()));
        let client = Client::connect(&path).await.unwrap();
        let event = Envelope {
            topic: "/tasks/oom".to_owned(),
            namespace: "k8s.io".to_owned(),
            event: Some(to_any(&TaskOom { container_id: "c".to_owned() })),
            ..Envelope::default()
        };
        let request = ForwardRequest { envelope: Some(event) };
        client.call::<()>(service::EVENTS, "Forward", &request).await.unwrap();
        assert!(ooms.contains("c") && !ooms.contains("d"));
        let empty = client.call::<()>(service::EVENTS, "Forward", &ForwardRequest::default()).await.unwrap_err();
        assert_eq!(empty.code, Code::InvalidArgument);
        let other = client.call::<()>(service::EVENTS, "Publish", &request).await.unwrap_err();
        assert_eq!(other.code, Code::Unimplemented);
        shutdown.cancel();
        serving.await.unwrap().unwrap();
    }
}
