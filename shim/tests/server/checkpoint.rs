//! Checkpoint and restore as far as the shim goes: the OCI runtime is real but for its two verbs that need CRIU, which
//! runs on few kernels; those are played by a script that records how it was called.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use windlass_shim::proto::process::Status;
use windlass_shim::proto::{AnyMessage, runc, task, to_any};
use windlass_shim::ttrpc::Code;

use crate::world::{World, until};

/// `checkpoint` leaves an image and a log; `restore` leaves a process that says so on its stdout, as `--detach` does.
const RUNTIME: &str = r#"#!/bin/sh
for argument; do
    case $argument in
    checkpoint|restore) verb=$argument; break ;;
    esac
done
[ -n "$verb" ] || exec runc "$@"
echo "$@" >>"$0.calls"
[ ! -e "$0.fail" ] || fail=1
while [ $# -gt 0 ]; do
    case $1 in
    --image-path) image=$2 ;;
    --work-path) work=$2 ;;
    --pid-file) pid=$2 ;;
    esac
    shift
done
if [ -n "$fail" ]; then
    printf '(00.1) Error (criu/x.c:1): no such feature\n(00.2) bye\n' | tee "$work/dump.log" >"$work/restore.log"
    exit 1
fi
if [ "$verb" = checkpoint ]; then
    echo pages >"$image/pages-1.img"
    echo dumped >"$work/dump.log"
else
    sh -c 'cat "$1/pages-1.img"; exec sleep 1000' sh "$image" &
    echo $! >"$pid"
fi
"#;

struct Runtime {
    path: PathBuf,
}

impl Runtime {
    fn new(world: &World) -> Runtime {
        let path = world.dir.path().join("runtime");
        fs::write(&path, RUNTIME).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        Runtime { path }
    }

    fn options(&self, world: &World) -> AnyMessage {
        let root = world.dir.path().join("runc").to_str().unwrap().to_owned();
        to_any(&runc::Options { root, binary_name: self.path.to_str().unwrap().to_owned(), ..Default::default() })
    }

    fn calls(&self) -> String {
        fs::read_to_string(self.path.with_extension("calls")).unwrap_or_default()
    }

    fn fails(&self) {
        fs::write(self.path.with_extension("fail"), "").unwrap();
    }
}

async fn create(world: &World, runtime: &Runtime, checkpoint: &Path) -> u32 {
    let output = format!("cri://{}?max_line=16384", world.log().display());
    let request = task::CreateTaskRequest {
        id: world.id.clone(),
        bundle: world.launch.bundle.to_str().unwrap().to_owned(),
        stdout: output.clone(),
        stderr: output,
        checkpoint: checkpoint.to_str().unwrap().to_owned(),
        options: Some(runtime.options(world)),
        ..Default::default()
    };
    world.task.create(&request).await.unwrap().pid
}

fn checkpoint_to(world: &World, path: &Path) -> task::CheckpointTaskRequest {
    task::CheckpointTaskRequest {
        id: world.id.clone(),
        path: path.to_str().unwrap().to_owned(),
        options: Some(to_any(&runc::CheckpointOptions { file_locks: true, ..Default::default() })),
    }
}

#[tokio::test]
async fn privileged_a_checkpoint_leaves_the_container_running_and_says_how_it_went() {
    let world = World::new("exec sleep 1000").await;
    let runtime = Runtime::new(&world);
    create(&world, &runtime, Path::new("")).await;
    let image = world.dir.path().join("image");
    let early = world.task.checkpoint(&checkpoint_to(&world, &image)).await.unwrap_err();
    assert_eq!(
        (early.code, early.message),
        (Code::FailedPrecondition, format!("cannot checkpoint container {}: it is not running", world.id))
    );

    world.task.start(&world.id, "").await.unwrap();
    world.task.checkpoint(&checkpoint_to(&world, &image)).await.unwrap();
    let read = |name: &str| fs::read_to_string(image.join(name)).unwrap();
    assert_eq!((read("pages-1.img"), read("dump.log")), ("pages\n".to_owned(), "dumped\n".to_owned()));
    let calls = runtime.calls();
    assert!(calls.contains(" --leave-running --file-locks "), "{calls}");
    assert!(!world.launch.bundle.join("criu-work").exists());

    runtime.fails();
    let failed = world.task.checkpoint(&checkpoint_to(&world, &image)).await.unwrap_err();
    let reason = "it exited with 1; CRIU: Error (criu/x.c:1): no such feature";
    assert!(failed.message.ends_with(reason), "{failed}");
    assert_eq!(world.task.state(&world.id, "").await.unwrap().status(), Status::Running);
}

#[tokio::test]
async fn privileged_a_restored_container_runs_writes_its_log_and_ends_like_any_other() {
    let world = World::new("never run").await;
    let runtime = Runtime::new(&world);
    let image = world.dir.path().join("image");
    fs::create_dir(&image).unwrap();
    fs::write(image.join("pages-1.img"), "from the checkpoint\n").unwrap();
    assert_eq!(create(&world, &runtime, &image).await, 0);
    assert_eq!(world.task.state(&world.id, "").await.unwrap().status(), Status::Created);

    let started = world.task.start(&world.id, "").await.unwrap();
    assert!(Path::new(&format!("/proc/{}", started.pid)).exists());
    until("the restored process's output", || {
        fs::read_to_string(world.log()).is_ok_and(|log| log.ends_with("stdout F from the checkpoint\n"))
    })
    .await;
    world.kill("", 9, false).await;
    assert_eq!(world.task.wait(&world.id, "").await.unwrap().exit_status, 137);
    let deleted = world.task.delete(&world.id, "").await.unwrap();
    assert_eq!((deleted.pid, deleted.exit_status), (started.pid, 137));
}

#[tokio::test]
async fn privileged_a_container_that_cannot_be_restored_says_why_and_is_deleted() {
    let world = World::new("never run").await;
    let runtime = Runtime::new(&world);
    runtime.fails();
    create(&world, &runtime, &world.dir.path().join("image")).await;
    let failed = world.task.start(&world.id, "").await.unwrap_err();
    assert!(failed.message.ends_with("CRIU: Error (criu/x.c:1): no such feature"), "{failed}");
    world.task.delete(&world.id, "").await.unwrap();
    assert_eq!(world.task.state(&world.id, "").await.unwrap_err().code, Code::NotFound);
}

#[tokio::test]
async fn privileged_a_checkpoint_that_is_never_started_can_be_deleted() {
    let world = World::new("never run").await;
    let runtime = Runtime::new(&world);
    create(&world, &runtime, &world.dir.path().join("image")).await;
    world.task.delete(&world.id, "").await.unwrap();
    assert!(runtime.calls().is_empty());
}
