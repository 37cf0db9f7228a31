//! The rows: which blobs are on disk, which names an image has, and what an image is made of.
//!
//! Every function works inside the caller's transaction. Times are nanoseconds since the epoch.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Serialize};
use store::{
    Namespace, Schema,
    rusqlite::{Connection, OptionalExtension, params},
};

use crate::{digest::Digest, images::Error, registry::Descriptor};

/// Says of a name that it is an image of CRI's, as containerd's CRI says it.
pub(crate) const IMAGE_LABEL: &str = "io.cri-containerd.image";
pub(crate) const IMAGE_MANAGED: &str = "managed";
/// Says of a name that its image is never offered for garbage collection, as containerd's CRI says it.
pub(crate) const PINNED_LABEL: &str = "io.cri-containerd.pinned";
pub(crate) const PINNED: &str = "pinned";

/// The tables of this crate.
pub const SCHEMA: Schema = Schema {
    name: "images",
    migrations: &[
        "
        CREATE TABLE blobs (
            namespace TEXT NOT NULL,
            digest TEXT NOT NULL,
            size INTEGER NOT NULL,
            created INTEGER NOT NULL,
            -- The boot it was written in, until it is known to be on disk: then NULL.
            boot TEXT,
            PRIMARY KEY (namespace, digest)
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE images (
            namespace TEXT NOT NULL,
            -- A tag, a digest reference, or the bare image id.
            name TEXT NOT NULL,
            id TEXT NOT NULL,
            -- JSON of the descriptor that the name resolved to.
            target TEXT NOT NULL,
            -- JSON of an object of strings.
            labels TEXT NOT NULL,
            created INTEGER NOT NULL,
            updated INTEGER NOT NULL,
            PRIMARY KEY (namespace, name)
        ) STRICT, WITHOUT ROWID;
        CREATE TABLE image_contents (
            namespace TEXT NOT NULL,
            id TEXT NOT NULL,
            -- JSON of `Contents`.
            contents TEXT NOT NULL,
            PRIMARY KEY (namespace, id)
        ) STRICT, WITHOUT ROWID;
    ",
        "
        CREATE TABLE preloaded (
            -- Of an archive in the directory of archives.
            path TEXT PRIMARY KEY,
            size INTEGER NOT NULL,
            -- When the file was changed last.
            changed INTEGER NOT NULL
        ) STRICT, WITHOUT ROWID;
    ",
        "
        -- JSON of an object of strings.
        ALTER TABLE blobs ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
        CREATE TABLE leases (
            namespace TEXT NOT NULL,
            id TEXT NOT NULL,
            -- JSON of an object of strings.
            labels TEXT NOT NULL,
            created INTEGER NOT NULL,
            -- When it is over; NULL is never.
            expires INTEGER,
            PRIMARY KEY (namespace, id)
        ) STRICT, WITHOUT ROWID;
        CREATE INDEX leases_expires ON leases (expires) WHERE expires IS NOT NULL;
        CREATE TABLE lease_resources (
            namespace TEXT NOT NULL,
            lease TEXT NOT NULL,
            -- As in containerd's API: content, ingests, images, snapshots/<snapshotter>.
            type TEXT NOT NULL,
            id TEXT NOT NULL,
            PRIMARY KEY (namespace, lease, type, id),
            FOREIGN KEY (namespace, lease) REFERENCES leases (namespace, id) ON DELETE CASCADE
        ) STRICT, WITHOUT ROWID;
    ",
    ],
};

/// What an image is made of: enough to show it, to run it, and to know what may be deleted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Contents {
    /// Digest of the configuration: the image's id.
    pub(crate) id: Digest,
    /// What the reference resolved to: a manifest or an index.
    pub(crate) target: Digest,
    /// The manifest for this node's platform.
    pub(crate) manifest: Digest,
    /// Every blob the image needs, the above included.
    pub(crate) blobs: Vec<Digest>,
    /// The chain id of each layer, bottom first: names of committed snapshots.
    pub(crate) chain: Vec<String>,
    /// Bytes of manifest, configuration and compressed layers.
    pub(crate) size: u64,
}

