//! Seccomp profiles as the programs that the kernel runs for each system call.
//!
//! OCI runtimes compile a profile when they start a container, and tell nobody what came out. Where processes begin otherwise,
//! as those of a checkpoint do, the daemon has to say what they run under; so it compiles profiles by itself, to
//! filters that do what runc's do.
//!
//! ```text
//! profile ─► rules.rs: for each ABI, rules by numbers (numbers.rs) ─► ranges of numbers ─► program.rs: instructions
//! ```
//!
//! Known differences from runc and libseccomp, none of which passes what the profile does not pass:
//! - A name that a runtime's libseccomp is too old to know is followed as the profile has it; there it is passed over.
//! - Rules that contradict each other: see rules.rs.
//! - Sockets and System V IPC of 32-bit x86, made through `socketcall` and `ipc`: a rule about arguments passes nothing there.
//! - A handler's runtime allows speculative stores (SPEC_ALLOW) unless the profile has a list of flags; here they are
//!   allowed only if it says so.

mod numbers;
pub(crate) mod program;
mod rules;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag};

use crate::Error;
use numbers::Abi;
use program::{Instruction, MAX_INSTRUCTIONS};

/// Flags of seccomp(2) that a filter is loaded with.
pub(crate) const FLAG_TSYNC: u32 = 1;
pub(crate) const FLAG_LOG: u32 = 1 << 1;
pub(crate) const FLAG_SPEC_ALLOW: u32 = 1 << 2;

/// A profile as it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Filter {
    pub(crate) program: Vec<Instruction>,
    pub(crate) flags: u32,
}

/// Compiles a profile for this machine. Fails on one that cannot be followed as it is written.
pub(crate) fn compile(profile: &LinuxSeccomp) -> Result<Filter, Error> {
    compile_for(profile, Abi::of_this_machine())
}

fn compile_for(profile: &LinuxSeccomp, abis: &[Abi]) -> Result<Filter, Error> {
    let mut flags = 0;
    for flag in profile.flags().iter().flatten() {
        flags |= match flag {
            LinuxSeccompFilterFlag::SeccompFilterFlagLog => FLAG_LOG,
            LinuxSeccompFilterFlag::SeccompFilterFlagSpecAllow => FLAG_SPEC_ALLOW,
            // All threads get the filter anyway.
            LinuxSeccompFilterFlag::SeccompFilterFlagTsync => 0,
            LinuxSeccompFilterFlag::SeccompFilterFlagWaitKillableRecv => {
                return Err(Error::Unsupported(
                    "seccomp profile: the flag SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV is of filters that notify an agent".into(),
                ));
            }
        };
    }
    let program = program::filter(&rules::ranges(profile, abis)?, rules::KILL_THREAD);
    if program.len() > MAX_INSTRUCTIONS {
        return Err(Error::Invalid(format!(
            "seccomp profile: as a filter it has {} instructions, the kernel takes {MAX_INSTRUCTIONS}; name fewer arguments",
            program.len()
        )));
    }
    Ok(Filter { program, flags })
}

#[cfg(test)]
mod tests;
