//! From the file's partitions and classes to the schemata of each class on this host, as goresctrl resolves them:
//! partitions have disjoint parts of a cache, and a class has a part of its partition's.

use std::collections::BTreeMap;

use super::{
    bandwidth,
    document::{Class, Document, Kinds, Kubernetes, Options, Partition, Partitions, Ways, WaysOfOne},
    host::{Cache, Divisible},
    share::{Share, cache_ids},
};

/// What is to be written for a class.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Planned {
    pub(super) schemata: String,
    pub(super) kubernetes: Kubernetes,
}

/// The name in the file of what every process has that has no class.
pub(super) const ROOT: &str = "system/default";

/// Whether this can be the name of a class: it is that of a directory.
pub(super) fn is_name(name: &str) -> bool {
    name == ROOT
        || !(name.is_empty() || name.len() >= 256 || [".", ".."].contains(&name) || name.contains(['/', '\n', '\0']))
}

/// The classes of a file by their names; the empty name is the root's as well.
pub(super) fn plan(document: Document, host: &Divisible) -> Result<BTreeMap<String, Planned>, String> {
    let (options, partitions) = document.partitions();
    let mut levels = Vec::new();
    for level in [Level { name: "L2", cache: host.l2.as_ref() }, Level { name: "L3", cache: host.l3.as_ref() }] {
        let parts = level.divide(&partitions)?;
        levels.push((level, parts));
    }
    let mut planned = BTreeMap::new();
    for (index, (name, partition, classes)) in partitions.iter().enumerate() {
        let bandwidth = bandwidth::rates(partition.mb_allocation.as_ref(), host.memory.as_ref());
        let bandwidth = bandwidth.map_err(|error| format!("partition {name:?}: mbAllocation: {error}"))?;
        for (class_name, class) in classes {
            let wrong = |error: String| format!("class {class_name:?}: {error}");
            let class_name = if class_name.is_empty() { ROOT } else { class_name };
            if !is_name(class_name) {
                return Err(wrong("the name must be that of a directory".into()));
            }
            let mut schemata = String::new();
            for (level, parts) in &levels {
                let lines = level.of_class(class, partition, &options, parts.as_ref().map(|parts| &parts[index]));
                schemata.push_str(&lines.map_err(wrong)?);
            }
            let memory = bandwidth::of_class(class, partition, &options, bandwidth.as_ref(), host.memory.as_ref());
            schemata.push_str(&memory.map_err(wrong)?);
            let class = Planned { schemata, kubernetes: class.kubernetes };
            if planned.insert(class_name.to_owned(), class).is_some() {
                return Err(format!("class {class_name:?} is in two partitions"));
            }
        }
    }
    Ok(planned)
}

/// Code and data can have ways of their own; what they do not say is what both together have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Unified,
    Code,
    Data,
}

/// A value for each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct OfKinds<T> {
    unified: Option<T>,
    code: Option<T>,
    data: Option<T>,
}

impl<T: Copy> OfKinds<T> {
    fn stated(&self, kind: Kind) -> Option<T> {
        match kind {
            Kind::Unified => self.unified,
            Kind::Code => self.code,
            Kind::Data => self.data,
        }
    }

    fn effective(&self, kind: Kind) -> Option<T> {
        self.stated(kind).or(self.unified)
    }

    fn set(&mut self, kind: Kind, value: T) {
        match kind {
            Kind::Unified => self.unified = Some(value),
            Kind::Code => self.code = Some(value),
            Kind::Data => self.data = Some(value),
        }
    }
}

/// By cache id.
type ById<T> = BTreeMap<u64, T>;

/// A cache level, which the host may not have.
struct Level<'a> {
    name: &'static str,
    cache: Option<&'a Cache>,
}

