//! A blob as a stream that outlives broken connections.
//!
//! When a body ends early, the stream goes on with a `Range` request at the byte it has reached, on the same host and
//! then on the next ones. Digests are not checked here: whoever takes the bytes hashes them on the way.

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use http::header::CONTENT_RANGE;
use http::{HeaderValue, Method, StatusCode};
use reqwest::Response;

use super::descriptor::Descriptor;
use super::endpoint::{Endpoint, Request};
use super::error::{Attempt, Error, Outcome, Tried};
use super::session::Session;
use super::transport::shown_error;

/// How often a stream may break off without having brought at least [`PROGRESS`] bytes since the last time.
const MAX_BREAKS: usize = 5;
const PROGRESS: u64 = 1024 * 1024;

/// The bytes of one blob from the wanted offset to its end. After an error nothing more comes.
pub type BlobStream = BoxStream<'static, Result<Bytes, Error>>;

/// Opens the stream; the first connection is made before this returns, so that a missing blob is told at once.
pub(crate) async fn open(session: Session, descriptor: Descriptor, offset: u64) -> Result<BlobStream, Error> {
    if offset > descriptor.size {
        let what = format!("byte {offset} of a blob of {} bytes was asked for", descriptor.size);
        return Err(Error::Invalid { reference: session.shown(&descriptor), what });
    }
    if offset == descriptor.size {
        return Ok(stream::empty().boxed());
    }
    let mut reader =
        Reader { session, descriptor, offset, host: 0, breaks: 0, mark: offset, tried: Tried::default(), body: None };
    reader.connect().await?;
    let chunks = stream::try_unfold(reader, async |mut reader| Ok(reader.next().await?.map(|chunk| (chunk, reader))));
    Ok(chunks.boxed())
}

struct Reader {
    session: Session,
    descriptor: Descriptor,
    /// The next byte that is wanted.
    offset: u64,
    /// The position, in the session's order, of the host to ask next.
    host: usize,
    breaks: usize,
    /// The offset at the last break.
    mark: u64,
    tried: Tried,
    body: Option<Body>,
}

struct Body {
    response: Response,
    /// Bytes to drop first, because the host does not know ranges.
    skip: u64,
    shown: String,
}

impl Reader {
    /// The next bytes, or none at the end of the blob.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if self.offset == self.descriptor.size {
                return Ok(None);
            }
            let Some(body) = &mut self.body else {
                self.connect().await?;
                continue;
            };
            let broken = match body.response.chunk().await {
                Ok(Some(mut chunk)) => {
                    let skipped = body.skip.min(chunk.len() as u64);
                    body.skip -= skipped;
                    // The cut is at most the chunk's own length.
                    let chunk = chunk.split_off(usize::try_from(skipped).unwrap_or(chunk.len()));
                    if chunk.is_empty() {
                        continue;
                    }
                    if self.offset + chunk.len() as u64 > self.descriptor.size {
                        Outcome::Unacceptable(format!("sent more than the {} bytes of it", self.descriptor.size))
                    } else {
                        self.offset += chunk.len() as u64;
                        return Ok(Some(chunk));
                    }
                }
                Ok(None) => Outcome::Transport(format!("body ended after {} bytes", self.offset)),
                Err(error) => Outcome::Transport(format!("body broke off: {}", shown_error(&error))),
            };
            self.broke(broken)?;
        }
    }

    /// Counts a break and moves on to the next host if this one brought nothing, or little since its last.
    fn broke(&mut self, outcome: Outcome) -> Result<(), Error> {
        let host = self.body.take().map(|body| body.shown).unwrap_or_default();
        tracing::debug!(host, digest = %self.descriptor.digest, offset = self.offset, %outcome, "blob broke off");
        self.breaks = if self.offset - self.mark >= PROGRESS { 1 } else { self.breaks + 1 };
        // One break may be an accident. Who breaks off again soon is left, though it brings a little each time.
        if self.offset == self.mark || self.breaks > 1 || matches!(outcome, Outcome::Unacceptable(_)) {
            self.host += 1;
        }
        self.mark = self.offset;
        self.tried.0.push(Attempt { host, outcome });
        if self.breaks > MAX_BREAKS {
            return Err(self.error());
        }
        Ok(())
    }

    /// Connects to the first host, from the current one on, that sends the wanted bytes.
    async fn connect(&mut self) -> Result<(), Error> {
        if self.offset == 0 && self.host == 0 && self.breaks == 0 && self.connect_foreign().await {
            return Ok(());
        }
        let session = self.session.clone();
        let endpoints = session.in_order();
        let count = endpoints.len();
        for turn in 0..count {
            let endpoint = endpoints[(self.host + turn) % count];
            match self.ask(endpoint, turn + 1 == count).await {
                Ok(body) => {
                    self.host += turn;
                    self.body = Some(body);
                    return Ok(());
                }
                Err(outcome) => {
                    tracing::debug!(host = %endpoint.host(), digest = %self.descriptor.digest, %outcome, "no blob");
                    self.tried.0.push(Attempt { host: endpoint.host().to_string(), outcome });
                }
            }
        }
        Err(self.error())
    }

    async fn ask(&self, endpoint: &Endpoint, is_last: bool) -> Result<Body, Outcome> {
        let request = Request {
            method: Method::GET,
            path: format!("blobs/{}", self.descriptor.digest),
            accept: HeaderValue::from_static("*/*"),
            offset: self.offset,
        };
        let response = endpoint.send(&request, is_last).await?;
        self.accept(response, endpoint.host().to_string())
    }

    /// Checks that a response holds the wanted part of a blob of the right size.
    fn accept(&self, response: Response, shown: String) -> Result<Body, Outcome> {
        let size = self.descriptor.size;
        let skip = match response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
                let start =
                    range.and_then(|range| range.trim().strip_prefix("bytes ")?.split('-').next()?.parse().ok());
                if start != Some(self.offset) {
                    return Err(Outcome::Unacceptable("sent another range than was asked for".to_owned()));
                }
                0
            }
            _ => self.offset,
        };
        let expected = size - self.offset + skip;
        match response.content_length() {
            Some(length) if length != expected => {
                Err(Outcome::Unacceptable(format!("offers {length} bytes where {expected} are due")))
            }
            _ => Ok(Body { response, skip, shown }),
        }
    }

    /// Tries the other places that a foreign layer names. Nothing of ours goes to them.
    async fn connect_foreign(&mut self) -> bool {
        for url in self.descriptor.urls.clone() {
            match self.session.foreign(&url).await {
                Ok(response) => match self.accept(response, "foreign layer's own address".to_owned()) {
                    Ok(body) => {
                        self.body = Some(body);
                        return true;
                    }
                    Err(outcome) => self.tried.0.push(Attempt { host: "foreign layer's own address".into(), outcome }),
                },
                Err(outcome) => self.tried.0.push(Attempt { host: "foreign layer's own address".into(), outcome }),
            }
        }
        false
    }

    fn error(&mut self) -> Error {
        self.session.error(&self.descriptor, std::mem::take(&mut self.tried))
    }
}
