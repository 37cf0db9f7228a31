//! ttrpc over unix sockets: unary calls and streams, many at a time on one connection.
//!
//! ```text
//! Client ── frame::Writer ──► socket ──► server: one reader per connection, one task per call
//!        ◄─ reader ───────── socket ◄── frame::Writer
//! ```
//!
//! Invariants: a frame's payload is at most 4 MiB; a client's stream ids are odd and increase; every queue is bounded;
//! when a connection is lost every call on it ends with `Unavailable`.
//! The protocol has no flow control within a connection: a stream whose reader is slow stalls its connection, so
//! long-lived streams belong on connections of their own.

mod client;
mod frame;
mod server;
mod status;
mod stream;

pub use client::{CallOptions, Client};
pub use frame::MAX_PAYLOAD;
pub use server::{Handler, serve, serve_connection};
pub use status::{Code, Status};
pub use stream::{Receiver, Sender, Stream};

use std::{future::Future, pin::Pin, time::Duration};

use bytes::Bytes;

/// A future on the heap, as a trait object's method has to return it.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// One request as the server hands it to its handler.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub service: String,
    pub method: String,
    pub payload: Bytes,
    /// How long the caller still waits, if it said so.
    pub timeout: Option<Duration>,
    pub metadata: Vec<(String, String)>,
}

impl Call {
    /// The value of the first metadata entry of that name.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// The request message.
    pub fn decode<M: prost::Message + Default>(&self) -> Result<M, Status> {
        M::decode(self.payload.clone())
            .map_err(|error| Status::invalid(format!("request of {}/{}: {error}", self.service, self.method)))
    }

    /// The answer for a service or method that is not served.
    pub fn unimplemented(&self) -> Status {
        Status::new(Code::Unimplemented, format!("{}/{} is not served here", self.service, self.method))
    }
}

#[cfg(test)]
mod tests;
