//! Classes of RDT (Resource Director Technology): parts of caches and of memory bandwidth under a name, which annotations of
//! pods give to containers (`rdt_config_file`).
//!
//! ```text
//! rdt_config_file ─► document.rs ─► plan.rs, with host.rs ─► schemata of resctrl's groups, when the daemon starts
//! a container's class ─► linux.intelRdt.closID, by which the runtime puts its processes into the group
//! ```
//!
//! The file's form and meaning are those of goresctrl's `doc/rdt.md`, which containerd uses. Other than with containerd, groups
//! that are not in the file are left alone: they may be somebody's.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use crate::error::Error;

mod bandwidth;
mod document;
mod host;
mod plan;
mod share;

use document::Kubernetes;
use host::Resctrl;
use plan::{Planned, ROOT};

/// What the configuration has of classes.
#[derive(Debug)]
pub(crate) struct Classes(State);

#[derive(Debug)]
enum State {
    /// No file is configured.
    Off,
    /// The file, or this host, is of no use.
    Broken { file: PathBuf, why: String },
    On {
        file: PathBuf,
        root: PathBuf,
        /// A class that the kernel did not take says why to whoever asks for it.
        classes: BTreeMap<String, Result<Kubernetes, String>>,
    },
}

/// Who asks for a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An annotation of the container's own.
    Container,
    /// One of its pod.
    Pod,
}

/// The classes of a file on the host whose mounts are listed in another. Blocks.
pub(crate) fn of_host(file: Option<&Path>, mounts: &Path) -> Classes {
    let mounts = fs::read_to_string(mounts).unwrap_or_default();
    Classes::load(file, Resctrl::find(&mounts))
}

impl Classes {
    /// Reads the file and writes its classes to `resctrl`, the host's. What is wrong is logged: the node serves everyone who
    /// asks for none of it. Blocks.
    fn load(file: Option<&Path>, resctrl: Option<Resctrl>) -> Classes {
        let Some(file) = file else { return Classes(State::Off) };
        let file = file.to_owned();
        let broken = |file: PathBuf, why: String| {
            tracing::error!(file = %file.display(), why, "RDT classes are not usable");
            Classes(State::Broken { file, why })
        };
        let Some(resctrl) = resctrl else {
            let why = "this host has no resctrl file system (mount -t resctrl resctrl /sys/fs/resctrl, if the processor \
                       has RDT and the kernel was not told otherwise)";
            return broken(file, why.into());
        };
        let planned = fs::read_to_string(&file)
            .map_err(|error| error.to_string())
            .and_then(|text| document::parse(&text))
            .and_then(|document| plan::plan(document, &host::read(&resctrl)?));
        match planned {
            Err(why) => broken(file, why),
            Ok(planned) => {
                let write = |(name, class): (String, Planned)| {
                    let written = write(&resctrl.root, &name, &class.schemata);
                    if let Err(why) = &written {
                        tracing::warn!(class = name, why, file = %file.display(), "an RDT class is not usable");
                    }
                    (name, written.map(|()| class.kubernetes))
                };
                let classes = planned.into_iter().map(write).collect();
                Classes(State::On { file, root: resctrl.root, classes })
            }
        }
    }

    pub(crate) fn are_on(&self) -> bool {
        matches!(self.0, State::On { .. })
    }

    /// The name of the group of a container of this class; `None` is that of all other processes. Blocks.
    pub(crate) fn resolve(&self, class: &str, origin: Origin) -> Result<Option<String>, Error> {
        let refused = |why: String| Err(Error::Precondition(format!("RDT class {class:?}: {why}")));
        let (file, root, classes) = match &self.0 {
            State::Off => return refused("no classes are configured on this node (rdt_config_file)".into()),
            State::Broken { file, why } => return refused(format!("{} is not usable: {why}", file.display())),
            State::On { file, root, classes } => (file.display(), root, classes),
        };
        match classes.get(class) {
            Some(Err(why)) => return refused(format!("{file} is wrong about it: {why}")),
            Some(Ok(Kubernetes { deny_container_annotation: true, .. })) if origin == Origin::Container => {
                return refused(format!("{file} does not let a container's annotation give it"));
            }
            Some(Ok(Kubernetes { deny_pod_annotation: true, .. })) if origin == Origin::Pod => {
                return refused(format!("{file} does not let a pod's annotation give it"));
            }
            Some(Ok(_)) => {}
            // A group that somebody else made on this host.
            None if plan::is_name(class) && (class == ROOT || root.join(class).join("tasks").is_file()) => {}
            None => {
                let known: Vec<&str> = classes.keys().map(String::as_str).collect();
                return refused(format!(
                    "neither {file} nor {} has it; the file has {}",
                    root.display(),
                    known.join(", ")
                ));
            }
        }
        Ok((class != ROOT).then(|| class.to_owned()))
    }
}

