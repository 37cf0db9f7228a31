//! The handle that the rest of the program holds: opening, and handing closures to the writer and the readers.

use std::fs::{DirBuilder, OpenOptions, Permissions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use crate::readers::Readers;
use crate::reserve::Reserve;
use crate::writer::Writer;
use crate::{Error, Schema, schema};

/// Readers at once. Lists are answered from views in memory, so reads of the store are few and short.
const READERS: usize = 3;
/// Page cache of a connection, in KiB. The rows in use fit in it, and the kernel caches the file as well.
const CACHE_KIB: i64 = 256;
/// How long to wait for someone with `sqlite3` open on the file.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
/// What the write-ahead log is cut back to after a checkpoint.
const WAL_LIMIT_BYTES: i64 = 4 << 20;

/// The open store. Clones share one file, one writer and the readers; the last one dropped ends them.
#[derive(Clone)]
pub struct Store {
    writer: Writer,
    readers: Arc<Readers>,
}

impl Store {
    /// Opens or makes the file and brings its tables up to date. Blocks.
    pub fn open(path: &Path, schemas: &[Schema]) -> Result<Store, Error> {
        make_file(path)?;
        // SQLite makes files beside the store, which takes room as well.
        let reserve = Reserve::of(path);
        let mut conn = connect(path)?;
        check(&conn, path)?;
        schema::migrate(&mut conn, path, schemas)?;
        let mut readers = Vec::with_capacity(READERS);
        for _ in 0..READERS {
            let reader = connect(path)?;
            reader.pragma_update(None, "query_only", true).map_err(|e| Error::opening(path, "set up", e))?;
            readers.push(reader);
        }
        Ok(Store { writer: Writer::start(conn, reserve)?, readers: Arc::new(Readers::new(readers)) })
    }

    /// Runs `f` in the writer's transaction and answers after COMMIT. If `f` fails, only what it did is undone.
    ///
    /// Once the closure is queued, dropping the future drops only the wait. The closure runs on the writer thread, so it
    /// must not block on anything but the store, nor call the store itself.
    pub async fn write<T, E>(&self, f: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.writer.run(f).await
    }

    /// [`Store::write`] for a thread that may block; panics on an async worker thread.
    pub fn write_blocking<T, E>(&self, f: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        self.writer.run_blocking(f)
    }

    /// Runs `f` on a view of the store that does not change meanwhile and holds every acknowledged write.
    pub async fn read<T, E>(&self, f: impl FnOnce(&Connection) -> Result<T, E> + Send + 'static) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<Error> + Send + 'static,
    {
        Arc::clone(&self.readers).run(f).await
    }

    /// [`Store::read`] for a thread that may block.
    pub fn read_blocking<T, E>(&self, f: impl FnOnce(&Connection) -> Result<T, E>) -> Result<T, E>
    where
        E: From<Error>,
    {
        self.readers.run_blocking(f)
    }

    /// Waits for what is queued, moves the log into the file and closes it. Calls after this get [`Error::Closed`].
    pub async fn close(&self) -> Result<(), Error> {
        // Readers go first: the checkpoint can empty the log only when nobody reads from it.
        let readers = Arc::clone(&self.readers);
        tokio::task::spawn_blocking(move || readers.close())
            .await
            .map_err(|source| Error::failed("close the readers of the store", source))?;
        self.writer.close().await
    }
}

/// SQLite gives its `-wal` and `-shm` files the mode of the main file, so that one is made here with the right one.
fn make_file(path: &Path) -> Result<(), Error> {
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| Error::failed(format!("make the store's directory {}", dir.display()), source))?;
    }
    OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|file| file.set_permissions(Permissions::from_mode(0o600)))
        .map_err(|source| Error::failed(format!("open store {}", path.display()), source))
}

fn connect(path: &Path) -> Result<Connection, Error> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    Connection::open_with_flags(path, flags)
        .and_then(|conn| set_up(&conn).map(|()| conn))
        .map_err(|source| Error::opening(path, "open", source))
}

fn set_up(conn: &Connection) -> rusqlite::Result<()> {
    conn.busy_timeout(BUSY_TIMEOUT)?;
    conn.pragma_update_and_check(None, "journal_mode", "WAL", |_| Ok(()))?;
    conn.pragma_update(None, "synchronous", "NORMAL")?;
    conn.pragma_update(None, "foreign_keys", true)?;
    conn.pragma_update(None, "cache_size", -CACHE_KIB)?;
    conn.pragma_update_and_check(None, "journal_size_limit", WAL_LIMIT_BYTES, |_| Ok(()))
}

/// Damage is found here, with a clear error, rather than by the first query that steps on it. The file is small.
fn check(conn: &Connection, path: &Path) -> Result<(), Error> {
    let verdict: String = conn
        .query_row("PRAGMA quick_check(1)", [], |row| row.get(0))
        .map_err(|source| Error::opening(path, "check", source))?;
    match verdict.as_str() {
        "ok" => Ok(()),
        _ => Err(Error::Corrupt { path: PathBuf::from(path), source: verdict.into() }),
    }
}

#[cfg(test)]
mod tests;
