//! Namespaces: the first part of every key in the store.
//!
//! A value of this type is known to follow containerd's rule for identifiers, so it may be used as a path component.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rusqlite::types::{FromSql, FromSqlError, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use serde::{Deserialize, Serialize};

/// The longest identifier that containerd takes.
const MAX_LEN: usize = 76;

/// A valid namespace name: runs of letters and digits, joined by single `.`, `_` or `-`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Namespace(Arc<str>);

/// The name that was refused, and so not made a [`Namespace`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("namespace {name:?} is not valid: at most {MAX_LEN} letters and digits, joined by single '.', '_' or '-'")]
pub struct InvalidNamespace {
    pub name: String,
}

impl Namespace {
    pub fn new(name: &str) -> Result<Namespace, InvalidNamespace> {
        match is_identifier(name) {
            true => Ok(Namespace(name.into())),
            false => Err(InvalidNamespace { name: name.to_owned() }),
        }
    }

    /// The namespace of everything that comes through CRI.
    pub fn k8s() -> Namespace {
        Namespace("k8s.io".into())
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn is_identifier(name: &str) -> bool {
    name.len() <= MAX_LEN
        && name.split(['.', '_', '-']).all(|run| !run.is_empty() && run.bytes().all(|b| b.is_ascii_alphanumeric()))
}

impl fmt::Display for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for Namespace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

impl AsRef<str> for Namespace {
    fn as_ref(&self) -> &str {
        &self.0
    }
}

impl FromStr for Namespace {
    type Err = InvalidNamespace;
    fn from_str(name: &str) -> Result<Namespace, InvalidNamespace> {
        Namespace::new(name)
    }
}

impl TryFrom<&str> for Namespace {
    type Error = InvalidNamespace;
    fn try_from(name: &str) -> Result<Namespace, InvalidNamespace> {
        Namespace::new(name)
    }
}

impl TryFrom<String> for Namespace {
    type Error = InvalidNamespace;
    fn try_from(name: String) -> Result<Namespace, InvalidNamespace> {
        Namespace::new(&name)
    }
}

impl From<Namespace> for String {
    fn from(namespace: Namespace) -> String {
        namespace.0.as_ref().to_owned()
    }
}

impl ToSql for Namespace {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::from(self.as_str()))
    }
}

impl FromSql for Namespace {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Namespace> {
        Namespace::new(value.as_str()?).map_err(|e| FromSqlError::Other(Box::new(e)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_identifiers_of_containerd_are_namespaces() {
        let longest = "a".repeat(MAX_LEN);
        for good in ["k8s.io", "moby", "a", "0", "a-b_c.d", "A9", &longest] {
            assert_eq!(Namespace::new(good).map(String::from), Ok(good.to_owned()));
        }
        let too_long = "a".repeat(MAX_LEN + 1);
        for bad in ["", ".", "..", "a..b", "-a", "a-", "a/b", "a b", "ä", "a\0", "a._b", &too_long] {
            assert_eq!(Namespace::new(bad), Err(InvalidNamespace { name: bad.to_owned() }));
        }
    }

    #[test]
    fn a_row_with_an_invalid_namespace_is_refused() {
        assert_eq!(Namespace::column_result(ValueRef::Text(b"k8s.io")), Ok(Namespace::k8s()));
        assert!(matches!(Namespace::column_result(ValueRef::Text(b"../x")), Err(FromSqlError::Other(_))));
    }
}
