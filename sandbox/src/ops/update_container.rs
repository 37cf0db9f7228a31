//! UpdateContainerResources: other limits for a container that is made or runs.
//!
//! The record keeps the old limits until the kernel holds the new ones. So whatever cuts an update short, applying the
//! record undoes it, here as in the next life of the daemon.

use std::sync::Arc;

use oci_spec::runtime::LinuxResources;
use serde_json::{Map, Value};

use crate::{
    Error, bundle,
    host::Host,
    launcher::Shim,
    machine::ContainerPhase,
    model::Resources,
    nri::{self, LimitChange},
    oci::resources,
    record::{ContainerRecord, PodRecord},
    world::{Operation, World},
};

/// What an update makes of a record.
#[derive(Debug)]
pub(crate) struct Updated {
    limits: Resources,
    oci_spec: Value,
}

impl Updated {
    /// The record's limits with those of `change` that are set. Fails where a creation with them would.
    pub(crate) fn new(container: &ContainerRecord, change: &LimitChange, host: &Host) -> Result<Updated, Error> {
        let failed = |error| Error::failed(format!("write the OCI spec of {}", container.id), error);
        let merged = merge(container.limits(), &change.request);
        let limits = serde_json::to_value(resources::of_container(&merged, host)?).map_err(failed)?;
        let mut oci_spec = container.oci_spec.clone();
        let stored = oci_spec.pointer_mut("/linux/resources");
        let stored = stored.ok_or_else(|| Error::plain(format!("container {} has no resources", container.id)))?;
        set_all(stored, limits);
        if let Some(limits) = &change.by_plugin {
            nri::apply_limits(limits, stored, host.swap);
        }
        Ok(Updated { limits: merged, oci_spec })
    }

    pub(crate) fn store(self, container: &mut ContainerRecord) {
        container.limits = Some(self.limits);
        container.oci_spec = self.oci_spec;
    }
}

/// Applies the update as plugins want it, or the record again. `updated` is what `change` makes without them.
pub(crate) async fn run(
    world: Arc<World>,
    pod: PodRecord,
    record: ContainerRecord,
    change: LimitChange,
    updated: Updated,
    shim: Option<Arc<dyn Shim>>,
    operation: Operation,
) -> Result<Updated, Error> {
    let by_plugins = match change.unasked {
        true => None,
        false => world.nri.update_container(&operation, &pod, &record, &change.request).await?,
    };
    let updated = match by_plugins {
        Some(limits) => Updated::new(&record, &LimitChange::by_plugin(limits)?, &world.host)?,
        None => updated,
    };
    let mut wanted = record.clone();
    wanted.limits = Some(updated.limits.clone());
    wanted.oci_spec = updated.oci_spec.clone();
    let applied = apply(&world, &looking_first(&wanted, record.limits()), shim.as_deref()).await;
    if applied.is_err()
        && let Err(error) = apply(&world, &record, shim.as_deref()).await
    {
        tracing::warn!(container = %record.id, error = error.chain(), "limits of a failed update may be left");
    }
    if applied.is_ok() && !change.unasked {
        world.nri.post_update(&operation, &pod, &wanted).await;
    }
    applied.map(|()| updated)
}

/// With less memory than before, a container that uses more of it would be killed on cgroup v2. Asked to look first, the OCI
/// runtime refuses instead, as the kernel does on version 1 (runtime specification 1.1, `checkBeforeUpdate`).
fn looking_first(wanted: &ContainerRecord, before: &Resources) -> ContainerRecord {
    let mut wanted = wanted.clone();
    let (old, new) = (before.memory_limit, wanted.limits().memory_limit);
    let less = new > 0 && (old <= 0 || new < old);
    if less
        && wanted.phase() == ContainerPhase::Running
        && let Some(Value::Object(memory)) = wanted.oci_spec.pointer_mut("/linux/resources/memory")
    {
        memory.insert("checkBeforeUpdate".to_owned(), Value::Bool(true));
    }
    wanted
}

/// Makes the container be held to what its record says: from its start on, or now if it runs.
pub(crate) async fn apply(
    world: &Arc<World>,
    container: &ContainerRecord,
    shim: Option<&dyn Shim>,
) -> Result<(), Error> {
    let id = container.id.clone();
    match container.phase() {
        ContainerPhase::Created => {
            let (world, spec) = (Arc::clone(world), container.oci_spec.clone());
            Operation::default().blocking(move || bundle::rewrite_config(&world, &id, &spec)).await
        }
        ContainerPhase::Running => {
            let limits = limits_of(container)?;
            let shim =
                shim.ok_or_else(|| Error::Unavailable(format!("the shim of container {id} is not connected")))?;
            shim.update(&id, limits).await
        }
        ContainerPhase::New | ContainerPhase::Exited | ContainerPhase::Unknown => Ok(()),
    }
}

