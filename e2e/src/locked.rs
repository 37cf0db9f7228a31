//! The same images behind a lock: a second docker-registry on the storage of the first, with TLS by an authority that nobody
//! knows, and with user and password (htpasswd).

use std::{
    fs,
    net::{SocketAddr, TcpStream},
    process::Child,
};

use crate::{
    node::TestNode,
    registry::{Registry, common, free_address, keep},
};

pub const USER: &str = "canary-user";
pub const PASSWORD: &str = "canary-right";
/// `htpasswd -nbB -C 4 canary-user canary-right`
const HTPASSWD: &str = "canary-user:$2y$04$abcdefghijklmnopqrstuu.QCMB7g.ojqDo57VGMqvViEWntgnNce\n";

/// A registry that lets nobody in without a password. It ends with the test process.
pub struct LockedRegistry {
    pub address: SocketAddr,
    /// The authority that signed its certificate, as PEM.
    authority: String,
    _keeper: Child,
}

impl LockedRegistry {
    /// Serves what is pushed to `registry`.
    pub fn beside(registry: &Registry) -> LockedRegistry {
        let dir = tempfile::Builder::new().prefix("windlass-locked-").tempdir().unwrap().keep();
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "windlass test authority");
        let authority = parameters.self_signed(&key).unwrap().pem();
        let issuer = rcgen::Issuer::new(parameters, key);
        let key = rcgen::KeyPair::generate().unwrap();
        let own =
            rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        for (name, text) in [("tls.pem", own.pem()), ("tls.key", key.serialize_pem()), ("htpasswd", HTPASSWD.into())] {
            fs::write(dir.join(name), text).unwrap();
        }
        let address = free_address();
        let at = dir.display();
        let config = format!(
            "{}auth:\n  htpasswd:\n    realm: windlass\n    path: {at}/htpasswd\n\
             http:\n  addr: {address}\n  tls:\n    certificate: {at}/tls.pem\n    key: {at}/tls.key\n",
            common(&registry.storage)
        );
        let ready = || TcpStream::connect(address).map(drop).map_err(|error| error.to_string());
        LockedRegistry { address, authority, _keeper: keep(&dir, &config, ready) }
    }

    /// Makes it the registry `host` of a node, with these further lines in its `hosts.toml`; `authority.pem` is beside it.
    pub fn configure(&self, node: &TestNode, host: &str, lines: &str) {
        let dir = node.path("certs.d").join(host);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("authority.pem"), &self.authority).unwrap();
        fs::write(dir.join("hosts.toml"), format!("server = \"https://{}\"\n{lines}", self.address)).unwrap();
    }
}
