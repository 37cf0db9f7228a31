//! Holds our CRI descriptors against those of the `k8s-cri` crate, which follows cri-api 0.32, and against the list of
//! methods that 0.36 has.
//!
//! Everything that 0.32 has must be in ours, with the same name, number and type: an agent built against it must not
//! see a difference. What ours has beyond that is fine.

#![expect(clippy::unwrap_used, reason = "the functions that tests share are test code as well")]

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use prost::Message;
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

/// What 0.32 has differently, each with ours. Both types are length-delimited, so the wire is the same as long as the
/// text is UTF-8; 0.36.1 lifted that limit.
const CHANGED_SINCE_0_32: &[(&str, &str, &str)] = &[(
    "field .runtime.v1.KeyValue.value",
    "= 2 TYPE_STRING LABEL_OPTIONAL json=value oneof=none",
    "= 2 TYPE_BYTES LABEL_OPTIONAL json=value oneof=none",
)];

#[test]
fn everything_of_cri_0_32_is_in_our_descriptors_unchanged() {
    let theirs = facts(&k8s_cri_descriptors());
    let ours = facts(&our_descriptors());
    // A comparison that read nothing would pass.
    assert!(theirs.len() > 600, "only {} facts were read from k8s-cri", theirs.len());

    let mut different: Vec<(&str, &str, &str)> = Vec::new();
    for (name, fact) in &theirs {
        let our_fact = ours.get(name).map_or("missing", String::as_str);
        if our_fact != fact {
            different.push((name.as_str(), fact.as_str(), our_fact));
        }
    }
    assert_eq!(different, CHANGED_SINCE_0_32);
}

#[test]
fn the_services_have_exactly_the_41_methods_of_cri_0_36() {
    let runtime = "Attach CheckpointContainer ContainerStats ContainerStatus CreateContainer Exec ExecSync \
                   GetContainerEvents ListContainerStats ListContainers ListMetricDescriptors ListPodSandbox \
                   ListPodSandboxMetrics ListPodSandboxStats PodSandboxStats PodSandboxStatus PortForward \
                   RemoveContainer RemovePodSandbox ReopenContainerLog RunPodSandbox RuntimeConfig StartContainer \
                   Status StopContainer StopPodSandbox StreamContainerStats StreamContainers StreamPodSandboxMetrics \
                   StreamPodSandboxStats StreamPodSandboxes UpdateContainerResources UpdatePodSandboxResources \
                   UpdateRuntimeConfig Version";
    let image = "ImageFsInfo ImageStatus ListImages PullImage RemoveImage StreamImages";
    let expected = BTreeMap::from([
        ("runtime.v1.RuntimeService".to_owned(), words(runtime)),
        ("runtime.v1.ImageService".to_owned(), words(image)),
    ]);
    assert_eq!(methods(&our_descriptors(), |_| true), expected);
    assert_eq!(expected.values().map(Vec::len).sum::<usize>(), 41);
}

#[test]
fn lists_and_events_are_the_only_methods_that_stream() {
    let expected = BTreeMap::from([
        (
            "runtime.v1.RuntimeService".to_owned(),
            words(
                "GetContainerEvents StreamContainerStats StreamContainers StreamPodSandboxMetrics \
                 StreamPodSandboxStats StreamPodSandboxes",
            ),
        ),
        ("runtime.v1.ImageService".to_owned(), words("StreamImages")),
    ]);
    let set = our_descriptors();
    assert_eq!(methods(&set, |method| method.server_streaming()), expected);
    assert_eq!(methods(&set, |method| method.client_streaming()).into_values().flatten().count(), 0);
}

#[test]
fn fields_added_since_0_32_have_the_numbers_of_0_36() {
    let ours = facts(&our_descriptors());
    for (name, number_and_type) in [
        ("ImageSpec.image_ref", "= 20 TYPE_STRING"),
        ("Mount.image", "= 9 .runtime.v1.ImageSpec"),
        ("Mount.image_sub_path", "= 10 TYPE_STRING"),
        ("ContainerConfig.stop_signal", "= 18 .runtime.v1.Signal"),
        ("ContainerStatus.stop_signal", "= 19 .runtime.v1.Signal"),
        ("Container.image_id", "= 10 TYPE_STRING"),
        ("Capability.add_ambient_capabilities", "= 3 TYPE_STRING"),
        ("ContainerStats.swap", "= 5 .runtime.v1.SwapUsage"),
        ("ContainerStats.io", "= 6 .runtime.v1.IoUsage"),
        ("CpuUsage.psi", "= 4 .runtime.v1.PsiStats"),
        ("MemoryUsage.psi", "= 8 .runtime.v1.PsiStats"),
        ("IoUsage.psi", "= 2 .runtime.v1.PsiStats"),
        ("LinuxPodSandboxStats.io", "= 6 .runtime.v1.IoUsage"),
        ("PsiData.Avg300", "= 4 TYPE_DOUBLE"),
        ("StatusResponse.features", "= 4 .runtime.v1.RuntimeFeatures"),
        ("RuntimeFeatures.user_namespaces_host_network", "= 2 TYPE_BOOL"),
        ("WindowsContainerResources.affinity_cpus", "= 6 .runtime.v1.WindowsCpuGroupAffinity"),
        ("StreamContainersResponse.containers", "= 1 .runtime.v1.Container"),
        ("StreamPodSandboxesResponse.pod_sandboxes", "= 1 .runtime.v1.PodSandbox"),
        ("StreamContainerStatsResponse.container_stats", "= 1 .runtime.v1.ContainerStats"),
        ("StreamPodSandboxStatsResponse.pod_sandbox_stats", "= 1 .runtime.v1.PodSandboxStats"),
        ("StreamPodSandboxMetricsResponse.pod_sandbox_metrics", "= 1 .runtime.v1.PodSandboxMetrics"),
        ("StreamImagesResponse.images", "= 1 .runtime.v1.Image"),
    ] {
        let fact = ours.get(&format!("field .runtime.v1.{name}")).map_or("missing", String::as_str);
        let found = fact.split(" LABEL_").next().unwrap();
        assert_eq!((name, found), (name, number_and_type));
    }
}

