//! Leases: what clients want kept although no image names it yet, or any more.
//!
//! ```text
//! lease (namespace, id, labels) ── holds ──► content, ingests, images, snapshots/<snapshotter>
//! ```
//!
//! A lease outlives its client and the daemon; it ends when it is deleted or, with the label `containerd.io/gc.expire`
//! (RFC 3339), at that time. While it lasts, collection takes what it holds for used, and what that refers to by labels,
//! unless `containerd.io/gc.flat` says otherwise. A change of a lease and a collection never overlap: what existed when it
//! was added stays. What runs in this process, pulls and imports, relies on `claims.rs` instead.

pub(crate) mod rows;

use std::{collections::BTreeMap, sync::Arc, time::SystemTime};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use store::Namespace;

use crate::{
    digest::Digest,
    images::{Error, Images},
};

const EXPIRE_LABEL: &str = "containerd.io/gc.expire";
const FLAT_LABEL: &str = "containerd.io/gc.flat";
/// Bytes of a label's key and value together, as for containerd.
const MAX_LABEL: usize = 4096;

/// One lease, without what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    pub id: String,
    pub created: SystemTime,
    pub labels: BTreeMap<String, String>,
}

/// What a lease can hold. It need not exist.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Resource {
    Content(Digest),
    /// Content that is being written, by its reference. That of a download ends in a hyphen and the digest.
    Ingest(String),
    /// A name of an image. It keeps the name from expiring, which none does here, and not from being removed.
    Image(String),
    Snapshot {
        snapshotter: String,
        key: String,
    },
}

/// Why a lease did not do what was asked. The messages are containerd's.
#[derive(Debug, thiserror::Error)]
pub enum LeaseError {
    #[error("lease {id:?}: not found")]
    NotFound { id: String },
    #[error("lease {id:?}: already exists")]
    AlreadyExists { id: String },
    #[error("resource type {kind} not supported yet")]
    Unsupported { kind: String },
    #[error("{0}")]
    Invalid(String),
    #[error("use leases")]
    Failed(#[from] Error),
}

impl From<store::Error> for LeaseError {
    fn from(source: store::Error) -> LeaseError {
        LeaseError::Failed(source.into())
    }
}

/// When what a deleted lease held is collected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collected {
    /// Before the answer.
    Now,
    /// Behind it.
    Soon,
}

/// The leases of this node. Clones are handles of the same.
#[derive(Clone)]
pub struct Leases {
    images: Images,
}

impl Images {
    pub fn leases(&self) -> Leases {
        Leases { images: self.clone() }
    }
}

impl Leases {
    /// An empty `id` is one of our choice.
    pub async fn create(
        &self,
        ns: &Namespace,
        id: &str,
        labels: BTreeMap<String, String>,
    ) -> Result<Lease, LeaseError> {
        check_labels(&labels)?;
        let shared = &self.images.shared;
        let created = shared.config.clock.now();
        let id = if id.is_empty() { generated_id(created)? } else { id.to_owned() };
        let expires = labels.get(EXPIRE_LABEL).and_then(|date| parse_expiry(&id, date));
        let (lease, namespace) = (Lease { id, created, labels }, ns.clone());
        let row = lease.clone();
        let _gate = shared.claims.enter().await;
        shared.store.write(move |conn| rows::insert(conn, &namespace, &row, expires)).await?;
        if expires.is_some() {
            shared.collector.look_again();
        }
        Ok(lease)
    }

    pub async fn delete(&self, ns: &Namespace, id: &str, collected: Collected) -> Result<(), LeaseError> {
        let (shared, images) = (Arc::clone(&self.images.shared), self.images.clone());
        let (namespace, wanted, what) = (ns.clone(), id.to_owned(), format!("delete lease {id:?}"));
        // On a task of its own: a caller that gives up must not leave the lease deleted and nothing collected.
        let deleting = self.images.shared.tasks.spawn(async move {
            shared.store.write(move |conn| rows::delete(conn, &namespace, &wanted)).await?;
            match collected {
                Collected::Now => images.collect().await?,
                Collected::Soon => shared.collector.collect_soon(),
            }
            Ok(())
        });
        deleting.await.map_err(|source| Error::failed(what, source))?
    }

    /// Every lease of the namespace that is not over, by id.
    pub async fn list(&self, ns: &Namespace) -> Result<Vec<Lease>, LeaseError> {
        let namespace = ns.clone();
        Ok(self.images.shared.store.read(move |conn| rows::list(conn, &namespace)).await?)
    }

    pub async fn add(&self, ns: &Namespace, id: &str, resource: Resource) -> Result<(), LeaseError> {
        let shared = &self.images.shared;
        let (namespace, id) = (ns.clone(), id.to_owned());
        let _gate = shared.claims.enter().await;
        shared.store.write(move |conn| rows::add(conn, &namespace, &id, &resource)).await
    }

    /// What was held is collected with the next collection that something else causes, as containerd does it.
    pub async fn remove(&self, ns: &Namespace, id: &str, resource: Resource) -> Result<(), LeaseError> {
        let (namespace, id) = (ns.clone(), id.to_owned());
        self.images.shared.store.write(move |conn| rows::remove(conn, &namespace, &id, &resource)).await
    }

    pub async fn resources(&self, ns: &Namespace, id: &str) -> Result<Vec<Resource>, LeaseError> {
        let (namespace, id) = (ns.clone(), id.to_owned());
        self.images.shared.store.read(move |conn| rows::resources(conn, &namespace, &id)).await
    }
}

