//! The way to one host: which client serves a URL, and what of a failure is shown.
//!
//! Text that a server or a library made passes through [`printable`] before it reaches an error.

use std::error::Error as StdError;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Response, Url};
use tokio::sync::OnceCell;

use super::clients::{ClientError, Clients, DIAL_TIMEOUT};
use super::explain::explain;
use super::proxy::Proxy;
use crate::hosts::{Host, Scheme, Tls};

const MAX_SHOWN: usize = 512;
/// For a manifest, a token or the text of a refusal, all of it: four mebibytes at a slow modem's pace.
const SLOWEST: Duration = Duration::from_secs(120);

/// One host and the connections made for it.
pub(crate) struct Transport {
    pub(crate) host: Host,
    clients: Arc<Clients>,
    /// The host's name without a port; none if it is no name.
    name: Option<String>,
    plain: OnceCell<Client>,
    tls: OnceCell<Client>,
    elsewhere: OnceCell<Client>,
}

impl Transport {
    pub(crate) fn new(host: Host, clients: Arc<Clients>) -> Transport {
        let url = Url::parse(&format!("https://{}/", host.authority)).ok();
        let name = url.and_then(|url| url.host_str().map(str::to_owned));
        Transport { host, clients, name, plain: OnceCell::new(), tls: OnceCell::new(), elsewhere: OnceCell::new() }
    }

    /// Whether an address is on the host itself, on whatever port.
    pub(crate) fn is_own(&self, url: &Url) -> bool {
        url.host_str() == self.name.as_deref()
    }

    /// The client for `url`. The target of a redirect and a token server elsewhere are checked by the host's authorities
    /// too, as they often share a private one. They are shown no client certificate, and are not trusted blindly because
    /// the host is.
    pub(crate) async fn client(&self, url: &Url) -> Result<&Client, ClientError> {
        let tls = &self.host.tls;
        let (cell, scheme, tls) = match url.scheme() {
            "https" if self.is_own(url) => (&self.tls, Scheme::Https, tls.clone()),
            "https" => (&self.elsewhere, Scheme::Https, Tls { ca: tls.ca.clone(), ..Tls::default() }),
            _ => (&self.plain, Scheme::Http, Tls::default()),
        };
        cell.get_or_try_init(|| self.clients.get(&self.host, scheme, tls)).await
    }

    /// What an error of a request to `url` means.
    pub(crate) fn explain(&self, url: &Url, error: &reqwest::Error) -> String {
        let dial_timeout = self.host.dial_timeout.unwrap_or(DIAL_TIMEOUT);
        explain(error, self.clients.proxy_for(url), dial_timeout)
    }

    /// The proxy that a request to `url` goes through, if any.
    pub(crate) fn proxy_for(&self, url: &Url) -> Option<&Proxy> {
        self.clients.proxy_for(url)
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
pub(super) fn tls_error<'a>(error: &'a (dyn StdError + 'static)) -> Option<&'a rustls::Error> {
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

pub(super) fn causes<'a>(error: &'a reqwest::Error) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(error.source(), |error: &&'a (dyn StdError + 'static)| {
        let error: &'a (dyn StdError + 'static) = *error;
        error.source()
    })
}

/// Foreign text made fit for one line of a log: no control or direction characters, and not too long.
pub(crate) fn printable(text: &str) -> String {
    printable_up_to(text, MAX_SHOWN)
}

/// The same with another length, in characters.
pub(crate) fn printable_up_to(text: &str, length: usize) -> String {
    let is_hidden = |c: char| {
        c.is_control() || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let mut shown: String = text.trim().chars().take(length).map(|c| if is_hidden(c) { ' ' } else { c }).collect();
    if text.trim().chars().nth(length).is_some() {
        shown.push('…');
    }
    shown
}

/// Why a body was not read to its end.
#[derive(Debug)]
pub(crate) enum Unread {
    Broken(reqwest::Error),
    TooLong,
    TooSlow,
}

impl Unread {
    /// For an error; `too_long` is the caller's to word.
    pub(crate) fn shown(&self, too_long: &str) -> String {
        match self {
            Unread::Broken(error) => shown_error(error),
            Unread::TooLong => too_long.to_owned(),
            Unread::TooSlow => format!("its answer took longer than {} s", SLOWEST.as_secs()),
        }
    }
}

/// Reads a body of at most `limit` bytes into memory. That something comes is not enough: what is read so is small, and who
/// sends it byte by byte means to keep us.
pub(crate) async fn read_limited(mut response: Response, limit: usize) -> Result<Vec<u8>, Unread> {
    let read = async {
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(Unread::Broken)? {
            if body.len() + chunk.len() > limit {
                return Err(Unread::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    };
    tokio::time::timeout(SLOWEST, read).await.unwrap_or(Err(Unread::TooSlow))
}