#[test]
fn signals_are_numbered_by_cri_and_not_by_the_kernel() {
    use windlass_api::cri::Signal;
    let numbers =
        [Signal::RuntimeDefault, Signal::Sigabrt, Signal::Sigkill, Signal::Sigterm, Signal::Sigrtmin, Signal::Sigrtmax];
    assert_eq!(numbers.map(|signal| signal as i32), [0, 1, 13, 23, 35, 65]);
    assert_eq!(Signal::from_str_name("SIGRTMINPLUS15").unwrap() as i32, 50);
    assert_eq!(Signal::from_str_name("SIGRTMAXMINUS14").unwrap() as i32, 51);
    assert_eq!(Signal::from_str_name("SIGRTMAXMINUS1").unwrap() as i32, 64);
}

fn words(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

/// Every service's methods that `wanted` picks, sorted.
fn methods(
    set: &FileDescriptorSet,
    wanted: impl Fn(&prost_types::MethodDescriptorProto) -> bool,
) -> BTreeMap<String, Vec<String>> {
    let mut services = BTreeMap::new();
    for file in &set.file {
        for service in &file.service {
            let mut names: Vec<String> =
                service.method.iter().filter(|method| wanted(method)).map(|method| method.name().to_owned()).collect();
            names.sort();
            services.insert(format!("{}.{}", file.package(), service.name()), names);
        }
    }
    services
}

fn our_descriptors() -> FileDescriptorSet {
    FileDescriptorSet::decode(windlass_api::CRI_DESCRIPTORS).unwrap()
}

/// Compiles the proto file that the crate's source carries. The crate is a dependency of `e2e`, so cargo has it.
fn k8s_cri_descriptors() -> FileDescriptorSet {
    let proto = k8s_cri_source().join("proto");
    protox::compile(["v1.proto"], [proto]).unwrap()
}

fn k8s_cri_source() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        // Without a platform cargo wants the sources of every platform's packages, which nobody has fetched.
        .args(["metadata", "--offline", "--locked", "--format-version=1", "--filter-platform", "host-tuple"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .unwrap();
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == "k8s-cri").expect("k8s-cri is in the workspace");
    PathBuf::from(package["manifest_path"].as_str().unwrap()).parent().unwrap().to_owned()
}

/// Flattens a descriptor set to one line per message, field, enum value, oneof and method, so that two sets compare
/// whatever files and order they are written in.
fn facts(set: &FileDescriptorSet) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    for file in set.file.iter().filter(|file| file.package() == "runtime.v1") {
        let scope = format!(".{}", file.package());
        for message in &file.message_type {
            message_facts(&scope, message, &mut facts);
        }
        for item in &file.enum_type {
            enum_facts(&scope, item, &mut facts);
        }
        for service in &file.service {
            for method in &service.method {
                facts.insert(
                    format!("method {scope}.{}/{}", service.name(), method.name()),
                    format!(
                        "{} -> {} client_streaming={} server_streaming={}",
                        method.input_type(),
                        method.output_type(),
                        method.client_streaming(),
                        method.server_streaming()
                    ),
                );
            }
        }
    }
    facts
}

fn message_facts(scope: &str, message: &DescriptorProto, facts: &mut BTreeMap<String, String>) {
    let name = format!("{scope}.{}", message.name());
    let map_entry = message.options.as_ref().is_some_and(|options| options.map_entry());
    facts.insert(format!("message {name}"), format!("map_entry={map_entry}"));
    for oneof in &message.oneof_decl {
        facts.insert(format!("oneof {name}.{}", oneof.name()), "present".to_owned());
    }
    for field in &message.field {
        facts.insert(format!("field {name}.{}", field.name()), field_fact(message, field));
    }
    for nested in &message.nested_type {
        message_facts(&name, nested, facts);
    }
    for item in &message.enum_type {
        enum_facts(&name, item, facts);
    }
}

fn field_fact(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let kind = field.type_name.as_deref().unwrap_or_else(|| field.r#type().as_str_name());
    let oneof = field.oneof_index.map_or("none", |index| message.oneof_decl[usize::try_from(index).unwrap()].name());
    format!("= {} {kind} {} json={} oneof={oneof}", field.number(), field.label().as_str_name(), field.json_name())
}

fn enum_facts(scope: &str, item: &EnumDescriptorProto, facts: &mut BTreeMap<String, String>) {
    for value in &item.value {
        facts.insert(format!("value {scope}.{}.{}", item.name(), value.name()), format!("= {}", value.number()));
    }
}
