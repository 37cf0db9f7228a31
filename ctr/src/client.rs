//! The connection to the daemon: one channel, and the namespace that every request carries.

use std::path::Path;

use api::containerd::services::containers::v1::containers_client::ContainersClient;
use api::containerd::services::images::v1::images_client::ImagesClient;
use api::containerd::services::namespaces::v1::namespaces_client::NamespacesClient;
use api::containerd::services::tasks::v1::tasks_client::TasksClient;
use api::containerd::services::version::v1::version_client::VersionClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::Request;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tower::service_fn;

use crate::error::Error;

/// What both sides of containerd's API accept as one message.
const MAX_MESSAGE: usize = 16 << 20;

pub(crate) struct Client {
    channel: Channel,
    namespace: MetadataValue<Ascii>,
}

impl Client {
    pub(crate) async fn connect(address: &Path, namespace: &str) -> Result<Self, Error> {
        let namespace = namespace.parse().map_err(|_| Error::Namespace(namespace.to_owned()))?;
        let socket = socket_path(address).to_owned();
        // The URL serves as :authority only; the connector knows where to go.
        let channel = Endpoint::from_static("http://localhost")
            .connect_with_connector(service_fn(move |_| {
                let socket = socket.clone();
                async move { UnixStream::connect(socket).await.map(TokioIo::new) }
            }))
            .await
            .map_err(|source| Error::Dial { address: address.to_owned(), source })?;
        Ok(Self { channel, namespace })
    }

    /// Wraps a message into a request for this client's namespace.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }

    pub(crate) fn version(&self) -> VersionClient<Channel> {
        VersionClient::new(self.channel.clone())
    }

    pub(crate) fn namespaces(&self) -> NamespacesClient<Channel> {
        NamespacesClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(crate) fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(crate) fn containers(&self) -> ContainersClient<Channel> {
        ContainersClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }

    pub(crate) fn tasks(&self) -> TasksClient<Channel> {
        TasksClient::new(self.channel.clone()).max_decoding_message_size(MAX_MESSAGE)
    }
}

/// Stock clients are given URLs as well as paths.
fn socket_path(address: &Path) -> &Path {
    address.to_str().and_then(|text| text.strip_prefix("unix://")).map_or(address, Path::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_path_or_a_unix_url() {
        assert_eq!(socket_path(Path::new("/run/a.sock")), Path::new("/run/a.sock"));
        assert_eq!(socket_path(Path::new("unix:///run/a.sock")), Path::new("/run/a.sock"));
    }
}
