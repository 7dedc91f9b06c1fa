//! One model for all connections: texts of many requests go through it together.
//!
//! In: texts, and whether somebody is waiting for them. Out: their embeddings, in order, in slices as they are done.
//! The model is loaded on first use and runs on threads of its own, never on those that serve sockets. Requests take
//! turns text by text, so that a large one cannot starve a small one, and what an abandoned request still had waiting is
//! taken back at once. No more than [`WAITING_TEXTS`] of each kind wait for the model: beyond that, the asker waits.

mod queue;
#[cfg(test)]
mod tests;

use super::model::{Model, weights};
use crate::core::error::{Error, Result};
use queue::{Queue, Ticket};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{Semaphore, oneshot, watch};

/// Texts that may wait for the model, of interactive and of background requests each; one takes about 1 kB there.
pub const WAITING_TEXTS: usize = 4096;

/// Texts that are handed over, and given back, together.
const SLICE_TEXTS: usize = 64;
/// Bytes after which a slice is closed, whatever it holds.
const SLICE_BYTES: usize = 1 << 20;
/// Slices of one request that are under way at once: the model need not wait for the asker to take one.
const SLICES_AHEAD: usize = 2;

/// The local model as all connections share it; clones are the same one.
#[derive(Clone)]
pub struct Batcher {
    inner: Arc<Inner>,
}

struct Inner {
    dir: PathBuf,
    name: String,
    threads: usize,
    queue: Arc<Queue>,
    loading: Mutex<Loading>,
    /// Room in the queue, for interactive and for background texts.
    room: [Arc<Semaphore>; 2],
    /// Requests that tokenize at once.
    tokenizers: Semaphore,
}

enum Loading {
    No,
    Now(watch::Receiver<Option<Result<Arc<Model>>>>),
    Done(Arc<Model>),
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.queue.stop();
    }
}

impl Batcher {
    /// Prepares for the model in `dir`, which is read when it is first needed, and runs on `threads` threads.
    pub fn start(dir: &Path, threads: usize) -> Batcher {
        let threads = threads.max(1);
        let room = || Arc::new(Semaphore::new(WAITING_TEXTS));
        let inner = Inner {
            dir: dir.to_owned(),
            name: weights::name_of(dir),
            threads,
            queue: Arc::new(Queue::new(threads)),
            loading: Mutex::new(Loading::No),
            room: [room(), room()],
            tokenizers: Semaphore::new(threads),
        };
        Batcher { inner: Arc::new(inner) }
    }

    /// Refuses any model but the configured one; an empty name stands for that.
    pub fn check(&self, model: &str) -> Result<()> {
        if model.is_empty() || model == self.inner.name {
            return Ok(());
        }
        Err(Error::unknown_object(format!("local model \"{model}\" is not installed"))
            .detail(format!("The configured local model is \"{}\".", self.inner.name))
            .hint("Leave the model out, or configure the one you want."))
    }

    /// The model, loaded now if it was not; a failure is told to all who wait, and the next call tries again.
    pub async fn model(&self) -> Result<Arc<Model>> {
        let mut result = {
            let mut loading = self.inner.loading.lock().unwrap_or_else(PoisonError::into_inner);
            match &*loading {
                Loading::Done(model) => return Ok(model.clone()),
                Loading::Now(result) => result.clone(),
                Loading::No => {
                    let (sender, receiver) = watch::channel(None);
                    let inner = self.inner.clone();
                    let load = move || {
                        let loaded = inner.load();
                        *inner.loading.lock().unwrap_or_else(PoisonError::into_inner) = match &loaded {
                            Ok(model) => Loading::Done(model.clone()),
                            Err(_) => Loading::No,
                        };
                        sender.send_replace(Some(loaded));
                    };
                    std::thread::Builder::new().name("model-load".to_owned()).spawn(load).map_err(no_thread)?;
                    *loading = Loading::Now(receiver.clone());
                    receiver
                }
            }
        };
        match result.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(loaded)) => loaded.clone(),
            _ => Err(Error::bug("the local model's loader went away")),
        }
    }

    /// The model's name and dimensions once it is loaded.
    pub fn loaded(&self) -> Option<Arc<Model>> {
        match &*self.inner.loading.lock().unwrap_or_else(PoisonError::into_inner) {
            Loading::Done(model) => Some(model.clone()),
            _ => None,
        }
    }

    /// Name of the configured model, loaded or not.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Texts waiting for the model.
    pub fn queued(&self) -> usize {
        self.inner.queue.queued.load(Ordering::Relaxed)
    }

    /// Tokens that went through the model since the start.
    pub fn tokens(&self) -> u64 {
        self.inner.queue.tokens.load(Ordering::Relaxed)
    }

    /// Texts that were taken back because their asker went away.
    pub fn cancelled(&self) -> u64 {
        self.inner.queue.cancelled.load(Ordering::Relaxed)
    }

    /// Embeds texts, in order. Dropping the future takes back those that still wait.
    pub async fn embed(&self, model: &str, inputs: Vec<String>, interactive: bool) -> Result<Vec<Vec<f32>>> {
        let mut all = Vec::with_capacity(inputs.len());
        let mut slices = self.embed_slices(model, inputs, interactive)?;
        while let Some(slice) = slices.next().await {
            all.extend(slice?);
        }
        Ok(all)
    }

    /// Embeds texts and gives the embeddings slice by slice, in order, as they are done.
    pub fn embed_slices(&self, model: &str, inputs: Vec<String>, interactive: bool) -> Result<Slices> {
        self.check(model)?;
        if let Some(index) = inputs.iter().position(String::is_empty) {
            return Err(Error::bad_argument("a text to embed is empty").detail(format!(
                "It is number {} of {}.",
                index + 1,
                inputs.len()
            )));
        }
        let (inputs, ahead) = (inputs.into_iter().collect(), VecDeque::new());
        Ok(Slices { batcher: self.clone(), inputs, interactive, ahead, tokens: 0 })
    }

    /// Counts the model's tokens of each text, special tokens left out.
    pub async fn count_tokens(&self, model: &str, inputs: Vec<String>) -> Result<Vec<u32>> {
        self.check(model)?;
        let model = self.model().await?;
        let count = move || inputs.iter().map(|text| model.count_tokens(text) as u32).collect();
        self.tokenizing(count).await
    }

    /// Runs what tokenizes on a thread that may block, a few at once.
    async fn tokenizing<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let _turn = self.inner.tokenizers.acquire().await.map_err(|_| Error::bug("the tokenizers are closed"))?;
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::bug("the tokenizer panicked"))
    }
}

