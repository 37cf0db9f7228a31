//! What goes to which origin: credentials, headers and certificates reach the hosts they are for, and no others.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use futures_util::TryStreamExt;
use support::{Action, Auth, TestAuthority, TestHosts, TestRegistry, basic, install_crypto};
use windlass_image_service::hosts::{Mirrors, Tls};
use windlass_image_service::reference::Reference;
use windlass_image_service::registry::{
    Clients, Credentials, Descriptor, Error, Proxies, Registry, RegistryConfig, Resolved, Session, media_type,
    parse_header,
};

const REFERENCE: &str = "registry.test/team/app:v1";

fn registry(config: RegistryConfig) -> Registry {
    install_crypto();
    Registry::new(config, Arc::new(Clients::with_proxies(Proxies::default())))
}

fn at(hosts: &TestHosts) -> RegistryConfig {
    RegistryConfig { config_path: vec![hosts.root()], ..RegistryConfig::default() }
}

async fn resolve(config: RegistryConfig, credentials: Option<&Credentials>) -> Result<Resolved, Error> {
    registry(config).resolve(&Reference::parse(REFERENCE).unwrap(), credentials).await
}

async fn whole(session: &Session, blob: &Descriptor) -> Result<Vec<u8>, Error> {
    Ok(session.blob(blob, 0).await?.try_collect::<Vec<_>>().await?.concat())
}

/// A registry with the image, which wants this password.
async fn locked(password: &str) -> TestRegistry {
    let server = open().await;
    server.set_auth(Auth::Basic { username: "user".into(), password: password.into() });
    server
}

async fn open() -> TestRegistry {
    let server = TestRegistry::http().await;
    server.put_manifest("team/app", Some("v1"), media_type::OCI_MANIFEST, "{}");
    server
}

fn user(password: &str) -> Credentials {
    Credentials { username: "user".into(), password: password.into(), ..Credentials::default() }
}

fn authorizations(server: &TestRegistry) -> Vec<Option<String>> {
    server.seen().iter().map(|seen| seen.header("authorization").map(str::to_owned)).collect()
}

/// `registry.test` is served by a mirror and then by itself.
fn two(mirror: &TestRegistry, upstream: &TestRegistry) -> TestHosts {
    let hosts = TestHosts::new();
    hosts.write("registry.test", &format!("server = \"{}\"\n[host.\"{}\"]\n", upstream.url(), mirror.url()));
    hosts
}

#[tokio::test]
async fn credentials_with_an_address_go_to_that_host_and_others_get_those_of_the_configuration() {
    let (mirror, upstream) = (locked("canary-mirror").await, locked("canary-upstream").await);
    let hosts = two(&mirror, &upstream);
    let given = Credentials { server_address: upstream.url(), ..user("canary-upstream") };
    resolve(at(&hosts), Some(&given)).await.unwrap();
    assert_eq!(authorizations(&mirror), [None]);
    assert_eq!(authorizations(&upstream), [None, Some(basic("user", "canary-upstream"))]);

    let auths = BTreeMap::from([(mirror.authority(), user("canary-mirror"))]);
    resolve(RegistryConfig { auths, ..at(&hosts) }, Some(&given)).await.unwrap();
    assert_eq!(authorizations(&mirror)[1..], [None, Some(basic("user", "canary-mirror"))]);
    assert_eq!(upstream.seen().len(), 2);
}

#[tokio::test]
async fn credentials_of_one_pull_are_not_there_for_the_next() {
    let server = locked("canary").await;
    let hosts = TestHosts::new();
    hosts.write("registry.test", &format!("server = \"{}\"\n", server.url()));
    let registry = registry(at(&hosts));
    let reference = Reference::parse(REFERENCE).unwrap();
    registry.resolve(&reference, Some(&user("canary"))).await.unwrap();
    for other in [None, Some(user("wrong"))] {
        let refused = registry.resolve(&reference, other.as_ref()).await;
        assert!(matches!(refused, Err(Error::Unauthorized { .. })), "{refused:?}");
    }
    let sent = authorizations(&server);
    assert_eq!(sent[2..], [None, None, Some(basic("user", "wrong"))]);
}

