//! Which requests go through a proxy: as Go programs read `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY`, or their lowercase
//! forms, since that is what a containerd's unit file is written for.
//!
//! An `https` address goes through `HTTPS_PROXY`, an `http` address through `HTTP_PROXY`; this machine itself is always
//! asked directly. Where one of them is not set, `ALL_PROXY` is used, which Go does not read and curl does. A proxy speaks
//! HTTP (`http://`, `https://`) or SOCKS 5 (`socks5://`, `socks5h://`: RFC 1928, RFC 1929), and then resolves the names of
//! registries itself in both spellings, as in Go. `NO_PROXY` lists, separated by commas, `*`, names (with their subdomains), `.names` (subdomains only),
//! addresses and networks, each but the last with a port if wanted. Rules: golang.org/x/net/http/httpproxy.

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

use crate::hosts::{is_loopback, split_port};

/// Where SOCKS servers listen (RFC 1928 §3).
const SOCKS_PORT: u16 = 1080;

/// The proxies of this process. `Debug` shows no credentials.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<Proxy>,
    https: Option<Proxy>,
    direct: Vec<Direct>,
}

/// One proxy, and where it was named. `Debug` and `Display` show no credentials.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Proxy {
    url: Url,
    pub(crate) variable: &'static str,
}

/// The values of the environment that name proxies; an empty one names none.
#[derive(Clone, Copy, Default)]
pub struct Environment<'a> {
    pub http: &'a str,
    pub https: &'a str,
    pub all: &'a str,
    pub no_proxy: &'a str,
}

/// Why a value of the environment is no proxy. Never quotes it, as it may hold a password.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{variable} is not the address of a proxy that can be used: {problem}")]
pub struct ProxyError {
    pub variable: &'static str,
    pub problem: &'static str,
}

/// Who is asked directly.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Direct {
    All,
    Network { address: IpAddr, bits: u8 },
    Address { address: IpAddr, port: Option<u16> },
    Domain { name: String, itself: bool, port: Option<u16> },
}

impl Proxies {
    /// What the environment of this process says. What it says wrongly is told in the log and left out.
    pub fn from_environment() -> Proxies {
        let read = |names: [&str; 2]| {
            names.iter().find_map(|name| std::env::var(name).ok().filter(|value| !value.is_empty())).unwrap_or_default()
        };
        let mut http = read(["HTTP_PROXY", "http_proxy"]);
        if !http.is_empty() && std::env::var_os("REQUEST_METHOD").is_some() {
            // In a CGI program anybody could have set it, by a header called Proxy.
            tracing::warn!("HTTP_PROXY is not used where REQUEST_METHOD is set");
            http.clear();
        }
        let (proxies, errors) = Proxies::new(Environment {
            http: &http,
            https: &read(["HTTPS_PROXY", "https_proxy"]),
            all: &read(["ALL_PROXY", "all_proxy"]),
            no_proxy: &read(["NO_PROXY", "no_proxy"]),
        });
        for error in errors {
            tracing::error!(%error, "a proxy of the environment is not used");
        }
        proxies
    }

    /// The proxies that these values name.
    pub fn new(environment: Environment<'_>) -> (Proxies, Vec<ProxyError>) {
        let Environment { http, https, all, no_proxy } = environment;
        let mut errors = Vec::new();
        let mut parse = |variable, value: &str| match parse_proxy(variable, value) {
            Ok(proxy) => proxy,
            Err(error) => {
                errors.push(error);
                None
            }
        };
        let all = parse("ALL_PROXY", all);
        // One that is named wrongly is not made up for by the other: it was to be used.
        let mut choose = |variable, value: &str| if value.is_empty() { all.clone() } else { parse(variable, value) };
        let (http, https) = (choose("HTTP_PROXY", http), choose("HTTPS_PROXY", https));
        let direct = no_proxy.split(',').filter_map(|entry| parse_direct(&entry.trim().to_ascii_lowercase())).collect();
        (Proxies { http, https, direct }, errors)
    }

    /// The proxy for an address, or none if it is to be asked directly.
    pub(crate) fn for_url(&self, url: &Url) -> Option<&Proxy> {
        let proxy = match url.scheme() {
            "https" => self.https.as_ref(),
            "http" => self.http.as_ref(),
            _ => None,
        }?;
        let (host, port) = (url.host_str()?.to_ascii_lowercase(), url.port_or_known_default());
        if is_loopback(&host) {
            return None;
        }
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let is_direct = self.direct.iter().any(|direct| direct.matches(bare, port));
        (!is_direct).then_some(proxy)
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Proxies")
            .field("http", &self.http)
            .field("https", &self.https)
            .field("direct", &self.direct)
            .finish()
    }
}