pub(crate) fn now() -> i64 {
    to_nanos(SystemTime::now())
}

pub(crate) fn to_nanos(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

pub(crate) fn from_nanos(nanos: i64) -> SystemTime {
    UNIX_EPOCH + Duration::from_nanos(nanos.max(0).unsigned_abs())
}

pub(crate) fn has_blob(conn: &Connection, ns: &Namespace, digest: &Digest) -> Result<bool, Error> {
    let sql = "SELECT EXISTS (SELECT 1 FROM blobs WHERE namespace = ?1 AND digest = ?2)";
    Ok(conn.prepare_cached(sql)?.query_row(params![ns, digest.to_string()], |row| row.get(0))?)
}

pub(crate) fn put_blob(conn: &Connection, ns: &Namespace, digest: &Digest, size: u64, boot: &str) -> Result<(), Error> {
    // SQLite's integers are signed; no file is larger.
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    conn.prepare_cached(
        "INSERT OR REPLACE INTO blobs (namespace, digest, size, created, boot) VALUES (?1, ?2, ?3, ?4, ?5)",
    )?
    .execute(params![ns, digest.to_string(), size, now(), boot])?;
    Ok(())
}

/// Adds labels to a blob; one that is not there gets none.
pub(crate) fn label_blob(
    conn: &Connection,
    ns: &Namespace,
    digest: &Digest,
    more: &BTreeMap<String, String>,
) -> Result<(), Error> {
    let mut labels = blob_labels(conn, ns, digest)?;
    labels.extend(more.clone());
    let labels = serde_json::to_string(&labels).map_err(|source| Error::failed("encode a blob's labels", source))?;
    conn.prepare_cached("UPDATE blobs SET labels = ?3 WHERE namespace = ?1 AND digest = ?2")?.execute(params![
        ns,
        digest.to_string(),
        labels
    ])?;
    Ok(())
}

/// A blob that is not there has none.
pub(crate) fn blob_labels(
    conn: &Connection,
    ns: &Namespace,
    digest: &Digest,
) -> Result<BTreeMap<String, String>, Error> {
    let sql = "SELECT labels FROM blobs WHERE namespace = ?1 AND digest = ?2";
    let mut statement = conn.prepare_cached(sql)?;
    let json: Option<String> = statement.query_row(params![ns, digest.to_string()], |row| row.get(0)).optional()?;
    let decode = |json: String| {
        serde_json::from_str(&json)
            .map_err(|source| Error::failed(format!("decode the labels of blob {digest}"), source))
    };
    json.map_or(Ok(BTreeMap::new()), decode)
}

/// Digests of all namespaces' blobs, each once.
pub(crate) fn all_blobs(conn: &Connection) -> Result<Vec<Digest>, Error> {
    let mut statement = conn.prepare_cached("SELECT DISTINCT digest FROM blobs")?;
    let digests = statement.query_map([], |row| row.get::<_, String>(0))?;
    digests.map(|digest| parse_digest(&digest?)).collect()
}

/// Bytes of all blobs; one that several namespaces have is on disk once.
pub(crate) fn content_bytes(conn: &Connection) -> Result<u64, Error> {
    let sql = "SELECT coalesce(sum(size), 0) FROM (SELECT DISTINCT digest, size FROM blobs)";
    let bytes: i64 = conn.prepare_cached(sql)?.query_row([], |row| row.get(0))?;
    Ok(bytes.unsigned_abs())
}

/// Namespaces that have blobs.
pub(crate) fn namespaces(conn: &Connection) -> Result<Vec<Namespace>, Error> {
    let mut statement = conn.prepare_cached("SELECT DISTINCT namespace FROM blobs")?;
    let rows = statement.query_map([], |row| row.get(0))?;
    Ok(rows.collect::<Result<_, _>>()?)
}

pub(crate) fn blobs_of(conn: &Connection, ns: &Namespace) -> Result<Vec<Digest>, Error> {
    let mut statement = conn.prepare_cached("SELECT digest FROM blobs WHERE namespace = ?1")?;
    let digests = statement.query_map(params![ns], |row| row.get::<_, String>(0))?;
    digests.map(|digest| parse_digest(&digest?)).collect()
}

pub(crate) fn delete_blob(conn: &Connection, ns: &Namespace, digest: &Digest) -> Result<(), Error> {
    conn.prepare_cached("DELETE FROM blobs WHERE namespace = ?1 AND digest = ?2")?
        .execute(params![ns, digest.to_string()])?;
    Ok(())
}

/// Blobs written in another boot and not known to have reached the disk: their rows go, and with them their data.
pub(crate) fn drop_torn_blobs(conn: &Connection, boot: &str) -> Result<usize, Error> {
    Ok(conn.execute("DELETE FROM blobs WHERE boot IS NOT NULL AND boot <> ?1", params![boot])?)
}

/// Whether there are blobs that are not known to be on disk.
pub(crate) fn has_torn_blobs(conn: &Connection) -> Result<bool, Error> {
    Ok(conn.query_row("SELECT EXISTS (SELECT 1 FROM blobs WHERE boot IS NOT NULL)", [], |row| row.get(0))?)
}

/// Everything that was committed before a sync of the file system is on disk after it.
pub(crate) fn mark_blobs_durable(conn: &Connection, until: i64) -> Result<(), Error> {
    conn.execute("UPDATE blobs SET boot = NULL WHERE boot IS NOT NULL AND created <= ?1", params![until])?;
    Ok(())
}

/// What a name stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Named {
    pub(crate) id: Digest,
    /// What the name resolved to: a manifest or an index.
    pub(crate) target: Descriptor,
    pub(crate) labels: BTreeMap<String, String>,
}

