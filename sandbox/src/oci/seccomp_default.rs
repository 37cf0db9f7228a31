//! The RuntimeDefault system call filter.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, LinuxSeccomp};

/// The profile of a process with these capabilities on this kernel.
pub(super) fn profile(_capabilities: &HashSet<Capability>, _kernel: (u32, u32)) -> LinuxSeccomp {
    LinuxSeccomp::default()
}
