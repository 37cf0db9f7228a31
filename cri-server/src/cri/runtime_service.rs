//! The RuntimeService as tonic calls it: one line an RPC, each to the file of its noun.

use std::pin::Pin;

use api::cri::{runtime_service_server::RuntimeService, *};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::Cri;

/// A server stream.
type Streamed<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;
type Answer<T> = Result<Response<T>, Status>;

fn streamed<T: 'static>(stream: impl Stream<Item = Result<T, Status>> + Send + 'static) -> Answer<Streamed<T>> {
    Ok(Response::new(Box::pin(stream)))
}

#[tonic::async_trait]
impl RuntimeService for Cri {
    async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
        Ok(Response::new(Cri::version(self)))
    }

    async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
        Ok(Response::new(Cri::status(self, request.into_inner()).await))
    }

    async fn runtime_config(&self, _: Request<RuntimeConfigRequest>) -> Answer<RuntimeConfigResponse> {
        Ok(Response::new(Cri::runtime_config(self)))
    }

    /// The pod CIDR is the network plugins' own business; containerd answers the same without a `conf_template`.
    async fn update_runtime_config(
        &self,
        _: Request<UpdateRuntimeConfigRequest>,
    ) -> Answer<UpdateRuntimeConfigResponse> {
        Ok(Response::new(UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
        self.run_pod(request.into_inner()).await.map(Response::new)
    }

    async fn stop_pod_sandbox(&self, request: Request<StopPodSandboxRequest>) -> Answer<StopPodSandboxResponse> {
        self.stop_pod(request.into_inner()).await.map(Response::new)
    }

    async fn remove_pod_sandbox(&self, request: Request<RemovePodSandboxRequest>) -> Answer<RemovePodSandboxResponse> {
        self.remove_pod(request.into_inner()).await.map(Response::new)
    }

    async fn pod_sandbox_status(&self, request: Request<PodSandboxStatusRequest>) -> Answer<PodSandboxStatusResponse> {
        self.pod_status(request.into_inner()).map(Response::new)
    }

    async fn list_pod_sandbox(&self, request: Request<ListPodSandboxRequest>) -> Answer<ListPodSandboxResponse> {
        self.list_pods(request.into_inner()).map(Response::new)
    }

    async fn create_container(&self, request: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        Cri::create_container(self, request.into_inner()).await.map(Response::new)
    }

    async fn start_container(&self, request: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
        Cri::start_container(self, request.into_inner()).await.map(Response::new)
    }

    async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
        Cri::stop_container(self, request.into_inner()).await.map(Response::new)
    }

    async fn remove_container(&self, request: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
        Cri::remove_container(self, request.into_inner()).await.map(Response::new)
    }

    async fn list_containers(&self, request: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
        Cri::list_containers(self, request.into_inner()).map(Response::new)
    }

    async fn container_status(&self, request: Request<ContainerStatusRequest>) -> Answer<ContainerStatusResponse> {
        Cri::container_status(self, request.into_inner()).map(Response::new)
    }

    async fn reopen_container_log(
        &self,
        request: Request<ReopenContainerLogRequest>,
    ) -> Answer<ReopenContainerLogResponse> {
        self.reopen_log(request.into_inner()).await.map(Response::new)
    }

    async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
        Cri::exec_sync(self, request.into_inner()).await.map(Response::new)
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        Cri::exec(self, request.into_inner()).map(Response::new)
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        Cri::attach(self, request.into_inner()).map(Response::new)
    }

    async fn port_forward(&self, request: Request<PortForwardRequest>) -> Answer<PortForwardResponse> {
        Cri::port_forward(self, request.into_inner()).map(Response::new)
    }

    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Answer<UpdateContainerResourcesResponse> {
        Cri::update_container_resources(self, request.into_inner()).await.map(Response::new)
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<UpdatePodSandboxResourcesRequest>,
    ) -> Answer<UpdatePodSandboxResourcesResponse> {
        self.update_pod_resources(request.into_inner()).await.map(Response::new)
    }

    async fn checkpoint_container(
        &self,
        request: Request<CheckpointContainerRequest>,
    ) -> Answer<CheckpointContainerResponse> {
        Cri::checkpoint_container(self, request.into_inner()).await.map(Response::new)
    }

    async fn container_stats(&self, request: Request<ContainerStatsRequest>) -> Answer<ContainerStatsResponse> {
        Cri::container_stats(self, request.into_inner()).await.map(Response::new)
    }

    async fn list_container_stats(
        &self,
        request: Request<ListContainerStatsRequest>,
    ) -> Answer<ListContainerStatsResponse> {
        Cri::list_container_stats(self, request.into_inner()).await.map(Response::new)
    }

    async fn pod_sandbox_stats(&self, request: Request<PodSandboxStatsRequest>) -> Answer<PodSandboxStatsResponse> {
        self.pod_stats(request.into_inner()).await.map(Response::new)
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<ListPodSandboxStatsRequest>,
    ) -> Answer<ListPodSandboxStatsResponse> {
        self.list_pod_stats(request.into_inner()).await.map(Response::new)
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<ListMetricDescriptorsRequest>,
    ) -> Answer<ListMetricDescriptorsResponse> {
        Ok(Response::new(Cri::metric_descriptors()))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<ListPodSandboxMetricsRequest>,
    ) -> Answer<ListPodSandboxMetricsResponse> {
        self.list_pod_metrics().await.map(Response::new)
    }

    type GetContainerEventsStream = Streamed<ContainerEventResponse>;
    async fn get_container_events(&self, _: Request<GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        streamed(self.events())
    }

    type StreamPodSandboxesStream = Streamed<StreamPodSandboxesResponse>;
    async fn stream_pod_sandboxes(
        &self,
        request: Request<StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        streamed(self.stream_pods(request.into_inner())?)
    }

    type StreamContainersStream = Streamed<StreamContainersResponse>;
    async fn stream_containers(
        &self,
        request: Request<StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        streamed(Cri::stream_containers(self, request.into_inner())?)
    }

    type StreamContainerStatsStream = Streamed<StreamContainerStatsResponse>;
    async fn stream_container_stats(
        &self,
        request: Request<StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        streamed(Cri::stream_container_stats(self, request.into_inner()))
    }

    type StreamPodSandboxStatsStream = Streamed<StreamPodSandboxStatsResponse>;
    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        streamed(self.stream_pod_stats(request.into_inner()))
    }

    type StreamPodSandboxMetricsStream = Streamed<StreamPodSandboxMetricsResponse>;
    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        streamed(self.stream_pod_metrics())
    }
}
