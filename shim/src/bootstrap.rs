//! What daemon and shim tell each other when a shim is started, in the forms of every containerd generation.
//!
//! | daemon | stdin of `start` | understands on stdout |
//! |---|---|---|
//! | 1.6 to 2.2 | an `Any` of runtime options, or nothing | a plain address (2.0 and later: JSON as well) |
//! | 2.3 and later | `BootstrapParams` | `BootstrapResult`, JSON, a plain address |
//!
//! Parsing is pure; only [`Bootstrap::read`] and [`Bootstrap::write`] touch files, and block.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
};

use prost::{Message, Name};
use prost_types::Any;
use serde::{Deserialize, Serialize};

use crate::{
    address::{Address, AddressError},
    proto::{bootstrap as wire, is_type},
};

/// The version of the task service that this side knows best.
pub const CURRENT_VERSION: u32 = 3;

const FILE: &str = "bootstrap.json";

/// Where containerd 1.x keeps the plain address.
const LEGACY_FILE: &str = "address";

/// How to reach a running shim. This is what `bootstrap.json` holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bootstrap {
    /// Of the task service: 2 or 3.
    pub version: u32,
    pub address: String,
    pub protocol: Protocol,
}

/// How the shim is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    #[serde(alias = "")]
    Ttrpc,
    /// Some shims for virtual machines answer so. It is parsed, but there is no client for it.
    Grpc,
}

#[derive(Debug, thiserror::Error)]
pub enum BootstrapError {
    #[error("the shim speaks version {0} of the task service; versions up to {CURRENT_VERSION} are supported")]
    Version(u32),
    #[error("the shim speaks {0:?}, which is neither ttrpc nor grpc")]
    Protocol(String),
    #[error("the shim's address cannot be used")]
    Address(#[from] AddressError),
    #[error("what the shim printed is neither a bootstrap result nor an address: {0:?}")]
    Garbled(String),
    #[error("{what}")]
    Failed {
        what: String,
        #[source]
        source: io::Error,
    },
}

impl Bootstrap {
    /// A shim of containerd 1.x: it printed its address and nothing else.
    fn plain(address: &str) -> Self {
        Self { version: 2, address: address.to_owned(), protocol: Protocol::Ttrpc }
    }

    /// Parses what `<shim> start` printed.
    pub fn parse_reply(stdout: &[u8]) -> Result<Self, BootstrapError> {
        let reply = match parse_result(stdout) {
            Some(result) => Self {
                version: u32::try_from(result.version).unwrap_or_default(),
                address: result.address,
                protocol: parse_protocol(&result.protocol)?,
            },
            None => parse_text(stdout)?,
        };
        reply.checked()
    }

    /// Where to connect.
    pub fn socket(&self) -> Result<Address, AddressError> {
        Address::parse(&self.address)
    }

    /// Writes `bootstrap.json` into the bundle, whole or not at all.
    pub fn write(&self, bundle: &Path) -> Result<(), BootstrapError> {
        let path = bundle.join(FILE);
        let staged = bundle.join(format!(".{FILE}"));
        let text = serde_json::to_vec(self).expect("strings and numbers are always JSON");
        let publish = || {
            let mut file = File::create(&staged)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&staged, &path)
        };
        publish().map_err(|source| failed("write", &path, source))
    }

    /// Reads how to reach a bundle's shim: `bootstrap.json`, else the `address` of containerd 1.x, else `None`.
    pub fn read(bundle: &Path) -> Result<Option<Self>, BootstrapError> {
        for name in [FILE, LEGACY_FILE] {
            let path = bundle.join(name);
            match fs::read(&path) {
                Ok(bytes) => return parse_text(&bytes)?.checked().map(Some),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(failed("read", &path, source)),
            }
        }
        Ok(None)
    }

    fn checked(self) -> Result<Self, BootstrapError> {
        if !(2..=CURRENT_VERSION).contains(&self.version) {
            return Err(BootstrapError::Version(self.version));
        }
        self.socket()?;
        Ok(self)
    }
}

/// What `start` got on stdin.
#[derive(Debug, Clone, PartialEq)]
pub enum Request {
    Params(wire::BootstrapParams),
    /// A daemon before 2.3. It cannot be told whether it knows more than a plain address.
    Legacy {
        options: Option<Any>,
    },
}

