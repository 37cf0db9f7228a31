//! Images as CRI shows them, and as `sandbox` takes them.

use std::collections::HashMap;

use api::cri;
use image_service::{images::Image, reference::Reference, registry::Credentials};
use sandbox::{
    model::{self, StringMap},
    oci::user::Named,
};
use tonic::Status;

use super::{parse_marks, parse_name, parse_text};

/// An image as a client asks for it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(in crate::cri) struct Requested {
    /// Any name of it: the kubelet gives an id.
    pub(in crate::cri) image: String,
    user_specified: String,
    annotations: StringMap,
    runtime_handler: String,
}

impl Requested {
    /// One that nobody but the configuration asks for.
    pub(in crate::cri) fn by_name(image: String) -> Requested {
        Requested { image, ..Requested::default() }
    }
}

pub(super) fn parse_requested(spec: cri::ImageSpec, field: &str) -> Result<Requested, Status> {
    Ok(Requested {
        image: parse_name(spec.image, &format!("{field}.image"))?,
        user_specified: parse_text(spec.user_specified_image, &format!("{field}.user_specified_image"))?,
        annotations: parse_marks(HashMap::new(), spec.annotations, field)?.1,
        runtime_handler: parse_text(spec.runtime_handler, &format!("{field}.runtime_handler"))?,
    })
}

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

/// What a pod or a container is made from. Of an image with many names it is known by the one that was asked for.
pub(in crate::cri) fn to_sandbox_image(image: &Image, requested: Requested) -> model::Image {
    let wanted = [&requested.user_specified, &requested.image];
    let wanted: Vec<Reference> = wanted.into_iter().filter_map(|name| Reference::parse(name).ok()).collect();
    let is_wanted = |tag: &&String| wanted.iter().any(|wanted| wanted.to_string() == **tag);
    let of_wanted = |digest: &&String| {
        let repository = digest.split_once('@').map(|(repository, _)| repository);
        wanted.iter().any(|wanted| repository == Some(&wanted.repo()))
    };
    let (name, digest) = match image.tags.iter().find(is_wanted).or(image.tags.first()) {
        Some(tag) => (Some(tag.clone()), digest_beside(tag, &image.digests)),
        None => {
            let digest = image.digests.iter().find(of_wanted).or(image.digests.first());
            (digest.cloned(), digest.cloned())
        }
    };
    model::Image {
        id: image.id.to_string(),
        name: name.unwrap_or_else(|| image.id.to_string()),
        digest: digest.unwrap_or_else(|| image.id.to_string()),
        chain_id: image.chain_id.clone(),
        config: image.config.clone(),
        requested: requested.image,
        user_specified: requested.user_specified,
        annotations: requested.annotations,
        runtime_handler: requested.runtime_handler,
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
    use image_service::digest::Digest;

    use super::*;

    #[test]
    fn of_an_images_names_a_container_has_the_one_that_was_asked_for() {
        let sha = format!("sha256:{}", "1".repeat(64));
        let of = |repo: &str| format!("{repo}@{sha}");
        let image = |tags: &[&str], digests: &[String]| Image {
            id: Digest::parse(&format!("sha256:{}", "2".repeat(64))).unwrap(),
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            digests: digests.to_vec(),
            size: 0,
            target: Digest::parse(&sha).unwrap(),
            chain_id: String::new(),
            config: serde_json::from_str(
                r#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}"#,
            )
            .unwrap(),
            pinned: false,
        };
        let id = image(&[], &[]).id.to_string();
        let check = |image: &Image, asked: &str, author: &str, name: &str, digest: &str| {
            let spec =
                cri::ImageSpec { image: asked.into(), user_specified_image: author.into(), ..Default::default() };
            let made = to_sandbox_image(image, parse_requested(spec, "f").unwrap());
            assert_eq!((made.name.as_str(), made.digest.as_str()), (name, digest), "{asked} {author}");
            assert_eq!((made.requested.as_str(), made.user_specified.as_str()), (asked, author));
        };
        let both = image(
            &["docker.io/library/app:1", "mirror.example/app:1", "mirror.example/app:2"],
            &[of("docker.io/library/app"), of("mirror.example/app")],
        );
        check(&both, &id, "mirror.example/app:2", "mirror.example/app:2", &of("mirror.example/app"));
        check(&both, &id, "app:1", "docker.io/library/app:1", &of("docker.io/library/app"));
        check(&both, "mirror.example/app:1", "", "mirror.example/app:1", &of("mirror.example/app"));
        check(&both, &id, "", "docker.io/library/app:1", &of("docker.io/library/app"));
        check(&both, &id, "not a reference", "docker.io/library/app:1", &of("docker.io/library/app"));
        let by_digest = image(&[], &[of("docker.io/library/app")]);
        check(&by_digest, &id, &of("app"), &of("docker.io/library/app"), &of("docker.io/library/app"));
        check(&image(&["a.example/b:1"], &[]), &id, "", "a.example/b:1", &id);
        check(&image(&[], &[]), &id, "", &id, &id);
    }

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
