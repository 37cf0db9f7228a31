//! The loopback interface of a pod's namespace, brought up by us: one netlink message where other runtimes run a plugin.
//!
//! Nothing has to be taken back: the interface goes with its namespace.

use std::{io, path::Path, time::Duration};

use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with,
    sockopt::{Timeout, set_socket_timeout},
};

use crate::{error::Error, netns};

/// linux/rtnetlink.h and linux/netlink.h.
const RTM_NEWLINK: u16 = 16;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST_ACK: u16 = 1 | 4;
const IFF_UP: u32 = 1;
/// The first interface that a new namespace has is always `lo`.
const LOOPBACK_INDEX: i32 = 1;

/// Brings `lo` up in the namespace at `path`. Blocks.
pub(super) fn up(path: &Path) -> Result<(), Error> {
    // The socket belongs to the namespace of the thread that makes it.
    netns::with_netns(path, set_up)?
        .map_err(|error| Error::failed(format!("bring up the loopback interface in {}", path.display()), error))
}

fn set_up() -> io::Result<()> {
    // Without a protocol it is the first one, NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
    // The kernel answers within the send; this is for a kernel that does not.
    set_socket_timeout(&socket, Timeout::Recv, Some(Duration::from_secs(5)))?;
    send(&socket, &message(), SendFlags::empty())?;
    let mut answer = [0u8; 1024];
    let (length, _) = recv(&socket, &mut answer, RecvFlags::empty())?;
    acknowledged(&answer[..length])
}

/// struct nlmsghdr, struct ifinfomsg: set IFF_UP.
fn message() -> Vec<u8> {
    let mut bytes = Vec::with_capacity(32);
    bytes.extend(32u32.to_ne_bytes());
    bytes.extend(RTM_NEWLINK.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST_ACK.to_ne_bytes());
    bytes.extend(1u32.to_ne_bytes());
    bytes.extend(0u32.to_ne_bytes());
    bytes.extend([0u8; 4]);
    bytes.extend(LOOPBACK_INDEX.to_ne_bytes());
    bytes.extend(IFF_UP.to_ne_bytes());
    bytes.extend(IFF_UP.to_ne_bytes());
    bytes
}

/// struct nlmsghdr, then struct nlmsgerr, whose first field is 0 or a negative errno.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let kind = answer.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = answer.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(0)) => Ok(()),
        (Some(NLMSG_ERROR), Some(code)) => Err(io::Error::from_raw_os_error(code.saturating_neg())),
        _ => Err(io::Error::other("unexpected netlink answer")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileged_the_loopback_interface_is_up_afterwards() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pod");
        netns::pin(&path).unwrap();
        let connects = || {
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            std::net::TcpStream::connect(listener.local_addr()?).map(drop)
        };
        assert!(netns::with_netns(&path, connects).unwrap().is_err(), "a new namespace has it down");
        up(&path).unwrap();
        netns::with_netns(&path, connects).unwrap().unwrap();
        netns::unpin(&path).unwrap();
    }
}
