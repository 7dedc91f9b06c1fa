//! The same work asked for twice at once is done once.

use crate::gateway::http::fault::Fault;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use tokio::sync::watch;
use tokio::task::AbortHandle;

/// The embeddings of one request.
pub struct Vectors {
    /// Numbers in each.
    pub dimensions: usize,
    /// `dimensions` numbers for each text, of length 1.
    pub values: Vec<f32>,
    /// Tokens of the texts.
    pub tokens: u64,
    /// Whether we counted them.
    pub estimated: bool,
}

/// How the work ended.
pub type Done = Arc<Result<Vectors, Fault>>;

type Key = [u8; 32];

/// Work under way, by what it is.
#[derive(Default)]
pub struct Shares {
    known: Mutex<HashMap<Key, Weak<Share>>>,
}

/// Work that somebody waits for. When the last one goes away, it stops.
pub struct Share {
    shares: Arc<Shares>,
    key: Key,
    task: AbortHandle,
    done: watch::Receiver<Option<Done>>,
}

impl Shares {
    fn lock(&self) -> MutexGuard<'_, HashMap<Key, Weak<Share>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Joins the work that is known by this key, or begins it; says whether it was begun.
    pub fn join<F>(self: &Arc<Self>, key: Key, work: impl FnOnce() -> F) -> (Arc<Share>, bool)
    where
        F: Future<Output = Result<Vectors, Fault>> + Send + 'static,
    {
        let mut known = self.lock();
        let current = known.get(&key).and_then(Weak::upgrade);
        let usable = current.as_ref().is_some_and(|share| share.done.borrow().as_ref().is_none_or(|done| done.is_ok()));
        if usable && let Some(share) = current {
            return (share, false);
        }
        let (sender, done) = watch::channel(None);
        let work = work();
        let task = tokio::spawn(async move {
            let result = work.await;
            sender.send_replace(Some(Arc::new(result)));
        });
        let share = Arc::new(Share { shares: Arc::clone(self), key, task: task.abort_handle(), done });
        known.insert(key, Arc::downgrade(&share));
        // Its drop needs the lock.
        drop(known);
        drop(current);
        (share, true)
    }
}

impl Share {
    /// Waits for the end; `None` where the work panicked.
    pub async fn done(&self) -> Option<Done> {
        let mut done = self.done.clone();
        done.wait_for(Option::is_some).await.ok()?.clone()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.task.abort();
        let mut known = self.shares.lock();
        // Another may have taken its place.
        if known.get(&self.key).is_some_and(|share| share.strong_count() == 0) {
            known.remove(&self.key);
        }
    }
}
