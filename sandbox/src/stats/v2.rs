//! cgroup version 2: one directory with the files of all enabled controllers.
//!
//! The kernel documents the files in `Documentation/admin-guide/cgroup-v2.rst`. Times are in microseconds there.

use std::path::Path;

use super::{
    CgroupUsage, Cpu, DeviceIo, Hugetlb, Io, Memory, Pids, Swap,
    cgroup::{Cgroup, keyed, parse_device, parse_limit},
};

/// All that the cgroup tells; `None` if it is not there.
pub(super) fn read(directory: &Path) -> Option<CgroupUsage> {
    let cgroup = Cgroup(directory.to_owned());
    Some(CgroupUsage {
        cpu: read_cpu(&cgroup)?,
        memory: read_memory(&cgroup),
        io: Io {
            devices: parse_devices(&cgroup.text("io.stat").unwrap_or_default()),
            pressure: cgroup.pressure("io.pressure"),
        },
        pids: read_pids(&cgroup),
        hugetlb: read_hugetlb(&cgroup),
    })
}

pub(super) fn cpu_time(directory: &Path) -> Option<u64> {
    let stat = Cgroup(directory.to_owned()).text("cpu.stat")?;
    Some(keyed(&stat, "usage_usec")?.saturating_mul(1000))
}

fn read_cpu(cgroup: &Cgroup) -> Option<Cpu> {
    let stat = cgroup.text("cpu.stat")?;
    let nanoseconds = |key: &str| keyed(&stat, key).unwrap_or_default().saturating_mul(1000);
    let count = |key: &str| keyed(&stat, key).unwrap_or_default();
    let (quota, period) = parse_max(&cgroup.text("cpu.max").unwrap_or_default());
    Some(Cpu {
        usage: keyed(&stat, "usage_usec")?.saturating_mul(1000),
        user: nanoseconds("user_usec"),
        system: nanoseconds("system_usec"),
        periods: count("nr_periods"),
        throttled_periods: count("nr_throttled"),
        throttled: nanoseconds("throttled_usec"),
        shares: cgroup.number("cpu.weight").map(shares_of_weight).unwrap_or_default(),
        period,
        quota,
        pressure: cgroup.pressure("cpu.pressure"),
    })
}

/// `20000 100000` or `max 100000`: the quota and its period.
fn parse_max(text: &str) -> (Option<u64>, u64) {
    let mut fields = text.split_whitespace();
    let quota = fields.next().and_then(|quota| quota.parse().ok());
    (quota, fields.next().and_then(|period| period.parse().ok()).unwrap_or_default())
}

/// The inverse of the linear mapping of shares 2…262144 to weights 1…10000 by which OCI runtimes write weights.
fn shares_of_weight(weight: u64) -> u64 {
    2 + weight.saturating_sub(1) * 262_142 / 9_999
}

fn read_memory(cgroup: &Cgroup) -> Option<Memory> {
    let stat = cgroup.text("memory.stat")?;
    let events = cgroup.text("memory.events").unwrap_or_default();
    let usage = cgroup.number("memory.current")?;
    let swap = cgroup
        .number("memory.swap.current")
        .map(|usage| Swap { usage, limit: cgroup.text("memory.swap.max").as_deref().and_then(parse_limit) });
    Some(Memory {
        usage,
        limit: cgroup.number("memory.max"),
        // The file is there since Linux 5.19. Before, what is used now is the most that is known to have been used.
        max_usage: cgroup.number("memory.peak").unwrap_or(usage),
        // No protection is 0 here.
        reservation: cgroup.number("memory.low").filter(|low| *low > 0),
        limit_hits: keyed(&events, "max").unwrap_or_default(),
        oom_kills: keyed(&events, "oom_kill").unwrap_or_default(),
        swap,
        pressure: cgroup.pressure("memory.pressure"),
        ..parse_stat(&stat)
    })
}

fn parse_stat(stat: &str) -> Memory {
    let value = |key: &str| keyed(stat, key).unwrap_or_default();
    let (faults, major) = (value("pgfault"), value("pgmajfault"));
    Memory {
        cache: value("file"),
        rss: value("anon"),
        mapped_file: value("file_mapped"),
        // The sum is there since Linux 5.18, its largest parts before.
        kernel: keyed(stat, "kernel").unwrap_or_else(|| value("kernel_stack") + value("slab")),
        active_file: value("active_file"),
        inactive_file: value("inactive_file"),
        page_faults: faults,
        major_page_faults: major,
        own_page_faults: faults,
        own_major_page_faults: major,
        ..Memory::default()
    }
}

/// Lines of `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0`. A device without any counter is left out.
fn parse_devices(text: &str) -> Vec<DeviceIo> {
    let device = |line: &str| {
        let (device, counters) = line.split_once(' ')?;
        let (major, minor) = parse_device(device)?;
        let value = |name: &str| {
            let mut fields = counters.split_whitespace();
            fields.find_map(|field| field.strip_prefix(name)?.strip_prefix('=')?.parse::<u64>().ok())
        };
        Some(DeviceIo {
            major,
            minor,
            read_bytes: value("rbytes")?,
            written_bytes: value("wbytes")?,
            reads: value("rios")?,
            writes: value("wios")?,
        })
    };
    let mut devices: Vec<DeviceIo> = text.lines().filter_map(device).collect();
    devices.sort_by_key(|device| (device.major, device.minor));
    devices
}

