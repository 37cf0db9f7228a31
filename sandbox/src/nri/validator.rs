//! The built-in validator: what no plugin may adjust, and which plugins must be there (`default_validator`).

use super::{
    ValidatorConfig,
    owners::Owners,
    proto::{Field, PodSandbox, ValidateContainerAdjustmentRequest, removed, security_profile::ProfileType},
};

/// A pod's annotation that names further plugins without which its containers are not made.
const REQUIRED: &str = "required-plugins.noderesource.dev";

/// Fails with the reason why the container may not be made this way.
pub(super) fn validate(
    config: &ValidatorConfig,
    request: &ValidateContainerAdjustmentRequest,
    owners: &Owners,
) -> Result<(), String> {
    let container = request.container.clone().unwrap_or_default();
    let id = container.id.as_str();
    if let Some(plugins) = owners.of(id, Field::OciHooks).filter(|_| config.reject_hooks) {
        return Err(format!("plugin {plugins} adds OCI hooks"));
    }
    if let Some(plugin) = owners.of(id, Field::SeccompPolicy) {
        let profile = container.linux.and_then(|linux| linux.seccomp_profile);
        let kind = profile.map_or(ProfileType::Unconfined, |profile| profile.profile_type());
        let (rejected, kind) = match kind {
            ProfileType::RuntimeDefault => (config.reject_runtime_default_seccomp, "runtime default"),
            ProfileType::Unconfined => (config.reject_unconfined_seccomp, "unconfined"),
            ProfileType::Localhost => (config.reject_custom_seccomp, "custom"),
        };
        if rejected {
            return Err(format!("plugin {plugin} replaces a {kind} seccomp policy"));
        }
    }
    for (field, rejected, what) in
        [(Field::Namespace, config.reject_namespaces, "namespace"), (Field::Sysctl, config.reject_sysctls, "sysctl")]
    {
        if let Some((key, plugin)) = owners.of_keys(id, field).into_iter().next().filter(|_| rejected) {
            return Err(format!("plugin {} adjusts {what} {key}", removed(plugin).unwrap_or(plugin)));
        }
    }
    required(config, request, &container.name)
}

fn required(
    config: &ValidatorConfig,
    request: &ValidateContainerAdjustmentRequest,
    container: &str,
) -> Result<(), String> {
    let nobody = PodSandbox::default();
    let pod = request.pod.as_ref().unwrap_or(&nobody);
    let tolerate = Some(config.tolerate_missing_annotation.as_str()).filter(|name| !name.is_empty());
    match tolerate.and_then(|name| annotation(pod, name, container).map(|value| (name, value))) {
        Some((_, "true" | "True" | "TRUE" | "t" | "T" | "1")) => return Ok(()),
        None | Some((_, "false" | "False" | "FALSE" | "f" | "F" | "0")) => {}
        Some((name, value)) => return Err(format!("annotation {name}: {value:?} is neither true nor false")),
    }
    let mut required = config.required_plugins.clone();
    if let Some(value) = annotation(pod, REQUIRED, container) {
        required.extend(parse_list(value).ok_or_else(|| format!("annotation {REQUIRED}: {value:?} is not a list"))?);
    }
    let is_there = |name: &String| {
        request
            .plugins
            .iter()
            .any(|plugin| plugin.name == *name || format!("{}-{}", plugin.index, plugin.name) == *name)
    };
    let missing: Vec<String> = required.into_iter().filter(|name| !is_there(name)).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(format!("required plugins are not there: {}", missing.join(", "))),
    }
}

/// An annotation for one container (`<key>/container.<name>`) or for all of a pod's (`<key>/pod`, `<key>`).
fn annotation<'p>(pod: &'p PodSandbox, key: &str, container: &str) -> Option<&'p str> {
    let keys = [format!("{key}/container.{container}"), format!("{key}/pod"), key.to_owned()];
    keys.iter().find_map(|key| pod.annotations.get(key)).map(String::as_str)
}

