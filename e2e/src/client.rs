//! A CRI client over the node's socket: one method a verb, the status of a failed call as it came, and the shapes of the
//! pods and containers that the tests ask for.

use std::{path::Path, time::Duration};

use api::cri::{self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::{
    Request, Status,
    transport::{Channel, Endpoint},
};
use tower::service_fn;

use crate::wait;

/// A call's answer.
pub type Answer<T> = Result<T, Status>;

/// A connection to the daemon. It connects again by itself after the daemon was restarted.
#[derive(Clone, Debug)]
pub struct Client {
    pub runtime: RuntimeServiceClient<Channel>,
    pub images: ImageServiceClient<Channel>,
}

/// A channel over a unix socket, for any generated client.
pub async fn channel(socket: &Path) -> Result<Channel, tonic::transport::Error> {
    channel_of(Endpoint::from_static("http://localhost"), socket).await
}

/// As [`channel`], by a client that takes only so many bytes of a stream before they are read.
pub async fn narrow_channel(socket: &Path, window: u32) -> Result<Channel, tonic::transport::Error> {
    channel_of(Endpoint::from_static("http://localhost").initial_stream_window_size(window), socket).await
}

/// The endpoint's URL serves as :authority only.
async fn channel_of(endpoint: Endpoint, socket: &Path) -> Result<Channel, tonic::transport::Error> {
    let socket = socket.to_owned();
    let connector = service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    endpoint.connect_with_connector(connector).await
}

impl Client {
    pub async fn connect(socket: &Path) -> Result<Client, tonic::transport::Error> {
        let channel = channel(socket).await?;
        let images = ImageServiceClient::new(channel.clone());
        // The kubelet's limit.
        let runtime = RuntimeServiceClient::new(channel).max_decoding_message_size(16 << 20);
        Ok(Client { runtime, images })
    }

    pub async fn run_pod(&self, config: &cri::PodSandboxConfig) -> Answer<String> {
        self.run_pod_on("", config).await
    }

    /// As [`Client::run_pod`], by another runtime handler than the default one.
    pub async fn run_pod_on(&self, handler: &str, config: &cri::PodSandboxConfig) -> Answer<String> {
        let request = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.into() };
        Ok(self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    /// As [`Client::run_pod`], by a client that gives up after `deadline`.
    pub async fn run_pod_within(&self, config: &cri::PodSandboxConfig, deadline: Duration) -> Answer<String> {
        let message = cri::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: String::new() };
        let mut request = Request::new(message);
        request.set_timeout(deadline);
        Ok(self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id)
    }

    pub async fn stop_pod(&self, id: &str) -> Answer<()> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    pub async fn remove_pod(&self, id: &str) -> Answer<()> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    pub async fn pod_status(&self, id: &str) -> Answer<cri::PodSandboxStatus> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: false };
        let answer = self.runtime.clone().pod_sandbox_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("an answer without a status"))
    }

    /// What verbose status tells under `info`.
    pub async fn pod_info(&self, id: &str) -> Answer<serde_json::Value> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: id.into(), verbose: true };
        let answer = self.runtime.clone().pod_sandbox_status(request).await?.into_inner();
        serde_json::from_str(&answer.info["info"]).map_err(|error| Status::internal(error.to_string()))
    }

    pub async fn pods(&self) -> Answer<Vec<cri::PodSandbox>> {
        let request = cri::ListPodSandboxRequest { filter: None };
        Ok(self.runtime.clone().list_pod_sandbox(request).await?.into_inner().items)
    }

    pub async fn create(
        &self,
        pod: &str,
        config: &cri::ContainerConfig,
        pod_config: &cri::PodSandboxConfig,
    ) -> Answer<String> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.into(),
            config: Some(config.clone()),
            sandbox_config: Some(pod_config.clone()),
        };
        Ok(self.runtime.clone().create_container(request).await?.into_inner().container_id)
    }

    pub async fn start(&self, id: &str) -> Answer<()> {
        self.runtime.clone().start_container(cri::StartContainerRequest { container_id: id.into() }).await.map(drop)
    }

    pub async fn stop(&self, id: &str, grace_seconds: i64) -> Answer<()> {
        let request = cri::StopContainerRequest { container_id: id.into(), timeout: grace_seconds };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    pub async fn remove(&self, id: &str) -> Answer<()> {
        self.runtime.clone().remove_container(cri::RemoveContainerRequest { container_id: id.into() }).await.map(drop)
    }

    pub async fn status(&self, id: &str) -> Answer<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: false };
        let answer = self.runtime.clone().container_status(request).await?.into_inner();
        answer.status.ok_or_else(|| Status::internal("an answer without a status"))
    }

    /// What verbose status tells under `info`.
    pub async fn container_info(&self, id: &str) -> Answer<serde_json::Value> {
        let request = cri::ContainerStatusRequest { container_id: id.into(), verbose: true };
        let answer = self.runtime.clone().container_status(request).await?.into_inner();
        serde_json::from_str(&answer.info["info"]).map_err(|error| Status::internal(error.to_string()))
    }

    pub async fn containers(&self) -> Answer<Vec<cri::Container>> {
        let request = cri::ListContainersRequest { filter: None };
        Ok(self.runtime.clone().list_containers(request).await?.into_inner().containers)
    }

    pub async fn exec(&self, id: &str, command: &[&str], timeout_seconds: i64) -> Answer<cri::ExecSyncResponse> {
        let cmd = command.iter().map(|&word| word.to_owned()).collect();
        let request = cri::ExecSyncRequest { container_id: id.into(), cmd, timeout: timeout_seconds };
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    /// The output of a command that has to succeed.
    pub async fn output(&self, id: &str, command: &[&str]) -> String {
        let answer = self.exec(id, command, 60).await.unwrap_or_else(|status| panic!("exec {command:?}: {status}"));
        let stderr = String::from_utf8_lossy(&answer.stderr);
        assert_eq!(answer.exit_code, 0, "{command:?} failed: {stderr}");
        String::from_utf8(answer.stdout).unwrap()
    }

    /// Writes the container's checkpoint to the file at `location`.
    pub async fn checkpoint(&self, id: &str, location: &Path) -> Answer<()> {
        let location = location.to_str().unwrap().to_owned();
        let request = cri::CheckpointContainerRequest { container_id: id.into(), location, timeout: 0 };
        self.runtime.clone().checkpoint_container(request).await.map(drop)
    }

    pub async fn reopen_log(&self, id: &str) -> Answer<()> {
        let request = cri::ReopenContainerLogRequest { container_id: id.into() };
        self.runtime.clone().reopen_container_log(request).await.map(drop)
    }

    pub async fn pull(&self, image: &str) -> Answer<String> {
        let request = cri::PullImageRequest { image: Some(image_spec(image)), auth: None, sandbox_config: None };
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    pub async fn image(&self, image: &str) -> Answer<Option<cri::Image>> {
        let request = cri::ImageStatusRequest { image: Some(image_spec(image)), verbose: false };
        Ok(self.images.clone().image_status(request).await?.into_inner().image)
    }

    pub async fn image_list(&self) -> Answer<Vec<cri::Image>> {
        Ok(self.images.clone().list_images(cri::ListImagesRequest { filter: None }).await?.into_inner().images)
    }

    pub async fn remove_image(&self, image: &str) -> Answer<()> {
        let request = cri::RemoveImageRequest { image: Some(image_spec(image)) };
        self.images.clone().remove_image(request).await.map(drop)
    }

    /// Waits until the container has ended, and gives its last status.
    pub async fn exited(&self, id: &str) -> cri::ContainerStatus {
        wait::until("the container ends", wait::SOON, || async {
            let status = self.status(id).await.map_err(|status| status.to_string())?;
            match status.state() {
                cri::ContainerState::ContainerExited => Ok(status),
                state => Err(format!("it is {state:?}")),
            }
        })
        .await
    }
}

pub fn image_spec(image: &str) -> cri::ImageSpec {
    cri::ImageSpec { image: image.into(), ..cri::ImageSpec::default() }
}

/// A container that runs `command` in place of what its image names, and logs to `<name>.log` in the pod's directory.
pub fn container(name: &str, image: &str, command: &[&str]) -> cri::ContainerConfig {
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: name.into(), attempt: 0 }),
        image: Some(image_spec(image)),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        log_path: format!("{name}.log"),
        ..cri::ContainerConfig::default()
    }
}

/// A container whose image's own program runs with these arguments.
pub fn program(name: &str, image: &str, arguments: &[&str]) -> cri::ContainerConfig {
    let args = arguments.iter().map(|&word| word.to_owned()).collect();
    cri::ContainerConfig { command: Vec::new(), args, ..container(name, image, &[]) }
}
