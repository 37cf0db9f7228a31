//! Between CRI's messages and the domain: `parse_*` checks and can fail, `to_*` cannot.
//!
//! A failure is [`Status`] InvalidArgument that names the field as the client wrote it.

pub(super) mod config;
pub(super) mod container;
pub(super) mod image;
pub(super) mod mount;
pub(super) mod pod;
pub(super) mod security;
pub(super) mod stats;
pub(super) mod status;

use std::{
    collections::HashMap,
    time::{SystemTime, UNIX_EPOCH},
};

use api::cri;
use sandbox::model::{Resources, StringMap};
use serde_json::json;
use tonic::Status;

use super::errors::shortened;

/// InvalidArgument about `field`.
pub(super) fn invalid(field: &str, what: impl std::fmt::Display) -> Status {
    // It quotes what the client sent, which has any length.
    Status::invalid_argument(shortened(format!("{field}: {what}")))
}

/// The message that a client must set.
pub(super) fn required<T>(value: Option<T>, field: &str) -> Result<T, Status> {
    value.ok_or_else(|| invalid(field, "is required"))
}

/// Text that ends up in file names, mounts or plugins: no NUL, which none of them can carry.
pub(super) fn parse_text(text: String, field: &str) -> Result<String, Status> {
    if text.contains('\0') { Err(invalid(field, "must not contain a NUL byte")) } else { Ok(text) }
}

/// Text that must say something.
pub(super) fn parse_name(text: String, field: &str) -> Result<String, Status> {
    if text.is_empty() {
        return Err(invalid(field, "must not be empty"));
    }
    parse_text(text, field)
}

/// A name in a client's metadata: one line, at most 253 bytes as in Kubernetes. Slashes are taken as containerd takes them;
/// no path is made of it here, and whoever makes one stays below where it begins.
pub(super) fn parse_identifier(text: String, field: &str) -> Result<String, Status> {
    let text = parse_name(text, field)?;
    if text.len() > 253 {
        return Err(invalid(field, format_args!("is {} bytes long, at most 253 are allowed", text.len())));
    }
    if text.chars().any(char::is_control) || text.split('/').any(|part| ["", ".", ".."].contains(&part)) {
        let what = "must not contain control characters, nor \".\", \"..\" or nothing between slashes";
        return Err(invalid(field, format_args!("{text:?} {what}")));
    }
    Ok(text)
}

/// A name that becomes part of a path, here or where others take it for one.
pub(super) fn parse_file_name(text: String, field: &str) -> Result<String, Status> {
    let text = parse_identifier(text, field)?;
    if text.contains('/') {
        return Err(invalid(field, format_args!("{text:?} must not contain slashes")));
    }
    Ok(text)
}

/// A path below which something of ours is made: a line of text that the kernel takes (PATH_MAX, with its end).
pub(super) fn parse_path(path: String, field: &str) -> Result<String, Status> {
    const LONGEST: usize = 4095;
    if path.len() > LONGEST {
        return Err(invalid(field, format_args!("is {} bytes long, the kernel takes {LONGEST}", path.len())));
    }
    if path.chars().any(char::is_control) {
        return Err(invalid(field, format_args!("{path:?} must not contain control characters")));
    }
    Ok(path)
}

/// The daemon's working directory is nobody's business.
pub(super) fn parse_host_path(path: String, field: &str) -> Result<String, Status> {
    let path = parse_name(path, field)?;
    if path.starts_with('/') {
        Ok(path)
    } else {
        Err(invalid(field, format_args!("{path:?} must be an absolute path")))
    }
}

/// A word of a command line or of an environment. execve(2) takes 32 pages of each, with its end.
pub(super) fn parse_word(word: String, field: &str) -> Result<String, Status> {
    let longest = rustix::param::page_size() * 32 - 1;
    if word.len() > longest {
        return Err(invalid(field, format_args!("a word is {} bytes long, the kernel takes {longest}", word.len())));
    }
    parse_text(word, field)
}

pub(super) fn parse_words(words: Vec<String>, field: &str) -> Result<Vec<String>, Status> {
    words.into_iter().map(|word| parse_word(word, field)).collect()
}

pub(super) fn parse_texts(texts: Vec<String>, field: &str) -> Result<Vec<String>, Status> {
    texts.into_iter().map(|text| parse_text(text, field)).collect()
}

/// Labels and annotations of one pod or container, which are in every list: a few large ones would make the list larger
/// than the 16 MiB of a message, for all clients. Kubernetes itself takes 256 KiB of annotations.
pub(super) fn parse_marks(
    labels: HashMap<String, String>,
    annotations: HashMap<String, String>,
    field: &str,
) -> Result<(StringMap, StringMap), Status> {
    const MOST: usize = 1 << 20;
    let size = |map: &HashMap<String, String>| map.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
    let (of_labels, of_annotations) = (size(&labels), size(&annotations));
    if of_labels + of_annotations > MOST {
        let larger = if of_labels > of_annotations { "labels" } else { "annotations" };
        let what =
            format_args!("labels and annotations are {} bytes, at most {MOST} are taken", of_labels + of_annotations);
        return Err(invalid(&format!("{field}.{larger}"), what));
    }
    Ok((parse_map(labels, &format!("{field}.labels"))?, parse_map(annotations, &format!("{field}.annotations"))?))
}

