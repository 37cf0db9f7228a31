//! The built shim, driven by our own client: logs, attach, exec, exits.
#![expect(clippy::unwrap_used, reason = "a test ends where its world is not as it must be")]

#[path = "server/checkpoint.rs"]
mod checkpoint;
#[path = "server/world.rs"]
mod world;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use windlass_shim::client::{AttachOutput, AttachTo, Output, TaskClient};
use windlass_shim::launch::Launch;
use windlass_shim::proto::{process::Status, runc, to_any};
use world::{World, until};

/// The records of a log without their times.
fn records(path: &Path) -> Vec<String> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines().map(|line| line.split_once(' ').unwrap().1.to_owned()).collect()
}

fn all(world: &World, exec_id: &str) -> AttachTo {
    AttachTo {
        id: world.id.clone(),
        exec_id: exec_id.to_owned(),
        stdin: true,
        stdout: true,
        stderr: true,
        terminal: false,
    }
}

/// Everything until the stream's end: stdout and stderr.
async fn collect(mut output: AttachOutput) -> (Vec<u8>, Vec<u8>) {
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some(piece) = output.next().await.unwrap() {
        match piece {
            Output::Stdout(bytes) => stdout.extend_from_slice(&bytes),
            Output::Stderr(bytes) => stderr.extend_from_slice(&bytes),
        }
    }
    (stdout, stderr)
}

async fn run(world: &World, exec_id: &str, script: &str) -> (Vec<u8>, Vec<u8>, u32) {
    world.add_exec(exec_id, script, false).await;
    let stream = world.extension.attach(all(world, exec_id)).await.unwrap();
    world.task.start(&world.id, exec_id).await.unwrap();
    let (stdout, stderr) = collect(stream.output).await;
    let exit = world.extension.wait(&world.id, exec_id).await.unwrap();
    world.task.delete(&world.id, exec_id).await.unwrap();
    (stdout, stderr, exit.exit_status)
}

#[tokio::test]
async fn privileged_both_streams_are_in_the_log_when_the_container_is_deleted() {
    let world = World::new("echo one; echo two >&2; printf three; exit 7").await;
    world.create("").await;
    world.task.start(&world.id, "").await.unwrap();
    assert_eq!(world.task.wait(&world.id, "").await.unwrap().exit_status, 7);
    let deleted = world.task.delete(&world.id, "").await.unwrap();
    let mut lines = records(&world.log());
    lines.sort();
    assert_eq!(
        (deleted.exit_status, lines),
        (7, vec!["stderr F two".into(), "stdout F one".into(), "stdout P three".into()])
    );
}

#[tokio::test]
async fn privileged_a_reopen_while_the_container_writes_loses_no_line() {
    let world = World::new("exec seq 1 200000").await;
    world.create("").await;
    world.task.start(&world.id, "").await.unwrap();
    let mut old = Vec::new();
    for turn in 0..5 {
        let renamed = world.log().with_extension(turn.to_string());
        fs::rename(world.log(), &renamed).unwrap();
        world.extension.reopen_log(&world.id).await.unwrap();
        old.push(renamed);
    }
    world.task.wait(&world.id, "").await.unwrap();
    world.task.delete(&world.id, "").await.unwrap();
    old.push(world.log());
    let lines: Vec<String> = old.iter().flat_map(|path| records(path)).collect();
    let expected: Vec<String> = (1..=200_000).map(|number| format!("stdout F {number}")).collect();
    assert!(lines == expected, "{} lines in {} files", lines.len(), old.len());
}

#[tokio::test]
async fn privileged_an_attached_client_feeds_stdin_and_gets_a_copy_of_what_is_logged() {
    let world = World::new("exec cat").await;
    world.create("attach://?once=1").await;
    world.task.start(&world.id, "").await.unwrap();
    let stream = world.extension.attach(all(&world, "")).await.unwrap();
    let watcher = world.extension.attach(AttachTo { stdin: false, ..all(&world, "") }).await.unwrap();
    stream.stdin.write(Bytes::from_static(b"hello\n")).await.unwrap();
    stream.stdin.close().await.unwrap();
    let copies = (collect(stream.output).await, collect(watcher.output).await);
    let hello = (b"hello\n".to_vec(), Vec::new());
    assert_eq!(copies, (hello.clone(), hello));
    assert_eq!(world.task.wait(&world.id, "").await.unwrap().exit_status, 0);
    assert_eq!(records(&world.log()), ["stdout F hello"]);
}

