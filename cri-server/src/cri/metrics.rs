//! ListMetricDescriptors, ListPodSandboxMetrics and its streaming form: what cAdvisor would say of the pods.
//!
//! Samples are named by what [`descriptors`] advertises; the kubelet drops any other.

use std::{
    fs,
    time::{SystemTime, UNIX_EPOCH},
};

use api::cri;
use sandbox::{
    model::{ContainerState, ContainerView},
    stats::{
        CgroupUsage, ContainerStats, Filesystem, Interface, Layer, Memory, PodMetrics, Pressure, Processes, Stats,
    },
};
use tokio_stream::Stream;
use tonic::Status;

use super::{Cri, convert::to_nanoseconds, errors::sandbox_status, stats::in_parts};

mod descriptors;

use descriptors::{DESCRIPTORS, to_descriptors};

const NANOSECONDS: u64 = 1_000_000_000;

impl Cri {
    pub(super) fn metric_descriptors() -> cri::ListMetricDescriptorsResponse {
        cri::ListMetricDescriptorsResponse { descriptors: to_descriptors() }
    }

    pub(super) async fn list_pod_metrics(&self) -> Result<cri::ListPodSandboxMetricsResponse, Status> {
        let metrics = self.stats.metrics(self.ready_pods()).await.map_err(sandbox_status)?;
        Ok(cri::ListPodSandboxMetricsResponse { pod_metrics: metrics.iter().map(to_pod_metrics).collect() })
    }

    pub(super) fn stream_pod_metrics(
        &self,
    ) -> impl Stream<Item = Result<cri::StreamPodSandboxMetricsResponse, Status>> + Send + use<> {
        let stats = self.stats.clone();
        in_parts(self.ready_pods(), move |views| {
            let stats: Stats = stats.clone();
            async move {
                let metrics = stats.metrics(views).await.map_err(sandbox_status)?;
                let pod_sandbox_metrics = metrics.iter().map(to_pod_metrics).collect();
                Ok(cri::StreamPodSandboxMetricsResponse { pod_sandbox_metrics })
            }
        })
    }
}

fn to_pod_metrics(metrics: &PodMetrics) -> cri::PodSandboxMetrics {
    let view = &metrics.pod.view;
    let name = &view.spec.name;
    let mut samples = Samples::of([&name.name, &name.namespace, "", view.id.as_str(), ""]);
    for interface in &metrics.pod.interfaces {
        samples.network(interface);
    }
    let container = |stats: &ContainerStats| cri::ContainerMetrics {
        container_id: stats.view.id.to_string(),
        metrics: container_samples(metrics, stats),
    };
    cri::PodSandboxMetrics {
        pod_sandbox_id: view.id.to_string(),
        metrics: samples.metrics,
        container_metrics: metrics
            .pod
            .containers
            .iter()
            .filter(|stats| stats.cgroup.is_some())
            .map(container)
            .collect(),
    }
}

fn container_samples(metrics: &PodMetrics, stats: &ContainerStats) -> Vec<cri::Metric> {
    let name = &metrics.pod.view.spec.name;
    let view = &stats.view;
    let mut samples =
        Samples::of([&name.name, &name.namespace, &view.spec.name.name, view.id.as_str(), &view.image.name]);
    if let Some(cgroup) = &stats.cgroup {
        samples.cgroup(cgroup);
    }
    if let Some(processes) = metrics.processes.get(&view.id) {
        samples.processes(processes);
    }
    if let (Some(layer), Some(filesystem)) = (&stats.layer, metrics.filesystems.get(&view.id)) {
        samples.filesystem(layer, filesystem);
    }
    samples.times(view, stats.at);
    samples.metrics
}

/// The samples of one pod or container so far.
struct Samples {
    base: [String; 5],
    metrics: Vec<cri::Metric>,
}

impl Samples {
    /// Pod, namespace, container, id, image.
    fn of(base: [&str; 5]) -> Samples {
        Samples { base: base.map(str::to_owned), metrics: Vec::new() }
    }

