//! One pull that all who ask for the same share.
//!
//! ```text
//! pull() ─ joins or starts a flight (namespace, reference, snapshotter, credentials) and waits for its answer
//!   fly: pull.rs up to the commit ─ stops when the last caller is gone
//!        commit ─ never stops halfway      or   wait for what still runs, then collect what it left
//! ```
//!
//! A flight runs on a task of its own. What a failed or cancelled flight brought is gone before its callers hear of it.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::{
        Arc, Mutex, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
};

use store::Namespace;
use tokio::sync::watch;
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    auth::Credentials,
    collect::Unused,
    images::{Image, Images, Shared},
    pull::{Pull, PullError, PullRequest},
    reference::Reference,
};

/// What makes two pulls the same. Credentials are part of it: an image is not given to one caller because another was
/// allowed to have it.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(crate) namespace: Namespace,
    pub(crate) reference: String,
    pub(crate) snapshotter: Option<String>,
    pub(crate) credentials: Option<Credentials>,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Equal keys have equal references; the rest only tells apart what is rarely asked for at the same time.
        self.reference.hash(state);
    }
}

type Answer = Option<Result<Arc<Image>, PullError>>;

struct Flight {
    answer: watch::Receiver<Answer>,
    /// Cancels the flight when the last caller's clone is dropped.
    wanted: Weak<DropGuard>,
}

/// A caller's place on a flight.
struct Boarding {
    answer: watch::Receiver<Answer>,
    /// The flight goes on as long as one of these lives.
    _wanted: Arc<DropGuard>,
    /// Set for the first caller: where to answer, and what cancels the flight.
    start: Option<(watch::Sender<Answer>, CancellationToken)>,
}

/// The pulls that run.
#[derive(Default)]
pub(crate) struct Flights {
    running: Mutex<HashMap<Key, Flight>>,
    all: CancellationToken,
}

impl Flights {
    pub(crate) fn cancel(&self) {
        self.all.cancel();
    }

    /// Cancelled with all flights, when the daemon ends.
    pub(crate) fn ending(&self) -> CancellationToken {
        self.all.clone()
    }

    /// Joins the flight of this key, or makes a new one that the caller must start.
    fn board(&self, key: &Key) -> Boarding {
        // Guards the map only, for a look and an insert.
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = running.get(key)
            && let Some(wanted) = flight.wanted.upgrade()
        {
            return Boarding { answer: flight.answer.clone(), _wanted: wanted, start: None };
        }
        let token = self.all.child_token();
        let wanted = Arc::new(token.clone().drop_guard());
        let (sender, answer) = watch::channel(None);
        running.insert(key.clone(), Flight { answer: answer.clone(), wanted: Arc::downgrade(&wanted) });
        Boarding { answer, _wanted: wanted, start: Some((sender, token)) }
    }

    fn landed(&self, key: &Key, sender: &watch::Sender<Answer>) {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // A cancelled flight may already have been replaced by a new one of the same key.
        if running.get(key).is_some_and(|flight| flight.answer.same_channel(&sender.subscribe())) {
            running.remove(key);
        }
    }
}

pub(crate) async fn pull(shared: &Arc<Shared>, request: PullRequest) -> Result<Arc<Image>, PullError> {
    let reference = Reference::parse(&request.reference)
        .map_err(|source| PullError::Reference { input: request.reference.clone(), source: Arc::new(source) })?;
    let key = Key {
        namespace: request.namespace,
        reference: reference.to_string(),
        snapshotter: request.snapshotter,
        credentials: request.credentials,
    };
    let mut boarding = shared.flights.board(&key);
    if let Some((sender, token)) = boarding.start.take() {
        let images = Images { shared: Arc::clone(shared) };
        shared.tasks.spawn(fly(images, key, reference.clone(), sender, token));
    }
    match boarding.answer.wait_for(Option::is_some).await {
        Ok(answer) => answer.clone().unwrap_or_else(|| Err(PullError::Cancelled(reference.to_string()))),
        // The task ended without an answer: the daemon shuts down.
        Err(_) => Err(PullError::Cancelled(reference.to_string())),
    }
}

async fn fly(images: Images, key: Key, reference: Reference, sender: watch::Sender<Answer>, token: CancellationToken) {
    let shared = &images.shared;
    let name = reference.to_string();
    let result = pull_once(&images, &key, &reference, &token).await;
    match &result {
        Ok(image) => {
            tracing::info!(image = %name, id = %image.id, "pulled");
            if shared.config.discard_unpacked_layers
                && let Err(error) = images.collect().await
            {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "blobs of unpacked layers are collected later");
            }
        }
        Err(error) => {
            tracing::info!(image = %name, error = error as &dyn std::error::Error, "pull failed");
            // Whoever tries again is spared what came so far, unless that is the trouble, or the disk is.
            let unused = match error {
                PullError::Unavailable(_) | PullError::Stalled { .. } | PullError::Cancelled(_) => Unused::Keep,
                error if error.is_disk_full() => Unused::DeleteWithStarts,
                _ => Unused::Delete,
            };
            if let Err(error) = images.collect_and(unused).await {
                let error = &error as &dyn std::error::Error;
                tracing::warn!(error, "what a failed pull left is collected later");
            }
        }
    }
    shared.flights.landed(&key, &sender);
    // Nobody may be waiting any more.
    sender.send_replace(Some(result));
}

async fn pull_once(
    images: &Images,
    key: &Key,
    reference: &Reference,
    token: &CancellationToken,
) -> Result<Arc<Image>, PullError> {
    let (cancelled, work) = (Arc::new(AtomicBool::new(false)), TaskTracker::new());
    let pull = Pull {
        images,
        key,
        reference,
        cancelled: Arc::clone(&cancelled),
        work: work.clone(),
        claims: Mutex::default(),
    };
    let fetched = tokio::select! {
        fetched = Box::pin(pull.run()) => fetched,
        () = token.cancelled() => Err(PullError::Cancelled(reference.to_string())),
    };
    match fetched {
        Ok(pulled) => pull.commit(pulled).await,
        Err(error) => {
            // Extraction that still runs on a blocking thread sees this at its next read.
            cancelled.store(true, Ordering::Relaxed);
            // The claims go when the work has ended, so that what follows collects all that it left.
            work.close();
            work.wait().await;
            Err(error)
        }
    }
}