pub(crate) fn put_name(conn: &Connection, ns: &Namespace, name: &str, named: &Named) -> Result<(), Error> {
    let encode = |source| Error::failed("encode an image's row", source);
    let target = serde_json::to_string(&named.target).map_err(encode)?;
    let labels = serde_json::to_string(&named.labels).map_err(encode)?;
    conn.prepare_cached(
        "INSERT INTO images (namespace, name, id, target, labels, created, updated) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?6)
         ON CONFLICT (namespace, name) DO UPDATE SET
             id = excluded.id, target = excluded.target, labels = excluded.labels, updated = excluded.updated",
    )?
    .execute(params![ns, name, named.id.to_string(), target, labels, now()])?;
    Ok(())
}

/// Records what an image is made of. Blobs that it had by another manifest stay its own, since that one's name does.
pub(crate) fn put_contents(conn: &Connection, ns: &Namespace, contents: &Contents) -> Result<(), Error> {
    let sql = "SELECT contents FROM image_contents WHERE namespace = ?1 AND id = ?2";
    let before: Option<String> =
        conn.prepare_cached(sql)?.query_row(params![ns, contents.id.to_string()], |row| row.get(0)).optional()?;
    let mut contents = contents.clone();
    for digest in before.map(|json| parse_contents(&json)).transpose()?.into_iter().flat_map(|before| before.blobs) {
        if !contents.blobs.contains(&digest) {
            contents.blobs.push(digest);
        }
    }
    let contents = &contents;
    let json = serde_json::to_string(contents).map_err(|source| Error::failed("encode an image's contents", source))?;
    conn.prepare_cached("INSERT OR REPLACE INTO image_contents (namespace, id, contents) VALUES (?1, ?2, ?3)")?
        .execute(params![ns, contents.id.to_string(), json])?;
    Ok(())
}

/// Removes the image and all its names.
pub(crate) fn delete_image(conn: &Connection, ns: &Namespace, id: &Digest) -> Result<(), Error> {
    for sql in [
        "DELETE FROM images WHERE namespace = ?1 AND id = ?2",
        "DELETE FROM image_contents WHERE namespace = ?1 AND id = ?2",
    ] {
        conn.prepare_cached(sql)?.execute(params![ns, id.to_string()])?;
    }
    Ok(())
}

