//! The stdio of a shim's processes, in the one way or the other: who calls does not see which.

use std::path::PathBuf;

use super::{AttachStream, AttachTo, Extension, TaskClient, fifos::Fifos};
use crate::{
    bootstrap::Bootstrap,
    proto::{extension as wire, feature::CRI_LOG, task},
    ttrpc::{Code, Status},
};

/// The stdio of a container's own process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskStdio {
    pub id: String,
    pub bundle: PathBuf,
    pub terminal: bool,
    pub stdin: bool,
    /// Stdin ends with the first attach that had it.
    pub stdin_once: bool,
    /// The CRI log; without one output reaches only who is attached.
    pub log: Option<PathBuf>,
    /// Bytes of content in one record of the log; 0 never splits.
    pub max_line: usize,
    /// The container's cgroup, below the root of the hierarchies.
    pub cgroup: PathBuf,
}

/// The stdio of an exec.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecStdio {
    pub id: String,
    pub exec_id: String,
    pub terminal: bool,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    /// Whether output that others than the exec's process hold open is waited for in silence too. A foreign shim does so
    /// always, and ours of earlier versions never.
    pub hold: bool,
}

/// What a shim is told of a process's stdio; empty is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StdioUrls {
    pub stdin: String,
    pub stdout: String,
    pub stderr: String,
}

/// How the processes of one shim get their stdio.
#[derive(Clone)]
pub enum Streams {
    /// Our shim writes the logs itself and serves attach.
    Own(Extension),
    /// Any other is given FIFOs.
    Fifos(Fifos),
}

impl Streams {
    /// Asks the shim which way it is. Only its own answer counts: a path or a name may belong to any shim. `say` is told of
    /// logs that cannot be written.
    pub async fn of_shim(tasks: &TaskClient, bootstrap: &Bootstrap, say: fn(&str)) -> Result<Self, Status> {
        let extension = Extension::of_shim(tasks.connection().clone(), bootstrap)?;
        match extension.info().await {
            Ok(info) if info.features.iter().any(|feature| feature == CRI_LOG) => Ok(Self::Own(extension)),
            Ok(_) => Ok(Self::Fifos(Fifos::new(tasks.clone(), say))),
            // Go's server says the first of a service that it does not have, those built on ttrpc-rust the others.
            Err(status) if matches!(status.code, Code::Unimplemented | Code::InvalidArgument | Code::NotFound) => {
                Ok(Self::Fifos(Fifos::new(tasks.clone(), say)))
            }
            Err(status) => Err(status),
        }
    }

    /// Makes what a task's stdio needs before the task is made.
    pub async fn prepare(&self, stdio: TaskStdio) -> Result<StdioUrls, Status> {
        match self {
            Self::Own(_) => Ok(own_urls(&stdio)),
            Self::Fifos(fifos) => fifos.prepare(stdio).await,
        }
    }

    /// Goes on with the stdio of a task that an earlier connection has made. `started` says that its creation had ended.
    pub async fn resume(&self, stdio: TaskStdio, started: bool) -> Result<(), Status> {
        match self {
            Self::Own(_) => Ok(()),
            Self::Fifos(fifos) => fifos.resume(stdio, started).await,
        }
    }

    /// Makes what an exec's stdio needs before the exec is made.
    pub async fn prepare_exec(&self, stdio: ExecStdio) -> Result<StdioUrls, Status> {
        match self {
            Self::Own(_) => {
                let url = |wanted: bool, url: &str| if wanted { url.to_owned() } else { String::new() };
                // A shim of an earlier version does not look at what it does not know.
                let output = if stdio.hold { "attach://?hold=1" } else { "attach://" };
                let stderr = url(stdio.stderr && !stdio.terminal, output);
                Ok(StdioUrls { stdin: url(stdio.stdin, "attach://"), stdout: url(stdio.stdout, output), stderr })
            }
            Self::Fifos(fifos) => fifos.prepare_exec(stdio).await,
        }
    }

    /// Joins a process's stdio. An exec is joined once, before it starts.
    pub async fn attach(&self, to: AttachTo) -> Result<AttachStream, Status> {
        match self {
            Self::Own(extension) => extension.attach(to).await,
            Self::Fifos(fifos) => fifos.attach(&to).await,
        }
    }

    /// Waits for the process's end; resolves at once when it already ended.
    pub async fn wait(&self, id: &str, exec_id: &str) -> Result<wire::WaitResponse, Status> {
        match self {
            Self::Own(extension) => extension.wait(id, exec_id).await,
            Self::Fifos(fifos) => fifos.wait(id, exec_id).await,
        }
    }

    /// Opens the container's log anew, after its file was renamed.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Status> {
        match self {
            Self::Own(extension) => extension.reopen_log(id).await,
            Self::Fifos(fifos) => fifos.reopen_log(id).await,
        }
    }

    /// Kills an exec and all that it has started.
    pub async fn kill_exec(&self, tasks: &TaskClient, id: &str, exec_id: &str, pid: u32) -> Result<(), Status> {
        if let Self::Fifos(fifos) = self {
            // Stock shims signal the process alone.
            fifos.kill_tree(id, pid).await;
        }
        let request = task::KillRequest { id: id.into(), exec_id: exec_id.into(), signal: 9, all: true };
        match tasks.kill(&request).await {
            Err(status) if status.code == Code::NotFound => Ok(()),
            killed => killed,
        }
    }

    /// The task is deleted, or was never made.
    pub async fn forget(&self, id: &str) {
        if let Self::Fifos(fifos) = self {
            fifos.forget(id).await;
        }
    }

    /// The exec is deleted, or was never made.
    pub fn forget_exec(&self, id: &str, exec_id: &str) {
        if let Self::Fifos(fifos) = self {
            fifos.forget_exec(id, exec_id);
        }
    }
}

/// `cri://<path>?max_line=<n>`: the shim writes the log, so that it goes on without the daemon.
fn own_urls(stdio: &TaskStdio) -> StdioUrls {
    let mut output = String::from("cri://");
    let path = stdio.log.as_deref().map(|path| path.as_os_str().as_encoded_bytes()).unwrap_or_default();
    for byte in path {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'.' | b'_' | b'~' => {
                output.push(char::from(*byte));
            }
            other => output.push_str(&format!("%{other:02X}")),
        }
    }
    output.push_str(&format!("?max_line={}", stdio.max_line));
    let once = u8::from(stdio.stdin_once);
    StdioUrls {
        stdin: if stdio.stdin { format!("attach://?once={once}") } else { String::new() },
        // A terminal has one stream.
        stderr: if stdio.terminal { String::new() } else { output.clone() },
        stdout: output,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_path_is_escaped_in_its_url_and_a_terminal_has_one_stream() {
        let stdio = TaskStdio {
            log: Some("/var/log/pods/a b?/0.log".into()),
            max_line: 16384,
            stdin: true,
            ..TaskStdio::default()
        };
        let output = "cri:///var/log/pods/a%20b%3F/0.log?max_line=16384";
        let both = StdioUrls { stdin: "attach://?once=0".into(), stdout: output.into(), stderr: output.into() };
        assert_eq!(own_urls(&stdio), both);
        let terminal = TaskStdio { terminal: true, stdin_once: true, ..stdio };
        assert_eq!(own_urls(&terminal), StdioUrls { stdin: "attach://?once=1".into(), stderr: String::new(), ..both });
        assert_eq!(own_urls(&TaskStdio { max_line: 1, ..TaskStdio::default() }).stdout, "cri://?max_line=1");
    }
}
