//! The registry client against in-process registries: order of hosts, namespace, redirects, broken transfers.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::sync::Arc;

use bytes::Bytes;
use futures_util::TryStreamExt;
use http::Method;
use support::{Action, TestAuthority, TestHosts, TestRegistry, install_crypto};
use windlass_image_service::reference::Reference;
use windlass_image_service::registry::{
    Clients, Descriptor, Error, Registry, RegistryConfig, Resolved, Session, media_type,
};

const MANIFEST: &str = r#"{"schemaVersion":2,"config":{}}"#;

fn registry(hosts: &TestHosts) -> Registry {
    install_crypto();
    let config = RegistryConfig { config_path: vec![hosts.root()], ..RegistryConfig::default() };
    Registry::new(config, Arc::new(Clients::new()))
}

async fn resolve(hosts: &TestHosts, reference: &str) -> Result<Resolved, Error> {
    registry(hosts).resolve(&Reference::parse(reference).unwrap(), None).await
}

/// A registry with `team/app:v1`.
async fn with_image() -> (TestRegistry, Descriptor) {
    let registry = TestRegistry::http().await;
    let manifest = registry.put_manifest("team/app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
    (registry, manifest)
}

/// Serves `registry.test` from hosts that are tried in this order, the last one as its server.
fn served_by(urls: &[&str]) -> TestHosts {
    let hosts = TestHosts::new();
    let (server, mirrors) = urls.split_last().unwrap();
    let tables: String = mirrors.iter().map(|url| format!("[host.\"{url}\"]\n")).collect();
    hosts.write("registry.test", &format!("server = \"{server}\"\n{tables}"));
    hosts
}

async fn whole(session: &Session, blob: &Descriptor, offset: u64) -> Result<Vec<u8>, Error> {
    let chunks: Vec<Bytes> = session.blob(blob, offset).await?.try_collect().await?;
    Ok(chunks.concat())
}

/// An address where nothing listens.
async fn refused() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}

fn letters(count: usize) -> Vec<u8> {
    (b'a'..=b'z').cycle().take(count).collect()
}

#[tokio::test]
async fn a_mirror_is_told_which_registry_is_meant_and_the_registry_itself_is_not() {
    let (mirror, manifest) = with_image().await;
    let hosts = served_by(&[&mirror.url(), "http://127.0.0.1:1"]);
    let resolved = resolve(&hosts, "registry.test/team/app:v1").await.unwrap();
    assert_eq!(resolved.descriptor, manifest);
    let blob = mirror.put_blob("team/app", "blob");
    assert_eq!(whole(&resolved.session, &blob, 0).await.unwrap(), b"blob");
    assert_eq!(resolved.session.manifest(&manifest).await.unwrap(), MANIFEST);
    let queries: Vec<String> = mirror.seen().into_iter().map(|seen| seen.query).collect();
    assert_eq!(queries, ["ns=registry.test", "ns=registry.test", "ns=registry.test"]);

    let direct = format!("{}/team/app:v1", mirror.authority());
    assert_eq!(resolve(&TestHosts::new(), &direct).await.unwrap().descriptor, manifest);
    assert_eq!(mirror.seen().last().unwrap().query, "");
}

#[tokio::test]
async fn an_overridden_path_is_used_as_it_is() {
    let (mirror, manifest) = with_image().await;
    mirror.set_prefix("/proxy/v2/cache");
    let hosts = TestHosts::new();
    let table = format!("[host.\"{}/proxy/v2/cache\"]\noverride_path = true\n", mirror.url());
    hosts.write("registry.test", &table);
    assert_eq!(resolve(&hosts, "registry.test/team/app:v1").await.unwrap().descriptor, manifest);
    assert_eq!(mirror.lines(), ["HEAD /proxy/v2/cache/team/app/manifests/v1"]);
}

#[tokio::test]
async fn the_next_host_is_asked_after_any_failure_of_the_one_before() {
    for status in [400, 401, 403, 404, 429, 500, 503] {
        let (broken, _) = with_image().await;
        broken.fault(None, "/manifests/", usize::MAX, Action::Status(status, String::new()));
        let (good, manifest) = with_image().await;
        let hosts = served_by(&[&refused().await, &broken.url(), &good.url()]);
        let resolved = resolve(&hosts, "registry.test/team/app:v1").await;
        assert_eq!(resolved.unwrap().descriptor, manifest, "{status}");
        assert!(!broken.seen().is_empty(), "{status}");
    }
}