    /// A value that was read for this request: such a sample has no time of its own.
    fn add(&mut self, name: &'static str, value: u64) {
        self.labelled(name, &[], value);
    }

    fn labelled(&mut self, name: &'static str, labels: &[&str], value: u64) {
        let Some(descriptor) = DESCRIPTORS.iter().find(|descriptor| descriptor.name == name) else {
            debug_assert!(false, "{name} is not advertised");
            return;
        };
        debug_assert_eq!(labels.len(), descriptor.labels.keys().len(), "labels of {name}");
        let labels = labels.iter().map(|label| (*label).to_owned());
        self.metrics.push(cri::Metric {
            name: name.to_owned(),
            timestamp: 0,
            metric_type: descriptor.kind as i32,
            label_values: self.base.iter().cloned().chain(labels).collect(),
            value: Some(cri::UInt64Value { value }),
        });
    }

    fn cgroup(&mut self, usage: &CgroupUsage) {
        let cpu = &usage.cpu;
        self.add("container_cpu_usage_seconds_total", cpu.usage / NANOSECONDS);
        self.add("container_cpu_user_seconds_total", cpu.user / NANOSECONDS);
        self.add("container_cpu_system_seconds_total", cpu.system / NANOSECONDS);
        self.add("container_cpu_cfs_periods_total", cpu.periods);
        self.add("container_cpu_cfs_throttled_periods_total", cpu.throttled_periods);
        self.add("container_cpu_cfs_throttled_seconds_total", cpu.throttled / NANOSECONDS);
        self.add("container_spec_cpu_shares", cpu.shares);
        self.add("container_spec_cpu_period", cpu.period);
        if let Some(quota) = cpu.quota {
            self.add("container_spec_cpu_quota", quota);
        }
        if let Some(memory) = &usage.memory {
            self.memory(memory);
        }
        if let Some(pids) = &usage.pids {
            self.add("container_threads", pids.current);
            self.add("container_threads_max", pids.limit.unwrap_or_default());
        }
        for huge in &usage.hugetlb {
            self.labelled("container_hugetlb_usage_bytes", &[&huge.size], huge.usage);
            if let Some(max) = huge.max_usage {
                self.labelled("container_hugetlb_max_usage_bytes", &[&huge.size], max);
            }
        }
        self.devices(usage);
        self.pressure(usage);
    }

    fn memory(&mut self, memory: &Memory) {
        self.add("container_memory_cache", memory.cache);
        self.add("container_memory_rss", memory.rss);
        self.add("container_memory_kernel_usage", memory.kernel);
        self.add("container_memory_mapped_file", memory.mapped_file);
        self.add("container_memory_swap", memory.swap.map_or(0, |swap| swap.usage));
        self.add("container_memory_failcnt", memory.limit_hits);
        self.add("container_memory_usage_bytes", memory.usage);
        self.add("container_memory_max_usage_bytes", memory.max_usage);
        self.add("container_memory_working_set_bytes", memory.working_set());
        self.add("container_memory_total_active_file_bytes", memory.active_file);
        self.add("container_memory_total_inactive_file_bytes", memory.inactive_file);
        self.add("container_oom_events_total", memory.oom_kills);
        self.add("container_spec_memory_limit_bytes", memory.limit.unwrap_or_default());
        self.add("container_spec_memory_reservation_limit_bytes", memory.reservation.unwrap_or_default());
        let swap_limit = memory.swap.and_then(|swap| swap.limit);
        self.add("container_spec_memory_swap_limit_bytes", swap_limit.unwrap_or_default());
        for (kind, scope, value) in [
            ("pgfault", "container", memory.own_page_faults),
            ("pgmajfault", "container", memory.own_major_page_faults),
            ("pgfault", "hierarchy", memory.page_faults),
            ("pgmajfault", "hierarchy", memory.major_page_faults),
        ] {
            self.labelled("container_memory_failures_total", &[kind, scope], value);
        }
    }

