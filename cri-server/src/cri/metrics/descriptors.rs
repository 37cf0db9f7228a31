//! The metrics that this daemon advertises: cAdvisor's names, each with the labels that its samples have.

use api::cri;

/// One metric.
pub(super) struct Descriptor {
    pub(super) name: &'static str,
    help: &'static str,
    pub(super) kind: cri::MetricType,
    pub(super) labels: Labels,
}

/// What the samples of a metric have besides [`BASE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Labels {
    Base,
    Interface,
    Device,
    Operation,
    Failure,
    Ulimit,
    PageSize,
}

/// The labels of every metric, in this order; those of a pod's own metrics have no container and no image.
const BASE: [&str; 5] = ["pod", "namespace", "container", "id", "image"];

impl Labels {
    /// The keys after [`BASE`], in the order of the samples' values.
    pub(super) fn keys(self) -> &'static [&'static str] {
        match self {
            Labels::Base => &[],
            Labels::Interface => &["interface"],
            Labels::Device => &["device"],
            Labels::Operation => &["device", "major", "minor", "operation"],
            Labels::Failure => &["failure_type", "scope"],
            Labels::Ulimit => &["ulimit"],
            Labels::PageSize => &["pagesize"],
        }
    }
}

/// The answer of ListMetricDescriptors.
pub(super) fn to_descriptors() -> Vec<cri::MetricDescriptor> {
    let keys = |labels: Labels| BASE.iter().chain(labels.keys()).map(|key| (*key).to_owned()).collect();
    let descriptor = |metric: &Descriptor| cri::MetricDescriptor {
        name: metric.name.to_owned(),
        help: metric.help.to_owned(),
        label_keys: keys(metric.labels),
    };
    DESCRIPTORS.iter().map(descriptor).collect()
}