/// The limits of the record's spec. Device rules are there too, and stay as they are.
fn limits_of(container: &ContainerRecord) -> Result<LinuxResources, Error> {
    let mut limits = container.oci_spec["linux"]["resources"].clone();
    limits.as_object_mut().and_then(|limits| limits.remove("devices"));
    serde_json::from_value(limits)
        .map_err(|error| Error::failed(format!("read the limits in the OCI spec of {}", container.id), error))
}

/// Sets what `from` has, and keeps the rest.
fn set_all(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                set_all(into.entry(key).or_insert_with(|| Value::Object(Map::new())), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// CRI's zero and empty mean "as it is". The OOM score stays in any case: it is a process's, and OCI runtimes change
/// only what belongs to the cgroup.
pub(super) fn merge(stored: &Resources, update: &Resources) -> Resources {
    let number = |new: i64, old: i64| if new == 0 { old } else { new };
    let text = |new: &String, old: &String| if new.is_empty() { old.clone() } else { new.clone() };
    let mut hugepage_limits = stored.hugepage_limits.clone();
    for (size, limit) in &update.hugepage_limits {
        match hugepage_limits.iter_mut().find(|(known, _)| known == size) {
            Some((_, known)) => *known = *limit,
            None => hugepage_limits.push((size.clone(), *limit)),
        }
    }
    let mut unified = stored.unified.clone();
    unified.extend(update.unified.clone());
    Resources {
        cpu_period: number(update.cpu_period, stored.cpu_period),
        cpu_quota: number(update.cpu_quota, stored.cpu_quota),
        cpu_shares: number(update.cpu_shares, stored.cpu_shares),
        cpuset_cpus: text(&update.cpuset_cpus, &stored.cpuset_cpus),
        cpuset_mems: text(&update.cpuset_mems, &stored.cpuset_mems),
        memory_limit: number(update.memory_limit, stored.memory_limit),
        memory_swap_limit: number(update.memory_swap_limit, stored.memory_swap_limit),
        oom_score_adj: stored.oom_score_adj,
        hugepage_limits,
        unified,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ContainerState;

    fn limits(memory_limit: i64, hugepages: &[(&str, u64)]) -> Resources {
        Resources {
            memory_limit,
            cpu_shares: 7,
            oom_score_adj: -5,
            hugepage_limits: hugepages.iter().map(|(size, limit)| ((*size).to_owned(), *limit)).collect(),
            ..Resources::default()
        }
    }

    #[test]
    fn what_an_update_does_not_set_stays() {
        let stored = limits(1 << 20, &[("2MB", 1), ("1GB", 2)]);
        let update = Resources {
            cpu_quota: -1,
            cpuset_cpus: "0-1".into(),
            oom_score_adj: 900,
            hugepage_limits: vec![("1GB".into(), 0), ("64KB".into(), 3)],
            unified: [("memory.high".to_owned(), "5".to_owned())].into(),
            ..Resources::default()
        };
        let expected = Resources {
            cpu_quota: -1,
            cpuset_cpus: "0-1".into(),
            unified: [("memory.high".to_owned(), "5".to_owned())].into(),
            ..limits(1 << 20, &[("2MB", 1), ("1GB", 0), ("64KB", 3)])
        };
        assert_eq!(merge(&stored, &update), expected);
        assert_eq!(merge(&stored, &Resources::default()), stored);
    }

    #[test]
    fn a_runtime_looks_at_what_is_used_before_it_takes_memory_away() {
        let asks = |state: ContainerState, before: i64, after: i64| {
            let record = ContainerRecord {
                state: Some(state),
                limits: Some(limits(after, &[])),
                oci_spec: serde_json::json!({"linux": {"resources": {"memory": {"limit": after, "swap": after}}}}),
                ..crate::store::tests::container()
            };
            let told = limits_of(&looking_first(&record, &limits(before, &[]))).unwrap();
            let memory = told.memory().unwrap();
            assert_eq!((memory.limit(), memory.swap()), (Some(after), Some(after)));
            memory.check_before_update()
        };
        let running = || ContainerState::Running { pid: 1, started_at: std::time::SystemTime::UNIX_EPOCH };
        assert_eq!(asks(running(), 100, 50), Some(true));
        assert_eq!(asks(running(), 0, 50), Some(true));
        assert_eq!(asks(running(), 100, 100), None);
        assert_eq!(asks(running(), 50, 100), None);
        assert_eq!(asks(running(), 50, -1), None);
        assert_eq!(asks(ContainerState::Created, 100, 50), None);
    }
}
