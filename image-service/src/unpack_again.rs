//! Unpacking an image of this node into another snapshotter than the one it was pulled for, from the blobs that are kept.
//!
//! Runtime handlers may have snapshotters of their own, and nobody pulls an image again because a pod with another handler
//! uses it. Chain ids are the same in every snapshotter, and collection keeps those of an image in each of them.

use std::{sync::Arc, time::Instant};

use store::Namespace;

use crate::{
    digest::Digest,
    images::{Error, Image, Images, Shared},
    local::{Local, LocalError},
    store as rows,
    unpack::is_unpacked,
};

/// Why an image is not in the other snapshotter.
#[derive(Debug, thiserror::Error)]
pub enum UnpackAgainError {
    /// A pull for the other snapshotter brings it.
    #[error(
        "image {image} is not unpacked for snapshotter {snapshotter}, and its blob {blob} is not kept to do it from"
    )]
    NotKept { image: String, snapshotter: String, blob: Digest },
    #[error("unpack image {image} for snapshotter {snapshotter}")]
    Failed { image: String, snapshotter: String, source: Error },
}

/// Which image goes where.
struct Move {
    ns: Namespace,
    id: Digest,
    /// As errors call it.
    image: String,
    snapshotter: String,
}

impl Images {
    /// Sees to it that the image can be run by this snapshotter; `None` is the default one. Who asks for the same
    /// meanwhile waits for it. It goes on without its callers, so that one who comes again finds it done.
    pub async fn unpack_into(
        &self,
        ns: &Namespace,
        image: &Image,
        snapshotter: Option<&str>,
    ) -> Result<(), UnpackAgainError> {
        if image.chain_id.is_empty() {
            return Ok(());
        }
        let snapshotter = snapshotter.unwrap_or(&self.shared.config.default_snapshotter).to_owned();
        let name = image.tags.first().or(image.digests.first()).cloned().unwrap_or_else(|| image.id.to_string());
        let to = Move { ns: ns.clone(), id: image.id.clone(), image: name, snapshotter };
        let failed = |source: Error| to.failed(source);
        let into = Arc::clone(self.shared.snapshotter(Some(&to.snapshotter)).map_err(failed)?);
        let (wanted, chain_id) = (ns.clone(), image.chain_id.clone());
        let looked = tokio::task::spawn_blocking(move || is_unpacked(into.as_ref(), &wanted, &chain_id));
        let looked = looked.await.unwrap_or_else(|source| Err(Error::failed("look for an image", source)));
        if looked.map_err(failed)? {
            return Ok(());
        }
        let aborted = UnpackAgainError::Failed {
            image: to.image.clone(),
            snapshotter: to.snapshotter.clone(),
            source: Error::Corrupt("it was given up, since the daemon ends".into()),
        };
        self.shared.tasks.spawn(self.clone().unpack_again(to)).await.unwrap_or(Err(aborted))
    }

    async fn unpack_again(self, to: Move) -> Result<(), UnpackAgainError> {
        let shared = Arc::clone(&self.shared);
        let (image, snapshotter) = (to.image.clone(), to.snapshotter.clone());
        let (ns, id) = (to.ns.clone(), to.id.to_string());
        let unpacking = self.shared.tasks.spawn_blocking(move || to.run(&shared));
        let failed =
            |source| UnpackAgainError::Failed { image: image.clone(), snapshotter: snapshotter.clone(), source };
        unpacking.await.unwrap_or_else(|source| Err(failed(Error::failed("work on an image", source))))?;
        self.settle();
        if self.resolve(&ns, &id).is_none() {
            // Its removal spared what was being made.
            self.collect().await.map_err(failed)?;
            return Err(failed(Error::Corrupt("it was removed meanwhile".into())));
        }
        Ok(())
    }
}

impl Move {
    fn failed(&self, source: Error) -> UnpackAgainError {
        UnpackAgainError::Failed { image: self.image.clone(), snapshotter: self.snapshotter.clone(), source }
    }

    fn run(&self, shared: &Shared) -> Result<(), UnpackAgainError> {
        let failed = |source: Error| self.failed(source);
        let _turn = shared.claims.turn_blocking(&format!("{} in {}", self.id, self.snapshotter));
        let mut claims = Vec::new();
        let local = self.find(shared, &mut |name| claims.push(shared.claims.claim_blocking(name)))?;
        for chain_id in &local.chain {
            claims.push(shared.claims.claim_blocking(chain_id));
        }
        let snapshotter = shared.snapshotter(Some(&self.snapshotter)).map_err(failed)?;
        let began = Instant::now();
        // Of one that fails, the layers that are whole stay: they are the image's, the next try goes on with them, and
        // somebody else may have found them meanwhile.
        let made = local.unpack(shared, &self.ns, snapshotter.as_ref(), &shared.closing).map_err(failed)?;
        let (ns, labels) = (self.ns.clone(), local.labels(&self.snapshotter));
        shared
            .store
            .write_blocking(move |conn| {
                labels.iter().try_for_each(|(blob, labels)| rows::label_blob(conn, &ns, blob, labels))
            })
            .and_then(|()| shared.measure())
            .map_err(failed)?;
        if made > 0 {
            let (image, snapshotter, took) = (&self.image, &self.snapshotter, began.elapsed());
            tracing::info!(%image, %snapshotter, layers = made, ?took, "unpacked for another snapshotter");
        }
        Ok(())
    }

    /// What the image is made of, by what its id stands for.
    fn find(&self, shared: &Shared, claim: &mut dyn FnMut(&str)) -> Result<Local, UnpackAgainError> {
        let not_kept = |blob: Digest| UnpackAgainError::NotKept {
            image: self.image.clone(),
            snapshotter: self.snapshotter.clone(),
            blob,
        };
        let target = shared.store.read_blocking(|conn| rows::target(conn, &self.ns, &self.id.to_string()));
        let Some(target) = target.map_err(|error| self.failed(error))? else {
            return Err(not_kept(self.id.clone()));
        };
        let found = Local::find(shared, &self.ns, &target, &mut |digest| claim(&digest.to_string()));
        match found {
            Ok(local) if local.manifest.config.digest == self.id => Ok(local),
            Ok(_) => Err(not_kept(self.id.clone())),
            Err(LocalError::Missing(blob)) => Err(not_kept(blob)),
            Err(LocalError::Manifest(error)) => Err(self.failed(Error::failed("read its manifest", error))),
            Err(LocalError::Failed(error)) => Err(self.failed(error)),
        }
    }
}
