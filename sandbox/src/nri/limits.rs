//! Limits as plugins tell them: merged field by field, and brought into CRI's and OCI's forms and back.

use oci_spec::runtime::LinuxResources as OciResources;
use serde_json::{Map, Value, json};

use crate::{Error, model::Resources};

use super::{
    owners::{Conflict, Owners},
    proto::{
        ContainerUpdate, Field, HugepageLimit, LinuxContainerUpdate, LinuxCpu, LinuxDeviceCgroup, LinuxMemory,
        LinuxPids, LinuxResources, OptionalBool, OptionalInt, OptionalUInt64,
    },
};

/// Sets in `into` what `from` sets, in the name of `plugin`.
pub(super) fn merge(
    owners: &mut Owners,
    container: &str,
    plugin: &str,
    from: &LinuxResources,
    into: &mut LinuxResources,
) -> Result<(), Conflict> {
    let mut claim = Claim { owners, container, plugin };
    if let Some(from) = &from.memory {
        let into = into.memory.get_or_insert_default();
        claim.set(Field::MemLimit, &from.limit, &mut into.limit)?;
        claim.set(Field::MemReservation, &from.reservation, &mut into.reservation)?;
        claim.set(Field::MemSwapLimit, &from.swap, &mut into.swap)?;
        claim.set(Field::MemKernelLimit, &from.kernel, &mut into.kernel)?;
        claim.set(Field::MemTcpLimit, &from.kernel_tcp, &mut into.kernel_tcp)?;
        claim.set(Field::MemSwappiness, &from.swappiness, &mut into.swappiness)?;
        claim.set(Field::MemDisableOomKiller, &from.disable_oom_killer, &mut into.disable_oom_killer)?;
        claim.set(Field::MemUseHierarchy, &from.use_hierarchy, &mut into.use_hierarchy)?;
    }
    if let Some(from) = &from.cpu {
        let into = into.cpu.get_or_insert_default();
        claim.set(Field::CpuShares, &from.shares, &mut into.shares)?;
        claim.set(Field::CpuQuota, &from.quota, &mut into.quota)?;
        claim.set(Field::CpuPeriod, &from.period, &mut into.period)?;
        claim.set(Field::CpuRealtimeRuntime, &from.realtime_runtime, &mut into.realtime_runtime)?;
        claim.set(Field::CpuRealtimePeriod, &from.realtime_period, &mut into.realtime_period)?;
        claim.text(Field::CpusetCpus, &from.cpus, &mut into.cpus)?;
        claim.text(Field::CpusetMems, &from.mems, &mut into.mems)?;
    }
    for limit in &from.hugepage_limits {
        claim.owners.claim_key(container, Field::HugepageLimits, &limit.page_size, plugin)?;
        into.hugepage_limits.retain(|known| known.page_size != limit.page_size);
        into.hugepage_limits.push(limit.clone());
    }
    for (file, value) in &from.unified {
        claim.owners.claim_key(container, Field::CgroupsUnified, file, plugin)?;
        into.unified.insert(file.clone(), value.clone());
    }
    claim.set(Field::BlockioClass, &from.blockio_class, &mut into.blockio_class)?;
    claim.set(Field::RdtClass, &from.rdt_class, &mut into.rdt_class)?;
    claim.set(Field::PidsLimit, &from.pids, &mut into.pids)?;
    into.devices.extend(from.devices.iter().cloned());
    Ok(())
}

struct Claim<'a> {
    owners: &'a mut Owners,
    container: &'a str,
    plugin: &'a str,
}

impl Claim<'_> {
    fn set<T: Clone>(&mut self, field: Field, from: &Option<T>, into: &mut Option<T>) -> Result<(), Conflict> {
        if from.is_some() {
            self.owners.claim(self.container, field, self.plugin)?;
            into.clone_from(from);
        }
        Ok(())
    }

    fn text(&mut self, field: Field, from: &String, into: &mut String) -> Result<(), Conflict> {
        if !from.is_empty() {
            self.owners.claim(self.container, field, self.plugin)?;
            into.clone_from(from);
        }
        Ok(())
    }
}

/// Updates of containers that exist, one a container, in the order in which they were first asked for.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Updates(pub(crate) Vec<ContainerUpdate>);

