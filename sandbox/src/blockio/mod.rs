//! Classes of block I/O: weights and limits for this node's disks under a name, which annotations of pods and NRI plugins
//! give to containers (`blockio_config_file`).
//!
//! ```text
//! blockio_config_file ─► document.rs, when the daemon starts ─► a container's class ─► devices.rs ─► linux.resources.blockIO
//! ```
//!
//! The file's form is that of goresctrl's `doc/blockio.md`, which containerd uses. Its devices are looked for at each use, so
//! a disk that comes later needs no restart.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use oci_spec::runtime::LinuxBlockIo;

use crate::error::Error;

mod devices;
mod document;
mod quantity;

/// What the configuration has of classes.
#[derive(Debug)]
pub(crate) struct Classes(State);

#[derive(Debug)]
enum State {
    /// No file is configured.
    Off,
    /// The file is of no use.
    Broken { file: PathBuf, why: String },
    On {
        file: PathBuf,
        /// A class that is wrong says why to whoever asks for it, and is in nobody else's way.
        classes: BTreeMap<String, Result<Vec<document::Entry>, String>>,
    },
}

impl Classes {
    /// Reads the file. What is wrong in it is logged: the node serves everyone who asks for none of it. Blocks.
    pub(crate) fn load(file: Option<&Path>) -> Classes {
        let Some(file) = file else { return Classes(State::Off) };
        let read = fs::read_to_string(file).map_err(|error| error.to_string());
        let file = file.to_owned();
        match read.and_then(|text| document::parse(&text)) {
            Ok(classes) => {
                for (name, class) in &classes {
                    if let Err(why) = class {
                        tracing::warn!(class = name, why, file = %file.display(), "a block IO class is not usable");
                    }
                }
                Classes(State::On { file, classes })
            }
            Err(why) => {
                tracing::error!(file = %file.display(), why, "block IO classes are not usable");
                Classes(State::Broken { file, why })
            }
        }
    }

    pub(crate) fn are_on(&self) -> bool {
        matches!(self.0, State::On { .. })
    }

    /// What a container of this class gets, with the devices there are now. Blocks.
    pub(crate) fn resolve(&self, class: &str) -> Result<LinuxBlockIo, Error> {
        let refused = |why: String| Err(Error::Precondition(format!("block IO class {class:?}: {why}")));
        match &self.0 {
            State::Off => refused("no classes are configured on this node (blockio_config_file)".into()),
            State::Broken { file, why } => refused(format!("{} is not usable: {why}", file.display())),
            State::On { file, classes } => match classes.get(class) {
                Some(Ok(entries)) => Ok(devices::to_oci(entries)),
                Some(Err(why)) => refused(format!("{} is wrong about it: {why}", file.display())),
                None => {
                    let known: Vec<&str> = classes.keys().map(String::as_str).collect();
                    refused(format!("{} has none of this name but {}", file.display(), known.join(", ")))
                }
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_that_cannot_be_given_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("classes.yaml");
        let refusal = |classes: &Classes, class: &str| classes.resolve(class).unwrap_err().to_string();
        let off = Classes::load(None);
        assert!(!off.are_on());
        assert_eq!(
            refusal(&off, "slow"),
            "block IO class \"slow\": no classes are configured on this node (blockio_config_file)"
        );
        let missing = Classes::load(Some(&file));
        assert!(!missing.are_on());
        assert!(
            refusal(&missing, "slow").ends_with("classes.yaml is not usable: No such file or directory (os error 2)")
        );
        fs::write(&file, "Classes:\n  slow:\n  - Weight: 5\n  fast:\n  - Weight: 500\n").unwrap();
        let loaded = Classes::load(Some(&file));
        assert!(loaded.are_on());
        assert!(refusal(&loaded, "slow").ends_with("is wrong about it: Weight: 5 is not between 10 and 1000"));
        assert!(refusal(&loaded, "none").ends_with("classes.yaml has none of this name but fast, slow"));
        assert_eq!(loaded.resolve("fast").unwrap().weight(), Some(500));
    }
}
