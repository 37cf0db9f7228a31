//! Containers that are dumped and restored by the real runc and the real CRIU, where the kernel is one that this CRIU knows:
//! in the virtual machine of hack/vm. Elsewhere each test says that it is left out.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use api::cri::{self, security_profile::ProfileType};
use windlass_e2e::{
    client::{Client, container},
    command, filters,
    node::{BUSYBOX, TestNode},
    wait::{self, SOON},
};

/// A node that restores; `None` where it could not.
async fn node() -> Option<TestNode> {
    let check = Command::new("criu").arg("check").output();
    if !check.is_ok_and(|output| output.status.success()) {
        eprintln!("left out: criu check fails on this kernel, or CRIU is not installed");
        return None;
    }
    let mut node = TestNode::prepare().await;
    node.settings.cri = "enable_criu = true".into();
    node.settings.tables = "[plugins.\"io.windlass.v1.checkpoints\"]\nrestore = true\n".into();
    node.boot().await;
    node.client().pull(BUSYBOX).await.unwrap();
    Some(node)
}

/// A process counts on where it was.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_criu_restores_a_process_that_counts_on() {
    let Some(node) = node().await else { return };
    let client = node.client();
    let counter = |image: &str| {
        let script = "echo kept >/tmp/file; n=0; while :; do n=$((n + 1)); echo $n; sleep 0.2; done";
        container("app", image, &["sh", "-c", script])
    };
    let count = |node: &TestNode, pod: &str| -> Vec<u64> {
        node.log_of(pod, "app").iter().map(|line| line.text.parse().unwrap()).collect()
    };
    let first = node.pod("first");
    let pod = client.run_pod(&first).await.unwrap();
    let app = client.create(&pod, &counter(BUSYBOX), &first).await.unwrap();
    client.start(&app).await.unwrap();
    wait::until_ok("it counts", SOON, || {
        let last = count(&node, "first").last().copied();
        last.filter(|last| *last > 5).map(drop).ok_or_else(|| format!("it is at {last:?}"))
    })
    .await;
    let archive = node.path("app.tar");
    client.checkpoint(&app, &archive).await.unwrap();
    client.stop_pod(&pod).await.unwrap();
    client.remove_pod(&pod).await.unwrap();

    let second = node.pod("second");
    let pod = client.run_pod(&second).await.unwrap();
    let app = client.create(&pod, &counter(archive.to_str().unwrap()), &second).await.unwrap();
    client.start(&app).await.unwrap();
    // The log goes on as well: with what was logged at the dump, and then with what comes next.
    let before = count(&node, "first").len();
    let numbers = wait::until_ok("it counts on", SOON, || {
        let numbers = count(&node, "second");
        if numbers.len() > before + 3 { Ok(numbers) } else { Err(format!("{numbers:?}")) }
    })
    .await;
    assert!(numbers[0] == 1 && numbers.windows(2).all(|pair| pair[1] == pair[0] + 1), "{numbers:?}");
    assert_eq!(client.output(&app, &["cat", "/tmp/file"]).await, "kept\n");
    let pid = client.container_info(&app).await.unwrap()["pid"].as_u64().unwrap();
    let cgroups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    // Runtimes of version 1 do not know all controllers.
    let own = |line: &str| line.ends_with(&app) || line.ends_with(":misc:/");
    assert!(cgroups.lines().all(own), "{cgroups}");
    client.stop(&app, 0).await.unwrap();
    assert_eq!(client.exited(&app).await.exit_code, 137);
    client.stop_pod(&pod).await.unwrap();
    client.remove_pod(&pod).await.unwrap();
    node.finish().await;
}

/// Two threads that say, with a count, what becomes of calls: one that the default profile refuses, and one that the process
/// itself has refused by a filter of its own; and of sending over a TCP connection, which it has to itself. At a sign it refuses
/// another call, for all its threads.
const COUNTER: &str = r#"
#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static volatile int profile_in_thread = -1, own_in_thread = -1;

