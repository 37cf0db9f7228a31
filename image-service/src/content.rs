//! Blobs on disk, as containerd lays them out: `blobs/<algorithm>/<hex>` when they are whole and verified, `ingest/` while
//! they are written.
//!
//! ```text
//! <root>/io.containerd.content.v1.content/
//!     blobs/sha256/<hex>    exists ⇒ its bytes have that digest; a row in the store says whose it is
//!     ingest/<algorithm>-<hex>.<boot>   being written, or a blob whose pull ended before, whole or not
//!     spool/<random>        being written by an import, the digest not yet known; gone at the next start
//! ```
//!
//! What an unfinished pull has of a blob is kept for the next one, for [`KEPT_FOR`] and in this boot: after a power failure nobody
//! knows what of it is on disk. It is only used if the whole has the digest. All functions block.

mod spool;

use std::{
    collections::HashSet,
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use rustix::{fs::FlockOperation, io::Errno};

use crate::{
    digest::{Digest, Digester},
    images::Error,
};
pub(crate) use spool::Spooled;

/// How long the start of a blob is kept after its last byte: the kubelet waits at most five minutes between two pulls.
pub(crate) const KEPT_FOR: Duration = Duration::from_secs(15 * 60);
/// Less than this is fetched again as fast as it is found.
const WORTH_KEEPING: u64 = 1 << 20;
/// Read at once when what is there already is hashed.
const CHUNK: usize = 256 << 10;

/// The directory of all blobs.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    root: PathBuf,
    boot: String,
}

impl Content {
    /// Makes the directories, and drops what was being written when the daemon ended, unless it is worth to go on with.
    pub(crate) fn open(root: &Path, boot: &str) -> Result<Content, Error> {
        let content = Content { root: root.join("io.containerd.content.v1.content"), boot: boot.to_owned() };
        let made = fs::create_dir_all(content.ingest()).and_then(|()| fs::create_dir_all(content.root.join("blobs")));
        made.and_then(|()| {
            content.drop_ingests(|path, size, _| size < WORTH_KEEPING || content.digest_of(path).is_none())
        })
        .map_err(|source| Error::failed(format!("prepare the content store {}", content.root.display()), source))?;
        Ok(content)
    }

    /// Drops starts of blobs that nobody went on with for a while, but for those spared. True if some are left.
    pub(crate) fn expire_ingests(&self, spared: &HashSet<String>, now: SystemTime) -> Result<bool, Error> {
        let mut left = false;
        let is_old = |path: &Path, _, written: SystemTime| {
            let is_spared = self.digest_of(path).is_some_and(|digest| spared.contains(&digest));
            // A time in the future is of a clock that was set back since.
            let is_old = now.duration_since(written).map_or(true, |age| age >= KEPT_FOR);
            left |= is_spared || !is_old;
            is_old && !is_spared
        };
        self.drop_ingests(is_old)
            .map_err(|source| Error::failed(format!("list {}", self.ingest().display()), source))?;
        Ok(left)
    }

