//! What happens to pods and containers, as plugins are told and asked: one function an event, for operations and owners.
//!
//! What makes something asks under an [`Admission`], which its operation holds until the result is published. What ends
//! something is told once, whoever comes first, and its failures are only logged: an end is not up to plugins.

use std::sync::Arc;

use futures_util::future::join_all;
use serde_json::Value;

use crate::{
    Error,
    model::{Id, PodResources, Resources},
    record::{ContainerRecord, PodRecord},
    world::Operation,
};

use super::{
    Admission, Hub, Nri, limits,
    merge::{Creation, Refusal, Updating},
    objects,
    plugin::Plugin,
    proto::{
        Container, ContainerAdjustment, ContainerEvent, ContainerUpdate, CreateContainerResponse, Empty, Event,
        LinuxResources, PluginInstance, PodSandbox, StopContainerResponse, UpdateContainerRequest,
        UpdateContainerResponse, UpdatePodSandboxRequest, ValidateContainerAdjustmentRequest,
        ValidateContainerAdjustmentResponse, removed,
    },
    spec::{self, HostLimits},
    validator,
};

impl Nri {
    pub(crate) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Whether there is anybody to tell.
    pub(crate) fn has_plugins(&self) -> bool {
        self.0.as_ref().is_some_and(|hub| !hub.registry.plugins().is_empty())
    }

