//! Which system call filter a process gets: none, ours, or one from a file of the node.

use std::{
    collections::HashSet,
    fs::File,
    io::{self, Read},
    path::Path,
};

use oci_spec::runtime::{Capability, LinuxSeccomp};

use super::seccomp_default;
use crate::{error::Error, host::Host, model::SecurityProfile};

/// Larger than any filter that the kernel would load.
const MAX_PROFILE: u64 = 16 << 20;

/// Reads the file that a Localhost profile names; `None` for the other kinds. Blocks.
///
/// Nothing here ever falls back to no filter: a profile that was asked for and cannot be had fails the container
/// (CVE-2023-2431).
pub fn read_profile(profile: &SecurityProfile) -> Result<Option<LinuxSeccomp>, Error> {
    let SecurityProfile::Localhost(name) = profile else { return Ok(None) };
    let name = name.strip_prefix("localhost/").unwrap_or(name);
    if !Path::new(name).is_absolute() {
        return Err(Error::Invalid(format!("seccomp profile {name:?}: localhost_ref has to be an absolute path")));
    }
    let failed = |error: io::Error| Error::failed(format!("read seccomp profile {name}"), error);
    let mut text = Vec::new();
    File::open(name).and_then(|file| file.take(MAX_PROFILE).read_to_end(&mut text)).map_err(failed)?;
    let parsed = serde_json::from_slice(&text);
    parsed.map(Some).map_err(|error| Error::failed(format!("parse seccomp profile {name}"), error))
}

/// What a filter depends on, besides the profile.
pub(super) struct Process<'a> {
    pub(super) privileged: bool,
    /// Final: the default profile unlocks calls by them.
    pub(super) capabilities: &'a HashSet<Capability>,
    pub(super) host: &'a Host,
    /// What [`read_profile`] found.
    pub(super) localhost: Option<&'a LinuxSeccomp>,
}

/// The filter of a process; `None` is no filter.
pub(super) fn filter(profile: &SecurityProfile, process: &Process<'_>) -> Result<Option<LinuxSeccomp>, Error> {
    if process.privileged {
        return Ok(None);
    }
    let filter = match profile {
        SecurityProfile::Unset | SecurityProfile::Unconfined => return Ok(None),
        SecurityProfile::RuntimeDefault => seccomp_default::profile(process.capabilities, process.host.kernel),
        SecurityProfile::Localhost(name) => {
            process.localhost.cloned().ok_or_else(|| Error::plain(format!("seccomp profile {name:?} was not read")))?
        }
    };
    if !process.host.seccomp {
        return Err(Error::Precondition("seccomp is not supported by this host's kernel".into()));
    }
    Ok(Some(filter))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_localhost_profile_that_cannot_be_had_is_an_error_and_never_no_filter() {
        let dir = tempfile::tempdir().unwrap();
        let bad = dir.path().join("bad.json");
        fs::write(&bad, "{").unwrap();
        let path = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        for name in ["".to_owned(), "profile.json".into(), path("missing.json"), path(""), path("bad.json")] {
            let error = read_profile(&SecurityProfile::Localhost(name.clone())).unwrap_err();
            assert!(error.to_string().contains(name.trim_end_matches('/')), "{error}");
        }
    }

    #[test]
    fn a_localhost_profile_is_read_as_it_is_with_or_without_the_old_prefix() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let text = r#"{"defaultAction":"SCMP_ACT_LOG","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]}"#;
        fs::write(file.path(), text).unwrap();
        let path = file.path().to_str().unwrap();
        for name in [path.to_owned(), format!("localhost/{path}")] {
            let profile = read_profile(&SecurityProfile::Localhost(name)).unwrap().unwrap();
            assert_eq!(serde_json::to_string(&profile).unwrap(), text);
        }
        assert_eq!(read_profile(&SecurityProfile::RuntimeDefault).unwrap(), None);
    }
}
