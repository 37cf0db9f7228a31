//! `info` of verbose statuses: one key, `info`, with JSON under the names that containerd gives it. Agents and people read
//! it, so a name means here what it means there.

use std::{collections::HashMap, path::Path};

use sandbox::{
    RuntimeOptions,
    model::{ContainerState, ContainerView, PodView},
};
use serde_json::{Value, json};

use super::{
    Cri,
    convert::{
        config::{to_container_config, to_pod_config},
        to_resources_json,
    },
    pods::network_is_gone,
};
use crate::config::Handler;

impl Cri {
    pub(super) fn pod_info(&self, pod: &PodView) -> HashMap<String, String> {
        let handler = self.handler_of(pod);
        let config = to_pod_config(&pod.spec);
        let mut info = json!({
            "pid": pod.pid.unwrap_or_default(),
            "processStatus": if pod.pid.is_some() { "running" } else { "deleted" },
            "netNamespaceClosed": network_is_gone(pod),
            "image": pod.image.requested,
            "snapshotKey": pod.id.as_str(),
            "snapshotter": pod.snapshotter,
            "runtimeHandler": pod.spec.handler,
            "runtimeType": handler.map(|handler| handler.runtime_type.as_str()).unwrap_or_default(),
            "runtimeOptions": handler.map_or(Value::Null, |handler| to_options(&handler.options)),
            "config": config,
            "runtimeSpec": pod.oci_spec,
            "cniResult": pod.cni_result,
            "sandboxMetadata": {
                "Version": "v1",
                "Metadata": {
                    "ID": pod.id.as_str(),
                    "Name": pod.spec.name.key(),
                    "Config": config,
                    "NetNSPath": pod.netns.as_deref().unwrap_or(Path::new("")),
                    "IP": pod.ips.first().map(String::as_str).unwrap_or_default(),
                    "AdditionalIPs": pod.ips.get(1..).unwrap_or_default(),
                    "RuntimeHandler": pod.spec.handler,
                    "CNIResult": pod.cni_result,
                    "ProcessLabel": pod.oci_spec["process"]["selinuxLabel"].as_str().unwrap_or_default(),
                },
            },
        });
        for (name, told) in [("overhead", &pod.resources.overhead), ("resources", &pod.resources.resources)] {
            if let Some(told) = told {
                info[name] = to_resources_json(told);
            }
        }
        HashMap::from([("info".to_owned(), info.to_string())])
    }

    pub(super) fn container_info(&self, container: &ContainerView) -> HashMap<String, String> {
        let pid = match &container.state {
            ContainerState::Running { pid, .. } => *pid,
            ContainerState::Created | ContainerState::Exited { .. } | ContainerState::Unknown => 0,
        };
        let pod = self.pods.pod(container.pod.as_str()).ok();
        let pod = pod.as_deref();
        let handler = pod.and_then(|pod| self.handler_of(pod));
        let info = json!({
            "sandboxID": container.pod.as_str(),
            "pid": pid,
            "removing": container.removing,
            "snapshotKey": container.id.as_str(),
            "snapshotter": pod.map_or(&self.config.images.snapshotter, |pod| &pod.snapshotter),
            "runtimeType": handler.map(|handler| handler.runtime_type.as_str()).unwrap_or_default(),
            "runtimeOptions": handler.map_or(Value::Null, |handler| to_options(&handler.options)),
            "config": to_container_config(&container.spec, &container.image),
            "runtimeSpec": container.oci_spec,
        });
        HashMap::from([("info".to_owned(), info.to_string())])
    }

    /// The configuration of a pod's handler, if it is still there.
    fn handler_of(&self, pod: &PodView) -> Option<&Handler> {
        let runtime = &self.config.runtime;
        let name = if pod.spec.handler.is_empty() { &runtime.default_handler } else { &pod.spec.handler };
        runtime.handlers.get(name)
    }
}

/// The options as runc's and other shims' message has them; what is not set is left out.
fn to_options(options: &RuntimeOptions) -> Value {
    let mut shown = match options {
        RuntimeOptions::Runc(options) => json!({
            "no_pivot_root": options.no_pivot_root,
            "no_new_keyring": options.no_new_keyring,
            "shim_cgroup": options.shim_cgroup,
            "io_uid": options.io_uid,
            "io_gid": options.io_gid,
            "binary_name": options.binary_name,
            "root": options.root,
            "systemd_cgroup": options.systemd_cgroup,
            "criu_image_path": options.criu_image_path,
            "criu_work_path": options.criu_work_path,
        }),
        // The body is the runtime's own, and may be long.
        RuntimeOptions::Generic(options) => json!({"type_url": options.type_url, "config_path": options.config_path}),
        RuntimeOptions::None => Value::Null,
    };
    if let Some(fields) = shown.as_object_mut() {
        fields.retain(|_, value| ![json!(0), json!(false), json!("")].contains(value));
    }
    shown
}
