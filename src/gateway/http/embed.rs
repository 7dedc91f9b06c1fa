//! Texts embedded by a provider: in as many requests as its limits need, several at once, the replies in order.

use crate::core::chat::{Kind, Usage};
use crate::core::error::{self, Error};
use crate::core::wire::{CallEnd, EmbedCall, Item, Outcome};
use crate::gateway::http::account::{Account, Guess, Sent};
use crate::gateway::http::exchange::{Body, Exchange, Reader};
use crate::gateway::http::fault::{Fault, Health};
use crate::gateway::http::share::{Done, Share, Vectors};
use crate::gateway::http::{Addressee, Providers, Sink, deadline, tokens, too_slow};
use crate::provider::{self, Batch, Cause, Failure};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// Requests of one call under way at once, where the provider sets no limit.
const AHEAD: usize = 4;
/// Where it sets one, and a higher one: their replies wait in memory.
const MOST_AHEAD: usize = 16;
/// Embeddings in one frame.
const SLICE: usize = 256;
/// Bytes of a reply that are read where they arrive; a longer one takes a thread that may be busy.
const SHORT: usize = 256 * 1024;

/// One request of a call, under way.
struct Pending {
    inputs: Range<usize>,
    share: Arc<Share>,
    /// The request is ours; otherwise another call's, which asked for the same.
    ours: bool,
}

/// A call with what its requests need, which may outlive it where another call shares them.
struct Work {
    call: EmbedCall,
    deadline: Instant,
    sent: Arc<Sent>,
}

impl Providers {
    /// Embeds texts. The embeddings go to `sink` in order; how it ended, also in an error, is returned.
    pub async fn embed(self: &Arc<Self>, call: EmbedCall, sink: &Sink) -> CallEnd {
        let began = Instant::now();
        let mut account = Account::open(self.ledger(), call.asker.clone(), began, Guess::default());
        account.goes_to(&call.route);
        account.heard.settled = true;
        let deadline = deadline(began, call.timeout_ms);
        let work = Arc::new(Work { call, deadline, sent: account.sent.clone() });
        match self.embed_all(&work, &mut account, sink).await {
            Ok(()) => account.close(Outcome::Succeeded, None).await,
            Err(error) if account.heard.first.is_some() => account.close(Outcome::Interrupted, Some(error)).await,
            Err(error) => account.close(Outcome::Failed, Some(error)).await,
        }
    }

    async fn embed_all(self: &Arc<Self>, work: &Arc<Work>, account: &mut Account, sink: &Sink) -> error::Result<()> {
        let call = &work.call;
        if let Some(index) = call.inputs.iter().position(String::is_empty) {
            return Err(Error::bad_argument("a text to embed is empty").detail(place(index, &call.inputs)));
        }
        let mut rest = plan(&call.inputs, &provider::batch(call.route.provider.kind)).into_iter();
        let most = match call.route.provider.max_concurrent as usize {
            0 => AHEAD,
            most => most.min(MOST_AHEAD),
        };
        let mut ahead: VecDeque<Pending> = VecDeque::new();
        let mut dimensions = call.dimensions.map(|dimensions| dimensions as usize);
        loop {
            while ahead.len() < most
                && let Some(inputs) = rest.next()
            {
                ahead.push_back(self.begin(work, inputs));
            }
            let Some(pending) = ahead.pop_front() else { return Ok(()) };
            let done = await_share(work, &pending).await?;
            let vectors = match &*done {
                Ok(vectors) => vectors,
                // Whoever asked first had less time than we have.
                Err(fault) if !pending.ours && fault.health == Health::Unknown && Instant::now() < work.deadline => {
                    drop((done, pending.share));
                    ahead.push_front(self.begin(work, pending.inputs));
                    continue;
                }
                Err(fault) if fault.too_large && pending.inputs.len() > 1 => {
                    let Range { start, end } = pending.inputs;
                    let middle = start + (end - start) / 2;
                    ahead.push_front(self.begin(work, middle..end));
                    ahead.push_front(self.begin(work, start..middle));
                    continue;
                }
                Err(fault) => {
                    if let Some(id) = &fault.request_id {
                        account.heard.set_id(id);
                    }
                    let error = fault.error.clone();
                    return Err(if fault.too_large {
                        error.detail(place(pending.inputs.start, &call.inputs))
                    } else {
                        error
                    });
                }
            };
            if pending.ours {
                let told = account.heard.told.get_or_insert_with(Usage::default);
                told.input += vectors.tokens;
                account.heard.estimated |= vectors.estimated;
            }
            let expected = *dimensions.get_or_insert(vectors.dimensions);
            if vectors.dimensions != expected {
                let message = format!("embedding has {} dimensions, expected {expected}", vectors.dimensions);
                return Err(Error::new(error::Kind::Provider, message)
                    .detail(format!("Model \"{}\" of provider \"{}\".", call.route.model, call.route.provider.name)));
            }
            account.heard.first.get_or_insert_with(Instant::now);
            for slice in vectors.values.chunks(SLICE * vectors.dimensions.max(1)) {
                let item = Item::Embeddings { dimensions: vectors.dimensions as u32, values: slice.to_vec() };
                sink.send(&item).await?;
            }
        }
    }

