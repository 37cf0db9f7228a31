//! Checkpoints of containers. The OCI runtime is runc but for `checkpoint`, because CRIU runs on few kernels: a script plays
//! it, and what is tested is everything around it.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use tonic::Code;
use windlass_e2e::{
    client::{Client, container},
    command,
    node::{BUSYBOX, TestNode},
    wait::{self, SOON},
};

/// `$0.hang`: blocks until that FIFO is written to. `$0.fail`: fails as CRIU does.
const RUNTIME: &str = r#"#!/bin/sh
for argument; do
    [ "$argument" = checkpoint ] && verb=checkpoint && break
done
[ -n "$verb" ] || exec runc "$@"
while [ $# -gt 0 ]; do
    case $1 in
    --image-path) image=$2 ;;
    --work-path) work=$2 ;;
    esac
    shift
done
if [ -e "$0.fail" ]; then
    echo '(00.1) Error (criu/x.c:1): the kernel lacks it' >"$work/dump.log"
    exit 1
fi
touch "$0.began"
[ ! -e "$0.hang" ] || read _ <"$0.hang"
echo pages >"$image/pages-1.img"
echo dumped >"$work/dump.log"
"#;

struct World {
    node: TestNode,
    runtime: PathBuf,
    pod: String,
    app: String,
}

impl World {
    /// A container that has written a file, taken another of its image away, and goes on counting into its log.
    async fn start() -> World {
        Box::pin(World::start_with(RUNTIME)).await
    }

    /// The same on this OCI runtime, a script; without one, on runc.
    async fn start_with(script: &str) -> World {
        let mut node = TestNode::prepare().await;
        node.settings.cri = "enable_criu = true".into();
        let runtime = node.path("runtime");
        if !script.is_empty() {
            fs::write(&runtime, script).unwrap();
            fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
            node.settings.runc = runtime.display().to_string();
        }
        node.boot().await;
        let client = node.client();
        client.pull(BUSYBOX).await.unwrap();
        let config = node.pod("checkpointed");
        let pod = client.run_pod(&config).await.unwrap();
        let script = "echo kept >/tmp/file; rm /etc/group; echo ready; while :; do echo .; sleep 0.05; done";
        let app = container("app", BUSYBOX, &["sh", "-c", script]);
        let app = client.create(&pod, &app, &config).await.unwrap();
        client.start(&app).await.unwrap();
        let world = World { node, runtime, pod, app };
        world.logs_on(0).await;
        world
    }

    fn client(&self) -> Client {
        self.node.client()
    }

    /// Waits until the log is longer than `before` lines; answers how long.
    async fn logs_on(&self, before: usize) -> usize {
        wait::until_ok("the container goes on", SOON, || match self.lines() {
            lines if lines > before => Ok(lines),
            lines => Err(format!("{lines} lines are logged")),
        })
        .await
    }

    fn lines(&self) -> usize {
        self.node.log_of("checkpointed", "app").len()
    }

    fn beside_runtime(&self, name: &str) -> PathBuf {
        self.runtime.with_extension(name)
    }

    async fn finish(self) {
        let client = self.client();
        client.stop_pod(&self.pod).await.unwrap();
        client.remove_pod(&self.pod).await.unwrap();
        self.node.finish().await;
    }
}

