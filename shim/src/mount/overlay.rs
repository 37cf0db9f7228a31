//! Overlay mounts: one option string when it fits, else the new mount API.
//!
//! mount(2) copies at most one page of options, and fsconfig(2) takes at most 256 bytes a value, so a long list of
//! layers goes in as one `lowerdir+` a layer (kernel 6.5), and a layer path too long for that as a descriptor.

use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags};

use super::options::Options;
use super::{MountError, failed};

/// The longest value that fsconfig(2) takes for a string, without its terminator.
const LONGEST_VALUE: usize = 255;

pub(super) fn mount(source: &str, options: &Options, target: &Path) -> Result<(), MountError> {
    let data = options.data_string(target)?;
    // The kernel cuts what does not fit silently at one byte less than a page, so the terminator is counted.
    if data.as_bytes_with_nul().len() < rustix::param::page_size() {
        return rustix::mount::mount(source, target, "overlay", options.flags, data.as_c_str())
            .map_err(|errno| failed("mount overlay on", target, errno));
    }
    let step = |what: &'static str| move |errno| failed(what, target, errno);
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC).map_err(step("open overlay for"))?;
    rustix::mount::fsconfig_set_string(&context, "source", source).map_err(step("set the source of"))?;
    for option in &options.data {
        set(&context, option)
            .map_err(|errno| failed(&format!("set {:?} of overlay for", key(option)), target, errno))?;
    }
    if options.flags.contains(MountFlags::RDONLY) {
        rustix::mount::fsconfig_set_flag(&context, "ro").map_err(step("set ro of"))?;
    }
    rustix::mount::fsconfig_create(&context).map_err(step("create overlay for"))?;
    let mounted = rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes(options.flags))
        .map_err(step("mount overlay for"))?;
    rustix::mount::move_mount(&mounted, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .map_err(step("move overlay to"))
}

fn key(option: &str) -> &str {
    option.split_once('=').map_or(option, |(key, _)| key)
}

fn set(context: &impl std::os::fd::AsFd, option: &str) -> rustix::io::Result<()> {
    match option.split_once('=') {
        Some(("lowerdir", layers)) => layers.split(':').try_for_each(|layer| set_path(context, "lowerdir+", layer)),
        Some((key @ ("upperdir" | "workdir"), path)) => set_path(context, key, path),
        // Quotes keep a comma from ending an option of a string; here it ends none.
        Some((key, value)) if value.len() > 1 && value.starts_with('"') && value.ends_with('"') => {
            rustix::mount::fsconfig_set_string(context, key, &value[1..value.len() - 1])
        }
        Some((key, value)) => rustix::mount::fsconfig_set_string(context, key, value),
        None => rustix::mount::fsconfig_set_flag(context, option),
    }
}

fn set_path(context: &impl std::os::fd::AsFd, key: &str, path: &str) -> rustix::io::Result<()> {
    if path.len() <= LONGEST_VALUE {
        return rustix::mount::fsconfig_set_string(context, key, path);
    }
    let layer = rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::mount::fsconfig_set_fd(context, key, layer)
}

fn attributes(flags: MountFlags) -> MountAttrFlags {
    [
        (MountFlags::RDONLY, MountAttrFlags::MOUNT_ATTR_RDONLY),
        (MountFlags::NOSUID, MountAttrFlags::MOUNT_ATTR_NOSUID),
        (MountFlags::NODEV, MountAttrFlags::MOUNT_ATTR_NODEV),
        (MountFlags::NOEXEC, MountAttrFlags::MOUNT_ATTR_NOEXEC),
        (MountFlags::NOATIME, MountAttrFlags::MOUNT_ATTR_NOATIME),
        (MountFlags::NODIRATIME, MountAttrFlags::MOUNT_ATTR_NODIRATIME),
    ]
    .into_iter()
    .filter(|(flag, _)| flags.contains(*flag))
    .fold(MountAttrFlags::empty(), |all, (_, attribute)| all | attribute)
}
