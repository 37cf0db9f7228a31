//! An image: layers and a config, pushed to the fixture registry as an OCI manifest or as a part of an index.

use serde_json::{Value, json};

use crate::{
    layer::{Layer, sha256},
    push::Pusher,
};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// The platform that the machine which runs the tests pulls for.
pub fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What an image is made of.
#[derive(Clone, Debug, Default)]
pub struct Image {
    pub layers: Vec<Layer>,
    pub architecture: String,
    /// `config` of the OCI image config: `Entrypoint`, `Cmd`, `Env`, `User`, `WorkingDir`, `StopSignal`.
    pub config: Value,
    /// Of the manifest.
    pub annotations: Value,
}

/// What a push made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pushed {
    pub repository: String,
    /// Of the manifest.
    pub digest: String,
    /// Of the config: what CRI calls the image's id.
    pub id: String,
    pub layers: Vec<String>,
    architecture: String,
    size: usize,
}

impl Image {
    pub fn new(layers: Vec<Layer>, config: Value) -> Image {
        Image { layers, architecture: host_architecture().to_owned(), config, annotations: json!({}) }
    }

    /// Pushes under a tag.
    pub fn push(&self, pusher: &Pusher, repository: &str, tag: &str) -> Pushed {
        let config = self.config_bytes();
        let id = sha256(&config);
        pusher.blob(repository, &id, &config);
        let digests: Vec<String> = self.layers.iter().map(|layer| sha256(&layer.blob)).collect();
        for (layer, digest) in self.layers.iter().zip(&digests) {
            pusher.blob(repository, digest, &layer.blob);
        }
        let described =
            |kind: &str, digest: &str, size: usize| json!({"mediaType": kind, "digest": digest, "size": size});
        let layers = self.layers.iter().zip(&digests);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": described(CONFIG, &id, config.len()),
            "layers": layers.map(|(layer, digest)| described(LAYER, digest, layer.blob.len())).collect::<Vec<_>>(),
            "annotations": self.annotations,
        });
        let manifest = serde_json::to_vec(&manifest).unwrap();
        pusher.manifest(repository, tag, MANIFEST, &manifest);
        Pushed {
            repository: repository.to_owned(),
            digest: sha256(&manifest),
            id,
            layers: digests,
            architecture: self.architecture.clone(),
            size: manifest.len(),
        }
    }

    fn config_bytes(&self) -> Vec<u8> {
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = json!({
            "created": "2024-01-01T00:00:00Z",
            "architecture": self.architecture,
            "os": "linux",
            "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [],
        });
        serde_json::to_vec(&config).unwrap()
    }
}

/// Publishes an index over images of the same repository, one a platform, and gives its digest.
pub fn push_index(pusher: &Pusher, repository: &str, tag: &str, images: &[Pushed]) -> String {
    let manifests: Vec<Value> = images
        .iter()
        .map(|image| {
            json!({
                "mediaType": MANIFEST,
                "digest": image.digest,
                "size": image.size,
                "platform": {"os": "linux", "architecture": image.architecture},
            })
        })
        .collect();
    let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": manifests});
    let index = serde_json::to_vec(&index).unwrap();
    pusher.manifest(repository, tag, INDEX, &index);
    sha256(&index)
}
