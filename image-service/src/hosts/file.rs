//! The format of `hosts.toml`: a server, and mirrors in the order in which the file lists them.
//!
//! Parsing only; reading the file is `directory.rs`. Keys that are not known are ignored, as other tools write them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use serde::Deserialize;
use toml::{Table, Value};

use super::duration::parse_duration;
use super::{Capabilities, ClientCertificate, Host, Scheme, Tls, is_loopback};

/// What is wrong with a `hosts.toml`.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("not valid TOML")]
    Syntax(#[from] toml::de::Error),
    #[error("{table} has an invalid {key}: {problem}")]
    Key { table: String, key: &'static str, problem: String },
    #[error("invalid host {url:?}: {problem}")]
    Host { url: String, problem: &'static str },
}

/// Parses a `hosts.toml` of `registry`. `directory` is what relative certificate paths start from.
/// The result has every `[host]` table in file order and the server last.
pub fn parse_hosts_file(text: &str, directory: &Path, registry: &str) -> Result<Vec<Host>, FileError> {
    let root: Table = toml::from_str(text)?;
    let mut hosts = Vec::new();
    if let Some(tables) = root.get("host") {
        let tables = tables.as_table().ok_or_else(|| bad("the file", "host", "expected tables [host.\"<url>\"]"))?;
        for (url, table) in tables {
            let name = format!("[host.{url:?}]");
            let table = table.as_table().ok_or_else(|| bad(&name, "host", "expected a table"))?;
            let settings = Settings::parse(&name, table, directory)?;
            hosts.push(settings.into_host(url)?);
        }
    }
    let settings = Settings::parse("the file", &root, directory)?;
    let server = match root.get("server") {
        None => None,
        Some(Value::String(url)) if url.is_empty() => None,
        Some(Value::String(url)) => Some(url),
        Some(_) => return Err(bad("the file", "server", "expected a string")),
    };
    hosts.push(match server {
        Some(url) => settings.into_host(url)?,
        None => settings.into_upstream(registry),
    });
    Ok(hosts)
}

/// What one table says about one host.
struct Settings {
    capabilities: Capabilities,
    tls: Tls,
    headers: HeaderMap,
    dial_timeout: Option<Duration>,
    override_path: bool,
}

impl Settings {
    fn parse(name: &str, table: &Table, directory: &Path) -> Result<Settings, FileError> {
        Ok(Settings {
            capabilities: parse_capabilities(name, table)?,
            tls: Tls {
                ca: parse_ca(name, table, directory)?,
                client: parse_client(name, table, directory)?,
                skip_verify: parse_bool(name, table, "skip_verify")?,
            },
            headers: parse_headers(name, table)?,
            dial_timeout: parse_dial_timeout(name, table)?,
            override_path: parse_bool(name, table, "override_path")?.unwrap_or(false),
        })
    }

    fn into_host(self, url: &str) -> Result<Host, FileError> {
        let (scheme, authority, path) = split_url(url)?;
        let mut path = clean_path(path);
        if !self.override_path && !path.ends_with("/v2") {
            path.push_str("/v2");
        }
        Ok(Host {
            scheme,
            authority: authority.to_owned(),
            path,
            capabilities: self.capabilities,
            tls: self.tls,
            headers: self.headers,
            dial_timeout: self.dial_timeout,
        })
    }

    /// Without `server` the registry itself is last, able to do everything, with the root table's other settings.
    fn into_upstream(self, registry: &str) -> Host {
        let default = Host::upstream(registry);
        let mut tls = self.tls;
        if is_loopback(registry) {
            tls.skip_verify = tls.skip_verify.or(default.tls.skip_verify);
        }
        Host { tls, headers: self.headers, dial_timeout: self.dial_timeout, ..default }
    }
}

/// Takes scheme, authority and path of a URL. User, query and fragment mean nothing here and are dropped.
pub(super) fn split_url(url: &str) -> Result<(Scheme, &str, &str), FileError> {
    let bad_host = |problem| FileError::Host { url: shown_url(url), problem };
    let (scheme, rest) = match url.split_once("://") {
        None => (Scheme::Https, url),
        Some(("https", rest)) => (Scheme::Https, rest),
        Some(("http", rest)) => (Scheme::Http, rest),
        Some(_) => return Err(bad_host("the scheme must be http or https")),
    };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let authority = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    if authority.is_empty() || authority.starts_with(':') {
        return Err(bad_host("it names no host"));
    }
    let parsed = reqwest::Url::parse(&format!("{}://{authority}/", scheme.as_str()));
    if parsed.is_err() {
        return Err(bad_host("it is not a host name or address with an optional port"));
    }
    Ok((scheme, authority, path))
}

/// A URL without what might be a password.
fn shown_url(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}{}", &url[..scheme + 3], &url[at + 1..]),
        (None, Some(at)) => url[at + 1..].to_owned(),
        _ => url.to_owned(),
    }
}

