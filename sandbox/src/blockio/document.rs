//! The file of classes: its form, and what makes it or a class of it wrong. Parsing only.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, de};

use super::quantity;

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Document {
    #[serde(rename = "Classes")]
    classes: Option<BTreeMap<String, Option<Vec<Written>>>>,
}

/// One item of a class, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "PascalCase")]
struct Written {
    devices: Option<Vec<String>>,
    weight: Quantity,
    throttle_read_bps: Quantity,
    throttle_write_bps: Quantity,
    #[serde(rename = "ThrottleReadIOPS")]
    throttle_read_iops: Quantity,
    #[serde(rename = "ThrottleWriteIOPS")]
    throttle_write_iops: Quantity,
}

/// A number or a text; empty is not set.
#[derive(Debug, Default)]
struct Quantity(String);

/// One item of a class. What is not set stays what an earlier item has set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Entry {
    /// Patterns of absolute paths; `None` is all devices that no item names.
    pub(super) devices: Option<Vec<String>>,
    /// 10 to 1000.
    pub(super) weight: Option<u16>,
    /// Bytes a second.
    pub(super) read_bps: Option<u64>,
    pub(super) write_bps: Option<u64>,
    /// Operations a second.
    pub(super) read_iops: Option<u64>,
    pub(super) write_iops: Option<u64>,
}

/// The classes of a file, each with what is wrong about it alone.
pub(super) fn parse(text: &str) -> Result<BTreeMap<String, Result<Vec<Entry>, String>>, String> {
    let document: Option<Document> = serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
    let classes = document.unwrap_or_default().classes.unwrap_or_default().into_iter();
    let parsed = classes.map(|(name, items)| (name, items.unwrap_or_default().into_iter().map(entry).collect()));
    Ok(parsed.collect())
}

fn entry(item: Written) -> Result<Entry, String> {
    let rate = |name: &str, value: &Quantity| number(name, value, 0, i64::MAX).map(|rate| rate.map(i64::unsigned_abs));
    let weight = number("Weight", &item.weight, 10, 1000)?;
    let entry = Entry {
        weight: weight.and_then(|weight| u16::try_from(weight).ok()),
        read_bps: rate("ThrottleReadBps", &item.throttle_read_bps)?,
        write_bps: rate("ThrottleWriteBps", &item.throttle_write_bps)?,
        read_iops: rate("ThrottleReadIOPS", &item.throttle_read_iops)?,
        write_iops: rate("ThrottleWriteIOPS", &item.throttle_write_iops)?,
        devices: item.devices,
    };
    let throttles = [entry.read_bps, entry.write_bps, entry.read_iops, entry.write_iops];
    if entry.devices.is_none() && throttles.iter().any(Option::is_some) {
        return Err("an item with Throttle… needs Devices: only weights can be for all".into());
    }
    if let Some(bad) = entry.devices.iter().flatten().find(|pattern| !pattern.starts_with('/')) {
        return Err(format!("Devices: {bad:?} is not an absolute path"));
    }
    Ok(entry)
}

fn number(name: &str, value: &Quantity, least: i64, most: i64) -> Result<Option<i64>, String> {
    let Quantity(text) = value;
    if text.is_empty() {
        return Ok(None);
    }
    let number = quantity::parse(text).ok_or_else(|| format!("{name}: {text:?} is not a quantity"))?;
    if !(least..=most).contains(&number) {
        let range = if most == i64::MAX { format!("{least} or more") } else { format!("between {least} and {most}") };
        return Err(format!("{name}: {number} is not {range}"));
    }
    Ok(Some(number))
}

impl<'de> Deserialize<'de> for Quantity {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Quantity, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = Quantity;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("a quantity, such as 50M")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Quantity, E> {
                Ok(Quantity(text.to_owned()))
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }

            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Quantity, E> {
                Ok(Quantity(number.to_string()))
            }

            fn visit_unit<E: de::Error>(self) -> Result<Quantity, E> {
                Ok(Quantity::default())
            }
        }
        from.deserialize_any(Visitor)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_have_items_of_weights_and_limits() {
        let text = "
Classes:
  LowPrioThrottled:
  - Weight: 80
  - Devices: [\"/dev/sd[a-z]\", /dev/vd*]
    ThrottleReadBps: 50M   # a comment
    ThrottleWriteBps: 10Mi
    ThrottleReadIOPS: 10k
    ThrottleWriteIOPS: 2.5e3
    Weight: \"50\"
  Nothing:
";
        let parsed = parse(text).unwrap();
        let throttled = Entry {
            devices: Some(vec!["/dev/sd[a-z]".into(), "/dev/vd*".into()]),
            weight: Some(50),
            read_bps: Some(50_000_000),
            write_bps: Some(10 << 20),
            read_iops: Some(10_000),
            write_iops: Some(2_500),
        };
        let expected = [
            ("LowPrioThrottled".to_owned(), Ok(vec![Entry { weight: Some(80), ..Entry::default() }, throttled])),
            ("Nothing".to_owned(), Ok(Vec::new())),
        ];
        assert_eq!(parsed, expected.into());
        assert_eq!(parse("").unwrap(), BTreeMap::new());
        assert_eq!(parse("Classes:\n").unwrap(), BTreeMap::new());
    }

    #[test]
    fn a_wrong_class_says_what_is_wrong_and_leaves_the_others_alone() {
        let table = [
            ("Weight: 9", "Weight: 9 is not between 10 and 1000"),
            ("Weight: 1001", "Weight: 1001 is not between 10 and 1000"),
            ("Weight: much", "Weight: \"much\" is not a quantity"),
            ("ThrottleReadBps: 1M", "an item with Throttle… needs Devices: only weights can be for all"),
            ("{Devices: [/dev/x], ThrottleReadBps: -1}", "ThrottleReadBps: -1 is not 0 or more"),
            ("{Devices: [/dev/x], ThrottleWriteIOPS: 1K}", "ThrottleWriteIOPS: \"1K\" is not a quantity"),
            ("{Devices: [sda], Weight: 10}", "Devices: \"sda\" is not an absolute path"),
        ];
        for (item, why) in table {
            let parsed = parse(&format!("Classes:\n  bad:\n  - {item}\n  good:\n  - Weight: 10\n")).unwrap();
            assert_eq!(parsed["bad"], Err(why.to_owned()));
            assert!(parsed["good"].is_ok());
        }
    }

    #[test]
    fn a_wrong_file_has_no_classes() {
        let table = [("Classes: 1", "1"), ("classes: {}", "classes"), ("Classes:\n  a:\n  - wait: 1\n", "wait")];
        for (text, named) in table {
            let error = parse(text).unwrap_err();
            assert!(error.contains(named) || error.contains("map"), "{text:?}: {error}");
        }
    }
}
