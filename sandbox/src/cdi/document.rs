//! One file of a vendor: its form, and what makes it invalid. Parsing only; nothing here looks at the machine.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, Deserializer};

use super::name::{check_device, check_kind};

/// A file. Unknown fields are refused: they are of a newer version, and leaving one out would give half a device.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Document {
    cdi_version: String,
    pub(super) kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    pub(super) devices: Vec<Device>,
    /// What every device of the file brings.
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) container_edits: Edits,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    pub(super) container_edits: Edits,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Edits {
    #[serde(deserialize_with = "null_is_default")]
    pub(super) env: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) device_nodes: Vec<DeviceNode>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) net_devices: Vec<NetDevice>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) hooks: Vec<Hook>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) mounts: Vec<Mount>,
    pub(super) intel_rdt: Option<IntelRdt>,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) additional_gids: Vec<u32>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct DeviceNode {
    /// In the container.
    pub(super) path: String,
    /// On the host, if it is another path there.
    #[serde(default)]
    pub(super) host_path: String,
    #[serde(default)]
    pub(super) r#type: String,
    #[serde(default)]
    pub(super) major: i64,
    #[serde(default)]
    pub(super) minor: i64,
    pub(super) file_mode: Option<u32>,
    #[serde(default)]
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct NetDevice {
    pub(super) host_interface_name: String,
    pub(super) name: String,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Hook {
    pub(super) hook_name: String,
    pub(super) path: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) args: Vec<String>,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) env: Vec<String>,
    /// Seconds.
    pub(super) timeout: Option<i64>,
}

#[derive(Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Mount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(default, deserialize_with = "null_is_default")]
    pub(super) options: Vec<String>,
    #[serde(default)]
    pub(super) r#type: String,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct IntelRdt {
    #[serde(rename = "closID")]
    pub(super) clos_id: String,
    pub(super) l3_cache_schema: String,
    pub(super) mem_bw_schema: String,
    #[serde(deserialize_with = "null_is_default")]
    pub(super) schemata: Vec<String>,
    pub(super) enable_monitoring: bool,
    /// Of versions before 1.1.
    #[serde(rename = "enableCMT")]
    pub(super) enable_cmt: bool,
    #[serde(rename = "enableMBM")]
    pub(super) enable_mbm: bool,
}

fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(from: D) -> Result<T, D::Error> {
    Option::deserialize(from).map(Option::unwrap_or_default)
}

/// A file's document. Its name says whether it is JSON or YAML; the error says what is wrong, not which file.
pub(super) fn parse(path: &Path, text: &str) -> Result<Document, String> {
    let document: Document = if path.extension().is_some_and(|extension| extension == "json") {
        serde_json::from_str(text).map_err(|error| error.to_string())?
    } else {
        // As the tools that write these files read them: 0660 is octal.
        let options = serde_saphyr::options! { legacy_octal_numbers: true };
        serde_saphyr::from_str_with_options(text, options).map_err(|error| error.to_string())?
    };
    document.check()?;
    Ok(document)
}

impl Document {
    fn check(&self) -> Result<(), String> {
        let version = parse_version(&self.cdi_version)?;
        check_kind(&self.kind)?;
        if self.devices.is_empty() {
            return Err("it has no devices".into());
        }
        check_annotations(&self.annotations)?;
        self.container_edits.check().map_err(|why| format!("containerEdits: {why}"))?;
        for device in &self.devices {
            check_device(&device.name)?;
            let of_device = |why: String| format!("device {}: {why}", device.name);
            check_annotations(&device.annotations).map_err(of_device)?;
            device.container_edits.check().map_err(of_device)?;
            if device.container_edits == Edits::default() {
                return Err(of_device("containerEdits is empty".into()));
            }
        }
        let needed = self.needed_version();
        if version < needed {
            let (major, minor) = needed;
            return Err(format!(
                "cdiVersion {} is too low for its fields, which are of {major}.{minor}.0",
                self.cdi_version
            ));
        }
        Ok(())
    }

