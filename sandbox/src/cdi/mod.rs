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
    config::Handler,
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

/// Fails if devices bring network devices where they cannot be moved into the container.
pub(crate) fn check(edits: &[Edits], handler: &Handler, host_network: bool) -> Result<(), Error> {
    let moved = edits.iter().find_map(|edits| edits.net_devices.first().map(|(host, _)| (&edits.device, host)));
    let Some((device, host)) = moved else { return Ok(()) };
    let what = format!("CDI device {device}: network device {host:?}");
    if host_network {
        return Err(Error::Precondition(format!("{what}: the pod is in the host's network already")));
    }
    handler.check_net_devices().map_err(|why| Error::Unsupported(format!("{what}: {why}")))
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
