//! Proxies: which requests go through them, what they are told, and what is said when they fail.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use support::proxy::TestProxy;
use support::socks::TestSocks;
use support::{Action, Auth, TestAuthority, TestHosts, TestRegistry, basic, install_crypto};
use windlass_image_service::reference::Reference;
use windlass_image_service::registry::{
    Clients, Credentials, Environment, Error, Proxies, Registry, RegistryConfig, Resolved, media_type,
};

/// Resolves `registry.test/team/app:v1` with this `hosts.toml` and this environment.
async fn resolve(hosts: &TestHosts, http: &str, https: &str, no_proxy: &str) -> Result<Resolved, Error> {
    resolve_by(hosts, Environment { http, https, no_proxy, ..Environment::default() }).await
}

async fn resolve_by(hosts: &TestHosts, environment: Environment<'_>) -> Result<Resolved, Error> {
    install_crypto();
    let (proxies, errors) = Proxies::new(environment);
    assert_eq!(errors, []);
    let config = RegistryConfig { config_path: vec![hosts.root()], ..RegistryConfig::default() };
    let registry = Registry::new(config, Arc::new(Clients::with_proxies(proxies)));
    let user = Credentials { username: "user".into(), password: "canary".into(), ..Credentials::default() };
    registry.resolve(&Reference::parse("registry.test/team/app:v1").unwrap(), Some(&user)).await
}

fn put_image(server: &TestRegistry) {
    server.put_manifest("team/app", Some("v1"), media_type::OCI_MANIFEST, "{}");
    server.set_auth(Auth::Basic { username: "user".into(), password: "canary".into() });
}

#[tokio::test]
async fn plain_requests_go_through_the_proxy_with_its_credentials_which_the_registry_never_sees() {
    let server = TestRegistry::http().await;
    put_image(&server);
    let proxy = TestProxy::to(server.address, Some(basic("proxy-user", "proxy-password"))).await;
    let hosts = TestHosts::new();
    hosts.write("registry.test", "server = \"http://registry.test\"\n");
    let address = format!("http://proxy-user:proxy-password@{}", proxy.address);
    resolve(&hosts, &address, "", "").await.unwrap();
    let line = "HEAD http://registry.test/v2/team/app/manifests/v1 HTTP/1.1";
    assert_eq!(proxy.lines(), [line, line]);
    assert!(server.seen().iter().all(|seen| seen.header("proxy-authorization").is_none()));
}

#[tokio::test]
async fn tls_goes_through_a_tunnel_in_which_the_proxy_sees_no_more_than_the_host() {
    let authority = TestAuthority::new();
    let server = TestRegistry::https_named(&authority, "registry.test", false).await;
    put_image(&server);
    let proxy = TestProxy::to(server.address, Some(basic("proxy-user", "proxy-password"))).await;
    let hosts = TestHosts::new();
    authority.write_to(&hosts.directory("registry.test"));
    hosts.write("registry.test", "server = \"https://registry.test\"\nca = \"ca.pem\"\n");
    let address = format!("proxy-user:proxy-password@{}", proxy.address);
    resolve(&hosts, "", &address, "").await.unwrap();
    assert_eq!(proxy.lines(), ["CONNECT registry.test:443 HTTP/1.1"]);
    let head = proxy.seen().concat().to_lowercase();
    assert!(!head.lines().any(|line| line.starts_with("authorization:")), "{head}");
    assert_eq!(server.seen().len(), 2);
}

#[tokio::test]
async fn hosts_in_no_proxy_and_this_machine_are_asked_directly() {
    let server = TestRegistry::http().await;
    put_image(&server);
    let proxy = TestProxy::to(server.address, None).await;
    let address = format!("http://{}", proxy.address);
    let hosts = TestHosts::new();
    hosts.write("registry.test", &format!("server = \"{}\"\n", server.url()));
    resolve(&hosts, &address, &address, "").await.unwrap();

    hosts.write("registry.test", "server = \"http://registry.test\"\n");
    let error = resolve(&hosts, &address, &address, "other,.test").await.unwrap_err().to_string();
    assert!(error.contains("http://registry.test: its name cannot be resolved: "), "{error}");
    assert_eq!(proxy.lines(), [""; 0]);
}

