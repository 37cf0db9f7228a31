//! Clients that are not ours: k8s-cri's generated one, and Python's grpcio, whose C core sends the socket's path as
//! `:authority`.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::{
    fs,
    path::{Path, PathBuf},
};

use k8s_cri::v1::{self, image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient};
use windlass_e2e::{
    client::channel,
    command, fixture,
    node::{BUSYBOX, TestNode},
};

fn image() -> v1::ImageSpec {
    v1::ImageSpec { image: BUSYBOX.into(), ..v1::ImageSpec::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_the_k8s_cri_crates_own_client_drives_a_pod() {
    let node = TestNode::start().await;
    let channel = channel(&node.socket()).await.unwrap();
    let mut runtime = RuntimeServiceClient::new(channel.clone());
    let mut images = ImageServiceClient::new(channel);

    let version = runtime.version(v1::VersionRequest { version: "v1".into() }).await.unwrap().into_inner();
    assert_eq!((version.version.as_str(), version.runtime_api_version.as_str()), ("0.1.0", "v1"));
    let pull = v1::PullImageRequest { image: Some(image()), auth: None, sandbox_config: None };
    assert_eq!(images.pull_image(pull).await.unwrap().into_inner().image_ref, node.registry.busybox.id);

    let pod_config = v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "foreign".into(),
            uid: "uid-foreign".into(),
            namespace: "default".into(),
            attempt: 0,
        }),
        log_directory: node.path("logs").to_str().unwrap().into(),
        linux: Some(v1::LinuxPodSandboxConfig {
            cgroup_parent: format!("/{}", node.leakcheck.cgroup_parent),
            ..v1::LinuxPodSandboxConfig::default()
        }),
        ..v1::PodSandboxConfig::default()
    };
    let run = v1::RunPodSandboxRequest { config: Some(pod_config.clone()), runtime_handler: String::new() };
    let pod_sandbox_id = runtime.run_pod_sandbox(run).await.unwrap().into_inner().pod_sandbox_id;
    let config = v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "app".into(), attempt: 0 }),
        image: Some(image()),
        command: ["sleep", "1000"].map(String::from).into(),
        log_path: "app.log".into(),
        envs: vec![v1::KeyValue { key: "GREETING".into(), value: "hello from 0.32".into() }],
        ..v1::ContainerConfig::default()
    };
    let create = v1::CreateContainerRequest {
        pod_sandbox_id: pod_sandbox_id.clone(),
        config: Some(config),
        sandbox_config: Some(pod_config),
    };
    let container_id = runtime.create_container(create).await.unwrap().into_inner().container_id;
    runtime.start_container(v1::StartContainerRequest { container_id: container_id.clone() }).await.unwrap();
    let cmd = ["sh", "-c", "echo $GREETING"].map(String::from).into();
    let exec = v1::ExecSyncRequest { container_id: container_id.clone(), cmd, timeout: 30 };
    let answer = runtime.exec_sync(exec).await.unwrap().into_inner();
    assert_eq!((answer.stdout.as_slice(), answer.exit_code), (&b"hello from 0.32\n"[..], 0));
    runtime.stop_container(v1::StopContainerRequest { container_id: container_id.clone(), timeout: 0 }).await.unwrap();
    let status = v1::ContainerStatusRequest { container_id: container_id.clone(), verbose: false };
    let status = runtime.container_status(status).await.unwrap().into_inner().status.unwrap();
    assert_eq!((status.state(), status.exit_code), (v1::ContainerState::ContainerExited, 137));
    runtime.remove_container(v1::RemoveContainerRequest { container_id }).await.unwrap();
    let pod = pod_sandbox_id.clone();
    runtime.stop_pod_sandbox(v1::StopPodSandboxRequest { pod_sandbox_id: pod }).await.unwrap();
    runtime.remove_pod_sandbox(v1::RemovePodSandboxRequest { pod_sandbox_id }).await.unwrap();
    node.finish().await;
}

/// The whole conversation: the pod's id has to come back.
const SCRIPT: &str = r#"
import sys
import grpc
from runtime.v1 import node_pb2, pods_pb2, service_pb2_grpc

with grpc.insecure_channel("unix:" + sys.argv[1]) as channel:
    runtime = service_pb2_grpc.RuntimeServiceStub(channel)
    version = runtime.Version(node_pb2.VersionRequest(version="v1"), timeout=30)
    print(version.version, version.runtime_api_version)
    for pod in runtime.ListPodSandbox(pods_pb2.ListPodSandboxRequest(), timeout=30).items:
        print(pod.metadata.name, pod.id)
"#;

/// A Python with grpcio, made once a machine.
fn python() -> PathBuf {
    let dir = fixture::cache_dir().join("python");
    let python = dir.join("bin/python");
    // Written last, so that an environment whose making was interrupted is made again.
    let complete = dir.join("complete");
    if !complete.exists() {
        let made = command::answer("/usr/bin/python3", &["-m", "venv", "--clear", dir.to_str().unwrap()]);
        assert_eq!(made.code, Some(0), "no Python environment can be made: install python3-venv\n{}", made.stderr);
        let packages = ["-m", "pip", "install", "--quiet", "grpcio", "grpcio-tools", "protobuf"];
        command::run(python.to_str().unwrap(), &packages);
        fs::write(complete, "").unwrap();
    }
    python
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_pythons_grpcio_is_served_though_its_authority_is_the_sockets_path() {
    let node = TestNode::start().await;
    let pod = node.client().run_pod(&node.pod("python")).await.unwrap();
    let python = python();
    let python = python.to_str().unwrap();
    let work = tempfile::tempdir().unwrap();
    let protos = Path::new(env!("CARGO_MANIFEST_DIR")).join("../api/proto");
    let files = fs::read_dir(protos.join("runtime/v1")).unwrap().map(|entry| entry.unwrap().path());
    let files: Vec<String> = files.map(|path| path.to_str().unwrap().to_owned()).collect();
    let out = work.path().display();
    let mut arguments = vec!["-m".to_owned(), "grpc_tools.protoc".to_owned(), format!("-I{}", protos.display())];
    arguments.extend([format!("--python_out={out}"), format!("--grpc_python_out={out}")]);
    arguments.extend(files);
    command::run(python, &arguments);
    let script = work.path().join("list.py");
    fs::write(&script, SCRIPT).unwrap();
    let printed = command::run(python, &[script.as_path(), node.socket().as_path()]);
    assert_eq!(printed, format!("0.1.0 v1\npython {pod}\n"));
    node.remove_all_pods().await;
    node.finish().await;
}
