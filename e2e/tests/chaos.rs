//! Several clients live through the life of pods at once, as a kubelet would: each call may be given up and asked again, and
//! the daemon, or shims, are killed in the midst of them again and again. Nothing may be lost, doubled or left.
//!
//! `CHAOS_SEED` and `CHAOS_KILLS` ask for another run or a longer one; a failure names its seed. What the clients do follows
//! from the seed, when the kernel lets them do so does not.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::{env, error::Error, sync::Arc, time::Duration};

use api::cri::{self, ContainerState, PodSandboxState};
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    sync::watch,
    task::{JoinSet, LocalSet},
    time::{Instant, sleep, timeout},
};
use tonic::{Code, Status};
use windlass_e2e::{
    client::{Client, container, program},
    crilog::LogLine,
    node::{BUSYBOX, PROBE, TestNode},
    wait::{self, SOON},
};

const CLIENTS: u64 = 6;
/// How often the daemon is killed if nothing else is asked for, and after how many calls each time.
const KILLS: u64 = 8;
const CALLS_A_KILL: u64 = 40;
/// What a client in a hurry waits for at most. Most calls take less, some of each kind do not.
const HURRY_MS: u64 = 120;
/// How long one call may be asked again and again, through all that happens to the daemon meanwhile.
const PATIENCE: Duration = Duration::from_secs(120);

/// A generator of numbers that follow from a seed (SplitMix64).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % end
    }
}

/// What is killed again and again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Victim {
    /// No container may notice.
    Daemon,
    /// Its pod and containers end with it, whatever is being done to them; all that is wanted is that they can be removed.
    Shim,
}

/// A client of the daemon that runs now, and which daemon that is.
type Connection = Option<(u64, Client)>;

/// One that asks for pods. It knows what a kubelet knows: what it asked for, and what it is told.
struct Kubelet {
    random: Random,
    connection: watch::Receiver<Connection>,
    calls: Arc<watch::Sender<u64>>,
    victim: Victim,
    /// The last kill is over: go on to the end of what is under way.
    over: watch::Receiver<bool>,
}

impl Kubelet {
    /// Asks until there is an answer of a daemon, giving up now and then before there is.
    async fn call<T>(&mut self, what: &str, ask: impl AsyncFn(Client) -> Result<T, Status>) -> Result<T, Status> {
        let end = Instant::now() + PATIENCE;
        loop {
            assert!(Instant::now() < end, "{what}: no answer within {PATIENCE:?}");
            let there = self.connection.wait_for(Option::is_some).await.unwrap().clone();
            let (daemon, client) = there.unwrap();
            let hurried = self.random.below(2) == 0;
            let wait = if hurried { Duration::from_millis(self.random.below(HURRY_MS)) } else { PATIENCE };
            let answer = timeout(wait, Box::pin(ask(client))).await;
            self.calls.send_modify(|calls| *calls += 1);
            match answer {
                Ok(Err(status)) if is_lost(&status) => {
                    let another = |now: &Connection| now.as_ref().is_some_and(|(id, _)| *id != daemon);
                    // Or the connection broke by itself, and the next call makes another.
                    drop(timeout(SOON, self.connection.wait_for(another)).await);
                }
                Ok(answer) => return answer,
                Err(_given_up) => {}
            }
        }
    }

    /// A call that has to succeed in the end: a shim that dies under it makes it fail, and the next one finds that out.
    async fn insist(&mut self, what: &str, ask: impl AsyncFn(Client) -> Result<(), Status>) {
        let end = Instant::now() + PATIENCE;
        while let Err(status) = self.call(what, &ask).await {
            let may_pass = self.victim == Victim::Shim && status.code() == Code::Unavailable;
            assert!(may_pass && Instant::now() < end, "{what}: {status}");
            sleep(Duration::from_millis(20)).await;
        }
    }

    /// One life of a pod with one container, from nothing to nothing.
    async fn live(&mut self, config: &cri::PodSandboxConfig) {
        let name = config.hostname.clone();
        let pod = self.call("RunPodSandbox", async |client| client.run_pod(config).await).await;
        let pod = pod.unwrap_or_else(|status| panic!("{name}: RunPodSandbox: {status}"));
        let short = self.random.below(3) == 0;
        let command: &[&str] = if short { &["sh", "-c", "exit 3"] } else { &["sleep", "1000"] };
        if let Some(container) = self.start(&name, &pod, config, command).await {
            match short {
                true => self.ends_as_it_should(&name, &container).await,
                false => self.runs_until_stopped(&name, &container).await,
            }
            self.insist(&format!("{name}: RemoveContainer"), async |client| client.remove(&container).await).await;
        }
        self.end(&name, &pod).await;
    }

