//! A registry with a fault script: every fault ends in the right bytes, by another host or by going on, or in one error that
//! names the image, the host and what happened.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt;
use support::clock::fast;
use support::{Action, Auth, TestHosts, TestRegistry, install_crypto};
use windlass_image_service::reference::Reference;
use windlass_image_service::registry::{
    Clients, Credentials, Descriptor, Error, Proxies, Registry, RegistryConfig, Session, media_type,
};

const REFERENCE: &str = "registry.test/team/app:v1";
const SIZE: usize = 200_000;

fn content() -> Vec<u8> {
    (b'a'..=b'z').cycle().take(SIZE).collect()
}

/// A registry with the image and one blob.
async fn server() -> (TestRegistry, Descriptor) {
    let server = TestRegistry::http().await;
    server.put_manifest("team/app", Some("v1"), media_type::OCI_MANIFEST, "{}");
    let blob = server.put_blob("team/app", content());
    (server, blob)
}

/// The session of a pull from these hosts, the last one being the registry itself.
async fn session(urls: &[String]) -> Session {
    install_crypto();
    let hosts = TestHosts::new();
    let (server, mirrors) = urls.split_last().unwrap();
    let tables: String = mirrors.iter().map(|url| format!("[host.\"{url}\"]\n")).collect();
    hosts.write("registry.test", &format!("server = \"{server}\"\n{tables}"));
    let config = RegistryConfig { config_path: vec![hosts.root()], ..RegistryConfig::default() };
    let registry = Registry::new(config, Arc::new(Clients::with_proxies(Proxies::default())));
    registry.resolve(&Reference::parse(REFERENCE).unwrap(), None).await.unwrap().session
}

async fn whole(session: &Session, blob: &Descriptor) -> Result<Vec<u8>, Error> {
    Ok(session.blob(blob, 0).await?.try_collect::<Vec<_>>().await?.concat())
}

fn ranges(server: &TestRegistry) -> Vec<Option<String>> {
    let blobs = server.seen().into_iter().filter(|seen| seen.path.contains("/blobs/"));
    blobs.map(|seen| seen.header("range").map(str::to_owned)).collect()
}

/// What a fault that lasts does to a pull from one host. `Ok` tells the ranges that were asked for until all had come.
async fn alone(times: usize, action: Action) -> (Result<Vec<u8>, String>, TestRegistry, Duration) {
    let (server, blob) = server().await;
    let session = session(&[server.url()]).await;
    server.fault(None, "/blobs/", times, action);
    let (result, took) = fast(whole(&session, &blob)).await;
    let result = result.map_err(|error| {
        let text = error.to_string();
        assert!(text.starts_with(&format!("registry.test/team/app@{}: ", blob.digest)), "{text}");
        assert!(text.contains(&server.url()), "{text}");
        assert!(!text.contains('\n'), "{text}");
        text
    });
    (result, server, took)
}

fn faults() -> Vec<(&'static str, Action, &'static str)> {
    let status = |status| Action::Status(status, String::new());
    vec![
        ("reset", Action::Reset(0), "body broke off"),
        ("reset in the middle", Action::Reset(70_000), ""),
        ("truncated", Action::CutBody(70_000), ""),
        ("empty", Action::Body(Bytes::new()), "offers 0 bytes where 200000 are due"),
        ("too short", Action::Body(Bytes::from_static(b"short")), "offers 5 bytes where 200000 are due"),
        ("too long", Action::Body(vec![0; SIZE + 1].into()), "offers 200001 bytes where 200000 are due"),
        (
            "endless",
            Action::Unsized([content(), vec![b'x'; 100_000]].concat().into()),
            "sent more than the 200000 bytes of it",
        ),
        ("401", status(401), "401 unauthorized"),
        ("403", status(403), "403 forbidden"),
        ("404", status(404), "404 not found"),
        ("408", status(408), "unexpected status 408"),
        ("429", status(429), "unexpected status 429"),
        ("500", status(500), "unexpected status 500"),
        ("502", status(502), "unexpected status 502"),
        ("503", status(503), "unexpected status 503"),
        (
            "a redirect to nowhere",
            Action::Redirect("http://127.0.0.1:1/x".into()),
            "redirected to http://127.0.0.1:1/x",
        ),
        ("a redirect to a file", Action::Redirect("file:///etc/passwd".into()), "not http"),
        ("a hold", Action::HoldBody(10), "timed out"),
        ("a drip that is too slow", Action::Drip(1, Duration::from_secs(61)), "timed out"),
    ]
}