#[tokio::test]
async fn a_host_without_resolve_is_asked_for_content_and_not_for_tags() {
    let (mirror, manifest) = with_image().await;
    let (upstream, _) = with_image().await;
    let hosts = TestHosts::new();
    let text = format!("server = \"{}\"\n[host.\"{}\"]\ncapabilities = [\"pull\"]\n", upstream.url(), mirror.url());
    hosts.write("registry.test", &text);
    let resolved = resolve(&hosts, "registry.test/team/app:v1").await.unwrap();
    resolved.session.manifest(&manifest).await.unwrap();
    assert_eq!(upstream.lines(), ["HEAD /v2/team/app/manifests/v1"]);
    assert_eq!(mirror.lines(), [format!("GET /v2/team/app/manifests/{}", manifest.digest)]);
}

#[tokio::test]
async fn what_no_host_has_is_not_found_and_the_error_names_them_all() {
    let empty = TestRegistry::http().await;
    let dead = refused().await;
    let hosts = served_by(&[&dead, &empty.url()]);
    let error = resolve(&hosts, "registry.test/team/app:v1").await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    let text = error.to_string();
    assert!(text.starts_with(&format!("registry.test/team/app:v1: not found: {dead}: ")), "{text}");
    assert!(text.contains("Connection refused"), "{text}");
    assert!(text.ends_with(&format!("; {}: 404 not found", empty.url())), "{text}");
}

#[tokio::test]
async fn a_mirror_that_has_nothing_does_not_hide_that_the_registry_cannot_be_reached() {
    let mirror = TestRegistry::http().await;
    let hosts = served_by(&[&mirror.url(), &refused().await]);
    let error = resolve(&hosts, "registry.test/team/app:v1").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("404 not found; "), "{error}");
}

#[tokio::test]
async fn a_registry_that_cannot_be_reached_is_unavailable() {
    let hosts = served_by(&[&refused().await, &refused().await]);
    let error = resolve(&hosts, "registry.test/team/app:v1").await.unwrap_err();
    let Error::Unavailable { tried, .. } = &error else { panic!("{error:?}") };
    assert_eq!(tried.0.len(), 2);
    assert!(!error.to_string().contains('\n'));
}

#[tokio::test]
async fn a_reference_by_digest_is_resolved_by_it() {
    let (server, manifest) = with_image().await;
    let hosts = served_by(&[&server.url()]);
    let reference = format!("registry.test/team/app:other@{}", manifest.digest);
    assert_eq!(resolve(&hosts, &reference).await.unwrap().descriptor, manifest);
    assert_eq!(server.lines(), [format!("HEAD /v2/team/app/manifests/{}", manifest.digest)]);
}

#[tokio::test]
async fn content_that_is_only_a_blob_is_resolved_by_its_digest() {
    let server = TestRegistry::http().await;
    let blob = server.put_blob("team/app", MANIFEST);
    let reference = format!("registry.test/team/app@{}", blob.digest);
    let resolved = resolve(&served_by(&[&server.url()]), &reference).await.unwrap();
    assert_eq!(resolved.descriptor.digest, blob.digest);
    assert_eq!(resolved.session.manifest(&resolved.descriptor).await.unwrap(), MANIFEST);
}

#[tokio::test]
async fn head_that_is_not_allowed_is_replaced_by_get_whose_body_is_kept() {
    for status in [405, 403] {
        let (server, manifest) = with_image().await;
        server.fault(Some(Method::HEAD), "/manifests/", usize::MAX, Action::Status(status, String::new()));
        let hosts = served_by(&[&server.url()]);
        let resolved = resolve(&hosts, "registry.test/team/app:v1").await.unwrap();
        assert_eq!(resolved.descriptor, manifest);
        assert_eq!(resolved.session.manifest(&manifest).await.unwrap(), MANIFEST);
        assert_eq!(server.lines(), ["HEAD /v2/team/app/manifests/v1", "GET /v2/team/app/manifests/v1"]);
    }
}

#[tokio::test]
async fn without_a_digest_header_the_manifest_is_hashed() {
    let (server, manifest) = with_image().await;
    server.fault(None, "/manifests/", usize::MAX, Action::OmitDigest);
    let hosts = served_by(&[&server.url()]);
    assert_eq!(resolve(&hosts, "registry.test/team/app:v1").await.unwrap().descriptor, manifest);
}