fn read_pids(cgroup: &Cgroup) -> Option<Pids> {
    Some(Pids { current: cgroup.number("pids.current")?, limit: cgroup.number("pids.max") })
}

fn read_hugetlb(cgroup: &Cgroup) -> Vec<Hugetlb> {
    let sizes = cgroup.huge_page_sizes("current").into_iter();
    sizes
        .map(|size| Hugetlb {
            usage: cgroup.number(&format!("hugetlb.{size}.current")).unwrap_or_default(),
            max_usage: None,
            size,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::stats::{Pressure, Stall};

    const STAT: &str = "anon 8192\nfile 4096\nkernel 400\nkernel_stack 16\nslab 100\nfile_mapped 1024\n\
        inactive_anon 1\nactive_anon 2\ninactive_file 2048\nactive_file 1000\npgfault 60\npgmajfault 6\n";

    fn cgroup(files: &[(&str, &str)]) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (file, text) in files {
            fs::write(directory.path().join(file), text).unwrap();
        }
        directory
    }

    #[test]
    fn a_cgroup_with_all_controllers_is_read() {
        let directory = cgroup(&[
            (
                "cpu.stat",
                "usage_usec 3\nuser_usec 1\nsystem_usec 2\nnr_periods 10\nnr_throttled 4\nthrottled_usec 777\n",
            ),
            ("cpu.max", "20000 100000\n"),
            ("cpu.weight", "100\n"),
            ("cpu.pressure", "some avg10=0.50 avg60=0.00 avg300=0.00 total=9\n"),
            ("memory.stat", STAT),
            ("memory.current", "20000\n"),
            ("memory.max", "67108864\n"),
            ("memory.peak", "30000\n"),
            ("memory.low", "0\n"),
            ("memory.events", "low 0\nhigh 0\nmax 2\noom 1\noom_kill 3\noom_group_kill 0\n"),
            ("memory.swap.current", "512\n"),
            ("memory.swap.max", "max\n"),
            ("io.stat", "253:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:0 \n"),
            ("pids.current", "5\n"),
            ("pids.max", "100\n"),
            ("hugetlb.2MB.current", "2097152\n"),
            ("hugetlb.2MB.rsvd.current", "0\n"),
        ]);
        let cpu = Cpu {
            usage: 3000,
            user: 1000,
            system: 2000,
            periods: 10,
            throttled_periods: 4,
            throttled: 777_000,
            shares: 2597,
            period: 100_000,
            quota: Some(20_000),
            pressure: Some(Pressure {
                some: Stall { total: 9000, avg10: 0.5, ..Stall::default() },
                full: Stall::default(),
            }),
        };
        let memory = Memory {
            usage: 20_000,
            limit: Some(67_108_864),
            max_usage: 30_000,
            reservation: None,
            cache: 4096,
            rss: 8192,
            mapped_file: 1024,
            kernel: 400,
            active_file: 1000,
            inactive_file: 2048,
            limit_hits: 2,
            page_faults: 60,
            major_page_faults: 6,
            own_page_faults: 60,
            own_major_page_faults: 6,
            oom_kills: 3,
            swap: Some(Swap { usage: 512, limit: None }),
            pressure: None,
        };
        let device = DeviceIo { major: 253, minor: 0, read_bytes: 10, written_bytes: 20, reads: 1, writes: 2 };
        let expected = CgroupUsage {
            cpu,
            memory: Some(memory),
            io: Io { devices: vec![device], pressure: None },
            pids: Some(Pids { current: 5, limit: Some(100) }),
            hugetlb: vec![Hugetlb { size: "2MB".into(), usage: 2_097_152, max_usage: None }],
        };
        assert_eq!(read(directory.path()), Some(expected));
        assert_eq!(cpu_time(directory.path()), Some(3000));
    }

    #[test]
    fn a_cgroup_without_controllers_still_has_its_cpu_time() {
        let directory = cgroup(&[("cpu.stat", "usage_usec 3\nuser_usec 1\nsystem_usec 2\n")]);
        let cpu = Cpu { usage: 3000, user: 1000, system: 2000, ..Cpu::default() };
        assert_eq!(read(directory.path()), Some(CgroupUsage { cpu, ..CgroupUsage::default() }));
        assert_eq!(read(&directory.path().join("gone")), None);
    }

    #[test]
    fn older_kernels_lack_the_peak_and_the_sum_of_kernel_memory() {
        let directory = cgroup(&[
            ("cpu.stat", "usage_usec 0\n"),
            ("memory.current", "20000\n"),
            ("memory.stat", "anon 1\nkernel_stack 16\nslab 100\n"),
        ]);
        let memory = read(directory.path()).unwrap().memory.unwrap();
        assert_eq!((memory.max_usage, memory.kernel, memory.swap), (20_000, 116, None));
    }

    #[test]
    fn weights_are_the_shares_that_made_them() {
        assert_eq!([1, 100, 10_000].map(shares_of_weight), [2, 2597, 262_144]);
        assert_eq!(parse_max("max 100000\n"), (None, 100_000));
    }
}
