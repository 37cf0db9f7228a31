//! The composition root: builds every part once, in order, and takes them down in reverse. No registry, no globals.
//!
//! ```text
//! directories → store → snapshotters → images → pods (recovery) → plugins → streaming → sockets → serve … drain
//! ```
//!
//! The socket is bound after recovery, so no client ever sees a half-loaded list.

use std::{
    collections::BTreeMap,
    fs::{self, File, TryLockError},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use image_service::images::{self, Images};
use sandbox::{Pods, events::Ooms, launcher::ShimLauncher, network::Cni, stats::Stats};
use snapshotter::{Native, Overlayfs, OverlayfsOptions, Snapshotter};
use store::{Namespace, Store};
use thiserror::Error;
use tokio::{
    net::UnixListener,
    signal::unix::{SignalKind, signal},
    time::{Instant, sleep},
};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{Config, Nri},
    cri::Cri,
    serve::{self, socket},
    streaming::Streaming,
    wiring,
};

/// How long what a killed daemon has left may keep a directory.
const LINGER: Duration = Duration::from_secs(1);

/// How long calls may take to send their answers when all that they wait for has ended.
const LAST_ANSWERS: Duration = Duration::from_secs(5);

/// Why the daemon could not start, or had to stop.
#[derive(Debug, Error)]
pub(crate) enum AppError {
    #[error(
        "{} holds a containerd database ({}); it is left alone: set another root in the configuration (root = \"/var/lib/windlass\"), \
         or drain the node and move the directory away", root.display(), file.display()
    )]
    ContainerdRoot { root: PathBuf, file: PathBuf },
    #[error("prepare directory {}", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error(
        "another daemon works in {}; stop it, or set another root and state in the configuration", path.display()
    )]
    InUse { path: PathBuf },
    #[error("snapshotter {name:?} is not one of: {known}")]
    UnknownSnapshotter { name: String, known: String },
    #[error("opening the stored state was aborted")]
    Aborted(#[source] tokio::task::JoinError),
    #[error("open the store")]
    Store(#[from] store::Error),
    #[error("open snapshotter {name}")]
    Snapshotter { name: &'static str, source: snapshotter::Error },
    #[error("open the image store")]
    Images(#[source] images::Error),
    #[error("recover pods and containers")]
    Pods(#[source] sandbox::Error),
    #[error("serve streams")]
    Streaming(#[source] io::Error),
    #[error(transparent)]
    Socket(#[from] socket::SocketError),
    #[error("serve gRPC")]
    Serve(#[from] tonic::transport::Error),
    #[error("watch for signals")]
    Signals(#[source] io::Error),
}

/// What is on disk, open and kept for this process alone.
pub(crate) struct Stored {
    pub(crate) store: Store,
    pub(crate) snapshotters: BTreeMap<String, Arc<dyn Snapshotter>>,
    pub(crate) images: Images,
    pub(crate) config: Config,
    /// Locks on root and state.
    _held: [File; 2],
}

/// Opens the store, the snapshotters and the images.
pub(crate) async fn open(config: Config) -> Result<Stored, AppError> {
    refuse_containerd_root(&config.root)?;
    prepare_directories(&config)?;
    // Before anything is read: recovery takes what a living daemon does for what a dead one has left.
    let _held = [hold(&config.root).await?, hold(&config.state).await?];
    let (store, snapshotters, config) = tokio::task::spawn_blocking(move || {
        let schemas = [snapshotter::SCHEMA, image_service::SCHEMA, sandbox::SCHEMA];
        let store = Store::open(&config.root.join("windlass.db"), &schemas)?;
        let snapshotters = open_snapshotters(&config, &store)?;
        Ok::<_, AppError>((store, snapshotters, config))
    })
    .await
    .map_err(AppError::Aborted)??;
    let images =
        Images::open(wiring::images(&config), store.clone(), snapshotters.clone()).await.map_err(AppError::Images)?;
    Ok(Stored { store, snapshotters, images, config, _held })
}

/// Runs the daemon until SIGTERM or SIGINT. Containers and their shims go on after it.
pub(crate) async fn run(config: Config) -> Result<(), AppError> {
    // One crypto provider for the whole process; a second call answers Err with the one installed, which is the same.
    if rustls::crypto::aws_lc_rs::default_provider().install_default().is_err() {
        tracing::debug!("a crypto provider is already installed");
    }
    adjust_oom_score(config.oom_score);
    let Stored { store, snapshotters, images, config, _held } = open(config).await?;
    let sandbox = sandbox::features::probe(wiring::sandbox(&config).map_err(AppError::Pods)?).await;
    let network = Arc::new(Cni::new(wiring::cni(&config)));
    let ooms = Ooms::default();
    let launcher = Arc::new(ShimLauncher::new(sandbox.clone(), ooms.clone()));
    let pods = Pods::open(sandbox, store.clone(), snapshotters, network, launcher).await.map_err(AppError::Pods)?;
    pods.start_plugins(nri_socket(&config.nri)?).await;
    let streaming = Streaming::bind(&config.streaming, pods.clone()).await.map_err(AppError::Streaming)?;
    let owner = socket::Owner { uid: config.grpc.uid, gid: config.grpc.gid };
    let listener = socket::bind(&config.grpc.address, owner)?;
    let events = socket::bind(&config.ttrpc_address, owner)?;

    let shutdown = CancellationToken::new();
    let config = Arc::new(config);
    let cri = Cri {
        pods: pods.clone(),
        stats: Stats::start(pods.clone(), wiring::snapshotter_roots(&config)),
        images: images.clone(),
        streaming: streaming.clone(),
        config: config.clone(),
        namespace: Namespace::k8s(),
        shutdown: shutdown.clone(),
    };
    let streams = tokio::spawn(streaming.serve(shutdown.clone()));
    let events = tokio::spawn(sandbox::events::serve(events, ooms, shutdown.clone()));
    // Behind the sockets: archives may take minutes, and each image is shown when it is there.
    images.preload(Namespace::k8s(), wiring::preload_dir(&config));
    let signals = tokio::spawn(stop_on_signal(shutdown.clone()).map_err(AppError::Signals)?);
    tracing::info!(socket = %config.grpc.address.display(), version = crate::VERSION, "serving");
    let serving = serve::serve(listener, &config.grpc, cri, shutdown.clone());
    let served = drain(serving, &shutdown, &images, pods).await;

    signals.abort();
    if let Err(error) = streams.await {
        tracing::error!(%error, "the streaming server ended badly");
    }
    match events.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "the socket for shims' events failed"),
        Err(error) => tracing::error!(%error, "the server of shims' events ended badly"),
    }
    store.close().await?;
    tracing::info!("stopped; containers go on");
    Ok(served?)
}

/// Serves until the end, and ends in bounded time: what the calls wait for is ended beside them, or a pull from a slow
/// registry and a stop with a long grace would keep the daemon alive.
async fn drain(
    serving: impl Future<Output = Result<(), tonic::transport::Error>>,
    shutdown: &CancellationToken,
    images: &Images,
    pods: Pods,
) -> Result<(), tonic::transport::Error> {
    let ending = async {
        shutdown.cancelled().await;
        tokio::join!(images.shutdown(), pods.shutdown());
    };
    tokio::pin!(serving, ending);
    tokio::select! {
        served = &mut serving => {
            // It also ends when the socket fails, and then nobody has asked for a shutdown yet.
            shutdown.cancel();
            ending.await;
            served
        }
        () = &mut ending => tokio::time::timeout(LAST_ANSWERS, serving).await.unwrap_or_else(|_| {
            tracing::warn!("calls that got no answer are cut off");
            Ok(())
        }),
    }
}

/// Where NRI plugins connect, if they may. Another runtime on the node may have the socket already: pods then go on without
/// plugins that connect, and the log says what to do.
fn nri_socket(config: &Nri) -> Result<Option<UnixListener>, AppError> {
    if config.disable || config.disable_connections {
        return Ok(None);
    }
    let path = &config.socket_path;
    if let Some(parent) = path.parent().filter(|parent| !parent.exists()) {
        let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(parent);
        made.map_err(|source| AppError::Directory { path: parent.to_owned(), source })?;
    }
    match socket::bind(path, socket::Owner { uid: 0, gid: 0 }) {
        Err(socket::SocketError::InUse { .. }) => {
            tracing::error!(
                socket = %path.display(),
                "another runtime serves NRI here, so no plugin can connect; set socket_path or disable under plugins.\"io.containerd.nri.v1.nri\""
            );
            Ok(None)
        }
        bound => Ok(Some(bound?)),
    }
}

/// Keeps a directory for this process alone. The kernel gives it back when the process ends, however it ends; but a child that
/// a killed daemon was just starting has all that was open, until it runs another program.
async fn hold(path: &Path) -> Result<File, AppError> {
    let failed = |source| AppError::Directory { path: path.to_owned(), source };
    let directory = File::open(path).map_err(failed)?;
    let end = Instant::now() + LINGER;
    loop {
        match directory.try_lock() {
            Ok(()) => return Ok(directory),
            Err(TryLockError::WouldBlock) if Instant::now() < end => sleep(LINGER / 50).await,
            Err(TryLockError::WouldBlock) => return Err(AppError::InUse { path: path.to_owned() }),
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
}

/// A root that containerd wrote is never touched without being asked: its metadata would be lost to it.
fn refuse_containerd_root(root: &Path) -> Result<(), AppError> {
    let file = root.join("io.containerd.metadata.v1.bolt/meta.db");
    if file.exists() { Err(AppError::ContainerdRoot { root: root.to_owned(), file }) } else { Ok(()) }
}

/// The modes are containerd's, also where directories are there already with others: what is stored is root's alone, the state
/// can be passed through by mapped users, but not as far as the shared memory of pods, which every process could write to
/// (CVE-2024-25621).
fn prepare_directories(config: &Config) -> Result<(), AppError> {
    let of_pods = config.state.join(sandbox::CRI_DIRECTORY);
    for (path, mode) in [(&config.root, 0o700), (&config.state, 0o711), (&of_pods, 0o700)] {
        let made = fs::DirBuilder::new().recursive(true).mode(mode).create(path);
        made.and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(mode)))
            .map_err(|source| AppError::Directory { path: path.clone(), source })?;
    }
    Ok(())
}

/// Best effort by nature: lowering one's own score needs CAP_SYS_RESOURCE, and the daemon runs as well without.
fn adjust_oom_score(score: i32) {
    if score == 0 {
        return;
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", score.to_string()) {
        tracing::warn!(score, %error, "cannot set the daemon's oom_score_adj");
    }
}

fn open_snapshotters(config: &Config, store: &Store) -> Result<BTreeMap<String, Arc<dyn Snapshotter>>, AppError> {
    let failed = |name: &'static str| move |source| AppError::Snapshotter { name, source };
    let root = |name: &str| wiring::snapshotter_root(config, name);
    let overlayfs =
        Overlayfs::open(&root("overlayfs"), store.clone(), OverlayfsOptions::default()).map_err(failed("overlayfs"))?;
    let native = Native::open(&root("native"), store.clone()).map_err(failed("native"))?;
    for (name, swept) in [("overlayfs", overlayfs.sweep()), ("native", native.sweep())] {
        let swept = swept.map_err(failed(name))?;
        if swept.rows + swept.directories > 0 {
            tracing::info!(
                snapshotter = name,
                rows = swept.rows,
                directories = swept.directories,
                "swept half-made snapshots"
            );
        }
    }
    let all = BTreeMap::from([
        ("overlayfs".to_owned(), Arc::new(overlayfs) as Arc<dyn Snapshotter>),
        ("native".to_owned(), Arc::new(native) as Arc<dyn Snapshotter>),
    ]);
    let named = config.runtime.handlers.values().filter_map(|handler| handler.snapshotter.as_ref());
    let platforms = config.runtime.platform_snapshotters.values();
    for name in named.chain(platforms).chain([&config.images.snapshotter]) {
        if !all.contains_key(name) {
            let known = all.keys().cloned().collect::<Vec<_>>().join(", ");
            return Err(AppError::UnknownSnapshotter { name: name.clone(), known });
        }
    }
    Ok(all)
}

/// SIGTERM and SIGINT end the daemon; both are caught before the socket accepts anyone.
fn stop_on_signal(shutdown: CancellationToken) -> io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => tracing::info!("SIGTERM: stopping"),
            _ = interrupt.recv() => tracing::info!("SIGINT: stopping"),
        }
        shutdown.cancel();
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn directories_get_their_modes_whatever_they_had_and_the_pods_are_roots_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (root, state) = (dir.path().join("root"), dir.path().join("state"));
        let of_pods = state.join(sandbox::CRI_DIRECTORY);
        let config = Config { root: root.clone(), state: state.clone(), ..Config::default() };
        for _ in 0..2 {
            prepare_directories(&config).unwrap();
            assert_eq!([&root, &state, &of_pods].map(|path| mode(path)), [0o700, 0o711, 0o700]);
            for path in [&root, &state, &of_pods] {
                fs::set_permissions(path, fs::Permissions::from_mode(0o777)).unwrap();
            }
        }
    }

    /// Who may connect there may change every container.
    #[tokio::test]
    async fn plugins_connect_in_a_directory_of_roots_alone() {
        let dir = tempfile::tempdir().unwrap();
        let nri = Nri { socket_path: dir.path().join("run/nri/nri.sock"), ..Nri::default() };
        assert!(nri_socket(&Nri { disable: true, ..nri.clone() }).unwrap().is_none());
        assert!(!dir.path().join("run").exists());
        let _listener = nri_socket(&nri).unwrap().unwrap();
        assert_eq!((mode(nri.socket_path.parent().unwrap()), mode(&nri.socket_path)), (0o700, 0o660));
        // Another runtime's is left to it.
        assert!(nri_socket(&nri).unwrap().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_directory_is_waited_for_a_moment_and_then_refused() {
        let directory = tempfile::tempdir().unwrap();
        let other = hold(directory.path()).await.unwrap();
        let let_go = async {
            sleep(LINGER / 4).await;
            drop(other);
        };
        let (held, ()) = tokio::join!(hold(directory.path()), let_go);
        let _held = held.unwrap();
        let refused = hold(directory.path()).await.unwrap_err();
        assert!(matches!(&refused, AppError::InUse { path } if path == directory.path()), "{refused}");
    }
}
