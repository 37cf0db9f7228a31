//! What is done for a task whose shim is gone: the shim's own `delete` command, and if that fails, the OCI runtime's.
//!
//! Invariant: a shim is asked about a bundle only if it was asked to make a task from it. Shims differ in what they say to
//! a bundle that they have never seen; that of containerd 1.6 fails.

use std::{fs, path::Path, process::Stdio, time::Duration};

use shim::launch::{Launch, LaunchError};
use tokio::process::Command;

use super::Bundle;
use crate::{Error, config::RuntimeOptions, world::Operation};

/// Says in a bundle that its task was asked for. Ours alone: neither shim nor runtime knows of it.
const ASKED: &str = "task.asked";

/// Where runc's shims keep the runtime's state unless their options say otherwise.
const DEFAULT_ROOT: &str = "/run/containerd/runc";

/// Notes in the bundle that a shim is about to be asked for its task.
pub(super) async fn note(bundle: &Path) -> Result<(), Error> {
    let path = bundle.join(ASKED);
    let write = move || fs::write(&path, "").map_err(|error| Error::failed(format!("write {}", path.display()), error));
    Operation::default().blocking(write).await
}

/// Cleans up what was made from the bundle. Errors say what neither the shim nor the runtime could.
pub(super) async fn run(launch: &Launch, bundle: &Bundle) -> Result<(), Error> {
    let asked = fs::exists(bundle.path.join(ASKED));
    if !asked.map_err(|error| Error::failed(format!("look into {}", bundle.path.display()), error))? {
        return Ok(());
    }
    let error = match launch.delete().await {
        // A shim that is not installed any more cannot keep its pods from being removed.
        Ok(_) | Err(LaunchError::Missing { .. }) => return Ok(()),
        Err(error) => Error::failed(format!("clean up after the shim of {}", bundle.id), error),
    };
    // A shim that died before it had heard of the task knows nothing to delete. The runtime does, and needs no shim.
    match &bundle.handler.options {
        RuntimeOptions::Runc(options) => {
            let binary = bundle.handler.oci_runtime().unwrap_or("runc");
            let root = if options.root.is_empty() { DEFAULT_ROOT } else { &options.root };
            let root = Path::new(root).join(&launch.namespace);
            let deleted = delete_by_runtime(binary, &root, bundle.id.as_str(), launch.deadline).await;
            deleted.map_err(|second| Error::plain(format!("{}; nor can the runtime: {second}", error.chain())))?;
            tracing::debug!(id = %bundle.id, error = error.chain(), "the runtime has cleaned up instead of the shim");
            Ok(())
        }
        RuntimeOptions::Generic(_) | RuntimeOptions::None => Err(error),
    }
}

/// `delete --force`, which is content with a container that does not exist.
async fn delete_by_runtime(binary: &str, root: &Path, id: &str, limit: Duration) -> Result<(), String> {
    let mut command = Command::new(binary);
    command.arg("--root").arg(root).args(["delete", "--force", id]);
    command.stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    let output = tokio::time::timeout(limit, command.output()).await;
    let output = output.map_err(|_| format!("{binary} delete was not done within {limit:?}"))?;
    let output = output.map_err(|error| format!("{binary}: {error}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{binary} delete: {}: {}", output.status, said.trim())),
    }
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt, path::PathBuf};

    use super::*;
    use crate::{
        Handler,
        config::{GenericOptions, RuncOptions},
        model::Id,
    };

    /// A bundle whose shim fails at everything. Shim and runtime write down how they were called.
    struct Bench {
        dir: tempfile::TempDir,
        bundle: Bundle,
    }

    impl Bench {
        fn new(options: impl FnOnce(String) -> RuntimeOptions, runtime: &str) -> Bench {
            let dir = tempfile::tempdir().unwrap();
            let script = |name: &str, text: &str| -> PathBuf {
                let path = dir.path().join(name);
                let calls = dir.path().join("calls");
                fs::write(&path, format!("#!/bin/sh\necho \"{name} $@\" >>'{}'\n{text}\n", calls.display())).unwrap();
                fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
                path
            };
            let shim = script("shim", "echo no container >&2; exit 1");
            let runtime = script("runtime", runtime);
            let handler = Handler {
                runtime_type: "io.containerd.runc.v2".into(),
                runtime_path: Some(shim),
                options: options(runtime.to_str().unwrap().to_owned()),
                ..Handler::default()
            };
            let path = dir.path().join("bundle");
            fs::create_dir(&path).unwrap();
            fs::write(path.join("config.json"), "{}").unwrap();
            Bench { bundle: Bundle { id: Id::random().unwrap(), path, handler }, dir }
        }

        fn runc(runtime: &str) -> Bench {
            let options = |binary_name| RuncOptions { binary_name, root: "/r".into(), ..RuncOptions::default() };
            Bench::new(|binary| RuntimeOptions::Runc(options(binary)), runtime)
        }

        async fn clean_up(&self) -> Result<(), String> {
            let launch = Launch {
                binary: self.bundle.handler.runtime_path.clone().unwrap(),
                namespace: "k8s.io".into(),
                id: self.bundle.id.to_string(),
                bundle: self.bundle.path.clone(),
                grpc_address: String::new(),
                ttrpc_address: String::new(),
                debug: false,
                options: None,
                deadline: Duration::from_secs(60),
            };
            run(&launch, &self.bundle).await.map_err(|error| error.chain())
        }

        fn calls(&self) -> Vec<String> {
            let text = fs::read_to_string(self.dir.path().join("calls")).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        }
    }

    #[tokio::test]
    async fn a_shim_is_not_asked_about_a_task_that_it_was_never_asked_for() {
        let bench = Bench::runc("exit 0");
        bench.clean_up().await.unwrap();
        assert_eq!(bench.calls(), Vec::<String>::new());
    }

    #[tokio::test]
    async fn where_the_shim_fails_the_runtime_is_asked_itself() {
        let bench = Bench::runc("exit 0");
        note(&bench.bundle.path).await.unwrap();
        bench.clean_up().await.unwrap();
        let calls = bench.calls();
        assert!(matches!(&calls[..], [first, _] if first.ends_with(" delete")), "{calls:?}");
        assert_eq!(calls[1], format!("runtime --root /r/k8s.io delete --force {}", bench.bundle.id));
    }

    #[tokio::test]
    async fn what_neither_can_is_an_error_that_tells_both_reasons() {
        let bench = Bench::runc("echo device busy >&2; exit 3");
        note(&bench.bundle.path).await.unwrap();
        let error = bench.clean_up().await.unwrap_err();
        assert!(error.contains("no container") && error.contains("device busy"), "{error}");
    }

    #[tokio::test]
    async fn another_runtimes_shim_has_the_last_word() {
        let bench = Bench::new(|_| RuntimeOptions::Generic(GenericOptions::default()), "exit 0");
        note(&bench.bundle.path).await.unwrap();
        let error = bench.clean_up().await.unwrap_err();
        assert!(error.contains("no container"), "{error}");
        assert_eq!(bench.calls().len(), 1);
    }
}
