//! The push half of the distribution protocol over plain HTTP, as little of it as the fixtures need: blobs whole, manifests
//! by tag or digest. One connection a request, so there is no state to get wrong.

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

/// Pushes to one registry.
#[derive(Debug, Clone, Copy)]
pub struct Pusher {
    pub registry: SocketAddr,
}

struct Reply {
    status: u16,
    headers: BTreeMap<String, String>,
}

impl Pusher {
    /// Whether the registry answers at all.
    pub fn ping(&self) -> Result<(), String> {
        match self.send("GET", "/v2/", &[], &[]) {
            Ok(Reply { status: 200, .. }) => Ok(()),
            Ok(reply) => Err(format!("GET /v2/ answered {}", reply.status)),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Uploads a blob, unless the repository has it.
    pub fn blob(&self, repository: &str, digest: &str, bytes: &[u8]) {
        if self.expect("HEAD", &format!("/v2/{repository}/blobs/{digest}"), &[], &[], &[200, 404]).status == 200 {
            return;
        }
        let reply = self.expect("POST", &format!("/v2/{repository}/blobs/uploads/"), &[], &[], &[202]);
        let location = reply.headers.get("location").expect("an upload has a location");
        // The location may be a whole URL; the path is what the request line needs.
        let path = location.find("/v2/").map_or(location.as_str(), |start| &location[start..]);
        let separator = if path.contains('?') { '&' } else { '?' };
        let target = format!("{path}{separator}digest={digest}");
        self.expect("PUT", &target, &[("Content-Type", "application/octet-stream")], bytes, &[201]);
    }

    /// Publishes a manifest or index under a tag or its digest.
    pub fn manifest(&self, repository: &str, reference: &str, media_type: &str, bytes: &[u8]) {
        let path = format!("/v2/{repository}/manifests/{reference}");
        self.expect("PUT", &path, &[("Content-Type", media_type)], bytes, &[201]);
    }

    fn expect(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8], good: &[u16]) -> Reply {
        let reply = self.send(method, path, headers, body).unwrap_or_else(|error| panic!("{method} {path}: {error}"));
        assert!(good.contains(&reply.status), "{method} {path} answered {}, not one of {good:?}", reply.status);
        reply
    }

    fn send(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> std::io::Result<Reply> {
        let mut stream = TcpStream::connect(self.registry)?;
        stream.set_read_timeout(Some(Duration::from_secs(120)))?;
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.registry);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
        stream.write_all(head.as_bytes())?;
        stream.write_all(body)?;
        parse(&mut BufReader::new(stream))
    }
}

/// The status line and the headers; the body is of no interest to a pusher.
fn parse(reader: &mut impl BufRead) -> std::io::Result<Reply> {
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("not an HTTP status line: {line:?}")))?;
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    Ok(Reply { status, headers })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reply_is_its_status_and_its_headers() {
        let text = b"HTTP/1.1 202 Accepted\r\nLocation: /v2/a/blobs/uploads/1?x=y\r\nX: a:b\r\n\r\nbody: ignored\r\n";
        let reply = parse(&mut &text[..]).unwrap();
        assert_eq!(reply.status, 202);
        let expected = [("location", "/v2/a/blobs/uploads/1?x=y"), ("x", "a:b")];
        assert_eq!(reply.headers, expected.map(|(k, v)| (k.to_owned(), v.to_owned())).into());
        assert!(parse(&mut &b"garbage"[..]).is_err());
    }
}
