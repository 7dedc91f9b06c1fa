//! What a call came to, noted while it goes on, so that there is a record of it however it ends.

use crate::core::chat::{Event, Usage};
use crate::core::error::Error;
use crate::core::prices;
use crate::core::wire::{Asker, CallEnd, Outcome, Prices, Route};
use crate::gateway::http::ledger::Ledger;
use crate::gateway::http::tokens;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// The longest id of a provider that is kept, in bytes.
const ID_BYTES: usize = 200;

/// What was sent of a call.
#[derive(Default)]
pub struct Sent {
    /// Requests.
    pub attempts: AtomicU32,
    /// Tokens, at a guess, of requests that the provider has and whose end we do not know: it may do the work, and bill
    /// it, with nobody listening.
    pub at_stake: AtomicU64,
}

/// What a call is taken to use where the provider does not say.
#[derive(Clone, Copy, Default)]
pub struct Guess {
    /// Tokens of the prompt.
    pub prompt: u64,
    /// Tokens of the reply, where it comes in one piece: none of it is heard before its end.
    pub whole_reply: u64,
    /// The prompt's can be compared with what the provider says.
    pub compares: bool,
}

/// A call under way. Dropped before its end, it leaves the record of a cancelled one.
pub struct Account {
    ledger: Arc<Ledger>,
    asker: Asker,
    /// Its record is made.
    recorded: bool,
    /// It is on the thread that counts what was said.
    counting: bool,
    began: Instant,
    began_ms: u64,
    provider: ([u8; 16], String, String),
    own: bool,
    prices: Prices,
    outcome: Outcome,
    error: Option<Error>,
    took: Option<Duration>,
    guess: Guess,
    /// What was sent of it.
    pub sent: Arc<Sent>,
    /// What was heard of the reply.
    pub heard: Heard,
}

/// What was heard of a reply.
#[derive(Default)]
pub struct Heard {
    /// Tokens of the prompt as we counted them.
    pub prompt: u64,
    /// Tokens as the provider told.
    pub told: Option<Usage>,
    /// `told` is all there is to know: nothing is counted besides.
    pub settled: bool,
    /// Some of `told` was counted by us.
    pub estimated: bool,
    /// All that was said, to be counted where the provider does not.
    pub text: String,
    /// When the asker was shown the first of it.
    pub first: Option<Instant>,
    /// It said why it ended.
    pub stopped: bool,
    /// The provider's id.
    pub id: Option<String>,
}

impl Heard {
    /// The reply begins again.
    pub fn restart(&mut self) {
        *self = Heard { prompt: self.prompt, ..Heard::default() };
    }

    /// Notes an event.
    pub fn note(&mut self, event: &Event) {
        match event {
            Event::Id(id) => self.set_id(id),
            Event::Text(more) | Event::Thinking(more) | Event::Arguments { fragment: more, .. } => {
                self.text.push_str(more);
            }
            Event::ToolCall { name, .. } => self.text.push_str(name),
            Event::Usage(usage) => self.told = Some(*usage),
            Event::Stop(_) => self.stopped = true,
            Event::Signature(_) => {}
        }
    }

    /// Keeps a provider's id, if it is one.
    pub fn set_id(&mut self, id: &str) {
        if id.len() <= ID_BYTES && id.bytes().all(|byte| byte.is_ascii_graphic()) {
            self.id = Some(id.to_owned());
        }
    }
}

