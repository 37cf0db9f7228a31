//! Logs where the disk or the directory is not as it should be: the container is not held up, and what is there can be read.

use std::{
    fs,
    path::{Path, PathBuf},
};

use api::cri::{self, ContainerState};
use tonic::Code;
use windlass_e2e::{
    client::container,
    command,
    crilog::{self, LogLine},
    node::{BUSYBOX, TestNode},
    wait::{self, SOON},
};

/// A file system of its own, unmounted when dropped.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, size: &str) -> Disk {
        let options = format!("size={size}");
        let arguments = ["-t", "tmpfs", "-o", &options, "tmpfs"].map(PathBuf::from);
        command::run("mount", &[&arguments[..], &[at.to_owned()]].concat());
        Disk(at.to_owned())
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        // Lazily, or a file that is still open would keep it.
        command::run("umount", &[Path::new("-l"), &self.0]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_full_disk_costs_lines_of_the_log_and_holds_up_nobody() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("full");
    let directory = PathBuf::from(&pod_config.log_directory);
    let disk = Disk::mount(&directory, "64k");
    fs::write(directory.join("ballast"), vec![0; 20 << 10]).unwrap();
    let gate = node.path("gate");
    fs::create_dir(&gate).unwrap();
    let script = "line=$(printf '%0200d' 7); i=0; while [ $i -lt 1000 ]; do echo \"$i $line\"; i=$((i+1)); done; \
                  touch /gate/written; while [ ! -e /gate/go ]; do sleep 0.05; done; echo one; echo two >&2; sleep 1000";
    let mut config = container("app", BUSYBOX, &["sh", "-c", script]);
    let (host_path, container_path) = (gate.display().to_string(), "/gate".to_owned());
    config.mounts = vec![cri::Mount { host_path, container_path, ..Default::default() }];
    let pod = client.run_pod(&pod_config).await.unwrap();
    let app = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    // 200 KiB go where there is room for 44.
    wait::until_ok("the container has written it all", SOON, || match gate.join("written").exists() {
        true => Ok(()),
        false => Err("not yet".to_owned()),
    })
    .await;
    let log = directory.join("app.log");
    let full = fs::metadata(&log).unwrap().len();
    assert!(full < 50 << 10, "{full} bytes");

    fs::remove_file(directory.join("ballast")).unwrap();
    fs::write(gate.join("go"), "").unwrap();
    let text = wait::until_ok("there is a log again", SOON, || {
        let text = fs::read_to_string(&log).unwrap();
        if text.ends_with(" two\n") || text.ends_with(" one\n") && text.contains(" two\n") {
            Ok(text)
        } else {
            Err(text)
        }
    })
    .await;
    let lines: Vec<&str> = text.lines().collect();
    let (before, last) = lines.split_at(lines.len() - 2);
    let mut last: Vec<LogLine> = last.iter().map(|line| crilog::parse(line)).collect();
    last.sort_by(|one, other| other.stream.cmp(&one.stream));
    assert_eq!(last, [LogLine::new("stdout", "one"), LogLine::new("stderr", "two")]);
    // All but the one that the disk took half of.
    let (_torn, whole) = before.split_last().unwrap();
    for (number, line) in whole.iter().enumerate() {
        assert!(crilog::parse(line).text.starts_with(&format!("{number} 000")), "{line}");
    }
    client.stop_pod(&pod).await.unwrap();
    client.remove_pod(&pod).await.unwrap();
    drop(disk);
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_log_directory_that_is_gone_is_made_again_and_one_in_the_logs_place_fails_the_start() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("gone");
    let directory = PathBuf::from(&pod_config.log_directory);
    fs::remove_dir(&directory).unwrap();
    let pod = client.run_pod(&pod_config).await.unwrap();
    let mut config = container("app", BUSYBOX, &["sh", "-c", "while :; do echo on; sleep 0.05; done"]);
    config.log_path = "deep/er/app.log".into();
    let app = client.create(&pod, &config, &pod_config).await.unwrap();
    client.start(&app).await.unwrap();
    let log = directory.join("deep/er/app.log");
    let is_logged = || match crilog::read(&log).first() {
        Some(line) if *line == LogLine::new("stdout", "on") => Ok(()),
        other => Err(format!("{other:?}")),
    };
    wait::until_ok("it is logged", SOON, is_logged).await;
    fs::remove_dir_all(&directory).unwrap();
    client.reopen_log(&app).await.unwrap();
    wait::until_ok("it is logged again", SOON, is_logged).await;

    // A failed reopen says why, and the log goes on where it was.
    let moved = directory.join("deep/moved");
    fs::rename(directory.join("deep/er"), &moved).unwrap();
    fs::write(directory.join("deep/er"), "").unwrap();
    let refused = client.reopen_log(&app).await.unwrap_err();
    assert!(refused.message().contains(&format!("{}", log.display())), "{refused}");
    let lines = crilog::read(&moved.join("app.log")).len();
    wait::until_ok("the old file gets lines", SOON, || match crilog::read(&moved.join("app.log")).len() {
        more if more > lines => Ok(()),
        _ => Err(format!("{lines}")),
    })
    .await;

    fs::create_dir(directory.join("other.log")).unwrap();
    let mut config = container("other", BUSYBOX, &["true"]);
    config.log_path = "other.log".into();
    let other = client.create(&pod, &config, &pod_config).await.unwrap();
    let failed = client.start(&other).await.unwrap_err();
    assert_eq!(failed.code(), Code::Unknown);
    assert!(failed.message().contains("other.log") && failed.message().contains("directory"), "{failed}");
    let status = client.status(&other).await.unwrap();
    assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 128));
    assert_eq!((status.reason.as_str(), status.message.as_str()), ("StartError", failed.message()));
    // Logs are the kubelet's to remove.
    node.remove_all_pods().await;
    assert!(crilog::read(&moved.join("app.log")).len() > lines);
    node.finish().await;
}