static int by_profile(void) { return syscall(SYS_keyctl, 0, -2, 0) < 0 ? errno : 0; }
static int by_own(void) { return syscall(SYS_getppid) < 0 ? errno : 0; }

static void *thread(void *unused)
{
    for (;;) {
        profile_in_thread = by_profile();
        own_in_thread = by_own();
        usleep(10000);
    }
}

static long refuse(unsigned number, unsigned error)
{
    struct sock_filter code[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 0),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | error),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { 4, code };
    /* Again, since CRIU before 3.19 forgets it. */
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        return -2;
    return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program);
}

static int connection, peer;

static int connected(void)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof(at);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    connection = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (void *)&at, length) || listen(listener, 1) || getsockname(listener, (void *)&at, &length)
        || connect(connection, (void *)&at, length))
        return -1;
    peer = accept(listener, NULL, NULL);
    close(listener);
    return peer;
}

static int sent(void)
{
    char byte;
    int error = send(connection, "x", 1, MSG_NOSIGNAL) < 0 ? errno : 0;
    recv(peer, &byte, 1, MSG_DONTWAIT);
    return error;
}

int main(void)
{
    pthread_t other;
    long more = -1;
    if (connected() < 0)
        return 2;
    setvbuf(stdout, NULL, _IOLBF, 0);
    pthread_create(&other, NULL, thread, NULL);
    if (refuse(SYS_getppid, 77))
        return 1;
    for (int count = 1;; count++) {
        if (more < 0 && access("/tmp/more", F_OK) == 0)
            more = refuse(SYS_getpgid, 78);
        printf("%d %d %d %d %d %d %ld\n", count, sent(), by_profile(), profile_in_thread, by_own(), own_in_thread, more);
        usleep(200000);
    }
}
"#;

/// A container with the default profile that runs the counter.
fn confined(image: &str, programs: &Path) -> cri::ContainerConfig {
    let seccomp =
        cri::SecurityProfile { profile_type: ProfileType::RuntimeDefault as i32, localhost_ref: String::new() };
    let context = cri::LinuxContainerSecurityContext { seccomp: Some(seccomp), ..Default::default() };
    let mount = cri::Mount {
        container_path: "/programs".into(),
        host_path: programs.display().to_string(),
        readonly: true,
        ..Default::default()
    };
    cri::ContainerConfig {
        linux: Some(cri::LinuxContainerConfig { security_context: Some(context), ..Default::default() }),
        mounts: vec![mount],
        ..container("app", image, &["/programs/counter"])
    }
}

/// What the counter says, as numbers.
fn lines(node: &TestNode, pod: &str) -> Vec<Vec<i64>> {
    let text = node.log_of(pod, "app");
    text.iter().map(|line| line.text.split(' ').map(|word| word.parse().unwrap()).collect()).collect()
}

/// The mode, and how many filters there are, of each thread.
async fn filters_of(client: &Client, app: &str) -> (usize, BTreeSet<(String, String)>) {
    let pid = client.container_info(app).await.unwrap()["pid"].as_u64().unwrap();
    let threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    let texts: Vec<String> =
        threads.map(|thread| fs::read_to_string(thread.unwrap().path().join("status")).unwrap()).collect();
    let value = |text: &str, key: &str| text.lines().find_map(|line| line.strip_prefix(key)).unwrap().trim().to_owned();
    let found = texts.iter().map(|text| (value(text, "Seccomp:"), value(text, "Seccomp_filters:"))).collect();
    (texts.len(), found)
}

