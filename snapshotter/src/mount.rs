//! Mounts as values, and the directories behind them.
//!
//! Other processes execute these mounts, so they hold only what the kernel understands: absolute paths and its own
//! option names.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// One mount to make, in containerd's form: `bind` with `rbind` and `ro` or `rw`, or `overlay` with its directories.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub fstype: String,
    pub source: String,
    pub options: Vec<String>,
}

impl Mount {
    /// A tree shown as it is; `access` is `rw` or `ro`.
    pub(crate) fn bind(source: &Path, access: &str) -> Mount {
        let source = source.to_string_lossy().into_owned();
        Mount { fstype: "bind".into(), source, options: vec![access.into(), "rbind".into()] }
    }
}

/// The directories of a writable snapshot, for writing a layer without mounting it.
///
/// With parents, what the layer deletes is written to `upper` as an overlayfs whiteout. Without parents, `upper` is all
/// there is (a first layer, or the full copy of the native snapshotter), and what the layer deletes is really removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDirs {
    pub upper: PathBuf,
    /// The layers below, top first.
    pub parents: Vec<PathBuf>,
}

/// The directories behind `mounts`, if they are one writable bind mount or one writable overlay.
pub fn layer_dirs(mounts: &[Mount]) -> Option<LayerDirs> {
    let [mount] = mounts else { return None };
    let value = |name: &str| mount.options.iter().find_map(|o| o.strip_prefix(name)?.strip_prefix('='));
    match mount.fstype.as_str() {
        "bind" if mount.options.iter().all(|o| o != "ro") => {
            Some(LayerDirs { upper: PathBuf::from(&mount.source), parents: Vec::new() })
        }
        "overlay" => Some(LayerDirs { upper: unescape(value("upperdir")?), parents: split_lower(value("lowerdir")?) }),
        _ => None,
    }
}

/// Splits at each `:` that the kernel would split at: one with a backslash before it belongs to the path.
fn split_lower(list: &str) -> Vec<PathBuf> {
    let mut paths = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (at, byte) in list.bytes().enumerate() {
        if byte == b':' && !escaped {
            paths.push(unescape(&list[start..at]));
            start = at + 1;
        }
        escaped = byte == b'\\' && !escaped;
    }
    paths.push(unescape(&list[start..]));
    paths
}

fn unescape(path: &str) -> PathBuf {
    let mut plain = String::with_capacity(path.len());
    let mut chars = path.chars();
    while let Some(c) = chars.next() {
        // A backslash at the very end stands for itself.
        plain.push(if c == '\\' { chars.next().unwrap_or('\\') } else { c });
    }
    PathBuf::from(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(fstype: &str, source: &str, options: &[&str]) -> Vec<Mount> {
        let options = options.iter().map(|o| (*o).to_owned()).collect();
        vec![Mount { fstype: fstype.into(), source: source.into(), options }]
    }

    fn dirs(upper: &str, parents: &[&str]) -> Option<LayerDirs> {
        Some(LayerDirs { upper: upper.into(), parents: parents.iter().map(PathBuf::from).collect() })
    }

    #[test]
    fn a_writable_bind_is_a_layer_without_parents() {
        assert_eq!(layer_dirs(&mount("bind", "/s/1/fs", &["rw", "rbind"])), dirs("/s/1/fs", &[]));
    }

    #[test]
    fn an_overlay_lists_its_parents_top_first() {
        let options = ["index=off", "workdir=/s/3/work", "upperdir=/s/3/fs", "lowerdir=/s/2/fs:/s/1/fs"];
        assert_eq!(layer_dirs(&mount("overlay", "overlay", &options)), dirs("/s/3/fs", &["/s/2/fs", "/s/1/fs"]));
    }

    #[test]
    fn an_escaped_colon_belongs_to_the_path() {
        let options = [r"upperdir=/a\:b", r"lowerdir=/c\:d:/e\\:/f"];
        assert_eq!(layer_dirs(&mount("overlay", "overlay", &options)), dirs("/a:b", &["/c:d", r"/e\", "/f"]));
    }

    #[test]
    fn what_cannot_be_written_has_no_layer_directories() {
        assert_eq!(layer_dirs(&mount("bind", "/s/1/fs", &["ro", "rbind"])), None);
        assert_eq!(layer_dirs(&mount("overlay", "overlay", &["lowerdir=/a:/b"])), None);
        assert_eq!(layer_dirs(&mount("erofs", "/layer", &["loop"])), None);
        assert_eq!(layer_dirs(&[]), None);
    }
}