impl Updates {
    /// Adds what `plugin` asks. A conflict in an update that may fail leaves it out.
    pub(super) fn take(&mut self, owners: &mut Owners, plugin: &str, update: ContainerUpdate) -> Result<(), Conflict> {
        let at = self.0.iter().position(|known| known.container_id == update.container_id);
        let mut merged = at.map(|at| self.0[at].clone()).unwrap_or_else(|| ContainerUpdate {
            container_id: update.container_id.clone(),
            ignore_failure: true,
            linux: Some(LinuxContainerUpdate { resources: Some(LinuxResources::default()) }),
        });
        // It fails for all who asked if one of them wants to know.
        merged.ignore_failure &= update.ignore_failure;
        if let Some(from) = update.linux.and_then(|linux| linux.resources) {
            let into = merged.linux.get_or_insert_default().resources.get_or_insert_default();
            match merge(owners, &update.container_id, plugin, &from, into) {
                Err(conflict) if update.ignore_failure => {
                    tracing::warn!(plugin, error = %conflict, "an update that may fail is left out");
                    return Ok(());
                }
                merged => merged?,
            }
        }
        match at {
            Some(at) => self.0[at] = merged,
            None => self.0.push(merged),
        }
        Ok(())
    }
}

/// CRI's limits as a plugin is shown them; what is not set is left out.
pub(super) fn of_request(request: &Resources) -> LinuxResources {
    let signed = |value: i64| (value != 0).then_some(OptionalInt { value });
    let unsigned = |value: i64| u64::try_from(value).ok().filter(|v| *v != 0).map(|value| OptionalUInt64 { value });
    let limit = |(size, limit): &(String, u64)| HugepageLimit { page_size: size.clone(), limit: *limit };
    LinuxResources {
        memory: Some(LinuxMemory {
            limit: signed(request.memory_limit),
            swap: signed(request.memory_swap_limit),
            ..LinuxMemory::default()
        }),
        cpu: Some(LinuxCpu {
            shares: unsigned(request.cpu_shares),
            quota: signed(request.cpu_quota),
            period: unsigned(request.cpu_period),
            cpus: request.cpuset_cpus.clone(),
            mems: request.cpuset_mems.clone(),
            ..LinuxCpu::default()
        }),
        hugepage_limits: request.hugepage_limits.iter().map(limit).collect(),
        unified: request.unified.clone(),
        ..LinuxResources::default()
    }
}

/// The part of a plugin's limits that CRI can tell.
pub(super) fn to_request(limits: &LinuxResources) -> Result<Resources, Error> {
    let memory = limits.memory.unwrap_or_default();
    let cpu = limits.cpu.clone().unwrap_or_default();
    let signed = |value: Option<OptionalInt>| value.unwrap_or_default().value;
    let unsigned = |name: &str, value: Option<OptionalUInt64>| {
        let value = value.unwrap_or_default().value;
        i64::try_from(value).map_err(|_| Error::Invalid(format!("NRI: {name}: {value} is too large")))
    };
    Ok(Resources {
        cpu_period: unsigned("cpu period", cpu.period)?,
        cpu_quota: signed(cpu.quota),
        cpu_shares: unsigned("cpu shares", cpu.shares)?,
        cpuset_cpus: cpu.cpus,
        cpuset_mems: cpu.mems,
        memory_limit: signed(memory.limit),
        memory_swap_limit: signed(memory.swap),
        oom_score_adj: 0,
        hugepage_limits: limits.hugepage_limits.iter().map(|limit| (limit.page_size.clone(), limit.limit)).collect(),
        unified: limits.unified.clone(),
    })
}

/// The limits of an OCI spec as a plugin is shown them.
pub(super) fn of_spec(spec: &Value) -> Option<LinuxResources> {
    let limits: OciResources = serde_json::from_value(spec.pointer("/linux/resources")?.clone()).ok()?;
    let signed = |value: Option<i64>| value.map(|value| OptionalInt { value });
    let unsigned = |value: Option<u64>| value.map(|value| OptionalUInt64 { value });
    let flag = |value: Option<bool>| value.map(|value| OptionalBool { value });
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let memory = limits.memory().as_ref().map(|memory| LinuxMemory {
        limit: signed(memory.limit()),
        reservation: signed(memory.reservation()),
        swap: signed(memory.swap()),
        kernel: signed(memory.kernel()),
        kernel_tcp: signed(memory.kernel_tcp()),
        swappiness: unsigned(memory.swappiness()),
        disable_oom_killer: flag(memory.disable_oom_killer()),
        use_hierarchy: flag(memory.use_hierarchy()),
    });
    let cpu = limits.cpu().as_ref().map(|cpu| LinuxCpu {
        shares: unsigned(cpu.shares()),
        quota: signed(cpu.quota()),
        period: unsigned(cpu.period()),
        realtime_runtime: signed(cpu.realtime_runtime()),
        realtime_period: unsigned(cpu.realtime_period()),
        cpus: text(cpu.cpus()),
        mems: text(cpu.mems()),
    });
    let devices = limits.devices().iter().flatten().map(|rule| LinuxDeviceCgroup {
        allow: rule.allow(),
        r#type: rule.typ().map(|kind| kind.as_str().to_owned()).unwrap_or_default(),
        major: signed(rule.major()),
        minor: signed(rule.minor()),
        access: text(rule.access()),
    });
    let hugepages = limits.hugepage_limits().iter().flatten().map(|limit| HugepageLimit {
        page_size: limit.page_size().clone(),
        limit: u64::try_from(limit.limit()).unwrap_or(u64::MAX),
    });
    Some(LinuxResources {
        memory,
        cpu,
        hugepage_limits: hugepages.collect(),
        unified: limits.unified().clone().unwrap_or_default().into_iter().collect(),
        devices: devices.collect(),
        pids: limits.pids().as_ref().map(|pids| LinuxPids { limit: pids.limit() }),
        ..LinuxResources::default()
    })
}

