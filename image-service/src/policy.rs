//! Whether an image may be pulled at all: programs of the node's owner are asked, as containerd asks its image verifiers.
//!
//! ```text
//! <bin_dir>/<program> -name <reference> -digest <digest> -stdin-media-type application/vnd.oci.descriptor.v1+json
//!     stdin: the descriptor as JSON     stdout: the reason     stderr: goes to the debug log
//!     exit code 0: it may     another: it may not     a signal, a deadline: the pull fails
//! ```
//!
//! All programs must agree; they run one after the other, in the order of their names, after the reference was resolved and
//! before anything is fetched. Facts: containerd's `docs/image-verification.md`.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout_at};

use crate::registry::Descriptor;
use crate::registry::transport::printable_up_to;

/// What of each output counts.
const MAX_OUTPUT: u64 = 32 << 10;
const MAX_REASON: usize = 4 << 10;
const STDIN_MEDIA_TYPE: &str = "application/vnd.oci.descriptor.v1+json";
/// A program that is being replaced is busy for as long as the copy takes.
const BUSY_RETRY: Duration = Duration::from_millis(50);

/// Who is asked, and how long is waited.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyConfig {
    /// All programs of this directory are asked. Without the directory every image may be pulled.
    pub bin_dir: PathBuf,
    /// How many are asked at most; `None` is all. The rest is passed over, with a warning.
    pub max_verifiers: Option<usize>,
    /// More than zero.
    pub per_verifier_timeout: Duration,
}

impl Default for PolicyConfig {
    fn default() -> PolicyConfig {
        PolicyConfig {
            bin_dir: "/opt/containerd/image-verifier/bin".into(),
            max_verifiers: Some(10),
            per_verifier_timeout: Duration::from_secs(10),
        }
    }
}

/// Why an image may not be pulled.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    #[error("image verifier {verifier} rejected {digest} (exit code {code}){}", because(reason))]
    Rejected { verifier: String, digest: String, code: i32, reason: String },
    /// No verdict is no permission.
    #[error("image verifier {verifier} gave no verdict on {digest}: {problem}")]
    NoVerdict { verifier: String, digest: String, problem: String },
    #[error("cannot tell which image verifiers there are in {}", path.display())]
    Directory {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

/// Asks every verifier about the image `name`, which is `descriptor`. Dropping the future kills the one that runs.
pub(crate) async fn verify(config: &PolicyConfig, name: &str, descriptor: &Descriptor) -> Result<(), PolicyError> {
    let verifiers = verifiers(&config.bin_dir).await?;
    let most = config.max_verifiers.unwrap_or(verifiers.len());
    if verifiers.len() > most {
        tracing::warn!(
            directory = %config.bin_dir.display(),
            found = verifiers.len(),
            most,
            "image verifiers are passed over, as there are more than max_verifiers"
        );
    }
    for path in verifiers.iter().take(most) {
        let verifier = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let digest = descriptor.digest.to_string();
        match ask(path, name, descriptor, config.per_verifier_timeout).await {
            Ok(Verdict { code: 0, reason }) => tracing::debug!(image = name, verifier, reason, "image verified"),
            Ok(Verdict { code, reason }) => return Err(PolicyError::Rejected { verifier, digest, code, reason }),
            Err(problem) => return Err(PolicyError::NoVerdict { verifier, digest, problem }),
        }
    }
    Ok(())
}

/// Everything in the directory, sorted: what cannot be run is no verdict rather than no verifier.
async fn verifiers(directory: &Path) -> Result<Vec<PathBuf>, PolicyError> {
    let path = directory.to_owned();
    let listed = tokio::task::spawn_blocking(move || {
        let mut found = match std::fs::read_dir(&path) {
            Ok(entries) => entries.map(|entry| entry.map(|entry| entry.path())).collect::<io::Result<Vec<_>>>()?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error),
        };
        found.sort();
        Ok(found)
    });
    let failed = |source| PolicyError::Directory { path: directory.to_owned(), source };
    listed.await.map_err(|error| failed(io::Error::other(error)))?.map_err(failed)
}

struct Verdict {
    code: i32,
    reason: String,
}

