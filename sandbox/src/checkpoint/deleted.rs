//! What a container had removed of its image, where the layer of its checkpoint does not tell: CRI-O and Podman pack only what
//! there was, and name the rest in a list of paths.
//!
//! Nothing is removed by those paths here. They become a layer that deletes, which goes the way of all layers: into the
//! container's own, beneath a descriptor, and following nothing.

use std::path::{Component, Path};

use tar::{Builder, EntryType, Header};

/// Before the name of what an entry of a layer deletes.
const WHITEOUT: &str = ".wh.";

/// The layer that deletes what a list in JSON names; `None` for an empty list.
pub(crate) fn layer(list: &[u8]) -> Result<Option<Vec<u8>>, String> {
    let paths: Vec<String> =
        serde_json::from_slice(list).map_err(|error| format!("it is no list of paths: {error}"))?;
    if paths.is_empty() {
        return Ok(None);
    }
    let failed = |error: std::io::Error| format!("make a layer of it: {error}");
    let mut tar = Builder::new(Vec::new());
    for path in &paths {
        let entry = entry(path).ok_or_else(|| format!("{path:?} in it is no path of a file"))?;
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Regular);
        header.set_size(0);
        header.set_mode(0);
        tar.append_data(&mut header, entry, std::io::empty()).map_err(failed)?;
    }
    tar.into_inner().map(Some).map_err(failed)
}

/// The name of the entry that deletes a path, which stands below the root with or without a slash before it.
fn entry(path: &str) -> Option<String> {
    let path = path.strip_prefix('/').unwrap_or(path);
    if path.is_empty() || path.contains('\0') || path.len() > 4096 {
        return None;
    }
    let parts: Option<Vec<&str>> = Path::new(path)
        .components()
        .map(|part| match part {
            Component::Normal(name) => name.to_str().filter(|name| !name.starts_with(WHITEOUT)),
            _ => None,
        })
        .collect();
    let (name, parents) =
        parts.as_deref().and_then(<[&str]>::split_last).map(|(name, parents)| (*name, parents.join("/")))?;
    let deleted = format!("{WHITEOUT}{name}");
    Some(if parents.is_empty() { deleted } else { format!("{parents}/{deleted}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_becomes_the_entry_that_deletes_it() {
        for (path, expected) in [
            ("/etc/group", Some("etc/.wh.group")),
            ("etc/group", Some("etc/.wh.group")),
            ("/bin", Some(".wh.bin")),
            ("/var//lib/x/", Some("var/lib/.wh.x")),
            ("/", None),
            ("", None),
            ("/../etc/shadow", None),
            ("/etc/../../x", None),
            ("/a/.wh.b", None),
            ("/.wh..wh..opq", None),
            ("/a\0b", None),
        ] {
            assert_eq!(entry(path).as_deref(), expected, "{path:?}");
        }
    }

    #[test]
    fn a_list_becomes_a_layer_and_what_is_no_list_is_refused() {
        assert_eq!(layer(b"[]").unwrap(), None);
        let long = format!("/{}/file", "directory/".repeat(40));
        let made = layer(serde_json::to_string(&["/etc/group", &long]).unwrap().as_bytes()).unwrap().unwrap();
        let mut archive = tar::Archive::new(made.as_slice());
        let names = archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().display().to_string());
        let names: Vec<String> = names.collect();
        assert_eq!(names, ["etc/.wh.group".to_owned(), format!("{}.wh.file", "directory/".repeat(40))]);
        for bad in ["", "{}", "[1]", "null", "[\"/../x\"]", "[\"/\"]"] {
            assert!(layer(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