/// V-C27: whatever the archive says of filters, the profile of the request is in force, in every thread; filters of the
/// process's own are kept.
#[tokio::test(flavor = "multi_thread")]
async fn privileged_criu_restores_threads_under_the_profile_of_the_request() {
    const ALLOW: &[u8] = &[6, 0, 0, 0, 0, 0, 0xff, 0x7f];
    let Some(node) = node().await else { return };
    let programs = node.path("programs");
    fs::create_dir(&programs).unwrap();
    fs::write(programs.join("counter.c"), COUNTER).unwrap();
    let (source, program) = (programs.join("counter.c"), programs.join("counter"));
    let words = ["-static", "-pthread", "-o", program.to_str().unwrap(), source.to_str().unwrap()];
    if !Command::new("gcc").args(words).status().is_ok_and(|status| status.success()) {
        eprintln!("left out: there is no C compiler for static programs");
        return node.finish().await;
    }
    let client = node.client();
    let first = node.pod("first");
    let pod = client.run_pod(&first).await.unwrap();
    let app = client.create(&pod, &confined(BUSYBOX, &programs), &first).await.unwrap();
    client.start(&app).await.unwrap();
    wait::until_ok("it counts, and is refused", SOON, || match lines(&node, "first").last() {
        Some(line) if line[0] > 5 && line[1..] == [0, 1, 1, 77, 77, -1] => Ok(()),
        line => Err(format!("{line:?}")),
    })
    .await;
    let two = |filters: &str| (2, BTreeSet::from([("2".to_owned(), filters.to_owned())]));
    assert_eq!(filters_of(&client, &app).await, two("2"));
    let archive = node.path("app.tar");
    client.checkpoint(&app, &archive).await.unwrap();
    client.stop_pod(&pod).await.unwrap();
    client.remove_pod(&pod).await.unwrap();

    // At most so much of it was logged at the dump.
    let logged = lines(&node, "first").len();
    let bare: &[&[u8]] = &[];
    for (name, filters, count, own) in
        [("whole", None, "2", 77), ("none", Some(bare), "1", 0), ("allowed", Some(&[ALLOW][..]), "1", 0)]
    {
        let archive = filters.map_or_else(|| archive.clone(), |filters| tampered(&archive, name, filters));
        let config = node.pod(name);
        let pod = client.run_pod(&config).await.unwrap();
        let app = client.create(&pod, &confined(archive.to_str().unwrap(), &programs), &config).await.unwrap();
        client.start(&app).await.unwrap();
        wait::until_ok("it counts on", SOON, || match lines(&node, name) {
            lines if lines.len() > logged + 3 => Ok(()),
            lines => Err(format!("{lines:?}")),
        })
        .await;
        let lines_so_far = lines(&node, name);
        println!("{name}: {:?}", &lines_so_far[logged - 2..]);
        assert!(
            lines_so_far[0][0] == 1 && lines_so_far.windows(2).all(|pair| pair[1][0] == pair[0][0] + 1),
            "{lines_so_far:?}"
        );
        // EPIPE: the connection is closed.
        assert_eq!(lines_so_far.last().unwrap()[1..], [32, 1, 1, own, own, -1], "{name}");
        assert_eq!(filters_of(&client, &app).await, two(count), "{name}");
        // What is executed later is under the profile too.
        client.output(&app, &["sh", "-c", "grep -q '^Seccomp:.*2' /proc/self/status && touch /tmp/more"]).await;
        wait::until_ok("it has one filter more, in all threads", SOON, || match lines(&node, name).last() {
            Some(line) if line[6] == 0 => Ok(()),
            line => Err(format!("{line:?}")),
        })
        .await;
        let more = (count.parse::<u32>().unwrap() + 1).to_string();
        assert_eq!(filters_of(&client, &app).await, two(&more), "{name}");
        client.stop_pod(&pod).await.unwrap();
        client.remove_pod(&pod).await.unwrap();
    }
    node.finish().await;
}

/// The archive with other filters in it.
fn tampered(archive: &Path, name: &str, filters: &[&[u8]]) -> PathBuf {
    let directory = archive.with_extension(name);
    let changed = archive.with_extension(format!("{name}.tar"));
    fs::create_dir(&directory).unwrap();
    let [from, at, to] = [archive, &directory, &changed].map(|path| path.to_str().unwrap());
    command::run("tar", &["-xf", from, "-C", at]);
    filters::set_filters(&directory.join("checkpoint"), filters);
    command::run("tar", &["-cf", to, "-C", at, "."]);
    changed
}
