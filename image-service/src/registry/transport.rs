//! The way to one host: which client serves a URL, and what of a failure is shown.
//!
//! Text that a server or a library made passes through [`printable`] before it reaches an error.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;

use reqwest::{Client, Response, Url};
use tokio::sync::OnceCell;

use super::clients::{ClientError, Clients};
use crate::hosts::{Host, Scheme};

const MAX_SHOWN: usize = 512;

/// One host and the connections made for it.
pub(crate) struct Transport {
    pub(crate) host: Host,
    clients: Arc<Clients>,
    plain: OnceCell<Client>,
    tls: OnceCell<Client>,
}

impl Transport {
    pub(crate) fn new(host: Host, clients: Arc<Clients>) -> Transport {
        Transport { host, clients, plain: OnceCell::new(), tls: OnceCell::new() }
    }

    /// The client for `url`. A redirect's target uses the host's certificates too, as a registry and its store
    /// often share a private authority.
    pub(crate) async fn client(&self, url: &Url) -> Result<&Client, ClientError> {
        let (cell, scheme) = match url.scheme() {
            "https" => (&self.tls, Scheme::Https),
            _ => (&self.plain, Scheme::Http),
        };
        cell.get_or_try_init(|| self.clients.get(&self.host, scheme)).await
    }
}

/// Scheme, host, port and path: all of a URL that may be shown.
pub(crate) fn shown_url(url: &Url) -> String {
    format!("{}{}", url.origin().ascii_serialization(), printable(url.path()))
}

/// An error and its causes on one line, without the URL, whose query may hold a signature.
pub(crate) fn shown_error(error: &(dyn StdError + 'static)) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut current = Some(error);
    while let Some(error) = current {
        let text = match error.downcast_ref::<reqwest::Error>() {
            // Its own words are "error sending request for url (…)"; the cause below says more.
            Some(error) if error.is_timeout() => "timed out".to_owned(),
            Some(error) if error.source().is_some() => String::new(),
            Some(_) => "request failed".to_owned(),
            None => printable(&error.to_string()),
        };
        if !text.is_empty() && !parts.iter().any(|part| part.contains(&text)) {
            parts.push(text);
        }
        current = error.source();
    }
    // The causes nearest to the kernel tell people what to do; those above only name layers of the client.
    parts.split_off(parts.len().saturating_sub(2)).join(": ")
}

/// Whether TLS failed because the other side does not speak it.
pub(crate) fn is_not_tls(error: &reqwest::Error) -> bool {
    error.is_connect() && causes(error).any(|cause| matches!(tls_error(cause), Some(rustls::Error::InvalidMessage(_))))
}

/// The TLS error inside an error. An I/O error does not name what it wraps as its source, so it is opened by hand.
fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
    match error.downcast_ref::<io::Error>() {
        Some(outer) => tls_error(outer.get_ref()?),
        None => error.downcast_ref(),
    }
}

/// Whether a time limit passed or the connection ended in the middle, which a second try may mend.
pub(crate) fn is_passing(error: &reqwest::Error) -> bool {
    error.is_timeout()
        || causes(error).any(|cause| {
            cause.downcast_ref::<io::Error>().is_some_and(|error| {
                matches!(error.kind(), io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset)
            })
        })
}

fn causes<'a>(error: &'a reqwest::Error) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(error.source(), |error: &&'a (dyn StdError + 'static)| {
        let error: &'a (dyn StdError + 'static) = *error;
        error.source()
    })
}

/// Foreign text made fit for one line of a log: no control or direction characters, and not too long.
pub(crate) fn printable(text: &str) -> String {
    let is_hidden = |c: char| {
        c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown: String = text.trim().chars().take(MAX_SHOWN).map(|c| if is_hidden(c) { ' ' } else { c }).collect();
    if text.trim().chars().nth(MAX_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// Reads a body into memory. `Ok(None)` means that it is longer than `limit`.
pub(crate) async fn read_limited(mut response: Response, limit: usize) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}