#[tokio::test]
async fn a_fault_that_lasts_ends_in_one_error_with_its_reason_and_in_bounded_time() {
    for (name, action, reason) in faults().into_iter().filter(|(_, _, reason)| !reason.is_empty()) {
        let (result, server, took) = alone(usize::MAX, action).await;
        let text = result.expect_err(name);
        assert!(text.contains(reason), "{name}: {text}");
        assert!(took < Duration::from_secs(500), "{name}: {took:?}");
        assert!(server.seen().len() < 60, "{name}: {} requests", server.seen().len());
    }
}

#[tokio::test]
async fn a_fault_of_the_first_host_is_made_up_for_by_the_second() {
    for (name, action, _) in faults() {
        let (bad, blob) = server().await;
        let (good, _) = server().await;
        let session = session(&[bad.url(), good.url()]).await;
        bad.fault(None, "/blobs/", usize::MAX, action);
        let (result, took) = fast(whole(&session, &blob)).await;
        let bytes = result.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(bytes == content(), "{name}");
        // Nobody waits for a host while another one can be asked, but for answers that do not come.
        let limit = if ["a hold", "a drip that is too slow"].contains(&name) { 500 } else { 10 };
        assert!(took < Duration::from_secs(limit), "{name}: {took:?}");
    }
}

#[tokio::test]
async fn a_fault_that_passes_is_gone_on_from_where_it_struck() {
    let check = async |times: usize, action: Action, expected: &[Option<&str>]| {
        let name = format!("{action:?}");
        let (result, server, _) = alone(times, action).await;
        assert!(result.unwrap_or_else(|error| panic!("{name}: {error}")) == content(), "{name}");
        assert_eq!(ranges(&server).iter().map(Option::as_deref).collect::<Vec<_>>(), expected, "{name}");
    };
    check(1, Action::CutBody(70_000), &[None, Some("bytes=70000-")]).await;
    check(2, Action::CutBody(70_000), &[None, Some("bytes=70000-"), Some("bytes=140000-")]).await;
    check(1, Action::Status(503, String::new()), &[None, None]).await;
    check(3, Action::Status(502, String::new()), &[None; 4]).await;
    check(3, Action::Status(429, String::new()), &[None; 4]).await;
    check(1, Action::HoldBody(70_000), &[None, Some("bytes=70000-")]).await;
    // Slow is not wrong.
    check(1, Action::Drip(10_000, Duration::from_secs(50)), &[None]).await;
}

#[tokio::test]
async fn after_a_reset_no_byte_is_missing_and_none_is_there_twice() {
    // A reset takes with it what the receiver has not read yet, so where it goes on is not known before.
    let (result, server, _) = alone(1, Action::Reset(70_000)).await;
    assert!(result.unwrap() == content());
    assert_eq!(ranges(&server).len(), 2);
}

#[tokio::test]
async fn a_registry_that_is_away_for_ten_seconds_is_waited_for_if_there_is_no_other() {
    let (result, server, took) = alone(1, Action::Die(70_000, Duration::from_secs(10))).await;
    assert!(result.unwrap() == content());
    assert_eq!(ranges(&server), [None, Some("bytes=70000-".to_owned())]);
    assert!((10..30).contains(&took.as_secs()), "{took:?}");

    let (dying, blob) = server_that_dies(Duration::from_secs(1000)).await;
    let (good, _) = self::server().await;
    let pull = session(&[dying.url(), good.url()]).await;
    let (result, took) = fast(whole(&pull, &blob)).await;
    assert!(result.unwrap() == content());
    assert!(took < Duration::from_secs(2), "{took:?}");
    assert_eq!(ranges(&good), [Some("bytes=70000-".to_owned())]);
}

async fn server_that_dies(duration: Duration) -> (TestRegistry, Descriptor) {
    let (server, blob) = server().await;
    server.fault(None, "/blobs/", 1, Action::Die(70_000, duration));
    (server, blob)
}

