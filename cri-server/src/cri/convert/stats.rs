//! What pods and containers use, as CRI counts it.

use std::time::SystemTime;

use api::cri;
use sandbox::{
    model::PodView,
    stats::{CgroupUsage, ContainerStats, Cpu, Interface, Layer, Memory, PodStats, Pressure, Stall, Swap},
};

use super::{
    status::{to_container_metadata, to_pod_metadata},
    to_map, to_nanoseconds,
};

/// Of a container that does not run, only its attributes and its layer.
pub(in crate::cri) fn to_container_stats(stats: &ContainerStats) -> cri::ContainerStats {
    let view = &stats.view;
    let cgroup = stats.cgroup.as_ref();
    let memory = cgroup.and_then(|cgroup| cgroup.memory.as_ref());
    cri::ContainerStats {
        attributes: Some(cri::ContainerAttributes {
            id: view.id.to_string(),
            metadata: Some(to_container_metadata(view)),
            labels: to_map(&view.spec.labels),
            annotations: to_map(&view.spec.annotations),
        }),
        cpu: cgroup.map(|cgroup| to_cpu(&cgroup.cpu, stats.nano_cores, stats.at)),
        memory: memory.map(|memory| to_memory(memory, stats.at)),
        writable_layer: stats.layer.as_ref().map(to_layer),
        swap: memory.and_then(|memory| memory.swap.as_ref()).map(|swap| to_swap(swap, stats.at)),
        io: cgroup.and_then(|cgroup| to_io(cgroup, stats.at)),
    }
}

pub(in crate::cri) fn to_pod_stats(stats: &PodStats) -> cri::PodSandboxStats {
    let cgroup = stats.cgroup.as_ref();
    let memory = cgroup.and_then(|cgroup| cgroup.memory.as_ref());
    cri::PodSandboxStats {
        attributes: Some(to_pod_attributes(&stats.view)),
        linux: Some(cri::LinuxPodSandboxStats {
            cpu: cgroup.map(|cgroup| to_cpu(&cgroup.cpu, stats.nano_cores, stats.at)),
            memory: memory.map(|memory| to_memory(memory, stats.at)),
            network: to_network(&stats.interfaces, stats.at),
            process: Some(cri::ProcessUsage {
                timestamp: to_nanoseconds(stats.at),
                process_count: some(stats.processes),
            }),
            containers: stats.containers.iter().map(to_container_stats).collect(),
            io: cgroup.and_then(|cgroup| to_io(cgroup, stats.at)),
        }),
        windows: None,
    }
}

fn to_pod_attributes(view: &PodView) -> cri::PodSandboxAttributes {
    cri::PodSandboxAttributes {
        id: view.id.to_string(),
        metadata: Some(to_pod_metadata(view)),
        labels: to_map(&view.spec.labels),
        annotations: to_map(&view.spec.annotations),
    }
}

fn to_cpu(cpu: &Cpu, nano_cores: Option<u64>, at: SystemTime) -> cri::CpuUsage {
    cri::CpuUsage {
        timestamp: to_nanoseconds(at),
        usage_core_nano_seconds: some(cpu.usage),
        usage_nano_cores: nano_cores.and_then(some),
        psi: cpu.pressure.as_ref().map(to_psi),
    }
}

fn to_memory(memory: &Memory, at: SystemTime) -> cri::MemoryUsage {
    cri::MemoryUsage {
        timestamp: to_nanoseconds(at),
        working_set_bytes: some(memory.working_set()),
        available_bytes: some(memory.available()),
        usage_bytes: some(memory.usage),
        rss_bytes: some(memory.rss),
        page_faults: some(memory.page_faults),
        major_page_faults: some(memory.major_page_faults),
        psi: memory.pressure.as_ref().map(to_psi),
    }
}

/// Without a limit nothing is said to be available, as with memory.
fn to_swap(swap: &Swap, at: SystemTime) -> cri::SwapUsage {
    cri::SwapUsage {
        timestamp: to_nanoseconds(at),
        swap_available_bytes: some(swap.limit.map_or(0, |limit| limit.saturating_sub(swap.usage))),
        swap_usage_bytes: some(swap.usage),
    }
}

/// CRI shows nothing of IO but its pressure.
fn to_io(cgroup: &CgroupUsage, at: SystemTime) -> Option<cri::IoUsage> {
    let pressure = cgroup.io.pressure.as_ref()?;
    Some(cri::IoUsage { timestamp: to_nanoseconds(at), psi: Some(to_psi(pressure)) })
}

fn to_psi(pressure: &Pressure) -> cri::PsiStats {
    let stall = |stall: &Stall| cri::PsiData {
        total: stall.total,
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    cri::PsiStats { full: Some(stall(&pressure.full)), some: Some(stall(&pressure.some)) }
}

fn to_layer(layer: &Layer) -> cri::FilesystemUsage {
    cri::FilesystemUsage {
        timestamp: to_nanoseconds(layer.at),
        fs_id: Some(cri::FilesystemIdentifier { mountpoint: layer.root.display().to_string() }),
        used_bytes: some(layer.bytes),
        inodes_used: some(layer.inodes),
    }
}

/// The default interface is `eth0`, as the CNI attachment names it, else the first.
fn to_network(interfaces: &[Interface], at: SystemTime) -> Option<cri::NetworkUsage> {
    let default = interfaces.iter().find(|interface| interface.name == "eth0").or(interfaces.first())?;
    Some(cri::NetworkUsage {
        timestamp: to_nanoseconds(at),
        default_interface: Some(to_interface(default)),
        interfaces: interfaces.iter().filter(|interface| interface.name != default.name).map(to_interface).collect(),
    })
}

fn to_interface(interface: &Interface) -> cri::NetworkInterfaceUsage {
    cri::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: some(interface.received.bytes),
        rx_errors: some(interface.received.errors),
        tx_bytes: some(interface.sent.bytes),
        tx_errors: some(interface.sent.errors),
    }
}

/// The messages' numbers are optional: zero is told from unknown.
fn some(value: u64) -> Option<cri::UInt64Value> {
    Some(cri::UInt64Value { value })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use sandbox::stats::Traffic;

    use super::*;

    #[test]
    fn the_default_interface_is_eth0_wherever_it_is_in_the_table() {
        let interface = |name: &str, bytes| Interface {
            name: name.into(),
            received: Traffic { bytes, ..Traffic::default() },
            sent: Traffic { errors: 1, ..Traffic::default() },
        };
        let at = UNIX_EPOCH + Duration::from_nanos(5);
        let expected = |name: &str, bytes| cri::NetworkInterfaceUsage {
            name: name.into(),
            rx_bytes: some(bytes),
            rx_errors: some(0),
            tx_bytes: some(0),
            tx_errors: some(1),
        };
        let network =
            |default, interfaces| cri::NetworkUsage { timestamp: 5, default_interface: Some(default), interfaces };
        assert_eq!(
            to_network(&[interface("net1", 1), interface("eth0", 2)], at),
            Some(network(expected("eth0", 2), vec![expected("net1", 1)]))
        );
        assert_eq!(to_network(&[interface("net1", 1)], at), Some(network(expected("net1", 1), vec![])));
        assert_eq!(to_network(&[], at), None);
    }

    #[test]
    fn swap_without_a_limit_offers_nothing() {
        let swap = |limit| to_swap(&Swap { usage: 30, limit }, UNIX_EPOCH).swap_available_bytes;
        assert_eq!([swap(None), swap(Some(100)), swap(Some(10))], [some(0), some(70), some(0)]);
    }
}
