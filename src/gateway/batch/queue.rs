//! Texts that wait for the model, and the loop of a thread that takes them to it.
//!
//! In: slices of tokenized texts. Out: each slice's embeddings, when its last text is done. A pass takes one text of each
//! slice in turn until it is full; slices of interactive requests go first. A slice whose [`Ticket`] is dropped leaves
//! at once. Nothing here waits for anything but work.

use crate::core::error::{Error, Result};
use crate::gateway::model::encoder::Scratch;
use crate::gateway::model::{Model, PASS_TOKENS};
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use tokio::sync::{OwnedSemaphorePermit, oneshot};

/// What a slice ends with.
type Embeddings = Result<Vec<Vec<f32>>>;

/// The queue, shared by those who ask and the threads that work.
pub struct Queue {
    state: Mutex<State>,
    work: Condvar,
    threads: usize,
    /// Texts waiting.
    pub queued: AtomicUsize,
    /// Tokens that went through the model.
    pub tokens: AtomicU64,
    /// Texts taken back.
    pub cancelled: AtomicU64,
}

#[derive(Default)]
struct State {
    slices: HashMap<u64, Slice>,
    /// Slices with waiting texts, in turn: interactive ones, background ones.
    turns: [VecDeque<u64>; 2],
    /// Tokens waiting, of each kind.
    waiting: [usize; 2],
    last: u64,
    stopped: bool,
}

struct Slice {
    kind: usize,
    waiting: VecDeque<(usize, Vec<u32>)>,
    done: Vec<Vec<f32>>,
    left: usize,
    reply: oneshot::Sender<Embeddings>,
    _room: Option<OwnedSemaphorePermit>,
}

/// A text on its way through the model.
struct Taken {
    slice: u64,
    index: usize,
    ids: Vec<u32>,
}

/// Keeps a slice in the queue.
pub struct Ticket {
    queue: Arc<Queue>,
    slice: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut state = self.queue.lock();
        if let Some(slice) = state.slices.remove(&self.slice) {
            let tokens: usize = slice.waiting.iter().map(|(_, ids)| ids.len()).sum();
            state.waiting[slice.kind] -= tokens;
            state.turns[slice.kind].retain(|id| *id != self.slice);
            self.queue.queued.fetch_sub(slice.waiting.len(), Ordering::Relaxed);
            self.queue.cancelled.fetch_add(slice.waiting.len() as u64, Ordering::Relaxed);
        }
    }
}

impl Queue {
    /// An empty queue for that many threads.
    pub fn new(threads: usize) -> Queue {
        Queue {
            state: Mutex::default(),
            work: Condvar::new(),
            threads,
            queued: AtomicUsize::new(0),
            tokens: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends the threads once they are through with what they hold.
    pub fn stop(&self) {
        self.lock().stopped = true;
        self.work.notify_all();
    }

    /// Lets texts wait, at least one of them; `room` is given back when they are done or taken back.
    pub fn push(
        queue: &Arc<Queue>,
        texts: Vec<Vec<u32>>,
        interactive: bool,
        room: Option<OwnedSemaphorePermit>,
    ) -> (Ticket, oneshot::Receiver<Embeddings>) {
        let (reply, receiver) = oneshot::channel();
        let kind = usize::from(!interactive);
        let left = texts.len();
        queue.queued.fetch_add(left, Ordering::Relaxed);
        let mut state = queue.lock();
        state.last += 1;
        let id = state.last;
        state.waiting[kind] += texts.iter().map(Vec::len).sum::<usize>();
        let done = vec![Vec::new(); left];
        let waiting = texts.into_iter().enumerate().collect();
        state.slices.insert(id, Slice { kind, waiting, done, left, reply, _room: room });
        state.turns[kind].push_back(id);
        drop(state);
        queue.work.notify_all();
        (Ticket { queue: queue.clone(), slice: id }, receiver)
    }

    /// A thread's life: takes texts to the model until the queue is stopped.
    pub fn run(&self, model: &Model) {
        let mut scratch = Scratch::default();
        while let Some(pass) = self.take() {
            let ids: Vec<&[u32]> = pass.iter().map(|text| text.ids.as_slice()).collect();
            let tokens: usize = ids.iter().map(|ids| ids.len()).sum();
            match catch_unwind(AssertUnwindSafe(|| model.forward(&ids, &mut scratch))) {
                Ok(embeddings) => {
                    self.tokens.fetch_add(tokens as u64, Ordering::Relaxed);
                    self.finish(&pass, embeddings);
                }
                Err(_) => {
                    scratch = Scratch::default();
                    self.fail(&pass);
                }
            }
        }
    }

    /// The texts of the next pass; waits for some. `None` once the queue is stopped.
    fn take(&self) -> Option<Vec<Taken>> {
        let mut state = self.lock();
        loop {
            if state.stopped {
                return None;
            }
            if let Some(kind) = state.turns.iter().position(|turns| !turns.is_empty()) {
                let pass = state.take(kind, self.threads);
                self.queued.fetch_sub(pass.len(), Ordering::Relaxed);
                return Some(pass);
            }
            state = self.work.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn finish(&self, pass: &[Taken], embeddings: Vec<Vec<f32>>) {
        let mut state = self.lock();
        for (text, embedding) in pass.iter().zip(embeddings) {
            // A slice that was taken back is not there any more.
            let Some(slice) = state.slices.get_mut(&text.slice) else { continue };
            slice.done[text.index] = embedding;
            slice.left -= 1;
            if slice.left == 0
                && let Some(slice) = state.slices.remove(&text.slice)
            {
                let _ = slice.reply.send(Ok(slice.done));
            }
        }
    }

    /// The model panicked: each slice of the pass ends with an error, and the others go on.
    fn fail(&self, pass: &[Taken]) {
        let mut state = self.lock();
        for text in pass {
            let Some(slice) = state.slices.remove(&text.slice) else { continue };
            state.turns[slice.kind].retain(|id| *id != text.slice);
            state.waiting[slice.kind] -= slice.waiting.iter().map(|(_, ids)| ids.len()).sum::<usize>();
            self.queued.fetch_sub(slice.waiting.len(), Ordering::Relaxed);
            let _ = slice.reply.send(Err(Error::bug("the local model panicked")));
        }
    }
}

impl State {
    /// Takes one text of each slice in turn until the pass is full; what little is left is shared between the threads.
    fn take(&mut self, kind: usize, threads: usize) -> Vec<Taken> {
        let most = self.waiting[kind].div_ceil(threads).min(PASS_TOKENS);
        let (mut pass, mut tokens) = (Vec::new(), 0);
        while let Some(id) = self.turns[kind].front().copied() {
            let Some(slice) = self.slices.get_mut(&id) else {
                self.turns[kind].pop_front();
                continue;
            };
            let next = slice.waiting.front().map_or(0, |(_, ids)| ids.len());
            if !pass.is_empty() && tokens + next > most {
                break;
            }
            self.turns[kind].pop_front();
            if let Some((index, ids)) = slice.waiting.pop_front() {
                self.waiting[kind] -= ids.len();
                tokens += ids.len();
                pass.push(Taken { slice: id, index, ids });
            }
            if !slice.waiting.is_empty() {
                self.turns[kind].push_back(id);
            }
        }
        pass
    }
}