/// Makes the group if it is not there, and divides to it what the schemata say.
fn write(root: &Path, name: &str, schemata: &str) -> Result<(), String> {
    let group = if name == ROOT { root.to_owned() } else { root.join(name) };
    let made = match fs::create_dir(&group) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        // What the kernel says to a directory too many.
        Err(error) if error.kind() == io::ErrorKind::StorageFull => {
            Err(format!("make {}: the processor has no more classes", group.display()))
        }
        made => made.map_err(|error| format!("make {}: {error}", group.display())),
    };
    made?;
    if schemata.is_empty() {
        return Ok(());
    }
    fs::write(group.join("schemata"), schemata).map_err(|error| {
        // The kernel's own words about the last write.
        let said = fs::read_to_string(root.join("info/last_cmd_status")).unwrap_or_default();
        match said.trim() {
            "" | "ok" => format!("write {schemata:?}: {error}"),
            said => format!("write {schemata:?}: {said}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::{
        host::tests::{L3, MB, ROOT as FILES, tree},
        *,
    };

    const TEXT: &str = "partitions:\n  p:\n    l3Allocation: \"50%\"\n    classes:\n      gold: {l3Allocation: \"100%\"}\n      \
                        none: {kubernetes: {denyContainerAnnotation: true, denyPodAnnotation: true}}\n      \
                        system/default: {l3Allocation: \"10%\"}\n";

    fn refusal(classes: &Classes, class: &str) -> String {
        classes.resolve(class, Origin::Pod).unwrap_err().to_string()
    }

    #[test]
    fn classes_become_groups_with_schemata_and_their_names_are_given_out() {
        let dir = tempfile::tempdir().unwrap();
        let (file, root) = (dir.path().join("rdt.yaml"), dir.path().join("resctrl"));
        fs::write(&file, TEXT).unwrap();
        let resctrl =
            tree(&root, &[&L3[..], &MB, &FILES, &[("others/tasks", ""), ("others/schemata", "kept")]].concat());
        let classes = Classes::load(Some(&file), Some(resctrl));
        assert!(classes.are_on());
        let schemata = |group: &str| fs::read_to_string(root.join(group).join("schemata")).unwrap();
        assert_eq!(schemata("gold"), "L3:0=3ff;1=3ff\nMB:0=100;1=100\n");
        assert_eq!(schemata("."), "L3:0=1;1=1\nMB:0=100;1=100\n");
        assert_eq!(schemata("others"), "kept");
        assert_eq!(classes.resolve("gold", Origin::Container).unwrap().as_deref(), Some("gold"));
        assert_eq!(classes.resolve("others", Origin::Pod).unwrap().as_deref(), Some("others"));
        assert_eq!(classes.resolve("system/default", Origin::Pod).unwrap(), None);
        assert!(refusal(&classes, "none").ends_with("rdt.yaml does not let a pod's annotation give it"));
        let own = classes.resolve("none", Origin::Container).unwrap_err().to_string();
        assert!(own.ends_with("rdt.yaml does not let a container's annotation give it"), "{own}");
        for unknown in ["silver", "..", "info", "../resctrl/others", "gold/mon_groups"] {
            let error = refusal(&classes, unknown);
            assert!(error.ends_with("has it; the file has gold, none, system/default"), "{error}");
        }
    }

    #[test]
    fn a_class_that_cannot_be_given_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("rdt.yaml");
        let off = Classes::load(None, None);
        assert!(!off.are_on());
        assert_eq!(
            refusal(&off, "gold"),
            "RDT class \"gold\": no classes are configured on this node (rdt_config_file)"
        );
        let without = Classes::load(Some(&file), None);
        assert!(!without.are_on());
        assert!(refusal(&without, "gold").contains("rdt.yaml is not usable: this host has no resctrl file system"));
        let resctrl = tree(&dir.path().join("resctrl"), &[&L3[..], &MB, &FILES].concat());
        let missing = Classes::load(Some(&file), Some(resctrl.clone()));
        assert!(refusal(&missing, "gold").ends_with("rdt.yaml is not usable: No such file or directory (os error 2)"));
        fs::write(&file, TEXT.replace("50%", "150%")).unwrap();
        let wrong = Classes::load(Some(&file), Some(resctrl.clone()));
        assert!(refusal(&wrong, "gold").contains("is not usable: partition \"p\": L3: \"150%\" is not a percentage"));
        // What the kernel does not take is in no other class's way.
        fs::write(&file, TEXT).unwrap();
        fs::create_dir_all(resctrl.root.join("gold/schemata")).unwrap();
        fs::write(resctrl.root.join("info/last_cmd_status"), "Mask out of range\n").unwrap();
        let partly = Classes::load(Some(&file), Some(resctrl));
        assert!(
            refusal(&partly, "gold")
                .ends_with("is wrong about it: write \"L3:0=3ff;1=3ff\\nMB:0=100;1=100\\n\": Mask out of range")
        );
        assert_eq!(partly.resolve("system/default", Origin::Pod).unwrap(), None);
    }
}