    /// Begins a request, or joins another call's that asks for the same.
    fn begin(self: &Arc<Self>, work: &Arc<Work>, inputs: Range<usize>) -> Pending {
        let key = key(&work.call, &inputs);
        let (share, ours) = self.shares.join(key, || {
            let (providers, work, inputs) = (Arc::clone(self), Arc::clone(work), inputs.clone());
            async move { providers.embed_some(&work, inputs).await }
        });
        Pending { inputs, share, ours }
    }

    /// One request.
    async fn embed_some(&self, work: &Work, inputs: Range<usize>) -> Result<Vectors, Fault> {
        let Work { call, deadline, sent } = work;
        let (provider, model) = (&call.route.provider, call.route.model.as_str());
        let texts = &call.inputs[inputs];
        let request = provider::embed(provider.kind, model, texts, call.dimensions, call.purpose)?;
        let ready = match timeout_at((*deadline).into(), self.clients.request(provider, request)).await {
            Ok(ready) => ready?,
            Err(_) => return Err(too_slow(Addressee::Provider(&provider.name), call.timeout_ms).into()),
        };
        let peer = self.peers.of(provider.id);
        let exchange = Exchange {
            provider,
            model,
            peer: &peer,
            workspace: call.asker.workspace,
            tokens: texts.iter().map(|text| tokens::guess(text)).sum(),
            deadline: *deadline,
            timeout_ms: call.timeout_ms,
            sent,
            backoff: self.backoff,
            patient: call.patient,
            once: false,
        };
        let mut taker =
            Taker { kind: provider.kind, provider: &provider.name, model, expected: texts.len(), used: None };
        let mut vectors = exchange.run(&ready, &mut taker).await?;
        if taker.used.is_none() {
            let texts = texts.to_vec();
            let count = move || texts.iter().map(|text| tokens::count_or_guess(text)).sum();
            vectors.tokens = tokio::task::spawn_blocking(count).await.unwrap_or_default();
        }
        Ok(vectors)
    }
}

async fn await_share(work: &Work, pending: &Pending) -> error::Result<Done> {
    // A request of ours keeps the time itself, and knows better what took it.
    let grace = if pending.ours { Duration::from_secs(1) } else { Duration::ZERO };
    match timeout_at((work.deadline + grace).into(), pending.share.done()).await {
        Ok(Some(done)) => Ok(done),
        Ok(None) => Err(Error::bug("a request for embeddings panicked")),
        Err(_) => Err(too_slow(Addressee::Provider(&work.call.route.provider.name), work.call.timeout_ms)),
    }
}

fn place(index: usize, inputs: &[String]) -> String {
    format!("It is number {} of {}.", index + 1, inputs.len())
}

