//! How many processes the kernel has killed for memory in each container of the shim, also when a container's cgroup is
//! gone before anyone could ask it.
//!
//! systemd removes a scope as soon as it is empty, so it may come before the shim has reaped the process that the kernel
//! killed. The pod's slice stays, and on cgroup v2 the counter of `memory.events` holds what happened below it, in
//! cgroups that are removed as well (Documentation/admin-guide/cgroup-v2.rst). What none of the containers that can be asked
//! has had is that of the one that cannot.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use crate::cgroup::Cgroup;

#[derive(Debug, Default)]
pub(crate) struct Kills(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// By the directory above the containers' cgroups: the kills that are accounted for, from before the first of the
    /// containers and of those that are gone.
    accounted: HashMap<PathBuf, u64>,
    containers: HashMap<String, Counted>,
}

#[derive(Debug)]
struct Counted {
    cgroup: Cgroup,
    kills: u64,
}

impl Kills {
    /// From here on the container is counted. Its cgroup is there.
    pub(crate) fn enter(&self, id: &str, cgroup: Cgroup) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(parent) = cgroup.parent() {
            let before = parent.oom_kills().unwrap_or(0);
            state.accounted.entry(parent.directory().to_owned()).or_insert(before);
        }
        state.containers.insert(id.to_owned(), Counted { cgroup, kills: 0 });
    }

    /// How many processes of the container were killed so far; none for one that was never entered.
    pub(crate) fn of(&self, id: &str) -> u64 {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(own) = state.containers.get_mut(id) else { return 0 };
        if let Some(kills) = own.cgroup.oom_kills() {
            own.kills = own.kills.max(kills);
            return own.kills;
        }
        let lost = own.cgroup.parent().and_then(|parent| state.lost(&parent)).unwrap_or(0);
        let Some(own) = state.containers.get_mut(id) else { return 0 };
        own.kills += lost;
        own.kills
    }

    /// The container is deleted.
    pub(crate) fn leave(&self, id: &str) {
        // What was not asked for at its end would be taken for another's.
        self.of(id);
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(gone) = state.containers.remove(id) else { return };
        if let Some(accounted) = gone.cgroup.parent().and_then(|parent| state.accounted.get_mut(parent.directory())) {
            *accounted += gone.kills;
        }
    }
}

impl State {
    /// The kills below `parent` that no container is known to have had. Nothing if it holds cgroups that are not of this
    /// shim, whose kills they may be.
    fn lost(&mut self, parent: &Cgroup) -> Option<u64> {
        let ours = |name: &str| self.containers.keys().any(|id| name.contains(id.as_str()));
        if !parent.children().iter().all(|name| ours(name)) {
            return None;
        }
        // The sum first: what is killed meanwhile is missed here, and not counted twice.
        let all = parent.oom_kills()?;
        let mut known = *self.accounted.get(parent.directory())?;
        for other in self.containers.values_mut().filter(|other| is_below(&other.cgroup, parent.directory())) {
            other.kills = other.kills.max(other.cgroup.oom_kills().unwrap_or(0));
            known += other.kills;
        }
        Some(all.saturating_sub(known))
    }
}

fn is_below(cgroup: &Cgroup, parent: &Path) -> bool {
    cgroup.directory().parent() == Some(parent)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    /// A pod's slice of cgroup v2, made of files.
    struct Slice(TempDir);

    impl Slice {
        fn with(kills: u64) -> Slice {
            let slice = Slice(tempfile::tempdir().unwrap());
            slice.set("", kills);
            slice
        }

        fn scope(&self, id: &str) -> PathBuf {
            self.0.path().join(if id.is_empty() { String::new() } else { format!("cri-containerd-{id}.scope") })
        }

        fn set(&self, id: &str, kills: u64) {
            fs::create_dir_all(self.scope(id)).unwrap();
            fs::write(self.scope(id).join("memory.events"), format!("oom 9\noom_kill {kills}\noom_group_kill 0\n"))
                .unwrap();
        }

        fn remove(&self, id: &str) {
            fs::remove_dir_all(self.scope(id)).unwrap();
        }

        fn enter(&self, kills: &Kills, id: &str) {
            self.set(id, 0);
            kills.enter(id, Cgroup::unified(self.scope(id)));
        }
    }

    #[test]
    fn a_cgroup_that_is_there_is_asked() {
        let (slice, kills) = (Slice::with(0), Kills::default());
        slice.enter(&kills, "a1");
        assert_eq!((kills.of("a1"), kills.of("unknown")), (0, 0));
        slice.set("a1", 2);
        assert_eq!(kills.of("a1"), 2);
    }

    #[test]
    fn kills_of_a_cgroup_that_is_gone_are_found_above_it() {
        let (slice, kills) = (Slice::with(5), Kills::default());
        slice.enter(&kills, "a1");
        slice.enter(&kills, "b2");
        slice.enter(&kills, "c3");
        // B's own kill is known, C's will be; A's cgroup goes unasked, with two kills.
        slice.set("b2", 1);
        slice.set("", 8);
        slice.remove("a1");
        assert_eq!((kills.of("c3"), kills.of("a1"), kills.of("b2")), (0, 2, 1));
        assert_eq!(kills.of("a1"), 2, "asked again, it is no more");
        // Those that are gone for good stay accounted for.
        kills.leave("a1");
        slice.remove("b2");
        kills.leave("b2");
        slice.remove("c3");
        assert_eq!(kills.of("c3"), 0);
        slice.set("", 9);
        assert_eq!(kills.of("c3"), 1);
    }

    #[test]
    fn a_container_that_left_unasked_had_its_kills_itself() {
        let (slice, kills) = (Slice::with(0), Kills::default());
        slice.enter(&kills, "a1");
        slice.enter(&kills, "b2");
        slice.set("", 1);
        slice.remove("a1");
        kills.leave("a1");
        slice.remove("b2");
        assert_eq!(kills.of("b2"), 0);
    }

    #[test]
    fn nothing_is_concluded_where_others_have_cgroups_too() {
        let (slice, kills) = (Slice::with(0), Kills::default());
        slice.enter(&kills, "a1");
        slice.set("of-another-pod", 1);
        slice.set("", 1);
        slice.remove("a1");
        assert_eq!(kills.of("a1"), 0);
    }

    #[test]
    fn a_slice_that_is_gone_as_well_says_nothing() {
        let (slice, kills) = (Slice::with(0), Kills::default());
        slice.enter(&kills, "a1");
        slice.set("a1", 3);
        assert_eq!(kills.of("a1"), 3);
        drop(slice);
        assert_eq!(kills.of("a1"), 3);
    }
}
