//! Memory of a daemon and its shims, as the kernel sums it up in `smaps_rollup`, and which processes they are.

use std::{fs, os::unix::net::UnixStream, path::Path};

use crate::{endpoint::Endpoint, error::BenchError};

const KIB_IN_MIB: f64 = 1024.0;

/// In MiB. `pss` shares what several processes have mapped, so it can be summed up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Memory {
    pub(crate) rss: f64,
    pub(crate) pss: f64,
}

/// The process that made the socket: the kernel keeps its id for those who connect.
pub(crate) fn peer(socket: &Path) -> Result<u32, BenchError> {
    let failed = |error: std::io::Error| BenchError::failed(format!("asking who serves {}", socket.display()), error);
    let stream = UnixStream::connect(socket).map_err(failed)?;
    let peer = rustix::net::sockopt::socket_peercred(&stream).map_err(|error| failed(error.into()))?;
    Ok(peer.pid.as_raw_nonzero().get().unsigned_abs())
}

pub(crate) fn of(pid: u32) -> Result<Memory, BenchError> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = fs::read_to_string(&path).map_err(|error| BenchError::failed(&path, error))?;
    parse(&text).ok_or_else(|| BenchError::failed(path, "no Rss and Pss"))
}

/// Watches how far a process's resident memory rises.
#[derive(Debug)]
pub(crate) struct Peak {
    pid: u32,
    before: f64,
}

impl Peak {
    /// Forgets the peak so far: the kernel sets it to what is resident now (proc_pid_clear_refs(5), value 5).
    pub(crate) fn start(pid: u32) -> Result<Peak, BenchError> {
        let path = format!("/proc/{pid}/clear_refs");
        fs::write(&path, "5").map_err(|error| BenchError::failed(&path, error))?;
        Ok(Peak { pid, before: status(pid, "VmRSS:")? })
    }

    /// How many MiB the highest was above the start.
    pub(crate) fn growth(&self) -> Result<f64, BenchError> {
        Ok((status(self.pid, "VmHWM:")? - self.before).max(0.0))
    }
}

/// A size in MiB of `/proc/<pid>/status`.
fn status(pid: u32, name: &str) -> Result<f64, BenchError> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).map_err(|error| BenchError::failed(&path, error))?;
    field(&text, name).ok_or_else(|| BenchError::failed(path, format!("no {name}")))
}

/// The shims of an endpoint: they are told its address, so that they can say what happens.
pub(crate) fn shims(endpoint: &Endpoint) -> Result<Vec<u32>, BenchError> {
    let address = endpoint.socket.display().to_string();
    let processes = fs::read_dir("/proc").map_err(|error| BenchError::failed("/proc", error))?;
    let pids = processes.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
    let shim_of = |pid: &u32| {
        // A process may end while it is looked at; then it has no command line.
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        is_shim(&String::from_utf8_lossy(&line), &address)
    };
    Ok(pids.filter(|pid| *pid != endpoint.daemon).filter(shim_of).collect())
}

fn is_shim(line: &str, address: &str) -> bool {
    let mut words = line.split('\0');
    let program = words.next().unwrap_or_default();
    let name = program.rsplit_once('/').map_or(program, |(_, name)| name);
    name.starts_with("containerd-shim") && words.any(|word| word.strip_suffix(".ttrpc").unwrap_or(word) == address)
}

fn parse(text: &str) -> Option<Memory> {
    Some(Memory { rss: field(text, "Rss:")?, pss: field(text, "Pss:")? })
}

fn field(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.parse::<f64>().ok().map(|kib| kib / KIB_IN_MIB)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_gives_resident_and_proportional_size() {
        let text = "5600-7fff ---p 00 00:00 0 [rollup]\nRss:    2048 kB\nPss:   512 kB\nPss_Dirty: 4 kB\n";
        assert_eq!(parse(text), Some(Memory { rss: 2.0, pss: 0.5 }));
        assert_eq!(parse(""), None);
    }

    #[test]
    fn a_shim_is_known_by_its_name_and_the_address_it_was_told() {
        let line = "/opt/containerd-shim-runc-v2\0-namespace\0k8s.io\0-address\0/run/a.sock\0";
        assert!(is_shim(line, "/run/a.sock"));
        assert!(!is_shim(line, "/run/b.sock"));
        assert!(!is_shim("/bin/sh\0-address\0/run/a.sock\0", "/run/a.sock"));
    }
}