#[tokio::test]
async fn a_manifest_with_another_digest_is_refused_and_the_next_host_asked() {
    let (liar, manifest) = with_image().await;
    liar.fault(Some(Method::GET), "/manifests/", usize::MAX, Action::Body(Bytes::from_static(b"{\"other\":1}")));
    let (good, _) = with_image().await;
    let resolved = resolve(&served_by(&[&liar.url(), &good.url()]), "registry.test/team/app:v1").await.unwrap();
    assert_eq!(resolved.session.manifest(&manifest).await.unwrap(), MANIFEST);

    let alone = resolve(&served_by(&[&liar.url()]), "registry.test/team/app:v1").await.unwrap();
    let error = alone.session.manifest(&manifest).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
    assert!(error.to_string().contains(&manifest.digest.to_string()), "{error}");
}

#[tokio::test]
async fn a_manifest_of_more_than_four_mebibytes_is_refused() {
    let server = TestRegistry::http().await;
    let large = vec![b' '; 4 * 1024 * 1024 + 1];
    server.put_manifest("team/app", Some("v1"), media_type::OCI_MANIFEST, large);
    let hosts = served_by(&[&server.url()]);
    let error = resolve(&hosts, "registry.test/team/app:v1").await.unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
    assert!(error.to_string().contains("larger than 4 MiB"), "{error}");
    server.fault(None, "/manifests/", usize::MAX, Action::OmitDigest);
    let error = resolve(&hosts, "registry.test/team/app:v1").await.unwrap_err();
    assert!(error.to_string().contains("larger than 4 MiB"), "{error}");
}

#[tokio::test]
async fn a_schema_1_manifest_is_refused_with_the_way_out() {
    let server = TestRegistry::http().await;
    let old = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    server.put_manifest("team/app", Some("v1"), old, "{}");
    let error = resolve(&served_by(&[&server.url()]), "registry.test/team/app:v1").await.unwrap_err();
    assert!(error.to_string().contains("push the image again"), "{error}");
}

#[tokio::test]
async fn a_cut_blob_goes_on_by_range_on_the_same_host() {
    let (server, _) = with_image().await;
    let content = letters(100_000);
    let blob = server.put_blob("team/app", content.clone());
    server.fault(None, "/blobs/", 1, Action::CutBody(30_000));
    let session = resolve(&served_by(&[&server.url()]), "registry.test/team/app:v1").await.unwrap().session;
    assert_eq!(whole(&session, &blob, 0).await.unwrap(), content);
    let ranges: Vec<Option<String>> =
        server.seen().iter().skip(1).map(|seen| seen.header("range").map(str::to_owned)).collect();
    assert_eq!(ranges, [None, Some("bytes=30000-".to_owned())]);
}

#[tokio::test]
async fn a_blob_goes_on_at_the_next_host_when_the_first_one_is_gone() {
    let (first, _) = with_image().await;
    let (second, _) = with_image().await;
    let content = letters(50_000);
    let blob = first.put_blob("team/app", content.clone());
    second.put_blob("team/app", content.clone());
    first.fault(None, "/blobs/", 1, Action::CutBody(10_000));
    first.fault(None, "/blobs/", usize::MAX, Action::Status(404, String::new()));
    let hosts = served_by(&[&first.url(), &second.url()]);
    let session = resolve(&hosts, "registry.test/team/app:v1").await.unwrap().session;
    assert_eq!(whole(&session, &blob, 0).await.unwrap(), content);
    assert_eq!(second.lines(), [format!("GET /v2/team/app/blobs/{}", blob.digest)]);
}

#[tokio::test]
async fn a_host_that_ignores_ranges_is_read_from_the_start_and_the_known_part_dropped() {
    let (server, _) = with_image().await;
    let content = letters(20_000);
    let blob = server.put_blob("team/app", content.clone());
    server.fault(None, "/blobs/", usize::MAX, Action::IgnoreRange);
    let session = resolve(&served_by(&[&server.url()]), "registry.test/team/app:v1").await.unwrap().session;
    assert_eq!(whole(&session, &blob, 7_001).await.unwrap(), content[7_001..]);
    assert_eq!(whole(&session, &blob, 20_000).await.unwrap(), b"");
}

#[tokio::test]
async fn a_blob_that_always_breaks_off_ends_in_one_error() {
    let (server, _) = with_image().await;
    let blob = server.put_blob("team/app", letters(1_000));
    server.fault(None, "/blobs/", usize::MAX, Action::CutBody(0));
    let session = resolve(&served_by(&[&server.url()]), "registry.test/team/app:v1").await.unwrap().session;
    let error = whole(&session, &blob, 0).await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(server.seen().len() < 20, "{}", server.seen().len());
}

