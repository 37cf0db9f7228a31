//! Parsing mount options in fstab spelling; no system calls here.

use std::ffi::CString;
use std::path::Path;

use rustix::mount::{MountFlags, MountPropagationFlags};

use super::MountError;

/// What a list of options says, told apart by who acts on it.
#[derive(Debug, PartialEq)]
pub(super) struct Options {
    pub(super) bind: bool,
    pub(super) recursive: bool,
    pub(super) flags: MountFlags,
    pub(super) propagation: Option<MountPropagationFlags>,
    /// What the file system itself reads, in the given order.
    pub(super) data: Vec<String>,
    /// The first option that asks for work of ours which does not exist.
    pub(super) unsupported: Option<String>,
}

impl Options {
    pub(super) fn parse(options: &[String]) -> Self {
        let mut parsed = Self {
            bind: false,
            recursive: false,
            flags: MountFlags::empty(),
            propagation: None,
            data: Vec::new(),
            unsupported: None,
        };
        for option in options {
            parsed.take(option);
        }
        parsed
    }

    fn take(&mut self, option: &str) {
        if let Some(flag) = flag(option) {
            self.flags |= flag;
            return;
        }
        if let Some(flag) = cleared_flag(option) {
            self.flags &= !flag;
            return;
        }
        if let Some(propagation) = propagation(option) {
            self.propagation = Some(propagation);
            return;
        }
        match option {
            "" | "defaults" => {}
            "bind" => self.bind = true,
            "rbind" => (self.bind, self.recursive) = (true, true),
            // These are instructions to containerd's own tools, not to the kernel.
            _ if option.starts_with("X-containerd.") => {}
            "loop" => self.refuse(option),
            _ if option.starts_with("uidmap=") || option.starts_with("gidmap=") => self.refuse(option),
            _ => self.data.push(option.to_owned()),
        }
    }

    fn refuse(&mut self, option: &str) {
        self.unsupported.get_or_insert_with(|| option.to_owned());
    }

    pub(super) fn data_string(&self, target: &Path) -> Result<CString, MountError> {
        CString::new(self.data.join(",")).map_err(|source| MountError::Failed {
            what: "read the mount options of".to_owned(),
            target: target.to_owned(),
            source: source.into(),
        })
    }
}

fn flag(option: &str) -> Option<MountFlags> {
    Some(match option {
        "ro" => MountFlags::RDONLY,
        "nosuid" => MountFlags::NOSUID,
        "nodev" => MountFlags::NODEV,
        "noexec" => MountFlags::NOEXEC,
        "sync" => MountFlags::SYNCHRONOUS,
        "dirsync" => MountFlags::DIRSYNC,
        "noatime" => MountFlags::NOATIME,
        "nodiratime" => MountFlags::NODIRATIME,
        "relatime" => MountFlags::RELATIME,
        "strictatime" => MountFlags::STRICTATIME,
        _ => return None,
    })
}

fn cleared_flag(option: &str) -> Option<MountFlags> {
    Some(match option {
        "rw" => MountFlags::RDONLY,
        "suid" => MountFlags::NOSUID,
        "dev" => MountFlags::NODEV,
        "exec" => MountFlags::NOEXEC,
        "async" => MountFlags::SYNCHRONOUS,
        "atime" => MountFlags::NOATIME,
        "diratime" => MountFlags::NODIRATIME,
        "norelatime" => MountFlags::RELATIME,
        "nostrictatime" => MountFlags::STRICTATIME,
        _ => return None,
    })
}

fn propagation(option: &str) -> Option<MountPropagationFlags> {
    let (name, recursive) = match option.strip_prefix('r') {
        Some(rest) if matches!(rest, "private" | "shared" | "slave" | "unbindable") => (rest, true),
        _ => (option, false),
    };
    let kind = match name {
        "private" => MountPropagationFlags::PRIVATE,
        "shared" => MountPropagationFlags::SHARED,
        "slave" => MountPropagationFlags::DOWNSTREAM,
        "unbindable" => MountPropagationFlags::UNBINDABLE,
        _ => return None,
    };
    Some(if recursive { kind | MountPropagationFlags::REC } else { kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(options: &[&str]) -> Options {
        Options::parse(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_told_apart_by_who_acts_on_them() {
        let parsed = parse(&["rbind", "ro", "nosuid", "rslave", "X-containerd.note=1", "size=64k", "defaults"]);
        let expected = Options {
            bind: true,
            recursive: true,
            flags: MountFlags::RDONLY | MountFlags::NOSUID,
            propagation: Some(MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC),
            data: vec!["size=64k".to_owned()],
            unsupported: None,
        };
        assert_eq!(parsed, expected);
    }

    #[test]
    fn a_later_option_takes_back_an_earlier_one() {
        assert_eq!(parse(&["ro", "rw"]).flags, MountFlags::empty());
    }

    #[test]
    fn an_option_that_needs_work_of_ours_is_reported_and_not_passed_on() {
        let parsed = parse(&["loop", "uidmap=0:1000:1"]);
        assert_eq!((parsed.unsupported.as_deref(), parsed.data.len()), (Some("loop"), 0));
    }
}
