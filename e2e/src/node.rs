//! A node under test: the built daemon with directories, a socket, a network, registries and a cgroup of its own.
//!
//! ```text
//! <dir>/  config.toml  log  root/  state/  runc/  cri.sock  certs.d/  net.d/  cni-bin/  ipam/  logs/
//! ```
//!
//! A test ends with [`TestNode::finish`], which fails on anything that was left behind. A test that panics takes its node down
//! by force and shows the end of the daemon's log. Nodes take turns: two at once would only slow each other down.

use std::{
    fs,
    net::Ipv4Addr,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, OnceLock},
    thread,
};

use api::cri;
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::sync::{Mutex, OwnedMutexGuard};

use crate::{
    client::Client,
    command,
    crilog::{self, LogLine},
    fixture,
    leakcheck::Leakcheck,
    registry::Registry,
    wait::{self, SOON},
};

/// The references by which the fixtures are known to the node.
pub const BUSYBOX: &str = "docker.io/library/busybox:1";
pub const PROBE: &str = "docker.io/library/probe:1";
pub const PAUSE: &str = "registry.k8s.io/pause:3.10.2";

/// What a test may set; it takes effect at the next start.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    pub pause_image: String,
    /// Further tables.
    pub tables: String,
    /// The OCI runtime; empty is runc.
    pub runc: String,
    /// Further lines of the CRI plugin's table.
    pub cri: String,
    /// The shim; empty is ours.
    pub shim: String,
    /// Further lines of NRI's table.
    pub nri: String,
    /// A shell command that runs first, in a mount namespace which is then the daemon's; empty leaves it in the test's.
    pub mounts: String,
}

pub struct TestNode {
    pub settings: Settings,
    pub registry: &'static Registry,
    pub leakcheck: Leakcheck,
    dir: TempDir,
    subnet: String,
    daemon: Option<Child>,
    client: Option<Client>,
    _turn: OwnedMutexGuard<()>,
}

impl TestNode {
    /// A node whose daemon serves.
    pub async fn start() -> TestNode {
        let mut node = TestNode::prepare().await;
        node.boot().await;
        node
    }

    /// A node whose daemon is not started yet.
    pub async fn prepare() -> TestNode {
        static TURN: OnceLock<Arc<Mutex<()>>> = OnceLock::new();
        let turn = TURN.get_or_init(Arc::default).clone().lock_owned().await;
        let registry = Registry::shared();
        let dir = tempfile::Builder::new().prefix("windlass-").rand_bytes(8).tempdir().unwrap();
        let unique = dir.path().file_name().unwrap().to_str().unwrap().to_lowercase();
        let suffix = unique.strip_prefix("windlass-").expect("the prefix just given");
        // A link's name has at most 15 bytes.
        // Without a dash, which would put it below another slice.
        let cgroup_parent = if by_systemd() { format!("windlass{suffix}.slice") } else { unique.clone() };
        let leakcheck = Leakcheck::new(dir.path(), &cgroup_parent, &unique, &format!("wl{suffix}"));
        let settings = Settings { pause_image: PAUSE.into(), ..Settings::default() };
        let subnet = free_subnet();
        let node = TestNode { settings, registry, leakcheck, dir, subnet, daemon: None, client: None, _turn: turn };
        for name in ["root", "state", "runc", "net.d", "cni-bin", "ipam", "logs"] {
            fs::create_dir(node.path(name)).unwrap();
        }
        for host in ["docker.io", "registry.k8s.io"] {
            node.add_mirror(host, &format!("http://{}", registry.address));
        }
        node.set_network("bridge");
        node
    }

