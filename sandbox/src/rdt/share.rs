//! What part of a cache is asked for: a percentage, a range of percents, numbers of bits, or a mask.

/// A contiguous part of the ways of a cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Share {
    /// From the lowest way: 0 to 100 percent, rounded to whole ways. A partition of 0 has as little as the cache gives.
    Percent(u64),
    /// Percents `low` to `high`, both included.
    Range { low: u64, high: u64 },
    /// Ways, counted from the lowest one of what it is a part of.
    Mask(u64),
}

impl Share {
    /// `60%`, `20-60%`, `0-3,4` or `0xff`. `least` is how many ways the cache gives at least.
    pub(super) fn parse(text: &str, least: u32) -> Result<Share, String> {
        if let Some(percents) = text.strip_suffix('%') {
            return percent(percents).ok_or_else(|| format!("{text:?} is not a percentage such as 60% or 20-60%"));
        }
        let mask = match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).ok(),
            None => bits(text),
        };
        let mask = mask.ok_or_else(|| format!("{text:?} is not a share such as 60%, 0-3 or 0xff"))?;
        match () {
            () if !is_contiguous(mask) => Err(format!("{text:?} is not one block of bits")),
            () if mask.count_ones() < least => {
                Err(format!("{text:?} has less than the {least} bits that a class needs"))
            }
            () => Ok(Share::Mask(mask)),
        }
    }

    /// The ways that this is of `base`, at least `least`.
    pub(super) fn of(self, base: u64, least: u32) -> Result<u64, String> {
        if base == 0 || !is_contiguous(base) || base.count_ones() < least {
            return Err(format!("{base:#x} is not one block of at least {least} bits"));
        }
        let (lowest, ways) = (base.trailing_zeros(), u64::from(base.count_ones()));
        let (low, high) = match self {
            Share::Mask(mask) => {
                let fits = mask.leading_zeros() >= lowest && (mask << lowest) & !base == 0;
                return if fits { Ok(mask << lowest) } else { Err(format!("{mask:#x} does not fit into {base:#x}")) };
            }
            Share::Percent(0) => return Err("0% is no part that a class can have".into()),
            Share::Percent(high) => (1, high),
            Share::Range { low, high } => (low, high),
        };
        let (mut first, mut last) = ((low - 1) * ways / 100, (high - 1) * ways / 100);
        // Widened downwards first.
        let missing = u64::from(least).saturating_sub(last - first + 1);
        let down = missing.min(first);
        first -= down;
        last += missing - down;
        let block = if last - first == 63 { u64::MAX } else { (1 << (last - first + 1)) - 1 };
        Ok(block << (first + u64::from(lowest)))
    }
}

fn percent(text: &str) -> Option<Share> {
    let number = |text: &str| text.parse().ok().filter(|percent| *percent <= 100);
    match text.split_once('-') {
        None => number(text).map(Share::Percent),
        Some((low, high)) => {
            let (low, high) = (number(low)?.max(1), number(high)?);
            (low <= high).then_some(Share::Range { low, high })
        }
    }
}

/// A mask of the numbers in a list such as `0,2-5`.
fn bits(text: &str) -> Option<u64> {
    let numbers = list(text)?;
    numbers.into_iter().try_fold(0, |mask, bit| (bit < 64).then(|| mask | 1 << bit))
}

/// The numbers of a list such as `0,2-5`; below 128, so that no range is long.
fn list(text: &str) -> Option<Vec<u64>> {
    let number = |text: &str| text.parse().ok().filter(|number| *number < 128_u64);
    let mut found = Vec::new();
    for part in text.split(',') {
        match part.split_once('-') {
            None => found.push(number(part)?),
            Some((first, last)) => {
                let (first, last) = (number(first)?, number(last)?);
                found.extend((first < last).then_some(first..=last)?);
            }
        }
    }
    Some(found)
}

/// The ids that a key such as `0,2-3` names.
pub(super) fn cache_ids(text: &str) -> Result<Vec<u64>, String> {
    list(text).ok_or_else(|| format!("{text:?} is no list of cache ids such as 0,2-3, nor all"))
}

fn is_contiguous(mask: u64) -> bool {
    mask.count_ones() + mask.leading_zeros() + mask.trailing_zeros() == 64 || mask == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_read_in_every_form() {
        let table = [
            ("60%", Ok(Share::Percent(60))),
            ("100%", Ok(Share::Percent(100))),
            ("20-60%", Ok(Share::Range { low: 20, high: 60 })),
            ("0-60%", Ok(Share::Range { low: 1, high: 60 })),
            ("0xf0", Ok(Share::Mask(0xf0))),
            ("0-3", Ok(Share::Mask(0xf))),
            ("2,3,4-5", Ok(Share::Mask(0x3c))),
            ("7,6", Ok(Share::Mask(0xc0))),
            ("0%", Ok(Share::Percent(0))),
            ("0-0%", Err("not a percentage")),
            ("101%", Err("not a percentage")),
            ("60-20%", Err("not a percentage")),
            ("x%", Err("not a percentage")),
            ("", Err("not a share")),
            ("0xg", Err("not a share")),
            ("64", Err("not a share")),
            ("3-3", Err("not a share")),
            ("200", Err("not a share")),
            ("0x5", Err("not one block")),
            ("0,2", Err("not one block")),
            ("0x1", Err("less than the 2 bits")),
            ("0x0", Err("less than the 2 bits")),
        ];
        for (text, expected) in table {
            match (Share::parse(text, 2), expected) {
                (Err(error), Err(part)) => assert!(error.contains(part), "{text}: {error}"),
                (found, expected) => assert_eq!(found, expected.map_err(str::to_owned), "{text}"),
            }
        }
    }

    #[test]
    fn a_share_is_a_block_of_what_it_is_a_part_of() {
        let check = |share: Share, base: u64, least: u32, expected: Option<u64>| {
            assert_eq!(share.of(base, least).ok(), expected, "{share:?} of {base:#x}");
        };
        check(Share::Percent(100), 0xfffff, 1, Some(0xfffff));
        check(Share::Percent(50), 0xfffff, 1, Some(0x3ff));
        check(Share::Percent(60), 0xff0, 1, Some(0x1f0));
        check(Share::Percent(1), 0xfffff, 1, Some(0x1));
        check(Share::Percent(1), 0xfffff, 2, Some(0x3));
        check(Share::Percent(100), u64::MAX, 1, Some(u64::MAX));
        check(Share::Range { low: 51, high: 100 }, 0xff, 1, Some(0xf0));
        check(Share::Range { low: 100, high: 100 }, 0xf0, 2, Some(0xc0));
        check(Share::Mask(0x3), 0xff0, 1, Some(0x30));
        check(Share::Mask(0x1ff), 0xff0, 1, None);
        check(Share::Mask(1 << 63), 0x2, 1, None);
        check(Share::Percent(0), 0xff, 1, None);
        check(Share::Percent(10), 0, 1, None);
        check(Share::Percent(10), 0b101, 1, None);
        check(Share::Percent(10), 0b1, 2, None);
    }
}
