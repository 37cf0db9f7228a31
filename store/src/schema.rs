//! Versions of the tables, and bringing a file up to what this program knows.
//!
//! The table `schema_version` holds, by schema name, how many migrations the file has had. Migrations are only ever
//! appended to a schema; the text of one that was released does not change.

use std::path::Path;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};

use crate::Error;

/// The tables of one crate: `migrations[n]` is the SQL script that takes them from version n to n + 1.
#[derive(Debug, Clone, Copy)]
pub struct Schema {
    pub name: &'static str,
    pub migrations: &'static [&'static str],
}

/// Brings every schema up to date in one transaction, so a failing migration leaves the file as it was.
pub(crate) fn migrate(conn: &mut Connection, path: &Path, schemas: &[Schema]) -> Result<(), Error> {
    let failed = |source| Error::opening(path, "migrate", source);
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    tx.execute_batch(
        "CREATE TABLE IF NOT EXISTS schema_version (name TEXT PRIMARY KEY, version INTEGER NOT NULL) STRICT, WITHOUT ROWID",
    )
    .map_err(failed)?;
    for schema in schemas {
        migrate_one(&tx, path, schema)?;
    }
    tx.commit().map_err(failed)
}

fn migrate_one(conn: &Connection, path: &Path, schema: &Schema) -> Result<(), Error> {
    let found: i64 = conn
        .query_row("SELECT version FROM schema_version WHERE name = ?1", [schema.name], |row| row.get(0))
        .optional()
        .map_err(|source| Error::opening(path, "read the schema version of", source))?
        .unwrap_or(0)
        .max(0);
    // A count of scripts in the program text: it fits.
    let known = schema.migrations.len() as i64;
    if found > known {
        return Err(Error::TooNew { path: path.to_owned(), schema: schema.name.to_owned(), found, known });
    }
    for (index, script) in schema.migrations.iter().enumerate().skip(found as usize) {
        let what = format!("take {:?} to version {} in", schema.name, index + 1);
        conn.execute_batch(script).map_err(|source| Error::opening(path, &what, source))?;
    }
    conn.execute("INSERT OR REPLACE INTO schema_version (name, version) VALUES (?1, ?2)", params![schema.name, known])
        .map_err(|source| Error::opening(path, "record the schema version of", source))?;
    Ok(())
}
