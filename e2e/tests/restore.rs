//! Containers that begin with a checkpoint. CRIU runs on few kernels, so a script plays it: a dump is the images that a test has
//! laid out, and a restore is a run of the program that one of them holds, which tells what it finds. The archive, its checks and all around them are real.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use api::cri::{self, security_profile::ProfileType};
use serde_json::{Value, json};
use tonic::Code;
use windlass_e2e::{
    client::{Client, container},
    command, criu, filters,
    image::Image,
    layer,
    node::{BUSYBOX, TestNode},
    push::Pusher,
    wait::{self, SOON},
};

/// `$0.images` is what is dumped, `$0.restored` what was restored. `$0.fail`: a restore fails as CRIU does.
const RUNTIME: &str = r#"#!/bin/sh
for argument; do
    case $argument in
    checkpoint|restore) verb=$argument; break ;;
    esac
done
[ -n "$verb" ] || exec runc "$@"
left=$#
while [ $left -gt 0 ]; do
    word=$1
    shift
    left=$((left - 1))
    case $word in
    restore) set -- "$@" run ;;
    --image-path) image=$1; shift; left=$((left - 1)) ;;
    --work-path) work=$1; shift; left=$((left - 1)) ;;
    --bundle) bundle=$1; shift; left=$((left - 1)); set -- "$@" --bundle "$bundle" ;;
    *) set -- "$@" "$word" ;;
    esac
