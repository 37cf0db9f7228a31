//! Facts about the host that the OCI spec depends on, read once when the daemon starts.
//!
//! Plain data after that: `oci/` takes them as a value, so a spec is a function of its inputs and a test chooses its host.

use std::{fs, path::Path};

use oci_spec::runtime::Capability;
use rustix::thread::CapabilitySet;

use crate::error::Error;

const CGROUPS: &str = "/sys/fs/cgroup";

/// Which cgroup hierarchies are mounted below `/sys/fs/cgroup`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupMode {
    V1,
    /// Version 1 controllers with an (uncontrolled) version 2 hierarchy beside them.
    Hybrid,
    V2,
}

/// What becomes of limits of huge pages that a container asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HugePages {
    /// Pages of these sizes can be limited, named as the cgroups' files name them: `2MB`.
    Limited(Vec<String>),
    /// The limits are left out.
    PassedOver,
    /// The container is refused.
    Refused,
}

impl HugePages {
    /// As configured: left out everywhere, or, where the host cannot limit them, left out only if that is tolerated.
    pub(crate) fn configured(self, disabled: bool, tolerate_missing: bool) -> HugePages {
        match self {
            _ if disabled => HugePages::PassedOver,
            HugePages::Limited(sizes) => HugePages::Limited(sizes),
            HugePages::PassedOver | HugePages::Refused if tolerate_missing => HugePages::PassedOver,
            HugePages::PassedOver | HugePages::Refused => HugePages::Refused,
        }
    }

    fn read(mode: CgroupMode) -> HugePages {
        match has_controller(Path::new(CGROUPS), mode, "hugetlb") {
            true => HugePages::Limited(huge_page_sizes(Path::new("/sys/kernel/mm/hugepages"))),
            false => HugePages::PassedOver,
        }
    }
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
    pub huge_pages: HugePages,
    /// Swap is accounted, so `memory.swap` can be set.
    pub swap: bool,
}

impl Host {
    /// Reads all facts. Logs once what this host cannot give.
    pub fn read() -> Result<Host, Error> {
        let uname = rustix::system::uname();
        let cgroup = cgroup_mode(Path::new(CGROUPS));
        let host = Host {
            hostname: uname.nodename().to_string_lossy().into_owned(),
            kernel: kernel(),
            cgroup,
            seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            apparmor: apparmor(),
            capabilities: bounding_set()?,
            lowest_oom_score_adj: lowest_oom_score_adj()?,
            huge_pages: HugePages::read(cgroup),
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

/// A controller of version 1 counts where it is mounted, not where there is a directory for it.
fn has_controller(root: &Path, mode: CgroupMode, name: &str) -> bool {
    match mode {
        CgroupMode::V2 => fs::read_to_string(root.join("cgroup.controllers"))
            .is_ok_and(|controllers| controllers.split_whitespace().any(|controller| controller == name)),
        CgroupMode::V1 | CgroupMode::Hybrid => root.join(name).join("cgroup.procs").exists(),
    }
}

/// The sizes that the kernel has, from directories such as `hugepages-2048kB`, in order of their names.
fn huge_page_sizes(pages: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(pages) else { return Vec::new() };
    let kib = |entry: std::io::Result<fs::DirEntry>| -> Option<u64> {
        let name = entry.ok()?.file_name().into_string().ok()?;
        name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()
    };
    let mut sizes: Vec<u64> = entries.filter_map(kib).collect();
    sizes.sort_unstable();
    // As the kernel's hugetlb controller names its files (mm/hugetlb_cgroup.c, mem_fmt).
    let name = |kib: u64| match kib {
        1_048_576.. => format!("{}GB", kib >> 20),
        1024.. => format!("{}MB", kib >> 10),
        _ => format!("{kib}KB"),
    };
    sizes.into_iter().map(name).collect()
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
    fn a_controller_counts_where_it_is_mounted() {
        let root = tempfile::tempdir().unwrap();
        let has = |mode| has_controller(root.path(), mode, "hugetlb");
        fs::create_dir(root.path().join("hugetlb")).unwrap();
        assert!(!has(CgroupMode::Hybrid), "a directory is no hierarchy");
        fs::write(root.path().join("hugetlb/cgroup.procs"), "").unwrap();
        assert!(has(CgroupMode::Hybrid) && has(CgroupMode::V1) && !has(CgroupMode::V2));
        fs::write(root.path().join("cgroup.controllers"), "cpu io hugetlb pids\n").unwrap();
        assert!(has(CgroupMode::V2));
    }

    #[test]
    fn huge_pages_are_named_as_the_cgroups_files() {
        let pages = tempfile::tempdir().unwrap();
        for name in ["hugepages-1048576kB", "hugepages-2048kB", "hugepages-64kB", "other"] {
            fs::create_dir(pages.path().join(name)).unwrap();
        }
        assert_eq!(huge_page_sizes(pages.path()), ["64KB", "2MB", "1GB"]);
        assert_eq!(huge_page_sizes(&pages.path().join("none")), Vec::<String>::new());
    }

    #[test]
    fn limits_of_huge_pages_are_kept_left_out_or_refused() {
        let limited = || HugePages::Limited(vec!["2MB".into()]);
        for (host, disabled, tolerated, expected) in [
            (limited(), false, true, limited()),
            (limited(), false, false, limited()),
            (limited(), true, false, HugePages::PassedOver),
            (HugePages::PassedOver, true, false, HugePages::PassedOver),
            (HugePages::PassedOver, false, true, HugePages::PassedOver),
            (HugePages::PassedOver, false, false, HugePages::Refused),
        ] {
            let case = format!("{host:?}, disabled {disabled}, tolerated {tolerated}");
            assert_eq!(host.configured(disabled, tolerated), expected, "{case}");
        }
    }

    #[test]
    fn reading_the_host_this_runs_on_gives_its_own_kernel() {
        let host = Host::read().unwrap();
        assert!(host.kernel >= (4, 19), "{:?}", host.kernel);
        assert!((-1000..=1000).contains(&host.lowest_oom_score_adj));
        // The controller has a file for every size that the kernel has, in each cgroup but version 2's root.
        if let (HugePages::Limited(sizes), CgroupMode::V1 | CgroupMode::Hybrid) = (&host.huge_pages, host.cgroup) {
            for size in sizes {
                assert!(Path::new(CGROUPS).join(format!("hugetlb/hugetlb.{size}.limit_in_bytes")).exists(), "{size}");
            }
        }
    }
}
