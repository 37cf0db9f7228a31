//! Snapshots as layers of overlayfs: each holds only what it adds, and a mount stacks them.
//!
//! ```text
//! <root>/snapshots/<id>/fs     what this layer adds (upperdir, later a lowerdir)
//! <root>/snapshots/<id>/work   the kernel's scratch space, only for active snapshots
//! ```
//!
//! A snapshot with a single layer is a bind mount: an overlay needs two.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use store::Store;

use crate::local::{Layout, Local};
use crate::rows::Row;
use crate::snapshots::Snapshots;
use crate::{Error, Info, Kind, Mount};

/// The label that names the upper directory, for tools that look into containers from the host.
const UPPERDIR_LABEL: &str = "containerd.io/snapshot/overlay.upperdir";
/// Present if the overlay module knows inode indexes; `Y` if it uses them unless told otherwise.
const INDEX_PARAMETER: &str = "/sys/module/overlay/parameters/index";

pub type Overlayfs = Local<Layers>;

/// What each snapshot adds, stacked by overlayfs.
pub struct Layers {
    options: OverlayfsOptions,
    /// Options of every overlay mount on this kernel.
    kernel: Vec<&'static str>,
}

/// `[plugins."io.containerd.snapshotter.v1.overlayfs"]` of the configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OverlayfsOptions {
    /// More options for overlay mounts, such as `volatile` or `metacopy=on`.
    pub mount_options: Vec<String>,
    /// Adds a label with the upper directory to what stat and list say.
    pub upperdir_label: bool,
}

impl Overlayfs {
    pub fn open(root: &Path, store: Store, options: OverlayfsOptions) -> Result<Overlayfs, Error> {
        let root_text = root.to_str().filter(|text| !text.contains([':', ',', '\\']));
        if root_text.is_none() {
            let what = format!("use {} as the overlayfs snapshotter's root", root.display());
            return Err(Error::failed(
                what,
                "mount options cannot carry a path with ':', ',', '\\' or bytes not UTF-8",
            ));
        }
        let snapshots = Snapshots::open("overlayfs", root, store, "fs")?;
        Ok(Local::new(snapshots, Layers { options, kernel: kernel_options() }))
    }
}

impl Layout for Layers {
    const REBASES: bool = true;

    fn fill(&self, snapshots: &Snapshots, row: &Row, dir: &Path) -> Result<(), Error> {
        let failed = |source| Error::failed(format!("make the layer in {}", dir.display()), source);
        // The top of the tree is the upper layer's own directory, so it takes over what the parent's looks like.
        let (owner, mode) = match row.parents.first() {
            Some(parent) => {
                let like = fs::metadata(snapshots.content(*parent)).map_err(failed)?;
                (Some((like.uid(), like.gid())), like.mode() & 0o7777)
            }
            None => (None, 0o755),
        };
        let layer = dir.join("fs");
        make(&layer, mode).map_err(failed)?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::lchown(&layer, Some(uid), Some(gid)).map_err(failed)?;
        }
        if row.info.kind == Kind::Active {
            make(&dir.join("work"), 0o711).map_err(failed)?;
        }
        Ok(())
    }

    fn mounts(&self, snapshots: &Snapshots, row: &Row) -> Vec<Mount> {
        let own = snapshots.content(row.id);
        match (row.info.kind, row.parents.as_slice()) {
            (Kind::Active, []) => vec![Mount::bind(&own, "rw")],
            (_, []) => vec![Mount::bind(&own, "ro")],
            (Kind::View, [only]) => vec![Mount::bind(&snapshots.content(*only), "ro")],
            (kind, parents) => {
                let mut options: Vec<String> = self.kernel.iter().map(|o| (*o).to_owned()).collect();
                options.extend(self.options.mount_options.iter().cloned());
                if kind == Kind::Active {
                    options.push(format!("workdir={}", to_text(snapshots.dir(row.id).join("work"))));
                    options.push(format!("upperdir={}", to_text(own)));
                }
                let lower: Vec<String> = parents.iter().map(|id| to_text(snapshots.content(*id))).collect();
                options.push(format!("lowerdir={}", lower.join(":")));
                vec![Mount { fstype: "overlay".into(), source: "overlay".into(), options }]
            }
        }
    }

    fn rebased(&self, snapshots: &Snapshots, row: &Row) -> Result<(), Error> {
        let Some(parent) = row.parents.first() else { return Ok(()) };
        let (own, parent) = (snapshots.content(row.id), snapshots.content(*parent));
        look_alike(&own, &parent)
            .map_err(|source| Error::failed(format!("make {} look like {}", own.display(), parent.display()), source))
    }

    fn info(&self, snapshots: &Snapshots, mut row: Row) -> Info {
        if self.options.upperdir_label {
            row.info.labels.insert(UPPERDIR_LABEL.into(), to_text(snapshots.content(row.id)));
        }
        row.info
    }
}

/// Gives a directory the owner and the mode of another.
fn look_alike(own: &Path, other: &Path) -> std::io::Result<()> {
    let (now, like) = (fs::metadata(own)?, fs::metadata(other)?);
    if (now.uid(), now.gid()) != (like.uid(), like.gid()) {
        std::os::unix::fs::lchown(own, Some(like.uid()), Some(like.gid()))?;
    }
    if now.mode() != like.mode() {
        fs::set_permissions(own, fs::Permissions::from_mode(like.mode() & 0o7777))?;
    }
    Ok(())
}

/// Makes a directory with exactly this mode, whatever the umask.
fn make(dir: &Path, mode: u32) -> std::io::Result<()> {
    fs::create_dir(dir)?;
    fs::set_permissions(dir, fs::Permissions::from_mode(mode))
}

/// Paths below the root are UTF-8, because the root was checked to be.
fn to_text(path: PathBuf) -> String {
    path.to_string_lossy().into_owned()
}

fn kernel_options() -> Vec<&'static str> {
    let read = |path| fs::read_to_string(path).unwrap_or_default();
    let mut options = Vec::new();
    // An index ties lower layers to one upper layer; ours are shared between containers.
    if read(INDEX_PARAMETER).trim() == "Y" {
        options.push("index=off");
    }
    if in_user_namespace(&read("/proc/self/uid_map")) {
        // Only user.* attributes can be written there.
        options.push("userxattr");
    }
    options
}

/// The first user namespace maps every id to itself.
fn in_user_namespace(uid_map: &str) -> bool {
    !uid_map.is_empty() && uid_map.split_whitespace().ne(["0", "0", "4294967295"])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_user_namespace_is_told_from_others() {
        assert!(!in_user_namespace("         0          0 4294967295\n"));
        assert!(!in_user_namespace(""));
        assert!(in_user_namespace("         0     100000      65536\n"));
        assert!(in_user_namespace("         0       1000          1\n         1     100000      65536\n"));
    }
}
