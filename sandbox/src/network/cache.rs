//! What was attached, on disk in libcni's own format: a node that changes runtimes can still detach its old pods, and
//! tools that read these files find what they expect.
//!
//! One file an attachment, `<network>-<pod id>-<interface>`. All functions block.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::config::{NetworkList, parse_list};
use crate::{error::Error, model::Id};

const KIND: &str = "cniCacheV1";

/// One attachment, with libcni's field names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Entry {
    kind: String,
    pub(super) container_id: String,
    /// The network's configuration, base64.
    config: String,
    pub(super) if_name: String,
    pub(super) network_name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    netns: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(super) cni_args: Vec<[String; 2]>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(super) capability_args: Map<String, Value>,
    #[serde(default)]
    pub(super) result: Value,
}

impl Entry {
    pub(super) fn new(network: &NetworkList, pod: &Id, interface: &str, netns: &str) -> Entry {
        Entry {
            kind: KIND.into(),
            container_id: pod.to_string(),
            config: STANDARD.encode(&network.bytes),
            if_name: interface.into(),
            network_name: network.name.clone(),
            netns: netns.into(),
            cni_args: Vec::new(),
            capability_args: Map::new(),
            result: Value::Null,
        }
    }

    /// The network as it was configured when the pod was attached.
    pub(super) fn network(&self) -> Result<NetworkList, String> {
        let text = STANDARD.decode(&self.config).map_err(|error| format!("config: {error}"))?;
        parse_list(&text, &|_| Ok(Vec::new())).map_err(|error| format!("config: {error}"))
    }
}

/// The directory of entries.
#[derive(Clone, Debug)]
pub(super) struct Cache {
    dir: PathBuf,
}

impl Cache {
    /// `root` is libcni's cache directory (`/var/lib/cni`).
    pub(super) fn new(root: &Path) -> Cache {
        Cache { dir: root.join("results") }
    }

    fn path(&self, network: &str, pod: &str, interface: &str) -> PathBuf {
        self.dir.join(format!("{network}-{pod}-{interface}"))
    }

    /// Writes an entry whole or not at all.
    pub(super) fn put(&self, entry: &Entry) -> Result<(), Error> {
        let path = self.path(&entry.network_name, &entry.container_id, &entry.if_name);
        let failed = |error: io::Error| Error::failed(format!("write {}", path.display()), error);
        DirBuilder::new().recursive(true).mode(0o700).create(&self.dir).map_err(failed)?;
        // No attachment can have this name: network names do not start with a dot.
        let partial = self.dir.join(format!(".{}-{}-{}", entry.network_name, entry.container_id, entry.if_name));
        let text = serde_json::to_vec(entry).map_err(|error| failed(error.into()))?;
        let mut file =
            OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial).map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        fs::rename(&partial, &path).map_err(failed)
    }

    /// Forgets an attachment; one that is not there is forgotten already.
    pub(super) fn remove(&self, network: &str, pod: &Id, interface: &str) -> Result<(), Error> {
        let path = self.path(network, pod.as_str(), interface);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::failed(format!("remove {}", path.display()), error))
            }
            _ => Ok(()),
        }
    }

    /// The attachments of a pod.
    pub(super) fn of_pod(&self, pod: &Id) -> Result<Vec<Entry>, Error> {
        let middle = format!("-{pod}-");
        let mut found = self.read(|name| name.contains(&middle))?;
        found.retain(|entry| entry.container_id == pod.as_str());
        found.sort_by(|one, other| one.if_name.cmp(&other.if_name));
        Ok(found)
    }

    /// All attachments, those of other programs too.
    pub(super) fn all(&self) -> Result<Vec<Entry>, Error> {
        self.read(|_| true)
    }

    /// The pods that have attachments. Entries of other programs, whose ids are of another form, are not told.
    pub(super) fn pods(&self) -> Result<Vec<Id>, Error> {
        let mut ids: Vec<Id> = self.all()?.iter().filter_map(|entry| Id::parse(&entry.container_id)).collect();
        ids.sort();
        ids.dedup();
        Ok(ids)
    }

    /// The entries whose file names `wanted` takes. One that cannot be read is passed over with a warning: it is another
    /// program's, or of no use.
    fn read(&self, wanted: impl Fn(&str) -> bool) -> Result<Vec<Entry>, Error> {
        let failed = |error: io::Error| Error::failed(format!("read {}", self.dir.display()), error);
        let entries = match fs::read_dir(&self.dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        let mut found = Vec::new();
        for file in entries {
            let file = file.map_err(failed)?;
            let name = file.file_name();
            if !name.to_str().is_some_and(|name| !name.starts_with('.') && wanted(name)) {
                continue;
            }
            let parsed = fs::read(file.path()).map_err(|error| error.to_string()).and_then(|text| parse(&text));
            match parsed {
                Ok(entry) => found.push(entry),
                Err(error) => tracing::warn!(path = %file.path().display(), error, "passing over a cni cache file"),
            }
        }
        Ok(found)
    }
}

fn parse(text: &[u8]) -> Result<Entry, String> {
    let entry: Entry = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if entry.kind != KIND {
        return Err(format!("kind is {:?}, not {KIND:?}", entry.kind));
    }
    Ok(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> NetworkList {
        let text = br#"{"cniVersion":"1.0.0","name":"net","plugins":[{"type":"bridge"}]}"#;
        parse_list(text, &|_| Ok(Vec::new())).unwrap()
    }

    #[test]
    fn an_entry_has_the_name_and_the_fields_that_libcni_reads() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        let id = Id::parse(&"a".repeat(64)).unwrap();
        let mut entry = Entry::new(&network(), &id, "eth0", "/run/netns/x");
        entry.cni_args = vec![["IgnoreUnknown".into(), "1".into()]];
        entry.capability_args.insert("cgroupPath".into(), "/kubepods".into());
        entry.result = serde_json::json!({"cniVersion": "1.0.0"});
        cache.put(&entry).unwrap();
        let text = fs::read_to_string(dir.path().join(format!("results/net-{id}-eth0"))).unwrap();
        let text = text.replace(id.as_str(), "ID").replace(&entry.config, "CONFIG");
        insta::assert_snapshot!(text, @r##"
        {"kind":"cniCacheV1","containerId":"ID","config":"CONFIG","ifName":"eth0","networkName":"net","netns":"/run/netns/x","cniArgs":[["IgnoreUnknown","1"]],"capabilityArgs":{"cgroupPath":"/kubepods"},"result":{"cniVersion":"1.0.0"}}
        "##);
        assert_eq!(cache.of_pod(&id).unwrap(), std::slice::from_ref(&entry));
        assert_eq!(entry.network().unwrap(), network());
        assert_eq!(cache.pods().unwrap(), std::slice::from_ref(&id));
        cache.remove("net", &id, "eth0").unwrap();
        cache.remove("net", &id, "eth0").unwrap();
        assert_eq!(cache.pods().unwrap(), []);
    }

    #[test]
    fn files_of_others_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::new(dir.path());
        assert_eq!(cache.pods().unwrap(), []);
        fs::create_dir(dir.path().join("results")).unwrap();
        fs::write(dir.path().join("results/net-short-eth0"), "{").unwrap();
        let foreign = r#"{"kind":"cniCacheV1","containerId":"short","config":"","ifName":"eth0","networkName":"n"}"#;
        fs::write(dir.path().join("results/net-other-eth0"), foreign).unwrap();
        assert_eq!(cache.pods().unwrap(), []);
    }
}