done
if [ $verb = checkpoint ]; then
    cp "$0.images"/* "$image/"
    echo dumped >"$work/dump.log"
    exit
fi
if [ -e "$0.fail" ]; then
    echo '(00.1) Error (criu/x.c:1): the kernel lacks it' >"$work/restore.log"
    exit 1
fi
rm -rf "$0.restored"
cp -r "$image" "$0.restored"
# What the process was doing lies in the images.
sed -i "s#echo kept >/tmp/file; rm /etc/group; echo ready;#$(cat "$image/pages-1.img")#" "$bundle/config.json"
exec runc "$@"
"#;

const RESTORES: &str = "[plugins.\"io.windlass.v1.checkpoints\"]\nrestore = true\n";
/// What the restored process does.
const PROGRAM: &str = "echo from the checkpoint; cat /tmp/file; [ -e /etc/group ] || echo no group;";
const SYS_ADMIN: u64 = 1 << 21;

/// A node with a pod, in which a container was checkpointed that is gone.
struct World {
    node: TestNode,
    runtime: PathBuf,
    pod: String,
    pod_config: cri::PodSandboxConfig,
    /// The OCI spec of that container.
    spec: Value,
    archive: PathBuf,
}

impl World {
    async fn start() -> World {
        let mut node = TestNode::prepare().await;
        node.settings.cri = "enable_criu = true".into();
        node.settings.tables = RESTORES.into();
        let runtime = node.path("runtime");
        fs::write(&runtime, RUNTIME).unwrap();
        fs::set_permissions(&runtime, fs::Permissions::from_mode(0o755)).unwrap();
        node.settings.runc = runtime.display().to_string();
        node.boot().await;
        let client = node.client();
        client.pull(BUSYBOX).await.unwrap();
        let pod_config = node.pod("restored");
        let pod = client.run_pod(&pod_config).await.unwrap();
        let app = client.create(&pod, &config(BUSYBOX), &pod_config).await.unwrap();
        client.start(&app).await.unwrap();
        wait::until_ok("the container is ready", SOON, || {
            let lines = node.log_of("restored", "app").len();
            (lines > 0).then_some(()).ok_or_else(|| "it has logged nothing".to_owned())
        })
        .await;
        let archive = node.path("app.tar");
        let spec = spec_of(&client, &app).await;
        let mut world = World { node, runtime, pod, pod_config, spec, archive };
        world.dump(&app, 0).await;
        client.stop(&app, 0).await.unwrap();
        client.remove(&app).await.unwrap();
        fs::remove_file(world.node.path("logs").join("restored/app.log")).unwrap();
        world
    }

    /// Checkpoints the container into the archive, as one of capabilities beyond the default.
    async fn dump(&mut self, app: &str, more: u64) {
        let images = self.runtime.with_extension("images");
        fs::create_dir_all(&images).unwrap();
        criu::write_images(&images, &self.spec, more);
        fs::write(images.join("pages-1.img"), PROGRAM).unwrap();
        self.client().checkpoint(app, &self.archive).await.unwrap();
    }

    fn client(&self) -> Client {
        self.node.client()
    }

    async fn create(&self, image: &str) -> Result<String, tonic::Status> {
        let (client, config) = (self.client(), config(image));
        Box::pin(client.create(&self.pod, &config, &self.pod_config)).await
    }

    async fn restore(&self) -> String {
        self.create(self.archive.to_str().unwrap()).await.unwrap()
    }

    fn lines(&self) -> Vec<String> {
        self.node.log_of("restored", "app").into_iter().map(|line| line.text).collect()
    }

    /// Waits for what the restored process says.
    async fn spoken(&self) {
        wait::until_ok("the restored process has looked around", SOON, || match self.lines() {
            lines if lines == ["ready", "from the checkpoint", "kept", "no group"] => Ok(()),
            lines => Err(format!("the log is {lines:?}")),
        })
        .await;
    }

    /// The directories of containers, by the ids in their names.
    fn directories(&self) -> Vec<PathBuf> {
        let containers = self.node.path("root/io.containerd.grpc.v1.cri/containers");
        fs::read_dir(containers).map(|found| found.map(|entry| entry.unwrap().path()).collect()).unwrap_or_default()
    }

    async fn finish(self) {
        let client = self.client();
        client.stop_pod(&self.pod).await.unwrap();
        client.remove_pod(&self.pod).await.unwrap();
        self.node.finish().await;
    }
}

/// A container that has written a file and taken another of its image away.
fn config(image: &str) -> cri::ContainerConfig {
    container("app", image, &["sh", "-c", "echo kept >/tmp/file; rm /etc/group; echo ready; exec sleep 1000"])
}

async fn spec_of(client: &Client, id: &str) -> Value {
    let info = client.container_info(id).await.unwrap();
    info["runtimeSpec"].clone()
}

/// The spec with the container's id, and nothing else, taken out. Sets of capabilities have no order.
fn without_id(spec: &Value, id: &str) -> Value {
    let mut spec: Value = serde_json::from_str(&spec.to_string().replace(id, "ID")).unwrap();
    for set in spec["process"]["capabilities"].as_object_mut().unwrap().values_mut() {
        set.as_array_mut().unwrap().sort_by_key(Value::to_string);
    }
    spec
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_container_is_restored_with_its_files_and_nothing_else_of_its_archive() {
    let world = Box::pin(World::start()).await;
    let client = world.client();
    let images = client.image_list().await.unwrap();
    // The same request without the archive. Of the archive's spec another one is made, full of what would be taken.
    let plain = world.create(BUSYBOX).await.unwrap();
    let expected = without_id(&spec_of(&client, &plain).await, &plain);
    client.remove(&plain).await.unwrap();
    poison(&world.archive);

    let app = world.restore().await;
    assert_eq!(without_id(&spec_of(&client, &app).await, &app), expected);
    let again = world.restore().await;
    assert_eq!(again, app, "a retry is the same container");
    let status = client.status(&app).await.unwrap();
    assert_eq!(status.state(), cri::ContainerState::ContainerCreated);
    let base = &world.node.registry.busybox;
    assert_eq!(status.image_id, base.id);
    assert_eq!(status.image_ref, format!("docker.io/library/busybox@{}", base.digest));
    assert_eq!(status.image.unwrap().image, BUSYBOX);
    assert!(status.created_at > 0 && status.started_at == 0);
    assert_eq!((status.labels.len(), status.annotations.len()), (0, 0));

    client.start(&app).await.unwrap();
    world.spoken().await;
    client.output(&app, &["sh", "-c", "[ ! -e /etc/passwd ] && [ ! -e /bin/ls ] && [ -e /bin/cat ]"]).await;
    let status = client.status(&app).await.unwrap();
    assert_eq!(status.state(), cri::ContainerState::ContainerRunning);
    assert!(status.started_at >= status.created_at);
    // Memory of the processes is not left on the disk.
    assert!(world.directories().iter().all(|directory| !directory.join("restore").exists()));
    assert_eq!(client.image_list().await.unwrap(), images);
    client.stop(&app, 0).await.unwrap();
    assert_eq!(client.exited(&app).await.exit_code, 137);
    client.remove(&app).await.unwrap();
    world.finish().await;
}

fn unpacked(archive: &Path) -> PathBuf {
    let directory = archive.with_extension("d");
    fs::create_dir(&directory).unwrap();
    command::run("tar", &["-xf", archive.to_str().unwrap(), "-C", directory.to_str().unwrap()]);
    directory
}

/// Puts another spec, status and log into the archive: with hooks, devices, CDI, mounts and what else may be asked for.
fn poison(archive: &Path) {
    let directory = unpacked(archive);
    let (from, into) = (archive.to_str().unwrap(), directory.to_str().unwrap());
    let spec = json!({
        "annotations": {"cdi.k8s.io/x": "vendor.com/device=all", "org.criu.config": "/tmp/criu.conf"},
        "hooks": {"prestart": [{"path": "/bin/true"}]},
        "mounts": [{"destination": "/host", "type": "bind", "source": "/", "options": ["rbind", "rw"]}],
        "process": {"capabilities": {"bounding": ["CAP_SYS_ADMIN"]}, "user": {"uid": 0, "gid": 0}},
        "linux": {"devices": [{"path": "/dev/sda", "type": "b", "major": 8, "minor": 0}]},
    });
    fs::write(directory.join("spec.dump"), spec.to_string()).unwrap();
    let status = json!({"annotations": {"cdi.k8s.io/x": "a"}, "labels": {"a": "b"}, "image": {"image": "docker.io/library/nginx:latest"}});
    fs::write(directory.join("status.dump"), status.to_string()).unwrap();
    let log = "a log of somebody else\n2026-01-02T03:04:05Z stdout F ready\n2026-01-02 stdout F and more\n";
    fs::write(directory.join("container.log"), log).unwrap();
    // As runtimes tell what was removed whose layers do not.
    fs::write(directory.join("deleted.files"), r#"["/etc/passwd", "/bin/ls", "/tmp/was/never/there"]"#).unwrap();
    command::run("tar", &["-cf", from, "-C", into, "."]);
}

/// V-C27: the runtime gets images in which the process has the request's filter, whatever the archive's said.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_container_is_restored_under_the_profile_of_its_request() {
    const ALLOW: &[u8] = &[6, 0, 0, 0, 0, 0, 0xff, 0x7f];
    const REFUSE: &[u8] = &[6, 0, 0, 0, 1, 0, 5, 0];
    let world = Box::pin(World::start()).await;
    let client = world.client();
    let directory = unpacked(&world.archive);
    let mut config = config(world.archive.to_str().unwrap());
    let seccomp =
        cri::SecurityProfile { profile_type: ProfileType::RuntimeDefault as i32, localhost_ref: String::new() };
    let context = cri::LinuxContainerSecurityContext { seccomp: Some(seccomp), ..Default::default() };
    config.linux = Some(cri::LinuxContainerConfig { security_context: Some(context), ..Default::default() });
    let with_profile = json!({"linux": {"seccomp": {"defaultAction": "SCMP_ACT_ALLOW"}}}).to_string();
    let mut own = Vec::new();
    for (spec, archived, kept) in [
        ("{}", vec![], vec![]),
        (&with_profile, vec![ALLOW], vec![]),
        (&with_profile, vec![ALLOW, REFUSE], vec![REFUSE]),
        ("{}", vec![REFUSE], vec![REFUSE]),
        ("no spec at all", vec![ALLOW], vec![ALLOW]),
    ] {
        fs::write(directory.join("spec.dump"), spec).unwrap();
        filters::set_filters(&directory.join("checkpoint"), &archived);
        command::run("tar", &["-cf", world.archive.to_str().unwrap(), "-C", directory.to_str().unwrap(), "."]);
        let app = client.create(&world.pod, &config, &world.pod_config).await.unwrap();
        client.start(&app).await.unwrap();
        world.spoken().await;
        let found = filters::filters_of(&world.runtime.with_extension("restored"), 6);
        assert!(found[0].len() > 1000, "{found:?}");
        own.push(found[0].clone());
        assert_eq!(found[1..], kept, "{spec}: {archived:?}");
        client.stop(&app, 0).await.unwrap();
        client.remove(&app).await.unwrap();
        fs::remove_file(world.node.path("logs").join("restored/app.log")).unwrap();
    }
    assert!(own.windows(2).all(|pair| pair[0] == pair[1]), "the profile is the same each time");
    world.finish().await;
}

/// V-C24 and V-C27, through the whole of the daemon.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_checkpoint_that_would_get_more_is_refused_and_leaves_nothing() {
    let mut world = Box::pin(World::start()).await;
    let client = world.client();
    let images = client.image_list().await.unwrap();
    let pod = world.pod.clone();
    let app = client.create(&pod, &config(BUSYBOX), &world.pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    world.dump(&app, SYS_ADMIN).await;
    client.stop(&app, 0).await.unwrap();
    client.remove(&app).await.unwrap();
    let status = world.create(world.archive.to_str().unwrap()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    assert!(status.message().contains("core-6.img: its permitted set has CAP_SYS_ADMIN"), "{status}");

    // An archive that names another image, which is here or is not, gets it no name and does not have it fetched.
    let config =
        |reference: &str| json!({"rootfsImageRef": reference, "rootfsImageName": "docker.io/library/nginx:latest"});
    let missing = world.node.path("missing.tar");
    archive(&missing, &[("config.dump", config("docker.io/library/nginx:latest").to_string().as_bytes())]);
    let status = world.create(missing.to_str().unwrap()).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound, "{status}");
    assert!(status.message().contains("pull \"docker.io/library/nginx:latest\" first"), "{status}");
    let pause = client.image(&world.node.settings.pause_image).await.unwrap().unwrap();
    let named = world.node.path("named.tar");
    archive(&named, &[("config.dump", config(&pause.id).to_string().as_bytes()), ("checkpoint/inventory.img", b"?")]);
    let status = world.create(named.to_str().unwrap()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument, "{status}");

    for (name, code) in
        [("/none/such.tar", Code::NotFound), ("/dev/zero", Code::InvalidArgument), ("/", Code::InvalidArgument)]
    {
        let status = world.create(name).await.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
    }
    assert_eq!(client.image_list().await.unwrap(), images);
    assert_eq!(client.containers().await.unwrap(), []);
    assert_eq!(world.directories(), Vec::<PathBuf>::new());
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_restore_that_fails_is_a_start_that_failed() {
    let world = Box::pin(World::start()).await;
    let client = world.client();
    fs::write(world.runtime.with_extension("fail"), "").unwrap();
    let app = world.restore().await;
    let failed = client.start(&app).await.unwrap_err();
    assert!(failed.message().ends_with("CRIU: Error (criu/x.c:1): the kernel lacks it"), "{failed}");
    let status = client.exited(&app).await;
    assert_eq!((status.exit_code, status.reason.as_str()), (128, "StartError"));
    assert!(world.directories().iter().all(|directory| !directory.join("restore").exists()));
    client.remove(&app).await.unwrap();
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_restored_container_can_be_started_by_the_next_daemon() {
    let mut world = Box::pin(World::start()).await;
    let app = world.restore().await;
    // It is not read again.
    fs::remove_file(&world.archive).unwrap();
    world.node.kill9();
    world.node.boot().await;
    let client = world.client();
    assert_eq!(client.status(&app).await.unwrap().state(), cri::ContainerState::ContainerCreated);
    client.start(&app).await.unwrap();
    world.spoken().await;
    world.node.kill9();
    world.node.boot().await;
    assert_eq!(world.client().status(&app).await.unwrap().state(), cri::ContainerState::ContainerRunning);
    world.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_checkpoint_is_restored_from_an_image_as_well() {
    let mut world = Box::pin(World::start()).await;
    let tar = fs::read(&world.archive).unwrap();
    let name = "docker.io/library/checkpointed:1";
    let mut image = Image::new(vec![layer::Layer::of_tar(&tar)], json!({}));
    image.annotations = json!({"org.criu.checkpoint.container.name": "app"});
    image.push(&Pusher { registry: world.node.registry.address }, "library/checkpointed", "1");
    let client = world.client();
    client.pull(name).await.unwrap();
    let app = world.create(name).await.unwrap();
    let status = client.status(&app).await.unwrap();
    let base = &world.node.registry.busybox;
    assert_eq!(status.image_id, base.id);
    assert_eq!(status.image_ref, format!("docker.io/library/busybox@{}", base.digest));
    client.start(&app).await.unwrap();
    world.spoken().await;
    client.stop(&app, 0).await.unwrap();
    client.remove(&app).await.unwrap();

    // Off, as it is unless the configuration says otherwise.
    world.node.settings.tables = String::new();
    world.node.restart().await;
    for image in [name, world.archive.to_str().unwrap(), "/none/such.tar"] {
        let status = world.create(image).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{status}");
        assert!(status.message().contains("restore = true"), "{status}");
    }
    world.client().remove_image(name).await.unwrap();
    world.finish().await;
}

fn archive(path: &Path, members: &[(&str, &[u8])]) {
    let mut tar = tar::Builder::new(fs::File::create(path).unwrap());
    for (name, content) in members {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o600);
        tar.append_data(&mut header, name, *content).unwrap();
    }
    tar.into_inner().unwrap();
}