#[tokio::test]
async fn a_registry_token_is_not_used() {
    let server = locked("canary").await;
    let hosts = TestHosts::new();
    hosts.write("registry.test", &format!("server = \"{}\"\n", server.url()));
    let token = Credentials { registry_token: "canary-token".into(), ..Credentials::default() };
    assert!(matches!(resolve(at(&hosts), Some(&token)).await, Err(Error::Unauthorized { .. })));
    assert_eq!(authorizations(&server), [None]);
}

#[tokio::test]
async fn who_was_sent_away_and_comes_back_brings_nothing() {
    let server = locked("canary").await;
    let between = TestRegistry::http().await;
    let hosts = TestHosts::new();
    let header = "[header]\nX-Key = \"canary-key\"\nCookie = \"canary-cookie\"\n";
    hosts.write("registry.test", &format!("server = \"{}\"\n{header}", server.url()));
    let session = resolve(at(&hosts), Some(&user("canary"))).await.unwrap().session;
    let blob = server.put_blob("team/app", "content");
    let blob_path = format!("/v2/team/app/blobs/{}", blob.digest);
    server.fault(None, &blob_path, 1, Action::Redirect(format!("{}{blob_path}", between.url())));
    between.fault(None, &blob_path, usize::MAX, Action::Redirect(format!("{}{blob_path}", server.url())));
    let before = server.seen().len();
    assert!(whole(&session, &blob).await.is_err());
    let seen: Vec<_> = server.seen()[before..].to_vec();
    assert_eq!(seen[0].header("authorization"), Some(basic("user", "canary").as_str()));
    for name in ["authorization", "x-key", "cookie"] {
        assert_eq!(seen[1].header(name), None, "{name}");
        assert!(between.seen().iter().all(|seen| seen.header(name).is_none()), "{name}");
    }
}

#[tokio::test]
async fn configured_headers_go_to_the_token_server_but_what_lets_us_in_does_not_go_elsewhere() {
    let tokens = TestRegistry::http().await;
    tokens.set_auth(Auth::Bearer { user: None, post: false });
    let server = open().await;
    server.set_auth(Auth::Bearer { user: None, post: false });
    let hosts = TestHosts::new();
    let header = "[header]\nX-Key = \"canary-key\"\nCookie = \"canary-cookie\"\nAuthorization = \"canary\"\n";
    hosts.write("registry.test", &format!("server = \"{}\"\n{header}", server.url()));
    let (name, value) = parse_header("X-Node", "canary-node").unwrap();
    let headers = http::HeaderMap::from_iter([(name, value)]);
    let config = RegistryConfig { headers, ..at(&hosts) };
    resolve(config.clone(), None).await.unwrap();
    let token = server.seen().into_iter().find(|seen| seen.path == "/token").unwrap();
    for (name, value) in [("x-key", "canary-key"), ("x-node", "canary-node"), ("cookie", "canary-cookie")] {
        assert_eq!(token.header(name), Some(value));
    }

    // Another name for the same machine is another origin.
    server.set_realm(&format!("http://localhost:{}/token", tokens.address.port()));
    resolve(config, None).await.unwrap();
    let token = &tokens.seen()[0];
    assert_eq!((token.header("x-key"), token.header("x-node")), (Some("canary-key"), Some("canary-node")));
    assert_eq!((token.header("cookie"), token.header("authorization")), (None, None));
}

