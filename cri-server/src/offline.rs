//! `windlass image`: archives of images, in and out, without a daemon.
//!
//! It opens what a daemon would open and keeps it for itself, so beside a running daemon it ends with an error and changes
//! nothing. A running daemon imports what lies in its directory of archives when it starts.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use image_service::{
    images::{Image, Images},
    import::ImportRequest,
};
use store::Namespace;

use crate::{
    app::{self, AppError, Stored},
    config::Config,
    cri::chain,
    wiring,
};

#[derive(Subcommand)]
pub(crate) enum ImageCommand {
    /// Takes in archives: tars of OCI image layouts or of `docker save`, plain, gzip or zstd.
    Import {
        /// The repository of images that have only a tag in the archive.
        #[arg(long)]
        repository: Option<String>,
        /// Never offer the images for garbage collection.
        #[arg(long)]
        pin: bool,
        /// The archives; `-` is the standard input.
        #[arg(required = true)]
        archives: Vec<PathBuf>,
    },
    /// Writes images to an archive that OCI's and Docker's tools read.
    Export {
        /// The archive; `-` is the standard output.
        archive: PathBuf,
        /// Tags, `repository@digest`, or ids.
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Says which images there are.
    List,
}

pub(crate) async fn run(config: Config, command: ImageCommand) -> Result<(), String> {
    let archives = wiring::preload_dir(&config);
    let Stored { store, images, .. } = &open(config, &archives).await?;
    let done = match command {
        ImageCommand::Import { repository, pin, archives } => {
            import(images, repository.as_deref(), pin, &archives).await
        }
        ImageCommand::Export { archive, names } => export(images, &archive, names).await,
        ImageCommand::List => {
            images.list(&Namespace::k8s()).iter().for_each(|image| println!("{}", shown(image)));
            Ok(())
        }
    };
    images.shutdown().await;
    store.close().await.map_err(|error| chain(&error))?;
    done
}

async fn open(config: Config, archives: &Path) -> Result<Stored, String> {
    app::open(config).await.map_err(|error| match error {
        AppError::InUse { .. } => format!(
            "{}: or put archives into {}, which the daemon imports when it starts",
            chain(&error),
            archives.display()
        ),
        error => chain(&error),
    })
}

async fn import(images: &Images, repository: Option<&str>, pinned: bool, archives: &[PathBuf]) -> Result<(), String> {
    for path in archives {
        let archive: Box<dyn Read + Send> = match path.to_str() {
            Some("-") => Box::new(io::stdin()),
            _ => Box::new(File::open(path).map_err(|error| format!("open {}: {error}", path.display()))?),
        };
        let request = ImportRequest {
            namespace: Namespace::k8s(),
            snapshotter: None,
            repository: repository.map(str::to_owned),
            pinned,
        };
        let imported = images.import(request, archive).await;
        let imported = imported.map_err(|error| format!("{}: {}", path.display(), chain(&error)))?;
        imported.iter().for_each(|image| println!("{}", shown(image)));
    }
    Ok(())
}

/// The archive gets its name when it is whole.
async fn export(images: &Images, archive: &Path, names: Vec<String>) -> Result<(), String> {
    let (namespace, failed) = (Namespace::k8s(), |error: io::Error| format!("write {}: {error}", archive.display()));
    if archive.to_str() == Some("-") {
        return images.export(namespace, names, io::stdout()).await.map(drop).map_err(|error| chain(&error));
    }
    let mut partial = archive.as_os_str().to_owned();
    partial.push(".partial");
    let partial = PathBuf::from(partial);
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&partial).map_err(failed)?;
    let written = match images.export(namespace, names, file).await {
        Ok(file) => file.sync_all().and_then(|()| fs::rename(&partial, archive)).map_err(failed),
        Err(error) => Err(chain(&error)),
    };
    if written.is_err()
        && let Err(error) = fs::remove_file(&partial)
    {
        tracing::warn!(file = %partial.display(), %error, "half an archive is left");
    }
    written
}

fn shown(image: &Image) -> String {
    let names: Vec<&str> = image.tags.iter().chain(&image.digests).map(String::as_str).collect();
    format!("{} {}", image.id, names.join(" "))
}