    /// The first version that has all fields which are used (SPEC.md, "Released versions").
    fn needed_version(&self) -> (u32, u32) {
        let class = self.kind.split_once('/').map_or("", |(_, class)| class);
        let digit = |device: &Device| device.name.starts_with(|c: char| c.is_ascii_digit());
        let edits = || self.devices.iter().map(|device| &device.container_edits).chain([&self.container_edits]);
        let any = |uses: fn(&Edits) -> bool| edits().any(uses);
        let annotated =
            !self.annotations.is_empty() || self.devices.iter().any(|device| !device.annotations.is_empty());
        let rdt = |edits: &Edits| {
            edits.intel_rdt.as_ref().is_some_and(|rdt| rdt.enable_monitoring || !rdt.schemata.is_empty())
        };
        if any(|edits| !edits.net_devices.is_empty()) || edits().any(rdt) {
            (1, 1)
        } else if any(|edits| edits.intel_rdt.is_some() || !edits.additional_gids.is_empty()) {
            (0, 7)
        } else if annotated || class.contains('.') {
            (0, 6)
        } else if self.devices.iter().any(digit)
            || any(|edits| edits.device_nodes.iter().any(|node| !node.host_path.is_empty()))
        {
            (0, 5)
        } else if any(|edits| edits.mounts.iter().any(|mount| !mount.r#type.is_empty())) {
            (0, 4)
        } else {
            (0, 3)
        }
    }
}

impl Edits {
    fn check(&self) -> Result<(), String> {
        if let Some(bad) =
            self.env.iter().find(|entry| !matches!(entry.split_once('='), Some((name, _)) if !name.is_empty()))
        {
            return Err(format!("env {bad:?} has not the form NAME=value"));
        }
        for node in &self.device_nodes {
            let path = &node.path;
            if !path.starts_with('/') {
                return Err(format!("deviceNodes: path {path:?} is not absolute"));
            }
            if !["", "b", "c", "u", "p"].contains(&node.r#type.as_str()) {
                return Err(format!("device node {path}: type {:?} is not one of b, c, u, p", node.r#type));
            }
            if node.permissions.contains(|c| !"rwm".contains(c)) {
                return Err(format!("device node {path}: permissions {:?} are not of rwm", node.permissions));
            }
        }
        for (at, device) in self.net_devices.iter().enumerate() {
            let NetDevice { host_interface_name: host, name } = device;
            if let Some(bad) = [host, name].into_iter().find(|name| !is_interface(name)) {
                return Err(format!("netDevices: {bad:?} is no name of a network interface"));
            }
            let twice = |other: &&NetDevice| other.host_interface_name == *host || other.name == *name;
            if let Some(other) = self.net_devices[..at].iter().find(twice) {
                let NetDevice { host_interface_name: other_host, name: other_name } = other;
                return Err(format!(
                    "netDevices: {other_host:?} as {other_name:?} and {host:?} as {name:?} cannot be at once"
                ));
            }
        }
        for hook in &self.hooks {
            let known = ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"];
            if !known.contains(&hook.hook_name.as_str()) {
                return Err(format!("hook {:?} is not one of {}", hook.hook_name, known.join(", ")));
            }
            if !hook.path.starts_with('/') {
                return Err(format!("{} hook: path {:?} is not absolute", hook.hook_name, hook.path));
            }
            if let Some(bad) = hook.env.iter().find(|entry| !entry.contains('=')) {
                return Err(format!("{} hook: env {bad:?} has not the form NAME=value", hook.hook_name));
            }
        }
        for mount in &self.mounts {
            if mount.host_path.is_empty() || !mount.container_path.starts_with('/') {
                return Err(format!(
                    "mount of {:?} at {:?}: a hostPath and an absolute containerPath are required",
                    mount.host_path, mount.container_path
                ));
            }
        }
        match &self.intel_rdt {
            // The name of a directory of the resctrl file system.
            Some(rdt)
                if rdt.clos_id.len() >= 4096
                    || [".", ".."].contains(&rdt.clos_id.as_str())
                    || rdt.clos_id.contains(['/', '\n']) =>
            {
                Err(format!("intelRdt: closID {:?} is no name of a directory", rdt.clos_id))
            }
            _ => Ok(()),
        }
    }
}

/// What the kernel takes as the name of an interface (`dev_valid_name`).
fn is_interface(name: &str) -> bool {
    let forbidden = |c: char| c == '/' || c == ':' || c.is_whitespace() || c == '\0';
    (1..16).contains(&name.len()) && ![".", ".."].contains(&name) && !name.contains(forbidden)
}

/// Annotations are Kubernetes' in form; what counts is that they are bounded.
fn check_annotations(annotations: &BTreeMap<String, String>) -> Result<(), String> {
    let size: usize = annotations.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > 256 << 10 {
        return Err(format!("annotations: {size} bytes are more than 256 KiB"));
    }
    match annotations.keys().any(String::is_empty) {
        true => Err("annotations: a key is empty".into()),
        false => Ok(()),
    }
}

/// Major and minor of a version that is known here; patches change no field.
fn parse_version(text: &str) -> Result<(u32, u32), String> {
    let parts: Option<Vec<u32>> = text.split('.').map(|part| part.parse().ok()).collect();
    match parts.as_deref() {
        Some(&[0, minor @ 3..=8, _]) => Ok((0, minor)),
        Some(&[1, minor @ 0..=1, _]) => Ok((1, minor)),
        _ => Err(format!("cdiVersion {text:?} is not known; 0.3.0 to 0.8.0, 1.0.0 and 1.1.0 are")),
    }
}