#[tokio::test]
async fn privileged_an_exec_gives_both_streams_and_its_exit_code() {
    let world = World::idle().await;
    let ended = run(&world, "e", "echo out; echo err >&2; exit 3").await;
    assert_eq!(ended, (b"out\n".to_vec(), b"err\n".to_vec(), 3));
}

#[tokio::test]
async fn privileged_output_that_outgrows_the_pipe_is_whole_after_the_exit() {
    let world = World::idle().await;
    let (stdout, _, status) = run(&world, "e", "seq 1 100000").await;
    let expected: String = (1..=100_000).map(|number| format!("{number}\n")).collect();
    assert!((stdout == expected.as_bytes()) && status == 0, "{} bytes of {}", stdout.len(), expected.len());
}

#[tokio::test]
async fn privileged_an_exec_whose_child_keeps_the_pipe_still_ends() {
    let world = World::idle().await;
    let ended = run(&world, "e", "sleep 900 & echo done").await;
    assert_eq!(ended, (b"done\n".to_vec(), Vec::new(), 0));
}

#[tokio::test]
async fn privileged_the_output_of_a_held_exec_ends_with_the_last_who_holds_it_or_with_its_client() {
    const HELD: &str = "attach://?hold=1";
    let world = World::idle().await;
    world.add_exec_to(HELD, "late", "(sleep 3; echo late) & echo done", false).await;
    let stream = world.extension.attach(all(&world, "late")).await.unwrap();
    world.task.start(&world.id, "late").await.unwrap();
    assert_eq!(collect(stream.output).await, (b"done\nlate\n".to_vec(), Vec::new()));
    world.task.delete(&world.id, "late").await.unwrap();

    world.add_exec_to(HELD, "left", "sleep 903 & echo done", false).await;
    let mut stream = world.extension.attach(all(&world, "left")).await.unwrap();
    world.task.start(&world.id, "left").await.unwrap();
    assert_eq!(stream.output.next().await.unwrap(), Some(Output::Stdout("done\n".into())));
    world.task.wait(&world.id, "left").await.unwrap();
    drop(stream);
    let deleted = tokio::time::timeout(Duration::from_secs(8), world.task.delete(&world.id, "left")).await;
    deleted.expect("nobody is left who waits for output").unwrap();
}

#[tokio::test]
async fn privileged_an_exec_whose_client_left_is_not_blocked_by_its_output() {
    let world = World::idle().await;
    world.add_exec("e", "seq 1 100000; exit 5", false).await;
    drop(world.extension.attach(all(&world, "e")).await.unwrap());
    world.task.start(&world.id, "e").await.unwrap();
    assert_eq!(world.task.wait(&world.id, "e").await.unwrap().exit_status, 5);
}

#[tokio::test]
async fn privileged_an_exec_with_a_terminal_sees_its_size() {
    let world = World::idle().await;
    world.add_exec("e", "read line; stty size; exit 4", true).await;
    let stream = world.extension.attach(AttachTo { terminal: true, ..all(&world, "e") }).await.unwrap();
    world.task.start(&world.id, "e").await.unwrap();
    let size = windlass_shim::proto::task::ResizePtyRequest {
        id: world.id.clone(),
        exec_id: "e".to_owned(),
        width: 91,
        height: 33,
    };
    world.task.resize_pty(&size).await.unwrap();
    stream.stdin.write(Bytes::from_static(b"go\n")).await.unwrap();
    let (stdout, _) = collect(stream.output).await;
    assert_eq!(String::from_utf8(stdout).unwrap(), "go\r\n33 91\r\n");
    assert_eq!(world.task.wait(&world.id, "e").await.unwrap().exit_status, 4);
}

