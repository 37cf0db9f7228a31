//! What is said when an image cannot be had: one line that names the image, every host tried, why, and the way out.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use support::{Action, Auth, TestAuthority, TestHosts, TestRegistry, install_crypto};
use tokio::net::TcpSocket;
use windlass_image_service::reference::Reference;
use windlass_image_service::registry::{
    Clients, Credentials, Error, Proxies, Registry, RegistryConfig, Resolved, media_type,
};

const REFERENCE: &str = "registry.test/team/app:v1";

async fn resolve(hosts: &TestHosts, credentials: Option<&Credentials>) -> Result<Resolved, Error> {
    install_crypto();
    let config = RegistryConfig { config_path: vec![hosts.root()], ..RegistryConfig::default() };
    let registry = Registry::new(config, Arc::new(Clients::with_proxies(Proxies::default())));
    registry.resolve(&Reference::parse(REFERENCE).unwrap(), credentials).await
}

/// The message of a pull with this `hosts.toml`: it starts with the image and how it failed, and ends with the host, why
/// and what to do.
#[track_caller]
fn check(result: Result<Resolved, Error>, kind: &str, host: &str, why: &[&str]) {
    let text = result.unwrap_err().to_string();
    assert!(text.starts_with(&format!("{REFERENCE}: {kind}")), "{text}");
    let (_, told) = text.split_once(&format!("{host}: ")).unwrap_or_else(|| panic!("{host} is not in {text}"));
    for part in why {
        assert!(told.contains(part), "{part:?} is not in {text}");
    }
    assert!(!text.contains('\n') && !text.contains("canary"), "{text}");
}

async fn with_server(line: &str) -> Result<Resolved, Error> {
    let hosts = TestHosts::new();
    hosts.write("registry.test", line);
    resolve(&hosts, None).await
}

const UNAVAILABLE: &str = "no registry could serve it: ";

#[tokio::test]
async fn a_name_that_nobody_knows_is_told_from_a_host_that_does_not_answer() {
    let result = with_server("server = \"https://registry.invalid\"").await;
    check(result, UNAVAILABLE, "https://registry.invalid", &["its name cannot be resolved", "this node's DNS"]);
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let result = with_server(&format!("server = \"http://{gone}\"")).await;
    check(result, UNAVAILABLE, &format!("http://{gone}"), &["Connection refused", "that the registry runs"]);
}

#[tokio::test]
async fn a_host_that_answers_no_connection_is_given_up_after_the_dial_timeout() {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(0).unwrap();
    let address = listener.local_addr().unwrap();
    // A full queue makes the kernel drop what else would connect.
    let mut waiting = Vec::new();
    for _ in 0..4 {
        waiting.push(TcpSocket::new_v4().unwrap().connect(address));
    }
    let waiting = futures_util::future::join_all(waiting);
    let (server, manifest) = {
        let server = TestRegistry::http().await;
        let manifest = server.put_manifest("team/app", Some("v1"), media_type::OCI_MANIFEST, "{}");
        (server, manifest)
    };
    let started = std::time::Instant::now();
    tokio::select! {
        _ = waiting => panic!("the queue is longer than it was asked to be"),
        () = async {
            let dead = format!("http://{address}");
            let result = with_server(&format!("server = \"{dead}\"\ndial_timeout = \"300ms\"")).await;
            check(result, UNAVAILABLE, &dead, &["no connection within 300 ms", "dial_timeout"]);
            let next = format!("server = \"{}\"\n[host.\"{dead}\"]\ndial_timeout = \"300ms\"", server.url());
            assert_eq!(with_server(&next).await.unwrap().descriptor, manifest);
        } => {}
    }
    assert!(started.elapsed().as_secs() < 20);
}

