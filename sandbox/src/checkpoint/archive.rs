//! The archive of a checkpoint: an uncompressed tar with the members that checkpointctl and other runtimes know.
//!
//! ```text
//! config.dump       which container it was, of which image        spec.dump     its OCI spec
//! status.dump       its CRI status                                container.log its log so far
//! checkpoint/       what CRIU wrote                               dump.log, stats-dump   how CRIU fared
//! rootfs-diff.tar   its writable layer
//! ```

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    time::SystemTime,
};

use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::room::Bounded;
use crate::{Error, model::ContainerState, record::ContainerRecord};

/// In the working directory: CRIU's files, and the layer.
pub(crate) const IMAGE: &str = "checkpoint";
pub(crate) const LAYER: &str = "rootfs-diff.tar";
/// Which files the container had removed, of runtimes whose layer does not tell (CRI-O, Podman).
pub(crate) const DELETED: &str = "deleted.files";
/// What the container had logged when it was dumped.
pub(crate) const LOG: &str = "container.log";
/// The OCI spec.
pub(crate) const SPEC: &str = "spec.dump";

/// Packs what is in `work` and what is known of the container into `location`, of its log so many bytes. Blocks.
///
/// The file appears when it is complete; on failure, of the disk or because it would have more than `most` bytes, nothing of
/// it is left.
pub(crate) fn write(
    record: &ContainerRecord,
    runtime: &str,
    work: &Path,
    location: &Path,
    logged: u64,
    most: u64,
) -> Result<(), Error> {
    let failed = |error: io::Error| Error::failed(format!("write the checkpoint {}", location.display()), error);
    let name = location.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let mut partial_name = std::ffi::OsString::from(".");
    partial_name.push(name);
    partial_name.push(format!(".{}", &record.id.as_str()[..12]));
    let partial = location.with_file_name(partial_name);
    // Of a daemon that was killed here before. Nobody else uses a name with this id.
    let _ = fs::remove_file(&partial);
    let written = pack(record, runtime, work, &partial, logged, most).and_then(|()| fs::rename(&partial, location));
    if written.is_err() {
        // The error that counts is the one of the writing.
        let _ = fs::remove_file(&partial);
    }
    written.map_err(failed)
}

fn pack(record: &ContainerRecord, runtime: &str, work: &Path, target: &Path, logged: u64, most: u64) -> io::Result<()> {
    // Memory of processes is in it: for root alone.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(target)?;
    let mut tar = Builder::new(io::BufWriter::with_capacity(1 << 20, Bounded::new(file, most)));
    add(&mut tar, "config.dump", &config(record, runtime).to_string())?;
    add(&mut tar, SPEC, &record.oci_spec.to_string())?;
    add(&mut tar, "status.dump", &status(record).to_string())?;
    if let Some(path) = &record.log_path {
        add_plain_file(&mut tar, LOG, path, logged)?;
    }
    let image = work.join(IMAGE);
    for name in ["dump.log", "stats-dump"] {
        add_plain_file(&mut tar, name, &image.join(name), u64::MAX)?;
    }
    let mut names: Vec<_> = fs::read_dir(&image)?.collect::<io::Result<_>>()?;
    names.sort_by_key(fs::DirEntry::file_name);
    let mut directory = header(EntryType::Directory, 0, 0o700);
    tar.append_data(&mut directory, format!("{IMAGE}/"), io::empty())?;
    for entry in names {
        let member = Path::new(IMAGE).join(entry.file_name());
        if entry.file_type()?.is_file() {
            add_plain_file(&mut tar, member, &entry.path(), u64::MAX)?;
        }
    }
    add_plain_file(&mut tar, LAYER, &work.join(LAYER), u64::MAX)?;
    let file = tar.into_inner()?.into_inner().map_err(|error| error.into_error())?;
    file.into_inner().sync_all()
}

fn add(tar: &mut Builder<impl Write>, name: &str, text: &str) -> io::Result<()> {
    tar.append_data(&mut header(EntryType::Regular, text.len() as u64, 0o600), name, text.as_bytes())
}

/// Adds a file as long as it is now, at most the first `most` bytes. One that is missing, or is a link or no file at all, is left
/// out.
fn add_plain_file(tar: &mut Builder<impl Write>, name: impl AsRef<Path>, path: &Path, most: u64) -> io::Result<()> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let opened = OpenOptions::new().read(true).custom_flags(flags.bits() as i32).open(path);
    let file: File = match opened {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound || is_link(&error) => return Ok(()),
        Err(error) => return Err(error),
    };
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Ok(());
    }
    let size = metadata.len().min(most);
    let content = file.take(size).chain(io::repeat(0)).take(size);
    tar.append_data(&mut header(EntryType::Regular, size, 0o600), name, content)
}

fn is_link(error: &io::Error) -> bool {
    error.raw_os_error() == Some(rustix::io::Errno::LOOP.raw_os_error())
}

fn header(kind: EntryType, size: u64, mode: u32) -> Header {
    let mut header = Header::new_ustar();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(mode);
    header
}

/// The names are those of checkpointctl's container metadata.
fn config(record: &ContainerRecord, runtime: &str) -> Value {
    json!({
        "id": record.id.as_str(),
        "name": record.spec.name.name,
        "rootfsImage": record.image.requested,
        "rootfsImageRef": record.image.id,
        "rootfsImageName": record.image.name,
        "runtime": runtime,
        "createdTime": time(record.created_at),
        "checkpointedTime": time(SystemTime::now()),
        "restoredTime": "0001-01-01T00:00:00Z",
        "restored": false,
    })
}

/// The fields of CRI's `ContainerStatus` that say something about a running container.
fn status(record: &ContainerRecord) -> Value {
    let nanoseconds = |time: SystemTime| {
        let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    };
    let started_at = match &record.state {
        Some(ContainerState::Running { started_at, .. }) => nanoseconds(*started_at),
        Some(ContainerState::Created | ContainerState::Exited { .. } | ContainerState::Unknown) | None => 0,
    };
    json!({
        "id": record.id.as_str(),
        "metadata": { "name": record.spec.name.name, "attempt": record.spec.name.attempt },
        "state": 1,
        "created_at": nanoseconds(record.created_at),
        "started_at": started_at,
        "image": { "image": record.image.requested },
        "image_ref": record.image.id,
        "labels": record.spec.labels,
        "annotations": record.spec.annotations,
        "log_path": record.log_path.as_ref().map(|path: &PathBuf| path.display().to_string()).unwrap_or_default(),
    })
}

/// RFC 3339 in UTC.
fn time(at: SystemTime) -> String {
    jiff::Timestamp::try_from(at).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// V-K07: what was there stays, and nothing is added.
    #[test]
    fn v_k07_an_archive_that_would_be_too_large_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let (work, location) = (dir.path().join("work"), dir.path().join("out/app.tar"));
        fs::create_dir_all(work.join(IMAGE)).unwrap();
        fs::create_dir(dir.path().join("out")).unwrap();
        fs::write(work.join(IMAGE).join("pages-1.img"), vec![1; 100_000]).unwrap();
        fs::write(&location, "an older one").unwrap();
        let record = crate::store::tests::container();
        let refused = write(&record, "runc", &work, &location, 0, 50_000).unwrap_err();
        assert!(refused.chain().contains("max_bytes"), "{}", refused.chain());
        assert_eq!(fs::read_to_string(&location).unwrap(), "an older one");
        assert_eq!(fs::read_dir(dir.path().join("out")).unwrap().count(), 1);
        write(&record, "runc", &work, &location, 0, 200_000).unwrap();
        assert!(fs::metadata(&location).unwrap().len() > 100_000);
    }
}
