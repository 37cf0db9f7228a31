//! `Mount`, checked: of a host path, or of an image that is on the node.

use std::sync::Arc;

use api::cri;
use image_service::images::Image;
use sandbox::model::{ImageVolume, Propagation, VolumeMount};
use tonic::Status;

use super::{
    invalid, parse_enum, parse_host_path, parse_map, parse_name, parse_text,
    security::{parse_mapping, to_mapping},
    to_map,
};
use crate::cri::errors::shortened;

/// Looks up an image of the node by any of its names.
pub(in crate::cri) type Images<'a> = dyn Fn(&str) -> Option<Arc<Image>> + 'a;

const FIELD: &str = "config.mounts";

/// How the error begins by which the kubelet knows a volume's failure from the container's own (cri-api `pkg/errors`).
const IMAGE_FAILED: &str = "ImageVolumeMountFailed";

pub(super) fn parse_mount(mut mount: cri::Mount, images: &Images<'_>) -> Result<VolumeMount, Status> {
    let propagation = match parse_enum(mount.propagation, &format!("{FIELD}.propagation"))? {
        cri::MountPropagation::PropagationPrivate => Propagation::Private,
        cri::MountPropagation::PropagationHostToContainer => Propagation::HostToContainer,
        cri::MountPropagation::PropagationBidirectional => Propagation::Bidirectional,
    };
    let image = mount.image.take().map(|image| parse_image(image, &mount, images)).transpose()?;
    if image.is_none() && !mount.image_sub_path.is_empty() {
        return Err(invalid(
            &format!("{FIELD}.image_sub_path"),
            "is for image volumes; config.mounts.image is not set",
        ));
    }
    let host_path = match &image {
        Some(_) => String::new(),
        None => parse_host_path(mount.host_path, &format!("{FIELD}.host_path"))?,
    };
    Ok(VolumeMount {
        container_path: parse_name(mount.container_path, &format!("{FIELD}.container_path"))?,
        host_path,
        image,
        readonly: mount.readonly,
        recursive_readonly: mount.recursive_read_only,
        selinux_relabel: mount.selinux_relabel,
        propagation,
        uid_mappings: mount.uid_mappings.iter().map(parse_mapping).collect(),
        gid_mappings: mount.gid_mappings.iter().map(parse_mapping).collect(),
    })
}

/// An image volume is read-only and has no host path (KEP-4639); of the image at most a directory is mounted.
fn parse_image(spec: cri::ImageSpec, mount: &cri::Mount, images: &Images<'_>) -> Result<ImageVolume, Status> {
    let requested = parse_name(spec.image, &format!("{FIELD}.image.image"))?;
    if !mount.host_path.is_empty() {
        let what = format_args!("must be empty, since image {requested:?} is mounted");
        return Err(invalid(&format!("{FIELD}.host_path"), what));
    }
    if !mount.readonly {
        let what = format_args!("must be true, since image {requested:?} is mounted and images are read-only");
        return Err(invalid(&format!("{FIELD}.readonly"), what));
    }
    if mount.propagation == cri::MountPropagation::PropagationBidirectional as i32 {
        let what = format_args!("must not be bidirectional, since image {requested:?} is mounted");
        return Err(invalid(&format!("{FIELD}.propagation"), what));
    }
    let sub_path = parse_sub_path(&mount.image_sub_path)?;
    let Some(image) = images(&requested) else {
        let what = format!("{IMAGE_FAILED}: {FIELD}.image: image {requested:?} is not on the node; pull it first");
        return Err(Status::not_found(shortened(what)));
    };
    Ok(ImageVolume {
        requested,
        user_specified: parse_text(spec.user_specified_image, &format!("{FIELD}.image.user_specified_image"))?,
        annotations: parse_map(spec.annotations, &format!("{FIELD}.image.annotations"))?,
        id: image.id.to_string(),
        chain_id: image.chain_id.clone(),
        sub_path,
    })
}

/// As Kubernetes checks it (`volumeMounts.subPath`): relative, and never above itself.
fn parse_sub_path(path: &str) -> Result<String, Status> {
    let field = format!("{FIELD}.image_sub_path");
    let path = parse_text(path.to_owned(), &field)?;
    if path.starts_with('/') || path.split('/').any(|part| part == "..") {
        return Err(invalid(&field, format_args!("{path:?} must be relative to the image's root, without \"..\"")));
    }
    Ok(path)
}

