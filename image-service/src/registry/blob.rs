//! A blob as a stream that outlives broken connections, and comes over several at once where that is wanted.
//!
//! ```text
//! fetch ─► one Reader from the offset to the end
//!      or  Readers of one part each, some at once, their parts put in order: only if the first answer was to the range
//! Reader: connect ─► read ─► broken off? ask for the rest (Range), the same host first, then the next ones
//! ```
//!
//! Digests are not checked here: whoever takes the bytes hashes them on the way, and tells the session which hosts not to
//! trust. [`Watch`] knows them.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use http::header::CONTENT_RANGE;
use http::{HeaderValue, Method, StatusCode};
use reqwest::Response;

use super::descriptor::Descriptor;
use super::endpoint::{Endpoint, Range, Request};
use super::error::{Attempt, Error, Outcome, Tried};
use super::session::Session;
use super::transport::shown_error;

/// How often a stream may break off without having brought at least [`PROGRESS`] bytes since the last time.
const MAX_BREAKS: usize = 5;
const PROGRESS: u64 = 1024 * 1024;
/// Addresses of a foreign layer that are tried: an image may name as many as it likes, of whomever it likes.
const MAX_URLS: usize = 4;
/// The bytes of one blob from the wanted offset to its end. After an error nothing more comes.
pub type BlobStream = BoxStream<'static, Result<Bytes, Error>>;

/// One blob over several connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Parts {
    /// Bytes of one request; they are kept in memory until their turn comes.
    pub size: u64,
    /// Requests at once.
    pub at_once: usize,
}

/// What is known of a fetch while it runs.
#[derive(Debug, Clone, Default)]
pub struct Watch {
    inner: Arc<Watched>,
}

#[derive(Debug, Default)]
struct Watched {
    /// Bytes that came over any connection, in order or not.
    received: AtomicU64,
    /// Who sent any of it.
    served: Mutex<BTreeSet<Source>>,
}

/// Who sent bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Source {
    /// A host of the session, by its position in the session.
    Host(usize),
    /// The address that a foreign layer names.
    Foreign,
}

impl Watch {
    pub fn received(&self) -> u64 {
        self.inner.received.load(Ordering::Relaxed)
    }

    pub(crate) fn served(&self) -> BTreeSet<Source> {
        self.inner.served.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, source: Source, count: usize) {
        self.inner.received.fetch_add(count as u64, Ordering::Relaxed);
        self.inner.served.lock().unwrap_or_else(PoisonError::into_inner).insert(source);
    }
}

/// Opens the stream; the first connection is made before this returns, so that a missing blob is told at once.
pub(crate) async fn open(
    session: Session,
    descriptor: Descriptor,
    offset: u64,
    parts: Option<Parts>,
    watch: Watch,
) -> Result<BlobStream, Error> {
    if offset > descriptor.size {
        let what = format!("byte {offset} of a blob of {} bytes was asked for", descriptor.size);
        return Err(Error::Invalid { reference: session.shown(&descriptor), what });
    }
    if offset == descriptor.size {
        return Ok(stream::empty().boxed());
    }
    let size = descriptor.size;
    let parts = parts.filter(|parts| parts.size > 0 && parts.at_once > 1 && size - offset > parts.size);
    let end = parts.map_or(size, |parts| offset + parts.size);
    let mut first = Reader::new(session, descriptor, offset, end, watch);
    first.takes_all = true;
    first.connect().await?;
    first.takes_all = false;
    match parts {
        Some(parts) if first.end < size => Ok(in_parts(first, parts)),
        _ => Ok(first.stream()),
    }
}