/// One name, as the view wants it.
pub(crate) struct Name {
    pub(crate) namespace: Namespace,
    pub(crate) name: String,
    pub(crate) id: Digest,
    pub(crate) pinned: bool,
}

/// Every name.
pub(crate) fn names(conn: &Connection) -> Result<Vec<Name>, Error> {
    let mut statement = conn.prepare_cached("SELECT namespace, name, id, labels ->> ?1 FROM images")?;
    let pinned = format!("$.\"{PINNED_LABEL}\"");
    let rows = statement.query_map([pinned], |row| {
        let label: Option<String> = row.get(3)?;
        Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?, label.as_deref() == Some(PINNED)))
    })?;
    rows.map(|row| {
        let (namespace, name, id, pinned) = row?;
        Ok(Name { namespace, name, id: parse_digest(&id)?, pinned })
    })
    .collect()
}

/// What a name resolved to.
pub(crate) fn target(conn: &Connection, ns: &Namespace, name: &str) -> Result<Option<Descriptor>, Error> {
    let sql = "SELECT target FROM images WHERE namespace = ?1 AND name = ?2";
    let json: Option<String> = conn.prepare_cached(sql)?.query_row(params![ns, name], |row| row.get(0)).optional()?;
    json.map(|json| serde_json::from_str(&json).map_err(|source| Error::failed("decode an image's row", source)))
        .transpose()
}

pub(crate) fn contents(conn: &Connection) -> Result<Vec<(Namespace, Contents)>, Error> {
    let mut statement = conn.prepare_cached("SELECT namespace, contents FROM image_contents")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, Namespace>(0)?, row.get::<_, String>(1)?)))?;
    rows.map(|row| {
        let (ns, json) = row?;
        Ok((ns, parse_contents(&json)?))
    })
    .collect()
}

/// An archive of images that was imported at a start, as it was then.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Preloaded {
    pub(crate) path: String,
    pub(crate) size: u64,
    /// Nanoseconds since the epoch.
    pub(crate) changed: i64,
}

pub(crate) fn preloaded(conn: &Connection, path: &str) -> Result<Option<Preloaded>, Error> {
    let mut statement = conn.prepare_cached("SELECT size, changed FROM preloaded WHERE path = ?1")?;
    let row = statement.query_row([path], |row| Ok((row.get::<_, i64>(0)?, row.get(1)?))).optional()?;
    Ok(row.map(|(size, changed)| Preloaded { path: path.to_owned(), size: size.unsigned_abs(), changed }))
}

pub(crate) fn put_preloaded(conn: &Connection, file: &Preloaded) -> Result<(), Error> {
    let size = i64::try_from(file.size).unwrap_or(i64::MAX);
    conn.execute(
        "INSERT OR REPLACE INTO preloaded (path, size, changed) VALUES (?1, ?2, ?3)",
        params![file.path, size, file.changed],
    )?;
    Ok(())
}

/// Forgets archives that are not there any more: one that comes back is imported again.
pub(crate) fn forget_preloaded(conn: &Connection, kept: &BTreeSet<String>) -> Result<(), Error> {
    let mut statement = conn.prepare("SELECT path FROM preloaded")?;
    let paths = statement.query_map([], |row| row.get(0))?.collect::<Result<Vec<String>, _>>()?;
    for path in paths.iter().filter(|path| !kept.contains(*path)) {
        conn.execute("DELETE FROM preloaded WHERE path = ?1", [path])?;
    }
    Ok(())
}

fn parse_contents(json: &str) -> Result<Contents, Error> {
    serde_json::from_str(json).map_err(|source| Error::failed("decode an image's contents", source))
}

fn parse_digest(text: &str) -> Result<Digest, Error> {
    Digest::parse(text).map_err(|source| Error::failed(format!("read the digest {text:?} of a row"), source))
}