/// Runs one verifier. The error tells why there is no verdict.
async fn ask(path: &Path, name: &str, descriptor: &Descriptor, limit: Duration) -> Result<Verdict, String> {
    let deadline = Instant::now() + limit;
    let late = || format!("it took longer than {} s", limit.as_secs_f64());
    let mut descriptor_json = serde_json::to_vec(descriptor).map_err(|error| error.to_string())?;
    descriptor_json.push(b'\n');
    let mut group = Group::start(path, name, descriptor, deadline).await.map_err(|error| error.to_string())?;
    let (input, stdout, stderr) = (group.child.stdin.take(), group.child.stdout.take(), group.child.stderr.take());
    let write = async {
        let Some(mut input) = input else { return };
        // A verifier need not read what it does not use.
        if let Err(error) = input.write_all(&descriptor_json).await {
            tracing::debug!(verifier = %path.display(), %error, "image verifier did not read the whole descriptor");
        }
    };
    let talk = async {
        let ((), stdout, stderr) = tokio::join!(write, read(stdout), read(stderr));
        (stdout, stderr)
    };
    let (outputs, status) = {
        let talked = timeout_at(deadline, talk).await;
        // What it left running may hold its outputs open, after it has given its verdict.
        let status = match &talked {
            Ok(_) => timeout_at(deadline, group.child.wait()).await.map_err(|_| late())?,
            Err(_) => group.child.try_wait().transpose().ok_or_else(late)?,
        };
        (talked.unwrap_or_default(), status.map_err(|error| format!("it cannot be waited for: {error}"))?)
    };
    for line in String::from_utf8_lossy(&outputs.1.bytes).lines() {
        tracing::debug!(verifier = %path.display(), line = printable_up_to(line, MAX_REASON), "image verifier says");
    }
    let mut reason = printable_up_to(&String::from_utf8_lossy(&outputs.0.bytes), MAX_REASON);
    if outputs.0.is_cut {
        reason.push_str(" (stdout truncated)");
    }
    let code = code_of(status)?;
    Ok(Verdict { code, reason })
}

fn code_of(status: ExitStatus) -> Result<i32, String> {
    status.code().ok_or_else(|| format!("it ended with {status}"))
}

#[derive(Default)]
struct Output {
    bytes: Vec<u8>,
    is_cut: bool,
}

/// Keeps the beginning and reads on, so that the writer does not stop.
async fn read(from: Option<impl AsyncRead + Unpin>) -> Output {
    let mut output = Output::default();
    let Some(mut from) = from else { return output };
    // An output that cannot be read is one that ends; the verdict is the exit code.
    let _ = (&mut from).take(MAX_OUTPUT).read_to_end(&mut output.bytes).await;
    output.is_cut = tokio::io::copy(&mut from, &mut tokio::io::sink()).await.is_ok_and(|more| more > 0);
    output
}

/// A running verifier, leader of its process group, which is killed when this is dropped.
struct Group {
    child: Child,
    leader: Option<Pid>,
}

impl Group {
    async fn start(path: &Path, name: &str, descriptor: &Descriptor, deadline: Instant) -> io::Result<Group> {
        let mut command = Command::new(path);
        command
            .args(["-name", name, "-digest", &descriptor.digest.to_string(), "-stdin-media-type", STDIN_MEDIA_TYPE])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .current_dir("/")
            .process_group(0)
            // Reaps the leader when the future is dropped; its group is killed by ours.
            .kill_on_drop(true);
        loop {
            match command.spawn() {
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy && Instant::now() < deadline => {
                    sleep(BUSY_RETRY).await;
                }
                Err(error) => return Err(io::Error::other(format!("it cannot be run: {error}"))),
                Ok(child) => {
                    let leader = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
                    return Ok(Group { child, leader });
                }
            }
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A group keeps its number as long as anybody is in it, and while its leader was not waited for. When the leader
        // was, and nobody is left, the number could be another's only after all process ids were used up in between.
        if let Some(leader) = self.leader
            && let Err(error) = kill_process_group(leader, Signal::KILL)
            && error != rustix::io::Errno::SRCH
        {
            tracing::warn!(pid = leader.as_raw_nonzero().get(), %error, "cannot kill an image verifier");
        }
    }
}

#[cfg(test)]
mod tests;
