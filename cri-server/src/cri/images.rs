//! ListImages, ImageStatus, PullImage, RemoveImage, ImageFsInfo.

use std::{collections::HashMap, time::SystemTime};

use ::image_service::{
    UnpackAgainError,
    images::{FsUsage, Image, PullError, PullRequest},
};
use api::cri;
use serde_json::json;
use tokio_stream::Stream;
use tonic::Status;

use super::{
    Cri, chain,
    convert::{
        image::{parse_credentials, to_image},
        invalid, parse_name, required, to_nanoseconds,
    },
    errors::{image_status, pull_status, shortened},
    list::in_batches,
};

impl Cri {
    pub(super) fn list_images(&self, request: cri::ListImagesRequest) -> cri::ListImagesResponse {
        cri::ListImagesResponse { images: self.image_items(request.filter) }
    }

    pub(super) fn stream_images(
        &self,
        request: cri::StreamImagesRequest,
    ) -> impl Stream<Item = Result<cri::StreamImagesResponse, Status>> + Send + use<> {
        in_batches(self.image_items(request.filter), |images| cri::StreamImagesResponse { images })
    }

    fn image_items(&self, filter: Option<cri::ImageFilter>) -> Vec<cri::Image> {
        let wanted = filter.and_then(|filter| filter.image).map(|image| image.image).unwrap_or_default();
        let images = if wanted.is_empty() {
            self.images.list(&self.namespace)
        } else {
            self.images.resolve(&self.namespace, &wanted).into_iter().collect()
        };
        images.iter().map(|image| to_image(image)).collect()
    }

    /// An unknown image is an empty answer, not an error: the kubelet asks before it pulls.
    pub(super) fn image_status(&self, request: cri::ImageStatusRequest) -> Result<cri::ImageStatusResponse, Status> {
        let name = parse_name(required(request.image, "image")?.image, "image.image")?;
        let Some(image) = self.images.resolve(&self.namespace, &name) else {
            return Ok(cri::ImageStatusResponse::default());
        };
        let mut info = HashMap::new();
        if request.verbose {
            info.insert("info".to_owned(), json!({"chainID": image.chain_id, "imageSpec": image.config}).to_string());
        }
        Ok(cri::ImageStatusResponse { image: Some(to_image(&image)), info })
    }

    pub(super) async fn pull_image(&self, request: cri::PullImageRequest) -> Result<cri::PullImageResponse, Status> {
        let image = required(request.image, "image")?;
        let handler = if request.sandbox_config.is_some() { image.runtime_handler.as_str() } else { "" };
        let request = PullRequest {
            namespace: self.namespace.clone(),
            reference: parse_name(image.image, "image.image")?,
            credentials: parse_credentials(request.auth),
            snapshotter: self.pods.handlers().get(handler).and_then(|handler| handler.snapshotter.clone()),
        };
        let pulled = self.images.pull(request).await.map_err(|error| match error {
            PullError::Reference { .. } => invalid("image.image", chain(&error)),
            error => pull_status(error),
        })?;
        Ok(cri::PullImageResponse { image_ref: pulled.id.to_string() })
    }

    pub(super) async fn remove_image(
        &self,
        request: cri::RemoveImageRequest,
    ) -> Result<cri::RemoveImageResponse, Status> {
        let name = parse_name(required(request.image, "image")?.image, "image.image")?;
        self.images.remove(&self.namespace, &name).await.map_err(image_status)?;
        Ok(cri::RemoveImageResponse {})
    }

    /// Images and writable layers share the snapshotters' file systems, so both lists name them, the default's first.
    pub(super) fn image_fs_info(&self) -> cri::ImageFsInfoResponse {
        let to_usage = |usage: FsUsage| cri::FilesystemUsage {
            // Every change is in the sum at once. The kubelet evicts for a want of disk only on figures newer than the last.
            timestamp: to_nanoseconds(SystemTime::now()),
            fs_id: Some(cri::FilesystemIdentifier { mountpoint: usage.mountpoint.display().to_string() }),
            used_bytes: Some(cri::UInt64Value { value: usage.used_bytes }),
            inodes_used: Some(cri::UInt64Value { value: usage.inodes_used }),
        };
        let usages: Vec<cri::FilesystemUsage> = self.images.filesystems().into_iter().map(to_usage).collect();
        cri::ImageFsInfoResponse { image_filesystems: usages.clone(), container_filesystems: usages }
    }

    /// An image that was pulled for another handler is unpacked once more for the snapshotter of this one.
    pub(super) async fn unpack_for(
        &self,
        image: &Image,
        snapshotter: Option<&str>,
        handler: &str,
    ) -> Result<(), Status> {
        self.images.unpack_into(&self.namespace, image, snapshotter).await.map_err(|error| match error {
            UnpackAgainError::NotKept { .. } => {
                let handler = if handler.is_empty() { &self.config.runtime.default_handler } else { handler };
                let what = format!("{error}; pull the image again with image.runtime_handler = {handler:?}");
                Status::failed_precondition(shortened(what))
            }
            UnpackAgainError::Failed { .. } => Status::unknown(shortened(chain(&error))),
        })
    }
}