    /// As [`TestNode::prepare`], on the OCI runtime that the environment names as `RUNC`: for what not every one has.
    pub async fn prepare_on_given_runc() -> TestNode {
        let mut node = TestNode::prepare().await;
        node.settings.runc = std::env::var("RUNC").unwrap_or_default();
        node
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.path("cri.sock")
    }

    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    /// Sends all that `host` is asked for to `url`, and to nobody else.
    pub fn add_mirror(&self, host: &str, url: &str) {
        let dir = self.path("certs.d").join(host);
        fs::create_dir_all(&dir).unwrap();
        let text = format!("server = \"{url}\"\n[host.\"{url}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
        fs::write(dir.join("hosts.toml"), text).unwrap();
    }

    /// Attaches pods by this plugin type, which gets the configuration of the bridge plugin.
    pub fn set_network(&self, plugin: &str) {
        let conflist = serde_json::json!({
            "cniVersion": "1.0.0",
            "name": self.leakcheck.network,
            "plugins": [{
                "type": plugin,
                "bridge": self.leakcheck.bridge,
                "isGateway": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": self.path("ipam"),
                    "ranges": [[{"subnet": self.subnet}]],
                    "routes": [{"dst": "0.0.0.0/0"}],
                },
            }],
        });
        // Renamed into place: the daemon may read at any time.
        let partial = self.path("conflist.partial");
        fs::write(&partial, serde_json::to_vec_pretty(&conflist).unwrap()).unwrap();
        fs::rename(partial, self.path("net.d/10-windlass.conflist")).unwrap();
    }

    /// Takes all network configuration away.
    pub fn remove_network(&self) {
        fs::remove_file(self.path("net.d/10-windlass.conflist")).unwrap();
    }

