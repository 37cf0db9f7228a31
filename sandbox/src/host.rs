//! Facts about the host that the OCI spec depends on, read once when the daemon starts.
//!
//! Plain data after that: `oci/` takes them as a value, so a spec is a function of its inputs and a test chooses its host.

use std::{fs, path::Path};

use oci_spec::runtime::Capability;
use rustix::thread::CapabilitySet;

use crate::error::Error;

/// Which cgroup hierarchies are mounted below `/sys/fs/cgroup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupMode {
    V1,
    /// Version 1 controllers with an (uncontrolled) version 2 hierarchy beside them.
    Hybrid,
    V2,
}

/// The host as a container's spec sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    pub hostname: String,
    /// Major and minor version.
    pub kernel: (u32, u32),
    pub cgroup: CgroupMode,
    /// The kernel can filter system calls.
    pub seccomp: bool,
    /// The kernel has AppArmor and the host its parser; not inside a container, where profiles are the outer host's.
    pub apparmor: bool,
    /// The bounding set of this process, in the kernel's order: what `ALL` and `privileged` grant.
    pub capabilities: Vec<Capability>,
    /// The lowest `oom_score_adj` that a child of ours may be given; −1000 with CAP_SYS_RESOURCE on the host.
    pub lowest_oom_score_adj: i32,
    /// Huge pages can be limited.
    pub hugetlb: bool,
    /// They cannot, and a container that asks for it is to be refused instead of made without.
    pub hugetlb_required: bool,
    /// Swap is accounted, so `memory.swap` can be set.
    pub swap: bool,
}

impl Host {
    /// Reads all facts. Logs once what this host cannot give.
    pub fn read() -> Result<Host, Error> {
        let uname = rustix::system::uname();
        let cgroup = cgroup_mode(Path::new("/sys/fs/cgroup"));
        let host = Host {
            hostname: uname.nodename().to_string_lossy().into_owned(),
            kernel: kernel(),
            cgroup,
            seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            apparmor: apparmor(),
            capabilities: bounding_set()?,
            lowest_oom_score_adj: lowest_oom_score_adj()?,
            hugetlb: has_controller(cgroup, "hugetlb"),
            hugetlb_required: false,
            swap: has_swap_accounting(cgroup),
        };
        if host.lowest_oom_score_adj > -1000 {
            tracing::warn!(
                lowest = host.lowest_oom_score_adj,
                "no CAP_SYS_RESOURCE on the host: lower oom_score_adj values are raised to the lowest that is allowed"
            );
        }
        Ok(host)
    }
}

/// Major and minor version of the running kernel.
pub(crate) fn kernel() -> (u32, u32) {
    parse_kernel(&rustix::system::uname().release().to_string_lossy())
}

fn parse_kernel(release: &str) -> (u32, u32) {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

fn cgroup_mode(root: &Path) -> CgroupMode {
    if root.join("cgroup.controllers").exists() {
        CgroupMode::V2
    } else if root.join("unified/cgroup.procs").exists() {
        CgroupMode::Hybrid
    } else {
        CgroupMode::V1
    }
}

fn has_controller(mode: CgroupMode, name: &str) -> bool {
    match mode {
        CgroupMode::V2 => fs::read_to_string("/sys/fs/cgroup/cgroup.controllers")
            .is_ok_and(|controllers| controllers.split_whitespace().any(|controller| controller == name)),
        CgroupMode::V1 | CgroupMode::Hybrid => Path::new("/sys/fs/cgroup").join(name).is_dir(),
    }
}

/// On v1 the root's file exists only with swap accounting; on v2 the root cgroup has no limits at all, so the question
/// is put to the cgroup that this process is in, and to the first one below the root that has the controller.
fn has_swap_accounting(mode: CgroupMode) -> bool {
    match mode {
        CgroupMode::V1 | CgroupMode::Hybrid => Path::new("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes").exists(),
        CgroupMode::V2 => {
            let Ok(children) = fs::read_dir("/sys/fs/cgroup") else { return false };
            children.flatten().any(|child| child.path().join("memory.swap.max").exists())
        }
    }
}

fn apparmor() -> bool {
    // systemd(1) and the managers of system containers set the variable.
    std::env::var_os("container").is_none_or(|value| value.is_empty())
        && Path::new("/sys/kernel/security/apparmor").exists()
        && Path::new("/sbin/apparmor_parser").exists()
        && fs::read_to_string("/sys/module/apparmor/parameters/enabled").is_ok_and(|text| text.starts_with('Y'))
}

fn bounding_set() -> Result<Vec<Capability>, Error> {
    let mut found = Vec::new();
    for (capability, bit) in crate::oci::capabilities::KERNEL_ORDER.iter().copied().zip(0u32..) {
        let set = CapabilitySet::from_bits_retain(1 << bit);
        match rustix::thread::capability_is_in_bounding_set(set) {
            Ok(true) => found.push(capability),
            Ok(false) => {}
            // An older kernel does not know the newer capabilities.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(Error::failed("read the capability bounding set", error)),
        }
    }
    Ok(found)
}

/// The kernel refuses a value below the process's own minimum unless CAP_SYS_RESOURCE is held in the first user
/// namespace. The minimum is inherited and only a privileged write lowers it, so the present value stands for it.
fn lowest_oom_score_adj() -> Result<i32, Error> {
    let sets = rustix::thread::capabilities(None).map_err(|error| Error::failed("read capabilities", error))?;
    if sets.effective.contains(CapabilitySet::SYS_RESOURCE) && in_first_user_namespace() {
        return Ok(-1000);
    }
    let path = "/proc/self/oom_score_adj";
    let text = fs::read_to_string(path).map_err(|error| Error::failed(format!("read {path}"), error))?;
    text.trim().parse().map_err(|error| Error::failed(format!("parse {path}"), error))
}

fn in_first_user_namespace() -> bool {
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| map.split_whitespace().eq(["0", "0", "4294967295"]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernel_release_is_parsed_whatever_follows_the_numbers() {
        assert_eq!(parse_kernel("6.18.3-cloud-amd64"), (6, 18));
        assert_eq!(parse_kernel("5.4"), (5, 4));
        assert_eq!(parse_kernel("odd"), (0, 0));
    }

    #[test]
    fn the_cgroup_mode_is_told_by_the_files_at_the_root() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(cgroup_mode(root.path()), CgroupMode::V1);
        fs::create_dir(root.path().join("unified")).unwrap();
        fs::write(root.path().join("unified/cgroup.procs"), "").unwrap();
        assert_eq!(cgroup_mode(root.path()), CgroupMode::Hybrid);
        fs::write(root.path().join("cgroup.controllers"), "").unwrap();
        assert_eq!(cgroup_mode(root.path()), CgroupMode::V2);
    }

    #[test]
    fn reading_the_host_this_runs_on_gives_its_own_kernel() {
        let host = Host::read().unwrap();
        assert!(host.kernel >= (4, 19), "{:?}", host.kernel);
        assert!((-1000..=1000).contains(&host.lowest_oom_score_adj));
    }
}
