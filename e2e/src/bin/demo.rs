//! The main job, from nothing, shown step by step: images are made and served by a registry on loopback, the daemon starts in
//! a directory of its own, a pod runs, and all is taken down again. `hack/demo` builds and runs it.

#![expect(clippy::unwrap_used, reason = "a failed step ends the demonstration with its reason")]

use std::time::{Duration, Instant};

use api::cri;
use windlass_e2e::{
    client::container,
    node::{BUSYBOX, TestNode},
    wait,
};

const SCRIPT: &str = "echo hello from $(hostname); ip -o -4 address show dev eth0; echo to stderr >&2; sleep 1000";

#[tokio::main]
async fn main() {
    let mut clock = Clock { since: Instant::now(), first: true };
    clock.step("make images on the spot, serve them from a registry on loopback, start the daemon");
    let node = TestNode::start().await;
    println!("   socket     {}", node.endpoint());
    let client = node.client();
    let version = client.runtime.clone().version(cri::VersionRequest::default()).await.unwrap().into_inner();
    println!("   runtime    {} {}, CRI {}", version.runtime_name, version.runtime_version, version.runtime_api_version);

    clock.step("pull an image; hosts.toml sends docker.io to the registry on loopback");
    let image = client.pull(BUSYBOX).await.unwrap();
    println!("   image      {BUSYBOX} is {image}");

    clock.step("run a pod: sandbox image, network namespace, CNI, shim");
    let config = node.pod("demo");
    let pod = client.run_pod(&config).await.unwrap();

    clock.step("create and start a container in it");
    let id = client.create(&pod, &container("hello", BUSYBOX, &["sh", "-c", SCRIPT]), &config).await.unwrap();
    client.start(&id).await.unwrap();
    let lines = wait::until_ok("the container has logged", Duration::from_secs(20), || {
        let lines = node.log_of("demo", "hello");
        if lines.len() >= 3 { Ok(lines) } else { Err(format!("{} lines so far", lines.len())) }
    })
    .await;

    clock.step("its log");
    for line in lines {
        println!("   {:6} {}", line.stream, line.text);
    }

    clock.step("what a kubelet sees");
    let status = client.pod_status(&pod).await.unwrap();
    let ip = status.network.clone().unwrap_or_default().ip;
    println!(
        "   POD        {:.13}  {}  {:?}  {ip}",
        pod,
        config.metadata.clone().unwrap_or_default().name,
        status.state()
    );
    let status = client.status(&id).await.unwrap();
    println!("   CONTAINER  {:.13}  hello  {:?}  {BUSYBOX}", id, status.state());

    clock.step("run a command in it");
    println!("   {}", client.output(&id, &["uname", "-sr"]).await.trim());

    clock.step("stop and remove all of it, and look for anything left behind");
    client.stop(&id, 1).await.unwrap();
    node.remove_all_pods().await;
    node.finish().await;
    println!("   nothing is left");
    clock.step("done");
}

/// Says what is done next, and how long what came before took.
struct Clock {
    since: Instant,
    first: bool,
}

impl Clock {
    fn step(&mut self, what: &str) {
        let took = self.since.elapsed();
        if !self.first {
            println!("   ({} ms)", took.as_millis());
        }
        println!("== {what}");
        self.first = false;
        self.since = Instant::now();
    }
}
