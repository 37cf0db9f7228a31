//! Registries, and what stands before them, that lie or play for time: about ranges, digests and lengths, with pages for people,
//! with answers that never end. Each is found out in bounded time, and another host is asked where there is one.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt;
use http::Method;
use support::clock::fast;
use support::raw::RawServer;
use support::{Action, Auth, TestHosts, TestRegistry, install_crypto};
use windlass_image_service::digest::Digest;
use windlass_image_service::reference::Reference;
use windlass_image_service::registry::{
    Clients, Credentials, Descriptor, Error, Proxies, Registry, RegistryConfig, Resolved, Session, media_type,
};

const REFERENCE: &str = "registry.test/team/app:v1";
const MANIFEST: &str = r#"{"schemaVersion":2,"config":{}}"#;
const SIZE: usize = 200_000;
const HALF: usize = 70_000;

fn content() -> Vec<u8> {
    (b'a'..=b'z').cycle().take(SIZE).collect()
}

async fn server() -> (TestRegistry, Descriptor) {
    let server = TestRegistry::http().await;
    server.put_manifest("team/app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
    let blob = server.put_blob("team/app", content());
    (server, blob)
}

/// Resolves with these hosts, the last one being the registry itself.
async fn resolve(reference: &str, urls: &[String]) -> Result<Resolved, Error> {
    install_crypto();
    let hosts = TestHosts::new();
    let (server, mirrors) = urls.split_last().unwrap();
    let tables: String = mirrors.iter().map(|url| format!("[host.\"{url}\"]\n")).collect();
    hosts.write("registry.test", &format!("server = \"{server}\"\n{tables}"));
    let config = RegistryConfig { config_path: vec![hosts.root()], ..RegistryConfig::default() };
    let registry = Registry::new(config, Arc::new(Clients::with_proxies(Proxies::default())));
    registry.resolve(&Reference::parse(reference).unwrap(), None).await
}

async fn whole(session: &Session, blob: &Descriptor) -> Result<Vec<u8>, Error> {
    Ok(session.blob(blob, 0).await?.try_collect::<Vec<_>>().await?.concat())
}

#[tokio::test]
async fn a_part_that_is_not_the_one_asked_for_is_not_taken_for_it() {
    let part = |range: &str, bytes: std::ops::Range<usize>| Action::Part(range.to_owned(), bytes);
    let refused = "sent another range than was asked for";
    for (what, action, reason) in [
        ("from the start", part("bytes 0-199999/200000", 0..SIZE), refused),
        ("one byte late", part("bytes 70001-199999/200000", HALF + 1..SIZE), refused),
        ("one byte early", part("bytes 69999-199999/200000", HALF - 1..SIZE), refused),
        ("less than the rest", part("bytes 70000-80000/200000", HALF..80_001), refused),
        ("of something larger", part("bytes 70000-199999/300000", HALF..SIZE), refused),
        ("of something smaller", part("bytes 70000-199999/100000", HALF..SIZE), refused),
        ("of lines", part("lines 70000-199999/200000", HALF..SIZE), refused),
        ("of no size", part("bytes */200000", HALF..SIZE), refused),
        ("of numbers beyond any", part("bytes 18446744073709551616-1/2", HALF..SIZE), refused),
        ("of what it does not say", part("", HALF..SIZE), refused),
        ("none at all", Action::Status(416, String::new()), "unexpected status 416"),
    ] {
        let (bad, blob) = server().await;
        let (good, _) = server().await;
        let begin = || {
            bad.clear_faults();
            bad.fault(None, "/blobs/", 1, Action::CutBody(HALF));
            bad.fault(None, "/blobs/", usize::MAX, action.clone());
        };
        begin();
        let session = resolve(REFERENCE, &[bad.url()]).await.unwrap().session;
        let (result, took) = fast(whole(&session, &blob)).await;
        let text = result.expect_err(what).to_string();
        assert!(text.contains(reason) && text.contains(&bad.url()), "{what}: {text}");
        assert!(took < Duration::from_secs(300) && bad.seen().len() < 20, "{what}: {took:?}, {:?}", bad.lines());
        begin();
        let session = resolve(REFERENCE, &[bad.url(), good.url()]).await.unwrap().session;
        let (result, _) = fast(whole(&session, &blob)).await;
        assert!(result.unwrap_or_else(|error| panic!("{what}: {error}")) == content(), "{what}");
    }
    // A part of what was asked for as a whole.
    let ((bad, blob), (good, _)) = (server().await, server().await);
    bad.fault(None, "/blobs/", usize::MAX, part("bytes 0-69999/200000", 0..HALF));
    let session = resolve(REFERENCE, &[bad.url(), good.url()]).await.unwrap().session;
    assert!(whole(&session, &blob).await.unwrap() == content());
    assert_eq!(good.seen().len(), 1);
    // The total may be left out.
    let (server, blob) = server().await;
    server.fault(None, "/blobs/", 1, Action::CutBody(HALF));
    server.fault(None, "/blobs/", 1, part("bytes 70000-199999/*", HALF..SIZE));
    let session = resolve(REFERENCE, &[server.url()]).await.unwrap().session;
    assert!(whole(&session, &blob).await.unwrap() == content());
}

#[tokio::test]
async fn the_digest_that_a_registry_tells_is_only_where_to_look() {
    let digest = |value: String| Action::Header("docker-content-digest", value);
    let other = Digest::sha256_of(b"something else");
    // Nobody has what it speaks of.
    let (liar, _) = server().await;
    liar.fault(Some(Method::HEAD), "/manifests/v1", usize::MAX, digest(other.to_string()));
    let resolved = resolve(REFERENCE, &[liar.url()]).await.unwrap();
    assert_eq!(resolved.descriptor.digest, other);
    let error = resolved.session.manifest(&resolved.descriptor).await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    // It sends something else for it.
    liar.put_manifest("team/app", Some(&other.to_string()), media_type::OCI_MANIFEST, MANIFEST);
    let error = resolved.session.manifest(&resolved.descriptor).await.unwrap_err().to_string();
    assert!(error.contains(&format!("sent content that is not {other}")), "{error}");

    // A digest that was asked for is not to be replaced by another.
    let asked = format!("registry.test/team/app@{}", Digest::sha256_of(MANIFEST.as_bytes()));
    let (liar, _) = server().await;
    liar.fault(None, "/manifests/", usize::MAX, digest(other.to_string()));
    let error = resolve(&asked, &[liar.url()]).await.unwrap_err().to_string();
    assert!(error.contains("sent content that is not"), "{error}");
    let (good, _) = server().await;
    let found = resolve(&asked, &[liar.url(), good.url()]).await.unwrap();
    assert_eq!(found.descriptor.digest, Digest::sha256_of(MANIFEST.as_bytes()));

    // What is no digest, such as a path, is passed over: the manifest is fetched and hashed.
    for value in ["sha256:../../../etc/passwd", "md5:d41d8cd98f00b204e9800998ecf8427e", "", "sha256:ABC"] {
        let (server, _) = server().await;
        server.fault(None, "/manifests/", usize::MAX, digest(value.to_owned()));
        let found = resolve(REFERENCE, &[server.url()]).await.unwrap();
        assert_eq!(found.descriptor.digest, Digest::sha256_of(MANIFEST.as_bytes()), "{value:?}");
        assert!(server.seen().iter().all(|seen| !seen.path.contains("..")), "{:?}", server.lines());
    }
}

#[tokio::test]
async fn a_page_for_people_is_no_manifest_and_the_next_host_is_asked() {
    let page = "<!DOCTYPE html><html><body>Please sign in</body></html>";
    for kind in ["text/html", "text/html; charset=utf-8", "application/xhtml+xml"] {
        let portal = TestRegistry::http().await;
        portal.put_manifest("team/app", Some("v1"), kind, page);
        portal.fault(None, "/manifests/", usize::MAX, Action::OmitDigest);
        let error = resolve(REFERENCE, &[portal.url()]).await.unwrap_err().to_string();
        assert!(error.contains(&portal.url()) && error.contains("answers with a web page"), "{error}");
        assert!(!error.contains("sign in"), "{error}");
        let (good, _) = server().await;
        let found = resolve(REFERENCE, &[portal.url(), good.url()]).await.unwrap();
        assert_eq!(found.descriptor.digest, Digest::sha256_of(MANIFEST.as_bytes()));
    }
    // For a blob, its length gives it away; where it is not told, the first byte too many, or the digest in the end.
    let ((portal, blob), (good, _)) = (server().await, server().await);
    portal.fault(None, "/blobs/", usize::MAX, Action::Body(page.into()));
    let session = resolve(REFERENCE, &[portal.url(), good.url()]).await.unwrap().session;
    assert!(whole(&session, &blob).await.unwrap() == content());
}

const OK: &str = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: application/vnd.oci.image.manifest.v1+json\r\n";

#[tokio::test]
async fn answers_that_never_end_do_not_keep_a_pull() {
    let slow = Duration::from_secs(10);
    let none = Duration::ZERO;
    let many = " ".repeat(1 << 16);
    for (what, start, piece, pause, reason) in [
        ("silence", String::new(), "", slow, "timed out"),
        ("headers one by one", "HTTP/1.1 200 OK\r\n".to_owned(), "x-a: b\r\n", slow, "timed out"),
        ("headers without end", "HTTP/1.1 200 OK\r\n".to_owned(), "x-header: with a value\r\n", none, ""),
        ("one header without end", "HTTP/1.1 200 OK\r\nx-a: ".to_owned(), &many, none, ""),
        ("a manifest byte by byte", format!("{OK}\r\n"), " ", slow, "took longer than 120 s"),
        ("a manifest without end", format!("{OK}\r\n"), &many, none, "larger than 4 MiB"),
        (
            "a refusal byte by byte",
            "HTTP/1.1 403 Forbidden\r\nconnection: close\r\n\r\n".to_owned(),
            "n",
            slow,
            "403 forbidden",
        ),
        (
            "a refusal without end",
            "HTTP/1.1 403 Forbidden\r\nconnection: close\r\n\r\n".to_owned(),
            "nnnnnnnnnnnnnnnnnnn",
            none,
            "403 forbidden",
        ),
        ("another protocol", "SSH-2.0-OpenSSH_9.2p1\r\n".to_owned(), "", slow, ""),
        (
            "a redirect to an address without end",
            format!("HTTP/1.1 307 x\r\ncontent-length: 0\r\nlocation: /{}\r\n\r\n", "x".repeat(10 << 20)),
            "",
            slow,
            "",
        ),
    ] {
        let bad = RawServer::new(start, piece, pause).await;
        let (failed, took) = fast(resolve(REFERENCE, std::slice::from_ref(&bad.url))).await;
        let text = failed.expect_err(what).to_string();
        assert!(text.contains(&bad.url) && text.contains(reason), "{what}: {text}");
        assert!(text.len() < 2_000 && !text.contains(char::is_control), "{what}: {} bytes: {text:.300}", text.len());
        assert!(took < Duration::from_secs(600), "{what}: {took:?}");
        let (good, _) = server().await;
        let (found, took) = fast(resolve(REFERENCE, &[bad.url.clone(), good.url()])).await;
        assert_eq!(found.unwrap().descriptor.digest, Digest::sha256_of(MANIFEST.as_bytes()), "{what}");
        assert!(took < Duration::from_secs(300), "{what}: {took:?}");
    }
}

#[tokio::test]
async fn a_token_server_that_plays_for_time_is_given_up_by_name() {
    let ok = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n";
    for (what, start, piece, reason) in [
        ("silence", String::new(), "", "timed out"),
        ("headers one by one", ok.to_owned(), "x-a: b\r\n", "timed out"),
        ("a token byte by byte", format!("{ok}\r\n{{\"token\":\""), "x", "took longer than 120 s"),
    ] {
        let (server, _) = server().await;
        let raw = RawServer::new(start, piece, Duration::from_secs(10)).await;
        server.set_auth(Auth::Bearer { user: None, post: false });
        server.set_realm(&format!("{}/token", raw.url));
        let (failed, took) = fast(resolve(REFERENCE, &[server.url()])).await;
        let text = failed.expect_err(what).to_string();
        assert!(text.contains(&format!("{}/token", raw.url)) && text.contains(reason), "{what}: {text}");
        assert!(took < Duration::from_secs(600), "{what}: {took:?}");
    }
}

#[tokio::test]
async fn a_registry_that_is_never_satisfied_is_not_asked_for_ever() {
    let (server, _) = server().await;
    // Every token is one of before.
    server.set_auth(Auth::Bearer { user: Some(("u".into(), "p".into())), post: true });
    server.fault(
        None,
        "/manifests/",
        usize::MAX,
        Action::StatusWith(401, "www-authenticate", format!("Bearer realm=\"{}/token\"", server.url())),
    );
    let hosts = TestHosts::new();
    hosts.write("registry.test", &format!("server = \"{}\"\n", server.url()));
    install_crypto();
    let config = RegistryConfig { config_path: vec![hosts.root()], ..RegistryConfig::default() };
    let registry = Registry::new(config, Arc::new(Clients::with_proxies(Proxies::default())));
    let user = Credentials { username: "u".into(), password: "p".into(), ..Credentials::default() };
    let (failed, took) = fast(registry.resolve(&Reference::parse(REFERENCE).unwrap(), Some(&user))).await;
    assert!(matches!(failed, Err(Error::Unauthorized { .. })), "{failed:?}");
    assert!(took < Duration::from_secs(100) && server.seen().len() < 12, "{took:?} {:?}", server.lines());
}
