//! A thousand execs of every kind, with clients that behave and clients that do not: afterwards the daemon and the shim have
//! as many files, threads and processes as before, and no more memory than their allocators keep.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::{
    fs,
    path::PathBuf,
    sync::Arc,
    time::{Duration, Instant},
};

use api::cri;
use tokio::{sync::Mutex, task::JoinSet};
use windlass_e2e::{
    client::{Client, container},
    node::{BUSYBOX, TestNode},
    streams::{Channels, SUCCESS, Spdy},
    wait,
};

/// How many at one time: more than the machine has cores, so that sessions overlap.
const SIDE_BY_SIDE: u32 = 8;
/// One round. The first is not counted: allocators keep what it took at most at one time, and the others take no more.
const ROUND: u32 = 500;
const COUNTED_ROUNDS: u32 = 2;

/// Above what allocators were seen to keep after the first round; a session that leaks two pages shows as more.
const DAEMON_KIB: u64 = 6144;
const SHIM_KIB: u64 = 3072;

/// How long the last sessions may take to be gone: linger times, and the pool's idle threads.
const SETTLED: Duration = Duration::from_secs(60);

/// The container under exec, and clients that are to be gone only at the end of a part.
struct Soak {
    client: Client,
    container: String,
    /// They never read. Locked for a push only.
    deaf: Mutex<Vec<Deaf>>,
}

enum Deaf {
    Spdy { _client: Spdy },
    Channels { _client: Channels },
}

/// What a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd)]
struct Usage {
    files: usize,
    threads: usize,
    /// Private, anonymous memory: what leaks.
    kib: u64,
}

impl Usage {
    fn of(pid: u32) -> Usage {
        let at = PathBuf::from(format!("/proc/{pid}"));
        let count = |name: &str| fs::read_dir(at.join(name)).unwrap().count();
        let status = fs::read_to_string(at.join("status")).unwrap();
        let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        let kib = kib.trim().strip_suffix(" kB").unwrap().trim().parse().unwrap();
        Usage { files: count("fd"), threads: count("task"), kib }
    }
}

impl Soak {
    /// One exec; its kind follows from its number.
    async fn one(&self, number: u32) {
        let word = format!("word {number}\n");
        match number % 10 {
            0..4 => {
                let answer = self.client.exec(&self.container, &["echo", word.trim()], 60).await.unwrap();
                assert_eq!((answer.stdout, answer.exit_code), (word.into_bytes(), 0));
            }
            4 | 5 => self.spdy(&word).await,
            6 | 7 => self.channels(&word).await,
            8 => self.attached(number, &word).await,
            _ => self.badly(number / 10 % 6).await,
        }
    }