/// Sets a plugin's limits in the `linux.resources` of an OCI spec. `swap`: the host can limit it, and then a memory limit
/// is one for both unless the plugin says otherwise, as with CRI's limits. Classes are left to who creates the container.
pub(crate) fn apply(limits: &LinuxResources, into: &mut Value, swap: bool) {
    let cpu = limits.cpu.as_ref().map(|cpu| {
        let mut set = Map::new();
        put(&mut set, "shares", cpu.shares.map(|v| v.value));
        put(&mut set, "quota", cpu.quota.map(|v| v.value));
        put(&mut set, "period", cpu.period.map(|v| v.value));
        put(&mut set, "realtimeRuntime", cpu.realtime_runtime.map(|v| v.value));
        put(&mut set, "realtimePeriod", cpu.realtime_period.map(|v| v.value));
        put(&mut set, "cpus", (!cpu.cpus.is_empty()).then(|| cpu.cpus.clone()));
        put(&mut set, "mems", (!cpu.mems.is_empty()).then(|| cpu.mems.clone()));
        set
    });
    let memory = limits.memory.as_ref().map(|memory| {
        let mut set = Map::new();
        let limit = memory.limit.map(|v| v.value);
        put(&mut set, "limit", limit);
        put(&mut set, "reservation", memory.reservation.map(|v| v.value));
        put(&mut set, "swap", memory.swap.map(|v| v.value).or(limit.filter(|_| swap)));
        put(&mut set, "kernel", memory.kernel.map(|v| v.value));
        put(&mut set, "kernelTCP", memory.kernel_tcp.map(|v| v.value));
        put(&mut set, "swappiness", memory.swappiness.map(|v| v.value));
        put(&mut set, "disableOOMKiller", memory.disable_oom_killer.map(|v| v.value));
        put(&mut set, "useHierarchy", memory.use_hierarchy.map(|v| v.value));
        set
    });
    for (name, set) in [("cpu", cpu), ("memory", memory)] {
        for (key, value) in set.into_iter().flatten() {
            into[name][key] = value;
        }
    }
    for limit in &limits.hugepage_limits {
        let list = list(into, "hugepageLimits");
        list.retain(|known| known["pageSize"] != json!(limit.page_size));
        list.push(json!({"pageSize": limit.page_size, "limit": limit.limit}));
    }
    for (file, value) in &limits.unified {
        into["unified"][file] = json!(value);
    }
    for rule in &limits.devices {
        let mut written = Map::new();
        written.insert("allow".into(), json!(rule.allow));
        put(&mut written, "type", (!rule.r#type.is_empty()).then(|| rule.r#type.clone()));
        put(&mut written, "major", rule.major.map(|v| v.value));
        put(&mut written, "minor", rule.minor.map(|v| v.value));
        put(&mut written, "access", (!rule.access.is_empty()).then(|| rule.access.clone()));
        list(into, "devices").push(Value::Object(written));
    }
    if let Some(pids) = &limits.pids {
        into["pids"]["limit"] = json!(pids.limit);
    }
}

/// The list under `key`, which is made if there is none.
pub(super) fn list<'a>(within: &'a mut Value, key: &str) -> &'a mut Vec<Value> {
    let value = &mut within[key];
    if !value.is_array() {
        *value = Value::Array(Vec::new());
    }
    value.as_array_mut().expect("it was made one")
}

pub(super) fn put(map: &mut Map<String, Value>, key: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        map.insert(key.to_owned(), value.into());
    }
}
