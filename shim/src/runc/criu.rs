//! `checkpoint` and `restore`: the runtime's two verbs that run CRIU.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::proto::runc::CheckpointOptions;

use super::{ChildStdio, Output, Runc, RuncError};

/// Memory is written to disk: gigabytes of it on a slow one take minutes.
const DEADLINE: Duration = Duration::from_secs(30 * 60);

/// A failure of CRIU, with the reason from its own log.
#[derive(Debug, thiserror::Error)]
#[error("{runtime}; CRIU: {reason}")]
pub(crate) struct CriuError {
    pub(crate) runtime: RuncError,
    pub(crate) reason: String,
}

pub(crate) struct CheckpointCall<'a> {
    pub(crate) id: &'a str,
    pub(crate) image: &'a Path,
    pub(crate) work: &'a Path,
    pub(crate) options: &'a CheckpointOptions,
}

pub(crate) struct RestoreCall<'a> {
    pub(crate) id: &'a str,
    pub(crate) bundle: &'a Path,
    pub(crate) image: &'a Path,
    pub(crate) work: &'a Path,
    pub(crate) pid_file: &'a Path,
    pub(crate) console_socket: Option<&'a Path>,
}

impl Runc {
    pub(crate) async fn checkpoint(&self, call: CheckpointCall<'_>) -> Result<(), RuncError> {
        let mut command = Command::new(&self.binary);
        self.global(&mut command);
        command.arg("checkpoint").arg("--image-path").arg(call.image).arg("--work-path").arg(call.work);
        let options = call.options;
        if !options.parent_path.is_empty() {
            command.arg("--parent-path").arg(&options.parent_path);
        }
        let flags = [
            (!options.exit, "--leave-running"),
            (options.open_tcp, "--tcp-established"),
            (options.external_unix_sockets, "--ext-unix-sk"),
            (options.terminal, "--shell-job"),
            (options.file_locks, "--file-locks"),
        ];
        command.args(flags.iter().filter(|(set, _)| *set).map(|(_, flag)| flag));
        for namespace in &options.empty_namespaces {
            command.arg("--empty-ns").arg(namespace);
        }
        if !options.cgroups_mode.is_empty() {
            command.arg("--manage-cgroups-mode").arg(&options.cgroups_mode);
        }
        command.arg(call.id);
        self.run("checkpoint", call.id, command, Output::Own(None), DEADLINE).await
    }

    /// Leaves the restored process running, as a child of whoever adopts this process's orphans.
    pub(crate) async fn restore(&self, call: RestoreCall<'_>, stdio: ChildStdio) -> Result<(), RuncError> {
        let mut command = Command::new(&self.binary);
        self.global(&mut command);
        command.args(["restore", "--detach", "--no-subreaper"]);
        command.arg("--image-path").arg(call.image).arg("--work-path").arg(call.work);
        command.arg("--bundle").arg(call.bundle).arg("--pid-file").arg(call.pid_file);
        if let Some(socket) = call.console_socket {
            command.arg("--console-socket").arg(socket);
        }
        command.arg(call.id);
        self.run("restore", call.id, command, Output::Container(stdio), DEADLINE).await
    }
}
