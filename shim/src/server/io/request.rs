//! What a client asks for as stdin, stdout and stderr, parsed from its strings; nothing is opened here.

use std::{ffi::OsString, os::unix::ffi::OsStringExt, path::PathBuf};

/// Content bytes of one CRI record when the client names no limit, as containerd has it.
const DEFAULT_MAX_LINE: usize = 16384;

/// The three strings of a request, kept for State, and the terminal flag.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StdioRequest {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    Null,
    Fifo(PathBuf),
    /// Held by the shim and fed by Attach streams; `once` closes it when the first of them ends.
    Attach {
        once: bool,
    },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Output {
    Null,
    /// A FIFO, or a file that the client made.
    Fifo(PathBuf),
    /// A file that the shim makes if it is missing.
    File(PathBuf),
    /// The CRI log, written by the shim; no path discards the lines. Attach streams get copies.
    CriLog {
        path: Option<PathBuf>,
        max_line: usize,
    },
    /// Handed to the one Attach stream of an exec, with back-pressure. `hold`: for as long as anybody may still write, and
    /// not only while it comes, once the exec's process has ended.
    Attach {
        hold: bool,
    },
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{url:?} is no {stream} that this shim can serve: it takes a path, fifo://, file://, cri:// or attach://")]
pub(crate) struct UnknownStdio {
    stream: &'static str,
    url: String,
}

pub(crate) fn parse_input(url: &str) -> Result<Input, UnknownStdio> {
    let (scheme, rest) = split(url);
    match scheme {
        _ if url.is_empty() => Ok(Input::Null),
        "" | "fifo" => Ok(Input::Fifo(PathBuf::from(rest))),
        "attach" => Ok(Input::Attach { once: query(rest).1.any(|(key, value)| (key, value) == ("once", "1")) }),
        _ => Err(UnknownStdio { stream: "stdin", url: url.to_owned() }),
    }
}

pub(crate) fn parse_output(url: &str) -> Result<Output, UnknownStdio> {
    let (scheme, rest) = split(url);
    match scheme {
        _ if url.is_empty() => Ok(Output::Null),
        "" | "fifo" => Ok(Output::Fifo(PathBuf::from(rest))),
        "file" => Ok(Output::File(PathBuf::from(query(rest).0))),
        "cri" => Ok(parse_cri(rest)),
        "attach" => Ok(Output::Attach { hold: query(rest).1.any(|(key, value)| (key, value) == ("hold", "1")) }),
        _ => Err(UnknownStdio { stream: "output", url: url.to_owned() }),
    }
}

fn parse_cri(rest: &str) -> Output {
    let (path, mut pairs) = query(rest);
    let max_line = pairs.find(|(key, _)| *key == "max_line").and_then(|(_, value)| value.parse::<i64>().ok());
    let max_line = match max_line {
        None => DEFAULT_MAX_LINE,
        // CRI's convention: zero and below means lines are never split.
        Some(limit) => usize::try_from(limit).ok().filter(|limit| *limit > 0).unwrap_or(usize::MAX),
    };
    Output::CriLog { path: (!path.is_empty()).then(|| PathBuf::from(OsString::from_vec(decode(path)))), max_line }
}

/// Bytes for which the daemon wrote a percent sign and two digits; another percent sign is itself.
fn decode(text: &str) -> Vec<u8> {
    let digit = |byte: &u8| char::from(*byte).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let code = match tail {
            [high, low, ..] if *first == b'%' => digit(high).zip(digit(low)),
            _ => None,
        };
        match code {
            Some((high, low)) => {
                plain.push(high << 4 | low);
                rest = &tail[2..];
            }
            None => plain.push(*first),
        }
    }
    plain
}

fn split(url: &str) -> (&str, &str) {
    url.split_once("://").unwrap_or(("", url))
}

fn query(rest: &str) -> (&str, impl Iterator<Item = (&str, &str)>) {
    let (path, query) = rest.rsplit_once('?').unwrap_or((rest, ""));
    (path, query.split('&').filter_map(|pair| pair.split_once('=')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outputs_are_told_apart_by_their_scheme() {
        let log = |path: Option<&str>, max_line| Output::CriLog { path: path.map(PathBuf::from), max_line };
        for (url, expected) in [
            ("", Output::Null),
            ("/run/f", Output::Fifo("/run/f".into())),
            ("fifo:///run/f", Output::Fifo("/run/f".into())),
            ("file:///var/a.log", Output::File("/var/a.log".into())),
            ("attach://", Output::Attach { hold: false }),
            ("attach://?hold=1", Output::Attach { hold: true }),
            ("cri:///var/0.log?max_line=100", log(Some("/var/0.log"), 100)),
            ("cri:///var/0.log?max_line=0", log(Some("/var/0.log"), usize::MAX)),
            ("cri://?max_line=16384", log(None, 16384)),
            ("cri:///var/a%20b%3F/0%.log?max_line=1", log(Some("/var/a b?/0%.log"), 1)),
            ("cri:///var/0.log", log(Some("/var/0.log"), 16384)),
        ] {
            assert_eq!(parse_output(url), Ok(expected), "{url}");
        }
    }

    #[test]
    fn an_unknown_scheme_is_refused_by_name() {
        let error = parse_output("gopher://x").unwrap_err().to_string();
        assert!(error.starts_with("\"gopher://x\" is no output"), "{error}");
    }

    #[test]
    fn stdin_says_whether_it_is_used_once() {
        assert_eq!(parse_input("attach://?once=1"), Ok(Input::Attach { once: true }));
        assert_eq!(parse_input("attach://?once=0"), Ok(Input::Attach { once: false }));
        assert_eq!(parse_input("attach://"), Ok(Input::Attach { once: false }));
    }
}
