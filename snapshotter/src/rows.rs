//! The rows of snapshots. Only SQL: no directory is touched here, and every function runs inside a closure of the store.
//!
//! ```text
//! (insert) making ──ready()──► ready ──commit()──► ready, kind committed ──delete()──► gone
//! ```
//!
//! A row that is `making` holds its key and keeps its parent from being removed, but is not seen by stat or list.
//! `boot` is the boot it was written in until it is known to be on disk, then NULL. Ids name directories and are never
//! handed out twice.

use std::time::{Duration, SystemTime};

use store::rusqlite::{self, Connection, OptionalExtension, Row as SqlRow, params};
use store::{Namespace, Schema};

use crate::{Error, Info, Kind, Labels, Usage};

pub const SCHEMA: Schema = Schema {
    name: "snapshotter",
    migrations: &["
        CREATE TABLE snapshot (
            id          INTEGER PRIMARY KEY AUTOINCREMENT,
            snapshotter TEXT NOT NULL,
            namespace   TEXT NOT NULL,
            key         TEXT NOT NULL,
            parent      INTEGER REFERENCES snapshot (id),
            kind        TEXT NOT NULL CHECK (kind IN ('view', 'active', 'committed')),
            ready       INTEGER NOT NULL DEFAULT 0,
            boot        TEXT,
            labels      TEXT NOT NULL,
            created     INTEGER NOT NULL,
            updated     INTEGER NOT NULL,
            bytes       INTEGER,
            inodes      INTEGER,
            UNIQUE (snapshotter, namespace, key)
        ) STRICT;
        CREATE INDEX snapshot_parent ON snapshot (parent);
    "],
};

/// The full key of a snapshot.
#[derive(Debug, Clone)]
pub(crate) struct Key {
    pub(crate) snapshotter: &'static str,
    pub(crate) namespace: Namespace,
    pub(crate) key: String,
}

/// A snapshot with what its snapshotter needs to find its directories.
#[derive(Debug, Clone)]
pub struct Row {
    pub(crate) id: i64,
    /// Ids of the layers below, top first.
    pub(crate) parents: Vec<i64>,
    pub(crate) info: Info,
    /// What a committed snapshot was measured to hold.
    pub(crate) usage: Option<Usage>,
}

/// What a sweep decides on.
#[derive(Debug)]
pub(crate) struct Remains {
    pub(crate) id: i64,
    pub(crate) parent: Option<i64>,
    pub(crate) kind: Kind,
    pub(crate) ready: bool,
    pub(crate) boot: Option<String>,
}

const COLUMNS: &str = "s.id, s.key, p.key, s.kind, s.labels, s.created, s.updated, s.bytes, s.inodes \
                       FROM snapshot s LEFT JOIN snapshot p ON p.id = s.parent";

/// Records the intent to make a snapshot, and answers with the row that names its directory.
pub(crate) fn insert(
    conn: &Connection,
    key: &Key,
    parent: Option<&str>,
    kind: Kind,
    labels: &Labels,
    boot: &str,
) -> Result<Row, Error> {
    if id_of(conn, key)?.is_some() {
        return Err(Error::AlreadyExists { key: key.key.clone() });
    }
    let parent = parent.map(|parent| committed(conn, key, parent)).transpose()?;
    let now = to_nanos(SystemTime::now());
    conn.execute(
        "INSERT INTO snapshot (snapshotter, namespace, key, parent, kind, boot, labels, created, updated)
         VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)",
        params![key.snapshotter, key.namespace, key.key, parent, kind.as_str(), boot, to_json(labels)?, now],
    )?;
    by_id(conn, conn.last_insert_rowid())
}

/// Makes the snapshot seen. False if it was removed while its directory was made.
pub(crate) fn ready(conn: &Connection, id: i64) -> Result<bool, Error> {
    Ok(conn.execute("UPDATE snapshot SET ready = 1 WHERE id = ?1", [id])? == 1)
}

pub(crate) fn find(conn: &Connection, key: &Key) -> Result<Row, Error> {
    let id: Option<i64> = conn
        .prepare_cached("SELECT id FROM snapshot WHERE snapshotter = ?1 AND namespace = ?2 AND key = ?3 AND ready")?
        .query_row(params![key.snapshotter, key.namespace, key.key], |row| row.get(0))
        .optional()?;
    by_id(conn, id.ok_or_else(|| Error::NotFound { key: key.key.clone() })?)
}

