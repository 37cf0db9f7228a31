//! Memory bandwidth: a class has a percentage of its partition's, or as many MBps where resctrl is mounted so.

use std::collections::BTreeMap;

use super::{
    document::{Bandwidth, Class, Options, Partition},
    host::Memory,
    share::cache_ids,
};

/// By the id of the cache in front of the controller: percent or MBps.
pub(super) type Rates = BTreeMap<u64, u64>;

/// What a partition or a class has of the memory's bandwidth; `None` where it says nothing.
pub(super) fn rates(asked: Option<&Bandwidth>, memory: Option<&Memory>) -> Result<Option<Rates>, String> {
    let Some(asked) = asked else { return Ok(None) };
    let mbps = memory.is_some_and(|memory| memory.mbps);
    let all = match asked {
        Bandwidth::All(list) => rate(list, mbps)?,
        Bandwidth::ById(by_id) => {
            let all = by_id.iter().find(|(ids, _)| ids.are_all());
            all.map_or(Ok(if mbps { MOST } else { 100 }), |(_, list)| rate(list, mbps))?
        }
    };
    let mut found: Rates = memory.map_or(&[][..], |memory| &memory.ids).iter().map(|id| (*id, all)).collect();
    if let Bandwidth::ById(by_id) = asked {
        for (ids, list) in by_id.iter().filter(|(ids, _)| !ids.are_all()) {
            let rate = rate(list, mbps)?;
            for id in cache_ids(&ids.0)? {
                found.entry(id).and_modify(|found| *found = rate);
            }
        }
    }
    Ok(Some(found))
}

/// MBps that limit nothing.
const MOST: u64 = u32::MAX as u64;

/// The percentage of a list, or its number of MBps.
fn rate(list: &[String], mbps: bool) -> Result<u64, String> {
    let suffix = if mbps { "MBps" } else { "%" };
    let most = if mbps { MOST } else { 100 };
    let text = list.iter().find_map(|text| text.strip_suffix(suffix));
    let text = text.ok_or_else(|| format!("{list:?} has no value in {suffix}, which this host's resctrl takes"))?;
    let rate = text.trim().parse().ok().filter(|rate| *rate <= most);
    rate.ok_or_else(|| format!("{text}{suffix} is not between 0 and {most}{suffix}"))
}

/// The class's line in its schemata.
pub(super) fn of_class(
    class: &Class,
    partition: &Partition,
    options: &Options,
    part: Option<&Rates>,
    memory: Option<&Memory>,
) -> Result<String, String> {
    let asked = rates(class.mb_allocation.as_ref(), memory).map_err(|error| format!("mbAllocation: {error}"))?;
    if asked.is_some() && partition.mb_allocation.is_none() {
        return Err("it has memory bandwidth, and its partition has none".into());
    }
    let Some(memory) = memory else {
        return match asked.is_some() && !options.mb.optional {
            true => Err("this host cannot divide memory bandwidth (options.mb.optional)".into()),
            false => Ok(String::new()),
        };
    };
    let value = |id: &u64| {
        let full = if memory.mbps { MOST } else { 100 };
        let base = part.and_then(|part| part.get(id)).copied().unwrap_or(full);
        let asked = asked.as_ref().and_then(|asked| asked.get(id)).copied().unwrap_or(full);
        let rate = if memory.mbps { asked.min(base) } else { (asked * base.max(memory.least) / 100).max(memory.least) };
        format!("{id}={rate}")
    };
    Ok(format!("MB:{}\n", memory.ids.iter().map(value).collect::<Vec<_>>().join(";")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_in_the_unit_of_the_mount() {
        let list = |items: &[&str]| items.iter().map(|item| (*item).to_owned()).collect::<Vec<_>>();
        let both = list(&["50%", "2000MBps"]);
        assert_eq!((rate(&both, false), rate(&both, true)), (Ok(50), Ok(2000)));
        assert!(
            rate(&list(&["50%"]), true).unwrap_err().ends_with("has no value in MBps, which this host's resctrl takes")
        );
        assert!(rate(&list(&["x%"]), false).is_err());
        let memory = Memory { ids: vec![0, 1], least: 10, mbps: true };
        let (class, partition) = (Class::default(), Partition::default());
        let line =
            |rates: Option<&Rates>| of_class(&class, &partition, &Options::default(), rates, Some(&memory)).unwrap();
        assert_eq!(line(None), "MB:0=4294967295;1=4294967295\n");
        assert_eq!(line(Some(&[(0, 5)].into())), "MB:0=5;1=4294967295\n");
    }

    #[test]
    fn a_class_has_no_less_than_the_host_can_give() {
        let memory = Memory { ids: vec![0], least: 10, mbps: false };
        let bandwidth = |text: &str| Some(Bandwidth::All(vec![text.to_owned()]));
        let class = Class { mb_allocation: bandwidth("10%"), ..Class::default() };
        let partition = Partition { mb_allocation: bandwidth("5%"), ..Partition::default() };
        let rates = rates(partition.mb_allocation.as_ref(), Some(&memory)).unwrap();
        let line = of_class(&class, &partition, &Options::default(), rates.as_ref(), Some(&memory));
        assert_eq!(line, Ok("MB:0=10\n".into()));
    }
}
