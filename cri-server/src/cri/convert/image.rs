//! Images as CRI shows them, and as `sandbox` takes them.

use api::cri;
use image_service::{images::Image, registry::Credentials};
use sandbox::{model, oci::user::Named};

/// Credentials for this pull only; `None` when the client set nothing.
pub(in crate::cri) fn parse_credentials(auth: Option<cri::AuthConfig>) -> Option<Credentials> {
    let auth = auth.filter(|auth| *auth != cri::AuthConfig::default())?;
    Some(Credentials {
        username: auth.username,
        password: auth.password,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
        auth: auth.auth,
        server_address: auth.server_address,
    })
}

/// What a pod or a container is made from; `requested` is what the client wrote.
pub(in crate::cri) fn to_sandbox_image(image: &Image, requested: String) -> model::Image {
    let name = image.tags.first().cloned().unwrap_or_else(|| image.id.to_string());
    model::Image {
        requested,
        id: image.id.to_string(),
        digest: digest_beside(&name, &image.digests).unwrap_or_else(|| image.id.to_string()),
        name,
        chain_id: image.chain_id.clone(),
        config: image.config.clone(),
    }
}

/// Of the digests that an image was pulled as the one in the repository of this tag, so that both tell of one place; else
/// the first one.
fn digest_beside(tag: &str, digests: &[String]) -> Option<String> {
    let repository = tag.rsplit_once(':').map_or(tag, |(repository, _)| repository);
    let beside = |digest: &&String| digest.split_once('@').is_some_and(|(of, _)| of == repository);
    digests.iter().find(beside).or(digests.first()).cloned()
}

pub(in crate::cri) fn to_image(image: &Image) -> cri::Image {
    let user = image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let (uid, username) = to_user(&user);
    cri::Image {
        id: image.id.to_string(),
        repo_tags: image.tags.clone(),
        repo_digests: image.digests.clone(),
        size: image.size,
        uid,
        username,
        spec: None,
        pinned: image.pinned,
    }
}

/// `USER` of an image: a numeric user is a uid, any other a name, never both; the group part is not shown. The same rule
/// decides who a container runs as. A number that no container can run as is neither, which the kubelet takes for root.
fn to_user(user: &str) -> (Option<cri::Int64Value>, String) {
    match Named::parse(user.split(':').next().unwrap_or_default()) {
        Ok(Named::Id(uid)) => (Some(cri::Int64Value { value: uid.into() }), String::new()),
        Ok(Named::Name(name)) => (None, name.to_owned()),
        Err(_) => (None, String::new()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_uid_or_a_name() {
        let check = |user: &str, uid: Option<i64>, name: &str| {
            assert_eq!(to_user(user), (uid.map(|value| cri::Int64Value { value }), name.to_owned()), "{user}");
        };
        check("", None, "");
        check("1002", Some(1002), "");
        check("1002:5", Some(1002), "");
        check("www-data:100", None, "www-data");
        for number in ["-1", "+0", "4294967296", "2147483648", "18446744073709551616:5"] {
            check(number, None, "");
        }
    }

    #[test]
    fn the_digest_is_of_the_repository_that_the_tag_is_of() {
        let digests = ["a.example/app@sha256:1", "b.example:5000/app@sha256:2"].map(str::to_owned);
        let of = |tag: &str| digest_beside(tag, &digests);
        assert_eq!(of("b.example:5000/app:v1").as_ref(), Some(&digests[1]));
        assert_eq!(of("a.example/app:v1").as_ref(), Some(&digests[0]));
        assert_eq!(of("c.example/app:v1").as_ref(), Some(&digests[0]));
        assert_eq!(digest_beside("a.example/app:v1", &[]), None);
    }

    #[test]
    fn empty_credentials_are_none() {
        assert!(parse_credentials(None).is_none());
        assert!(parse_credentials(Some(cri::AuthConfig::default())).is_none());
        let auth = cri::AuthConfig { username: "u".into(), ..Default::default() };
        assert_eq!(parse_credentials(Some(auth)).unwrap().username, "u");
    }
}
