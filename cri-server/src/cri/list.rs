//! ListPodSandbox, ListContainers and their streaming forms, from the published views: nothing here waits for anything.

use std::collections::HashMap;

use api::cri;
use sandbox::model::StringMap;
use tokio_stream::Stream;
use tonic::Status;

use super::{
    Cri,
    convert::{
        parse_enum,
        status::{to_container_item, to_container_state, to_pod_item, to_pod_state},
    },
};

/// What a message of a stream holds at most: one of the largest items alone may be larger, and still fit into the 16 MiB
/// that gRPC clients take.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_ITEMS: usize = 1000;

impl Cri {
    pub(super) fn list_pods(&self, request: cri::ListPodSandboxRequest) -> Result<cri::ListPodSandboxResponse, Status> {
        Ok(cri::ListPodSandboxResponse { items: self.pod_items(request.filter)? })
    }

    pub(super) fn stream_pods(
        &self,
        request: cri::StreamPodSandboxesRequest,
    ) -> Result<impl Stream<Item = Result<cri::StreamPodSandboxesResponse, Status>> + Send + use<>, Status> {
        let message = |pod_sandboxes| cri::StreamPodSandboxesResponse { pod_sandboxes };
        Ok(in_batches(self.pod_items(request.filter)?, message))
    }

    pub(super) fn list_containers(
        &self,
        request: cri::ListContainersRequest,
    ) -> Result<cri::ListContainersResponse, Status> {
        Ok(cri::ListContainersResponse { containers: self.container_items(request.filter)? })
    }

    pub(super) fn stream_containers(
        &self,
        request: cri::StreamContainersRequest,
    ) -> Result<impl Stream<Item = Result<cri::StreamContainersResponse, Status>> + Send + use<>, Status> {
        let message = |containers| cri::StreamContainersResponse { containers };
        Ok(in_batches(self.container_items(request.filter)?, message))
    }

    fn pod_items(&self, filter: Option<cri::PodSandboxFilter>) -> Result<Vec<cri::PodSandbox>, Status> {
        let filter = filter.unwrap_or_default();
        let state =
            filter.state.map(|state| parse_enum::<cri::PodSandboxState>(state.state, "filter.state")).transpose()?;
        let mut pods = self.pods.pods();
        pods.retain(|pod| {
            pod.id.as_str().starts_with(&filter.id)
                && state.is_none_or(|state| state == to_pod_state(pod.state))
                && selects(&filter.label_selector, &pod.spec.labels)
        });
        Ok(pods.iter().map(|pod| to_pod_item(pod)).collect())
    }

    fn container_items(&self, filter: Option<cri::ContainerFilter>) -> Result<Vec<cri::Container>, Status> {
        let filter = filter.unwrap_or_default();
        let state =
            filter.state.map(|state| parse_enum::<cri::ContainerState>(state.state, "filter.state")).transpose()?;
        let mut containers = self.pods.containers();
        containers.retain(|container| {
            container.id.as_str().starts_with(&filter.id)
                && container.pod.as_str().starts_with(&filter.pod_sandbox_id)
                && state.is_none_or(|state| state == to_container_state(&container.state))
                && selects(&filter.label_selector, &container.spec.labels)
        });
        Ok(containers.iter().map(|container| to_container_item(container)).collect())
    }
}

/// Every pair of the selector must be among the labels.
pub(super) fn selects(selector: &HashMap<String, String>, labels: &StringMap) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// The items in messages of bounded size, each with one at least. No items is a stream that just ends.
pub(super) fn in_batches<T, M>(
    items: Vec<T>,
    message: impl Fn(Vec<T>) -> M + Send,
) -> impl Stream<Item = Result<M, Status>> + Send
where
    T: prost::Message,
    M: Send,
{
    let mut items = items.into_iter().peekable();
    let batches = std::iter::from_fn(move || {
        let first = items.next()?;
        let mut bytes = first.encoded_len();
        let mut batch = vec![first];
        while batch.len() < BATCH_ITEMS
            && let Some(next) = items.next_if(|next| bytes + next.encoded_len() <= BATCH_BYTES)
        {
            bytes += next.encoded_len();
            batch.push(next);
        }
        Some(Ok(message(batch)))
    });
    tokio_stream::iter(batches)
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn messages_are_bounded_by_bytes_and_by_items_and_lose_none() {
        let check = async |count: usize, bytes: usize, expected: &[usize]| {
            let image = cri::Image { id: "x".repeat(bytes), ..Default::default() };
            let batches = in_batches(vec![image; count], |batch| batch.len());
            let sizes: Vec<usize> = batches.map(Result::unwrap).collect().await;
            assert_eq!(sizes, expected, "{count} of {bytes} bytes");
        };
        check(0, 10, &[]).await;
        check(1, 10, &[1]).await;
        check(2500, 10, &[1000, 1000, 500]).await;
        check(3, 500_000, &[2, 1]).await;
        check(2, 3_000_000, &[1, 1]).await;
    }
}
