//! The file of classes: its form, which is that of goresctrl's `doc/rdt.md`. Parsing only; what a value means depends on the
//! host.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de};

/// All of the file.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Document {
    pub(super) options: Options,
    partitions: Option<BTreeMap<String, Option<Partition>>>,
}

/// Whether the file may ask for what the host does not have.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Options {
    pub(super) l2: Availability,
    pub(super) l3: Availability,
    pub(super) mb: Availability,
}

#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Availability {
    pub(super) optional: bool,
}

/// A part of the host's caches that no other partition has.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Partition {
    pub(super) l2_allocation: Option<Ways>,
    pub(super) l3_allocation: Option<Ways>,
    pub(super) mb_allocation: Option<Bandwidth>,
    pub(super) classes: Option<BTreeMap<String, Option<Class>>>,
}

/// One class: what it has of its partition. What it does not say is all.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Class {
    pub(super) l2_allocation: Option<Ways>,
    pub(super) l3_allocation: Option<Ways>,
    pub(super) mb_allocation: Option<Bandwidth>,
    pub(super) kubernetes: Kubernetes,
}

/// Who may not give the class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "camelCase")]
pub(super) struct Kubernetes {
    pub(super) deny_container_annotation: bool,
    pub(super) deny_pod_annotation: bool,
}

/// Ways of a cache, for all caches of the level or by their ids.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a share such as \"60%\" or \"0xff\", in quotes, or a map of cache ids (or all) to shares"
)]
pub(super) enum Ways {
    All(String),
    ById(BTreeMap<CacheIds, WaysOfOne>),
}

#[derive(Clone, Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a share such as \"60%\" or \"0xff\", in quotes, or unified, code and data with one each"
)]
pub(super) enum WaysOfOne {
    Unified(String),
    Kinds(Kinds),
}

/// With code and data prioritisation, code and data can have other ways than both together.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Kinds {
    pub(super) unified: Option<String>,
    pub(super) code: Option<String>,
    pub(super) data: Option<String>,
}

/// Memory bandwidth, for all memory controllers or by the ids of their caches: percent, MBps or one of each.
#[derive(Debug, Deserialize)]
#[serde(
    untagged,
    expecting = "a list of at most one percentage and one number of MBps, or a map of cache ids (or all) to lists"
)]
pub(super) enum Bandwidth {
    All(Vec<String>),
    ById(BTreeMap<CacheIds, Vec<String>>),
}

/// `all`, or a list such as `0,2-3`. A single id may be a number in YAML.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CacheIds(pub(super) String);

impl CacheIds {
    pub(super) fn are_all(&self) -> bool {
        self.0 == "all"
    }
}

impl<'de> Deserialize<'de> for CacheIds {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<CacheIds, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = CacheIds;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("cache ids such as 0,2-3, or all")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<CacheIds, E> {
                Ok(CacheIds(text.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, id: u64) -> Result<CacheIds, E> {
                Ok(CacheIds(id.to_string()))
            }

            fn visit_i64<E: de::Error>(self, id: i64) -> Result<CacheIds, E> {
                Ok(CacheIds(id.to_string()))
            }
        }
        from.deserialize_any(Visitor)
    }
}

/// By name, with the classes by theirs.
pub(super) type Partitions = Vec<(String, Partition, Vec<(String, Class)>)>;

impl Document {
    /// The partitions with their classes, in the order of their names.
    pub(super) fn partitions(self) -> (Options, Partitions) {
        let partitions = self.partitions.unwrap_or_default().into_iter().map(|(name, partition)| {
            let mut partition = partition.unwrap_or_default();
            let classes = partition.classes.take().unwrap_or_default().into_iter();
            let classes = classes.map(|(name, class)| (name, class.unwrap_or_default())).collect();
            (name, partition, classes)
        });
        (self.options, partitions.collect())
    }
}

pub(super) fn parse(text: &str) -> Result<Document, String> {
    let document: Option<Document> = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    Ok(document.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn partitions_have_allocations_and_classes_in_long_and_in_short_forms() {
        let text = r#"
options:
  l3: {optional: true}
partitions:
  exclusive:
    l3Allocation: "60%"
    mbAllocation: ["100%", 2000MBps]
    classes:
      guaranteed:
      burstable:
        l3Allocation:
          all: {unified: "100%", code: "80%", data: "0xf0"}
          0,2-3: "50%"
        mbAllocation: {all: ["80%"], 1: [50%]}
        kubernetes: {denyPodAnnotation: true}
  empty:
"#;
        let (options, partitions) = parse(text).unwrap().partitions();
        assert!(options.l3.optional && !options.l2.optional && !options.mb.optional);
        let [(empty, _, none), (name, partition, classes)] = &partitions[..] else { panic!("{partitions:?}") };
        assert_eq!((empty.as_str(), none.len(), name.as_str(), classes.len()), ("empty", 0, "exclusive", 2));
        assert!(matches!(&partition.l3_allocation, Some(Ways::All(share)) if share == "60%"));
        assert!(matches!(&partition.mb_allocation, Some(Bandwidth::All(list)) if list.len() == 2));
        let (name, class) = &classes[0];
        assert_eq!((name.as_str(), class.kubernetes.deny_pod_annotation), ("burstable", true));
        let Some(Ways::ById(ways)) = &class.l3_allocation else { panic!("{class:?}") };
        assert!(
            matches!(&ways[&CacheIds("all".into())], WaysOfOne::Kinds(Kinds { code: Some(code), .. }) if code == "80%")
        );
        assert!(matches!(&ways[&CacheIds("0,2-3".into())], WaysOfOne::Unified(share) if share == "50%"));
        assert!(
            matches!(&class.mb_allocation, Some(Bandwidth::ById(lists)) if lists[&CacheIds("1".into())] == ["50%"])
        );
        assert_eq!(parse("").unwrap().partitions().1.len(), 0);
    }

    #[test]
    fn what_is_none_of_its_forms_is_told() {
        let class = |text: &str| format!("partitions:\n  p:\n    classes:\n      c:\n        {text}\n");
        for (text, named) in [
            ("partition: {}".to_owned(), "partition"),
            ("partitions: 1".to_owned(), "map"),
            (class("l3alloc: \"50%\""), "l3alloc"),
            (class("l3Allocation: 50"), "in quotes"),
            (class("l3Allocation: {all: {unify: \"50%\"}}"), "a share such as"),
            (class("mbAllocation: \"50%\""), "a list of at most one percentage"),
            (class("kubernetes: {deny: true}"), "deny"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