/// The first part, which is being received, with the others behind it. As many as are wanted at once run, the first one
/// included, and none is started before there is room for what it brings.
fn in_parts(first: Reader, parts: Parts) -> BlobStream {
    let (session, descriptor, watch) = (first.session.clone(), first.descriptor.clone(), first.watch.clone());
    let size = descriptor.size;
    let starts = std::iter::successors(Some(first.end), move |start| Some(start + parts.size));
    let readers = starts.take_while(move |start| *start < size).map(move |start| {
        let end = size.min(start + parts.size);
        Reader::new(session.clone(), descriptor.clone(), start, end, watch.clone())
    });
    let bring = async |mut reader: Reader| {
        let mut pieces = Vec::new();
        while let Some(piece) = reader.next().await? {
            pieces.push(piece);
        }
        Ok(pieces)
    };
    let whole = stream::iter(std::iter::once(first).chain(readers)).map(bring).buffered(parts.at_once);
    whole
        .flat_map(|brought: Result<Vec<Bytes>, Error>| match brought {
            Ok(pieces) => stream::iter(pieces.into_iter().map(Ok).collect::<Vec<_>>()),
            Err(error) => stream::iter(vec![Err(error)]),
        })
        .boxed()
}

/// What a part of content is, of what (RFC 9110, section 14.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ContentRange {
    first: u64,
    last: u64,
    total: Option<u64>,
}

/// Reads `bytes <first>-<last>/<total>`, where the total may be `*`.
fn parse_content_range(text: &str) -> Option<ContentRange> {
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse::<u64>().ok())?;
    let (unit, rest) = text.trim().split_once(' ')?;
    let (range, total) = rest.trim().split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last) = (number(first)?, number(last)?);
    let total = if total == "*" { None } else { Some(number(total)?) };
    let fits = first <= last && total.is_none_or(|total| last < total);
    (unit.eq_ignore_ascii_case("bytes") && fits).then_some(ContentRange { first, last, total })
}

struct Reader {
    session: Session,
    descriptor: Descriptor,
    /// The next byte that is wanted.
    offset: u64,
    /// Where this reader's part ends.
    end: u64,
    /// Whether it becomes the only one if a host does not know ranges.
    takes_all: bool,
    /// The position, in the session's order, of the host to ask next.
    host: usize,
    breaks: usize,
    /// The offset at the last break.
    mark: u64,
    tried: Tried,
    watch: Watch,
    body: Option<Body>,
}

struct Body {
    response: Response,
    source: Source,
    /// Bytes to drop first, because the host does not know ranges.
    skip: u64,
    shown: String,
}

impl Reader {
    fn new(session: Session, descriptor: Descriptor, offset: u64, end: u64, watch: Watch) -> Reader {
        Reader {
            session,
            descriptor,
            offset,
            end,
            takes_all: false,
            host: 0,
            breaks: 0,
            mark: offset,
            tried: Tried::default(),
            watch,
            body: None,
        }
    }

    fn stream(self) -> BlobStream {
        let chunks = stream::try_unfold(self, async |mut reader| Ok(reader.next().await?.map(|chunk| (chunk, reader))));
        chunks.boxed()
    }

