//! Pre-installed plugins: executables called `NN-name`, started with a connection instead of making one.
//!
//! A plugin is told its name and index, and that its socket is descriptor 3, by three environment variables; it gets no
//! other. It is a child of the daemon and ends with it.

use std::{
    fs, io,
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    process::Stdio,
};

use tokio::{
    net::UnixStream,
    process::{Child, Command},
};

use crate::{Error, sys};

use super::{Config, plugin::Registration};

/// The descriptor that a plugin finds its socket on.
const SOCKET: i32 = 3;

/// A plugin's file and its configuration.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Installed {
    pub(super) registration: Registration,
    pub(super) path: PathBuf,
    pub(super) config: String,
}

/// The plugins that are installed, by name. What cannot be one is logged and left out. Blocks.
pub(super) fn discover(config: &Config) -> Result<Vec<Installed>, Error> {
    let dir = &config.plugin_path;
    let failed = |error| Error::failed(format!("look for NRI plugins in {}", dir.display()), error);
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(failed)?,
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        match installed(&path, &config.plugin_config_path) {
            Ok(Some(plugin)) => found.push(plugin),
            Ok(None) => {}
            Err(error) => {
                tracing::error!(path = %path.display(), error = error.chain(), "an NRI plugin is left out");
            }
        }
    }
    found.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(found)
}

/// `None` for what is not an executable file.
fn installed(path: &Path, configs: &Path) -> Result<Option<Installed>, Error> {
    let read = fs::metadata(path).map_err(|error| Error::failed(format!("look at {}", path.display()), error))?;
    if !read.is_file() || read.permissions().mode() & 0o111 == 0 {
        return Ok(None);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let parsed = name.split_once('-').ok_or_else(|| "it is not called NN-name".to_owned());
    let parsed = parsed.and_then(|(index, base)| Registration::parse(index, base));
    let registration = parsed.map_err(Error::Invalid)?;
    for file in [format!("{name}.conf"), format!("{}.conf", registration.base)] {
        match fs::read_to_string(configs.join(&file)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::failed(format!("read {}", configs.join(&file).display()), error)),
            Ok(config) => return Ok(Some(Installed { registration, path: path.to_owned(), config })),
        }
    }
    Ok(Some(Installed { registration, path: path.to_owned(), config: String::new() }))
}

/// Starts the plugin; answers the process, which is killed when it is dropped, and our end of its socket.
pub(super) fn start(plugin: &Installed) -> io::Result<(Child, UnixStream)> {
    let (near, far) = std::os::unix::net::UnixStream::pair()?;
    near.set_nonblocking(true)?;
    let mut command = std::process::Command::new(&plugin.path);
    command
        .env_clear()
        .env("NRI_PLUGIN_NAME", &plugin.registration.base)
        .env("NRI_PLUGIN_IDX", &plugin.registration.index)
        .env("NRI_PLUGIN_SOCKET", SOCKET.to_string())
        .stdin(Stdio::null());
    sys::pass_descriptor(&mut command, OwnedFd::from(far), SOCKET);
    let child = Command::from(command).process_group(0).kill_on_drop(true).spawn()?;
    Ok((child, UnixStream::from_std(near)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plugins_are_found_by_name_with_their_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config {
            plugin_path: dir.path().join("plugins"),
            plugin_config_path: dir.path().join("conf.d"),
            ..Config::default()
        };
        assert_eq!(discover(&config).unwrap(), []);
        fs::create_dir(&config.plugin_path).unwrap();
        fs::create_dir(&config.plugin_config_path).unwrap();
        for (name, mode) in [("20-b", 0o755), ("10-a", 0o755), ("30-text", 0o644), ("wrong", 0o755), ("40-none", 0o700)]
        {
            let path = config.plugin_path.join(name);
            fs::write(&path, "").unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        }
        for (file, text) in [("10-a.conf", "own"), ("a.conf", "shared"), ("b.conf", "shared")] {
            fs::write(config.plugin_config_path.join(file), text).unwrap();
        }
        let found = discover(&config).unwrap();
        let found: Vec<(String, &str)> =
            found.iter().map(|plugin| (plugin.registration.name(), plugin.config.as_str())).collect();
        let expected = [("10-a", "own"), ("20-b", "shared"), ("40-none", "")];
        assert_eq!(found, expected.map(|(name, config)| (name.to_owned(), config)));
    }
}