/// Removes empty and `.` segments, resolves `..`, and leaves no slash at the end.
pub(super) fn clean_path(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                kept.pop();
            }
            other => kept.push(other),
        }
    }
    kept.iter().fold(String::new(), |path, segment| path + "/" + segment)
}

fn parse_capabilities(name: &str, table: &Table) -> Result<Capabilities, FileError> {
    let Some(value) = table.get("capabilities") else {
        return Ok(Capabilities::ALL);
    };
    let names = strings(value).ok_or_else(|| bad(name, "capabilities", "expected an array of strings"))?;
    if names.is_empty() {
        return Ok(Capabilities::ALL);
    }
    let mut capabilities = Capabilities { pull: false, resolve: false, push: false, referrers: false };
    for capability in names {
        match capability {
            "pull" => capabilities.pull = true,
            "resolve" => capabilities.resolve = true,
            "push" => capabilities.push = true,
            "referrers" => capabilities.referrers = true,
            other => {
                let problem = format!("{other:?} is not one of pull, resolve, push and referrers");
                return Err(FileError::Key { table: name.to_owned(), key: "capabilities", problem });
            }
        }
    }
    Ok(capabilities)
}

fn parse_ca(name: &str, table: &Table, directory: &Path) -> Result<Vec<PathBuf>, FileError> {
    let Some(value) = table.get("ca") else {
        return Ok(Vec::new());
    };
    let files = strings(value).ok_or_else(|| bad(name, "ca", "expected a string or an array of strings"))?;
    Ok(files.into_iter().map(|file| directory.join(file)).collect())
}

/// The forms of `client`, in the order in which they are tried.
#[derive(Deserialize)]
#[serde(untagged)]
enum ClientForm {
    One(String),
    Files(Vec<String>),
    Pairs(Vec<Vec<String>>),
}

fn parse_client(name: &str, table: &Table, directory: &Path) -> Result<Vec<ClientCertificate>, FileError> {
    let Some(value) = table.get("client") else {
        return Ok(Vec::new());
    };
    let expected = || bad(name, "client", "expected a file, an array of files or an array of [certificate, key]");
    let together = |file: String| ClientCertificate { certificate: directory.join(file), key: None };
    match ClientForm::deserialize(value.clone()).map_err(|_| expected())? {
        ClientForm::One(file) => Ok(vec![together(file)]),
        ClientForm::Files(files) => Ok(files.into_iter().map(together).collect()),
        ClientForm::Pairs(pairs) => pairs
            .into_iter()
            .map(|pair| match pair.as_slice() {
                [certificate] => Ok(together(certificate.clone())),
                [certificate, key] => Ok(ClientCertificate {
                    certificate: directory.join(certificate),
                    key: (!key.is_empty()).then(|| directory.join(key)),
                }),
                _ => Err(expected()),
            })
            .collect(),
    }
}

fn parse_headers(name: &str, table: &Table) -> Result<HeaderMap, FileError> {
    let mut headers = HeaderMap::new();
    let Some(value) = table.get("header") else {
        return Ok(headers);
    };
    let lines = value.as_table().ok_or_else(|| bad(name, "header", "expected a table"))?;
    for (line, values) in lines {
        let header = HeaderName::from_bytes(line.as_bytes())
            .map_err(|_| bad(name, "header", &format!("{line:?} is not a header name")))?;
        // The value may be a secret, so no message quotes it.
        let invalid = || bad(name, "header", &format!("the value of {line} is not a string that a header can carry"));
        for value in strings(values).ok_or_else(invalid)? {
            let mut value = HeaderValue::from_str(value).map_err(|_| invalid())?;
            value.set_sensitive(true);
            headers.append(header.clone(), value);
        }
    }
    Ok(headers)
}

fn parse_dial_timeout(name: &str, table: &Table) -> Result<Option<Duration>, FileError> {
    let Some(value) = table.get("dial_timeout") else {
        return Ok(None);
    };
    let parsed = value.as_str().and_then(parse_duration);
    parsed.map(Some).ok_or_else(|| bad(name, "dial_timeout", "expected a duration such as \"5s\""))
}

fn parse_bool(name: &str, table: &Table, key: &'static str) -> Result<Option<bool>, FileError> {
    match table.get(key) {
        None => Ok(None),
        Some(Value::Boolean(value)) => Ok(Some(*value)),
        Some(_) => Err(bad(name, key, "expected true or false")),
    }
}

/// A string, or an array of strings, as a list.
fn strings(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(one) => Some(vec![one]),
        Value::Array(many) => many.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

fn bad(table: &str, key: &'static str, problem: &str) -> FileError {
    FileError::Key { table: table.to_owned(), key, problem: problem.to_owned() }
}