impl Request {
    /// Parses what `start` got on stdin. The bytes do not say which message they are, so the ids decide.
    pub fn parse(stdin: &[u8], id: &str, namespace: &str) -> Result<Self, prost::DecodeError> {
        if stdin.is_empty() {
            return Ok(Self::Legacy { options: None });
        }
        if let Ok(params) = wire::BootstrapParams::decode(stdin)
            && params.instance_id == id
            && params.namespace == namespace
        {
            return Ok(Self::Params(params));
        }
        let options = Any::decode(stdin)?;
        Ok(Self::Legacy { options: (!options.type_url.is_empty()).then_some(options) })
    }

    /// The options of type `M`, or whatever a legacy daemon sent as options.
    pub fn options<M: Name>(&self) -> Option<&Any> {
        match self {
            Self::Legacy { options } => options.as_ref(),
            Self::Params(params) => {
                params.extensions.iter().filter_map(|extension| extension.value.as_ref()).find(|any| is_type::<M>(any))
            }
        }
    }

    /// Where the daemon wants the socket, if it said so.
    pub fn socket_dir(&self) -> Option<PathBuf> {
        match self {
            Self::Legacy { .. } => None,
            Self::Params(params) => params.socket_dir.as_deref().filter(|path| !path.is_empty()).map(PathBuf::from),
        }
    }

    /// What to print: the one form that this daemon surely understands.
    pub fn reply(&self, address: &Address) -> Vec<u8> {
        match self {
            Self::Legacy { .. } => address.to_string().into_bytes(),
            Self::Params(_) => wire::BootstrapResult {
                version: CURRENT_VERSION.cast_signed(),
                address: address.to_string(),
                protocol: "ttrpc".to_owned(),
                ..Default::default()
            }
            .encode_to_vec(),
        }
    }
}

/// A plain address can happen to parse as protobuf with unknown fields, so the fields must make sense as well.
fn parse_result(stdout: &[u8]) -> Option<wire::BootstrapResult> {
    let result = wire::BootstrapResult::decode(stdout).ok()?;
    (result.version > 0 && !result.address.is_empty() && !result.protocol.is_empty()).then_some(result)
}

/// JSON or a plain address. JSON without a version that has JSON is taken for an address, as containerd does.
fn parse_text(bytes: &[u8]) -> Result<Bootstrap, BootstrapError> {
    let garbled = || BootstrapError::Garbled(String::from_utf8_lossy(bytes).chars().take(200).collect());
    let text = std::str::from_utf8(bytes).map_err(|_| garbled())?.trim_ascii();
    if text.starts_with('{') {
        return serde_json::from_str(text).map_err(|_| garbled());
    }
    if text.is_empty() || text.lines().count() > 1 {
        return Err(garbled());
    }
    Ok(Bootstrap::plain(text))
}

fn parse_protocol(name: &str) -> Result<Protocol, BootstrapError> {
    match name {
        "ttrpc" => Ok(Protocol::Ttrpc),
        "grpc" => Ok(Protocol::Grpc),
        other => Err(BootstrapError::Protocol(other.to_owned())),
    }
}

