//! Fields that no well-meaning client sends so: the code says whose fault it is, the message names the field as CRI does, and
//! the daemon goes on as if nothing had been asked. What is wrong with whole messages is in `malformed.rs`.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use api::cri;
use tonic::Code;
use windlass_e2e::{
    client::{Client, container},
    node::{BUSYBOX, TestNode},
    refusals::{Wrong, assert_unmoved, files},
};

/// The start of the message, and the change that it is to be refused with.
type Bad<T> = Vec<(&'static str, fn(&mut T))>;

/// A pod's configuration, each made wrong in one way.
fn bad_pods() -> Bad<cri::PodSandboxConfig> {
    fn metadata(config: &mut cri::PodSandboxConfig) -> &mut cri::PodSandboxMetadata {
        config.metadata.as_mut().unwrap()
    }
    fn linux(config: &mut cri::PodSandboxConfig) -> &mut cri::LinuxPodSandboxConfig {
        config.linux.as_mut().unwrap()
    }
    fn context(config: &mut cri::PodSandboxConfig) -> &mut cri::LinuxSandboxSecurityContext {
        linux(config).security_context.get_or_insert_default()
    }
    fn port(config: &mut cri::PodSandboxConfig) -> &mut cri::PortMapping {
        config.port_mappings.push(cri::PortMapping { container_port: 80, ..Default::default() });
        config.port_mappings.last_mut().unwrap()
    }
    fn namespaces(config: &mut cri::PodSandboxConfig) -> &mut cri::NamespaceOption {
        context(config).namespace_options.get_or_insert_default()
    }
    vec![
        ("config.metadata: is required", |c| c.metadata = None),
        ("config.metadata.name: must not be empty", |c| metadata(c).name.clear()),
        ("config.metadata.name: is 254 bytes long", |c| metadata(c).name = "x".repeat(254)),
        ("config.metadata.name: ", |c| metadata(c).name = "../x".into()),
        ("config.metadata.name: ", |c| metadata(c).name = "a\nb".into()),
        ("config.metadata.name: ", |c| metadata(c).name = "a\0b".into()),
        ("config.metadata.namespace: must not be empty", |c| metadata(c).namespace.clear()),
        ("config.metadata.namespace: ", |c| metadata(c).namespace = "..".into()),
        ("config.metadata.uid: must not be empty", |c| metadata(c).uid.clear()),
        ("config.metadata.uid: ", |c| metadata(c).uid = "u/1".into()),
        ("config.hostname: ", |c| c.hostname = "a\nb".into()),
        ("config.hostname: is 65 bytes long", |c| c.hostname = "h".repeat(65)),
        ("config.log_directory: ", |c| c.log_directory = "var/log".into()),
        ("config.log_directory: ", |c| c.log_directory = "/var/log/../../etc".into()),
        ("config.log_directory: ", |c| c.log_directory = "/var\0".into()),
        ("config.log_directory: ", |c| c.log_directory = "/var\n/log".into()),
        ("config.log_directory: is 4096 bytes long", |c| c.log_directory = format!("/{}", "x".repeat(4095))),
        ("config.dns_config.servers: ", |c| c.dns_config.get_or_insert_default().servers = vec!["1.1.1.1\nx".into()]),
        ("config.dns_config.searches: ", |c| c.dns_config.get_or_insert_default().searches = vec![String::new()]),
        ("config.dns_config.options: ", |c| c.dns_config.get_or_insert_default().options = vec!["a b".into()]),
        ("config.port_mappings.protocol: unknown value 7", |c| port(c).protocol = 7),
        ("config.port_mappings.container_port: -1 is not a port", |c| port(c).container_port = -1),
        ("config.port_mappings.host_port: 70000 is not a port", |c| port(c).host_port = 70_000),
        ("config.port_mappings.host_ip: ", |c| port(c).host_ip = "localhost".into()),
        ("config.labels: ", |c| drop(c.labels.insert("a\0".into(), String::new()))),
        ("config.annotations: ", |c| drop(c.annotations.insert("a".into(), "\0".into()))),
        ("config.annotations: ", |c| drop(c.annotations.insert("a".into(), "x".repeat(2 << 20)))),
        ("config.linux.cgroup_parent: ", |c| linux(c).cgroup_parent = "/a/../../b".into()),
        ("config.linux.cgroup_parent: ", |c| linux(c).cgroup_parent = "/a\nb".into()),
        ("config.linux.sysctls: ", |c| drop(linux(c).sysctls.insert("net/../kernel.x".into(), "1".into()))),
        ("config.linux.sysctls: ", |c| drop(linux(c).sysctls.insert("net.a".into(), "\0".into()))),
        ("config.linux.resources.memory_limit_in_bytes: -2 is negative", |c| {
            linux(c).resources.get_or_insert_default().memory_limit_in_bytes = -2;
        }),
        ("config.linux.overhead.cpu_shares: -7 is negative", |c| {
            linux(c).overhead.get_or_insert_default().cpu_shares = -7;
        }),
        ("config.linux.security_context.namespace_options.network: unknown value 9", |c| namespaces(c).network = 9),
        ("config.linux.security_context.namespace_options.pid: unknown value -1", |c| namespaces(c).pid = -1),
        ("config.linux.security_context.namespace_options.ipc: unknown value 4", |c| namespaces(c).ipc = 4),
        ("config.linux.security_context.namespace_options.target_id: ", |c| namespaces(c).pid = 3),
        ("config.linux.security_context.namespace_options.userns_options.mode: unknown value 5", |c| {
            namespaces(c).userns_options.get_or_insert_default().mode = 5;
        }),
        ("config.linux.security_context.namespace_options.userns_options.uids: ", |c| {
            namespaces(c).userns_options.get_or_insert_default();
        }),
        ("config.linux.security_context.run_as_user: -1 is not", |c| {
            context(c).run_as_user = Some(cri::Int64Value { value: -1 });
        }),
        ("config.linux.security_context.run_as_group: ", |c| {
            context(c).run_as_group = Some(cri::Int64Value { value: 1 });
        }),
        ("config.linux.security_context.supplemental_groups: -5 is not", |c| {
            context(c).supplemental_groups = vec![1, -5];
        }),
        ("config.linux.security_context.supplemental_groups_policy: unknown value 2", |c| {
            context(c).supplemental_groups_policy = 2;
        }),
        ("config.linux.security_context.seccomp.profile_type: unknown value 3", |c| {
            context(c).seccomp.get_or_insert_default().profile_type = 3;
        }),
        ("config.linux.security_context.seccomp.localhost_ref: is required", |c| {
            context(c).seccomp.get_or_insert_default().profile_type = 2;
        }),
        ("config.linux.security_context.apparmor.profile_type: unknown value 3", |c| {
            context(c).apparmor.get_or_insert_default().profile_type = 3;
        }),
    ]
}

/// The same of a container's.
fn bad_containers() -> Bad<cri::ContainerConfig> {
    fn mount(config: &mut cri::ContainerConfig) -> &mut cri::Mount {
        let (container_path, host_path) = ("/mnt".into(), "/tmp".into());
        config.mounts.push(cri::Mount { container_path, host_path, ..Default::default() });
        config.mounts.last_mut().unwrap()
    }
    fn device(config: &mut cri::ContainerConfig) -> &mut cri::Device {
        let (container_path, host_path) = ("/dev/x".into(), "/dev/null".into());
        config.devices.push(cri::Device { container_path, host_path, permissions: "r".into() });
        config.devices.last_mut().unwrap()
    }
    fn context(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerSecurityContext {
        config.linux.get_or_insert_default().security_context.get_or_insert_default()
    }
    fn resources(config: &mut cri::ContainerConfig) -> &mut cri::LinuxContainerResources {
        config.linux.get_or_insert_default().resources.get_or_insert_default()
    }
    vec![
        ("config.metadata: is required", |c| c.metadata = None),
        ("config.metadata.name: must not be empty", |c| c.metadata.as_mut().unwrap().name.clear()),
        ("config.metadata.name: ", |c| c.metadata.as_mut().unwrap().name = "a\nb".into()),
        ("config.image: is required", |c| c.image = None),
        ("config.image.image: must not be empty", |c| c.image.as_mut().unwrap().image.clear()),
        ("config.image.image: ", |c| c.image.as_mut().unwrap().image = "busybox\0".into()),
        ("config.command: ", |c| c.command = vec!["a\0".into()]),
        ("config.command: ", |c| c.command = vec!["x".repeat(8 << 20)]),
        ("config.args: ", |c| c.args = vec!["a\0".into()]),
        ("config.args: ", |c| c.args = vec!["x".repeat(8 << 20)]),
        ("config.working_dir: ", |c| c.working_dir = "/a\0".into()),
        ("config.envs.key: must not be empty", |c| c.envs.push(cri::KeyValue::default())),
        ("config.envs.key: ", |c| c.envs.push(cri::KeyValue { key: "A=B".into(), value: Vec::new() })),
        ("config.envs.value: ", |c| c.envs.push(cri::KeyValue { key: "A".into(), value: vec![0xFF] })),
        ("config.envs.value: ", |c| c.envs.push(cri::KeyValue { key: "A".into(), value: vec![0] })),
        ("config.envs.value: ", |c| c.envs.push(cri::KeyValue { key: "A".into(), value: vec![b'x'; 8 << 20] })),
        ("config.mounts.container_path: must not be empty", |c| mount(c).container_path.clear()),
        ("config.mounts.container_path: ", |c| mount(c).container_path = "/a\0".into()),
        ("config.mounts.host_path: must not be empty", |c| mount(c).host_path.clear()),
        ("config.mounts.host_path: ", |c| mount(c).host_path = "/a\0".into()),
        ("config.mounts.host_path: ", |c| mount(c).host_path = "relative".into()),
        ("config.mounts.propagation: unknown value 3", |c| mount(c).propagation = 3),
        ("config.devices.container_path: must not be empty", |c| device(c).container_path.clear()),
        ("config.devices.host_path: ", |c| device(c).host_path = "/dev/\0".into()),
        ("config.devices.permissions: ", |c| device(c).permissions = "rwx".into()),
        ("config.devices.permissions: ", |c| device(c).permissions.clear()),
        ("config.CDI_devices.name: ", |c| c.cdi_devices.push(cri::CdiDevice { name: "a\0".into() })),
        ("config.labels: ", |c| drop(c.labels.insert("a".into(), "\0".into()))),
        ("config.annotations: ", |c| drop(c.annotations.insert("a".into(), "x".repeat(2 << 20)))),
        ("config.log_path: ", |c| c.log_path = "../../etc/cron.d/x".into()),
        ("config.log_path: ", |c| c.log_path = "/etc/x".into()),
        ("config.log_path: ", |c| c.log_path = "a\nb".into()),
        ("config.log_path: ", |c| c.log_path = format!("/{}", "\n".repeat(4000))),
        ("config.envs.key: ", |c| c.envs.push(cri::KeyValue { key: "=".repeat(1 << 20), value: Vec::new() })),
        ("config.stop_signal: unknown value 66", |c| c.stop_signal = 66),
        ("config.linux.resources.cpu_period: -1 is negative", |c| resources(c).cpu_period = -1),
        ("config.linux.resources.oom_score_adj: 1001 is not", |c| resources(c).oom_score_adj = 1001),
        ("config.linux.resources.cpuset_cpus: ", |c| resources(c).cpuset_cpus = "0\0".into()),
        ("config.linux.resources.hugepage_limits.page_size: ", |c| {
            resources(c).hugepage_limits.push(cri::HugepageLimit { page_size: "../2MB".into(), limit: 1 });
        }),
        ("config.linux.resources.unified: ", |c| {
            resources(c).unified.insert("../cgroup.procs".into(), "1".into());
        }),
        ("config.linux.security_context.capabilities.add_capabilities: ", |c| {
            context(c).capabilities.get_or_insert_default().add_capabilities = vec!["SYS_\0".into()];
        }),
        ("config.linux.security_context.masked_paths: ", |c| context(c).masked_paths = vec!["/proc/\0".into()]),
        ("config.linux.security_context.readonly_paths: ", |c| context(c).readonly_paths = vec!["/proc/\0".into()]),
        ("config.linux.security_context.run_as_username: ", |c| context(c).run_as_username = "a\0".into()),
        ("config.linux.security_context.run_as_user: 4294967295 is not", |c| {
            context(c).run_as_user = Some(cri::Int64Value { value: u32::MAX.into() });
        }),
        ("config.linux.security_context.selinux_options.level: ", |c| {
            context(c).selinux_options.get_or_insert_default().level = "s0\0".into();
        }),
        ("config.linux.security_context.seccomp.profile_type: unknown value 9", |c| {
            context(c).seccomp.get_or_insert_default().profile_type = 9;
        }),
        ("config.linux.security_context.namespace_options.pid: unknown value 9", |c| {
            context(c).namespace_options.get_or_insert_default().pid = 9;
        }),
    ]
}

/// Ids that are none, or of nothing.
const STRANGE_IDS: [&str; 5] = ["../../../etc", "a\nb", "id with spaces", "%00", "\u{202e}"];

#[tokio::test(flavor = "multi_thread")]
async fn privileged_bad_fields_are_named_and_nothing_is_done() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let config = node.pod("good");
    let pod = client.run_pod(&config).await.unwrap();
    let app = client.create(&pod, &container("app", BUSYBOX, &["sleep", "1000"]), &config).await.unwrap();
    client.start(&app).await.unwrap();
    let before = files(&node);
    let mut wrong = Wrong::default();

    for (start, change) in bad_pods() {
        let mut bad = node.pod("bad");
        change(&mut bad);
        wrong.unless_invalid("RunPodSandbox", start, client.run_pod(&bad)).await;
    }
    let request =
        |handler: &str| cri::RunPodSandboxRequest { config: Some(node.pod("bad")), runtime_handler: handler.into() };
    for (handler, start) in [("no-such", "runtime_handler: "), ("a\0b", "runtime_handler: ")] {
        let call = client.runtime.clone();
        wrong.unless_invalid("RunPodSandbox", start, async { { call }.run_pod_sandbox(request(handler)).await }).await;
    }
    for (start, change) in bad_containers() {
        let mut bad = container("bad", BUSYBOX, &["true"]);
        change(&mut bad);
        wrong.unless_invalid("CreateContainer", start, client.create(&pod, &bad, &config)).await;
    }
    let long = container("bad", &format!("docker.io/library/{}", "x".repeat(100_000)), &[]);
    let call = client.create(&pod, &long, &config);
    wrong.unless_refused("CreateContainer", Code::NotFound, "image \"docker.io/library/xxx", call).await;
    let absent = container("bad", "docker.io/library/absent:1", &[]);
    let start = "image \"docker.io/library/absent:1\" is not on the node";
    wrong.unless_refused("CreateContainer", Code::NotFound, start, client.create(&pod, &absent, &config)).await;
    calls_with_strange_ids(&client, &mut wrong, &config).await;
    calls_on_a_container(&client, &mut wrong, &app).await;
    calls_about_images(&client, &mut wrong).await;
    filters(&client, &mut wrong).await;
    wrong.assert_nothing();

    assert_eq!(client.pods().await.unwrap().len(), 1);
    assert_eq!(client.containers().await.unwrap().len(), 1);
    assert_eq!(client.output(&app, &["echo", "unmoved"]).await, "unmoved\n");
    assert_unmoved(&node, before).await;
    node.remove_all_pods().await;
    node.finish().await;
}

/// What is asked about what there is not: NotFound, but to end what does not exist is no mistake.
async fn calls_with_strange_ids(client: &Client, wrong: &mut Wrong, config: &cri::PodSandboxConfig) {
    let long = "f".repeat(1 << 20);
    for id in STRANGE_IDS.into_iter().chain([long.as_str()]) {
        let what = |rpc: &str| format!("{rpc} of {:.20?}", id);
        let app = container("app", BUSYBOX, &[]);
        wrong.unless_refused(&what("PodSandboxStatus"), Code::NotFound, "", client.pod_status(id)).await;
        wrong.unless_refused(&what("CreateContainer"), Code::NotFound, "", client.create(id, &app, config)).await;
        wrong.unless_refused(&what("StartContainer"), Code::NotFound, "", client.start(id)).await;
        wrong.unless_refused(&what("ContainerStatus"), Code::NotFound, "", client.status(id)).await;
        wrong.unless_refused(&what("ExecSync"), Code::NotFound, "", client.exec(id, &["true"], 1)).await;
        wrong.unless_refused(&what("ReopenContainerLog"), Code::NotFound, "", client.reopen_log(id)).await;
        wrong.unless_done(&what("StopPodSandbox"), client.stop_pod(id)).await;
        wrong.unless_done(&what("RemovePodSandbox"), client.remove_pod(id)).await;
        wrong.unless_done(&what("StopContainer"), client.stop(id, 0)).await;
        wrong.unless_done(&what("RemoveContainer"), client.remove(id)).await;
    }
    for (rpc, call) in [("StopContainer", client.stop("a\0", 0)), ("StopContainer", client.stop("", 0))] {
        wrong.unless_invalid(rpc, "container_id: ", call).await;
    }
}

async fn calls_on_a_container(client: &Client, wrong: &mut Wrong, app: &str) {
    let exec = |words: &[&str], timeout| {
        let cmd = words.iter().map(|&word| word.to_owned()).collect();
        let request = cri::ExecSyncRequest { container_id: app.into(), cmd, timeout };
        let mut runtime = client.runtime.clone();
        async move { runtime.exec_sync(request).await }
    };
    wrong.unless_invalid("ExecSync", "cmd: must not be empty", exec(&[], 1)).await;
    wrong.unless_invalid("ExecSync", "cmd: ", exec(&["a\0b"], 1)).await;
    wrong.unless_invalid("ExecSync", "cmd: ", exec(&["echo", &"x".repeat(8 << 20)], 1)).await;
    wrong.unless_invalid("ExecSync", "timeout: -1 seconds is negative", exec(&["true"], -1)).await;
    wrong.unless_invalid("ExecSync", "timeout: ", exec(&["true"], i64::MIN)).await;
    wrong.unless_done("ExecSync", exec(&["true"], i64::MAX)).await;
    wrong.unless_invalid("StopContainer", "timeout: -1 seconds is negative", client.stop(app, -1)).await;

    let streams = |stdin, stdout, stderr, tty, words: &[&str]| {
        let cmd = words.iter().map(|&word| word.to_owned()).collect();
        let request = cri::ExecRequest { container_id: app.into(), cmd, stdin, stdout, stderr, tty };
        let mut runtime = client.runtime.clone();
        async move { runtime.exec(request).await }
    };
    wrong.unless_invalid("Exec", "stdin", streams(false, false, false, false, &["true"])).await;
    wrong.unless_invalid("Exec", "tty", streams(false, true, true, true, &["true"])).await;
    wrong.unless_invalid("Exec", "cmd: must not be empty", streams(false, true, true, false, &[])).await;
    let attach = cri::AttachRequest { container_id: app.into(), stdout: true, tty: true, ..Default::default() };
    wrong.unless_invalid("Attach", "tty: ", async { client.runtime.clone().attach(attach).await }).await;

    let pod = client.pods().await.unwrap().remove(0).id;
    for port in [0, -1, 65_536, i32::MIN] {
        let request = cri::PortForwardRequest { pod_sandbox_id: pod.clone(), port: vec![80, port] };
        let start = format!("port: {port} is not a port");
        wrong.unless_invalid("PortForward", &start, async { client.runtime.clone().port_forward(request).await }).await;
    }

    let update = |linux: Option<cri::LinuxContainerResources>| {
        let request = cri::UpdateContainerResourcesRequest { container_id: app.into(), linux, ..Default::default() };
        let mut runtime = client.runtime.clone();
        async move { runtime.update_container_resources(request).await }
    };
    let none = cri::LinuxContainerResources::default;
    wrong.unless_invalid("Update", "linux: is required", update(None)).await;
    let negative = cri::LinuxContainerResources { memory_limit_in_bytes: -9, ..none() };
    wrong.unless_invalid("Update", "linux.memory_limit_in_bytes: -9 is negative", update(Some(negative))).await;
    let score = cri::LinuxContainerResources { oom_score_adj: i64::MAX, ..none() };
    wrong.unless_invalid("Update", "linux.oom_score_adj: ", update(Some(score))).await;
    let unified = cri::LinuxContainerResources { unified: [("a/b".into(), "1".into())].into(), ..none() };
    wrong.unless_invalid("Update", "linux.unified: ", update(Some(unified))).await;
}

async fn calls_about_images(client: &Client, wrong: &mut Wrong) {
    let long = "x".repeat(100_000);
    for image in ["", "a\0b"] {
        wrong.unless_invalid("PullImage", "image.image: ", client.pull(image)).await;
        wrong.unless_invalid("ImageStatus", "image.image: ", client.image(image)).await;
        wrong.unless_invalid("RemoveImage", "image.image: ", client.remove_image(image)).await;
    }
    for image in ["docker.io/UPPER", "a b", "x@sha256:zz", "http://docker.io/x", "../../etc/passwd", "a\nb", &long] {
        wrong.unless_invalid(&format!("PullImage of {image:.20?}"), "image.image: ", client.pull(image)).await;
        // Nothing can have such a name, so it is not there.
        wrong.unless_done(&format!("ImageStatus of {image:.20?}"), client.image(image)).await;
        wrong.unless_done(&format!("RemoveImage of {image:.20?}"), client.remove_image(image)).await;
    }
}

async fn filters(client: &Client, wrong: &mut Wrong) {
    let pods =
        || Some(cri::PodSandboxFilter { state: Some(cri::PodSandboxStateValue { state: 9 }), ..Default::default() });
    let containers =
        || Some(cri::ContainerFilter { state: Some(cri::ContainerStateValue { state: -1 }), ..Default::default() });
    let runtime = || client.runtime.clone();
    let start = "filter.state: unknown value 9";
    let request = cri::ListPodSandboxRequest { filter: pods() };
    wrong.unless_invalid("ListPodSandbox", start, async { runtime().list_pod_sandbox(request).await }).await;
    let request = cri::StreamPodSandboxesRequest { filter: pods() };
    wrong.unless_invalid("StreamPodSandboxes", start, async { runtime().stream_pod_sandboxes(request).await }).await;
    let start = "filter.state: unknown value -1";
    let request = cri::ListContainersRequest { filter: containers() };
    wrong.unless_invalid("ListContainers", start, async { runtime().list_containers(request).await }).await;
    let request = cri::StreamContainersRequest { filter: containers() };
    wrong.unless_invalid("StreamContainers", start, async { runtime().stream_containers(request).await }).await;
}
