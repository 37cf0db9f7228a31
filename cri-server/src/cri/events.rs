//! GetContainerEvents: what changes, from the call on, each change with the statuses of its pod and containers.

use api::cri;
use futures_util::stream;
use sandbox::changes::{Change, ChangeKind, Missed};
use tokio_stream::Stream;
use tonic::Status;

use super::{
    Cri,
    convert::{
        status::{to_container_status, to_pod_status},
        to_nanoseconds,
    },
};

impl Cri {
    /// Ends when the client or the daemon goes, and with an error for a client that does not keep up: it cannot know what
    /// it has missed, and has to list.
    pub(super) fn events(&self) -> impl Stream<Item = Result<cri::ContainerEventResponse, Status>> + Send + use<> {
        let shutdown = self.shutdown.clone();
        stream::unfold(Some(self.pods.changes()), move |open| {
            let shutdown = shutdown.clone();
            async move {
                let mut changes = open?;
                let next = tokio::select! {
                    biased;
                    () = shutdown.cancelled() => None,
                    next = changes.next() => next,
                };
                match next? {
                    Ok(change) => Some((Ok(to_event(&change)), Some(changes))),
                    Err(missed) => Some((Err(too_slow(missed)), None)),
                }
            }
        })
    }
}

fn too_slow(Missed(count): Missed) -> Status {
    Status::resource_exhausted(format!(
        "{count} events are lost, because they were not read in time; list, and ask again"
    ))
}

fn to_event(change: &Change) -> cri::ContainerEventResponse {
    let kind = match change.kind {
        ChangeKind::Created => cri::ContainerEventType::ContainerCreatedEvent,
        ChangeKind::Started => cri::ContainerEventType::ContainerStartedEvent,
        ChangeKind::Stopped => cri::ContainerEventType::ContainerStoppedEvent,
        ChangeKind::Deleted => cri::ContainerEventType::ContainerDeletedEvent,
    };
    cri::ContainerEventResponse {
        container_id: change.id.to_string(),
        container_event_type: kind as i32,
        created_at: to_nanoseconds(change.at),
        pod_sandbox_status: change.pod.as_deref().map(to_pod_status),
        containers_statuses: change.containers.iter().map(|container| to_container_status(container)).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_is_cut_off_is_told_why_and_what_to_do() {
        let status = too_slow(Missed(3));
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(status.message(), "3 events are lost, because they were not read in time; list, and ask again");
    }
}