fn member(archive: &Path, name: &str) -> String {
    command::run("tar", &["-xOf", archive.to_str().unwrap(), name])
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_checkpoint_holds_all_of_the_container_and_leaves_it_running() {
    let world = Box::pin(World::start()).await;
    let client = world.client();
    let directory = world.node.path("checkpoints");
    fs::create_dir(&directory).unwrap();
    let location = directory.join("app.tar");
    fs::write(&location, "an older one").unwrap();
    client.checkpoint(&world.app, &location).await.unwrap();

    assert_eq!(fs::metadata(&location).unwrap().permissions().mode() & 0o777, 0o600);
    let names = command::run("tar", &["-tf", location.to_str().unwrap()]);
    let expected = "config.dump spec.dump status.dump container.log dump.log checkpoint/ checkpoint/dump.log \
                    checkpoint/pages-1.img rootfs-diff.tar";
    assert_eq!(names.split_whitespace().collect::<Vec<_>>(), expected.split_whitespace().collect::<Vec<_>>());
    let json = |name: &str| -> serde_json::Value { serde_json::from_str(&member(&location, name)).unwrap() };
    let config = json("config.dump");
    assert_eq!(config["id"], world.app.as_str());
    assert_eq!(config["rootfsImageRef"], world.node.registry.busybox.id.as_str());
    assert_eq!(json("spec.dump")["process"]["args"][0], "sh");
    assert_eq!(json("status.dump")["metadata"]["name"], "app");
    assert_eq!(member(&location, "checkpoint/pages-1.img"), "pages\n");
    assert!(member(&location, "container.log").contains("stdout F ready"));
    let layer = directory.join("layer.tar");
    command::run("sh", &["-c", &format!("tar -xOf {} rootfs-diff.tar >{}", location.display(), layer.display())]);
    let names = command::run("tar", &["-tf", layer.to_str().unwrap()]);
    assert!(names.lines().any(|name| name == "etc/.wh.group"), "{names}");
    assert_eq!(member(&layer, "tmp/file"), "kept\n");

    world.logs_on(world.lines()).await;
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_checkpoint_that_fails_says_why_and_leaves_nothing() {
    let world = Box::pin(World::start()).await;
    let client = world.client();
    let directory = world.node.path("checkpoints");
    fs::create_dir(&directory).unwrap();
    fs::write(world.beside_runtime("fail"), "").unwrap();
    let status = client.checkpoint(&world.app, &directory.join("app.tar")).await.unwrap_err();
    assert!(status.message().ends_with("CRIU: Error (criu/x.c:1): the kernel lacks it"), "{status}");
    assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
    world.logs_on(world.lines()).await;

    for (location, named) in [("relative.tar", "location"), ("/", "location"), ("/none/such/x.tar", "/none/such")] {
        let status = client.checkpoint(&world.app, Path::new(location)).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(named), "{status}");
    }
    client.stop(&world.app, 0).await.unwrap();
    let status = client.checkpoint(&world.app, &directory.join("app.tar")).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition, "{status}");
    assert!(status.message().contains("CONTAINER_EXITED"), "{status}");
    world.finish().await;
}

/// V-K07: what a node has to lose by it is bounded, and without being asked for it is off.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_v_k07_a_checkpoint_is_off_unless_configured_and_has_a_size() {
    let mut world = Box::pin(World::start()).await;
    let directory = world.node.path("checkpoints");
    fs::create_dir(&directory).unwrap();
    for (tables, cri, code, named) in [
        (
            "[plugins.\"io.windlass.v1.checkpoints\"]\nmax_bytes = 1000\n",
            "enable_criu = true",
            Code::InvalidArgument,
            "max_bytes",
        ),
        ("", "", Code::Unimplemented, "enable_criu"),
    ] {
        (world.node.settings.tables, world.node.settings.cri) = (tables.into(), cri.into());
        world.node.restart().await;
        let status = world.client().checkpoint(&world.app, &directory.join("app.tar")).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(named), "{status}");
        assert_eq!(fs::read_dir(&directory).unwrap().count(), 0);
        world.logs_on(world.lines()).await;
    }
    world.finish().await;
}

/// Without the rule that a container found with half a checkpoint is resumed, it would stand still for ever.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_container_goes_on_after_the_daemon_was_killed_in_the_middle() {
    let mut world = Box::pin(World::start()).await;
    let client = world.client();
    let hang = world.beside_runtime("hang");
    command::run("mkfifo", &[hang.to_str().unwrap()]);
    let (app, location) = (world.app.clone(), world.node.path("app.tar"));
    let asked = tokio::spawn({
        let (client, app, location) = (client.clone(), app.clone(), location.clone());
        async move { client.checkpoint(&app, &location).await }
    });
    let began = world.beside_runtime("began");
    wait::until_ok("the dump begins", SOON, || began.exists().then_some(()).ok_or_else(|| "not yet".into())).await;
    let second = client.checkpoint(&app, &location).await.unwrap_err();
    assert_eq!(second.code(), Code::Unavailable, "{second}");

    world.node.kill9();
    asked.await.unwrap().unwrap_err();
    let paused = world.lines();
    world.node.boot().await;
    world.logs_on(paused).await;
    fs::write(&hang, "\n").unwrap();
    assert!(!location.exists());
    fs::remove_file(&hang).unwrap();
    world.client().checkpoint(&app, &location).await.unwrap();
    world.finish().await;
}

/// With the real runc and CRIU, where the kernel is one that this CRIU knows.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_criu_dumps_a_container_that_goes_on() {
    let check = std::process::Command::new("criu").arg("check").output();
    if !check.is_ok_and(|output| output.status.success()) {
        eprintln!("left out: criu check fails on this kernel, or CRIU is not installed");
        return;
    }
    let world = Box::pin(World::start_with("")).await;
    let location = world.node.path("app.tar");
    world.client().checkpoint(&world.app, &location).await.unwrap();
    let names = command::run("tar", &["-tf", location.to_str().unwrap()]);
    for expected in ["checkpoint/inventory.img", "checkpoint/pstree.img", "checkpoint/pages-1.img", "stats-dump"] {
        assert!(names.lines().any(|name| name == expected), "no {expected}:\n{names}");
    }
    world.logs_on(world.lines()).await;
    world.finish().await;
}
