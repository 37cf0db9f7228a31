//! Blobs on disk, as containerd lays them out: `blobs/<algorithm>/<hex>` when they are whole and verified, `ingest/` while
//! they are written.
//!
//! ```text
//! <root>/io.containerd.content.v1.content/
//!     blobs/sha256/<hex>    exists ⇒ its bytes have that digest; a row in the store says whose it is
//!     ingest/<random>       being written; gone at the next start
//! ```
//!
//! All functions block.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use crate::{
    digest::{Digest, Digester},
    images::Error,
};

/// The directory of all blobs.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    root: PathBuf,
}

impl Content {
    /// Makes the directories, and drops what was being written when the daemon ended.
    pub(crate) fn open(root: &Path) -> Result<Content, Error> {
        let content = Content { root: root.join("io.containerd.content.v1.content") };
        let made = match fs::remove_dir_all(content.ingest()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::create_dir_all(content.ingest()),
        };
        made.and_then(|()| fs::create_dir_all(content.root.join("blobs")))
            .map_err(|source| Error::failed(format!("prepare the content store {}", content.root.display()), source))?;
        Ok(content)
    }

    fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    /// Where the blob is, or would be.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<File, Error> {
        File::open(self.path(digest)).map_err(|source| Error::failed(format!("open blob {digest}"), source))
    }

    pub(crate) fn read(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        fs::read(self.path(digest)).map_err(|source| Error::failed(format!("read blob {digest}"), source))
    }

    /// Starts to write a blob that is to have this digest and size.
    pub(crate) fn writer(&self, digest: &Digest, size: u64) -> Result<Writer, Error> {
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(|source| Error::failed("name an ingest", source))?;
        let path = self.ingest().join(format!("{:016x}", u64::from_ne_bytes(random)));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path)
            .map_err(|source| Error::failed(format!("write {}", path.display()), source))?;
        Ok(Writer {
            target: self.path(digest),
            digester: Digester::new(digest.algorithm()),
            digest: digest.clone(),
            size,
            written: 0,
            path,
            file,
            committed: false,
        })
    }

    /// Deletes a blob's file; one that is not there is deleted.
    pub(crate) fn remove(&self, digest: &Digest) -> Result<(), Error> {
        match fs::remove_file(self.path(digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::failed(format!("delete blob {digest}"), error))
            }
            _ => Ok(()),
        }
    }

    /// Every blob that has a file, whatever the store says.
    pub(crate) fn list(&self) -> Result<Vec<Digest>, Error> {
        let failed = |source| Error::failed(format!("list the content store {}", self.root.display()), source);
        let mut found = Vec::new();
        for algorithm in fs::read_dir(self.root.join("blobs")).map_err(failed)? {
            let algorithm = algorithm.map_err(failed)?;
            for blob in fs::read_dir(algorithm.path()).map_err(failed)? {
                let name = blob.map_err(failed)?.file_name();
                let text = format!("{}:{}", algorithm.file_name().to_string_lossy(), name.to_string_lossy());
                // A file with another name is not ours to judge.
                found.extend(Digest::parse(&text).ok());
            }
        }
        Ok(found)
    }

    /// Waits until all that was written has reached the disk (syncfs(2)).
    pub(crate) fn sync(&self) -> Result<(), Error> {
        let failed = |source| Error::failed(format!("sync {}", self.root.display()), source);
        let directory = File::open(&self.root).map_err(failed)?;
        rustix::fs::syncfs(&directory).map_err(|error| failed(error.into()))
    }
}

/// A blob being written. Dropped before [`Writer::commit`], it leaves nothing.
pub(crate) struct Writer {
    path: PathBuf,
    target: PathBuf,
    file: File,
    digester: Digester,
    digest: Digest,
    size: u64,
    written: u64,
    committed: bool,
}

impl Writer {
    /// The file, for reading what is in it so far.
    pub(crate) fn file(&self) -> Result<File, Error> {
        self.file.try_clone().map_err(|source| Error::failed(format!("follow blob {}", self.digest), source))
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.written += bytes.len() as u64;
        if self.written > self.size {
            let what = format!("blob {} is larger than the {} bytes that its descriptor says", self.digest, self.size);
            return Err(Error::Corrupt(what));
        }
        self.digester.update(bytes);
        self.file
            .write_all(bytes)
            .map_err(|source| Error::failed(format!("write blob {} to {}", self.digest, self.path.display()), source))
    }

    /// Makes the blob exist, if it is whole and has the digest.
    pub(crate) fn commit(mut self) -> Result<(), Error> {
        if self.written != self.size {
            let what = format!("blob {} has {} bytes, its descriptor says {}", self.digest, self.written, self.size);
            return Err(Error::Corrupt(what));
        }
        let empty = Digester::new(self.digest.algorithm());
        let found = std::mem::replace(&mut self.digester, empty).finish();
        if found != self.digest {
            return Err(Error::Corrupt(format!("blob {} has other content: its digest is {found}", self.digest)));
        }
        let directory = self.target.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory)
            .and_then(|()| fs::rename(&self.path, &self.target))
            .map_err(|source| Error::failed(format!("commit blob {}", self.digest), source))?;
        self.committed = true;
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            // The next start drops the whole directory.
            tracing::warn!(path = %self.path.display(), %error, "an abandoned download stays until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ingests(content: &Content) -> usize {
        fs::read_dir(content.ingest()).unwrap().count()
    }

    #[test]
    fn a_blob_exists_only_when_size_and_digest_are_right() {
        let directory = tempfile::tempdir().unwrap();
        let content = Content::open(directory.path()).unwrap();
        let digest = Digest::sha256_of(b"hello");
        let write = |size: u64, bytes: &[u8]| -> Result<(), Error> {
            let mut writer = content.writer(&digest, size)?;
            writer.write(bytes)?;
            writer.commit()
        };
        for (size, bytes) in [(5, b"hellO".as_slice()), (5, b"hell"), (4, b"hello"), (6, b"hello")] {
            assert!(matches!(write(size, bytes), Err(Error::Corrupt(_))), "{size} {bytes:?}");
            assert!(!content.has(&digest));
        }
        write(5, b"hello").unwrap();
        assert_eq!(content.read(&digest).unwrap(), b"hello");
        assert_eq!(content.list().unwrap(), std::slice::from_ref(&digest));
        assert_eq!(ingests(&content), 0);
        content.remove(&digest).unwrap();
        content.remove(&digest).unwrap();
        assert_eq!(content.list().unwrap(), []);
    }

    #[test]
    fn what_was_being_written_is_gone_at_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let content = Content::open(directory.path()).unwrap();
        let mut writer = content.writer(&Digest::sha256_of(b"x"), 100).unwrap();
        writer.write(b"partial").unwrap();
        std::mem::forget(writer);
        assert_eq!(ingests(&content), 1);
        assert_eq!(ingests(&Content::open(directory.path()).unwrap()), 0);
    }
}
