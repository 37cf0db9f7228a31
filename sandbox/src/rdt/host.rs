//! What the host's resctrl file system says it can divide: `info/` and the schemata of its root group.
//!
//! Source: the kernel's `Documentation/filesystems/resctrl.rst`.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// A mounted resctrl file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Resctrl {
    pub(super) root: PathBuf,
    /// Mounted with `mba_MBps`: memory bandwidth is in MBps instead of percent.
    pub(super) mbps: bool,
}

impl Resctrl {
    /// The one that a list of mounts in the form of `/proc/self/mounts` has.
    pub(super) fn find(mounts: &str) -> Option<Resctrl> {
        mounts.lines().find_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let (root, kind, options) = (fields.next()?, fields.next()?, fields.next()?);
            let mbps = options.split(',').any(|option| option == "mba_MBps");
            (kind == "resctrl").then(|| Resctrl { root: root.into(), mbps })
        })
    }
}

/// What of a cache level can be given to classes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Cache {
    /// Of the caches of this level.
    pub(super) ids: Vec<u64>,
    /// All ways.
    pub(super) mask: u64,
    /// How many ways a class has at least.
    pub(super) least: u32,
    /// Code and data can have different ways.
    pub(super) prioritised: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Memory {
    pub(super) ids: Vec<u64>,
    /// Percent that a class has at least.
    pub(super) least: u64,
    /// As [`Resctrl::mbps`].
    pub(super) mbps: bool,
}

/// What can be divided here; what the processor does not have is `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Divisible {
    pub(super) l2: Option<Cache>,
    pub(super) l3: Option<Cache>,
    pub(super) memory: Option<Memory>,
}

/// Reads it. Blocks.
pub(super) fn read(resctrl: &Resctrl) -> Result<Divisible, String> {
    let info = resctrl.root.join("info");
    if !info.is_dir() {
        return Err(format!("{} is not there", info.display()));
    }
    let schemata = text(&resctrl.root.join("schemata"))?;
    let cache = |level: &str| -> Result<Option<Cache>, String> {
        let kinds = [(level.to_owned(), false), (format!("{level}CODE"), true), (format!("{level}DATA"), true)];
        let Some((kind, prioritised)) = kinds.into_iter().find(|(kind, _)| info.join(kind).is_dir()) else {
            return Ok(None);
        };
        let dir = info.join(&kind);
        let mask = number(&dir.join("cbm_mask"), 16)?;
        let least = number(&dir.join("min_cbm_bits"), 10)?;
        let least = u32::try_from(least).map_err(|_| format!("{}: min_cbm_bits {least}", dir.display()))?;
        Ok(Some(Cache { ids: ids(&schemata, &kind)?, mask, least, prioritised }))
    };
    let memory = match info.join("MB").is_dir() {
        false => None,
        true => Some(Memory {
            ids: ids(&schemata, "MB")?,
            least: number(&info.join("MB/min_bandwidth"), 10)?,
            mbps: resctrl.mbps,
        }),
    };
    Ok(Divisible { l2: cache("L2")?, l3: cache("L3")?, memory })
}

/// The ids in the line of a kind, such as `L3:0=fff;1=fff`.
fn ids(schemata: &str, kind: &str) -> Result<Vec<u64>, String> {
    let line = schemata.lines().find_map(|line| line.trim().strip_prefix(kind)?.strip_prefix(':'));
    let line = line.ok_or_else(|| format!("the root's schemata have no {kind}"))?;
    let ids = line.split(';').map(|part| part.split_once('=').and_then(|(id, _)| id.trim().parse().ok()));
    let mut ids: Vec<u64> =
        ids.collect::<Option<_>>().ok_or_else(|| format!("the root's schemata have {kind}:{line}"))?;
    ids.sort_unstable();
    Ok(ids)
}

fn number(path: &Path, radix: u32) -> Result<u64, String> {
    let text = text(path)?;
    u64::from_str_radix(text.trim(), radix).map_err(|error| format!("{}: {:?}: {error}", path.display(), text.trim()))
}

fn text(path: &Path) -> Result<String, String> {
    fs::read_to_string(path).map_err(|error| format!("read {}: {error}", path.display()))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A directory that looks like resctrl on two sockets.
    pub(in super::super) fn tree(root: &Path, files: &[(&str, &str)]) -> Resctrl {
        for (name, content) in files {
            let path = root.join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
        Resctrl { root: root.to_owned(), mbps: false }
    }

    pub(in super::super) const L3: [(&str, &str); 2] =
        [("info/L3/cbm_mask", "fffff\n"), ("info/L3/min_cbm_bits", "1\n")];
    pub(in super::super) const MB: [(&str, &str); 1] = [("info/MB/min_bandwidth", "10\n")];
    pub(in super::super) const ROOT: [(&str, &str); 2] =
        [("schemata", "    MB:0=100;1=100\n    L3:0=fffff;1=fffff\n"), ("tasks", "1\n")];

    #[test]
    fn it_is_found_among_mounts() {
        let mounts = "proc /proc proc rw 0 0\nresctrl /sys/fs/resctrl resctrl rw,relatime,mba_MBps 0 0\n";
        assert_eq!(Resctrl::find(mounts), Some(Resctrl { root: "/sys/fs/resctrl".into(), mbps: true }));
        assert!(!Resctrl::find(&mounts.replace(",mba_MBps", "")).unwrap().mbps);
        assert_eq!(Resctrl::find("proc /proc proc rw 0 0\nresctrl\n"), None);
    }

    #[test]
    fn what_can_be_divided_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let files = [&L3[..], &MB, &ROOT].concat();
        let found = read(&tree(dir.path(), &files)).unwrap();
        let l3 = Cache { ids: vec![0, 1], mask: 0xfffff, least: 1, prioritised: false };
        let memory = Memory { ids: vec![0, 1], least: 10, mbps: false };
        assert_eq!(found, Divisible { l2: None, l3: Some(l3.clone()), memory: Some(memory) });
        let dir = tempfile::tempdir().unwrap();
        let prioritised = [
            ("info/L3CODE/cbm_mask", "ff"),
            ("info/L3CODE/min_cbm_bits", "2"),
            ("info/L3DATA/cbm_mask", "ff"),
            ("schemata", "L3CODE:3=ff;1=ff\nL3DATA:3=ff;1=ff\n"),
        ];
        let found = read(&tree(dir.path(), &prioritised)).unwrap().l3.unwrap();
        assert_eq!(found, Cache { ids: vec![1, 3], mask: 0xff, least: 2, prioritised: true });
    }

    #[test]
    fn what_is_not_as_the_kernel_writes_it_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let nothing = Resctrl { root: dir.path().to_owned(), mbps: false };
        assert!(read(&nothing).unwrap_err().ends_with("info is not there"));
        let without = tree(dir.path(), &L3);
        assert!(read(&without).unwrap_err().contains("schemata: No such file"));
        for (file, content, why) in [
            ("schemata", "L3:0\n", "the root's schemata have L3:0"),
            ("schemata", "MB:0=1\n", "the root's schemata have no L3"),
            ("info/L3/cbm_mask", "xyz", "cbm_mask: \"xyz\""),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let resctrl = tree(dir.path(), &[&L3[..], &ROOT, &[(file, content)]].concat());
            let error = read(&resctrl).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
