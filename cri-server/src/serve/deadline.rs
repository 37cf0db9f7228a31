//! The client's deadline, answered as such.
//!
//! The server beneath ends a call after the time in its `grpc-timeout`, but with the code Cancelled, which a client takes
//! for an answer when it comes before its own clock rings. Nothing that matters stops here: no effect runs on a call.

use std::{
    convert::Infallible,
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use http::{HeaderMap, Request, Response};
use tonic::{Status, body::Body};
use tower::Service;

/// Ends calls at their deadline with DeadlineExceeded.
#[derive(Clone, Debug)]
pub(crate) struct Deadline<S>(pub(crate) S);

impl<S, B> Service<Request<B>> for Deadline<S>
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
        let limit = timeout(request.headers());
        let answer = self.0.call(request);
        // Begun now, before the server's own, and looked at before it.
        let bounded = limit.map(tokio::time::sleep);
        Box::pin(async move {
            match bounded {
                None => answer.await,
                Some(deadline) => tokio::select! {
                    biased;
                    answer = answer => answer,
                    () = deadline => Ok(Status::deadline_exceeded("context deadline exceeded").into_http()),
                },
            }
        })
    }
}

/// `grpc-timeout`: at most eight digits and a unit. What is neither is no deadline, as for the server beneath.
fn timeout(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let value: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(value * 3600),
        "M" => Duration::from_secs(value * 60),
        "S" => Duration::from_secs(value),
        "m" => Duration::from_millis(value),
        "u" => Duration::from_micros(value),
        "n" => Duration::from_nanos(value),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_unit_of_the_protocol_is_read() {
        let read =
            |text: &str| timeout(&HeaderMap::from_iter([("grpc-timeout".parse().unwrap(), text.parse().unwrap())]));
        assert_eq!(read("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(read("3M"), Some(Duration::from_secs(180)));
        assert_eq!(read("99999999S"), Some(Duration::from_secs(99_999_999)));
        assert_eq!(read("5m"), Some(Duration::from_millis(5)));
        assert_eq!(read("993u"), Some(Duration::from_micros(993)));
        assert_eq!(read("7n"), Some(Duration::from_nanos(7)));
        for none in ["", "S", "5", "5x", "123456789S", "-5S"] {
            assert_eq!(read(none), None, "{none:?}");
        }
        assert_eq!(timeout(&HeaderMap::new()), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_that_outlasts_its_deadline_is_answered_with_its_code() {
        let never = tower::service_fn(|_: Request<()>| async {
            std::future::pending::<()>().await;
            Ok::<_, Infallible>(Response::new(Body::empty()))
        });
        let request = Request::builder().header("grpc-timeout", "1m").body(()).unwrap();
        let answer = Deadline(never).call(request).await.unwrap();
        assert_eq!(answer.headers()["grpc-status"], "4");
    }
}