    /// The operation's admission, taken now if it has none; `None` without NRI.
    fn admit<'o>(&self, operation: &'o Operation) -> Option<(&Arc<Hub>, &'o Admission)> {
        let hub = self.0.as_ref()?;
        Some((hub, operation.admission.get_or_init(|| hub.registry.admit())))
    }

    /// Asks whether the pod may run. It is not published yet.
    pub(crate) async fn run_pod(&self, operation: &Operation, pod: &PodRecord) -> Result<(), Error> {
        let Some((_, admission)) = self.admit(operation) else { return Ok(()) };
        tell(admission, Event::RunPodSandbox, || objects::of_pod(pod), None::<fn() -> Container>).await
    }

    /// Takes [`Nri::run_pod`] back.
    pub(crate) async fn undo_pod(&self, operation: &Operation, pod: &PodRecord) {
        let Some(admission) = operation.admission.get().filter(|admission| admission.was_told()) else { return };
        let pod = objects::of_pod(pod);
        for event in [Event::StopPodSandbox, Event::RemovePodSandbox] {
            Box::pin(tell_end(&admission.plugins, event, &pod, None)).await;
        }
    }

    /// Asks what is to be changed of a container that is to have `spec`; `None` if nothing is.
    pub(crate) async fn create_container(
        &self,
        operation: &Operation,
        pod: &PodRecord,
        container: &ContainerRecord,
        spec: &Value,
    ) -> Result<Option<Adjustment>, Error> {
        let Some((hub, admission)) = self.admit(operation) else { return Ok(None) };
        let validates = hub.config.validator.enable;
        if admission.plugins.is_empty() && !validates {
            return Ok(None);
        }
        let (pod, container) = (objects::of_pod(pod), objects::of_new_container(container, spec));
        let creation = Box::pin(hub.ask_creation(admission, pod, container)).await?;
        Ok(creation.adjusts().then_some(Adjustment(creation.adjust)))
    }

    /// Takes [`Nri::create_container`] back.
    pub(crate) async fn undo_container(&self, operation: &Operation, pod: &PodRecord, container: &ContainerRecord) {
        let Some(admission) = operation.admission.get().filter(|admission| admission.was_told()) else { return };
        let (pod, container) = (objects::of_pod(pod), objects::of_container(container));
        for event in [Event::StopContainer, Event::RemoveContainer] {
            Box::pin(tell_end(&admission.plugins, event, &pod, Some(&container))).await;
        }
    }

    pub(crate) async fn post_create(&self, operation: &Operation, pod: &PodRecord, container: &ContainerRecord) {
        self.post(operation, Event::PostCreateContainer, pod, container).await;
    }

    /// Asks whether the container may start. Its task is made, and waits.
    pub(crate) async fn start_container(
        &self,
        operation: &Operation,
        pod: &PodRecord,
        container: &ContainerRecord,
    ) -> Result<(), Error> {
        let Some((_, admission)) = self.admit(operation) else { return Ok(()) };
        let container = || objects::of_container(container);
        tell(admission, Event::StartContainer, || objects::of_pod(pod), Some(container)).await
    }

    pub(crate) async fn post_start(&self, operation: &Operation, pod: &PodRecord, container: &ContainerRecord) {
        self.post(operation, Event::PostStartContainer, pod, container).await;
    }

    /// Asks about other limits for a container; `None` if no plugin has anything to say.
    pub(crate) async fn update_container(
        &self,
        operation: &Operation,
        pod: &PodRecord,
        container: &ContainerRecord,
        wanted: &Resources,
    ) -> Result<Option<LinuxResources>, Error> {
        let Some((hub, admission)) = self.admit(operation) else { return Ok(None) };
        if admission.plugins.is_empty() {
            return Ok(None);
        }
        let (pod, container) = (objects::of_pod(pod), objects::of_container(container));
        Box::pin(hub.ask_update(admission, pod, container, limits::of_request(wanted))).await
    }

    pub(crate) async fn post_update(&self, operation: &Operation, pod: &PodRecord, container: &ContainerRecord) {
        self.post(operation, Event::PostUpdateContainer, pod, container).await;
    }

    /// Asks about what the kubelet has told of a pod's resources; the pod is shown as it was before.
    pub(crate) async fn update_pod(&self, pod: &PodRecord, wanted: &PodResources) -> Result<(), Error> {
        let Some(hub) = &self.0 else { return Ok(()) };
        let admission = hub.registry.admit();
        if !admission.plugins.iter().any(|plugin| plugin.wants(Event::UpdatePodSandbox)) {
            return Ok(());
        }
        let request = UpdatePodSandboxRequest {
            pod: Some(objects::of_pod(pod)),
            overhead: wanted.overhead.as_ref().map(limits::of_request),
            resources: wanted.resources.as_ref().map(limits::of_request),
        };
        for plugin in &admission.plugins {
            let asked = plugin.ask::<Empty>(Event::UpdatePodSandbox, &request);
            Box::pin(asked).await?;
        }
        Ok(())
    }

    pub(crate) async fn post_update_pod(&self, pod: &PodRecord) {
        let Some(hub) = &self.0 else { return };
        let admission = hub.registry.admit();
        let told = tell(&admission, Event::PostUpdatePodSandbox, || objects::of_pod(pod), None::<fn() -> Container>);
        if let Err(error) = told.await {
            tracing::warn!(pod = %pod.id, error = error.chain(), "an NRI plugin does not like what has happened");
        }
    }

    /// Tells that a container has ended, once. What is needed for it is taken when this is called, not when it is awaited.
    pub(crate) fn stop_container(
        &self,
        pod: &PodRecord,
        container: &ContainerRecord,
    ) -> impl Future<Output = ()> + Send + 'static {
        let told = self.0.as_ref().map(|hub| {
            let (ending, plugins) = hub.registry.end(&container.id, false);
            if !plugins.is_empty() {
                ending.event.get_or_init(|| (objects::of_pod(pod), objects::of_container(container)));
            }
            (Arc::clone(hub), ending, plugins)
        });
        async move {
            let Some((hub, ending, plugins)) = told else { return };
            let tell = async {
                let Some((pod, container)) = ending.event.get() else { return };
                Box::pin(hub.tell_stopped(&plugins, pod.clone(), container.clone())).await;
            };
            ending.stopped.get_or_init(|| tell).await;
        }
    }

    /// Tells that a container has ended unless it was told, or had ended before this daemon: then plugins never knew it.
    pub(crate) async fn settle_container(&self, pod: &PodRecord, container: &ContainerRecord) {
        let ends = self.0.as_ref().is_some_and(|hub| hub.registry.ends(&container.id));
        if !container.has_exited() || ends {
            self.stop_container(pod, container).await;
        }
    }

    /// Tells that a container is removed, once, and before it that it has ended.
    pub(crate) async fn remove_container(&self, pod: &PodRecord, container: &ContainerRecord) {
        let Some(hub) = &self.0 else { return };
        // Of one whose creation failed plugins have heard already.
        if container.state.is_none() {
            return;
        }
        self.settle_container(pod, container).await;
        let (ending, plugins) = hub.registry.end(&container.id, true);
        let tell = async {
            if !plugins.is_empty() {
                let (pod, container) = (objects::of_pod(pod), objects::of_container(container));
                Box::pin(tell_end(&plugins, Event::RemoveContainer, &pod, Some(&container))).await;
            }
        };
        ending.removed.get_or_init(|| tell).await;
    }

    /// Tells that a pod is stopped, once. Its containers have ended, and clients can see it still.
    pub(crate) async fn stop_pod(&self, pod: &PodRecord) {
        let Some(hub) = &self.0 else { return };
        let (ending, plugins) = hub.registry.end(&pod.id, false);
        let tell = async {
            if !plugins.is_empty() {
                Box::pin(tell_end(&plugins, Event::StopPodSandbox, &objects::of_pod(pod), None)).await;
            }
        };
        ending.stopped.get_or_init(|| tell).await;
    }

    /// Tells that a pod is removed, once.
    pub(crate) async fn remove_pod(&self, pod: &PodRecord) {
        let Some(hub) = &self.0 else { return };
        let (ending, plugins) = hub.registry.end(&pod.id, true);
        let tell = async {
            if !plugins.is_empty() {
                Box::pin(tell_end(&plugins, Event::RemovePodSandbox, &objects::of_gone_pod(pod), None)).await;
            }
        };
        ending.removed.get_or_init(|| tell).await;
    }

    /// Forgets a pod or container that clients do not see any more.
    pub(crate) fn forget(&self, id: &Id) {
        if let Some(hub) = &self.0 {
            hub.registry.forget(id);
        }
    }

    /// Tells what has succeeded already.
    async fn post(&self, operation: &Operation, event: Event, pod: &PodRecord, container: &ContainerRecord) {
        let Some((_, admission)) = self.admit(operation) else { return };
        let pods = || objects::of_pod(pod);
        let containers = || objects::of_container(container);
        if let Err(error) = tell(admission, event, pods, Some(containers)).await {
            tracing::warn!(container = %container.id, error = error.chain(), "an NRI plugin does not like what has happened");
        }
    }
}