impl Level<'_> {
    fn stated<'a>(&self, l2: &'a Option<Ways>, l3: &'a Option<Ways>) -> Option<&'a Ways> {
        if self.name == "L2" { l2.as_ref() } else { l3.as_ref() }
    }

    /// The ways of each partition, in order; `None` where the host has no such cache to divide.
    fn divide(&self, partitions: &Partitions) -> Result<Option<Vec<ById<OfKinds<u64>>>>, String> {
        let name = self.name;
        let mut asked = Vec::new();
        for (partition, allocations, _) in partitions {
            let ways = self.stated(&allocations.l2_allocation, &allocations.l3_allocation);
            let shares = ways.map(|ways| self.shares(ways)).transpose();
            asked.push((
                partition.as_str(),
                shares.map_err(|error| format!("partition {partition:?}: {name}: {error}"))?,
            ));
        }
        let Some(cache) = self.cache else { return Ok(None) };
        let mut granted = vec![ById::<OfKinds<u64>>::new(); partitions.len()];
        for id in &cache.ids {
            for kind in [Kind::Unified, Kind::Code, Kind::Data] {
                let of_one = |(partition, shares): &(&str, Option<ById<OfKinds<Share>>>)| {
                    ((*partition).to_owned(), shares.as_ref().and_then(|shares| shares.get(id)?.stated(kind)))
                };
                let asked: Vec<_> = asked.iter().map(of_one).collect();
                let divided = divide_one(cache, &asked).map_err(|error| format!("{name} of cache {id}: {error}"))?;
                for (grant, mask) in granted.iter_mut().zip(divided.into_iter().flatten()) {
                    grant.entry(*id).or_default().set(kind, mask);
                }
            }
        }
        Ok(Some(granted))
    }

    /// What is asked for of each cache of this level.
    fn shares(&self, ways: &Ways) -> Result<ById<OfKinds<Share>>, String> {
        let least = self.cache.map_or(0, |cache| cache.least);
        let ids = self.cache.map_or(&[][..], |cache| &cache.ids);
        let all = match ways {
            Ways::All(share) => of_one_cache(&WaysOfOne::Unified(share.clone()), least)?,
            Ways::ById(by_id) => match by_id.iter().find(|(ids, _)| ids.are_all()) {
                Some((_, ways)) => of_one_cache(ways, least)?,
                None => OfKinds { unified: Some(Share::Percent(100)), code: None, data: None },
            },
        };
        let mut found: ById<_> = ids.iter().map(|id| (*id, all)).collect();
        if let Ways::ById(by_id) = ways {
            for (list, ways) in by_id.iter().filter(|(ids, _)| !ids.are_all()) {
                let ways = of_one_cache(ways, least)?;
                for id in cache_ids(&list.0)? {
                    // Ids of caches that this host does not have are for others with the same file.
                    found.entry(id).and_modify(|found| *found = ways);
                }
            }
        }
        Ok(found)
    }

    /// The class's lines in its schemata.
    fn of_class(
        &self,
        class: &Class,
        partition: &Partition,
        options: &Options,
        part: Option<&ById<OfKinds<u64>>>,
    ) -> Result<String, String> {
        let name = self.name;
        let ways = self.stated(&class.l2_allocation, &class.l3_allocation);
        let asked = ways.map(|ways| self.shares(ways)).transpose().map_err(|error| format!("{name}: {error}"))?;
        if asked.is_some() && self.stated(&partition.l2_allocation, &partition.l3_allocation).is_none() {
            return Err(format!("it has ways of {name}, and its partition has none"));
        }
        let (Some(cache), Some(part)) = (self.cache, part) else {
            let optional = if name == "L2" { options.l2 } else { options.l3 };
            return match asked.is_some() && !optional.optional {
                true => Err(format!("this host cannot divide {name} (options.{}.optional)", name.to_lowercase())),
                false => Ok(String::new()),
            };
        };
        let kinds: &[(Kind, &str)] =
            if cache.prioritised { &[(Kind::Code, "CODE"), (Kind::Data, "DATA")] } else { &[(Kind::Unified, "")] };
        let mut lines = String::new();
        for (kind, suffix) in kinds {
            let of_one = |id: &u64| {
                let base = part.get(id).and_then(|part| part.effective(*kind)).unwrap_or(cache.mask);
                let share = asked.as_ref().and_then(|asked| asked.get(id)?.effective(*kind));
                let mask = share.map_or(Ok(base), |share| share.of(base, cache.least));
                mask.map(|mask| format!("{id}={mask:x}")).map_err(|error| format!("{name} of cache {id}: {error}"))
            };
            let parts: Vec<String> = cache.ids.iter().map(of_one).collect::<Result<_, _>>()?;
            lines.push_str(&format!("{name}{suffix}:{}\n", parts.join(";")));
        }
        Ok(lines)
    }
}