/// An enum's value, which protobuf leaves open.
pub(super) fn parse_enum<T: TryFrom<i32>>(value: i32, field: &str) -> Result<T, Status> {
    T::try_from(value).map_err(|_| invalid(field, format_args!("unknown value {value}")))
}

pub(super) fn parse_map(map: HashMap<String, String>, field: &str) -> Result<StringMap, Status> {
    map.into_iter().map(|(key, value)| Ok((parse_text(key, field)?, parse_text(value, field)?))).collect()
}

pub(super) fn to_map(map: &StringMap) -> HashMap<String, String> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// A uid or gid, which CRI carries in 64 bits and the kernel in 32, with the last value reserved for "no change".
pub(super) fn parse_id(value: i64, field: &str) -> Result<u32, Status> {
    match u32::try_from(value) {
        Ok(id) if id != u32::MAX => Ok(id),
        _ => Err(invalid(field, format_args!("{value} is not between 0 and 4294967294"))),
    }
}

/// Nanoseconds since the epoch, as all of CRI counts time.
pub(super) fn to_nanoseconds(time: SystemTime) -> i64 {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_nanos()).unwrap_or(i64::MAX),
        // A clock before 1970 shows as the epoch itself: CRI clients take zero for "unset", so it is one nanosecond past.
        Err(_) => 1,
    }
}

pub(super) fn parse_resources(linux: cri::LinuxContainerResources, field: &str) -> Result<Resources, Status> {
    for (value, name) in [(linux.cpu_period, "cpu_period"), (linux.cpu_shares, "cpu_shares")] {
        if value < 0 {
            return Err(invalid(&format!("{field}.{name}"), format_args!("{value} is negative")));
        }
    }
    // The kubelet says so of a pod in which a container has no limit, when it resizes another (KEP-1287).
    if linux.memory_limit_in_bytes < -1 {
        let what = format_args!("{} is negative, and only -1 means no limit", linux.memory_limit_in_bytes);
        return Err(invalid(&format!("{field}.memory_limit_in_bytes"), what));
    }
    if !(-1000..=1000).contains(&linux.oom_score_adj) {
        let what = format_args!("{} is not between -1000 and 1000", linux.oom_score_adj);
        return Err(invalid(&format!("{field}.oom_score_adj"), what));
    }
    Ok(Resources {
        cpu_period: linux.cpu_period,
        cpu_quota: linux.cpu_quota,
        cpu_shares: linux.cpu_shares,
        cpuset_cpus: parse_text(linux.cpuset_cpus, &format!("{field}.cpuset_cpus"))?,
        cpuset_mems: parse_text(linux.cpuset_mems, &format!("{field}.cpuset_mems"))?,
        memory_limit: linux.memory_limit_in_bytes,
        memory_swap_limit: linux.memory_swap_limit_in_bytes,
        oom_score_adj: linux.oom_score_adj,
        hugepage_limits: linux
            .hugepage_limits
            .into_iter()
            .map(|limit| {
                // A part of the cgroup file's name.
                let size = parse_file_name(limit.page_size, &format!("{field}.hugepage_limits.page_size"))?;
                Ok((size, limit.limit))
            })
            .collect::<Result<_, Status>>()?,
        unified: parse_unified(linux.unified, &format!("{field}.unified"))?,
    })
}

/// Files of the container's cgroup with what is to be written there: names, not paths.
fn parse_unified(unified: HashMap<String, String>, field: &str) -> Result<StringMap, Status> {
    if let Some(name) = unified.keys().find(|name| name.is_empty() || name.contains('/')) {
        return Err(invalid(field, format_args!("{name:?} is not the name of a cgroup file")));
    }
    parse_map(unified, field)
}

pub(super) fn to_resources(resources: &Resources) -> cri::LinuxContainerResources {
    cri::LinuxContainerResources {
        cpu_period: resources.cpu_period,
        cpu_quota: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources
            .hugepage_limits
            .iter()
            .map(|(page_size, limit)| cri::HugepageLimit { page_size: page_size.clone(), limit: *limit })
            .collect(),
        unified: to_map(&resources.unified),
        memory_swap_limit_in_bytes: resources.memory_swap_limit,
    }
}