#[tokio::test]
async fn a_blob_of_another_size_is_refused_before_it_is_read() {
    let (server, _) = with_image().await;
    let mut blob = server.put_blob("team/app", letters(1_000));
    blob.size = 999;
    let session = resolve(&served_by(&[&server.url()]), "registry.test/team/app:v1").await.unwrap().session;
    let error = whole(&session, &blob, 0).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error:?}");
}

#[tokio::test]
async fn a_loop_of_redirects_ends() {
    let (server, _) = with_image().await;
    let target = format!("{}/v2/team/app/manifests/v1", server.url());
    server.fault(None, "/manifests/", usize::MAX, Action::Redirect(target));
    let error = resolve(&served_by(&[&server.url()]), "registry.test/team/app:v1").await.unwrap_err();
    assert!(error.to_string().contains("more than 10 redirects"), "{error}");
    assert_eq!(server.seen().len(), 11);
}

#[tokio::test]
async fn a_redirect_from_tls_to_plain_http_is_refused() {
    let (plain, _) = with_image().await;
    let tls = TestRegistry::https(&TestAuthority::new(), false).await;
    tls.fault(None, "/manifests/", usize::MAX, Action::Redirect(format!("{}/v2/team/app/manifests/v1", plain.url())));
    let hosts = TestHosts::new();
    hosts.write("registry.test", &format!("server = \"{}\"\nskip_verify = true\n", tls.url()));
    let error = resolve(&hosts, "registry.test/team/app:v1").await.unwrap_err();
    assert!(error.to_string().contains("redirect from https to plain http is refused"), "{error}");
    assert_eq!(plain.lines(), [""; 0]);
}

#[tokio::test]
async fn where_no_host_may_resolve_a_tag_it_is_not_found() {
    let (server, manifest) = with_image().await;
    let hosts = TestHosts::new();
    hosts.write("registry.test", &format!("server = \"{}\"\ncapabilities = [\"pull\"]\n", server.url()));
    let error = resolve(&hosts, "registry.test/team/app:v1").await.unwrap_err();
    assert!(matches!(error, Error::NotFound { .. }), "{error:?}");
    assert_eq!(server.lines(), [""; 0]);
    let by_digest = format!("registry.test/team/app@{}", manifest.digest);
    assert_eq!(resolve(&hosts, &by_digest).await.unwrap().descriptor, manifest);
}

#[tokio::test]
async fn the_last_host_is_asked_again_when_it_is_overloaded() {
    let (server, manifest) = with_image().await;
    server.fault(None, "/manifests/", 1, Action::Status(503, String::new()));
    server.fault(None, "/manifests/", 2, Action::Status(429, String::new()));
    let resolved = resolve(&served_by(&[&server.url()]), "registry.test/team/app:v1").await.unwrap();
    assert_eq!(resolved.descriptor, manifest);
    assert_eq!(server.seen().len(), 4);
}

#[tokio::test]
async fn configured_headers_go_to_the_host_they_are_for() {
    let (mirror, _) = with_image().await;
    let (other, _) = with_image().await;
    mirror.fault(None, "/manifests/", 1, Action::Redirect(format!("{}/v2/team/app/manifests/v1", other.url())));
    let hosts = TestHosts::new();
    hosts.write("registry.test", &format!("[host.\"{0}\"]\n[host.\"{0}\".header]\nX-Key = \"canary\"\n", mirror.url()));
    resolve(&hosts, "registry.test/team/app:v1").await.unwrap();
    assert_eq!(mirror.seen()[0].header("x-key"), Some("canary"));
    assert_eq!(other.seen()[0].header("x-key"), None);
}

