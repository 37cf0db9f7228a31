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

use store::{Namespace, Store};

use crate::rows::Row;
use crate::snapshots::{Snapshots, Swept, to_infos};
use crate::{Error, Info, Kind, Labels, Mount, Snapshotter, Usage};

/// The label that names the upper directory, for tools that look into containers from the host.
const UPPERDIR_LABEL: &str = "containerd.io/snapshot/overlay.upperdir";
/// Present if the overlay module knows inode indexes; `Y` if it uses them unless told otherwise.
const INDEX_PARAMETER: &str = "/sys/module/overlay/parameters/index";

pub struct Overlayfs {
    snapshots: Snapshots,
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
        Ok(Overlayfs { snapshots, options, kernel: kernel_options() })
    }

    /// At boot, before anything else uses the snapshotter: makes rows and directories agree again.
    pub fn sweep(&self) -> Result<Swept, Error> {
        self.snapshots.sweep()
    }

    fn create(&self, key: (&Namespace, &str), parent: Option<&str>, kind: Kind, labels: &Labels) -> Made {
        let row = self.snapshots.create(key, parent, kind, labels, |row, dir| self.fill(row, dir, kind))?;
        Ok(self.to_mounts(&row))
    }

    fn fill(&self, row: &Row, dir: &Path, kind: Kind) -> Result<(), Error> {
        let failed = |source| Error::failed(format!("make the layer in {}", dir.display()), source);
        // The top of the tree is the upper layer's own directory, so it takes over what the parent's looks like.
        let (owner, mode) = match row.parents.first() {
            Some(parent) => {
                let like = fs::metadata(self.snapshots.content(*parent)).map_err(failed)?;
                (Some((like.uid(), like.gid())), like.mode() & 0o7777)
            }
            None => (None, 0o755),
        };
        let layer = dir.join("fs");
        make(&layer, mode).map_err(failed)?;
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::lchown(&layer, Some(uid), Some(gid)).map_err(failed)?;
        }
        if kind == Kind::Active {
            make(&dir.join("work"), 0o711).map_err(failed)?;
        }
        Ok(())
    }

    /// Makes the top of the tree look as if the snapshot had been made on its parent.
    fn take_over(&self, row: &Row) -> std::io::Result<()> {
        let Some(parent) = row.parents.first() else { return Ok(()) };
        let (own, like) = (self.snapshots.content(row.id), fs::metadata(self.snapshots.content(*parent))?);
        let now = fs::metadata(&own)?;
        if (now.uid(), now.gid()) != (like.uid(), like.gid()) {
            std::os::unix::fs::lchown(&own, Some(like.uid()), Some(like.gid()))?;
        }
        if now.mode() != like.mode() {
            fs::set_permissions(&own, fs::Permissions::from_mode(like.mode() & 0o7777))?;
        }
        Ok(())
    }

    fn to_mounts(&self, row: &Row) -> Vec<Mount> {
        let layer = |id: i64| to_text(self.snapshots.content(id));
        let (own, parents) = (layer(row.id), &row.parents);
        match (row.info.kind, parents.as_slice()) {
            (Kind::Active, []) => vec![bind(own, "rw")],
            (_, []) => vec![bind(own, "ro")],
            (Kind::View, [only]) => vec![bind(layer(*only), "ro")],
            (kind, parents) => {
                let mut options: Vec<String> = self.kernel.iter().map(|o| (*o).to_owned()).collect();
                options.extend(self.options.mount_options.iter().cloned());
                if kind == Kind::Active {
                    options.push(format!("workdir={}", to_text(self.snapshots.dir(row.id).join("work"))));
                    options.push(format!("upperdir={own}"));
                }
                let lower: Vec<String> = parents.iter().map(|id| layer(*id)).collect();
                options.push(format!("lowerdir={}", lower.join(":")));
                vec![Mount { fstype: "overlay".into(), source: "overlay".into(), options }]
            }
        }
    }

    fn labelled(&self, mut row: Row) -> Row {
        if self.options.upperdir_label {
            row.info.labels.insert(UPPERDIR_LABEL.into(), to_text(self.snapshots.content(row.id)));
        }
        row
    }
}

type Made = Result<Vec<Mount>, Error>;

impl Snapshotter for Overlayfs {
    fn stat(&self, ns: &Namespace, key: &str) -> Result<Info, Error> {
        Ok(self.labelled(self.snapshots.find(ns, key)?).info)
    }

    fn list(&self, ns: &Namespace) -> Result<Vec<Info>, Error> {
        Ok(to_infos(self.snapshots.list(ns)?.into_iter().map(|row| self.labelled(row)).collect()))
    }

    fn prepare(&self, ns: &Namespace, key: &str, parent: Option<&str>, labels: &Labels) -> Made {
        self.create((ns, key), parent, Kind::Active, labels)
    }

    fn can_rebase(&self) -> bool {
        true
    }

    fn rebase(&self, ns: &Namespace, key: &str, parent: &str) -> Made {
        let row = self.snapshots.rebase(ns, key, parent)?;
        self.take_over(&row).map_err(|source| Error::failed(format!("put snapshot {key:?} onto {parent}"), source))?;
        Ok(self.to_mounts(&row))
    }

    fn view(&self, ns: &Namespace, key: &str, parent: Option<&str>, labels: &Labels) -> Made {
        self.create((ns, key), parent, Kind::View, labels)
    }

    fn mounts(&self, ns: &Namespace, key: &str) -> Made {
        let row = self.snapshots.find(ns, key)?;
        match row.info.kind {
            Kind::Active | Kind::View => Ok(self.to_mounts(&row)),
            Kind::Committed => Err(Error::WrongKind { key: key.to_owned(), kind: Kind::Committed, wanted: "mounted" }),
        }
    }

    fn commit(&self, ns: &Namespace, name: &str, key: &str, labels: &Labels) -> Result<(), Error> {
        self.snapshots.commit(ns, name, key, labels)
    }

    fn remove(&self, ns: &Namespace, key: &str) -> Result<(), Error> {
        self.snapshots.remove(ns, key)
    }

    fn usage(&self, ns: &Namespace, key: &str) -> Result<Usage, Error> {
        self.snapshots.usage(ns, key)
    }

    fn discard(&self, ns: &Namespace, key: &str) -> Result<(), Error> {
        self.snapshots.discard(ns, key)
    }

    fn empty_trash(&self) -> Result<(), Error> {
        self.snapshots.empty_trash()
    }

    fn total(&self, ns: &Namespace) -> Result<Usage, Error> {
        self.snapshots.total(ns)
    }

    fn mark_durable(&self) -> Result<usize, Error> {
        self.snapshots.mark_durable()
    }
}

fn bind(source: String, access: &str) -> Mount {
    Mount { fstype: "bind".into(), source, options: vec![access.into(), "rbind".into()] }
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