fn of_one_cache(ways: &WaysOfOne, least: u32) -> Result<OfKinds<Share>, String> {
    let kinds = match ways {
        WaysOfOne::Unified(share) => Kinds { unified: Some(share.clone()), ..Kinds::default() },
        WaysOfOne::Kinds(kinds) => kinds.clone(),
    };
    let parse = |share: &Option<String>| share.as_deref().map(|share| Share::parse(share, least)).transpose();
    let found = OfKinds { unified: parse(&kinds.unified)?, code: parse(&kinds.code)?, data: parse(&kinds.data)? };
    match found {
        OfKinds { unified: None, .. } => Err("unified is missing".into()),
        OfKinds { code: Some(_), data: None, .. } => Err("code is there without data".into()),
        OfKinds { code: None, data: Some(_), .. } => Err("data is there without code".into()),
        found => Ok(found),
    }
}

/// The ways of one cache among the partitions: none if nobody asks for any.
fn divide_one(cache: &Cache, asked: &[(String, Option<Share>)]) -> Result<Option<Vec<u64>>, String> {
    let missing: Vec<&str> = asked.iter().filter(|(_, share)| share.is_none()).map(|(name, _)| name.as_str()).collect();
    match missing.len() {
        0 => {}
        all if all == asked.len() => return Ok(None),
        _ => return Err(format!("partitions {} say nothing of it, and others do", missing.join(", "))),
    }
    let shares: Vec<Share> = asked.iter().filter_map(|(_, share)| *share).collect();
    let percents: Vec<u64> =
        shares.iter().filter_map(|share| if let Share::Percent(part) = share { Some(*part) } else { None }).collect();
    let masks: Vec<u64> =
        shares.iter().filter_map(|share| if let Share::Mask(mask) = share { Some(*mask) } else { None }).collect();
    if percents.len() == shares.len() {
        return by_percent(cache, &percents).map(Some);
    }
    if masks.len() != shares.len() {
        return Err("partitions are all percentages or all masks, and no ranges".into());
    }
    let mut taken = 0;
    for mask in &masks {
        if taken & mask != 0 {
            return Err("the masks of partitions overlap".into());
        }
        if mask & !cache.mask != 0 {
            return Err(format!("mask {mask:#x} is more than the cache has ({:#x})", cache.mask));
        }
        taken |= mask;
    }
    Ok(Some(masks))
}

/// Blocks from the lowest way upwards, in the order of the partitions; the smallest is rounded first, so that all get some.
fn by_percent(cache: &Cache, percents: &[u64]) -> Result<Vec<u64>, String> {
    let total: u64 = percents.iter().sum();
    if total > 100 {
        return Err(format!("partitions have {total}% together"));
    }
    let least = u64::from(cache.least);
    let ways = total * u64::from(cache.mask.trailing_ones()) / 100;
    let mut left = ways;
    let mut order: Vec<usize> = (0..percents.len()).collect();
    order.sort_by_key(|index| percents[*index]);
    let mut counts = vec![0; percents.len()];
    for (position, index) in order.iter().enumerate() {
        if left < least || left == 0 {
            return Err(format!("{} ways are too few for {} partitions", ways, percents.len()));
        }
        let percent_left = left * total / ways;
        let share = (percents[*index] * left).checked_div(percent_left).unwrap_or(left);
        let last = position + 1 == order.len();
        counts[*index] = if last { left } else { share.max(least).max(1).min(left) };
        left -= counts[*index];
    }
    let mut lowest = 0;
    let masks = counts.into_iter().map(|count| {
        let block = if count >= 64 { u64::MAX } else { (1 << count) - 1 };
        let mask = block << lowest;
        lowest += count;
        mask
    });
    Ok(masks.collect())
}