impl Resource {
    /// From type and id as containerd's API says them.
    pub fn parse(kind: &str, id: &str) -> Result<Resource, LeaseError> {
        let (first, rest) = kind.split_once('/').map_or((kind, None), |(first, rest)| (first, Some(rest)));
        match (first, rest) {
            ("content", None) => match Digest::parse(id) {
                Ok(digest) => Ok(Resource::Content(digest)),
                Err(error) => Err(LeaseError::Invalid(format!("invalid content resource id {id}: {error}"))),
            },
            ("ingests", None) => Ok(Resource::Ingest(id.to_owned())),
            ("images", None) => Ok(Resource::Image(id.to_owned())),
            ("snapshots", Some(snapshotter)) if !snapshotter.is_empty() && !snapshotter.contains('/') => {
                Ok(Resource::Snapshot { snapshotter: snapshotter.to_owned(), key: id.to_owned() })
            }
            ("content" | "ingests" | "images", Some(_)) => {
                Err(LeaseError::Invalid(format!("invalid resource type {kind}")))
            }
            ("snapshots", _) => Err(LeaseError::Invalid(format!("invalid snapshot resource type {kind}"))),
            _ => Err(LeaseError::Unsupported { kind: kind.to_owned() }),
        }
    }

    pub fn kind(&self) -> String {
        match self {
            Resource::Content(_) => "content".to_owned(),
            Resource::Ingest(_) => "ingests".to_owned(),
            Resource::Image(_) => "images".to_owned(),
            Resource::Snapshot { snapshotter, .. } => format!("snapshots/{snapshotter}"),
        }
    }

    pub fn id(&self) -> String {
        match self {
            Resource::Content(digest) => digest.to_string(),
            Resource::Ingest(id) | Resource::Image(id) | Resource::Snapshot { key: id, .. } => id.clone(),
        }
    }
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), LeaseError> {
    match labels.iter().find(|(key, value)| key.len() + value.len() > MAX_LABEL) {
        None => Ok(()),
        Some((key, value)) => {
            let length = key.len() + value.len();
            let start: String = key.chars().take(64).collect();
            Err(LeaseError::Invalid(format!(
                "label key and value length ({length} bytes) greater than maximum size ({MAX_LABEL} bytes), key: {start}"
            )))
        }
    }
}

/// As containerd's: the nanoseconds of the second, and four random characters.
fn generated_id(now: SystemTime) -> Result<String, Error> {
    let mut random = [0u8; 3];
    getrandom::fill(&mut random).map_err(|source| Error::failed("name a lease", source))?;
    let nanoseconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().subsec_nanos();
    Ok(format!("{nanoseconds}-{}", URL_SAFE_NO_PAD.encode(random)))
}

/// In nanoseconds since the epoch. A date that cannot be read is no date, as for containerd.
fn parse_expiry(id: &str, date: &str) -> Option<i64> {
    match date.parse::<Timestamp>() {
        Ok(time) => Some(i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)),
        Err(error) => {
            tracing::warn!(lease = id, %error, "{EXPIRE_LABEL} of a lease is no date; it lasts until it is deleted");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resources_are_what_containerd_calls_them() {
        let digest = Digest::sha256_of(b"x");
        let blob = digest.to_string();
        for (kind, id, expected) in [
            ("content", blob.as_str(), Resource::Content(digest)),
            ("ingests", "layer-x", Resource::Ingest("layer-x".into())),
            ("images", "a:1", Resource::Image("a:1".into())),
            ("snapshots/native", "k", Resource::Snapshot { snapshotter: "native".into(), key: "k".into() }),
        ] {
            let parsed = Resource::parse(kind, id).unwrap();
            assert_eq!((parsed.kind().as_str(), parsed.id().as_str()), (kind, id));
            assert_eq!(parsed, expected);
        }
        let refused = |kind: &str, id: &str| Resource::parse(kind, id).unwrap_err();
        assert_eq!(refused("tasks", "t").to_string(), "resource type tasks not supported yet");
        assert!(matches!(refused("tasks", "t"), LeaseError::Unsupported { .. }));
        for (kind, id, text) in [
            ("snapshots", "k", "invalid snapshot resource type snapshots"),
            ("snapshots/", "k", "invalid snapshot resource type snapshots/"),
            ("snapshots/a/b", "k", "invalid snapshot resource type snapshots/a/b"),
            ("content/x", &blob, "invalid resource type content/x"),
        ] {
            let error = refused(kind, id);
            assert!(matches!(error, LeaseError::Invalid(_)) && error.to_string() == text, "{error}");
        }
        assert!(refused("content", "nothing").to_string().starts_with("invalid content resource id nothing: "));
    }

    #[test]
    fn ids_and_dates_are_containerds() {
        let id = generated_id(SystemTime::UNIX_EPOCH + std::time::Duration::new(7, 844_700_125)).unwrap();
        let random = id.strip_prefix("844700125-").unwrap();
        assert!(random.len() == 4 && random.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_".contains(&b)), "{id}");
        assert_eq!(parse_expiry("l", "1970-01-01T00:00:01Z"), Some(1_000_000_000));
        assert_eq!(parse_expiry("l", "1970-01-01T01:00:01.5+01:00"), Some(1_500_000_000));
        assert_eq!(parse_expiry("l", "9999-12-30T00:00:00Z"), Some(i64::MAX));
        for no_date in ["", "tomorrow", "1970-01-01"] {
            assert_eq!(parse_expiry("l", no_date), None);
        }
    }

    #[test]
    fn labels_have_containerds_limit() {
        let label = |length: usize| BTreeMap::from([("k".repeat(length - 6), "value!".to_owned())]);
        check_labels(&label(MAX_LABEL)).unwrap();
        let error = check_labels(&label(MAX_LABEL + 1)).unwrap_err().to_string();
        assert!(
            error.starts_with(
                "label key and value length (4097 bytes) greater than maximum size (4096 bytes), key: kkk"
            ),
            "{error}"
        );
    }
}
