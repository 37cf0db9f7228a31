//! The durable store: one SQLite file, one writer thread, a few readers.
//!
//! This crate owns how the file is opened, migrated, written, read and closed. It never knows a table of another crate:
//! each crate that keeps rows hands in a [`Schema`] and runs its own SQL inside [`Store::write`] and [`Store::read`].
//!
//! ```text
//! write(f) ──► bounded queue ──► writer thread: BEGIN · savepoint(f1) · savepoint(f2) … · COMMIT ──► answers
//! read(f)  ──► one of a few reader connections: BEGIN (a frozen view) · f · end
//! ```
//!
//! Invariants: an answer to a write is sent only after COMMIT; a closure that fails undoes only itself; a row that was
//! acknowledged survives `kill -9` of the process; a file of a newer program is refused, not guessed at.

mod boot;
mod error;
mod namespace;
mod readers;
mod reserve;
mod schema;
mod store;
mod writer;

pub use boot::boot_id;
pub use error::Error;
pub use namespace::{InvalidNamespace, Namespace};
pub use rusqlite;
pub use schema::Schema;
pub use store::Store;