    async fn url(&self, command: &[&str]) -> String {
        let request = cri::ExecRequest {
            container_id: self.container.clone(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            stdin: true,
            stdout: true,
            stderr: true,
            tty: false,
        };
        self.client.runtime.clone().exec(request).await.unwrap().into_inner().url
    }

    async fn attach_url(&self) -> String {
        let request = cri::AttachRequest {
            container_id: self.container.clone(),
            stdin: true,
            stdout: true,
            stderr: false,
            tty: false,
        };
        self.client.runtime.clone().attach(request).await.unwrap().into_inner().url
    }

    async fn spdy(&self, word: &str) {
        let mut client = Spdy::connect(&self.url(&["cat"]).await).await;
        let [error, stdin, stdout, _stderr] = open_four(&mut client).await;
        client.data(stdin, word.as_bytes(), true).await;
        let heard = client.rest().await;
        assert_eq!((heard[&stdout].as_slice(), heard[&error].as_slice()), (word.as_bytes(), SUCCESS));
    }

    async fn channels(&self, word: &str) {
        let mut client = Channels::connect(&self.url(&["cat"]).await, "v5.channel.k8s.io").await;
        client.send(0, word.as_bytes()).await;
        client.send(255, &[0]).await;
        let heard = client.rest().await;
        assert_eq!((heard[&1].as_slice(), heard[&3].as_slice()), (word.as_bytes(), SUCCESS));
    }

    /// The container repeats the line, to all who are attached; this one leaves once it has seen its own.
    async fn attached(&self, number: u32, word: &str) {
        let mut seen = Vec::new();
        let has_word = |seen: &[u8]| seen.windows(word.len()).any(|window| window == word.as_bytes());
        if (number / 10).is_multiple_of(2) {
            let mut client = Spdy::connect(&self.attach_url().await).await;
            let mut ids = Vec::new();
            for kind in ["error", "stdin", "stdout"] {
                ids.push(client.open(kind).await);
            }
            client.data(ids[1], word.as_bytes(), false).await;
            while !has_word(&seen) {
                seen.extend(client.next().await.expect("the container runs").1);
            }
        } else {
            let mut client = Channels::connect(&self.attach_url().await, "v4.channel.k8s.io").await;
            client.send(0, word.as_bytes()).await;
            while !has_word(&seen) {
                seen.extend(client.next().await.expect("the container runs").1);
            }
        }
    }

    /// Clients as they should not be.
    async fn badly(&self, way: u32) {
        match way {
            // Never connects.
            0 => drop(self.url(&["true"]).await),
            // Leaves before it has opened its streams.
            1 => {
                let mut client = Spdy::connect(&self.url(&["true"]).await).await;
                client.open("error").await;
            }
            // Leaves while the command runs.
            2 => {
                let mut client = Spdy::connect(&self.url(&["sh", "-c", "echo started; sleep 10000"]).await).await;
                let [_, _, stdout, _] = open_four(&mut client).await;
                assert_eq!(client.next().await, Some((stdout, b"started\n".to_vec())));
            }
            3 => {
                let url = self.url(&["sh", "-c", "echo started; sleep 10000"]).await;
                let mut client = Channels::connect(&url, "v4.channel.k8s.io").await;
                assert_eq!(client.next().await, Some((1, Vec::new())));
                assert_eq!(client.next().await, Some((1, b"started\n".to_vec())));
            }
            // Never reads what does not end.
            4 => {
                let mut client = Spdy::connect(&self.url(&["yes"]).await).await;
                open_four(&mut client).await;
                self.deaf.lock().await.push(Deaf::Spdy { _client: client });
                let client = Channels::connect(&self.url(&["yes"]).await, "v5.channel.k8s.io").await;
                self.deaf.lock().await.push(Deaf::Channels { _client: client });
            }
            // Gives up waiting for an answer.
            _ => {
                let request = cri::ExecSyncRequest {
                    container_id: self.container.clone(),
                    cmd: ["sleep", "10000"].map(str::to_owned).to_vec(),
                    timeout: 0,
                };
                let mut runtime = self.client.runtime.clone();
                let given_up = tokio::time::timeout(Duration::from_millis(300), runtime.exec_sync(request)).await;
                assert!(given_up.is_err(), "{given_up:?}");
            }
        }
    }

    /// As many as told, some side by side; at the end those leave who never read.
    async fn run(self: &Arc<Soak>, count: u32) {
        let mut running = JoinSet::new();
        for number in 0..count {
            if number >= SIDE_BY_SIDE {
                running.join_next().await.unwrap().unwrap();
            }
            let soak = self.clone();
            running.spawn(async move { soak.one(number).await });
        }
        while let Some(ended) = running.join_next().await {
            ended.unwrap();
        }
        self.deaf.lock().await.clear();
    }
}

async fn open_four(client: &mut Spdy) -> [u32; 4] {
    let mut ids = [0; 4];
    for (id, kind) in ids.iter_mut().zip(["error", "stdin", "stdout", "stderr"]) {
        *id = client.open(kind).await;
    }
    ids
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_thousand_execs_leave_no_file_thread_process_or_memory_behind() {
    let node = TestNode::start().await;
    let client = node.client();
    client.pull(BUSYBOX).await.unwrap();
    let config = node.pod("soak");
    let pod = client.run_pod(&config).await.unwrap();
    let mut app = container("app", BUSYBOX, &["cat"]);
    app.stdin = true;
    let app = client.create(&pod, &app, &config).await.unwrap();
    client.start(&app).await.unwrap();
    let soak = Arc::new(Soak { client, container: app.clone(), deaf: Mutex::default() });

    let processes = || {
        let mut found = node.leakcheck.processes();
        found.sort();
        found
    };
    let before = processes();
    let daemon = node.pid();
    let shim = before.iter().find(|(_, what)| what.contains("containerd-shim-runc-v2")).expect("a shim runs").0;
    let quiet = async || {
        wait::until_ok("every session's process is gone", SETTLED, || match processes() {
            now if now == before => Ok(()),
            now => Err(format!("{now:#?}")),
        })
        .await;
    };
    // With nobody streaming yet. The pool's threads end when they are idle for long, so their number can only shrink.
    let files = [daemon, shim].map(|pid| Usage::of(pid).files);
    soak.run(ROUND).await;
    quiet().await;
    let before_counted = [daemon, shim].map(Usage::of);
    let start = Instant::now();
    for _ in 0..COUNTED_ROUNDS {
        soak.run(ROUND).await;
    }
    let took = start.elapsed();
    quiet().await;
    for (index, (what, pid, most)) in [("daemon", daemon, DAEMON_KIB), ("shim", shim, SHIM_KIB)].into_iter().enumerate()
    {
        let before = before_counted[index];
        // The last sessions linger for seconds.
        let after = wait::until_ok("what the sessions had is given back", SETTLED, || {
            let after = Usage::of(pid);
            let back = after.files <= files[index] && after.threads <= before.threads && after.kib <= before.kib + most;
            if back {
                Ok(after)
            } else {
                Err(format!("the {what} had {} files, then {before:?}, now {after:?}", files[index]))
            }
        })
        .await;
        println!("{what}: {before:?} before {} execs in {took:?}, {after:?} after", ROUND * COUNTED_ROUNDS);
    }
    node.remove_all_pods().await;
    node.finish().await;
}
