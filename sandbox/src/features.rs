//! What the OCI runtime of a handler can do, as its own `features` command says, and the kernel with it.

use std::{collections::BTreeMap, process::Stdio, time::Duration};

use serde::Deserialize;
use tokio::process::Command;

use crate::{Config, host};

/// How long the runtime may take to say what it can do.
const DEADLINE: Duration = Duration::from_secs(10);

/// What pods of a handler may ask for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features {
    /// Mounts that are read-only with all that is mounted below them.
    pub recursive_readonly_mounts: bool,
    /// Pods with a user namespace of their own, and root file systems and volumes mapped to it.
    pub user_namespaces: bool,
    /// Network devices of the host can be moved into containers (`netDevices` of runtime specification 1.3).
    pub net_devices: bool,
}

/// Fills in the features of every handler. One whose runtime cannot be asked has none, and the log says why.
pub async fn probe(mut config: Config) -> Config {
    let kernel = host::kernel();
    let mut known: BTreeMap<String, Features> = BTreeMap::new();
    for (name, handler) in &mut config.handlers {
        // Only the options of runc's shims say which binary they run.
        let Some(binary) = handler.oci_runtime().map(str::to_owned) else { continue };
        let features = match known.get(&binary) {
            Some(features) => *features,
            None => ask(&binary).await.map_or_else(
                |error| {
                    tracing::warn!(handler = name, error, "the runtime does not say what it can do");
                    Features::default()
                },
                |told| {
                    if let Some(why) = told.outdated() {
                        tracing::warn!(handler = name, binary, "{why}");
                    }
                    told.on(kernel)
                },
            ),
        };
        known.insert(binary, features);
        handler.features = features;
    }
    config
}

async fn ask(binary: &str) -> Result<Told, String> {
    let mut command = Command::new(binary);
    command.arg("features").stdin(Stdio::null()).process_group(0).kill_on_drop(true);
    let output = tokio::time::timeout(DEADLINE, command.output());
    let output = output.await.map_err(|_| format!("{binary} features: not done within {DEADLINE:?}"))?;
    let output = output.map_err(|error| format!("{binary} features: {error}"))?;
    if !output.status.success() {
        return Err(format!("{binary} features: {}", output.status));
    }
    serde_json::from_slice(&output.stdout).map_err(|error| format!("{binary} features: {error}"))
}

/// The parts of the runtime specification's features document that count here. All of it is optional.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Told {
    mount_options: Vec<String>,
    linux: Linux,
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Linux {
    namespaces: Vec<String>,
    mount_extensions: MountExtensions,
    net_devices: Enabled,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct MountExtensions {
    idmap: Enabled,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Enabled {
    enabled: Option<bool>,
}

/// Runtimes by the annotation that tells their version: their name, and the oldest versions without known ways out of a
/// container, each for its own series and the first for all before it.
const SAFE: [(&str, &str, &[[u32; 3]]); 2] = [
    ("org.opencontainers.runc.version", "runc", &[[1, 3, 6], [1, 4, 3], [1, 5, 0]]),
    ("run.oci.crun.version", "crun", &[[1, 28, 0]]),
];

impl Told {
    /// What to do if this is a version with known vulnerabilities, as far as a number can tell.
    fn outdated(&self) -> Option<String> {
        SAFE.iter().find_map(|(annotation, name, safe)| {
            let told = self.annotations.get(*annotation)?.trim();
            let version = version(told)?;
            let of_series = safe.iter().find(|safe| safe[..2] == version[..2]).or(safe.first())?;
            let [major, minor, patch] = of_series;
            (version < *of_series).then(|| {
                format!(
                    "{name} {told} has known ways out of containers, unless its distribution has closed them in this version; \
                     {major}.{minor}.{patch} has none"
                )
            })
        })
    }

    fn on(&self, kernel: (u32, u32)) -> Features {
        let has = |list: &[String], wanted: &str| list.iter().any(|item| item == wanted);
        Features {
            // mount_setattr(2) is of 5.12.
            recursive_readonly_mounts: has(&self.mount_options, "rro") && kernel >= (5, 12),
            // Layers of an overlay can be mapped since 5.19.
            user_namespaces: has(&self.linux.namespaces, "user")
                && self.linux.mount_extensions.idmap.enabled == Some(true)
                && kernel >= (5, 19),
            net_devices: self.linux.net_devices.enabled == Some(true),
        }
    }
}

/// The numbers at the start of a version; a candidate for a release counts as the release.
fn version(text: &str) -> Option<[u32; 3]> {
    let numbers = text.split(|c: char| !c.is_ascii_digit() && c != '.').next()?;
    let mut parts = numbers.split('.').map(|part| part.parse().ok());
    Some([parts.next()??, parts.next().flatten().unwrap_or(0), parts.next().flatten().unwrap_or(0)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runtime_with_known_vulnerabilities_is_told_with_the_version_that_has_none() {
        let outdated = |annotation: &str, version: &str| {
            let json = serde_json::json!({"annotations": {annotation: version}});
            told(&json.to_string()).outdated().map(|text| text.rsplit("; ").next().unwrap_or_default().to_owned())
        };
        let runc = |version: &str| outdated("org.opencontainers.runc.version", version);
        for (version, safe) in [
            ("1.1.5+ds1", Some("1.3.6 has none")),
            ("1.3.5", Some("1.3.6 has none")),
            ("1.3.6", None),
            ("1.4.0\n", Some("1.4.3 has none")),
            ("1.4.3", None),
            ("1.5.0-rc.3", None),
            ("1.6.1", None),
            ("2.0.0", None),
            ("unknown", None),
            ("", None),
        ] {
            assert_eq!(runc(version).as_deref(), safe, "{version:?}");
        }
        assert_eq!(outdated("run.oci.crun.version", "1.8.1").as_deref(), Some("1.28.0 has none"));
        assert_eq!(outdated("run.oci.crun.version", "1.28"), None);
        assert_eq!(outdated("other", "0.1"), None);
    }

    fn told(json: &str) -> Told {
        serde_json::from_str(json).unwrap()
    }

    #[test]
    fn a_feature_needs_the_runtime_and_the_kernel() {
        let new = told(
            r#"{"ociVersionMax": "1.3.0", "mountOptions": ["ro", "rro"],
                "linux": {"namespaces": ["net", "user"], "mountExtensions": {"idmap": {"enabled": true}},
                "netDevices": {"enabled": true}}}"#,
        );
        let all = Features { recursive_readonly_mounts: true, user_namespaces: true, net_devices: true };
        assert_eq!(new.on((6, 18)), all);
        assert_eq!(new.on((5, 15)), Features { user_namespaces: false, ..all });
        assert_eq!(new.on((5, 10)), Features { net_devices: true, ..Features::default() });
    }

    #[test]
    fn a_runtime_without_mapped_mounts_has_no_user_namespaces() {
        let old = told(r#"{"mountOptions": ["rro"], "linux": {"namespaces": ["user"]}}"#);
        assert_eq!(old.on((6, 18)), Features { recursive_readonly_mounts: true, ..Features::default() });
        assert_eq!(told("{}").on((6, 18)), Features::default());
    }

    #[tokio::test]
    async fn a_runtime_that_is_not_there_is_told_by_its_name() {
        let error = ask("/nonexistent/runc").await.unwrap_err();
        assert!(error.starts_with("/nonexistent/runc features: "), "{error}");
    }
}