/// A list of names as YAML has it: in brackets, or a dash a line.
fn parse_list(text: &str) -> Option<Vec<String>> {
    let name = |name: &str| name.trim().trim_matches(['"', '\'']).to_owned();
    let text = text.trim();
    if let Some(inner) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        return Some(inner.split(',').map(name).filter(|name| !name.is_empty()).collect());
    }
    text.lines().filter(|line| !line.trim().is_empty()).map(|line| line.trim().strip_prefix("- ").map(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nri::proto::{Container, LinuxContainer, PluginInstance, SecurityProfile};

    fn request(annotations: &[(&str, &str)], profile: Option<ProfileType>) -> ValidateContainerAdjustmentRequest {
        let seccomp_profile =
            profile.map(|profile| SecurityProfile { profile_type: profile.into(), localhost_ref: String::new() });
        ValidateContainerAdjustmentRequest {
            pod: Some(PodSandbox {
                annotations: annotations.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
                ..PodSandbox::default()
            }),
            container: Some(Container {
                id: "c".into(),
                name: "app".into(),
                linux: Some(LinuxContainer { seccomp_profile, ..LinuxContainer::default() }),
                ..Container::default()
            }),
            plugins: vec![PluginInstance { name: "logger".into(), index: "10".into() }],
            ..ValidateContainerAdjustmentRequest::default()
        }
    }

    #[test]
    fn what_is_rejected_names_the_plugin() {
        let mut owners = Owners::default();
        owners.join("c", Field::OciHooks, "10-a");
        owners.claim("c", Field::SeccompPolicy, "20-b").unwrap();
        owners.claim_key("c", Field::Namespace, "network", "30-c").unwrap();
        owners.claim_key("c", Field::Sysctl, "net.x", "40-d").unwrap();
        let check = |config: ValidatorConfig, profile| validate(&config, &request(&[], profile), &owners);
        let reject = ValidatorConfig { enable: true, ..ValidatorConfig::default() };
        assert_eq!(check(reject.clone(), None), Ok(()));
        let table = [
            (ValidatorConfig { reject_hooks: true, ..reject.clone() }, None, "plugin 10-a adds OCI hooks"),
            (
                ValidatorConfig { reject_unconfined_seccomp: true, ..reject.clone() },
                None,
                "plugin 20-b replaces a unconfined seccomp policy",
            ),
            (
                ValidatorConfig { reject_runtime_default_seccomp: true, ..reject.clone() },
                Some(ProfileType::RuntimeDefault),
                "plugin 20-b replaces a runtime default seccomp policy",
            ),
            (
                ValidatorConfig { reject_custom_seccomp: true, ..reject.clone() },
                Some(ProfileType::Localhost),
                "plugin 20-b replaces a custom seccomp policy",
            ),
            (
                ValidatorConfig { reject_namespaces: true, ..reject.clone() },
                None,
                "plugin 30-c adjusts namespace network",
            ),
            (ValidatorConfig { reject_sysctls: true, ..reject }, None, "plugin 40-d adjusts sysctl net.x"),
        ];
        for (config, profile, reason) in table {
            assert_eq!(check(config, profile), Err(reason.to_owned()));
        }
    }

    #[test]
    fn required_plugins_must_be_there_unless_the_pod_tolerates_it() {
        let config = |required: &[&str]| ValidatorConfig {
            enable: true,
            required_plugins: required.iter().map(|name| (*name).to_owned()).collect(),
            tolerate_missing_annotation: "tolerate".into(),
            ..ValidatorConfig::default()
        };
        let check = |required: &[&str], annotations: &[(&str, &str)]| {
            validate(&config(required), &request(annotations, None), &Owners::default())
        };
        let missing = Err("required plugins are not there: other".to_owned());
        assert_eq!(check(&["logger", "10-logger"], &[]), Ok(()));
        assert_eq!(check(&["logger", "other"], &[]), missing);
        assert_eq!(check(&["other"], &[("tolerate", "true")]), Ok(()));
        assert_eq!(check(&["other"], &[("tolerate/container.app", "false"), ("tolerate/pod", "true")]), missing);
        assert!(check(&[], &[("tolerate", "maybe")]).unwrap_err().contains("neither true nor false"));
        for list in ["[other]", "[\"other\", 'logger']", "- logger\n- other\n"] {
            assert_eq!(check(&[], &[(REQUIRED, list)]), missing, "{list}");
        }
        assert!(check(&[], &[(REQUIRED, "other")]).unwrap_err().contains("is not a list"));
    }
}