#[tokio::test]
async fn a_private_authority_and_a_client_certificate_open_an_https_registry() {
    let authority = TestAuthority::new();
    let server = TestRegistry::https(&authority, true).await;
    let manifest = server.put_manifest("team/app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
    let hosts = TestHosts::new();
    authority.write_to(&hosts.directory("registry.test"));
    let tls = "ca = \"ca.pem\"\nclient = [[\"client.pem\", \"client.key\"]]\n";
    hosts.write("registry.test", &format!("server = \"{}\"\n{tls}", server.url()));
    assert_eq!(resolve(&hosts, "registry.test/team/app:v1").await.unwrap().descriptor, manifest);

    hosts.write("registry.test", &format!("server = \"{}\"\nca = \"ca.pem\"\n", server.url()));
    let error = resolve(&hosts, "registry.test/team/app:v1").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
}

#[tokio::test]
async fn an_unknown_authority_is_refused_unless_verification_is_off() {
    let server = TestRegistry::https(&TestAuthority::new(), false).await;
    let manifest = server.put_manifest("team/app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
    let hosts = served_by(&[&server.url()]);
    let error = resolve(&hosts, "registry.test/team/app:v1").await.unwrap_err();
    assert!(matches!(error, Error::Unavailable { .. }), "{error:?}");
    assert!(error.to_string().contains("invalid peer certificate: UnknownIssuer"), "{error}");
    hosts.write("registry.test", &format!("server = \"{}\"\nskip_verify = true\n", server.url()));
    assert_eq!(resolve(&hosts, "registry.test/team/app:v1").await.unwrap().descriptor, manifest);
}

#[tokio::test]
async fn a_self_signed_certificate_that_is_named_as_ca_is_trusted_for_its_own_names_only() {
    for (name, trusted) in [("127.0.0.1", true), ("127.0.0.2", false)] {
        let (server, pem) = TestRegistry::https_self_signed(name).await;
        server.put_manifest("team/app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
        let hosts = TestHosts::new();
        std::fs::write(hosts.directory("registry.test").join("ca.pem"), pem).unwrap();
        hosts.write("registry.test", &format!("server = \"{}\"\nca = \"ca.pem\"\n", server.url()));
        assert_eq!(resolve(&hosts, "registry.test/team/app:v1").await.is_ok(), trusted, "{name}");
    }
}

#[tokio::test]
async fn new_certificate_files_count_from_the_next_pull_on() {
    let right = TestAuthority::new();
    let server = TestRegistry::https(&right, false).await;
    server.put_manifest("team/app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
    let hosts = TestHosts::new();
    let directory = hosts.directory("registry.test");
    hosts.write("registry.test", &format!("server = \"{}\"\nca = \"ca.pem\"\n", server.url()));
    let registry = registry(&hosts);
    let reference = Reference::parse("registry.test/team/app:v1").unwrap();
    TestAuthority::new().write_to(&directory);
    assert!(registry.resolve(&reference, None).await.is_err());
    right.write_to(&directory);
    assert!(registry.resolve(&reference, None).await.is_ok());
}

#[tokio::test]
async fn docker_style_certificates_are_used_where_there_is_no_hosts_file() {
    let authority = TestAuthority::new();
    let server = TestRegistry::https(&authority, true).await;
    let manifest = server.put_manifest("team/app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
    let hosts = TestHosts::new();
    let directory = hosts.directory(&server.authority());
    let (certificate, key) = authority.issue("client");
    std::fs::write(directory.join("ca.crt"), &authority.pem).unwrap();
    std::fs::write(directory.join("client.cert"), certificate).unwrap();
    std::fs::write(directory.join("client.key"), key).unwrap();
    let reference = format!("{}/team/app:v1", server.authority());
    assert_eq!(resolve(&hosts, &reference).await.unwrap().descriptor, manifest);
}

#[tokio::test]
async fn a_loopback_registry_is_tried_with_tls_and_then_without() {
    let (plain, manifest) = with_image().await;
    let reference = |server: &TestRegistry| format!("{}/team/app:v1", server.authority());
    let resolved = resolve(&TestHosts::new(), &reference(&plain)).await.unwrap();
    assert_eq!(resolved.descriptor, manifest);

    let tls = TestRegistry::https(&TestAuthority::new(), false).await;
    tls.put_manifest("team/app", Some("v1"), media_type::OCI_MANIFEST, MANIFEST);
    assert_eq!(resolve(&TestHosts::new(), &reference(&tls)).await.unwrap().descriptor, manifest);
}

#[tokio::test]
async fn a_plain_mirror_works_where_certificate_files_are_broken() {
    let (mirror, manifest) = with_image().await;
    let hosts = served_by(&["https://127.0.0.1:1", &mirror.url()]);
    let text = format!("server = \"{}\"\n[host.\"https://127.0.0.1:1\"]\nca = \"missing.pem\"\n", mirror.url());
    hosts.write("registry.test", &text);
    assert_eq!(resolve(&hosts, "registry.test/team/app:v1").await.unwrap().descriptor, manifest);
}

#[tokio::test]
async fn sessions_can_be_used_by_tasks_side_by_side() {
    let (server, _) = with_image().await;
    let blob = server.put_blob("team/app", letters(10_000));
    let session = resolve(&served_by(&[&server.url()]), "registry.test/team/app:v1").await.unwrap().session;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (session, blob) = (session.clone(), blob.clone());
        tasks.spawn(async move { whole(&session, &blob, 0).await.map(|bytes| bytes.len()) });
    }
    while let Some(read) = tasks.join_next().await {
        assert_eq!(read.unwrap().unwrap(), 10_000);
    }
}
