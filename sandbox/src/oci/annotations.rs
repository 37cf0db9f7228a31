//! The annotations of a spec, which other runtimes, hooks and agents read: who the container belongs to, and what the
//! configuration lets through of the pod's own.

use std::collections::HashMap;

use crate::{
    glob,
    model::{ContainerSpec, Id, Image, PodSpec, StringMap},
    oci::HandlerOptions,
};

const PREFIX: &str = "io.kubernetes.cri";

/// Those of a pause container.
pub fn of_pod(id: &Id, pod: &PodSpec, image: &Image, handler: &HandlerOptions) -> HashMap<String, String> {
    let mut found = passed_on(&pod.annotations, &handler.pod_annotations);
    common(&mut found, "sandbox", id, pod);
    let mut add = |name: &str, value: String| found.insert(format!("{PREFIX}.{name}"), value);
    add("sandbox-log-directory", pod.log_directory.clone());
    add("podsandbox.image-name", image.requested.clone());
    if let Some(resources) = &pod.resources {
        add("sandbox-cpu-period", resources.cpu_period.to_string());
        add("sandbox-cpu-quota", resources.cpu_quota.to_string());
        add("sandbox-cpu-shares", resources.cpu_shares.to_string());
        add("sandbox-memory", resources.memory_limit.to_string());
    }
    found
}

/// Those of a container.
pub fn of_container(
    sandbox_id: &Id,
    pod: &PodSpec,
    container: &ContainerSpec,
    image: &Image,
    handler: &HandlerOptions,
) -> HashMap<String, String> {
    let mut found = passed_on(&pod.annotations, &handler.pod_annotations);
    found.extend(passed_on(&container.annotations, &handler.container_annotations));
    common(&mut found, "container", sandbox_id, pod);
    found.insert(format!("{PREFIX}.container-name"), container.name.name.clone());
    found.insert(format!("{PREFIX}.image-name"), image.name.clone());
    found
}

fn common(found: &mut HashMap<String, String>, kind: &str, sandbox_id: &Id, pod: &PodSpec) {
    let mut add = |name: &str, value: &str| found.insert(format!("{PREFIX}.{name}"), value.to_owned());
    add("container-type", kind);
    add("sandbox-id", sandbox_id.as_str());
    add("sandbox-namespace", &pod.name.namespace);
    add("sandbox-uid", &pod.name.uid);
    add("sandbox-name", &pod.name.name);
}

fn passed_on(annotations: &StringMap, globs: &[String]) -> HashMap<String, String> {
    let passes = |name: &str| globs.iter().any(|glob| glob::matches(glob, name));
    annotations.iter().filter(|(name, _)| passes(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// The class of block I/O or RDT (`kind`: `blockio`, `rdt`) that annotations give to a container, with the annotation's
/// name and whether it is the container's own: that first, then what the pod's say of this container, then of all. An empty
/// one is none.
///
/// Source: goresctrl's `ContainerClassFromAnnotations`, which containerd uses.
pub(crate) fn class(kind: &str, container: &ContainerSpec, of_pod: &StringMap) -> Option<Class> {
    find_class(kind, &container.name.name, &container.annotations, of_pod)
}

/// A class that an annotation gives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Class {
    pub(crate) annotation: String,
    pub(crate) name: String,
    /// The annotation is the container's, not its pod's.
    pub(crate) own: bool,
}

fn find_class(kind: &str, container: &str, own: &StringMap, of_pod: &StringMap) -> Option<Class> {
    let candidates = [
        (own, format!("{PREFIX}.{kind}-class")),
        (of_pod, format!("{kind}.resources.beta.kubernetes.io/container.{container}")),
        (of_pod, format!("{kind}.resources.beta.kubernetes.io/pod")),
    ];
    let mut candidates = candidates.into_iter().enumerate();
    let found = candidates.find_map(|(place, (all, annotation))| {
        let name = all.get(&annotation)?.clone();
        Some(Class { annotation, name, own: place == 0 })
    });
    found.filter(|class| !class.name.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_glob_names_is_passed_on() {
        let annotations: StringMap =
            [("io.kata/x", "1"), ("io.kata/y/z", "2"), ("other", "3")].map(|(k, v)| (k.into(), v.into())).into();
        let passed = passed_on(&annotations, &["io.kata/*".into(), "o?her".into()]);
        let mut names: Vec<&str> = passed.keys().map(String::as_str).collect();
        names.sort_unstable();
        assert_eq!(names, ["io.kata/x", "other"]);
    }

    /// CVE-2023-6476 was a prefix, CVE-2024-3154 an annotation by which systemd runs commands.
    #[test]
    fn v_o08_v_o09_an_annotation_passes_by_its_whole_name_only_and_by_default_none_does() {
        let names = ["io.x.y", "io.x.y.evil", "io.x.yevil", "IO.X.Y", " io.x.y", "org.systemd.property.ExecStopPost"];
        let annotations: StringMap = names.iter().map(|name| ((*name).to_owned(), "1".to_owned())).collect();
        let passed = passed_on(&annotations, &["io.x.y".into()]);
        assert_eq!(passed.keys().collect::<Vec<_>>(), ["io.x.y"]);
        assert_eq!(passed_on(&annotations, &[]), HashMap::new());
    }

    #[test]
    fn a_class_is_the_containers_own_or_the_pods_for_it_or_for_all() {
        let own = ("io.kubernetes.cri.blockio-class", "own");
        let named = ("blockio.resources.beta.kubernetes.io/container.app", "named");
        let all = ("blockio.resources.beta.kubernetes.io/pod", "all");
        let other = ("blockio.resources.beta.kubernetes.io/container.other", "other");
        let check = |container: &[(&str, &str)], pod: &[(&str, &str)], expected: Option<(&str, &str)>| {
            let map = |all: &[(&str, &str)]| -> StringMap {
                all.iter().map(|(name, class)| ((*name).into(), (*class).into())).collect()
            };
            let expected = expected.map(|(annotation, name)| Class {
                annotation: annotation.to_owned(),
                name: name.to_owned(),
                own: name == "own",
            });
            assert_eq!(find_class("blockio", "app", &map(container), &map(pod)), expected);
        };
        check(&[own], &[named, all], Some(own));
        check(&[], &[all, named, other], Some(named));
        check(&[], &[all, other], Some(all));
        check(&[], &[other], None);
        check(&[(own.0, "")], &[all], None);
        check(&[named], &[], None);
    }
}