impl Proxy {
    /// As the HTTP client wants it: with its port, and so that the proxy resolves names.
    pub(crate) fn for_client(&self) -> Url {
        let mut url = self.url.clone();
        if self.is_socks() {
            // Neither can fail: both schemes have hosts, ports and no rules of their own.
            let _ = url.set_port(Some(self.port())).and_then(|()| url.set_scheme("socks5h"));
        }
        url
    }

    fn is_socks(&self) -> bool {
        self.url.scheme().starts_with("socks")
    }

    fn port(&self) -> u16 {
        self.url.port_or_known_default().unwrap_or(SOCKS_PORT)
    }
}

/// Scheme, host and port: all that may be shown.
impl fmt::Display for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.url.scheme(), self.url.host_str().unwrap_or_default(), self.port())
    }
}

impl fmt::Debug for Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self} of {}", self.variable)
    }
}

impl Direct {
    fn matches(&self, host: &str, port: Option<u16>) -> bool {
        let same_port = |wanted: &Option<u16>| wanted.is_none() || *wanted == port;
        match self {
            Direct::All => true,
            Direct::Network { address, bits } => {
                host.parse::<IpAddr>().is_ok_and(|host| is_within(canonical(host), canonical(*address), *bits))
            }
            Direct::Address { address, port } => {
                host.parse::<IpAddr>().is_ok_and(|host| canonical(host) == canonical(*address)) && same_port(port)
            }
            Direct::Domain { name, itself, port } => {
                let below = host.strip_suffix(name.as_str()).is_some_and(|rest| rest.ends_with('.'));
                (below || (*itself && host == name)) && same_port(port)
            }
        }
    }
}

/// Go compares an IPv4 address that is written as IPv6 as the same.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