    /// The same as far as it goes while shims die: whatever was refused or failed on the way, the end is the end.
    async fn live_in_danger(&mut self, config: &cri::PodSandboxConfig) {
        let name = config.hostname.clone();
        let Ok(pod) = self.call("RunPodSandbox", async |client| client.run_pod(config).await).await else { return };
        let app = container("app", BUSYBOX, &["sleep", "1000"]);
        if let Ok(id) = self.call("CreateContainer", async |client| client.create(&pod, &app, config).await).await {
            if self.call("StartContainer", async |client| client.start(&id).await).await.is_ok() {
                // Answered, whatever the answer is.
                drop(self.call("ExecSync", async |client| client.exec(&id, &["echo", "here"], 30).await).await);
                self.insist(&format!("{name}: StopContainer"), async |client| client.stop(&id, 0).await).await;
            }
            self.insist(&format!("{name}: RemoveContainer"), async |client| client.remove(&id).await).await;
        }
        self.end(&name, &pod).await;
    }

    async fn end(&mut self, name: &str, pod: &str) {
        self.insist(&format!("{name}: StopPodSandbox"), async |client| client.stop_pod(pod).await).await;
        self.insist(&format!("{name}: RemovePodSandbox"), async |client| client.remove_pod(pod).await).await;
        let gone = self.call("PodSandboxStatus", async |client| client.pod_status(pod).await).await.unwrap_err();
        assert_eq!(gone.code(), Code::NotFound, "{name}: {gone}");
    }

    /// A container of the pod that runs or has run. A start that was cut off is followed by another attempt.
    async fn start(
        &mut self,
        name: &str,
        pod: &str,
        pod_config: &cri::PodSandboxConfig,
        command: &[&str],
    ) -> Option<String> {
        for attempt in 0..5 {
            let mut config = container("app", BUSYBOX, command);
            config.metadata.as_mut().unwrap().attempt = attempt;
            let made = self.call("CreateContainer", async |client| client.create(pod, &config, pod_config).await).await;
            let id = made.unwrap_or_else(|status| panic!("{name}: CreateContainer: {status}"));
            let started = self.call("StartContainer", async |client| client.start(&id).await).await;
            let status = self.status(name, &id).await;
            match (started, status.state()) {
                // An earlier try that was given up, or cut off by a kill, may have come to its end.
                (_, ContainerState::ContainerRunning) => return Some(id),
                (_, ContainerState::ContainerExited) if status.reason != "StartError" => return Some(id),
                (Err(_), ContainerState::ContainerExited) => {
                    self.insist(&format!("{name}: RemoveContainer"), async |client| client.remove(&id).await).await;
                }
                (started, state) => panic!("{name}: StartContainer: {started:?}, but it is {state:?}: {status:?}"),
            }
        }
        None
    }

    async fn ends_as_it_should(&mut self, name: &str, container: &str) {
        let status = loop {
            let status = self.status(name, container).await;
            if status.state() == ContainerState::ContainerExited {
                break status;
            }
            // The status is asked of whichever daemon there is; how often is of no interest.
            sleep(Duration::from_millis(20)).await;
        };
        assert_eq!((status.exit_code, status.reason.as_str()), (3, "Error"), "{name}");
    }

    async fn runs_until_stopped(&mut self, name: &str, id: &str) {
        let echoed = self.call("ExecSync", async |client| client.exec(id, &["echo", "here"], 30).await).await;
        let echoed = echoed.unwrap_or_else(|status| panic!("{name}: ExecSync: {status}"));
        assert_eq!(echoed.stdout, b"here\n", "{name}: {echoed:?}");
        assert_eq!(self.status(name, id).await.state(), ContainerState::ContainerRunning, "{name}");
        self.insist(&format!("{name}: StopContainer"), async |client| client.stop(id, 0).await).await;
        let status = self.status(name, id).await;
        assert_eq!((status.state(), status.exit_code), (ContainerState::ContainerExited, 137), "{name}: {status:?}");
    }

    async fn status(&mut self, name: &str, container: &str) -> cri::ContainerStatus {
        let told = self.call("ContainerStatus", async |client| client.status(container).await).await;
        told.unwrap_or_else(|status| panic!("{name}: ContainerStatus: {status}"))
    }
}

/// Whether the daemon went before it answered: what the client's side says then has a cause, which no answer has.
fn is_lost(status: &Status) -> bool {
    status.source().is_some() || status.code() == Code::Cancelled
}

fn number(name: &str, default: u64) -> u64 {
    env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|error| panic!("{name}: {error}")))
}