pub(crate) fn list(conn: &Connection, snapshotter: &str, namespace: &Namespace) -> Result<Vec<Row>, Error> {
    let sql = format!("SELECT {COLUMNS} WHERE s.snapshotter = ?1 AND s.namespace = ?2 AND s.ready ORDER BY s.key");
    let mut statement = conn.prepare_cached(&sql)?;
    let rows = statement.query_map(params![snapshotter, namespace], read)?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// Gives an active snapshot that has no parent one.
pub(crate) fn rebase(conn: &Connection, key: &Key, parent: &str) -> Result<Row, Error> {
    let row = find(conn, key)?;
    match (row.info.kind, row.info.parent.as_deref()) {
        (Kind::Active, None) => {
            let parent = committed(conn, key, parent)?;
            conn.execute("UPDATE snapshot SET parent = ?2 WHERE id = ?1", [row.id, parent])?;
            by_id(conn, row.id)
        }
        (Kind::Active, Some(present)) if present == parent => Ok(row),
        (Kind::Active, Some(present)) => {
            let what = format!("put snapshot {:?} onto {parent}", key.key);
            Err(Error::failed(what, format!("it stands on {present}")))
        }
        (kind, _) => Err(Error::WrongKind { key: key.key.clone(), kind, wanted: "put onto another" }),
    }
}

/// Turns an active snapshot into a layer. `id` is the row that was measured: another of the same key is not committed.
pub(crate) fn commit(conn: &Connection, row: &Row, name: &Key, labels: &Labels, usage: Usage) -> Result<(), Error> {
    if id_of(conn, name)?.is_some() {
        return Err(Error::AlreadyExists { key: name.key.clone() });
    }
    let changed = conn.execute(
        "UPDATE snapshot SET key = ?2, kind = 'committed', labels = ?3, created = ?4, updated = ?4, bytes = ?5, inodes = ?6
         WHERE id = ?1 AND kind = 'active'",
        params![
            row.id,
            name.key,
            to_json(labels)?,
            to_nanos(SystemTime::now()),
            to_signed(usage.bytes),
            to_signed(usage.inodes)
        ],
    )?;
    // It was removed, or committed by another name, while it was measured.
    if changed == 1 { Ok(()) } else { Err(Error::NotFound { key: row.info.key.clone() }) }
}

/// Forgets a snapshot that has no children, ready or not, and answers with its id.
pub(crate) fn delete(conn: &Connection, key: &Key) -> Result<i64, Error> {
    let id = id_of(conn, key)?.ok_or_else(|| Error::NotFound { key: key.key.clone() })?;
    let child = "SELECT EXISTS (SELECT 1 FROM snapshot WHERE parent = ?1)";
    if conn.query_row(child, [id], |row| row.get(0))? {
        return Err(Error::HasChildren { key: key.key.clone() });
    }
    delete_id(conn, id).map(|()| id)
}

pub(crate) fn delete_id(conn: &Connection, id: i64) -> Result<(), Error> {
    conn.execute("DELETE FROM snapshot WHERE id = ?1", [id])?;
    Ok(())
}

/// Forgets these and with them how they stand on each other. Nothing else may stand on them.
pub(crate) fn delete_all(conn: &Connection, ids: &[i64]) -> Result<(), Error> {
    let mut statement = conn.prepare_cached("UPDATE snapshot SET parent = NULL WHERE id = ?1")?;
    for id in ids {
        statement.execute([id])?;
    }
    ids.iter().try_for_each(|id| delete_id(conn, *id))
}

/// Every row of the snapshotter, in all namespaces.
pub(crate) fn remains(conn: &Connection, snapshotter: &str) -> Result<Vec<Remains>, Error> {
    let mut statement =
        conn.prepare("SELECT id, parent, kind, ready, boot FROM snapshot WHERE snapshotter = ?1 ORDER BY id")?;
    let rows = statement.query_map([snapshotter], |row| {
        let (id, parent, kind) = (row.get(0)?, row.get(1)?, parse_kind(row, 2)?);
        Ok(Remains { id, parent, kind, ready: row.get(3)?, boot: row.get(4)? })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

/// What all layers of the namespace hold, from what was measured when they were committed.
pub(crate) fn total(conn: &Connection, snapshotter: &str, namespace: &Namespace) -> Result<Usage, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT coalesce(sum(bytes), 0), coalesce(sum(inodes), 0) FROM snapshot
         WHERE snapshotter = ?1 AND namespace = ?2 AND kind = 'committed'",
    )?;
    let (bytes, inodes) = statement
        .query_row(params![snapshotter, namespace], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, i64>(1)?)))?;
    Ok(Usage { bytes: bytes.unsigned_abs(), inodes: inodes.unsigned_abs() })
}

