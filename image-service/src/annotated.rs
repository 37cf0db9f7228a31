//! Images that carry something else than a program, told by an annotation: their one layer as it came from the registry.

use std::{collections::BTreeMap, path::PathBuf};

use serde::Deserialize;
use store::Namespace;

use crate::{
    images::{Error, Image, Images},
    local::{Local, LocalError},
    store as rows,
};

#[derive(Deserialize)]
struct Annotated {
    #[serde(default)]
    annotations: Option<BTreeMap<String, String>>,
}

impl Images {
    /// The blob of the only layer of an image whose manifest, or the index that it was pulled by, has one of these
    /// annotations; `None` for every other image. One that has a program of its own is not looked at. Blocks.
    pub fn annotated_layer(&self, ns: &Namespace, image: &Image, names: &[&str]) -> Result<Option<PathBuf>, Error> {
        let program = image.config.config().as_ref();
        let is_empty = |words: &Option<Vec<String>>| words.as_ref().is_none_or(Vec::is_empty);
        let has_program = program.is_some_and(|program| !is_empty(program.entrypoint()) || !is_empty(program.cmd()));
        if has_program || image.config.rootfs().diff_ids().len() != 1 {
            return Ok(None);
        }
        let shared = &self.shared;
        let target = shared.store.read_blocking(|conn| rows::target(conn, ns, &image.id.to_string()))?;
        let Some(target) = target else { return Ok(None) };
        let annotated = |digest| -> Result<bool, Error> {
            let document: Annotated = serde_json::from_slice(&shared.content.read(digest)?)
                .map_err(|source| Error::failed(format!("read the manifest {digest}"), source))?;
            Ok(document.annotations.is_some_and(|found| names.iter().any(|name| found.contains_key(*name))))
        };
        let whole = annotated(&target.digest)?;
        let local = match Local::find(shared, ns, &target, &mut |_| {}) {
            Ok(local) => local,
            // An image whose layers were freed runs all the same, if it is one that runs.
            Err(LocalError::Missing(_)) if !whole => return Ok(None),
            Err(LocalError::Missing(digest)) => {
                return Err(Error::Corrupt(format!(
                    "layer {digest} of image {} was freed once it was unpacked; set discard_unpacked_layers = false and \
                     pull it again",
                    image.id
                )));
            }
            Err(LocalError::Manifest(source)) => {
                return Err(Error::failed(format!("read the manifest of image {}", image.id), source));
            }
            Err(LocalError::Failed(error)) => return Err(error),
        };
        let inner = local.documents.last().filter(|inner| inner.digest != target.digest);
        if !whole && !inner.map(|inner| annotated(&inner.digest)).transpose()?.unwrap_or(false) {
            return Ok(None);
        }
        Ok(local.manifest.layers.first().map(|layer| shared.content.path(&layer.digest)))
    }
}
