//! Which AppArmor profile a process gets. Whether the kernel has that profile is `crate::apparmor`'s to see.

use crate::{error::Error, host::Host, model::SecurityProfile};

/// The profile of RuntimeDefault. containerd's name for its own: agents and policies of nodes know it.
pub const DEFAULT_PROFILE: &str = "cri-containerd.apparmor.d";

/// A container's profile; `None` leaves it that of the daemon, which is unconfined.
///
/// What was not asked for is RuntimeDefault where the host has AppArmor (CRI `LinuxContainerSecurityContext.apparmor`).
/// What was asked for and cannot be had is refused: a container never runs with less than it asked for (CVE-2023-2431).
pub fn of_container(profile: &SecurityProfile, privileged: bool, host: &Host) -> Result<Option<String>, Error> {
    match profile {
        SecurityProfile::Unset if host.apparmor && !privileged => Ok(Some(DEFAULT_PROFILE.to_owned())),
        SecurityProfile::Unset | SecurityProfile::Unconfined => Ok(None),
        SecurityProfile::RuntimeDefault | SecurityProfile::Localhost(_) if !host.apparmor => {
            let what = "apparmor is not supported: this host does not have it, or disable_apparmor is set";
            Err(Error::Precondition(what.into()))
        }
        SecurityProfile::RuntimeDefault if privileged => Ok(None),
        SecurityProfile::RuntimeDefault => Ok(Some(DEFAULT_PROFILE.to_owned())),
        // A name of its own also binds a privileged container.
        SecurityProfile::Localhost(name) => {
            Ok(Some(name.strip_prefix("localhost/").unwrap_or(name.as_str()).to_owned()))
        }
    }
}

/// A pause container's profile: none unless the pod asks for one.
///
/// Containers in the pod's PID namespace signal and trace each other whatever their profiles are, so the pause process
/// takes no part in that by itself.
pub fn of_pod(profile: &SecurityProfile, privileged: bool, host: &Host) -> Result<Option<String>, Error> {
    match profile {
        SecurityProfile::Unset => Ok(None),
        SecurityProfile::RuntimeDefault | SecurityProfile::Unconfined | SecurityProfile::Localhost(_) => {
            of_container(profile, privileged, host)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::tests::host;

    #[test]
    fn the_profile_follows_the_request_and_the_host() {
        let check = |profile: SecurityProfile, privileged, apparmor, expected: Result<Option<&str>, &str>| {
            let host = Host { apparmor, ..host() };
            match (of_container(&profile, privileged, &host), expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found.as_deref(), expected, "{profile:?}"),
                (Err(error), Err(expected)) => assert!(error.to_string().starts_with(expected), "{error}"),
                (found, expected) => panic!("{profile:?}: {found:?}, expected {expected:?}"),
            }
        };
        let local = || SecurityProfile::Localhost("localhost/mine".into());
        let refused = Err("apparmor is not supported");
        check(SecurityProfile::Unset, false, true, Ok(Some(DEFAULT_PROFILE)));
        check(SecurityProfile::Unset, true, true, Ok(None));
        check(SecurityProfile::Unset, false, false, Ok(None));
        check(SecurityProfile::Unconfined, false, true, Ok(None));
        check(SecurityProfile::Unconfined, false, false, Ok(None));
        check(SecurityProfile::RuntimeDefault, false, true, Ok(Some(DEFAULT_PROFILE)));
        check(SecurityProfile::RuntimeDefault, true, true, Ok(None));
        check(SecurityProfile::RuntimeDefault, false, false, refused);
        check(local(), false, true, Ok(Some("mine")));
        check(local(), true, true, Ok(Some("mine")));
        check(local(), false, false, refused);
        check(local(), true, false, refused);
    }

    #[test]
    fn a_pause_container_has_a_profile_only_on_request() {
        let host = Host { apparmor: true, ..host() };
        assert_eq!(of_pod(&SecurityProfile::Unset, false, &host).unwrap(), None);
        let asked = of_pod(&SecurityProfile::RuntimeDefault, false, &host).unwrap();
        assert_eq!(asked.as_deref(), Some(DEFAULT_PROFILE));
    }
}
