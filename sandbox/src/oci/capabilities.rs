//! Which capabilities a process gets: the default set, CRI's additions and removals, `ALL`, and privileged.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, LinuxCapabilities};

use crate::{error::Error, model::Capabilities};

/// Every capability by its number in linux/capability.h.
pub const KERNEL_ORDER: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// What a container has that asked for nothing.
const DEFAULT: [Capability; 14] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::Fsetid,
    Capability::Fowner,
    Capability::Mknod,
    Capability::NetRaw,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setfcap,
    Capability::Setpcap,
    Capability::NetBindService,
    Capability::SysChroot,
    Capability::Kill,
    Capability::AuditWrite,
];

/// The default set.
pub fn default_set() -> HashSet<Capability> {
    DEFAULT.into_iter().collect()
}

/// What a process has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Granted {
    pub set: HashSet<Capability>,
    /// Of those, what a process that is not root keeps when it runs another program (capabilities(7)).
    pub ambient: HashSet<Capability>,
}

impl From<HashSet<Capability>> for Granted {
    fn from(set: HashSet<Capability>) -> Granted {
        Granted { set, ambient: HashSet::new() }
    }
}

/// The set to begin with as `request` changes it: `ALL` first (add, then drop), then single additions, then single removals,
/// so that adding one and dropping `ALL` leaves that one. What is to be ambient is added as well, unless it is dropped by its
/// name; `ALL` there is all that the process has.
pub fn effective(
    start: HashSet<Capability>,
    request: &Capabilities,
    bounding: &[Capability],
) -> Result<Granted, Error> {
    let (all_added, added) = parse_list(&request.add)?;
    let (all_dropped, dropped) = parse_list(&request.drop)?;
    let (all_ambient, ambient) = parse_list(&request.add_ambient)?;
    let mut set = start;
    if all_added {
        set = bounding.iter().copied().collect();
    }
    if all_dropped {
        set.clear();
    }
    set.extend(added);
    set.extend(&ambient);
    for capability in dropped {
        set.remove(&capability);
    }
    let ambient = match all_ambient {
        true => set.clone(),
        false => ambient.into_iter().filter(|capability| set.contains(capability)).collect(),
    };
    Ok(Granted { set, ambient })
}

/// The sets in the form the runtime wants: bounding, permitted and effective. Inheritable and ambient are empty unless
/// asked for, or a program without file capabilities would keep them (CVE-2022-24769).
pub fn to_linux(granted: &Granted) -> LinuxCapabilities {
    let (set, ambient) = (&granted.set, (!granted.ambient.is_empty()).then(|| granted.ambient.clone()));
    let mut linux = LinuxCapabilities::default();
    linux
        .set_bounding(Some(set.clone()))
        .set_permitted(Some(set.clone()))
        .set_effective(Some(set.clone()))
        // The kernel takes into the ambient set only what is inheritable.
        .set_inheritable(ambient.clone())
        .set_ambient(ambient);
    linux
}

/// Whether `ALL` is among the names, and the others.
fn parse_list(names: &[String]) -> Result<(bool, Vec<Capability>), Error> {
    let all = names.iter().any(|name| is_all(name));
    let single = names.iter().filter(|name| !is_all(name)).map(|name| parse(name)).collect::<Result<_, _>>()?;
    Ok((all, single))
}

fn is_all(name: &str) -> bool {
    name.eq_ignore_ascii_case("ALL")
}

fn parse(name: &str) -> Result<Capability, Error> {
    let upper = name.to_ascii_uppercase();
    let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
    KERNEL_ORDER
        .into_iter()
        .find(|capability| capability.to_string() == short)
        .ok_or_else(|| Error::Invalid(format!("unknown capability {name:?}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(add: &[&str], drop: &[&str], ambient: &[&str]) -> Capabilities {
        let list = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Capabilities { add: list(add), drop: list(drop), add_ambient: list(ambient) }
    }

    fn sorted(set: &HashSet<Capability>) -> String {
        let mut names: Vec<String> = set.iter().map(ToString::to_string).collect();
        names.sort();
        names.join(" ")
    }

    fn names(add: &[&str], drop: &[&str]) -> String {
        let bounding = [Capability::Chown, Capability::NetAdmin, Capability::SysAdmin];
        match effective(default_set(), &request(add, drop, &[]), &bounding) {
            Ok(granted) => sorted(&granted.set),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn the_algebra_of_adding_and_dropping() {
        let table = [
            (&["NET_ADMIN"][..], &["ALL"][..]),
            (&["ALL"], &[]),
            (&["ALL"], &["CAP_NET_ADMIN"]),
            (&["ALL"], &["ALL"]),
            (&["all", "Cap_Sys_Time"], &[]),
            (&["SYS_TIME"], &["sys_time", "ALL"]),
            (&[], &["ALL"]),
            (&["FLY"], &[]),
            (&[], &["MKNOD", "NET_RAW", "KILL"]),
        ];
        let lines: Vec<String> =
            table.iter().map(|(add, drop)| format!("+{add:?} -{drop:?} = {{{}}}", names(add, drop))).collect();
        insta::assert_snapshot!(lines.join("\n"), @r##"
        +["NET_ADMIN"] -["ALL"] = {NET_ADMIN}
        +["ALL"] -[] = {CHOWN NET_ADMIN SYS_ADMIN}
        +["ALL"] -["CAP_NET_ADMIN"] = {CHOWN SYS_ADMIN}
        +["ALL"] -["ALL"] = {}
        +["all", "Cap_Sys_Time"] -[] = {CHOWN NET_ADMIN SYS_ADMIN SYS_TIME}
        +["SYS_TIME"] -["sys_time", "ALL"] = {}
        +[] -["ALL"] = {}
        +["FLY"] -[] = {unknown capability "FLY"}
        +[] -["MKNOD", "NET_RAW", "KILL"] = {AUDIT_WRITE CHOWN DAC_OVERRIDE FOWNER FSETID NET_BIND_SERVICE SETFCAP SETGID SETPCAP SETUID SYS_CHROOT}
        "##);
    }

    #[test]
    fn inheritable_and_ambient_are_empty_unless_asked_for() {
        let linux = to_linux(&default_set().into());
        assert_eq!((linux.inheritable(), linux.ambient()), (&None, &None));
        assert_eq!(linux.bounding().as_ref().unwrap().len(), 14);
        let check = |add: &[&str], drop: &[&str], ambient: &[&str], set: &str, expected: &str| {
            let granted = effective(default_set(), &request(add, drop, ambient), &[]).unwrap();
            assert_eq!((sorted(&granted.set).as_str(), sorted(&granted.ambient).as_str()), (set, expected));
            let linux = to_linux(&granted);
            assert_eq!((linux.inheritable(), linux.permitted()), (linux.ambient(), linux.bounding()));
        };
        check(&[], &["ALL"], &["net_bind_service"], "NET_BIND_SERVICE", "NET_BIND_SERVICE");
        check(&["KILL"], &["ALL"], &["NET_ADMIN"], "KILL NET_ADMIN", "NET_ADMIN");
        check(&["KILL"], &["ALL"], &["ALL"], "KILL", "KILL");
        check(&[], &["ALL", "NET_ADMIN"], &["NET_ADMIN"], "", "");
        assert!(effective(default_set(), &request(&[], &[], &["FLY"]), &[]).is_err());
    }
}
