//! The ImageService as tonic calls it: one line an RPC.

use std::pin::Pin;

use api::cri::{image_service_server::ImageService, *};
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::Cri;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ImageService for Cri {
    async fn list_images(&self, request: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        Ok(Response::new(Cri::list_images(self, request.into_inner())))
    }

    type StreamImagesStream = Pin<Box<dyn Stream<Item = Result<StreamImagesResponse, Status>> + Send>>;
    async fn stream_images(&self, request: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        Ok(Response::new(Box::pin(Cri::stream_images(self, request.into_inner()))))
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        Cri::image_status(self, request.into_inner()).map(Response::new)
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        Cri::pull_image(self, request.into_inner()).await.map(Response::new)
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        Cri::remove_image(self, request.into_inner()).await.map(Response::new)
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        Ok(Response::new(Cri::image_fs_info(self)))
    }
}
