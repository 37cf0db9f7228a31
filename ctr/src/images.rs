//! `ctr images`: the names of images and what they point to.
//!
//! SIZE and PLATFORMS are read from the content store by the stock client. The API here has no content service yet, so
//! both show "-", which is what the stock client shows for a platform that it cannot tell.

use api::containerd::services::images::v1::{Image, ListImagesRequest};

use crate::client::Client;
use crate::error::Error;
use crate::table::{self, Layout, Table};

/// What is not known.
const UNKNOWN: &str = "-";

pub(crate) async fn list(client: &Client, filters: Vec<String>) -> Result<Vec<Image>, Error> {
    let answer = client.images().list(client.request(ListImagesRequest { filters })).await;
    let answer = answer.map_err(|status| Error::Failed { what: "failed to list images", status })?;
    Ok(answer.into_inner().images)
}

pub(crate) fn names(images: &[Image]) -> String {
    table::names(images.iter().map(|image| image.name.as_str()))
}

pub(crate) fn table(images: &[Image]) -> String {
    let mut table = Table::new(Layout::NARROW, &["REF", "TYPE", "DIGEST", "SIZE", "PLATFORMS", "LABELS"]);
    for image in images {
        let target = image.target.clone().unwrap_or_default();
        let labels = if image.labels.is_empty() { UNKNOWN.to_owned() } else { table::labels(&image.labels) };
        let (size, platforms) = (UNKNOWN.to_owned(), UNKNOWN.to_owned());
        table.row(vec![image.name.clone(), target.media_type, target.digest, size, platforms, labels]);
    }
    table.render()
}

#[cfg(test)]
mod tests {
    use super::*;
    use api::containerd::types::Descriptor;

    fn image(labels: &[(&str, &str)]) -> Image {
        Image {
            name: "registry.test/busybox:1".into(),
            labels: labels.iter().map(|&(key, value)| (key.into(), value.into())).collect(),
            target: Some(Descriptor {
                media_type: "application/vnd.oci.image.index.v1+json".into(),
                digest: "sha256:ab".into(),
                size: 3,
                annotations: [].into(),
            }),
            created_at: None,
            updated_at: None,
        }
    }

    #[test]
    fn an_image_shows_its_target_and_labels() {
        assert_eq!(
            table(&[image(&[("b", "2"), ("a", "1")]), image(&[])]),
            "REF                     TYPE                                    DIGEST    SIZE PLATFORMS LABELS  \n\
             registry.test/busybox:1 application/vnd.oci.image.index.v1+json sha256:ab -    -         a=1,b=2 \n\
             registry.test/busybox:1 application/vnd.oci.image.index.v1+json sha256:ab -    -         -       \n"
        );
    }

    #[test]
    fn quiet_prints_references() {
        assert_eq!(names(&[image(&[])]), "registry.test/busybox:1\n");
    }
}