/// What texts go together into a request; a text beyond every limit goes alone, and the provider says what it is.
fn plan(inputs: &[String], limits: &Batch) -> Vec<Range<usize>> {
    let mut plan = Vec::new();
    let (mut start, mut sum) = (0, 0);
    for (index, text) in inputs.iter().enumerate() {
        let tokens = (tokens::guess(text) as usize).min(limits.tokens_each);
        if index > start && (index - start >= limits.inputs || sum + tokens > limits.tokens) {
            plan.push(start..index);
            (start, sum) = (index, 0);
        }
        sum += tokens;
    }
    if start < inputs.len() {
        plan.push(start..inputs.len());
    }
    plan
}

/// What two requests have in common that are the same.
fn key(call: &EmbedCall, inputs: &Range<usize>) -> [u8; 32] {
    let mut hash = Sha256::new();
    // A failure leaves the part out that nothing but an encoder's fault could.
    hash.update(postcard::to_stdvec(&(&call.route, call.dimensions, call.purpose)).unwrap_or_default());
    for text in &call.inputs[inputs.clone()] {
        hash.update((text.len() as u64).to_le_bytes());
        hash.update(text);
    }
    hash.finalize().into()
}

/// Takes a reply of embeddings, whole.
struct Taker<'a> {
    kind: Kind,
    provider: &'a str,
    model: &'a str,
    expected: usize,
    used: Option<u64>,
}

impl Reader for Taker<'_> {
    type Output = Vectors;

    async fn read(&mut self, body: &mut Body<'_>) -> Result<Vectors, Fault> {
        let mut bytes = Vec::new();
        while let Some(part) = body.next().await? {
            bytes.extend_from_slice(part.as_ref());
        }
        let (kind, expected) = (self.kind, self.expected);
        let vectors = if bytes.len() <= SHORT {
            vectors(kind, &bytes, expected)
        } else {
            let read = tokio::task::spawn_blocking(move || vectors(kind, &bytes, expected)).await;
            read.map_err(|_| Error::bug("reading embeddings panicked"))?
        };
        let vectors = vectors.map_err(|failure| Fault::of_failure(failure, self.provider, self.model))?;
        self.used = (!vectors.estimated).then_some(vectors.tokens);
        Ok(vectors)
    }

    fn shown(&self) -> bool {
        false
    }

    fn used(&self) -> Option<u64> {
        self.used
    }
}

/// Reads embeddings and makes each one's length 1.
fn vectors(kind: Kind, body: &[u8], expected: usize) -> Result<Vectors, Failure> {
    let embedded = provider::embeddings(kind, body, expected)?;
    let nonsense = || Failure {
        cause: Cause::Nonsense,
        status: 200,
        code: None,
        request_id: None,
        retry_after: None,
        retry: None,
    };
    let dimensions = embedded.vectors.first().map_or(0, Vec::len);
    let mut values = Vec::with_capacity(dimensions * embedded.vectors.len());
    for vector in &embedded.vectors {
        let length = vector.iter().map(|x| f64::from(*x) * f64::from(*x)).sum::<f64>().sqrt();
        if vector.len() != dimensions || dimensions == 0 || !length.is_finite() || length == 0.0 {
            return Err(nonsense());
        }
        values.extend(vector.iter().map(|x| (f64::from(*x) / length) as f32));
    }
    if embedded.vectors.len() != expected {
        return Err(nonsense());
    }
    let estimated = embedded.tokens.is_none_or(|tokens| tokens == 0);
    Ok(Vectors { dimensions, values, tokens: embedded.tokens.unwrap_or_default(), estimated })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_packed_within_all_three_limits() {
        let limits = Batch { inputs: 3, tokens_each: 10, tokens: 20 };
        let texts = |lengths: &[usize]| lengths.iter().map(|length| "x".repeat(*length)).collect::<Vec<_>>();
        assert!(plan(&texts(&[]), &limits).is_empty());
        assert_eq!(plan(&texts(&[1, 1, 1, 1]), &limits), [0..3, 3..4]);
        assert_eq!(plan(&texts(&[24, 24, 24]), &limits), [0..2, 2..3]);
        assert_eq!(plan(&texts(&[9000, 1, 9000]), &limits), [0..2, 2..3]);
    }
}
