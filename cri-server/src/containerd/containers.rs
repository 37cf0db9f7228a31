//! Containers: what would be run.

use std::{collections::HashMap, pin::Pin};

use api::containerd::services::containers::v1::{
    Container, CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest, GetContainerRequest,
    GetContainerResponse, ListContainerMessage, ListContainersRequest, ListContainersResponse, UpdateContainerRequest,
    UpdateContainerResponse, container::Runtime, containers_server::Containers,
};
use prost_types::Any;
use sandbox::model::{ContainerView, Image, PodView, StringMap};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::{Containerd, namespace_of, read_only, to_timestamp};

/// Says whether a container is a pod's pause container; containerd's CRI plugin sets it, and cAdvisor counts a pod's network
/// for the one that has it.
const KIND: &str = "io.cri-containerd.kind";

/// A label whose name and value together are longer is none to containerd.
const LONGEST_LABEL: usize = 4096;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Containers for Containerd {
    async fn get(&self, request: Request<GetContainerRequest>) -> Answer<GetContainerResponse> {
        let (namespace, id) = (namespace_of(&request)?, &request.get_ref().id);
        let found = match self.is_ours(&request)? {
            true => self.find(id).await?,
            false => None,
        };
        let missing = || Status::not_found(format!("container {id:?} in namespace {namespace:?}: not found"));
        Ok(Response::new(GetContainerResponse { container: Some(found.ok_or_else(missing)?) }))
    }

    async fn list(&self, request: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
        Ok(Response::new(ListContainersResponse { containers: self.all(&request)? }))
    }

    type ListStreamStream = Pin<Box<dyn Stream<Item = Result<ListContainerMessage, Status>> + Send>>;

    async fn list_stream(&self, request: Request<ListContainersRequest>) -> Answer<Self::ListStreamStream> {
        let all = self.all(&request)?.into_iter();
        let messages = all.map(|container| Ok(ListContainerMessage { container: Some(container) }));
        Ok(Response::new(Box::pin(tokio_stream::iter(messages))))
    }

    async fn create(&self, _: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
        read_only("Containers.Create")
    }

    async fn update(&self, _: Request<UpdateContainerRequest>) -> Answer<UpdateContainerResponse> {
        read_only("Containers.Update")
    }

    async fn delete(&self, _: Request<DeleteContainerRequest>) -> Answer<()> {
        read_only("Containers.Delete")
    }
}

impl Containerd {
    /// A container or a pod with this whole id. A pod is found from before its cgroup is made: whoever sees a cgroup
    /// and is told that it is nobody's does not ask again.
    async fn find(&self, id: &str) -> Result<Option<Container>, Status> {
        if let Some(container) = self.pods.container(id).ok().filter(|container| container.id.as_str() == id) {
            return Ok(Some(self.of_container(&container)));
        }
        let pod = self.pods.pod_from_its_intent(id).await;
        let pod = pod.map_err(|error| Status::unavailable(format!("look for container {id:?}: {}", error.chain())))?;
        Ok(pod.map(|pod| self.of_pod(&pod)))
    }

    fn all(&self, request: &Request<ListContainersRequest>) -> Result<Vec<Container>, Status> {
        if !request.get_ref().filters.is_empty() {
            return read_only("filters: a filtered list of containers");
        }
        if !self.is_ours(request)? {
            return Ok(Vec::new());
        }
        let pods = self.pods.pods();
        let containers = self.pods.containers();
        let containers = containers.iter().map(|container| self.of_container(container));
        Ok(pods.iter().map(|pod| self.of_pod(pod)).chain(containers).collect())
    }

    fn of_pod(&self, pod: &PodView) -> Container {
        Container {
            id: pod.id.to_string(),
            labels: labels(labels_of(&pod.image), &pod.spec.labels, "sandbox"),
            image: pod.image.name.clone(),
            runtime: self.runtime(&pod.spec.handler),
            spec: Some(to_spec(&pod.oci_spec)),
            snapshotter: pod.snapshotter.clone(),
            snapshot_key: pod.id.to_string(),
            created_at: Some(to_timestamp(pod.created_at)),
            updated_at: Some(to_timestamp(pod.created_at)),
            extensions: HashMap::new(),
            sandbox: String::new(),
        }
    }

