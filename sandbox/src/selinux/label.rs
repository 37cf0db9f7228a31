//! Labels as values: parsed, changed by what a client asks, and the levels that keep pods apart. No system calls here.

use std::{collections::HashSet, fmt, hash::BuildHasher, str::FromStr};

use crate::{error::Error, model::Selinux};

/// `user:role:type[:level]`. The level is empty under a policy without levels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Label {
    user: String,
    role: String,
    kind: String,
    level: String,
}

impl FromStr for Label {
    type Err = String;

    fn from_str(text: &str) -> Result<Label, String> {
        // A level has colons of its own.
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let mut next = || parts.next().filter(|part| !part.is_empty());
        let (Some(user), Some(role), Some(kind)) = (next(), next(), next()) else {
            return Err(format!("{text:?} has not the form user:role:type:level"));
        };
        Ok(Label { user, role, kind, level: next().unwrap_or_default() })
    }
}

impl fmt::Display for Label {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        if self.level.is_empty() { Ok(()) } else { write!(f, ":{}", self.level) }
    }
}

/// A process's label, and that of the files which are its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Labels {
    pub(crate) process: String,
    pub(crate) mount: String,
}

/// What a policy says of containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Policy {
    pub(crate) process: Label,
    pub(crate) file: Label,
    /// How many categories pods are kept apart by.
    pub(crate) categories: u32,
}

impl Policy {
    /// The labels of a container whose pod has this level. Later options win, field by field: those of the pod, then the
    /// container's own, so containers of a pod share their files unless they ask not to.
    pub(crate) fn labels(&self, level: &str, options: &[Option<&Selinux>]) -> Labels {
        let (mut process, mut file) = (self.process.clone(), self.file.clone());
        if !process.level.is_empty() {
            process.level = level.to_owned();
            file.level = level.to_owned();
        }
        for option in options.iter().flatten() {
            let set = |field: &mut String, value: &String| {
                if !value.is_empty() {
                    field.clone_from(value);
                }
            };
            // Files have a role and a type of their own, which no process has.
            set(&mut process.user, &option.user);
            set(&mut file.user, &option.user);
            set(&mut process.role, &option.role);
            set(&mut process.kind, &option.kind);
            set(&mut process.level, &option.level);
            set(&mut file.level, &option.level);
        }
        Labels { process: process.to_string(), mount: file.to_string() }
    }

    /// A level for a new pod: the one it asks for, else two categories that no pod in `used` has.
    pub(crate) fn level(&self, asked: Option<&Selinux>, used: &HashSet<&str>) -> Result<String, Error> {
        if let Some(asked) = asked.filter(|asked| !asked.level.is_empty()) {
            return Ok(asked.level.clone());
        }
        let Some(sensitivity) = self.process.level.split(':').next().filter(|level| !level.is_empty()) else {
            return Ok(String::new());
        };
        let pairs = u64::from(self.categories) * u64::from(self.categories.saturating_sub(1)) / 2;
        // Where the search starts is random, so that a level does not come back soon after its pod is gone.
        let start = std::hash::RandomState::new().hash_one(0);
        (0..pairs)
            .map(|step| pair((start % pairs + step) % pairs))
            .map(|(low, high)| format!("{sensitivity}:c{low},c{high}"))
            .find(|level| !used.contains(level.as_str()))
            .ok_or_else(|| {
                let what = "every pair of SELinux categories is in use: raise selinux_category_range";
                Error::Unavailable(what.into())
            })
    }
}

/// The pairs of categories in a row: (0, 1), (0, 2), (1, 2), (0, 3) and so on.
fn pair(index: u64) -> (u64, u64) {
    // The largest `high` for which all pairs below it fit before the index.
    let mut high = (8 * index + 1).isqrt().div_ceil(2);
    while high * (high - 1) / 2 > index {
        high -= 1;
    }
    (index - high * (high - 1) / 2, high)
}

/// Refuses what can be no part of a label. `field` is where it was said.
pub(crate) fn check(options: &Selinux, field: &str) -> Result<(), Error> {
    for (name, value) in [("user", &options.user), ("role", &options.role), ("type", &options.kind)] {
        if !value.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c)) {
            return Err(Error::Invalid(format!("{field}: {name} {value:?} is not letters, digits and _.-")));
        }
    }
    if options.level.is_empty() || is_level(&options.level) {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "{field}: the format of 'level' {:?} is not correct: it has the form s0, s0-s1, s0:c1,c2 or s0:c1.c5",
        options.level
    )))
}

