//! Plugins that the daemon starts itself.

use std::{
    env, fs, io,
    io::Write,
    os::{fd::AsFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::net::UnixStream;
use windlass_e2e::{
    client::container,
    node::{BUSYBOX, TestNode},
    wait::{self, SOON},
};

use crate::{
    is_about,
    plugin::{Plugin, Script},
};

/// Below it, an installed plugin writes what happens to it: `pid`, `config`, `calls`. While `hold` is there, it does not
/// answer CreateContainer.
const DIR: &str = "PLUGIN_DIR";

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the program of the installed plugins; it needs what the daemon gives them"]
async fn is_an_installed_plugin() {
    let dir = PathBuf::from(env::var(DIR).unwrap());
    fs::write(dir.join("pid"), std::process::id().to_string()).unwrap();
    // The script that starts this has put the plugin's socket there.
    let socket = std::os::unix::net::UnixStream::from(io::stdin().as_fd().try_clone_to_owned().unwrap());
    socket.set_nonblocking(true).unwrap();
    let work = dir.clone();
    let script = Script::waiting(move |call| {
        let dir = work.clone();
        Box::pin(async move {
            let mut calls = fs::OpenOptions::new().create(true).append(true).open(dir.join("calls")).unwrap();
            calls.write_all(format!("{}\n", call.method).as_bytes()).unwrap();
            if is_about(&call, "CreateContainer", "held") {
                std::future::pending::<()>().await;
            }
            None
        })
    });
    // Who it is, the daemon knows better.
    let plugin = Plugin::register_on(UnixStream::from_std(socket).unwrap(), "99", "other", script).await.unwrap();
    plugin.until("Configure", 1).await;
    fs::write(dir.join("config"), plugin.configured().config).unwrap();
    plugin.ended().await;
}

/// Installs a plugin; answers the directory that it writes in.
fn install(node: &TestNode, name: &str) -> PathBuf {
    let (plugins, work) = (node.path("nri-plugins"), node.path(&format!("plugin-{name}")));
    for dir in [&plugins, &work] {
        fs::create_dir_all(dir).unwrap();
    }
    let own = env::current_exe().unwrap();
    let text = format!(
        "#!/bin/sh\nexport {DIR}='{}'\nexec '{}' --exact installed::is_an_installed_plugin --ignored <&3 3<&-\n",
        work.display(),
        own.display()
    );
    let path = plugins.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    work
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn pid(work: &Path) -> i32 {
    read(&work.join("pid")).parse().unwrap()
}

async fn until_gone(pid: i32) {
    // A zombie would be there.
    wait::until_ok("the plugin has ended and is reaped", SOON, || {
        let status = read(Path::new(&format!("/proc/{pid}/status")));
        if status.is_empty() { Ok(()) } else { Err(status) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_installed_plugin_is_started_with_the_daemon_configured_and_reaped() {
    let mut node = TestNode::prepare().await;
    let (first, second) = (install(&node, "10-first"), install(&node, "20-second"));
    let configs = node.path("nri-conf.d");
    fs::create_dir(&configs).unwrap();
    for (file, text) in [("10-first.conf", "own"), ("first.conf", "shared"), ("second.conf", "of second: é\n")] {
        fs::write(configs.join(file), text).unwrap();
    }
    node.boot().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let pod_config = node.pod("watched");
    let pod = client.run_pod(&pod_config).await.unwrap();
    let calls = |work: &Path| read(&work.join("calls")).lines().map(str::to_owned).collect::<Vec<String>>();
    assert_eq!(calls(&first), ["Synchronize", "RunPodSandbox"], "no pod is made before it takes part");
    assert_eq!((read(&first.join("config")), read(&second.join("config"))), ("own".into(), "of second: é\n".into()));
    let (old, kept) = (pid(&first), pid(&second));

    // Killed while it is asked.
    let creating = tokio::spawn({
        let (client, pod, pod_config) = (client.clone(), pod.clone(), pod_config.clone());
        async move { client.create(&pod, &container("held", BUSYBOX, &["sleep", "600"]), &pod_config).await }
    });
    wait::until_ok("the plugin is asked", SOON, || match calls(&first) {
        calls if calls.contains(&"CreateContainer".to_owned()) => Ok(()),
        calls => Err(format!("{calls:?}")),
    })
    .await;
    kill_process(Pid::from_raw(old).unwrap(), Signal::KILL).unwrap();
    // The second one holds it as well, until its own time is up.
    let held = creating.await.unwrap().unwrap();
    client.start(&held).await.unwrap();
    until_gone(old).await;
    until_gone(kept).await;
    let log = node.log_tail();
    assert!(log.contains("10-first") && log.contains("20-second") && !log.contains("99-other"), "{log}");

    // Neither is started again before the daemon is.
    client.create(&pod, &container("app", BUSYBOX, &["sleep", "600"]), &pod_config).await.unwrap();
    assert_eq!((pid(&first), pid(&second)), (old, kept));
    node.restart().await;
    let client = node.client();
    let new = [pid(&first), pid(&second)];
    assert!(new[0] != old && new[1] != kept);
    client.create(&pod, &container("more", BUSYBOX, &["sleep", "600"]), &pod_config).await.unwrap();
    assert_eq!(calls(&first).last().unwrap(), "PostCreateContainer");
    node.remove_all_pods().await;
    node.assert_clean().await;
    node.terminate().await;
    for pid in new {
        until_gone(pid).await;
    }
    node.assert_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_an_installed_plugin_ends_with_a_daemon_that_is_killed() {
    let mut node = TestNode::prepare().await;
    let work = install(&node, "10-first");
    node.boot().await;
    let old = pid(&work);
    node.kill9();
    until_gone(old).await;
    node.boot().await;
    assert_ne!(pid(&work), old);
    node.finish().await;
}
