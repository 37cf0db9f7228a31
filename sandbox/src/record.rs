//! What is stored of a pod and of a container: plain data, written by the pod's owner only.
//!
//! The intent is what makes a crash recoverable: it is committed before the first effect of an operation and cleared with
//! its result, so a record with an intent says that the operation was cut short.

use std::{path::PathBuf, time::SystemTime};

use serde::{Deserialize, Serialize};

use crate::{
    Config, Error, Handler,
    checkpoint::Restore,
    machine::{ContainerPhase, ContainerVerb, PodPhase, PodVerb},
    model::{
        ContainerSpec, ContainerState, ContainerUser, ContainerView, Exit, Id, Image, NamespaceMode, PodNetwork,
        PodResources, PodSpec, PodState, PodView, Resources,
    },
    oci::sysctls,
    paths::log_path,
    request::{Create, Run},
};

/// The version that this program writes.
pub(crate) const VERSION: u32 = 1;

/// The runtime type whose pods run on the host's own kernel.
const SHARES_KERNEL: &str = "io.containerd.runc.v2";

/// One pod.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub(crate) version: u32,
    pub(crate) id: Id,
    pub(crate) spec: PodSpec,
    pub(crate) image: Image,
    /// The handler's name in the configuration, the default resolved.
    pub(crate) handler: String,
    /// Where the snapshots of the pod and its containers are, whatever the configuration says later.
    pub(crate) snapshotter: String,
    pub(crate) phase: PodPhase,
    pub(crate) intent: Option<PodVerb>,
    pub(crate) created_at: SystemTime,
    /// The boot in which the pod was started last.
    pub(crate) boot: String,
    /// A CNI DEL is owed: true from before the ADD until a DEL succeeded.
    pub(crate) network_owed: bool,
    /// As it was made. Kept after the stop, since plugins of NRI are told of a removed pod's addresses.
    pub(crate) network: PodNetwork,
    /// The pod's SELinux level, no other pod's while this record lives; empty where nothing is labelled.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) selinux_level: String,
    pub(crate) pid: Option<i32>,
    /// What UpdatePodSandboxResources said last. The spec stays what the pod was run with, by which a retry is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) updated: Option<PodResources>,
    pub(crate) oci_spec: serde_json::Value,
}

/// One container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) version: u32,
    pub(crate) id: Id,
    pub(crate) pod: Id,
    pub(crate) spec: ContainerSpec,
    pub(crate) image: Image,
    /// `None` until it is created.
    pub(crate) state: Option<ContainerState>,
    pub(crate) intent: Option<ContainerVerb>,
    pub(crate) created_at: SystemTime,
    pub(crate) log_path: Option<PathBuf>,
    pub(crate) user: ContainerUser,
    pub(crate) oci_spec: serde_json::Value,
    /// The limits that hold, if they are not the ones it was created with: an update or a plugin has changed them. The spec
    /// stays what was asked, so that a retry of the creation is known as one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) limits: Option<Resources>,
    /// Where its processes come from, if they do not start anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) restore: Option<Restore>,
    /// When it was started, while its state is unknown.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) began: Option<SystemTime>,
}

impl PodRecord {
    /// A pod that is about to be made.
    pub(crate) fn new(config: &Config, boot: &str, id: Id, run: Run) -> Result<PodRecord, Error> {
        let handler = match run.spec.handler.as_str() {
            "" => config.default_handler.clone(),
            named => named.to_owned(),
        };
        let settings = config.handler(&handler)?;
        check(&run.spec, &handler, settings)?;
        Ok(PodRecord {
            version: VERSION,
            id,
            snapshotter: settings.snapshotter.clone().unwrap_or_else(|| config.snapshotter.clone()),
            handler,
            phase: PodPhase::New,
            intent: None,
            created_at: SystemTime::now(),
            boot: boot.to_owned(),
            network_owed: false,
            network: PodNetwork::default(),
            selinux_level: String::new(),
            pid: None,
            updated: None,
            oci_spec: serde_json::Value::Null,
            spec: run.spec,
            image: run.image,
        })
    }

    pub(crate) fn host_network(&self) -> bool {
        self.spec.namespaces.network == NamespaceMode::Node
    }

    /// The user and group that the root of the pod's processes is on the host.
    pub(crate) fn root_on_host(&self) -> (u32, u32) {
        self.spec.namespaces.user.as_ref().map_or((0, 0), |user| (user.uid.host, user.gid.host))
    }

    pub(crate) fn host_ipc(&self) -> bool {
        self.spec.namespaces.ipc == NamespaceMode::Node
    }

    /// Its overhead and resources as they were told last.
    pub(crate) fn resources(&self) -> PodResources {
        self.updated.clone().unwrap_or_else(|| PodResources {
            overhead: self.spec.overhead.clone(),
            resources: self.spec.resources.clone(),
        })
    }

    /// What clients see; `None` while the pod is being made.
    pub(crate) fn view(&self, netns: PathBuf) -> Option<PodView> {
        let (state, live) = match (self.phase, self.intent) {
            (PodPhase::New, Some(PodVerb::Run)) => return None,
            (PodPhase::Ready, None | Some(PodVerb::Run | PodVerb::Rescue)) => (PodState::Ready, true),
            // A pod that is being stopped takes no containers any more.
            (PodPhase::Ready, Some(PodVerb::Stop | PodVerb::Remove)) => (PodState::NotReady, true),
            (PodPhase::New | PodPhase::NotReady | PodPhase::Stopped, _) => (PodState::NotReady, false),
        };
        Some(PodView {
            id: self.id.clone(),
            spec: self.spec.clone(),
            state,
            created_at: self.created_at,
            ips: if live { self.network.ips.clone() } else { Vec::new() },
            pid: self.pid.filter(|_| live),
            netns: (!self.host_network()).then_some(netns),
            image: self.image.clone(),
            snapshotter: self.snapshotter.clone(),
            resources: self.resources(),
            cni_result: self.network.result.clone(),
            oci_spec: self.oci_spec.clone(),
        })
    }
}

