//! Turns at a provider's limits: requests under way at once, requests and tokens in a minute.
//!
//! Workspaces that wait take turns, and the requests of one are served in their order, so that a workspace with a
//! thousand of them delays another's by one. Whoever is dropped leaves the queue, or gives its turn back, at once.

mod bucket;

use crate::core::wire::Provider;
use bucket::Bucket;
use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;
use tokio::sync::oneshot;

/// A provider's limits, and who waits for them.
#[derive(Default)]
pub struct Turns {
    state: Mutex<State>,
}

/// What held a request back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Limit {
    /// Requests under way.
    Concurrent(u32),
    /// Requests in a minute.
    Requests(u32),
    /// Tokens in a minute.
    Tokens(u64),
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Limit::Concurrent(most) => write!(f, "{most} requests at once"),
            Limit::Requests(most) => write!(f, "{most} requests per minute"),
            Limit::Tokens(most) => write!(f, "{most} tokens per minute"),
        }
    }
}

#[derive(Default)]
struct State {
    max_concurrent: u32,
    in_flight: u32,
    requests: Bucket,
    tokens: Bucket,
    /// Workspaces with somebody waiting; the first is next.
    order: VecDeque<[u8; 16]>,
    queues: HashMap<[u8; 16], VecDeque<Waiter>>,
    waiting: u32,
    arrivals: u64,
    /// When the task that sleeps until there is room wakes.
    timed: Option<Instant>,
}

struct Waiter {
    number: u64,
    tokens: u64,
    granted: oneshot::Sender<Turn>,
}

/// The right to have one request under way.
pub struct Turn {
    turns: Arc<Turns>,
    reserved: u64,
}

impl std::fmt::Debug for Turn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Turn of {} tokens", self.reserved)
    }
}

impl Turn {
    /// Gives back the tokens that were reserved and not used, or takes those that were used besides.
    pub fn settle(&mut self, used: u64) {
        let mut state = self.turns.lock();
        state.tokens.give(self.reserved as f64 - used as f64);
        self.reserved = used;
        drop(state);
        self.turns.serve();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.turns.lock().in_flight -= 1;
        self.turns.serve();
    }
}

/// Takes a request out of the queue that nobody waits for any more.
struct Place<'a> {
    turns: &'a Arc<Turns>,
    workspace: [u8; 16],
    number: u64,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut state = self.turns.lock();
        let Some(queue) = state.queues.get_mut(&self.workspace) else { return };
        let Ok(at) = queue.binary_search_by_key(&self.number, |waiter| waiter.number) else { return };
        let _gone = queue.remove(at);
        let empty = queue.is_empty();
        state.waiting -= 1;
        if empty {
            state.queues.remove(&self.workspace);
            state.order.retain(|workspace| *workspace != self.workspace);
        }
        drop(state);
        // Whoever stood behind may need less.
        self.turns.serve();
    }
}

impl Turns {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Requests under way, and requests waiting.
    pub fn counts(&self) -> (u32, u32) {
        let state = self.lock();
        (state.in_flight, state.waiting)
    }

    /// Waits for a turn with room for so many tokens, until `deadline`; then says what held it back.
    pub async fn take(
        self: &Arc<Self>,
        provider: &Provider,
        workspace: [u8; 16],
        tokens: u64,
        deadline: Instant,
    ) -> Result<Turn, Limit> {
        let now = Instant::now();
        let (place, mut granted) = {
            let mut state = self.lock();
            state.max_concurrent = provider.max_concurrent;
            state.requests.set(u64::from(provider.requests_per_minute), now);
            state.tokens.set(provider.tokens_per_minute, now);
            if state.order.is_empty() && state.held_back(tokens, now).is_none() {
                return Ok(state.grant(self, tokens));
            }
            state.arrivals += 1;
            state.waiting += 1;
            let (sender, granted) = oneshot::channel();
            let waiter = Waiter { number: state.arrivals, tokens, granted: sender };
            let number = waiter.number;
            let queue = state.queues.entry(workspace).or_default();
            let first = queue.is_empty();
            queue.push_back(waiter);
            if first {
                state.order.push_back(workspace);
            }
            (Place { turns: self, workspace, number }, granted)
        };
        // Limits may have changed with this request.
        self.serve();
        let waited = tokio::time::timeout_at(deadline.into(), &mut granted).await;
        drop(place);
        match waited {
            Ok(Ok(turn)) => Ok(turn),
            // It may have come at the last moment.
            _ => granted.try_recv().map_err(|_| self.lock().limit(tokens, Instant::now())),
        }
    }