#[tokio::test]
async fn privileged_killing_all_of_an_exec_ends_what_it_has_started_and_nothing_else() {
    let world = World::idle().await;
    world.add_exec("e", "sleep 901 & setsid sleep 902 & wait", false).await;
    let stream = world.extension.attach(all(&world, "e")).await.unwrap();
    world.task.start(&world.id, "e").await.unwrap();
    let started = 3;
    let mut pids = 0;
    while pids < 1 + started {
        pids = world.task.pids(&world.id).await.unwrap().processes.len();
        tokio::task::yield_now().await;
    }
    world.kill("e", 9, true).await;
    assert_eq!(world.task.wait(&world.id, "e").await.unwrap().exit_status, 137);
    assert_eq!(collect(stream.output).await, (Vec::new(), Vec::new()));
    let state = world.task.state(&world.id, "").await.unwrap();
    let left = world.task.pids(&world.id).await.unwrap().processes;
    assert_eq!((state.status, left.len()), (Status::Running as i32, 1));
}

#[tokio::test]
async fn privileged_many_short_execs_leave_no_descriptor_and_no_file() {
    let world = World::idle().await;
    let count = |path: String| fs::read_dir(path).unwrap().count();
    let fds = || count(format!("/proc/{}/fd", world.shim_pid));
    let files = || count(world.launch.bundle.to_str().unwrap().to_owned());
    run(&world, "first", "true").await;
    let before = (fds(), files());
    for turn in 0..30 {
        assert_eq!(run(&world, &format!("e{turn}"), "exit 2").await.2, 2);
    }
    // The connection of the last attach is closed by its client a moment later.
    until("the descriptors of the last exec are closed", || (fds(), files()) <= before).await;
}

#[tokio::test]
async fn privileged_the_exit_code_survives_the_shims_death_after_it() {
    let world = World::new("exit 42").await;
    world.create("").await;
    world.task.start(&world.id, "").await.unwrap();
    let exit = world.task.wait(&world.id, "").await.unwrap();
    Command::new("kill").args(["-9", &world.shim_pid.to_string()]).status().unwrap();
    let deleted = world.launch.delete().await.unwrap();
    assert_eq!((deleted.exit_status, deleted.exited_at), (42, exit.exited_at));
}

#[tokio::test]
async fn privileged_a_kill_for_memory_is_told() {
    let world = World::edited("dd if=/dev/zero of=/dev/null bs=200M count=1; exit 9", |config| {
        config["linux"]["resources"] = serde_json::json!({"memory": {"limit": 32 << 20}});
    })
    .await;
    world.create("").await;
    world.task.start(&world.id, "").await.unwrap();
    let exit = world.extension.wait(&world.id, "").await.unwrap();
    assert_eq!((exit.exit_status, exit.oom_killed), (9, true));
}

#[tokio::test]
async fn privileged_the_shim_is_a_child_of_pid_1_and_goes_after_shutdown() {
    let world = World::new("exit 0").await;
    let status = fs::read_to_string(format!("/proc/{}/status", world.shim_pid)).unwrap();
    assert!(status.contains("\nPPid:\t1\n"), "{status}");
    assert_eq!(world.launch.start().await.unwrap(), world.bootstrap);
    world.create("").await;
    world.task.shutdown(&world.id).await.unwrap();
    assert_eq!(world.task.state(&world.id, "").await.unwrap().status, Status::Created as i32);
    world.task.delete(&world.id, "").await.unwrap();
    world.task.shutdown(&world.id).await.unwrap();
    let socket = world.bootstrap.address.strip_prefix("unix://").unwrap().to_owned();
    until("the socket is removed", || !fs::exists(&socket).unwrap()).await;
}

#[tokio::test]
async fn privileged_an_exec_deleted_before_its_start_ends_for_all_who_wait() {
    let world = World::idle().await;
    world.add_exec("e", "true", false).await;
    let stream = world.extension.attach(all(&world, "e")).await.unwrap();
    let (waited, output, deleted) = tokio::join!(
        biased;
        world.task.wait(&world.id, "e"),
        collect(stream.output),
        world.task.delete(&world.id, "e"),
    );
    assert_eq!((waited.unwrap().exit_status, output, deleted.unwrap().pid), (255, (Vec::new(), Vec::new()), 0));
}

