//! `start`: makes sure that a server runs for the container's group, and prints its address.
//!
//! The first container of a pod brings the server up; all others find its socket in use and join it. The server is
//! this binary again, with the listening socket as its stdin. Since this process ends, its parent becomes pid 1.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Component, Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::address::{self, Address, DEFAULT_SOCKET_DIR, SocketName};
use crate::bootstrap::Request;
use crate::proto::{self, runc};

use super::Failure;
use super::arguments::Arguments;

/// The server's own: a second daemon or an operator's shell has no business in them.
const SOCKET_DIR_MODE: u32 = 0o700;
const SOCKET_MODE: u32 = 0o600;

pub(crate) fn start(arguments: &Arguments) -> Result<(), Failure> {
    let mut input = Vec::new();
    io::stdin().lock().read_to_end(&mut input)?;
    let request = Request::parse(&input, &arguments.id, &arguments.namespace)?;
    let bundle = bundle(arguments)?;
    let config = fs::read(bundle.join("config.json"))
        .map_err(|error| format!("cannot read config.json of the bundle {}: {error}", bundle.display()))?;
    let group = address::group(&config, &arguments.id)?;
    let socket_dir = request.socket_dir().unwrap_or_else(|| PathBuf::from(DEFAULT_SOCKET_DIR));
    let address = SocketName {
        socket_dir: &socket_dir,
        grpc_address: &arguments.address,
        namespace: &arguments.namespace,
        group: &group,
    }
    .address()?;
    let mut server = claim(&address)?.map(|listener| launch(arguments, &bundle, listener)).transpose()?;
    let options = request.options::<runc::Options>().and_then(|any| proto::parse_any::<runc::Options>(any)?.ok());
    if let Some(child) = &server
        && let Some(cgroup) = options.map(|options| options.shim_cgroup).filter(|cgroup| !cgroup.is_empty())
        && let Err(error) = join_cgroup(child.id(), &cgroup)
    {
        let why = io::Error::new(error.kind(), format!("ShimCgroup {cgroup:?}: {error}"));
        return Err(server.take().map_or_else(|| why.to_string().into(), |child| abandon(child, &address, &why)));
    }
    if let Request::Legacy { .. } = request {
        record_address(&bundle, &address)?;
    }
    let mut output = io::stdout().lock();
    let told = output.write_all(&request.reply(&address)).and_then(|()| output.flush());
    match (told, server) {
        (Err(error), Some(server)) => Err(abandon(server, &address, &error)),
        (told, _) => Ok(told?),
    }
}

/// Nobody will ever know of the server, because the daemon has died meanwhile or is told of an error: it is taken back,
/// with its socket.
fn abandon(mut server: Child, address: &Address, why: &io::Error) -> Failure {
    let ended = server.kill().and_then(|()| server.wait()).and_then(|_| fs::remove_file(address.socket_path()));
    match ended {
        Ok(()) => format!("the new shim cannot be used, so it was ended: {why}").into(),
        Err(error) => format!("the new shim cannot be used ({why}), nor can it be ended: {error}").into(),
    }
}

/// containerd 1.x leaves it to the shim to write down where it is; without this file a restarted daemon takes the shim
/// for dead and kills its containers.
fn record_address(bundle: &Path, address: &Address) -> io::Result<()> {
    let temporary = bundle.join(".address");
    fs::write(&temporary, address.to_string())?;
    fs::rename(temporary, bundle.join("address"))
}

pub(crate) fn bundle(arguments: &Arguments) -> io::Result<PathBuf> {
    arguments.bundle.clone().map_or_else(std::env::current_dir, Ok)
}

/// The listening socket, or nothing if a server has it already. A socket that nobody serves is left from a dead one.
fn claim(address: &Address) -> Result<Option<UnixListener>, Failure> {
    let path = address.socket_path();
    if let Some(parent) = path.parent() {
        DirBuilder::new().recursive(true).mode(SOCKET_DIR_MODE).create(parent)?;
    }
    for _ in 0..2 {
        match UnixListener::bind(&path) {
            Ok(listener) => {
                fs::set_permissions(&path, Permissions::from_mode(SOCKET_MODE))?;
                return Ok(Some(listener));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if UnixStream::connect(&path).is_ok() {
                    return Ok(None);
                }
                fs::remove_file(&path)?;
            }
            Err(error) => return Err(format!("cannot listen on {}: {error}", path.display()).into()),
        }
    }
    Err(format!("another start has taken {} in this moment; try again", path.display()).into())
}

fn launch(arguments: &Arguments, bundle: &Path, listener: UnixListener) -> Result<Child, Failure> {
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["-namespace", &arguments.namespace, "-id", &arguments.id, "-address", &arguments.address])
        .current_dir(bundle)
        .stdin(OwnedFd::from(listener))
        .stdout(log(bundle)?)
        .stderr(log(bundle)?);
    if arguments.debug {
        command.arg("-debug");
    }
    let server = command.spawn()?;
    raise_oom_score(server.id());
    Ok(server)
}

/// The daemon's FIFO for our log lines. Opened for reading as well: then neither open nor write ever waits for it.
fn log(bundle: &Path) -> io::Result<Stdio> {
    let path = bundle.join("log");
    match fs::metadata(&path) {
        Ok(metadata) if metadata.file_type().is_fifo() => {
            let fifo = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
            Ok(fifo.into())
        }
        // A daemon that wants no log made none.
        _ => Ok(Stdio::null()),
    }
}

/// Moves the server into a cgroup that the node has made for shims, in every hierarchy that has it.
fn join_cgroup(server: u32, path: &str) -> io::Result<()> {
    const MOUNT: &str = "/sys/fs/cgroup";
    if Path::new(path).components().any(|part| part == Component::ParentDir) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it leaves its parent"));
    }
    let mut hierarchies = vec![PathBuf::from(MOUNT)];
    if !Path::new(MOUNT).join("cgroup.controllers").exists() {
        let entries = fs::read_dir(MOUNT)?.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()?;
        // Links are second names of joined controllers (cpu -> cpu,cpuacct).
        hierarchies = entries.into_iter().filter(|path| path.is_dir() && !path.is_symlink()).collect();
    }
    let at = |hierarchy: PathBuf| hierarchy.join(path.trim_start_matches('/')).join("cgroup.procs");
    let files: Vec<PathBuf> = hierarchies.into_iter().map(at).filter(|file| file.exists()).collect();
    if files.is_empty() {
        return Err(io::Error::new(
            io::ErrorKind::NotFound,
            "there is no such cgroup; make it before pods are started",
        ));
    }
    files.iter().try_for_each(|file| fs::write(file, server.to_string()))
}

/// The kernel is to prefer the shim to the daemon, and every container to the shim.
fn raise_oom_score(server: u32) {
    let adjusted = || -> io::Result<()> {
        let parent = rustix::process::getppid().map_or(1, |pid| pid.as_raw_nonzero().get());
        let score = read_score(&format!("/proc/{parent}/oom_score_adj"))?;
        let own = read_score("/proc/self/oom_score_adj")?;
        // Below what was inherited only CAP_SYS_RESOURCE can go, and it is not worth failing for.
        fs::write(format!("/proc/{server}/oom_score_adj"), (score + 1).clamp(own, 1000).to_string())
    };
    if let Err(error) = adjusted() {
        super::say(&format!("the shim's oom_score_adj stays as it is: {error}"));
    }
}

fn read_score(path: &str) -> io::Result<i32> {
    fs::read_to_string(path)?.trim().parse().map_err(io::Error::other)
}
