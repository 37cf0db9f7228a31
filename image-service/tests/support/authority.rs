//! Certificates made on the spot: an authority, what it signs for servers and clients, and one that signs itself.

use std::path::Path;
use std::sync::{Arc, Once};

use tokio_rustls::TlsAcceptor;

/// Installs the crypto provider, as main does in the daemon.
pub fn install_crypto() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        rustls::crypto::aws_lc_rs::default_provider().install_default().expect("nothing else installs a provider");
    });
}

/// A certificate authority, and certificates for 127.0.0.1 and for clients.
pub struct TestAuthority {
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
    pub pem: String,
    der: rustls::pki_types::CertificateDer<'static>,
}

impl TestAuthority {
    pub fn new() -> TestAuthority {
        install_crypto();
        let key = rcgen::KeyPair::generate().expect("keys can be made");
        let mut parameters = rcgen::CertificateParams::new(Vec::new()).expect("no names are valid names");
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(rcgen::DnType::CommonName, "test authority");
        let certificate = parameters.self_signed(&key).expect("an authority signs itself");
        TestAuthority {
            pem: certificate.pem(),
            der: certificate.der().clone(),
            issuer: rcgen::Issuer::new(parameters, key),
        }
    }

    /// A certificate and its key for a name, both PEM.
    pub fn issue(&self, name: &str) -> (String, String) {
        let (certificate, key) = self.sign(name);
        (certificate.pem(), key.serialize_pem())
    }

    /// Writes `ca.pem`, `client.pem` and `client.key` into a directory.
    pub fn write_to(&self, directory: &Path) {
        let (certificate, key) = self.issue("client");
        for (name, text) in [("ca.pem", &self.pem), ("client.pem", &certificate), ("client.key", &key)] {
            std::fs::write(directory.join(name), text).expect("a test's directory is writable");
        }
    }

    fn sign(&self, name: &str) -> (rcgen::Certificate, rcgen::KeyPair) {
        self.sign_with(name, |_| {})
    }

    fn sign_with(
        &self,
        name: &str,
        change: impl FnOnce(&mut rcgen::CertificateParams),
    ) -> (rcgen::Certificate, rcgen::KeyPair) {
        let key = rcgen::KeyPair::generate().expect("keys can be made");
        let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a test uses valid names");
        change(&mut parameters);
        (parameters.signed_by(&key, &self.issuer).expect("an authority signs"), key)
    }

    pub(super) fn acceptor(&self, name: &str, client_certificates: bool) -> TlsAcceptor {
        let builder = rustls::ServerConfig::builder();
        let builder = if client_certificates {
            let mut roots = rustls::RootCertStore::empty();
            roots.add(self.der.clone()).expect("an authority is a root");
            let verifier = rustls::server::WebPkiClientVerifier::builder(Arc::new(roots)).build();
            builder.with_client_cert_verifier(verifier.expect("one root is enough"))
        } else {
            builder.with_no_client_auth()
        };
        serving(builder, self.sign(name))
    }

    /// A certificate for 127.0.0.1 that is over.
    pub(super) fn expired_acceptor(&self) -> TlsAcceptor {
        let signed = self.sign_with("127.0.0.1", |parameters| {
            parameters.not_before = rcgen::date_time_ymd(2001, 1, 1);
            parameters.not_after = rcgen::date_time_ymd(2002, 1, 1);
        });
        serving(rustls::ServerConfig::builder().with_no_client_auth(), signed)
    }
}

fn serving(
    builder: rustls::ConfigBuilder<rustls::ServerConfig, rustls::server::WantsServerCert>,
    (certificate, key): (rcgen::Certificate, rcgen::KeyPair),
) -> TlsAcceptor {
    let key = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a fresh key is valid");
    let chain = vec![certificate.der().clone()];
    TlsAcceptor::from(Arc::new(builder.with_single_cert(chain, key).expect("the key fits the certificate")))
}

/// A server on one self-signed certificate that says it is an authority, as `openssl req -x509` makes it, and its PEM.
pub(super) fn self_signed(name: &str) -> (TlsAcceptor, String) {
    install_crypto();
    let key = rcgen::KeyPair::generate().expect("keys can be made");
    let mut parameters = rcgen::CertificateParams::new(vec![name.to_owned()]).expect("a test uses valid names");
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let certificate = parameters.self_signed(&key).expect("a certificate signs itself");
    let der = rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).expect("a fresh key is valid");
    let config = rustls::ServerConfig::builder().with_no_client_auth();
    let config = config.with_single_cert(vec![certificate.der().clone()], der).expect("the key fits");
    (TlsAcceptor::from(Arc::new(config)), certificate.pem())
}
