//! The environment of a process: defaults, then HOSTNAME, then the image's, then CRI's; a later entry wins.

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The `NAME=value` list, each name once, in the order in which names were first seen.
pub fn resolve(tty: bool, hostname: &str, image: &[String], request: &[(String, String)]) -> Vec<String> {
    let mut entries = vec![PATH.to_owned()];
    if tty {
        entries.push("TERM=xterm".into());
    }
    if !hostname.is_empty() {
        entries.push(format!("HOSTNAME={hostname}"));
    }
    for entry in image {
        set(&mut entries, entry.clone());
    }
    for (name, value) in request {
        set(&mut entries, format!("{name}={value}"));
    }
    entries
}

/// An entry without `=` takes the name out, as image builders use it.
fn set(entries: &mut Vec<String>, entry: String) {
    let name = |entry: &str| entry.split_once('=').map_or(entry, |(name, _)| name).to_owned();
    let known = entries.iter().position(|other| name(other) == name(&entry));
    match (known, entry.contains('=')) {
        (Some(at), true) => entries[at] = entry,
        (Some(at), false) => {
            entries.remove(at);
        }
        (None, true) => entries.push(entry),
        (None, false) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_later_entry_wins_in_the_place_of_the_first() {
        let image = ["PATH=/bin".to_owned(), "A=image".into(), "TERM".into(), "B=image=1".into()];
        let request = [("A".to_owned(), "request".to_owned()), ("HOSTNAME".into(), "other".into())];
        assert_eq!(resolve(true, "web-0", &image, &request), ["PATH=/bin", "HOSTNAME=other", "A=request", "B=image=1"]);
        assert_eq!(resolve(false, "", &[], &[]), [PATH]);
    }
}