/// `ContainerResources` in verbose status, with the names that containerd's has: what is not set is left out.
pub(super) fn to_resources_json(resources: &Resources) -> serde_json::Value {
    let hugepages: Vec<_> =
        resources.hugepage_limits.iter().map(|(size, limit)| json!({"page_size": size, "limit": limit})).collect();
    let mut linux = json!({
        "cpu_period": resources.cpu_period,
        "cpu_quota": resources.cpu_quota,
        "cpu_shares": resources.cpu_shares,
        "memory_limit_in_bytes": resources.memory_limit,
        "memory_swap_limit_in_bytes": resources.memory_swap_limit,
        "oom_score_adj": resources.oom_score_adj,
        "cpuset_cpus": resources.cpuset_cpus,
        "cpuset_mems": resources.cpuset_mems,
        "hugepage_limits": hugepages,
        "unified": resources.unified,
    });
    if let Some(fields) = linux.as_object_mut() {
        fields.retain(|_, value| ![json!(0), json!(""), json!([]), json!({})].contains(value));
    }
    json!({ "linux": linux })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_in_verbose_status_have_what_is_set_by_its_name_in_cri() {
        let resources = Resources {
            cpu_quota: -1,
            memory_limit: 5,
            hugepage_limits: vec![("2MB".into(), 0)],
            ..Resources::default()
        };
        let expected = json!({
            "linux": {"cpu_quota": -1, "memory_limit_in_bytes": 5, "hugepage_limits": [{"page_size": "2MB", "limit": 0}]},
        });
        assert_eq!(to_resources_json(&resources), expected);
    }

    #[test]
    fn an_identifier_is_one_short_line_and_a_file_name_has_no_slashes() {
        let check = |text: &str, identifier: bool, file_name: bool| {
            assert_eq!(parse_identifier(text.into(), "f").is_ok(), identifier, "{text:?}");
            assert_eq!(parse_file_name(text.into(), "f").is_ok(), file_name, "{text:?}");
        };
        for good in ["web-0", "a.b", &"x".repeat(253)] {
            check(good, true, true);
        }
        for path in ["a/b", "a/b/c.d"] {
            check(path, true, false);
        }
        for bad in ["", ".", "..", "../x", "/x", "x/", "a//b", "a/../b", "a\nb", "a\0b", &"x".repeat(254)] {
            check(bad, false, false);
        }
        let status = parse_identifier("a/..".into(), "config.metadata.name").unwrap_err();
        assert_eq!(status.code(), tonic::Code::InvalidArgument);
        let what = "must not contain control characters, nor \".\", \"..\" or nothing between slashes";
        assert_eq!(status.message(), format!("config.metadata.name: \"a/..\" {what}"));
    }

    #[test]
    fn what_is_too_much_for_a_list_or_for_the_kernel_is_refused() {
        let map = |bytes: usize| HashMap::from([("a".to_owned(), "x".repeat(bytes - 1))]);
        assert!(parse_marks(map(1 << 19), map(1 << 19), "config").is_ok());
        let status = parse_marks(map(1 << 19), map((1 << 19) + 1), "config").unwrap_err();
        assert_eq!(
            status.message(),
            "config.annotations: labels and annotations are 1048577 bytes, at most 1048576 are taken"
        );
        let longest = rustix::param::page_size() * 32 - 1;
        assert!(parse_word("x".repeat(longest), "cmd").is_ok());
        assert!(parse_word("x".repeat(longest + 1), "cmd").unwrap_err().message().starts_with("cmd: a word is "));
        assert!(parse_path("x".repeat(4095), "f").is_ok());
        assert!(parse_path("x".repeat(4096), "f").is_err());
        let unified = |name: &str| parse_unified(HashMap::from([(name.to_owned(), "1".to_owned())]), "f");
        assert!(unified("memory.high").is_ok());
        assert!(unified("../memory.high").is_err());
    }

    #[test]
    fn ids_are_the_kernels() {
        assert_eq!(parse_id(0, "f").unwrap(), 0);
        assert_eq!(parse_id(4_294_967_294, "f").unwrap(), 4_294_967_294);
        for bad in [-1, 4_294_967_295, i64::MAX] {
            assert!(parse_id(bad, "f").is_err(), "{bad}");
        }
    }

    #[test]
    fn resources_survive_the_way_in_and_out() {
        let sent = cri::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: -1,
            cpu_shares: 512,
            memory_limit_in_bytes: 1 << 30,
            oom_score_adj: -998,
            cpuset_cpus: "0-1".into(),
            cpuset_mems: "0".into(),
            hugepage_limits: vec![cri::HugepageLimit { page_size: "2MB".into(), limit: 4 }],
            unified: HashMap::from([("memory.high".to_owned(), "max".to_owned())]),
            memory_swap_limit_in_bytes: 2 << 30,
        };
        assert_eq!(to_resources(&parse_resources(sent.clone(), "f").unwrap()), sent);
        let unlimited = cri::LinuxContainerResources { memory_limit_in_bytes: -1, ..sent.clone() };
        assert_eq!(to_resources(&parse_resources(unlimited.clone(), "f").unwrap()), unlimited);
        let negative = cri::LinuxContainerResources { memory_limit_in_bytes: -5, ..sent };
        assert_eq!(
            parse_resources(negative, "linux.resources").unwrap_err().message(),
            "linux.resources.memory_limit_in_bytes: -5 is negative, and only -1 means no limit"
        );
    }
}