#[tokio::test]
async fn a_proxy_that_refuses_or_is_not_there_is_named_without_its_password() {
    let server = TestRegistry::http().await;
    let proxy = TestProxy::to(server.address, Some("Basic other".into())).await;
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let check = async |server: &str, proxy: String, expected: &[&str]| {
        let hosts = TestHosts::new();
        hosts.write("registry.test", &format!("server = \"{server}\"\n"));
        let error = resolve(&hosts, &proxy, &proxy, "").await.unwrap_err();
        assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
        let text = error.to_string();
        assert!(text.starts_with("registry.test/team/app:v1: no registry could serve it: "), "{text}");
        for part in expected.iter().chain([&server]) {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("canary") && !text.contains('\n'), "{text}");
    };
    let refusing = format!("http://user:canary@{}", proxy.address);
    let shown = format!("proxy http://{}", proxy.address);
    check("http://registry.test", refusing.clone(), &[&shown, "wants credentials", "HTTP_PROXY"]).await;
    check("https://registry.test", refusing, &[&shown, "check HTTPS_PROXY and NO_PROXY"]).await;
    let shown = format!("proxy http://{gone}");
    check("http://registry.test", format!("http://user:canary@{gone}"), &[&shown, "Connection refused"]).await;
    check("https://registry.test", format!("http://user:canary@{gone}"), &[&shown, "Connection refused"]).await;
}

#[tokio::test]
async fn a_registry_elsewhere_cannot_send_us_to_this_machine() {
    let server = TestRegistry::http().await;
    let own = TestRegistry::http().await;
    let proxy = TestProxy::to(server.address, None).await;
    let hosts = TestHosts::new();
    hosts.write("registry.test", "server = \"http://registry.test\"\n");
    let address = format!("http://{}", proxy.address);
    for target in [own.url(), format!("http://localhost:{}", own.address.port()), "http://169.254.169.254/x".into()] {
        server.fault(None, "/manifests/", 1, Action::Redirect(target));
        let error = resolve(&hosts, &address, "", "").await.unwrap_err().to_string();
        assert!(error.contains("redirect to an address that only this machine can reach is refused"), "{error}");
    }
    // The same by way of a token server.
    server.put_manifest("team/app", Some("v1"), media_type::OCI_MANIFEST, "{}");
    server.set_auth(Auth::Bearer { user: None, post: false });
    server.set_realm(&format!("{}/token", own.url()));
    let error = resolve(&hosts, &address, "", "").await.unwrap_err().to_string();
    assert!(error.contains("token server is refused"), "{error}");
    assert_eq!(own.lines(), [""; 0]);
}

#[tokio::test]
async fn socks_carries_plain_requests_and_tls_to_names_that_only_the_proxy_knows() {
    let authority = TestAuthority::new();
    let (plain, tls) =
        (TestRegistry::http().await, TestRegistry::https_named(&authority, "registry.test", false).await);
    for (scheme, server, port) in [("http", &plain, 80), ("https", &tls, 443)] {
        put_image(server);
        let hosts = TestHosts::new();
        authority.write_to(&hosts.directory("registry.test"));
        hosts.write("registry.test", &format!("server = \"{scheme}://registry.test\"\nca = \"ca.pem\"\n"));
        // The password has an @, which an address writes as %40.
        let proxy = TestSocks::to(server.address, Some(("proxy-user", "pass@word"))).await;
        for spelling in ["socks5", "socks5h"] {
            let all = &format!("{spelling}://proxy-user:pass%40word@{}", proxy.address);
            resolve_by(&hosts, Environment { all, ..Environment::default() }).await.unwrap();
        }
        let open = TestSocks::to(server.address, None).await;
        let (http, https) = (&format!("socks5://{}", open.address), &format!("socks5h://{}", open.address));
        resolve_by(&hosts, Environment { http, https, ..Environment::default() }).await.unwrap();
        let asked = format!("registry.test:{port}");
        for seen in [proxy.seen(), open.seen()] {
            assert!(!seen.is_empty() && seen.iter().all(|target| *target == asked), "{seen:?}");
        }
        // The proxy's credentials are for the proxy.
        assert!(server.seen().iter().all(|seen| seen.header("proxy-authorization").is_none()));
        let error = resolve_by(&hosts, Environment { all: http, no_proxy: "registry.test", ..Environment::default() });
        assert!(error.await.unwrap_err().to_string().contains("its name cannot be resolved"));
    }
}

#[tokio::test]
async fn a_socks_proxy_that_refuses_or_is_not_there_is_named_without_its_password() {
    let server = TestRegistry::http().await;
    let hosts = TestHosts::new();
    let strict = TestSocks::to(server.address, Some(("user", "right"))).await;
    let closed = TestSocks::refusing(5).await;
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    for (address, user) in
        [(strict.address, "user:canary@"), (strict.address, ""), (closed.address, ""), (gone, "user:canary@")]
    {
        for scheme in ["http", "https"] {
            hosts.write("registry.test", &format!("server = \"{scheme}://registry.test\"\n"));
            let all = &format!("socks5://{user}{address}");
            let error = resolve_by(&hosts, Environment { all, ..Environment::default() }).await.unwrap_err();
            assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
            let text = error.to_string();
            let shown = format!("no connection by way of the proxy socks5://{address}: ");
            assert!(text.contains(&shown) && text.contains("; check ALL_PROXY and NO_PROXY"), "{text}");
            assert!(!text.contains("canary") && !text.contains('\n'), "{text}");
        }
    }
    assert_eq!(server.lines(), [""; 0]);
}