/// Times are whole seconds, because a sample's value is an integer.
pub(super) const DESCRIPTORS: &[Descriptor] = &[
    counter("container_cpu_usage_seconds_total", "CPU time used", Labels::Base),
    counter("container_cpu_user_seconds_total", "CPU time used in user mode", Labels::Base),
    counter("container_cpu_system_seconds_total", "CPU time used in the kernel", Labels::Base),
    counter("container_cpu_cfs_periods_total", "Periods in which the CPU quota was enforced", Labels::Base),
    counter("container_cpu_cfs_throttled_periods_total", "Periods in which the CPU quota was used up", Labels::Base),
    counter("container_cpu_cfs_throttled_seconds_total", "Time spent waiting for a new CPU quota", Labels::Base),
    gauge("container_memory_cache", "Page cache in bytes", Labels::Base),
    gauge("container_memory_rss", "Anonymous memory in bytes", Labels::Base),
    gauge("container_memory_kernel_usage", "Memory of the kernel in bytes", Labels::Base),
    gauge("container_memory_mapped_file", "Memory mapped from files in bytes", Labels::Base),
    gauge("container_memory_swap", "Swap in bytes", Labels::Base),
    counter("container_memory_failcnt", "How often the memory limit was hit", Labels::Base),
    gauge("container_memory_usage_bytes", "All memory in bytes, the page cache included", Labels::Base),
    gauge("container_memory_max_usage_bytes", "The most memory that was used, in bytes", Labels::Base),
    gauge("container_memory_working_set_bytes", "Memory without the inactive page cache, in bytes", Labels::Base),
    gauge("container_memory_total_active_file_bytes", "Active page cache in bytes", Labels::Base),
    gauge("container_memory_total_inactive_file_bytes", "Inactive page cache in bytes", Labels::Base),
    counter("container_memory_failures_total", "Page faults, minor and major", Labels::Failure),
    counter("container_oom_events_total", "Processes killed for memory", Labels::Base),
    counter("container_network_receive_bytes_total", "Bytes received", Labels::Interface),
    counter("container_network_receive_packets_total", "Packets received", Labels::Interface),
    counter("container_network_receive_packets_dropped_total", "Received packets that were dropped", Labels::Interface),
    counter("container_network_receive_errors_total", "Errors while receiving", Labels::Interface),
    counter("container_network_transmit_bytes_total", "Bytes sent", Labels::Interface),
    counter("container_network_transmit_packets_total", "Packets sent", Labels::Interface),
    counter("container_network_transmit_packets_dropped_total", "Packets dropped instead of sent", Labels::Interface),
    counter("container_network_transmit_errors_total", "Errors while sending", Labels::Interface),
    gauge("container_fs_usage_bytes", "Size of the writable layer", Labels::Device),
    gauge("container_fs_limit_bytes", "Size of the file system of the writable layer", Labels::Device),
    gauge("container_fs_inodes_total", "Inodes of the file system of the writable layer", Labels::Device),
    gauge("container_fs_inodes_free", "Free inodes of the file system of the writable layer", Labels::Device),
    counter("container_fs_reads_total", "Reads from a block device", Labels::Device),
    counter("container_fs_reads_bytes_total", "Bytes read from a block device", Labels::Device),
    counter("container_fs_writes_total", "Writes to a block device", Labels::Device),
    counter("container_fs_writes_bytes_total", "Bytes written to a block device", Labels::Device),
    counter("container_blkio_device_usage_total", "Bytes read from and written to a block device", Labels::Operation),
    gauge("container_processes", "Processes", Labels::Base),
    gauge("container_threads", "Processes and threads", Labels::Base),
    gauge("container_threads_max", "How many processes and threads there may be, 0 for any number", Labels::Base),
    gauge("container_file_descriptors", "Open file descriptors", Labels::Base),
    gauge("container_sockets", "Open sockets", Labels::Base),
    gauge("container_ulimits_soft", "Soft limits of the first process", Labels::Ulimit),
    gauge("container_last_seen", "When the container was last seen, in seconds since the epoch", Labels::Base),
    gauge("container_start_time_seconds", "When the container was started, in seconds since the epoch", Labels::Base),
    gauge("container_spec_cpu_shares", "CPU shares", Labels::Base),
    gauge("container_spec_cpu_period", "Period of the CPU quota in microseconds", Labels::Base),
    gauge("container_spec_cpu_quota", "CPU quota in microseconds; no sample without one", Labels::Base),
    gauge("container_spec_memory_limit_bytes", "Memory limit, 0 for none", Labels::Base),
    gauge("container_spec_memory_reservation_limit_bytes", "Memory reservation, 0 for none", Labels::Base),
    gauge("container_spec_memory_swap_limit_bytes", "Swap limit, 0 for none", Labels::Base),
    gauge("container_hugetlb_usage_bytes", "Huge pages in bytes", Labels::PageSize),
    gauge("container_hugetlb_max_usage_bytes", "The most huge pages that were used, in bytes", Labels::PageSize),
    counter("container_pressure_cpu_waiting_seconds_total", "Time in which a task waited for a CPU", Labels::Base),
    counter("container_pressure_cpu_stalled_seconds_total", "Time in which all tasks waited for a CPU", Labels::Base),
    counter("container_pressure_memory_waiting_seconds_total", "Time in which a task waited for memory", Labels::Base),
    counter(
        "container_pressure_memory_stalled_seconds_total",
        "Time in which all tasks waited for memory",
        Labels::Base,
    ),
    counter("container_pressure_io_waiting_seconds_total", "Time in which a task waited for IO", Labels::Base),
    counter("container_pressure_io_stalled_seconds_total", "Time in which all tasks waited for IO", Labels::Base),
];

const fn counter(name: &'static str, help: &'static str, labels: Labels) -> Descriptor {
    Descriptor { name, help, kind: cri::MetricType::Counter, labels }
}

const fn gauge(name: &'static str, help: &'static str, labels: Labels) -> Descriptor {
    Descriptor { name, help, kind: cri::MetricType::Gauge, labels }
}
