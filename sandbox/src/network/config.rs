//! CNI network configuration: which files of the directory count, what they say, and whether it is fit to run plugins by.
//!
//! Parsing is apart from reading. [`Loader`] reads again when the directory's listing has changed, looked at on each use:
//! no watch that could die, and a directory that is removed and made again needs no thought.

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs, io,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::Error;

/// The versions of the CNI specification that we speak, oldest first.
pub(super) const VERSIONS: [&str; 7] = ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A version that we speak; they compare by age.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version(usize);

impl Version {
    pub(super) const V0_2: Version = Version(1);
    pub(super) const V0_4: Version = Version(4);
    pub(super) const V1_0: Version = Version(5);
    pub(super) const V1_1: Version = Version(6);

    pub(super) fn parse(text: &str) -> Option<Version> {
        VERSIONS.iter().position(|known| *known == text).map(Version)
    }

    pub(super) fn as_str(self) -> &'static str {
        VERSIONS[self.0]
    }
}

/// One network: plugins that run one after the other.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct NetworkList {
    pub(super) name: String,
    pub(super) version: Version,
    pub(super) disable_check: bool,
    pub(super) disable_gc: bool,
    pub(super) plugins: Vec<Plugin>,
    /// The list as JSON, for the cache.
    pub(super) bytes: Vec<u8>,
}

/// One plugin of a network, with all keys of its configuration, also those we do not know.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Plugin {
    /// The name of the executable; never a path.
    pub(super) kind: String,
    pub(super) conf: Map<String, Value>,
}

impl Plugin {
    /// Whether the plugin asks for the runtime configuration `name`.
    pub(super) fn wants(&self, name: &str) -> bool {
        self.conf.get("capabilities").and_then(|found| found.get(name)).and_then(Value::as_bool).unwrap_or(false)
    }
}

/// Loads the networks of a directory, and keeps them while its files stay the same.
#[derive(Debug)]
pub(super) struct Loader {
    dir: PathBuf,
    max: usize,
    /// The last answer and what it was read from. Held for the reading, so that one caller reads for all.
    last: Mutex<Option<(BTreeSet<Stamp>, Loaded)>>,
}

pub(super) type Loaded = Result<Arc<Vec<NetworkList>>, Error>;

/// What changes when a file does.
type Stamp = (OsString, u64, Option<SystemTime>, u64);

impl Loader {
    pub(super) fn new(dir: PathBuf, max: usize) -> Loader {
        Loader { dir, max, last: Mutex::new(None) }
    }

    /// The networks in their order; none if there is no file. Blocks.
    pub(super) fn load(&self) -> Loaded {
        // A poisoned answer is one that was not replaced, which is as good as before.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let stamps = self.stamps();
        match &*last {
            Some((known, loaded)) if *known == stamps => loaded.clone(),
            _ => {
                let loaded = self.read();
                if let Err(error) = &loaded {
                    tracing::warn!(dir = %self.dir.display(), error = error.chain(), "cannot load the CNI configuration");
                }
                *last = Some((stamps, loaded.clone()));
                loaded
            }
        }
    }

    /// Those of the files, and of the files of subdirectories, which hold the plugins of lists that have none inline.
    fn stamps(&self) -> BTreeSet<Stamp> {
        use std::os::unix::fs::MetadataExt;
        let mut found = BTreeSet::new();
        let mut add = |dir: &Path| {
            // A directory that cannot be read has no stamps; reading it then gives the error.
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                // Follows symlinks: files of a ConfigMap are such, replaced by turning one link.
                if let Ok(metadata) = fs::metadata(entry.path()) {
                    let stamp = (entry.path().into(), metadata.ino(), metadata.modified().ok(), metadata.len());
                    found.insert(stamp);
                }
            }
        };
        add(&self.dir);
        for entry in fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            add(&entry.path());
        }
        found
    }

    fn read(&self) -> Loaded {
        let mut paths = files(&self.dir, &["conf", "conflist", "json"])?;
        if self.max > 0 {
            paths.truncate(self.max);
        }
        let lists = paths.iter().map(|path| self.read_list(path)).collect::<Result<Vec<_>, _>>()?;
        let mut names = BTreeSet::new();
        if let Some(twice) = lists.iter().find(|list| !names.insert(list.name.as_str())) {
            return Err(broken(&self.dir, &format!("two networks are named {:?}", twice.name)));
        }
        Ok(Arc::new(lists))
    }

    fn read_list(&self, path: &Path) -> Result<NetworkList, Error> {
        let text = fs::read(path).map_err(|error| unreadable(path, error))?;
        let is_list = path.extension().is_some_and(|extension| extension == "conflist");
        let parsed = if is_list { parse_list(&text, &|name| self.read_plugins(name)) } else { parse_single(&text) };
        parsed.map_err(|reason| broken(path, &reason))
    }

    /// The plugins in `<dir>/<network>/*.conf`.
    fn read_plugins(&self, network: &str) -> Result<Vec<Value>, String> {
        let paths = files(&self.dir.join(network), &["conf"]).map_err(|error| error.chain())?;
        let read = |path: &PathBuf| {
            let text = fs::read(path).map_err(|error| format!("{}: {error}", path.display()))?;
            serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))
        };
        paths.iter().map(read).collect()
    }
}