impl Account {
    /// Begins a call.
    pub fn open(ledger: &Arc<Ledger>, asker: Asker, began: Instant, guess: Guess) -> Account {
        Account {
            ledger: Arc::clone(ledger),
            asker,
            recorded: false,
            counting: false,
            began,
            began_ms: SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64),
            provider: Default::default(),
            own: false,
            prices: Prices::default(),
            outcome: Outcome::Cancelled,
            error: None,
            took: None,
            guess,
            sent: Arc::default(),
            heard: Heard::default(),
        }
    }

    /// It goes to this provider now.
    pub fn goes_to(&mut self, route: &Route) {
        self.provider = (route.provider.id, route.provider.name.clone(), route.model.clone());
        self.own = route.provider.own;
        self.prices = route.prices;
        self.heard.restart();
        self.heard.prompt = route.corrected(self.guess.prompt);
    }

    /// Ends a call, makes its record and says how it ended.
    pub async fn close(mut self, outcome: Outcome, error: Option<Error>) -> CallEnd {
        self.outcome = outcome;
        self.error = error;
        self.took = Some(self.began.elapsed());
        let mut said = 0;
        if self.must_count() {
            let text = self.heard.text.clone();
            let counted = tokio::task::spawn_blocking(move || tokens::count_or_guess(&text)).await;
            said = counted.unwrap_or_default();
        }
        self.record(said)
    }

    /// Whether the provider's figures have to do without what was said.
    fn must_count(&self) -> bool {
        !self.heard.settled && !self.heard.text.is_empty() && !self.is_told()
    }

    fn is_told(&self) -> bool {
        let Some(told) = &self.heard.told else { return false };
        self.outcome == Outcome::Succeeded && told.input > 0 && (told.output > 0 || self.heard.text.is_empty())
    }

    /// Tokens, and whether we counted them; `said` is what we counted of the reply.
    fn usage(&self, said: u64) -> (Usage, bool) {
        let heard = &self.heard;
        let told = heard.told.unwrap_or_default();
        let at_stake = self.sent.at_stake.load(Ordering::Relaxed);
        if heard.settled {
            return (Usage { input: told.input + at_stake, ..told }, heard.estimated || at_stake > 0);
        }
        if self.is_told() {
            return (told, heard.estimated);
        }
        let used = match self.outcome {
            Outcome::Succeeded | Outcome::Interrupted => true,
            Outcome::Cancelled | Outcome::Failed => at_stake > 0 || heard.told.is_some(),
        };
        if !used {
            return (Usage::default(), false);
        }
        let input = if told.input > 0 { told.input } else { heard.prompt };
        let unheard = if at_stake > 0 && self.outcome != Outcome::Succeeded { self.guess.whole_reply } else { 0 };
        (Usage { input, output: told.output.max(said).max(unheard), ..told }, true)
    }

    fn record(&mut self, said: u64) -> CallEnd {
        self.recorded = true;
        let (usage, estimated) = self.usage(said);
        let (provider_id, provider, model) = std::mem::take(&mut self.provider);
        let call = CallEnd {
            provider_id,
            own: self.own,
            provider,
            model,
            outcome: self.outcome,
            usage,
            estimated,
            guessed_tokens: if self.guess.compares { self.guess.prompt } else { 0 },
            cost_nanos: prices::cost_nanos(&usage, &self.prices),
            latency_ms: self.took.unwrap_or_else(|| self.began.elapsed()).as_millis() as u64,
            first_token_ms: self.heard.first.map(|first| first.duration_since(self.began).as_millis() as u64),
            attempts: self.sent.attempts.load(Ordering::Relaxed),
            lost: self.outcome != Outcome::Succeeded && self.sent.at_stake.load(Ordering::Relaxed) > 0,
            provider_request_id: self.heard.id.take(),
            error: self.error.take(),
        };
        self.ledger.add(self.asker.clone(), call.clone(), self.began_ms);
        call
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if self.recorded {
            return;
        }
        self.took.get_or_insert_with(|| self.began.elapsed());
        match tokio::runtime::Handle::try_current() {
            // Whoever drops us does not wait.
            Ok(runtime) if self.must_count() && !self.counting => {
                self.recorded = true;
                let mut rest = Account {
                    ledger: Arc::clone(&self.ledger),
                    asker: self.asker.clone(),
                    recorded: false,
                    counting: true,
                    provider: std::mem::take(&mut self.provider),
                    error: self.error.take(),
                    sent: Arc::clone(&self.sent),
                    heard: std::mem::take(&mut self.heard),
                    ..*self
                };
                runtime.spawn_blocking(move || {
                    let said = tokens::count_or_guess(&rest.heard.text);
                    rest.record(said);
                });
            }
            // The program is about to end.
            _ => {
                let said = tokens::guess(&self.heard.text);
                self.record(said);
            }
        }
    }
}