    fn of_container(&self, container: &ContainerView) -> Container {
        let pod = self.pods.pod(container.pod.as_str()).ok();
        let handler = pod.as_ref().map_or("", |pod| pod.spec.handler.as_str());
        Container {
            id: container.id.to_string(),
            labels: labels(labels_of(&container.image), &container.spec.labels, "container"),
            image: container.image.name.clone(),
            runtime: self.runtime(handler),
            spec: Some(to_spec(&container.oci_spec)),
            snapshotter: pod.as_ref().map(|pod| pod.snapshotter.clone()).unwrap_or_default(),
            snapshot_key: container.id.to_string(),
            created_at: Some(to_timestamp(container.created_at)),
            updated_at: Some(to_timestamp(container.created_at)),
            extensions: HashMap::new(),
            sandbox: container.pod.to_string(),
        }
    }

    fn runtime(&self, handler: &str) -> Option<Runtime> {
        let runtime = &self.config.runtime;
        let name = if handler.is_empty() { &runtime.default_handler } else { handler };
        let name = runtime.handlers.get(name)?.runtime_type.clone();
        Some(Runtime { name, options: None })
    }
}

/// Labels by which containerd, its clients and the kubelet's cAdvisor know their own: no image gives them to a container.
const RESERVED: [&str; 4] = ["containerd.io/", "io.cri-containerd", "io.kubernetes.", "org.mobyproject."];

fn is_reserved(name: &str) -> bool {
    RESERVED.iter().any(|prefix| name.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix)))
}

fn labels_of(image: &Image) -> HashMap<String, String> {
    image.config.config().as_ref().and_then(|config| config.labels().clone()).unwrap_or_default()
}

/// The image's labels, over them the client's, and which kind it is, as containerd's CRI plugin has them.
fn labels(of_image: HashMap<String, String>, own: &StringMap, kind: &str) -> HashMap<String, String> {
    let mut labels = of_image;
    labels.retain(|name, value| name.len() + value.len() <= LONGEST_LABEL && !is_reserved(name));
    labels.extend(own.iter().map(|(name, value)| (name.clone(), value.clone())));
    labels.insert(KIND.to_owned(), kind.to_owned());
    labels
}

/// A spec that is not made yet is an empty one.
fn to_spec(spec: &serde_json::Value) -> Any {
    let value = if spec.is_object() { spec.to_string() } else { "{}".to_owned() };
    Any { type_url: "types.containerd.io/opencontainers/runtime-spec/1/Spec".to_owned(), value: value.into_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map<M: FromIterator<(String, String)>>(labels: &[(&str, &str)]) -> M {
        labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    /// CVE-2026-53488: an image said how containerd was to run a program.
    #[test]
    fn v_c25_no_label_of_an_image_says_what_only_the_node_may_say() {
        let long = "x".repeat(LONGEST_LABEL);
        let of_image = map(&[
            ("containerd.io/restart.loguri", "binary:///bin/sh"),
            ("Containerd.IO/restart.status", "running"),
            ("io.cri-containerd.kind", "sandbox"),
            ("io.cri-containerd.image", "managed"),
            ("io.kubernetes.pod.namespace", "kube-system"),
            ("org.mobyproject.x", "y"),
            ("maintainer", "someone"),
            ("kept", "image"),
            ("containerd.iox", "other"),
            ("été", "name"),
            ("long", &long),
        ]);
        let own: StringMap = map(&[("io.kubernetes.pod.name", "web"), ("kept", "client")]);
        let expected = [
            ("maintainer", "someone"),
            ("kept", "client"),
            ("containerd.iox", "other"),
            ("été", "name"),
            ("io.kubernetes.pod.name", "web"),
            ("io.cri-containerd.kind", "container"),
        ];
        assert_eq!(labels(of_image, &own, "container"), map(&expected));
    }
}
