//! What is known of a provider: its circuit, its turns and its figures.

use crate::core::wire::ProviderState;
use crate::gateway::http::circuit::Circuit;
use crate::gateway::http::fault::{Fault, Health};
use crate::gateway::http::turns::Turns;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Requests whose latency is remembered.
const LATENCIES: usize = 1000;
/// Providers remembered before those are forgotten that nobody has used for [`FORGOTTEN`].
const PEERS: usize = 4096;
/// See [`PEERS`].
const FORGOTTEN: Duration = Duration::from_secs(3600);

/// A provider as all requests share it.
#[derive(Default)]
pub struct Peer {
    /// Who may send to it, and when.
    pub turns: Arc<Turns>,
    figures: Mutex<Figures>,
}

#[derive(Default)]
struct Figures {
    circuit: Circuit,
    /// The circuit opened at its rate limit.
    limited: bool,
    requests: u64,
    errors: u64,
    last_error: Option<String>,
    latencies: Vec<u32>,
    next: usize,
    used: Option<Instant>,
}

/// A provider that is left alone for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cooling {
    /// For how long.
    pub left: Duration,
    /// Because of its rate limit.
    pub limited: bool,
}

/// A request under way.
pub struct Sent<'a> {
    peer: &'a Peer,
    probe: bool,
    began: Instant,
    ended: bool,
}

impl Peer {
    fn lock(&self) -> MutexGuard<'_, Figures> {
        self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether it is left alone now.
    pub fn cooling(&self, now: Instant) -> Option<Cooling> {
        let figures = self.lock();
        figures.circuit.remaining(now).map(|left| Cooling { left, limited: figures.limited })
    }

    /// Begins a request, unless the provider is left alone.
    pub fn begin(&self) -> Result<Sent<'_>, Cooling> {
        let began = Instant::now();
        let mut figures = self.lock();
        let limited = figures.limited;
        let probe = figures.circuit.admit(began).map_err(|left| Cooling { left, limited })?;
        figures.requests += 1;
        figures.used = Some(began);
        Ok(Sent { peer: self, probe, began, ended: false })
    }

    fn state(&self, id: [u8; 16], now: Instant) -> ProviderState {
        let (in_flight, waiting) = self.turns.counts();
        let figures = self.lock();
        let mut sorted = figures.latencies.clone();
        sorted.sort_unstable();
        let at = |percent: usize| sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1)));
        let name = figures.circuit.name(now);
        ProviderState {
            id,
            circuit: name.into(),
            in_flight,
            waiting,
            requests: figures.requests,
            errors: figures.errors,
            last_error: figures.last_error.clone(),
            retry_seconds: (name == "open")
                .then(|| figures.circuit.remaining(now).map_or(0, |left| left.as_secs_f64().ceil() as u64)),
            latency_ms: [50, 95, 99].map(|percent| at(percent).copied().unwrap_or(0)),
        }
    }
}

impl Sent<'_> {
    /// When it began.
    pub fn began(&self) -> Instant {
        self.began
    }

    /// It was answered.
    pub fn answered(mut self) {
        self.ended = true;
        let mut figures = self.peer.lock();
        figures.circuit.answered();
        figures.took(self.began);
    }

    /// It failed.
    pub fn failed(mut self, fault: &Fault) {
        self.ended = true;
        let mut figures = self.peer.lock();
        let now = Instant::now();
        match fault.health {
            Health::Well => figures.circuit.answered(),
            Health::Unknown => figures.circuit.abandoned(now, self.probe),
            Health::Failing => {
                figures.limited = fault.error.kind == crate::core::error::Kind::RateLimited;
                figures.circuit.failed(now, self.probe, fault.retry_after);
            }
        }
        figures.errors += 1;
        figures.last_error = Some(fault.error.message.clone());
        figures.took(self.began);
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        if !self.ended {
            self.peer.lock().circuit.abandoned(Instant::now(), self.probe);
        }
    }
}

impl Figures {
    fn took(&mut self, began: Instant) {
        let took = u32::try_from(began.elapsed().as_millis()).unwrap_or(u32::MAX);
        match self.latencies.get_mut(self.next) {
            Some(oldest) => *oldest = took,
            None => self.latencies.push(took),
        }
        self.next = (self.next + 1) % LATENCIES;
    }
}

/// All providers that were used, by id.
#[derive(Default)]
pub struct Peers {
    known: Mutex<HashMap<[u8; 16], Arc<Peer>>>,
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, HashMap<[u8; 16], Arc<Peer>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The provider with this id.
    pub fn of(&self, id: [u8; 16]) -> Arc<Peer> {
        let mut known = self.lock();
        if known.len() >= PEERS && !known.contains_key(&id) {
            let now = Instant::now();
            known.retain(|_, peer| {
                let idle = peer.lock().used.is_none_or(|used| now.duration_since(used) > FORGOTTEN);
                Arc::strong_count(peer) > 1 || !idle
            });
        }
        known.entry(id).or_default().clone()
    }

    /// How they are, by id.
    pub fn states(&self) -> Vec<ProviderState> {
        let known: Vec<_> = self.lock().iter().map(|(id, peer)| (*id, peer.clone())).collect();
        let now = Instant::now();
        let mut states: Vec<_> = known.into_iter().map(|(id, peer)| peer.state(id, now)).collect();
        states.sort_unstable_by_key(|state| state.id);
        states
    }
}
