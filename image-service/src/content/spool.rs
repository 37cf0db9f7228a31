//! A blob whose digest is not known before it is whole, such as a layer in an archive of `docker save`.
//!
//! Written to a directory of its own, which is emptied at the start. All functions block.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use super::Content;
use crate::{
    digest::{Algorithm, Digest, Digester},
    images::Error,
};

/// A blob being written. Dropped before [`Spooled::commit`], it leaves nothing.
pub(crate) struct Spool {
    file: File,
    digester: Digester,
    size: u64,
    remains: Remains,
}

/// A whole blob that nobody knows yet.
pub(crate) struct Spooled {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    remains: Remains,
}

/// The file, until it is moved.
struct Remains {
    path: PathBuf,
    moved: bool,
}

impl Content {
    /// Drops what was being written when the daemon ended.
    pub(crate) fn sweep_spool(&self) -> Result<(), Error> {
        match fs::remove_dir_all(self.spool_dir()) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::failed(format!("empty {}", self.spool_dir().display()), error))
            }
            _ => Ok(()),
        }
    }

    pub(crate) fn spool(&self, algorithm: Algorithm) -> Result<Spool, Error> {
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(|source| Error::failed("name a blob being written", source))?;
        let path = self.spool_dir().join(format!("{:016x}", u64::from_ne_bytes(random)));
        let open = || OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = fs::create_dir_all(self.spool_dir())
            .and_then(|()| open())
            .map_err(|source| Error::failed(format!("write {}", path.display()), source))?;
        Ok(Spool { file, digester: Digester::new(algorithm), size: 0, remains: Remains { path, moved: false } })
    }

    fn spool_dir(&self) -> PathBuf {
        self.root.join("spool")
    }
}

impl Spool {
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        self.digester.update(bytes);
        self.size += bytes.len() as u64;
        self.file
            .write_all(bytes)
            .map_err(|source| Error::failed(format!("write {}", self.remains.path.display()), source))
    }

    pub(crate) fn finish(self) -> Spooled {
        Spooled { digest: self.digester.finish(), size: self.size, remains: self.remains }
    }
}

impl Spooled {
    /// Makes the blob exist.
    pub(crate) fn commit(mut self, content: &Content) -> Result<(), Error> {
        let target = content.path(&self.digest);
        fs::create_dir_all(target.parent().unwrap_or(Path::new("/")))
            .and_then(|()| fs::rename(&self.remains.path, &target))
            .map_err(|source| Error::failed(format!("commit blob {}", self.digest), source))?;
        self.remains.moved = true;
        Ok(())
    }
}

impl Drop for Remains {
    fn drop(&mut self) {
        if self.moved {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            // The next start drops the whole directory.
            tracing::warn!(path = %self.path.display(), %error, "an abandoned blob stays until the next start");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spooled_blob_exists_once_committed_and_leaves_nothing_otherwise() {
        let directory = tempfile::tempdir().unwrap();
        let content = Content::open(directory.path(), "boot").unwrap();
        let spool = |bytes: &[u8]| {
            let mut spool = content.spool(Algorithm::Sha256).unwrap();
            spool.write(bytes).unwrap();
            spool
        };
        drop(spool(b"given up"));
        drop(spool(b"whole but given up").finish());
        let whole = spool(b"hello").finish();
        assert_eq!((whole.digest.clone(), whole.size), (Digest::sha256_of(b"hello"), 5));
        assert!(!content.has(&whole.digest));
        whole.commit(&content).unwrap();
        assert_eq!(content.read(&Digest::sha256_of(b"hello")).unwrap(), b"hello");
        assert_eq!(fs::read_dir(content.spool_dir()).unwrap().count(), 0);

        std::mem::forget(spool(b"cut off"));
        assert_eq!(fs::read_dir(content.spool_dir()).unwrap().count(), 1);
        content.sweep_spool().unwrap();
        assert!(!content.spool_dir().exists());
    }
}
