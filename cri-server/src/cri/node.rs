//! Version, Status, RuntimeConfig, UpdateRuntimeConfig: the node itself.

use std::{collections::HashMap, path::Path};

use api::cri;
use sandbox::RuntimeOptions;
use serde_json::json;

use super::Cri;
use crate::config::deprecations;

impl Cri {
    /// Four fields, all of which the kubelet requires. The name is containerd's, because cAdvisor and monitoring tools
    /// choose by it how they read containers; the version says who answers.
    pub(super) fn version(&self) -> cri::VersionResponse {
        cri::VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "containerd".to_owned(),
            runtime_version: crate::VERSION.to_owned(),
            runtime_api_version: "v1".to_owned(),
        }
    }

    pub(super) async fn status(&self, request: cri::StatusRequest) -> cri::StatusResponse {
        let network = self.pods.network_ready().await;
        let condition = |kind: &str, status: bool, reason: &str, message: String| cri::RuntimeCondition {
            r#type: kind.to_owned(),
            status,
            reason: reason.to_owned(),
            message,
        };
        let info = if request.verbose { self.node_info(&network).await } else { HashMap::new() };
        let network = match &network {
            Ok(()) => condition("NetworkReady", true, "", String::new()),
            Err(error) => {
                let message = format!("Network plugin returns error: {}", error.chain());
                condition("NetworkReady", false, "NetworkPluginNotReady", message)
            }
        };
        // containerd's name, by which tools look for it.
        let kind = "ContainerdHasNoDeprecationWarnings";
        let deprecated = deprecations(&self.config);
        let deprecated = match deprecated.is_empty() {
            true => condition(kind, true, "", String::new()),
            false => condition(kind, false, "ContainerdHasDeprecationWarnings", json!(deprecated).to_string()),
        };
        // Not RuntimeReady: the pods that run go on, and a node that is not ready loses them.
        let unusable = self.pods.unusable_handlers().await;
        let kind = "RuntimeHandlersReady";
        let handlers = match unusable.is_empty() {
            true => condition(kind, true, "", String::new()),
            false => {
                let all: Vec<String> = unusable.iter().map(sandbox::Error::chain).collect();
                condition(kind, false, "RuntimeHandlerNotReady", all.join("; "))
            }
        };
        let runtime = condition("RuntimeReady", true, "", String::new());
        cri::StatusResponse {
            status: Some(cri::RuntimeStatus { conditions: vec![runtime, network, deprecated, handlers] }),
            info,
            runtime_handlers: self.handlers(),
            features: Some(cri::RuntimeFeatures {
                supplemental_groups_policy: true,
                // A pod that asks for it of a handler without user namespaces is refused by the kubelet for that.
                user_namespaces_host_network: true,
            }),
        }
    }

    /// Every handler by name, and the default one once more under the empty name. The kubelet refuses pods that want what
    /// their handler does not have.
    fn handlers(&self) -> Vec<cri::RuntimeHandler> {
        let handlers = self.pods.handlers();
        let default = handlers.get(&self.config.runtime.default_handler).map(|handler| ("", handler));
        let all = default.into_iter().chain(handlers.iter().map(|(name, handler)| (name.as_str(), handler)));
        let features = |handler: &sandbox::Handler| cri::RuntimeHandlerFeatures {
            recursive_read_only_mounts: handler.features.recursive_readonly_mounts,
            user_namespaces: handler.features.user_namespaces,
        };
        all.map(|(name, handler)| cri::RuntimeHandler { name: name.to_owned(), features: Some(features(handler)) })
            .collect()
    }

    /// The kubelet adopts this driver, so it must be what the default handler's pods get. A runtime of another kind than
    /// runc does not say; then the next handler does, and if none does, systemd's where systemd runs.
    pub(super) fn runtime_config(&self) -> cri::RuntimeConfigResponse {
        let runtime = &self.config.runtime;
        let default = runtime.handlers.get(&runtime.default_handler);
        let told = default.into_iter().chain(runtime.handlers.values()).find_map(|handler| match &handler.options {
            RuntimeOptions::Runc(options) => Some(options.systemd_cgroup),
            RuntimeOptions::Generic(_) | RuntimeOptions::None => None,
        });
        // The directory that sd_booted(3) looks for.
        let systemd = told.unwrap_or_else(|| Path::new("/run/systemd/system").is_dir());
        let driver = if systemd { cri::CgroupDriver::Systemd } else { cri::CgroupDriver::Cgroupfs };
        cri::RuntimeConfigResponse { linux: Some(cri::LinuxRuntimeConfiguration { cgroup_driver: driver as i32 }) }
    }
}