    /// Installs a CNI plugin that is a shell script. `$DIR` is the node's directory, and `delegate` runs the real bridge plugin.
    pub fn install_plugin(&self, name: &str, script: &str) {
        let bridge = plugin_dirs().into_iter().map(|dir| dir.join("bridge")).find(|path| path.exists());
        let bridge = bridge.expect("the CNI plugins are installed in /opt/cni/bin or /usr/lib/cni");
        let dir = self.dir.path().display();
        let text = format!("#!/bin/sh\nDIR='{dir}'\ndelegate() {{ exec '{}'; }}\n{script}\n", bridge.display());
        let path = self.path("cni-bin").join(name);
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// Starts the daemon with the present settings, and waits until it serves.
    pub async fn boot(&mut self) {
        assert!(self.daemon.is_none(), "the daemon runs already");
        fs::write(self.path("config.toml"), self.config()).unwrap();
        let log = fs::OpenOptions::new().create(true).append(true).open(self.path("log")).unwrap();
        let binary = binary("windlass");
        // Should the test be killed, the kernel kills the daemon.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL"]);
        if !self.settings.mounts.is_empty() {
            let script = format!("{} && exec \"$0\" \"$@\"", self.settings.mounts);
            command.args(["unshare", "--mount", "--propagation", "private", "sh", "-c", &script]);
        }
        let child = command
            .arg(binary)
            .arg("--config")
            .arg(self.path("config.toml"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.daemon = Some(child);
        let socket = self.socket();
        let client = wait::until("the daemon serves", SOON, || {
            let ended = self.daemon.as_mut().and_then(|child| child.try_wait().unwrap());
            assert!(ended.is_none(), "the daemon ended with {ended:?} instead of serving:\n{}", self.log_tail());
            let socket = socket.clone();
            // An answer and not a connection alone: a child that a killed daemon was just starting has its socket.
            async move {
                let client = Client::connect(&socket).await.map_err(|error| error.to_string())?;
                let asked = client.runtime.clone().version(cri::VersionRequest::default()).await;
                asked.map(|_| client).map_err(|error| error.to_string())
            }
        })
        .await;
        self.client = Some(client);
    }

    /// Kills the daemon as the OOM killer would.
    pub fn kill9(&mut self) {
        let mut child = self.daemon.take().expect("the daemon runs");
        child.kill().unwrap();
        child.wait().unwrap();
        self.client = None;
        self.leakcheck.note([]);
    }

    /// Asks the daemon to end, and waits until it did, with success.
    pub async fn terminate(&mut self) {
        let mut child = self.daemon.take().expect("the daemon runs");
        self.client = None;
        kill_process(pid(child.id()), Signal::TERM).unwrap();
        let status = wait::until_ok("the daemon ends after SIGTERM", SOON, || {
            child.try_wait().unwrap().ok_or_else(|| "it runs".to_owned())
        })
        .await;
        assert!(status.success(), "the daemon ended with {status}:\n{}", self.log_tail());
    }

    pub async fn restart(&mut self) {
        self.terminate().await;
        self.boot().await;
    }

    pub fn client(&self) -> Client {
        self.client.clone().expect("the daemon serves")
    }

    /// The daemon's process.
    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().expect("the daemon runs").id()
    }

    /// A pod with this name: its own uid, cgroup and log directory of the node, on the node's network.
    pub fn pod(&self, name: &str) -> cri::PodSandboxConfig {
        let log_directory = self.path("logs").join(name);
        fs::create_dir_all(&log_directory).unwrap();
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.into(),
                uid: format!("uid-{name}"),
                namespace: "default".into(),
                attempt: 0,
            }),
            hostname: name.into(),
            log_directory: log_directory.to_str().unwrap().into(),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: format!("/{}", self.leakcheck.cgroup_parent),
                ..cri::LinuxPodSandboxConfig::default()
            }),
            ..cri::PodSandboxConfig::default()
        }
    }

    /// What a container has logged so far.
    pub fn log_of(&self, pod: &str, container: &str) -> Vec<LogLine> {
        crilog::read(&self.path("logs").join(pod).join(format!("{container}.log")))
    }

    /// The first process of a container, by its cgroup.
    pub fn first_process(&self, container: &str) -> u32 {
        // systemd's are called cri-containerd-<id>.scope.
        let named = |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().contains(container));
        let found = self.leakcheck.cgroups().into_iter().filter(named);
        let procs = found.filter_map(|path| fs::read_to_string(path.join("cgroup.procs")).ok());
        let first = procs.filter_map(|text| text.lines().next().and_then(|line| line.parse().ok())).next();
        first.unwrap_or_else(|| panic!("no process is in the cgroup of {container}"))
    }

    /// Stops and removes every pod that is there.
    pub async fn remove_all_pods(&self) {
        let client = self.client();
        self.leakcheck.note([]);
        for pod in client.pods().await.unwrap() {
            client.stop_pod(&pod.id).await.unwrap();
            client.remove_pod(&pod.id).await.unwrap();
        }
    }

    /// Fails if anything of the node is left but the daemon and its images.
    pub async fn assert_clean(&self) {
        let daemon = self.daemon.as_ref().map(Child::id);
        wait::until_ok("nothing is left behind", SOON, || match self.leakcheck.find(daemon) {
            leaks if leaks.is_empty() => Ok(()),
            leaks => Err(format!("left:\n  {}", leaks.join("\n  "))),
        })
        .await;
    }

    /// The end of a test: nothing is left with the daemon running, nor after it ended.
    pub async fn finish(mut self) {
        self.assert_clean().await;
        self.terminate().await;
        self.assert_clean().await;
    }

    /// What the daemon said last.
    pub fn log_tail(&self) -> String {
        let text = fs::read_to_string(self.path("log")).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }

    fn config(&self) -> String {
        let at = |name: &str| self.path(name).display().to_string();
        let plugins = plugin_dirs().into_iter().map(|dir| format!("\"{}\"", dir.display()));
        let plugins: Vec<String> = std::iter::once(format!("\"{}\"", at("cni-bin"))).chain(plugins).collect();
        format!(
            r#"version = 2
root = "{root}"
state = "{state}"
[debug]
level = "debug"
[grpc]
address = "{socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{pause}"
netns_mounts_under_state_dir = true
{cri}
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
runtime_path = "{shim}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "{runc}"
SystemdCgroup = {systemd}
Root = "{runc_root}"
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dirs = [{plugins}]
conf_dir = "{conf}"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "{certs}"
[plugins."io.containerd.nri.v1.nri"]
socket_path = "{nri}"
plugin_path = "{nri_plugins}"
plugin_config_path = "{nri_config}"
{nri_lines}
[plugins."io.containerd.image-verifier.v1.bindir"]
bin_dir = "{verifiers}"
{tables}
"#,
            root = at("root"),
            state = at("state"),
            socket = self.socket().display(),
            pause = self.settings.pause_image,
            cri = self.settings.cri,
            tables = self.settings.tables,
            runc = self.settings.runc,
            systemd = by_systemd(),
            shim = self.settings.shim,
            runc_root = at("runc"),
            plugins = plugins.join(", "),
            conf = at("net.d"),
            certs = at("certs.d"),
            nri = at("nri.sock"),
            nri_plugins = at("nri-plugins"),
            nri_config = at("nri-conf.d"),
            nri_lines = self.settings.nri,
            verifiers = at("verifiers"),
        )
    }

    /// Kills, unmounts and removes whatever there is. Errors are passed over: it is the end of a test that failed already, or
    /// there is nothing to take down.
    fn demolish(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
        for (id, _) in self.leakcheck.processes() {
            let _ = kill_process(pid(id), Signal::KILL);
        }
        for path in self.leakcheck.shared() {
            // A socket, or a namespace's mount point.
            let _ = rustix::mount::unmount(&path, rustix::mount::UnmountFlags::DETACH);
            let _ = fs::remove_file(path);
        }
        for point in self.leakcheck.mount_points() {
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
        for file in self.leakcheck.cache_files() {
            let _ = fs::remove_file(file);
        }
    }
}

