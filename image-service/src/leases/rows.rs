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

/// All leases of all namespaces that hold something, with that.
pub(crate) fn held(conn: &Connection) -> Result<Vec<Held>, Error> {
    let mut statement = conn.prepare_cached(
        "SELECT l.namespace, l.id, l.labels, r.type, r.id
         FROM leases l JOIN lease_resources r ON r.namespace = l.namespace AND r.lease = l.id
         ORDER BY l.namespace, l.id",
    )?;
    let mut rows = statement.query([])?;
    let (mut all, mut last) = (Vec::<Held>::new(), None);
    while let Some(row) = rows.next()? {
        let lease: (Namespace, String) = (row.get(0)?, row.get(1)?);
        if last.as_ref() != Some(&lease) {
            let is_flat = parse_labels(&row.get::<_, String>(2)?)?.contains_key(super::FLAT_LABEL);
            all.push(Held { namespace: lease.0.clone(), is_flat, resources: Vec::new() });
            last = Some(lease);
        }
        let resource = parse_resource(&row.get::<_, String>(3)?, &row.get::<_, String>(4)?)?;
        if let Some(held) = all.last_mut() {
            held.resources.push(resource);
        }
    }
    Ok(all)
}

fn resources_of(conn: &Connection, ns: &Namespace, lease: &str) -> Result<Vec<Resource>, Error> {
    let sql = "SELECT type, id FROM lease_resources WHERE namespace = ?1 AND lease = ?2 ORDER BY type, id";
    let mut statement = conn.prepare_cached(sql)?;
    let rows =
        statement.query_map(params![ns, lease], |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)))?;
    rows.map(|row| {
        let (kind, id) = row?;
        parse_resource(&kind, &id)
    })
    .collect()
}

fn parse_resource(kind: &str, id: &str) -> Result<Resource, Error> {
    Resource::parse(kind, id).map_err(|source| Error::failed("read the rows of leases", source))
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