#[cfg(test)]
mod tests {
    use super::{super::document, super::host::Memory, *};

    fn host() -> Divisible {
        let cache = Cache { ids: vec![0, 1], mask: 0xfffff, least: 1, prioritised: false };
        Divisible { l2: None, l3: Some(cache), memory: Some(Memory { ids: vec![0, 1], least: 10, mbps: false }) }
    }

    fn planned(text: &str, host: &Divisible) -> Result<Vec<(String, String)>, String> {
        let planned = plan(document::parse(text).unwrap(), host)?;
        Ok(planned.into_iter().map(|(name, class)| (name, class.schemata)).collect())
    }

    fn schemata(text: &str, host: &Divisible, class: &str) -> String {
        planned(text, host).unwrap().into_iter().find(|(name, _)| name == class).unwrap().1
    }

    /// goresctrl's own example, on twenty ways.
    #[test]
    fn partitions_are_disjoint_and_classes_have_parts_of_them() {
        let text = r#"
options: {l2: {optional: true}}
partitions:
  exclusive:
    l2Allocation: "80%"
    l3Allocation: "60%"
    mbAllocation: ["100%"]
    classes:
      guaranteed: {l2Allocation: "100%", l3Allocation: "100%"}
  shared:
    l2Allocation: "20%"
    l3Allocation: "40%"
    mbAllocation: ["50%"]
    classes:
      burstable: {l3Allocation: "100%"}
      besteffort: {l3Allocation: "50%", mbAllocation: ["50%", "1000MBps"]}
      system/default: {l3Allocation: "0x3"}
"#;
        let expected = [
            ("besteffort", "L3:0=f000;1=f000\nMB:0=25;1=25\n"),
            ("burstable", "L3:0=ff000;1=ff000\nMB:0=50;1=50\n"),
            ("guaranteed", "L3:0=fff;1=fff\nMB:0=100;1=100\n"),
            ("system/default", "L3:0=3000;1=3000\nMB:0=50;1=50\n"),
        ];
        assert_eq!(
            planned(text, &host()),
            Ok(expected.map(|(name, lines)| (name.to_owned(), lines.to_owned())).into())
        );
        // Where nothing can be divided, all of it has to be optional.
        let nothing = Divisible::default();
        let refused = planned(text, &nothing).unwrap_err();
        assert_eq!(refused, r#"class "guaranteed": this host cannot divide L3 (options.l3.optional)"#);
        let optional = "l2: {optional: true}, l3: {optional: true}, mb: {optional: true}";
        let optional = text.replace("l2: {optional: true}", optional);
        assert_eq!(schemata(&optional, &nothing, "guaranteed"), "");
    }

    #[test]
    fn caches_can_differ_and_so_can_code_and_data() {
        let text = r#"
partitions:
  one:
    l3Allocation: {all: "0xff", 1: "0-3"}
    classes:
      "": {l3Allocation: {all: {unified: "100%", code: "50%", data: "0xf0"}, "1,9": "1%"}}
  two:
    l3Allocation: {all: "0xf00"}
    classes: {other: }
"#;
        assert_eq!(schemata(text, &host(), ROOT), "L3:0=ff;1=1\nMB:0=100;1=100\n");
        assert_eq!(schemata(text, &host(), "other"), "L3:0=f00;1=f00\nMB:0=100;1=100\n");
        let mut prioritised = host();
        prioritised.l3.as_mut().unwrap().prioritised = true;
        assert_eq!(schemata(text, &prioritised, ROOT), "L3CODE:0=f;1=1\nL3DATA:0=f0;1=1\nMB:0=100;1=100\n");
    }

    #[test]
    fn small_percentages_still_get_ways_and_all_ways_are_given_out() {
        let cache = Cache { ids: vec![0], mask: 0xff, least: 2, prioritised: false };
        assert_eq!(by_percent(&cache, &[98, 1, 1]), Ok(vec![0xf, 0x30, 0xc0]));
        assert_eq!(by_percent(&cache, &[0, 100]), Ok(vec![0x3, 0xfc]));
        assert_eq!(by_percent(&cache, &[50, 50]), Ok(vec![0xf, 0xf0]));
        assert_eq!(by_percent(&cache, &[25, 25]), Ok(vec![0x3, 0xc]));
        assert!(by_percent(&cache, &[20; 5]).unwrap_err().contains("too few"));
        let all = Cache { mask: u64::MAX, least: 1, ..cache };
        assert_eq!(by_percent(&all, &[100]), Ok(vec![u64::MAX]));
    }

    #[test]
    fn what_contradicts_itself_is_told_with_its_name() {
        let two = |one: &str, other: &str| {
            format!("partitions:\n  a: {{l3Allocation: {one}}}\n  b: {{l3Allocation: {other}}}\n")
        };
        let class = |partition: &str, class: &str| {
            format!("partitions:\n  p:\n    {partition}\n    classes: {{c: {{{class}}}}}\n")
        };
        let table = [
            (two("60%", "50%"), r#"L3 of cache 0: partitions have 110% together"#),
            (two("60%", "null"), r#"L3 of cache 0: partitions b say nothing of it, and others do"#),
            (two("'0xf'", "'0x18'"), r#"L3 of cache 0: the masks of partitions overlap"#),
            (two("'0xf'", "10%"), r#"L3 of cache 0: partitions are all percentages or all masks"#),
            (two("'0xf'", "'0x100000'"), r#"L3 of cache 0: mask 0x100000 is more than the cache has"#),
            (two("'0x5'", "'0x8'"), r#"partition "a": L3: "0x5" is not one block"#),
            (two("{0-: 50%}", "'0x8'"), r#"partition "a": L3: "0-" is no list of cache ids"#),
            (
                class("l3Allocation: '0xf'", "l3Allocation: '0x1f'"),
                r#"class "c": L3 of cache 0: 0x1f does not fit into 0xf"#,
            ),
            (class("l3Allocation: 50%", "l3Allocation: {all: {code: 50%}}"), r#"class "c": L3: unified is missing"#),
            (
                class("l3Allocation: 50%", "l3Allocation: {all: {unified: 9%, data: 50%}}"),
                r#"class "c": L3: data is there without code"#,
            ),
            (
                class("mbAllocation: [50%]", "l3Allocation: 50%"),
                r#"class "c": it has ways of L3, and its partition has none"#,
            ),
            (
                class("l3Allocation: 50%", "mbAllocation: [50%]"),
                r#"class "c": it has memory bandwidth, and its partition"#,
            ),
            (class("l2Allocation: 50%", "l2Allocation: 50%"), r#"class "c": this host cannot divide L2"#),
            (class("mbAllocation: [101%]", ""), r#"partition "p": mbAllocation: 101% is not between 0 and 100%"#),
            (class("mbAllocation: [5MBps]", ""), r#"partition "p": mbAllocation: ["5MBps"] has no value in %"#),
            ("partitions: {a: {classes: {x: }}, b: {classes: {x: }}}".into(), r#"class "x" is in two partitions"#),
            ("partitions: {a: {classes: {../x: }}}".into(), r#"class "../x": the name must be that of a directory"#),
        ];
        for (text, expected) in table {
            let error = planned(&text, &host()).unwrap_err();
            assert!(error.starts_with(expected), "{text}: {error}");
        }
    }
}
