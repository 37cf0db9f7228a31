//! The rows of leases and of what they hold. Every function works inside the caller's transaction.

use std::collections::BTreeMap;

use store::{
    Namespace,
    rusqlite::{Connection, OptionalExtension, params},
};

use super::{Lease, LeaseError, Resource};
use crate::{
    images::Error,
    store::{from_nanos, to_nanos},
};

/// A lease with all that collection wants to know of it.
pub(crate) struct Held {
    pub(crate) namespace: Namespace,
    pub(crate) is_flat: bool,
    pub(crate) resources: Vec<Resource>,
}

pub(super) fn insert(conn: &Connection, ns: &Namespace, lease: &Lease, expires: Option<i64>) -> Result<(), LeaseError> {
    if exists(conn, ns, &lease.id)? {
        return Err(LeaseError::AlreadyExists { id: lease.id.clone() });
    }
    let labels = serde_json::to_string(&lease.labels).map_err(|source| Error::failed("encode a lease", source))?;
    conn.prepare_cached("INSERT INTO leases (namespace, id, labels, created, expires) VALUES (?1, ?2, ?3, ?4, ?5)")
        .and_then(|mut insert| insert.execute(params![ns, lease.id, labels, to_nanos(lease.created), expires]))
        .map_err(Error::from)?;
    Ok(())
}

/// Its resources go with it.
pub(super) fn delete(conn: &Connection, ns: &Namespace, id: &str) -> Result<(), LeaseError> {
    let deleted = conn
        .prepare_cached("DELETE FROM leases WHERE namespace = ?1 AND id = ?2")
        .and_then(|mut delete| delete.execute(params![ns, id]))
        .map_err(Error::from)?;
    if deleted == 0 { Err(LeaseError::NotFound { id: id.to_owned() }) } else { Ok(()) }
}

pub(super) fn list(conn: &Connection, ns: &Namespace) -> Result<Vec<Lease>, Error> {
    let mut statement =
        conn.prepare_cached("SELECT id, labels, created FROM leases WHERE namespace = ?1 ORDER BY id")?;
    let rows = statement.query_map([ns], |row| Ok((row.get(0)?, row.get::<_, String>(1)?, row.get::<_, i64>(2)?)))?;
    rows.map(|row| {
        let (id, labels, created) = row?;
        Ok(Lease { id, labels: parse_labels(&labels)?, created: from_nanos(created) })
    })
    .collect()
}

pub(super) fn add(conn: &Connection, ns: &Namespace, lease: &str, resource: &Resource) -> Result<(), LeaseError> {
    must_exist(conn, ns, lease)?;
    conn.prepare_cached("INSERT OR IGNORE INTO lease_resources (namespace, lease, type, id) VALUES (?1, ?2, ?3, ?4)")
        .and_then(|mut insert| insert.execute(params![ns, lease, resource.kind(), resource.id()]))
        .map_err(Error::from)?;
    Ok(())
}

/// One that the lease does not hold is removed.
pub(super) fn remove(conn: &Connection, ns: &Namespace, lease: &str, resource: &Resource) -> Result<(), LeaseError> {
    must_exist(conn, ns, lease)?;
    let sql = "DELETE FROM lease_resources WHERE namespace = ?1 AND lease = ?2 AND type = ?3 AND id = ?4";
    conn.prepare_cached(sql)
        .and_then(|mut delete| delete.execute(params![ns, lease, resource.kind(), resource.id()]))
        .map_err(Error::from)?;
    Ok(())
}

pub(super) fn resources(conn: &Connection, ns: &Namespace, lease: &str) -> Result<Vec<Resource>, LeaseError> {
    must_exist(conn, ns, lease)?;
    Ok(resources_of(conn, ns, lease)?)
}

/// Drops the leases that are over, and answers how many they were.
pub(crate) fn expire(conn: &Connection, now: i64) -> Result<usize, Error> {
    Ok(conn.prepare_cached("DELETE FROM leases WHERE expires <= ?1")?.execute([now])?)
}

/// When the next lease is over, in nanoseconds since the epoch.
pub(crate) fn next_expiry(conn: &Connection) -> Result<Option<i64>, Error> {
    Ok(conn.prepare_cached("SELECT min(expires) FROM leases")?.query_row([], |row| row.get(0))?)
}

/// All leases of all namespaces, with what they hold.
pub(crate) fn held(conn: &Connection) -> Result<Vec<Held>, Error> {
    let mut statement = conn.prepare_cached("SELECT namespace, id, labels FROM leases")?;
    let rows = statement
        .query_map([], |row| Ok((row.get::<_, Namespace>(0)?, row.get::<_, String>(1)?, row.get::<_, String>(2)?)))?;
    rows.map(|row| {
        let (namespace, id, labels) = row?;
        let is_flat = parse_labels(&labels)?.contains_key(super::FLAT_LABEL);
        let resources = resources_of(conn, &namespace, &id)?;
        Ok(Held { namespace, is_flat, resources })
    })
    .collect()
}

fn resources_of(conn: &Connection, ns: &Namespace, lease: &str) -> Result<Vec<Resource>, Error> {
    let sql = "SELECT type, id FROM lease_resources WHERE namespace = ?1 AND lease = ?2 ORDER BY type, id";
    let mut statement = conn.prepare_cached(sql)?;
    let rows =
        statement.query_map(params![ns, lease], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    rows.map(|row| {
        let (kind, id) = row?;
        Resource::parse(&kind, &id).map_err(|source| Error::failed("read the rows of leases", source))
    })
    .collect()
}

fn exists(conn: &Connection, ns: &Namespace, id: &str) -> Result<bool, Error> {
    let mut statement = conn.prepare_cached("SELECT 1 FROM leases WHERE namespace = ?1 AND id = ?2")?;
    Ok(statement.query_row(params![ns, id], |_| Ok(())).optional()?.is_some())
}

fn must_exist(conn: &Connection, ns: &Namespace, id: &str) -> Result<(), LeaseError> {
    if exists(conn, ns, id)? { Ok(()) } else { Err(LeaseError::NotFound { id: id.to_owned() }) }
}

fn parse_labels(json: &str) -> Result<BTreeMap<String, String>, Error> {
    serde_json::from_str(json).map_err(|source| Error::failed("decode the labels of a lease", source))
}
