//! TLS towards one host: whom it is trusted by, and who we are to it.
//!
//! Authorities are the system's and the `ca` files'. A server that shows exactly a certificate named in `ca` is trusted
//! even if that certificate says it is an authority: many registries run on one self-signed certificate made that way.
//! Names and validity are checked in every case but `skip_verify`.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};

/// The content of a host's TLS files.
#[derive(Default)]
pub(crate) struct Material {
    pub(crate) ca: Vec<(PathBuf, Vec<u8>)>,
    /// Certificate chain and key in one text.
    pub(crate) identity: Option<(PathBuf, Vec<u8>)>,
}

/// Why a host's TLS settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    #[error("{} holds no usable certificate", path.display())]
    Certificate { path: PathBuf },
    #[error("{} and its key are not a usable client certificate", path.display())]
    Identity { path: PathBuf },
    #[error(
        "this machine has no certificate authorities: install its ca-certificates package, or name a ca in hosts.toml"
    )]
    NoAuthorities,
    #[error("cannot set up TLS")]
    Setup(#[from] Error),
}

/// The TLS configuration for a host. Reads the system's certificates, so it blocks.
pub(crate) fn client_config(material: &Material, skip_verify: bool) -> Result<ClientConfig, TlsError> {
    let provider = CryptoProvider::get_default()
        .ok_or_else(|| Error::General("no crypto provider is installed in this process".to_owned()))?;
    let builder = ClientConfig::builder_with_provider(Arc::clone(provider)).with_safe_default_protocol_versions()?;
    let verifier: Arc<dyn ServerCertVerifier> = if skip_verify {
        Arc::new(Anyone { provider: Arc::clone(provider) })
    } else {
        Arc::new(Trust::new(material, Arc::clone(provider))?)
    };
    let builder = builder.dangerous().with_custom_certificate_verifier(verifier);
    let mut config = match &material.identity {
        None => builder.with_no_client_auth(),
        Some((path, pem)) => {
            let unusable = || TlsError::Identity { path: path.clone() };
            let chain = certificates(path, pem).map_err(|_| unusable())?;
            let key = PrivateKeyDer::from_pem_slice(pem).map_err(|_| unusable())?;
            builder.with_client_auth_cert(chain, key).map_err(|_| unusable())?
        }
    };
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let unusable = || TlsError::Certificate { path: path.to_owned() };
    let found: Vec<_> = CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|_| unusable())?;
    if found.is_empty() { Err(unusable()) } else { Ok(found) }
}

/// Checks a server against the authorities, and against the certificates named for it.
#[derive(Debug)]
struct Trust {
    authorities: Arc<WebPkiServerVerifier>,
    named: Vec<CertificateDer<'static>>,
}

impl Trust {
    fn new(material: &Material, provider: Arc<CryptoProvider>) -> Result<Trust, TlsError> {
        let mut named = Vec::new();
        let mut roots = RootCertStore::empty();
        for (path, pem) in &material.ca {
            for certificate in certificates(path, pem)? {
                roots.add(certificate.clone()).map_err(|_| TlsError::Certificate { path: path.clone() })?;
                named.push(certificate);
            }
        }
        let system = rustls_native_certs::load_native_certs();
        for error in &system.errors {
            tracing::debug!(%error, "certificate authority of the system is passed over");
        }
        roots.add_parsable_certificates(system.certs);
        if roots.is_empty() {
            return Err(TlsError::NoAuthorities);
        }
        let authorities = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| Error::General(error.to_string()))?;
        Ok(Trust { authorities, named })
    }
}

impl ServerCertVerifier for Trust {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let verified = self.authorities.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now);
        match verified {
            // "An authority is used as a server" has no variant of its own; it comes after the check of the validity,
            // which has.
            Err(Error::InvalidCertificate(CertificateError::Other(_)))
                if self.named.iter().any(|certificate| certificate == end_entity) =>
            {
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            }
            other => other,
        }
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.authorities.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.authorities.supported_verify_schemes()
    }
}

/// `skip_verify`: whoever answers is the server, as long as it has the key of the certificate that it shows.
#[derive(Debug)]
struct Anyone {
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anyone {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