#[tokio::test]
async fn privileged_what_a_shared_pid_namespace_keeps_alive_ends_with_init() {
    let world = World::edited("sleep 900 & exit 6", |config| {
        config["linux"]["namespaces"] = serde_json::json!([{"type": "mount"}, {"type": "ipc"}, {"type": "uts"}]);
    })
    .await;
    world.create("").await;
    world.task.start(&world.id, "").await.unwrap();
    assert_eq!(world.task.wait(&world.id, "").await.unwrap().exit_status, 6);
    assert_eq!(world.task.pids(&world.id).await.unwrap().processes, []);
}

#[tokio::test]
async fn privileged_containers_of_one_pod_share_a_shim() {
    let pod = |config: &mut serde_json::Value| {
        config["annotations"] = serde_json::json!({"io.kubernetes.cri.sandbox-id": "pod"});
    };
    let world = World::edited("exec sleep 1000", pod).await;
    let other = windlass_shim::launch::Launch { id: "other".to_owned(), ..world.launch.clone() };
    assert_eq!(other.start().await.unwrap(), world.bootstrap);
}

#[tokio::test]
async fn privileged_a_container_that_never_ran_can_be_deleted() {
    let world = World::new("exec sleep 1000").await;
    world.create("").await;
    assert_eq!(world.task.delete(&world.id, "").await.unwrap().exit_status, 137);
    let gone = world.task.state(&world.id, "").await.unwrap_err();
    assert_eq!(gone.to_string(), "container not created");
}

#[tokio::test]
async fn privileged_two_deletes_at_once_run_the_hooks_of_the_end_once_and_answer_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let ran = dir.path().join("ran");
    let hook = format!("echo ran >>{}; sleep 0.2", ran.display());
    let world = World::edited("exec sleep 1000", |spec| {
        spec["hooks"] = serde_json::json!({"poststop": [{"path": "/bin/sh", "args": ["sh", "-c", hook]}]});
    })
    .await;
    world.create("").await;
    world.task.start(&world.id, "").await.unwrap();
    world.kill("", 9, false).await;
    world.task.wait(&world.id, "").await.unwrap();
    let (first, second) = tokio::join!(world.task.delete(&world.id, ""), world.task.delete(&world.id, ""));
    assert_eq!(fs::read_to_string(ran).unwrap(), "ran\n");
    let first = first.unwrap();
    assert_eq!(first.exit_status, 137);
    assert_eq!(second.unwrap(), first);
    assert_eq!(world.task.delete(&world.id, "").await.unwrap_err().code, windlass_shim::ttrpc::Code::NotFound);
}

#[tokio::test]
async fn privileged_a_shim_joins_the_cgroup_that_its_options_name_or_does_not_start() {
    let world = World::new("true").await;
    let name = format!("windlass-{}", world.id);
    let start = |id: &str| {
        let options = runc::Options { shim_cgroup: format!("/{name}"), ..Default::default() };
        Launch { id: id.into(), options: Some(to_any(&options)), ..world.launch.clone() }
    };
    let error = start("none").start().await.unwrap_err().to_string();
    assert!(error.contains("there is no such cgroup"), "{error}");
    let hierarchy = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"].map(Path::new).into_iter().find(|path| path.is_dir());
    let cgroup = hierarchy.unwrap().join(&name);
    fs::create_dir(&cgroup).unwrap();
    let bootstrap = start("joins").start().await.unwrap();
    let task = TaskClient::connect_to(&bootstrap, world::NAMESPACE).await.unwrap();
    let pid = task.connect("joins").await.unwrap().shim_pid;
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    task.shutdown("joins").await.unwrap();
    let gone = async {
        while fs::remove_dir(&cgroup).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), gone).await.unwrap();
    assert!(cgroups.lines().any(|line| line.ends_with(&format!("/{name}"))), "{cgroups}");
}
