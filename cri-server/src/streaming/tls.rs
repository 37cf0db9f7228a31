//! TLS of the streaming server: which certificate it shows. Who may connect is not its business: that is the tokens'.
//!
//! The certificate is the configured one (`x509_key_pair_streaming`), else one made at every start and signed by itself:
//! that keeps listeners on the way from reading along, and clients that check certificates need the configured one.

use std::{
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use rustls::{
    ServerConfig,
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, PrivateKeyDer,
        pem::{self, PemObject},
    },
};
use thiserror::Error;
use tokio_rustls::TlsAcceptor;

use crate::config::StreamTls;

/// Why there is no TLS.
#[derive(Debug, Error)]
pub(crate) enum TlsError {
    #[error("x509_key_pair_streaming.{key}: read {}", path.display())]
    Read { key: &'static str, path: PathBuf, source: io::Error },
    #[error("x509_key_pair_streaming.tls_cert_file: {} holds no certificate in PEM form", .0.display())]
    Certificate(PathBuf),
    #[error("x509_key_pair_streaming.tls_key_file: {} holds no private key in PEM form", path.display())]
    Key { path: PathBuf, source: pem::Error },
    #[error("x509_key_pair_streaming: {} and {} make no usable pair", certificate.display(), key.display())]
    Pair { certificate: PathBuf, key: PathBuf, source: rustls::Error },
    #[error("make a certificate for the streaming server")]
    SelfSigned(#[source] rcgen::Error),
    #[error("set up TLS of the streaming server")]
    Setup(#[source] rustls::Error),
}

/// What makes TLS of a connection, for a server that clients know by `address`; `None` when it is not enabled.
pub(super) fn acceptor(tls: &StreamTls, address: IpAddr) -> Result<Option<TlsAcceptor>, TlsError> {
    if !tls.enabled {
        return Ok(None);
    }
    let config = if tls.certificate == Path::new("") { self_signed(address)? } else { configured(tls)? };
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// Whether the server could start with these settings: what is in the files, too.
pub(crate) fn check(tls: &StreamTls) -> Result<(), TlsError> {
    acceptor(tls, IpAddr::from([127, 0, 0, 1])).map(drop)
}

fn configured(tls: &StreamTls) -> Result<ServerConfig, TlsError> {
    let read = |key: &'static str, path: &PathBuf| {
        fs::read(path).map_err(|source| TlsError::Read { key, path: path.clone(), source })
    };
    let chain: Vec<CertificateDer> = CertificateDer::pem_slice_iter(&read("tls_cert_file", &tls.certificate)?)
        .collect::<Result<_, _>>()
        .map_err(|_| TlsError::Certificate(tls.certificate.clone()))?;
    if chain.is_empty() {
        return Err(TlsError::Certificate(tls.certificate.clone()));
    }
    let key = PrivateKeyDer::from_pem_slice(&read("tls_key_file", &tls.key)?)
        .map_err(|source| TlsError::Key { path: tls.key.clone(), source })?;
    server_config(chain, key, |source| TlsError::Pair {
        certificate: tls.certificate.clone(),
        key: tls.key.clone(),
        source,
    })
}

fn self_signed(address: IpAddr) -> Result<ServerConfig, TlsError> {
    let names = [address.to_string(), "localhost".to_owned()];
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).map_err(TlsError::SelfSigned)?;
    let key = PrivateKeyDer::Pkcs8(signing_key.serialize_der().into());
    server_config(vec![cert.der().clone()], key, TlsError::Setup)
}

fn server_config(
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    unusable: impl FnOnce(rustls::Error) -> TlsError,
) -> Result<ServerConfig, TlsError> {
    let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    // Upgrades are HTTP/1.1's.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::chain;

    #[test]
    fn each_way_in_which_a_pair_is_bad_is_told_by_the_key_of_its_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = directory.path().join(name);
            fs::write(&path, text).unwrap();
            path
        };
        let pair = || generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let (one, other) = (pair(), pair());
        let certificate = file("certificate", &one.cert.pem());
        let key = file("key", &one.signing_key.serialize_pem());
        let foreign = file("foreign", &other.signing_key.serialize_pem());
        let (empty, missing) = (file("empty", ""), directory.path().join("missing"));
        let checked = |certificate: &PathBuf, key: &PathBuf| {
            let tls = StreamTls { enabled: true, certificate: certificate.clone(), key: key.clone() };
            check(&tls).map_err(|error| chain(&error))
        };
        assert_eq!(checked(&certificate, &key), Ok(()));
        assert_eq!(checked(&PathBuf::new(), &PathBuf::new()), Ok(()), "a pair of its own");
        let refused = |certificate: &PathBuf, key: &PathBuf, start: &str| {
            let error = checked(certificate, key).unwrap_err();
            assert!(error.starts_with(start), "{error} should start with {start}");
        };
        let at = |path: &Path| path.display().to_string();
        refused(&missing, &key, &format!("x509_key_pair_streaming.tls_cert_file: read {}: No such", at(&missing)));
        refused(
            &certificate,
            &missing,
            &format!("x509_key_pair_streaming.tls_key_file: read {}: No such", at(&missing)),
        );
        refused(&empty, &key, &format!("x509_key_pair_streaming.tls_cert_file: {} holds no", at(&empty)));
        refused(&key, &key, &format!("x509_key_pair_streaming.tls_cert_file: {} holds no", at(&key)));
        refused(&certificate, &empty, &format!("x509_key_pair_streaming.tls_key_file: {} holds no", at(&empty)));
        let pair = format!("x509_key_pair_streaming: {} and {} make no usable pair: ", at(&certificate), at(&foreign));
        refused(&certificate, &foreign, &pair);
        let off = StreamTls { enabled: false, certificate: missing.clone(), key: missing };
        assert!(acceptor(&off, IpAddr::from([127, 0, 0, 1])).unwrap().is_none(), "no file is read for nothing");
    }
}
