//! Where a shim's socket is: its name as a function of pod and daemon, and the forms of an address on disk.
//!
//! `unix://<dir>/<sha256 of grpc address / namespace / group>`: containers of one group find the same shim.

use std::{
    ffi::OsString,
    fmt,
    os::unix::ffi::{OsStrExt, OsStringExt},
    path::{Path, PathBuf},
};

use aws_lc_rs::digest;
use serde::Deserialize;

/// Where sockets are unless the daemon says otherwise.
pub const DEFAULT_SOCKET_DIR: &str = "/run/containerd/s";

/// A directory, `/`, 64 digits and the closing NUL must fit the 108 bytes of a `sockaddr_un`.
pub const MAX_SOCKET_DIR: usize = 42;

/// Annotations that name a container's group, in the order in which they count.
const GROUP_ANNOTATIONS: [&str; 2] = ["io.containerd.runc.v2.group", "io.kubernetes.cri.sandbox-id"];

/// An address that can be connected to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Address {
    Path(PathBuf),
    /// The name without its leading NUL. Only shims from containerd 1.4's time have one.
    Abstract(Vec<u8>),
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("shim address {0:?} is empty or not absolute")]
    NotAbsolute(String),
    #[error("shim address {0:?} is not a unix socket, and no other transport is supported")]
    Unsupported(String),
    #[error("socket directory {0} is longer than 42 bytes, so a socket in it has no valid name: choose a shorter one")]
    DirectoryTooLong(PathBuf),
}

impl Address {
    /// Parses what a shim printed or a bundle holds.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix://") {
            return match path.starts_with('/') {
                true => Ok(Self::Path(path.into())),
                false => Err(AddressError::NotAbsolute(text.to_owned())),
            };
        }
        if text.contains("://") {
            return Err(AddressError::Unsupported(text.to_owned()));
        }
        match text.strip_prefix('\0').unwrap_or(text) {
            "" => Err(AddressError::NotAbsolute(text.to_owned())),
            name => Ok(Self::Abstract(name.as_bytes().to_vec())),
        }
    }

    /// The path to connect to or to bind; an abstract name begins with a NUL byte, as tokio expects it.
    pub fn socket_path(&self) -> PathBuf {
        match self {
            Self::Path(path) => path.clone(),
            Self::Abstract(name) => OsString::from_vec([b"\0", name.as_slice()].concat()).into(),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => write!(f, "unix://{}", path.display()),
            Self::Abstract(name) => write!(f, "\0{}", String::from_utf8_lossy(name)),
        }
    }
}

/// What a socket's name is made from.
#[derive(Debug, Clone, Copy)]
pub struct SocketName<'a> {
    pub socket_dir: &'a Path,
    pub grpc_address: &'a str,
    pub namespace: &'a str,
    /// See [`group`].
    pub group: &'a str,
}

impl SocketName<'_> {
    /// The address of the task service.
    pub fn address(&self) -> Result<Address, AddressError> {
        self.hashed(&[self.grpc_address, self.namespace, self.group])
    }

    /// The address of the debug service.
    pub fn debug_address(&self) -> Result<Address, AddressError> {
        self.hashed(&[self.grpc_address, self.namespace, self.group, "debug"])
    }

    fn hashed(&self, parts: &[&str]) -> Result<Address, AddressError> {
        if self.socket_dir.as_os_str().as_bytes().len() > MAX_SOCKET_DIR {
            return Err(AddressError::DirectoryTooLong(self.socket_dir.to_owned()));
        }
        let hash = digest::digest(&digest::SHA256, join(parts).as_bytes());
        let name: String = hash.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Ok(Address::Path(self.socket_dir.join(name)))
    }
}

/// The group of a container, whose containers share one shim: from the annotations of its `config.json`, else its id.
pub fn group(config: &[u8], id: &str) -> serde_json::Result<String> {
    #[derive(Deserialize)]
    struct Config {
        #[serde(default)]
        annotations: Option<std::collections::HashMap<String, String>>,
    }
    let annotations = serde_json::from_slice::<Config>(config)?.annotations.unwrap_or_default();
    let named = GROUP_ANNOTATIONS.iter().find_map(|key| annotations.get(*key));
    Ok(named.cloned().unwrap_or_else(|| id.to_owned()))
}

