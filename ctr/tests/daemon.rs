//! Runs the built `ctr` against an in-process daemon that serves only some services, and with none.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::atomic::{AtomicU32, Ordering};

use api::containerd::services::containers::v1::containers_server::{Containers, ContainersServer};
use api::containerd::services::containers::v1::{
    Container, CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest, GetContainerRequest,
    GetContainerResponse, ListContainerMessage, ListContainersRequest, ListContainersResponse, UpdateContainerRequest,
    UpdateContainerResponse,
};
use api::containerd::services::version::v1::VersionResponse;
use api::containerd::services::version::v1::version_server::{Version, VersionServer};
use tokio::net::UnixListener;
use tonic::codegen::tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

struct FixedVersion;

#[tonic::async_trait]
impl Version for FixedVersion {
    async fn version(&self, _: Request<()>) -> Result<Response<VersionResponse>, Status> {
        Ok(Response::new(VersionResponse { version: "9.8.7".into(), revision: "cafe".into() }))
    }
}

/// Knows no streams, and names its one container after the namespace and filters of the request.
struct EchoContainers;

#[tonic::async_trait]
impl Containers for EchoContainers {
    type ListStreamStream = tonic::codegen::BoxStream<ListContainerMessage>;

    async fn list(&self, request: Request<ListContainersRequest>) -> Result<Response<ListContainersResponse>, Status> {
        let namespace = request.metadata().get("containerd-namespace").unwrap().to_str().unwrap().to_owned();
        let id = format!("{namespace}/{}", request.into_inner().filters.join("|"));
        Ok(Response::new(ListContainersResponse { containers: vec![Container { id, ..Container::default() }] }))
    }

    async fn list_stream(&self, _: Request<ListContainersRequest>) -> Result<Response<Self::ListStreamStream>, Status> {
        Err(Status::unimplemented("no streams here"))
    }

    async fn get(&self, _: Request<GetContainerRequest>) -> Result<Response<GetContainerResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn create(&self, _: Request<CreateContainerRequest>) -> Result<Response<CreateContainerResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn update(&self, _: Request<UpdateContainerRequest>) -> Result<Response<UpdateContainerResponse>, Status> {
        Err(Status::unimplemented(""))
    }

    async fn delete(&self, _: Request<DeleteContainerRequest>) -> Result<Response<()>, Status> {
        Err(Status::unimplemented(""))
    }
}

/// A socket's path that no other test has; the socket goes with it.
struct Socket(PathBuf);

impl Socket {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("ctr-test-{}-{}.sock", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        Self(std::env::temp_dir().join(name))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // A test that binds nothing leaves nothing to remove.
        let _ = std::fs::remove_file(&self.0);
    }
}

/// Serves until the returned task is dropped with the test's runtime.
fn serve(socket: &Socket) {
    let incoming = UnixListenerStream::new(UnixListener::bind(&socket.0).unwrap());
    let router = Server::builder()
        .add_service(VersionServer::new(FixedVersion))
        .add_service(ContainersServer::new(EchoContainers));
    tokio::spawn(async move { router.serve_with_incoming(incoming).await.unwrap() });
}

async fn ctr(address: &Path, arguments: &[&str]) -> (Option<i32>, String, String) {
    let output: Output = tokio::process::Command::new(env!("CARGO_BIN_EXE_ctr"))
        .env_remove("CONTAINERD_ADDRESS")
        .env_remove("CONTAINERD_NAMESPACE")
        .arg("--address")
        .arg(address)
        .args(arguments)
        .output()
        .await
        .unwrap();
    (output.status.code(), String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap())
}

#[tokio::test]
async fn version_prints_what_the_daemon_says() {
    let socket = Socket::new();
    serve(&socket);
    let expected =
        format!("Client:\n  Version:  {}\n\nServer:\n  Version:  9.8.7\n  Revision: cafe\n", env!("CARGO_PKG_VERSION"));
    assert_eq!(ctr(&socket.0, &["version"]).await, (Some(0), expected, String::new()));
}

#[tokio::test]
async fn an_address_may_be_a_unix_url() {
    let socket = Socket::new();
    serve(&socket);
    let url = PathBuf::from(format!("unix://{}", socket.0.display()));
    assert_eq!(ctr(&url, &["version"]).await.0, Some(0));
}

#[tokio::test]
async fn a_service_that_the_daemon_lacks_is_an_error_with_exit_code_1() {
    let socket = Socket::new();
    serve(&socket);
    for (noun, message) in [
        ("tasks", "ctr: not implemented\n"),
        ("namespaces", "ctr: not implemented\n"),
        ("images", "ctr: failed to list images: not implemented\n"),
    ] {
        assert_eq!(ctr(&socket.0, &[noun, "ls"]).await, (Some(1), String::new(), message.to_owned()), "{noun}");
    }
}

#[tokio::test]
async fn containers_are_listed_by_a_daemon_without_streams_in_the_namespace_asked_for() {
    let socket = Socket::new();
    serve(&socket);
    let answer = ctr(&socket.0, &["-n", "k8s.io", "containers", "ls", "-q", "id==a", "image~=b"]).await;
    assert_eq!(answer, (Some(0), "k8s.io/id==a|image~=b\n".to_owned(), String::new()));
    let answer = ctr(&socket.0, &["containers", "ls", "-q"]).await;
    assert_eq!(answer, (Some(0), "default/\n".to_owned(), String::new()));
}

#[tokio::test]
async fn without_a_daemon_the_address_and_the_reason_are_told() {
    let socket = Socket::new();
    let message = format!("ctr: failed to dial {:?}: No such file or directory (os error 2)\n", socket.0);
    assert_eq!(ctr(&socket.0, &["version"]).await, (Some(1), String::new(), message));
}