#[tokio::test]
async fn a_registry_that_stays_away_is_given_up_with_the_reason() {
    let (result, _, took) = alone(1, Action::Die(70_000, Duration::from_secs(1000))).await;
    let text = result.unwrap_err();
    assert!(text.contains("no registry could serve it") && text.contains("Connection refused"), "{text}");
    assert!((15..200).contains(&took.as_secs()), "{took:?}");
}

#[tokio::test]
async fn a_registry_that_was_never_there_is_not_waited_for() {
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let url = format!("http://{gone}");
    let (failed, took) = fast(async {
        let hosts = TestHosts::new();
        hosts.write("registry.test", &format!("server = \"{url}\"\n"));
        let config = RegistryConfig { config_path: vec![hosts.root()], ..RegistryConfig::default() };
        install_crypto();
        let registry = Registry::new(config, Arc::new(Clients::with_proxies(Proxies::default())));
        registry.resolve(&Reference::parse(REFERENCE).unwrap(), None).await
    })
    .await;
    assert!(matches!(failed, Err(Error::Unavailable { .. })), "{failed:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
}

#[tokio::test]
async fn what_a_server_asks_for_by_retry_after_is_waited() {
    for status in [429, 503] {
        let (result, _, took) = alone(2, Action::StatusWith(status, "retry-after", "4".into())).await;
        assert!(result.unwrap() == content());
        assert!((8..12).contains(&took.as_secs()), "{status}: {took:?}");
        let (result, server, took) = alone(1, Action::StatusWith(status, "retry-after", "600".into())).await;
        let text = result.unwrap_err();
        assert!(text.contains(&format!("unexpected status {status} (it asks to try again in 600 s)")), "{text}");
        assert!(took < Duration::from_secs(2), "{took:?}");
        assert_eq!(ranges(&server).len(), 1);
    }
}

#[tokio::test]
async fn a_loop_of_redirects_of_a_blob_ends_and_another_host_is_asked() {
    let (bad, blob) = server().await;
    let (good, _) = server().await;
    let target = format!("{}/v2/team/app/blobs/{}", bad.url(), blob.digest);
    bad.fault(None, "/blobs/", usize::MAX, Action::Redirect(target));
    let error = whole(&session(&[bad.url()]).await, &blob).await.unwrap_err().to_string();
    assert!(error.contains(&format!("{}: more than 10 redirects", bad.url())), "{error}");
    assert!(whole(&session(&[bad.url(), good.url()]).await, &blob).await.unwrap() == content());
}

#[tokio::test]
async fn a_token_server_that_fails_is_named_and_its_answers_are_bounded() {
    let check = async |action: Action, expected: &str| {
        let (server, _) = server().await;
        server.set_auth(Auth::Bearer { user: None, post: true });
        server.fault(None, "/token", usize::MAX, action);
        let hosts = TestHosts::new();
        hosts.write("registry.test", &format!("server = \"{}\"\n", server.url()));
        let config = RegistryConfig { config_path: vec![hosts.root()], ..RegistryConfig::default() };
        install_crypto();
        let registry = Registry::new(config, Arc::new(Clients::with_proxies(Proxies::default())));
        let user = Credentials { username: "u".into(), password: "canary".into(), ..Credentials::default() };
        let (failed, took) = fast(registry.resolve(&Reference::parse(REFERENCE).unwrap(), Some(&user))).await;
        let text = failed.unwrap_err().to_string();
        assert!(text.contains(expected) && text.contains(&format!("{}/token", server.url())), "{text}");
        assert!(!text.contains("canary"), "{text}");
        assert!(took < Duration::from_secs(70), "{took:?}");
        assert!(server.seen().len() < 6, "{:?}", server.lines());
    };
    let answer = |text: &str| Action::Status(200, text.to_owned());
    check(answer("<html>"), "its answer is not JSON").await;
    check(answer("{}"), "its answer has no token").await;
    check(answer("{\"token\":\"a\\nb\"}"), "its token has invalid characters").await;
    check(answer(&format!("{{\"token\":\"{}\"}}", "x".repeat(1 << 20))), "its answer is too long").await;
    check(Action::Status(500, "canary".into()), "answered 500 Internal Server Error").await;
    check(Action::Redirect("http://127.0.0.1:1/".into()), "answered 307 Temporary Redirect").await;
}
