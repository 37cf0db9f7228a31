//! Authentication against in-process registries: who gets which secret, and who does not.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::TryStreamExt;
use http::Method;
use support::{Action, Auth, TestHosts, TestRegistry, basic, install_crypto};
use windlass_image_service::reference::Reference;
use windlass_image_service::registry::{
    Clients, Credentials, Descriptor, Error, Registry, RegistryConfig, Resolved, media_type,
};

const PASSWORD: &str = "canary-password";

async fn server(auth: Auth) -> (TestRegistry, Descriptor) {
    let server = TestRegistry::http().await;
    server.set_auth(auth);
    let manifest = server.put_manifest("team/app", Some("v1"), media_type::OCI_MANIFEST, "{}");
    (server, manifest)
}

fn basic_auth() -> Auth {
    Auth::Basic { username: "user".into(), password: PASSWORD.into() }
}

fn bearer(user: bool, post: bool) -> Auth {
    Auth::Bearer { user: user.then(|| ("user".to_owned(), PASSWORD.to_owned())), post }
}

fn user() -> Credentials {
    Credentials { username: "user".into(), password: PASSWORD.into(), ..Credentials::default() }
}

async fn pull(server: &TestRegistry, credentials: Option<&Credentials>) -> Result<Resolved, Error> {
    pull_with(server, credentials, BTreeMap::new()).await
}

async fn pull_with(
    server: &TestRegistry,
    credentials: Option<&Credentials>,
    auths: BTreeMap<String, Credentials>,
) -> Result<Resolved, Error> {
    install_crypto();
    let hosts = TestHosts::new();
    hosts.write("registry.test", &format!("server = \"{}\"\n", server.url()));
    let config = RegistryConfig { config_path: vec![hosts.root()], auths, ..RegistryConfig::default() };
    let registry = Registry::new(config, Arc::new(Clients::new()));
    registry.resolve(&Reference::parse("registry.test/team/app:v1").unwrap(), credentials).await
}

fn authorizations(server: &TestRegistry) -> Vec<Option<String>> {
    server.seen().iter().map(|seen| seen.header("authorization").map(str::to_owned)).collect()
}

#[tokio::test]
async fn a_password_is_sent_after_a_basic_challenge_and_kept_for_the_session() {
    let (server, manifest) = server(basic_auth()).await;
    let resolved = pull(&server, Some(&user())).await.unwrap();
    resolved.session.manifest(&manifest).await.unwrap();
    let header = Some(basic("user", PASSWORD));
    assert_eq!(authorizations(&server), [None, header.clone(), header]);
}

#[tokio::test]
async fn credentials_may_come_as_one_auth_field_or_from_the_configuration() {
    let (server, manifest) = server(basic_auth()).await;
    let auth = Credentials { auth: STANDARD.encode(format!("user:{PASSWORD}")), ..Credentials::default() };
    assert_eq!(pull(&server, Some(&auth)).await.unwrap().descriptor, manifest);
    let auths = BTreeMap::from([(server.authority(), user())]);
    assert_eq!(pull_with(&server, None, auths).await.unwrap().descriptor, manifest);
}

#[tokio::test]
async fn without_credentials_a_basic_challenge_is_a_denial_that_says_so() {
    let (server, _) = server(basic_auth()).await;
    let error = pull(&server, None).await.unwrap_err();
    assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
    let text = error.to_string();
    let start = "registry.test/team/app:v1: pull access denied, repository does not exist or may require \
                 authorization: server message: no basic auth credentials";
    assert!(text.starts_with(start), "{text}");
}

#[tokio::test]
async fn credentials_for_another_address_are_not_sent() {
    let (server, _) = server(basic_auth()).await;
    let elsewhere = Credentials { server_address: "https://quay.io".into(), ..user() };
    assert!(matches!(pull(&server, Some(&elsewhere)).await, Err(Error::Unauthorized { .. })));
    assert_eq!(authorizations(&server), [None]);
}

#[tokio::test]
async fn a_wrong_password_ends_in_one_denial_without_the_password() {
    for auth in [basic_auth(), bearer(true, true)] {
        let (server, _) = server(auth).await;
        let wrong = Credentials { password: "canary-wrong".into(), ..user() };
        let error = pull(&server, Some(&wrong)).await.unwrap_err();
        assert!(matches!(error, Error::Unauthorized { .. }), "{error:?}");
        assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
    }
}

#[tokio::test]
async fn a_public_repository_gets_a_token_without_credentials() {
    let (server, manifest) = server(bearer(false, false)).await;
    let resolved = pull(&server, None).await.unwrap();
    resolved.session.manifest(&manifest).await.unwrap();
    let token = Some("Bearer token-1".to_owned());
    assert_eq!(authorizations(&server), [None, None, token.clone(), token]);
    let seen = server.seen();
    assert_eq!((seen[1].method.clone(), seen[1].path.as_str()), (Method::GET, "/token"));
    assert_eq!(seen[1].query, "service=test%2C+registry&scope=repository%3Ateam%2Fapp%3Apull");
}