/// Joins and cleans as Go's `path.Join` does, because the hash of the result has to be the one a Go shim computes.
fn join(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    let text = parts.join("/");
    let rooted = text.starts_with('/');
    let mut clean: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." if clean.last().is_some_and(|last| *last != "..") => {
                clean.pop();
            }
            // Above the root is the root.
            ".." if rooted => {}
            part => clean.push(part),
        }
    }
    let joined = clean.join("/");
    match (rooted, parts.is_empty(), joined.is_empty()) {
        (true, _, _) => format!("/{joined}"),
        (false, false, true) => ".".to_owned(),
        (false, _, _) => joined,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(socket_dir: &Path) -> SocketName<'_> {
        SocketName { socket_dir, grpc_address: "/run/containerd/containerd.sock", namespace: "k8s.io", group: "pod" }
    }

    #[test]
    fn a_socket_is_named_by_the_hash_of_daemon_namespace_and_group() {
        // printf %s /run/containerd/containerd.sock/k8s.io/pod | sha256sum
        let expected = "unix:///run/containerd/s/b9cab8e84f817f3c3bb561c7ea8dcbfba051d5d8f56ec2c3f204bc387d13f7d0";
        assert_eq!(name(Path::new(DEFAULT_SOCKET_DIR)).address().unwrap().to_string(), expected);
    }

    #[test]
    fn the_debug_socket_has_a_component_more() {
        let expected = "unix:///run/containerd/s/7cb1f89a45793237071e50965eb73cdfcacc5193e4668cfe38fb48a3c5a447b9";
        assert_eq!(name(Path::new(DEFAULT_SOCKET_DIR)).debug_address().unwrap().to_string(), expected);
    }

    #[test]
    fn a_directory_that_no_socket_name_fits_is_refused() {
        let long = PathBuf::from(format!("/{}", "d".repeat(MAX_SOCKET_DIR)));
        assert_eq!(name(&long).address(), Err(AddressError::DirectoryTooLong(long.clone())));
    }

    #[test]
    fn paths_are_joined_as_go_joins_them() {
        let table: [(&[&str], &str); 7] = [
            (&["/run/c.sock", "ns", "id"], "/run/c.sock/ns/id"),
            (&["", "ns", "id"], "ns/id"),
            (&["/a//b/", "./c", "d"], "/a/b/c/d"),
            (&["/a", "../../b"], "/b"),
            (&["a", "../../b"], "../b"),
            (&["a", ".."], "."),
            (&["", ""], ""),
        ];
        for (parts, expected) in table {
            assert_eq!(join(parts), expected, "{parts:?}");
        }
    }

    #[test]
    fn addresses_of_every_generation_are_parsed() {
        let table = [
            ("unix:///run/containerd/s/ab", Ok(Address::Path("/run/containerd/s/ab".into()))),
            ("\0/containerd-shim/ns/id/shim.sock", Ok(Address::Abstract(b"/containerd-shim/ns/id/shim.sock".to_vec()))),
            ("/containerd-shim/ns/id/shim.sock", Ok(Address::Abstract(b"/containerd-shim/ns/id/shim.sock".to_vec()))),
            ("unix://relative", Err(AddressError::NotAbsolute("unix://relative".into()))),
            ("", Err(AddressError::NotAbsolute(String::new()))),
            ("vsock://3:1024", Err(AddressError::Unsupported("vsock://3:1024".into()))),
        ];
        for (text, expected) in table {
            assert_eq!(Address::parse(text), expected, "{text:?}");
        }
    }

    #[test]
    fn a_group_comes_from_the_first_annotation_that_names_one() {
        let table = [
            (r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod"}}"#, "pod"),
            (r#"{"annotations":{"io.kubernetes.cri.sandbox-id":"pod","io.containerd.runc.v2.group":"g"}}"#, "g"),
            (r#"{"annotations":{"other":"x"}}"#, "id"),
            (r#"{"annotations":null}"#, "id"),
            (r#"{"ociVersion":"1.2.0"}"#, "id"),
        ];
        for (config, expected) in table {
            assert_eq!(group(config.as_bytes(), "id").unwrap(), expected, "{config}");
        }
    }
}
