//! Devices of the Container Device Interface: what a vendor's file on the node says that a container with its device gets.
//!
//! ```text
//! CDI_devices, cdi.k8s.io/… annotations ─► name.rs ─► registry.rs reads /etc/cdi, /var/run/cdi ─► edits.rs changes the spec
//!                                                        document.rs: one file, checked
//! ```
//!
//! The files are the node administrator's, and are believed. They are read at each use, so that a driver that is installed
//! later needs no restart. The source of all rules is SPEC.md of cncf-tags/container-device-interface, version 1.1.

use std::path::PathBuf;

use crate::{
    error::Error,
    model::{ContainerSpec, StringMap},
};

mod document;
pub mod edits;
pub mod name;
pub mod registry;

#[cfg(test)]
mod tests;

pub use edits::{Edits, apply};

/// Looks up all that the container asks for of CDI; `dirs` is `None` where the configuration has CDI disabled. Blocks.
pub(crate) fn resolve(container: &ContainerSpec, dirs: Option<&[PathBuf]>) -> Result<Vec<Edits>, Error> {
    find(&name::requested(&container.cdi_devices, &container.annotations)?, dirs)
}

/// The same of devices that a plugin asks for by their names.
pub(crate) fn resolve_named(devices: &[String], dirs: Option<&[PathBuf]>) -> Result<Vec<Edits>, Error> {
    find(&name::requested(devices, &StringMap::new())?, dirs)
}

fn find(names: &[name::Name], dirs: Option<&[PathBuf]>) -> Result<Vec<Edits>, Error> {
    match (names, dirs) {
        ([], _) => Ok(Vec::new()),
        ([first, ..], None) => {
            Err(Error::Precondition(format!("CDI device {first}: CDI is disabled on this node (enable_cdi = false)")))
        }
        (names, Some(dirs)) => registry::find(dirs, names),
    }
}