#[tokio::test]
async fn a_token_is_asked_for_by_post_and_where_that_is_unknown_by_get() {
    for (post, expected) in [(true, vec!["POST /token"]), (false, vec!["POST /token", "GET /token"])] {
        let (server, manifest) = server(bearer(true, post)).await;
        assert_eq!(pull(&server, Some(&user())).await.unwrap().descriptor, manifest);
        let lines: Vec<String> = server.lines().into_iter().filter(|line| line.ends_with("/token")).collect();
        assert_eq!(lines, expected);
    }
}

#[tokio::test]
async fn an_identity_token_is_a_refresh_token() {
    let (server, _) = server(bearer(false, true)).await;
    let identity = Credentials { identity_token: "canary-identity".into(), ..Credentials::default() };
    pull(&server, Some(&identity)).await.unwrap();
    let body = String::from_utf8(server.seen()[1].body.to_vec()).unwrap();
    let expected = "scope=repository%3Ateam%2Fapp%3Apull&service=test%2C+registry&client_id=containerd-client\
                    &grant_type=refresh_token&refresh_token=canary-identity";
    assert_eq!(body, expected);
}

#[tokio::test]
async fn requests_that_are_refused_together_share_one_token() {
    let (server, _) = server(Auth::Anonymous).await;
    let session = pull(&server, None).await.unwrap().session;
    server.set_auth(bearer(false, false));
    let blob = server.put_blob("team/app", "content");
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (session, blob) = (session.clone(), blob.clone());
        tasks.spawn(async move {
            let stream = session.blob(&blob, 0).await?;
            stream.try_collect::<Vec<_>>().await
        });
    }
    while let Some(read) = tasks.join_next().await {
        assert_eq!(read.unwrap().unwrap().concat(), b"content");
    }
    assert_eq!(server.lines().iter().filter(|line| line.ends_with("/token")).count(), 1);
}

#[tokio::test]
async fn a_redirect_to_another_origin_carries_no_authorization() {
    let (server, manifest) = server(bearer(true, true)).await;
    let store = TestRegistry::http().await;
    let blob = server.put_blob("team/app", "content");
    store.put_blob("team/app", "content");
    let session = pull(&server, Some(&user())).await.unwrap().session;
    let target = format!("{}/v2/team/app/blobs/{}?signature=canary", store.url(), blob.digest);
    server.fault(None, "/blobs/", usize::MAX, Action::Redirect(target));
    let stream = session.blob(&blob, 0).await.unwrap();
    assert_eq!(stream.try_collect::<Vec<_>>().await.unwrap().concat(), b"content");
    assert_eq!(authorizations(&store), [None]);
    assert_eq!(store.seen()[0].query, "signature=canary");
    assert!(session.manifest(&manifest).await.is_ok());
}

#[tokio::test]
async fn another_origin_cannot_ask_for_our_credentials() {
    let (server, _) = server(basic_auth()).await;
    let (thief, _) = self::server(basic_auth()).await;
    let target = format!("{}/v2/team/app/manifests/v1", thief.url());
    server.fault(None, "/manifests/", usize::MAX, Action::Redirect(target));
    assert!(matches!(pull(&server, Some(&user())).await, Err(Error::Unauthorized { .. })));
    assert_eq!(authorizations(&thief), [None]);
}

#[tokio::test]
async fn what_a_server_echoes_of_our_secrets_is_not_in_the_error() {
    let (server, _) = server(basic_auth()).await;
    let echo = format!("you sent {} which is {PASSWORD}\u{1b}[2J", basic("user", PASSWORD));
    server.fault(Some(Method::GET), "/manifests/", usize::MAX, Action::Status(418, echo));
    let session = pull(&server, Some(&user())).await.unwrap().session;
    let other = Descriptor::new("x", windlass_image_service::digest::Digest::sha256_of(b"other"), 5);
    let text = session.manifest(&other).await.unwrap_err().to_string();
    assert!(text.contains("you sent Basic [redacted] which is [redacted]"), "{text}");
    assert!(!text.contains('\u{1b}'), "{text}");
}

#[tokio::test]
async fn a_credential_that_cannot_be_read_is_named_without_its_value() {
    let (server, _) = server(basic_auth()).await;
    let broken = Credentials { auth: "canary!".into(), ..Credentials::default() };
    let error = pull(&server, Some(&broken)).await.unwrap_err();
    assert!(matches!(error, Error::Failed { .. }), "{error:?}");
    assert!(!format!("{error} {error:?}").contains("canary"), "{error:?}");
}