fn is_within(host: IpAddr, network: IpAddr, bits: u8) -> bool {
    match (host, network) {
        (IpAddr::V4(host), IpAddr::V4(network)) => {
            (u32::from(host) ^ u32::from(network)).checked_shr(32 - u32::from(bits)).unwrap_or(0) == 0
        }
        (IpAddr::V6(host), IpAddr::V6(network)) => {
            (u128::from(host) ^ u128::from(network)).checked_shr(128 - u32::from(bits)).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// A whole URL, or `host:port`, which is http.
fn parse_proxy(variable: &'static str, value: &str) -> Result<Option<Proxy>, ProxyError> {
    if value.is_empty() {
        return Ok(None);
    }
    let refused = |problem| ProxyError { variable, problem };
    let url = if value.contains("://") { Url::parse(value) } else { Url::parse(&format!("http://{value}")) };
    let url = url.map_err(|_| refused("write it as http://host:port"))?;
    match url.scheme() {
        _ if url.host_str().is_none_or(str::is_empty) => Err(refused("it names no host")),
        "http" | "https" | "socks5" | "socks5h" => Ok(Some(Proxy { url, variable })),
        _ => Err(refused("only http, https, socks5 and socks5h proxies are supported")),
    }
}

fn parse_direct(entry: &str) -> Option<Direct> {
    if entry == "*" {
        return Some(Direct::All);
    }
    if let Some((address, bits)) = entry.split_once('/') {
        let (address, bits) = (address.parse::<IpAddr>().ok()?, bits.parse::<u8>().ok()?);
        let widest = if address.is_ipv4() { 32 } else { 128 };
        return (bits <= widest).then_some(Direct::Network { address, bits });
    }
    if let Ok(address) = entry.parse::<IpAddr>() {
        return Some(Direct::Address { address, port: None });
    }
    let (host, port) = split_port(entry);
    let port = match port {
        None => None,
        Some(port) => Some(port.parse::<u16>().ok()?),
    };
    if let Ok(address) = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        return Some(Direct::Address { address, port });
    }
    let name = host.strip_prefix("*.").or_else(|| host.strip_prefix('.'));
    let (name, itself) = name.map_or((host, true), |name| (name, false));
    (!name.is_empty()).then(|| Direct::Domain { name: name.to_owned(), itself, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Environment<'static> = Environment { http: "", https: "", all: "", no_proxy: "" };

    fn proxied(no_proxy: &str, url: &str) -> bool {
        let (proxies, errors) =
            Proxies::new(Environment { http: "http://plain:3128", https: "tls:3129", no_proxy, ..NOTHING });
        assert_eq!(errors, []);
        proxies.for_url(&Url::parse(url).unwrap()).is_some()
    }

    #[test]
    fn each_scheme_has_its_proxy_and_this_machine_has_none() {
        let (proxies, errors) = Proxies::new(Environment { http: "http://plain:3128", https: "tls:3129", ..NOTHING });
        assert_eq!(errors, []);
        let check = |url: &str, expected: Option<&str>| {
            let found = proxies.for_url(&Url::parse(url).unwrap()).map(Proxy::to_string);
            assert_eq!(found.as_deref(), expected, "{url}");
        };
        check("http://quay.io/x", Some("http://plain:3128"));
        check("https://quay.io/x", Some("http://tls:3129"));
        for own in ["http://localhost:5000/", "https://127.1.2.3/", "https://[::1]:5000/"] {
            check(own, None);
        }
        assert_eq!(Proxies::default().for_url(&Url::parse("https://quay.io").unwrap()), None);
    }

    #[test]
    fn no_proxy_is_read_as_go_reads_it() {
        let check = |no_proxy: &str, direct: &[&str], by_proxy: &[&str]| {
            for url in direct {
                assert!(!proxied(no_proxy, url), "{no_proxy:?} {url}");
            }
            for url in by_proxy {
                assert!(proxied(no_proxy, url), "{no_proxy:?} {url}");
            }
        };
        check("*", &["https://quay.io", "http://1.2.3.4"], &[]);
        check("foo.com", &["http://foo.com", "https://bar.FOO.com:8443"], &["http://barfoo.com", "http://com"]);
        check(" .Foo.com , *.y.org", &["http://x.foo.com", "http://x.y.org"], &["http://foo.com", "http://y.org"]);
        check("foo.com:5000", &["https://foo.com:5000"], &["https://foo.com", "http://foo.com:5001"]);
        check("foo.com:443", &["https://foo.com"], &["http://foo.com"]);
        check(
            "10.0.0.0/8,1.2.3.4",
            &["http://10.9.8.7:5000", "http://1.2.3.4"],
            &["http://11.0.0.1", "http://1.2.3.5"],
        );
        check("1.2.3.4:80", &["http://1.2.3.4"], &["https://1.2.3.4"]);
        check("fd00::/8,[2001:db8::1]:443", &["http://[fd12::1]", "https://[2001:db8::1]"], &["http://[2001:db8::1]"]);
        check("0.0.0.0/0", &["http://9.9.9.9"], &["http://quay.io"]);
        check(",, :80,foo.com:x,10.0.0.0/99", &[], &["http://foo.com", "http://10.0.0.1"]);
    }

    #[test]
    fn what_is_no_proxy_is_named_without_its_value() {
        let check = |value: &str, problem: &'static str| {
            // What is to be used and cannot be is not made up for.
            let (proxies, errors) = Proxies::new(Environment { https: value, ..NOTHING });
            assert_eq!(errors, [ProxyError { variable: "HTTPS_PROXY", problem }], "{value}");
            assert_eq!(proxies, Proxies::default());
        };
        check("http://user:canary@", "write it as http://host:port");
        check("socks5://", "it names no host");
        for other in ["ftp://proxy", "socks4://user:canary@proxy", "socks://proxy"] {
            check(other, "only http, https, socks5 and socks5h proxies are supported");
        }
        let socks = "socks5://user:canary@proxy:1";
        let (proxies, _) = Proxies::new(Environment { http: "http://user:canary@proxy:1", https: socks, ..NOTHING });
        assert!(!format!("{proxies:?}").contains("canary"), "{proxies:?}");
    }

    #[test]
    fn all_proxy_is_for_schemes_that_have_none_and_socks_has_its_port_and_resolves_names() {
        let check = |environment: Environment<'_>, http: &str, https: &str| {
            let (proxies, errors) = Proxies::new(Environment { no_proxy: "direct.test", ..environment });
            assert_eq!(errors, []);
            let found = |url: &str| {
                let proxy = proxies.for_url(&Url::parse(url).unwrap());
                proxy.map(|proxy| format!("{proxy:?}, {}", proxy.for_client())).unwrap_or_default()
            };
            assert_eq!([found("http://quay.io"), found("https://quay.io")], [http, https]);
            assert_eq!([found("http://direct.test"), found("https://127.0.0.1")], ["", ""]);
        };
        let (all, own) = ("socks5://u:p%40@s", "http://h:1");
        let by_all = "socks5://s:1080 of ALL_PROXY, socks5h://u:p%40@s:1080";
        check(Environment { all, ..NOTHING }, by_all, by_all);
        check(Environment { all, https: own, ..NOTHING }, by_all, "http://h:1 of HTTPS_PROXY, http://h:1/");
        check(
            Environment { http: "socks5h://[::1]:9", ..NOTHING },
            "socks5h://[::1]:9 of HTTP_PROXY, socks5h://[::1]:9",
            "",
        );
    }
}
