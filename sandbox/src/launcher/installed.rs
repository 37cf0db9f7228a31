//! Whether what a handler names is on this host: its shim, the OCI runtime that the shim runs, and systemd if that is to
//! make the cgroups. Looks at files only, each time anew, because they come and go with packages.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

use rustix::fs::{Access, access};

use crate::{Error, Handler, RuntimeOptions};

/// Why no pod of this handler can be started, in words that name the key of the configuration to change. Blocks.
pub(super) fn check(handler: &Handler, search: &[PathBuf]) -> Result<(), String> {
    let shim = shim(handler, search)?;
    let key = if handler.runtime_path.is_some() { "runtime_path" } else { "runtime_type" };
    executable(&shim).map_err(|why| format!("{key}: shim {} {why}", shim.display()))?;
    if let Some(runtime) = handler.oci_runtime().filter(|_| runs_it(handler, &shim)) {
        in_path(runtime, &env::var_os("PATH").unwrap_or_default())
            .map_err(|why| format!("options.BinaryName: OCI runtime {runtime:?} {why}"))?;
    }
    match &handler.options {
        // The directory that sd_booted(3) looks for, as runc does.
        RuntimeOptions::Runc(options) if options.systemd_cgroup && !Path::new("/run/systemd/system").is_dir() => {
            Err("options.SystemdCgroup: systemd does not run on this host; set SystemdCgroup = false, and the kubelet \
                 takes the cgroupfs driver"
                .into())
        }
        RuntimeOptions::Runc(_) | RuntimeOptions::Generic(_) | RuntimeOptions::None => Ok(()),
    }
}

/// Whether the shim runs the OCI runtime that the options name, or would if they named one. Another shim by a path of its
/// own may need none.
fn runs_it(handler: &Handler, shim: &Path) -> bool {
    let named = matches!(&handler.options, RuntimeOptions::Runc(options) if !options.binary_name.is_empty());
    named || shim.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"containerd-shim-runc-"))
}

/// Where a handler's shim is: its configured path, or the binary that its type names (`io.containerd.runc.v2` is
/// `containerd-shim-runc-v2`), in the given directories and then in `PATH`.
pub(super) fn shim(handler: &Handler, search: &[PathBuf]) -> Result<PathBuf, String> {
    if let Some(path) = &handler.runtime_path {
        return Ok(path.clone());
    }
    let kind = &handler.runtime_type;
    if kind.starts_with('/') {
        return Ok(PathBuf::from(kind));
    }
    let mut parts = kind.rsplit('.');
    let (Some(version), Some(name), Some(_)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(format!("runtime_type: {kind:?} is neither a path nor of the form io.containerd.runc.v2"));
    };
    let binary = format!("containerd-shim-{name}-{version}");
    let path = env::var_os("PATH").unwrap_or_default();
    let found =
        search.iter().cloned().chain(env::split_paths(&path)).map(|dir| dir.join(&binary)).find(|at| at.is_file());
    found.ok_or_else(|| {
        format!("runtime_type: shim {binary} of {kind:?} is not installed, neither in PATH nor beside the daemon")
    })
}

/// Looks a command up as execvp(3) does: one with a slash is a path.
fn in_path(command: &str, path: &std::ffi::OsStr) -> Result<(), String> {
    if command.contains('/') {
        return executable(Path::new(command));
    }
    match env::split_paths(path).any(|dir| executable(&dir.join(command)).is_ok()) {
        true => Ok(()),
        false => Err("is not installed in PATH".into()),
    }
}

fn executable(path: &Path) -> Result<(), String> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err("does not exist".into()),
        Err(error) => Err(format!("cannot be looked at: {error}")),
        Ok(metadata) if !metadata.is_file() => Err("is not a file".into()),
        Ok(_) => access(path, Access::EXEC_OK).map_err(|_| "is not executable".into()),
    }
}

/// The error of [`check`] for a handler by its name.
pub(super) fn refuse(name: &str, why: String) -> Error {
    Error::Precondition(format!("runtime handler {name:?} cannot start pods: {why}"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::RuncOptions;

    /// A directory with a shim, a runtime, and a file that cannot be run.
    fn host() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, mode) in [("containerd-shim-runc-v2", 0o755), ("crun", 0o755), ("data", 0o644)] {
            let path = dir.path().join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        dir
    }

    #[test]
    fn a_runtime_type_names_the_binary_and_the_first_directory_wins() {
        let host = host();
        let of = |kind: &str| Handler { runtime_type: kind.into(), ..Handler::default() };
        let search = [host.path().to_owned()];
        assert_eq!(shim(&of("io.containerd.runc.v2"), &search).unwrap(), host.path().join("containerd-shim-runc-v2"));
        assert_eq!(shim(&of("/opt/shim"), &search).unwrap(), PathBuf::from("/opt/shim"));
        assert!(shim(&of("runc"), &search).unwrap_err().contains("io.containerd.runc.v2"));
        assert!(shim(&of("io.containerd.nope.v1"), &search).unwrap_err().contains("containerd-shim-nope-v1"));
    }

    #[test]
    fn what_is_missing_is_named_by_its_key() {
        let host = host();
        let at = |name: &str| host.path().join(name).to_str().unwrap().to_owned();
        let case = |shim: &str, runtime: &str| {
            let options = RuncOptions { binary_name: runtime.into(), ..RuncOptions::default() };
            let handler = Handler {
                runtime_type: "io.containerd.runc.v2".into(),
                runtime_path: (!shim.is_empty()).then(|| shim.into()),
                options: RuntimeOptions::Runc(options),
                ..Handler::default()
            };
            check(&handler, &[host.path().to_owned()])
        };
        assert_eq!(case("", &at("crun")), Ok(()));
        let none = |shim: &str, runtime: &str| case(shim, runtime).unwrap_err();
        assert_eq!(none(&at("nope"), ""), format!("runtime_path: shim {} does not exist", at("nope")));
        assert_eq!(none(&at("data"), ""), format!("runtime_path: shim {} is not executable", at("data")));
        assert_eq!(none(&at(""), ""), format!("runtime_path: shim {} is not a file", at("")));
        let runtime = |path: &str, why: &str| format!("options.BinaryName: OCI runtime {path:?} {why}");
        assert_eq!(none("", &at("nope")), runtime(&at("nope"), "does not exist"));
        assert_eq!(none("", &at("data")), runtime(&at("data"), "is not executable"));
        assert_eq!(none("", "no-such-runtime"), runtime("no-such-runtime", "is not installed in PATH"));
        assert_eq!(none(&at("crun"), &at("nope")), runtime(&at("nope"), "does not exist"));
    }

    #[test]
    fn only_runcs_options_name_an_oci_runtime() {
        let host = host();
        let handler = Handler {
            runtime_type: host.path().join("containerd-shim-runc-v2").to_str().unwrap().into(),
            options: RuntimeOptions::None,
            ..Handler::default()
        };
        assert_eq!(check(&handler, &[]), Ok(()));
        // Nor does every shim that a path names in place of runc's.
        for (shim, runs) in [("/opt/containerd-shim-runc-v2", true), ("/opt/containerd-shim-runsc-v1", false)] {
            assert_eq!(runs_it(&Handler::default(), Path::new(shim)), runs, "{shim}");
        }
    }
}
