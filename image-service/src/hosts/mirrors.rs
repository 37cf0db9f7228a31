//! The older way to configure registries, within the daemon's own file: `registry.mirrors` and `registry.configs.*.tls`.
//!
//! It takes the place of the directories as a whole; a file that sets both is refused by whoever reads it.
//! Rules: containerd's `docs/cri/registry.md` (endpoints in order, `*` for all that are not named, the registry last).

use std::collections::BTreeMap;

use super::file::{FileError, clean_path, split_url};
use super::{Capabilities, Host, Scheme, Tls, is_loopback};

/// Endpoints by registry, and TLS settings by endpoint. Empty unless the configuration has any.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mirrors {
    endpoints: BTreeMap<String, Vec<Host>>,
    tls: BTreeMap<String, Tls>,
}

/// Stands for every registry that has no entry of its own.
const ANY: &str = "*";

impl Mirrors {
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty() && self.tls.is_empty()
    }

    /// Says where `registry` is served, in order. An address without a scheme is https, or http on this machine.
    pub fn set_endpoints(&mut self, registry: &str, endpoints: &[String]) -> Result<(), FileError> {
        let hosts = endpoints.iter().map(|url| parse_endpoint(url)).collect::<Result<_, _>>()?;
        self.endpoints.insert(registry.to_owned(), hosts);
        Ok(())
    }

    /// Says how to speak to an endpoint, by its host and port as they stand in its address.
    pub fn set_tls(&mut self, host: &str, tls: Tls) {
        self.tls.insert(host.to_owned(), tls);
    }

    /// The hosts that serve `registry`, in the order in which they are to be tried; the registry itself is last, unless
    /// it is among the endpoints.
    pub fn hosts(&self, registry: &str) -> Vec<Host> {
        let endpoints = self.endpoints.get(registry).or_else(|| self.endpoints.get(ANY));
        let mut hosts = endpoints.cloned().unwrap_or_default();
        let mut upstream = Host::upstream(registry);
        if is_loopback(registry) {
            upstream.scheme = Scheme::Http;
        }
        if !hosts.iter().any(|host| host.authority == registry || host.authority == upstream.authority) {
            hosts.push(upstream);
        }
        for host in &mut hosts {
            if let Some(tls) = self.tls.get(&host.authority) {
                host.tls = tls.clone();
            }
        }
        hosts
    }
}

fn parse_endpoint(url: &str) -> Result<Host, FileError> {
    let without_scheme = !url.contains("://");
    let (scheme, authority, path) = split_url(url)?;
    let scheme = if without_scheme && is_loopback(authority) { Scheme::Http } else { scheme };
    // Any path but the root is taken as it is.
    let path = match clean_path(path) {
        path if path.is_empty() => "/v2".to_owned(),
        path => path,
    };
    let capabilities = Capabilities { push: false, ..Capabilities::ALL };
    // Only what is written without TLS is not verified, should it turn out to have it.
    let unverified = scheme == Scheme::Http && is_loopback(authority);
    let tls = Tls { skip_verify: unverified.then_some(true), ..Tls::default() };
    // Not the name of a registry but an address, so Docker Hub's name is meant as it stands.
    Ok(Host { scheme, authority: authority.to_owned(), path, capabilities, tls, ..Host::upstream(authority) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mirrors(entries: &[(&str, &[&str])]) -> Mirrors {
        let mut mirrors = Mirrors::default();
        for (registry, endpoints) in entries {
            let endpoints: Vec<String> = endpoints.iter().map(|url| (*url).to_owned()).collect();
            mirrors.set_endpoints(registry, &endpoints).unwrap();
        }
        mirrors
    }

    #[test]
    fn endpoints_are_tried_in_order_and_the_registry_last() {
        let mirrors = mirrors(&[
            ("docker.io", &["https://mirror.example:5000", "mirror.example/proxy/hub/", "localhost:5000"]),
            ("quay.io", &["https://mirror.example", "https://quay.io"]),
            ("gcr.io", &[]),
            ("*", &["http://any.example/v2"]),
        ]);
        let check = |registry: &str, expected: &[&str]| {
            let hosts = mirrors.hosts(registry);
            let shown: Vec<String> = hosts
                .iter()
                .map(|host| format!("{}://{}{}", host.scheme.as_str(), host.authority, host.path))
                .collect();
            assert_eq!(shown, expected, "{registry}");
        };
        check(
            "docker.io",
            &[
                "https://mirror.example:5000/v2",
                "https://mirror.example/proxy/hub",
                "http://localhost:5000/v2",
                "https://registry-1.docker.io/v2",
            ],
        );
        check("quay.io", &["https://mirror.example/v2", "https://quay.io/v2"]);
        // An entry of its own counts, also an empty one.
        check("gcr.io", &["https://gcr.io/v2"]);
        check("ghcr.io", &["http://any.example/v2", "https://ghcr.io/v2"]);
        check("localhost:5000", &["http://any.example/v2", "http://localhost:5000/v2"]);
    }

    #[test]
    fn without_an_entry_the_registry_serves_itself() {
        let hosts = Mirrors::default().hosts("quay.io");
        assert_eq!(hosts, [Host::upstream("quay.io")]);
    }

    #[test]
    fn tls_settings_are_found_by_the_endpoint() {
        let mut mirrors = mirrors(&[("quay.io", &["https://mirror.example:5000"])]);
        let tls = Tls { ca: vec!["/ca.pem".into()], skip_verify: Some(true), ..Tls::default() };
        mirrors.set_tls("mirror.example:5000", tls.clone());
        let hosts = mirrors.hosts("quay.io");
        assert_eq!((&hosts[0].tls, &hosts[1].tls), (&tls, &Tls::default()));
        assert!(!mirrors.is_empty());
    }

    #[test]
    fn only_an_endpoint_of_this_machine_without_tls_is_not_verified() {
        let mirrors = mirrors(&[("a", &["https://localhost:5000", "http://localhost:5000", "http://mirror.example"])]);
        let skipped: Vec<_> = mirrors.hosts("a").iter().map(|host| host.tls.skip_verify).collect();
        assert_eq!(skipped, [None, Some(true), None, None]);
    }

    #[test]
    fn an_endpoint_that_is_no_address_is_refused() {
        let check = |url: &str, expected: &str| {
            let error = Mirrors::default().set_endpoints("quay.io", &[url.to_owned()]).unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        check("ftp://user:canary@h", "invalid host \"ftp://h\": the scheme must be http or https");
        check("https://", "invalid host \"https://\": it names no host");
    }
}
