//! Devices of the Container Device Interface, on a real runtime: all that a vendor's file says reaches the container.

use std::{fs, os::unix::fs::PermissionsExt};

use api::cri;
use tonic::Code;
use windlass_e2e::{
    client::container,
    command,
    node::{BUSYBOX, TestNode},
};

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_cdi_device_brings_its_node_environment_mount_and_hook() {
    let mut node = TestNode::prepare().await;
    let (specs, lower) = (node.path("cdi"), node.path("cdi-lower"));
    node.settings.cri = format!("cdi_spec_dirs = [\"{}\", \"{}\"]", lower.display(), specs.display());
    node.boot().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("devices");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let mut config = container("app", BUSYBOX, &["sleep", "600"]);
    config.cdi_devices = vec![cri::CdiDevice { name: "vendor.example/toy=one".into() }];
    config.annotations.insert("cdi.k8s.io/plugin".into(), "vendor.example/toy=one,vendor.example/toy=two".into());

    let refused = client.create(&pod, &config, &pod_config).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let expected = format!(
        "unresolvable CDI devices vendor.example/toy=one, vendor.example/toy=two: no file in {}, {} defines them",
        lower.display(),
        specs.display()
    );
    assert_eq!(refused.message(), expected);

    // Installed while the daemon runs.
    fs::create_dir(&specs).unwrap();
    let library = node.path("library");
    fs::create_dir(&library).unwrap();
    fs::write(library.join("version"), "7\n").unwrap();
    let hook = node.path("hook");
    fs::write(&hook, format!("#!/bin/sh\ncat >{}\n", node.path("hook-state").display())).unwrap();
    fs::set_permissions(&hook, fs::Permissions::from_mode(0o755)).unwrap();
    let yaml = format!(
        r#"
cdiVersion: 0.6.0
kind: vendor.example/toy
containerEdits:
  env: ["TOYS=all"]
  mounts:
  - {{hostPath: "{library}", containerPath: /opt/toy, options: [ro, bind, nosuid]}}
  hooks:
  - {{hookName: createRuntime, path: "{hook}"}}
devices:
- name: one
  containerEdits:
    deviceNodes:
    - {{path: /dev/toy1, hostPath: /dev/null, permissions: rw, fileMode: 0600}}
- name: two
  containerEdits:
    deviceNodes:
    - {{path: /dev/toys/2, hostPath: /dev/zero}}
    - {{path: /dev/toys/3, type: c, major: 7, minor: 1, permissions: r}}
"#,
        library = library.display(),
        hook = hook.display(),
    );
    fs::write(specs.join("vendor.yaml"), yaml).unwrap();

    let app = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    assert_eq!(client.output(&app, &["sh", "-c", "echo $TOYS; cat /opt/toy/version"]).await, "all\n7\n");
    let listed =
        client.output(&app, &["sh", "-c", "ls -l /dev/toy1 | cut -c 1-10; echo x >/dev/toy1; cat /dev/toy1"]).await;
    assert_eq!(listed, "crw-------\n", "it takes all and gives nothing");
    assert_eq!(client.output(&app, &["sh", "-c", "head -c 4 /dev/toys/2 | od -An -tx1"]).await.trim(), "00 00 00 00");
    // What the device cgroup forbids fails before the driver is asked: these are vcs(4), which nothing here opens.
    let open = |how: &str| format!("(: {how}/dev/toys/3) 2>&1");
    let write = client.exec(&app, &["sh", "-c", &open(">")], 60).await.unwrap();
    let said = String::from_utf8_lossy(&write.stdout).into_owned();
    assert!(write.exit_code != 0 && said.contains("Operation not permitted"), "the device may only be read: {said}");
    let read = client.exec(&app, &["sh", "-c", &open("<")], 60).await.unwrap();
    assert!(!String::from_utf8_lossy(&read.stdout).contains("Operation not permitted"), "the device may be read");
    let readonly = client.exec(&app, &["touch", "/opt/toy/x"], 60).await.unwrap();
    assert_ne!(readonly.exit_code, 0, "the mount is read-only");
    let state: serde_json::Value = serde_json::from_slice(&fs::read(node.path("hook-state")).unwrap()).unwrap();
    assert_eq!(state["id"], app.as_str(), "the hook is told of the container");

    node.remove_all_pods().await;
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_node_without_cdi_says_so() {
    let mut node = TestNode::prepare().await;
    node.settings.cri = "enable_cdi = false".into();
    node.boot().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("devices");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let mut config = container("app", BUSYBOX, &["sleep", "600"]);
    config.cdi_devices = vec![cri::CdiDevice { name: "vendor.example/toy=one".into() }];
    let refused = client.create(&pod, &config, &pod_config).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("CDI is disabled on this node (enable_cdi = false)"), "{refused}");
    config.cdi_devices = vec![cri::CdiDevice { name: "toy".into() }];
    let refused = client.create(&pod, &config, &pod_config).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    node.remove_all_pods().await;
    node.finish().await;
}