impl Inner {
    /// Reads the model and starts its threads.
    fn load(&self) -> Result<Arc<Model>> {
        let load = || Model::load(&self.dir, self.threads);
        let loaded = std::panic::catch_unwind(std::panic::AssertUnwindSafe(load));
        let model = Arc::new(loaded.map_err(|_| Error::bug("loading the local model panicked"))??);
        for index in 0..self.threads {
            let (model, queue) = (model.clone(), self.queue.clone());
            let thread = std::thread::Builder::new().name(format!("model-{index}"));
            let started = thread.spawn(move || queue.run(&model));
            // One thread is enough to serve; with none, the next call tries again.
            if let Err(error) = started
                && index == 0
            {
                return Err(no_thread(error));
            }
        }
        Ok(model)
    }
}

fn no_thread(error: std::io::Error) -> Error {
    Error::not_ready("cannot start a thread for the local model").detail(format!("The system said: {error}."))
}

/// A request's embeddings as they come. Dropping it takes back the texts that still wait.
pub struct Slices {
    batcher: Batcher,
    inputs: VecDeque<String>,
    interactive: bool,
    ahead: VecDeque<Ahead>,
    tokens: u64,
}

struct Ahead {
    reply: oneshot::Receiver<Result<Vec<Vec<f32>>>>,
    _ticket: Ticket,
}

impl Slices {
    /// The next embeddings, or `None` after the last. After an error there is nothing more to ask for.
    pub async fn next(&mut self) -> Option<Result<Vec<Vec<f32>>>> {
        while self.ahead.len() < SLICES_AHEAD && !self.inputs.is_empty() {
            match self.hand_over().await {
                Ok(ahead) => self.ahead.push_back(ahead),
                Err(error) => return Some(Err(error)),
            }
        }
        let reply = (&mut self.ahead.front_mut()?.reply).await;
        self.ahead.pop_front();
        Some(reply.unwrap_or_else(|_| Err(Error::bug("the local model's threads went away"))))
    }

    /// Tokens of the texts handed to the model so far, special ones included.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }

    async fn hand_over(&mut self) -> Result<Ahead> {
        let model = self.batcher.model().await?;
        let inner = self.batcher.inner.clone();
        let mut bytes = 0;
        let fits = |text: &&String| {
            bytes += text.len();
            bytes <= SLICE_BYTES
        };
        let count = self.inputs.iter().take(SLICE_TEXTS).take_while(fits).count().max(1);
        let room = inner.room[usize::from(!self.interactive)].clone();
        let room = room.acquire_many_owned(count as u32).await.map_err(|_| Error::bug("the queue is closed"))?;
        let texts: Vec<String> = self.inputs.drain(..count).collect();
        let tokenize = move || texts.iter().map(|text| model.tokenize(text)).collect::<Result<Vec<_>>>();
        let ids = self.batcher.tokenizing(tokenize).await??;
        self.tokens += ids.iter().map(|ids| ids.len() as u64).sum::<u64>();
        let (ticket, reply) = Queue::push(&inner.queue, ids, self.interactive, Some(room));
        Ok(Ahead { reply, _ticket: ticket })
    }
}