#[tokio::test]
async fn skip_verify_and_client_certificates_are_for_the_host_and_not_for_its_token_server() {
    let authority = TestAuthority::new();
    let tokens = TestRegistry::https_named(&TestAuthority::new(), "localhost", false).await;
    tokens.set_auth(Auth::Bearer { user: None, post: true });
    let server = TestRegistry::https(&authority, true).await;
    server.set_auth(Auth::Bearer { user: None, post: true });
    server.set_realm(&format!("https://localhost:{}/token", tokens.address.port()));
    let hosts = TestHosts::new();
    authority.write_to(&hosts.directory("registry.test"));
    let tls = "skip_verify = true\nclient = [[\"client.pem\", \"client.key\"]]\n";
    hosts.write("registry.test", &format!("server = \"{}\"\n{tls}", server.url()));
    let error = resolve(at(&hosts), Some(&user("canary"))).await.unwrap_err().to_string();
    assert!(
        error.contains(&format!("token server https://localhost:{}/token: TLS failed", tokens.address.port())),
        "{error}"
    );
    assert_eq!(tokens.lines(), [""; 0]);
    assert_eq!(server.seen().len(), 1);
}

#[tokio::test]
async fn a_token_that_the_registry_stops_taking_is_replaced_once() {
    let server = open().await;
    server.set_auth(Auth::Bearer { user: None, post: false });
    // Good for ever, as far as the token server says.
    server.set_expiry(0);
    let hosts = TestHosts::new();
    hosts.write("registry.test", &format!("server = \"{}\"\n", server.url()));
    let session = resolve(at(&hosts), None).await.unwrap().session;
    let blob = server.put_blob("team/app", "content");
    server.revoke_tokens();
    assert_eq!(whole(&session, &blob).await.unwrap(), b"content");
    assert_eq!(server.lines().iter().filter(|line| line.ends_with("/token")).count(), 2);

    server.fault(None, "/blobs/", usize::MAX, Action::StatusWith(401, "www-authenticate", challenge(&server)));
    let error = whole(&session, &blob).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
    assert!(server.seen().len() < 15, "{:?}", server.lines());
}

fn challenge(server: &TestRegistry) -> String {
    let scope = "repository:team/app:pull";
    format!("Bearer realm=\"{}/token\",service=\"test, registry\",scope=\"{scope}\"", server.url())
}

#[tokio::test]
async fn a_token_is_fetched_again_when_it_is_over() {
    let server = open().await;
    server.set_auth(Auth::Bearer { user: None, post: false });
    server.set_expiry(300);
    let hosts = TestHosts::new();
    hosts.write("registry.test", &format!("server = \"{}\"\n", server.url()));
    let session = resolve(at(&hosts), None).await.unwrap().session;
    let blob = server.put_blob("team/app", "content");
    tokio::time::pause();
    tokio::time::advance(std::time::Duration::from_secs(301)).await;
    tokio::time::resume();
    assert_eq!(whole(&session, &blob).await.unwrap(), b"content");
    // No request was refused for the old one.
    let lines: Vec<String> = server.lines().into_iter().skip(2).collect();
    assert_eq!(lines[1..], ["GET /token".to_owned(), format!("GET /v2/team/app/blobs/{}", blob.digest)]);
}

#[tokio::test]
async fn the_older_mirrors_are_tried_in_order_with_their_own_tls() {
    let authority = TestAuthority::new();
    let files = tempfile::tempdir().unwrap();
    authority.write_to(files.path());
    let empty = TestRegistry::http().await;
    let server = TestRegistry::https(&authority, false).await;
    let manifest = server.put_manifest("team/app", Some("v1"), media_type::OCI_MANIFEST, "{}");
    let mut mirrors = Mirrors::default();
    mirrors.set_endpoints("*", &[empty.url(), server.url()]).unwrap();
    let config = || RegistryConfig { mirrors: mirrors.clone(), ..RegistryConfig::default() };
    let error = resolve(config(), None).await.unwrap_err().to_string();
    assert!(error.contains("UnknownIssuer") && error.contains("https://registry.test: "), "{error}");

    mirrors.set_tls(&server.authority(), Tls { ca: vec![files.path().join("ca.pem")], ..Tls::default() });
    let config = RegistryConfig { mirrors, ..RegistryConfig::default() };
    assert_eq!(resolve(config, None).await.unwrap().descriptor, manifest);
    let queries: Vec<String> = empty.seen().iter().chain(&server.seen()).map(|seen| seen.query.clone()).collect();
    assert_eq!(queries, ["ns=registry.test"; 3]);
}

