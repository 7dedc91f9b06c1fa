//! One request to a provider: its turn, the sending of it, and the one loop that sends it again.

use crate::core::error::{Error, Kind};
use crate::core::wire::Provider;
use crate::gateway::http::account::Sent;
use crate::gateway::http::client::Ready;
use crate::gateway::http::fault::{Fault, Health};
use crate::gateway::http::peer::{Cooling, Peer};
use crate::gateway::http::turns::Limit;
use crate::gateway::http::{Addressee, too_slow};
use crate::provider;
use reqwest::Response;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};
use tokio::time::timeout_at;

/// The longest wait of our own before a repetition.
const LONGEST_BACKOFF: Duration = Duration::from_secs(8);
/// Bytes of an error's body that are read.
const ERROR_BYTES: usize = 64 * 1024;

/// What takes a reply.
pub trait Reader: Send {
    /// What comes of it.
    type Output: Send;
    /// Reads a reply from its beginning.
    fn read(&mut self, body: &mut Body<'_>) -> impl Future<Output = Result<Self::Output, Fault>> + Send;
    /// Whether the asker has seen some of it, so that it cannot begin again.
    fn shown(&self) -> bool;
    /// Tokens that the provider said it used.
    fn used(&self) -> Option<u64>;
}

/// A request with all that decides on its way.
pub struct Exchange<'a> {
    /// To whom.
    pub provider: &'a Provider,
    /// The model asked.
    pub model: &'a str,
    /// The provider's turns and circuit.
    pub peer: &'a Peer,
    /// Whose turn it takes.
    pub workspace: [u8; 16],
    /// Tokens that it may use, at a guess.
    pub tokens: u64,
    /// When it has to be over.
    pub deadline: Instant,
    /// How long it was given in all.
    pub timeout_ms: u64,
    /// Counts what is sent.
    pub sent: &'a Sent,
    /// The longest wait before the first repetition.
    pub backoff: Duration,
    /// It waits for a provider that is left alone, rather than being refused.
    pub patient: bool,
}

impl Exchange<'_> {
    fn to(&self) -> Addressee<'_> {
        Addressee::Provider(&self.provider.name)
    }

    /// Sends the request until it is answered, or not worth sending again.
    pub async fn run<R: Reader>(&self, ready: &Ready, reader: &mut R) -> Result<R::Output, Fault> {
        let mut repeated = 0;
        loop {
            if self.patient && self.wait_out_cooling().await {
                continue;
            }
            let fault = match self.attempt(ready, reader).await {
                Ok(output) => return Ok(output),
                Err(fault) => fault,
            };
            // Another one is trying the provider: nothing was sent.
            if self.patient && fault.left_alone && self.wait_out_cooling().await {
                continue;
            }
            if reader.shown() || !fault.again || repeated >= self.provider.max_retries {
                return Err(fault);
            }
            let now = Instant::now();
            let pause = fault.retry_after.unwrap_or_else(|| jitter(self.backoff, repeated));
            let in_time = now.checked_add(pause).is_some_and(|then| then < self.deadline);
            if !in_time || (!self.patient && self.peer.cooling(now).is_some()) {
                return Err(fault);
            }
            tokio::time::sleep(pause).await;
            repeated += 1;
        }
    }

    /// Waits until the provider may be tried again, if that comes in time; says whether it waited.
    async fn wait_out_cooling(&self) -> bool {
        let now = Instant::now();
        let Some(cooling) = self.peer.cooling(now) else { return false };
        // Those who wait together do not come back together.
        let then = now + cooling.left + jitter(self.backoff, 0);
        if then >= self.deadline {
            return false;
        }
        tokio::time::sleep_until(then.into()).await;
        true
    }

    async fn attempt<R: Reader>(&self, ready: &Ready, reader: &mut R) -> Result<R::Output, Fault> {
        // Nobody waits for a turn at a provider that is left alone.
        if let Some(cooling) = self.peer.cooling(Instant::now()) {
            return Err(self.left_alone(cooling));
        }
        let turn = self.peer.turns.take(self.provider, self.workspace, self.tokens, self.deadline).await;
        let mut turn = turn.map_err(|limit| self.no_turn(limit))?;
        let visit = self.peer.begin().map_err(|cooling| {
            turn.settle(0);
            self.left_alone(cooling)
        })?;
        self.sent.attempts.fetch_add(1, Ordering::Relaxed);
        self.sent.at_stake.fetch_add(self.tokens.max(1), Ordering::Relaxed);
        let exchange = async {
            let mut body = self.send(ready, visit.began()).await?;
            reader.read(&mut body).await
        };
        let result = match timeout_at(self.deadline.into(), exchange).await {
            Ok(result) => result,
            Err(_) => Err(Fault { lost: true, ..too_slow(self.to(), self.timeout_ms).into() }),
        };
        if result.as_ref().err().is_none_or(|fault| !fault.lost) {
            self.sent.at_stake.fetch_sub(self.tokens.max(1), Ordering::Relaxed);
        }
        match &result {
            Ok(_) => {
                visit.answered();
                if let Some(used) = reader.used() {
                    turn.settle(used);
                }
            }
            Err(fault) => {
                visit.failed(fault);
                if !reader.shown() && fault.health != Health::Unknown {
                    turn.settle(0);
                }
            }
        }
        result
    }

    async fn send(&self, ready: &Ready, began: Instant) -> Result<Body<'_>, Fault> {
        let provider = self.provider;
        let first_byte = u64::from(provider.connect_timeout_ms) + u64::from(provider.first_byte_timeout_ms);
        let first_byte = began + Duration::from_millis(first_byte);
        let response = match timeout_at(first_byte.into(), ready.send(self.to())).await {
            Ok(response) => response?,
            Err(_) => return Err(silent(self.to(), "did not answer")),
        };
        let idle = Duration::from_millis(u64::from(provider.idle_timeout_ms));
        let most = provider.max_reply_bytes;
        let mut body = Body { response, to: self.to(), first: Some(first_byte), idle, most, left: most };
        let status = body.response.status();
        if status.is_success() {
            return match body.response.content_length() {
                Some(length) if length > most => Err(body.too_long()),
                _ => Ok(body),
            };
        }
        if status.is_redirection() {
            let error =
                Error::new(Kind::Provider, format!("provider \"{}\" sent us to another address", provider.name))
                    .detail(format!("HTTP status {}.", status.as_u16()))
                    .hint("Check its base URL; a key is never sent to another host.");
            return Err(Fault { health: Health::Well, ..Fault::from(error) });
        }
        let headers: Vec<(String, String)> = body
            .response
            .headers()
            .iter()
            .filter_map(|(name, value)| Some((name.as_str().to_owned(), value.to_str().ok()?.to_owned())))
            .collect();
        let mut text = Vec::new();
        // What there is of it will do.
        while text.len() < ERROR_BYTES
            && let Ok(Some(part)) = body.next().await
        {
            text.extend_from_slice(part.as_ref());
        }
        text.truncate(ERROR_BYTES);
        let failure = provider::failure(provider.kind, status.as_u16(), &headers, &text);
        Err(Fault::of_failure(failure, &provider.name, self.model))
    }

    fn no_turn(&self, limit: Limit) -> Fault {
        let name = &self.provider.name;
        Fault::from(
            Error::new(Kind::RateLimited, format!("limit of provider \"{name}\" is used up"))
                .detail(format!("Allowed are {limit}, and no turn came within the call's {} ms.", self.timeout_ms))
                .hint("Try again later, or raise the provider's limit."),
        )
    }

    fn left_alone(&self, Cooling { left, limited }: Cooling) -> Fault {
        let kind = if limited { Kind::RateLimited } else { Kind::Provider };
        let seconds = left.as_secs_f64().ceil().max(1.0);
        let error =
            Error::new(kind, format!("provider \"{}\" is left alone after repeated failures", self.provider.name))
                .detail(format!("It is tried again in {seconds} seconds."))
                .hint("Ask again then; view helper.provider_status shows how the provider is.");
        Fault { left_alone: true, ..Fault::from(error) }
    }
}