impl Hub {
    async fn ask_creation(
        &self,
        admission: &Admission,
        pod: PodSandbox,
        container: Container,
    ) -> Result<Creation, Error> {
        let mut creation = Creation::new(container.clone());
        for plugin in &admission.plugins {
            let request = ContainerEvent { pod: Some(pod.clone()), container: Some(creation.container.clone()) };
            admission.note_told();
            let answer: Option<CreateContainerResponse> = plugin.ask(Event::CreateContainer, &request).await?;
            if let Some(answer) = answer {
                creation.take(&plugin.name, answer).map_err(refused)?;
            }
        }
        self.validate(&admission.plugins, pod, container, &creation).await?;
        self.carry_out(std::mem::take(&mut creation.updates.0)).await?;
        self.evict(std::mem::take(&mut creation.evict));
        Ok(creation)
    }

    async fn ask_update(
        &self,
        admission: &Admission,
        pod: PodSandbox,
        container: Container,
        wanted: LinuxResources,
    ) -> Result<Option<LinuxResources>, Error> {
        let mut updating = Updating::new(container.id.clone(), wanted);
        for plugin in &admission.plugins {
            let request = UpdateContainerRequest {
                pod: Some(pod.clone()),
                container: Some(container.clone()),
                resources: Some(updating.limits.clone()),
            };
            let answer: Option<UpdateContainerResponse> = plugin.ask(Event::UpdateContainer, &request).await?;
            if let Some(answer) = answer {
                updating.take(&plugin.name, answer.update).map_err(refused)?;
                self.evict(answer.evict);
            }
        }
        self.carry_out(updating.others.0).await?;
        Ok(updating.changed.then_some(updating.limits))
    }

    async fn tell_stopped(&self, plugins: &[Arc<Plugin>], pod: PodSandbox, container: Container) {
        let request = ContainerEvent { pod: Some(pod), container: Some(container) };
        let id = request.container.as_ref().map(|container| container.id.clone()).unwrap_or_default();
        let mut stopped = Updating::new(id, LinuxResources::default());
        for plugin in plugins {
            let answer: Result<Option<StopContainerResponse>, _> = plugin.ask(Event::StopContainer, &request).await;
            let merged = answer.map(|answer| {
                let update = answer.map(|answer| answer.update).unwrap_or_default();
                stopped.take(&plugin.name, update).map_err(refused)
            });
            if let Err(error) = merged.and_then(|merged| merged) {
                tracing::warn!(error = error.chain(), "an NRI plugin could not be told of a container's end");
            }
        }
        if let Err(error) = self.carry_out(stopped.others.0).await {
            tracing::warn!(error = error.chain(), "what an NRI plugin asked for at a container's end has failed");
        }
    }

    /// Updates other containers, and fails if one fails that must not.
    async fn carry_out(&self, updates: Vec<ContainerUpdate>) -> Result<(), Error> {
        if updates.is_empty() {
            return Ok(());
        }
        match self.update_all(updates).await.into_iter().next() {
            None => Ok(()),
            Some((id, error)) => {
                Err(Error::plain(format!("update container {id} for an NRI plugin: {}", error.chain())))
            }
        }
    }

