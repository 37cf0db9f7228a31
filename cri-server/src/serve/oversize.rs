//! A request over the configured size, answered with gRPC's code for that.
//!
//! The server beneath says OutOfRange, before any handler runs. ResourceExhausted is what gRPC's list of codes has for it
//! (`grpc/doc/statuscodes.md`), and what clients of a containerd know. No handler of ours answers OutOfRange.

use http::{HeaderValue, Response};
use tonic::Code;

/// The answer with the right code in place of the server's.
pub(crate) fn told<B>(mut answer: Response<B>) -> Response<B> {
    if let Some(code) = answer.headers_mut().get_mut("grpc-status")
        && Code::from_bytes(code.as_bytes()) == Code::OutOfRange
    {
        *code = HeaderValue::from(Code::ResourceExhausted as i32);
    }
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_request_out_of_range_gets_another_code() {
        for (given, expected) in [("11", "8"), ("0", "0"), ("3", "3"), ("8", "8")] {
            let answer = Response::builder().header("grpc-status", given).body(()).unwrap();
            assert_eq!(told(answer).headers()["grpc-status"], expected);
        }
        assert!(told(Response::new(())).headers().is_empty());
    }
}
