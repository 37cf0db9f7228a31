//! The daemon's unix socket: bound with its mode from the first instant, and who may speak on it.

use std::{
    fs, io,
    os::unix::{
        fs::{FileTypeExt, PermissionsExt, chown},
        net::UnixStream as StdUnixStream,
    },
    path::{Path, PathBuf},
};

use rustix::process::geteuid;
use thiserror::Error;
use tokio::net::{UnixListener, UnixStream, unix::UCred};

/// Why the socket cannot be had.
#[derive(Debug, Error)]
pub(crate) enum SocketError {
    #[error("{} is served by another process; stop it, or set another grpc.address", path.display())]
    InUse { path: PathBuf },
    #[error("{} exists and is not a socket; remove it, or set another grpc.address", path.display())]
    NotASocket { path: PathBuf },
    #[error("bind {}", path.display())]
    Bind { path: PathBuf, source: io::Error },
}

/// Who owns the socket, besides root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Owner {
    /// Whether a peer may call. The file's mode, 0660, has already been checked by the kernel at `connect`; this guards
    /// against a descriptor that was handed on, and against a directory or a mode that somebody loosened.
    ///
    /// A group other than root's opens the socket to its members, whose supplementary groups `SO_PEERCRED` does not tell.
    pub(crate) fn admits(self, peer: &UCred) -> bool {
        let own = geteuid().as_raw();
        peer.uid() == 0 || peer.uid() == own || peer.uid() == self.uid || self.gid != 0
    }
}

/// Binds `path` with mode 0660. A socket that nobody serves is replaced; one that is served is an error.
///
/// The socket is made under another name and renamed, so no client ever meets it with looser permissions.
pub(crate) fn bind(path: &Path, owner: Owner) -> Result<UnixListener, SocketError> {
    let failed = |source| SocketError::Bind { path: path.to_owned(), source };
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) if StdUnixStream::connect(path).is_ok() => return Err(SocketError::InUse { path: path.to_owned() }),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed(error)),
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary).map_err(failed)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(0o660)).map_err(failed)?;
    chown(&temporary, Some(owner.uid), Some(owner.gid)).map_err(failed)?;
    fs::rename(&temporary, path).map_err(failed)?;
    Ok(listener)
}

/// The next connection of a peer that may call; others are closed and logged.
pub(crate) async fn accept(listener: &UnixListener, owner: Owner) -> io::Result<UnixStream> {
    loop {
        let (stream, _) = listener.accept().await?;
        let peer = stream.peer_cred()?;
        if owner.admits(&peer) {
            return Ok(stream);
        }
        tracing::warn!(uid = peer.uid(), pid = peer.pid(), "connection refused: the peer is not root or the owner");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWNER: Owner = Owner { uid: 0, gid: 0 };

    #[tokio::test]
    async fn a_socket_is_private_and_a_stale_one_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("run/x.sock");
        let owner = Owner { uid: geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        drop(bind(&path, owner).unwrap());
        let listener = bind(&path, owner).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        let client = UnixStream::connect(&path).await.unwrap();
        let served = accept(&listener, owner).await.unwrap();
        assert_eq!(served.peer_cred().unwrap().uid(), client.peer_cred().unwrap().uid());
    }

    #[tokio::test]
    async fn a_socket_in_use_and_a_file_in_its_place_are_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("x.sock");
        let owner = Owner { uid: geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
        let _listener = bind(&path, owner).unwrap();
        let error = bind(&path, owner).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("{} is served by another process; stop it, or set another grpc.address", path.display())
        );
        let file = directory.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert!(matches!(bind(&file, OWNER), Err(SocketError::NotASocket { .. })));
        assert_eq!(fs::read(&file).unwrap(), b"precious");
    }
}