/// What a handler can be seen not to run, before anything is made.
pub(crate) fn check(spec: &PodSpec, handler: &str, settings: &Handler) -> Result<(), Error> {
    refuse_user_namespace(spec, handler, settings)?;
    match settings.runtime_type == SHARES_KERNEL {
        true => sysctls::check(spec),
        false => Ok(()),
    }
}

fn refuse_user_namespace(spec: &PodSpec, handler: &str, settings: &Handler) -> Result<(), Error> {
    match spec.namespaces.user.is_none() || settings.features.user_namespaces {
        true => Ok(()),
        false => Err(Error::Unsupported(format!(
            "namespace_options.userns_options: user namespaces are not supported: the runtime of handler {handler:?} or the \
             kernel has no mapped mounts"
        ))),
    }
}

impl ContainerRecord {
    /// A container that is about to be made.
    pub(crate) fn new(pod: &PodRecord, id: Id, create: Create) -> ContainerRecord {
        ContainerRecord {
            version: VERSION,
            id,
            pod: pod.id.clone(),
            state: None,
            intent: Some(ContainerVerb::Create),
            created_at: SystemTime::now(),
            log_path: log_path(&pod.spec.log_directory, &create.spec.log_path),
            user: ContainerUser::default(),
            oci_spec: serde_json::Value::Null,
            limits: None,
            spec: create.spec,
            image: create.image,
            restore: create.restore,
            began: None,
        }
    }

    pub(crate) fn phase(&self) -> ContainerPhase {
        match &self.state {
            None => ContainerPhase::New,
            Some(ContainerState::Created) => ContainerPhase::Created,
            Some(ContainerState::Running { .. }) => ContainerPhase::Running,
            Some(ContainerState::Exited { .. }) => ContainerPhase::Exited,
            Some(ContainerState::Unknown) => ContainerPhase::Unknown,
        }
    }

    /// No shim has ever been asked for its task: a start commits its intent before anything else.
    pub(crate) fn never_started(&self) -> bool {
        matches!(self.phase(), ContainerPhase::New | ContainerPhase::Created)
            && self.intent != Some(ContainerVerb::Start)
    }

    pub(crate) fn has_exited(&self) -> bool {
        self.phase() == ContainerPhase::Exited
    }

    /// The limits that hold.
    pub(crate) fn limits(&self) -> &Resources {
        self.limits.as_ref().unwrap_or(&self.spec.resources)
    }

    /// Ends a container that lives or may live; one that has ended keeps its first end.
    pub(crate) fn end(&mut self, exit: Exit) {
        let started_at = match &self.state {
            Some(ContainerState::Running { started_at, .. }) => Some(*started_at),
            Some(ContainerState::Exited { .. }) => return,
            Some(ContainerState::Unknown) => self.began.take(),
            Some(ContainerState::Created) | None => None,
        };
        self.state = Some(ContainerState::Exited { started_at, exit });
    }

    /// Nobody can say any more whether it runs.
    pub(crate) fn lose_sight(&mut self) {
        if let Some(ContainerState::Running { started_at, .. }) = self.state {
            self.began = Some(started_at);
        }
        self.state = Some(ContainerState::Unknown);
    }

    /// What clients see; `None` before it is created.
    pub(crate) fn view(&self) -> Option<ContainerView> {
        Some(ContainerView {
            id: self.id.clone(),
            pod: self.pod.clone(),
            spec: ContainerSpec { resources: self.limits().clone(), ..self.spec.clone() },
            image: self.image.clone(),
            state: self.state.clone()?,
            created_at: self.created_at,
            log_path: self.log_path.clone(),
            user: self.user.clone(),
            removing: self.intent == Some(ContainerVerb::Remove),
            began: self.began,
            oci_spec: self.oci_spec.clone(),
        })
    }
}

/// The exit of a container whose start failed: never back to created, so that the kubelet sees why.
pub(crate) fn start_error(message: String) -> Exit {
    Exit { code: 128, at: SystemTime::now(), reason: "StartError".into(), message }
}

/// The exit of a container of which nobody can know how it ended.
pub(crate) fn unknown_exit() -> Exit {
    Exit { code: 255, at: SystemTime::now(), reason: "Unknown".into(), message: String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_has_ended_keeps_its_first_end() {
        let mut container =
            ContainerRecord { state: Some(ContainerState::Created), ..crate::store::tests::container() };
        container.end(start_error("no such file".into()));
        let first = container.clone();
        container.end(unknown_exit());
        assert_eq!(container, first);
    }

    #[test]
    fn a_container_that_nobody_could_ask_about_is_still_known_to_have_started() {
        let started_at = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(5);
        let state = Some(ContainerState::Running { pid: 1, started_at });
        let mut container = ContainerRecord { state, ..crate::store::tests::container() };
        container.lose_sight();
        let view = container.view().unwrap();
        assert_eq!((view.state, view.began), (ContainerState::Unknown, Some(started_at)));
        container.lose_sight();
        container.end(unknown_exit());
        let Some(ContainerState::Exited { started_at: told, .. }) = container.state else { panic!("{container:?}") };
        assert_eq!((told, container.began), (Some(started_at), None));
    }
}
