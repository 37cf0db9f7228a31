//! What is known of a snapshot.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

pub type Labels = BTreeMap<String, String>;

/// One snapshot, as stat and list tell it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Info {
    pub key: String,
    pub parent: Option<String>,
    pub kind: Kind,
    pub labels: Labels,
    pub created: SystemTime,
    pub updated: SystemTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Read only, and removed when the reader is done.
    View,
    /// Written to, by a container or by an unpack.
    Active,
    /// A finished layer: never written to again, and the only kind that has children.
    Committed,
}

/// What a snapshot takes up: hard links counted once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    pub bytes: u64,
    pub inodes: u64,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::View => "view",
            Kind::Active => "active",
            Kind::Committed => "committed",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Kind> {
        [Kind::View, Kind::Active, Kind::Committed].into_iter().find(|kind| kind.as_str() == text)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
