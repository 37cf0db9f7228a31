//! Profiles in the kernel: looking whether one is loaded, and loading our own.
//!
//! The default profile belongs to the host once it is loaded, like a kernel module: it is shared by all containers and
//! stays. It is looked for at every use, because the distribution's AppArmor service unloads what it does not know when it
//! is restarted. All functions block.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::process::CommandExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open},
};

use crate::{error::Error, oci::apparmor::DEFAULT_PROFILE};

/// One line a loaded profile, `name (mode)`. See apparmorfs in the kernel's `security/apparmor`.
const LOADED: &str = "/sys/kernel/security/apparmor/profiles";

/// The features that our profile was written for; without the line a newer kernel would deny what the profile does not
/// know of (apparmor.d(5), "Feature ABI").
const ABI: &str = "/etc/apparmor.d/abi/3.0";

/// How long the parser may take. It needs a tenth of a second, on a slow machine some.
const DEADLINE: Duration = Duration::from_secs(30);

/// Sees to it that the kernel has this profile: ours is loaded if it has not, another has to be there.
pub(crate) fn ready(profile: &str) -> Result<(), Error> {
    if loaded(profile)? {
        return Ok(());
    }
    if profile == DEFAULT_PROFILE {
        return load(&default_profile(Path::new(ABI).exists()));
    }
    Err(Error::Precondition(format!(
        "apparmor profile not found {profile:?}: it is not loaded on this host; load it there with apparmor_parser -r"
    )))
}

fn loaded(profile: &str) -> Result<bool, Error> {
    let text = fs::read_to_string(LOADED).map_err(|error| Error::failed(format!("read {LOADED}"), error))?;
    Ok(is_listed(&text, profile))
}

/// The mode is the last word in parentheses; a name may have blanks and parentheses of its own.
fn is_listed(text: &str, profile: &str) -> bool {
    text.lines().any(|line| line.rsplit_once(" (").is_some_and(|(name, _)| name == profile))
}

/// Gives a profile to the kernel, in place of one of the same name.
fn load(profile: &str) -> Result<(), Error> {
    let parser = "apparmor_parser";
    let failed = |error: io::Error| Error::failed(format!("load apparmor profile {DEFAULT_PROFILE}"), error);
    // -K: what the profile compiles to is not kept, as nothing would ever remove it. /sbin is not in every unit's PATH.
    let mut child = Command::new(Path::new("/sbin").join(parser))
        .args(["-K", "-r"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .process_group(0)
        .spawn()
        .map_err(failed)?;
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).expect("a child's pid is positive");
    let text = profile.to_owned();
    let mut stdin = child.stdin.take().expect("it was asked for");
    // Less than a pipe holds, so this does not wait for the parser. Should it end without reading, its status tells.
    let written = stdin.write_all(text.as_bytes());
    drop(stdin);
    let ended = wait_until_ended(pid);
    if !matches!(ended, Ok(true)) {
        // It was given a group of its own.
        kill_process_group(pid, Signal::KILL).map_err(|error| failed(error.into()))?;
    }
    let status = child.wait().map_err(failed)?;
    let mut told = String::new();
    if let Some(stderr) = &mut child.stderr {
        stderr.take(4096).read_to_string(&mut told).map_err(failed)?;
    }
    if !ended.map_err(failed)? {
        return Err(Error::Deadline(format!("{parser}: not done within {DEADLINE:?}")));
    }
    if !status.success() {
        return Err(failed(io::Error::other(format!("{parser}: {status}: {}", told.trim()))));
    }
    written.map_err(failed)
}

/// Whether the process ended in time.
fn wait_until_ended(pid: Pid) -> io::Result<bool> {
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let deadline = Timespec { tv_sec: i64::try_from(DEADLINE.as_secs()).expect("it is small"), tv_nsec: 0 };
    loop {
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&deadline)) {
            Err(rustix::io::Errno::INTR) => {}
            ready => return Ok(ready? > 0),
        }
    }
}

/// The profile of RuntimeDefault, in the language of apparmor.d(5): all that a process may do by its capabilities and the
/// file modes, except mounting, and except the files of /proc and /sys that are the host's. Processes of the same profile
/// may signal and trace each other, and the host may signal them.
///
/// Rules see the path that a file has after symlinks, so `/proc/self` is a number to them.
fn default_profile(abi: bool) -> String {
    let abi = if abi { "abi <abi/3.0>,\n" } else { "" };
    format!(
        r#"{abi}profile {DEFAULT_PROFILE} flags=(attach_disconnected,mediate_deleted) {{
  network,
  capability,
  file,
  umount,
  deny mount,

  signal (receive) peer=unconfined,
  # Distributions confine the runtimes, by these names.
  signal (receive) peer=runc,
  signal (receive) peer=crun,
  signal (send, receive) peer={DEFAULT_PROFILE},
  ptrace (trace, read, tracedby, readby) peer={DEFAULT_PROFILE},

  # Of /proc only processes' own files, and the limits of shared memory, which are the pod's.
  deny /proc/[^1-9s]** wl,
  deny /proc/s[^y]** wl,
  deny /proc/sy[^s]** wl,
  deny /proc/sys[^/]** wl,
  deny /proc/sys/[^k]** wl,
  deny /proc/sys/k[^e]** wl,
  deny /proc/sys/kernel/[^s]** wl,
  deny /proc/sys/kernel/s[^h]** wl,
  deny /proc/sys/kernel/sh[^m]** wl,
  deny /proc/sysrq-trigger rwklx,
  deny /proc/kcore rwklx,

  # Of /sys only control groups, which have a mount of their own with its own mode.
  deny /sys/[^f]** wklx,
  deny /sys/f[^s]** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/fs/c[^g]** wklx,
  deny /sys/fs/cg[^r]** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_profile_is_listed_by_its_whole_name() {
        let text = "cri-containerd.apparmor.d (enforce)\n/usr/bin/odd (name) (complain)\nlong (unconfined)\n";
        for (name, listed) in [
            ("cri-containerd.apparmor.d", true),
            ("/usr/bin/odd (name)", true),
            ("/usr/bin/odd", false),
            ("cri-containerd", false),
            ("long", true),
            ("", false),
        ] {
            assert_eq!(is_listed(text, name), listed, "{name:?}");
        }
    }

    #[test]
    fn the_default_profile_fits_into_a_pipe() {
        assert!(default_profile(true).len() < 4096);
        assert!(default_profile(true).starts_with("abi "));
        assert!(default_profile(false).starts_with("profile cri-containerd.apparmor.d "));
    }

    /// Needs a kernel with AppArmor, and says so where there is none.
    #[test]
    fn privileged_the_default_profile_is_loaded_and_another_is_named() {
        if !crate::host::Host::read().unwrap().apparmor {
            eprintln!("left out: this host has no AppArmor");
            return;
        }
        load(&default_profile(Path::new(ABI).exists())).unwrap();
        ready(DEFAULT_PROFILE).unwrap();
        let error = ready("there-is-none").unwrap_err().to_string();
        assert!(error.starts_with("apparmor profile not found \"there-is-none\""), "{error}");
        assert!(load("profile broken {").unwrap_err().chain().contains("apparmor_parser: exit status"));
    }
}
