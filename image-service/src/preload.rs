//! Archives that lie in a directory when the daemon starts: images for nodes that reach no registry.
//!
//! Files called `*.tar`, `*.tar.gz`, `*.tgz`, `*.tar.zst` and `*.tzst` are imported one after the other, in the order of
//! their names, behind the sockets: an archive of many gigabytes must not keep a node from answering. Each is done once;
//! a file is another when its size or its time of change is. A file that cannot be imported is told of, and tried again at
//! the next start. What is imported is pinned: the kubelet could not get it back.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    sync::atomic::Ordering,
};

use store::Namespace;

use crate::{
    images::{Error, Images},
    import::{ImportError, ImportRequest},
    store::{self as rows, Preloaded},
};

const SUFFIXES: [&str; 5] = [".tar", ".tar.gz", ".tgz", ".tar.zst", ".tzst"];

impl Images {
    /// Imports what is new in the directory, on a task of its own. A directory that is not there is empty.
    pub fn preload(&self, namespace: Namespace, directory: PathBuf) {
        let images = self.clone();
        self.shared.tasks.spawn(async move {
            if let Err(error) = images.preload_all(&namespace, &directory).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(directory = %directory.display(), error, "archives of images are not imported");
            }
        });
    }

    /// Imports what is new in the directory, and tells of what it cannot.
    pub async fn preload_all(&self, namespace: &Namespace, directory: &Path) -> Result<(), Error> {
        let paths = blocking(directory.to_owned(), |directory| list(&directory)).await?;
        let kept: BTreeSet<String> = paths.iter().map(|path| path.to_string_lossy().into_owned()).collect();
        self.shared.store.write(move |conn| rows::forget_preloaded(conn, &kept)).await?;
        for path in paths {
            if self.shared.closing.load(Ordering::Relaxed) {
                return Ok(());
            }
            match self.preload_one(namespace, &path).await {
                Ok(()) => {}
                Err(ImportError::Cancelled) => return Ok(()),
                Err(error) => {
                    let error = &error as &dyn std::error::Error;
                    tracing::warn!(file = %path.display(), error, "an archive of images is not imported; the next start tries again");
                }
            }
        }
        Ok(())
    }

    async fn preload_one(&self, namespace: &Namespace, path: &Path) -> Result<(), ImportError> {
        let (file, now) = blocking(path.to_owned(), |path| open(&path)).await.map_err(ImportError::Failed)?;
        let wanted = now.path.clone();
        let before = self.shared.store.read(move |conn| rows::preloaded(conn, &wanted)).await?;
        if before.as_ref() == Some(&now) {
            return Ok(());
        }
        let request = ImportRequest { namespace: namespace.clone(), snapshotter: None, repository: None, pinned: true };
        let images = self.import(request, file).await?;
        self.shared.store.write(move |conn| rows::put_preloaded(conn, &now)).await?;
        for image in &images {
            if image.tags.is_empty() && image.digests.is_empty() {
                tracing::warn!(
                    file = %path.display(), id = %image.id,
                    "an image has no whole name in its archive and is known by its id only; name it, as by \
                     `skopeo copy <image> oci-archive:<file>:<repository>:<tag>`"
                );
            }
        }
        let names: Vec<&String> = images.iter().flat_map(|image| &image.tags).collect();
        tracing::info!(file = %path.display(), images = ?names, "imported");
        Ok(())
    }
}

async fn blocking<T: Send + 'static>(
    path: PathBuf,
    work: impl FnOnce(PathBuf) -> io::Result<T> + Send + 'static,
) -> Result<T, Error> {
    let what = format!("read {}", path.display());
    match tokio::task::spawn_blocking(move || work(path)).await {
        Ok(result) => result.map_err(|source| Error::failed(what, source)),
        Err(source) => Err(Error::failed(what, source)),
    }
}

fn list(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if SUFFIXES.iter().any(|suffix| name.ends_with(suffix)) && !name.starts_with('.') {
            paths.push(path);
        }
    }
    paths.sort();
    Ok(paths)
}

/// Opens the file without waiting for a pipe's other end, and says which state of it this is.
fn open(path: &Path) -> io::Result<(File, Preloaded)> {
    let file = OpenOptions::new().read(true).custom_flags(rustix::fs::OFlags::NONBLOCK.bits() as i32).open(path)?;
    let meta = file.metadata()?;
    if !meta.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a file"));
    }
    let changed = meta.mtime().saturating_mul(1_000_000_000).saturating_add(meta.mtime_nsec());
    Ok((file, Preloaded { path: path.to_string_lossy().into_owned(), size: meta.len(), changed }))
}
