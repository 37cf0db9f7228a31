//! Receiving a pty master from the runtime.
//!
//! The socket lies in the bundle and is named through our descriptor of that directory, since the path of a bundle
//! can be longer than a socket address may be.

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use tokio::io::Interest;
use tokio::net::UnixListener;

pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    directory: OwnedFd,
    name: String,
}

impl ConsoleSocket {
    pub(crate) fn bind(bundle: &Path, process: &str) -> io::Result<Self> {
        let directory = rustix::fs::open(bundle, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        let name = format!(".{process}.pty");
        let socket = Self { listener: UnixListener::bind(path(&directory, &name))?, directory, name };
        Ok(socket)
    }

    /// The socket as another process of ours finds it.
    pub(crate) fn path(&self) -> PathBuf {
        path(&self.directory, &self.name)
    }

    pub(crate) async fn receive(&self) -> io::Result<OwnedFd> {
        let (connection, _) = self.listener.accept().await?;
        connection.async_io(Interest::READABLE, || receive_fd(&connection)).await
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // The bundle is removed as a whole soon; a socket that is gone already is no news.
        let _ = rustix::fs::unlinkat(&self.directory, &self.name, rustix::fs::AtFlags::empty());
    }
}

fn path(directory: &OwnedFd, name: &str) -> PathBuf {
    format!("/proc/{}/fd/{}/{name}", std::process::id(), directory.as_raw_fd()).into()
}

fn receive_fd(connection: &tokio::net::UnixStream) -> io::Result<OwnedFd> {
    // The message's text is the name of the pty, which nobody needs.
    let mut text = [0; 4096];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(connection, &mut [IoSliceMut::new(&mut text)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    control
        .drain()
        .find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        })
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the runtime sent no terminal"))
}