/// Layers that may still be only in memory.
pub(crate) fn not_durable(conn: &Connection, snapshotter: &str) -> Result<Vec<i64>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT id FROM snapshot WHERE snapshotter = ?1 AND kind = 'committed' AND boot IS NOT NULL ORDER BY id",
    )?;
    let ids = statement.query_map([snapshotter], |row| row.get(0))?;
    Ok(ids.collect::<rusqlite::Result<_>>()?)
}

pub(crate) fn set_durable(conn: &Connection, ids: &[i64]) -> Result<(), Error> {
    let mut statement = conn.prepare_cached("UPDATE snapshot SET boot = NULL WHERE id = ?1")?;
    for id in ids {
        statement.execute([id])?;
    }
    Ok(())
}

fn id_of(conn: &Connection, key: &Key) -> Result<Option<i64>, Error> {
    let mut statement =
        conn.prepare_cached("SELECT id FROM snapshot WHERE snapshotter = ?1 AND namespace = ?2 AND key = ?3")?;
    Ok(statement.query_row(params![key.snapshotter, key.namespace, key.key], |row| row.get(0)).optional()?)
}

/// The id of a parent, which has to be a finished layer of the same namespace.
fn committed(conn: &Connection, child: &Key, parent: &str) -> Result<i64, Error> {
    match find(conn, &Key { key: parent.to_owned(), ..child.clone() }) {
        Ok(row) if row.info.kind == Kind::Committed => Ok(row.id),
        Ok(row) => Err(Error::WrongKind { key: parent.to_owned(), kind: row.info.kind, wanted: "a parent" }),
        Err(Error::NotFound { key }) => Err(Error::ParentNotFound { parent: key }),
        Err(other) => Err(other),
    }
}

fn by_id(conn: &Connection, id: i64) -> Result<Row, Error> {
    let sql = format!("SELECT {COLUMNS} WHERE s.id = ?1");
    let mut row = conn.prepare_cached(&sql)?.query_row([id], read)?;
    let mut statement = conn.prepare_cached(
        "WITH RECURSIVE below (id, depth) AS (
             SELECT parent, 1 FROM snapshot WHERE id = ?1 AND parent IS NOT NULL
             UNION ALL
             SELECT s.parent, depth + 1 FROM snapshot s JOIN below ON s.id = below.id WHERE s.parent IS NOT NULL)
         SELECT id FROM below ORDER BY depth",
    )?;
    row.parents = statement.query_map([id], |row| row.get(0))?.collect::<rusqlite::Result<_>>()?;
    Ok(row)
}

/// One row of [`COLUMNS`]; the chain of parents is another query.
fn read(row: &SqlRow<'_>) -> rusqlite::Result<Row> {
    let usage = match (row.get::<_, Option<i64>>(7)?, row.get::<_, Option<i64>>(8)?) {
        (Some(bytes), Some(inodes)) => Some(Usage { bytes: bytes.unsigned_abs(), inodes: inodes.unsigned_abs() }),
        _ => None,
    };
    let info = Info {
        key: row.get(1)?,
        parent: row.get(2)?,
        kind: parse_kind(row, 3)?,
        labels: parse_json(row, 4)?,
        created: parse_nanos(row.get(5)?),
        updated: parse_nanos(row.get(6)?),
    };
    Ok(Row { id: row.get(0)?, parents: Vec::new(), info, usage })
}

fn parse_kind(row: &SqlRow<'_>, column: usize) -> rusqlite::Result<Kind> {
    let text: String = row.get(column)?;
    let unknown = || conversion(column, format!("unknown kind {text:?}").into());
    Kind::parse(&text).ok_or_else(unknown)
}

fn parse_json(row: &SqlRow<'_>, column: usize) -> rusqlite::Result<Labels> {
    let text: String = row.get(column)?;
    serde_json::from_str(&text).map_err(|source| conversion(column, source.into()))
}

fn conversion(column: usize, source: Box<dyn std::error::Error + Send + Sync>) -> rusqlite::Error {
    rusqlite::Error::FromSqlConversionFailure(column, rusqlite::types::Type::Text, source)
}

fn to_json(labels: &Labels) -> Result<String, Error> {
    serde_json::to_string(labels).map_err(|source| Error::failed("write the labels of a snapshot", source))
}

/// Times are kept as nanoseconds since 1970, which fit until the year 2262.
fn to_nanos(time: SystemTime) -> i64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

fn parse_nanos(nanos: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_nanos(nanos.max(0).unsigned_abs())
}

/// SQLite has only signed numbers; sizes that do not fit do not exist.
fn to_signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
