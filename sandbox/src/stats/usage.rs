//! What a cgroup has used and may use, whichever version of cgroups counted it. Plain data.

use super::psi::Pressure;

/// One reading of one cgroup and all below it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CgroupUsage {
    pub cpu: Cpu,
    /// `None` where the memory controller is not enabled; so are the other options.
    pub memory: Option<Memory>,
    pub io: Io,
    pub pids: Option<Pids>,
    /// One for each size of huge pages that the controller knows.
    pub hugetlb: Vec<Hugetlb>,
}

/// Times in nanoseconds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Cpu {
    pub usage: u64,
    pub user: u64,
    pub system: u64,
    pub periods: u64,
    pub throttled_periods: u64,
    pub throttled: u64,
    pub shares: u64,
    /// Microseconds.
    pub period: u64,
    /// Microseconds in each period; `None` without a limit.
    pub quota: Option<u64>,
    pub pressure: Option<Pressure>,
}

/// Bytes and counts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Memory {
    pub usage: u64,
    pub limit: Option<u64>,
    /// The most that was used at any time.
    pub max_usage: u64,
    /// What is protected from reclaim, or reclaimed last.
    pub reservation: Option<u64>,
    /// Page cache.
    pub cache: u64,
    /// Anonymous memory.
    pub rss: u64,
    pub mapped_file: u64,
    pub kernel: u64,
    pub active_file: u64,
    pub inactive_file: u64,
    /// How often the limit was hit.
    pub limit_hits: u64,
    pub page_faults: u64,
    pub major_page_faults: u64,
    /// Those of the cgroup itself, without the ones below it. Version 2 does not tell them apart.
    pub own_page_faults: u64,
    pub own_major_page_faults: u64,
    /// Processes killed for memory.
    pub oom_kills: u64,
    pub swap: Option<Swap>,
    pub pressure: Option<Pressure>,
}

/// Bytes of swap alone, without memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swap {
    pub usage: u64,
    pub limit: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Io {
    /// By major and minor number.
    pub devices: Vec<DeviceIo>,
    pub pressure: Option<Pressure>,
}

/// One block device.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    pub major: u64,
    pub minor: u64,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Processes and threads together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pids {
    pub current: u64,
    pub limit: Option<u64>,
}

/// Huge pages of one size (`2MB`), in bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hugetlb {
    pub size: String,
    pub usage: u64,
    /// `None` on version 2, which does not keep it.
    pub max_usage: Option<u64>,
}

impl Memory {
    /// What cannot be had back without harm: all but the page cache that was not used lately.
    pub fn working_set(&self) -> u64 {
        self.usage.saturating_sub(self.inactive_file)
    }

    /// What is left below the limit; zero without one, as containerd has it.
    pub fn available(&self) -> u64 {
        self.limit.map_or(0, |limit| limit.saturating_sub(self.working_set()))
    }
}

impl CgroupUsage {
    /// CPU time and memory of two cgroups, neither below the other. Limits and pressure have no sum.
    pub(super) fn plus(&self, other: &CgroupUsage) -> CgroupUsage {
        let memory = match (&self.memory, &other.memory) {
            (Some(one), Some(two)) => Some(Memory {
                usage: one.usage + two.usage,
                cache: one.cache + two.cache,
                rss: one.rss + two.rss,
                mapped_file: one.mapped_file + two.mapped_file,
                kernel: one.kernel + two.kernel,
                active_file: one.active_file + two.active_file,
                inactive_file: one.inactive_file + two.inactive_file,
                page_faults: one.page_faults + two.page_faults,
                major_page_faults: one.major_page_faults + two.major_page_faults,
                oom_kills: one.oom_kills + two.oom_kills,
                ..Memory::default()
            }),
            (one, two) => one.clone().or_else(|| two.clone()),
        };
        let cpu = Cpu {
            usage: self.cpu.usage + other.cpu.usage,
            user: self.cpu.user + other.cpu.user,
            system: self.cpu.system + other.cpu.system,
            ..Cpu::default()
        };
        CgroupUsage { cpu, memory, ..CgroupUsage::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_working_set_and_what_is_left_never_wrap() {
        let check = |usage, inactive_file, limit, expected: (u64, u64)| {
            let memory = Memory { usage, inactive_file, limit, ..Memory::default() };
            assert_eq!((memory.working_set(), memory.available()), expected);
        };
        check(100, 30, Some(200), (70, 130));
        check(100, 130, Some(200), (0, 200));
        check(100, 0, Some(90), (100, 0));
        check(100, 30, None, (70, 0));
    }
}
