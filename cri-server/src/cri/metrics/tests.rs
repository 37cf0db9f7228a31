use std::{collections::BTreeSet, time::Duration};

use sandbox::stats::{Cpu, DeviceIo, Hugetlb, Io, Pids, Swap, Traffic};

use super::*;

fn everything() -> CgroupUsage {
    let memory = Memory {
        usage: 1000,
        inactive_file: 300,
        limit: Some(4096),
        swap: Some(Swap { usage: 5, limit: Some(10) }),
        pressure: Some(Pressure::default()),
        ..Memory::default()
    };
    CgroupUsage {
        cpu: Cpu { usage: 2_999_999_999, quota: Some(20_000), pressure: Some(Pressure::default()), ..Cpu::default() },
        memory: Some(memory),
        io: Io {
            // No device has these numbers, so its name is made of them.
            devices: vec![DeviceIo { major: 4095, minor: 7, written_bytes: 20, ..DeviceIo::default() }],
            pressure: Some(Pressure::default()),
        },
        pids: Some(Pids { current: 3, limit: None }),
        hugetlb: vec![Hugetlb { size: "2MB".into(), usage: 0, max_usage: Some(0) }],
    }
}

fn samples() -> Vec<cri::Metric> {
    let mut samples = Samples::of(["web", "default", "app", "abc", "busybox"]);
    samples.cgroup(&everything());
    samples.processes(&Processes { count: 1, descriptors: 4, sockets: 1, max_open_files: Some(1024) });
    let at = UNIX_EPOCH + Duration::from_secs(9);
    let layer = Layer { root: "/r".into(), bytes: 8192, inodes: 2, at };
    samples.filesystem(&layer, &Filesystem { device: "/dev/vda1".into(), bytes: 1, inodes: 2, free_inodes: 3 });
    samples.network(&Interface { name: "eth0".into(), received: Traffic::default(), sent: Traffic::default() });
    samples.add("container_last_seen", 1);
    samples.add("container_start_time_seconds", 1);
    samples.metrics
}

#[test]
fn everything_advertised_is_sampled_with_as_many_labels_as_it_has_keys() {
    let samples = samples();
    for descriptor in to_descriptors() {
        assert!(!descriptor.help.is_empty(), "{}", descriptor.name);
        let of: Vec<_> = samples.iter().filter(|sample| sample.name == descriptor.name).collect();
        assert!(!of.is_empty(), "{} has no sample", descriptor.name);
        for sample in of {
            assert_eq!(sample.label_values.len(), descriptor.label_keys.len(), "{}", descriptor.name);
        }
    }
}

#[test]
fn every_name_is_advertised_once() {
    let names: BTreeSet<_> = DESCRIPTORS.iter().map(|descriptor| descriptor.name).collect();
    assert_eq!(names.len(), DESCRIPTORS.len());
}

#[test]
fn samples_have_the_labels_and_values_of_their_source() {
    let samples = samples();
    let check = |name: &str, labels: &[&str], expected: (u64, i64)| {
        let found: Vec<_> = samples
            .iter()
            .filter(|sample| sample.name == name && sample.label_values[5..] == *labels)
            .map(|sample| (sample.value.unwrap().value, sample.timestamp))
            .collect();
        assert_eq!(found, [expected], "{name} {labels:?}");
    };
    check("container_cpu_usage_seconds_total", &[], (2, 0));
    check("container_memory_working_set_bytes", &[], (700, 0));
    check("container_spec_memory_swap_limit_bytes", &[], (10, 0));
    check("container_threads_max", &[], (0, 0));
    check("container_ulimits_soft", &["max_open_files"], (1024, 0));
    check("container_blkio_device_usage_total", &["4095:7", "4095", "7", "Write"], (20, 0));
    check("container_fs_writes_bytes_total", &["4095:7"], (20, 0));
    check("container_fs_usage_bytes", &["/dev/vda1"], (8192, 9_000_000_000));
    check("container_hugetlb_usage_bytes", &["2MB"], (0, 0));
    assert!(samples.iter().all(|sample| sample.label_values[..5] == ["web", "default", "app", "abc", "busybox"]));
}
