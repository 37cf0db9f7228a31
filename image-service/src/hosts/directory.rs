//! Finds a registry's directory below the configured roots and reads what it says.
//!
//! Read afresh at every call, so an edit counts from the next pull on. The functions block on the file system.
//! A broken `hosts.toml` is logged and passed over, so that one typing error does not stop every pull of a registry.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};

use super::{ClientCertificate, Host, Tls, parse_hosts_file, split_port};

/// The configuration of a registry cannot be read at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot read the registry configuration {}", path.display())]
pub struct LookupError {
    pub path: PathBuf,
    #[source]
    pub source: io::Error,
}

/// The hosts that serve `registry`, in the order in which they are to be tried.
pub fn lookup(roots: &[PathBuf], registry: &str) -> Result<Vec<Host>, LookupError> {
    let Some(directory) = find_directory(roots, registry)? else {
        return Ok(vec![Host::upstream(registry)]);
    };
    let file = directory.join("hosts.toml");
    match std::fs::read_to_string(&file) {
        Ok(text) if text.trim().is_empty() => {}
        Ok(text) => match parse_hosts_file(&text, &directory, registry) {
            Ok(hosts) => return Ok(hosts),
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::error!(path = %file.display(), error, "invalid hosts.toml is passed over");
            }
        },
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => {
            let error: &dyn std::error::Error = &error;
            tracing::error!(path = %file.display(), error, "unreadable hosts.toml is passed over");
        }
    }
    let mut upstream = Host::upstream(registry);
    let Tls { ca, client, .. } = certificates_in(&directory)?;
    upstream.tls.ca = ca;
    upstream.tls.client = client;
    Ok(vec![upstream])
}

/// The first existing candidate of the first root that has one.
fn find_directory(roots: &[PathBuf], registry: &str) -> Result<Option<PathBuf>, LookupError> {
    for root in roots {
        for name in candidates(registry) {
            let path = root.join(name);
            match std::fs::metadata(&path) {
                Ok(_) => return Ok(Some(path)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(LookupError { path, source }),
            }
        }
    }
    Ok(None)
}

/// Names of a registry's directory. The form with underscores exists because some file systems forbid colons.
fn candidates(registry: &str) -> Vec<String> {
    let mut names = Vec::with_capacity(3);
    if let (host, Some(port)) = split_port(registry) {
        names.push(format!("{host}_{port}_"));
    }
    names.push(registry.to_owned());
    names.push("_default".to_owned());
    names
}

/// Docker's way of configuring certificates: `*.crt` are authorities, `*.cert` with `*.key` are client certificates.
fn certificates_in(directory: &Path) -> Result<Tls, LookupError> {
    let failed = |source| LookupError { path: directory.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.is_file() {
            files.push(path);
        }
    }
    files.sort();
    let mut tls = Tls::default();
    for path in &files {
        match path.extension().and_then(OsStr::to_str) {
            Some("crt") => tls.ca.push(path.clone()),
            Some("cert") => {
                let key = path.with_extension("key");
                let key = files.contains(&key).then_some(key);
                tls.client.push(ClientCertificate { certificate: path.clone(), key });
            }
            _ => {}
        }
    }
    Ok(tls)
}
