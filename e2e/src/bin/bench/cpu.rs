//! CPU time, counted in two ways.
//!
//! - Of a cgroup that the daemon was started in: daemon, shims, runc, CNI plugins and the containers, which are placed
//!   below it, also those that have ended. Exact, but without what the kernel does in threads of its own (taking down
//!   network namespaces and mounts).
//! - Of the whole machine, less what it uses when idle and less this program: complete, but with whatever else runs.

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::param::clock_ticks_per_second;
use tokio::time::sleep;

use crate::error::BenchError;

/// A machine that is busier than this while nothing is asked of it has no idle time to compare with.
const BUSY_CORES: f64 = 0.3;

/// How long the idle machine is watched.
const WATCH: Duration = Duration::from_secs(3);

/// A cgroup with its counter.
#[derive(Debug)]
pub(crate) struct CpuGroup {
    /// As CRI names it: absolute, from the root of the hierarchy.
    pub(crate) path: String,
    counter: Counter,
}

#[derive(Debug)]
enum Counter {
    /// `cpu.stat` of the unified hierarchy, in microseconds.
    Unified(PathBuf),
    /// `cpuacct.usage` of version 1, in nanoseconds.
    Cpuacct(PathBuf),
}

impl CpuGroup {
    /// Finds the counter of a group in whichever hierarchy the machine has.
    pub(crate) fn find(path: &str) -> Result<CpuGroup, BenchError> {
        let below = path.trim_start_matches('/');
        let cpuacct = Path::new("/sys/fs/cgroup/cpuacct").join(below).join("cpuacct.usage");
        let unified = Path::new("/sys/fs/cgroup").join(below).join("cpu.stat");
        let counter = match (cpuacct.exists(), unified.exists()) {
            (true, _) => Counter::Cpuacct(cpuacct),
            (false, true) => Counter::Unified(unified),
            (false, false) => return Err(BenchError::Usage(format!("there is no cgroup {path} that counts CPU time"))),
        };
        Ok(CpuGroup { path: format!("/{below}"), counter })
    }

    fn used(&self) -> Result<Duration, BenchError> {
        match &self.counter {
            Counter::Cpuacct(path) => number(read(path)?.trim(), path).map(Duration::from_nanos),
            Counter::Unified(path) => {
                let text = read(path)?;
                let usage = text.lines().find_map(|line| line.strip_prefix("usage_usec ")).unwrap_or_default();
                number(usage, path).map(Duration::from_micros)
            }
        }
    }
}

/// Both counters at one time.
#[derive(Debug)]
pub(crate) struct Reading {
    at: Instant,
    group: Option<Duration>,
    machine: Duration,
    own: Duration,
}

/// What was used between two readings.
#[derive(Debug)]
pub(crate) struct CpuUse {
    pub(crate) group: Option<Duration>,
    /// `None` on a machine that is busy with other things.
    pub(crate) machine: Option<Duration>,
}

impl Reading {
    pub(crate) fn take(group: Option<&CpuGroup>) -> Result<Reading, BenchError> {
        let group = group.map(CpuGroup::used).transpose()?;
        let stat = Path::new("/proc/stat");
        let machine =
            busy_ticks(&read(stat)?).ok_or_else(|| BenchError::failed(stat.display(), "no line of all CPUs"))?;
        let own = Path::new("/proc/self/stat");
        let own = own_ticks(&read(own)?).ok_or_else(|| BenchError::failed(own.display(), "no times"))?;
        Ok(Reading { at: Instant::now(), group, machine: ticks(machine), own: ticks(own) })
    }

    pub(crate) fn since(&self, before: &Reading, idle: &Idle) -> CpuUse {
        let wall = self.at.duration_since(before.at);
        let above = self.foreign_since(before).saturating_sub(wall.mul_f64(idle.cores));
        let machine = (idle.cores <= BUSY_CORES).then_some(above);
        CpuUse { group: self.group.zip(before.group).map(|(after, before)| after.saturating_sub(before)), machine }
    }

    /// The machine's time without this program's.
    fn foreign_since(&self, before: &Reading) -> Duration {
        self.machine.saturating_sub(before.machine).saturating_sub(self.own.saturating_sub(before.own))
    }
}

/// What the machine uses while nothing is asked of any endpoint.
#[derive(Debug)]
pub(crate) struct Idle {
    cores: f64,
}

impl Idle {
    pub(crate) async fn measure() -> Result<Idle, BenchError> {
        let before = Reading::take(None)?;
        sleep(WATCH).await;
        let after = Reading::take(None)?;
        let wall = after.at.duration_since(before.at);
        let cores = after.foreign_since(&before).as_secs_f64() / wall.as_secs_f64();
        eprintln!("bench: {cores:.2} cores are in use while nothing is asked of any endpoint");
        if cores > BUSY_CORES {
            eprintln!("bench: this machine is busy with other things: its figures are good for little");
        }
        Ok(Idle { cores })
    }
}

/// user, nice, system, irq and softirq of all CPUs; neither idle nor iowait nor what the hypervisor took.
fn busy_ticks(stat: &str) -> Option<u64> {
    let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
    let fields: Vec<u64> = line.split_whitespace().map_while(|field| field.parse().ok()).collect();
    [0, 1, 2, 5, 6].iter().map(|&index| fields.get(index)).sum()
}

/// utime and stime: fields 14 and 15. The name before them may hold anything, so counting starts behind its parenthesis.
fn own_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(") ")?.1.split(' ').skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

fn ticks(count: u64) -> Duration {
    Duration::from_secs_f64(count as f64 / clock_ticks_per_second() as f64)
}

fn read(path: &Path) -> Result<String, BenchError> {
    fs::read_to_string(path).map_err(|error| BenchError::failed(path.display(), error))
}

fn number(text: &str, path: &Path) -> Result<u64, BenchError> {
    text.parse().map_err(|error| BenchError::failed(path.display(), error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_busy_with_neither_idling_nor_waiting_nor_stolen_time() {
        assert_eq!(busy_ticks("cpu  1 20 300 4000 50000 600000 7000000 8 9 10\ncpu0 5 5 5\n"), Some(7_600_321));
        assert_eq!(busy_ticks("cpu  1 2\n"), None);
    }

    #[test]
    fn the_times_of_a_process_are_found_behind_any_name() {
        let line = "1 (a) b (c) S 2 3 4 5 6 7 8 9 10 11 120 34 13 14";
        assert_eq!(own_ticks(line), Some(154));
    }
}