/// A pair of interfaces, which goes with either.
struct Link {
    given: String,
    kept: String,
}

impl Link {
    fn new(prefix: &str) -> Link {
        let link = Link { given: format!("{prefix}g"), kept: format!("{prefix}k") };
        command::run("ip", &["link", "add", &link.given, "type", "veth", "peer", "name", &link.kept]);
        link
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // It has gone with the pod's network if all went well.
        command::answer("ip", &["link", "delete", &self.kept]);
    }
}

/// `RUNC` names an OCI runtime that can, where the first in PATH cannot.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_cdi_device_brings_a_network_device_of_the_host() {
    let mut node = TestNode::prepare_on_given_runc().await;
    let specs = node.path("cdi");
    node.settings.cri = format!("cdi_spec_dirs = [\"{}\"]", specs.display());
    node.boot().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let link = Link::new(&node.leakcheck.bridge);
    fs::create_dir(&specs).unwrap();
    let write = |name: &str| {
        let yaml = format!(
            "cdiVersion: 1.1.0\nkind: vendor.example/nic\ndevices:\n- name: one\n  containerEdits:\n    netDevices:\n    - {{hostInterfaceName: {name}, name: given0}}\n"
        );
        fs::write(specs.join("vendor.yaml"), yaml).unwrap();
    };
    // A file that is wrong hides no other's devices.
    fs::write(specs.join("broken.json"), "{").unwrap();
    let pod_config = node.pod("nic");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let mut config = container("app", BUSYBOX, &["sleep", "600"]);
    config.cdi_devices = vec![cri::CdiDevice { name: "vendor.example/nic=one".into() }];

    write("nowhere0");
    let refused = client.create(&pod, &config, &pod_config).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(
        refused.message().ends_with("network device \"nowhere0\" is not on this host, or not any more"),
        "{refused}"
    );

    write(&link.given);
    let runtime = if node.settings.runc.is_empty() { "runc" } else { &node.settings.runc };
    let features: serde_json::Value =
        serde_json::from_str(&command::answer(runtime, &["features"]).stdout).unwrap_or_default();
    if features["linux"]["netDevices"]["enabled"] != true {
        let refused = client.create(&pod, &config, &pod_config).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented);
        let expected = format!(
            "CDI device vendor.example/nic=one: network device {:?}: the OCI runtime {runtime} cannot",
            link.given
        );
        assert!(refused.message().starts_with(&expected), "{refused}");
        node.remove_all_pods().await;
        return node.finish().await;
    }
    let app = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    assert_eq!(client.output(&app, &["ls", "/sys/class/net"]).await, "eth0\ngiven0\nlo\n");
    assert!(!fs::exists(format!("/sys/class/net/{}", link.given)).unwrap(), "it is not here any more");

    let mut host_network = node.pod("host");
    let options = cri::NamespaceOption { network: cri::NamespaceMode::Node as i32, ..Default::default() };
    let linux = host_network.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(options);
    let host = client.run_pod(&host_network).await.unwrap();
    write(&link.kept);
    let refused = client.create(&host, &config, &host_network).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().ends_with("the pod is in the host's network already"), "{refused}");
    node.remove_all_pods().await;
    node.finish().await;
}
