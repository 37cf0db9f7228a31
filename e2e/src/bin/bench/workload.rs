//! What is run: the pods and containers of the benchmark, and the directory for their logs. Removed when dropped.

use std::{
    collections::HashMap,
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
    sync::atomic::{AtomicU64, Ordering},
};

use api::cri;
use tempfile::TempDir;
use windlass_e2e::client;

use crate::{endpoint::Endpoint, error::BenchError};

/// The label by which the pods of a run are found again.
pub(crate) const LABEL: &str = "windlass.bench";

/// A line of the log that is written, with its newline: small enough never to be split, and usual for a log.
pub(crate) const LINE: usize = 128;

/// Runs until SIGTERM. The shell is pid 1, which has no default action for it, so it needs a trap; and `wait` is what a
/// signal interrupts.
const WAITS: &str = "trap 'exit 0' TERM; sleep 86400 & wait";

#[derive(Debug)]
pub(crate) struct Workload {
    /// Names the run.
    pub(crate) run: String,
    pub(crate) image: String,
    dir: TempDir,
    payload: u64,
    counter: AtomicU64,
}

impl Workload {
    pub(crate) fn new(image: String, log_mib: u64) -> Result<Workload, BenchError> {
        let dir = tempfile::Builder::new().prefix("bench-").tempdir();
        let dir = dir.map_err(|error| BenchError::failed("making a directory for logs", error))?;
        let run = format!("bench-{}", std::process::id());
        Ok(Workload { run, image, dir, payload: log_mib << 20, counter: AtomicU64::new(0) })
    }

    /// A pod that no other has been like, with a log directory of its own.
    pub(crate) fn pod(&self, endpoint: &Endpoint) -> Result<cri::PodSandboxConfig, BenchError> {
        let name = format!("{}-{}", self.run, self.counter.fetch_add(1, Ordering::Relaxed));
        let logs = self.dir.path().join(&name);
        std::fs::create_dir(&logs).map_err(|error| BenchError::failed(logs.display(), error))?;
        let cgroup_parent = endpoint.cpu.as_ref().map(|group| format!("{}/pods", group.path)).unwrap_or_default();
        Ok(cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                uid: name.clone(),
                namespace: "bench".into(),
                attempt: 0,
                name: name.clone(),
            }),
            hostname: name,
            log_directory: logs.display().to_string(),
            labels: HashMap::from([(LABEL.to_owned(), self.run.clone())]),
            linux: Some(cri::LinuxPodSandboxConfig { cgroup_parent, ..cri::LinuxPodSandboxConfig::default() }),
            ..cri::PodSandboxConfig::default()
        })
    }

    /// A container that does nothing until it is asked to end.
    pub(crate) fn waiting(&self) -> cri::ContainerConfig {
        client::container("waits", &self.image, &["/bin/sh", "-c", WAITS])
    }

    /// A container that writes the payload and `END` to its log once a line is written to the pipe `go` in `directory`,
    /// which is a host's directory with that pipe and a file `payload`.
    pub(crate) fn writing(&self, directory: &str) -> cri::ContainerConfig {
        let script = "read line </bench/go; cat /bench/payload; echo END";
        let mount = cri::Mount {
            container_path: "/bench".into(),
            host_path: directory.into(),
            readonly: true,
            ..cri::Mount::default()
        };
        let config = client::container("writes", &self.image, &["/bin/sh", "-c", script]);
        cri::ContainerConfig { mounts: vec![mount], ..config }
    }

    /// The file with the bytes of the log; made when it is first asked for.
    pub(crate) fn payload(&self) -> Result<PathBuf, BenchError> {
        let path = self.dir.path().join("payload");
        if path.exists() {
            return Ok(path);
        }
        let failed = |error| BenchError::failed(path.display(), error);
        let mut line = vec![b'x'; LINE - 1];
        line.push(b'\n');
        let mut file = BufWriter::new(File::create(&path).map_err(failed)?);
        for _ in 0..self.payload_lines() {
            file.write_all(&line).map_err(failed)?;
        }
        file.flush().map_err(failed)?;
        Ok(path)
    }

    pub(crate) fn payload_lines(&self) -> u64 {
        self.payload / LINE as u64
    }

    pub(crate) fn payload_mib(&self) -> f64 {
        self.payload as f64 / f64::from(1 << 20)
    }
}