/// A layer that the registry does not have, and `elsewhere` has.
fn foreign(elsewhere: &TestRegistry, media_type: &str) -> Descriptor {
    let mut layer = elsewhere.put_blob("layers", "foreign");
    layer.media_type = media_type.to_owned();
    layer.urls = vec![format!("{}/v2/layers/blobs/{}?signature=canary", elsewhere.url(), layer.digest)];
    layer
}

const FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";

#[tokio::test]
async fn a_foreign_layer_is_fetched_from_elsewhere_only_if_that_is_allowed() {
    let authority = TestAuthority::new();
    let elsewhere = TestRegistry::https(&authority, false).await;
    let server = open().await;
    let config = |foreign_layers| {
        // The registry is on this machine, as the other place is.
        let mut mirrors = Mirrors::default();
        mirrors.set_endpoints("127.0.0.1:1", &[server.url()]).unwrap();
        RegistryConfig { mirrors, foreign_layers, ..RegistryConfig::default() }
    };
    let session = async |foreign_layers| {
        let reference = Reference::parse("127.0.0.1:1/team/app:v1").unwrap();
        registry(config(foreign_layers)).resolve(&reference, None).await.unwrap().session
    };
    let layer = foreign(&elsewhere, FOREIGN);

    let error = whole(&session(false).await, &layer).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.contains(&format!("kept at {}/v2/layers/blobs/", elsewhere.url())), "{text}");
    assert!(text.contains("registry.allow_foreign_layers = true") && !text.contains("canary"), "{text}");
    assert!(text.contains(&format!("{}: 404 not found", server.url())), "{text}");
    assert_eq!(elsewhere.lines(), [""; 0]);

    assert_eq!(whole(&session(true).await, &layer).await.unwrap(), b"foreign");
    assert_eq!(elsewhere.seen()[0].query, "signature=canary");

    // The addresses of any other layer are nobody's business.
    let other = foreign(&elsewhere, "application/vnd.oci.image.layer.v1.tar+gzip");
    assert!(whole(&session(true).await, &other).await.is_err());
    assert_eq!(elsewhere.seen().len(), 1);

    // A registry that has the layer after all may hand it out.
    server.put_blob("team/app", "foreign");
    assert_eq!(whole(&session(false).await, &layer).await.unwrap(), b"foreign");
    assert_eq!(elsewhere.seen().len(), 1);
}

#[tokio::test]
async fn the_place_of_a_foreign_layer_learns_nothing_of_us() {
    let authority = TestAuthority::new();
    let evil = TestRegistry::https(&authority, false).await;
    for auth in
        [Auth::Basic { username: "user".into(), password: "canary".into() }, Auth::Bearer { user: None, post: true }]
    {
        evil.set_auth(auth);
        let server = locked("canary").await;
        let hosts = TestHosts::new();
        let header = "[header]\nX-Key = \"canary\"\nCookie = \"canary\"\n";
        let name = "127.0.0.1:1";
        hosts.write(name, &format!("server = \"{}\"\n{header}", server.url()));
        let config = RegistryConfig { foreign_layers: true, ..at(&hosts) };
        let reference = Reference::parse(&format!("{name}/team/app:v1")).unwrap();
        let session = registry(config).resolve(&reference, Some(&user("canary"))).await.unwrap().session;
        let text = whole(&session, &foreign(&evil, FOREIGN)).await.unwrap_err().to_string();
        assert!(text.contains("unexpected status 401") && !text.contains("canary"), "{text}");
    }
    let seen = evil.seen();
    assert_eq!(seen.len(), 2, "{:?}", evil.lines());
    for name in ["authorization", "cookie", "x-key", "proxy-authorization"] {
        assert!(seen.iter().all(|seen| seen.header(name).is_none()), "{name}");
    }
}
