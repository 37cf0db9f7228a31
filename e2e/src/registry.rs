//! The registry of the tests: Debian's docker-registry on a free port of the loopback, with a storage directory of its own.
//!
//! One a test process. It is the child of a shell that waits for the end of its input: when the test process ends, in
//! whatever way, its end of the pipe closes, and the shell ends the registry and removes the storage.

use std::{
    fs,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    thread,
    time::{Duration, Instant},
};

use crate::{fixture, image::Pushed, push::Pusher};

/// `$1` is the configuration, `$2` the directory.
const KEEPER: &str = r#"docker-registry serve "$1" & registry=$!
read -r _
kill "$registry"
wait "$registry"
rm -rf "$2""#;

/// A running registry with the images that every test needs.
pub struct Registry {
    pub address: SocketAddr,
    pub pause: Pushed,
    pub busybox: Pushed,
    pub probe: Pushed,
    pub(crate) storage: PathBuf,
    /// Holds the pipe open.
    _keeper: Child,
}

impl Registry {
    /// The registry of this test process, started on first use.
    pub fn shared() -> &'static Registry {
        static SHARED: OnceLock<Registry> = OnceLock::new();
        SHARED.get_or_init(Registry::start)
    }

    fn start() -> Registry {
        let dir = tempfile::Builder::new().prefix("windlass-registry-").tempdir().unwrap().keep();
        let storage = dir.join("storage");
        let (keeper, address) = serve(&dir, &storage);
        let pusher = Pusher { registry: address };
        Registry {
            address,
            pause: fixture::pause().push(&pusher, "pause", "3.10.2"),
            busybox: fixture::busybox().push(&pusher, "library/busybox", "1"),
            probe: fixture::probe().push(&pusher, "library/probe", "1"),
            storage,
            _keeper: keeper,
        }
    }

    pub fn pusher(&self) -> Pusher {
        Pusher { registry: self.address }
    }

    /// Changes a blob on the registry's disk, so that it is served with bytes that do not have its digest.
    pub fn corrupt(&self, digest: &str) {
        let hex = digest.strip_prefix("sha256:").expect("a sha256 digest");
        let blob = self.storage.join("docker/registry/v2/blobs/sha256").join(&hex[..2]).join(hex).join("data");
        let mut bytes = fs::read(&blob).unwrap();
        let middle = bytes.len() / 2;
        bytes[middle] ^= 0xff;
        fs::write(&blob, bytes).unwrap();
    }
}

fn serve(dir: &Path, storage: &Path) -> (Child, SocketAddr) {
    let address = free_address();
    let config = format!("{}http:\n  addr: {address}\n", common(storage));
    let pusher = Pusher { registry: address };
    (keep(dir, &config, || pusher.ping()), address)
}

/// The port is free when it is looked for; should another program take it meanwhile, the registry cannot bind, nothing of
/// ours answers, and the test fails with the registry's own message.
pub(crate) fn free_address() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap()
}

/// What every configuration of a registry begins with.
pub(crate) fn common(storage: &Path) -> String {
    format!(
        "version: 0.1\nlog:\n  level: error\n  accesslog:\n    disabled: true\nstorage:\n  filesystem:\n    rootdirectory: {}\n",
        storage.display()
    )
}

/// Starts a registry, whose directory goes with it, and waits until it is ready.
pub(crate) fn keep(dir: &Path, config: &str, ready: impl Fn() -> Result<(), String>) -> Child {
    let file = dir.join("config.yml");
    fs::write(&file, config).unwrap();
    let log = fs::File::create(dir.join("log")).unwrap();
    let keeper = Command::new("sh")
        .args(["-c", KEEPER, "keeper"])
        .args([&file, dir])
        .stdin(Stdio::piped())
        .stdout(log.try_clone().unwrap())
        .stderr(log)
        .spawn()
        .unwrap();
    let end = Instant::now() + Duration::from_secs(30);
    while let Err(why) = ready() {
        let said = fs::read_to_string(dir.join("log")).unwrap_or_default();
        assert!(Instant::now() < end, "docker-registry does not answer: {why}\n{said}");
        thread::sleep(Duration::from_millis(20));
    }
    keeper
}