    /// Lets validators look at what all plugins together ask for.
    async fn validate(
        &self,
        plugins: &[Arc<Plugin>],
        pod: PodSandbox,
        container: Container,
        creation: &Creation,
    ) -> Result<(), Error> {
        // One that was closed while it was asked about this container is as if it had never been there.
        let open = || plugins.iter().filter(|plugin| !plugin.is_closed());
        let validators: Vec<&Arc<Plugin>> =
            open().filter(|plugin| plugin.wants(Event::ValidateContainerAdjustment)).collect();
        let config = &self.config.validator;
        if validators.is_empty() && !config.enable {
            return Ok(());
        }
        let request = ValidateContainerAdjustmentRequest {
            pod: Some(pod),
            container: Some(container),
            adjust: Some(creation.adjust.clone()),
            update: creation.updates.0.clone(),
            owners: Some(creation.owners.0.clone()),
            plugins: open()
                .map(|plugin| PluginInstance { name: plugin.base.clone(), index: plugin.index.clone() })
                .collect(),
        };
        if config.enable {
            validator::validate(config, &request, &creation.owners).map_err(|reason| {
                Error::Precondition(format!("the adjustment of the container by NRI plugins is rejected: {reason}"))
            })?;
        }
        let verdicts = validators.iter().map(async |plugin| {
            let verdict =
                plugin.ask::<ValidateContainerAdjustmentResponse>(Event::ValidateContainerAdjustment, &request);
            match verdict.await? {
                Some(verdict) if verdict.reject => Err(Error::Precondition(format!(
                    "NRI plugin {} rejects the adjustment of the container: {}",
                    plugin.name, verdict.reason
                ))),
                Some(_) => Ok(()),
                // A validator that fell silent has not agreed.
                None => Err(Error::plain(format!("NRI plugin {} did not validate the container", plugin.name))),
            }
        });
        join_all(verdicts).await.into_iter().collect()
    }
}

/// What plugins want of a container that is being created.
pub(crate) struct Adjustment(ContainerAdjustment);

impl Adjustment {
    /// CDI devices, by name. They go into the spec before the rest is applied.
    pub(crate) fn cdi_devices(&self) -> Vec<String> {
        self.0.cdi_devices.iter().map(|device| device.name.clone()).collect()
    }

    /// The class of block I/O, by name.
    pub(crate) fn block_io_class(&self) -> Option<&str> {
        let class = self.0.linux.as_ref()?.resources.as_ref()?.blockio_class.as_ref()?;
        Some(class.value.as_str()).filter(|class| !class.is_empty())
    }

    /// A network device of the host that is to be moved into the container.
    pub(crate) fn net_device(&self) -> Option<&str> {
        let devices = &self.0.linux.as_ref()?.net_devices;
        devices.keys().find(|name| removed(name).is_none()).map(String::as_str)
    }

    /// All but CDI devices, with what its class of block I/O is.
    pub(crate) fn apply(&self, spec: &mut Value, host: HostLimits, block_io: Option<Value>) -> Result<(), Error> {
        spec::apply(&self.0, spec, host, block_io)
    }

    /// The limits that they have set, as far as CRI can tell them.
    pub(crate) fn limits(&self) -> Result<Option<Resources>, Error> {
        let limits = self.0.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        limits.map(limits::to_request).transpose()
    }
}

/// Asks each plugin for its consent, which is an empty answer.
async fn tell<C: FnOnce() -> Container>(
    admission: &Admission,
    event: Event,
    pod: impl FnOnce() -> PodSandbox,
    container: Option<C>,
) -> Result<(), Error> {
    if !admission.plugins.iter().any(|plugin| plugin.wants(event)) {
        return Ok(());
    }
    let (pod, container) = (pod(), container.map(|container| container()));
    let telling = async {
        for plugin in &admission.plugins {
            admission.note_told();
            plugin.tell(event, &pod, container.as_ref()).await?;
        }
        Ok(())
    };
    Box::pin(telling).await
}

/// Tells each plugin of an end, whatever the others say to it.
async fn tell_end(plugins: &[Arc<Plugin>], event: Event, pod: &PodSandbox, container: Option<&Container>) {
    for plugin in plugins {
        if let Err(error) = plugin.tell(event, pod, container).await {
            tracing::warn!(plugin = plugin.name, event = event.method(), error = error.chain(), "an NRI plugin failed");
        }
    }
}

fn refused(refusal: Refusal) -> Error {
    Error::plain(refusal.to_string())
}
