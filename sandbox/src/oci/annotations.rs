//! The annotations of a spec, which other runtimes, hooks and agents read: who the container belongs to, and what the
//! configuration lets through of the pod's own.

use std::collections::HashMap;

use crate::{
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
    let passes = |name: &str| globs.iter().any(|glob| matches(glob.as_bytes(), name.as_bytes()));
    annotations.iter().filter(|(name, _)| passes(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// Shell globs as far as configurations use them: `*` is any text without a slash, `?` one such character.
fn matches(glob: &[u8], name: &[u8]) -> bool {
    match (glob.split_first(), name.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), Some((first, after))) => matches(rest, name) || (*first != b'/' && matches(glob, after)),
        (Some((b'*', rest)), None) => matches(rest, name),
        (Some((b'?', rest)), Some((first, after))) => *first != b'/' && matches(rest, after),
        (Some((wanted, rest)), Some((first, after))) => wanted == first && matches(rest, after),
        (None, Some(_)) | (Some(_), None) => false,
    }
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
}
