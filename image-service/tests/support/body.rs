//! Bodies that arrive whole, in part, slowly or never.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, BoxStream, Stream, StreamExt};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;

pub(super) type Body = BoxBody<Bytes, std::io::Error>;

pub(super) fn full(bytes: Bytes) -> Body {
    Full::new(bytes).map_err(|never: Infallible| match never {}).boxed()
}

/// A body that never goes on after its bytes. `at_end` is called when they are sent.
pub(super) fn hold(bytes: Bytes, at_end: impl FnOnce() + Send + 'static) -> Body {
    let frames = stream::unfold((Some(bytes), Some(at_end)), |(rest, at_end)| async move {
        match rest {
            Some(bytes) if !bytes.is_empty() => Some((Ok(Frame::data(bytes)), (None, at_end))),
            _ => {
                // The server writes what it has when a body has nothing more for the moment.
                tokio::task::yield_now().await;
                at_end.into_iter().for_each(|at_end| at_end());
                std::future::pending().await
            }
        }
    });
    boxed(frames)
}

/// A body that breaks off after its bytes, which are sent first.
pub(super) fn cut(bytes: Bytes) -> Body {
    let frames = stream::unfold(Some(bytes), |rest| async move {
        match rest {
            Some(bytes) if !bytes.is_empty() => Some((Ok(Frame::data(bytes)), Some(Bytes::new()))),
            Some(_) => {
                tokio::task::yield_now().await;
                Some((Err(std::io::Error::other("cut by the test")), None))
            }
            None => None,
        }
    });
    boxed(frames)
}

/// A body of which a piece comes after each pause.
pub(super) fn drip(bytes: Bytes, piece: usize, pause: Duration) -> Body {
    let frames = stream::unfold(bytes, move |mut rest| async move {
        if rest.is_empty() {
            return None;
        }
        tokio::time::sleep(pause).await;
        let first = rest.split_to(piece.clamp(1, rest.len()));
        Some((Ok(Frame::data(first)), rest))
    });
    boxed(frames)
}

/// A body whose length is not known before its end.
pub(super) fn unsized_body(bytes: Bytes) -> Body {
    boxed(stream::iter([Ok(Frame::data(bytes))]))
}

fn boxed(frames: impl Stream<Item = Result<Frame<Bytes>, std::io::Error>> + Send + 'static) -> Body {
    BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(frames.boxed()))))
}

/// A boxed body has to be `Sync`, and a stream made of a future is not.
struct SyncStream(Mutex<BoxStream<'static, Result<Frame<Bytes>, std::io::Error>>>);

impl Stream for SyncStream {
    type Item = Result<Frame<Bytes>, std::io::Error>;

    fn poll_next(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.get_mut().0.get_mut().unwrap_or_else(PoisonError::into_inner).as_mut().poll_next(context)
    }
}