/// A wait of any length up to a limit that doubles with each repetition, so that those who failed together do not
/// come back together.
pub fn jitter(first: Duration, repeated: u32) -> Duration {
    let most = first.saturating_mul(1 << repeated.min(16)).min(LONGEST_BACKOFF);
    // Every such state has keys of its own.
    let random = std::hash::RandomState::new().build_hasher().finish();
    most.mul_f64(random as f64 / u64::MAX as f64)
}

fn silent(to: Addressee<'_>, what: &str) -> Fault {
    let error = Error::new(Kind::Provider, format!("{to} {what}"))
        .detail("Nothing came in time.")
        .hint("Try again later, or give it more time with helper.set_provider(options => ...).");
    Fault { lost: true, ..Fault::passing(error) }
}

/// A reply's body as it comes.
pub struct Body<'a> {
    response: Response,
    to: Addressee<'a>,
    /// When its first part has to be there, while it is not.
    first: Option<Instant>,
    idle: Duration,
    most: u64,
    left: u64,
}

impl Body<'_> {
    /// The next part, or `None` at the end.
    pub async fn next(&mut self) -> Result<Option<impl AsRef<[u8]> + Send + use<>>, Fault> {
        let idle = Instant::now() + self.idle;
        let until = self.first.take().map_or(idle, |first| first.max(idle));
        let part = match timeout_at(until.into(), self.response.chunk()).await {
            Ok(part) => part.map_err(|error| Fault::of_client(&error, self.to, true))?,
            Err(_) => return Err(silent(self.to, "broke off its reply")),
        };
        let length = part.as_ref().map_or(0, |part| part.len() as u64);
        self.left = self.left.checked_sub(length).ok_or_else(|| self.too_long())?;
        Ok(part)
    }

    /// The provider's id of the request, where a header has it.
    pub fn request_id(&self) -> Option<String> {
        let headers = self.response.headers();
        let id = headers.get("x-request-id").or_else(|| headers.get("request-id"))?;
        id.to_str().ok().map(str::to_owned)
    }

    fn too_long(&self) -> Fault {
        let error = Error::new(Kind::OverLimit, format!("reply of {} is too long", self.to))
            .detail(format!("Allowed are {} bytes.", self.most))
            .hint("Ask for less, or raise max_reply_bytes of the provider with helper.set_provider.");
        Fault { health: Health::Well, lost: true, ..Fault::from(error) }
    }
}