impl Drop for TestNode {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- the end of the daemon's log\n{}", self.log_tail());
        }
        self.demolish();
        // The bridge and the cgroups' parent outlive pods by design: who configured them takes them down.
        if Path::new("/sys/class/net").join(&self.leakcheck.bridge).exists() {
            command::answer("ip", &["link", "delete", &self.leakcheck.bridge]);
        }
        let cgroups = self.leakcheck.cgroups().into_iter().chain(self.leakcheck.cgroup_parents());
        for path in cgroups {
            // A killed process may still be on its way out; then the empty directory stays, which harms nobody.
            let _ = fs::remove_dir(path);
        }
    }
}

/// Where distributions and the plugins' own releases put CNI plugins.
fn plugin_dirs() -> Vec<PathBuf> {
    ["/opt/cni/bin", "/usr/lib/cni"].map(PathBuf::from).into_iter().filter(|dir| dir.is_dir()).collect()
}

/// Whether cgroups are made by systemd, which runs on this host: `WINDLASS_E2E_SYSTEMD=1`.
pub fn by_systemd() -> bool {
    std::env::var_os("WINDLASS_E2E_SYSTEMD").is_some_and(|value| value == "1")
}

/// A built binary: in `WINDLASS_BIN_DIR`, else where cargo put it beside the tests.
pub fn binary(name: &str) -> PathBuf {
    let dir = std::env::var_os("WINDLASS_BIN_DIR").map_or_else(fixture::profile_dir, PathBuf::from);
    let path = dir.join(name);
    assert!(path.exists(), "{} is not built: run `cargo build` first, or set WINDLASS_BIN_DIR", path.display());
    path
}

fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap()).expect("a child's pid is not 0")
}

/// A /24 of the private range that no link or route of this machine uses.
fn free_subnet() -> String {
    let used = command::run("ip", &["-4", "route", "show", "table", "all"]) + &command::run("ip", &["-4", "address"]);
    let start = std::process::id() as usize;
    let candidates = (0..20_000).map(|step| (start + step) % 20_000);
    let mut subnets = candidates.map(|n| Ipv4Addr::new(10, 100 + u8::try_from(n / 256).unwrap(), (n % 256) as u8, 0));
    let free = subnets.find(|subnet| {
        let [a, b, c, _] = subnet.octets();
        !used.contains(&format!("{a}.{b}.{c}."))
    });
    format!("{}/24", free.expect("one of 20,000 subnets is free"))
}
