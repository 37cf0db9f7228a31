//! Limits of a container, from CRI's numbers: only what is set is written, and only what the host can hold it to.

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimit, LinuxMemory, LinuxResources};

use crate::{
    error::Error,
    host::{Host, HugePages},
    model::Resources,
};

/// The pause process does nothing, and must lose to everything else.
const PAUSE_CPU_SHARES: u64 = 2;

/// A pause container's limits: its pod's are on the parent cgroup, which kubelet writes.
pub(super) fn of_pod() -> LinuxResources {
    let mut cpu = LinuxCpu::default();
    cpu.set_shares(Some(PAUSE_CPU_SHARES));
    let mut resources = LinuxResources::default();
    resources.set_cpu(Some(cpu));
    resources
}

/// CRI's limits as the runtime wants them, also for UpdateContainerResources.
pub fn of_container(request: &Resources, host: &Host) -> Result<LinuxResources, Error> {
    let mut resources = LinuxResources::default();
    resources.set_cpu(cpu(request)?).set_memory(memory(request, host));
    if !request.hugepage_limits.is_empty() {
        resources.set_hugepage_limits(hugepages(request, &host.huge_pages)?);
    }
    if !request.unified.is_empty() {
        resources.set_unified(Some(request.unified.clone().into_iter().collect()));
    }
    Ok(resources)
}

/// The nearest value to `wanted` that this host lets a child of ours have, and whether that is another one.
pub fn clamp_oom_score_adj(wanted: i64, host: &Host) -> (i32, bool) {
    let allowed = wanted.clamp(i64::from(host.lowest_oom_score_adj), 1000);
    (i32::try_from(allowed).expect("is between -1000 and 1000"), allowed != wanted)
}

fn cpu(request: &Resources) -> Result<Option<LinuxCpu>, Error> {
    let mut cpu = LinuxCpu::default();
    let text = |text: &String| (!text.is_empty()).then(|| text.clone());
    cpu.set_period(positive("cpu_period", request.cpu_period)?)
        // −1 is "no limit", so a quota keeps its sign.
        .set_quota((request.cpu_quota != 0).then_some(request.cpu_quota))
        .set_shares(positive("cpu_shares", request.cpu_shares)?)
        .set_cpus(text(&request.cpuset_cpus))
        .set_mems(text(&request.cpuset_mems));
    Ok((cpu != LinuxCpu::default()).then_some(cpu))
}

/// Without a swap limit of its own, a container with a memory limit gets no swap.
fn memory(request: &Resources, host: &Host) -> Option<LinuxMemory> {
    let limit = (request.memory_limit != 0).then_some(request.memory_limit);
    let swap = match request.memory_swap_limit {
        0 if host.swap => limit,
        0 => None,
        swap => Some(swap),
    };
    let mut memory = LinuxMemory::default();
    memory.set_limit(limit).set_swap(swap);
    (memory != LinuxMemory::default()).then_some(memory)
}

fn hugepages(request: &Resources, huge_pages: &HugePages) -> Result<Option<Vec<LinuxHugepageLimit>>, Error> {
    let sizes = match huge_pages {
        HugePages::Limited(sizes) => sizes,
        HugePages::PassedOver => return Ok(None),
        HugePages::Refused => {
            return Err(Error::Precondition(
                "hugepage_limits: the host has no hugetlb cgroup controller; set tolerate_missing_hugetlb_controller = \
                 true in the configuration to pass over them"
                    .into(),
            ));
        }
    };
    let to_linux = |(size, limit): &(String, u64)| {
        if !sizes.contains(size) {
            let known = if sizes.is_empty() { "none".to_owned() } else { sizes.join(", ") };
            return Err(Error::Invalid(format!(
                "hugepage_limits.page_size: the kernel has no huge pages of {size:?}; those that it has: {known}"
            )));
        }
        let limit = i64::try_from(*limit)
            .map_err(|_| Error::Invalid(format!("hugepage_limits {size}: {limit} is too large")))?;
        let mut linux = LinuxHugepageLimit::default();
        linux.set_page_size(size.clone()).set_limit(limit);
        Ok(linux)
    };
    request.hugepage_limits.iter().map(to_linux).collect::<Result<_, _>>().map(Some)
}

fn positive(name: &str, value: i64) -> Result<Option<u64>, Error> {
    let value = u64::try_from(value).map_err(|_| Error::Invalid(format!("{name}: {value} is negative")))?;
    Ok((value != 0).then_some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::tests::host;

    #[test]
    fn limits_of_huge_pages_are_written_for_sizes_that_the_kernel_has() {
        let told = |huge_pages: HugePages, size: &str, limit: u64| {
            let request = Resources { hugepage_limits: vec![(size.into(), limit)], ..Resources::default() };
            let resources = of_container(&request, &Host { huge_pages, ..host() });
            let written = resources.map(|resources| serde_json::to_value(resources.hugepage_limits()).unwrap());
            written.map_err(|error| error.to_string())
        };
        let sizes = || HugePages::Limited(vec!["2MB".into(), "1GB".into()]);
        assert_eq!(told(sizes(), "1GB", 7), Ok(serde_json::json!([{"pageSize": "1GB", "limit": 7}])));
        assert_eq!(told(HugePages::PassedOver, "3MB", 7), Ok(serde_json::Value::Null));
        let unknown = "hugepage_limits.page_size: the kernel has no huge pages of \"3MB\"; those that it has: 2MB, 1GB";
        assert_eq!(told(sizes(), "3MB", 7), Err(unknown.to_owned()));
        assert_eq!(told(sizes(), "2MB", u64::MAX), Err(format!("hugepage_limits 2MB: {} is too large", u64::MAX)));
        assert!(told(HugePages::Refused, "2MB", 7).unwrap_err().contains("tolerate_missing_hugetlb_controller = true"));
    }
}
