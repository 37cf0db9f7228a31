//! What of the kernel's files a container does not see.

use oci_spec::runtime::get_default_maskedpaths;

/// The power that the machine takes, by which a process can read what others compute (GHSA-7ww5-4wqc-m92c). Clients' own lists
/// lack it where they are older.
const POWER: &str = "/sys/devices/virtual/powercap";

/// The default: the runtime specification's, and what was found since to tell of others: power, and when each device interrupts.
pub(super) fn default() -> Vec<String> {
    let mut paths = get_default_maskedpaths();
    paths.extend([POWER, "/proc/interrupts"].map(str::to_owned));
    paths
}

/// A client's list. An empty one masks nothing, which a client has to mean.
pub(super) fn of_client(paths: &[String]) -> Option<Vec<String>> {
    if paths.is_empty() {
        return None;
    }
    let missing = (!paths.iter().any(|path| path == POWER)).then(|| POWER.to_owned());
    Some(paths.iter().cloned().chain(missing).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn v_c16_the_power_is_masked_unless_nothing_is() {
        let list = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect::<Vec<_>>();
        assert!(default().contains(&POWER.to_owned()));
        assert_eq!(of_client(&[]), None);
        assert_eq!(of_client(&list(&["/proc/kcore"])), Some(list(&["/proc/kcore", POWER])));
        assert_eq!(of_client(&list(&[POWER, "/proc/kcore"])), Some(list(&[POWER, "/proc/kcore"])));
    }
}
