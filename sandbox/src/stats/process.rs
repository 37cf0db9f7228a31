//! What the processes of a container hold: open files, sockets, limits.

use std::{fs, path::Path};

/// Counts over all processes of one container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Processes {
    pub count: u64,
    pub descriptors: u64,
    /// Those of the descriptors that are sockets.
    pub sockets: u64,
    /// The soft limit of open files of the first process; `None` without one.
    pub max_open_files: Option<u64>,
}

/// Looks at each of `pids`; `init` is the container's first process. A process that has ended meanwhile has nothing.
pub(super) fn read(init: i32, pids: &[i32]) -> Processes {
    let mut all = Processes { max_open_files: max_open_files(init), ..Processes::default() };
    for pid in pids {
        all.count += 1;
        let Ok(descriptors) = fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd")) else { continue };
        for descriptor in descriptors.flatten() {
            all.descriptors += 1;
            let socket = fs::read_link(descriptor.path()).is_ok_and(|to| to.to_string_lossy().starts_with("socket:"));
            all.sockets += u64::from(socket);
        }
    }
    all
}

fn max_open_files(pid: i32) -> Option<u64> {
    parse_max_open_files(&fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

/// The soft limit, or `None` for `unlimited`.
fn parse_max_open_files(limits: &str) -> Option<u64> {
    let values = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    values.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::net::UnixStream, process};

    use super::*;

    #[test]
    fn the_soft_limit_is_the_first_value() {
        let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max processes             127210               127210               processes \n\
            Max open files            1024                 524288               files     \n";
        assert_eq!(parse_max_open_files(limits), Some(1024));
        assert_eq!(parse_max_open_files("Max open files   unlimited  unlimited  files\n"), None);
        assert_eq!(parse_max_open_files(""), None);
    }

    #[test]
    fn open_files_and_sockets_of_each_process_are_counted() {
        // Other tests of this process open files meanwhile, so a child is looked at, which does nothing but wait.
        let file = File::open("/dev/null").unwrap();
        let (one, other) = UnixStream::pair().unwrap();
        let (stdin, stdout) = (std::os::fd::OwnedFd::from(one), std::os::fd::OwnedFd::from(file));
        let mut cat = process::Command::new("cat");
        let mut child = cat.stdin(stdin).stdout(stdout).stderr(process::Stdio::null()).spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let found = read(pid, &[pid]);
        drop(other);
        child.wait().unwrap();
        assert_eq!((found.count, found.sockets), (1, 1));
        assert!(found.descriptors >= 3 && found.max_open_files.is_some(), "{found:?}");
    }
}
