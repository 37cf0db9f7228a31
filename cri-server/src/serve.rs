//! The gRPC server on the daemon's unix socket.

mod authority;
mod connection;
mod deadline;
mod oversize;
pub(crate) mod socket;

use std::io;

use api::{
    containerd::services::{
        containers::v1::containers_server::ContainersServer, tasks::v1::tasks_server::TasksServer,
        version::v1::version_server::VersionServer,
    },
    cri::{image_service_server::ImageServiceServer, runtime_service_server::RuntimeServiceServer},
};
use futures_util::stream;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tower::util::MapResponseLayer;

use crate::{
    config::Grpc,
    containerd::Containerd,
    cri::Cri,
    serve::{
        connection::Connection,
        socket::{Owner, accept},
    },
};

/// Serves CRI, and what there is of containerd's own API, until `shutdown`, then lets the calls that run have their answers.
pub(crate) async fn serve(
    listener: UnixListener,
    grpc: &Grpc,
    cri: Cri,
    shutdown: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let owner = Owner { uid: grpc.uid, gid: grpc.gid };
    let containerd =
        Containerd { pods: cri.pods.clone(), config: cri.config.clone(), namespace: cri.namespace.clone() };
    let (receive, send) = (grpc.max_recv_message_size, grpc.max_send_message_size);
    let connections = stream::unfold(listener, move |listener| async move {
        let accepted: io::Result<Connection> = accept(&listener, owner).await.map(Connection::new);
        Some((accepted, listener))
    });
    Server::builder()
        .layer(tower::layer::layer_fn(deadline::Deadline))
        .layer(MapResponseLayer::new(oversize::told))
        .add_service(
            RuntimeServiceServer::new(cri.clone()).max_decoding_message_size(receive).max_encoding_message_size(send),
        )
        .add_service(ImageServiceServer::new(cri).max_decoding_message_size(receive).max_encoding_message_size(send))
        .add_service(VersionServer::new(containerd.clone()))
        .add_service(
            ContainersServer::new(containerd.clone())
                .max_decoding_message_size(receive)
                .max_encoding_message_size(send),
        )
        .add_service(TasksServer::new(containerd).max_decoding_message_size(receive).max_encoding_message_size(send))
        .serve_with_incoming_shutdown(connections, shutdown.cancelled_owned())
        .await
}
