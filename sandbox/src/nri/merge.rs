//! What all plugins together ask of one container: each answer is added to those before, as a pure function.
//!
//! The next plugin is shown the container as the earlier ones have changed it. A conflict ends it all: nothing that was
//! merged so far may be used.

use std::collections::BTreeMap;

use super::{
    limits::{self, Updates},
    owners::{Conflict, Owners},
    proto::{
        Container, ContainerAdjustment, ContainerEviction, ContainerUpdate, CreateContainerResponse, Field, Hooks,
        KeyValue, LinuxContainer, LinuxContainerAdjustment, LinuxDevice, LinuxNamespace, LinuxRdt, LinuxResources,
        Mount, mark_removed, removed,
    },
};

/// Why an answer of a plugin cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    #[error(transparent)]
    Conflict(#[from] Conflict),
    #[error("NRI plugin {plugin:?} asked to update container {container} while it is being created")]
    OwnUpdate { plugin: String, container: String },
}

/// The answers about a container that is being created.
#[derive(Debug, Default)]
pub(crate) struct Creation {
    /// As the next plugin is shown it.
    pub(crate) container: Container,
    pub(crate) adjust: ContainerAdjustment,
    pub(crate) updates: Updates,
    pub(crate) evict: Vec<ContainerEviction>,
    pub(crate) owners: Owners,
}

impl Creation {
    pub(crate) fn new(container: Container) -> Creation {
        let mut container = container;
        // As every later plugin is shown it, whether there are hooks or not.
        container.hooks.get_or_insert_default();
        Creation { container, ..Creation::default() }
    }

    /// Adds what `plugin` answers.
    pub(crate) fn take(&mut self, plugin: &str, answer: CreateContainerResponse) -> Result<(), Refusal> {
        let id = self.container.id.clone();
        if answer.update.iter().any(|update| update.container_id == id) {
            return Err(Refusal::OwnUpdate { plugin: plugin.to_owned(), container: id });
        }
        let mut merge = Merge { id: &id, plugin, owners: &mut self.owners };
        if let Some(adjust) = answer.adjust {
            merge.all(&mut self.container, &mut self.adjust, adjust)?;
        }
        for update in answer.update {
            self.updates.take(&mut self.owners, plugin, update)?;
        }
        self.evict.extend(answer.evict);
        Ok(())
    }

    /// Whether anything is to be changed of the container.
    pub(crate) fn adjusts(&self) -> bool {
        self.adjust != ContainerAdjustment::default()
    }
}

/// The answers about a container whose limits are being changed, or which has ended.
#[derive(Debug, Default)]
pub(crate) struct Updating {
    id: String,
    /// Its limits, as the next plugin is shown them.
    pub(crate) limits: LinuxResources,
    /// A plugin has set some of them.
    pub(crate) changed: bool,
    pub(crate) others: Updates,
    owners: Owners,
}

impl Updating {
    pub(crate) fn new(id: String, limits: LinuxResources) -> Updating {
        Updating { id, limits, ..Updating::default() }
    }

    /// Adds what `plugin` answers.
    pub(crate) fn take(&mut self, plugin: &str, answer: Vec<ContainerUpdate>) -> Result<(), Refusal> {
        for update in answer {
            if update.container_id != self.id {
                self.others.take(&mut self.owners, plugin, update)?;
            } else if let Some(from) = update.linux.and_then(|linux| linux.resources) {
                limits::merge(&mut self.owners, &self.id, plugin, &from, &mut self.limits)?;
                self.changed = true;
            }
        }
        Ok(())
    }
}

/// One plugin's adjustment on its way into the others'.
struct Merge<'a> {
    id: &'a str,
    plugin: &'a str,
    owners: &'a mut Owners,
}