/// `s0[-s1][:c1[.c2][,c3[.c4]]…]`, as Kubernetes' validation has it.
fn is_level(level: &str) -> bool {
    let number = |text: &str, prefix: char, digits: usize| {
        text.strip_prefix(prefix)
            .is_some_and(|number| (1..=digits).contains(&number.len()) && number.bytes().all(|b| b.is_ascii_digit()))
    };
    let (sensitivities, categories) = match level.split_once(':') {
        Some((sensitivities, categories)) => (sensitivities, Some(categories)),
        None => (level, None),
    };
    let mut range = sensitivities.split('-');
    let known = range.by_ref().take(2).all(|one| number(one, 's', 1)) && range.next().is_none();
    let category = |part: &str| {
        let mut ends = part.split('.');
        ends.by_ref().take(2).all(|one| number(one, 'c', 4)) && ends.next().is_none()
    };
    known && categories.is_none_or(|categories| categories.split(',').all(category))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(categories: u32) -> Policy {
        Policy {
            process: "system_u:system_r:container_t:s0".parse().unwrap(),
            file: "system_u:object_r:container_file_t:s0".parse().unwrap(),
            categories,
        }
    }

    fn options(user: &str, role: &str, kind: &str, level: &str) -> Selinux {
        Selinux { user: user.into(), role: role.into(), kind: kind.into(), level: level.into() }
    }

    #[test]
    fn containers_of_a_pod_share_its_level_unless_they_ask_not_to() {
        let policy = policy(1024);
        let check = |pod: Option<&Selinux>, own: Option<&Selinux>, process: &str, mount: &str| {
            let labels = policy.labels("s0:c1,c2", &[pod, own]);
            assert_eq!(labels, Labels { process: process.into(), mount: mount.into() });
        };
        let (file, own_file) =
            ("system_u:object_r:container_file_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c8");
        check(None, None, "system_u:system_r:container_t:s0:c1,c2", file);
        let super_privileged = options("", "", "spc_t", "");
        check(None, Some(&super_privileged), "system_u:system_r:spc_t:s0:c1,c2", file);
        check(Some(&super_privileged), None, "system_u:system_r:spc_t:s0:c1,c2", file);
        let level = options("", "", "", "s0:c8");
        check(Some(&super_privileged), Some(&level), "system_u:system_r:spc_t:s0:c8", own_file);
        let all = options("u", "r", "t", "s1");
        check(Some(&level), Some(&all), "u:r:t:s1", "u:object_r:container_file_t:s1");
    }

    #[test]
    fn a_policy_without_levels_gets_none() {
        let without = Policy {
            process: "u:r:container_t".parse().unwrap(),
            file: "u:object_r:file_t".parse().unwrap(),
            categories: 1024,
        };
        assert_eq!(without.level(None, &HashSet::new()).unwrap(), "");
        assert_eq!(
            without.labels("", &[None]),
            Labels { process: "u:r:container_t".into(), mount: "u:object_r:file_t".into() }
        );
    }

    #[test]
    fn every_pair_is_given_once_and_then_none() {
        let policy = policy(5);
        let mut given: HashSet<String> = HashSet::new();
        for _ in 0..10 {
            let used = given.iter().map(String::as_str).collect();
            let level = policy.level(None, &used).unwrap();
            assert!(is_level(&level), "{level}");
            assert!(given.insert(level));
        }
        let used = given.iter().map(String::as_str).collect();
        assert!(matches!(policy.level(None, &used), Err(Error::Unavailable(_))));
        let asked = options("", "", "", "s0:c1");
        assert_eq!(policy.level(Some(&asked), &used).unwrap(), "s0:c1");
    }

    #[test]
    fn pairs_are_in_a_row() {
        let found: Vec<(u64, u64)> = (0..6).map(pair).collect();
        assert_eq!(found, [(0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3)]);
        assert_eq!(pair(1024 * 1023 / 2 - 1), (1022, 1023));
    }

    #[test]
    fn a_level_has_kubernetes_form() {
        for good in ["s0", "s0-s1", "s0:c1", "s0:c1,c2", "s0-s0:c0.c1023", "s0:c1.c5,c7,c9.c12"] {
            assert!(is_level(good), "{good}");
        }
        for bad in [
            "",
            "0",
            "s",
            "s10",
            "s0-",
            "s0-s1-s2",
            "s0:",
            "s0:1",
            "s0:c",
            "s0:c12345",
            "s0:c1,",
            "s0:c1.c2.c3",
            "s0:c1 ",
            "s0:c1\n",
        ] {
            assert!(!is_level(bad), "{bad:?}");
        }
    }

    #[test]
    fn options_that_would_change_another_part_are_refused() {
        let refused = |options: Selinux| check(&options, "selinux_options").unwrap_err().to_string();
        assert_eq!(
            refused(options("", "", "spc_t:s0", "")),
            "selinux_options: type \"spc_t:s0\" is not letters, digits and _.-"
        );
        assert!(refused(options("u\0", "", "", "")).contains("user \"u\\0\""));
        assert!(refused(options("", "", "", "s0:c1:c2")).contains("the format of 'level' \"s0:c1:c2\" is not correct"));
        check(&options("u", "r", "t", "s0:c1,c2"), "x").unwrap();
    }

    #[test]
    fn a_label_is_written_as_it_was_read() {
        for label in ["u:r:t", "u:r:t:s0", "u:r:t:s0-s0:c0.c1023"] {
            assert_eq!(label.parse::<Label>().unwrap().to_string(), label);
        }
        assert!("u:r".parse::<Label>().is_err() && "u::t:s0".parse::<Label>().is_err());
    }
}
