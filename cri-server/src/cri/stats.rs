//! ContainerStats, ListContainerStats, PodSandboxStats, ListPodSandboxStats and the streaming forms.

use std::sync::Arc;

use api::cri;
use sandbox::{
    Error,
    model::{ContainerView, PodState, PodView},
    stats::Stats,
};
use tokio_stream::Stream;
use tonic::Status;

use super::{
    Cri,
    convert::{
        parse_name,
        stats::{to_container_stats, to_pod_stats},
    },
    errors::sandbox_status,
    list::selects,
};

/// So many are read before a message is sent: the rest is read when the client has taken it.
const AT_ONCE: usize = 50;

impl Cri {
    pub(super) async fn container_stats(
        &self,
        request: cri::ContainerStatsRequest,
    ) -> Result<cri::ContainerStatsResponse, Status> {
        let view = self.pods.container(&parse_name(request.container_id, "container_id")?).map_err(sandbox_status)?;
        let stats = container_stats(&self.stats, vec![view]).await?;
        Ok(cri::ContainerStatsResponse { stats: stats.into_iter().next() })
    }

    pub(super) async fn list_container_stats(
        &self,
        request: cri::ListContainerStatsRequest,
    ) -> Result<cri::ListContainerStatsResponse, Status> {
        let stats = container_stats(&self.stats, self.measured_containers(request.filter)).await?;
        Ok(cri::ListContainerStatsResponse { stats })
    }

    pub(super) fn stream_container_stats(
        &self,
        request: cri::StreamContainerStatsRequest,
    ) -> impl Stream<Item = Result<cri::StreamContainerStatsResponse, Status>> + Send + use<> {
        let stats = self.stats.clone();
        in_parts(self.measured_containers(request.filter), move |views| {
            let stats = stats.clone();
            async move {
                let container_stats = container_stats(&stats, views).await?;
                Ok(cri::StreamContainerStatsResponse { container_stats })
            }
        })
    }

    pub(super) async fn pod_stats(
        &self,
        request: cri::PodSandboxStatsRequest,
    ) -> Result<cri::PodSandboxStatsResponse, Status> {
        let id = parse_name(request.pod_sandbox_id, "pod_sandbox_id")?;
        let view = self.pods.pod(&id).map_err(sandbox_status)?;
        if view.state != PodState::Ready {
            return Err(sandbox_status(Error::Unavailable(format!("pod sandbox {:?} is not ready", view.id.as_str()))));
        }
        let stats = pod_stats(&self.stats, vec![view]).await?;
        Ok(cri::PodSandboxStatsResponse { stats: stats.into_iter().next() })
    }

    pub(super) async fn list_pod_stats(
        &self,
        request: cri::ListPodSandboxStatsRequest,
    ) -> Result<cri::ListPodSandboxStatsResponse, Status> {
        let stats = pod_stats(&self.stats, self.measured_pods(request.filter)).await?;
        Ok(cri::ListPodSandboxStatsResponse { stats })
    }

    pub(super) fn stream_pod_stats(
        &self,
        request: cri::StreamPodSandboxStatsRequest,
    ) -> impl Stream<Item = Result<cri::StreamPodSandboxStatsResponse, Status>> + Send + use<> {
        let stats = self.stats.clone();
        in_parts(self.measured_pods(request.filter), move |views| {
            let stats = stats.clone();
            async move {
                let pod_sandbox_stats = pod_stats(&stats, views).await?;
                Ok(cri::StreamPodSandboxStatsResponse { pod_sandbox_stats })
            }
        })
    }

    /// Containers that do not run are among them, for their layers.
    fn measured_containers(&self, filter: Option<cri::ContainerStatsFilter>) -> Vec<Arc<ContainerView>> {
        let filter = filter.unwrap_or_default();
        let mut containers = self.pods.containers();
        containers.retain(|container| {
            container.id.as_str().starts_with(&filter.id)
                && container.pod.as_str().starts_with(&filter.pod_sandbox_id)
                && selects(&filter.label_selector, &container.spec.labels)
        });
        containers
    }

    /// Pods that are ready: the others use nothing.
    fn measured_pods(&self, filter: Option<cri::PodSandboxStatsFilter>) -> Vec<Arc<PodView>> {
        let filter = filter.unwrap_or_default();
        let mut pods = self.ready_pods();
        pods.retain(|pod| pod.id.as_str().starts_with(&filter.id) && selects(&filter.label_selector, &pod.spec.labels));
        pods
    }

    pub(super) fn ready_pods(&self) -> Vec<Arc<PodView>> {
        let mut pods = self.pods.pods();
        pods.retain(|pod| pod.state == PodState::Ready);
        pods
    }
}

async fn container_stats(stats: &Stats, views: Vec<Arc<ContainerView>>) -> Result<Vec<cri::ContainerStats>, Status> {
    let stats = stats.containers(views).await.map_err(sandbox_status)?;
    Ok(stats.iter().map(to_container_stats).collect())
}

async fn pod_stats(stats: &Stats, views: Vec<Arc<PodView>>) -> Result<Vec<cri::PodSandboxStats>, Status> {
    let stats = stats.pods(views).await.map_err(sandbox_status)?;
    Ok(stats.iter().map(to_pod_stats).collect())
}

/// One message for each part of `views`, read when the last one has been sent. Nothing at all is a stream that just ends.
pub(super) fn in_parts<V, M, F>(
    views: Vec<V>,
    read: impl FnMut(Vec<V>) -> F + Send + 'static,
) -> impl Stream<Item = Result<M, Status>> + Send
where
    V: Send + 'static,
    M: Send + 'static,
    F: Future<Output = Result<M, Status>> + Send + 'static,
{
    let mut views = views.into_iter();
    let parts = std::iter::from_fn(move || {
        let part: Vec<V> = views.by_ref().take(AT_ONCE).collect();
        (!part.is_empty()).then_some(part)
    });
    futures_util::StreamExt::then(tokio_stream::iter(parts), read)
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn a_long_list_comes_in_parts_and_an_empty_one_just_ends() {
        let parts = |count: usize| async move {
            let stream = in_parts((0..count).collect(), |part: Vec<usize>| async move { Ok(part.len()) });
            stream.map(|part| part.unwrap()).collect::<Vec<_>>().await
        };
        assert_eq!(parts(0).await, [0; 0]);
        assert_eq!(parts(1).await, [1]);
        assert_eq!(parts(120).await, [50, 50, 20]);
    }
}