fn failed(verb: &str, path: &Path, source: io::Error) -> BootstrapError {
    BootstrapError::Failed { what: format!("cannot {verb} {}", path.display()), source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{runc, to_any};

    fn ttrpc(version: u32) -> Bootstrap {
        Bootstrap { version, address: "unix:///run/containerd/s/ab".into(), protocol: Protocol::Ttrpc }
    }

    fn result(version: i32, protocol: &str) -> Vec<u8> {
        wire::BootstrapResult { version, address: ttrpc(3).address, protocol: protocol.into(), ..Default::default() }
            .encode_to_vec()
    }

    fn options() -> Any {
        to_any(&runc::Options { binary_name: "crun".into(), ..Default::default() })
    }

    fn params(id: &str, namespace: &str) -> wire::BootstrapParams {
        wire::BootstrapParams {
            instance_id: id.into(),
            namespace: namespace.into(),
            extensions: vec![wire::Extension { value: Some(options()) }],
            ..Default::default()
        }
    }

    #[test]
    fn replies_of_every_generation_are_parsed() {
        let table: [(&[u8], Bootstrap); 6] = [
            (b"unix:///run/containerd/s/ab", ttrpc(2)),
            (b"unix:///run/containerd/s/ab\n", ttrpc(2)),
            (br#"{"version":2,"address":"unix:///run/containerd/s/ab","protocol":"ttrpc"}"#, ttrpc(2)),
            (br#"{"version":3,"address":"unix:///run/containerd/s/ab","protocol":"ttrpc"}"#, ttrpc(3)),
            (&result(3, "ttrpc"), ttrpc(3)),
            (&result(3, "grpc"), Bootstrap { protocol: Protocol::Grpc, ..ttrpc(3) }),
        ];
        for (stdout, expected) in table {
            assert_eq!(Bootstrap::parse_reply(stdout).unwrap(), expected, "{}", String::from_utf8_lossy(stdout));
        }
    }

    #[test]
    fn a_reply_that_is_not_understood_says_what_it_was() {
        let table: [(&[u8], &str); 7] = [
            (b"", r#"what the shim printed is neither a bootstrap result nor an address: """#),
            (b"a\nb", r#"what the shim printed is neither a bootstrap result nor an address: "a\nb""#),
            (b"{]", r#"what the shim printed is neither a bootstrap result nor an address: "{]""#),
            (
                br#"{"version":4,"address":"unix:///a","protocol":"ttrpc"}"#,
                "the shim speaks version 4 of the task service; versions up to 3 are supported",
            ),
            (&result(9, "ttrpc"), "the shim speaks version 9 of the task service; versions up to 3 are supported"),
            (&result(3, "carrier pigeon"), r#"the shim speaks "carrier pigeon", which is neither ttrpc nor grpc"#),
            (b"vsock://3:4", "the shim's address cannot be used"),
        ];
        for (stdout, expected) in table {
            assert_eq!(Bootstrap::parse_reply(stdout).unwrap_err().to_string(), expected);
        }
    }

    #[test]
    fn params_with_the_ids_of_the_command_line_are_taken_as_such() {
        let bytes = params("c1", "k8s.io").encode_to_vec();
        let request = Request::parse(&bytes, "c1", "k8s.io").unwrap();
        assert_eq!(request, Request::Params(params("c1", "k8s.io")));
        assert_eq!(request.options::<runc::Options>(), Some(&options()));
        let reply = request.reply(&Address::parse(&ttrpc(3).address).unwrap());
        assert_eq!(Bootstrap::parse_reply(&reply).unwrap(), ttrpc(3));
    }

    #[test]
    fn options_of_an_older_daemon_get_a_plain_address() {
        let request = Request::parse(&options().encode_to_vec(), "c1", "k8s.io").unwrap();
        assert_eq!(request, Request::Legacy { options: Some(options()) });
        assert_eq!(request.options::<runc::Options>(), Some(&options()));
        assert_eq!(request.reply(&Address::parse("unix:///s/ab").unwrap()), b"unix:///s/ab");
    }

    #[test]
    fn no_input_is_an_older_daemon_without_options() {
        assert_eq!(Request::parse(b"", "c1", "k8s.io").unwrap(), Request::Legacy { options: None });
    }

    #[test]
    fn input_that_is_no_message_is_an_error() {
        assert!(Request::parse(b"\xff\xff\xff", "c1", "k8s.io").is_err());
    }

    #[test]
    fn what_is_written_to_a_bundle_is_read_from_it() {
        let bundle = tempfile::tempdir().unwrap();
        ttrpc(3).write(bundle.path()).unwrap();
        let text = fs::read_to_string(bundle.path().join("bootstrap.json")).unwrap();
        assert_eq!(text, r#"{"version":3,"address":"unix:///run/containerd/s/ab","protocol":"ttrpc"}"#);
        assert_eq!(Bootstrap::read(bundle.path()).unwrap(), Some(ttrpc(3)));
    }

    #[test]
    fn a_bundle_of_containerd_1_is_read() {
        let bundle = tempfile::tempdir().unwrap();
        fs::write(bundle.path().join("address"), "unix:///run/containerd/s/ab").unwrap();
        assert_eq!(Bootstrap::read(bundle.path()).unwrap(), Some(ttrpc(2)));
    }

    #[test]
    fn a_bundle_whose_shim_never_started_has_none() {
        let bundle = tempfile::tempdir().unwrap();
        assert_eq!(Bootstrap::read(bundle.path()).unwrap(), None);
    }
}
