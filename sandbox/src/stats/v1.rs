//! cgroup version 1: one directory in the hierarchy of each controller.
//!
//! The kernel documents the files under `Documentation/admin-guide/cgroup-v1`. Times are in nanoseconds there.

use std::path::Path;

use super::{
    CgroupUsage, Cpu, DeviceIo, Hugetlb, Io, Memory, Pids, Swap,
    cgroup::{Cgroup, keyed, parse_device, parse_limit},
};

/// All that the cgroup at `directory` of each hierarchy tells; `None` if it is not there.
pub(super) fn read(root: &Path, directory: &Path) -> Option<CgroupUsage> {
    let of = |controller: &str| Cgroup(root.join(controller).join(directory));
    Some(CgroupUsage {
        cpu: read_cpu(&of("cpuacct"), &of("cpu"))?,
        memory: read_memory(&of("memory")),
        io: Io { devices: read_devices(&of("blkio")), pressure: None },
        pids: read_pids(&of("pids")),
        hugetlb: read_hugetlb(&of("hugetlb")),
    })
}

pub(super) fn cpu_time(root: &Path, directory: &Path) -> Option<u64> {
    Cgroup(root.join("cpuacct").join(directory)).number("cpuacct.usage")
}

fn read_cpu(accounting: &Cgroup, bandwidth: &Cgroup) -> Option<Cpu> {
    let stat = bandwidth.text("cpu.stat").unwrap_or_default();
    Some(Cpu {
        usage: accounting.number("cpuacct.usage")?,
        user: accounting.number("cpuacct.usage_user").unwrap_or_default(),
        system: accounting.number("cpuacct.usage_sys").unwrap_or_default(),
        periods: keyed(&stat, "nr_periods").unwrap_or_default(),
        throttled_periods: keyed(&stat, "nr_throttled").unwrap_or_default(),
        throttled: keyed(&stat, "throttled_time").unwrap_or_default(),
        shares: bandwidth.number("cpu.shares").unwrap_or_default(),
        period: bandwidth.number("cpu.cfs_period_us").unwrap_or_default(),
        // −1 is no limit.
        quota: bandwidth.number("cpu.cfs_quota_us"),
        pressure: None,
    })
}

fn read_memory(cgroup: &Cgroup) -> Option<Memory> {
    let stat = cgroup.text("memory.stat")?;
    let control = cgroup.text("memory.oom_control").unwrap_or_default();
    let memory = Memory {
        usage: cgroup.number("memory.usage_in_bytes")?,
        limit: cgroup.number("memory.limit_in_bytes"),
        max_usage: cgroup.number("memory.max_usage_in_bytes").unwrap_or_default(),
        reservation: cgroup.number("memory.soft_limit_in_bytes"),
        kernel: cgroup.number("memory.kmem.usage_in_bytes").unwrap_or_default(),
        limit_hits: cgroup.number("memory.failcnt").unwrap_or_default(),
        oom_kills: keyed(&control, "oom_kill").unwrap_or_default(),
        ..parse_stat(&stat)
    };
    let swap = cgroup.text("memory.memsw.limit_in_bytes").map(|both| Swap {
        usage: keyed(&stat, "total_swap").unwrap_or_default(),
        limit: swap_limit(parse_limit(&both), memory.limit),
    });
    Some(Memory { swap, ..memory })
}

fn parse_stat(stat: &str) -> Memory {
    let value = |key: &str| keyed(stat, key).unwrap_or_default();
    Memory {
        cache: value("total_cache"),
        rss: value("total_rss"),
        mapped_file: value("total_mapped_file"),
        active_file: value("total_active_file"),
        inactive_file: value("total_inactive_file"),
        page_faults: value("total_pgfault"),
        major_page_faults: value("total_pgmajfault"),
        own_page_faults: value("pgfault"),
        own_major_page_faults: value("pgmajfault"),
        ..Memory::default()
    }
}

/// The file limits memory and swap together.
fn swap_limit(both: Option<u64>, memory: Option<u64>) -> Option<u64> {
    Some(both?.saturating_sub(memory?))
}

/// The counters of bytes and of operations; with the BFQ scheduler and no throttling, its own have the same form.
fn read_devices(cgroup: &Cgroup) -> Vec<DeviceIo> {
    let text = |name: &str| {
        let files = [format!("blkio.throttle.{name}_recursive"), format!("blkio.bfq.{name}_recursive")];
        files.iter().filter_map(|file| cgroup.text(file)).find(|text| text.contains(':')).unwrap_or_default()
    };
    parse_devices(&text("io_service_bytes"), &text("io_serviced"))
}

/// Lines of `8:0 Read 4096`; a last line `Total` sums up all devices.
fn parse_devices(bytes: &str, operations: &str) -> Vec<DeviceIo> {
    let mut devices: Vec<DeviceIo> = Vec::new();
    let bytes = bytes.lines().map(|line| (line, true));
    for (line, is_bytes) in bytes.chain(operations.lines().map(|line| (line, false))) {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [device, kind, value] = fields[..] else { continue };
        let (Some((major, minor)), Ok(value)) = (parse_device(device), value.parse::<u64>()) else { continue };
        let found = devices.iter().position(|device| (device.major, device.minor) == (major, minor));
        let at = found.unwrap_or_else(|| {
            devices.push(DeviceIo { major, minor, ..DeviceIo::default() });
            devices.len() - 1
        });
        let device = &mut devices[at];
        match (kind, is_bytes) {
            ("Read", true) => device.read_bytes = value,
            ("Write", true) => device.written_bytes = value,
            ("Read", false) => device.reads = value,
            ("Write", false) => device.writes = value,
            // Sync, Async, Discard and Total say the same again in other ways.
            _ => {}
        }
    }
    devices.sort_by_key(|device| (device.major, device.minor));
    devices
}