    /// Gives turns to those in front for as long as there is room, and sees to it that it is asked again in time.
    fn serve(self: &Arc<Self>) {
        let mut unwanted = Vec::new();
        let mut state = self.lock();
        let now = Instant::now();
        let mut pause = None;
        while let Some(workspace) = state.order.front().copied() {
            let Some(waiter) = state.queues.get(&workspace).and_then(VecDeque::front) else {
                state.order.pop_front();
                continue;
            };
            let tokens = waiter.tokens;
            if let Some(limit) = state.held_back(tokens, now) {
                pause = state.pause(limit, tokens);
                break;
            }
            state.order.pop_front();
            let queue = state.queues.get_mut(&workspace);
            let Some(waiter) = queue.and_then(VecDeque::pop_front) else { continue };
            if state.queues.get(&workspace).is_some_and(VecDeque::is_empty) {
                state.queues.remove(&workspace);
            } else {
                state.order.push_back(workspace);
            }
            state.waiting -= 1;
            let turn = state.grant(self, tokens);
            if let Err(turn) = waiter.granted.send(turn) {
                unwanted.push(turn);
            }
        }
        if let Some(wake) = pause.map(|pause| now + pause)
            && state.timed.is_none_or(|timed| wake < timed)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            state.timed = Some(wake);
            let turns = Arc::clone(self);
            runtime.spawn(async move {
                tokio::time::sleep_until(wake.into()).await;
                let mut state = turns.lock();
                // An earlier one may have taken its place.
                state.timed = state.timed.filter(|timed| *timed != wake);
                drop(state);
                turns.serve();
            });
        }
        drop(state);
        // Each asks again when it is dropped, which needs the lock.
        drop(unwanted);
    }
}

impl State {
    /// The limit that has no room for so many tokens now.
    fn held_back(&mut self, tokens: u64, now: Instant) -> Option<Limit> {
        self.requests.fill(now);
        self.tokens.fill(now);
        if self.max_concurrent > 0 && self.in_flight >= self.max_concurrent {
            return Some(Limit::Concurrent(self.max_concurrent));
        }
        if !self.requests.has(1) {
            return Some(Limit::Requests(self.requests.most() as u32));
        }
        (!self.tokens.has(tokens)).then(|| Limit::Tokens(self.tokens.most()))
    }

    /// The limit to blame; the one that holds whoever is in front.
    fn limit(&mut self, tokens: u64, now: Instant) -> Limit {
        let front = self.order.front().and_then(|workspace| self.queues.get(workspace)?.front());
        let front = front.map_or(tokens, |waiter| waiter.tokens);
        self.held_back(front, now).unwrap_or(Limit::Concurrent(self.max_concurrent))
    }

    fn pause(&self, limit: Limit, tokens: u64) -> Option<std::time::Duration> {
        match limit {
            Limit::Concurrent(_) => None,
            Limit::Requests(_) => Some(self.requests.wait(1)),
            Limit::Tokens(_) => Some(self.tokens.wait(tokens)),
        }
    }

    fn grant(&mut self, turns: &Arc<Turns>, tokens: u64) -> Turn {
        self.in_flight += 1;
        self.requests.give(-1.0);
        self.tokens.give(-(tokens as f64));
        Turn { turns: Arc::clone(turns), reserved: tokens }
    }
}

#[cfg(test)]
mod tests;
