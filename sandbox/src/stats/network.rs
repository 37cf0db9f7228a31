//! The traffic of a pod's network namespace.

use std::{fs, os::unix::fs::MetadataExt, path::Path};

use crate::{model::PodView, netns::with_netns};

/// One network interface's counters since it was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub received: Traffic,
    pub sent: Traffic,
}

/// One direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    pub bytes: u64,
    pub packets: u64,
    pub errors: u64,
    pub dropped: u64,
}

/// All interfaces but the loopback; none for a pod without a network of its own, or one that is gone.
pub(super) fn of_pod(view: &PodView) -> Vec<Interface> {
    let (Some(pid), Some(netns)) = (view.pid, &view.netns) else { return Vec::new() };
    let text = read_by_pid(pid, netns).or_else(|| {
        let own = || fs::read_to_string("/proc/thread-self/net/dev");
        with_netns(netns, own).ok().and_then(Result::ok)
    });
    parse(&text.unwrap_or_default())
}

/// The table of the pause process's namespace, if that is the pod's: its pid may be another's by now.
fn read_by_pid(pid: i32, netns: &Path) -> Option<String> {
    let identity = |path: &Path| fs::metadata(path).ok().map(|file| (file.dev(), file.ino()));
    let process = Path::new("/proc").join(pid.to_string());
    let same = identity(&process.join("ns/net"))? == identity(netns)?;
    same.then(|| fs::read_to_string(process.join("net/dev")).ok()).flatten()
}

/// `/proc/<pid>/net/dev`: two lines of heads, then eight counters received and eight sent for each interface.
fn parse(table: &str) -> Vec<Interface> {
    let interface = |line: &str| {
        // An alias has a colon in its name: the counters start after the last one.
        let (name, counters) = line.rsplit_once(':')?;
        let counters: Vec<u64> = counters.split_whitespace().map_while(|counter| counter.parse().ok()).collect();
        let [bytes, packets, errors, dropped, _, _, _, _, rest @ ..] = &counters[..] else { return None };
        let received = Traffic { bytes: *bytes, packets: *packets, errors: *errors, dropped: *dropped };
        let [bytes, packets, errors, dropped, ..] = rest else { return None };
        let sent = Traffic { bytes: *bytes, packets: *packets, errors: *errors, dropped: *dropped };
        Some(Interface { name: name.trim().to_owned(), received, sent })
    };
    table.lines().filter_map(interface).filter(|interface| interface.name != "lo").collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
        lo:     840      10    0    0    0     0          0         0      840      10    0    0    0     0       0          0\n  \
        eth0:1026      11    1    2    0     0          0         0      746       9    3    4    0     0       0          0\n";

    #[test]
    fn counters_are_read_per_interface_without_the_loopback() {
        let eth0 = Interface {
            name: "eth0".into(),
            received: Traffic { bytes: 1026, packets: 11, errors: 1, dropped: 2 },
            sent: Traffic { bytes: 746, packets: 9, errors: 3, dropped: 4 },
        };
        assert_eq!(parse(TABLE), [eth0]);
        assert_eq!(parse("  eth0: 1 2 3\n"), []);
        assert_eq!(parse(""), []);
    }

    #[test]
    fn a_pid_is_believed_only_if_it_is_in_the_pods_namespace() {
        let own = i32::try_from(std::process::id()).unwrap();
        assert!(read_by_pid(own, Path::new("/proc/self/ns/net")).is_some());
        assert!(read_by_pid(own, Path::new("/proc/self/ns/uts")).is_none());
    }

    #[test]
    fn privileged_the_table_of_a_pinned_namespace_is_its_own() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("pod");
        crate::netns::pin(&path).unwrap();
        let own = with_netns(&path, || fs::read_to_string("/proc/thread-self/net/dev").unwrap()).unwrap();
        crate::netns::unpin(&path).unwrap();
        assert_eq!(parse(&own), [], "a new namespace has the loopback alone");
    }
}