fn read_pids(cgroup: &Cgroup) -> Option<Pids> {
    Some(Pids { current: cgroup.number("pids.current")?, limit: cgroup.number("pids.max") })
}

fn read_hugetlb(cgroup: &Cgroup) -> Vec<Hugetlb> {
    let sizes = cgroup.huge_page_sizes("usage_in_bytes").into_iter();
    sizes
        .map(|size| Hugetlb {
            usage: cgroup.number(&format!("hugetlb.{size}.usage_in_bytes")).unwrap_or_default(),
            max_usage: cgroup.number(&format!("hugetlb.{size}.max_usage_in_bytes")),
            size,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const STAT: &str = "cache 1\nrss 2\nmapped_file 3\npgfault 50\npgmajfault 5\nactive_file 9\ninactive_file 9\n\
        hierarchical_memory_limit 67108864\ntotal_cache 4096\ntotal_rss 8192\ntotal_mapped_file 1024\ntotal_swap 512\n\
        total_pgfault 60\ntotal_pgmajfault 6\ntotal_inactive_file 2048\ntotal_active_file 1000\n";

    #[test]
    fn a_cgroup_is_read_from_all_its_hierarchies() {
        let root = tempfile::tempdir().unwrap();
        let files = [
            ("cpuacct", "cpuacct.usage", "3000\n"),
            ("cpuacct", "cpuacct.usage_user", "1000\n"),
            ("cpuacct", "cpuacct.usage_sys", "2000\n"),
            ("cpu", "cpu.stat", "nr_periods 10\nnr_throttled 4\nthrottled_time 777\n"),
            ("cpu", "cpu.shares", "1024\n"),
            ("cpu", "cpu.cfs_period_us", "100000\n"),
            ("cpu", "cpu.cfs_quota_us", "-1\n"),
            ("memory", "memory.stat", STAT),
            ("memory", "memory.usage_in_bytes", "20000\n"),
            ("memory", "memory.limit_in_bytes", "67108864\n"),
            ("memory", "memory.max_usage_in_bytes", "30000\n"),
            ("memory", "memory.soft_limit_in_bytes", "9223372036854771712\n"),
            ("memory", "memory.kmem.usage_in_bytes", "400\n"),
            ("memory", "memory.failcnt", "2\n"),
            ("memory", "memory.oom_control", "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n"),
            ("memory", "memory.memsw.limit_in_bytes", "134217728\n"),
            (
                "blkio",
                "blkio.throttle.io_service_bytes_recursive",
                "8:0 Read 10\n8:0 Write 20\n8:0 Total 30\nTotal 30\n",
            ),
            ("blkio", "blkio.throttle.io_serviced_recursive", "8:0 Read 1\n8:0 Write 2\n8:0 Total 3\nTotal 3\n"),
            ("pids", "pids.current", "5\n"),
            ("pids", "pids.max", "max\n"),
            ("hugetlb", "hugetlb.2MB.usage_in_bytes", "2097152\n"),
            ("hugetlb", "hugetlb.2MB.max_usage_in_bytes", "4194304\n"),
            ("hugetlb", "hugetlb.2MB.rsvd.usage_in_bytes", "0\n"),
        ];
        for (controller, file, text) in files {
            let directory = root.path().join(controller).join("k8s.io/abc");
            fs::create_dir_all(&directory).unwrap();
            fs::write(directory.join(file), text).unwrap();
        }
        let cpu = Cpu {
            usage: 3000,
            user: 1000,
            system: 2000,
            periods: 10,
            throttled_periods: 4,
            throttled: 777,
            shares: 1024,
            period: 100_000,
            quota: None,
            pressure: None,
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
            own_page_faults: 50,
            own_major_page_faults: 5,
            oom_kills: 3,
            swap: Some(Swap { usage: 512, limit: Some(67_108_864) }),
            pressure: None,
        };
        let device = DeviceIo { major: 8, minor: 0, read_bytes: 10, written_bytes: 20, reads: 1, writes: 2 };
        let expected = CgroupUsage {
            cpu,
            memory: Some(memory),
            io: Io { devices: vec![device], pressure: None },
            pids: Some(Pids { current: 5, limit: None }),
            hugetlb: vec![Hugetlb { size: "2MB".into(), usage: 2_097_152, max_usage: Some(4_194_304) }],
        };
        assert_eq!(read(root.path(), Path::new("k8s.io/abc")), Some(expected));
        assert_eq!(cpu_time(root.path(), Path::new("k8s.io/abc")), Some(3000));
        assert_eq!(read(root.path(), Path::new("k8s.io/gone")), None);
    }

    #[test]
    fn devices_are_those_of_either_file_in_their_order() {
        let device =
            |minor, read_bytes, writes| DeviceIo { major: 253, minor, read_bytes, writes, ..Default::default() };
        let found = parse_devices("253:16 Read 7\nTotal 7\n", "253:0 Write 3\n253:16 Async 9\nnonsense\n");
        assert_eq!(found, [device(0, 0, 3), device(16, 7, 0)]);
        assert_eq!(parse_devices("Total 0\n", ""), []);
    }

    #[test]
    fn swap_is_what_the_two_limits_leave() {
        assert_eq!(swap_limit(Some(300), Some(100)), Some(200));
        assert_eq!(swap_limit(Some(100), Some(100)), Some(0));
        assert_eq!(swap_limit(None, Some(100)), None);
        assert_eq!(swap_limit(Some(100), None), None);
    }
}
