//! ListPodSandbox and ListContainers, from the published views: nothing here waits for anything.

use std::collections::HashMap;

use api::cri;
use sandbox::model::StringMap;
use tonic::Status;

use super::{
    Cri,
    convert::{
        parse_enum,
        status::{to_container_item, to_container_state, to_pod_item, to_pod_state},
    },
};

impl Cri {
    pub(super) fn list_pods(&self, request: cri::ListPodSandboxRequest) -> Result<cri::ListPodSandboxResponse, Status> {
        let filter = request.filter.unwrap_or_default();
        let state = filter
            .state
            .map(|state| parse_enum::<cri::PodSandboxState>(state.state, "filter.state"))
            .transpose()?;
        let mut pods = self.pods.pods();
        pods.retain(|pod| {
            pod.id.as_str().starts_with(&filter.id)
                && state.is_none_or(|state| state == to_pod_state(pod.state))
                && selects(&filter.label_selector, &pod.spec.labels)
        });
        Ok(cri::ListPodSandboxResponse { items: pods.iter().map(|pod| to_pod_item(pod)).collect() })
    }

    pub(super) fn list_containers(&self, request: cri::ListContainersRequest) -> Result<cri::ListContainersResponse, Status> {
        let filter = request.filter.unwrap_or_default();
        let state = filter
            .state
            .map(|state| parse_enum::<cri::ContainerState>(state.state, "filter.state"))
            .transpose()?;
        let mut containers = self.pods.containers();
        containers.retain(|container| {
            container.id.as_str().starts_with(&filter.id)
                && container.pod.as_str().starts_with(&filter.pod_sandbox_id)
                && state.is_none_or(|state| state == to_container_state(&container.state))
                && selects(&filter.label_selector, &container.spec.labels)
        });
        Ok(cri::ListContainersResponse { containers: containers.iter().map(|container| to_container_item(container)).collect() })
    }
}

/// Every pair of the selector must be among the labels.
fn selects(selector: &HashMap<String, String>, labels: &StringMap) -> bool {
    selector.iter().all(|(key, value)| labels.get(key) == Some(value))
}
