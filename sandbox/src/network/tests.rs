//! The whole of CNI against plugins that are small scripts, which log what they were given, and once against real ones.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use nix::sched::{CloneFlags, unshare};
use tempfile::TempDir;

use super::{Attachment, Cni, CniConfig, Network};
use crate::{
    error::Error,
    model::{Id, PodName, PortMapping, Protocol, StringMap},
    netns,
};

const ANSWER: &str = r#"echo '{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}],"ips":[{"interface":0,"address":"10.0.0.2/24","gateway":"10.0.0.1"}]}'"#;

/// A directory with plugins, configuration, cache, and a pinned namespace.
struct Node {
    dir: TempDir,
    /// Of a pod, and of this node only: a detach waits for every plugin on the machine that works for it.
    id: Id,
    deadline: Duration,
}

impl Node {
    fn new() -> Node {
        let node =
            Node { dir: tempfile::tempdir().unwrap(), id: Id::random().unwrap(), deadline: Duration::from_secs(30) };
        for name in ["conf", "bin"] {
            fs::create_dir(node.path(name)).unwrap();
        }
        netns::pin(&node.netns()).unwrap();
        node
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn netns(&self) -> PathBuf {
        self.path("netns")
    }

    fn cni(&self) -> Cni {
        Cni::new(CniConfig {
            conf_dir: self.path("conf"),
            bin_dirs: vec![self.path("none"), self.path("bin"), "/usr/lib/cni".into()],
            max_conf_num: 0,
            cache_dir: self.path("cache"),
            deadline: self.deadline,
            ..CniConfig::default()
        })
    }

    /// A network of plugins that are given as (type, more of their configuration).
    fn network(&self, name: &str, version: &str, plugins: &[(&str, &str)]) {
        let plugins: Vec<String> =
            plugins.iter().map(|(kind, more)| format!("{{\"type\":\"{kind}\"{more}}}")).collect();
        let plugins = plugins.join(",");
        let text = format!("{{\"cniVersion\":\"{version}\",\"name\":\"{name}\",\"plugins\":[{plugins}]}}");
        fs::write(self.path("conf").join(format!("{name}.conflist")), text).unwrap();
    }

    /// A plugin that logs its call and then runs `body`.
    fn plugin(&self, name: &str, body: &str) {
        let dir = self.dir.path().display();
        let script = format!(
            "#!/bin/sh\nstdin=$(cat)\nprintf '{name} %s %s %s [%s] %s\\n' \"$CNI_COMMAND\" \"$CNI_IFNAME\" \
             \"$CNI_NETNS\" \"$CNI_ARGS\" \"$stdin\" >> {dir}/log\n{body}\n"
        );
        let path = self.path("bin").join(name);
        fs::write(&path, script).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    fn clean(&self, text: &str) -> String {
        text.replace(self.dir.path().to_str().unwrap(), "DIR").replace(self.id.as_str(), "ID")
    }

    fn log(&self) -> String {
        self.clean(&fs::read_to_string(self.path("log")).unwrap_or_default())
    }

    /// The verbs that ran: `plugin VERB interface`.
    fn verbs(&self) -> Vec<String> {
        self.log().lines().map(|line| line.split(' ').take(3).collect::<Vec<_>>().join(" ")).collect()
    }

    fn pod(&self) -> Attachment {
        Attachment {
            handler: "runc".into(),
            id: self.id.clone(),
            netns: Some(self.netns()),
            name: PodName { name: "web".into(), namespace: "prod".into(), uid: "u-1".into(), attempt: 0 },
            port_mappings: Vec::new(),
            dns: None,
            annotations: StringMap::new(),
            cgroup_parent: String::new(),
        }
    }

    fn error(&self, error: &Error) -> String {
        self.clean(&error.chain())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        netns::unpin(&self.netns()).unwrap();
    }
}

#[tokio::test]
async fn privileged_plugins_run_in_order_and_are_taken_back_in_reverse() {
    let node = Node::new();
    node.plugin("first", ANSWER);
    node.plugin("second", ANSWER);
    let wants = r#","keep":1,"capabilities":{"portMappings":true,"bandwidth":true,"cgroupPath":true,"other":true}"#;
    node.network("net", "1.0.0", &[("first", ""), ("second", wants)]);
    let port =
        |host_port| PortMapping { protocol: Protocol::Udp, container_port: 53, host_port, host_ip: String::new() };
    let pod = Attachment {
        port_mappings: vec![port(0), port(5353)],
        annotations: StringMap::from([("kubernetes.io/egress-bandwidth".into(), "1M".into())]),
        cgroup_parent: "/kubepods".into(),
        ..node.pod()
    };
    let cni = node.cni();
    let network = cni.attach(pod.clone()).await.unwrap();
    assert_eq!(network.ips, ["10.0.0.2"]);
    insta::assert_snapshot!(network.result, @r##"
        {"DNS":[{}],"Interfaces":{"eth0":{"IPConfigs":[{"Gateway":"10.0.0.1","IP":"10.0.0.2"}],"Mac":"","Sandbox":""}},"Routes":[]}
        "##);
    assert_eq!(cni.cached().await.unwrap(), std::slice::from_ref(&node.id));
    cni.check(pod.clone()).await.unwrap();
    cni.detach(pod).await.unwrap();
    assert_eq!(cni.cached().await.unwrap(), []);
    insta::assert_snapshot!(node.log(), @r##"
        first ADD eth0 DIR/netns [IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=ID;K8S_POD_UID=u-1] {"cniVersion":"1.0.0","name":"net","type":"first"}
        second ADD eth0 DIR/netns [IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=ID;K8S_POD_UID=u-1] {"capabilities":{"bandwidth":true,"cgroupPath":true,"other":true,"portMappings":true},"cniVersion":"1.0.0","keep":1,"name":"net","prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}],"ips":[{"address":"10.0.0.2/24","gateway":"10.0.0.1","interface":0}]},"runtimeConfig":{"bandwidth":{"egressBurst":4294967295,"egressRate":1000000},"cgroupPath":"/kubepods","portMappings":[{"containerPort":53,"hostIP":"","hostPort":5353,"protocol":"udp"}]},"type":"second"}
        first CHECK eth0 DIR/netns [IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=ID;K8S_POD_UID=u-1] {"cniVersion":"1.0.0","name":"net","prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}],"ips":[{"address":"10.0.0.2/24","gateway":"10.0.0.1","interface":0}]},"type":"first"}
        second CHECK eth0 DIR/netns [IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=ID;K8S_POD_UID=u-1] {"capabilities":{"bandwidth":true,"cgroupPath":true,"other":true,"portMappings":true},"cniVersion":"1.0.0","keep":1,"name":"net","prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}],"ips":[{"address":"10.0.0.2/24","gateway":"10.0.0.1","interface":0}]},"runtimeConfig":{"bandwidth":{"egressBurst":4294967295,"egressRate":1000000},"cgroupPath":"/kubepods","portMappings":[{"containerPort":53,"hostIP":"","hostPort":5353,"protocol":"udp"}]},"type":"second"}
        second DEL eth0 DIR/netns [IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=ID;K8S_POD_UID=u-1] {"capabilities":{"bandwidth":true,"cgroupPath":true,"other":true,"portMappings":true},"cniVersion":"1.0.0","keep":1,"name":"net","prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}],"ips":[{"address":"10.0.0.2/24","gateway":"10.0.0.1","interface":0}]},"runtimeConfig":{"bandwidth":{"egressBurst":4294967295,"egressRate":1000000},"cgroupPath":"/kubepods","portMappings":[{"containerPort":53,"hostIP":"","hostPort":5353,"protocol":"udp"}]},"type":"second"}
        first DEL eth0 DIR/netns [IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=ID;K8S_POD_UID=u-1] {"cniVersion":"1.0.0","name":"net","prevResult":{"cniVersion":"1.0.0","interfaces":[{"name":"eth0"}],"ips":[{"address":"10.0.0.2/24","gateway":"10.0.0.1","interface":0}]},"type":"first"}
        "##);
}

#[tokio::test]
async fn privileged_a_failed_network_takes_all_back_and_the_next_try_works() {
    let node = Node::new();
    node.plugin("good", ANSWER);
    let failing =
        r#"[ $CNI_COMMAND = DEL ] || { echo '{"code":11,"msg":"no addresses","details":"pool is full"}'; exit 1; }"#;
    node.plugin("bad", failing);
    node.network("a", "1.0.0", &[("good", "")]);
    node.network("b", "1.0.0", &[("good", ""), ("bad", "")]);
    let cni = node.cni();
    let error = cni.attach(node.pod()).await.unwrap_err();
    assert_eq!(node.error(&error), r#"plugin type="bad" name="b" failed (add): no addresses; pool is full (code 11)"#);
    let deleted: Vec<String> = node.verbs().into_iter().filter(|verb| verb.contains("DEL")).collect();
    assert_eq!(deleted, ["bad DEL eth1", "good DEL eth1", "good DEL eth0"]);
    assert_eq!(cni.cached().await.unwrap(), []);
    node.plugin("bad", ANSWER);
    cni.attach(node.pod()).await.unwrap();
}

#[tokio::test]
async fn privileged_a_plugin_that_hangs_is_killed_with_its_children() {
    let mut node = Node::new();
    node.deadline = Duration::from_secs(3);
    let child = node.path("child");
    let hang = format!("[ $CNI_COMMAND = DEL ] && exit 0\nsleep 1000 & echo $! > {}\nwait", child.display());
    node.plugin("slow", &hang);
    node.network("net", "1.0.0", &[("slow", "")]);
    let error = node.cni().attach(node.pod()).await.unwrap_err();
    assert!(matches!(error, Error::Deadline(_)), "{error:?}");
    assert_eq!(
        node.error(&error),
        r#"plugin type="slow" name="net" failed (add): no answer within 3s, so it was killed"#
    );
    let pid = fs::read_to_string(child).unwrap();
    let status = PathBuf::from(format!("/proc/{}/status", pid.trim()));
    let gone = || fs::read_to_string(&status).map_or(true, |text| text.contains("State:\tZ"));
    let give_up = Instant::now() + Duration::from_secs(10);
    while !gone() {
        assert!(Instant::now() < give_up, "the plugin's child lives on");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn privileged_an_answer_that_cannot_be_used_is_told_and_taken_back() {
    let node = Node::new();
    node.network("net", "1.0.0", &[("odd", "")]);
    let cni = node.cni();
    let mut told = Vec::new();
    let bodies = [
        "echo hello",
        "true",
        "echo oops >&2; exit 3",
        "kill -9 $$",
        "head -c 17000000 /dev/zero",
        r#"echo '{"cniVersion":"1.0.0"}'"#,
        r#"[ $CNI_COMMAND = VERSION ] && { echo '{"cniVersion":"1.0.0","supportedVersions":["0.1.0","0.2.0"]}'; exit; }
           echo '{"code":1,"msg":"incompatible"}'; exit 1"#,
    ];
    for body in bodies {
        node.plugin("odd", &format!("[ $CNI_COMMAND = DEL ] && exit 0\n{body}"));
        told.push(node.error(&cni.attach(node.pod()).await.unwrap_err()));
        assert_eq!(node.verbs().last().unwrap(), "odd DEL eth0");
        assert_eq!(cni.cached().await.unwrap(), []);
    }
    insta::assert_snapshot!(told.join("\n"), @r##"
        plugin type="odd" name="net" failed (add): its answer is not JSON: expected value at line 1 column 1: "hello\n"
        plugin type="odd" name="net" failed (add): its answer is not JSON: EOF while parsing a value at line 1 column 0: ""
        plugin type="odd" name="net" failed (add): exit status: 3: oops
        plugin type="odd" name="net" failed (add): signal: 9 (SIGKILL): no output
        plugin type="odd" name="net" failed (add): cannot run it: wrote more than 16 MiB to its standard output
        failed to find network info for sandbox "ID"
        plugin type="odd" name="net" failed (add): incompatible (configured: cniVersion 1.0.0; the plugin speaks 0.1.0, 0.2.0)
        "##);
}

#[tokio::test]
async fn privileged_what_is_missing_is_named_with_all_the_places_looked_in() {
    let node = Node::new();
    let cni = node.cni();
    let none = "cni plugin not initialized: no network config found in DIR/conf";
    assert_eq!(node.error(&cni.ready().await.unwrap_err()), none);
    assert_eq!(node.error(&cni.attach(node.pod()).await.unwrap_err()), none);
    cni.detach(node.pod()).await.unwrap();
    node.network("net", "1.0.0", &[("absent", "")]);
    cni.ready().await.unwrap();
    assert_eq!(
        node.error(&cni.attach(node.pod()).await.unwrap_err()),
        r#"cni plugin "absent" not found in DIR/none, DIR/bin, /usr/lib/cni: install it there"#
    );
}

#[tokio::test]
async fn privileged_a_pod_is_detached_without_its_namespace_and_without_its_configuration() {
    let node = Node::new();
    node.plugin("first", ANSWER);
    node.network("net", "1.0.0", &[("first", "")]);
    let cni = node.cni();
    cni.attach(node.pod()).await.unwrap();
    netns::unpin(&node.netns()).unwrap();
    fs::remove_file(node.path("conf/net.conflist")).unwrap();
    fs::remove_file(node.path("log")).unwrap();
    node.plugin("first", "exit 1");
    assert!(cni.detach(node.pod()).await.is_err());
    assert_eq!(cni.cached().await.unwrap(), std::slice::from_ref(&node.id), "a DEL stays owed until it succeeds");
    node.plugin("first", r#"echo '{"code":2,"msg":"interface not found"}'; exit 1"#);
    cni.detach(node.pod()).await.unwrap();
    assert_eq!(cni.cached().await.unwrap(), []);
    let log = node.log();
    let last = log.lines().last().unwrap();
    assert!(last.starts_with("first DEL eth0  [IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;"), "{last}");
    assert!(last.contains(r#""prevResult":{"#), "{last}");
}

#[tokio::test]
async fn privileged_status_is_asked_of_plugins_that_have_it() {
    let node = Node::new();
    node.plugin("first", r#"[ $CNI_COMMAND = STATUS ] && { echo '{"code":50,"msg":"no route yet"}'; exit 1; }"#);
    let cni = node.cni();
    node.network("net", "1.0.0", &[("first", "")]);
    cni.ready().await.unwrap();
    assert_eq!(node.log(), "");
    node.network("net", "1.1.0", &[("first", "")]);
    let error = cni.ready().await.unwrap_err();
    assert!(matches!(error, Error::Unavailable(_)));
    assert_eq!(
        node.error(&error),
        r#"cni plugin not ready: plugin type="first" name="net" failed (status): no route yet (code 50)"#
    );
    node.plugin("first", "true");
    cni.ready().await.unwrap();
}

/// Specification 1.1, "GC".
#[tokio::test]
async fn privileged_plugins_are_told_which_attachments_are_valid() {
    let node = Node::new();
    node.plugin("new", ANSWER);
    node.plugin("old", ANSWER);
    node.plugin(
        "without",
        r#"[ "$CNI_COMMAND" != GC ] || { echo '{"code":4,"msg":"unknown CNI_COMMAND: GC"}'; exit 1; }"#,
    );
    node.network("a", "1.1.0", &[("new", ""), ("without", "")]);
    node.network("b", "1.0.0", &[("old", "")]);
    node.network("c", "1.1.0", &[("new", ""), ("new", "")]);
    let keep = r#"{"cniVersion":"1.1.0","name":"d","disableGC":true,"plugins":[{"type":"old"}]}"#;
    fs::write(node.path("conf").join("d.conflist"), keep).unwrap();
    // The cache knows an attachment of another program; what it has forgotten is known by the pods.
    let entry =
        r#"{"kind":"cniCacheV1","containerId":"other","config":"","ifName":"eth7","networkName":"a","result":{}}"#;
    fs::create_dir_all(node.path("cache/results")).unwrap();
    fs::write(node.path("cache/results/a-other-eth7"), entry).unwrap();
    let pods = vec![(node.id.clone(), "runc".to_owned())];
    node.cni().collect(pods.clone()).await.unwrap();
    insta::assert_snapshot!(node.log(), @r#"
    new GC   [] {"cni.dev/attachments":[{"containerID":"ID","ifname":"eth0"},{"containerID":"other","ifname":"eth7"}],"cni.dev/valid-attachments":[{"containerID":"ID","ifname":"eth0"},{"containerID":"other","ifname":"eth7"}],"cniVersion":"1.1.0","name":"a","type":"new"}
    without GC   [] {"cni.dev/attachments":[{"containerID":"ID","ifname":"eth0"},{"containerID":"other","ifname":"eth7"}],"cni.dev/valid-attachments":[{"containerID":"ID","ifname":"eth0"},{"containerID":"other","ifname":"eth7"}],"cniVersion":"1.1.0","name":"a","type":"without"}
    new GC   [] {"cni.dev/attachments":[{"containerID":"ID","ifname":"eth2"}],"cni.dev/valid-attachments":[{"containerID":"ID","ifname":"eth2"}],"cniVersion":"1.1.0","name":"c","type":"new"}
    new GC   [] {"cni.dev/attachments":[{"containerID":"ID","ifname":"eth2"}],"cni.dev/valid-attachments":[{"containerID":"ID","ifname":"eth2"}],"cniVersion":"1.1.0","name":"c","type":"new"}
    "#);

    node.plugin("new", r#"echo '{"code":11,"msg":"busy"}'; exit 1"#);
    let error = node.cni().collect(pods).await.unwrap_err();
    let told = r#"plugin type="new" name="a" failed (gc): busy (code 11)"#;
    assert!(node.error(&error).contains(told), "{}", node.error(&error));
}

#[tokio::test]
async fn privileged_a_dropped_attach_lets_its_plugin_end_and_the_detach_comes_after_it() {
    let node = Node::new();
    let (started, go_on) = (node.path("started"), node.path("go-on"));
    // It ends when it is told to, and says so.
    let log = node.path("log");
    let slow = format!(
        "[ $CNI_COMMAND = DEL ] && exit 0\n: > {started}\nwhile [ ! -e {go_on} ]; do sleep 0.01; done\necho slow ended - >> {log}\n{ANSWER}",
        started = started.display(),
        go_on = go_on.display(),
        log = log.display(),
    );
    node.plugin("slow", &slow);
    node.plugin("next", ANSWER);
    node.network("net", "1.0.0", &[("slow", ""), ("next", "")]);
    let cni = node.cni();
    let seen = async {
        while !started.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::select! {
        answer = cni.attach(node.pod()) => panic!("it cannot answer: {answer:?}"),
        () = seen => {}
    }
    let detaching = cni.detach(node.pod());
    tokio::pin!(detaching);
    assert!(futures_util::poll!(&mut detaching).is_pending());
    fs::write(go_on, "").unwrap();
    detaching.await.unwrap();
    assert_eq!(node.verbs(), ["slow ADD eth0", "slow ended -", "next DEL eth0", "slow DEL eth0"]);
}

#[tokio::test]
async fn privileged_a_detach_comes_after_the_plugin_that_a_killed_daemon_has_left() {
    let node = Node::new();
    node.plugin("slow", "[ $CNI_COMMAND = DEL ] && exit 0\nsleep 1000");
    node.network("net", "1.0.0", &[("slow", "")]);
    // As it was started by the daemon that is gone: with the environment that CNI prescribes.
    let work = format!("sleep 0.3; echo slow ended - >> {}", node.path("log").display());
    let mut left = std::process::Command::new("sh")
        .args(["-c", &work])
        .envs([("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", node.id.as_str())])
        .spawn()
        .unwrap();
    node.cni().detach(node.pod()).await.unwrap();
    left.wait().unwrap();
    assert_eq!(node.verbs(), ["slow ended -", "slow DEL eth0"]);
}

/// Runs in a network namespace of its own, so that the bridge is not the host's.
#[test]
fn privileged_the_real_bridge_gives_and_takes_back_an_address() {
    let own_host = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(real_bridge());
    });
    own_host.join().unwrap();
}

async fn real_bridge() {
    let node = Node::new();
    let data = node.path("ipam");
    let ipam = format!(
        r#","bridge":"wl-test0","isGateway":true,"ipam":{{"type":"host-local","dataDir":"{}","ranges":[[{{"subnet":"10.99.0.0/24"}}]],"routes":[{{"dst":"0.0.0.0/0"}}]}}"#,
        data.display()
    );
    node.network("real", "1.0.0", &[("bridge", &ipam)]);
    let cni = node.cni();
    let reserved = || {
        let names = fs::read_dir(data.join("real")).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.filter_map(|name| name.into_string().ok()).collect();
        names.retain(|name| name.starts_with("10."));
        names
    };
    let network = cni.attach(node.pod()).await.unwrap();
    assert_eq!(network.ips, ["10.99.0.2"]);
    assert_eq!(reserved(), ["10.99.0.2"]);
    assert_eq!(network.result["Interfaces"]["eth0"]["IPConfigs"][0]["Gateway"], "10.99.0.1");
    let devices = || fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    assert!(netns::with_netns(&node.netns(), devices).unwrap().contains("eth0:"));
    assert!(devices().contains("veth"));
    cni.check(node.pod()).await.unwrap();
    cni.detach(node.pod()).await.unwrap();
    cni.detach(node.pod()).await.unwrap();
    assert_eq!(reserved(), [] as [String; 0]);
    assert!(!devices().contains("veth"));

    cni.attach(node.pod()).await.unwrap();
    netns::unpin(&node.netns()).unwrap();
    cni.detach(node.pod()).await.unwrap();
    assert_eq!(reserved(), [] as [String; 0], "a namespace that is gone does not keep its address");
    assert!(Path::new("/usr/lib/cni/bridge").exists());
}
