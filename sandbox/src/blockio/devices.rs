//! The disks that a class's items name on this node, and their limits as the OCI spec has them.

use std::{
    fs,
    os::unix::fs::{FileTypeExt, MetadataExt},
};

use oci_spec::runtime::{
    LinuxBlockIo, LinuxThrottleDevice, LinuxThrottleDeviceBuilder, LinuxWeightDevice, LinuxWeightDeviceBuilder,
};

use super::document::Entry;
use crate::glob;

/// A device's number.
type Number = (i64, i64);

/// One limit by device, in the order in which devices were first named; a later item's takes the earlier one's place.
struct Limits<T>(Vec<(Number, T)>);

impl<T> Limits<T> {
    fn set(&mut self, device: Number, value: Option<T>) {
        let Some(value) = value else { return };
        match self.0.iter_mut().find(|(known, _)| *known == device) {
            Some((_, known)) => *known = value,
            None => self.0.push((device, value)),
        }
    }
}

impl Limits<u64> {
    fn to_oci(&self) -> Option<Vec<LinuxThrottleDevice>> {
        let limits = self.0.iter().map(|((major, minor), rate)| {
            let limit = LinuxThrottleDeviceBuilder::default().major(*major).minor(*minor).rate(*rate);
            limit.build().expect("no field is required")
        });
        (!self.0.is_empty()).then(|| limits.collect())
    }
}

impl Limits<u16> {
    fn to_oci(&self) -> Option<Vec<LinuxWeightDevice>> {
        let weights = self.0.iter().map(|((major, minor), value)| {
            let weight = LinuxWeightDeviceBuilder::default().major(*major).minor(*minor).weight(*value);
            weight.build().expect("no field is required")
        });
        (!self.0.is_empty()).then(|| weights.collect())
    }
}

/// Blocks.
pub(super) fn to_oci(entries: &[Entry]) -> LinuxBlockIo {
    let mut weight = None;
    let mut weights = Limits(Vec::new());
    let (mut read_bps, mut write_bps) = (Limits(Vec::new()), Limits(Vec::new()));
    let (mut read_iops, mut write_iops) = (Limits(Vec::new()), Limits(Vec::new()));
    for entry in entries {
        let Some(patterns) = &entry.devices else {
            weight = entry.weight.or(weight);
            continue;
        };
        for device in find(patterns) {
            weights.set(device, entry.weight);
            read_bps.set(device, entry.read_bps);
            write_bps.set(device, entry.write_bps);
            read_iops.set(device, entry.read_iops);
            write_iops.set(device, entry.write_iops);
        }
    }
    let mut found = LinuxBlockIo::default();
    found
        .set_weight(weight)
        .set_weight_device(weights.to_oci())
        .set_throttle_read_bps_device(read_bps.to_oci())
        .set_throttle_write_bps_device(write_bps.to_oci())
        .set_throttle_read_iops_device(read_iops.to_oci())
        .set_throttle_write_iops_device(write_iops.to_oci());
    found
}

/// The block devices that the patterns name, through symbolic links. What else they name is logged and left out: the file
/// is for many nodes, and not each has every disk.
fn find(patterns: &[String]) -> Vec<Number> {
    let mut found = Vec::new();
    for pattern in patterns {
        let paths = glob::expand(pattern);
        if paths.is_empty() {
            tracing::warn!(pattern, "a block IO class names devices that are not there");
        }
        for path in paths {
            match fs::metadata(&path) {
                Ok(metadata) if metadata.file_type().is_block_device() => {
                    let number = metadata.rdev();
                    let number = (i64::from(rustix::fs::major(number)), i64::from(rustix::fs::minor(number)));
                    if !found.contains(&number) {
                        found.push(number);
                    }
                }
                Ok(_) => tracing::warn!(path = %path.display(), "a block IO class names what is no block device"),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "a block IO class names what cannot be read")
                }
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use serde_json::json;

    use super::*;

    fn node(path: &Path, kind: rustix::fs::FileType, minor: u32) {
        // Major number 7: loop devices, which need not be there.
        let number = rustix::fs::makedev(7, minor);
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, rustix::fs::Mode::RUSR, number).unwrap();
    }

    #[test]
    fn privileged_later_items_take_the_place_of_earlier_ones_device_by_device() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        for (name, minor) in [("sda", 201), ("sdb", 202), ("sdc", 203)] {
            node(Path::new(&at(name)), rustix::fs::FileType::BlockDevice, minor);
        }
        node(Path::new(&at("sdx")), rustix::fs::FileType::CharacterDevice, 204);
        std::os::unix::fs::symlink(at("sdb"), at("by-id-SSD")).unwrap();
        let all = |name: &str| Some(vec![at(name)]);
        let entries = [
            Entry { weight: Some(80), ..Entry::default() },
            Entry {
                devices: all("sd[a-z]"),
                weight: Some(50),
                read_bps: Some(1000),
                write_iops: Some(7),
                ..Entry::default()
            },
            Entry { devices: all("*SSD*"), read_bps: Some(9000), write_bps: Some(3), ..Entry::default() },
            Entry { devices: all("none*"), read_iops: Some(1), ..Entry::default() },
            Entry { weight: Some(90), ..Entry::default() },
        ];
        let rate = |minor: u32, rate: u64| json!({"major": 7, "minor": minor, "rate": rate});
        let weight = |minor: u32| json!({"major": 7, "minor": minor, "weight": 50});
        let expected = json!({
            "weight": 90,
            "weightDevice": [weight(201), weight(202), weight(203)],
            "throttleReadBpsDevice": [rate(201, 1000), rate(202, 9000), rate(203, 1000)],
            "throttleWriteBpsDevice": [rate(202, 3)],
            "throttleWriteIOPSDevice": [rate(201, 7), rate(202, 7), rate(203, 7)],
        });
        assert_eq!(serde_json::to_value(to_oci(&entries)).unwrap(), expected);
    }
}
