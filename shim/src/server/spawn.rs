//! `start`: makes sure that a server runs for the container's group, and prints its address.
//!
//! The first container of a pod brings the server up; all others find its socket in use and join it. The server is
//! this binary again, with the listening socket as its stdin. Since this process ends, its parent becomes pid 1.

use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::address::{self, Address, DEFAULT_SOCKET_DIR, SocketName};
use crate::bootstrap::Request;

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
    let server = claim(&address)?.map(|listener| launch(arguments, &bundle, listener)).transpose()?;
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

/// The daemon has died meanwhile, so nobody will ever know of the server: it is taken back, with its socket.
fn abandon(mut server: Child, address: &Address, why: &io::Error) -> Failure {
    let ended = server.kill().and_then(|()| server.wait()).and_then(|_| fs::remove_file(address.socket_path()));
    match ended {
        Ok(()) => format!("nobody takes the address of the new shim, so it was ended: {why}").into(),
        Err(error) => {
            format!("nobody takes the address of the new shim ({why}), and it cannot be ended: {error}").into()
        }
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