#[tokio::test]
async fn each_failure_of_tls_is_told_with_its_way_out() {
    let authority = TestAuthority::new();
    let check_tls = async |server: &TestRegistry, lines: &str, why: &[&str]| {
        let hosts = TestHosts::new();
        authority.write_to(&hosts.directory("registry.test"));
        hosts.write("registry.test", &format!("server = \"{}\"\n{lines}", server.url()));
        check(resolve(&hosts, None).await, UNAVAILABLE, &server.url(), why);
    };
    let server = TestRegistry::https(&authority, false).await;
    check_tls(&server, "", &["TLS failed", "UnknownIssuer", "as ca in hosts.toml"]).await;
    check_tls(&server, "ca = \"absent.pem\"", &["cannot read", "absent.pem", "No such file"]).await;
    check_tls(&server, "ca = \"client.key\"", &["client.key holds no usable certificate"]).await;
    let other = TestRegistry::https_named(&authority, "other.test", false).await;
    check_tls(&other, "ca = \"ca.pem\"", &["TLS failed", "a name that is in the certificate"]).await;
    let old = TestRegistry::https_expired(&authority).await;
    check_tls(&old, "ca = \"ca.pem\"", &["TLS failed", "renew the registry's certificate"]).await;
    let wanting = TestRegistry::https(&authority, true).await;
    check_tls(&wanting, "ca = \"ca.pem\"", &["TLS failed", "a client certificate"]).await;

    let plain = TestRegistry::http().await;
    let address = format!("https://{}", plain.address);
    let result = with_server(&format!("server = \"{address}\"")).await;
    check(result, UNAVAILABLE, &address, &["TLS failed", "write its address with http://"]);
}

#[tokio::test]
async fn wrong_credentials_no_credentials_and_no_repository_are_told_apart() {
    let user =
        |password: &str| Credentials { username: "user".into(), password: password.into(), ..Credentials::default() };
    let known = || ("user".to_owned(), "canary-right".to_owned());
    let basic = Auth::Basic { username: known().0, password: known().1 };
    let bearer = Auth::Bearer { user: Some(known()), post: true };
    const DENIED: &str = "pull access denied, repository does not exist or may require authorization: ";
    for (auth, none, wrong) in [
        (basic, "no basic auth credentials: it wants a user name", "the user name or password is wrong"),
        (bearer, "it wants credentials, and there are none", "the credentials are wrong"),
    ] {
        let server = TestRegistry::http().await;
        server.set_auth(auth);
        let hosts = TestHosts::new();
        hosts.write("registry.test", &format!("server = \"{}\"\n", server.url()));
        check(resolve(&hosts, None).await, DENIED, &server.url(), &[none]);
        check(resolve(&hosts, Some(&user("canary-wrong"))).await, DENIED, &server.url(), &[wrong]);
        check(resolve(&hosts, Some(&user("canary-right"))).await, "not found: ", &server.url(), &["404 not found"]);
    }
}

#[tokio::test]
async fn all_hosts_that_were_tried_are_listed_with_what_came_of_each() {
    let (empty, closed, broken) = (TestRegistry::http().await, TestRegistry::http().await, TestRegistry::http().await);
    closed.fault(
        None,
        "/manifests/",
        usize::MAX,
        Action::Status(403, "{\"errors\":[{\"code\":\"DENIED\",\"message\":\"not you\"}]}".into()),
    );
    broken.fault(None, "/manifests/", usize::MAX, Action::Status(500, "<html>canary</html>".into()));
    let hosts = TestHosts::new();
    let text = format!("server = \"{}\"\n[host.\"{}\"]\n[host.\"{}\"]\n", broken.url(), empty.url(), closed.url());
    hosts.write("registry.test", &text);
    let error = resolve(&hosts, None).await.unwrap_err().to_string();
    let expected = format!(
        "{}: 404 not found; {}: denied: not you; {}: unexpected status 500",
        empty.url(),
        closed.url(),
        broken.url()
    );
    assert!(error.ends_with(&expected), "{error}");
    assert!(error.starts_with(&format!("{REFERENCE}: pull access denied")), "{error}");
}

#[tokio::test]
async fn a_registry_that_asks_for_more_patience_than_there_is_is_quoted() {
    let server = TestRegistry::http().await;
    server.fault(None, "/manifests/", usize::MAX, Action::StatusWith(429, "retry-after", "3600".into()));
    let result = with_server(&format!("server = \"{}\"", server.url())).await;
    check(result, UNAVAILABLE, &server.url(), &["unexpected status 429 (it asks to try again in 3600 s)"]);
    assert_eq!(server.seen().len(), 1);
}
