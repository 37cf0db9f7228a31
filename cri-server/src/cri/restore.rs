//! CreateContainer from a checkpoint: which image of a request names one, and which image the container then has.
//!
//! As containerd and CRI-O have it: the absolute path of an archive, or a pulled image with one layer, the archive's content,
//! whose manifest says so. The image that the container ran on has to be on the node; nothing is pulled, and no image is
//! made or named after what an archive says.

use std::{path::PathBuf, sync::Arc};

use image_service::images::Image;
use sandbox::checkpoint::Restore;
use tonic::Status;

use super::{
    Cri,
    errors::{image_status, sandbox_status, shortened},
};

/// By which manifests say that an image is a checkpoint, and of which container: containerd's name, CRI-O's, Podman's.
const ANNOTATIONS: [&str; 3] = [
    "org.criu.checkpoint.container.name",
    "io.kubernetes.cri-o.annotations.checkpoint.name",
    "io.podman.annotations.checkpoint.name",
];

impl Cri {
    /// The archive of the checkpoint that a request's image names, if it names one. `found` is the image of that name.
    pub(super) async fn checkpoint_of(
        &self,
        requested: &str,
        found: Option<Arc<Image>>,
    ) -> Result<Option<PathBuf>, Status> {
        let archive = match found {
            Some(image) => {
                let (images, namespace) = (self.images.clone(), self.namespace.clone());
                let looked =
                    tokio::task::spawn_blocking(move || images.annotated_layer(&namespace, &image, &ANNOTATIONS));
                let looked = looked.await.map_err(|error| Status::internal(format!("look at an image: {error}")))?;
                looked.map_err(image_status)?
            }
            None => requested.starts_with('/').then(|| PathBuf::from(requested)),
        };
        if archive.is_some() && !self.config.runtime.restores {
            return Err(Status::unimplemented(shortened(format!(
                "image {requested:?} is a checkpoint, and restoring containers is switched off; restore = true in \
                 [plugins.\"io.windlass.v1.checkpoints\"] allows it"
            ))));
        }
        Ok(archive)
    }

    /// The image that the container of a checkpoint ran on, which has to be on the node.
    pub(super) async fn base_of(&self, requested: &str, archive: PathBuf) -> Result<(Arc<Image>, Restore), Status> {
        let base = self.pods.base_of_checkpoint(archive.clone()).await.map_err(sandbox_status)?;
        // A reference tells the very content that the container ran on. Where there is one, another image that has the name
        // by now will not do.
        let wanted = if base.reference.is_empty() { &base.name } else { &base.reference };
        let Some(found) = self.images.resolve(&self.namespace, wanted) else {
            let named = if base.name.is_empty() { wanted } else { &base.name };
            return Err(Status::not_found(shortened(format!(
                "checkpoint {requested:?} is of a container of image {wanted:?}, which is not on the node; pull {named:?} first"
            ))));
        };
        Ok((found, Restore { archive, name: requested.to_owned() }))
    }
}

/// An image is never pulled here: the kubelet has pulled it, or its policy is Never.
pub(super) fn absent(image: &str) -> Status {
    Status::not_found(shortened(format!("image {image:?} is not on the node; pull it first")))
}