    /// The next bytes, or none at the end of the part.
    async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        loop {
            if self.offset == self.end {
                return Ok(None);
            }
            let Some(body) = &mut self.body else {
                self.connect().await?;
                continue;
            };
            let broken = match body.response.chunk().await {
                Ok(Some(mut chunk)) => {
                    self.watch.note(body.source, chunk.len());
                    let skipped = body.skip.min(chunk.len() as u64);
                    body.skip -= skipped;
                    // The cut is at most the chunk's own length.
                    let mut chunk = chunk.split_off(usize::try_from(skipped).unwrap_or(chunk.len()));
                    if chunk.is_empty() {
                        continue;
                    }
                    let wanted = self.end - self.offset;
                    if chunk.len() as u64 > wanted && self.end == self.descriptor.size {
                        Outcome::Unacceptable(format!("sent more than the {} bytes of it", self.descriptor.size))
                    } else {
                        chunk.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
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

    async fn ask(&mut self, endpoint: &Endpoint, is_last: bool) -> Result<Body, Outcome> {
        let is_whole = self.offset == 0 && self.end == self.descriptor.size;
        // To the very end without naming it, as every host knows it that knows ranges.
        let last = (self.end < self.descriptor.size).then(|| self.end - 1);
        let request = Request {
            method: Method::GET,
            path: format!("blobs/{}", self.descriptor.digest),
            accept: HeaderValue::from_static("*/*"),
            range: (!is_whole).then_some(Range { first: self.offset, last }),
        };
        let response = endpoint.send(&request, is_last).await?;
        let source = Source::Host(self.session.position(endpoint));
        self.accept(response, source, endpoint.host().to_string())
    }

    /// Checks that a response holds the wanted part of a blob of the right size.
    fn accept(&mut self, response: Response, source: Source, shown: String) -> Result<Body, Outcome> {
        let size = self.descriptor.size;
        let is_part = response.status() == StatusCode::PARTIAL_CONTENT;
        if is_part {
            let range = response.headers().get(CONTENT_RANGE).and_then(|range| range.to_str().ok());
            let told = range.and_then(parse_content_range);
            let is_wanted = |told: ContentRange| {
                (told.first, told.last) == (self.offset, self.end - 1) && told.total.is_none_or(|total| total == size)
            };
            if !told.is_some_and(is_wanted) {
                return Err(Outcome::Unacceptable("sent another range than was asked for".to_owned()));
            }
        }
        let expected = if is_part { self.end - self.offset } else { size };
        if let Some(length) = response.content_length().filter(|length| *length != expected) {
            return Err(Outcome::Unacceptable(format!("offers {length} bytes where {expected} are due")));
        }
        if !is_part && self.takes_all {
            self.end = size;
        }
        let skip = if is_part { 0 } else { self.offset };
        Ok(Body { response, source, skip, shown })
    }

    /// Tries the other places that a foreign layer names. Nothing of ours goes to them.
    async fn connect_foreign(&mut self) -> bool {
        if !self.session.trusts_foreign() {
            return false;
        }
        let urls: Vec<String> = self.descriptor.urls.iter().take(MAX_URLS).cloned().collect();
        for url in urls {
            let shown = || "foreign layer's own address".to_owned();
            let body = match self.session.foreign(&url).await {
                Ok(response) => self.accept(response, Source::Foreign, shown()),
                Err(outcome) => Err(outcome),
            };
            match body {
                Ok(body) => {
                    self.body = Some(body);
                    return true;
                }
                Err(outcome) => self.tried.0.push(Attempt { host: shown(), outcome }),
            }
        }
        false
    }

    fn error(&mut self) -> Error {
        self.session.error(&self.descriptor, std::mem::take(&mut self.tried))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_content_range_says_what_of_what() {
        let range = |first, last, total| Some(ContentRange { first, last, total });
        for (text, expected) in [
            ("bytes 0-9/10", range(0, 9, Some(10))),
            (" Bytes 5-9/* ", range(5, 9, None)),
            ("bytes 0-18446744073709551615/*", range(0, u64::MAX, None)),
            ("bytes 0-9/9", None),
            ("bytes 9-0/10", None),
            ("bytes */10", None),
            ("bytes 0-9", None),
            ("bytes +0-9/10", None),
            ("bytes -1-9/10", None),
            ("bytes 0-18446744073709551616/*", None),
            ("items 0-9/10", None),
            ("bytes=0-9/10", None),
            ("", None),
        ] {
            assert_eq!(parse_content_range(text), expected, "{text:?}");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_content_range_is_parsed_without_a_panic(text in "(bytes )?[-0-9*/ ]{0,40}|.{0,60}") {
            parse_content_range(&text);
        }

        #[test]
        fn a_content_range_is_read_back(first: u32, length in 1..u64::from(u32::MAX), more: u32) {
            let (first, more) = (u64::from(first), u64::from(more));
            let range = ContentRange { first, last: first + length - 1, total: Some(first + length + more) };
            let text = format!("bytes {first}-{}/{}", range.last, first + length + more);
            assert_eq!(parse_content_range(&text), Some(range));
        }
    }
}