pub(super) fn to_mount(mount: &VolumeMount) -> cri::Mount {
    let propagation = match mount.propagation {
        Propagation::Private => cri::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => cri::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => cri::MountPropagation::PropagationBidirectional,
    };
    cri::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation: propagation as i32,
        uid_mappings: mount.uid_mappings.iter().map(to_mapping).collect(),
        gid_mappings: mount.gid_mappings.iter().map(to_mapping).collect(),
        recursive_read_only: mount.recursive_readonly,
        image: mount.image.as_ref().map(to_image),
        image_sub_path: mount.image.as_ref().map(|image| image.sub_path.clone()).unwrap_or_default(),
    }
}

/// The image as it was asked for, and in `image_ref` which one that was (KEP-5365).
fn to_image(volume: &ImageVolume) -> cri::ImageSpec {
    cri::ImageSpec {
        image: volume.requested.clone(),
        annotations: to_map(&volume.annotations),
        user_specified_image: volume.user_specified.clone(),
        image_ref: volume.id.clone(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use image_service::digest::Digest;
    use tonic::Code;

    use super::*;

    const ID: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    fn image(name: &str) -> Option<Arc<Image>> {
        let config = r#"{"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": []}}"#;
        let image = Image {
            id: Digest::parse(ID).unwrap(),
            tags: vec!["docker.io/library/data:1".into()],
            digests: Vec::new(),
            size: 0,
            target: Digest::parse(ID).unwrap(),
            chain_id: "sha256:chain".into(),
            config: serde_json::from_str(config).unwrap(),
            pinned: false,
        };
        (name == "data:1").then(|| Arc::new(image))
    }

    fn mount() -> cri::Mount {
        cri::Mount {
            container_path: "/data".into(),
            readonly: true,
            image: Some(cri::ImageSpec {
                image: "data:1".into(),
                user_specified_image: "data:1".into(),
                annotations: [("a".to_owned(), "b".to_owned())].into(),
                ..Default::default()
            }),
            image_sub_path: "usr/share".into(),
            ..Default::default()
        }
    }

    #[test]
    fn an_image_volume_is_resolved_and_its_status_tells_the_digest() {
        let parsed = parse_mount(mount(), &image).unwrap();
        let volume = parsed.image.clone().unwrap();
        assert_eq!((volume.chain_id.as_str(), volume.sub_path.as_str()), ("sha256:chain", "usr/share"));
        let mut expected = mount();
        expected.image.as_mut().unwrap().image_ref = ID.into();
        assert_eq!(to_mount(&parsed), expected);
    }

    #[test]
    fn what_is_no_image_volume_is_refused_by_field() {
        let check = |change: fn(&mut cri::Mount), code: Code, message: &str| {
            let mut mount = mount();
            change(&mut mount);
            let status = parse_mount(mount, &image).unwrap_err();
            assert_eq!((status.code(), status.message()), (code, message));
        };
        check(
            |mount| mount.readonly = false,
            Code::InvalidArgument,
            "config.mounts.readonly: must be true, since image \"data:1\" is mounted and images are read-only",
        );
        check(
            |mount| mount.host_path = "/tmp".into(),
            Code::InvalidArgument,
            "config.mounts.host_path: must be empty, since image \"data:1\" is mounted",
        );
        check(
            |mount| mount.propagation = cri::MountPropagation::PropagationBidirectional as i32,
            Code::InvalidArgument,
            "config.mounts.propagation: must not be bidirectional, since image \"data:1\" is mounted",
        );
        check(
            |mount| mount.image_sub_path = "a/../../etc".into(),
            Code::InvalidArgument,
            "config.mounts.image_sub_path: \"a/../../etc\" must be relative to the image's root, without \"..\"",
        );
        check(
            |mount| mount.image_sub_path = "/etc".into(),
            Code::InvalidArgument,
            "config.mounts.image_sub_path: \"/etc\" must be relative to the image's root, without \"..\"",
        );
        check(
            |mount| (mount.image, mount.host_path) = (None, "/tmp".into()),
            Code::InvalidArgument,
            "config.mounts.image_sub_path: is for image volumes; config.mounts.image is not set",
        );
        check(
            |mount| mount.image.as_mut().unwrap().image.clear(),
            Code::InvalidArgument,
            "config.mounts.image.image: must not be empty",
        );
        check(
            |mount| mount.image.as_mut().unwrap().image = "other:1".into(),
            Code::NotFound,
            "ImageVolumeMountFailed: config.mounts.image: image \"other:1\" is not on the node; pull it first",
        );
    }
}