/// The files of a directory with one of the extensions, in the order of their names; none if it does not exist.
fn files(dir: &Path, extensions: &[&str]) -> Result<Vec<PathBuf>, Error> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(|error| unreadable(dir, error))?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(|error| unreadable(dir, error))?.path();
        let wanted = path.extension().and_then(|found| found.to_str()).is_some_and(|found| extensions.contains(&found));
        if wanted && path.is_file() {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    Error::Unavailable(format!("cni plugin not initialized: read {}: {error}", path.display()))
}

fn broken(path: &Path, reason: &str) -> Error {
    Error::Unavailable(format!("cni plugin not initialized: network config {}: {reason}", path.display()))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawList {
    #[serde(default)]
    name: String,
    #[serde(default)]
    cni_version: String,
    #[serde(default)]
    cni_versions: Vec<String>,
    #[serde(default)]
    disable_check: Value,
    #[serde(default, rename = "disableGC")]
    disable_gc: Value,
    #[serde(default)]
    load_only_inlined_plugins: bool,
    #[serde(default)]
    plugins: Vec<Value>,
}

/// A `.conf`: one plugin, taken for a list of one.
fn parse_single(text: &[u8]) -> Result<NetworkList, String> {
    let conf: Map<String, Value> = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if conf.contains_key("plugins") {
        return Err("is a list of plugins, and has to be named .conflist".into());
    }
    let mut list = json!({ "name": conf.get("name"), "plugins": [conf.clone()], "loadOnlyInlinedPlugins": true });
    if let Some(version) = conf.get("cniVersion") {
        list["cniVersion"] = version.clone();
    }
    parse_list(list.to_string().as_bytes(), &|_| Ok(Vec::new()))
}

/// A `.conflist`. `more` finds the plugins that are kept in files of their own.
pub(super) fn parse_list(
    text: &[u8],
    more: &dyn Fn(&str) -> Result<Vec<Value>, String>,
) -> Result<NetworkList, String> {
    let raw: RawList = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if !is_name(&raw.name) {
        return Err(format!("name {:?} is not a network name", raw.name));
    }
    let version = choose_version(&raw)?;
    let (disable_check, disable_gc) = (is_true(&raw.disable_check), is_true(&raw.disable_gc));
    let mut plugins = raw.plugins;
    if !raw.load_only_inlined_plugins {
        plugins.extend(more(&raw.name)?);
    }
    let plugins = plugins.into_iter().map(parse_plugin).collect::<Result<Vec<_>, _>>()?;
    if plugins.is_empty() {
        return Err("has no plugins".into());
    }
    let whole = json!({
        "name": raw.name,
        "cniVersion": version.as_str(),
        "disableCheck": disable_check,
        "disableGC": disable_gc,
        "loadOnlyInlinedPlugins": true,
        "plugins": plugins.iter().map(|plugin| &plugin.conf).collect::<Vec<_>>(),
    });
    let bytes = whole.to_string().into_bytes();
    Ok(NetworkList { name: raw.name, version, disable_check, disable_gc, plugins, bytes })
}

/// Written as a text as well, for plugins' sake.
fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(set) => *set,
        Value::String(text) => text.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

/// The newest of those offered that we speak; a list that says nothing is of the first version that had lists of
/// versions at all.
fn choose_version(raw: &RawList) -> Result<Version, String> {
    let mut offered: Vec<&str> = raw.cni_versions.iter().map(String::as_str).collect();
    match raw.cni_version.as_str() {
        "" if offered.is_empty() => offered.push(VERSIONS[0]),
        "" => {}
        version => offered.push(version),
    }
    offered.iter().filter_map(|version| Version::parse(version)).max().ok_or_else(|| {
        format!("cniVersion {} is not supported (supported: {})", offered.join(", "), VERSIONS.join(", "))
    })
}

fn parse_plugin(conf: Value) -> Result<Plugin, String> {
    let Value::Object(conf) = conf else { return Err("a plugin is not an object".into()) };
    let kind = conf.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    // The type becomes a file name in the plugin directories, and must not lead out of them (CVE-2021-20206).
    if !is_name(&kind) {
        return Err(format!("plugin type {kind:?} is not the name of an executable"));
    }
    Ok(Plugin { kind, conf })
}

/// Letters, digits, `_`, `.` and `-`, not starting with one of the last three, as CNI has it for networks.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) {
        // Renamed into place, so that the stamp differs by its inode at the least.
        fs::write(dir.join("new"), text).unwrap();
        fs::rename(dir.join("new"), dir.join(name)).unwrap();
    }

    fn summary(loaded: &Loaded, dir: &Path) -> String {
        match loaded {
            Ok(lists) => {
                let line = |list: &NetworkList| {
                    let kinds: Vec<&str> = list.plugins.iter().map(|plugin| plugin.kind.as_str()).collect();
                    format!("{} {} {}", list.name, list.version.as_str(), kinds.join("+"))
                };
                lists.iter().map(line).collect::<Vec<_>>().join("; ")
            }
            Err(error) => error.to_string().replace(dir.to_str().unwrap(), "DIR"),
        }
    }

    #[test]
    fn files_are_loaded_in_order_and_again_when_they_change() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let loader = Loader::new(dir.to_owned(), 1);
        let load = || summary(&loader.load(), dir);
        assert_eq!(load(), "");
        write(dir, "20-b.conf", r#"{"cniVersion":"0.4.0","name":"b","type":"ptp"}"#);
        assert_eq!(load(), "b 0.4.0 ptp");
        write(
            dir,
            "10-a.conflist",
            r#"{"cniVersions":["0.3.1","1.0.0","9.0.0"],"name":"a","plugins":[{"type":"bridge"},{"type":"portmap"}]}"#,
        );
        assert_eq!(load(), "a 1.0.0 bridge+portmap");
        assert_eq!(summary(&Loader::new(dir.to_owned(), 0).load(), dir), "a 1.0.0 bridge+portmap; b 0.4.0 ptp");
        write(dir, "10-a.conflist", r#"{"cniVersion":"1.1.0","name":"a"}"#);
        assert_eq!(load(), "cni plugin not initialized: network config DIR/10-a.conflist: has no plugins");
        fs::create_dir(dir.join("a")).unwrap();
        write(&dir.join("a"), "1.conf", r#"{"type":"macvlan"}"#);
        assert_eq!(load(), "a 1.1.0 macvlan");
    }

    #[test]
    fn a_plugin_type_never_leads_out_of_the_plugin_directories() {
        for kind in ["../../../bin/sh", "/bin/sh", "a/b", "", ".", "..", "a\0b", " sh"] {
            let text = json!({"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": kind}]}).to_string();
            let error = parse_list(text.as_bytes(), &|_| Ok(Vec::new())).unwrap_err();
            assert_eq!(error, format!("plugin type {kind:?} is not the name of an executable"));
        }
    }

    #[test]
    fn a_config_that_cannot_be_run_says_why() {
        let check = |text: &str| parse_list(text.as_bytes(), &|_| Ok(Vec::new())).unwrap_err();
        assert_eq!(
            check(r#"{"cniVersion":"2.0.0","name":"n","plugins":[{"type":"x"}]}"#),
            "cniVersion 2.0.0 is not supported (supported: 0.1.0, 0.2.0, 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.1.0)"
        );
        assert_eq!(check(r#"{"name":"../n","plugins":[{"type":"x"}]}"#), "name \"../n\" is not a network name");
        assert!(check("{").contains("EOF"));
        assert_eq!(
            parse_single(br#"{"name":"n","plugins":[]}"#).unwrap_err(),
            "is a list of plugins, and has to be named .conflist"
        );
    }
}