    /// A container that has touched no device has no samples here.
    fn devices(&mut self, usage: &CgroupUsage) {
        for device in &usage.io.devices {
            let name = device_name(device.major, device.minor);
            self.labelled("container_fs_reads_total", &[&name], device.reads);
            self.labelled("container_fs_reads_bytes_total", &[&name], device.read_bytes);
            self.labelled("container_fs_writes_total", &[&name], device.writes);
            self.labelled("container_fs_writes_bytes_total", &[&name], device.written_bytes);
            let (major, minor) = (device.major.to_string(), device.minor.to_string());
            for (operation, value) in [("Read", device.read_bytes), ("Write", device.written_bytes)] {
                self.labelled("container_blkio_device_usage_total", &[&name, &major, &minor, operation], value);
            }
        }
    }

    fn pressure(&mut self, usage: &CgroupUsage) {
        let mut add = |waiting, stalled, pressure: &Option<Pressure>| {
            if let Some(pressure) = pressure {
                self.add(waiting, pressure.some.total / NANOSECONDS);
                self.add(stalled, pressure.full.total / NANOSECONDS);
            }
        };
        add(
            "container_pressure_cpu_waiting_seconds_total",
            "container_pressure_cpu_stalled_seconds_total",
            &usage.cpu.pressure,
        );
        add(
            "container_pressure_memory_waiting_seconds_total",
            "container_pressure_memory_stalled_seconds_total",
            &usage.memory.as_ref().and_then(|memory| memory.pressure),
        );
        add(
            "container_pressure_io_waiting_seconds_total",
            "container_pressure_io_stalled_seconds_total",
            &usage.io.pressure,
        );
    }

    fn network(&mut self, interface: &Interface) {
        let name = [interface.name.as_str()];
        let (received, sent) = (&interface.received, &interface.sent);
        self.labelled("container_network_receive_bytes_total", &name, received.bytes);
        self.labelled("container_network_receive_packets_total", &name, received.packets);
        self.labelled("container_network_receive_packets_dropped_total", &name, received.dropped);
        self.labelled("container_network_receive_errors_total", &name, received.errors);
        self.labelled("container_network_transmit_bytes_total", &name, sent.bytes);
        self.labelled("container_network_transmit_packets_total", &name, sent.packets);
        self.labelled("container_network_transmit_packets_dropped_total", &name, sent.dropped);
        self.labelled("container_network_transmit_errors_total", &name, sent.errors);
    }

    fn processes(&mut self, processes: &Processes) {
        self.add("container_processes", processes.count);
        self.add("container_file_descriptors", processes.descriptors);
        self.add("container_sockets", processes.sockets);
        if let Some(limit) = processes.max_open_files {
            self.labelled("container_ulimits_soft", &["max_open_files"], limit);
        }
    }

    fn filesystem(&mut self, layer: &Layer, filesystem: &Filesystem) {
        let device = [filesystem.device.as_str()];
        self.labelled("container_fs_limit_bytes", &device, filesystem.bytes);
        self.labelled("container_fs_inodes_total", &device, filesystem.inodes);
        self.labelled("container_fs_inodes_free", &device, filesystem.free_inodes);
        self.labelled("container_fs_usage_bytes", &device, layer.bytes);
        // This one was measured before the request, and says when.
        if let Some(usage) = self.metrics.last_mut() {
            usage.timestamp = to_nanoseconds(layer.at);
        }
    }

    fn times(&mut self, view: &ContainerView, now: SystemTime) {
        self.add("container_last_seen", seconds(now));
        if let ContainerState::Running { started_at, .. } = view.state {
            self.add("container_start_time_seconds", seconds(started_at));
        }
    }
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).map(|since| since.as_secs()).unwrap_or_default()
}

/// `/dev/sda`, as the kernel names the device; its numbers, if it is gone.
fn device_name(major: u64, minor: u64) -> String {
    let uevent = fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/uevent")).unwrap_or_default();
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    name.map_or_else(|| format!("{major}:{minor}"), |name| format!("/dev/{name}"))
}

#[cfg(test)]
mod tests;
