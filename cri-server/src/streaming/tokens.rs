//! The links between a CRI answer and the HTTP request that follows it: a token is unguessable, good once, for a minute.
//!
//! What a token stands for stays here; the URL says nothing about it. At most [`MOST`] wait at one time.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use thiserror::Error;
use tokio::time::Instant;

/// Tokens that wait to be used, each with what it stands for.
pub(super) struct Tokens<T> {
    /// Held for a look-up, never across an await.
    pending: Mutex<HashMap<String, Pending<T>>>,
}

struct Pending<T> {
    until: Instant,
    what: T,
}

/// Why there is no token.
#[derive(Debug, Error)]
pub(crate) enum TokenError {
    /// gRPC ResourceExhausted.
    #[error("{MOST} streaming requests wait to be used; try again when some have been, or in a minute")]
    Full,
    #[error("make a streaming token: the kernel gives no random bytes")]
    Random(#[source] getrandom::Error),
}

/// Tokens that may wait at one time.
const MOST: usize = 1000;

/// How long a token is good.
const LIFE: Duration = Duration::from_secs(60);

impl<T> Tokens<T> {
    pub(super) fn new() -> Tokens<T> {
        Tokens { pending: Mutex::new(HashMap::new()) }
    }

    /// A new token for `what`.
    pub(super) fn give(&self, what: T) -> Result<String, TokenError> {
        let mut bytes = [0u8; 12];
        getrandom::fill(&mut bytes).map_err(TokenError::Random)?;
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let now = Instant::now();
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.retain(|_, waiting| waiting.until > now);
        if pending.len() >= MOST {
            return Err(TokenError::Full);
        }
        pending.insert(token.clone(), Pending { until: now + LIFE, what });
        Ok(token)
    }

    /// What the token stands for, once.
    pub(super) fn take(&self, token: &str) -> Option<T> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let found = pending.remove(token)?;
        (found.until > Instant::now()).then_some(found.what)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[tokio::test]
    async fn a_token_is_good_once() {
        let tokens = Tokens::new();
        let token = tokens.give("exec").unwrap();
        assert!(token.len() >= 8 && token.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte)));
        assert_eq!(tokens.take("another"), None);
        assert_eq!(tokens.take(&token), Some("exec"));
        assert_eq!(tokens.take(&token), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_token_is_good_for_a_minute() {
        let tokens = Tokens::new();
        let (early, late) = (tokens.give(1).unwrap(), tokens.give(2).unwrap());
        tokio::time::advance(LIFE - Duration::from_millis(1)).await;
        assert_eq!(tokens.take(&early), Some(1));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert_eq!(tokens.take(&late), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_thousand_wait_and_the_next_is_refused_until_they_expire() {
        let tokens = Tokens::new();
        let given: HashSet<String> = (0..MOST).map(|number| tokens.give(number).unwrap()).collect();
        assert_eq!(given.len(), MOST);
        assert!(matches!(tokens.give(MOST), Err(TokenError::Full)));
        tokio::time::advance(LIFE).await;
        assert!(tokens.give(MOST).is_ok());
    }
}
