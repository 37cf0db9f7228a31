//! Pulls from a real registry that wants TLS by a private authority, and a password: through CRI, as the kubelet does it; and
//! image verifiers.

use std::fs;

use api::cri;
use tonic::{Code, Status};
use windlass_e2e::{
    locked::{LockedRegistry, PASSWORD, USER},
    node::TestNode,
};

const IMAGE: &str = "private.example/library/busybox:1";

fn user(password: &str) -> cri::AuthConfig {
    cri::AuthConfig { username: USER.into(), password: password.into(), ..cri::AuthConfig::default() }
}

async fn pull(node: &TestNode, auth: Option<cri::AuthConfig>) -> Result<String, Status> {
    let image = cri::ImageSpec { image: IMAGE.into(), ..cri::ImageSpec::default() };
    let request = cri::PullImageRequest { image: Some(image), auth, sandbox_config: None };
    Ok(node.client().images.clone().pull_image(request).await?.into_inner().image_ref)
}

/// The message of a refusal: one line, with the image, the host and these words, and without the password.
#[track_caller]
fn check(answer: Result<String, Status>, locked: &LockedRegistry, words: &[&str]) {
    let status = answer.expect_err("the registry is locked");
    assert_eq!(status.code(), Code::Unknown, "{status}");
    let host = format!("https://{}", locked.address);
    for word in words.iter().chain(&[IMAGE, &host]) {
        assert!(status.message().contains(word), "{word:?} is not in {status}");
    }
    assert!(!status.message().contains('\n') && !status.message().contains("canary"), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_a_locked_registry_opens_to_the_right_password_of_this_pull_and_to_no_other() {
    let node = TestNode::start().await;
    let locked = LockedRegistry::beside(node.registry);
    locked.configure(&node, "private.example", "");
    let refused = pull(&node, Some(user(PASSWORD))).await;
    assert!(refused.as_ref().is_err_and(|status| status.message().starts_with("RegistryUnavailable: ")), "{refused:?}");
    check(refused, &locked, &["TLS failed", "UnknownIssuer", "as ca in hosts.toml"]);

    // No restart: what is written counts from the next pull on.
    locked.configure(&node, "private.example", "ca = \"authority.pem\"\n");
    check(pull(&node, None).await, &locked, &["pull access denied", "no basic auth credentials"]);
    check(pull(&node, Some(user("canary-wrong"))).await, &locked, &["pull access denied", "password is wrong"]);
    let elsewhere = cri::AuthConfig { server_address: "https://other.example".into(), ..user(PASSWORD) };
    check(pull(&node, Some(elsewhere)).await, &locked, &["no basic auth credentials"]);
    assert_eq!(node.client().image_list().await.unwrap(), []);

    assert_eq!(pull(&node, Some(user(PASSWORD))).await.unwrap(), node.registry.busybox.id);
    assert_eq!(node.client().image(IMAGE).await.unwrap().unwrap().repo_tags, [IMAGE]);
    check(pull(&node, None).await, &locked, &["no basic auth credentials"]);
    let log = fs::read_to_string(node.path("log")).unwrap();
    // "canary-right" and what goes over the wire: base64 of the user and the password begins with that of the user.
    assert!(!log.contains("canary") && !log.contains("Y2FuYXJ5LXVzZXI"), "a credential is in the daemon's log");
    node.finish().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn privileged_what_an_image_verifier_rejects_is_not_pulled_and_said_as_the_kubelet_knows_it() {
    let node = TestNode::start().await;
    let verifiers = node.path("verifiers");
    fs::create_dir(&verifiers).unwrap();
    let reference = "docker.io/library/busybox:1";
    let script =
        format!("#!/bin/sh\ncat > '{}'\necho \"$2 is not signed\"\nexit 1\n", node.path("descriptor").display());
    let path = verifiers.join("signatures");
    fs::write(&path, script).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let status = node.client().pull(reference).await.unwrap_err();
    assert_eq!(status.code(), Code::Unknown);
    let start = format!(
        "SignatureValidationFailed: pull {reference}: image verifier signatures rejected {} (exit code 1): {reference} is not signed",
        node.registry.busybox.digest
    );
    assert_eq!(status.message(), start);
    let descriptor: serde_json::Value = serde_json::from_slice(&fs::read(node.path("descriptor")).unwrap()).unwrap();
    assert_eq!(descriptor["digest"], node.registry.busybox.digest);
    assert_eq!(node.client().image_list().await.unwrap(), []);

    fs::write(&path, "#!/bin/sh\nexit 0\n").unwrap();
    assert_eq!(node.client().pull(reference).await.unwrap(), node.registry.busybox.id);
    node.finish().await;
}
