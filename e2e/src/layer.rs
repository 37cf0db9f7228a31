//! A layer: a gzip tar made in memory, with everything a Dockerfile can leave in one (whiteouts, opaque directories, hard
//! links, extended attributes).

use std::{collections::BTreeSet, io::Write, path::Path};

use aws_lc_rs::digest;
use flate2::{Compression, write::GzEncoder};
use tar::{Builder, EntryType, Header};

/// A finished layer.
#[derive(Clone, Debug)]
pub struct Layer {
    /// gzip.
    pub blob: Vec<u8>,
    /// Of the tar inside, as the image's config has it.
    pub diff_id: String,
}

/// `sha256:` and the digest in hex.
pub fn sha256(bytes: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, bytes);
    digest.as_ref().iter().fold("sha256:".to_owned(), |text, byte| text + &format!("{byte:02x}"))
}

impl Layer {
    /// Compresses a tar as it is.
    pub fn of_tar(tar: &[u8]) -> Layer {
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(tar).unwrap();
        Layer { blob: encoder.finish().unwrap(), diff_id: sha256(tar) }
    }
}

/// Collects entries, in the order in which they are given; parents are added by themselves.
pub struct LayerBuilder {
    tar: Builder<Vec<u8>>,
    directories: BTreeSet<String>,
}

impl Default for LayerBuilder {
    fn default() -> LayerBuilder {
        LayerBuilder::new()
    }
}

impl LayerBuilder {
    pub fn new() -> LayerBuilder {
        LayerBuilder { tar: Builder::new(Vec::new()), directories: BTreeSet::new() }
    }

    pub fn directory(mut self, path: &str, mode: u32) -> Self {
        self.parents(path);
        self.append_directory(path, mode);
        self
    }

    pub fn file(mut self, path: &str, mode: u32, content: &[u8]) -> Self {
        self.parents(path);
        self.tar.append_data(&mut header(EntryType::Regular, mode, content.len()), path, content).unwrap();
        self
    }

    pub fn symlink(mut self, path: &str, target: &str) -> Self {
        self.parents(path);
        self.tar.append_link(&mut header(EntryType::Symlink, 0o777, 0), path, target).unwrap();
        self
    }

    /// A second name of a file that this layer or one below has.
    pub fn hard_link(mut self, path: &str, target: &str) -> Self {
        self.parents(path);
        self.tar.append_link(&mut header(EntryType::Link, 0o644, 0), path, target).unwrap();
        self
    }

    /// A file with an extended attribute, in the form of GNU tar and of libarchive's SCHILY keys.
    pub fn file_with_xattr(mut self, path: &str, content: &[u8], name: &str, value: &[u8]) -> Self {
        self.parents(path);
        self.tar.append_pax_extensions([(format!("SCHILY.xattr.{name}").as_str(), value)]).unwrap();
        self.tar.append_data(&mut header(EntryType::Regular, 0o644, content.len()), path, content).unwrap();
        self
    }

    /// Takes away what the layers below have at `path`.
    pub fn whiteout(self, path: &str) -> Self {
        let at = Path::new(path);
        let name = at.file_name().unwrap().to_str().unwrap();
        let marker = at.with_file_name(format!(".wh.{name}"));
        self.file(marker.to_str().unwrap(), 0o644, b"")
    }

    /// Takes away all that the layers below have in the directory.
    pub fn opaque(self, directory: &str) -> Self {
        self.file(&format!("{directory}/.wh..wh..opq"), 0o644, b"")
    }

    pub fn build(self) -> Layer {
        Layer::of_tar(&self.tar.into_inner().unwrap())
    }

    fn parents(&mut self, path: &str) {
        let ancestors: Vec<_> = Path::new(path).ancestors().skip(1).collect();
        for ancestor in ancestors.into_iter().rev() {
            let ancestor = ancestor.to_str().unwrap();
            if !ancestor.is_empty() && !self.directories.contains(ancestor) {
                self.append_directory(ancestor, 0o755);
            }
        }
    }

    fn append_directory(&mut self, path: &str, mode: u32) {
        self.directories.insert(path.to_owned());
        let name = format!("{path}/");
        self.tar.append_data(&mut header(EntryType::Directory, mode, 0), name, &[][..]).unwrap();
    }
}

fn header(kind: EntryType, mode: u32, size: usize) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size as u64);
    header.set_uid(0);
    header.set_gid(0);
    // Any fixed time: two builds of a fixture have the same digest.
    header.set_mtime(1_700_000_000);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layer_names_its_parents_once_and_its_tar_by_digest() {
        let layer = LayerBuilder::new().file("a/b/one", 0o644, b"1").whiteout("a/b/two").opaque("a/c").build();
        let mut archive = tar::Archive::new(flate2::read::GzDecoder::new(&layer.blob[..]));
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(names, ["a/", "a/b/", "a/b/one", "a/b/.wh.two", "a/c/", "a/c/.wh..wh..opq"]);
        let again = LayerBuilder::new().file("a/b/one", 0o644, b"1").whiteout("a/b/two").opaque("a/c").build();
        assert_eq!(again.diff_id, layer.diff_id);
    }
}
