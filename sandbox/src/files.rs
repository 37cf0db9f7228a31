//! The files of a pod that its containers see: hostname, hosts and resolv.conf.
//!
//! They are outputs, rewritten whole and never read back. All functions block: call them on the blocking pool.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::Path,
};

use crate::{error::Error, model::Dns, oci::SandboxFiles};

/// Writes hostname, hosts and resolv.conf of a pod. An empty `hostname` is that of the host.
pub fn write(files: &SandboxFiles, hostname: &str, host_hostname: &str, dns: Option<&Dns>) -> Result<(), Error> {
    let name = if hostname.is_empty() { host_hostname } else { hostname };
    publish(&files.hostname, format!("{name}\n").as_bytes())?;
    publish(&files.hosts, &copy_of(Path::new("/etc/hosts"))?)?;
    let resolv = match dns {
        Some(dns) => resolv_conf(dns)?.into_bytes(),
        None => copy_of(Path::new("/etc/resolv.conf"))?,
    };
    publish(&files.resolv_conf, &resolv)
}

/// The text of a resolv.conf; empty for an empty `dns`.
pub fn resolv_conf(dns: &Dns) -> Result<String, Error> {
    let words = dns.servers.iter().chain(&dns.searches).chain(&dns.options);
    // A line break would let one field add lines of another kind.
    if let Some(bad) = words.into_iter().find(|word| word.contains(|c: char| c.is_control())) {
        return Err(Error::Invalid(format!("dns_config: {bad:?} has a control character")));
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text += &format!("search {}\n", dns.searches.join(" "));
    }
    for server in &dns.servers {
        text += &format!("nameserver {server}\n");
    }
    if !dns.options.is_empty() {
        text += &format!("options {}\n", dns.options.join(" "));
    }
    Ok(text)
}

/// The host's file; a host without it is one with an empty file.
fn copy_of(path: &Path) -> Result<Vec<u8>, Error> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|error| Error::failed(format!("read {}", path.display()), error)),
    }
}

/// Writes a file whole under its name or not at all. No fsync: after a power loss the pod is gone as well.
fn publish(path: &Path, content: &[u8]) -> Result<(), Error> {
    let failed = |error: io::Error| Error::failed(format!("write {}", path.display()), error);
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(failed)?;
    }
    let partial = path.with_added_extension("partial");
    // Removed first, so that a leftover, whatever it is, is neither followed nor extended.
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut file: File = OpenOptions::new().write(true).create_new(true).mode(0o644).open(&partial).map_err(failed)?;
    file.write_all(content).map_err(failed)?;
    // The mode must not depend on the daemon's umask: every user of the containers reads these.
    file.set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644)).map_err(failed)?;
    fs::rename(&partial, path).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns() -> Dns {
        Dns {
            servers: vec!["10.96.0.10".into(), "1.1.1.1".into()],
            searches: vec!["default.svc.cluster.local".into(), "svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        }
    }

    fn files(dir: &Path) -> SandboxFiles {
        SandboxFiles {
            hostname: dir.join("hostname"),
            hosts: dir.join("hosts"),
            resolv_conf: dir.join("resolv.conf"),
            shm: dir.join("shm"),
        }
    }

    #[test]
    fn resolv_conf_has_one_line_a_server_and_is_empty_for_an_empty_config() {
        assert_eq!(
            resolv_conf(&dns()).unwrap(),
            "search default.svc.cluster.local svc.cluster.local\nnameserver 10.96.0.10\nnameserver 1.1.1.1\noptions ndots:5\n"
        );
        assert_eq!(resolv_conf(&Dns::default()).unwrap(), "");
    }

    #[test]
    fn a_line_break_in_a_dns_field_is_refused() {
        let dns = Dns { servers: vec!["1.1.1.1\noptions debug".into()], ..Dns::default() };
        assert!(matches!(resolv_conf(&dns), Err(Error::Invalid(_))));
    }

    #[test]
    fn files_are_written_whole_again_on_every_call() {
        let dir = tempfile::tempdir().unwrap();
        let files = files(dir.path());
        write(&files, "web-0", "node", Some(&dns())).unwrap();
        write(&files, "", "node", None).unwrap();
        assert_eq!(fs::read_to_string(&files.hostname).unwrap(), "node\n");
        assert_eq!(fs::read(&files.hosts).unwrap(), fs::read("/etc/hosts").unwrap_or_default());
        assert_eq!(fs::read(&files.resolv_conf).unwrap(), fs::read("/etc/resolv.conf").unwrap_or_default());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 3, "no partial file is left");
    }
}