impl Merge<'_> {
    fn all(
        &mut self,
        container: &mut Container,
        into: &mut ContainerAdjustment,
        from: ContainerAdjustment,
    ) -> Result<(), Conflict> {
        self.map(Field::Annotations, from.annotations, &mut container.annotations, &mut into.annotations)?;
        self.mounts(from.mounts, &mut container.mounts, &mut into.mounts)?;
        self.env(from.env, &mut container.env, &mut into.env)?;
        self.args(from.args, &mut container.args, &mut into.args)?;
        self.hooks(from.hooks, container.hooks.get_or_insert_default(), into);
        for limit in from.rlimits {
            self.key(Field::Rlimits, &limit.r#type)?;
            for known in [&mut container.rlimits, &mut into.rlimits] {
                known.retain(|known| known.r#type != limit.r#type);
                known.push(limit.clone());
            }
        }
        for device in from.cdi_devices {
            self.key(Field::CdiDevices, &device.name)?;
            if !into.cdi_devices.contains(&device) {
                into.cdi_devices.push(device);
            }
        }
        match from.linux {
            Some(linux) => {
                self.linux(container.linux.get_or_insert_default(), into.linux.get_or_insert_default(), linux)
            }
            None => Ok(()),
        }
    }

    fn linux(
        &mut self,
        container: &mut LinuxContainer,
        into: &mut LinuxContainerAdjustment,
        from: LinuxContainerAdjustment,
    ) -> Result<(), Conflict> {
        self.devices(from.devices, &mut container.devices, &mut into.devices)?;
        if let Some(resources) = &from.resources {
            let (owners, id, plugin) = (&mut *self.owners, self.id, self.plugin);
            for known in [container.resources.get_or_insert_default(), into.resources.get_or_insert_default()] {
                limits::merge(owners, id, plugin, resources, known)?;
            }
        }
        if !from.cgroups_path.is_empty() {
            self.simple(Field::CgroupsPath)?;
            container.cgroups_path.clone_from(&from.cgroups_path);
            into.cgroups_path = from.cgroups_path;
        }
        self.one(Field::OomScoreAdj, from.oom_score_adj, &mut container.oom_score_adj, &mut into.oom_score_adj)?;
        self.one(Field::IoPriority, from.io_priority, &mut container.io_priority, &mut into.io_priority)?;
        self.one(Field::SeccompPolicy, from.seccomp_policy, &mut container.seccomp_policy, &mut into.seccomp_policy)?;
        self.one(Field::Scheduler, from.scheduler, &mut container.scheduler, &mut into.scheduler)?;
        self.namespaces(from.namespaces, &mut container.namespaces, &mut into.namespaces)?;
        self.map(Field::Sysctl, from.sysctl, &mut container.sysctl, &mut into.sysctl)?;
        self.map(Field::NetDevices, from.net_devices, &mut container.net_devices, &mut into.net_devices)?;
        // Plugins are not shown a container's memory policy.
        self.one(Field::MemoryPolicy, from.memory_policy, &mut None, &mut into.memory_policy)?;
        match from.rdt {
            Some(rdt) => self.rdt(rdt, &mut container.rdt, &mut into.rdt),
            None => Ok(()),
        }
    }

    fn simple(&mut self, field: Field) -> Result<(), Conflict> {
        self.owners.claim(self.id, field, self.plugin)
    }

    fn key(&mut self, field: Field, key: &str) -> Result<(), Conflict> {
        self.owners.claim_key(self.id, field, key, self.plugin)
    }

    fn one<T: Clone>(
        &mut self,
        field: Field,
        from: Option<T>,
        shown: &mut Option<T>,
        into: &mut Option<T>,
    ) -> Result<(), Conflict> {
        if from.is_some() {
            self.simple(field)?;
            shown.clone_from(&from);
            *into = from;
        }
        Ok(())
    }

    /// Named values. What is removed and set at once is set, whoever had set it before.
    fn map<T: Clone + Default>(
        &mut self,
        field: Field,
        from: BTreeMap<String, T>,
        shown: &mut BTreeMap<String, T>,
        into: &mut BTreeMap<String, T>,
    ) -> Result<(), Conflict> {
        for key in from.keys().filter_map(|key| removed(key)) {
            shown.remove(key);
            if into.remove(key).is_some() {
                self.owners.clear_key(self.id, field, key, self.plugin);
            }
            into.insert(mark_removed(key), T::default());
        }
        for (key, value) in from.into_iter().filter(|(key, _)| removed(key).is_none()) {
            self.key(field, &key)?;
            into.remove(&mark_removed(&key));
            shown.insert(key.clone(), value.clone());
            into.insert(key, value);
        }
        Ok(())
    }

    fn mounts(&mut self, from: Vec<Mount>, shown: &mut Vec<Mount>, into: &mut Vec<Mount>) -> Result<(), Conflict> {
        let name = |mount: &Mount| mount.destination.clone();
        self.list(Field::Mounts, from, name, shown, into)
    }

    fn devices(
        &mut self,
        from: Vec<LinuxDevice>,
        shown: &mut Vec<LinuxDevice>,
        into: &mut Vec<LinuxDevice>,
    ) -> Result<(), Conflict> {
        let name = |device: &LinuxDevice| device.path.clone();
        self.list(Field::Devices, from, name, shown, into)
    }

    /// Values with a name in a list, as [`Merge::map`].
    fn list<T: Clone>(
        &mut self,
        field: Field,
        from: Vec<T>,
        name: impl Fn(&T) -> String,
        shown: &mut Vec<T>,
        into: &mut Vec<T>,
    ) -> Result<(), Conflict> {
        let (gone, set): (Vec<T>, Vec<T>) = from.into_iter().partition(|value| removed(&name(value)).is_some());
        for marked in gone {
            let marked_name = name(&marked);
            let key = removed(&marked_name).unwrap_or_default();
            shown.retain(|known| name(known) != key);
            let before = into.len();
            into.retain(|known| name(known) != key && name(known) != marked_name);
            if before != into.len() {
                self.owners.clear_key(self.id, field, key, self.plugin);
            }
            into.push(marked);
        }
        for value in set {
            let key = name(&value);
            self.key(field, &key)?;
            into.retain(|known| name(known) != key && removed(&name(known)) != Some(&key));
            shown.retain(|known| name(known) != key);
            shown.push(value.clone());
            into.push(value);
        }
        Ok(())
    }

    fn env(&mut self, from: Vec<KeyValue>, shown: &mut Vec<String>, into: &mut Vec<KeyValue>) -> Result<(), Conflict> {
        let touched: Vec<String> =
            from.iter().map(|entry| removed(&entry.key).unwrap_or(&entry.key).to_owned()).collect();
        let set: Vec<String> = from
            .iter()
            .filter(|entry| removed(&entry.key).is_none())
            .map(|entry| format!("{}={}", entry.key, entry.value))
            .collect();
        self.list(Field::Env, from, |entry| entry.key.clone(), &mut Vec::new(), into)?;
        shown.retain(|entry| !touched.iter().any(|name| entry.split('=').next() == Some(name)));
        shown.extend(set);
        Ok(())
    }

    fn args(&mut self, from: Vec<String>, shown: &mut Vec<String>, into: &mut Vec<String>) -> Result<(), Conflict> {
        let args = match from.split_first() {
            None => return Ok(()),
            Some((first, rest)) if first.is_empty() => {
                self.owners.clear(self.id, Field::Args, self.plugin);
                rest.to_vec()
            }
            Some(_) => from,
        };
        self.simple(Field::Args)?;
        shown.clone_from(&args);
        *into = args;
        Ok(())
    }

    /// Hooks are only ever added.
    fn hooks(&mut self, from: Option<Hooks>, shown: &mut Hooks, into: &mut ContainerAdjustment) {
        let Some(from) = from.filter(|hooks| *hooks != Hooks::default()) else { return };
        self.owners.join(self.id, Field::OciHooks, self.plugin);
        for into in [shown, into.hooks.get_or_insert_default()] {
            let from = from.clone();
            into.prestart.extend(from.prestart);
            into.create_runtime.extend(from.create_runtime);
            into.create_container.extend(from.create_container);
            into.start_container.extend(from.start_container);
            into.poststart.extend(from.poststart);
            into.poststop.extend(from.poststop);
        }
    }

    fn namespaces(
        &mut self,
        from: Vec<LinuxNamespace>,
        shown: &mut Vec<LinuxNamespace>,
        into: &mut Vec<LinuxNamespace>,
    ) -> Result<(), Conflict> {
        for namespace in from {
            let kind = removed(&namespace.r#type).unwrap_or(&namespace.r#type).to_owned();
            self.key(Field::Namespace, &kind)?;
            shown.retain(|known| known.r#type != kind);
            if removed(&namespace.r#type).is_none() {
                shown.push(namespace.clone());
            }
            into.retain(|known| removed(&known.r#type).unwrap_or(&known.r#type) != kind);
            into.push(namespace);
        }
        Ok(())
    }

    fn rdt(
        &mut self,
        from: LinuxRdt,
        shown: &mut Option<LinuxRdt>,
        into: &mut Option<LinuxRdt>,
    ) -> Result<(), Conflict> {
        let fields = [Field::RdtClosId, Field::RdtSchemata, Field::RdtEnableMonitoring];
        if from.remove {
            fields.iter().for_each(|field| self.owners.clear(self.id, *field, self.plugin));
            *shown = None;
            *into = Some(LinuxRdt { remove: true, ..LinuxRdt::default() });
        }
        let [clos, schemata, monitoring] = fields;
        for (field, set) in [
            (clos, from.clos_id.is_some()),
            (schemata, from.schemata.is_some()),
            (monitoring, from.enable_monitoring.is_some()),
        ] {
            if set {
                self.simple(field)?;
            }
        }
        for into in [shown, into] {
            let into = into.get_or_insert_default();
            into.clos_id = from.clos_id.clone().or(into.clos_id.take());
            into.schemata = from.schemata.clone().or(into.schemata.take());
            into.enable_monitoring = from.enable_monitoring.or(into.enable_monitoring);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
