//! Images and archives of them by hand, right ones and wrong ones.

use std::io::Write;

use serde_json::{Value, json};
use windlass_image_service::digest::Digest;

use crate::node::architecture;

/// An image of uncompressed layers.
#[derive(Clone)]
pub(crate) struct Packed {
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
    pub(crate) layers: Vec<Vec<u8>>,
}

/// One layer of these files.
pub(crate) fn image(files: &[(&str, &str)]) -> Packed {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_ustar();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    Packed::new("app", vec![tar.into_inner().unwrap()], None)
}

impl Packed {
    fn new(command: &str, layers: Vec<Vec<u8>>, diff_ids: Option<Vec<String>>) -> Packed {
        let right = || layers.iter().map(|layer| Digest::sha256_of(layer).to_string()).collect();
        let config = json!({
            "architecture": architecture(),
            "os": "linux",
            "config": {"Cmd": [command]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids.unwrap_or_else(right)},
        });
        let config = config.to_string().into_bytes();
        let described = |media_type: &str, bytes: &[u8]| json!({"mediaType": media_type, "digest": Digest::sha256_of(bytes), "size": bytes.len()});
        let listed: Vec<Value> =
            layers.iter().map(|layer| described("application/vnd.oci.image.layer.v1.tar", layer)).collect();
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": described("application/vnd.oci.image.config.v1+json", &config),
            "layers": listed,
        });
        Packed { manifest: manifest.to_string().into_bytes(), config, layers }
    }

    pub(crate) fn with_layers(&self, layers: Vec<Vec<u8>>) -> Packed {
        Packed::new("app", layers, None)
    }

    pub(crate) fn with_command(&self, command: &str) -> Packed {
        Packed::new(command, self.layers.clone(), None)
    }

    pub(crate) fn with_diff_ids(&self, diff_ids: &[&str]) -> Packed {
        Packed::new("app", self.layers.clone(), Some(diff_ids.iter().map(|id| (*id).to_owned()).collect()))
    }

    pub(crate) fn config_digest(&self) -> Digest {
        Digest::sha256_of(&self.config)
    }

    pub(crate) fn manifest_digest(&self) -> Digest {
        Digest::sha256_of(&self.manifest)
    }

    pub(crate) fn descriptor(&self) -> Value {
        json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": self.manifest_digest(),
            "size": self.manifest.len(),
        })
    }

    /// Digests of all blobs, sorted.
    pub(crate) fn blobs(&self) -> Vec<String> {
        let all = [&self.config, &self.manifest].into_iter().chain(&self.layers);
        let mut digests: Vec<String> = all.map(|bytes| Digest::sha256_of(bytes).to_string()).collect();
        digests.sort();
        digests
    }
}

/// A layout with this image and these annotations.
pub(crate) fn named(image: &Packed, annotations: &[(&str, &str)]) -> Pack {
    let mut pack = Pack::default();
    pack.blobs(image);
    let mut entry = image.descriptor();
    for (key, value) in annotations {
        entry["annotations"][key] = (*value).into();
    }
    pack.index(&[entry])
}

/// An archive in the making.
pub(crate) struct Pack(tar::Builder<Vec<u8>>, Vec<String>);

impl Default for Pack {
    fn default() -> Pack {
        Pack(tar::Builder::new(Vec::new()), Vec::new())
    }
}

impl Pack {
    pub(crate) fn file(mut self, name: &str, content: &[u8]) -> Pack {
        self.add(name, content);
        self
    }

    pub(crate) fn directory(mut self, name: &str) -> Pack {
        self.append(name, tar::EntryType::Directory, "", b"");
        self
    }

    pub(crate) fn symlink(mut self, name: &str, target: &str) -> Pack {
        self.append(name, tar::EntryType::Symlink, target, b"");
        self
    }

    pub(crate) fn node(mut self, name: &str) -> Pack {
        self.append(name, tar::EntryType::Char, "", b"");
        self
    }

    pub(crate) fn blobs(&mut self, image: &Packed) {
        for bytes in [&image.manifest, &image.config].into_iter().chain(&image.layers) {
            let name = format!("blobs/sha256/{}", Digest::sha256_of(bytes).hex());
            // Two images may share a blob, which an archive holds once.
            if !self.1.contains(&name) {
                self.add(&name, bytes);
            }
        }
    }

    /// Adds an index or a manifest as a blob, and gives its descriptor.
    pub(crate) fn document(&mut self, value: &Value) -> Value {
        let bytes = value.to_string().into_bytes();
        let digest = Digest::sha256_of(&bytes);
        self.add(&format!("blobs/sha256/{}", digest.hex()), &bytes);
        json!({"mediaType": "application/vnd.oci.image.index.v1+json", "digest": digest, "size": bytes.len()})
    }

    pub(crate) fn index(self, entries: &[Value]) -> Pack {
        let index = json!({"schemaVersion": 2, "manifests": entries}).to_string();
        self.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#).file("index.json", index.as_bytes())
    }

    /// In Docker's form: the same name for two images.
    pub(crate) fn name_two(self, name: &str, one: &Packed, two: &Packed) -> Pack {
        let entries = json!([
            {"Config": "one", "RepoTags": [name], "Layers": ["layer.tar"]},
            {"Config": "two", "RepoTags": [name], "Layers": ["layer.tar"]},
        ]);
        self.file("one", &one.config)
            .file("two", &two.config)
            .file("layer.tar", &one.layers[0])
            .file("manifest.json", entries.to_string().as_bytes())
    }

    pub(crate) fn tar(self) -> Vec<u8> {
        self.0.into_inner().unwrap()
    }

    fn add(&mut self, name: &str, content: &[u8]) {
        self.1.push(name.to_owned());
        self.append(name, tar::EntryType::Regular, "", content);
    }

    /// The builder refuses names that lead out, so the header is filled by hand.
    fn append(&mut self, name: &str, kind: tar::EntryType, target: &str, content: &[u8]) {
        let mut header = tar::Header::new_ustar();
        let field = &mut header.as_old_mut().name;
        field[..name.len()].copy_from_slice(name.as_bytes());
        header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.0.append(&header, content).unwrap();
    }
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The names of an archive's entries.
pub(crate) fn names(archive: &[u8]) -> Vec<String> {
    let mut archive = tar::Archive::new(archive);
    archive.entries().unwrap().map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned()).collect()
}