/// Kills the shim of some pod, but not of this one. There may be none at the moment.
fn kill_a_shim(node: &TestNode, random: &mut Random, spared: &str) {
    let is_shim = |what: &str| what.contains("containerd-shim-runc-v2") && !what.contains(spared);
    let processes = node.leakcheck.processes().into_iter();
    let shims: Vec<u32> = processes.filter(|(_, what)| is_shim(what)).map(|(pid, _)| pid).collect();
    let Some(last) = shims.len().checked_sub(1) else { return };
    let chosen = shims[usize::try_from(random.below(last as u64 + 1)).unwrap()];
    // It may have ended by itself since.
    let _ = kill_process(Pid::from_raw(chosen.try_into().unwrap()).unwrap(), Signal::KILL);
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_clients_that_give_up_and_a_daemon_that_is_killed_lose_double_and_leave_nothing() {
    // The clients' futures borrow across calls in ways that cannot be sent to another thread.
    LocalSet::new().run_until(Box::pin(chaos(Victim::Daemon))).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_shims_that_are_killed_at_any_moment_keep_no_pod_from_being_removed() {
    LocalSet::new().run_until(Box::pin(chaos(Victim::Shim))).await;
}

async fn chaos(victim: Victim) {
    let (seed, kills) = (number("CHAOS_SEED", 1), number("CHAOS_KILLS", KILLS));
    println!("CHAOS_SEED={seed} CHAOS_KILLS={kills}");
    let mut node = TestNode::start().await;
    let client = node.client();
    client.pull(PROBE).await.unwrap();
    client.pull(BUSYBOX).await.unwrap();
    let resident_config = node.pod("resident");
    let resident = client.run_pod(&resident_config).await.unwrap();
    let counting = client.create(&resident, &program("count", PROBE, &["count"]), &resident_config).await.unwrap();
    client.start(&counting).await.unwrap();
    let process = node.first_process(&counting);

    let (connections, connection) = watch::channel(Some((0, client)));
    let (calls, mut counted) = watch::channel(0);
    let (finish, over) = watch::channel(false);
    let calls = Arc::new(calls);
    let mut kubelets = JoinSet::new();
    for number in 0..CLIENTS {
        let config = node.pod(&format!("pod-{number}"));
        let random = Random(seed.wrapping_mul(1000) + number);
        let mut kubelet =
            Kubelet { random, connection: connection.clone(), calls: Arc::clone(&calls), victim, over: over.clone() };
        kubelets.spawn_local(async move {
            let mut lives = 0;
            while !*kubelet.over.borrow() {
                let mut config = config.clone();
                config.metadata.as_mut().unwrap().attempt = lives;
                match kubelet.victim {
                    Victim::Daemon => kubelet.live(&config).await,
                    Victim::Shim => kubelet.live_in_danger(&config).await,
                }
                lives += 1;
            }
            lives
        });
    }
    let mut random = Random(seed);
    for daemon in 1..=kills {
        let enough = *counted.borrow() + CALLS_A_KILL;
        tokio::select! {
            reached = counted.wait_for(|calls| *calls >= enough) => drop(reached.unwrap()),
            ended = kubelets.join_next() => panic!("seed {seed}: a client ended early: {ended:?}\n{}", node.log_tail()),
        }
        // Any moment will do, and not only those at which an answer has just come.
        sleep(Duration::from_millis(random.below(100))).await;
        if victim == Victim::Shim {
            kill_a_shim(&node, &mut random, &resident);
            continue;
        }
        connections.send_replace(None);
        node.kill9();
        node.boot().await;
        connections.send_replace(Some((daemon, node.client())));
    }
    finish.send_replace(true);
    let mut lives = 0;
    while let Some(ended) = kubelets.join_next().await {
        lives += ended.unwrap_or_else(|error| panic!("seed {seed}: {error}\n{}", node.log_tail()));
    }
    println!("{} calls, {lives} pods", *counted.borrow());

    let client = node.client();
    // A start that failed may have left its pod to be removed.
    for pod in client.pods().await.unwrap().into_iter().filter(|pod| victim == Victim::Shim && pod.id != resident) {
        client.remove_pod(&pod.id).await.unwrap();
    }
    let left: Vec<String> = client.pods().await.unwrap().into_iter().map(|pod| pod.id).collect();
    assert_eq!(left, [resident.as_str()]);
    assert_eq!(client.pod_status(&resident).await.unwrap().state(), PodSandboxState::SandboxReady);
    assert_eq!(node.first_process(&counting), process);
    assert_eq!(client.status(&counting).await.unwrap().state(), ContainerState::ContainerRunning);
    let logged = node.log_of("resident", "count").len();
    wait::until_ok("the resident container logs", SOON, || {
        let now = node.log_of("resident", "count").len();
        if now > logged { Ok(()) } else { Err(format!("{now} lines")) }
    })
    .await;
    let lines = node.log_of("resident", "count");
    let expected: Vec<LogLine> = (1..=lines.len()).map(|n| LogLine::new("stdout", &n.to_string())).collect();
    assert_eq!(lines, expected);
    node.remove_all_pods().await;
    node.finish().await;
}