    /// Removes those that `is_doomed` says, by path, size and time of the last write.
    fn drop_ingests(&self, mut is_doomed: impl FnMut(&Path, u64, SystemTime) -> bool) -> io::Result<()> {
        for entry in fs::read_dir(self.ingest())? {
            let path = entry?.path();
            let found = match fs::symlink_metadata(&path) {
                // Its writer has just ended.
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                other => other?,
            };
            let gone = match found.is_dir() {
                // containerd has a directory for each.
                true => fs::remove_dir_all(&path),
                false if is_doomed(&path, found.len(), found.modified()?) => fs::remove_file(&path),
                false => Ok(()),
            };
            match gone {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }

    fn ingest(&self) -> PathBuf {
        self.root.join("ingest")
    }

    fn ingest_of(&self, digest: &Digest) -> PathBuf {
        self.ingest().join(format!("{}-{}.{}", digest.algorithm().as_str(), digest.hex(), self.boot))
    }

    /// The digest that an ingest of this boot is to have.
    fn digest_of(&self, ingest: &Path) -> Option<String> {
        let name = ingest.file_name()?.to_str()?.strip_suffix(&self.boot)?.strip_suffix('.')?;
        Digest::parse(&name.replacen('-', ":", 1)).ok().map(|digest| digest.to_string())
    }

    /// Where the blob is, or would be.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(digest.algorithm().as_str()).join(digest.hex())
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.path(digest).is_file()
    }

    /// Whether it is there with this size: a file that was cut short is not.
    pub(crate) fn has_whole(&self, digest: &Digest, size: u64) -> bool {
        fs::symlink_metadata(self.path(digest)).is_ok_and(|found| found.is_file() && found.len() == size)
    }

    pub(crate) fn open_blob(&self, digest: &Digest) -> Result<File, Error> {
        File::open(self.path(digest)).map_err(|source| Error::failed(format!("open blob {digest}"), source))
    }

    pub(crate) fn read(&self, digest: &Digest) -> Result<Vec<u8>, Error> {
        fs::read(self.path(digest)).map_err(|source| Error::failed(format!("read blob {digest}"), source))
    }

    /// Starts to write a blob that is to have this digest and size. The caller has the turn of the digest.
    pub(crate) fn writer(&self, digest: &Digest, size: u64) -> Result<Writer, Error> {
        let mut writer = self.ingest_writer(digest, size)?;
        writer.restart()?;
        Ok(writer)
    }

    /// As [`Content::writer`], going on with what an earlier writer left: [`Writer::written`] tells how much that is.
    pub(crate) fn resume(&self, digest: &Digest, size: u64) -> Result<Writer, Error> {
        let mut writer = self.ingest_writer(digest, size)?;
        let failed = |source| Error::failed(format!("go on with blob {digest}"), source);
        let present = writer.file.metadata().map_err(failed)?.len();
        if present > size {
            writer.restart()?;
        } else if present > 0 {
            let mut buffer = vec![0; CHUNK];
            while writer.written < present {
                let count = writer.file.read_at(&mut buffer, writer.written).map_err(failed)?;
                if count == 0 {
                    return Err(failed(io::ErrorKind::UnexpectedEof.into()));
                }
                writer.digester.update(&buffer[..count]);
                writer.written += count as u64;
            }
        }
        Ok(writer)
    }

    fn ingest_writer(&self, digest: &Digest, size: u64) -> Result<Writer, Error> {
        let path = self.ingest_of(digest);
        let failed = |source| Error::failed(format!("write {}", path.display()), source);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        // Two writers of one file would be a mistake of ours; better an error than a blob that is refused.
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => return Err(failed(io::Error::other("it is being written already"))),
            other => other.map_err(|errno| failed(errno.into()))?,
        }
        Ok(Writer {
            target: self.path(digest),
            digester: Digester::new(digest.algorithm()),
            digest: digest.clone(),
            size,
            written: 0,
            path,
            file,
            end: End::Keep,
        })
    }

    /// Takes a blob back to where it was written, for whoever fetches it next; one that is not worth it is deleted.
    pub(crate) fn shelve(&self, digest: &Digest) -> Result<(), Error> {
        let path = self.path(digest);
        let shelved = match fs::symlink_metadata(&path) {
            Ok(found) if found.len() >= WORTH_KEEPING => fs::rename(&path, self.ingest_of(digest)),
            _ => return self.remove(digest),
        };
        shelved.map_err(|source| Error::failed(format!("keep blob {digest} for later"), source))
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

/// A blob being written. Dropped before [`Writer::commit`], it leaves what it has, if that is right and worth keeping.
pub(crate) struct Writer {
    path: PathBuf,
    target: PathBuf,
    file: File,
    digester: Digester,
    digest: Digest,
    size: u64,
    written: u64,
    end: End,
}

/// What becomes of the file when the writer is dropped.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Keep,
    Drop,
    Committed,
}

impl Writer {
    /// The file, for reading what is in it so far.
    pub(crate) fn file(&self) -> Result<File, Error> {
        self.file.try_clone().map_err(|source| Error::failed(format!("follow blob {}", self.digest), source))
    }

    /// How many bytes are there.
    pub(crate) fn written(&self) -> u64 {
        self.written
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<(), Error> {
        if self.written + bytes.len() as u64 > self.size {
            self.end = End::Drop;
            let what = format!("blob {} is larger than the {} bytes that its descriptor says", self.digest, self.size);
            return Err(Error::Corrupt(what));
        }
        self.digester.update(bytes);
        self.file.write_all_at(bytes, self.written).map_err(|source| {
            // Most likely the disk is full, and then this must not fill it.
            self.end = End::Drop;
            Error::failed(format!("write blob {} to {}", self.digest, self.path.display()), source)
        })?;
        self.written += bytes.len() as u64;
        Ok(())
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
            self.end = End::Drop;
            return Err(Error::Corrupt(format!("blob {} has other content: its digest is {found}", self.digest)));
        }
        let directory = self.target.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(directory)
            .and_then(|()| fs::rename(&self.path, &self.target))
            .map_err(|source| Error::failed(format!("commit blob {}", self.digest), source))?;
        self.end = End::Committed;
        Ok(())
    }

