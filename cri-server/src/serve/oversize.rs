//! A request over the configured size, answered with gRPC's code for that.
//!
//! The server beneath says OutOfRange, before any handler runs. ResourceExhausted is what gRPC's list of codes has for it
//! (`grpc/doc/statuscodes.md`), and what clients of a containerd know. No handler of ours answers OutOfRange.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use http::{HeaderValue, Request, Response};
use tonic::{Code, body::Body};
use tower::Service;

/// Turns the one code into the other.
#[derive(Clone, Debug)]
pub(crate) struct Oversize<S>(pub(crate) S);

impl<S, B> Service<Request<B>> for Oversize<S>
where
    S: Service<Request<B>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let answer = self.0.call(request);
        Box::pin(async move {
            let mut response = answer.await?;
            if let Some(code) = response.headers_mut().get_mut("grpc-status")
                && Code::from_bytes(code.as_bytes()) == Code::OutOfRange
            {
                *code = HeaderValue::from(Code::ResourceExhausted as i32);
            }
            Ok(response)
        })
    }
}
