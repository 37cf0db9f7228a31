//! Shell globs as Go's `path.Match` has them, which is what containerd's configurations are written for.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// `*` is any text without a slash, `?` one such character, `[a-z]` one of a set, `[^a-z]` one that is not of it; a
/// backslash takes the next character as it is. A set without its end matches nothing.
pub(crate) fn matches(glob: &str, name: &str) -> bool {
    let (glob, name): (Vec<char>, Vec<char>) = (glob.chars().collect(), name.chars().collect());
    all(&glob, &name)
}

fn all(glob: &[char], name: &[char]) -> bool {
    match (glob, name) {
        ([], []) => true,
        (['*', rest @ ..], [first, after @ ..]) => all(rest, name) || (*first != '/' && all(glob, after)),
        (['*', rest @ ..], []) => all(rest, name),
        (['?', rest @ ..], [first, after @ ..]) => *first != '/' && all(rest, after),
        (['[', set @ ..], [first, after @ ..]) => match in_set(set, *first) {
            Some((is_in, rest)) => is_in && *first != '/' && all(rest, after),
            None => false,
        },
        (['\\', wanted, rest @ ..], [first, after @ ..]) | ([wanted, rest @ ..], [first, after @ ..]) => {
            wanted == first && all(rest, after)
        }
        (_, []) | ([], _) => false,
    }
}

/// Whether a character is in the set that begins here, and what follows the set; `None` if it never ends.
fn in_set(set: &[char], wanted: char) -> Option<(bool, &[char])> {
    let (negated, mut rest) = match set {
        ['^', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let mut found = false;
    let mut first = true;
    loop {
        if let [']', after @ ..] = rest
            && !first
        {
            return Some((found != negated, after));
        }
        let (low, after) = member(rest)?;
        let (high, after) = match after {
            ['-', after @ ..] => member(after)?,
            after => (low, after),
        };
        found |= (low..=high).contains(&wanted);
        (rest, first) = (after, false);
    }
}

fn member(set: &[char]) -> Option<(char, &[char])> {
    match set {
        ['\\', member, rest @ ..] => Some((*member, rest)),
        ['-' | ']', ..] | [] => None,
        [member, rest @ ..] => Some((*member, rest)),
    }
}

/// The paths that an absolute pattern names, sorted. A directory that cannot be read has none, as with Go's
/// `filepath.Glob`. Blocks.
pub fn expand(pattern: &str) -> Vec<PathBuf> {
    let mut found = vec![PathBuf::from("/")];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        let names = |dir: &PathBuf| -> Vec<PathBuf> {
            if !part.contains(['*', '?', '[', '\\']) {
                return vec![dir.join(part)];
            }
            list(dir)
                .unwrap_or_default()
                .into_iter()
                .filter(|name| matches(part, name))
                .map(|name| dir.join(name))
                .collect()
        };
        found = found.iter().flat_map(names).collect();
    }
    found.retain(|path| fs::symlink_metadata(path).is_ok());
    found.sort();
    found
}

fn list(dir: &Path) -> io::Result<Vec<String>> {
    fs::read_dir(dir)?.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_matches_is_what_go_matches() {
        let table = [
            ("abc", "abc", true),
            ("*", "abc", true),
            ("*c", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "a/c/b", false),
            ("a*b*c", "axbxc", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("sd[a-c]", "sdb", true),
            ("sd[a-c]", "sdd", false),
            ("sd[^a-c]", "sdd", true),
            ("sd[^a-c]", "sda", false),
            ("[x-]", "x", false),
            ("[]a]", "]", false),
            ("[\\]a]", "]", true),
            ("[a", "a", false),
            ("a\\*", "a*", true),
            ("a\\*", "ab", false),
            ("", "", true),
            ("a", "", false),
            ("", "a", false),
        ];
        for (glob, name, expected) in table {
            assert_eq!(matches(glob, name), expected, "{glob:?} {name:?}");
        }
    }

    #[test]
    fn a_pattern_is_expanded_in_every_part() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a1/x.disk", "a2/x.disk", "a2/y.disk", "b1/x.disk"] {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        let expand = |pattern: &str| -> Vec<String> {
            let found = expand(&format!("{}/{pattern}", dir.path().display()));
            found.iter().map(|path| path.strip_prefix(dir.path()).unwrap().display().to_string()).collect()
        };
        assert_eq!(expand("a*/x*"), ["a1/x.disk", "a2/x.disk"]);
        assert_eq!(expand("a[2-9]/?.disk"), ["a2/x.disk", "a2/y.disk"]);
        assert_eq!(expand("b1/x.disk"), ["b1/x.disk"]);
        assert_eq!(expand("b1/none"), Vec::<String>::new());
        assert_eq!(expand("none/*"), Vec::<String>::new());
    }
}