    /// Drops what is there.
    fn restart(&mut self) -> Result<(), Error> {
        self.file.set_len(0).map_err(|source| Error::failed(format!("write blob {}", self.digest), source))?;
        self.written = 0;
        self.digester = Digester::new(self.digest.algorithm());
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if self.end == End::Committed || (self.end == End::Keep && self.written >= WORTH_KEEPING) {
            return;
        }
        if let Err(error) = fs::remove_file(&self.path) {
            // It is too old soon.
            tracing::warn!(path = %self.path.display(), %error, "an abandoned download stays for a while");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ingests(content: &Content) -> usize {
        fs::read_dir(content.ingest()).unwrap().count()
    }

    fn open(root: &Path, boot: &str) -> Content {
        Content::open(root, boot).unwrap()
    }

    #[test]
    fn a_blob_exists_only_when_size_and_digest_are_right() {
        let directory = tempfile::tempdir().unwrap();
        let content = open(directory.path(), "boot");
        let digest = Digest::sha256_of(b"hello");
        let write = |size: u64, bytes: &[u8]| -> Result<(), Error> {
            let mut writer = content.writer(&digest, size)?;
            writer.write(bytes)?;
            writer.commit()
        };
        for (size, bytes) in [(5, b"hellO".as_slice()), (5, b"hell"), (4, b"hello"), (6, b"hello")] {
            assert!(matches!(write(size, bytes), Err(Error::Corrupt(_))), "{size} {bytes:?}");
            assert!(!content.has(&digest));
            assert_eq!(ingests(&content), 0, "{size} {bytes:?}");
        }
        write(5, b"hello").unwrap();
        assert_eq!(content.read(&digest).unwrap(), b"hello");
        assert_eq!(content.list().unwrap(), std::slice::from_ref(&digest));
        assert_eq!(ingests(&content), 0);
        content.remove(&digest).unwrap();
        content.remove(&digest).unwrap();
        assert_eq!(content.list().unwrap(), []);
    }

    /// Three times what is worth keeping, of which the first part is written.
    fn begun(content: &Content, whole: &[u8], part: usize) -> Digest {
        let digest = Digest::sha256_of(whole);
        let mut writer = content.writer(&digest, whole.len() as u64).unwrap();
        writer.write(&whole[..part]).unwrap();
        digest
    }

    #[test]
    fn a_writer_goes_on_where_the_last_one_ended_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let content = open(directory.path(), "boot");
        let whole: Vec<u8> = (0..3 << 20).map(|at: u32| (at / 7) as u8).collect();
        let part = (2 << 20) + 17;
        let digest = begun(&content, &whole, part);
        let content = open(directory.path(), "boot");
        let mut writer = content.resume(&digest, whole.len() as u64).unwrap();
        assert_eq!(writer.written(), part as u64);
        assert!(content.resume(&digest, whole.len() as u64).is_err(), "only one writes it");
        writer.write(&whole[part..]).unwrap();
        writer.commit().unwrap();
        assert_eq!(content.read(&digest).unwrap(), whole);
        assert_eq!(ingests(&content), 0);
    }

    #[test]
    fn what_cannot_be_gone_on_with_is_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let content = open(directory.path(), "boot");
        let whole = vec![7; 3 << 20];
        begun(&content, &whole, 1000);
        assert_eq!(ingests(&content), 0, "too little");
        let digest = begun(&content, &whole, 2 << 20);
        assert_eq!(ingests(&content), 1);
        assert_eq!(content.resume(&digest, 1 << 20).unwrap().written(), 0, "more than the blob has");
        assert_eq!(ingests(&content), 0);

        let digest = begun(&content, &whole, 2 << 20);
        let mut writer = content.resume(&digest, whole.len() as u64).unwrap();
        writer.write(&vec![8; 1 << 20]).unwrap();
        assert!(matches!(writer.commit(), Err(Error::Corrupt(_))));
        assert_eq!(ingests(&content), 0, "wrong");

        begun(&content, &whole, 2 << 20);
        fs::create_dir_all(content.ingest().join("containerds/own")).unwrap();
        fs::write(content.ingest().join("what"), vec![0; 2 << 20]).unwrap();
        assert_eq!(ingests(&open(directory.path(), "boot")), 1);
        assert_eq!(ingests(&open(directory.path(), "another boot")), 0);
    }

    #[test]
    fn the_start_of_a_blob_is_kept_for_a_while_and_while_it_is_wanted() {
        let directory = tempfile::tempdir().unwrap();
        let content = open(directory.path(), "boot");
        let digest = begun(&content, &vec![7; 3 << 20], 2 << 20);
        assert!(content.expire_ingests(&HashSet::new(), SystemTime::now()).unwrap());
        let file = File::options().write(true).open(content.ingest_of(&digest)).unwrap();
        file.set_modified(SystemTime::now() - KEPT_FOR).unwrap();
        assert!(content.expire_ingests(&HashSet::from([digest.to_string()]), SystemTime::now()).unwrap());
        assert_eq!(ingests(&content), 1);
        assert!(!content.expire_ingests(&HashSet::new(), SystemTime::now()).unwrap());
        assert_eq!(ingests(&content), 0);
    }
}
